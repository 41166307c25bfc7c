import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Redis } from "ioredis5";

/** Upstash's REST interface before a Redis: `/`, `/pipeline` and `/multi-exec`, answers in base64. */
export class Facade {
  readonly url: string;
  readonly #close: () => Promise<void>;

  private constructor(url: string, close: () => Promise<void>) {
    this.url = url;
    this.#close = close;
  }

  static async start(socket: string): Promise<Facade> {
    const redis = new Redis(socket, { maxRetriesPerRequest: 0, enableOfflineQueue: false });
    redis.on("error", () => {});
    await once(redis, "ready");
    const server = createServer((request, response) => void handle(redis, request, response));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    return new Facade(`http://127.0.0.1:${port}`, async () => {
      redis.disconnect();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });
  }

  close(): Promise<void> {
    return this.#close();
  }
}

type Reply = { result: unknown } | { error: string };

async function handle(redis: Redis, request: IncomingMessage, response: ServerResponse) {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const body = JSON.parse(Buffer.concat(chunks).toString()) as unknown;
  const encode =
    request.headers["upstash-encoding"] === "base64" ? base64 : (value: unknown) => value;
  const path = (request.url ?? "/").replace(/\/$/, "");
  let reply: Reply | Reply[];
  if (path === "/pipeline") {
    reply = await Promise.all((body as unknown[][]).map((command) => call(redis, command, encode)));
  } else if (path === "/multi-exec") {
    reply = await multi(redis, body as unknown[][], encode);
  } else {
    reply = await call(redis, body as unknown[], encode);
  }
  const failed = !Array.isArray(reply) && "error" in reply;
  response.writeHead(failed ? 400 : 200, { "content-type": "application/json" });
  response.end(JSON.stringify(reply));
}

async function call(
  redis: Redis,
  command: unknown[],
  encode: (value: unknown) => unknown,
): Promise<Reply> {
  const [name = "", ...args] = command.map(String);
  // Upstash knows this line; Redis refuses it.
  if (/^eval$/i.test(name)) args[0] = withoutFlags(args[0]);
  if (/^evalsha$/i.test(name)) args[0] = KNOWN_AS.get(args[0] ?? "") ?? (args[0] as string);
  try {
    return { result: encode(await redis.call(name, ...args)) };
  } catch (error) {
    return { error: (error as Error).message };
  }
}

async function multi(
  redis: Redis,
  commands: unknown[][],
  encode: (value: unknown) => unknown,
): Promise<Reply | Reply[]> {
  const replies = await redis.multi(commands.map((command) => command.map(String))).exec();
  return (replies ?? []).map(([error, value]) =>
    error ? { error: error.message } : { result: encode(value) },
  );
}

/** The SHA-1 of a script with Upstash's first line, and the one under which Redis knows it without. */
const KNOWN_AS = new Map<string, string>();

export function knows(upstash: string, redis: string): void {
  KNOWN_AS.set(upstash, redis);
}

function withoutFlags(script = ""): string {
  if (!script.startsWith("#!lua flags=allow-key-locking\n")) throw new Error("no flags");
  return script.slice(script.indexOf("\n") + 1);
}

/** Every text at every depth, but for `OK`. */
function base64(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(base64);
  if (typeof value !== "string" || value === "OK") return value;
  return Buffer.from(value).toString("base64");
}
