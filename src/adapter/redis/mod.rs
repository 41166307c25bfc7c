//! The cache on Redis, and on servers that speak its protocol.

mod ledger;
mod link;
mod pauses;
mod reply;
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use redis::{Arg, Cmd, Pipeline, RedisError, RedisResult, RedisWrite, Value};
use secrecy::SecretString;

use crate::domain::entry::Entry;
use crate::domain::glob;
use crate::engine::ports::{
    Cache, CacheError, CacheErrorKind, CacheStats, Found, KeyResult, STATS_COMMANDS, Size, Slice,
};

use super::{ConnectError, ConnectErrorKind};
use link::Link;

pub use reply::RIGHTS;

/// A pipeline is sent when it has this many bytes: enough that the round trip does not matter, and
/// few enough that the server's other clients do not wait for it.
const PIPELINE_BYTES: usize = 256 * 1024;
/// A pipeline is sent when it has this many commands.
const PIPELINE_COMMANDS: usize = 500;
/// The `COUNT` of a `SCAN`: how many keys the server looks at in one step, while it serves no other
/// client.
const SCAN_COUNT: usize = 500;
/// The sections of `INFO` that hold the figures we show. Before Redis 7 the command takes one
/// section at a time.
const INFO: [&str; STATS_COMMANDS] = ["server", "memory", "stats", "keyspace"];

/// How to reach the cache.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// `redis://`, `rediss://` or `redis+unix://`, with user, password and database number.
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

/// The cache on one Redis server.
///
/// It keeps two connections, which all callers share: on one connection, a small question would
/// wait behind the values of other batches. Commands on different connections have no order, so a
/// command that must come after another is sent when the other one is answered. After a timeout or
/// a break the next caller makes a new connection.
#[derive(Debug)]
pub struct RedisCache {
    /// For values, and for commands on their keys.
    values: Link,
    /// For preheat's own data and for questions about the server.
    questions: Link,
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

    /// Connects and sends one command, to see whether the server is ready: a server that is still
    /// loading its data accepts connections and refuses commands.
    pub async fn reach(&self) -> Result<(), ConnectError> {
        tokio::try_join!(self.values.check(), self.questions.check())?;
        let away = |message| ConnectError { kind: ConnectErrorKind::Unreachable, message };
        let asked = self.each(&self.questions, vec![redis::cmd("PING")]).await;
        let replies = asked.map_err(|error| away(error.message))?;
        // An ACL may deny this user the command. That says nothing about the server.
        let Some(error) = errors(&replies).find(|error| reply::is_not_ready(error)) else {
            return Ok(());
        };
        let reason = reply::refused(error).message;
        Err(away(format!("cache `{}` is not ready: {reason}", self.server())))
    }

    /// Checks the settings. The first command connects.
    pub fn lazy(settings: CacheSettings) -> Result<Self, ConnectError> {
        let values = Link::new(&settings)?;
        let questions = values.another();
        Ok(Self { values, questions, prefix: settings.prefix, has_unlink: AtomicBool::new(true) })
    }

    /// The server's address for messages: without user and password.
    pub fn server(&self) -> &str {
        self.values.server()
    }

    /// Sends a pipeline and reads all replies. It replaces a broken connection once. After a
    /// timeout the caller decides whether to try again, because it has waited long already.
    async fn send(
        &self,
        link: &Link,
        pipeline: &Pipeline,
    ) -> Result<Vec<RedisResult<Value>>, CacheError> {
        let mut broken_before = false;
        loop {
            let mut lent = link.connection().await?;
            let sent: RedisResult<Vec<RedisResult<Value>>> =
                pipeline.query_async(&mut lent.connection).await;
            let error = match sent {
                Ok(replies) if replies.len() == pipeline.len() => return Ok(replies),
                Ok(replies) => {
                    link.forget(&lent);
                    return Err(self.miscounted(pipeline.len(), replies.len()));
                }
                Err(error) => error,
            };
            link.forget(&lent);
            if error.is_timeout() || broken_before {
                return Err(link.lost(&error));
            }
            broken_before = true;
        }
    }

    fn miscounted(&self, commands: usize, replies: usize) -> CacheError {
        let server = self.server();
        let message = format!("cache `{server}` gave {replies} replies to {commands} commands");
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }

    /// Sends commands in pipelines and reads all replies.
    async fn each(
        &self,
        link: &Link,
        commands: Vec<Cmd>,
    ) -> Result<Vec<RedisResult<Value>>, CacheError> {
        let mut all = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter().peekable();
        while commands.peek().is_some() {
            let mut pipeline = Pipeline::with_capacity(commands.len().min(PIPELINE_COMMANDS));
            pipeline.ignore_errors();
            let mut bytes = 0;
            while pipeline.len() < PIPELINE_COMMANDS
                && bytes < PIPELINE_BYTES
                && let Some(command) = commands.next()
            {
                bytes += length(&command);
                pipeline.add_command(command);
            }
            let replies = self.send(link, &pipeline).await?;
            self.notice(&replies);
            all.extend(replies);
        }
        Ok(all)
    }

    /// Like [`Self::each`], but one refused command makes it fail. Other commands may have been
    /// done by then.
    async fn all(&self, link: &Link, commands: Vec<Cmd>) -> Result<Vec<Value>, CacheError> {
        let replies = self.each(link, commands).await?.into_iter();
        replies.map(|reply| reply.map_err(|error| reply::refused(&error))).collect()
    }

    /// A pipeline of the first entries, as many as fit into one; returns their number, too.
    fn pack(&self, entries: &[Entry<'_>]) -> (Pipeline, usize) {
        let mut pipeline = Pipeline::with_capacity(entries.len().min(PIPELINE_COMMANDS));
        pipeline.ignore_errors();
        let mut bytes = 0;
        let mut count = 0;
        for entry in entries.iter().take(PIPELINE_COMMANDS) {
            pipeline.add_command(self.set(entry));
            count += 1;
            bytes += entry.key.len() + entry.value.len();
            if bytes >= PIPELINE_BYTES {
                break;
            }
        }
        (pipeline, count)
    }

    /// `SET key value PX ttl`. The value's pieces are copied from the rows straight into the
    /// command.
    fn set(&self, entry: &Entry<'_>) -> Cmd {
        const ARGUMENTS: usize = 5;
        const WORDS: usize = "SETPX".len() + 20;
        let bytes = self.prefix.len() + entry.key.len() + entry.value.len() + WORDS;
        let mut command = Cmd::with_capacity(ARGUMENTS, bytes);
        command.arg("SET");
        self.key(&mut command, &entry.key);
        write_pieces(&mut command, entry.value.pieces());
        command.arg("PX").arg(milliseconds(entry.ttl));
        command
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
        write_pieces(command, [self.prefix.as_bytes(), key.as_bytes()].into_iter());
    }

    /// Removes some keys with one pipeline.
    async fn remove_some(
        &self,
        keys: &[String],
    ) -> Result<Vec<Result<bool, CacheError>>, CacheError> {
        loop {
            let has_unlink = self.has_unlink.load(Ordering::Relaxed);
            let mut pipeline = Pipeline::with_capacity(keys.len());
            pipeline.ignore_errors();
            for key in keys {
                let mut command = redis::cmd(if has_unlink { "UNLINK" } else { "DEL" });
                self.key(&mut command, key);
                pipeline.add_command(command);
            }
            let replies = self.send(&self.values, &pipeline).await?;
            if has_unlink && errors(&replies).any(reply::is_unknown_command) {
                self.has_unlink.store(false, Ordering::Relaxed);
                continue;
            }
            self.notice(&replies);
            return Ok(replies.into_iter().map(reply::existed).collect());
        }
    }

    /// Drops both connections if the server answered that it is a replica now: it keeps its
    /// clients' connections. The next caller resolves the host name again, which leads to the new
    /// primary after a failover.
    fn notice(&self, replies: &[RedisResult<Value>]) {
        if errors(replies).any(reply::is_read_only) {
            self.values.forget_current();
            self.questions.forget_current();
        }
    }
}

impl Cache for RedisCache {
    fn write<'a>(
        &'a self,
        entries: &'a [Entry<'a>],
    ) -> BoxFuture<'a, Result<Vec<KeyResult>, CacheError>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(entries.len());
            let mut rest = entries;
            while !rest.is_empty() {
                let (pipeline, count) = self.pack(rest);
                let replies = self.send(&self.values, &pipeline).await?;
                self.notice(&replies);
                results.extend(replies.into_iter().map(reply::written));
                rest = rest.get(count..).unwrap_or_default();
            }
            Ok(results)
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
            self.all(&self.values, commands.collect()).await.map(drop)
        })
    }

    fn look<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Found>>, CacheError>> {
        Box::pin(async move {
            let commands = keys.iter().flat_map(|key| [self.on("GET", key), self.on("PTTL", key)]);
            let mut replies = self.all(&self.values, commands.collect()).await?.into_iter();
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
            let mut replies = self.all(&self.questions, commands.collect()).await?.into_iter();
            let mut sizes = Vec::with_capacity(keys.len());
            while let (Some(bytes), Some(ttl)) = (replies.next(), replies.next()) {
                sizes.push(reply::size(&bytes, &ttl)?);
            }
            Ok(sizes)
        })
    }

    fn exist<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<u64, CacheError>> {
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(0);
            }
            let mut command = redis::cmd("EXISTS");
            for key in keys {
                self.key(&mut command, key);
            }
            let replies = self.all(&self.questions, vec![command]).await?;
            replies.iter().map(reply::count).sum()
        })
    }

    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>> {
        Box::pin(async move {
            let mut command = redis::cmd("SCAN");
            command
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{}{pattern}", glob::escaped(&self.prefix)));
            command.arg("COUNT").arg(SCAN_COUNT);
            let mut slice = Slice::default();
            for reply in self.all(&self.questions, vec![command]).await? {
                let (next, keys) = reply::slice(reply)?;
                slice = Slice { next, keys: reply::texts(keys)? };
            }
            if !self.prefix.is_empty() {
                let bare = |key: String| key.strip_prefix(&self.prefix).map(str::to_owned);
                slice.keys = slice.keys.into_iter().filter_map(bare).collect();
            }
            Ok(slice)
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>> {
        Box::pin(async {
            let mut pipeline = Pipeline::with_capacity(INFO.len());
            pipeline.ignore_errors();
            for section in INFO {
                pipeline.cmd("INFO").arg(section);
            }
            let replies = self.send(&self.questions, &pipeline).await?;
            let mut text = String::new();
            for reply in replies {
                text.push_str(&reply::text(reply)?);
                text.push('\n');
            }
            Ok(reply::stats(&text))
        })
    }
}

/// At least 1: Redis refuses `SET` with a TTL of 0, and `PEXPIRE` with 0 deletes the key.
fn milliseconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// The number of bytes in a command's arguments.
fn length(command: &Cmd) -> usize {
    let bytes =
        |argument: Arg<&[u8]>| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 };
    command.args_iter().map(bytes).sum()
}

/// Writes one argument from several pieces, without joining them elsewhere first.
fn write_pieces<'p>(command: &mut Cmd, pieces: impl Iterator<Item = &'p [u8]>) {
    let mut argument = command.writer_for_next_arg();
    for piece in pieces {
        let _a_vec_takes_all = argument.write_all(piece);
    }
}

fn errors(replies: &[RedisResult<Value>]) -> impl Iterator<Item = &RedisError> {
    replies.iter().filter_map(|reply| reply.as_ref().err())
}
