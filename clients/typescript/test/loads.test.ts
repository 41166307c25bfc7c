import assert from "node:assert/strict";
import { test } from "node:test";
import { createCache, LoadsExhausted } from "../src/index.js";
import { Loads, Turn } from "../src/loads.js";
import { fixture } from "./support/fixture.js";
import { keys } from "./support/keys.js";
import { gate, until } from "./support/server.js";

test("loads run in turn, and a load without a place to wait is refused", async () => {
  const loads = new Loads(2);
  const ends = Array.from({ length: 200 }, () => gate());
  const begun: number[] = [];
  let refused = 0;
  const runs = ends.map((end, i) =>
    loads
      .run(new Turn(), async () => {
        begun.push(i);
        await end.opened;
      })
      .catch((error: unknown) => {
        assert.ok(error instanceof LoadsExhausted);
        refused += 1;
      }),
  );
  await until(() => refused === 200 - 2 - 128);
  assert.deepEqual(begun, [0, 1]);
  ends[1]?.open();
  await until(() => begun.length === 3);
  assert.deepEqual(begun, [0, 1, 2]);
  for (const end of ends) end.open();
  await Promise.all(runs);
  assert.deepEqual(
    begun,
    Array.from({ length: 130 }, (_, i) => i),
  );
  await loads.run(new Turn(), async () => {});
});

test("a load that fails gives its place back", async () => {
  const loads = new Loads(1);
  const failure = new Error("no");
  for (let i = 0; i < 3; i += 1) {
    await assert.rejects(
      loads.run(new Turn(), () => Promise.reject(failure)),
      failure,
    );
  }
});

test("loads are bounded while Redis is gone, and `respond` answers 503 beyond the bound", async () => {
  const cache = createCache({ redis: null, loads: 1 });
  const end = gate<string[]>();
  const reads = Array.from({ length: 1 + 64 }, (_, i) =>
    cache.cached(keys.slots("1", String(i)), () => end.opened),
  );
  await assert.rejects(
    cache.cached(keys.slots("1", "x"), () => end.opened),
    LoadsExhausted,
  );
  const request = new Request("http://x/");
  const response = await cache.respond(request, keys.slots("1", "y"), () => end.opened);
  assert.equal(response.status, 503);
  assert.equal(response.headers.get("retry-after"), "1");
  end.open([]);
  await Promise.all(reads);
  assert.equal(cache.stats().families["slots"]?.loads, 65);
});

test("loaders may read other keys, whatever the bound", async (t) => {
  const { cache } = await fixture(t, { cache: { loads: 2 } });
  const reads = Array.from({ length: 20 }, (_, i) =>
    cache.cached(keys.slots("1", `outer${i}`), async () => {
      // All of them want one inner value, and each one of its own.
      const shared = await cache.cached(keys.slots("1", "shared"), () => ["shared"]);
      const own = await cache.cached(keys.slots("1", `inner${i}`), () => ["own"]);
      return [...shared, ...own];
    }),
  );
  for (const value of await Promise.all(reads)) assert.deepEqual(value, ["shared", "own"]);
});

test("a load that others wait for inside their loads does not wait for their places", async (t) => {
  const { cache, db } = await fixture(t, { cache: { loads: 1 } });
  const outerGoes = gate();
  const outer = cache.cached(keys.slots("1", "outer"), async () => {
    await outerGoes.opened;
    return cache.cached(keys.slots("1", "inner"), () => assert.fail("it is loading already"));
  });
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const inner = cache.cached(keys.slots("1", "inner"), () => ["inner"]);
  await until(async () => (await db.keys("preheat:lease:*")).length === 2);
  outerGoes.open();
  assert.deepEqual(await outer, ["inner"]);
  assert.deepEqual(await inner, ["inner"]);
});

test("a loader that reads its own key loads it", async (t) => {
  const { cache } = await fixture(t);
  const value = await cache.cached(keys.slots("1", "a"), () =>
    cache.cached(keys.slots("1", "a"), () => ["inner"]),
  );
  assert.deepEqual(value, ["inner"]);
});

test("what outlives a load is no part of it", async (t) => {
  const { cache } = await fixture(t);
  let later!: Promise<string[]>;
  const first = gate();
  await cache.cached(keys.slots("1", "a"), () => {
    later = first.opened.then(() => cache.cached(keys.slots("1", "a"), () => ["loaded again"]));
    return ["once"];
  });
  first.open();
  assert.deepEqual(await later, ["once"]);
});
