import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const source = new URL("../../src/", import.meta.url);
const files = readdirSync(source).filter((name) => name.endsWith(".ts"));

test("the package imports nothing but itself, and `./next` Next.js", () => {
  for (const name of files) {
    const text = readFileSync(new URL(name, source), "utf8");
    const imports = [
      ...text.matchAll(/(?:^(?:import|export)\b[^;]*?\bfrom |import\()"([^"]+)"/gm),
    ].map(([, from]) => from);
    const foreign = imports.filter((from) => !from?.startsWith("./"));
    // It runs in Node, Bun, Deno, Workers and at the edge: no `node:` either.
    assert.deepEqual(foreign, name === "next.ts" ? ["next/cache.js", "next/server.js"] : [], name);
  }
});

test("files are short", () => {
  for (const name of files) {
    const lines = readFileSync(new URL(name, source), "utf8").split("\n").length - 1;
    assert.ok(lines <= 300, `${name} has ${lines} lines`);
  }
});

test("the lock file names no registry, and every version is exact", () => {
  const root = new URL("../../", import.meta.url);
  const lock = readFileSync(new URL("package-lock.json", root), "utf8");
  assert.ok(!lock.includes('"resolved"'));
  const { devDependencies } = JSON.parse(readFileSync(new URL("package.json", root), "utf8")) as {
    devDependencies: Record<string, string>;
  };
  for (const [name, version] of Object.entries(devDependencies)) {
    assert.match(version, /^(npm:[a-z]+@)?\d+\.\d+\.\d+$/, name);
  }
});
