//! What preheat keeps in Redis for itself: fences are strings, manifests are sorted sets, the
//! registry is a hash.
//!
//! The score of a manifest's entry is the time of its last renewal, in milliseconds. Renewing an
//! entry and pruning the old ones are single commands, so neither can undo the other.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use redis::{Cmd, Value};

use super::RedisCache;
use super::reply::{self, Failed, Reply};
use super::server::{OnBreak, Role};
use crate::domain::fence::{FENCE_TTL, Fence};
use crate::domain::manifest::ManifestEntry;
use crate::domain::reads::READS_KEY;
use crate::engine::ports::{
    CacheError, CacheErrorKind, ENTRIES_A_COMMAND, FENCES_A_COMMAND, Ledger, ManifestEntries,
    REGISTRY_KEY, REGISTRY_TTL,
};

impl RedisCache {
    async fn ask(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, CacheError> {
        self.all(Role::Questions, commands).await
    }

    async fn read_fences(&self, keys: &[String]) -> Result<Vec<Fence>, CacheError> {
        fences(self.ask(self.look_at_fences(keys)).await?)
    }

    /// Sends commands that must not be done twice for one call: if the connection breaks before
    /// they are answered, the caller decides whether to call again.
    async fn each_once(&self, commands: Vec<Cmd>) -> Result<Vec<Reply>, CacheError> {
        self.route.each(Role::Questions, OnBreak::Fail, &commands).await
    }

    /// Reads the fences with `MGET`: [`FENCES_A_COMMAND`] keys a command, one on a cluster.
    fn look_at_fences(&self, keys: &[String]) -> Vec<Cmd> {
        let some = keys.chunks(self.route.keys_a_command(FENCES_A_COMMAND));
        let commands = some.map(|some| {
            let bytes = some.iter().map(|key| self.prefix.len() + key.len()).sum();
            let mut command = Cmd::with_capacity(1 + some.len(), bytes);
            command.arg("MGET");
            for key in some {
                self.key(&mut command, key);
            }
            command
        });
        commands.collect()
    }

    fn start(&self, key: &str, number: i64) -> Cmd {
        let mut command = self.replace(key, number);
        command.arg("NX");
        command
    }

    fn replace(&self, key: &str, number: i64) -> Cmd {
        let mut command = self.on("SET", key);
        command.arg(number).arg("EX").arg(FENCE_TTL.as_secs());
        command
    }

    async fn start_all(
        &self,
        seen: &[(String, Fence)],
        number: i64,
    ) -> Result<Vec<Fence>, CacheError> {
        let starts = seen.iter().flat_map(|(key, fence)| match fence {
            Fence::Missing => vec![self.start(key, number)],
            Fence::At(_) => {
                let mut raise = self.on("INCRBY", key);
                raise.arg(number);
                vec![raise, self.expire_after(key, FENCE_TTL)]
            }
        });
        let mut commands: Vec<Cmd> = starts.collect();
        let starts = commands.len();
        let keys: Vec<String> = seen.iter().map(|(key, _)| key.clone()).collect();
        // The reads follow the writes on the same connection, in the same round trip.
        commands.extend(self.look_at_fences(&keys));
        let mut replies = self.each_once(commands).await?;
        let looks = replies.split_off(starts);
        for reply in &replies {
            is_done_on_fence(reply)?;
        }
        let looks: Result<_, Failed> = looks.into_iter().collect();
        let fences = fences(looks?)?;
        let still_missing = keys.iter().zip(&fences).filter(|(_, fence)| **fence == Fence::Missing);
        let replacements: Vec<Cmd> =
            still_missing.map(|(key, _)| self.replace(key, number)).collect();
        if replacements.is_empty() {
            return Ok(fences);
        }
        self.ask(replacements).await?;
        self.read_fences(&keys).await
    }

    async fn move_all(&self, keys: &[String], number: i64) -> Result<(), CacheError> {
        let moves = keys.iter().flat_map(|key| [self.start(key, number), self.on("INCR", key)]);
        let replies = self.each_once(moves.collect()).await?;
        let mut replacements = Vec::new();
        for (key, replies) in keys.iter().zip(replies.as_chunks::<2>().0) {
            let [start, step] = replies;
            if !(is_done_on_fence(start)? && is_done_on_fence(step)?) {
                replacements.extend([self.replace(key, number), self.on("INCR", key)]);
            }
        }
        let replaced: Result<Vec<Value>, Failed> =
            self.each_once(replacements).await?.into_iter().collect();
        Ok(replaced.map(drop)?)
    }

    async fn read_registry(&self) -> Result<Vec<(String, String)>, CacheError> {
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            let redirections = self.route.redirections();
            let entries = self.scan_registry().await?;
            // A cursor means nothing on another server: if the registry moved between two pages,
            // entries may be missing.
            if self.route.redirections() == redirections {
                return Ok(entries);
            }
        }
        let message = "the registry moved between servers while it was read".to_owned();
        Err(CacheError { kind: CacheErrorKind::Transient, message })
    }

    async fn scan_registry(&self) -> Result<Vec<(String, String)>, CacheError> {
        // `HSCAN` may return a field more than once.
        let mut entries = HashMap::new();
        let mut cursor = 0;
        loop {
            let mut command = self.on("HSCAN", REGISTRY_KEY);
            command.arg(cursor).arg("COUNT").arg(ENTRIES_A_COMMAND);
            for reply in self.ask(vec![command]).await? {
                let (next, pairs) = reply::slice(reply)?;
                cursor = next;
                entries.extend(reply::pairs(pairs)?);
            }
            if cursor == 0 {
                return Ok(entries.into_iter().collect());
            }
        }
    }
}

/// The fences in the replies to `MGET`s.
fn fences(replies: Vec<Value>) -> Result<Vec<Fence>, CacheError> {
    let mut fences = Vec::new();
    for reply in replies {
        fences.extend(reply::fences(reply)?);
    }
    Ok(fences)
}

/// Whether the server did a command on a fence. `false` means that it refused, because the key does
/// not hold a number. The caller then replaces the key. That moves the fence for everybody who read
/// it, and no other command could have moved it.
fn is_done_on_fence(reply: &Reply) -> Result<bool, CacheError> {
    let Err(failed) = reply else { return Ok(true) };
    let error = CacheError::from(failed.clone());
    match error.kind {
        CacheErrorKind::WrongType | CacheErrorKind::Refused => Ok(false),
        CacheErrorKind::LeftAlone
        | CacheErrorKind::Unavailable
        | CacheErrorKind::Transient
        | CacheErrorKind::Full
        | CacheErrorKind::ReadOnly
        | CacheErrorKind::Moved
        | CacheErrorKind::Permission => Err(error),
    }
}

impl Ledger for RedisCache {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(self.read_fences(keys))
    }

    fn start_fences<'a>(
        &'a self,
        fences: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(self.start_all(fences, number))
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(self.move_all(keys, number))
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<ManifestEntry>>, CacheError>> {
        Box::pin(async move {
            let all = keys.iter().map(|key| {
                let mut command = self.on("ZRANGE", key);
                command.arg(0).arg(-1).arg("WITHSCORES");
                command
            });
            let replies = self.ask(all.collect()).await?;
            replies.into_iter().map(reply::manifest_entries).collect()
        })
    }

    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let now = now.timestamp_millis();
            let commands = manifests.iter().flat_map(|ManifestEntries { manifest, keys }| {
                let entries = keys.chunks(ENTRIES_A_COMMAND).map(move |some| {
                    let mut entries = self.on("ZADD", manifest);
                    for key in some {
                        entries.arg(now).arg(key);
                    }
                    entries
                });
                entries.chain([self.expire_after(manifest, ttl)])
            });
            self.ask(commands.collect()).await.map(drop)
        })
    }

    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = manifests.iter().map(|manifest| {
                let mut command = self.on("ZREMRANGEBYSCORE", manifest);
                command.arg("-inf").arg(format!("({}", before.timestamp_millis()));
                command
            });
            self.ask(commands.collect()).await.map(drop)
        })
    }

    fn registry(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        Box::pin(self.read_registry())
    }

    fn register<'a>(
        &'a self,
        entries: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let writes = entries.chunks(ENTRIES_A_COMMAND).map(|some| {
                let mut command = self.on("HSET", REGISTRY_KEY);
                for (tenant, text) in some {
                    command.arg(tenant).arg(text);
                }
                command
            });
            let renewal = self.expire_after(REGISTRY_KEY, REGISTRY_TTL);
            self.ask(writes.chain([renewal]).collect()).await.map(drop)
        })
    }

    fn deregister<'a>(&'a self, tenants: &'a [String]) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = tenants.chunks(ENTRIES_A_COMMAND).map(|some| {
                let mut command = self.on("HDEL", REGISTRY_KEY);
                command.arg(some);
                command
            });
            self.ask(commands.collect()).await.map(drop)
        })
    }

    fn reads<'a>(&'a self, fields: &'a [String]) -> BoxFuture<'a, Result<Vec<u64>, CacheError>> {
        Box::pin(async move {
            if fields.is_empty() {
                return Ok(Vec::new());
            }
            let mut command = self.on("HMGET", READS_KEY);
            command.arg(fields);
            let mut counts = Vec::with_capacity(fields.len());
            for reply in self.ask(vec![command]).await? {
                counts.extend(reply::counts(reply)?);
            }
            Ok(counts)
        })
    }
}
