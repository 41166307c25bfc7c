import type { FillOutcome } from "./events.js";
import { Turn } from "./loads.js";

/** What a flight brought. */
export interface Outcome {
  /** JSON; `undefined` where the loader gave `undefined`. */
  readonly text: string | undefined;
  readonly from: "redis" | "load" | "bypass";
  /** What became of the value in Redis; absent for what Redis had. */
  readonly fill?: FillOutcome | undefined;
  /** Whether the value was above `maxBytes`. */
  readonly tooLarge?: boolean;
}

/** One load of one key, for all callers of this process that want it meanwhile. */
export class Flight {
  readonly turn: Turn;
  readonly outcome: Promise<Outcome>;
  /** Set when the key was invalidated: older callers still get the answer, but nobody keeps it. */
  dropped = false;
  /** Set when the value is loaded without Redis. */
  bypasses = false;
  readonly tenant: string | null | undefined;
  #resolve!: (outcome: Outcome) => void;
  #reject!: (error: unknown) => void;

  constructor(tenant: string | null | undefined, turn: Turn) {
    this.tenant = tenant;
    this.turn = turn;
    this.outcome = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Each caller hears of an error through its own await; a flight without callers is no crash.
    this.outcome.catch(() => {});
  }

  land(outcome: Outcome): void {
    this.#resolve(outcome);
  }

  fail(error: unknown): void {
    this.#reject(error);
  }
}

/** The flights under way, by full key. */
export class Flights {
  readonly #flights = new Map<string, Flight>();

  get(key: string): Flight | undefined {
    return this.#flights.get(key);
  }

  begin(key: string, flight: Flight): void {
    this.#flights.set(key, flight);
    const end = () => {
      if (this.#flights.get(key) === flight) this.#flights.delete(key);
    };
    flight.outcome.then(end, end);
  }

  drop(key: string): void {
    const flight = this.#flights.get(key);
    if (!flight) return;
    flight.dropped = true;
    this.#flights.delete(key);
  }

  dropTenant(tenant: string | null): void {
    for (const [key, flight] of this.#flights) {
      if (flight.tenant === tenant) this.drop(key);
    }
  }
}
