//! The relay of a fleet in Redis: a capped stream. Each entry has its reader, its number, and its changes as JSON.

use futures::future::BoxFuture;
use redis::{Cmd, Value};

use super::server::Role;
use super::{RedisCache, reply};
use crate::domain::change::Change;
use crate::engine::ports::{
    CacheError, CacheErrorKind, MOST_PASSED, PASSED_AT_ONCE, Passed, RELAY_KEY, RELAY_TTL, Relay,
};

/// The commands that the relay needs besides [`RIGHTS`](super::RIGHTS).
pub const RELAY_RIGHTS: &str = "+xadd +xread +xrevrange";

/// Before the first entry.
const START: &str = "0";

fn unreadable(what: &str) -> CacheError {
    let message = format!("cannot read the fleet's relay `{RELAY_KEY}`: {what}");
    CacheError { kind: CacheErrorKind::Refused, message }
}

fn entry((id, fields): (String, Vec<(String, String)>)) -> Result<Passed, CacheError> {
    let field = |name: &str| {
        let found = fields.iter().find(|(known, _)| known == name);
        found.map(|(_, text)| text.as_str()).ok_or_else(|| unreadable(name))
    };
    let number = |name: &str| field(name)?.parse().map_err(|_no_number| unreadable(name));
    let (reader, number) = (number("reader")?, number("number")?);
    let changes: Vec<Change> =
        serde_json::from_str(field("changes")?).map_err(|error| unreadable(&error.to_string()))?;
    Ok(Passed { id, reader, number, changes })
}

impl RedisCache {
    fn pass_command(&self, entry: &Passed) -> Result<Cmd, CacheError> {
        let changes = serde_json::to_string(&entry.changes)
            .map_err(|error| unreadable(&error.to_string()))?;
        let mut command = self.on("XADD", RELAY_KEY);
        command.arg("MAXLEN").arg("~").arg(MOST_PASSED).arg("*");
        command.arg("reader").arg(entry.reader).arg("number").arg(entry.number);
        command.arg("changes").arg(changes);
        Ok(command)
    }

    async fn entries(&self, command: Cmd) -> Result<Value, CacheError> {
        let replies = self.all(Role::Questions, vec![command]).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Nil))
    }
}

impl Relay for RedisCache {
    fn pass<'a>(&'a self, entry: &'a Passed) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let commands = vec![self.pass_command(entry)?, self.expire_after(RELAY_KEY, RELAY_TTL)];
            self.all(Role::Questions, commands).await.map(drop)
        })
    }

    fn last(&self) -> BoxFuture<'_, Result<Option<Passed>, CacheError>> {
        Box::pin(async move {
            let mut command = self.on("XREVRANGE", RELAY_KEY);
            command.arg("+").arg("-").arg("COUNT").arg(1);
            let entries = reply::stream_entries(self.entries(command).await?)?;
            entries.into_iter().next().map(entry).transpose()
        })
    }

    fn after<'a>(&'a self, id: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Passed>, CacheError>> {
        Box::pin(async move {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(PASSED_AT_ONCE).arg("STREAMS");
            self.key(&mut command, RELAY_KEY);
            command.arg(id.unwrap_or(START));
            let entries = reply::entries_of_stream(self.entries(command).await?)?;
            entries.into_iter().map(entry).collect()
        })
    }
}
