//! The cache on real Redis servers that refuse, fail, hang and recover.

use std::time::Duration;

use chrono::Utc;
use futures::future::join_all;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::redis::{CacheSettings, RedisCache};
use preheat::domain::fence::Fence;
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, Ledger, ManifestEntries, REGISTRY_KEY,
};
use preheat_sandbox::{Redis, RedisOptions};
use secrecy::SecretString;

use super::Values;
use super::certificates::Certificates;
use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::{self, LONG, eventually};

pub(crate) fn settings(url: &str) -> CacheSettings {
    CacheSettings {
        url: SecretString::from(url),
        prefix: String::new(),
        timeout: Duration::from_secs(20),
        ca_file: None,
        verify: true,
    }
}

async fn connect(url: &str) -> RedisCache {
    RedisCache::connect(settings(url)).await.unwrap()
}

fn one() -> Values {
    Values::new([("key", "1")])
}

async fn kinds(cache: &RedisCache, values: &Values) -> Vec<Option<CacheErrorKind>> {
    let results = cache.write(&values.entries()).await.unwrap();
    results.into_iter().map(|result| result.err().map(|error| error.kind)).collect()
}

#[tokio::test]
async fn ten_thousand_keys_with_large_values_are_written_whole() {
    let server = support::redis();
    let cache = connect(&server.tcp_url().unwrap()).await;
    let keys: Vec<String> = (0..10_000).map(|index| format!("products:{index}")).collect();
    let value = |index: usize| format!("\"{}\"", "v".repeat(index % 100 * 150));
    let texts: Vec<String> = (0..keys.len()).map(value).collect();
    let pairs = keys.iter().zip(&texts).map(|(key, text)| (key.as_str(), text.as_str()));
    let values = Values::new(pairs);
    let results = cache.write(&values.entries()).await.unwrap();
    assert_eq!(results.len(), keys.len());
    assert!(results.iter().all(Result::is_ok));

    let mut past = support::redis_connection(&server).await;
    for (keys, texts) in keys.chunks(500).zip(texts.chunks(500)) {
        let found: Vec<String> = redis::cmd("MGET").arg(keys).query_async(&mut past).await.unwrap();
        assert_eq!(found, texts);
    }
    let removed = cache.remove(&keys).await.unwrap();
    assert_eq!(removed, vec![Ok(true); keys.len()]);
    let left: u64 = redis::cmd("DBSIZE").query_async(&mut past).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_full_cache_says_so_for_the_keys_it_does_not_take() {
    let server = support::redis_with(&[("maxmemory", "6mb"), ("maxmemory-policy", "noeviction")]);
    let cache = connect(&server.url()).await;
    let keys: Vec<String> = (0..10).map(|index| format!("k{index}")).collect();
    let text = format!("\"{}\"", "x".repeat(1024 * 1024));
    let values = Values::new(keys.iter().map(|key| (key.as_str(), text.as_str())));
    let kinds = kinds(&cache, &values).await;
    assert_eq!(kinds.first(), Some(&None));
    assert_eq!(kinds.last(), Some(&Some(CacheErrorKind::Full)));
    let stats = cache.stats().await.unwrap();
    assert_eq!(stats.maxmemory, 6 * 1024 * 1024);
    assert!(stats.used_memory > 3 * 1024 * 1024);
}

#[tokio::test]
async fn a_replica_refuses_and_after_a_failover_takes_writes() {
    let primary = support::redis();
    let port = primary.tcp_port().unwrap();
    let replica = support::redis_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);
    let cache = connect(&replica.url()).await;
    assert_eq!(kinds(&cache, &one()).await, [Some(CacheErrorKind::ReadOnly)]);
    let mut past = support::redis_connection(&replica).await;
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut past).await.unwrap();
    assert_eq!(kinds(&cache, &one()).await, [None]);
}

#[tokio::test]
async fn a_user_writes_what_it_may_and_is_told_what_not() {
    let user = "app on >p@ss/w:rd ~ok:* -@all +set +unlink +client +select";
    let server = support::redis_with(&[("user", user)]);
    let port = server.tcp_port().unwrap();
    let cache = connect(&format!("redis://app:p%40ss%2Fw%3Ard@127.0.0.1:{port}")).await;
    let values = Values::new([("ok:1", "1"), ("no:1", "1"), ("ok:2", "1")]);
    assert_eq!(kinds(&cache, &values).await, [None, Some(CacheErrorKind::Permission), None]);
    let removed = cache.remove(&["no:1".to_owned(), "ok:1".to_owned()]).await.unwrap();
    assert_eq!(removed[0].as_ref().unwrap_err().kind, CacheErrorKind::Permission);
    assert_eq!(removed[1], Ok(true));
    assert_eq!(cache.stats().await.unwrap_err().kind, CacheErrorKind::Permission);

    let url = format!("redis://app:hush@127.0.0.1:{port}");
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Refused);
    assert!(
        error.message.starts_with(&format!("could not log in to cache `127.0.0.1:{port}`")),
        "{error}"
    );
    assert!(!error.message.contains("hush"), "{error}");
}

#[tokio::test]
async fn a_database_number_that_is_none_is_a_refusal() {
    let server = support::redis();
    let url = format!("{}?db=999", server.url());
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn keys_are_removed_where_unlink_is_unknown() {
    let server = support::redis_with(&[("rename-command", "UNLINK \"\"")]);
    let cache = connect(&server.url()).await;
    assert_eq!(kinds(&cache, &one()).await, [None]);
    let keys = ["key".to_owned(), "other".to_owned()];
    assert_eq!(cache.remove(&keys).await, Ok(vec![Ok(true), Ok(false)]));
    assert_eq!(cache.remove(&keys).await, Ok(vec![Ok(false), Ok(false)]));
}

#[tokio::test]
async fn a_server_that_was_restarted_is_written_to_at_once() {
    let server = support::redis();
    for url in [server.url(), server.tcp_url().unwrap()] {
        let cache = connect(&url).await;
        assert_eq!(kinds(&cache, &one()).await, [None]);
        server.kill();
        let error = cache.write(&one().entries()).await.unwrap_err();
        assert_eq!(error.kind, CacheErrorKind::Unavailable);
        assert!(error.message.contains(cache.server()), "{error}");
        server.restart().unwrap();
        assert_eq!(kinds(&cache, &one()).await, [None]);
        server.restart().unwrap();
        assert_eq!(kinds(&cache, &one()).await, [None]);
    }
}

#[tokio::test]
async fn a_connection_cut_within_a_pipeline_costs_nothing() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let cache = connect(&proxy.redis_url()).await;
    let text = format!("\"{}\"", "x".repeat(300_000));
    let pairs = [("a", text.as_str()), ("b", &text), ("c", &text), ("d", &text)];
    let values = Values::new(pairs);
    for direction in [Direction::ToServer, Direction::ToClient] {
        let before = proxy.accepted();
        proxy.cut_after(direction, if direction == Direction::ToServer { 700_000 } else { 3 });
        assert_eq!(kinds(&cache, &values).await, [None; 4]);
        assert_eq!(proxy.accepted(), before + 1);
    }
}

#[tokio::test]
async fn hazard_26_a_black_hole_ends_with_the_timeout_and_a_new_connection() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let mut settings = settings(&proxy.redis_url());
    settings.timeout = Duration::from_millis(300);
    let cache = RedisCache::connect(settings.clone()).await.unwrap();
    assert_eq!(kinds(&cache, &one()).await, [None]);

    proxy.set(Mode::Stall);
    let error = cache.write(&one().entries()).await.unwrap_err();
    assert_eq!(error.kind, CacheErrorKind::Unavailable);
    assert!(error.message.ends_with("did not answer within 300ms"), "{error}");
    let error = cache.write(&one().entries()).await.unwrap_err();
    assert!(error.message.ends_with("within 300ms"), "{error}");
    let error = RedisCache::connect(settings).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Unreachable);

    let before = proxy.accepted();
    proxy.set(Mode::Pass);
    eventually("writes go through again", LONG, async || {
        cache.write(&one().entries()).await.is_ok()
    })
    .await;
    assert!(proxy.accepted() > before);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left_with_both_connections() {
    let primary = support::redis();
    let port = primary.tcp_port().unwrap();
    let replica = support::redis_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);
    let proxy = Proxy::redis(&replica).await;
    let cache = connect(&proxy.redis_url()).await;
    assert_eq!(proxy.accepted(), 2);
    assert_eq!(kinds(&cache, &one()).await, [Some(CacheErrorKind::ReadOnly)]);
    // The name is resolved again for the second connection as well.
    assert_eq!(cache.fences(&["f:a".to_owned()]).await, Ok(vec![Fence::Missing]));
    assert_eq!(proxy.accepted(), 3);
    assert_eq!(kinds(&cache, &one()).await, [Some(CacheErrorKind::ReadOnly)]);
    assert_eq!(proxy.accepted(), 4);
}

#[tokio::test]
async fn one_reconnect_serves_all_who_wait() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let cache = connect(&proxy.redis_url()).await;
    // One for values and one for small questions.
    assert_eq!(proxy.accepted(), 2);
    proxy.cut();
    let values = one();
    let fences = ["f:a".to_owned()];
    let writes = (0..20).map(|_| async { cache.write(&values.entries()).await });
    let looks = (0..20).map(|_| async { cache.fences(&fences).await });
    let both = futures::future::join(join_all(writes), join_all(looks));
    let (written, seen) = both.await;
    assert!(written.iter().all(|result| *result == Ok(vec![Ok(())])), "{written:?}");
    assert!(seen.iter().all(|fences| *fences == Ok(vec![Fence::Missing])), "{seen:?}");
    // A caller that finds the connection cut makes a new one, and so may another caller a moment later.
    assert!(proxy.accepted() <= 6, "{} connections", proxy.accepted());
}

#[tokio::test]
async fn tls_trusts_the_given_authority_and_no_other() {
    let certificates = Certificates::new();
    let options = RedisOptions { tls: Some(certificates.server()), ..RedisOptions::default() };
    let server = Redis::start(&options).unwrap();
    let mut settings = settings(&server.tls_url().unwrap());

    let error = RedisCache::connect(settings.clone()).await.unwrap_err();
    assert!(error.message.contains("certificate"), "{error}");
    let others = Certificates::new();
    settings.ca_file = Some(others.ca());
    let error = RedisCache::connect(settings.clone()).await.unwrap_err();
    assert!(error.message.contains("certificate"), "{error}");
    settings.ca_file = Some("no such file".into());
    let error = RedisCache::connect(settings.clone()).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Settings, "{error}");

    settings.ca_file = Some(certificates.ca());
    let cache = RedisCache::connect(settings).await.unwrap();
    assert_eq!(kinds(&cache, &one()).await, [None]);
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_taken_where_it_is_the_one_that_is_named() {
    let certificates = Certificates::new();
    let own = certificates.self_signed();
    let pinned = Some(own.certificate.clone());
    let options = RedisOptions { tls: Some(own), ..RedisOptions::default() };
    let server = Redis::start(&options).unwrap();
    let mut settings = settings(&server.tls_url().unwrap());
    let other = Certificates::new();
    for (ca_file, verify, is_taken) in [
        (None, true, false),
        (Some(certificates.ca()), true, false),
        (Some(other.self_signed().certificate), true, false),
        (pinned, true, true),
        (None, false, true),
        (Some(certificates.ca()), false, true),
    ] {
        (settings.ca_file, settings.verify) = (ca_file, verify);
        match RedisCache::connect(settings.clone()).await {
            Ok(cache) => {
                assert!(is_taken, "{settings:?}");
                assert_eq!(kinds(&cache, &one()).await, [None]);
                server.restart().unwrap();
                assert_eq!(kinds(&cache, &one()).await, [None], "a connection is made anew");
            }
            Err(error) => {
                assert!(!is_taken, "{error}");
                assert!(error.message.contains("; hint: `[cache] ca` names"), "{error}");
                assert!(error.message.contains("`[cache] verify = false`"), "{error}");
            }
        }
    }
    let empty = tempfile::NamedTempFile::new().unwrap();
    (settings.ca_file, settings.verify) = (Some(empty.path().to_owned()), true);
    let error = RedisCache::connect(settings).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Settings, "{error}");
    assert!(error.message.contains("holds no certificate in PEM"), "{error}");
}

#[tokio::test]
async fn a_port_that_speaks_tls_or_does_not_is_told_with_the_scheme_to_write() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server());
    let options = RedisOptions { tcp: true, tls, ..RedisOptions::default() };
    let server = Redis::start(&options).unwrap();
    let plain = settings(&server.tls_url().unwrap().replace("rediss://", "redis://"));
    let error = RedisCache::connect(plain).await.unwrap_err();
    assert!(error.message.contains("hint: if it speaks TLS there, write `rediss://`"), "{error}");

    let mut secure = settings(&server.tcp_url().unwrap().replace("redis://", "rediss://"));
    secure.timeout = Duration::from_secs(2);
    let error = RedisCache::connect(secure).await.unwrap_err();
    assert!(error.message.contains("write `redis://` in place of `rediss://`"), "{error}");
}

#[tokio::test]
async fn a_cache_is_reached_by_an_address_of_ipv6() {
    if !support::has_ipv6() {
        return;
    }
    let server = support::redis_with(&[("bind", "::1"), ("protected-mode", "no")]);
    let port = server.tcp_port().unwrap();
    let cache = connect(&format!("redis://[::1]:{port}/1")).await;
    assert_eq!(cache.server(), format!("[::1]:{port}"));
    assert_eq!(kinds(&cache, &one()).await, [None]);
}

#[tokio::test]
async fn a_database_number_is_taken_from_the_path_and_from_the_parameter() {
    let server = support::redis();
    let url = server.tcp_url().unwrap();
    for number in ["/3", "?db=3", "/?protocol=resp3&db=3", "/1?db=3"] {
        let cache = connect(&format!("{url}{number}")).await;
        assert_eq!(kinds(&cache, &one()).await, [None]);
        let mut past = support::redis_connection(&server).await;
        let found: u32 = redis::pipe()
            .cmd("SELECT")
            .arg(3)
            .ignore()
            .cmd("UNLINK")
            .arg("key")
            .query_async::<Vec<u32>>(&mut past)
            .await
            .unwrap()[0];
        assert_eq!(found, 1, "{number}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let server = support::redis();
    let url = server.tcp_url().unwrap().replace("//", "//user:hush@");
    drop(server);
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Unreachable);
    assert!(!error.message.contains("hint"), "{error}");
    assert!(error.message.starts_with("could not connect to cache `127.0.0.1:"), "{error}");
    assert!(!error.message.contains("hush"), "{error}");
}

/// Calls that move fences: if their connection breaks, the caller decides whether to call again.
const ONCE: [&str; 2] = ["start_fences", "move_fences"];

/// The result of every call except writes for a few keys, by the call's name.
async fn all_calls(cache: &RedisCache) -> Vec<(&'static str, Result<(), CacheError>)> {
    let hour = Duration::from_hours(1);
    let keys = ["a", "b", "c"].map(str::to_owned);
    let lives = keys.clone().map(|key| (key, hour));
    let entry_lists = [ManifestEntries { manifest: "manifest".to_owned(), keys: keys.to_vec() }];
    let entries = keys.clone().map(|key| (key, "note".to_owned()));
    let fences = ["f:a", "f:b"].map(str::to_owned);
    let seen = [(fences[0].clone(), Fence::Missing), (fences[1].clone(), Fence::At(1))];
    let removed = async {
        let mut results = cache.remove(&keys).await?.into_iter();
        results.try_for_each(|result| result.map(drop))
    };
    vec![
        ("look", cache.look(&keys).await.map(drop)),
        ("scan", cache.scan("*", 0).await.map(drop)),
        ("expire", cache.expire(&lives).await),
        ("fences", cache.fences(&fences).await.map(drop)),
        ("start_fences", cache.start_fences(&seen, 1 << 41).await.map(drop)),
        ("move_fences", cache.move_fences(&fences, 1 << 41).await),
        ("add_entries", cache.add_entries(&entry_lists, Utc::now(), hour).await),
        ("manifests", cache.manifests(&keys).await.map(drop)),
        ("prune", cache.prune(&keys, Utc::now()).await),
        ("register", cache.register(&entries).await),
        ("registry", cache.registry().await.map(drop)),
        ("deregister", cache.deregister(&keys).await),
        ("remove", removed.await),
        ("stats", cache.stats().await.map(drop)),
    ]
}

async fn all_fail(cache: &RedisCache, kind: CacheErrorKind) {
    for (call, result) in all_calls(cache).await {
        let error = result.expect_err(call);
        assert_eq!(error.kind, kind, "{call}: {error}");
    }
}

#[tokio::test]
async fn a_user_who_may_nothing_is_told_so_by_every_call() {
    let server = support::redis_with(&[
        ("user", "none on >hush ~* -@all +client +select"),
        ("user", "some on >hush ~f:a ~a -@all +client +select +mget +set +incr +get +pttl"),
    ]);
    let port = server.tcp_port().unwrap();
    let cache = connect(&format!("redis://none:hush@127.0.0.1:{port}")).await;
    all_fail(&cache, CacheErrorKind::Permission).await;

    // This user may use only some keys.
    let cache = connect(&format!("redis://some:hush@127.0.0.1:{port}")).await;
    let [mine, both] = [&["f:a"][..], &["f:a", "f:b"]]
        .map(|keys| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
    cache.move_fences(&mine, 1 << 41).await.unwrap();
    assert_eq!(
        cache.move_fences(&both, 1 << 41).await.unwrap_err().kind,
        CacheErrorKind::Permission
    );
    assert_eq!(cache.fences(&both).await.unwrap_err().kind, CacheErrorKind::Permission);
    assert_eq!(cache.fences(&mine).await, Ok(vec![Fence::At((1 << 41) + 2)]), "moved all the same");
    assert_eq!(cache.look(&["a".to_owned()]).await, Ok(vec![None]));
    let error = cache.look(&["a".to_owned(), "b".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind, CacheErrorKind::Permission);
}

#[tokio::test]
async fn a_replica_and_a_full_server_refuse_fences_with_their_names() {
    let primary = support::redis();
    let port = primary.tcp_port().unwrap();
    let replica = support::redis_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);
    let full = support::redis_with(&[("maxmemory", "1"), ("maxmemory-policy", "noeviction")]);
    for (server, kind) in [(replica, CacheErrorKind::ReadOnly), (full, CacheErrorKind::Full)] {
        let cache = connect(&server.url()).await;
        let keys = ["f:a".to_owned()];
        let seen = [("f:a".to_owned(), Fence::Missing)];
        assert_eq!(cache.fences(&keys).await, Ok(vec![Fence::Missing]));
        assert_eq!(cache.start_fences(&seen, 1 << 41).await.unwrap_err().kind, kind);
        assert_eq!(cache.move_fences(&keys, 1 << 41).await.unwrap_err().kind, kind);
    }
}

#[tokio::test]
async fn every_call_outlives_a_connection_that_is_cut_and_ends_where_there_is_none() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let cache = connect(&proxy.redis_url()).await;
    // Each cut comes at another place: within a command, between two, within an answer.
    for direction in [Direction::ToServer, Direction::ToClient] {
        for bytes in [1, 40, 150, 300] {
            proxy.cut_after(direction, bytes);
            for (call, result) in all_calls(&cache).await {
                let kind = result.err().map(|error| error.kind);
                let may_fail = ONCE.contains(&call) && kind == Some(CacheErrorKind::Unavailable);
                assert!(kind.is_none() || may_fail, "{call}: {kind:?}");
            }
        }
    }
    proxy.heal();
    proxy.set(Mode::Refuse);
    all_fail(&cache, CacheErrorKind::Unavailable).await;
    proxy.set(Mode::Pass);
    for (call, result) in all_calls(&cache).await {
        assert_eq!(result, Ok(()), "{call}");
    }
}

#[tokio::test]
async fn what_was_cut_in_the_middle_is_done_as_a_whole() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let cache = connect(&proxy.redis_url()).await;
    let keys: Vec<String> = (0..3_000).map(|number| format!("preheat:fence:{number}")).collect();
    let entry_lists = [ManifestEntries { manifest: "manifest".to_owned(), keys: keys.clone() }];
    let entries: Vec<_> = keys.iter().map(|key| (key.clone(), key.clone())).collect();
    let start = 1 << 41;

    // A fence moves at most once for one call, and each call that succeeds has moved all of them.
    for cut in [(Direction::ToServer, 100_000), (Direction::ToClient, 5_000)] {
        proxy.cut_after(cut.0, cut.1);
        let error = cache.move_fences(&keys, start).await.unwrap_err();
        assert_eq!(error.kind, CacheErrorKind::Unavailable, "{error}");
        cache.move_fences(&keys, start).await.unwrap();
    }
    let fences = cache.fences(&keys).await.unwrap();
    let moved =
        |fence: &Fence| matches!(fence, Fence::At(at) if (start + 2..=start + 4).contains(at));
    assert!(fences.iter().all(moved), "{fences:?}");

    proxy.cut_after(Direction::ToServer, 50_000);
    cache.add_entries(&entry_lists, Utc::now(), Duration::from_hours(1)).await.unwrap();
    proxy.cut_after(Direction::ToClient, 50_000);
    assert_eq!(cache.manifests(&["manifest".to_owned()]).await.unwrap()[0].len(), keys.len());
    proxy.cut_after(Direction::ToServer, 50_000);
    cache.register(&entries).await.unwrap();
    proxy.cut_after(Direction::ToClient, 100_000);
    let mut found = cache.registry().await.unwrap();
    found.sort();
    let mut entries = entries;
    entries.sort();
    assert_eq!(found, entries);
    assert!(proxy.accepted() >= 6, "it was cut {} times", proxy.accepted());
}

#[tokio::test]
async fn a_large_registry_and_large_scans_come_in_several_slices() {
    let server = support::redis();
    let cache = connect(&server.url()).await;
    let entries: Vec<_> = (0..5_000).map(|number| (number.to_string(), String::new())).collect();
    cache.register(&entries).await.unwrap();
    let keys: Vec<String> = (0..5_000).map(|number| format!("k{number}")).collect();
    let values = Values::new(keys.iter().map(|key| (key.as_str(), "1")));
    cache.write(&values.entries()).await.unwrap();
    assert_eq!(cache.registry().await.unwrap().len(), entries.len());
    let (found, slices) = super::cache::scan(&cache, "k*").await;
    assert!(found.len() == keys.len() && slices >= 5, "{} in {slices}", found.len());

    let mut past = support::redis_connection(&server).await;
    let said: String = redis::cmd("INFO").arg("commandstats").query_async(&mut past).await.unwrap();
    let line = said.lines().find(|line| line.starts_with("cmdstat_hscan:calls=")).unwrap();
    let calls: u32 = line.split(['=', ',']).nth(1).unwrap().parse().unwrap();
    assert!(calls >= 3, "{line}");
}

#[tokio::test]
async fn a_key_and_a_registry_entry_that_are_no_text_are_left_out() {
    let server = support::redis();
    let cache = connect(&server.url()).await;
    let mut past = support::redis_connection(&server).await;
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(b"k\xff").arg(1).cmd("SET").arg("k").arg(1);
    pipe.cmd("HSET")
        .arg(REGISTRY_KEY)
        .arg("a")
        .arg(b"\xff")
        .arg(b"\xff")
        .arg("b")
        .arg("c")
        .arg("d");
    let () = pipe.query_async(&mut past).await.unwrap();
    assert_eq!(super::cache::scan(&cache, "k*").await.0, ["k".to_owned()].into());
    assert_eq!(cache.registry().await, Ok(vec![("c".to_owned(), "d".to_owned())]));
}

#[tokio::test]
async fn the_cache_tells_that_it_was_restarted_with_one_round_trip() {
    let server = support::redis();
    let cache = connect(&server.url()).await;
    let mut past = support::redis_connection(&server).await;
    let mut reads = async || {
        let mut info = redis::cmd("INFO");
        let said: String = info.arg("stats").query_async(&mut past).await.unwrap();
        let line = said.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = reads().await;
    let first = cache.stats().await.unwrap();
    assert_eq!(reads().await, before + 2, "ours and the one that asks");
    assert!(first.process.is_some());
    server.restart().unwrap();
    let second = cache.stats().await.unwrap();
    assert!(second.process.is_some());
    assert_ne!(second.process, first.process);
}
