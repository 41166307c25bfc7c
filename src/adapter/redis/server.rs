//! One server, and the connections to it.

use std::sync::Arc;

use redis::{Arg, Cmd, RedisError, RedisResult, Value};

use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::engine::ports::{CacheError, CacheStats};

use super::connection::Packed;
use super::link::Link;
use super::reply::{self, Failed, Reply};
use super::slot::slot_of;

/// A pipeline is sent when it has this many bytes: enough that the round trip does not matter, and
/// few enough that the server's other clients do not wait for it.
const PIPELINE_BYTES: usize = 256 * 1024;
/// A pipeline is sent when it has this many commands.
pub(super) const PIPELINE_COMMANDS: usize = 500;
/// About how many bytes a command takes beside its arguments: their number, their lengths, line ends.
const OVERHEAD: usize = 64;

/// The section of `INFO` that tells the terms of a primary apart: a server that was demoted and
/// promoted again is the same process, and may lack what was written in between.
const REPLICATION: &str = "replication";

/// A server with its two connections, which all callers share: on one connection, a small question
/// would wait behind the values of other batches. Commands on different connections have no order,
/// so a command that must come after another is sent when the other one is answered. After a
/// timeout or a break the next caller makes a new connection.
#[derive(Debug)]
pub(super) struct Server {
    values: Link,
    questions: Link,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Values, and commands on their keys.
    Values,
    /// preheat's own data, and questions about the server.
    Questions,
}

/// What to do if the connection breaks before all commands of a pipeline are answered. The server
/// may have done any of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnBreak {
    /// Send the pipeline once more: it does no harm to do its commands twice.
    Resend,
    /// Leave it to the caller.
    Fail,
}

/// Commands that are made when they are sent, so that a batch's values are not in memory twice.
pub(super) trait Commands: Sync {
    /// How many there are.
    fn len(&self) -> usize;
    /// The slot of a command's key.
    fn slot(&self, index: usize) -> u16;
    /// About how many bytes a command takes.
    fn length(&self, index: usize) -> usize;
    /// Adds a command, as the server reads it.
    fn pack(&self, index: usize, into: &mut Vec<u8>);
}

/// One of some commands, as it is sent to one server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Which command it is.
    pub(super) index: usize,
    /// Whether `ASKING` goes before it.
    pub(super) is_asking: bool,
}

impl Server {
    /// A server with another connection beside this one.
    pub(super) fn new(values: Link) -> Self {
        let questions = values.another();
        Self { values, questions }
    }

    /// The server's address, without user and password.
    pub(super) fn name(&self) -> &str {
        self.values.server()
    }

    /// Connects and sends one command, to see whether the server is ready: a server that is still
    /// loading its data accepts connections and refuses commands.
    pub(super) async fn reach(&self) -> Result<(), ConnectError> {
        tokio::try_join!(self.values.check(), self.questions.check())?;
        let away = |message| ConnectError { kind: ConnectErrorKind::Unreachable, message };
        let ping = Packed::from(&redis::cmd("PING"));
        let asked = self.send(Role::Questions, OnBreak::Resend, &ping).await;
        let replies = asked.map_err(|error| away(error.message))?;
        // An ACL may deny this user the command. That says nothing about the server.
        let Some(error) = errors(&replies).find(|error| reply::is_not_ready(error)) else {
            return Ok(());
        };
        let reason = reply::refused(error).message;
        Err(away(format!("cache `{}` is not ready: {reason}", self.name())))
    }

    /// Sends commands in pipelines and reads all replies, which come in the order of `parts`. After
    /// a pipeline that was lost, no other one is sent.
    pub(super) async fn each(
        &self,
        role: Role,
        on_break: OnBreak,
        commands: &dyn Commands,
        parts: &[Part],
    ) -> Vec<Reply> {
        let mut all = Vec::with_capacity(parts.len());
        let mut rest = parts;
        while !rest.is_empty() {
            let (packed, count) = pack(commands, rest);
            let (now, later) = rest.split_at(count);
            let replies = match self.send(role, on_break, &packed).await {
                Ok(replies) => replies,
                Err(error) => {
                    all.extend(rest.iter().map(|_| Err(Failed::Lost(error.clone()))));
                    return all;
                }
            };
            self.notice(&replies);
            let mut replies = replies.into_iter();
            for part in now {
                if part.is_asking {
                    replies.next();
                }
                all.extend(replies.next().map(|reply| reply.map_err(Failed::Refused)));
            }
            rest = later;
        }
        all
    }

    /// Asks the server some questions.
    pub(super) async fn each_of(&self, questions: &Vec<Cmd>) -> Vec<Reply> {
        self.each(Role::Questions, OnBreak::Resend, questions, &whole(questions)).await
    }

    /// These sections of `INFO`. Before Redis 7 the command takes one section at a time.
    pub(super) async fn info(&self, sections: &[&str]) -> Result<String, CacheError> {
        let command = |section: &&str| {
            let mut command = redis::cmd("INFO");
            command.arg(*section);
            command
        };
        let mut text = String::new();
        for reply in self.each_of(&sections.iter().map(command).collect()).await {
            text.push_str(&reply::text(reply)?);
            text.push('\n');
        }
        Ok(text)
    }

    /// The server's figures. A primary that Sentinels name is confirmed first, so that the figures are not those
    /// of a former one.
    pub(super) async fn stats(&self, sections: &[&str]) -> Result<CacheStats, CacheError> {
        self.questions.confirm().await?;
        let mut sections = sections.to_vec();
        sections.extend(self.questions.is_named().then_some(REPLICATION));
        Ok(reply::stats(&self.info(&sections).await?))
    }

    /// The address of the primary, if Sentinels have named it.
    pub(super) fn primary(&self) -> Option<Arc<str>> {
        self.values.primary()
    }

    /// Sends a pipeline and reads all replies. After a timeout the caller decides whether to try
    /// again, because it has waited long already.
    async fn send(
        &self,
        role: Role,
        on_break: OnBreak,
        packed: &Packed,
    ) -> Result<Vec<RedisResult<Value>>, CacheError> {
        let link = match role {
            Role::Values => &self.values,
            Role::Questions => &self.questions,
        };
        let mut may_resend = matches!(on_break, OnBreak::Resend);
        loop {
            let lent = link.connection().await?;
            let error = match lent.connection.send(packed.clone()).await {
                Ok(replies) => {
                    let is_replica = errors(&replies).any(reply::is_read_only);
                    let demoted = is_replica.then(|| link.demoted(&lent)).flatten();
                    return demoted.map_or(Ok(replies), Err);
                }
                Err(error) => error,
            };
            link.forget(&lent);
            if error.is_timeout() || !may_resend {
                return Err(link.lost(&error));
            }
            may_resend = false;
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

impl Commands for Vec<Cmd> {
    fn len(&self) -> usize {
        self.len()
    }

    fn slot(&self, index: usize) -> u16 {
        self.get(index).map(slot_of).unwrap_or_default()
    }

    fn length(&self, index: usize) -> usize {
        self.get(index).map(length).unwrap_or_default()
    }

    fn pack(&self, index: usize, into: &mut Vec<u8>) {
        if let Some(command) = self.get(index) {
            command.write_packed_command(into);
        }
    }
}

/// All of these commands, in their order.
pub(super) fn whole(commands: &dyn Commands) -> Vec<Part> {
    (0..commands.len()).map(|index| Part { index, is_asking: false }).collect()
}

/// A pipeline of the first commands, as many as fit into one; returns their number, too.
fn pack(commands: &dyn Commands, parts: &[Part]) -> (Packed, usize) {
    let (mut length, mut count) = (0, 0);
    for part in parts.iter().take(PIPELINE_COMMANDS) {
        length += commands.length(part.index) + OVERHEAD;
        count += 1;
        if length >= PIPELINE_BYTES {
            break;
        }
    }
    let mut bytes = Vec::with_capacity(length);
    let mut replies = count;
    for part in parts.iter().take(count) {
        if part.is_asking {
            redis::cmd("ASKING").write_packed_command(&mut bytes);
            replies += 1;
        }
        commands.pack(part.index, &mut bytes);
    }
    (Packed { bytes: bytes.into(), commands: replies }, count)
}

/// The number of bytes in a command's arguments.
fn length(command: &Cmd) -> usize {
    let bytes =
        |argument: Arg<&[u8]>| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 };
    command.args_iter().map(bytes).sum()
}

fn errors(replies: &[RedisResult<Value>]) -> impl Iterator<Item = &RedisError> {
    replies.iter().filter_map(|reply| reply.as_ref().err())
}
