//! Translates the server's replies and errors into the engine's types.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use chrono::{DateTime, Utc};

use redis::{ErrorKind, RedisError, Value};

use crate::domain::fence::Fence;
use crate::domain::manifest::ManifestEntry;
use crate::engine::ports::{CacheError, CacheErrorKind, CacheStats, Found, KeyResult, Size, Slice};

/// A server's reply to one command.
pub(super) type Reply = Result<Value, Failed>;

/// Why a command has no reply.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// The server refused it.
    Refused(RedisError),
    /// The server could not be reached, or the connection to it was lost: the command may have been
    /// done.
    Lost(CacheError),
}

impl From<Failed> for CacheError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(error) => refused(&error),
            Failed::Lost(error) => error,
        }
    }
}

/// The reply to a `SET`.
pub(super) fn written(reply: Reply) -> KeyResult {
    match reply {
        Ok(Value::Okay) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        Err(failed) => Err(failed.into()),
    }
}

/// A reply that is a number of keys.
pub(super) fn count(reply: &Value) -> Result<u64, CacheError> {
    let Value::Int(count) = reply else { return Err(unexpected(reply)) };
    u64::try_from(*count).map_err(|_negative| unexpected(reply))
}

/// The reply to an `UNLINK` or `DEL` of one key: whether the key existed.
pub(super) fn existed(reply: Reply) -> Result<bool, CacheError> {
    match reply {
        Ok(Value::Int(count)) => Ok(count > 0),
        Ok(other) => Err(unexpected(&other)),
        Err(failed) => Err(failed.into()),
    }
}

/// A reply that is text.
pub(super) fn text(reply: Reply) -> Result<String, CacheError> {
    let value = reply?;
    redis::from_redis_value_ref(&value).map_err(|_not_text| unexpected(&value))
}

/// The reply to an `MGET` of fences. For a key that is not a string the server answers nil, which
/// reads as [`Fence::Missing`].
pub(super) fn fences(reply: Value) -> Result<Vec<Fence>, CacheError> {
    let values = array(reply)?.into_iter();
    let fence = |value: Value| {
        if value == Value::Nil {
            return Ok(Fence::Missing);
        }
        if let Value::BulkString(value) = value {
            Ok(Fence::of(&value))
        } else {
            Err(unexpected(&value))
        }
    };
    values.map(fence).collect()
}

/// The reply to an `HMGET` of counters; a field that is missing, or is no count, reads as 0.
pub(super) fn counts(reply: Value) -> Result<Vec<u64>, CacheError> {
    let values = array(reply)?.into_iter();
    Ok(values.map(|value| redis::from_redis_value(value).unwrap_or_default()).collect())
}

/// A list of texts; those that are not UTF-8 are left out.
pub(super) fn texts(reply: Value) -> Result<Vec<String>, CacheError> {
    let texts = array(reply)?.into_iter();
    Ok(texts.filter_map(|value| redis::from_redis_value(value).ok()).collect())
}

/// A list of field names, each followed by its value; pairs that are not UTF-8 are left out.
pub(super) fn pairs(reply: Value) -> Result<Vec<(String, String)>, CacheError> {
    let values = array(reply)?;
    let pairs = values.as_chunks().0.iter();
    let pair = |[name, text]: &[Value; 2]| {
        let name = redis::from_redis_value_ref(name).ok()?;
        Some((name, redis::from_redis_value_ref(text).ok()?))
    };
    Ok(pairs.filter_map(pair).collect())
}

/// The entry of a stream: its id, and its fields.
pub(super) type StreamEntry = (String, Vec<(String, String)>);

/// The reply to an `XREVRANGE`.
pub(super) fn stream_entries(reply: Value) -> Result<Vec<StreamEntry>, CacheError> {
    let entry = |value: Value| {
        let [id, fields]: [Value; 2] =
            array(value)?.try_into().map_err(|parts| unexpected(&Value::Array(parts)))?;
        Ok((text(Ok(id))?, pairs(fields)?))
    };
    array(reply)?.into_iter().map(entry).collect()
}

/// The reply to an `XREAD` of one stream.
pub(super) fn entries_of_stream(reply: Value) -> Result<Vec<StreamEntry>, CacheError> {
    if reply == Value::Nil {
        return Ok(Vec::new());
    }
    let Some(stream) = array(reply)?.into_iter().next() else { return Ok(Vec::new()) };
    let [_key, entries]: [Value; 2] =
        array(stream)?.try_into().map_err(|parts| unexpected(&Value::Array(parts)))?;
    stream_entries(entries)
}

/// The reply to a `ZRANGE … WITHSCORES`: the entries of a manifest.
pub(super) fn manifest_entries(reply: Value) -> Result<Vec<ManifestEntry>, CacheError> {
    let mut parts = array(reply)?.into_iter();
    let mut all = Vec::with_capacity(parts.len() / 2);
    while let (Some(key), Some(score)) = (parts.next(), parts.next()) {
        let Ok(key) = redis::from_redis_value(key) else { continue };
        all.push(ManifestEntry { key, renewed_at: moment(&score)? });
    }
    Ok(all)
}

/// The time that a manifest entry's score stands for.
fn moment(score: &Value) -> Result<DateTime<Utc>, CacheError> {
    let at: f64 = redis::from_redis_value_ref(score).map_err(|_no_number| unexpected(score))?;
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds are far below 2^53")]
    let at = DateTime::from_timestamp_millis(at as i64);
    Ok(at.unwrap_or_default())
}

/// The reply to a `SCAN` or `HSCAN`: the next cursor and the slice, still to be read.
pub(super) fn slice(reply: Value) -> Result<(u64, Value), CacheError> {
    let parts: [Value; 2] =
        array(reply)?.try_into().map_err(|parts| unexpected(&Value::Array(parts)))?;
    let [cursor, slice] = parts;
    let next = redis::from_redis_value_ref(&cursor).map_err(|_no_number| unexpected(&cursor))?;
    Ok((next, slice))
}

/// The reply to a `SCAN`.
pub(super) fn page(reply: Value) -> Result<Slice, CacheError> {
    let (next, keys) = slice(reply)?;
    Ok(Slice { next, keys: texts(keys)? })
}

/// The replies to a `GET` and a `PTTL` of one key.
pub(super) fn found(value: Value, ttl: &Value) -> Result<Option<Found>, CacheError> {
    const GONE: i64 = -2;
    let left: i64 = redis::from_redis_value_ref(ttl).map_err(|_no_number| unexpected(ttl))?;
    if value == Value::Nil || left == GONE {
        return Ok(None);
    }
    let Value::BulkString(value) = value else { return Err(unexpected(&value)) };
    Ok(Some(Found { value, ttl: u64::try_from(left).ok().map(Duration::from_millis) }))
}

/// The replies to a `STRLEN` and a `PTTL` of one key.
pub(super) fn size(bytes: &Value, ttl: &Value) -> Result<Option<Size>, CacheError> {
    const GONE: i64 = -2;
    let left: i64 = redis::from_redis_value_ref(ttl).map_err(|_no_number| unexpected(ttl))?;
    let bytes = count(bytes)?;
    let ttl = u64::try_from(left).ok().map(Duration::from_millis);
    Ok((left != GONE).then_some(Size { bytes, ttl }))
}

fn array(reply: Value) -> Result<Vec<Value>, CacheError> {
    if let Value::Array(values) = reply { Ok(values) } else { Err(unexpected(&reply)) }
}

/// The figures in the sections `server`, `memory`, `stats`, `keyspace` and, if it was asked for,
/// `replication` of `INFO`; a missing number counts as 0.
pub(super) fn stats(info: &str) -> CacheStats {
    let value = |name: &str| {
        let mut pairs = info.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
    };
    let number = |name: &str| value(name).and_then(|value| value.parse().ok()).unwrap_or_default();
    // The server draws 40 random digits at each start, and another 40 whenever it becomes a primary.
    let process = |run_id: &str| {
        let mut hasher = DefaultHasher::new();
        hasher.write(run_id.as_bytes());
        hasher.write(value("master_replid").unwrap_or_default().as_bytes());
        hasher.finish()
    };
    CacheStats {
        process: value("run_id").map(process),
        used_memory: number("used_memory"),
        maxmemory: number("maxmemory"),
        hits: number("keyspace_hits"),
        misses: number("keyspace_misses"),
        evicted: number("evicted_keys"),
        keys: keys(info),
    }
}

/// The number of keys in all databases, from lines such as `db0:keys=12,expires=3,avg_ttl=0`. A
/// database without keys has no line.
fn keys(info: &str) -> Option<u64> {
    info.contains("# Keyspace").then_some(())?;
    let of_database = |line: &str| {
        let (name, rest) = line.split_once(":keys=")?;
        name.starts_with("db").then_some(())?;
        rest.split(',').next()?.trim().parse::<u64>().ok()
    };
    Some(info.lines().filter_map(of_database).sum())
}

/// Whether the server does not know the command.
pub(super) fn is_unknown_command(reply: &Reply) -> bool {
    matches!(reply, Err(Failed::Refused(error)) if is_unknown(error))
}

/// Whether the error says that the server does not know the command.
pub(super) fn is_unknown(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.to_ascii_lowercase().contains("unknown command"))
}

/// Whether the server is no node of a cluster.
pub(super) fn is_no_cluster(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("cluster support disabled"))
}

/// Whether the server is a replica.
pub(super) fn is_read_only(error: &RedisError) -> bool {
    error.code() == Some("READONLY")
}

/// The rights that a Redis user needs, as `ACL SETUSER` takes them: access to preheat's own keys,
/// and the commands. `select` is for URLs with a database number. The patterns of the keys that
/// jobs write have to be added, such as `~services:*`; if `cache.prefix` is set, it goes before
/// each pattern.
pub const RIGHTS: &str = "~preheat:* +get +set +del +unlink +mget +strlen +incr +incrby +pttl \
                          +pexpire +exists +scan +hset +hdel +hmget +hgetall +hscan +zadd +zrange \
                          +zremrangebyscore +info +ping +select";

/// The rights that a Redis user needs besides [`RIGHTS`] on a Redis Cluster.
pub const CLUSTER_RIGHTS: &str = "+cluster|slots +cluster|info +asking";

fn rights_hint() -> String {
    format!(
        "the user needs `{RIGHTS}`, and `~…` for the keys of each job; where `cache.prefix` is set, it \
         goes before the keys; on a Redis Cluster the user needs `{CLUSTER_RIGHTS}` as well"
    )
}

/// The error for a command that the server refused.
pub(super) fn refused(error: &RedisError) -> CacheError {
    let code = error.code().unwrap_or("ERR");
    let detail = error.detail().unwrap_or_default();
    let kind = match code {
        "LOADING" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" | "BUSY" => {
            CacheErrorKind::Transient
        }
        "OOM" => CacheErrorKind::Full,
        "READONLY" => CacheErrorKind::ReadOnly,
        "MOVED" | "ASK" => CacheErrorKind::Moved,
        "WRONGTYPE" => CacheErrorKind::WrongType,
        "NOPERM" | "NOAUTH" | "WRONGPASS" => CacheErrorKind::Permission,
        _ if error.kind() == ErrorKind::AuthenticationFailed => CacheErrorKind::Permission,
        _ => CacheErrorKind::Refused,
    };
    let message = if error.kind() == ErrorKind::AuthenticationFailed || code == "WRONGPASS" {
        // The client does not show the server's own words.
        "the user or the password is wrong, or the user is off; hint: both stand in the URL, as in \
         `redis://user:password@host`, and a user who is not named is `default`"
            .to_owned()
    } else {
        let hint = match code {
            "NOPERM" => format!("; hint: {}", rights_hint()),
            "MOVED" | "ASK" => "; hint: the server is a node of a Redis Cluster: write \
                                `redis+cluster://` in place of `redis://`, and all its nodes, as in \
                                `redis+cluster://host1,host2,host3`"
                .to_owned(),
            "READONLY" => "; hint: the server is a replica, and preheat needs the primary".to_owned(),
            _ if is_unknown(error) => "; hint: if this is a Sentinel, write `redis+sentinel://host1,host2/service` in \
                                       place of `redis://`"
                .to_owned(),
            "NOAUTH" => "; hint: the server wants a password: write it into the URL, as in \
                         `redis://:password@host`"
                .to_owned(),
            _ => String::new(),
        };
        format!("the cache refused: {code} {detail}").trim_end().to_owned() + &hint
    };
    CacheError { kind, message }
}

/// Whether the server is not ready for commands, or not for clients that have not logged in.
pub(super) fn is_not_ready(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH") || refused(error).kind == CacheErrorKind::Transient
}

pub(super) fn unexpected(value: &Value) -> CacheError {
    // The value may be confidential, so the message gives only its type.
    let kind = if *value == Value::Nil {
        "nothing"
    } else if matches!(value, Value::Int(_)) {
        "a number"
    } else {
        "something else"
    };
    let message = format!("the cache answered with {kind} where it should not");
    CacheError { kind: CacheErrorKind::Refused, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, kind: CacheErrorKind, message: &str) {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let reply = value.extract_error().map_err(Failed::Refused);
        let found = written(reply).unwrap_err();
        assert_eq!(found, CacheError { kind, message: message.to_owned() }, "{line}");
    }

    #[test]
    fn every_refusal_has_its_kind() {
        use CacheErrorKind::{Full, Moved, Permission, ReadOnly, Refused, Transient, WrongType};
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        check(oom, Full, &format!("the cache refused: {oom}"));
        let cases = [
            ("READONLY You can't write against a read only replica.", ReadOnly),
            ("MOVED 3999 10.0.0.7:6381", Moved),
            ("ASK 3999 10.0.0.7:6381", Moved),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", WrongType),
            ("NOPERM this user has no permissions to run the 'set' command", Permission),
            ("NOAUTH Authentication required.", Permission),
            ("LOADING Redis is loading the dataset in memory", Transient),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Transient),
            ("MASTERDOWN Link with MASTER is down", Transient),
            ("CLUSTERDOWN The cluster is down", Transient),
            ("NOREPLICAS Not enough good replicas to write.", Transient),
            ("BUSY Redis is busy running a script.", Transient),
            ("MISCONF Errors writing to the AOF file", Refused),
            ("ERR something new", Refused),
            ("SOMETHING", Refused),
        ];
        for (line, kind) in cases {
            let hint = match line.split(' ').next() {
                Some("NOPERM") => format!("; hint: {}", rights_hint()),
                Some("MOVED" | "ASK") => {
                    "; hint: the server is a node of a Redis Cluster: write `redis+cluster://` in \
                     place of `redis://`, and all its nodes, as in \
                     `redis+cluster://host1,host2,host3`"
                        .to_owned()
                }
                Some("READONLY") => {
                    "; hint: the server is a replica, and preheat needs the primary".to_owned()
                }
                Some("NOAUTH") => {
                    "; hint: the server wants a password: write it into the URL, as in \
                               `redis://:password@host`"
                        .to_owned()
                }
                Some(_) | None => String::new(),
            };
            check(line, kind, &format!("the cache refused: {line}{hint}"));
        }
    }

    #[test]
    fn replies_that_are_no_errors_are_read() {
        assert_eq!(written(Ok(Value::Okay)), Ok(()));
        assert_eq!(existed(Ok(Value::Int(1))), Ok(true));
        assert_eq!(existed(Ok(Value::Int(0))), Ok(false));
        let odd = written(Ok(Value::BulkString(b"secret".to_vec()))).unwrap_err();
        assert_eq!(odd.message, "the cache answered with something else where it should not");
    }

    #[test]
    fn the_words_of_info_are_found() {
        let info = "# Server\r\nrun_id:5d3f\r\n\n# Memory\r\nused_memory:1024\r\nused_memory_human:1K\r\nmaxmemory:0\r\n\n\
                    # Stats\r\nkeyspace_hits:7\r\nkeyspace_misses:8\r\nevicted_keys:9\r\n\n\
                    # Keyspace\r\ndb0:keys=12,expires=3,avg_ttl=7\r\ndb5:keys=30,expires=0,avg_ttl=0\r\n";
        let found = stats(info);
        let process = found.process;
        let expected = CacheStats {
            process,
            used_memory: 1024,
            maxmemory: 0,
            hits: 7,
            misses: 8,
            evicted: 9,
            keys: Some(42),
        };
        assert_eq!(found, expected);
        assert!(process.is_some());
        assert_ne!(stats("run_id:5d3e").process, process);
        let term =
            |id: &str| stats(&format!("{info}\n# Replication\r\nmaster_replid:{id}")).process;
        assert!(term("8c1") == term("8c1") && term("8c1") != term("8c2"));
        assert_eq!(stats("nothing of it"), CacheStats::default());
        assert_eq!(stats("# Keyspace\r\n").keys, Some(0));
    }
}
