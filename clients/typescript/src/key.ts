/**
 * How a reader may fill a key that it missed.
 *
 * - `full`: for the key's whole TTL. Keys that are known before the job's query runs.
 * - `brief`: for ten seconds at most. Keys that follow from the data, and keys that tenants share.
 * - `never`: the reader serves what it loaded and writes nothing.
 */
export type Fill = "full" | "brief" | "never";

/** A day of a calendar: `2026-03-29`. {@link localDates} makes them for a time zone. */
export type LocalDate = `${number}-${number}-${number}`;

declare const value: unique symbol;

/**
 * A cache key and what a reader must know about it. `preheat keys --lang typescript` writes functions
 * that build keys from a project's job files, so that reader and warmer cannot disagree.
 *
 * `T` is the value as `JSON.parse` gives it. See {@link SharedKey} for `Shared`.
 */
export interface Key<T = unknown, Shared extends boolean = false> {
  /** The key without `prefix`. */
  readonly key: string;
  /** The tenant's id, which names the fence; `null` for a job without tenants. */
  readonly tenant: string | null;
  /** Milliseconds: the job's TTL. */
  readonly ttl: number;
  /** The job's name: what counts and metrics are kept by. */
  readonly family: string;
  readonly fill: Fill;
  /** Whether the value may be another tenant's. */
  readonly shared?: Shared;
  /** Only for the compiler: nothing ever sets it. */
  readonly [value]?: T;
}

/**
 * A key without its tenant in it (`pet:{id}`): every caller that knows the id can read the value, even if it is
 * another tenant's. So {@link Cache.respond} answers with such a value only after a check.
 */
export interface SharedKey<T = unknown> extends Key<T, true> {
  readonly shared: true;
}

/** What {@link Cache.cached} takes beside a key that is only a text. */
export interface PlainOptions extends ReadOptions {
  /** Milliseconds, as in {@link Key}. Default: five minutes. */
  readonly ttl?: number;
  /** Whose data it is; `null`: nobody's in particular. Without it no fence guards the key, so it is filled for ten seconds at most. */
  readonly tenant?: string | null;
}

/** Options of one read. */
export interface ReadOptions {
  /** Ends this caller's wait. The load goes on for the others. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of a response. */
export interface RespondOptions<T> {
  /** Whether the caller may see this value. If not, the response is 404, as for a row that does not exist. */
  readonly check: (value: T) => boolean;
}

/** A key as the reader works with it: `tenant` is `undefined` where no fence guards it. */
export interface AnyKey {
  readonly key: string;
  readonly tenant: string | null | undefined;
  readonly ttl: number;
  readonly family: string;
  readonly fill: Fill;
}

const DEFAULT_TTL = 300_000;

/** The key for a text. A bare number is a TTL in seconds, as `SETEX` takes it. */
export function plainKey(key: string, options: number | PlainOptions = {}): AnyKey {
  const { ttl = DEFAULT_TTL, tenant } =
    typeof options === "number" ? { ttl: options * 1000 } : options;
  if (!(ttl > 0 && Number.isFinite(ttl))) {
    throw new RangeError(`the TTL of \`${key}\` must be above 0, and is ${ttl}`);
  }
  return { key, tenant, ttl, family: "other", fill: "full" };
}
