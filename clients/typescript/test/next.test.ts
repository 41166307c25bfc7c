import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { type CacheEntry, fenceHandler, type HandlerOptions } from "../src/next-handler.js";
import { open } from "./support/clients.js";
import { FENCE, type Fixture, fixture, PATIENT } from "./support/fixture.js";
import { keys } from "./support/keys.js";

const TAG = "preheat:fence:42";
const KEY = '["build","function",["42"]]';

test("an entry serves until a fence of its tags moves, in every instance", async (t) => {
  const { handler, db, cache, another } = await instance(t);
  const other = await another();
  await rendered(handler, "1");
  await later(db);
  await rendered(handler, "2");
  assert.equal(await served(handler), "2");
  assert.equal(await served(other), "2");
  await cache.invalidate(keys.services("42"));
  assert.equal(await served(other), undefined);
  assert.equal(await served(handler), undefined);
});

test("the first entry of a key serves ten seconds, the next one as long as it says", async (t) => {
  const { handler, db } = await instance(t);
  await rendered(handler, "1");
  assert.equal(await served(handler), "1");
  await later(db);
  assert.equal(await served(handler), undefined);
  await rendered(handler, "2");
  const stored = JSON.parse((await db.get(`preheat:next:entry:${KEY}`)) ?? "") as object;
  assert.ok(!("until" in stored));
  const ttl = await db.pttl(`preheat:next:entry:${KEY}`);
  assert.ok(ttl > 3_500_000 && ttl <= 3_600_000);
});

test("a fence that moves during a render expires what was rendered", async (t) => {
  const { handler, db } = await instance(t);
  await rendered(handler, "1");
  await later(db);
  assert.equal(await served(handler), undefined);
  await db.incr(TAG);
  await set(handler, "old");
  assert.equal(await served(handler), undefined);
});

test("of two renders at once the fences of the first count", async (t) => {
  const { handler, db } = await instance(t);
  await rendered(handler, "1");
  await later(db);
  assert.equal(await served(handler), undefined);
  await db.incr(TAG);
  assert.equal(await served(handler), undefined);
  await set(handler, "old");
  assert.equal(await served(handler), undefined);
});

test("`revalidateTag` moves the fence, and marks other tags and paths", async (t) => {
  const { handler, db } = await instance(t);
  await handler.updateTags([TAG], { expire: 0 });
  assert.ok(Number(await db.get(TAG)) > 2 ** 40);
  await db.set(TAG, FENCE);
  await handler.updateTags([TAG]);
  assert.equal(await db.get(TAG), String(FENCE + 1));

  await set(handler, "1", { tags: ["posts"], timestamp: Date.now() - 1000 });
  assert.equal(await served(handler, ["_N_T_/page"]), "1");
  await handler.updateTags(["_N_T_/page"], { expire: 0 });
  assert.equal(await served(handler, ["_N_T_/page"]), undefined);
  assert.equal(await served(handler, ["_N_T_/other"]), "1");
  await handler.updateTags(["posts"]);
  assert.equal(await served(handler), undefined);
  assert.equal(await handler.getExpiration([]), Infinity);
});

test("an entry past its revalidation is served, and its render guarded", async (t) => {
  const { handler, db } = await instance(t);
  await set(handler, "1", { timestamp: Date.now() - 5000, revalidate: 1 });
  assert.equal(await served(handler), "1");
  await set(handler, "2");
  assert.ok(
    !("until" in (JSON.parse((await db.get(`preheat:next:entry:${KEY}`)) ?? "") as object)),
  );
});

test("streams of any size come back, up to the limit, and one that breaks off is not kept", async (t) => {
  const { handler, another } = await instance(t);
  const bytes = Buffer.alloc(300_000, "🐈 and more ");
  await set(handler, bytes);
  assert.deepEqual(Buffer.from((await served(handler)) ?? ""), bytes);
  const small = await another({ maxBytes: 10 });
  await small.set("big", Promise.resolve(entry("x".repeat(11))));
  assert.equal(await small.get("big", []), undefined);

  const broken = entry("x");
  broken.value = new ReadableStream({
    start: (controller) => controller.error(new Error("broke")),
  });
  await handler.set("broken", Promise.resolve(broken));
  await handler.set("failed", Promise.reject(new Error("the render failed")));
  assert.equal(await handler.get("broken", []), undefined);
});

test("a read waits for the write of the same entry", async (t) => {
  const { handler } = await instance(t);
  let finish!: (entry: CacheEntry) => void;
  const writes = handler.set(KEY, new Promise((resolve) => (finish = resolve)));
  const reads = served(handler);
  finish(entry("1"));
  assert.equal(await reads, "1");
  await writes;
});

test("without Redis every page is rendered, and none breaks", async (t) => {
  const { handler, server, errors } = await instance(t, { timeout: 30 });
  await server.kill();
  assert.equal(await served(handler), undefined);
  await set(handler, "1");
  await handler.updateTags([TAG]);
  assert.ok(errors.length > 0);
});

test("a build touches no Redis", async (t) => {
  const { handler, db } = await instance(t);
  await set(handler, "1");
  process.env["NEXT_PHASE"] = "phase-production-build";
  t.after(() => delete process.env["NEXT_PHASE"]);
  assert.equal(await served(handler), undefined);
  await db.flushall();
  await set(handler, "2");
  await handler.updateTags([TAG]);
  assert.deepEqual(await db.keys("*"), []);
});

type Handler = ReturnType<typeof fenceHandler>;

interface Instance extends Omit<Fixture, "another"> {
  readonly handler: Handler;
  another(options?: Partial<HandlerOptions>): Promise<Handler>;
}

async function instance(t: TestContext, options: Partial<HandlerOptions> = {}): Promise<Instance> {
  const made = await fixture(t);
  const another = async (extra: Partial<HandlerOptions> = {}) => {
    const { redis, close } = await open(made.server.socket);
    t.after(() => close());
    const onError: HandlerOptions["onError"] = (...error) => void made.errors.push(error);
    return fenceHandler({ redis, timeout: PATIENT, onError, ...options, ...extra });
  };
  return { ...made, handler: await another(), another };
}

function entry(value: string | Buffer, extra: Partial<CacheEntry> = {}): CacheEntry {
  const bytes = new Uint8Array(Buffer.from(value));
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(bytes.subarray(0, 7));
      controller.enqueue(bytes.subarray(7));
      controller.close();
    },
  });
  const times = { stale: 300, timestamp: Date.now(), expire: 3600, revalidate: 900 };
  return { value: stream, tags: [TAG], ...times, ...extra };
}

async function set(handler: Handler, value: string | Buffer, extra?: Partial<CacheEntry>) {
  await handler.set(KEY, Promise.resolve(entry(value, extra)));
}

/** What Next does for a page that it does not have. */
async function rendered(handler: Handler, value: string) {
  assert.equal(await served(handler), undefined);
  await set(handler, value);
}

async function served(handler: Handler, softTags: string[] = []): Promise<string | undefined> {
  const found = await handler.get(KEY, softTags);
  return found && new Response(found.value).text();
}

/** Ten seconds after the first entry was written. */
async function later(db: Fixture["db"]) {
  const name = `preheat:next:entry:${KEY}`;
  const stored = JSON.parse((await db.get(name)) ?? "") as { until: number };
  assert.ok(stored.until > Date.now() && stored.until <= Date.now() + 10_000);
  await db.set(name, JSON.stringify({ ...stored, until: Date.now() }), "KEEPTTL");
}
