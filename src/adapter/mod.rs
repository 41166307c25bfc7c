//! The outside world, behind the traits of [`crate::engine::ports`]. Adapters return errors; they
//! don't log.

pub mod bell;
pub mod clock;
pub mod memory;
#[cfg(feature = "otel")]
pub mod otlp;
pub mod postgres;
pub mod redis;
mod tls;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes to a server and back.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// The first connection to a server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// The kind of error.
    pub kind: ConnectErrorKind,
    /// The message for people. It names the server and never contains a password.
    pub message: String,
}

impl ConnectError {
    /// An error in the settings: trying again cannot help.
    fn settings(message: impl Into<String>) -> Self {
        Self { kind: ConnectErrorKind::Settings, message: message.into() }
    }
}

/// Why the first connection to a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectErrorKind {
    /// The URL, or a file that it needs, is wrong: trying again cannot help.
    Settings,
    /// Nobody answers at the address, or not in time.
    Unreachable,
    /// The server answers and refuses: a wrong password, database or certificate.
    Refused,
}
