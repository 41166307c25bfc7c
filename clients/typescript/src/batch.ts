import type { Absent } from "./absent.js";
import type { Events } from "./events.js";
import type { Flight, Flights } from "./flights.js";
import type { Link } from "./link.js";
import type { Loads, Turn } from "./loads.js";
import type { Nesting } from "./nesting.js";
import { type Begun, BRIEF, type Protocol, type Target } from "./protocol.js";

/** When a caller looks again for the value that another process loads; the last step repeats. */
const LOOKS = [25, 50, 100] as const;
/** After so long it loads the value itself. */
const LEASE_WAIT = 1000;

/** Loads values of keys, in their order. */
export type LoadMany = (targets: readonly Target[]) => Promise<readonly unknown[]>;

export interface ReaderParts {
  readonly link: Link;
  readonly protocol: Protocol;
  readonly flights: Flights;
  readonly absent: Absent;
  readonly loads: Loads;
  readonly nesting: Nesting;
  readonly events: Events;
}

export interface ReaderLimits {
  readonly prefix: string;
  readonly deadline: number;
  readonly maxBytes: number;
}

/** A key and the flight that brings its value. */
export interface Place {
  readonly target: Target;
  readonly flight: Flight;
}

interface Begin extends Place {
  readonly begun: Begun;
}

/** The flights that one read began: one call of its loader, or two if it waited for another process. */
export class Batch {
  readonly #parts: ReaderParts;
  readonly #limits: ReaderLimits;
  readonly #load: LoadMany;
  readonly #turn: Turn;

  constructor(parts: ReaderParts, limits: ReaderLimits, load: LoadMany, turn: Turn) {
    this.#parts = parts;
    this.#limits = limits;
    this.#load = load;
    this.#turn = turn;
  }

  /** Lands every flight. `asked` says whether Redis answered the read. Never rejects. */
  async fly(places: readonly Place[], asked: boolean): Promise<void> {
    if (!asked) return this.#loadAll(places.map((place) => ({ ...place, begun: UNAVAILABLE })));
    const begun = await Promise.all(places.map((place) => this.#begin(place)));
    const busy = begun.filter((one) => one.begun.state === "busy");
    const others = begun.filter((one) => one.begun.state !== "busy");
    const [waited] = await Promise.all([
      Promise.all(busy.map((one) => this.#wait(one))),
      this.#loadAll(others),
    ]);
    await this.#loadAll(waited);
  }

  async #begin(place: Place): Promise<Begin> {
    const { protocol } = this.#parts;
    // Nobody waits for a value that will not be written.
    if (place.target.key.fill === "never") return { ...place, begun: UNWRITTEN };
    return { ...place, begun: await protocol.begin(place.target, protocol.token()) };
  }

  /** Waits until the other process's value is there, or until its lease is free. */
  async #wait(place: Begin): Promise<Begin> {
    const { protocol, events } = this.#parts;
    const { target } = place;
    let begun = place.begun;
    let waited = 0;
    for (let look = 0; begun.state === "busy"; look += 1) {
      const pause = LOOKS[Math.min(look, LOOKS.length - 1)] ?? LEASE_WAIT;
      if (waited + pause > LEASE_WAIT) break;
      await new Promise((resolve) => setTimeout(resolve, pause));
      waited += pause;
      begun = await protocol.begin(target, protocol.token());
    }
    events.emit({ type: "lease", family: target.key.family, outcome: WAITS[begun.state] });
    return { ...place, begun };
  }

  async #loadAll(places: readonly Begin[]): Promise<void> {
    const missing: Begin[] = [];
    for (const place of places) {
      const { flight, begun } = place;
      if (begun.state === "found") flight.land({ text: begun.text, from: "redis" });
      else missing.push(place);
    }
    if (missing.length === 0) return;
    for (const { flight, begun } of missing) flight.bypasses = begun.state === "unavailable";
    try {
      const texts = await this.#texts(missing);
      await Promise.all(missing.map((place, i) => this.#fill(place, texts[i])));
    } catch (error) {
      for (const { flight } of missing) flight.fail(error);
      await Promise.all(missing.map((one) => this.#parts.protocol.release(one.target, one.begun)));
    }
  }

  /** Calls the loader, once its turn has come. What it gives must be JSON, as what Redis holds is. */
  #texts(places: readonly Begin[]): Promise<(string | undefined)[]> {
    const { loads, nesting, events } = this.#parts;
    const targets = places.map((place) => place.target);
    const names = targets.map((target) => target.name);
    return loads.run(this.#turn, async () => {
      const began = performance.now();
      let outcome: "loaded" | "failed" = "failed";
      try {
        const values = await nesting.run(names, () => this.#load(targets));
        if (values.length !== targets.length) {
          throw new TypeError(`the loader gave ${values.length} values for ${targets.length} keys`);
        }
        const texts = values.map((value) => JSON.stringify(value) as string | undefined);
        outcome = "loaded";
        return texts;
      } finally {
        const milliseconds = performance.now() - began;
        for (const { key } of targets) {
          events.emit({ type: "load", family: key.family, outcome, milliseconds });
        }
      }
    });
  }

  async #fill(place: Begin, text: string | undefined): Promise<void> {
    const { protocol, absent, events } = this.#parts;
    const { target, flight, begun } = place;
    const { key } = target;
    const none = text === undefined || text === "null";
    if (none && !flight.dropped) absent.add(target, performance.now());
    if (begun.state === "unavailable") return flight.land({ text, from: "bypass" });
    const tooLarge = !none && isAbove(this.#limits.maxBytes, text);
    if (none || tooLarge || key.fill === "never" || flight.dropped) {
      await protocol.release(target, begun);
      events.emit({ type: "fill", family: key.family, outcome: "skipped" });
      return flight.land({ text, from: "load", fill: "skipped", tooLarge });
    }
    const ttl = key.fill === "brief" ? Math.min(key.ttl, BRIEF) : key.ttl;
    const fill = await protocol.fill(target, begun, text, ttl);
    events.emit({ type: "fill", family: key.family, outcome: fill });
    flight.land({ text, from: "load", fill });
  }
}

const UNAVAILABLE: Begun = { state: "unavailable" };
const UNWRITTEN: Begun = { state: "unwritten" };

const WAITS = {
  found: "found",
  leased: "acquired",
  busy: "lease_timeout",
  unavailable: "failed",
  unwritten: "failed",
} as const;

/** Whether the text takes more bytes of UTF-8. */
function isAbove(bytes: number, text: string): boolean {
  if (text.length * 3 <= bytes) return false;
  return text.length > bytes || new TextEncoder().encode(text).byteLength > bytes;
}
