/** A key and the tenant for whom it is read. */
export interface Owned {
  readonly name: string;
  readonly key: { readonly tenant: string | null | undefined };
}

/**
 * Values by key and reader's tenant. Two tenants may read one key, and their loaders may see different
 * rows: neither may be given what was loaded for the other.
 */
export class ByKey<V> {
  readonly #values = new Map<string, Map<string | null | undefined, V>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get({ name, key }: Owned): V | undefined {
    return this.#values.get(name)?.get(key.tenant);
  }

  set({ name, key }: Owned, value: V): void {
    let tenants = this.#values.get(name);
    if (!tenants) this.#values.set(name, (tenants = new Map()));
    if (!tenants.has(key.tenant)) this.#size += 1;
    tenants.set(key.tenant, value);
  }

  delete({ name, key }: Owned): void {
    this.#delete(name, key.tenant);
  }

  /** Takes out what is held for a key, whoever reads it. */
  takeKey(name: string): V[] {
    const tenants = this.#values.get(name);
    if (!tenants) return [];
    this.#values.delete(name);
    this.#size -= tenants.size;
    return [...tenants.values()];
  }

  /** Takes out what is held for a tenant. */
  takeTenant(tenant: string | null): V[] {
    const taken: V[] = [];
    for (const [name, tenants] of this.#values) {
      const value = tenants.get(tenant);
      if (value === undefined) continue;
      taken.push(value);
      this.#delete(name, tenant);
    }
    return taken;
  }

  /** Takes out the key that was first held, of those that are. */
  dropOldest(): void {
    for (const name of this.#values.keys()) {
      this.takeKey(name);
      return;
    }
  }

  #delete(name: string, tenant: string | null | undefined): void {
    const tenants = this.#values.get(name);
    if (!tenants?.delete(tenant)) return;
    this.#size -= 1;
    if (tenants.size === 0) this.#values.delete(name);
  }
}
