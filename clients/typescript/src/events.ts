/** How a read came to its value. Each read counts as exactly one of these. */
export type ReadResult =
  /** Redis had it. */
  | "hit"
  /** This caller loaded it. */
  | "miss"
  /** Another caller of this process loaded it. */
  | "joined"
  /** Redis was not asked or did not answer; this caller loaded it. */
  | "bypass";

/** What became of a loaded value: `skipped` is one that may not be cached, is too large, or is there already. */
export type FillOutcome = "written" | "refused" | "failed" | "skipped";

/**
 * What the cache was doing when something failed: Redis, an application's hook, or the function that makes
 * a `key` for `changed`.
 */
export type Operation =
  | "read"
  | "begin"
  | "fill"
  | "invalidate"
  | "key"
  | "counts"
  | "scripts"
  | "hook";

/** What `onEvent` gets, for metrics. Labels are bounded: `family` is a job's name. */
export type CacheEvent =
  | { readonly type: "read"; readonly family: string; readonly result: ReadResult }
  | {
      readonly type: "load";
      readonly family: string;
      readonly outcome: "loaded" | "failed";
      readonly milliseconds: number;
    }
  | { readonly type: "fill"; readonly family: string; readonly outcome: FillOutcome }
  | {
      readonly type: "lease";
      readonly family: string;
      /** How waiting for another process's load ended. */
      readonly outcome: "found" | "acquired" | "lease_timeout" | "failed";
    }
  | { readonly type: "error"; readonly operation: Operation; readonly error: unknown }
  | { readonly type: "breaker"; readonly open: boolean };

/** Called with errors of the cache, which no read throws. */
export type OnError = (operation: Operation, error: unknown) => void;

/** How often `onError` is called for one kind of error, at most. */
const ERROR_EVERY = 10_000;

/** Hands events to the application's hooks. An exception in a hook ends nothing. */
export class Events {
  readonly #onError: OnError;
  readonly #listeners: ((event: CacheEvent) => void)[];
  readonly #now: () => number;
  readonly #reportedAt = new Map<Operation, number>();

  constructor(onError: OnError, listeners: ((event: CacheEvent) => void)[], now: () => number) {
    this.#onError = onError;
    this.#listeners = listeners;
    this.#now = now;
  }

  emit(event: CacheEvent): void {
    for (const listener of this.#listeners) {
      try {
        listener(event);
      } catch (error) {
        this.#report("hook", error);
      }
    }
  }

  /** Every error is an event; `onError` is called at most once in ten seconds for each kind. */
  failed(operation: Operation, error: unknown): void {
    this.emit({ type: "error", operation, error });
    this.#report(operation, error);
  }

  #report(operation: Operation, error: unknown): void {
    const now = this.#now();
    if (now - (this.#reportedAt.get(operation) ?? -Infinity) < ERROR_EVERY) return;
    this.#reportedAt.set(operation, now);
    try {
      this.#onError(operation, error);
    } catch {
      // `onError` itself threw: there is no other hook to report that to.
    }
  }
}

/** What a failure means for the application. */
const MEANING: Record<Operation, string> = {
  read: "the loader answers instead",
  begin: "the value is loaded and not cached",
  fill: "the value is served and not cached",
  invalidate: "the write stands; old values may be read until preheat hears of it",
  key: "a write left out a key that cannot be made",
  counts: "reads are counted later",
  scripts: "fills live for ten seconds",
  hook: "the cache goes on",
};

/** What `onError` does unless the application says otherwise: nothing is lost silently. One line. */
export function warn(operation: Operation, error: unknown): void {
  console.warn(`preheat-client: ${operation} failed; ${MEANING[operation]}: ${described(error)}`);
}

/** The error's code and message. Some errors of connections have no message of their own. */
function described(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code } = error as { code?: unknown };
  const first = error instanceof AggregateError ? (error.errors[0] as unknown) : undefined;
  const message = error.message || (first instanceof Error ? first.message : "") || error.name;
  const text = typeof code === "string" && !message.includes(code) ? `${code}: ${message}` : message;
  return text.replaceAll(/\s+/g, " ").trim();
}
