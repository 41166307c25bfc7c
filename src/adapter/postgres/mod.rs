//! Tenants, rows and run records in Postgres.

mod changes;
mod check;
mod column;
mod error;
mod history;
mod id;
mod source;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::engine::port::{SourceError, SourceErrorKind};

use super::{ConnectError, ConnectErrorKind};

pub use changes::{
    ChangesError, Done, Installed, Looked, PostgresFeedSource, Removed, Security, Standing,
    TableProblem, TroubleNote, Versions, install, install_sql, look, table_problems, uninstall,
    uninstall_sql,
};
pub use check::{
    Findings, QueryPlace, QueryProblem, ReadRelation, RelationKind, SAMPLE_BYTES, SAMPLE_TENANTS,
    SAMPLE_TIME,
};
pub use history::{MigrateError, PostgresHistory, administrator_sql, migrate};
pub use source::{PostgresSource, TenantsSettings};

/// The longest wait for one connection to be made; a server that is there needs milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much later than the server's own timeout a call is given up: the server's answer says more.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Statements that a connection keeps prepared: one a job, the tenant list, and some to spare.
const STATEMENTS: usize = 256;

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// `postgres://`, with `sslmode` and `sslrootcert` as libpq takes them.
    pub url: SecretString,
    /// The bound on everything that is opened.
    pub max_connections: NonZeroU32,
    /// The server gives a statement up after this.
    pub statement_timeout: Duration,
    /// Whether the server refuses writes in sessions that read.
    pub read_only: bool,
    /// Whether `PgBouncer` is between, in transaction mode: nothing then outlives a transaction.
    pub pgbouncer: bool,
}

/// The connections to one database, bounded by [`DatabaseSettings::max_connections`].
pub struct Database {
    pool: PgPool,
    /// One a connection that is in use or being made. The pool has a bound too, but waiting for it
    /// cannot be told from waiting for the server.
    permits: Arc<Semaphore>,
    options: PgConnectOptions,
    server: String,
    is_replica: bool,
    settings: DatabaseSettings,
}

/// Connections by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Waiting for use.
    pub idle: u32,
    /// In use.
    pub active: u32,
}

impl Database {
    /// Connects once, so that wrong settings and an unreachable server show at once.
    pub async fn connect(settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let mut database = Self::lazy(settings)?;
        database.reach().await?;
        Ok(database)
    }

    /// Connects once, past the pool, to see whether the server is there.
    pub async fn reach(&mut self) -> Result<(), ConnectError> {
        let mut connection = self.try_connection().await.map_err(NotConnected::into_error)?;
        self.is_replica = is_replica(&mut connection).await;
        // It was there; whether it ends well changes nothing.
        drop(connection.close().await);
        Ok(())
    }

    /// Checks the settings; the first query connects. Needs a runtime.
    pub fn lazy(settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let options = connect_options(&settings)?;
        let server = server(&options);
        let most = settings.max_connections.get();
        let is_pgbouncer = settings.pgbouncer;
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(CONNECT_TIMEOUT)
            .acquire_slow_threshold(Duration::MAX)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if !is_pgbouncer {
                        notice_when_we_are_gone(connection).await;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(options.clone());
        let permits = Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        Ok(Self { pool, permits, options, server, is_replica: false, settings })
    }

    /// Whether the server was a replica when [`Self::reach`] looked.
    pub fn is_replica(&self) -> bool {
        self.is_replica
    }

    /// The server and database, as messages name them: without user and password.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How many connections there are.
    pub fn connections(&self) -> Connections {
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        Connections { idle, active: self.pool.size().saturating_sub(idle) }
    }

    /// Closes all connections, and waits a while for those that are in use.
    pub async fn close(&self) {
        drop(timeout(CONNECT_TIMEOUT, self.pool.close()).await);
    }

    /// A connection, once one is free.
    async fn acquire(&self) -> Result<Lease, SourceError> {
        let (connection, permit) = self.take().await?;
        Ok(Lease { connection, is_whole: false, _permit: permit })
    }

    /// Takes one out of the connections for good: whoever asks may open one elsewhere. What was
    /// open is handed out to be closed.
    async fn cede_one(&self) -> Result<PgConnection, SourceError> {
        let (connection, permit) = self.take().await?;
        permit.forget();
        Ok(connection.leak())
    }

    async fn take(&self) -> Result<(PoolConnection<Postgres>, OwnedSemaphorePermit), SourceError> {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            return Err(error::unavailable(format!("database `{}` was closed", self.server)));
        };
        match self.pool.acquire().await {
            Ok(connection) => Ok((connection, permit)),
            // The pool only says that it waited. This permit allows for one connection, so that one
            // may ask what is wrong.
            Err(sqlx::Error::PoolTimedOut) => match self.try_connection().await {
                Ok(connection) => {
                    drop(connection.close().await);
                    Err(NotConnected::in_time(&self.server).into_source_error())
                }
                Err(failed) => Err(failed.into_source_error()),
            },
            Err(error) => Err(NotConnected::new(&self.server, &error).into_source_error()),
        }
    }

    /// One try to connect, past the pool.
    async fn try_connection(&self) -> Result<PgConnection, NotConnected> {
        match timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&self.options)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(NotConnected::new(&self.server, &error)),
            Err(_elapsed) => Err(NotConnected::in_time(&self.server)),
        }
    }

    /// The statement timeout of a call that may take `longest`.
    fn statement_timeout(&self, longest: Duration) -> Duration {
        self.settings.statement_timeout.min(longest)
    }

    /// Begins what a warm query needs where the session cannot hold it: behind `PgBouncer`, where
    /// the next statement may meet another session, and for a timeout that is not the session's.
    async fn begin_read(&self, lease: &mut Lease, longest: Duration) -> Result<bool, sqlx::Error> {
        let timeout = self.statement_timeout(longest);
        if !self.settings.pgbouncer && timeout == self.settings.statement_timeout {
            return Ok(false);
        }
        let begin = if self.settings.read_only { "begin read only" } else { "begin" };
        let locals = local_settings(timeout);
        lease.execute(sqlx::raw_sql(AssertSqlSafe(format!("{begin}; {locals}")))).await?;
        Ok(true)
    }

    /// Begins a transaction that writes, whatever the session is, and waits for no lock longer than
    /// `longest_wait`.
    async fn begin_write(
        &self,
        lease: &mut Lease,
        longest_wait: Duration,
    ) -> Result<(), sqlx::Error> {
        let locals = local_settings(self.settings.statement_timeout);
        let wait = milliseconds(longest_wait);
        let begin = format!("begin read write; set local lock_timeout = {wait}; {locals}");
        lease.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await?;
        Ok(())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A connection in use.
///
/// Dropped before [`Self::give_back`], it is closed: the future of a query may be dropped at any
/// await, the query goes on in the server all the same, and the next user would wait behind it.
struct Lease {
    connection: PoolConnection<Postgres>,
    is_whole: bool,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// The connection is between two statements: others may have it.
    fn give_back(mut self) {
        self.is_whole = true;
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_whole {
            self.connection.close_on_drop();
        }
    }
}

/// What warm queries want of a session.
///
/// - `jit`: compiling takes longer than a batch's query, and is done anew for each execution.
/// - `plan_cache_mode`: a plan for "some array" assumes ten tenants; planning for those that are
///   asked for costs a fraction of a millisecond and gets the scan that fits them.
const SESSION: [(&str, &str); 2] = [("jit", "off"), ("plan_cache_mode", "force_custom_plan")];

fn connect_options(settings: &DatabaseSettings) -> Result<PgConnectOptions, ConnectError> {
    let url = settings.url.expose_secret();
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    // The error of a URL may quote parts of it, so that it is not passed on.
    let options = url.parse().ok().filter(|_: &PgConnectOptions| is_postgres);
    let options = options.ok_or_else(|| ConnectError {
        kind: ConnectErrorKind::Settings,
        message: "the database's URL is no URL of a Postgres server".to_owned(),
    })?;
    let options = options.application_name("preheat").disable_statement_logging();
    if settings.pgbouncer {
        // It refuses parameters of a connection that it does not know; what a session would have,
        // each transaction then sets for itself.
        return Ok(options.extra_float_digits(None).statement_cache_capacity(1));
    }
    let read_only = if settings.read_only { "on" } else { "off" };
    let timeout = milliseconds(settings.statement_timeout).to_string();
    Ok(options.statement_cache_capacity(STATEMENTS).options(SESSION).options([
        ("statement_timeout", timeout.as_str()),
        ("default_transaction_read_only", read_only),
    ]))
}

/// Local settings, as statements of a transaction.
fn local_settings(timeout: Duration) -> String {
    let timeout = milliseconds(timeout);
    let session = SESSION.map(|(name, value)| format!("set local {name} = {value}"));
    format!("set local statement_timeout = {timeout}; {}", session.join("; "))
}

/// For Postgres 0 is no timeout at all, so that the shortest is 1.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Whether the server follows another one; one that does not tell (it only speaks the protocol) is
/// taken for its own master.
async fn is_replica(connection: &mut PgConnection) -> bool {
    let asked = connection.fetch_one(sqlx::raw_sql("select pg_is_in_recovery()"));
    let row = timeout(CONNECT_TIMEOUT, asked).await;
    row.is_ok_and(|row| row.and_then(|row| row.try_get(0)).unwrap_or(false))
}

/// Lets the server look now and then, during a query, whether its client is still there, so that a
/// query whose connection was closed ends within a second. Servers before version 14 and some
/// platforms cannot; there it ends with its statement timeout.
async fn notice_when_we_are_gone(connection: &mut PgConnection) {
    // Not from `pg_settings`, which makes a row of every setting there is.
    const SQL: &str = "select set_config('client_connection_check_interval', '1s', false) \
                       where current_setting('client_connection_check_interval', true) is not null";
    drop(connection.execute(sqlx::raw_sql(SQL)).await);
}

fn server(options: &PgConnectOptions) -> String {
    let port = options.get_port();
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{}:{port}/{database}", socket.display()),
        None => format!("{}:{port}/{database}", options.get_host()),
    }
}

/// Why there is no connection.
struct NotConnected {
    kind: ConnectErrorKind,
    message: String,
}

impl NotConnected {
    fn new(server: &str, error: &sqlx::Error) -> Self {
        let kind = match error::code(error) {
            // The server is starting or stopping, or has no connection left.
            Some(code) if code.starts_with("57P") || code.starts_with("53") => {
                ConnectErrorKind::Unreachable
            }
            Some(_) => ConnectErrorKind::Refused,
            None if error::is_tls(error) => ConnectErrorKind::Refused,
            None => ConnectErrorKind::Unreachable,
        };
        let message = format!("could not connect to database `{server}`: {}", error::text(error));
        Self { kind, message }
    }

    fn in_time(server: &str) -> Self {
        let message =
            format!("could not connect to database `{server}` within {CONNECT_TIMEOUT:?}");
        Self { kind: ConnectErrorKind::Unreachable, message }
    }

    fn into_error(self) -> ConnectError {
        ConnectError { kind: self.kind, message: self.message }
    }

    fn into_source_error(self) -> SourceError {
        SourceError { kind: SourceErrorKind::Unavailable, message: self.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> DatabaseSettings {
        DatabaseSettings {
            url: SecretString::from(url),
            max_connections: NonZeroU32::MIN,
            statement_timeout: Duration::from_secs(30),
            read_only: true,
            pgbouncer: false,
        }
    }

    #[test]
    fn the_server_is_named_without_user_and_password() {
        let cases = [
            ("postgres://u:hush@db.local/shop", "db.local:5432/shop"),
            ("postgres:///shop?host=/run/pg&port=6000&user=u&password=hush", "/run/pg:6000/shop"),
            ("postgres://u:hush@db.local", "db.local:5432/u"),
        ];
        for (url, named) in cases {
            let options = connect_options(&settings(url)).unwrap();
            assert_eq!(server(&options), named);
        }
        let error = connect_options(&settings("postgres//u:hush@db")).unwrap_err();
        assert_eq!(error.to_string(), "the database's URL is no URL of a Postgres server");
        assert!(!format!("{:?}", settings("postgres://u:hush@db")).contains("hush"));
    }

    #[test]
    fn a_session_carries_its_bounds_except_behind_pgbouncer() {
        let mut settings = settings("postgres://db/shop");
        let options = connect_options(&settings).unwrap();
        let expected = "-c jit=off -c plan_cache_mode=force_custom_plan \
                        -c statement_timeout=30000 -c default_transaction_read_only=on";
        assert_eq!(options.get_options(), Some(expected));
        settings.pgbouncer = true;
        assert_eq!(connect_options(&settings).unwrap().get_options(), None);
        assert_eq!(milliseconds(Duration::ZERO), 1);
    }
}
