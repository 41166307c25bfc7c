//! The pauses of jobs in Redis, for workers without a history: a hash of JSON texts by job.

use futures::future::BoxFuture;
use redis::{Cmd, Value};

use super::server::Role;
use super::{RedisCache, reply};
use crate::domain::job::JobName;
use crate::domain::pause::{Pause, Pauses};
use crate::domain::server::Server;
use crate::engine::ports::{CacheError, PAUSES_KEY, PauseChanges, PauseStore, PauseStoreError};

/// The field that tells an empty hash from a hash that is gone.
const MARKER: &str = "";

impl RedisCache {
    async fn read_pauses(&self) -> Result<Option<Pauses>, CacheError> {
        let replies: Vec<Value> =
            self.all(Role::Questions, vec![self.on("HGETALL", PAUSES_KEY)]).await?;
        let mut fields = Vec::new();
        for reply in replies {
            fields.extend(reply::pairs(reply)?);
        }
        if fields.is_empty() {
            return Ok(None);
        }
        // A field that a newer version wrote, and this one cannot read, does not hide the others.
        let read = |(job, pause): (String, String)| {
            Some((JobName::parse(&job).ok()?, serde_json::from_str(&pause).ok()?))
        };
        Ok(Some(fields.into_iter().filter_map(read).collect()))
    }

    /// One command a change, as their number is small.
    fn change_of_pause(&self, job: &JobName, pause: Option<&Pause>) -> serde_json::Result<Cmd> {
        let mut command = match pause {
            Some(_) => self.on("HSET", PAUSES_KEY),
            None => self.on("HDEL", PAUSES_KEY),
        };
        command.arg(job.as_str());
        if let Some(pause) = pause {
            command.arg(serde_json::to_string(pause)?);
        }
        Ok(command)
    }
}

impl PauseStore for RedisCache {
    fn pauses(&self) -> BoxFuture<'_, Result<Option<Pauses>, PauseStoreError>> {
        Box::pin(async move {
            let read = self.read_pauses().await;
            read.map_err(|error| {
                PauseStoreError(format!("could not read the pauses: {}", error.message))
            })
        })
    }

    fn keep<'a>(&'a self, changes: &'a PauseChanges) -> BoxFuture<'a, Result<(), PauseStoreError>> {
        Box::pin(async move {
            let failed = |why: &str| PauseStoreError(format!("could not keep the pauses: {why}"));
            let mut marker = self.on("HSET", PAUSES_KEY);
            marker.arg(MARKER).arg("");
            let mut commands = vec![marker];
            for (job, pause) in changes {
                let command = self.change_of_pause(job, pause.as_ref());
                commands.push(command.map_err(|error| failed(&error.to_string()))?);
            }
            let kept = self.all(Role::Questions, commands).await;
            kept.map(drop).map_err(|error| failed(&error.message))
        })
    }

    fn server(&self) -> Server {
        Server::Cache
    }
}
