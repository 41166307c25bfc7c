//! The two scripts of the protocol: the same bytes in the clients of all languages (`clients/vectors.json`).

/// A script and the SHA-1 of its text, by which Redis knows it.
pub(crate) struct Script {
    pub(crate) text: &'static str,
    pub(crate) sha1: &'static str,
}

/// Looks once more, reads the fence and starts it if it needs that, and takes the lease.
///
/// Keys: key, fence, lease. Arguments: a number to start the fence with, a token, the lease's milliseconds.
/// Answers `{1, value}`, or `{0, fence, 1 if this reader got the lease}`.
pub(crate) const BEGIN: Script = Script {
    text: "\
local value = redis.call('GET', KEYS[1])
if value then return {1, value} end
local fence = redis.call('GET', KEYS[2])
local number = fence and tonumber(fence)
if not number or number < 1099511627776 then
  fence = ARGV[1]
  redis.call('SET', KEYS[2], fence, 'EX', 604800)
end
local leased = redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3])
return {0, fence, leased and 1 or 0}
",
    sha1: "6f5839542d00ddae9f518e3c413e8b0205a11450",
};

/// Writes the value unless the fence has moved or there is one, and gives the lease back.
///
/// Keys: key, fence, lease. Arguments: the fence as `BEGIN` saw it, the value, its TTL in milliseconds, the
/// token. Answers 1 if it wrote the value, 2 if there was one, 0 if the fence had moved.
pub(crate) const FILL: Script = Script {
    text: "\
local answer = 0
if redis.call('GET', KEYS[2]) == ARGV[1] then
  answer = redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 2
end
if redis.call('GET', KEYS[3]) == ARGV[4] then redis.call('DEL', KEYS[3]) end
return answer
",
    sha1: "403c9f4e3945155abed81c5fb6bfd351c0c7900d",
};
