//! Why a connection could not be made.

use std::io;
use std::time::Duration;

use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::engine::ports::{SourceError, SourceErrorKind};

use super::error;

/// Why a connection could not be made.
pub(super) struct NotConnected {
    pub(super) kind: ConnectErrorKind,
    /// Whether the server may take connections in a moment: it starts, or has too many.
    pub(super) may_pass: bool,
    pub(super) server: String,
    pub(super) reason: String,
}

impl NotConnected {
    pub(super) fn new(server: &str, error: &sqlx::Error) -> Self {
        let kind = Self::kind(error::code(error), error::is_tls(error));
        let hint = error::connect_hint(error).map(|hint| format!("; hint: {hint}"));
        let reason = error::text(error) + &hint.unwrap_or_default();
        Self { may_pass: may_pass(error), ..Self::because(server, kind, &reason) }
    }

    fn kind(code: Option<&str>, is_tls: bool) -> ConnectErrorKind {
        match code {
            // The server is starting or stopping, or has no connection left.
            Some(code) if code.starts_with("57P") || code.starts_with("53") => {
                ConnectErrorKind::Unreachable
            }
            Some(_) => ConnectErrorKind::Refused,
            None if is_tls => ConnectErrorKind::Refused,
            None => ConnectErrorKind::Unreachable,
        }
    }

    /// A session that streams the write-ahead log could not begin.
    pub(super) fn replicating(server: &str, error: &sqlx::Error) -> Self {
        let kind = Self::kind(error::code(error), error::is_tls(error));
        let hint = match error::code(error) {
            Some("42501") => Some(
                "messages through the write-ahead log need a role with REPLICATION \
                 (`alter role … replication`), which may read the whole cluster; \
                 `preheat changes install --via notify` needs no right",
            ),
            Some("53300") => Some("every worker takes one WAL sender: raise `max_wal_senders`"),
            Some("08P01" | "0A000") => Some(
                "a pooler does not pass on replication connections: set `[changes] url` to \
                 the server's own address",
            ),
            _ => error::connect_hint(error),
        };
        let hint = hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
        Self::because(server, kind, &(error::words(error) + &hint))
    }

    pub(super) fn because(server: &str, kind: ConnectErrorKind, reason: &str) -> Self {
        let (server, reason) = (server.to_owned(), reason.to_owned());
        Self { kind, may_pass: false, server, reason }
    }

    pub(super) fn in_time(server: &str, patience: Duration) -> Self {
        let reason = format!("no answer within {patience:?}");
        Self::because(server, ConnectErrorKind::Unreachable, &reason)
    }

    pub(super) fn message(&self) -> String {
        format!("could not connect to database `{}`: {}", self.server, self.reason)
    }

    pub(super) fn into_error(self) -> ConnectError {
        ConnectError { kind: self.kind, message: self.message() }
    }

    pub(super) fn into_source_error(self) -> SourceError {
        SourceError { kind: SourceErrorKind::Unavailable, message: self.message() }
    }
}

/// Whether the server answered that it takes no connection just now.
fn may_pass(error: &sqlx::Error) -> bool {
    const TOO_MANY_CONNECTIONS: &str = "53300";
    const CANNOT_CONNECT_NOW: &str = "57P03";
    if let sqlx::Error::Io(error) = error {
        return error.kind() == io::ErrorKind::ConnectionRefused;
    }
    matches!(error::code(error), Some(TOO_MANY_CONNECTIONS | CANNOT_CONNECT_NOW))
}
