/** Compiled, not run: each `@ts-expect-error` fails the build if the line has no error. */
import { test } from "node:test";
import { Redis as Upstash } from "@upstash/redis";
import { Cluster as IoredisCluster5, Redis as Ioredis5 } from "ioredis5";
import { Cluster as IoredisCluster6, Redis as Ioredis6 } from "ioredis6";
import * as redis5 from "redis5";
import * as redis6 from "redis6";
import { type Cache, type Json, type Key, localDates } from "../src/index.js";
import { ioredis } from "../src/ioredis.js";
import { redis } from "../src/redis.js";
import { upstash } from "../src/upstash.js";
import { keys, type PetsRow, type ServicesRow } from "./support/keys.js";

type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

function same<A, B>(..._: Same<A, B> extends true ? [] : [never]): void {}

export function jsonTypes(): void {
  same<Json<Date>, string>();
  same<Json<{ at: Date; n: number | null }>, { at: string; n: number | null }>();
  same<Json<{ a?: Date; b: string | undefined; c: undefined }>, { a?: string; b?: string }>();
  same<Json<(Date | undefined)[]>, (string | null)[]>();
  same<Json<readonly [Date, 1]>, [string, 1]>();
  same<Json<{ f(): void; s: symbol; a: 1 }>, { a: 1 }>();
  same<Json<bigint>, never>();
  same<Json<unknown>, unknown>();
  same<Json<any>, any>();
  same<Json<Map<string, Date>>, Record<string, never>>();
  same<Json<{ [id: string]: Date }>, { [id: string]: string }>();
}

interface Loaded {
  id: string;
  name: string;
  price: string;
  updated_at: Date;
}

export async function reads(cache: Cache, loaded: Loaded[], row: ServicesRow): Promise<void> {
  const list = await cache.cached(keys.services("42"), async () => loaded);
  same<typeof list, ServicesRow[]>();
  // @ts-expect-error a value that was JSON has no Date
  list[0]?.updated_at.getTime();

  // @ts-expect-error the loader lacks columns that the warmer writes
  await cache.cached(keys.services("42"), async () => [{ id: "7" }]);
  // @ts-expect-error the price is written as text
  await cache.cached(keys.services("42"), async () => [{ ...row, price: 12.5 }]);
  // @ts-expect-error one row is no list
  await cache.cached(keys.services("42"), async () => row);
  // @ts-expect-error a built key has its own TTL
  await cache.cached(keys.services("42"), async () => [row], 300);

  const plain = await cache.cached("x", () => ({ at: new Date() }), 300);
  same<typeof plain, { at: string }>();
  const more = await cache.cached("x", async () => 1, { ttl: 1000, tenant: null });
  same<typeof more, number>();

  const untyped: Key = keys.services("42");
  const asLoaded = await cache.cached(untyped, async () => loaded);
  same<typeof asLoaded, Json<Loaded[]>>();

  const pet = await cache.find(keys.pet("42", "1"), async () => undefined as PetsRow | undefined);
  same<typeof pet, PetsRow | null>();
  // @ts-expect-error there may be no such pet
  pet.name;

  const week = localDates("Europe/Zurich", 7).map((day) => keys.slots("42", day));
  const slots = await cache.many(week, (missing) => missing.map(({ key }) => [key]));
  same<typeof slots, string[][]>();
  // @ts-expect-error a value for each key
  await cache.many(week, () => ["one"]);
  const byDay = await cache.many(
    localDates("Europe/Zurich", 7).map((day) => [day, keys.slots("42", day)] as const),
    async (days) => days.map((day) => [day.toUpperCase()]),
  );
  same<typeof byDay, string[][]>();

  const response = await cache.respond(new Request("http://x/"), keys.services("42"), () => loaded);
  same<typeof response, Response>();

  const request = new Request("http://x/");
  const load = async () => null as PetsRow | null;
  await cache.respond(request, keys.pet("42", "1"), load, {
    check: (value) => {
      same<typeof value, PetsRow>();
      return value.tenant_id === "42";
    },
  });
  // @ts-expect-error a shared key's value may be another tenant's
  await cache.respond(request, keys.pet("42", "1"), load);
  // @ts-expect-error nor does a check of nothing help
  await cache.respond(request, keys.pet("42", "1"), load, {});
  await cache.many([keys.pet("42", "1")], (missing) => missing.map(() => loadedPet));
}

declare const loadedPet: PetsRow;

export function clients(): void {
  ioredis(new Ioredis5());
  ioredis(new Ioredis6());
  ioredis(new IoredisCluster5([]));
  ioredis(new IoredisCluster6([]));
  redis(redis5.createClient());
  redis(redis6.createClient());
  redis(redis5.createCluster({ rootNodes: [] }));
  redis(redis6.createCluster({ rootNodes: [] }));
  redis(redis5.createClientPool());
  redis(redis6.createClientPool());
  redis(redis5.createSentinel({ name: "x", sentinelRootNodes: [] }));
  redis(redis6.createSentinel({ name: "x", sentinelRootNodes: [] }));
  upstash(new Upstash({ url: "http://x", token: "x" }));
  // @ts-expect-error another package's client
  ioredis(new Upstash({ url: "http://x", token: "x" }));
  // @ts-expect-error another package's client
  upstash(new Ioredis6());
}

test("the types hold", () => {});
