//! A client of Postgres' protocol: <https://www.postgresql.org/docs/current/protocol.html>.
//!
//! It reads large blocks and hands out each row where it lies in its buffer, which sqlx does not do, and it can
//! stream the write-ahead log. Errors are those of sqlx, so that each has one translation.

mod connect;
mod parameter;
mod query;
mod refusal;
mod types;

use std::io;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use futures::FutureExt;
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(super) use self::connect::Purpose;
pub(super) use self::parameter::Parameter;
pub(super) use self::query::{Described, Execution, Row, Stopped};
pub(super) use self::refusal::Refused;
use self::types::OwnTypes;
use crate::adapter::Stream;

/// How much is read at once.
const READ_BYTES: usize = 128 << 10;

/// A session between two uses keeps a buffer of at most this size.
const KEPT_BYTES: usize = 1 << 20;

/// The largest message, other than a row, that a session takes into memory.
const LONGEST_MESSAGE: usize = 16 << 20;

/// The length of a message's tag and of the length that follows it.
const HEADER_BYTES: usize = 5;

/// A connection to one database.
pub(super) struct Session {
    stream: Box<dyn Stream>,
    /// Received and not yet understood.
    input: BytesMut,
    /// Waits to be sent. It outlives a caller that gives up, so that no message is sent in part.
    output: BytesMut,
    /// How many `ReadyForQuery` the server still owes.
    due: usize,
    /// The status in the last `ReadyForQuery`.
    status: u8,
    /// The database's own types that this session has met.
    types: OwnTypes,
}

/// A row of a simple query: its columns as texts.
pub(super) type TextRow = Vec<Option<String>>;

/// A message of the server.
pub(super) enum Reply {
    /// From now on both sides stream.
    CopyBoth,
    Message(Message),
}

/// The status of a session without a transaction.
const IDLE: u8 = b'I';

impl Session {
    fn over(stream: Box<dyn Stream>) -> Self {
        let (input, output, types) = Default::default();
        Self { stream, input, output, due: 0, status: 0, types }
    }

    /// Whether the session is in no transaction, and everything was answered: the next user finds it as new.
    pub(super) fn is_at_rest(&self) -> bool {
        self.due == 0 && self.status == IDLE && self.output.is_empty() && self.input.is_empty()
    }

    /// Frees a buffer that grew under a long row.
    pub(super) fn shrink(&mut self) {
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
            self.input = BytesMut::new();
        }
    }

    /// Says goodbye as far as that needs no waiting, and closes the connection. A statement that still runs
    /// ends as soon as the server notices: see `client_connection_check_interval`.
    pub(super) fn abandon(mut self) {
        const TERMINATE: &[u8] = b"X\0\0\0\x04";
        if self.output.is_empty() {
            self.output.extend_from_slice(TERMINATE);
            // Whether the server gets it does not matter.
            drop(self.send().now_or_never());
        }
    }

    /// Closes the session, and waits until the server has closed it as well.
    pub(super) async fn close(mut self) -> Result<(), sqlx::Error> {
        frontend::terminate(&mut self.output);
        self.send().await?;
        loop {
            self.input.clear();
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(());
            }
        }
    }

    /// Runs one command, or SQL, and returns its rows. If the caller gives up, the session is not at rest.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, sqlx::Error> {
        self.drain().await?;
        self.push_query(sql)?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            match self.reply_or(&mut refused).await? {
                Reply::Message(Message::DataRow(row)) => rows.push(texts(&row)?),
                Reply::Message(Message::ErrorResponse(error)) => refused = Some(error),
                Reply::Message(Message::ReadyForQuery(_)) => {
                    return refused.map_or(Ok(rows), |error| Err(Refused::error(&error)));
                }
                Reply::Message(_) => {}
                Reply::CopyBoth => return Err(unexpected()),
            }
        }
    }

    /// Drops what is left of earlier answers, such as rows that their reader did not want.
    async fn drain(&mut self) -> Result<(), sqlx::Error> {
        while self.due > 0 {
            self.reply().await?;
        }
        Ok(())
    }

    /// Sends SQL for the simple protocol together with what is sent next.
    fn push_query(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        frontend::query(sql, &mut self.output)?;
        self.due += 1;
        Ok(())
    }

    /// Sends a command after which both sides stream.
    pub(super) fn push_command(&mut self, command: &str) -> Result<(), sqlx::Error> {
        Ok(frontend::query(command, &mut self.output)?)
    }

    /// The messages that are sent with the next exchange.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// The next message. A caller may give up at any time, and loses nothing.
    pub(super) async fn reply(&mut self) -> Result<Reply, sqlx::Error> {
        loop {
            if let Some(reply) = self.received()? {
                return Ok(reply);
            }
            self.exchange().await?;
        }
    }

    /// The next message. If the connection is lost after the server has refused, its refusal says why.
    async fn reply_or(
        &mut self,
        refused: &mut Option<ErrorResponseBody>,
    ) -> Result<Reply, sqlx::Error> {
        match self.reply().await {
            Ok(reply) => Ok(reply),
            Err(lost) => Err(refused.take().map_or(lost, |error| Refused::error(&error))),
        }
    }

    /// The next message that has arrived already.
    pub(super) fn received(&mut self) -> Result<Option<Reply>, sqlx::Error> {
        const COPY_BOTH: u8 = b'W';
        let Some((tag, whole)) = self.header() else { return Ok(None) };
        if whole > LONGEST_MESSAGE {
            return Err(sqlx::Error::Protocol("a message of the server is too large".to_owned()));
        }
        if tag == COPY_BOTH {
            let is_whole = self.input.len() >= whole;
            return Ok(is_whole.then(|| {
                self.input.advance(whole);
                Reply::CopyBoth
            }));
        }
        let message = Message::parse(&mut self.input)?;
        if let Some(Message::ReadyForQuery(ready)) = &message {
            self.due = self.due.checked_sub(1).ok_or_else(unexpected)?;
            self.status = ready.status();
        }
        Ok(message.map(Reply::Message))
    }

    /// The tag of the next message, and how long it is with its header.
    fn header(&self) -> Option<(u8, usize)> {
        header(&self.input)
    }

    /// Sends what waits, then reads something. Nothing is lost if the caller gives up.
    async fn exchange(&mut self) -> Result<(), sqlx::Error> {
        self.send().await?;
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(ended());
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), io::Error> {
        if self.output.is_empty() {
            return Ok(());
        }
        while !self.output.is_empty() {
            self.stream.write_buf(&mut self.output).await?;
        }
        self.stream.flush().await
    }
}

fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let (tag, rest) = bytes.split_first()?;
    let length = u32::from_be_bytes(*rest.first_chunk()?);
    Some((*tag, usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1)))
}

/// The server's answer does not belong to the protocol.
pub(super) fn unexpected() -> sqlx::Error {
    sqlx::Error::Protocol("the server's answer does not belong to the protocol".to_owned())
}

/// The connection has ended.
pub(super) fn ended() -> sqlx::Error {
    let reason =
        "the server, or something on the way to it, closed it; hint: the server's log says why";
    io::Error::new(io::ErrorKind::UnexpectedEof, reason).into()
}

fn texts(row: &DataRowBody) -> io::Result<TextRow> {
    let text = |range| {
        let bytes = row.buffer().get(range).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    row.ranges().map(|column| Ok(column.map(text))).collect()
}
