import assert from "node:assert/strict";
import { test } from "node:test";
import { Counts } from "../src/counts.js";
import { Events } from "../src/events.js";
import { Link } from "../src/link.js";
import type { RedisLike } from "../src/redis-like.js";
import { fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { until } from "./support/server.js";

test("reads do not write", async (t) => {
  const { cache, server } = await fixture(t);
  await cache.cached(keys.services("1"), () => [service]);
  await server.resetCalls();
  for (let read = 0; read < 100; read += 1) await cache.cached(keys.services("1"), () => [service]);
  assert.deepEqual(await server.calls(), { get: 100 });
  await server.resetCalls();
  await cache.flush();
  assert.deepEqual(await server.calls(), { multi: 1, hincrby: 2, pexpire: 1, exec: 1 });
  await server.resetCalls();
  await cache.flush();
  assert.deepEqual(await server.calls(), {}, "nothing to say");
});

test("counts are brought every ten seconds, in the background where there is one", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let now = 0;
  t.mock.method(performance, "now", () => now);
  const sent: [string, number][][] = [];
  const redis = { count: async (_: string, deltas: [string, number][]) => void sent.push(deltas) };
  const link = new Link(
    redis as unknown as RedisLike,
    new Events(
      () => {},
      [],
      () => now,
    ),
  );
  const read = { type: "read", family: "services", result: "hit" } as const;

  const timed = new Counts(link, "", 500, undefined);
  timed.record(read);
  timed.record(read);
  t.mock.timers.tick(9_999);
  assert.deepEqual(sent, []);
  t.mock.timers.tick(1);
  assert.deepEqual(sent.splice(0), [[["services:hit", 2]]]);
  t.mock.timers.tick(60_000);
  assert.deepEqual(sent, []);

  const works: (() => Promise<void>)[] = [];
  const served = new Counts(link, "", 500, (work) => void works.push(work));
  served.record(read);
  now = 10_000;
  served.record(read);
  served.record(read);
  assert.equal(works.length, 1);
  await works[0]?.();
  assert.deepEqual(sent.splice(0), [[["services:hit", 3]]]);

  const outside = new Counts(link, "", 500, () => {
    throw new Error("outside a request");
  });
  now = 30_000;
  outside.record(read);
  t.mock.timers.tick(10_000);
  assert.deepEqual(sent.splice(0), [[["services:hit", 1]]]);
});

test("counts of an outage are brought when Redis is back", async (t) => {
  const { cache, server, db } = await fixture(t, { cache: { timeout: 20 } });
  server.freeze();
  while (!cache.stats().breakerOpen) await cache.cached(keys.services("1"), () => [service]);
  const { bypass = 0 } = cache.stats().families["services"] ?? {};
  // A probe may be due once; then the breaker keeps the counts here.
  server.thaw();
  await until(async () => {
    await cache.flush();
    return (await db.hget("preheat:reads", "services:bypass")) === String(bypass);
  });
});

test("families that an application makes up do not fill the memory", async (t) => {
  const { cache } = await fixture(t, { cache: { redis: null } });
  for (let family = 0; family < 1100; family += 1) {
    const key = { key: "x", tenant: "1", ttl: 1000, family: `f${family}`, fill: "full" } as const;
    await cache.cached(key, () => 1);
  }
  const { families } = cache.stats();
  assert.ok(Object.keys(families).length <= 1001);
  assert.equal(families["other"]?.bypass, 100);
});
