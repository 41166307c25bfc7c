//! The leases of a fleet in Redis: a hash of members and a hash of leases, both under one hash tag, and two scripts over
//! them.
//!
//! The scripts are sent as they are: they are short, and so nothing is lost when the server forgets them.

use std::time::Duration;

use futures::future::BoxFuture;
use redis::{Cmd, Value};

use super::server::Role;
use super::{RELAY_RIGHTS, RedisCache, reply};
use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::domain::fleet::{Beat, LEASE, Lease, Member, Release, Standing, View};
use crate::domain::member::MemberId;
use crate::domain::share::Share;
use crate::engine::ports::{CacheError, CacheErrorKind, LEASES_KEY, Leases, MEMBERS_KEY};

/// What a Redis user of a fleet needs besides [`RIGHTS`](super::RIGHTS).
pub const FLEET_RIGHTS: &str = "+eval +time";

/// A member is `since:beat at:number of the beat:connections:standing`, a lease is `end:holder`; times are in milliseconds.
/// `KEYS`: members, leases. `ARGV`: id, number, standing, wanted connections, connections of all (0 is no bound),
/// length of a lease, claimed shares.
const BEAT: &str = r"
if redis.replicate_commands then redis.replicate_commands() end
local id, number, standing = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local wanted, of, length = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local whole = function(n) return string.format('%.0f', n) end

local members, used, since, own = {}, 0, now, 0
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  local name, began, beat, last, connections, does =
    found[i], string.match(found[i + 1], '^(%d+):(%d+):(%d+):(%d+):(%a+)')
  if began then
    began, beat, last, connections =
      tonumber(began), math.min(tonumber(beat), now), tonumber(last), tonumber(connections)
  end
  if name == id and began and last > number then return false end
  if not began or now - beat >= length then
    redis.call('HDEL', KEYS[1], name)
  elseif name == id then
    since, own = math.min(began, now), connections
  else
    used = used + connections
    local text = string.match(found[i + 1], '^%d+:(.*)$')
    if string.match(text, '^%d+') ~= whole(beat) then
      redis.call('HSET', KEYS[1], name, whole(began) .. ':' .. whole(beat) .. string.match(text, '^%d+(:.*)$'))
    end
    for _, field in ipairs({name, does, math.max(0, now - began), now - beat, connections}) do
      members[#members + 1] = field
    end
  end
end
local granted = 0
if of > 0 then
  granted = wanted <= own and wanted or math.max(own, math.min(wanted, of - used))
end
redis.call('HSET', KEYS[1], id,
  whole(since) .. ':' .. whole(now) .. ':' .. whole(number) .. ':' .. whole(granted) .. ':' .. standing)
for _, field in ipairs({id, standing, now - since, 0, granted}) do members[#members + 1] = field end

local ends, by = {}, {}
found = redis.call('HGETALL', KEYS[2])
for i = 1, #found, 2 do
  local share, at, holder = found[i], string.match(found[i + 1], '^(%d+):(%w*)')
  if at then ends[share], by[share] = tonumber(at), holder end
end
local claimed, written = {}, {}
for i = 7, #ARGV do
  claimed[ARGV[i]] = true
  if not ends[ARGV[i]] then ends[ARGV[i]], by[ARGV[i]] = 0, '' end
end
local leases = {}
for share, at in pairs(ends) do
  local is_over = at <= now or by[share] == ''
  local is_own = by[share] == id
  local new = at
  if (is_own and not is_over) or (claimed[share] and (is_own or is_over)) then
    new, by[share] = now + length, id
  else
    new = math.min(at, now + length)
  end
  if new ~= at then
    written[#written + 1] = share
    written[#written + 1] = whole(new) .. ':' .. by[share]
  end
  local is_free = new <= now or by[share] == ''
  leases[#leases + 1] = share
  leases[#leases + 1] = is_free and '' or by[share]
  leases[#leases + 1] = is_free and now - new or new - now
end
if #written > 0 then redis.call('HSET', KEYS[2], unpack(written)) end
redis.call('PEXPIRE', KEYS[1], length * 10)
redis.call('PEXPIRE', KEYS[2], length * 10)
return {members, leases}
";

/// `KEYS`: members, leases. `ARGV`: id, number, length of a lease, whether the member leaves (1), and pairs of a share
/// and the member that gets it.
const RELEASE: &str = r"
if redis.replicate_commands then redis.replicate_commands() end
local id, length = ARGV[1], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local whole = function(n) return string.format('%.0f', n) end
local field = function(key, name)
  return redis.call('HMGET', key, name)[1] or ''
end
if string.match(field(KEYS[1], id), '^%d+:%d+:(%d+):') ~= ARGV[2] then return 0 end
for i = 5, #ARGV, 2 do
  local share, to = ARGV[i], ARGV[i + 1]
  if string.match(field(KEYS[2], share), '^%d+:(%w*)') == id then
    local beat = to ~= '' and tonumber(string.match(field(KEYS[1], to), '^%d+:(%d+):'))
    if beat and now - beat < length then
      redis.call('HSET', KEYS[2], share, whole(now + length) .. ':' .. to)
    else
      redis.call('HSET', KEYS[2], share, whole(now) .. ':')
    end
  end
end
if ARGV[4] == '1' then redis.call('HDEL', KEYS[1], id) end
return 1
";

impl RedisCache {
    /// Whether this server can keep leases, and lets this user do so.
    pub async fn can_lease(&self) -> Result<(), ConnectError> {
        // No member has this id, so it changes nothing.
        let arguments = ["none", "0", "0", "0"].map(str::to_owned).to_vec();
        let Err(error) = self.call(self.script(RELEASE), arguments).await else { return Ok(()) };
        // To wait for a cache that runs no scripts would be in vain.
        let is_unable = error.kind == CacheErrorKind::Refused;
        let ConnectError { kind, message } = error.into();
        let kind = if is_unable { ConnectErrorKind::Settings } else { kind };
        let server = self.server();
        let message = format!("cache `{server}` cannot keep the leases of a fleet: {message}");
        Err(ConnectError { kind, message })
    }

    /// Calls one of the scripts.
    async fn call(&self, mut script: Cmd, arguments: Vec<String>) -> Result<Value, CacheError> {
        for argument in arguments {
            script.arg(argument);
        }
        let mut replies = self.each(Role::Questions, vec![script]).await?.into_iter();
        let reply = replies.next().unwrap_or(Ok(Value::Nil));
        let is_unknown = reply::is_unknown_command(&reply);
        reply.map_err(|failed| {
            let refused = CacheError::from(failed);
            let hint = if is_unknown {
                "; hint: a fleet needs a cache that runs Lua scripts, by `EVAL`".to_owned()
            } else if refused.kind == CacheErrorKind::Permission {
                format!(
                    "; for a fleet, it also needs `{FLEET_RIGHTS}`, and `{RELAY_RIGHTS}` where the changes come from \
                     the write-ahead log"
                )
            } else {
                String::new()
            };
            CacheError { message: format!("{}{hint}", refused.message), ..refused }
        })
    }

    fn script(&self, text: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(2);
        for key in [MEMBERS_KEY, LEASES_KEY] {
            self.key(&mut command, key);
        }
        command
    }
}

impl Leases for RedisCache {
    fn beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<View, CacheError>> {
        Box::pin(async move {
            let Beat { id, number, standing, claims, connections } = beat;
            let [wanted, of] = connections.map_or([0, 0], |all| [all.connections, all.of]);
            let mut arguments = vec![
                id.to_string(),
                number.to_string(),
                standing.as_str().to_owned(),
                wanted.to_string(),
                of.to_string(),
                LEASE.as_millis().to_string(),
            ];
            arguments.extend(claims.iter().map(|share| share.to_string()));
            let reply = self.call(self.script(BEAT), arguments).await?;
            view(&reply).ok_or_else(|| {
                let message = if reply == Value::Nil {
                    "the cache has answered a later beat of this member already"
                } else {
                    "the leases in the cache cannot be read"
                };
                CacheError { kind: CacheErrorKind::Refused, message: message.to_owned() }
            })
        })
    }

    fn release<'a>(&'a self, release: &'a Release) -> BoxFuture<'a, Result<bool, CacheError>> {
        Box::pin(async move {
            let Release { id, number, shares, leaves } = release;
            let mut arguments = vec![
                id.to_string(),
                number.to_string(),
                LEASE.as_millis().to_string(),
                u8::from(*leaves).to_string(),
            ];
            for (share, to) in shares {
                let to = to.as_ref().map(ToString::to_string).unwrap_or_default();
                arguments.extend([share.to_string(), to]);
            }
            let reply = self.call(self.script(RELEASE), arguments).await?;
            Ok(reply == Value::Int(1))
        })
    }
}

/// The reply to [`BEAT`]: members with five fields each, and leases with three.
fn view(reply: &Value) -> Option<View> {
    let Value::Array(parts) = reply else { return None };
    let [Value::Array(members), Value::Array(leases)] = parts.as_slice() else { return None };
    let members = members.as_chunks().0.iter().map(member).collect::<Option<_>>()?;
    let mut view = View::of(members);
    for [share, by, time] in leases.as_chunks().0 {
        let share = Share::new(redis::from_redis_value_ref::<u8>(share).ok()?)?;
        let (by, time) = (text(by)?, millis(time)?);
        let known = view.leases.get_mut(usize::from(share.number()))?;
        *known = match MemberId::parse(&by) {
            Some(by) => Lease::Held { by, left: time },
            None => Lease::Free(time),
        };
    }
    Some(view)
}

fn member([id, standing, age, silent_for, connections]: &[Value; 5]) -> Option<Member> {
    Some(Member {
        id: MemberId::parse(&text(id)?)?,
        // A later version may have another one: its member takes no shares, as far as this version is concerned.
        standing: Standing::parse(&text(standing)?).unwrap_or_default(),
        age: millis(age)?,
        silent_for: millis(silent_for)?,
        connections: redis::from_redis_value_ref(connections).ok()?,
    })
}

fn text(value: &Value) -> Option<String> {
    redis::from_redis_value_ref(value).ok()
}

fn millis(value: &Value) -> Option<Duration> {
    redis::from_redis_value_ref(value).ok().map(Duration::from_millis)
}
