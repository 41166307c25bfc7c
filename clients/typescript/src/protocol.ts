import type { AnyKey } from "./key.js";
import type { Answer, Link } from "./link.js";
import { FENCE_TTL, fenceName, fenceStart, leaseName } from "./names.js";
import { refusesScripts } from "./redis-like.js";
import type { FillOutcome } from "./events.js";

/** How long a lease holds others off when its holder dies. */
const LEASE = 5000;
/** How long a value lives that no fence vouches for. */
export const BRIEF = 10_000;

/** A key with its names in Redis. */
export interface Target {
  readonly key: AnyKey;
  readonly name: string;
  /** `undefined` where the reader named no tenant. */
  readonly fence: string | undefined;
  readonly lease: string;
}

export function targetOf(prefix: string, key: AnyKey): Target {
  return {
    key,
    name: prefix + key.key,
    fence: key.tenant === undefined ? undefined : fenceName(prefix, key.tenant),
    lease: leaseName(prefix, key.key),
  };
}

/** What a caller learns before it loads. */
export type Begun =
  | { readonly state: "found"; readonly text: string }
  /** The caller loads; `fence` is what it saw. */
  | { readonly state: "leased"; readonly fence: string; readonly token: string }
  /** Another caller loads. */
  | { readonly state: "busy"; readonly fence: string }
  /** The caller loads, and writes nothing: Redis does not answer. */
  | { readonly state: "unavailable" }
  /** The caller loads, and writes nothing: the key's values are not for readers to write. */
  | { readonly state: "unwritten" };

const UNAVAILABLE: Begun = { state: "unavailable" };
/** The fence seen where there is none to see. */
const NO_FENCE = "";
/** Holds no lease. */
const NO_TOKEN = "";

/**
 * Fills by two scripts: `begin` before the load and `fill` after it, which compares the fence and writes
 * in one step. So whatever happens in between, a value older than the fence's last move is never
 * written, and nothing remains of a reader that dies.
 *
 * Where scripts cannot be used, and for keys without a fence, it fills in the brief form: the value lives
 * ten seconds at most, is written only where there is none, and removed again if the fence moved.
 */
export class Protocol {
  readonly #link: Link;
  readonly #deadline: number;
  readonly #onNoScripts: (error: unknown) => void;
  #scripts: boolean;
  /** Made at the first miss: Next refuses random values where it prerenders. */
  #tokens: string | undefined;
  #token = 0;

  constructor(link: Link, deadline: number, onNoScripts: (error: unknown) => void) {
    this.#link = link;
    this.#deadline = deadline;
    this.#onNoScripts = onNoScripts;
    this.#scripts = link.redis?.cluster !== true;
  }

  /** A name for one holder of one lease. */
  token(): string {
    this.#token += 1;
    this.#tokens ??= crypto.randomUUID();
    return `${this.#tokens}:${this.#token}`;
  }

  /** Looks once more for the value, reads the fence and tries to take the lease. */
  async begin(target: Target, token: string): Promise<Begun> {
    const { fence } = target;
    if (fence === undefined || !this.#scripts) return this.#beginBriefly(target, token);
    const answer = await this.#link.ask("begin", this.#deadline, (redis) =>
      redis.run("begin", [target.name, fence, target.lease], [fenceStart(), token, String(LEASE)]),
    );
    if (answer.ok) return begunOf(answer.value, token);
    if (!refusesScripts(answer.error)) return UNAVAILABLE;
    if (this.#scripts) this.#onNoScripts(answer.error);
    this.#scripts = false;
    return this.#beginBriefly(target, token);
  }

  /** Writes the value, unless the fence has moved, and gives the lease back. */
  async fill(target: Target, begun: Begun, text: string, ttl: number): Promise<FillOutcome> {
    if (begun.state !== "leased" && begun.state !== "busy") return "failed";
    const token = begun.state === "leased" ? begun.token : NO_TOKEN;
    const { fence } = target;
    if (fence === undefined || !this.#scripts) {
      return this.#fillBriefly(target, begun.fence, text, Math.min(ttl, BRIEF), token);
    }
    const answer = await this.#link.ask("fill", this.#deadline, (redis) =>
      redis.run(
        "fill",
        [target.name, fence, target.lease],
        [begun.fence, text, String(Math.max(1, Math.floor(ttl))), token],
      ),
    );
    if (!answer.ok) return "failed";
    return FILLS[Number(answer.value)] ?? "failed";
  }

  /** Gives the lease back without a value, so that nobody waits for one. */
  async release(target: Target, begun: Begun): Promise<void> {
    if (begun.state !== "leased") return;
    const { fence } = target;
    if (fence === undefined || !this.#scripts) return this.#releaseBriefly(target, begun.token);
    // A fence is a number, so it never equals this one, and the script writes nothing.
    await this.#link.ask("fill", this.#deadline, (redis) =>
      redis.run("fill", [target.name, fence, target.lease], ["none", "", "1", begun.token]),
    );
  }

  /** Takes the lease first, then reads the key. In the other order, a caller could miss the value of the caller that has just given the lease back. */
  async #beginBriefly(target: Target, token: string): Promise<Begun> {
    const { name, fence, lease } = target;
    const answer = await this.#link.ask("begin", this.#deadline, (redis) =>
      Promise.all([
        redis.setIfAbsent(lease, token, LEASE),
        redis.get(name),
        fence === undefined ? NO_FENCE : redis.get(fence),
      ]),
    );
    if (!answer.ok) return UNAVAILABLE;
    const [leased, text, seen] = answer.value;
    if (text !== null) {
      if (leased) await this.#releaseBriefly(target, token);
      return { state: "found", text };
    }
    const at = seen ?? (await this.#startFence(fence));
    if (at === null) return UNAVAILABLE;
    return leased ? { state: "leased", fence: at, token } : { state: "busy", fence: at };
  }

  /** A missing fence cannot vouch for anything, so it is started. */
  async #startFence(fence: string | undefined): Promise<string | null> {
    if (fence === undefined) return NO_FENCE;
    const answer = await this.#link.ask("begin", this.#deadline, async (redis) => {
      await redis.setIfAbsent(fence, fenceStart(), FENCE_TTL);
      return redis.get(fence);
    });
    return answer.ok ? answer.value : null;
  }

  async #fillBriefly(
    target: Target,
    seen: string,
    text: string,
    ttl: number,
    token: string,
  ): Promise<FillOutcome> {
    const { name, fence } = target;
    const milliseconds = Math.max(1, Math.floor(ttl));
    const answer = await this.#link.ask("fill", this.#deadline, (redis) =>
      redis.setIfAbsent(name, text, milliseconds),
    );
    const outcome = await this.#lookAgain(name, fence, seen, answer);
    if (token !== NO_TOKEN) await this.#releaseBriefly(target, token);
    return outcome;
  }

  async #lookAgain(
    name: string,
    fence: string | undefined,
    seen: string,
    set: Answer<boolean>,
  ): Promise<FillOutcome> {
    if (!set.ok) return "failed";
    if (!set.value) return "skipped"; // Another caller's value is there already.
    if (fence === undefined) return "written";
    const look = await this.#link.ask("fill", this.#deadline, (redis) => redis.get(fence));
    if (look.ok && look.value === seen) return "written";
    await this.#link.ask("fill", this.#deadline, (redis) => redis.unlink([name]));
    return "refused";
  }

  async #releaseBriefly(target: Target, token: string): Promise<void> {
    await this.#link.ask("fill", this.#deadline, async (redis) => {
      if ((await redis.get(target.lease)) === token) await redis.unlink([target.lease]);
    });
  }
}

/** What `fill` answers. */
const FILLS: readonly FillOutcome[] = ["refused", "written", "skipped"];

function begunOf(answer: unknown, token: string): Begun {
  if (!Array.isArray(answer)) return UNAVAILABLE;
  const [found, second, leased] = answer as unknown[];
  if (Number(found) === 1) return { state: "found", text: String(second) };
  const fence = String(second);
  return Number(leased) === 1 ? { state: "leased", fence, token } : { state: "busy", fence };
}
