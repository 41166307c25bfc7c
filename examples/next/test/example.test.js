import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Redis } from "ioredis";
import {
  build,
  preheat,
  root,
  runPreheat,
  startNext,
  startPostgres,
  startRedis,
  until,
} from "./servers.js";

let postgres, redis, db, app, other, mine, theirs;

before(async () => {
  await build();
  [postgres, redis] = await Promise.all([startPostgres(), startRedis()]);
  [mine, theirs] = postgres.tenants;
  db = new Redis(redis.url);
  const env = { DATABASE_URL: postgres.url, REDIS_URL: redis.url };
  [app, other] = await Promise.all([startNext(env), startNext(env)]);
});

after(async () => {
  db?.disconnect();
  await Promise.all([app, other, redis, postgres].map((server) => server?.stop()));
});

const as = (tenant, headers = {}) => ({ headers: { "x-tenant": tenant, ...headers } });

async function services(tenant, { from = app, headers } = {}) {
  const response = await fetch(`${from.url}/api/services`, as(tenant, headers));
  const text = await response.text();
  return { response, text, status: response.headers.get("cache-status") };
}

async function create(tenant, name) {
  const body = JSON.stringify({ name, duration_minutes: 20, price: "12.50" });
  const response = await fetch(`${app.url}/api/services`, { method: "POST", body, ...as(tenant) });
  assert.equal(response.status, 201);
}

/** The page's services, and which render they come from. */
async function page(tenant, from = app) {
  const html = await (await fetch(`${from.url}/clinic`, as(tenant))).text();
  return { html, rendered: /data-rendered="([^"]+)"/.exec(html)?.[1] };
}

test("a route reads through the cache, for each tenant its own", async () => {
  assert.equal((await services("nobody")).response.status, 401);
  const miss = await services(mine);
  assert.equal(miss.status, "preheat; fwd=miss; stored");
  assert.ok(JSON.parse(miss.text).length > 0);
  const hit = await services(mine, { from: other });
  assert.equal(hit.status, "preheat; hit");
  assert.equal(hit.text, miss.text);
  assert.equal(await db.get(`services:${mine}`), miss.text);
  const headers = { "if-none-match": hit.response.headers.get("etag") };
  assert.equal((await services(mine, { headers })).response.status, 304);
  assert.notEqual((await services(theirs)).text, miss.text);
});

test("what preheat writes is what the route writes", async (t) => {
  const program = preheat();
  if (!program) return t.skip("preheat is not built");
  const loaded = (await services(mine)).text;
  await db.flushall();
  await runPreheat(program, ["warm", "services"], { postgres, redis });
  const warmed = await services(mine);
  assert.equal(warmed.status, "preheat; hit");
  assert.equal(warmed.text, loaded);
});

test("the keys' file is up to date", async (t) => {
  const program = preheat();
  if (!program) return t.skip("preheat is not built");
  const file = join(root, "lib/preheat.gen.ts");
  const command = ["keys", "--lang", "typescript", "--output", file, "--check", "services"];
  await runPreheat(program, command, { postgres, redis });
});

test("a write is seen at once, and costs other tenants nothing", async () => {
  await services(mine);
  await services(theirs);
  await create(mine, "Acupuncture");
  const changed = await services(mine, { from: other });
  assert.equal(changed.status, "preheat; fwd=miss; stored");
  assert.match(changed.text, /Acupuncture/);
  assert.equal((await services(theirs)).status, "preheat; hit");
});

test("a page is rendered once for all instances, until its tenant's fence moves", async () => {
  await page(mine);
  await page(theirs);
  await vouchedFor();
  const [before, beside] = [await page(mine), await page(theirs)];
  assert.match(before.html, /Acupuncture/);
  assert.equal((await page(mine, other)).rendered, before.rendered);
  assert.equal((await page(mine)).rendered, before.rendered);

  await create(mine, "Physiotherapy");
  for (const instance of [other, app]) {
    assert.match((await page(mine, instance)).html, /Physiotherapy/);
    assert.equal((await page(theirs, instance)).rendered, beside.rendered);
  }
  // A change that only preheat saw: it moves the fence and removes the key.
  const { rendered } = await page(mine);
  await db.incr(`preheat:fence:${mine}`);
  assert.notEqual((await page(mine, other)).rendered, rendered);
});

test("pages are rendered anew on request, in every instance", async () => {
  await page(mine);
  await vouchedFor();
  const { rendered } = await page(mine);
  assert.equal((await page(mine, other)).rendered, rendered);
  const response = await fetch(`${app.url}/api/refresh`, { method: "POST", ...as(mine) });
  assert.equal(response.status, 204);
  await until(async () => (await page(mine, other)).rendered !== rendered);
});

test("counts reach preheat after the response", async () => {
  await until(async () => {
    await services(mine);
    return Number(await db.hget("preheat:reads", "services:hit")) > 0;
  });
});

test("without Redis every answer is right", async () => {
  redis.freeze();
  try {
    for (let read = 0; read < 10; read += 1) {
      const { response, text, status } = await services(mine);
      assert.equal(response.status, 200);
      assert.equal(status, "preheat; fwd=bypass");
      assert.match(text, /Acupuncture/);
    }
    assert.match((await page(mine)).html, /Acupuncture/);
    await create(mine, "Osteopathy"); // committed, so its answer is 201
    assert.match((await services(mine)).text, /Osteopathy/);
  } finally {
    redis.thaw();
  }
  await until(async () => (await services(mine)).status === "preheat; hit");
});

/** The first entry of a key serves ten seconds only; here they are over at once. */
async function vouchedFor() {
  for (const name of await db.keys("preheat:next:entry:*")) {
    const stored = JSON.parse(await db.get(name));
    if (stored.until) await db.set(name, JSON.stringify({ ...stored, until: 0 }), "KEEPTTL");
  }
}
