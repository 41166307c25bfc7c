import { LoadsExhausted } from "./errors.js";

/** So many loads may wait for each one that runs. */
const WAITING_PER_LOAD = 64;

/** A load that waits for its turn, or will. */
export class Turn {
  #urgent = false;
  #begin: (() => void) | undefined;

  /** Begins at once, beyond the bound: a load that already runs waits for this one. */
  hurry(): void {
    this.#urgent = true;
    this.#begin?.();
  }

  get urgent(): boolean {
    return this.#urgent;
  }

  /** Has `begin` called when the turn has come. */
  await(begin: () => void): void {
    this.#begin = begin;
  }
}

/** Bounds how many loads run at once, above all while Redis is gone and every read is a load. */
export class Loads {
  readonly #bound: number;
  #running = 0;
  readonly #waiting = new Set<() => void>();

  constructor(bound: number) {
    this.#bound = bound;
  }

  /** Runs `load` when its turn has come. */
  async run<T>(turn: Turn, load: () => Promise<T>): Promise<T> {
    const bounded = turn.urgent ? false : await this.#enter(turn);
    try {
      return await load();
    } finally {
      if (bounded) this.#leave();
    }
  }

  /** Whether the load took one of the places. */
  async #enter(turn: Turn): Promise<boolean> {
    if (this.#running < this.#bound) {
      this.#running += 1;
      return true;
    }
    if (this.#waiting.size >= this.#bound * WAITING_PER_LOAD) {
      throw new LoadsExhausted(this.#running, this.#waiting.size);
    }
    return new Promise((resolve) => {
      const place = () => resolve(true);
      this.#waiting.add(place);
      turn.await(() => {
        if (this.#waiting.delete(place)) resolve(false);
      });
    });
  }

  /** Hands the place to the load that has waited longest. */
  #leave(): void {
    for (const next of this.#waiting) {
      this.#waiting.delete(next);
      next();
      return;
    }
    this.#running -= 1;
  }
}
