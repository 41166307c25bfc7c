//! A client of Postgres' streaming replication protocol, for logical decoding:
//! <https://www.postgresql.org/docs/current/protocol-replication.html>.
//!
//! A session is a connection of its own, because the pool's driver cannot stream.

mod connect;
mod message;

use std::io;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend::{self, CopyData};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) use self::message::{Content, Frame};

/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// The largest message that a session takes into memory. Ours have some kilobytes; another program may
/// write larger ones into the same log.
const LONGEST_MESSAGE: usize = 16 << 20;

/// A connection that can stream the write-ahead log of one database.
pub(super) struct Session {
    stream: Box<dyn Stream>,
    /// Received and not yet understood.
    input: BytesMut,
    /// Waits to be sent. It outlives a caller that gives up, so that no message is sent in part.
    output: BytesMut,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplicationError {
    /// The connection broke, or could not be made.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server refused.
    #[error("{message} ({code})")]
    Server {
        /// Its SQLSTATE.
        code: String,
        /// Its message, which holds no data.
        message: String,
    },
    /// TLS cannot work as the URL says.
    #[error("{0}")]
    Tls(String),
    /// The server's answer does not belong to the protocol.
    #[error("{0}")]
    Protocol(&'static str),
}

/// A row of a simple query: its columns as texts.
pub(super) type Row = Vec<Option<String>>;

enum Reply {
    /// From now on both sides stream.
    CopyBoth,
    Message(Message),
}

impl Session {
    fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream, input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Runs one command, or SQL, and returns its rows. If the caller gives up, the session is unusable.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        frontend::query(sql, &mut self.output)?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            match self.reply().await? {
                Reply::Message(Message::DataRow(row)) => rows.push(texts(&row)?),
                Reply::Message(Message::ErrorResponse(error)) => refused = Some(server(&error)?),
                Reply::Message(Message::ReadyForQuery(_)) => {
                    return refused.map_or(Ok(rows), Err);
                }
                Reply::Message(_) => {}
                Reply::CopyBoth => return Err(UNEXPECTED),
            }
        }
    }

    /// Begins to stream. After this, [`Self::receive`] delivers what the server sends.
    pub(super) async fn start(&mut self, command: &str) -> Result<(), ReplicationError> {
        frontend::query(command, &mut self.output)?;
        loop {
            match self.reply().await? {
                Reply::CopyBoth => return Ok(()),
                Reply::Message(Message::ErrorResponse(error)) => return Err(server(&error)?),
                Reply::Message(_) => {}
            }
        }
    }

    /// The next frame. A caller may give up at any time, and loses nothing.
    pub(super) async fn receive(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            if let Some(frame) = self.received()? {
                return Ok(frame);
            }
            self.exchange().await?;
        }
    }

    /// The next frame that has arrived already.
    pub(super) fn received(&mut self) -> Result<Option<Frame>, ReplicationError> {
        while let Some(reply) = self.parse()? {
            match reply {
                Reply::Message(Message::CopyData(data)) => {
                    return Frame::read(data.into_bytes()).map(Some);
                }
                Reply::Message(Message::ErrorResponse(error)) => return Err(server(&error)?),
                Reply::Message(Message::CopyDone) => return Err(ENDED),
                Reply::Message(_) | Reply::CopyBoth => {}
            }
        }
        Ok(None)
    }

    /// Says that everything before `position` is no longer needed, and may ask for an answer. It is sent
    /// with the next [`Self::receive`].
    pub(super) fn acknowledge(
        &mut self,
        position: u64,
        wants_answer: bool,
    ) -> Result<(), ReplicationError> {
        let status = message::status(position, wants_answer);
        CopyData::new(status)?.write(&mut self.output);
        Ok(())
    }

    async fn reply(&mut self) -> Result<Reply, ReplicationError> {
        loop {
            if let Some(reply) = self.parse()? {
                return Ok(reply);
            }
            self.exchange().await?;
        }
    }

    fn parse(&mut self) -> Result<Option<Reply>, ReplicationError> {
        const COPY_BOTH: u8 = b'W';
        let mut header = self.input.as_ref();
        let (Ok(tag), Ok(length)) = (header.try_get_u8(), header.try_get_u32()) else {
            return Ok(None);
        };
        let whole = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1);
        if whole > LONGEST_MESSAGE {
            return Err(ReplicationError::Protocol("a message in the log is too large"));
        }
        if tag == COPY_BOTH {
            let is_whole = self.input.len() >= whole;
            return Ok(is_whole.then(|| {
                self.input.advance(whole);
                Reply::CopyBoth
            }));
        }
        Ok(Message::parse(&mut self.input)?.map(Reply::Message))
    }

    /// Sends what waits, then reads something. Nothing is lost if the caller gives up.
    async fn exchange(&mut self) -> Result<(), ReplicationError> {
        self.send().await?;
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(ENDED);
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), ReplicationError> {
        while !self.output.is_empty() {
            self.stream.write_buf(&mut self.output).await?;
        }
        self.stream.flush().await?;
        Ok(())
    }
}

const UNEXPECTED: ReplicationError =
    ReplicationError::Protocol("the server's answer does not belong to the replication protocol");
const ENDED: ReplicationError = ReplicationError::Protocol(
    "the server, or something on the way to it, closed it; hint: the server's log says why",
);

fn texts(row: &DataRowBody) -> io::Result<Row> {
    let text = |range| {
        let bytes = row.buffer().get(range).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    row.ranges().map(|column| Ok(column.map(text))).collect()
}

/// The server's error, without the parts that may hold data.
fn server(error: &ErrorResponseBody) -> io::Result<ReplicationError> {
    let (mut code, mut message) = (String::new(), String::new());
    let mut fields = error.fields();
    while let Some(field) = fields.next()? {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    Ok(ReplicationError::Server { code, message })
}

impl ReplicationError {
    /// The SQLSTATE, if the server refused.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            Self::Io(_) | Self::Tls(_) | Self::Protocol(_) => None,
        }
    }

    /// Whether the TLS handshake failed. The TLS library reports a bad certificate as bad data.
    pub(super) fn is_tls(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            Self::Tls(_) => true,
            Self::Server { .. } | Self::Protocol(_) => false,
        }
    }
}
