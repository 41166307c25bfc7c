import { ByKey, type Owned } from "./by-key.js";
import type { FillOutcome } from "./events.js";
import type { Turn } from "./loads.js";

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
  #resolve!: (outcome: Outcome) => void;
  #reject!: (error: unknown) => void;

  constructor(turn: Turn) {
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

/** The flights under way. */
export class Flights {
  readonly #flights = new ByKey<Flight>();

  get(target: Owned): Flight | undefined {
    return this.#flights.get(target);
  }

  begin(target: Owned, flight: Flight): void {
    this.#flights.set(target, flight);
    const end = () => {
      if (this.#flights.get(target) === flight) this.#flights.delete(target);
    };
    flight.outcome.then(end, end);
  }

  drop(name: string): void {
    for (const flight of this.#flights.takeKey(name)) flight.dropped = true;
  }

  dropTenant(tenant: string | null): void {
    for (const flight of this.#flights.takeTenant(tenant)) flight.dropped = true;
  }
}
