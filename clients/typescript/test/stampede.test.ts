import assert from "node:assert/strict";
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fixture } from "./support/fixture.js";

const PROCESSES = 4;
const CALLERS = 250;
const KEYS = 8;

test("1,000 callers over four processes load each key once", async (t) => {
  const { db, server } = await fixture(t);
  const worker = new URL("./support/stampeder.js", import.meta.url);
  const children = Array.from({ length: PROCESSES }, () => fork(worker, [server.socket]));
  t.after(() => children.forEach((child) => child.kill()));
  await Promise.all(children.map((child) => once(child, "message")));
  for (let key = 0; key < KEYS; key += 1) {
    const answers = await Promise.all(children.map((child) => stampede(child, key)));
    assert.deepEqual(
      answers,
      Array.from({ length: PROCESSES }, () => CALLERS),
    );
    assert.equal(await db.get(`test:loads:${key}`), "1", `key ${key}`);
  }
  const left = await db.keys("preheat:lease:*");
  assert.deepEqual(left, []);
});

async function stampede(child: ChildProcess, key: number): Promise<number> {
  child.send({ key, callers: CALLERS });
  const [answered] = (await once(child, "message")) as [number];
  return answered;
}
