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

/** What the cache was doing when Redis failed it. */
export type Operation = "read" | "begin" | "fill" | "invalidate" | "counts" | "scripts" | "hook";

/** What `onEvent` is told, for metrics. Labels are bounded: `family` is a job's name. */
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

/** Told of errors of the cache, which no read throws. */
export type OnError = (operation: Operation, error: unknown) => void;

/** How often one kind of error is told. */
const ERROR_EVERY = 10_000;

/** Hands events to the application's hooks. An exception in a hook ends nothing. */
export class Events {
  readonly #onError: OnError;
  readonly #listeners: ((event: CacheEvent) => void)[];
  readonly #now: () => number;
  readonly #toldAt = new Map<Operation, number>();

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
        this.#tell("hook", error);
      }
    }
  }

  /** Every error is an event; `onError` hears of each kind once in ten seconds. */
  failed(operation: Operation, error: unknown): void {
    this.emit({ type: "error", operation, error });
    this.#tell(operation, error);
  }

  #tell(operation: Operation, error: unknown): void {
    const now = this.#now();
    if (now - (this.#toldAt.get(operation) ?? -Infinity) < ERROR_EVERY) return;
    this.#toldAt.set(operation, now);
    try {
      this.#onError(operation, error);
    } catch {
      // A hook that cannot even hear of errors has nobody left to tell.
    }
  }
}

/** What `onError` does unless the application says otherwise: nothing is lost silently. */
export function warn(operation: Operation, error: unknown): void {
  console.warn(
    `preheat-client: ${operation} failed; reads go on without Redis where they must:`,
    error,
  );
}
