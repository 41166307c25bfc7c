//! Private, throw-away Postgres and Redis servers and the sample clinic, for `preheat demo`, the
//! tests and the benchmarks.
//!
//! A server lives in a temporary folder of its own, listens on a Unix socket there and, only where
//! asked, on a free port of 127.0.0.1. It ends with its handle, and also when the process that holds
//! the handle is killed: see `process.rs`.

mod clinic;
mod postgres;
mod process;
mod program;
mod redis;
mod server;

use std::path::PathBuf;

pub use clinic::Clinic;
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{Redis, RedisOptions};

/// A Postgres and a Redis server of one's own.
#[derive(Debug)]
pub struct Sandbox {
    postgres: Postgres,
    redis: Redis,
}

/// What a [`Sandbox`] starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The Postgres server.
    pub postgres: PostgresOptions,
    /// The Redis server.
    pub redis: RedisOptions,
}

impl Sandbox {
    /// Starts both servers, side by side; needs a Tokio runtime.
    pub async fn start(options: Options) -> Result<Self, SandboxError> {
        let Options { postgres, redis } = options;
        let postgres = tokio::task::spawn_blocking(move || Postgres::start(&postgres));
        let redis = tokio::task::spawn_blocking(move || Redis::start(&redis));
        let (postgres, redis) = tokio::join!(postgres, redis);
        Ok(Self { postgres: started(postgres)?, redis: started(redis)? })
    }

    /// The Postgres server.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The Redis server.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }
}

/// A blocking start that was cut off (the runtime is going down, or it panicked) is an error too.
fn started<T>(
    joined: Result<Result<T, SandboxError>, tokio::task::JoinError>,
) -> Result<T, SandboxError> {
    joined.map_err(|source| SandboxError::Interrupted { source })?
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate, or its chain.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// A throw-away server could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The programs are not on this machine. The message says how to get them.
    #[error("cannot find {programs}: {hint}")]
    Missing {
        /// What was looked for.
        programs: &'static str,
        /// The command that installs it.
        hint: String,
    },
    /// Root may not run Postgres, and there is nobody else to run it as.
    #[error("cannot run postgres as root: there is neither a user `postgres` nor `nobody`")]
    NoUser,
    /// A folder or file of the server.
    #[error("could not {doing} `{}`", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program could not be started or waited for.
    #[error("could not run `{program}`")]
    Run {
        /// Which one.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The server ended, or was not ready in time.
    #[error("{server} {what}; its log ends with:\n{log}")]
    NotReady {
        /// Which server.
        server: &'static str,
        /// What it did.
        what: &'static str,
        /// The end of its log.
        log: String,
    },
    /// A statement to the Postgres server.
    #[error("could not {doing}")]
    Sql {
        /// What was being done.
        doing: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The runtime ended before the server had started.
    #[error("the start of a server was interrupted")]
    Interrupted {
        /// What interrupted it.
        source: tokio::task::JoinError,
    },
}
