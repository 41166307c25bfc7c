import { type CacheEvent, Events, type OnError, warn } from "./events.js";
import { type Answer, Link } from "./link.js";
import { FENCE_TTL, fenceName, fenceStart } from "./names.js";
import { building } from "./next-phase.js";
import type { RedisLike } from "./redis-like.js";

/** Next's `CacheEntry`. */
export interface CacheEntry {
  value: ReadableStream<Uint8Array>;
  tags: string[];
  stale: number;
  timestamp: number;
  expire: number;
  revalidate: number;
}

/** Next's `CacheHandler`: one of `cacheHandlers` in `next.config`. */
export interface CacheHandler {
  get(cacheKey: string, softTags: string[]): Promise<CacheEntry | undefined>;
  set(cacheKey: string, pendingEntry: Promise<CacheEntry>): Promise<void>;
  refreshTags(): Promise<void>;
  getExpiration(tags: string[]): Promise<number>;
  updateTags(tags: string[], durations?: { expire?: number }): Promise<void>;
}

/** How a handler is made. */
export interface HandlerOptions {
  /** The client, by `preheat-client/ioredis`, `/redis` or `/upstash`. */
  readonly redis: RedisLike;
  /** preheat's `cache.prefix`. Default: none. */
  readonly prefix?: string;
  /** Milliseconds that a render waits for one command. Default: 50. */
  readonly timeout?: number;
  /** The largest entry that is kept, in bytes. Default: 5 MiB. */
  readonly maxBytes?: number;
  /** Told of failures of Redis, each kind once in ten seconds. Default: `console.warn`. */
  readonly onError?: OnError;
  readonly onEvent?: (event: CacheEvent) => void;
}

/** No entry is kept for longer, whatever its `expire`; nor is a tag's mark, which outlives no entry. */
const LONGEST = 30 * 86_400_000;
/** How long an entry serves whose fences nobody had read before it was rendered. */
const BRIEF = 10_000;
const MAX_BYTES = 5 * 1024 * 1024;

/** An entry as Redis has it. `value` is base64. */
interface Stored extends Omit<CacheEntry, "value"> {
  readonly value: string;
  readonly fences: Readonly<Record<string, string>>;
  /** Set where the fences were read too late to vouch for the value: it serves until then. */
  readonly until?: number;
}

type Fences = Readonly<Record<string, string>>;

/**
 * A handler whose entries expire when a fence of theirs moves, in every instance at once: a tag made by
 * `tenantTag` is the fence's name. Other tags, and paths, expire at `revalidateTag` and `revalidatePath`.
 *
 * An entry is rendered again unless its fences are those seen before it was rendered. Which they are is
 * known from the entry before it, so the first one of a key serves for ten seconds only.
 */
export function fenceHandler(options: HandlerOptions): CacheHandler {
  return new FenceHandler(options);
}

class FenceHandler implements CacheHandler {
  readonly #link: Link;
  readonly #prefix: string;
  readonly #timeout: number;
  readonly #maxBytes: number;
  /** The fences that a render under way must not have seen move; a render takes its own out. */
  readonly #seen = new Map<string, Fences>();
  readonly #sets = new Map<string, Promise<void>>();

  constructor(options: HandlerOptions) {
    const { redis, prefix = "", timeout = 50, maxBytes = MAX_BYTES, onError = warn } = options;
    const listeners = options.onEvent ? [options.onEvent] : [];
    this.#link = new Link(redis, new Events(onError, listeners, () => performance.now()));
    this.#prefix = redis.keyPrefix + prefix;
    this.#timeout = timeout;
    this.#maxBytes = maxBytes;
  }

  async get(cacheKey: string, softTags: string[]): Promise<CacheEntry | undefined> {
    if (building()) return undefined;
    await this.#sets.get(cacheKey);
    const stored = await this.#stored(cacheKey);
    if (!stored) return undefined;
    const { tags, fences, until, value, ...rest } = stored;
    const fenceTags = Object.keys(fences);
    const marks = [...tags.filter((tag) => !isFence(tag)), ...softTags];
    const read = await this.#read([
      ...fenceTags.map((tag) => this.#prefix + tag),
      ...marks.map((tag) => this.#mark(tag)),
    ]);
    if (!read) return undefined;
    const now = read.slice(0, fenceTags.length);
    const unmoved = fenceTags.every((tag, i) => now[i] === fences[tag]);
    const expired = read.slice(fenceTags.length).some((at) => Number(at ?? 0) >= rest.timestamp);
    const over = until !== undefined && Date.now() >= until;
    const stale = Date.now() >= rest.timestamp + rest.revalidate * 1000;
    const serves = unmoved && !expired && !over;
    // Next renders it anew: the fences of this moment are those it must not see move.
    if (!serves || stale) this.#remember(cacheKey, fenceTags, now);
    return serves ? { ...rest, tags, value: streamOf(value) } : undefined;
  }

  async set(cacheKey: string, pendingEntry: Promise<CacheEntry>): Promise<void> {
    const seen = this.#seen.get(cacheKey);
    this.#seen.delete(cacheKey);
    if (building()) return;
    const set = this.#store(cacheKey, pendingEntry, seen).catch(() => {
      // The render failed, or its stream broke off: Next tells of that itself. Nothing is kept.
    });
    this.#sets.set(cacheKey, set);
    await set;
    if (this.#sets.get(cacheKey) === set) this.#sets.delete(cacheKey);
  }

  /** Fences are read with each entry. */
  async refreshTags(): Promise<void> {}

  /** Soft tags are looked at in `get`. */
  async getExpiration(): Promise<number> {
    return Infinity;
  }

  /** Whatever the durations: the old entry is not served again. */
  async updateTags(tags: string[]): Promise<void> {
    if (building()) return;
    const now = String(Date.now());
    await Promise.all(
      tags.map((tag) =>
        this.#link.insist("invalidate", this.#timeout * 10, async (redis) => {
          if (!isFence(tag)) return redis.set(this.#mark(tag), now, LONGEST);
          await redis.setIfAbsent(this.#prefix + tag, fenceStart(), FENCE_TTL);
          return redis.incr(this.#prefix + tag);
        }),
      ),
    );
  }

  async #stored(cacheKey: string): Promise<Stored | undefined> {
    const answer = await this.#ask("read", (redis) => redis.get(this.#entry(cacheKey)));
    if (!answer.ok || answer.value === null) return undefined;
    try {
      return JSON.parse(answer.value) as Stored;
    } catch {
      return undefined;
    }
  }

  async #store(
    cacheKey: string,
    pendingEntry: Promise<CacheEntry>,
    seen: Fences | undefined,
  ): Promise<void> {
    const { value, ...rest } = await pendingEntry;
    const text = await base64Of(value, this.#maxBytes);
    if (text === undefined || rest.expire <= 0) return;
    const tags = rest.tags.filter(isFence);
    const known = seen !== undefined && tags.every((tag) => seen[tag] !== undefined);
    const fences = known ? seen : await this.#started(tags);
    if (!fences) return;
    const until = known || tags.length === 0 ? {} : { until: Date.now() + BRIEF };
    const stored: Stored = { ...rest, fences: only(tags, fences), ...until, value: text };
    const ttl = Math.min(rest.expire * 1000, LONGEST);
    await this.#ask("fill", (redis) =>
      redis.set(this.#entry(cacheKey), JSON.stringify(stored), ttl),
    );
  }

  /** The first to see a key's fences keeps them until a render takes them: older ones are on the safe side. */
  #remember(cacheKey: string, tags: readonly string[], now: readonly (string | null)[]): void {
    if (this.#seen.has(cacheKey)) return;
    for (const oldest of this.#seen.keys()) {
      if (this.#seen.size < 1000) break;
      this.#seen.delete(oldest);
    }
    const known = tags.flatMap((tag, i) => (now[i] == null ? [] : [[tag, now[i]] as const]));
    this.#seen.set(cacheKey, Object.fromEntries(known));
  }

  /** The fences' numbers, each started where it is missing. */
  async #started(tags: readonly string[]): Promise<Fences | undefined> {
    const started = await this.#ask("begin", (redis) =>
      Promise.all(
        tags.map((tag) => redis.setIfAbsent(this.#prefix + tag, fenceStart(), FENCE_TTL)),
      ),
    );
    if (!started.ok) return undefined;
    const read = await this.#read(tags.map((tag) => this.#prefix + tag));
    return read && Object.fromEntries(tags.map((tag, i) => [tag, read[i] ?? ""]));
  }

  async #read(names: readonly string[]): Promise<(string | null)[] | undefined> {
    if (names.length === 0) return [];
    const answer = await this.#ask("read", (redis) =>
      redis.cluster ? Promise.all(names.map((name) => redis.get(name))) : redis.mget(names),
    );
    return answer.ok ? answer.value : undefined;
  }

  #ask<T>(
    operation: "read" | "begin" | "fill",
    command: (redis: RedisLike) => Promise<T>,
  ): Promise<Answer<T>> {
    return this.#link.ask(operation, this.#timeout, command);
  }

  #entry(cacheKey: string): string {
    return `${this.#prefix}preheat:next:entry:${cacheKey}`;
  }

  #mark(tag: string): string {
    return `${this.#prefix}preheat:next:tag:${tag}`;
  }
}

const FENCE = fenceName("", null);

function isFence(tag: string): boolean {
  return tag === FENCE || tag.startsWith(`${FENCE}:`);
}

function only(tags: readonly string[], fences: Fences): Record<string, string> {
  return Object.fromEntries(tags.map((tag) => [tag, fences[tag] ?? ""]));
}

function streamOf(base64: string): ReadableStream<Uint8Array> {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ReadableStream({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
}

/** The stream's bytes; `undefined` above the limit. The stream is read to its end either way. */
async function base64Of(
  stream: ReadableStream<Uint8Array>,
  maxBytes: number,
): Promise<string | undefined> {
  const parts: string[] = [];
  let size = 0;
  const reader = stream.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    size += read.value.byteLength;
    if (size > maxBytes) continue;
    // In steps, as there is a limit to the number of arguments.
    for (let at = 0; at < read.value.byteLength; at += 8192) {
      parts.push(String.fromCharCode(...read.value.subarray(at, at + 8192)));
    }
  }
  return size > maxBytes ? undefined : btoa(parts.join(""));
}
