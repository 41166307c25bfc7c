//! What the tests share: a server and a key of a test's own, loaders that count, waits for a state.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use preheat_client::{Builder, Cache, Connection, Fill, Key};
use preheat_sandbox::{Redis, RedisOptions};
use redis::aio::{ConnectionManager, MultiplexedConnection};
use redis::{Client, FromRedisValue, cmd};
use tokio::sync::Notify;

/// Far longer than anything takes on a slow machine: a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A deadline that a busy machine keeps: only tests of servers that do not answer have a shorter one.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn redis() -> Redis {
    redis_with(&[])
}

/// A server with settings as in `redis.conf`.
pub(crate) fn redis_with(settings: &[(&str, &str)]) -> Redis {
    let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Redis::start(&RedisOptions { tcp: true, settings, ..RedisOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The settings of a cache on a connection of its own, as an application has it.
pub(crate) async fn builder(redis: &Redis) -> Builder {
    let client = Client::open(redis.url()).unwrap();
    let connection = ConnectionManager::new(client).await.unwrap();
    Cache::builder(connection).deadline(PATIENT)
}

pub(crate) async fn cache(redis: &Redis) -> Cache {
    builder(redis).await.build()
}

/// The settings of a cache on a connection that the cache makes itself.
pub(crate) fn opened(redis: &Redis) -> Builder {
    Cache::builder(Connection::open(&redis.url()).unwrap())
}

/// A second client, which looks at what the cache does.
#[derive(Clone)]
pub(crate) struct Eye(MultiplexedConnection);

pub(crate) async fn eye(redis: &Redis) -> Eye {
    eye_at(&redis.url()).await
}

pub(crate) async fn eye_at(url: &str) -> Eye {
    let client = Client::open(url).unwrap();
    Eye(client.get_multiplexed_async_connection().await.unwrap())
}

impl Eye {
    /// Sends a command, given as its words.
    pub(crate) async fn ask<V: FromRedisValue>(&mut self, words: &[&str]) -> V {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.0).await.unwrap()
    }

    pub(crate) async fn get(&mut self, key: &str) -> Option<String> {
        self.ask(&["GET", key]).await
    }

    pub(crate) async fn keys(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", "*"]).await;
        keys.sort();
        keys
    }

    /// How long a key still lives.
    pub(crate) async fn ttl(&mut self, key: &str) -> Duration {
        let millis: i64 = self.ask(&["PTTL", key]).await;
        Duration::from_millis(u64::try_from(millis).expect("the key lives and has a TTL"))
    }

    /// How often a command was run since the last `CONFIG RESETSTAT`.
    pub(crate) async fn calls(&mut self, command: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]).await;
        let line = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|found| found.strip_prefix(&line));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }
}

/// The key of a clinic's services.
pub(crate) fn services() -> Key<Vec<String>> {
    services_of("42")
}

pub(crate) fn services_of(tenant: &str) -> Key<Vec<String>> {
    let key = format!("services:{tenant}");
    Key::new(key, Some(tenant.to_owned()), HOUR, "services", Fill::Full)
}

pub(crate) fn pet(id: u32) -> Key<String> {
    Key::new(format!("pet:{id}"), Some("42".to_owned()), HOUR, "pets", Fill::Brief)
}

pub(crate) fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// A loader that counts its calls and waits until the test lets it end.
#[derive(Clone, Default)]
pub(crate) struct Loader {
    begun: Arc<AtomicUsize>,
    go: Arc<Notify>,
    waits: bool,
}

impl Loader {
    /// One that does not wait.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn waiting() -> Self {
        Self { waits: true, ..Self::default() }
    }

    pub(crate) fn calls(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Lets one call end.
    pub(crate) fn go(&self) {
        self.go.notify_one();
    }

    pub(crate) async fn has_begun(&self, calls: usize) {
        eventually("the loader was called", async || self.calls() >= calls).await;
    }

    /// A call that returns this value.
    pub(crate) async fn load<T>(self, value: T) -> Result<T, Infallible> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if self.waits {
            self.go.notified().await;
        }
        Ok(value)
    }

    /// Reads through this loader.
    pub(crate) async fn read(
        &self,
        cache: &Cache,
        key: Key<Vec<String>>,
        names: &[&str],
    ) -> Vec<String> {
        let (loader, names) = (self.clone(), list(names));
        cache.get_or_load(key, || loader.load(names)).await.unwrap()
    }

    /// Reads through this loader in a task of its own.
    pub(crate) fn spawn_read(
        &self,
        cache: &Cache,
        key: Key<Vec<String>>,
        names: &[&str],
    ) -> tokio::task::JoinHandle<Vec<String>> {
        let (loader, cache, names) = (self.clone(), cache.clone(), list(names));
        tokio::spawn(async move { cache.get_or_load(key, || loader.load(names)).await.unwrap() })
    }
}

/// Waits for a state.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let until = Instant::now() + LONG;
    while !is_so().await {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
