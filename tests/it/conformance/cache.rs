//! What every cache does.

use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::clock::SystemClock;
use preheat::adapter::memory::MemoryCache;
use preheat::adapter::redis::RedisCache;
use preheat::engine::port::Cache;

use super::Values;
use super::redis::settings;
use crate::support;

/// A key's value and what is left of its TTL, read past the adapter.
type Peeked = Option<(Vec<u8>, Duration)>;

async fn conforms(cache: &dyn Cache, mut peek: impl AsyncFnMut(&str) -> Peeked) {
    assert_eq!(cache.write(&[]).await, Ok(Vec::new()));
    assert_eq!(cache.remove(&[]).await, Ok(Vec::new()));

    // Values from a byte to megabytes, and keys with everything that may stand in an id.
    let large = format!("\"{}\"", "x".repeat(3 * 1024 * 1024));
    let pairs = [("a", "1"), ("ä:*?[{\r\n}]\0\"", "\"\\u0000\u{2028}\""), ("b", &large)];
    let values = Values::new(pairs).ttl(Duration::from_millis(90_500));
    assert_eq!(cache.write(&values.entries()).await, Ok(vec![Ok(()); 3]));
    for (key, json) in pairs {
        let (value, ttl) = peek(key).await.unwrap();
        assert_eq!(value, json.as_bytes(), "{key}");
        assert!(
            (Duration::from_secs(30)..=Duration::from_millis(90_500)).contains(&ttl),
            "{ttl:?}"
        );
    }

    // A write is a refresh: value and TTL.
    let values = Values::new([("a", "2")]).ttl(Duration::from_hours(24 * 365));
    assert_eq!(cache.write(&values.entries()).await, Ok(vec![Ok(())]));
    let (value, ttl) = peek("a").await.unwrap();
    assert_eq!(value, b"2");
    assert!(ttl > Duration::from_hours(24 * 364), "{ttl:?}");

    let keys = ["b".to_owned(), "no such key".to_owned(), "a".to_owned()];
    assert_eq!(cache.remove(&keys).await, Ok(vec![Ok(true), Ok(false), Ok(true)]));
    assert_eq!(peek("a").await, None);

    // What expires is gone.
    let values = Values::new([("a", "3")]).ttl(Duration::from_millis(1));
    assert_eq!(cache.write(&values.entries()).await, Ok(vec![Ok(())]));
    support::eventually("the key expired", support::LONG, async || peek("a").await.is_none()).await;

    assert!(cache.stats().await.unwrap().used_memory > 0);
}

#[tokio::test]
async fn the_cache_in_memory_conforms() {
    let cache = MemoryCache::new(Arc::new(SystemClock::new()));
    conforms(&cache, async |key| Some((cache.get(key)?, cache.ttl(key)?))).await;
}

#[tokio::test]
async fn redis_conforms_with_a_prefix_and_a_database_number() {
    let server = support::redis();
    let urls = [format!("{}?db=3", server.url()), format!("{}/3", server.tcp_url().unwrap())];
    for url in urls {
        let mut settings = settings(&url);
        settings.prefix = "release-7:".to_owned();
        let cache = RedisCache::connect(settings).await.unwrap();
        let mut past = support::redis_connection(&server).await;
        let () = redis::cmd("SELECT").arg(3).query_async(&mut past).await.unwrap();
        conforms(&cache, async |key| {
            let key = format!("release-7:{key}");
            let mut pipe = redis::pipe();
            pipe.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
            let (value, ttl): (Option<Vec<u8>>, i64) = pipe.query_async(&mut past).await.unwrap();
            Some((value?, Duration::from_millis(ttl.try_into().unwrap())))
        })
        .await;
    }
}
