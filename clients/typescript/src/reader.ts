import { Batch, type LoadMany, type Place, type ReaderLimits, type ReaderParts } from "./batch.js";
import type { ReadResult } from "./events.js";
import { Flight, type Outcome } from "./flights.js";
import type { AnyKey } from "./key.js";
import type { Answer } from "./link.js";
import { Turn } from "./loads.js";
import { type Target, targetOf } from "./protocol.js";
import { isCrossSlot } from "./redis-like.js";

/** A value as text, and how the read came to it. */
export interface ReadText {
  readonly text: string | undefined;
  readonly result: ReadResult;
  readonly outcome?: Outcome;
}

/** Reads keys, and loads those that Redis does not have: each once, over all processes. */
export class Reader {
  readonly #parts: ReaderParts;
  readonly #limits: ReaderLimits;
  #oneByOne: boolean;

  constructor(parts: ReaderParts, limits: ReaderLimits) {
    this.#parts = parts;
    this.#limits = limits;
    this.#oneByOne = parts.link.redis?.cluster === true;
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
    const joined = flights.get(target);
    if (joined) return this.#join(target, joined);
    const answer = await link.ask("read", this.#limits.deadline, (redis) => redis.get(target.name));
    if (answer.ok && answer.value !== null) return this.#found(target, answer.value);
    if (remembers && absent.has(target, performance.now())) {
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
    const answer = await this.#texts(targets.map((target) => target.name));
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

  /** By one command, or on a cluster by one for each. */
  async #texts(names: readonly string[]): Promise<Answer<(string | null)[]>> {
    const { link } = this.#parts;
    const { deadline } = this.#limits;
    if (!this.#oneByOne) {
      const answer = await link.ask("read", deadline, (redis) => redis.mget(names));
      if (answer.ok || !isCrossSlot(answer.error)) return answer;
      this.#oneByOne = true;
    }
    return link.ask("read", deadline, (redis) => Promise.all(names.map((name) => redis.get(name))));
  }

  /** Joins the flights that are under way, and begins one for each other key. */
  #missed(targets: readonly Target[], load: LoadMany, asked: boolean): Promise<ReadText>[] {
    const { flights, nesting } = this.#parts;
    const turn = new Turn();
    const within = nesting.keys();
    if (within) turn.hurry();
    const mine: Place[] = [];
    const reads = targets.map((target) => {
      const joined = flights.get(target);
      if (joined && !within?.has(target.name)) return this.#join(target, joined);
      const flight = new Flight(turn);
      if (!joined) flights.begin(target, flight);
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
