/** A private Postgres with the sample clinics, a private Redis, and the application before them. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { chown, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import pg from "pg";

const run = promisify(execFile);
export const root = fileURLToPath(new URL("..", import.meta.url));
const repository = join(root, "../..");

/** Waits until something works; gives up after a minute. */
export async function until(works) {
  const end = performance.now() + 60_000;
  for (;;) {
    try {
      const result = await works();
      if (result) return result;
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    if (performance.now() > end) throw new Error(`waited in vain until ${works}`);
    await pause(20);
  }
}

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

async function ended(child) {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}

/** Postgres with three clinics, which refuses to run as root. */
export async function startPostgres() {
  const bin = postgresFolder();
  const user = process.getuid?.() === 0 ? userNamed("postgres", "nobody") : {};
  const folder = await mkdtemp(join(tmpdir(), "preheat-next-pg-"));
  if (user.uid !== undefined) await chown(folder, user.uid, user.gid);
  const data = join(folder, "data");
  const options = { ...user, cwd: folder };
  await run(join(bin, "initdb"), ["-D", data, "-U", "postgres", "-A", "trust", "-N"], options);
  const port = await freePort();
  const settings = ["fsync=off", `unix_socket_directories=${folder}`, "timezone=UTC"];
  const args = ["-D", data, "-p", String(port), ...settings.flatMap((setting) => ["-c", setting])];
  const child = spawn(join(bin, "postgres"), args, { ...options, stdio: "ignore" });
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  const tenants = await until(() => fill(url));
  return {
    url,
    tenants,
    async stop() {
      child.kill("SIGQUIT");
      await ended(child);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function fill(url) {
  const client = new pg.Client({ connectionString: url });
  try {
    await client.connect();
    await client.query("set clinic.tenants = 4; set clinic.active = 1");
    for (const file of ["schema.sql", "data.sql"]) {
      await client.query(readFileSync(join(repository, "demo", file), "utf8"));
    }
    const { rows } = await client.query(
      "select id from tenants where status = 'active' order by created_at",
    );
    return rows.map(({ id }) => id);
  } finally {
    await client.end();
  }
}

export async function startRedis() {
  const folder = await mkdtemp(join(tmpdir(), "preheat-next-redis-"));
  const port = await freePort();
  const program = onPath("redis-server") ?? onPath("valkey-server") ?? "redis-server";
  const args = ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""];
  const child = spawn(program, args, { stdio: "ignore" });
  return {
    url: `redis://127.0.0.1:${port}`,
    freeze: () => child.kill("SIGSTOP"),
    thaw: () => child.kill("SIGCONT"),
    async stop() {
      child.kill("SIGKILL");
      await ended(child);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

const next = join(root, "node_modules/next/dist/bin/next");

/** Builds the application, with nothing to connect to. */
export async function build() {
  const nowhere = await freePort();
  const env = {
    ...process.env,
    NEXT_TELEMETRY_DISABLED: "1",
    DATABASE_URL: `postgres://127.0.0.1:${nowhere}/none`,
    REDIS_URL: `redis://127.0.0.1:${nowhere}`,
  };
  return run(process.execPath, [next, "build"], { cwd: root, env });
}

/**
 * One instance of the application. Its deadline for a command is one that a busy machine keeps: what a test expects
 * of the cache must not depend on how fast this machine is.
 */
export async function startNext(env) {
  const port = await freePort();
  const child = spawn(process.execPath, [next, "start", "-p", String(port), "-H", "127.0.0.1"], {
    cwd: root,
    env: { ...process.env, NEXT_TELEMETRY_DISABLED: "1", CACHE_TIMEOUT_MS: "2000", ...env },
    stdio: ["ignore", "ignore", "inherit"],
  });
  const url = `http://127.0.0.1:${port}`;
  await until(async () => (await fetch(`${url}/api/services`)).status === 401);
  return {
    url,
    async stop() {
      child.kill("SIGKILL");
      await ended(child);
    },
  };
}

/** preheat itself, where it is built. */
export function preheat() {
  const target = process.env.CARGO_TARGET_DIR ?? join(repository, "target");
  return [join(target, "release/preheat"), join(target, "debug/preheat")].find(existsSync);
}

/** Runs it with the repository's job files and no setting of the caller's environment; fails if it does. */
export async function runPreheat(program, command, { postgres, redis }) {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("PREHEAT_"));
  const env = { ...Object.fromEntries(inherited), DATABASE_URL: postgres.url, REDIS_URL: redis.url };
  await run(program, command, { cwd: repository, env });
}

function onPath(program) {
  const folders = (process.env.PATH ?? "").split(delimiter);
  return folders.map((folder) => join(folder, program)).find((path) => existsSync(path));
}

function postgresFolder() {
  const initdb = onPath("initdb");
  if (initdb) return join(initdb, "..");
  const versions = "/usr/lib/postgresql";
  const newest = readdirSync(versions).sort((a, b) => Number(b) - Number(a))[0];
  return join(versions, newest, "bin");
}

function userNamed(...names) {
  const users = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .map((line) => line.split(":"));
  const user = names.map((name) => users.find(([found]) => found === name)).find(Boolean);
  return { uid: Number(user[2]), gid: Number(user[3]) };
}
