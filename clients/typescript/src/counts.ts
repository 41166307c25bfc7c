import type { CacheEvent, FillOutcome, ReadResult } from "./events.js";
import type { Link } from "./link.js";
import { readsName } from "./names.js";

/** How often counts go to Redis, where preheat reads them. */
const FLUSH_EVERY = 10_000;
/** How long the hash of counts outlives the last application. */
const READS_TTL = 86_400_000;
/** Families are the jobs' names. An application that makes them up must not fill the memory. */
const MOST_FAMILIES = 1000;

/** What is counted for a family of keys. */
export interface FamilyStats {
  hit: number;
  miss: number;
  joined: number;
  bypass: number;
  /** Fills that were not written, since the fence had moved. */
  refused: number;
  loads: number;
  /** Loads that threw. */
  loadsFailed: number;
  /** Fills that Redis did not take. */
  fillsFailed: number;
  /** Loaded values that may not be cached, or are too large. */
  fillsSkipped: number;
  /** Callers that waited in vain for another process's load. */
  leaseTimeouts: number;
}

/** A snapshot of the counters since the cache was made. */
export interface Stats {
  readonly families: Readonly<Record<string, Readonly<FamilyStats>>>;
  /** Failures of Redis, and of functions that make keys for `changed`. */
  readonly errors: number;
  /** Whether Redis is not being asked, but for a probe a second. */
  readonly breakerOpen: boolean;
}

/** Runs work beside the request, so that the runtime lets it end: Next's `after`, or `waitUntil`. */
export type Background = (work: () => Promise<void>) => void;

/** Counts in memory, and brings the differences to Redis every ten seconds. */
export class Counts {
  readonly #link: Link;
  readonly #hash: string;
  readonly #deadline: number;
  readonly #background: Background | undefined;
  readonly #families = new Map<string, FamilyStats>();
  readonly #deltas = new Map<string, number>();
  #errors = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #flushedAt = performance.now();
  #closed = false;

  constructor(link: Link, prefix: string, deadline: number, background: Background | undefined) {
    this.#link = link;
    this.#hash = readsName(prefix);
    this.#deadline = deadline;
    this.#background = background;
  }

  /** Each event moves at most one counter. */
  record(event: CacheEvent): void {
    switch (event.type) {
      case "read":
        this.#count(event.family, event.result);
        break;
      case "load":
        this.#family(event.family).loads += 1;
        if (event.outcome === "failed") this.#family(event.family).loadsFailed += 1;
        break;
      case "fill":
        this.#recordFill(event.family, event.outcome);
        break;
      case "lease":
        if (event.outcome === "lease_timeout") this.#family(event.family).leaseTimeouts += 1;
        break;
      case "error":
        this.#errors += 1;
        break;
      case "breaker":
        break;
    }
  }

  stats(): Stats {
    const families = [...this.#families].map(([name, counts]) => [name, { ...counts }] as const);
    return {
      families: Object.fromEntries(families),
      errors: this.#errors,
      breakerOpen: this.#link.open,
    };
  }

  /** Brings the differences to Redis. Those that Redis certainly did not get stay for the next time. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#flushedAt = performance.now();
    const deltas = [...this.#deltas];
    if (deltas.length === 0) return;
    this.#deltas.clear();
    const answer = await this.#link.ask("counts", this.#deadline, (redis) =>
      redis.count(this.#hash, deltas, READS_TTL),
    );
    if (answer.ok || answer.sent) return;
    for (const [field, delta] of deltas) this.#add(field, delta);
    if (this.#link.redis !== null) this.#schedule();
  }

  /** Flushes a last time. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.flush();
    clearTimeout(this.#timer);
  }

  #recordFill(family: string, outcome: FillOutcome): void {
    if (outcome === "refused") this.#count(family, "refused");
    if (outcome === "failed") this.#family(family).fillsFailed += 1;
    if (outcome === "skipped") this.#family(family).fillsSkipped += 1;
  }

  #count(family: string, result: ReadResult | "refused"): void {
    const name = this.#known(family);
    this.#family(name)[result] += 1;
    this.#add(`${name}:${result}`, 1);
    this.#schedule();
  }

  #add(field: string, delta: number): void {
    this.#deltas.set(field, (this.#deltas.get(field) ?? 0) + delta);
  }

  /** In the background of this request where there is one; a frozen process runs no timers. */
  #schedule(): void {
    if (this.#link.redis === null || this.#closed) return;
    if (this.#background && performance.now() - this.#flushedAt >= FLUSH_EVERY) {
      try {
        this.#background(() => this.flush());
        this.#flushedAt = performance.now();
        return;
      } catch {
        // Outside a request there is no background: the timer does it.
      }
    }
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => void this.flush(), FLUSH_EVERY);
    // In Node, a timer for counts alone keeps no process alive.
    (this.#timer as { unref?: () => void }).unref?.();
  }

  #known(family: string): string {
    return this.#families.has(family) || this.#families.size < MOST_FAMILIES ? family : "other";
  }

  #family(family: string): FamilyStats {
    const name = this.#known(family);
    let counts = this.#families.get(name);
    if (!counts) {
      counts = {
        hit: 0,
        miss: 0,
        joined: 0,
        bypass: 0,
        refused: 0,
        loads: 0,
        loadsFailed: 0,
        fillsFailed: 0,
        fillsSkipped: 0,
        leaseTimeouts: 0,
      };
      this.#families.set(name, counts);
    }
    return counts;
  }
}
