/** How long this process remembers that there is no row. */
const FOR = 1000;
const MOST = 1000;

/** Keys whose loader found no row: Redis never holds these. */
export class Absent {
  readonly #until = new Map<string, { readonly at: number; readonly tenant: string | null | undefined }>();

  has(key: string, now: number): boolean {
    const entry = this.#until.get(key);
    if (!entry) return false;
    if (now < entry.at) return true;
    this.#until.delete(key);
    return false;
  }

  /** Forgets the oldest where there are too many. */
  add(key: string, tenant: string | null | undefined, now: number): void {
    this.#until.delete(key);
    for (const oldest of this.#until.keys()) {
      if (this.#until.size < MOST) break;
      this.#until.delete(oldest);
    }
    this.#until.set(key, { at: now + FOR, tenant });
  }

  drop(key: string): void {
    this.#until.delete(key);
  }

  dropTenant(tenant: string | null): void {
    for (const [key, entry] of this.#until) {
      if (entry.tenant === tenant) this.#until.delete(key);
    }
  }
}
