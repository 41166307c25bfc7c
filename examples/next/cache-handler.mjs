import { Redis } from "ioredis";
import { ioredis } from "preheat-client/ioredis";
import { fenceHandler } from "preheat-client/next";

// `lazyConnect`: Next loads this file while it builds, too.
const redis = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1", {
  lazyConnect: true,
  maxRetriesPerRequest: 0,
});
redis.on("error", () => {}); // The handler tells of what a render meets.

export default fenceHandler({
  redis: ioredis(redis),
  timeout: Number(process.env.CACHE_TIMEOUT_MS ?? 200),
});
