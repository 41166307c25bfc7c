import assert from "node:assert/strict";
import { test } from "node:test";
import { InvalidationFailed } from "../src/index.js";
import { FENCE, fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { gate, until } from "./support/server.js";

test("a reader that saw old rows writes nothing after another process's invalidation", async (t) => {
  const { cache: reader, another, db } = await fixture(t);
  const writer = await another();
  const loading = gate();
  const read = reader.cached(keys.services("1"), async () => {
    await loading.opened;
    return [service];
  });
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  await writer.invalidate(keys.services("1"));
  loading.open();
  assert.deepEqual(await read, [service]);
  assert.equal(await db.exists("services:1"), 0);
  assert.equal((await db.keys("preheat:lease:*")).length, 0, "the lease is given back");
  assert.equal(reader.stats().families["services"]?.refused, 1);
});

test("a fence that was lost during the load refuses the fill", async (t) => {
  const { cache, db } = await fixture(t);
  await cache.cached(keys.services("1"), async () => {
    await db.flushall();
    return [service];
  });
  assert.deepEqual(await db.keys("*"), []);
});

test("after its own write a process reads no load that began before it", async (t) => {
  const { cache, db } = await fixture(t);
  const old = gate<(typeof service)[]>();
  const before = cache.cached(keys.services("1"), () => old.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  await cache.invalidate(keys.services("1"));
  const changed = [{ ...service, name: "changed" }];
  const after = cache.cached(keys.services("1"), () => changed);
  old.open([service]);
  assert.deepEqual(await before, [service]);
  assert.deepEqual(await after, changed);
  assert.equal(await db.get("services:1"), JSON.stringify(changed));
});

test("the same for keys without a fence, and for a whole tenant", async (t) => {
  const { cache, db } = await fixture(t);
  const old = gate<number>();
  const plain = cache.cached("x", () => old.opened);
  const service1 = cache.cached(keys.slots("1", "a"), async () => [String(await old.opened)]);
  await until(async () => (await db.keys("preheat:lease:*")).length === 2);
  await cache.invalidate({ key: "x" });
  await cache.invalidateTenant("1");
  old.open(1);
  assert.equal(await plain, 1);
  assert.deepEqual(await service1, ["1"]);
  assert.equal(await db.exists("x", "slots:1:a"), 0);
});

test("an invalidation of several tenants moves each fence once", async (t) => {
  const { cache, db } = await fixture(t);
  for (const fence of ["preheat:fence:1", "preheat:fence:2", "preheat:fence"])
    await db.set(fence, FENCE);
  await cache.cached(keys.services("1"), () => [service]);
  await cache.cached(keys.services("2"), () => [service]);
  const changed = [keys.services("1"), keys.slots("1", "a"), keys.services("2")];
  assert.equal(await cache.invalidate(changed, keys.pages()), 2);
  const fences = await db.mget("preheat:fence:1", "preheat:fence:2", "preheat:fence");
  assert.deepEqual(fences, [FENCE + 1, FENCE + 1, FENCE + 1].map(String));
});

test("an invalidation is one transaction", async (t) => {
  const { cache, server } = await fixture(t);
  await server.resetCalls();
  await cache.invalidate(keys.services("1"), keys.slots("1", "a"));
  const calls = await server.calls();
  assert.deepEqual(calls, { multi: 1, set: 1, incr: 1, unlink: 1, exec: 1 });
});

test("an invalidation that fails says so, after a second try", async (t) => {
  const { cache, server, errors } = await fixture(t, { cache: { invalidateTimeout: 50 } });
  await server.kill();
  const failed = await cache.invalidate(keys.services("1")).then(
    () => assert.fail("it did not fail"),
    (error: unknown) => error,
  );
  assert.ok(failed instanceof InvalidationFailed);
  assert.deepEqual([failed.fence, failed.removed], ["unknown", 0]);
  assert.ok(failed.cause instanceof Error);
  assert.equal(cache.stats().errors, 2);
  assert.deepEqual(
    errors.map(([operation]) => operation),
    ["invalidate"],
  );
});

test("an invalidation is tried although the breaker is open", async (t) => {
  const { cache, server, db } = await fixture(t, { cache: { timeout: 20 } });
  await db.set("services:1", "[]");
  server.freeze();
  while (!cache.stats().breakerOpen) await cache.cached(keys.services("1"), () => [service]);
  server.thaw();
  assert.equal(await cache.invalidate(keys.services("1")), 1);
});

test("a write's removal never throws, and says whether it was done", async (t) => {
  const { cache, db, server, errors } = await fixture(t, { cache: { invalidateTimeout: 500 } });
  await db.mset("services:1", "[]", "slots:1:a", "[]", "slots:1:b", "[]");
  const none = undefined as string | undefined;
  assert.ok(
    await cache.changed(
      () => keys.services("1"),
      ["a", "b"].map((day) => () => keys.slots("1", day)),
      none && keys.services("2"),
    ),
  );
  assert.deepEqual((await db.keys("*")).sort(), ["preheat:fence:1"]);
  assert.equal(errors.length, 0);
  await server.kill();
  assert.equal(await cache.changed(() => keys.services("1")), false);
  assert.deepEqual(
    errors.map(([operation]) => operation),
    ["invalidate"],
  );
});

test("a builder that throws leaves out its own key only", async (t) => {
  const { cache, db, errors } = await fixture(t);
  const refusal = new RangeError("no cache key");
  const refused = () => {
    throw refusal;
  };
  await db.mset("services:1", "[]", "slots:1:a", "[]");
  assert.equal(await cache.changed(refused, () => keys.services("1")), false);
  assert.deepEqual(errors, [["key", refusal]]);
  await assert.rejects(
    cache.invalidate([refused, () => keys.slots("1", "a")]),
    refusal,
  );
  assert.equal(await db.exists("services:1", "slots:1:a"), 0);
  assert.equal(await cache.changed(undefined, null, false, "", []), true);
});
