//! The conformance suite of caches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use preheat::adapter::clock::SystemClock;
use preheat::adapter::redis::{CacheSettings, RedisCache};
use preheat::domain::glob;
use preheat::engine::ports::{Cache, CacheErrorKind, Found, Ledger, ManifestEntries, Size};
use preheat_sandbox::Redis;
use redis::aio::MultiplexedConnection;

use super::Values;
use super::redis::settings;
use crate::support;
use crate::support::memory::MemoryCache;
use crate::support::sentinels::{SERVICE, sentinel};

/// A prefix with all characters that are special in a glob.
pub(crate) const PREFIX: &str = "rel*[7-9]?\\:";

/// Texts that occur in keys and must have no special meaning there.
pub(super) const ODD: [&str; 9] =
    ["a*b", "a?b", "[a-c]", "{a}", "a\nb\r\n", "\"'`", "\\*", "ä€😀\u{2028}", " \0 "];

/// Direct access to the cache, without the adapter, as an application has it.
pub(crate) enum Past<'c> {
    Memory(&'c MemoryCache),
    /// The servers, any of which may have a key.
    Redis(Vec<MultiplexedConnection>),
}

impl Past<'_> {
    async fn ask<T: redis::FromRedisValue>(
        servers: &mut [MultiplexedConnection],
        command: &str,
        key: &str,
        arguments: &[&[u8]],
    ) -> redis::RedisResult<T> {
        let mut command = redis::cmd(command);
        command.arg(format!("{PREFIX}{key}")).arg(arguments);
        for server in servers {
            let answer = command.query_async(server).await;
            if answer.as_ref().err().and_then(redis::RedisError::code) != Some("MOVED") {
                return answer;
            }
        }
        panic!("no server has `{key}`")
    }

    pub(super) async fn incr(&mut self, key: &str) -> i64 {
        match self {
            Self::Memory(cache) => cache.incr(key).unwrap(),
            Self::Redis(servers) => Self::ask(servers, "INCR", key, &[]).await.unwrap(),
        }
    }

    /// Writes a value that never expires.
    pub(super) async fn set(&mut self, key: &str, value: &[u8]) {
        match self {
            Self::Memory(cache) => cache.set(key, value),
            Self::Redis(servers) => {
                let () = Self::ask(servers, "SET", key, &[value]).await.unwrap();
            }
        }
    }

    async fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        match self {
            Self::Memory(cache) => cache.get(key),
            Self::Redis(servers) => Self::ask(servers, "GET", key, &[]).await.unwrap(),
        }
    }

    pub(super) async fn evict(&mut self, key: &str) {
        match self {
            Self::Memory(cache) => cache.evict(key),
            Self::Redis(servers) => {
                let () = Self::ask(servers, "DEL", key, &[]).await.unwrap();
            }
        }
    }

    /// A key's remaining TTL, rounded; `None` if the key does not exist or never expires.
    pub(super) async fn ttl(&mut self, key: &str) -> Option<Duration> {
        match self {
            Self::Memory(cache) => cache.ttl(key),
            Self::Redis(servers) => {
                let left: i64 = Self::ask(servers, "PTTL", key, &[]).await.unwrap();
                u64::try_from(left).ok().map(Duration::from_millis)
            }
        }
    }

    /// Fails unless the key was given that TTL just now.
    #[track_caller]
    pub(super) fn lives(left: Option<Duration>, ttl: Duration) {
        let left = left.unwrap();
        assert!(left <= ttl && left + support::LONG > ttl, "{left:?} of {ttl:?}");
    }
}

pub(super) fn in_memory() -> MemoryCache {
    MemoryCache::new(Arc::new(SystemClock::new()))
}

/// A cache with a database number and a prefix, and direct access to the same server. The server
/// also has keys that are not the cache's own: without a prefix, with a prefix that a glob would
/// match, and in another database.
pub(crate) async fn on_redis(server: &Redis, url: &str) -> (RedisCache, MultiplexedConnection) {
    let settings = CacheSettings { prefix: PREFIX.to_owned(), ..settings(url) };
    let cache = RedisCache::connect(settings).await.unwrap();
    let mut past = support::redis_connection(server).await;
    for (database, key) in [(0, format!("{PREFIX}other")), (3, "a".into()), (3, "rel!8?:a".into())]
    {
        let mut pipe = redis::pipe();
        pipe.cmd("SELECT").arg(database).cmd("SET").arg(key).arg("not ours");
        let () = pipe.query_async(&mut past).await.unwrap();
    }
    (cache, past)
}

pub(super) fn strings<'t>(texts: impl IntoIterator<Item = &'t str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

/// All keys that a scan finds, and the number of its pages.
pub(crate) async fn scan(cache: &impl Cache, pattern: &str) -> (BTreeSet<String>, usize) {
    let (mut found, mut slices, mut cursor) = (BTreeSet::new(), 0, 0);
    loop {
        let slice = cache.scan(pattern, cursor).await.unwrap();
        found.extend(slice.keys);
        cursor = slice.next;
        slices += 1;
        if cursor == 0 {
            return (found, slices);
        }
        assert!(slices < 10_000, "the scan of `{pattern}` does not end");
    }
}

async fn write(cache: &impl Cache, keys: impl IntoIterator<Item = &str>, ttl: Duration) {
    let values = Values::new(keys.into_iter().map(|key| (key, "1"))).ttl(ttl);
    assert!(cache.write(&values.entries()).await.unwrap().iter().all(Result::is_ok));
}

async fn clear(cache: &impl Cache) {
    let keys: Vec<String> = scan(cache, "*").await.0.into_iter().collect();
    assert!(cache.remove(&keys).await.unwrap().iter().all(|removed| *removed == Ok(true)));
}

async fn writes_and_removes(cache: &impl Cache, past: &mut Past<'_>) {
    assert_eq!(cache.write(&[]).await, Ok(Vec::new()));
    assert_eq!(cache.remove(&[]).await, Ok(Vec::new()));

    // Values from one byte to megabytes, and keys with every character that an id may have.
    let large = format!("\"{}\"", "x".repeat(3 * 1024 * 1024));
    let pairs = [("a", "1"), ("ä:*?[{\r\n}]\0\"", "\"\\u0000\u{2028}\""), ("b", &large)];
    let ttl = Duration::from_millis(90_500);
    let values = Values::new(pairs).ttl(ttl);
    assert_eq!(cache.write(&values.entries()).await, Ok(vec![Ok(()); 3]));
    for (key, json) in pairs {
        assert_eq!(past.get(key).await.unwrap(), json.as_bytes(), "{key}");
        Past::lives(past.ttl(key).await, ttl);
    }

    // A write refreshes both the value and the TTL.
    let year = Duration::from_hours(24 * 365);
    let values = Values::new([("a", "2")]).ttl(year);
    assert_eq!(cache.write(&values.entries()).await, Ok(vec![Ok(())]));
    assert_eq!(past.get("a").await.unwrap(), b"2");
    Past::lives(past.ttl("a").await, year);

    let keys = strings(["b", "no such key", "a"]);
    assert_eq!(cache.remove(&keys).await, Ok(vec![Ok(true), Ok(false), Ok(true)]));
    assert_eq!(past.get("a").await, None);

    // An expired key does not exist.
    write(cache, ["a"], Duration::from_millis(1)).await;
    let gone = async || past.get("a").await.is_none();
    support::eventually("the key expired", support::LONG, gone).await;
}

async fn expires(cache: &impl Cache, past: &mut Past<'_>) {
    let (short, long) = (Duration::from_mins(5), Duration::from_hours(9));
    assert_eq!(cache.expire(&[]).await, Ok(()));
    write(cache, ["longer", "shorter", "gone", "as it was"].into_iter().chain(ODD), short).await;
    past.set("without end", b"1").await;
    let lives = [
        ("longer", long),
        ("no such key", long),
        ("shorter", Duration::from_mins(2)),
        ("gone", Duration::from_millis(1)),
        ("without end", long),
    ];
    let lives = lives.into_iter().chain(ODD.map(|key| (key, long)));
    let lives: Vec<_> = lives.map(|(key, ttl)| (key.to_owned(), ttl)).collect();
    assert_eq!(cache.expire(&lives).await, Ok(()));
    let gone = async || past.get("gone").await.is_none();
    support::eventually("the key expired", support::LONG, gone).await;
    for (key, ttl) in lives.iter().filter(|(key, _)| !["no such key", "gone"].contains(&&**key)) {
        assert_eq!(past.get(key).await.as_deref(), Some(&b"1"[..]), "{key}");
        Past::lives(past.ttl(key).await, *ttl);
    }
    assert_eq!(past.get("no such key").await, None);
    Past::lives(past.ttl("as it was").await, short);
    // A TTL of zero ends the key at once, and does not make it permanent.
    cache.expire(&[("longer".to_owned(), Duration::ZERO)]).await.unwrap();
    let gone = async || past.get("longer").await.is_none();
    support::eventually("the key expired", support::LONG, gone).await;
}

async fn looks(cache: &(impl Cache + Ledger), past: &mut Past<'_>) {
    let hour = Duration::from_hours(1);
    assert_eq!(cache.look(&[]).await, Ok(Vec::new()));
    write(cache, ODD, hour).await;
    let binary: Vec<u8> = (0..=255).collect();
    past.set("binary", &binary).await;
    past.set("empty", b"").await;
    let keys = strings(["binary", "no such key", "empty"].into_iter().chain(ODD).chain(["binary"]));
    let found = cache.look(&keys).await.unwrap();
    let without_end = Some(Found { value: binary, ttl: None });
    let empty = Some(Found { value: Vec::new(), ttl: None });
    assert_eq!(found[..3], [without_end.clone(), None, empty]);
    assert_eq!(found[3 + ODD.len()..], [without_end]);
    for found in &found[3..3 + ODD.len()] {
        let found = found.as_ref().unwrap();
        assert_eq!(found.value, b"1");
        Past::lives(found.ttl, hour);
    }

    let sizes = cache.sizes(&keys).await.unwrap();
    let as_sizes = found.iter().map(|found| Some((found.as_ref()?.value.len() as u64, true)));
    let lives = |size: &Size| size.ttl.is_none_or(|ttl| ttl <= hour);
    let shown = sizes.iter().map(|size| size.as_ref().map(|size| (size.bytes, lives(size))));
    assert_eq!(shown.collect::<Vec<_>>(), as_sizes.collect::<Vec<_>>());
    assert_eq!(sizes[0], Some(Size { bytes: 256, ttl: None }));
    assert_eq!(cache.sizes(&[]).await, Ok(Vec::new()));

    write(cache, ["soon"], Duration::from_millis(1)).await;
    let soon = strings(["soon"]);
    let gone = async || cache.look(&soon).await == Ok(vec![None]);
    support::eventually("the key expired", support::LONG, gone).await;

    let hash = ManifestEntries { manifest: "hash".to_owned(), keys: strings(["a"]) };
    cache.add_entries(&[hash], Utc::now(), hour).await.unwrap();
    let each = [("binary", 1), ("soon", 0), ("hash", 1), ("empty", 1), ("no such key", 0)];
    for (key, there) in each {
        assert_eq!(cache.exist(&strings([key])).await, Ok(there), "{key}, whatever it holds");
    }
    let all: Vec<_> = each.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(cache.exist(&all).await, Ok(3));
    assert_eq!(cache.exist(&[]).await, Ok(0));
    let error = cache.look(&strings(["binary", "hash"])).await.unwrap_err();
    assert_eq!(error.kind, CacheErrorKind::WrongType, "{error}");
    let error = cache.sizes(&strings(["binary", "hash"])).await.unwrap_err();
    assert_eq!(error.kind, CacheErrorKind::WrongType, "{error}");
    // A write treats it like any other key.
    write(cache, ["hash"], hour).await;
    assert!(cache.look(&strings(["hash"])).await.unwrap()[0].is_some());
}

async fn scans(cache: &(impl Cache + Ledger), past: &mut Past<'_>) {
    let hour = Duration::from_hours(1);
    clear(cache).await;
    assert_eq!(scan(cache, "*").await.0, BTreeSet::new());
    let many: Vec<String> = (0..3_000).map(|number| format!("pet:{number}")).collect();
    write(cache, many.iter().map(String::as_str).chain(ODD), hour).await;
    past.set("without end", b"1").await;
    assert_eq!(scan(cache, "pet:*").await.0, many.iter().cloned().collect());
    assert_eq!(scan(cache, "*").await.0.len(), many.len() + ODD.len() + 1);
    assert_eq!(scan(cache, "other").await.0, BTreeSet::new());
    for key in ODD {
        assert_eq!(scan(cache, &glob::escaped(key)).await.0, [key.to_owned()].into(), "{key}");
    }

    // preheat's own keys are found as well, and can be removed like any other key.
    let fence = strings(["preheat:fence:7"]);
    let listing =
        ManifestEntries { manifest: "preheat:manifest:pets:7".to_owned(), keys: strings(["a"]) };
    cache.move_fences(&fence, 1 << 41).await.unwrap();
    cache.add_entries(&[listing], Utc::now(), hour).await.unwrap();
    let own = ["preheat:fence:7", "preheat:manifest:pets:7"].map(str::to_owned);
    assert_eq!(scan(cache, "preheat:*").await.0, own.clone().into());
    assert_eq!(cache.remove(&own).await, Ok(vec![Ok(true); 2]));
    assert_eq!(scan(cache, "preheat:*").await.0, BTreeSet::new());

    cache.expire(&[(many[0].clone(), Duration::from_millis(1))]).await.unwrap();
    let gone = async || scan(cache, &many[0]).await.0.is_empty();
    support::eventually("the key expired", support::LONG, gone).await;
    clear(cache).await;
}

/// Each glob with the keys that it matches.
async fn means_by_globs_what_redis_means(cache: &impl Cache) {
    let keys = [
        "slots:1",
        "slots:12",
        "slots:2:a",
        "slot",
        "a",
        "b",
        "c",
        "-",
        "^",
        "]",
        "\\",
        "*",
        "ab",
        "é",
    ];
    write(cache, keys, Duration::from_hours(1)).await;
    let cases: [(&str, &[&str]); 22] = [
        ("slots:*", &["slots:1", "slots:12", "slots:2:a"]),
        ("slots:?", &["slots:1"]),
        ("*:*:*", &["slots:2:a"]),
        ("*1*", &["slots:1", "slots:12"]),
        ("slot*?", &["slots:1", "slots:12", "slots:2:a"]),
        ("slots", &[]),
        ("SLOT", &[]),
        ("slot", &["slot"]),
        ("[a-b]", &["a", "b"]),
        ("[b-a]", &["a", "b"]),
        ("[ac]", &["a", "c"]),
        ("[^a-c]", &["-", "^", "]", "\\", "*"]),
        ("[a-]", &["a", "]", "^"]),
        ("[a\\-c]", &["a", "-", "c"]),
        ("[\\]]", &["]"]),
        ("[ab", &["a", "b"]),
        ("\\*", &["*"]),
        ("\\a", &["a"]),
        ("\\\\", &["\\"]),
        ("?", &["a", "b", "c", "-", "^", "]", "\\", "*"]),
        ("é", &["é"]),
        ("{a,b}", &[]),
    ];
    for (pattern, expected) in cases {
        let expected: BTreeSet<String> = expected.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(scan(cache, pattern).await.0, expected, "{pattern}");
    }
    assert!(scan(cache, "??").await.0.contains("é"), "it has two bytes");
    clear(cache).await;
}

pub(crate) async fn conforms(cache: &(impl Cache + Ledger), past: &mut Past<'_>) {
    writes_and_removes(cache, past).await;
    expires(cache, past).await;
    looks(cache, past).await;
    scans(cache, past).await;
    means_by_globs_what_redis_means(cache).await;

    write(cache, ["a"], Duration::from_hours(1)).await;
    let stats = cache.stats().await.unwrap();
    assert!(stats.used_memory > 0 && stats.process.is_some(), "{stats:?}");
    assert_eq!(cache.stats().await.unwrap().process, stats.process);
    assert!(stats.keys > Some(0), "{stats:?}");
    clear(cache).await;
    assert!(cache.stats().await.unwrap().keys < stats.keys, "{stats:?}");
}

#[tokio::test]
async fn the_cache_in_memory_conforms() {
    let cache = in_memory();
    conforms(&cache, &mut Past::Memory(&cache)).await;
    let before = cache.stats().await.unwrap();
    cache.restart();
    let after = cache.stats().await.unwrap();
    assert_ne!(after.process, before.process);
    assert_eq!((after.used_memory, after.hits), (0, 0));
}

#[tokio::test]
async fn redis_conforms_with_a_prefix_and_a_database_number() {
    let server = support::redis();
    let watching = sentinel(&server, &[]);
    let sentinel_url =
        format!("redis+sentinel://127.0.0.1:{}/{SERVICE}/3", watching.tcp_port().unwrap());
    let tcp_url = format!("{}/3", server.tcp_url().unwrap());
    let urls = [format!("{}?db=3", server.url()), tcp_url, sentinel_url];
    for url in urls {
        let (cache, past) = on_redis(&server, &url).await;
        conforms(&cache, &mut Past::Redis(vec![past])).await;
    }
}

/// Texts from a seed, made of characters that are special in a glob.
fn random_texts(seed: u64, letters: &[&str], count: usize) -> Vec<String> {
    let mut state = seed;
    let mut next = |below: usize| {
        // Knuth's MMIX: the high bits are random enough.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    (0..count)
        .map(|_| (0..=next(6)).map(|_| letters[next(letters.len())]).collect::<String>())
        .collect()
}

#[tokio::test]
async fn any_glob_finds_the_same_keys_in_memory_and_in_redis() {
    let server = support::redis();
    let (cache, _past) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    let memory = in_memory();
    let keys = random_texts(1, &["a", "b", "c", "-", "^", "[", "]", "\\", "*", "?", "é"], 400);
    let distinct: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    let hour = Duration::from_hours(1);
    write(&cache, distinct.iter().copied(), hour).await;
    write(&memory, distinct, hour).await;
    let letters = ["a", "b", "c", "-", "^", "[", "]", "\\", "*", "?", "*", "[", "]"];
    let mut matched = 0;
    for pattern in random_texts(2, &letters, 3_000) {
        let (expected, _) = scan(&cache, &pattern).await;
        assert_eq!(scan(&memory, &pattern).await.0, expected, "{pattern}");
        matched += usize::from(!expected.is_empty());
    }
    assert!(matched > 500, "only {matched} globs found anything");
}
