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

/**
 * Knows whether code runs inside a load. Where the runtime cannot tell, no code seems to, and loaders
 * that read other keys need `loads` to be larger than their number.
 */
export class Nesting {
  readonly #context: Context<ReadonlySet<string>> | undefined;

  constructor() {
    const Context = contextClass();
    this.#context = Context && new Context<ReadonlySet<string>>();
  }

  /** The keys whose loads the running code is part of. */
  keys(): ReadonlySet<string> | undefined {
    return this.#context?.getStore();
  }

  /** Runs a load of these keys. */
  run<R>(keys: readonly string[], load: () => R): R {
    if (!this.#context) return load();
    return this.#context.run(new Set([...(this.keys() ?? []), ...keys]), load);
  }
}
