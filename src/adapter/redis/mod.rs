//! The cache on Redis, and on servers that speak its protocol.

mod cluster;
mod connection;
mod leases;
mod ledger;
mod link;
mod pauses;
mod relay;
mod reply;
mod route;
mod sentinel;
mod server;
mod sheets;
mod slot;
mod stream;
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use redis::{Cmd, RedisWrite, Value};
use secrecy::{ExposeSecret, SecretString};

use crate::domain::entry::Entry;
use crate::domain::glob;
use crate::domain::server_url::CacheUrl;
use crate::domain::slots::Extent;
use crate::engine::ports::{
    Cache, CacheError, CacheErrorKind, CacheStats, Found, KeyResult, REGISTRY_KEY, Size, Slice,
};

use super::{ConnectError, ConnectErrorKind};
use reply::Reply;
use route::Route;
use server::{Commands, OnBreak, PIPELINE_COMMANDS, Role};
use slot::slot;

pub use leases::FLEET_RIGHTS;
pub use relay::RELAY_RIGHTS;
pub use reply::{CLUSTER_RIGHTS, RIGHTS};

/// The `COUNT` of a `SCAN`: how many keys the server looks at in one step, while it serves no other
/// client.
const SCAN_COUNT: usize = 500;
/// How many keys one `EXISTS` names at most.
const KEYS_AN_EXISTS: usize = 500;

/// How to reach the cache.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// As [`CacheUrl`] parses it.
    pub url: SecretString,
    /// The prefix of every key.
    pub prefix: String,
    /// The longest wait for a connection, and for the replies to one pipeline.
    pub timeout: Duration,
    /// For `rediss://`: a file with the certificates to trust instead of the public authorities.
    pub ca_file: Option<PathBuf>,
    /// Whether to verify the server's certificate.
    pub verify: bool,
}

/// The cache on a Redis server, or on a Redis Cluster.
#[derive(Debug)]
pub struct RedisCache {
    route: Route,
    prefix: String,
    /// Redis before version 4, and some servers that speak its protocol, have no `UNLINK`.
    has_unlink: AtomicBool,
}

impl RedisCache {
    /// Connects once, so that wrong settings and an unreachable server show at once.
    pub async fn connect(settings: CacheSettings) -> Result<Self, ConnectError> {
        let cache = Self::lazy(settings)?;
        cache.reach().await?;
        Ok(cache)
    }

    /// Connects and sends one command, to see whether the server is ready; on a cluster, each
    /// primary.
    pub async fn reach(&self) -> Result<(), ConnectError> {
        self.route.reach().await
    }

    /// Whether the server keeps keys: a Sentinel does not know the commands.
    pub async fn has_keys(&self) -> Result<(), ConnectError> {
        match self.exist(&[REGISTRY_KEY.to_owned()]).await {
            Err(error) if error.kind == CacheErrorKind::Refused => {
                let message = format!("`{}` is no cache: {error}", self.server());
                Err(ConnectError { kind: ConnectErrorKind::Settings, message })
            }
            // Whether the user may ask is another question.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Checks the settings. The first command connects.
    pub fn lazy(settings: CacheSettings) -> Result<Self, ConnectError> {
        let url = CacheUrl::parse(settings.url.expose_secret()).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            ConnectError::settings(format!("the cache's URL: {}", problems.join("; ")))
        })?;
        let route = Route::new(&url, &settings)?;
        Ok(Self { route, prefix: settings.prefix, has_unlink: AtomicBool::new(true) })
    }

    /// The server's address for messages: without user and password.
    pub fn server(&self) -> &str {
        self.route.name()
    }

    /// The address of the primary, if Sentinels have named it.
    pub fn primary(&self) -> Option<Arc<str>> {
        self.route.primary()
    }

    /// Sends commands and reads all replies. It replaces a broken connection once.
    async fn each(&self, role: Role, commands: Vec<Cmd>) -> Result<Vec<Reply>, CacheError> {
        self.route.each(role, OnBreak::Resend, &commands).await
    }

    /// Like [`Self::each`], but one refused command makes it fail. Other commands may have been
    /// done by then.
    async fn all(&self, role: Role, commands: Vec<Cmd>) -> Result<Vec<Value>, CacheError> {
        let replies = self.each(role, commands).await?.into_iter();
        replies.map(|reply| reply.map_err(CacheError::from)).collect()
    }

    /// A command whose first argument is a key.
    fn on(&self, name: &str, key: &str) -> Cmd {
        let mut command = redis::cmd(name);
        self.key(&mut command, key);
        command
    }

    fn expire_after(&self, key: &str, ttl: Duration) -> Cmd {
        let mut command = self.on("PEXPIRE", key);
        command.arg(milliseconds(ttl));
        command
    }

    fn key(&self, command: &mut Cmd, key: &str) {
        let mut argument = command.writer_for_next_arg();
        for piece in [self.prefix.as_bytes(), key.as_bytes()] {
            let _a_vec_takes_all = argument.write_all(piece);
        }
    }

    /// Removes some keys.
    async fn remove_some(
        &self,
        keys: &[String],
    ) -> Result<Vec<Result<bool, CacheError>>, CacheError> {
        loop {
            let has_unlink = self.has_unlink.load(Ordering::Relaxed);
            let name = if has_unlink { "UNLINK" } else { "DEL" };
            let commands = keys.iter().map(|key| self.on(name, key)).collect();
            let replies = self.each(Role::Values, commands).await?;
            if has_unlink && replies.iter().any(reply::is_unknown_command) {
                self.has_unlink.store(false, Ordering::Relaxed);
                continue;
            }
            return Ok(replies.into_iter().map(reply::existed).collect());
        }
    }
}

/// The writes of some entries.
struct Writes<'a> {
    cache: &'a RedisCache,
    entries: &'a [Entry<'a>],
}

impl Commands for Writes<'_> {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn slot(&self, index: usize) -> u16 {
        let Some(entry) = self.entries.get(index) else { return 0 };
        slot::slot(&[self.cache.prefix.as_bytes(), entry.key.as_bytes()].concat())
    }

    fn length(&self, index: usize) -> usize {
        let Some(entry) = self.entries.get(index) else { return 0 };
        self.cache.prefix.len() + entry.key.len() + entry.value.len()
    }

    /// `SET key value PX ttl`. The value's pieces are copied from the rows straight into the pipeline: once
    /// on their way to the connection.
    fn pack(&self, index: usize, into: &mut Vec<u8>) {
        let Some(entry) = self.entries.get(index) else { return };
        let (prefix, key) = (self.cache.prefix.as_bytes(), entry.key.as_bytes());
        into.extend_from_slice(b"*5\r\n$3\r\nSET\r\n");
        pack_argument(into, prefix.len() + key.len(), [prefix, key].into_iter());
        pack_argument(into, entry.value.len(), entry.value.pieces());
        into.extend_from_slice(b"$2\r\nPX\r\n");
        let mut ttl = itoa::Buffer::new();
        let ttl = ttl.format(milliseconds(entry.ttl)).as_bytes();
        pack_argument(into, ttl.len(), [ttl].into_iter());
    }
}

impl Cache for RedisCache {
    fn write<'a>(
        &'a self,
        entries: &'a [Entry<'a>],
    ) -> BoxFuture<'a, Result<Vec<KeyResult>, CacheError>> {
        Box::pin(async move {
            let writes = Writes { cache: self, entries };
            let replies = self.route.each(Role::Values, OnBreak::Resend, &writes).await?;
            Ok(replies.into_iter().map(reply::written).collect())
        })
    }

    fn remove<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Result<bool, CacheError>>, CacheError>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(keys.len());
            for some in keys.chunks(PIPELINE_COMMANDS) {
                results.extend(self.remove_some(some).await?);
            }
            Ok(results)
        })
    }

    fn expire<'a>(
        &'a self,
        keys: &'a [(String, Duration)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = keys.iter().map(|(key, ttl)| self.expire_after(key, *ttl));
            self.all(Role::Values, commands.collect()).await.map(drop)
        })
    }

    fn look<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Found>>, CacheError>> {
        Box::pin(async move {
            let commands = keys.iter().flat_map(|key| [self.on("GET", key), self.on("PTTL", key)]);
            let mut replies = self.all(Role::Values, commands.collect()).await?.into_iter();
            let mut found = Vec::with_capacity(keys.len());
            while let (Some(value), Some(ttl)) = (replies.next(), replies.next()) {
                found.push(reply::found(value, &ttl)?);
            }
            Ok(found)
        })
    }

    fn sizes<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Size>>, CacheError>> {
        Box::pin(async move {
            let commands =
                keys.iter().flat_map(|key| [self.on("STRLEN", key), self.on("PTTL", key)]);
            let mut replies = self.all(Role::Questions, commands.collect()).await?.into_iter();
            let mut sizes = Vec::with_capacity(keys.len());
            while let (Some(bytes), Some(ttl)) = (replies.next(), replies.next()) {
                sizes.push(reply::size(&bytes, &ttl)?);
            }
            Ok(sizes)
        })
    }

    fn exist<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<u64, CacheError>> {
        Box::pin(async move {
            let some = keys.chunks(self.route.keys_a_command(KEYS_AN_EXISTS));
            let commands = some.map(|some| {
                let mut command = redis::cmd("EXISTS");
                for key in some {
                    self.key(&mut command, key);
                }
                command
            });
            let replies = self.all(Role::Questions, commands.collect()).await?;
            replies.iter().map(reply::count).sum()
        })
    }

    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>> {
        Box::pin(async move {
            let command = |cursor: u64| {
                let mut command = redis::cmd("SCAN");
                command.arg(cursor).arg("MATCH");
                command.arg(format!("{}{pattern}", glob::escaped(&self.prefix)));
                command.arg("COUNT").arg(SCAN_COUNT);
                command
            };
            let mut slice = self.route.scan(cursor, command).await?;
            if !self.prefix.is_empty() {
                let bare = |key: String| key.strip_prefix(&self.prefix).map(str::to_owned);
                slice.keys = slice.keys.into_iter().filter_map(bare).collect();
            }
            Ok(slice)
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>> {
        Box::pin(self.route.stats())
    }

    fn servers(&self, keys: &[String]) -> Vec<usize> {
        let server =
            |key: &String| self.route.server_of(&[self.prefix.as_bytes(), key.as_bytes()].concat());
        keys.iter().map(server).collect()
    }

    fn slot(&self, key: &str) -> u16 {
        slot(&[self.prefix.as_bytes(), key.as_bytes()].concat())
    }

    fn lost_between(&self, before: u64, now: u64) -> Extent {
        self.route.lost_between(before, now)
    }
}

/// At least 1: Redis refuses `SET` with a TTL of 0, and `PEXPIRE` with 0 deletes the key.
fn milliseconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// Adds one argument, which several pieces make, as the server reads it.
fn pack_argument<'p>(into: &mut Vec<u8>, length: usize, pieces: impl Iterator<Item = &'p [u8]>) {
    into.push(b'$');
    into.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    into.extend_from_slice(b"\r\n");
    for piece in pieces {
        into.extend_from_slice(piece);
    }
    into.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::entry::Value;
    use crate::domain::job::{KeyKind, Shape};
    use crate::domain::row::{KeyText, Rows, RowsFull};

    #[test]
    fn a_url_that_is_none_is_an_error_that_does_not_quote_it() {
        for url in ["http://x:hush@y", "redis://x:hush@", "hush", "redis://x:hush@y/nine"] {
            let error = RedisCache::lazy(CacheSettings {
                url: SecretString::from(url),
                prefix: String::new(),
                timeout: Duration::from_secs(1),
                ca_file: None,
                verify: true,
            });
            let error = error.unwrap_err();
            assert_eq!(error.kind, ConnectErrorKind::Settings);
            assert!(!error.message.contains("hush"), "{}", error.message);
        }
    }

    #[test]
    fn an_entry_is_packed_as_the_library_packs_its_command() {
        let settings = CacheSettings {
            url: SecretString::from("redis://h"),
            prefix: "shop:".to_owned(),
            timeout: Duration::from_secs(1),
            ca_file: None,
            verify: true,
        };
        let cache = RedisCache::lazy(settings).unwrap();
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        for json in ["{\"a\":1}", "{}"] {
            let write = |row: &mut Vec<u8>| {
                row.extend_from_slice(json.as_bytes());
                Ok::<(), RowsFull>(())
            };
            rows.push(0, write, |_, _| Ok(KeyText::Null)).unwrap();
        }
        for members in [vec![], vec![0], vec![1, 0]] {
            let value = Value::new(&rows, members, Shape::List);
            let text = value.to_vec();
            let entry = Entry {
                key: "services:k\u{e9}".to_owned(),
                slot: 0,
                value,
                ttl: Duration::from_millis(1_234_567),
                kind: KeyKind::Static,
            };
            let mut packed = Vec::new();
            Writes { cache: &cache, entries: &[entry] }.pack(0, &mut packed);
            let mut command = redis::cmd("SET");
            command.arg("shop:services:k\u{e9}").arg(text).arg("PX").arg(1_234_567);
            assert_eq!(packed, command.get_packed_command());
        }
    }
}
