//! The world, behind [`crate::engine::ports`]. Adapters return, they don't log.

pub mod bell;
pub mod clock;
pub mod memory;
pub mod postgres;
pub mod redis;

/// A server could not be used when it was first asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// What is wrong.
    pub kind: ConnectErrorKind,
    /// The same for people; it names the server and never holds a password.
    pub message: String,
}

impl ConnectError {
    /// Trying again cannot help.
    fn settings(message: impl Into<String>) -> Self {
        Self { kind: ConnectErrorKind::Settings, message: message.into() }
    }
}

/// Why a server could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectErrorKind {
    /// The URL, or a file it needs, is wrong: trying again cannot help.
    Settings,
    /// Nobody answers there, or not in time.
    Unreachable,
    /// It answers and refuses: the password, the database, the certificate.
    Refused,
}
