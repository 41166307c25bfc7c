//! Private, throw-away Postgres and Redis servers and the sample clinic, for `preheat demo`, the
//! tests and the benchmarks.
//!
//! A server lives in a temporary folder of its own. It listens on a Unix socket there and, if asked to, on a
//! free port of 127.0.0.1. It ends when its handle is dropped, and also when the process that holds the
//! handle is killed: see `process.rs`.

mod clinic;
mod cluster;
mod postgres;
mod process;
mod program;
mod redis;
mod server;

use std::path::PathBuf;

pub use clinic::Clinic;
pub use cluster::RedisCluster;
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{Redis, RedisOptions};
pub use server::Server;

/// A private Postgres and a private Redis server.
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

/// An interrupted start (the runtime is shutting down, or the start panicked) is an error too.
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

/// Why a throw-away server could not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The programs are not installed. The message says how to get them.
    #[error("cannot find {programs}: {hint}")]
    Missing {
        /// The programs.
        programs: &'static str,
        /// The command that installs them.
        hint: String,
    },
    /// Postgres refuses to run as root, and there is no other user to run it as.
    #[error("cannot run postgres as root: there is neither a user `postgres` nor `nobody`")]
    NoUser,
    /// A folder or file of the server could not be used.
    #[error("could not {doing} `{}`", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A program could not be started or waited for.
    #[error("could not run `{program}`")]
    Run {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The server ended, or was not ready in time.
    #[error("{server} {what}; its log ends with:\n{log}")]
    NotReady {
        /// The server.
        server: &'static str,
        /// What happened.
        what: &'static str,
        /// The end of its log.
        log: String,
    },
    /// A statement failed on the Postgres server.
    #[error("could not {doing}")]
    Sql {
        /// What was being done.
        doing: String,
        /// The cause.
        source: sqlx::Error,
    },
    /// The runtime ended before the server had started.
    #[error("the start of a server was interrupted")]
    Interrupted {
        /// What interrupted it.
        source: tokio::task::JoinError,
    },
}
