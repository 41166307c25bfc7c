/**
 * The adapter for `redis` (node-redis) 5 and 6: a client, a pool, a sentinel or a cluster.
 *
 * @module
 */
import { evaluate } from "./evaluate.js";
import type { RedisLike } from "./redis-like.js";
import { scripts } from "./scripts.js";

/** The options of `SET` that are used. */
export interface NodeRedisSet {
  condition?: "NX";
  expiration: { type: "PX"; value: number };
}

/** The keys and arguments of a script. */
export interface NodeRedisScript {
  keys: string[];
  arguments: string[];
}

/** What is used of a transaction. */
export interface NodeRedisMulti {
  set(key: string, value: string, options: NodeRedisSet): unknown;
  incr(key: string): unknown;
  unlink(keys: string[]): unknown;
  hIncrBy(key: string, field: string, increment: number): unknown;
  pExpire(key: string, milliseconds: number): unknown;
  exec(): Promise<unknown>;
}

/** What is used of a client. */
export interface NodeRedisClient {
  get(key: string): Promise<unknown>;
  mGet(keys: string[]): Promise<unknown>;
  evalSha(sha1: string, options: NodeRedisScript): Promise<unknown>;
  eval(script: string, options: NodeRedisScript): Promise<unknown>;
  set(key: string, value: string, options: NodeRedisSet): Promise<unknown>;
  incr(key: string): Promise<unknown>;
  unlink(keys: string[]): Promise<unknown>;
  multi(): unknown;
}

/** A client of `redis`, connected by the application. */
export function redis(client: NodeRedisClient): RedisLike {
  const transaction = () => client.multi() as NodeRedisMulti;
  return {
    keyPrefix: "",
    cluster: "masters" in client,
    get: async (key) => (await client.get(key)) as string | null,
    mget: async (keys) => (await client.mGet([...keys])) as (string | null)[],
    run(script, keys, args) {
      const options = { keys: [...keys], arguments: [...args] };
      return evaluate(
        scripts[script],
        (sha1) => client.evalSha(sha1, options),
        (text) => client.eval(text, options),
      );
    },
    async set(key, value, milliseconds) {
      await client.set(key, value, { expiration: { type: "PX", value: milliseconds } });
    },
    async setIfAbsent(key, value, milliseconds) {
      const expiration = { type: "PX", value: milliseconds } as const;
      return (await client.set(key, value, { condition: "NX", expiration })) !== null;
    },
    async incr(key) {
      await client.incr(key);
    },
    unlink: async (keys) => Number(await client.unlink([...keys])),
    async moveFence(fence, start, milliseconds, keys) {
      const multi = transaction();
      multi.set(fence, start, { condition: "NX", expiration: { type: "PX", value: milliseconds } });
      multi.incr(fence);
      if (keys.length > 0) multi.unlink([...keys]);
      const replies = (await multi.exec()) as unknown[];
      return Number(replies[2] ?? 0);
    },
    async count(hash, deltas, milliseconds) {
      const multi = transaction();
      for (const [field, delta] of deltas) multi.hIncrBy(hash, field, delta);
      multi.pExpire(hash, milliseconds);
      await multi.exec();
    },
  };
}
