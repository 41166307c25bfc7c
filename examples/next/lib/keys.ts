// Written by hand as `preheat keys --lang typescript services` writes it.
import type { Key } from "preheat-client";

export type ServicesRow = {
  id: string;
  name: string;
  description: string | null;
  duration_minutes: number;
  price: string;
  updated_at: string;
};

export const keys = {
  services: (tenant: string): Key<ServicesRow[]> => ({
    key: `services:${tenant}`,
    tenant,
    ttl: 3_600_000,
    family: "services",
    fill: "full",
  }),
};
