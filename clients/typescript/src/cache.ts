import { abortable } from "./abort.js";
import { Absent } from "./absent.js";
import type { LoadMany } from "./batch.js";
import { type Background, Counts, type Stats } from "./counts.js";
import { InvalidationFailed, LoadsExhausted } from "./errors.js";
import { type CacheEvent, Events, type OnError, warn } from "./events.js";
import { Flights } from "./flights.js";
import { type Changed, Invalidation, named } from "./invalidation.js";
import type { Json, Loadable, Read } from "./json.js";
import {
  type AnyKey,
  type Key,
  type PlainOptions,
  plainKey,
  type ReadOptions,
  type RespondOptions,
} from "./key.js";
import { Link } from "./link.js";
import { Loads, Turn } from "./loads.js";
import { Nesting } from "./nesting.js";
import { Protocol } from "./protocol.js";
import { Reader, type ReadText } from "./reader.js";
import type { RedisLike } from "./redis-like.js";
import { exhausted, notFound, type RequestLike, responseTo } from "./respond.js";

/** How a cache is made. */
export interface CacheOptions {
  /** The client, by `preheat-client/ioredis`, `/redis` or `/upstash`. `null`: every read is a load. */
  readonly redis: RedisLike | null;
  /** preheat's `cache.prefix`. Default: none. */
  readonly prefix?: string;
  /** Milliseconds that a read waits for one command. Default: 50. */
  readonly timeout?: number;
  /** Milliseconds that an invalidation, which has no other way, waits for one try. Default: 500. */
  readonly invalidateTimeout?: number;
  /** How many loads may run at once; 64 times as many may wait. Default: 16. */
  readonly loads?: number;
  /** The largest value that is cached, in bytes. Default: 5 MiB. */
  readonly maxBytes?: number;
  /** Next's `after`, or `(work) => waitUntil(work())`: brings counts to Redis after the response. */
  readonly background?: Background;
  /** Told of failures of the cache, each kind once in ten seconds. Default: `console.warn`. */
  readonly onError?: OnError;
  /** Told of everything that is counted. */
  readonly onEvent?: (event: CacheEvent) => void;
}

/** Loads one value from the database. */
export type Load<L> = () => Promise<L> | L;

/** Loads a value for each of those that Redis does not have, in their order. */
export type LoadEach<A, L> = (missing: A[]) => Promise<readonly L[]> | readonly L[];

const MAX_BYTES = 5 * 1024 * 1024;

/** A cache over the keys that preheat keeps warm. */
export function createCache(options: CacheOptions): Cache {
  return new Cache(options);
}

/**
 * Reads throw only what the loader throws, {@link LoadsExhausted}, and the reason of the caller's
 * signal: whatever happens to Redis, the loader is called instead.
 */
export class Cache {
  readonly #reader: Reader;
  readonly #invalidation: Invalidation;
  readonly #counts: Counts;
  readonly #events: Events;
  readonly #loads: Loads;

  /** See {@link createCache}. */
  constructor(options: CacheOptions) {
    const { redis, timeout = 50, invalidateTimeout = 500, loads = 16 } = options;
    const prefix = (redis?.keyPrefix ?? "") + (options.prefix ?? "");
    const listeners: ((event: CacheEvent) => void)[] = [(event) => this.#counts.record(event)];
    if (options.onEvent) listeners.push(options.onEvent);
    this.#events = new Events(options.onError ?? warn, listeners, () => performance.now());
    const events = this.#events;
    const link = new Link(redis, events);
    this.#counts = new Counts(link, prefix, invalidateTimeout, options.background);
    this.#loads = new Loads(loads);
    const flights = new Flights();
    const absent = new Absent();
    const protocol = new Protocol(link, timeout, (error) => events.failed("scripts", error));
    const parts = { link, protocol, flights, absent, loads: this.#loads, events };
    const limits = { prefix, deadline: timeout, maxBytes: options.maxBytes ?? MAX_BYTES };
    this.#reader = new Reader({ ...parts, nesting: new Nesting() }, limits);
    this.#invalidation = new Invalidation(link, flights, absent, prefix, invalidateTimeout);
  }

  /** Reads a value, and loads it if Redis does not have it. */
  cached<T, L extends Loadable<T>>(
    key: Key<T, boolean>,
    load: Load<L>,
    options?: ReadOptions,
  ): Promise<Read<T, L>>;
  /** The same for a key that is only a text. A number is its TTL in seconds. */
  cached<L>(key: string, load: Load<L>, options?: number | PlainOptions): Promise<Json<L>>;
  async cached(
    key: AnyKey | string,
    load: Load<unknown>,
    options: number | (PlainOptions & ReadOptions) = {},
  ): Promise<unknown> {
    const known = typeof key === "string" ? plainKey(key, options) : key;
    const signal = typeof options === "number" ? undefined : options.signal;
    return this.#valueOf(await this.#one(known, load, signal, false), load);
  }

  /** Reads a row that may not exist. That it does not is remembered for a second, in this process. */
  async find<T, L extends Loadable<T> | null | undefined>(
    key: Key<T, boolean>,
    load: Load<L>,
    options: ReadOptions = {},
  ): Promise<Read<T, NonNullable<L>> | null> {
    const read = await this.#one(key, load, options.signal, true);
    return ((await this.#valueOf(read, load)) ?? null) as Read<T, NonNullable<L>> | null;
  }

  /**
   * Reads several values by one command. `load` gets the keys that Redis does not have, and gives a
   * value for each, in their order.
   */
  many<T, Shared extends boolean, L extends Loadable<T>>(
    keys: readonly Key<T, Shared>[],
    load: LoadEach<Key<T, Shared>, L>,
    options?: ReadOptions,
  ): Promise<Read<T, L>[]>;
  /** The same with what the loader is asked for beside each key, such as the day of a day's slots. */
  many<A, T, L extends Loadable<T>>(
    keys: readonly (readonly [A, Key<T, boolean>])[],
    load: LoadEach<A, L>,
    options?: ReadOptions,
  ): Promise<Read<T, L>[]>;
  async many(
    entries: readonly (AnyKey | readonly [unknown, AnyKey])[],
    load: LoadEach<never, unknown>,
    options: ReadOptions = {},
  ): Promise<unknown[]> {
    const loadEach = load as LoadEach<unknown, unknown>;
    const pairs = entries.map((entry) => (isPair(entry) ? entry : ([entry, entry] as const)));
    const keys = pairs.map(([, key]) => key);
    const askedBy = new Map(pairs.map(([asked, { key }]) => [key, asked]));
    const loadMany: LoadMany = async (targets) =>
      loadEach(targets.map(({ key }) => askedBy.get(key.key)));
    const reads = await abortable(options.signal, () => this.#reader.many(keys, loadMany));
    return Promise.all(
      reads.map((read, i) => this.#valueOf(read, async () => (await loadEach([pairs[i]?.[0]]))[0])),
    );
  }

  /**
   * The response to a `GET`: the JSON text as Redis has it, without a parse, with an ETag, 304 where
   * the client has it already, and `Cache-Status`. 404 where there is no value (`null`), 503 for
   * {@link LoadsExhausted}.
   *
   * The value of a key that tenants share may be another tenant's, so such a key needs `check`. With
   * `check` the text is parsed, and a value that the caller may not see is a 404.
   */
  respond<T, L extends Loadable<T> | null | undefined>(
    request: RequestLike,
    key: Key<T>,
    load: Load<L>,
    options?: RespondOptions<NonNullable<Read<T, L>>>,
  ): Promise<Response>;
  respond<T, L extends Loadable<T> | null | undefined>(
    request: RequestLike,
    key: Key<T, boolean>,
    load: Load<L>,
    options: RespondOptions<NonNullable<Read<T, L>>>,
  ): Promise<Response>;
  async respond(
    request: RequestLike,
    key: Key<unknown, boolean>,
    load: Load<unknown>,
    options?: RespondOptions<never>,
  ): Promise<Response> {
    const check = options?.check as ((value: unknown) => boolean) | undefined;
    if (key.shared && !check) {
      throw new TypeError(`\`${key.key}\` may be another tenant's: \`respond\` needs \`check\``);
    }
    try {
      const read = await this.#one(key, load, undefined, false);
      if (!check) return responseTo(request, read);
      const { text, value } = await this.#parsed(read, load);
      if (value === undefined || value === null || !check(value)) return notFound(read);
      return responseTo(request, { ...read, text });
    } catch (error) {
      if (error instanceof LoadsExhausted) return exhausted();
      throw error;
    }
  }

  /**
   * Removes the keys that a write changed. **After the commit.** The write has happened, so this never
   * throws: answer as usual. Give the keys as functions (`() => keys.services(tenant)`): a builder that
   * throws then leaves out its own key only.
   *
   * `false`: old values may be read until preheat hears of the change, or until their TTL ends. `onError`
   * is called with the reason.
   */
  async changed(...keys: Changed[]): Promise<boolean> {
    const { keys: known, errors } = named(keys);
    for (const error of errors) this.#events.failed("key", error);
    try {
      await this.#invalidation.keys(known);
      return errors.length === 0;
    } catch (error) {
      // `InvalidationFailed` needs no report: each of its tries was reported when it failed.
      if (!(error instanceof InvalidationFailed)) this.#events.failed("invalidate", error);
      return false;
    }
  }

  /**
   * As {@link changed}, for those who want the error. Gives the number of keys that were there. What a
   * function threw is thrown after the other keys are removed.
   *
   * @throws InvalidationFailed the data is committed, and old values may be read until their TTL ends
   */
  async invalidate(...keys: Changed[]): Promise<number> {
    const { keys: known, errors } = named(keys);
    const removed = await this.#invalidation.keys(known);
    if (errors.length > 0) throw errors[0];
    return removed;
  }

  /**
   * Moves the tenant's fence only: a reader that loaded before the commit cannot fill any more. The keys stay,
   * until preheat or a change feed replaces them.
   */
  invalidateTenant(tenant: string | null): Promise<void> {
    return this.#invalidation.tenant(tenant);
  }

  /** The counters since the cache was made. */
  stats(): Stats {
    return this.#counts.stats();
  }

  /** Brings the counts to Redis now. */
  flush(): Promise<void> {
    return this.#counts.flush();
  }

  /** Brings the counts to Redis a last time. The client is the application's to close. */
  close(): Promise<void> {
    return this.#counts.close();
  }

  #one(
    key: AnyKey,
    load: Load<unknown>,
    signal: AbortSignal | undefined,
    remembers: boolean,
  ): Promise<ReadText> {
    return abortable(signal, () => this.#reader.one(key, async () => [await load()], remembers));
  }

  /** A copy for each caller. */
  async #valueOf(read: ReadText, load: Load<unknown>): Promise<unknown> {
    return (await this.#parsed(read, load)).value;
  }

  /** The value and its text. A text that is no JSON was written by somebody else; it counts for nothing. */
  async #parsed(read: ReadText, load: Load<unknown>): Promise<{ text?: string; value: unknown }> {
    const { text } = read;
    if (text === undefined) return { value: undefined };
    try {
      return { text, value: JSON.parse(text) as unknown };
    } catch (error) {
      this.#events.failed("read", error);
      const loaded = JSON.stringify(await this.#loads.run(new Turn(), async () => load())) as
        | string
        | undefined;
      if (loaded === undefined) return { value: undefined };
      return { text: loaded, value: JSON.parse(loaded) as unknown };
    }
  }
}

/** `Array.isArray` does not know readonly pairs. */
function isPair(entry: AnyKey | readonly [unknown, AnyKey]): entry is readonly [unknown, AnyKey] {
  return Array.isArray(entry);
}
