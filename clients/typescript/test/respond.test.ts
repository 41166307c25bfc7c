import assert from "node:assert/strict";
import { test } from "node:test";
import { fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { gate, until } from "./support/server.js";

const request = (headers: Record<string, string> = {}, method = "GET") =>
  new Request("http://app/services", { method, headers });

test("a response has the text as it is in Redis", async (t) => {
  const { cache, db } = await fixture(t);
  const text = '[{"id":9007199254740993,  "name":"Zürich"}]';
  await db.set("services:1", text);
  const response = await cache.respond(request(), keys.services("1"), () => assert.fail("loaded"));
  assert.equal(response.status, 200);
  assert.equal(await response.text(), text);
  assert.equal(response.headers.get("content-type"), "application/json");
  assert.equal(response.headers.get("content-length"), String(Buffer.byteLength(text)));
  assert.equal(response.headers.get("cache-control"), "private, no-cache");
  assert.equal(response.headers.get("cache-status"), "preheat; hit");
});

test("a miss and a hit have the same body and ETag", async (t) => {
  const { cache } = await fixture(t);
  const miss = await cache.respond(request(), keys.services("1"), () => [service]);
  const hit = await cache.respond(request(), keys.services("1"), () => [service]);
  assert.equal(miss.headers.get("cache-status"), "preheat; fwd=miss; stored");
  assert.equal(hit.headers.get("cache-status"), "preheat; hit");
  assert.equal(miss.headers.get("etag"), hit.headers.get("etag"));
  assert.match(hit.headers.get("etag") ?? "", /^"[0-9a-f]{32}"$/);
  assert.equal(await miss.text(), await hit.text());
});

test("304 where the client has it", async (t) => {
  const { cache } = await fixture(t);
  const get = (headers: Record<string, string>, method?: string) =>
    cache.respond(request(headers, method), keys.services("1"), () => [service]);
  const etag = (await get({})).headers.get("etag") ?? "";
  for (const known of [etag, `W/${etag}`, `"other", ${etag}`, "*"]) {
    const response = await get({ "if-none-match": known });
    assert.equal(response.status, 304, known);
    assert.equal(await response.text(), "");
    assert.equal(response.headers.get("etag"), etag);
    assert.equal(response.headers.get("cache-status"), "preheat; hit");
    assert.equal(response.headers.get("content-type"), null);
  }
  assert.equal((await get({ "if-none-match": '"other"' })).status, 200);
  const head = await get({}, "HEAD");
  assert.equal(await head.text(), "");
  assert.equal(head.headers.get("etag"), etag);
});

test("Cache-Status says how the read went", async (t) => {
  const { cache, db, server } = await fixture(t, { cache: { maxBytes: 100, timeout: 1000 } });
  const status = async (
    key: ReturnType<typeof keys.slots>,
    load: () => Promise<string[]> | string[],
  ) => (await cache.respond(request(), key, load)).headers.get("cache-status");
  const big = await status(keys.slots("1", "big"), () => ["x".repeat(100)]);
  assert.equal(big, "preheat; fwd=miss; detail=too_large");
  const refused = await status(keys.slots("1", "refused"), async () => {
    await db.incr("preheat:fence:1");
    return [];
  });
  assert.equal(refused, "preheat; fwd=miss; detail=refused");

  const loading = gate<string[]>();
  const first = status(keys.slots("1", "shared"), () => loading.opened);
  await until(async () => (await db.keys("preheat:lease:*")).length === 1);
  const second = status(keys.slots("1", "shared"), () => assert.fail("loaded twice"));
  loading.open([]);
  assert.deepEqual(await Promise.all([first, second]), [
    "preheat; fwd=miss; stored",
    "preheat; fwd=miss; collapsed",
  ]);

  const report = await cache.respond(request(), keys.report("1"), () => 7);
  assert.equal(report.headers.get("cache-status"), "preheat; fwd=miss");
  await server.kill();
  assert.equal(await status(keys.slots("1", "x"), () => []), "preheat; fwd=bypass");
});

test("nothing is 404, and an error is the caller's", async (t) => {
  const { cache, db } = await fixture(t);
  for (const nothing of [null, undefined]) {
    const response = await cache.respond(request(), keys.report("1"), () => nothing);
    assert.deepEqual([response.status, await response.text()], [404, ""]);
    assert.equal(response.headers.get("cache-status"), "preheat; fwd=miss");
    assert.equal(response.headers.get("etag"), null);
  }
  await db.set("report:1", "null"); // as preheat writes an object without a row
  const written = await cache.respond(request(), keys.report("1"), () => assert.fail("loaded"));
  assert.equal(written.status, 404);
  const failure = new Error("the database said no");
  await assert.rejects(
    cache.respond(request(), keys.report("2"), () => Promise.reject(failure)),
    failure,
  );
});

test("a key that tenants share is answered after a check only", async (t) => {
  const { cache, db } = await fixture(t);
  const pet = { id: "5", tenant_id: "2", name: "Minka" };
  const text = JSON.stringify(pet);
  const of = (tenant: string, load: () => typeof pet | null = () => assert.fail("loaded")) =>
    cache.respond(request(), keys.pet(tenant, "5"), load, {
      check: ({ tenant_id }) => tenant_id === tenant,
    });
  await db.set("pet:5", text);
  const theirs = await of("1");
  assert.deepEqual([theirs.status, await theirs.text()], [404, ""]);
  assert.equal(theirs.headers.get("etag"), null);
  assert.equal(await (await of("2")).text(), text);
  await db.del("pet:5");
  assert.equal((await of("1", () => null)).status, 404);
  assert.equal(await (await of("2", () => pet)).text(), text);
  await db.set("pet:5", "[{");
  assert.equal(await (await of("2", () => pet)).text(), text, "what is no JSON counts for nothing");

  const unchecked = keys.pet("1", "5") as unknown as ReturnType<typeof keys.report>;
  await assert.rejects(
    cache.respond(request(), unchecked, () => assert.fail("loaded")),
    /`pet:5` may be another tenant's/,
  );
});
