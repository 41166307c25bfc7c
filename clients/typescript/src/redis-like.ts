import type { ScriptName } from "./scripts.js";

/**
 * What the cache needs of a Redis client. `preheat-client/ioredis`, `/redis` and `/upstash` make one
 * from a client of these packages.
 *
 * The cache puts its own deadline on each call. A call rejects with the client's own error.
 */
export interface RedisLike {
  /** What the client puts before every key by itself. The cache's names begin with it; the adapter takes it off again. */
  readonly keyPrefix: string;
  /** Whether keys of one command must lie in one slot. */
  readonly cluster: boolean;
  get(key: string): Promise<string | null>;
  mget(keys: readonly string[]): Promise<(string | null)[]>;
  /** Runs a script by its SHA-1, and by its text where the server does not know it. */
  run(script: ScriptName, keys: readonly string[], args: readonly string[]): Promise<unknown>;
  /** `SET key value PX milliseconds`. */
  set(key: string, value: string, milliseconds: number): Promise<void>;
  /** `SET key value NX PX milliseconds`: whether it was set. */
  setIfAbsent(key: string, value: string, milliseconds: number): Promise<boolean>;
  incr(key: string): Promise<void>;
  /** How many of the keys were there. */
  unlink(keys: readonly string[]): Promise<number>;
  /** One `MULTI`: `SET fence start NX PX`, `INCR fence`, `UNLINK keys`. How many of the keys were there. */
  moveFence(
    fence: string,
    start: string,
    milliseconds: number,
    keys: readonly string[],
  ): Promise<number>;
  /** One `MULTI`: `HINCRBY` for each field, then `PEXPIRE`. */
  count(
    hash: string,
    deltas: readonly (readonly [string, number])[],
    milliseconds: number,
  ): Promise<void>;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether the server answered, with an error: it is there, so the next command may well succeed. */
export function isReply(error: unknown): boolean {
  return /(^|: )-?[A-Z][A-Z]+ /.test(messageOf(error));
}

/** Whether the server cannot or may not run our scripts. */
export function refusesScripts(error: unknown): boolean {
  return /CROSSSLOT|NOPERM|unknown command|not available|same slot/i.test(messageOf(error));
}

/** Whether the keys of a command lie in several slots. */
export function isCrossSlot(error: unknown): boolean {
  return /CROSSSLOT|same slot/i.test(messageOf(error));
}

/** Whether the server does not know the script of this SHA-1 yet. */
export function isUnknownScript(error: unknown): boolean {
  return /NOSCRIPT/.test(messageOf(error));
}
