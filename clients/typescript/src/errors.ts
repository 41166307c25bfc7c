/** Too many loads are under way, and too many wait for them. Answer 503. */
export class LoadsExhausted extends Error {
  override readonly name = "LoadsExhausted";

  constructor(loads: number, waiting: number) {
    super(`${loads} loads are under way and ${waiting} wait for their turn`);
  }
}

/**
 * The data is committed, but its keys may still be there. Try again, or let the feed or the TTL cure
 * it.
 */
export class InvalidationFailed extends Error {
  override readonly name = "InvalidationFailed";

  constructor(
    /** `moved`: no reader and no warmer that read before the commit fills a key any more. */
    readonly fence: "moved" | "unknown",
    /** How many keys are known to be removed. */
    readonly removed: number,
    cause: unknown,
  ) {
    super(
      fence === "moved"
        ? `could not remove every key; the fence has moved, ${removed} keys are removed`
        : `could not move the fence; ${removed} keys are removed`,
      { cause },
    );
  }
}

/** Redis did not answer within the deadline. */
export class DeadlineExceeded extends Error {
  override readonly name = "DeadlineExceeded";

  constructor(milliseconds: number) {
    super(`no answer from Redis within ${milliseconds} ms`);
  }
}
