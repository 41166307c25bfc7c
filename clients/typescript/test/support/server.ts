import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const PROGRAMS = ["redis-server", "valkey-server"];
const PROGRAM = PROGRAMS.find(isOnPath) ?? "redis-server";

function isOnPath(program: string): boolean {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  return folders.some((folder) => existsSync(join(folder, program)));
}

/** A private Redis on a Unix socket in a folder of its own. */
export class RedisServer {
  readonly socket: string;
  readonly #folder: string;
  readonly #args: readonly string[];
  #process: ChildProcess | undefined;

  private constructor(folder: string, args: readonly string[]) {
    this.#folder = folder;
    this.socket = join(folder, "redis.sock");
    this.#args = args;
  }

  static async start(...args: string[]): Promise<RedisServer> {
    const server = new RedisServer(await mkdtemp(join(tmpdir(), "preheat-client-")), args);
    await server.up();
    return server;
  }

  /** Starts it, or starts it again, empty. */
  async up(): Promise<void> {
    const settings = ["--unixsocket", this.socket, "--dir", this.#folder, "--save", ""];
    this.#process = spawn(PROGRAM, ["--port", "0", ...settings, ...this.#args], {
      stdio: "ignore",
    });
    const failed = once(this.#process, "exit").then(() => {
      throw new Error(`${PROGRAM} ended`);
    });
    failed.catch(() => {});
    await Promise.race([until(() => this.#answers()), failed]);
  }

  /** Sends a command over a connection of its own; gives the raw reply. */
  send(...command: string[]): Promise<string> {
    return sendRaw(this.socket, command);
  }

  /** It no longer answers, but its connections stay. */
  freeze(): void {
    this.#process?.kill("SIGSTOP");
  }

  thaw(): void {
    this.#process?.kill("SIGCONT");
  }

  async kill(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  async stop(): Promise<void> {
    await this.kill();
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** How often each command was called since the last reset. */
  async calls(): Promise<Record<string, number>> {
    const lines = (await this.send("INFO", "commandstats")).matchAll(/cmdstat_(\S+?):calls=(\d+)/g);
    const calls = [...lines].map(([, name = "", count]) => [name, Number(count)] as const);
    return Object.fromEntries(
      calls.filter(([name]) => !/^(info|config|ping|quit|client|hello)/.test(name)),
    );
  }

  async resetCalls(): Promise<void> {
    await this.send("CONFIG", "RESETSTAT");
  }

  async #answers(): Promise<boolean> {
    try {
      return (await this.send("PING")).includes("PONG");
    } catch {
      return false;
    }
  }
}

/** One command over a socket; the reply as it came. */
export function sendRaw(socket: string, command: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const stream = connect(socket);
    const parts = command.map((part) => `$${Buffer.byteLength(part)}\r\n${part}\r\n`);
    let reply = "";
    stream.on("error", reject);
    stream.on("data", (chunk) => {
      reply += chunk.toString();
    });
    stream.on("close", () => resolve(reply));
    const quit = "*1\r\n$4\r\nQUIT\r\n";
    stream.write(`*${command.length}\r\n${parts.join("")}${quit}`);
  });
}

/** Waits until a state is reached; gives up after ten seconds. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 10_000;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`waited in vain until ${holds}`);
    await pause(2);
  }
}

/** A promise, and the means to settle it. */
export function gate<T = void>(): {
  readonly opened: Promise<T>;
  open(value: T): void;
  fail(error: unknown): void;
} {
  let open!: (value: T) => void;
  let fail!: (error: unknown) => void;
  const opened = new Promise<T>((resolve, reject) => {
    open = resolve;
    fail = reject;
  });
  opened.catch(() => {});
  return { opened, open, fail };
}
