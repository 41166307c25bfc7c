/** A process of the stampede: at each message so many callers want one key. */
import { Redis } from "ioredis5";
import { createCache } from "../../src/index.js";
import { ioredis } from "../../src/ioredis.js";
import { PATIENT } from "./fixture.js";
import { keys } from "./keys.js";

const client = new Redis(process.argv[2] as string);
client.on("error", () => {}); // The server goes before this process does.
const cache = createCache({ redis: ioredis(client), timeout: PATIENT });

process.on("message", async ({ key, callers }: { key: number; callers: number }) => {
  const load = async () => {
    await client.incr(`test:loads:${key}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
    return [String(key)];
  };
  const reads = Array.from({ length: callers }, () =>
    cache.cached(keys.slots("1", String(key)), load),
  );
  const values = await Promise.all(reads);
  process.send?.(values.filter(([value]) => value === String(key)).length);
});

await client.ping();
process.send?.("ready");
