//! What preheat keeps for itself: fences are strings, manifests and books are hashes.
//!
//! A manifest is a hash whose fields are the keys, since small hashes are compact in every version
//! of Redis where sets of text are not; adding and taking out one field never disturbs another.

use std::time::Duration;

use futures::future::BoxFuture;
use redis::Cmd;

use super::{PIPELINE_COMMANDS, RedisCache, reply};
use crate::domain::fence::{FENCE_TTL, Fence};
use crate::engine::port::{BOOK_TTL, Book, CacheError, Ledger, Listing};

/// Fields of a hash that are asked for at once: the server does nothing else meanwhile.
const SLICE: usize = 1_000;

impl RedisCache {
    /// `MGET` for the fences: one command, however many.
    async fn read_fences(&self, keys: &[String]) -> Result<Vec<Fence>, CacheError> {
        let commands = keys.chunks(PIPELINE_COMMANDS).map(|some| {
            let mut command = redis::cmd("MGET");
            for key in some {
                self.key(&mut command, key);
            }
            command
        });
        let mut fences = Vec::with_capacity(keys.len());
        for reply in self.all(commands.collect()).await? {
            fences.extend(reply::fences(reply)?);
        }
        Ok(fences)
    }

    fn start(&self, key: &str, number: i64) -> Cmd {
        let mut command = redis::cmd("SET");
        self.key(&mut command, key);
        command.arg(number).arg("NX").arg("EX").arg(FENCE_TTL.as_secs());
        command
    }

    async fn read_book(&self, book: Book) -> Result<Vec<(String, String)>, CacheError> {
        let mut notes = Vec::new();
        let mut cursor = 0;
        loop {
            let mut command = self.on("HSCAN", book.key());
            command.arg(cursor).arg("COUNT").arg(SLICE);
            let mut pairs = Vec::new();
            for reply in self.all(vec![command]).await? {
                (cursor, pairs) = reply::slice(reply)?;
            }
            let mut pairs = pairs.into_iter();
            while let (Some(name), Some(text)) = (pairs.next(), pairs.next()) {
                notes.push((name, text));
            }
            if cursor == 0 {
                return Ok(notes);
            }
        }
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
        Box::pin(async move {
            let commands = fences.iter().flat_map(|(key, fence)| match fence {
                Fence::Missing => vec![self.start(key, number)],
                Fence::At(_) => {
                    let mut raise = self.on("INCRBY", key);
                    raise.arg(number);
                    vec![raise, self.expire_after(key, FENCE_TTL)]
                }
            });
            self.all(commands.collect()).await?;
            let keys: Vec<String> = fences.iter().map(|(key, _)| key.clone()).collect();
            self.read_fences(&keys).await
        })
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let moves = keys.iter().flat_map(|key| [self.start(key, number), self.on("INCR", key)]);
            self.all(moves.collect()).await.map(drop)
        })
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<String>>, CacheError>> {
        Box::pin(async move {
            let replies = self.all(keys.iter().map(|key| self.on("HKEYS", key)).collect()).await?;
            replies.into_iter().map(reply::texts).collect()
        })
    }

    fn enlist<'a>(
        &'a self,
        manifests: &'a [Listing],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = manifests.iter().flat_map(|Listing { manifest, keys }| {
                let names = (!keys.is_empty()).then(|| {
                    let mut names = self.on("HSET", manifest);
                    for key in keys {
                        names.arg(key).arg("");
                    }
                    names
                });
                names.into_iter().chain([self.expire_after(manifest, ttl)])
            });
            self.all(commands.collect()).await.map(drop)
        })
    }

    fn delist<'a>(&'a self, manifests: &'a [Listing]) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let named = manifests.iter().filter(|listing| !listing.keys.is_empty());
            let commands = named.map(|Listing { manifest, keys }| {
                let mut command = self.on("HDEL", manifest);
                command.arg(keys);
                command
            });
            self.all(commands.collect()).await.map(drop)
        })
    }

    fn notes(&self, book: Book) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        Box::pin(self.read_book(book))
    }

    fn note<'a>(
        &'a self,
        book: Book,
        notes: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let writes = notes.chunks(SLICE).map(|some| {
                let mut command = self.on("HSET", book.key());
                for (name, text) in some {
                    command.arg(name).arg(text);
                }
                command
            });
            let renewal = self.expire_after(book.key(), BOOK_TTL);
            self.all(writes.chain([renewal]).collect()).await.map(drop)
        })
    }

    fn strike<'a>(
        &'a self,
        book: Book,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = names.chunks(SLICE).map(|some| {
                let mut command = self.on("HDEL", book.key());
                command.arg(some);
                command
            });
            self.all(commands.collect()).await.map(drop)
        })
    }
}
