import { Redis as Upstash } from "@upstash/redis";
import { Redis as Ioredis5 } from "ioredis5";
import { Redis as Ioredis6 } from "ioredis6";
import { createClient as createClient5 } from "redis5";
import { createClient as createClient6 } from "redis6";
import { ioredis } from "../../src/ioredis.js";
import { redis } from "../../src/redis.js";
import type { RedisLike } from "../../src/redis-like.js";
import { scripts, upstashScripts } from "../../src/scripts.js";
import { upstash } from "../../src/upstash.js";
import { Facade, knows } from "./facade.js";

/** A client of the application's, and how it closes it. */
export interface Opened {
  readonly redis: RedisLike;
  close(): Promise<void> | void;
}

export interface ClientOptions {
  readonly username?: string;
  readonly password?: string;
}

export type Open = (socket: string, options?: ClientOptions) => Promise<Opened>;

const quiet = () => {};

/** Every client and version that the adapters are for. */
export const clients: Record<string, Open> = {
  "ioredis 5": async (socket, options) => {
    const client = new Ioredis5(socket, { ...options, enableOfflineQueue: true });
    client.on("error", quiet);
    return { redis: ioredis(client), close: () => client.disconnect() };
  },
  "ioredis 6": async (socket, options) => {
    const client = new Ioredis6(socket, { ...options });
    client.on("error", quiet);
    return { redis: ioredis(client), close: () => client.disconnect() };
  },
  "redis 5": async (socket, options) => {
    const client = createClient5({ ...options, socket: { path: socket, tls: false } });
    client.on("error", quiet);
    await client.connect();
    return { redis: redis(client), close: () => client.destroy() };
  },
  "redis 6": async (socket, options) => {
    const client = createClient6({ ...options, socket: { path: socket, tls: false } });
    client.on("error", quiet);
    await client.connect();
    return { redis: redis(client), close: () => client.destroy() };
  },
  "@upstash/redis": (socket) => openUpstash(socket, false),
  "@upstash/redis that parses": (socket) => openUpstash(socket, true),
};

/** The client where the kind does not matter. */
export const open = clients["ioredis 5"] as Open;

async function openUpstash(socket: string, automaticDeserialization: boolean): Promise<Opened> {
  knows(upstashScripts.begin.sha1, scripts.begin.sha1);
  knows(upstashScripts.fill.sha1, scripts.fill.sha1);
  const facade = await Facade.start(socket);
  const client = new Upstash({
    url: facade.url,
    token: "token",
    automaticDeserialization,
    enableTelemetry: false,
    retry: false,
  });
  return { redis: upstash(client), close: () => facade.close() };
}
