/**
 * Reads and invalidates the Redis keys that preheat keeps warm.
 *
 * A read that hits costs one command. A miss is loaded once over all processes, and written only if the
 * tenant's data has not changed since. No read fails, and none waits longer than a deadline, for the
 * sake of Redis.
 *
 * @module
 */
export { Cache, createCache, type CacheOptions, type Load, type LoadEach } from "./cache.js";
export type { Background, FamilyStats, Stats } from "./counts.js";
export { localDates } from "./dates.js";
export { DeadlineExceeded, InvalidationFailed, LoadsExhausted } from "./errors.js";
export type { CacheEvent, FillOutcome, OnError, Operation, ReadResult } from "./events.js";
export type { Changed, Invalidated } from "./invalidation.js";
export type { Json, Loadable, Read } from "./json.js";
export type {
  Fill,
  Key,
  LocalDate,
  PlainOptions,
  ReadOptions,
  RespondOptions,
  SharedKey,
} from "./key.js";
export type { RedisLike } from "./redis-like.js";
export type { RequestLike } from "./respond.js";
