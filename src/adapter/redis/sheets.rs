//! The sheets of a fleet in Redis: each is a hash with a TTL, and a hash for each kind has their ids.
//!
//! The hash of the ids may name a sheet that has expired; who reads it then removes the id.

use std::time::Duration;

use futures::future::BoxFuture;
use redis::Cmd;

use super::server::Role;
use super::{RedisCache, reply};
use crate::engine::ports::{CacheError, Sheet, SheetKind, Sheets};

/// How long the ids of sheets are kept after the last of them was written: longer than any sheet lives.
const IDS_TTL: Duration = Duration::from_hours(1);

impl RedisCache {
    async fn read_sheets(&self, kind: SheetKind) -> Result<Vec<Sheet>, CacheError> {
        let ids = self.all(Role::Questions, vec![self.on("HGETALL", &kind.key())]).await?;
        let mut sheets = Vec::new();
        for reply in ids {
            let ids =
                reply::pairs(reply)?.into_iter().map(|(id, _)| Sheet { id, ..Sheet::default() });
            sheets.extend(ids);
        }
        let looks = sheets.iter().map(|sheet| self.on("HGETALL", &kind.key_of(&sheet.id)));
        let replies = self.all(Role::Questions, looks.collect()).await?;
        for (sheet, reply) in sheets.iter_mut().zip(replies) {
            sheet.fields = reply::pairs(reply)?.into_iter().collect();
        }
        let (there, gone): (Vec<_>, Vec<_>) =
            sheets.into_iter().partition(|sheet| !sheet.fields.is_empty());
        let forget = gone.iter().map(|sheet| self.forget_id(kind, &sheet.id));
        self.all(Role::Questions, forget.collect()).await?;
        Ok(there)
    }

    fn forget_id(&self, kind: SheetKind, id: &str) -> Cmd {
        let mut forget = self.on("HDEL", &kind.key());
        forget.arg(id);
        forget
    }
}

impl Sheets for RedisCache {
    fn put<'a>(
        &'a self,
        (kind, id): (SheetKind, &'a str),
        field: &'a str,
        text: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let (sheet, ids) = (kind.key_of(id), kind.key());
            let mut put = self.on("HSET", &sheet);
            put.arg(field).arg(text);
            let mut list = self.on("HSET", &ids);
            list.arg(id).arg("");
            let commands =
                vec![put, self.expire_after(&sheet, ttl), list, self.expire_after(&ids, IDS_TTL)];
            self.all(Role::Questions, commands).await.map(drop)
        })
    }

    fn read(&self, kind: SheetKind) -> BoxFuture<'_, Result<Vec<Sheet>, CacheError>> {
        Box::pin(self.read_sheets(kind))
    }

    fn remove<'a>(&'a self, kind: SheetKind, id: &'a str) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let end = self.expire_after(&kind.key_of(id), Duration::ZERO);
            self.all(Role::Questions, vec![end, self.forget_id(kind, id)]).await.map(drop)
        })
    }
}
