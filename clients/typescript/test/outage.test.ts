import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { type CacheEvent, createCache, DeadlineExceeded, type RedisLike } from "../src/index.js";
import { Breaker } from "../src/breaker.js";
import { Events, warn } from "../src/events.js";
import { clients } from "./support/clients.js";
import { fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { until } from "./support/server.js";

for (const [name, open] of Object.entries(clients)) {
  test(`${name}: a Redis that does not answer costs a read its deadline, then nothing`, async (t) => {
    const { cache, server, errors } = await fixture(t, { open, cache: { timeout: 150 } });
    await until(async () => {
      await cache.cached(keys.services("1"), () => [service]);
      return (cache.stats().families["services"]?.hit ?? 0) > 0;
    });
    errors.length = 0;
    const { bypass: before = 0, hit = 0 } = cache.stats().families["services"] ?? {};
    server.freeze();
    const asked = cache.stats().errors;
    const began = performance.now();
    for (let read = 0; read < 100; read += 1) {
      assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
    }
    const seconds = Math.ceil((performance.now() - began) / 1000);
    assert.ok(cache.stats().errors - asked <= 5 + seconds, "five failures, then a probe a second");
    assert.equal(cache.stats().families["services"]?.bypass, before + 100);
    assert.ok(
      errors.every(([, error]) => error instanceof DeadlineExceeded),
      String(errors[0]?.[1]),
    );
    assert.ok(errors.length <= 1, "it is told once");
    assert.ok(cache.stats().errors - asked >= 5);
    server.thaw();
    await until(async () => {
      await cache.cached(keys.services("1"), () => [service]);
      return (cache.stats().families["services"]?.hit ?? 0) > hit;
    });
  });
}

test("callers share a load although Redis is gone", async (t) => {
  const { cache, server } = await fixture(t, { cache: { timeout: 20 } });
  server.freeze();
  let loads = 0;
  const load = async () => {
    loads += 1;
    await new Promise((resolve) => setTimeout(resolve, 200));
    return [service];
  };
  await Promise.all(Array.from({ length: 100 }, () => cache.cached(keys.services("1"), load)));
  assert.equal(loads, 1);
  const { bypass, joined } = cache.stats().families["services"] ?? {};
  assert.deepEqual({ bypass, joined }, { bypass: 1, joined: 99 });
});

test("Redis may die between `begin` and `fill`: the value is served", async (t) => {
  const { cache, server } = await fixture(t, { cache: { timeout: 100 } });
  const value = await cache.cached(keys.services("1"), async () => {
    await server.kill();
    return [service];
  });
  assert.deepEqual(value, [service]);
  assert.equal(cache.stats().families["services"]?.fillsFailed, 1);
});

test("answers that arrived in time count, even if the process was busy past the deadline", async (t) => {
  const { cache, db } = await fixture(t, { cache: { timeout: 200 } });
  await db.set("services:1", JSON.stringify([service]));
  for (let round = 0; round < 3; round += 1) {
    const read = cache.cached(keys.services("1"), () => assert.fail("loaded"));
    const end = performance.now() + 500;
    // The command is on its way once the event loop has turned; then the process computes.
    setImmediate(() => {
      while (performance.now() < end);
    });
    assert.deepEqual(await read, [service]);
  }
});

test("a Redis that is slower than the deadline is not waited for", async () => {
  let milliseconds = 10;
  const get = () => pause(milliseconds, JSON.stringify([service]));
  const redis = { keyPrefix: "", cluster: false, get } as unknown as RedisLike;
  const cache = createCache({ redis, timeout: 200, onError: () => {} });
  const read = () => cache.cached(keys.services("1"), () => [service]);
  await read();
  assert.equal(cache.stats().families["services"]?.hit, 1);
  milliseconds = 2000;
  for (let i = 0; i < 20; i += 1) assert.deepEqual(await read(), [service]);
  assert.equal(cache.stats().families["services"]?.bypass, 20);
  assert.ok(cache.stats().breakerOpen);
  milliseconds = 10;
  await until(async () => {
    await read();
    return cache.stats().families["services"]?.hit === 2;
  });
});

test("a Redis that answers with errors is not gone", async (t) => {
  const { cache, db, errors } = await fixture(t);
  await db.lpush("services:1", "x");
  for (let read = 0; read < 8; read += 1) {
    assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  }
  assert.ok(!cache.stats().breakerOpen);
  assert.equal(cache.stats().families["services"]?.bypass, 8);
  assert.match(String(errors[0]?.[1]), /WRONGTYPE/);
});

test("a full Redis still serves what it has", async (t) => {
  const { cache, db, server } = await fixture(t);
  await cache.cached(keys.services("1"), () => [service]);
  await server.send("CONFIG", "SET", "maxmemory", "1");
  for (let read = 0; read < 8; read += 1) {
    assert.deepEqual(await cache.cached(keys.services("2"), () => [service]), [service]);
  }
  assert.deepEqual(await cache.cached(keys.services("1"), () => assert.fail("loaded")), [service]);
  assert.equal(await db.exists("services:2"), 0);
});

test("the breaker opens after five failures in a row, and probes once a second", () => {
  const breaker = new Breaker();
  for (let failure = 0; failure < 4; failure += 1) breaker.failed(0);
  breaker.answered();
  for (let failure = 0; failure < 4; failure += 1) breaker.failed(0);
  assert.ok(breaker.admits(0) && !breaker.open);
  breaker.failed(10);
  assert.ok(breaker.open);
  assert.ok(!breaker.admits(1009));
  assert.ok(breaker.admits(1010));
  assert.ok(!breaker.admits(1011), "one probe");
  breaker.failed(1060);
  assert.ok(!breaker.admits(2009));
  assert.ok(breaker.admits(2010));
  breaker.answered();
  assert.ok(breaker.admits(2011) && breaker.admits(2011));
});

test("a breaker that opens and closes is an event", async (t) => {
  const states: boolean[] = [];
  const onEvent = (event: CacheEvent) => void (event.type === "breaker" && states.push(event.open));
  const { cache, server } = await fixture(t, { cache: { timeout: 20, onEvent } });
  server.freeze();
  await until(async () => {
    await cache.cached("x", () => 1);
    return states.length === 1;
  });
  server.thaw();
  await until(async () => {
    await cache.cached("x", () => 1);
    return states.length === 2;
  });
  assert.deepEqual(states, [true, false]);
});

test("each kind of error is told once in ten seconds", () => {
  const told: string[] = [];
  let now = 0;
  const events = new Events(
    (operation) => told.push(operation),
    [],
    () => now,
  );
  for (now of [0, 1, 9999]) events.failed("read", new Error());
  events.failed("fill", new Error());
  now = 10_000;
  events.failed("read", new Error());
  assert.deepEqual(told, ["read", "fill", "read"]);
});

test("what the default `onError` prints is one line", (t) => {
  const told = t.mock.method(console, "warn", () => {});
  const refused = Object.assign(new Error("connect ECONNREFUSED ::1:6379"), { code: "ECONNREFUSED" });
  warn("read", Object.assign(new AggregateError([refused]), { code: "ECONNREFUSED" }));
  warn("invalidate", new Error("two\nlines", { cause: refused }));
  warn("hook", "a text");
  assert.deepEqual(
    told.mock.calls.map(({ arguments: said }) => said),
    [
      [
        "preheat-client: read failed; the loader answers instead: connect ECONNREFUSED ::1:6379",
      ],
      [
        "preheat-client: invalidate failed; the write stands; old values may be read until preheat hears of it: two lines",
      ],
      ["preheat-client: hook failed; the cache goes on: a text"],
    ],
  );
});

test("a process ends although a cache is open", async (t) => {
  const { cache, db } = await fixture(t);
  await cache.cached(keys.services("1"), () => [service]);
  await cache.close();
  await cache.cached(keys.services("1"), () => [service]);
  assert.equal(await db.hget("preheat:reads", "services:miss"), "1");
});
