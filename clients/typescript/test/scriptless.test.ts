/** Where scripts may not or cannot be used. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { test } from "node:test";
import { Cluster as Cluster5 } from "ioredis5";
import { createCluster as createCluster5 } from "redis5";
import { createCluster as createCluster6 } from "redis6";
import { ioredis } from "../src/ioredis.js";
import { redis } from "../src/redis.js";
import { clients, type Open } from "./support/clients.js";
import { FENCE, type Fixture, fixture } from "./support/fixture.js";
import { keys, service } from "./support/keys.js";
import { sendRaw, until } from "./support/server.js";

const WITHOUT_SCRIPTS = "on >secret ~* &* +@all -@scripting";

/** The brief form, whatever led to it. */
async function fillsBriefly({ cache, another, db }: Fixture): Promise<void> {
  // A missing fence is started; a small one is no obstacle.
  assert.deepEqual(await cache.cached(keys.services("1"), () => [service]), [service]);
  assert.ok(Number(await db.get("preheat:fence:1")) >= 2 ** 40);
  await db.set("preheat:fence:2", "3");
  await cache.cached(keys.services("2"), () => [service]);
  for (const key of ["services:1", "services:2"]) {
    const ttl = await db.pttl(key);
    assert.ok(ttl > 5000 && ttl <= 10_000, `${key}: ${ttl}`);
  }
  assert.deepEqual(await cache.cached(keys.services("2"), () => assert.fail("loaded")), [service]);

  // A fence that moves during the load: the value is removed.
  await db.set("preheat:fence:3", FENCE);
  await cache.cached(keys.services("3"), async () => {
    await db.incr("preheat:fence:3");
    return [service];
  });
  assert.equal(await db.exists("services:3"), 0);
  assert.equal(cache.stats().families["services"]?.refused, 1);

  // Never over a value that is there.
  await cache.cached(keys.services("4"), async () => {
    await db.set("services:4", "[]", "PX", 100_000);
    return [service];
  });
  assert.equal(await db.get("services:4"), "[]");
  assert.ok((await db.pttl("services:4")) > 50_000);

  // One load over two processes.
  const second = await another();
  let loads = 0;
  const load = async () => {
    loads += 1;
    await new Promise((resolve) => setTimeout(resolve, 60));
    return [service];
  };
  await Promise.all([cache, second, cache].map((one) => one.cached(keys.services("5"), load)));
  assert.equal(loads, 1);

  const many = await cache.many([keys.slots("1", "a"), keys.slots("1", "b")], () => [["a"], ["b"]]);
  assert.deepEqual(many, [["a"], ["b"]]);
  assert.deepEqual(await db.keys("preheat:lease:*"), []);

  await db.set("preheat:fence:1", FENCE);
  assert.equal(
    await cache.invalidate(keys.services("1"), keys.slots("1", "a"), keys.slots("1", "b")),
    3,
  );
  assert.equal(await db.get("preheat:fence:1"), String(FENCE + 1));
  await cache.flush();
  assert.equal(await db.hget("preheat:reads", "slots:miss"), "2");
}

for (const name of ["ioredis 5", "ioredis 6", "redis 5", "redis 6"]) {
  test(`${name}: without the right to scripts`, async (t) => {
    const open: Open = async (socket) => {
      await sendRaw(socket, ["ACL", "SETUSER", "app", ...WITHOUT_SCRIPTS.split(" ")]);
      return (clients[name] as Open)(socket, { username: "app", password: "secret" });
    };
    const made = await fixture(t, { open });
    await fillsBriefly(made);
    // Each of two caches noticed it once.
    const operations = made.errors.map(([operation]) => operation);
    assert.equal(operations.filter((operation) => operation === "scripts").length, 2);
  });
}

const clusters: Record<string, (port: number) => ReturnType<Open>> = {
  "ioredis 5": async (port) => {
    const client = new Cluster5([{ host: "127.0.0.1", port }]);
    client.on("error", () => {});
    return { redis: ioredis(client), close: () => client.disconnect() };
  },
  "redis 5": async (port) => {
    const client = createCluster5({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] });
    client.on("error", () => {});
    await client.connect();
    return { redis: redis(client), close: () => client.destroy() };
  },
  "redis 6": async (port) => {
    const client = createCluster6({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] });
    client.on("error", () => {});
    await client.connect();
    return { redis: redis(client), close: () => client.destroy() };
  },
};

for (const [name, openCluster] of Object.entries(clusters)) {
  test(`${name}: a cluster, known as one`, async (t) => {
    const port = await freePort();
    const announced = ["--cluster-announce-ip", "127.0.0.1"];
    const server = ["--port", String(port), "--cluster-enabled", "yes", ...announced];
    const ready = { count: 0 };
    const open: Open = async (socket) => {
      if (ready.count === 0) await allSlots(socket);
      ready.count += 1;
      return openCluster(port);
    };
    const made = await fixture(t, { open, server });
    await fillsBriefly(made);
    assert.deepEqual(made.errors, []);
  });
}

test("a cluster that a client takes for one server is noticed", async (t) => {
  const server = ["--cluster-enabled", "yes"];
  const open: Open = async (socket) => {
    await allSlots(socket);
    return (clients["ioredis 5"] as Open)(socket);
  };
  const { cache, db, errors } = await fixture(t, { open, server });
  await cache.cached(keys.services("1"), () => [service]);
  assert.ok((await db.pttl("services:1")) <= 10_000);
  const days = [keys.slots("1", "a"), keys.slots("1", "b")];
  await cache.many(days, () => [["a"], ["b"]]);
  assert.deepEqual(await cache.many(days, () => assert.fail("loaded again")), [["a"], ["b"]]);
  assert.equal(await cache.invalidate(keys.services("1")), 1);
  assert.deepEqual(
    errors.map(([operation]) => operation),
    ["begin", "scripts", "read", "invalidate"],
  );
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** One node that has every slot. */
async function allSlots(socket: string): Promise<void> {
  const slots = Array.from({ length: 16_384 }, (_, slot) => String(slot));
  await sendRaw(socket, ["CLUSTER", "ADDSLOTS", ...slots]);
  await until(async () =>
    (await sendRaw(socket, ["CLUSTER", "INFO"])).includes("cluster_state:ok"),
  );
}

test("the rights that the README names are enough", async (t) => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const rights = /needs `((?:\+\w+ ?)+)`/.exec(readme)?.[1]?.split(" ") ?? [];
  assert.ok(rights.length > 5);
  const open: Open = async (socket) => {
    await sendRaw(socket, ["ACL", "SETUSER", "app", "on", ">secret", "~*", ...rights]);
    return (clients["redis 6"] as Open)(socket, { username: "app", password: "secret" });
  };
  const { cache, db, errors } = await fixture(t, { open });
  const days = [keys.slots("1", "a"), keys.slots("1", "b")];
  await cache.many(days, () => [["a"], ["b"]]);
  await cache.cached("x", () => 1);
  await cache.cached("x", () => assert.fail("loaded again"));
  assert.ok((await db.pttl("slots:1:a")) > 100_000);
  assert.equal(await cache.invalidate(days), 2);
  await cache.flush();
  assert.deepEqual(errors, []);
});
