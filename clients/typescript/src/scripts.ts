/** A script and its SHA-1, under which a server that has seen the script finds it. */
export interface Script {
  readonly text: string;
  readonly sha1: string;
}

/** The two scripts of the protocol. */
export type ScriptName = "begin" | "fill";

/**
 * Looks once more for the value; if it is not there, reads the fence (and starts it if it has none, or
 * only a bare `INCR`'s number) and takes the lease if nobody has it.
 *
 * KEYS: key, fence, lease. ARGV: a start for the fence, a token, the lease in milliseconds.
 * Answers `{1, value}`, or `{0, fence, 1 if the lease is ours}`.
 */
const BEGIN = `local value = redis.call('GET', KEYS[1])
if value then return {1, value} end
local fence = redis.call('GET', KEYS[2])
local number = fence and tonumber(fence)
if not number or number < 1099511627776 then
  fence = ARGV[1]
  redis.call('SET', KEYS[2], fence, 'EX', 604800)
end
local leased = redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3])
return {0, fence, leased and 1 or 0}
`;

/**
 * Writes the value if the fence has not moved since `begin` and the key is still missing (a value that
 * the warmer wrote meanwhile is as new, and may live longer), and gives the lease back.
 *
 * KEYS: key, fence, lease. ARGV: the fence seen, the value, its TTL in milliseconds, the token.
 * Answers 1 if the value was written, 2 if the key was there already, 0 if the fence had moved.
 */
const FILL = `local answer = 0
if redis.call('GET', KEYS[2]) == ARGV[1] then
  answer = redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 2
end
if redis.call('GET', KEYS[3]) == ARGV[4] then redis.call('DEL', KEYS[3]) end
return answer
`;

/** Redis and Valkey. */
export const scripts: Record<ScriptName, Script> = {
  begin: { text: BEGIN, sha1: "6f5839542d00ddae9f518e3c413e8b0205a11450" },
  fill: { text: FILL, sha1: "403c9f4e3945155abed81c5fb6bfd351c0c7900d" },
};

/** Without this line Upstash locks the whole database for a script. Redis does not know it. */
const LOCK_KEYS_ONLY = "#!lua flags=allow-key-locking\n";

/** Upstash. */
export const upstashScripts: Record<ScriptName, Script> = {
  begin: { text: LOCK_KEYS_ONLY + BEGIN, sha1: "5502e0b31df8ab7834e69b5170fb59aa60037fb0" },
  fill: { text: LOCK_KEYS_ONLY + FILL, sha1: "7527e5ff89600da71689dc4cd648a930cec8a491" },
};
