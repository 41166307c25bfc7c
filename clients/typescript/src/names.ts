/** The names that the protocol uses in Redis. `clients/vectors.json` holds every client to them. */

/** The lowest number that a fence starts with: a bare `INCR` of a missing fence does not get there. */
const LOWEST_START = 2 ** 40;
/** Starts are below this, so that every number of a fence is exact in JavaScript. */
const START_BOUND = 2 ** 52;

/** A fence's time to live, in milliseconds. */
export const FENCE_TTL = 604_800_000;

/** The fence of a tenant, or of the jobs without tenants. */
export function fenceName(prefix: string, tenant: string | null): string {
  return tenant === null ? `${prefix}preheat:fence` : `${prefix}preheat:fence:${tenant}`;
}

/** The lease on loading a key. It lies in the key's slot wherever the key's own tag allows it. */
export function leaseName(prefix: string, key: string): string {
  const full = prefix + key;
  return `${prefix}preheat:lease:{${hashTag(full)}}${full}`;
}

/** The hash of the counts of reads. */
export function readsName(prefix: string): string {
  return `${prefix}preheat:reads`;
}

/** What Redis Cluster computes a key's slot from. */
function hashTag(key: string): string {
  const open = key.indexOf("{");
  const close = open < 0 ? -1 : key.indexOf("}", open + 1);
  return close > open + 1 ? key.slice(open + 1, close) : key;
}

/** A random number for a fence to start with. */
export function fenceStart(): string {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  const random = ((high & 0xfffff) * 2 ** 32 + low) % (START_BOUND - LOWEST_START);
  return String(LOWEST_START + random);
}
