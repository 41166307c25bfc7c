import assert from "node:assert/strict";
import { test } from "node:test";
import type { CacheEvent } from "../src/index.js";
import { fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { gate, until } from "./support/server.js";

const LEASE = "preheat:lease:{services:1}services:1";

test("another process waits for the one that loads", async (t) => {
  const { cache: first, another, db } = await fixture(t);
  const outcomes: string[] = [];
  const second = await another({ onEvent: (event) => void outcomes.push(leaseOutcome(event)) });
  const loading = gate<(typeof service)[]>();
  const loads = first.cached(keys.services("1"), () => loading.opened);
  await until(async () => (await db.exists(LEASE)) === 1);
  const waits = second.cached(keys.services("1"), () => assert.fail("loaded twice"));
  setTimeout(() => loading.open([service]), 40);
  assert.deepEqual(await loads, [service]);
  assert.deepEqual(await waits, [service]);
  assert.deepEqual(outcomes.filter(Boolean), ["found"]);
  assert.equal(second.stats().families["services"]?.hit, 1);
});

test("it loads as soon as the other found nothing to write", async (t) => {
  const { cache: first, another, db } = await fixture(t);
  const second = await another();
  const loading = gate<undefined>();
  const none = first.find(keys.pet("1", "5"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const began = performance.now();
  const waits = second.find(keys.pet("1", "5"), () => undefined);
  loading.open(undefined);
  assert.equal(await none, null);
  assert.equal(await waits, null);
  assert.ok(performance.now() - began < 900, "not the whole wait");
});

test("a holder that died holds others up for a second, and their value is written", async (t) => {
  const { cache, db } = await fixture(t);
  await db.set(LEASE, "of the dead", "PX", 60_000);
  const began = performance.now();
  assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  assert.ok(performance.now() - began < 5000);
  assert.equal(cache.stats().families["services"]?.leaseTimeouts, 1);
  assert.equal(await db.get("services:1"), JSON.stringify([service]));
  assert.equal(await db.get(LEASE), "of the dead", "it is not ours to give back");
});

test("several reads load what they may while they wait for the rest", async (t) => {
  const { cache, another, db } = await fixture(t);
  const second = await another();
  const loading = gate<string[]>();
  const first = cache.cached(keys.slots("1", "a"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const asked: string[][] = [];
  const many = second.many([keys.slots("1", "a"), keys.slots("1", "b")], (missing) => {
    asked.push(missing.map(({ key }) => key));
    return missing.map(() => ["second"]);
  });
  await until(async () => (await db.exists("slots:1:b")) === 1);
  loading.open(["first"]);
  assert.deepEqual(await many, [["first"], ["second"]]);
  assert.deepEqual(await first, ["first"]);
  assert.deepEqual(asked, [["slots:1:b"]]);
});

function leaseOutcome(event: CacheEvent): string {
  return event.type === "lease" ? event.outcome : "";
}

test("a value that the warmer wrote during the load stays, with its TTL", async (t) => {
  const { cache, db } = await fixture(t);
  const pet = { id: "5", tenant_id: "1", name: "Minka" };
  await cache.cached(keys.pet("1", "5"), async () => {
    await db.set("pet:5", '"the warmer\'s"', "PX", 900_000);
    return pet;
  });
  assert.equal(await db.get("pet:5"), '"the warmer\'s"');
  assert.ok((await db.pttl("pet:5")) > 800_000);
  assert.equal((await db.keys("preheat:lease:*")).length, 0);
  const { fillsSkipped, refused } = cache.stats().families["pets"] ?? {};
  assert.deepEqual({ fillsSkipped, refused }, { fillsSkipped: 1, refused: 0 });
});
