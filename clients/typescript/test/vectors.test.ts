import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { etagOf } from "../src/etag.js";
import type { ReadResult } from "../src/events.js";
import type { Outcome } from "../src/flights.js";
import { FENCE_TTL, fenceName, fenceStart, leaseName, readsName } from "../src/names.js";
import { cacheStatus } from "../src/respond.js";
import { scripts, upstashScripts } from "../src/scripts.js";
import { RedisServer } from "./support/server.js";

interface Text {
  readonly text: string;
  readonly sha1: string;
}

interface Vectors {
  readonly scripts: Record<"begin" | "fill" | "begin_upstash" | "fill_upstash", Text>;
  readonly limits: {
    readonly fence_lowest_start: number;
    readonly fence_start_bound: number;
    readonly fence_ttl_s: number;
  };
  readonly fence_starts: { readonly cases: { fence: string | null; needs_start: boolean }[] };
  readonly fences: { prefix: string; tenant: string | null; fence: string }[];
  readonly leases: { prefix: string; key: string; lease: string }[];
  readonly reads: { readonly names: { prefix: string; name: string }[] };
  readonly cache_status: {
    result: ReadResult;
    stored: boolean;
    detail: string | null;
    text: string;
  }[];
  readonly etags: { readonly cases: { body: string; etag: string }[] };
  readonly json: { readonly cases: { name: string; value: unknown; text: string }[] };
}

// Compiled tests lie in build/test.
const file = new URL("../../../vectors.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8")) as Vectors;

test("the scripts are those of every client, and their SHA-1 is right", () => {
  const expected = vectors.scripts;
  assert.deepEqual(scripts, { begin: expected.begin, fill: expected.fill });
  assert.deepEqual(upstashScripts, { begin: expected.begin_upstash, fill: expected.fill_upstash });
  for (const { text, sha1 } of [...Object.values(scripts), ...Object.values(upstashScripts)]) {
    assert.equal(createHash("sha1").update(text).digest("hex"), sha1);
  }
});

test("names in Redis are those of every client", () => {
  for (const { prefix, tenant, fence } of vectors.fences)
    assert.equal(fenceName(prefix, tenant), fence);
  for (const { prefix, key, lease } of vectors.leases) assert.equal(leaseName(prefix, key), lease);
  for (const { prefix, name } of vectors.reads.names) assert.equal(readsName(prefix), name);
});

test("a fence starts within the bounds", () => {
  const { fence_lowest_start, fence_start_bound, fence_ttl_s } = vectors.limits;
  assert.equal(FENCE_TTL, fence_ttl_s * 1000);
  const starts = Array.from({ length: 10_000 }, () => Number(fenceStart()));
  for (const start of starts) {
    assert.ok(
      Number.isSafeInteger(start) && start >= fence_lowest_start && start < fence_start_bound,
    );
  }
  assert.equal(new Set(starts).size, starts.length);
});

test("`begin` starts a fence that needs it, and no other", async (t) => {
  const server = await RedisServer.start();
  t.after(() => server.stop());
  const start = String(vectors.limits.fence_lowest_start + 5);
  for (const [i, { fence, needs_start }] of vectors.fence_starts.cases.entries()) {
    const names = [`key${i}`, `fence${i}`, `lease${i}`];
    if (fence !== null) await server.send("SET", `fence${i}`, fence);
    const reply = await server.send(
      "EVAL",
      scripts.begin.text,
      "3",
      ...names,
      start,
      "token",
      "5000",
    );
    assert.equal(reply.includes(`\r\n${start}\r\n`), needs_start, `${fence}: ${reply}`);
  }
});

test("Cache-Status is written as by every client", () => {
  const fills: Record<string, Partial<Outcome>> = {
    refused: { fill: "refused" },
    too_large: { fill: "skipped", tooLarge: true },
  };
  for (const { result, stored, detail, text } of vectors.cache_status) {
    // Only the layers of other languages can read without a tenant.
    if (detail === "no_tenant") continue;
    const fill =
      detail === null ? ({ fill: stored ? "written" : "failed" } as const) : fills[detail];
    const outcome = { text: "1", from: "load", ...fill } as Outcome;
    assert.equal(cacheStatus({ text: "1", result, outcome }), text);
  }
});

test("an ETag is the one of every client", () => {
  for (const { body, etag } of vectors.etags.cases) {
    assert.equal(etagOf(new TextEncoder().encode(body)), etag, body);
  }
});

test("values are written as by every client", () => {
  for (const { name, value, text } of vectors.json.cases) {
    assert.equal(JSON.stringify(value), text, name);
    assert.deepEqual(JSON.parse(text), value, name);
  }
});
