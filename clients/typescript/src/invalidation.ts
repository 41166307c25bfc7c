import type { Absent } from "./absent.js";
import { InvalidationFailed } from "./errors.js";
import type { Flights } from "./flights.js";
import type { Answer, Link } from "./link.js";
import { FENCE_TTL, fenceName, fenceStart } from "./names.js";
import { isCrossSlot, type RedisLike } from "./redis-like.js";

/** What an application says to invalidate: a built key, or a text with its tenant. */
export interface Invalidated {
  readonly key: string;
  readonly tenant?: string | null | undefined;
}

/**
 * What a write changed: keys, functions that build them, and lists of either. Of `undefined`, `null`,
 * `false` and `""` nothing is removed. A function may throw, as a builder of `preheat keys` does for a text
 * that makes no key; the other keys are removed all the same.
 */
export type Changed =
  | Invalidated
  | (() => Changed)
  | readonly Changed[]
  | undefined
  | null
  | false
  | "";

/** The keys that are meant, and what the functions threw. */
export interface Named {
  readonly keys: Invalidated[];
  readonly errors: unknown[];
}

/** Builds the keys, each by itself. */
export function named(changed: Changed, into: Named = { keys: [], errors: [] }): Named {
  if (typeof changed === "function") {
    try {
      named(changed(), into);
    } catch (error) {
      into.errors.push(error);
    }
  } else if (isList(changed)) {
    for (const one of changed) named(one, into);
  } else if (changed) {
    into.keys.push(changed);
  }
  return into;
}

/** `Array.isArray` does not know readonly arrays. */
function isList(changed: Changed): changed is readonly Changed[] {
  return Array.isArray(changed);
}

/** The whole sequence may be repeated, so a failure that passes is not the application's affair. */
const TRIES = 2;

/**
 * Moves a tenant's fence, then removes its keys. An application does so after its commit: a reader that
 * loaded before the commit cannot fill any more, and the values that are there are removed.
 */
export class Invalidation {
  readonly #link: Link;
  readonly #flights: Flights;
  readonly #absent: Absent;
  readonly #prefix: string;
  readonly #deadline: number;
  #oneByOne: boolean;

  constructor(link: Link, flights: Flights, absent: Absent, prefix: string, deadline: number) {
    this.#link = link;
    this.#flights = flights;
    this.#absent = absent;
    this.#prefix = prefix;
    this.#deadline = deadline;
    this.#oneByOne = link.redis?.cluster === true;
  }

  /** One transaction a tenant. How many keys were there. */
  async keys(keys: readonly Invalidated[]): Promise<number> {
    const names = keys.map(({ key }) => this.#prefix + key);
    this.#forget(names);
    const results = await Promise.allSettled(
      [...byTenant(keys)].map(([tenant, own]) =>
        this.#move(
          tenant,
          own.map((key) => this.#prefix + key),
        ),
      ),
    );
    // Loads that began meanwhile may have read a replica that lags behind the commit.
    this.#forget(names);
    return total(results);
  }

  /** Moves the fence only: nobody who read before fills any more. */
  async tenant(tenant: string | null): Promise<void> {
    this.#flights.dropTenant(tenant);
    this.#absent.dropTenant(tenant);
    await this.#move(tenant, []);
    this.#flights.dropTenant(tenant);
    this.#absent.dropTenant(tenant);
  }

  #forget(names: readonly string[]): void {
    for (const name of names) {
      this.#flights.drop(name);
      this.#absent.drop(name);
    }
  }

  async #move(tenant: string | null | undefined, names: readonly string[]): Promise<number> {
    if (this.#link.redis === null) return 0;
    const moved = { fence: false, removed: 0 };
    let error: unknown;
    for (let attempt = 0; attempt < TRIES; attempt += 1) {
      const answer = await this.#attempt(tenant, names, moved);
      if (answer.ok) return answer.value;
      error = answer.error;
    }
    throw new InvalidationFailed(moved.fence ? "moved" : "unknown", moved.removed, error);
  }

  async #attempt(
    tenant: string | null | undefined,
    names: readonly string[],
    moved: Moved,
  ): Promise<Answer<number>> {
    const fence = tenant === undefined ? undefined : fenceName(this.#prefix, tenant);
    if (!this.#oneByOne) {
      const answer = await this.#link.insist("invalidate", this.#deadline, (redis) =>
        fence === undefined
          ? redis.unlink(names)
          : redis.moveFence(fence, fenceStart(), FENCE_TTL, names),
      );
      if (answer.ok || !isCrossSlot(answer.error)) return answer;
      this.#oneByOne = true;
    }
    return this.#link.insist("invalidate", this.#deadline, (redis) =>
      oneByOne(redis, fence, names, moved),
    );
  }
}

/** How far an invalidation has come for certain. */
interface Moved {
  fence: boolean;
  removed: number;
}

/** Redis Cluster: the fence and the keys lie in different slots, so each is a command of its own. */
async function oneByOne(
  redis: RedisLike,
  fence: string | undefined,
  names: readonly string[],
  moved: Moved,
): Promise<number> {
  if (fence !== undefined) {
    await redis.setIfAbsent(fence, fenceStart(), FENCE_TTL);
    await redis.incr(fence);
    moved.fence = true;
  }
  await Promise.all(
    names.map(async (name) => {
      const removed = await redis.unlink([name]);
      moved.removed += removed;
    }),
  );
  return moved.removed;
}

function byTenant(keys: readonly Invalidated[]): Map<string | null | undefined, string[]> {
  const groups = new Map<string | null | undefined, string[]>();
  for (const { key, tenant } of keys) {
    const group = groups.get(tenant);
    if (group) group.push(key);
    else groups.set(tenant, [key]);
  }
  return groups;
}

/** The first failure, with what the others removed, or the sum. */
function total(results: readonly PromiseSettledResult<number>[]): number {
  let removed = 0;
  let failure: InvalidationFailed | undefined;
  for (const result of results) {
    if (result.status === "fulfilled") removed += result.value;
    else failure ??= result.reason as InvalidationFailed;
  }
  if (!failure) return removed;
  throw new InvalidationFailed(failure.fence, removed + failure.removed, failure.cause);
}
