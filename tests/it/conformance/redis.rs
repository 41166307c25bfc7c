//! The cache on real Redis servers that refuse, break, hang and come back.

use std::time::Duration;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::redis::{CacheSettings, RedisCache};
use preheat::engine::port::{Cache, CacheErrorKind};
use preheat::sandbox::{Redis, RedisOptions};
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
async fn one_reconnect_serves_all_who_wait() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let cache = connect(&proxy.redis_url()).await;
    assert_eq!(proxy.accepted(), 1);
    proxy.cut();
    let values = one();
    let writes = (0..20).map(|_| async { cache.write(&values.entries()).await });
    let results = futures::future::join_all(writes).await;
    assert!(results.iter().all(|result| *result == Ok(vec![Ok(())])), "{results:?}");
    assert!(proxy.accepted() <= 3, "{} connections", proxy.accepted());
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
async fn a_server_that_is_not_there_is_unreachable() {
    let server = support::redis();
    let url = server.tcp_url().unwrap().replace("//", "//user:hush@");
    drop(server);
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Unreachable);
    assert!(error.message.starts_with("could not connect to cache `127.0.0.1:"), "{error}");
    assert!(!error.message.contains("hush"), "{error}");
}
