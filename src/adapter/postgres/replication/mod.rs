//! Postgres' streaming replication protocol, for logical decoding:
//! <https://www.postgresql.org/docs/current/protocol-replication.html>.

mod message;

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::CopyData;
use sqlx::postgres::PgConnectOptions;

pub(super) use self::message::{Content, Frame};
use super::wire::{self, Purpose, Refused, Reply, TextRow, ended, unexpected};

/// A connection that can stream the write-ahead log of one database.
pub(super) struct Session {
    wire: wire::Session,
}

impl Session {
    /// Connects to one server and logs in.
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let wire = wire::Session::connect(options, Purpose::Replication).await?;
        Ok(Self { wire })
    }

    /// Runs one command, or SQL, and returns its rows. If the caller gives up, the session is unusable.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, sqlx::Error> {
        self.wire.query(sql).await
    }

    /// Begins to stream. After this, [`Self::receive`] delivers what the server sends.
    pub(super) async fn start(&mut self, command: &str) -> Result<(), sqlx::Error> {
        self.wire.push_command(command)?;
        loop {
            match self.wire.reply().await? {
                Reply::CopyBoth => return Ok(()),
                Reply::Message(Message::ErrorResponse(error)) => {
                    return Err(Refused::error(&error));
                }
                Reply::Message(_) => {}
            }
        }
    }

    /// The next frame. A caller may give up at any time, and loses nothing.
    pub(super) async fn receive(&mut self) -> Result<Frame, sqlx::Error> {
        loop {
            if let Some(frame) = frame(self.wire.reply().await?)? {
                return Ok(frame);
            }
        }
    }

    /// The next frame that has arrived already.
    pub(super) fn received(&mut self) -> Result<Option<Frame>, sqlx::Error> {
        while let Some(reply) = self.wire.received()? {
            if let Some(frame) = frame(reply)? {
                return Ok(Some(frame));
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
    ) -> Result<(), sqlx::Error> {
        let status = message::status(position, wants_answer);
        CopyData::new(status)?.write(self.wire.output());
        Ok(())
    }
}

fn frame(reply: Reply) -> Result<Option<Frame>, sqlx::Error> {
    match reply {
        Reply::Message(Message::CopyData(data)) => {
            Frame::read(data.into_bytes()).map(Some).ok_or_else(unexpected)
        }
        Reply::Message(Message::ErrorResponse(error)) => Err(Refused::error(&error)),
        Reply::Message(Message::CopyDone) => Err(ended()),
        Reply::Message(_) | Reply::CopyBoth => Ok(None),
    }
}
