import type { TestContext } from "node:test";
import { Redis } from "ioredis5";
import { type Cache, type CacheOptions, createCache, type Operation } from "../../src/index.js";
import { open as openDefault, type Open } from "./clients.js";
import { RedisServer } from "./server.js";

/** What a test has: a Redis of its own, a cache over it, and a client to look into it. */
export interface Fixture {
  readonly server: RedisServer;
  readonly cache: Cache;
  /** Another cache over a connection of its own, as another process has. */
  another(options?: Partial<CacheOptions>): Promise<Cache>;
  readonly db: Redis;
  /** What `onError` was told. */
  readonly errors: [Operation, unknown][];
}

export interface FixtureOptions {
  readonly open?: Open;
  readonly cache?: Partial<CacheOptions>;
  readonly server?: readonly string[];
}

/** A machine under load may answer late; only tests of the deadline shorten this. */
export const PATIENT = 5000;

export async function fixture(t: TestContext, options: FixtureOptions = {}): Promise<Fixture> {
  const server = await RedisServer.start(...(options.server ?? []));
  t.after(() => server.stop());
  const errors: [Operation, unknown][] = [];
  const another = async (extra: Partial<CacheOptions> = {}) => {
    const opened = await (options.open ?? openDefault)(server.socket);
    const cache = createCache({
      redis: opened.redis,
      timeout: PATIENT,
      invalidateTimeout: PATIENT,
      onError: (operation, error) => errors.push([operation, error]),
      ...options.cache,
      ...extra,
    });
    t.after(async () => {
      server.thaw();
      await opened.close();
    });
    return cache;
  };
  const db = new Redis(server.socket, { maxRetriesPerRequest: null });
  db.on("error", () => {});
  t.after(() => db.disconnect());
  return { server, cache: await another(), another, db, errors };
}

/** A fence as preheat or `begin` starts it. */
export const FENCE = 2 ** 41;
