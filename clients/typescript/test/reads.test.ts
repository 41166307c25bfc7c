import assert from "node:assert/strict";
import { test } from "node:test";
import { type CacheEvent, createCache } from "../src/index.js";
import { fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { gate, until } from "./support/server.js";

test("a hit costs one command", async (t) => {
  const { cache, server } = await fixture(t);
  await cache.cached(keys.services("1"), () => [service]);
  await server.resetCalls();
  await cache.cached(keys.services("1"), () => [service]);
  await cache.find(keys.services("1"), () => [service]);
  await cache.respond(new Request("http://x/"), keys.services("1"), () => [service]);
  assert.deepEqual(await server.calls(), { get: 3 });
});

test("callers of one process share a load, and each has a copy of its own", async (t) => {
  const { cache, server } = await fixture(t);
  const loading = gate<(typeof service)[]>();
  let loads = 0;
  const load = () => {
    loads += 1;
    return loading.opened;
  };
  const reads = Array.from({ length: 50 }, () => cache.cached(keys.services("1"), load));
  await until(async () => (await server.calls())["get"] === 52);
  loading.open([service]);
  const values = await Promise.all(reads);
  assert.equal(loads, 1);
  assert.equal(new Set(values).size, 50);
  const { miss, joined } = cache.stats().families["services"] ?? {};
  assert.deepEqual({ miss, joined }, { miss: 1, joined: 49 });
});

test("an error of the loader reaches its callers only, and is not kept", async (t) => {
  const { cache, db, errors } = await fixture(t);
  const loading = gate<never>();
  const first = cache.cached(keys.services("1"), () => loading.opened);
  const second = cache.cached(keys.services("1"), () => assert.fail("loaded twice"));
  const failure = new Error("the database said no");
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  loading.fail(failure);
  await assert.rejects(first, failure);
  await assert.rejects(second, failure);
  await until(async () => (await db.keys("preheat:lease:*")).length === 0);
  assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  const { loads, loadsFailed, miss, joined } = cache.stats().families["services"] ?? {};
  assert.deepEqual(
    { loads, loadsFailed, miss, joined },
    { loads: 2, loadsFailed: 1, miss: 2, joined: 1 },
  );
  assert.deepEqual(errors, []);
});

test("a loader that throws at once, or gives what is no JSON, fails the read", async (t) => {
  const { cache } = await fixture(t);
  const thrown = () => {
    throw new RangeError("now");
  };
  await assert.rejects(cache.cached("x", thrown), RangeError);
  await assert.rejects(
    cache.cached("x", () => ({ id: 10n })),
    TypeError,
  );
});

test("a signal ends its caller's wait, and the load goes on for the others", async (t) => {
  const { cache, db } = await fixture(t);
  const loading = gate<(typeof service)[]>();
  const abort = new AbortController();
  const options = { signal: abort.signal };
  const first = cache.cached(keys.services("1"), () => loading.opened, options);
  const second = cache.cached(keys.services("1"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  abort.abort(new Error("gone"));
  await assert.rejects(first, /gone/);
  await assert.rejects(
    cache.cached(keys.services("1"), () => [service], options),
    /gone/,
  );
  loading.open([service]);
  assert.deepEqual(await second, [service]);
  assert.notEqual(await db.get("services:1"), null);
});

test("null and undefined are served, and never written", async (t) => {
  const { cache, db } = await fixture(t);
  assert.equal(await cache.cached("a", () => null, { tenant: "1" }), null);
  assert.equal(await cache.cached("b", () => undefined, { tenant: "1" }), undefined);
  assert.deepEqual(await db.keys("*"), ["preheat:fence:1"]);
});

test("falsy values are hits", async (t) => {
  const { cache } = await fixture(t);
  for (const value of [0, "", false]) {
    await cache.cached(`key:${value}`, () => value, { tenant: "1" });
    const hit = await cache.cached(`key:${value}`, () => assert.fail("loaded again"));
    assert.equal(hit, value);
  }
});

test("that there is no row is remembered in the process, until it is invalidated", async (t) => {
  const { cache, db } = await fixture(t);
  let loads = 0;
  const none = () => {
    loads += 1;
    return undefined;
  };
  assert.equal(await cache.find(keys.pet("1", "5"), none), null);
  assert.equal(await cache.find(keys.pet("1", "5"), none), null);
  assert.equal(loads, 1);
  assert.equal(await db.get("pet:5"), null);
  await cache.invalidate(keys.pet("1", "5"));
  const pet = { id: "5", tenant_id: "1", name: "Minka" };
  assert.deepEqual(await cache.find(keys.pet("1", "5"), () => pet), pet);

  assert.equal(await cache.find(keys.pet("1", "6"), none), null);
  await db.set("pet:6", JSON.stringify(pet));
  assert.deepEqual(await cache.find(keys.pet("1", "6"), none), pet, "Redis has the last word");
  assert.equal(await cache.find(keys.pet("1", "7"), none), null);
  await cache.invalidateTenant("1");
  assert.deepEqual(await cache.find(keys.pet("1", "7"), () => pet), pet);
});

test("a key says how long it may be filled", async (t) => {
  const { cache, db } = await fixture(t);
  await cache.cached(keys.pet("1", "5"), () => ({ id: "5", tenant_id: "1", name: "Minka" }));
  const brief = await db.pttl("pet:5");
  assert.ok(brief > 5000 && brief <= 10_000, String(brief));
  assert.equal(await cache.cached(keys.report("1"), () => 7), 7);
  assert.equal(await db.exists("report:1"), 0);
  await db.set("report:1", "8");
  assert.equal(await cache.cached(keys.report("1"), () => 7), 8);
});

test("a text is a key too: with a tenant it is guarded, without one it is brief", async (t) => {
  const { cache, db } = await fixture(t);
  await cache.cached("a", () => 1, 300);
  await cache.cached("b", () => 1, { ttl: 300_000, tenant: "1" });
  await cache.cached("c", () => 1, { ttl: 300_000, tenant: null });
  await cache.cached("d", () => 1, { ttl: 5000 });
  await cache.cached("e", () => 1, 0.001);
  const ttls = { a: 10_000, b: 300_000, c: 300_000, d: 5000 };
  for (const [key, ttl] of Object.entries(ttls)) {
    const left = await db.pttl(key);
    assert.ok(left > ttl - 5000 && left <= ttl, `${key}: ${left}`);
  }
  assert.deepEqual((await db.keys("preheat:*")).sort(), ["preheat:fence", "preheat:fence:1"]);
  await assert.rejects(
    cache.cached("x", () => 1, { ttl: Number.NaN }),
    RangeError,
  );
  assert.deepEqual(Object.keys(cache.stats().families), ["other"]);
});

test("a prefix stands before every name", async (t) => {
  const { cache, db } = await fixture(t, { cache: { prefix: "v2:" } });
  const loading = gate();
  const read = cache.cached(keys.services("42"), async () => {
    await loading.opened;
    return [service];
  });
  const lease = "v2:preheat:lease:{v2:services:42}v2:services:42";
  await until(async () => (await db.exists(lease)) === 1);
  loading.open();
  await read;
  await cache.flush();
  const names = ["v2:preheat:fence:42", "v2:preheat:reads", "v2:services:42"];
  assert.deepEqual((await db.keys("*")).sort(), names);
  await cache.invalidate(keys.services("42"));
  assert.equal(await db.exists("v2:services:42"), 0);
});

test("a value above the limit is served, counted, and not written", async (t) => {
  const { cache, db } = await fixture(t, { cache: { maxBytes: 20 } });
  assert.equal(await cache.cached("a", () => "é".repeat(9), { tenant: "1" }), "é".repeat(9));
  assert.equal(await cache.cached("b", () => "é".repeat(10), { tenant: "1" }), "é".repeat(10));
  assert.equal(await db.exists("a"), 1);
  assert.equal(await db.exists("b"), 0);
  assert.equal((await db.keys("preheat:lease:*")).length, 0);
  assert.equal(cache.stats().families["other"]?.fillsSkipped, 1);
});

test("what is no JSON in Redis counts for nothing", async (t) => {
  const { cache, db, errors } = await fixture(t);
  await db.set("services:1", "[{");
  assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  assert.equal(errors[0]?.[0], "read");
});

test("several reads load once what is missing, and join what is loading", async (t) => {
  const { cache, db } = await fixture(t);
  const days = ["2026-03-28", "2026-03-29", "2026-03-30", "2026-03-29"];
  const loading = gate<string[]>();
  const single = cache.cached(keys.slots("1", "2026-03-30"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const asked: string[][] = [];
  const many = cache.many(
    days.map((day) => keys.slots("1", day)),
    (missing) => {
      asked.push(missing.map(({ key }) => key));
      return missing.map(({ key }) => [key]);
    },
  );
  await until(async () => (await db.exists("slots:1:2026-03-28")) === 1);
  loading.open(["joined"]);
  assert.deepEqual(await many, [
    ["slots:1:2026-03-28"],
    ["slots:1:2026-03-29"],
    ["joined"],
    ["slots:1:2026-03-29"],
  ]);
  assert.deepEqual(asked, [["slots:1:2026-03-28", "slots:1:2026-03-29"]]);
  assert.deepEqual(await single, ["joined"]);
  assert.deepEqual(await cache.many([], () => assert.fail("nothing is missing")), []);
  const { miss, joined, loads } = cache.stats().families["slots"] ?? {};
  assert.deepEqual({ miss, joined, loads }, { miss: 3, joined: 1, loads: 3 });
});

test("a loader of several may get what it is asked for instead of keys", async (t) => {
  const { cache, db } = await fixture(t);
  await db.set("slots:1:2026-03-29", '["found"]');
  const days = ["2026-03-28", "2026-03-29", "2026-03-30"].map(
    (day) => [day, keys.slots("1", day)] as const,
  );
  const asked: string[][] = [];
  const read = await cache.many(days, (missing) => {
    asked.push(missing);
    return missing.map((day) => [day]);
  });
  assert.deepEqual(read, [["2026-03-28"], ["found"], ["2026-03-30"]]);
  assert.deepEqual(asked, [["2026-03-28", "2026-03-30"]]);
});

test("a loader of several that gives too few values fails the read", async (t) => {
  const { cache, db } = await fixture(t);
  const two = [keys.slots("1", "a"), keys.slots("1", "b")];
  await assert.rejects(
    cache.many(two, () => [["one"]]),
    /1 values for 2 keys/,
  );
  await until(async () => (await db.keys("preheat:lease:*")).length === 0);
});

test("everything that is counted is an event, and a hook that throws ends nothing", async (t) => {
  const events: CacheEvent[] = [];
  const onEvent = (event: CacheEvent) => {
    events.push(event);
    throw new Error("a hook's own");
  };
  const { cache, errors } = await fixture(t, { cache: { onEvent } });
  await cache.cached(keys.services("1"), () => [service]);
  await cache.cached(keys.services("1"), () => [service]);
  assert.deepEqual(
    events.map((event) =>
      Object.values(event)
        .filter((value) => typeof value === "string")
        .join(" "),
    ),
    ["load services loaded", "fill services written", "read services miss", "read services hit"],
  );
  assert.deepEqual(
    errors.map(([operation]) => operation),
    ["hook"],
  );
});

test("without Redis every read is a load", async () => {
  const cache = createCache({ redis: null, onError: assert.fail });
  assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  assert.deepEqual(await cache.many([keys.services("1")], () => [[service]]), [[service]]);
  assert.equal(await cache.invalidate(keys.services("1")), 0);
  await cache.close();
  assert.equal(cache.stats().families["services"]?.bypass, 2);
});

test("what one tenant's loader gives is no answer to another tenant", async (t) => {
  const { cache, db } = await fixture(t);
  const pet = { id: "5", tenant_id: "2", name: "Minka" };
  const loading = gate<undefined>();
  const stranger = cache.find(keys.pet("1", "5"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const owner = cache.find(keys.pet("2", "5"), () => pet);
  loading.open(undefined);
  assert.equal(await stranger, null);
  assert.deepEqual(await owner, pet);
  await db.del("pet:5");
  assert.deepEqual(await cache.find(keys.pet("2", "5"), () => pet), pet);
});
