import { Breaker } from "./breaker.js";
import { DeadlineExceeded } from "./errors.js";
import type { Events, Operation } from "./events.js";
import { isReply, type RedisLike } from "./redis-like.js";

/** A command's answer, or why there is none: `sent` says whether Redis may have carried it out. */
export type Answer<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly sent: boolean; readonly error: unknown };

const BREAKER_OPEN: Answer<never> = {
  ok: false,
  sent: false,
  error: new Error("Redis does not answer; the next probe is due within a second"),
};

const NO_REDIS: Answer<never> = { ok: false, sent: false, error: new Error("there is no Redis") };

/** The way to Redis: each command has a deadline, and none goes to a Redis that does not answer. */
export class Link {
  readonly #redis: RedisLike | null;
  readonly #events: Events;
  readonly #breaker = new Breaker();

  constructor(redis: RedisLike | null, events: Events) {
    this.#redis = redis;
    this.#events = events;
  }

  get redis(): RedisLike | null {
    return this.#redis;
  }

  get open(): boolean {
    return this.#breaker.open;
  }

  /** Sends a command, unless the breaker is open. Never rejects. */
  async ask<T>(
    operation: Operation,
    deadline: number,
    command: (redis: RedisLike) => Promise<T>,
  ): Promise<Answer<T>> {
    if (this.#redis === null) return NO_REDIS;
    if (!this.#breaker.admits(performance.now())) return BREAKER_OPEN;
    return this.insist(operation, deadline, command);
  }

  /** Sends a command whatever the breaker says: for what must not be left out lightly. */
  async insist<T>(
    operation: Operation,
    deadline: number,
    command: (redis: RedisLike) => Promise<T>,
  ): Promise<Answer<T>> {
    if (this.#redis === null) return NO_REDIS;
    try {
      const value = await within(deadline, command(this.#redis));
      this.#answered();
      return { ok: true, value };
    } catch (error) {
      if (isReply(error)) this.#answered();
      else this.#failed();
      this.#events.failed(operation, error);
      return { ok: false, sent: true, error };
    }
  }

  #answered(): void {
    const wasOpen = this.#breaker.open;
    this.#breaker.answered();
    if (wasOpen) this.#events.emit({ type: "breaker", open: false });
  }

  #failed(): void {
    const wasOpen = this.#breaker.open;
    this.#breaker.failed(performance.now());
    if (!wasOpen && this.#breaker.open) this.#events.emit({ type: "breaker", open: true });
  }
}

/**
 * Rejects when the deadline has passed without an answer. After a pause of the whole process (a long
 * computation, a garbage collection) the timer is due before answers that arrived in time are read, so
 * it gives them one more turn of the event loop.
 */
function within<T>(milliseconds: number, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    let timer = setTimeout(() => {
      timer = setTimeout(() => reject(new DeadlineExceeded(milliseconds)), 0);
    }, milliseconds);
    answer.then(
      (value) => {
        clearTimeout(timer);
        resolve(value);
      },
      (error: unknown) => {
        clearTimeout(timer);
        reject(error);
      },
    );
  });
}
