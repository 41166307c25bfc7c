/**
 * For Next.js 15 and 16: tags that are tenants, and a cache handler for `'use cache'` whose tags are
 * fences.
 *
 * @module
 */
import { revalidateTag } from "next/cache.js";
import { after } from "next/server.js";
import type { Background } from "./counts.js";
import { fenceName } from "./names.js";

export {
  type CacheEntry,
  type CacheHandler,
  fenceHandler,
  type HandlerOptions,
} from "./next-handler.js";
export { building } from "./next-phase.js";

/** The tag of all that is rendered from a tenant's data (`null`: from data without tenants), for `cacheTag`. */
export function tenantTag(tenant: string | null): string {
  return fenceName("", tenant);
}

/**
 * Expires what carries the tenant's tag, in this instance's own caches as well. `fenceHandler` needs it
 * not: `cache.changed` moves the fence, which expires its entries in every instance.
 */
export function revalidateTenant(
  tenant: string | null,
  profile: string | { expire?: number } = { expire: 0 },
): void {
  revalidateTag(tenantTag(tenant), profile);
}

/** Brings counts to Redis after the response: `createCache({ background })`. */
export const background: Background = (work) => after(work);
