// Made from the job files by `preheat keys --lang typescript services`; do not edit.
// To make it anew: preheat keys --lang typescript services --output <this file>
/* eslint-disable */
import type { Key } from "preheat-client";

/** A row of job `services`. */
export type ServicesRow = {
  /** `uuid` */
  id: string;
  /** `text` */
  name: string;
  /** `text` */
  description: string | null;
  /** `int4` */
  duration_minutes: number;
  /** `numeric` */
  price: string;
  /** `timestamptz` */
  updated_at: string;
};

export const keys = {
  /** `services:{tenant_id}` */
  services: (tenant: string): Key<ServicesRow[]> => ({
    tenant: asUuid("tenant", tenant),
    key: `services:${tenant}`,
    ttl: 3_600_000,
    family: "services",
    fill: "full",
  }),
};

/** A UUID as Postgres writes it. */
function asUuid(name: string, value: string): string {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) throw refusal(`\`${name}\` is no UUID in lower case`);
  return value;
}

function refusal(reason: string): RangeError {
  return new RangeError(`no cache key: ${reason}`);
}
