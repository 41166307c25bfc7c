import type { Key, SharedKey } from "../../src/index.js";

/** As `preheat keys` writes them. */
export type ServicesRow = { id: string; name: string; price: string; updated_at: string };
export type PetsRow = { id: string; tenant_id: string; name: string };

export const keys = {
  services: (tenant: string): Key<ServicesRow[]> => ({
    key: `services:${tenant}`,
    tenant,
    ttl: 3_600_000,
    family: "services",
    fill: "full",
  }),
  slots: (tenant: string, date: string): Key<string[]> => ({
    key: `slots:${tenant}:${date}`,
    tenant,
    ttl: 300_000,
    family: "slots",
    fill: "full",
  }),
  pet: (tenant: string, id: string): SharedKey<PetsRow> => ({
    key: `pet:${id}`,
    tenant,
    ttl: 900_000,
    family: "pets",
    fill: "brief",
    shared: true,
  }),
  report: (tenant: string): Key<number> => ({
    key: `report:${tenant}`,
    tenant,
    ttl: 900_000,
    family: "reports",
    fill: "never",
  }),
  pages: (): Key<string[]> => ({
    key: "pages",
    tenant: null,
    ttl: 86_400_000,
    family: "pages",
    fill: "full",
  }),
};

export const service: ServicesRow = {
  id: "7",
  name: "Impfung für 🐈",
  price: "12.50",
  updated_at: "2026-03-29T01:30:00.000Z",
};
