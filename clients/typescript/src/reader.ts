import type { Absent } from "./absent.js";
import type { Events, ReadResult } from "./events.js";
import { Flight, type Flights, type Outcome } from "./flights.js";
import type { AnyKey } from "./key.js";
import type { Link } from "./link.js";
import { type Loads, Turn } from "./loads.js";
import type { Nesting } from "./nesting.js";
import { type Begun, BRIEF, type Protocol, type Target, targetOf } from "./protocol.js";

/** When a caller looks again for the value that another process loads; the last step repeats. */
const LOOKS = [25, 50, 100] as const;
/** After so long it loads the value itself. */
const LEASE_WAIT = 1000;

/** Loads values of keys, in their order. */
export type LoadMany = (targets: readonly Target[]) => Promise<readonly unknown[]>;

/** A value as text, and how the read came to it. */
export interface ReadText {
  readonly text: string | undefined;
  readonly result: ReadResult;
  readonly outcome?: Outcome;
}

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

/** Reads keys, and loads those that Redis does not have: each once, over all processes. */
export class Reader {
  readonly #parts: ReaderParts;
  readonly #limits: ReaderLimits;

  constructor(parts: ReaderParts, limits: ReaderLimits) {
    this.#parts = parts;
    this.#limits = limits;
  }

  /** Reads one key. `remembers` says that this process may remember for a second that there is no row. */
  async one(key: AnyKey, load: LoadMany, remembers: boolean): Promise<ReadText> {
    const { link, flights, absent, nesting } = this.#parts;
    const target = targetOf(this.#limits.prefix, key);
    if (nesting.keys()?.has(target.name)) {
      // A loader that reads the very key it loads would wait for itself.
      const [read] = this.#missed([target], load, false);
      return read as Promise<ReadText>;
    }
    const joined = flights.get(target.name);
    if (joined) return this.#join(target, joined);
    const answer = await link.ask("read", this.#limits.deadline, (redis) => redis.get(target.name));
    if (answer.ok && answer.value !== null) return this.#found(target, answer.value);
    if (remembers && absent.has(target.name, performance.now())) {
      return this.#counted(target, { text: "null", result: "joined" });
    }
    const [read] = this.#missed([target], load, answer.ok);
    return read as Promise<ReadText>;
  }

  /** Reads several keys by one command, and loads what is missing by one call of `load`. */
  async many(keys: readonly AnyKey[], load: LoadMany): Promise<ReadText[]> {
    if (keys.length === 0) return [];
    const targets = new Map<string, Target>();
    for (const key of keys) {
      const target = targetOf(this.#limits.prefix, key);
      targets.set(target.name, target);
    }
    const reads = await this.#readAll([...targets.values()], load);
    return keys.map((key) => reads.get(this.#limits.prefix + key.key) as ReadText);
  }

  async #readAll(targets: readonly Target[], load: LoadMany): Promise<Map<string, ReadText>> {
    const { link } = this.#parts;
    const names = targets.map((target) => target.name);
    const answer = await link.ask("read", this.#limits.deadline, (redis) =>
      redis.cluster ? Promise.all(names.map((name) => redis.get(name))) : redis.mget(names),
    );
    const reads = new Map<string, ReadText>();
    const missing: Target[] = [];
    targets.forEach((target, i) => {
      const text = answer.ok ? (answer.value[i] ?? null) : null;
      if (text === null) missing.push(target);
      else reads.set(target.name, this.#found(target, text));
    });
    const loaded = await Promise.all(this.#missed(missing, load, answer.ok));
    missing.forEach((target, i) => reads.set(target.name, loaded[i] as ReadText));
    return reads;
  }

  /** Joins the flights that are under way, and begins one for each other key. */
  #missed(targets: readonly Target[], load: LoadMany, asked: boolean): Promise<ReadText>[] {
    const { flights, nesting } = this.#parts;
    const turn = new Turn();
    const within = nesting.keys();
    if (within) turn.hurry();
    const mine: { target: Target; flight: Flight }[] = [];
    const reads = targets.map((target) => {
      const joined = flights.get(target.name);
      if (joined && !within?.has(target.name)) return this.#join(target, joined);
      const flight = new Flight(target.key.tenant, turn);
      if (!joined) flights.begin(target.name, flight);
      mine.push({ target, flight });
      return this.#own(target, flight);
    });
    if (mine.length > 0) void new Batch(this.#parts, this.#limits, load, turn).fly(mine, asked);
    return reads;
  }

  async #own(target: Target, flight: Flight): Promise<ReadText> {
    try {
      const outcome = await flight.outcome;
      const result = RESULTS[outcome.from];
      return this.#counted(target, { text: outcome.text, result, outcome });
    } catch (error) {
      this.#count(target, flight.bypasses ? "bypass" : "miss");
      throw error;
    }
  }

  async #join(target: Target, flight: Flight): Promise<ReadText> {
    if (this.#parts.nesting.keys()) flight.turn.hurry();
    try {
      const outcome = await flight.outcome;
      const result = outcome.from === "redis" ? "hit" : "joined";
      return this.#counted(target, { text: outcome.text, result, outcome });
    } catch (error) {
      this.#count(target, "joined");
      throw error;
    }
  }

  #found(target: Target, text: string): ReadText {
    return this.#counted(target, { text, result: "hit" });
  }

  #counted(target: Target, read: ReadText): ReadText {
    this.#count(target, read.result);
    return read;
  }

  #count(target: Target, result: ReadResult): void {
    this.#parts.events.emit({ type: "read", family: target.key.family, result });
  }
}

const RESULTS: Record<Outcome["from"], ReadResult> = {
  redis: "hit",
  load: "miss",
  bypass: "bypass",
};

interface Place {
  readonly target: Target;
  readonly flight: Flight;
}

interface Begin extends Place {
  readonly begun: Begun;
}

/** The flights that one read began: one call of its loader, or two if it waited for another process. */
class Batch {
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
      if (place.begun.state === "found") place.flight.land({ text: place.begun.text, from: "redis" });
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
    if (none && !flight.dropped) absent.add(target.name, key.tenant, performance.now());
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
