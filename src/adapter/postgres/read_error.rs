//! The reasons why a read can fail. The adapter turns them into the engine's [`SourceError`].

use std::time::Duration;

use tokio::time::timeout;

use crate::engine::ports::{SourceError, SourceErrorKind};

use super::id::BadId;
use super::{ANSWER_GRACE, error};

/// A read that failed.
pub(super) enum ReadError {
    /// The server or the driver reported an error.
    Sql {
        /// The error.
        error: sqlx::Error,
        /// The number of characters before the query in the text that the server got.
        before: usize,
    },
    /// The query uses more parameters than it is given.
    Parameters {
        /// The number that the query uses.
        wanted: usize,
        /// The number that the job gives it.
        given: usize,
    },
    /// We stopped reading, perhaps in the middle of the rows.
    Other(SourceErrorKind, String),
}

impl ReadError {
    /// The server did not answer, although it would have cancelled the statement by itself: it
    /// hangs, or is behind something that swallows our messages. Reading fewer tenants would not
    /// help.
    pub(super) fn unanswered(longest: Duration) -> Self {
        let longest = longest + ANSWER_GRACE;
        Self::Other(SourceErrorKind::Unavailable, format!("no answer within {longest:?}"))
    }

    /// Rows came, but not all of them in time.
    pub(super) fn late(longest: Duration) -> Self {
        let longest = longest + ANSWER_GRACE;
        Self::Other(SourceErrorKind::Timeout, format!("not all rows came within {longest:?}"))
    }

    pub(super) fn kind(&self) -> SourceErrorKind {
        match self {
            Self::Sql { error, .. } => error::kind(error),
            Self::Parameters { .. } => SourceErrorKind::Definition,
            Self::Other(kind, _) => *kind,
        }
    }

    /// Whether the connection can go on: after an error of its own the server is ready for the next
    /// statement.
    pub(super) fn leaves_connection_whole(&self) -> bool {
        match self {
            Self::Sql { error, .. } => error::database(error).is_some(),
            Self::Parameters { .. } => true,
            Self::Other(..) => false,
        }
    }

    /// Whether the server forgot the statement before it ran it.
    pub(super) fn is_of_no_statement(&self) -> bool {
        match self {
            Self::Sql { error, .. } => error::code(error) == Some(error::UNKNOWN_STATEMENT),
            Self::Parameters { .. } | Self::Other(..) => false,
        }
    }

    /// Whether the server or the driver refused the query itself.
    pub(super) fn is_refusal(&self) -> bool {
        self.kind() == SourceErrorKind::Definition && !self.is_of_no_statement()
    }

    /// The same error for a query that follows `before` characters in the text that the server got.
    pub(super) fn after(self, before: usize) -> Self {
        match self {
            Self::Sql { error, .. } => Self::Sql { error, before },
            Self::Parameters { .. } | Self::Other(..) => self,
        }
    }

    pub(super) fn into_source_error(self, doing: &str) -> SourceError {
        let kind = self.kind();
        let message = match self {
            Self::Sql { error, before } => error::text_after(&error, before),
            Self::Parameters { wanted, given } => too_many_parameters(wanted, given),
            Self::Other(_, message) => message,
        };
        SourceError { kind, message: format!("{doing}: {message}") }
    }
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql { error, before: 0 }
    }
}

impl From<BadId> for ReadError {
    fn from(error: BadId) -> Self {
        Self::Other(SourceErrorKind::Definition, error.to_string())
    }
}

/// Waits a little longer than the server's own timeout.
pub(super) async fn in_time<T>(
    longest: Duration,
    work: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let done = timeout(longest + ANSWER_GRACE, work).await;
    done.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)))
}

/// The error of a query that was given `given` parameters.
pub(super) fn refused(error: sqlx::Error, given: usize) -> ReadError {
    match error::wanted_parameters(&error) {
        Some(wanted) => ReadError::Parameters { wanted, given },
        None => error.into(),
    }
}

pub(super) fn too_many_parameters(wanted: usize, given: usize) -> String {
    match given {
        0 => format!("the query uses `${wanted}`, and the job gives it no parameter"),
        1 => format!("the query uses `${wanted}`, and the job gives it `$1` only"),
        most => format!("the query uses `${wanted}`, and the job gives it `$1` to `${most}`"),
    }
}
