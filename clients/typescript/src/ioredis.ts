/**
 * The adapter for `ioredis` 5 and 6.
 *
 * @module
 */
import { evaluate } from "./evaluate.js";
import type { RedisLike } from "./redis-like.js";
import { scripts } from "./scripts.js";

/** What is used of a `Redis` or a `Cluster`. */
export interface IoredisClient {
  readonly isCluster: boolean;
  readonly options: object;
  get(key: string): Promise<string | null>;
  mget(keys: string[]): Promise<(string | null)[]>;
  evalsha(sha1: string, keys: number, ...args: string[]): Promise<unknown>;
  eval(script: string, keys: number, ...args: string[]): Promise<unknown>;
  set(key: string, value: string, px: "PX", milliseconds: number): Promise<unknown>;
  set(key: string, value: string, px: "PX", milliseconds: number, nx: "NX"): Promise<unknown>;
  incr(key: string): Promise<number>;
  unlink(keys: string[]): Promise<number>;
  multi(commands: unknown[][]): { exec(): Promise<[Error | null, unknown][] | null> };
}

/** A client of `ioredis`. Its `keyPrefix` counts as part of the cache's prefix. */
export function ioredis(client: IoredisClient): RedisLike {
  const { keyPrefix } = client.options as { keyPrefix?: string };
  const prefix = keyPrefix ?? "";
  // The client puts its prefix before every key, which the cache's names have already.
  const bare = (key: string) => key.slice(prefix.length);
  return {
    keyPrefix: prefix,
    cluster: client.isCluster,
    get: (key) => client.get(bare(key)),
    mget: (keys) => client.mget(keys.map(bare)),
    run(script, keys, args) {
      const rest = [...keys.map(bare), ...args];
      return evaluate(
        scripts[script],
        (sha1) => client.evalsha(sha1, keys.length, ...rest),
        (text) => client.eval(text, keys.length, ...rest),
      );
    },
    async set(key, value, milliseconds) {
      await client.set(bare(key), value, "PX", milliseconds);
    },
    async setIfAbsent(key, value, milliseconds) {
      return (await client.set(bare(key), value, "PX", milliseconds, "NX")) !== null;
    },
    async incr(key) {
      await client.incr(bare(key));
    },
    unlink: (keys) => client.unlink(keys.map(bare)),
    async moveFence(fence, start, milliseconds, keys) {
      const removal = keys.length > 0 ? [["unlink", ...keys.map(bare)]] : [];
      const [, , removed] = await transact(client, [
        ["set", bare(fence), start, "PX", milliseconds, "NX"],
        ["incr", bare(fence)],
        ...removal,
      ]);
      return Number(removed ?? 0);
    },
    async count(hash, deltas, milliseconds) {
      await transact(client, [
        ...deltas.map(([field, delta]) => ["hincrby", bare(hash), field, delta]),
        ["pexpire", bare(hash), milliseconds],
      ]);
    },
  };
}

async function transact(client: IoredisClient, commands: unknown[][]): Promise<unknown[]> {
  const replies = await client.multi(commands).exec();
  if (replies === null) throw new Error("the transaction was discarded");
  return replies.map(([error, value]) => {
    if (error) throw error;
    return value;
  });
}
