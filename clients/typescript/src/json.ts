/**
 * What `JSON.parse(JSON.stringify(value))` makes of a `T`: a `Date` becomes a string, an `undefined`
 * member goes, a `Map` becomes `{}`. What cannot be written as JSON is `never`.
 *
 * A read gives this type whether it hit or missed.
 */
export type Json<T> = 0 extends 1 & T
  ? T
  : unknown extends T
    ? unknown
    : T extends { toJSON(...args: never[]): infer Written }
      ? Json<Written>
      : T extends string | number | boolean | null
        ? T
        : T extends undefined
          ? undefined
          : T extends bigint | symbol | ((...args: never[]) => unknown)
            ? never
            : T extends readonly unknown[]
              ? { -readonly [I in keyof T]: InArray<T[I]> }
              : T extends ReadonlyMap<unknown, unknown> | ReadonlySet<unknown>
                ? Record<string, never>
                : JsonObject<T>;

type Unwritten = undefined | symbol | ((...args: never[]) => unknown);

/** `undefined` and functions are `null` in an array. */
type InArray<T> = T extends Unwritten ? null : Json<T>;

/** In an object they are left out. */
type JsonObject<T> = Flat<
  {
    -readonly [K in keyof T as Stays<K, T[K]> extends true ? K : never]: Json<T[K]>;
  } & {
    -readonly [K in keyof T as Stays<K, T[K]> extends "sometimes" ? K : never]?: Json<
      Exclude<T[K], Unwritten>
    >;
  }
>;

type Stays<K, V> = K extends symbol
  ? false
  : unknown extends V
    ? true
    : [V] extends [Unwritten]
      ? false
      : Extract<V, Unwritten> extends never
        ? true
        : "sometimes";

type Flat<T> = { [K in keyof T]: T[K] };

/** What a loader may return for a key of type `T`: anything whose {@link Json} is a `T`. */
export type Loadable<T> = 0 extends 1 & T
  ? T
  : unknown extends T
    ? unknown
    : T extends readonly unknown[]
      ? { readonly [I in keyof T]: Loadable<T[I]> }
      : T extends object
        ? { readonly [K in keyof T]: Loadable<T[K]> }
        : T | { toJSON(...args: never[]): T };

/** What a read of a key of type `T` gives, loaded as an `L`. A key without a type has the loader's. */
export type Read<T, L> = unknown extends T ? Json<L> : T;
