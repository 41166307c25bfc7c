import { ByKey, type Owned } from "./by-key.js";

/** How long this process remembers that there is no row. */
const FOR = 1000;
const MOST = 1000;

/** Keys whose loader found no row: Redis never holds these. */
export class Absent {
  readonly #until = new ByKey<number>();

  has(target: Owned, now: number): boolean {
    const until = this.#until.get(target);
    if (until === undefined) return false;
    if (now < until) return true;
    this.#until.delete(target);
    return false;
  }

  /** Forgets the oldest where there are too many. */
  add(target: Owned, now: number): void {
    this.#until.delete(target);
    while (this.#until.size >= MOST) this.#until.dropOldest();
    this.#until.set(target, now + FOR);
  }

  drop(name: string): void {
    this.#until.takeKey(name);
  }

  dropTenant(tenant: string | null): void {
    this.#until.takeTenant(tenant);
  }
}
