/** The loads that the running code is part of: a loader may read through the cache itself. */
interface Context<T> {
  getStore(): T | undefined;
  run<R>(store: T, work: () => R): R;
}

type ContextClass = new <T>() => Context<T>;

interface Runtime {
  readonly AsyncLocalStorage?: ContextClass;
  readonly process?: {
    getBuiltinModule?(name: string): { readonly AsyncLocalStorage?: ContextClass } | undefined;
  };
}

/** Found without an import, so that the module loads in runtimes that lack it. */
function contextClass(): ContextClass | undefined {
  const runtime = globalThis as Runtime;
  return (
    runtime.AsyncLocalStorage ??
    runtime.process?.getBuiltinModule?.("node:async_hooks")?.AsyncLocalStorage
  );
}

/** A load, for the code that it runs. What outlives it (a timer, a connection) is no part of it. */
interface Load {
  readonly keys: ReadonlySet<string>;
  ended: boolean;
}

/**
 * Knows whether code runs inside a load. Where the runtime cannot tell, no code seems to, and loaders
 * that read other keys need `loads` to be larger than their number.
 */
export class Nesting {
  readonly #context: Context<Load> | undefined;

  constructor() {
    const Context = contextClass();
    this.#context = Context && new Context<Load>();
  }

  /** The keys whose loads the running code is part of. */
  keys(): ReadonlySet<string> | undefined {
    const load = this.#context?.getStore();
    return load && !load.ended ? load.keys : undefined;
  }

  /** Runs a load of these keys. */
  async run<R>(keys: readonly string[], work: () => Promise<R>): Promise<R> {
    if (!this.#context) return work();
    const load = { keys: new Set([...(this.keys() ?? []), ...keys]), ended: false };
    try {
      return await this.#context.run(load, work);
    } finally {
      load.ended = true;
    }
  }
}
