import assert from "node:assert/strict";
import { test } from "node:test";
import { Absent } from "../src/absent.js";
import { ByKey } from "../src/by-key.js";

const target = (name: string, tenant: string | null = "1") => ({ name, key: { tenant } });

test("a missing row is remembered for a second, and for a thousand keys", () => {
  const absent = new Absent();
  for (let i = 0; i < 1500; i += 1) absent.add(target(`key${i}`), 0);
  const held = Array.from({ length: 1500 }, (_, i) => absent.has(target(`key${i}`), 999));
  assert.equal(held.indexOf(true), 500);
  assert.ok(held.slice(500).every(Boolean));
  assert.ok(!absent.has(target("key1499"), 1000));
});

test("what is held for a key goes for every tenant, and for a tenant for every key", () => {
  const held = new ByKey<number>();
  held.set(target("a"), 1);
  held.set(target("a", "2"), 2);
  held.set(target("b"), 3);
  held.set(target("b"), 4);
  assert.equal(held.size, 3);
  assert.deepEqual(held.takeTenant("1"), [1, 4]);
  assert.equal(held.get(target("a", "2")), 2);
  assert.deepEqual(held.takeKey("a"), [2]);
  assert.deepEqual(held.takeKey("a"), []);
  held.delete(target("b"));
  assert.equal(held.size, 0);
});
