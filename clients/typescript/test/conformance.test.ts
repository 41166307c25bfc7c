/** The same cases for every client and version. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { clients } from "./support/clients.js";
import { FENCE, fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { until } from "./support/server.js";

for (const [name, open] of Object.entries(clients)) {
  describe(name, () => {
    test("a miss fills the key, and a hit gives the same value", async (t) => {
      const { cache, db, errors } = await fixture(t, { open });
      const row = { ...service, updated_at: new Date(service.updated_at), extra: undefined };
      const missed = await cache.cached(keys.services("42"), async () => [row]);
      const hit = await cache.cached(keys.services("42"), () => assert.fail("loaded again"));
      assert.deepEqual(missed, [service]);
      assert.deepEqual(hit, missed);
      assert.equal(await db.get("services:42"), JSON.stringify([service]));
      const ttl = await db.pttl("services:42");
      assert.ok(ttl > 3_590_000 && ttl <= 3_600_000, String(ttl));
      assert.deepEqual((await db.keys("*")).sort(), ["preheat:fence:42", "services:42"]);
      assert.ok(Number(await db.get("preheat:fence:42")) >= 2 ** 40);
      assert.deepEqual(errors, []);
    });

    test("a fence that moves during the load refuses the fill", async (t) => {
      const { cache, db, errors } = await fixture(t, { open });
      await db.set("preheat:fence:42", FENCE);
      const value = await cache.cached(keys.services("42"), async () => {
        await db.incr("preheat:fence:42");
        return [service];
      });
      assert.deepEqual(value, [service]);
      assert.deepEqual(await db.keys("*"), ["preheat:fence:42"]);
      assert.equal(cache.stats().families["services"]?.refused, 1);
      assert.deepEqual(errors, []);
    });

    test("every kind of JSON comes back as it went", async (t) => {
      const { cache } = await fixture(t, { open });
      const values = [
        0,
        "",
        false,
        "text",
        '"quoted"',
        "12.50",
        1e21,
        [],
        {},
        [null, ["🐈"]],
        { a: [1] },
      ];
      for (const [i, value] of values.entries()) {
        await cache.cached(`key${i}`, () => value, { tenant: "1" });
        const hit = await cache.cached(`key${i}`, () => assert.fail("loaded again"));
        assert.deepEqual(hit, value);
      }
    });

    test("several keys are read by one command", async (t) => {
      const { cache, server } = await fixture(t, { open });
      const week = ["2026-03-28", "2026-03-29", "2026-03-30"].map((day) => keys.slots("1", day));
      await cache.cached(week[1] as (typeof week)[number], () => ["warm"]);
      const load = (missing: typeof week) => missing.map(({ key }) => [key]);
      const expected = [["slots:1:2026-03-28"], ["warm"], ["slots:1:2026-03-30"]];
      assert.deepEqual(await cache.many(week, load), expected);
      await server.resetCalls();
      assert.deepEqual(await cache.many(week, () => assert.fail("loaded again")), expected);
      assert.deepEqual(await server.calls(), { mget: 1 });
    });

    test("an invalidation moves the fence and removes the keys", async (t) => {
      const { cache, db, errors } = await fixture(t, { open });
      await db.set("preheat:fence:42", FENCE);
      await cache.cached(keys.services("42"), () => [service]);
      const removed = await cache.invalidate(keys.services("42"), keys.slots("42", "2026-03-29"));
      assert.equal(removed, 1);
      assert.equal(await db.get("services:42"), null);
      assert.equal(await db.get("preheat:fence:42"), String(FENCE + 1));
      await cache.invalidateTenant("42");
      assert.equal(await db.get("preheat:fence:42"), String(FENCE + 2));
      assert.deepEqual(errors, []);
    });

    test("an invalidation starts a missing fence", async (t) => {
      const { cache, db } = await fixture(t, { open });
      await cache.invalidate(keys.services("42"));
      assert.ok(Number(await db.get("preheat:fence:42")) > 2 ** 40);
      const ttl = await db.ttl("preheat:fence:42");
      assert.ok(ttl > 604_700 && ttl <= 604_800, String(ttl));
    });

    test("counts reach the hash that preheat reads", async (t) => {
      const { cache, db, errors } = await fixture(t, { open });
      await cache.cached(keys.services("42"), () => [service]);
      await cache.cached(keys.services("42"), () => [service]);
      await cache.cached(keys.services("42"), () => [service]);
      await cache.flush();
      await cache.cached(keys.services("42"), () => [service]);
      await cache.close();
      const expected = { "services:miss": "1", "services:hit": "3" };
      assert.deepEqual(await db.hgetall("preheat:reads"), expected);
      const ttl = await db.ttl("preheat:reads");
      assert.ok(ttl > 86_000 && ttl <= 86_400, String(ttl));
      assert.deepEqual(errors, []);
    });

    test("a server that forgot the scripts is told them again", async (t) => {
      const { cache, db, server, errors } = await fixture(t, { open });
      await cache.cached(keys.services("1"), () => [service]);
      await server.send("SCRIPT", "FLUSH");
      await cache.cached(keys.services("2"), () => [service]);
      assert.notEqual(await db.get("services:2"), null);
      assert.deepEqual(errors, []);
    });

    test("no read fails while Redis is gone, and it is used again once it is back", async (t) => {
      const { cache, server } = await fixture(t, { open, cache: { timeout: 150 } });
      await server.kill();
      for (let read = 0; read < 8; read += 1) {
        assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
      }
      assert.equal(cache.stats().families["services"]?.bypass, 8);
      assert.ok(cache.stats().breakerOpen);
      await server.up();
      await until(async () => {
        await cache.cached(keys.services("1"), () => [service]);
        return (cache.stats().families["services"]?.hit ?? 0) > 0;
      });
      assert.ok(!cache.stats().breakerOpen);
    });
  });
}
