//! A Redis that does not answer: reads go on, and come back to it.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use preheat_client::{Builder, Cache, Connection, FenceState, Key, Problem};
use preheat_sandbox::Redis;
use redis::Client;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};

use crate::support::{
    HOUR, LONG, Loader, builder, eventually, eye, opened, redis, redis_with, services, services_of,
};

const DEADLINE: Duration = Duration::from_millis(50);

/// A cache on a connection as an application has it, which retries for long.
async fn given(redis: &Redis) -> Builder {
    builder(redis).await.deadline(DEADLINE)
}

/// Reads until Redis answers again.
async fn comes_back(cache: &Cache) {
    let loader = Loader::new();
    let answers = async || {
        let before = cache.stats().reads.get("services").copied().unwrap_or_default();
        loader.read(cache, services(), &["X-ray"]).await;
        cache.stats().reads["services"].hit > before.hit
    };
    eventually("Redis is asked again", answers).await;
    assert!(!cache.stats().breaker_open);
}

async fn reads_go_on(cache: &Cache) {
    let loader = Loader::new();
    for tenant in 0..20 {
        let key = services_of(&format!("down {tenant}"));
        assert_eq!(loader.read(cache, key, &["X-ray"]).await, ["X-ray"]);
    }
    assert_eq!(loader.calls(), 20);
}

#[tokio::test]
async fn a_server_that_hangs_costs_five_deadlines_and_no_read() {
    let redis = redis();
    for cache in [given(&redis).await.build(), opened(&redis).deadline(DEADLINE).build()] {
        comes_back(&cache).await;
        redis.freeze();
        let asked_at = Instant::now();
        reads_go_on(&cache).await;
        let stats = cache.stats();
        assert!(stats.breaker_open);
        assert_eq!(stats.problems[&Problem::Timeout], 5, "{:?}", stats.problems);
        assert_eq!(stats.reads["services"].bypass, 20);
        // Five deadlines, and what the loads take on a busy machine.
        assert!(asked_at.elapsed() < DEADLINE * 5 + Duration::from_secs(5));
        redis.thaw();
        comes_back(&cache).await;
    }
}

#[tokio::test]
async fn a_server_that_is_killed_costs_no_read_and_is_found_again() {
    for is_opened in [false, true] {
        let redis = redis();
        let cache = if is_opened { opened(&redis) } else { given(&redis).await };
        let cache = cache.deadline(DEADLINE).build();
        comes_back(&cache).await;
        redis.kill();
        reads_go_on(&cache).await;
        assert!(cache.stats().breaker_open);
        redis.restart().unwrap();
        comes_back(&cache).await;
    }
}

#[tokio::test]
async fn an_application_starts_without_redis() {
    let redis = redis();
    let cache = opened(&redis).deadline(DEADLINE);
    redis.stop();
    let cache = cache.build();
    reads_go_on(&cache).await;
    redis.restart().unwrap();
    comes_back(&cache).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_any_more_is_replaced() {
    let redis = redis();
    let proxy = Proxy::to(redis.tcp_port().unwrap()).await;
    let connection = Connection::open(&format!("redis://127.0.0.1:{}", proxy.port)).unwrap();
    let cache = Cache::builder(connection).deadline(DEADLINE).build();
    comes_back(&cache).await;
    proxy.swallow_connections().await; // they stay open; only a new one leads to the server
    reads_go_on(&cache).await;
    assert!(cache.stats().breaker_open);
    comes_back(&cache).await;
}

#[tokio::test]
async fn without_redis_the_loads_of_one_key_are_still_one() {
    let redis = redis();
    let cache = opened(&redis).deadline(DEADLINE).build();
    comes_back(&cache).await;
    redis.kill();
    reads_go_on(&cache).await;
    let loader = Loader::waiting();
    let reads: Vec<_> =
        (0..10).map(|_| loader.spawn_read(&cache, services(), &["X-ray"])).collect();
    loader.has_begun(1).await;
    let before = cache.stats().reads["services"];
    tokio::task::yield_now().await;
    loader.go();
    for read in reads {
        assert_eq!(read.await.unwrap(), ["X-ray"]);
    }
    let after = cache.stats().reads["services"];
    assert_eq!(loader.calls(), 1);
    assert_eq!((after.bypass - before.bypass, after.joined - before.joined), (1, 9));
}

#[tokio::test]
async fn an_invalidation_that_does_not_reach_redis_fails_and_says_so() {
    let redis = redis();
    let cache = opened(&redis).deadline(DEADLINE).build();
    comes_back(&cache).await;
    redis.kill();
    let failed = cache.invalidate([services()]).await.unwrap_err();
    assert_eq!((failed.fence, failed.removed), (FenceState::Unknown, 0));
    assert!(std::error::Error::source(&failed).is_some());
    cache.invalidate_tenant("42").await.unwrap_err();
}

#[tokio::test]
async fn an_invalidation_survives_a_connection_that_broke() {
    let redis = redis();
    let config = ConnectionManagerConfig::new().set_number_of_retries(20);
    let client = Client::open(redis.url()).unwrap();
    let connection = ConnectionManager::new_with_config(client, config).await.unwrap();
    let cache = Cache::builder(connection).build();
    Loader::new().read(&cache, services(), &["X-ray"]).await;
    let mut eye = eye(&redis).await;
    eye.ask::<u64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    cache.invalidate([services()]).await.unwrap();
    assert_eq!(eye.get("services:42").await, None);
}

#[tokio::test]
async fn a_server_whose_memory_is_full_is_read_and_not_filled() {
    let redis = redis_with(&[("maxmemory", "1"), ("maxmemory-policy", "noeviction")]);
    let cache = builder(&redis).await.build();
    let loader = Loader::new();
    for _ in 0..10 {
        loader.read(&cache, services(), &["X-ray"]).await;
    }
    let stats = cache.stats();
    assert!(!stats.breaker_open, "it answers");
    assert_eq!(stats.problems[&Problem::Refused], 10);
    assert_eq!(loader.calls(), 10);
}

#[tokio::test]
async fn a_cache_with_the_wrong_password_costs_no_read() {
    let redis = redis_with(&[("requirepass", "secret")]);
    let cache = opened(&redis).build();
    let key = || Key::plain("key", HOUR);
    for _ in 0..10 {
        let read = cache.get_or_load(key(), || async { Ok::<_, Infallible>(7) });
        assert_eq!(tokio::time::timeout(LONG, read).await.unwrap().unwrap(), 7);
    }
    assert_eq!(cache.stats().reads["other"].bypass, 10);
}

/// Leads TCP connections to a server.
struct Proxy {
    port: u16,
    swallow: tokio::sync::watch::Sender<u64>,
}

impl Proxy {
    async fn to(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let swallow = tokio::sync::watch::Sender::new(0);
        let swallowing = swallow.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut swallowed = swallowing.subscribe();
                tokio::spawn(async move {
                    let mut server =
                        tokio::net::TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
                        _ = swallowed.changed() => {}
                    }
                    // Still open, and read by nobody.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { port, swallow }
    }

    /// From now on nothing passes through the present connections.
    async fn swallow_connections(&self) {
        self.swallow.send_modify(|count| *count += 1);
        tokio::task::yield_now().await;
    }
}
