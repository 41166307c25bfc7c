/** So many failures in a row say that Redis is gone, and not that one packet was. */
const FAILURES = 5;
/** How often a command may try whether Redis is back. */
const PROBE_EVERY = 1000;

/** Keeps commands away from a Redis that does not answer. */
export class Breaker {
  #failures = 0;
  #probeAt = 0;

  get open(): boolean {
    return this.#failures >= FAILURES;
  }

  /** Whether a command may go out. While the breaker is open, one a second may. */
  admits(now: number): boolean {
    if (!this.open) return true;
    if (now < this.#probeAt) return false;
    this.#probeAt = now + PROBE_EVERY;
    return true;
  }

  /** The server answered. */
  answered(): void {
    this.#failures = 0;
  }

  /** The server did not answer. */
  failed(now: number): void {
    this.#failures += 1;
    if (this.#failures === FAILURES) this.#probeAt = now + PROBE_EVERY;
  }
}
