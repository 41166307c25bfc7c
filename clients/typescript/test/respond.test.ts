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

test("nothing is `null`, and an error is the caller's", async (t) => {
  const { cache } = await fixture(t);
  const nothing = await cache.respond(request(), keys.report("1"), () => null as unknown as number);
  assert.deepEqual([nothing.status, await nothing.text()], [200, "null"]);
  const failure = new Error("the database said no");
  await assert.rejects(
    cache.respond(request(), keys.report("1"), () => Promise.reject(failure)),
    failure,
  );
});
