//! Translates the errors of the server and of the driver into the engine's.

use std::borrow::Cow;
use std::fmt::Write;

use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

use super::wire::Refused;
use crate::engine::ports::{SourceError, SourceErrorKind};

/// The error of a failed call; `doing` says what the call was for.
pub(super) fn source_error(doing: &str, error: &sqlx::Error) -> SourceError {
    SourceError { kind: kind(error), message: format!("{doing}: {}", text(error)) }
}

/// The error of a transaction that could not begin. A setting that the server refuses is wrong for
/// every tenant.
pub(super) fn of_begin(error: &sqlx::Error) -> SourceError {
    let error = source_error("could not begin a transaction", error);
    match error.kind {
        SourceErrorKind::Data => SourceError { kind: SourceErrorKind::Definition, ..error },
        SourceErrorKind::LeftAlone
        | SourceErrorKind::Unavailable
        | SourceErrorKind::Transient
        | SourceErrorKind::Locked
        | SourceErrorKind::Timeout
        | SourceErrorKind::Encoding
        | SourceErrorKind::TooLarge
        | SourceErrorKind::Foreign
        | SourceErrorKind::Definition => error,
    }
}

pub(super) fn unavailable(message: String) -> SourceError {
    SourceError { kind: SourceErrorKind::Unavailable, message }
}

/// An error that the server sent, whichever client received it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal<'e> {
    /// Its SQLSTATE.
    pub(super) code: &'e str,
    pub(super) message: &'e str,
    pub(super) hint: Option<&'e str>,
    /// The character of the text that the server got, counted from 1.
    position: Option<usize>,
    /// The function of the server that refused.
    routine: Option<&'e str>,
}

impl<'e> From<&'e Refused> for Refusal<'e> {
    fn from(refused: &'e Refused) -> Self {
        let Refused { code, message, hint, position, routine } = refused;
        let (hint, routine) = (hint.as_deref(), routine.as_deref());
        Self { code, message, hint, position: *position, routine }
    }
}

impl<'e> From<&'e PgDatabaseError> for Refusal<'e> {
    fn from(error: &'e PgDatabaseError) -> Self {
        let position = match error.position() {
            Some(PgErrorPosition::Original(position)) => Some(position),
            Some(PgErrorPosition::Internal { .. }) | None => None,
        };
        let (code, message) = (error.code(), error.message());
        Self { code, message, hint: error.hint(), position, routine: error.routine() }
    }
}

/// The error as the server sent it, if it came from the server.
pub(super) fn database(error: &sqlx::Error) -> Option<Refusal<'_>> {
    let error = error.as_database_error()?;
    let ours = error.try_downcast_ref::<Refused>().map(Refusal::from);
    ours.or_else(|| error.try_downcast_ref::<PgDatabaseError>().map(Refusal::from))
}

/// The SQLSTATE, if the error came from the server.
pub(super) fn code(error: &sqlx::Error) -> Option<&str> {
    database(error).map(|refusal| refusal.code)
}

/// Whether the driver could not understand the server's answer, although the connection is sound:
/// it does not know a type, for example.
pub(super) fn is_of_driver(error: &sqlx::Error) -> bool {
    database(error).is_none() && kind(error) == SourceErrorKind::Definition
}

/// Whether the TLS handshake failed. sqlx reports a bad certificate as bad data.
pub(super) fn is_tls(error: &sqlx::Error) -> bool {
    let is_bad_data = |source: &std::io::Error| source.kind() == std::io::ErrorKind::InvalidData;
    matches!(error, sqlx::Error::Tls(_))
        || matches!(error, sqlx::Error::Io(source) if is_bad_data(source))
}

/// What to do about a failed connection, if the server's own words do not say it.
pub(super) fn connect_hint(error: &sqlx::Error) -> Option<&'static str> {
    const CERTIFICATE: &str = "`sslrootcert` in the URL names a file with the certificates of authorities to trust, \
         `sslmode=verify-ca` does not compare names, and `sslmode=require` verifies nothing";
    const VERSION: &str = "it has version 1, and version 3 is needed; `openssl x509 -req` makes version 3 if `-extfile` names a file with \
         extensions";
    if let Some(Refusal { code, message, .. }) = database(error) {
        let wants_tls = code == "28000" && message.contains("no encryption");
        return wants_tls.then_some("the server wants TLS: write `sslmode=require` in the URL");
    }
    if !is_tls(error) {
        return None;
    }
    if matches!(error, sqlx::Error::Tls(_)) && error.to_string().contains("does not support TLS") {
        return Some(
            "the server has no TLS: write `sslmode=prefer` or `sslmode=disable` in the URL",
        );
    }
    let text = error.to_string();
    let is_our_own = text.contains("`sslcert`") || text.contains("`sslkey`");
    match (is_our_own, text.contains("UnsupportedCertVersion")) {
        (true, true) => Some(VERSION),
        (true, false) => None,
        (false, _) => Some(CERTIFICATE),
    }
}

/// The error as text for people. Of a server's error it contains the parts that help and hold no
/// data. It leaves out the detail, which quotes values, and the line, which is one of the server's
/// source code.
pub(super) fn text(error: &sqlx::Error) -> String {
    text_after(error, 0)
}

/// Like [`text`], for a query that follows `before` characters in the text that the server got.
pub(super) fn text_after(error: &sqlx::Error, before: usize) -> String {
    let mut text = words(error);
    let Some(refusal) = database(error) else { return text };
    if let Some(position) = refusal.position(before) {
        let _a_string_takes_all = write!(text, " at character {position} of the query");
    }
    for hint in [refusal.hint, refusal.our_hint()].into_iter().flatten() {
        let _a_string_takes_all = write!(text, "; hint: {hint}");
    }
    text
}

/// Like [`text`], without a place and hints.
pub(super) fn words(error: &sqlx::Error) -> String {
    match database(error) {
        Some(refusal) => format!("{} ({})", refusal.message_without_value(), refusal.code),
        None => driver_text(error),
    }
}

impl Refusal<'_> {
    /// The position of the error in the query: a number of characters, counted from 1. The query follows
    /// `before` characters in the text that the server got.
    pub(super) fn position(&self, before: usize) -> Option<usize> {
        self.position?.checked_sub(before).filter(|position| *position > 0)
    }

    /// A hint for errors that do not say what to do.
    pub(super) fn our_hint(&self) -> Option<&'static str> {
        match self.code {
            UNKNOWN_STATEMENT | "42P05" => Some(
                "a pooler gives the statements of one transaction to several sessions; it has to be in \
                 transaction or session mode",
            ),
            "25006" => Some(
                "queries only read: `database.read_only = false` lets those of runs write, while \
                 `check`, `plan` and audits only read in any case",
            ),
            "55P03" => Some(
                "somebody holds a lock on a table of the query, as a migration or another long \
                 transaction does",
            ),
            "42501" if self.routine == Some("check_enable_rls") => Some(
                "read with a role that has BYPASSRLS, or set `database.row_security = \"accept\"` if the \
                 policies show the role every row",
            ),
            _ => None,
        }
    }

    /// The server's message. If it refuses the value of a setting, the value is left out, because it
    /// may come from a URL.
    fn message_without_value(&self) -> Cow<'_, str> {
        const OUTSIDE: &str = " is outside the valid range";
        let message = self.message;
        if self.code != "22023" {
            return message.into();
        }
        match message.split_once(OUTSIDE) {
            Some((_value, _range)) => "a setting is outside its valid range".into(),
            None => message.split(": ").next().unwrap_or(message).into(),
        }
    }
}

/// The server does not know the statement. We only use the unnamed one.
pub(super) const UNKNOWN_STATEMENT: &str = "26000";

/// The number of parameters that a query uses, if it was given another number of them.
pub(super) fn wanted_parameters(error: &sqlx::Error) -> Option<usize> {
    let Refusal { code, message, routine, .. } = database(error)?;
    if code != "08P01" || routine != Some("exec_bind_message") {
        return None;
    }
    // "bind message supplies 1 parameters, but prepared statement "" requires 2", in any language.
    message.split(|char: char| !char.is_ascii_digit()).rev().find_map(|n| n.parse().ok())
}

fn driver_text(error: &sqlx::Error) -> String {
    if let sqlx::Error::Io(source) = error {
        // sqlx puts words before it that say less than ours.
        return source.to_string();
    }
    error.to_string()
}

/// The kind of error, which decides what happens next.
pub(super) fn kind(error: &sqlx::Error) -> SourceErrorKind {
    if let Some(code) = code(error) {
        return kind_of_code(code);
    }
    let is_connection = matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
    );
    if is_connection { SourceErrorKind::Unavailable } else { SourceErrorKind::Definition }
}

/// SQLSTATE to kind: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn kind_of_code(code: &str) -> SourceErrorKind {
    match code {
        "57014" => return SourceErrorKind::Timeout,
        // Too many connections; the server is going down or coming up.
        "53300" | "57P01" | "57P02" | "57P03" | "57P05" => return SourceErrorKind::Unavailable,
        "55P03" => return SourceErrorKind::Locked,
        // The object is in use.
        "55006" => return SourceErrorKind::Transient,
        // Behind a pooler that causes these, a query may get the rows of another one.
        UNKNOWN_STATEMENT | "42P05" | "25006" => return SourceErrorKind::Definition,
        _ => {}
    }
    match code.get(..2).unwrap_or_default() {
        "08" | "28" => SourceErrorKind::Unavailable,
        "25" | "40" | "53" | "57" | "58" => SourceErrorKind::Transient,
        "0A" | "3D" | "3F" | "42" => SourceErrorKind::Definition,
        // Bad data (22), cardinality (21), `raise` and other errors of functions (P0, 38, 39), a
        // limit of the server (54), a damaged page (XX): other tenants may be fine.
        _ => SourceErrorKind::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_its_kind() {
        use SourceErrorKind::{Data, Definition, Locked, Timeout, Transient, Unavailable};
        let cases = [
            ("08006", Unavailable),
            ("28P01", Unavailable),
            ("53300", Unavailable),
            ("57P01", Unavailable),
            ("57P03", Unavailable),
            ("40001", Transient),
            ("40P01", Transient),
            ("53200", Transient),
            ("55P03", Locked),
            ("26000", Definition),
            ("42P05", Definition),
            ("57014", Timeout),
            ("21000", Data),
            ("22012", Data),
            ("22P02", Data),
            ("P0001", Data),
            ("54001", Data),
            ("XX001", Data),
            ("0A000", Definition),
            ("25006", Definition),
            ("42501", Definition),
            ("42703", Definition),
            ("42P01", Definition),
        ];
        for (code, kind) in cases {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }
}
