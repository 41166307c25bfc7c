import { Redis } from "ioredis";
import { createCache } from "preheat-client";
import { ioredis } from "preheat-client/ioredis";
import { background, building } from "preheat-client/next";

function connect() {
  const redis = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1", {
    maxRetriesPerRequest: 0, // Commands wait for one try to connect, not for twenty.
  });
  redis.on("error", () => {}); // The cache tells of what a read meets.
  return ioredis(redis);
}

export const cache = createCache({
  redis: building() ? null : connect(),
  background,
  timeout: Number(process.env.CACHE_TIMEOUT_MS ?? 200),
});
