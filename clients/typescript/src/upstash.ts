/**
 * The adapter for `@upstash/redis`.
 *
 * @module
 */
import { evaluate } from "./evaluate.js";
import type { RedisLike } from "./redis-like.js";
import { upstashScripts } from "./scripts.js";

/** What is used of a transaction. */
export interface UpstashMulti {
  set(key: string, value: string, options: { nx: true; px: number }): unknown;
  incr(key: string): unknown;
  unlink(...keys: string[]): unknown;
  hincrby(key: string, field: string, increment: number): unknown;
  pexpire(key: string, milliseconds: number): unknown;
  exec(): Promise<unknown>;
}

/** What is used of a `Redis`. */
export interface UpstashClient {
  get(key: string): Promise<unknown>;
  mget(keys: string[]): Promise<unknown>;
  evalsha(sha1: string, keys: string[], args: string[]): Promise<unknown>;
  eval(script: string, keys: string[], args: string[]): Promise<unknown>;
  set(key: string, value: string, options: { px: number }): Promise<unknown>;
  set(key: string, value: string, options: { px: number; nx: true }): Promise<unknown>;
  incr(key: string): Promise<unknown>;
  unlink(...keys: string[]): Promise<unknown>;
  multi(): unknown;
}

/**
 * A client of `@upstash/redis`. Made with `automaticDeserialization: false` it hands texts through as
 * they are; otherwise it parses each, and the adapter writes it again.
 */
export function upstash(client: UpstashClient): RedisLike {
  const text = textOf(client);
  const transaction = () => client.multi() as UpstashMulti;
  return {
    keyPrefix: "",
    cluster: false,
    get: async (key) => text(await client.get(key)),
    mget: async (keys) => ((await client.mget([...keys])) as unknown[]).map(text),
    async run(script, keys, args) {
      const answer = await evaluate(
        upstashScripts[script],
        (sha1) => client.evalsha(sha1, [...keys], [...args]),
        (body) => client.eval(body, [...keys], [...args]),
      );
      if (!Array.isArray(answer) || Number(answer[0]) !== 1) return answer;
      return [1, text(answer[1])];
    },
    async set(key, value, milliseconds) {
      await client.set(key, value, { px: milliseconds });
    },
    async setIfAbsent(key, value, milliseconds) {
      return (await client.set(key, value, { px: milliseconds, nx: true })) !== null;
    },
    async incr(key) {
      await client.incr(key);
    },
    unlink: async (keys) => Number(await client.unlink(...keys)),
    async moveFence(fence, start, milliseconds, keys) {
      const multi = transaction();
      multi.set(fence, start, { nx: true, px: milliseconds });
      multi.incr(fence);
      if (keys.length > 0) multi.unlink(...keys);
      const replies = (await multi.exec()) as unknown[];
      return Number(replies[2] ?? 0);
    },
    async count(hash, deltas, milliseconds) {
      const multi = transaction();
      for (const [field, delta] of deltas) multi.hincrby(hash, field, delta);
      multi.pexpire(hash, milliseconds);
      await multi.exec();
    },
  };
}

/** What the client made of a text, as a text again. */
function textOf(client: UpstashClient): (value: unknown) => string | null {
  const { opts } = client as { opts?: { automaticDeserialization?: boolean } };
  const parses = opts?.automaticDeserialization !== false;
  return (value) => {
    if (value === null || value === undefined) return null;
    if (!parses && typeof value === "string") return value;
    return JSON.stringify(value);
  };
}
