//! An error that the server sent.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorResponseBody;
use sqlx::error::{DatabaseError, ErrorKind};

/// The server refused. The parts that may hold data, such as the detail, are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Refused {
    /// Its SQLSTATE.
    pub(in super::super) code: String,
    pub(in super::super) message: String,
    pub(in super::super) hint: Option<String>,
    /// The character of the query, counted from 1.
    pub(in super::super) position: Option<usize>,
    /// The function of the server that refused.
    pub(in super::super) routine: Option<String>,
}

impl Refused {
    /// The error that the server sent.
    pub(in super::super) fn error(body: &ErrorResponseBody) -> sqlx::Error {
        let mut refused = Self::default();
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => refused.code = text(),
                b'M' => refused.message = text(),
                b'H' => refused.hint = Some(text()),
                b'P' => refused.position = text().parse().ok(),
                b'R' => refused.routine = Some(text()),
                _ => {}
            }
        }
        sqlx::Error::Database(Box::new(refused))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Refused {}

impl DatabaseError for Refused {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.code))
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}
