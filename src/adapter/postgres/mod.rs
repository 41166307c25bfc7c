//! Tenants, rows and run records in Postgres.

mod changes;
mod check;
mod column;
mod connect;
mod error;
mod history;
mod id;
mod source;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::engine::port::{SourceError, SourceErrorKind};

use super::{ConnectError, ConnectErrorKind};
use connect::Route;

pub use changes::{
    ChangesError, Done, Installed, PostgresFeedSource, Removed, Standing, TableProblem,
    TroubleNote, install, install_sql, standing, uninstall, uninstall_sql,
};
pub use check::{QueryPlace, QueryProblem};
pub use history::{MigrateError, PostgresHistory, administrator_sql, migrate};
pub use source::{PostgresSource, TenantsSettings};

/// The longest wait for one connection to be made; a server that is there needs milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for the pool, where another host may answer meanwhile.
const HOST_PATIENCE: Duration = Duration::from_secs(1);

/// How much later than the server's own timeout a call is given up: the server's answer says more.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Statements that a connection keeps prepared: one a job, the tenant list, and some to spare.
const STATEMENTS: usize = 256;

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// `postgres://`, as `domain::server_url` reads it.
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
    route: Route,
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
        let mut connection = database.try_connection().await.map_err(NotConnected::into_error)?;
        database.is_replica = is_replica(&mut connection).await;
        // It was there; whether it ends well changes nothing.
        drop(connection.close().await);
        Ok(database)
    }

    /// Checks the settings; the first query connects. Needs a runtime.
    pub fn lazy(mut settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let route = Route::new(&settings.url)?;
        settings.pgbouncer |= route.is_pooled;
        let route = route.map(|options| for_session(options, &settings));
        let most = settings.max_connections.get();
        let is_pgbouncer = settings.pgbouncer;
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(route.patience)
            .acquire_slow_threshold(Duration::MAX)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if !is_pgbouncer {
                        notice_when_we_are_gone(connection).await;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(route.first());
        let permits = Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        Ok(Self { pool, permits, route, is_replica: false, settings })
    }

    /// Whether the server was a replica when [`Self::connect`] looked.
    pub fn is_replica(&self) -> bool {
        self.is_replica
    }

    /// The server and database, as messages name them: without user and password.
    pub fn server(&self) -> &str {
        self.route.server()
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
            return Err(error::unavailable(format!("database `{}` was closed", self.server())));
        };
        let patience = self.route.patience;
        match self.pooled().await {
            Ok(connection) => Ok((connection, permit)),
            // The pool only says that it waited. This permit allows for one connection, so that one
            // may ask what is wrong.
            Err(None) => match self.try_connection().await {
                Ok(connection) => {
                    drop(connection.close().await);
                    Err(NotConnected::in_time(self.server(), patience).into_source_error())
                }
                Err(failed) => Err(failed.into_source_error()),
            },
            Err(Some(failed)) => Err(failed.into_source_error()),
        }
    }

    /// A connection of the pool; no reason where it only says that it waited. Its connections lead
    /// to one host: where there are several, or not any will do, one that is lost or leads to a
    /// server that will not do any more is closed, and the pool led to one that does.
    async fn pooled(&self) -> Result<PoolConnection<Postgres>, Option<NotConnected>> {
        if self.route.is_plain() {
            return self.pool.acquire().await.map_err(|error| match error {
                sqlx::Error::PoolTimedOut => None,
                error => Some(NotConnected::new(self.server(), &error)),
            });
        }
        // Each of them may be lost.
        for _ in 0..=self.settings.max_connections.get() {
            let acquired = timeout(HOST_PATIENCE, self.pool.acquire()).await;
            if let Ok(Ok(mut connection)) = acquired {
                if self.route.suits(&mut connection).await {
                    return Ok(connection);
                }
                connection.close_on_drop();
            }
            drop(self.try_connection().await?.close().await);
        }
        Err(None)
    }

    /// One try to connect, past the pool, which is led to the same host.
    async fn try_connection(&self) -> Result<PgConnection, NotConnected> {
        let (connection, options) = self.route.connect().await?;
        if !self.route.is_plain() {
            self.pool.set_connect_options(options);
        }
        Ok(connection)
    }

    /// The statement timeout of a call that may take `longest`.
    fn statement_timeout(&self, longest: Duration) -> Duration {
        self.settings.statement_timeout.min(longest)
    }

    /// Begins what a warm query needs where the session cannot hold it: behind `PgBouncer`, where
    /// the next statement may meet another session, and for a timeout that is not the session's.
    async fn begin_read(&self, lease: &mut Lease, longest: Duration) -> Result<bool, sqlx::Error> {
        let timeout = self.statement_timeout(longest);
        let is_sessions =
            timeout == self.settings.statement_timeout && self.route.locals.is_empty();
        if !self.settings.pgbouncer && is_sessions {
            return Ok(false);
        }
        let begin = if self.settings.read_only { "begin read only" } else { "begin" };
        let locals = local_settings(timeout, &self.route);
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
        let locals = local_settings(self.settings.statement_timeout, &self.route);
        let wait = milliseconds(longest_wait);
        let begin = format!("begin read write; set local lock_timeout = {wait}; {locals}");
        lease.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await?;
        Ok(())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("server", &self.server()).finish_non_exhaustive()
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

fn for_session(options: PgConnectOptions, settings: &DatabaseSettings) -> PgConnectOptions {
    if settings.pgbouncer {
        // It refuses parameters of a connection that it does not know; what a session would have,
        // each transaction then sets for itself.
        return options.extra_float_digits(None).statement_cache_capacity(1);
    }
    let read_only = if settings.read_only { "on" } else { "off" };
    let timeout = milliseconds(settings.statement_timeout).to_string();
    options.statement_cache_capacity(STATEMENTS).options(SESSION).options([
        ("statement_timeout", timeout.as_str()),
        ("default_transaction_read_only", read_only),
    ])
}

/// Local settings, as statements of a transaction.
fn local_settings(timeout: Duration, route: &Route) -> String {
    let timeout = milliseconds(timeout);
    let session = SESSION.map(|(name, value)| format!("set local {name} = {value}"));
    let locals = &route.locals;
    format!("set local statement_timeout = {timeout}; {}{locals}", session.join("; "))
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

/// Why there is no connection.
struct NotConnected {
    kind: ConnectErrorKind,
    server: String,
    reason: String,
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
        let hint = error::connect_hint(error).map(|hint| format!("; hint: {hint}"));
        let reason = error::text(error) + &hint.unwrap_or_default();
        Self::because(server, kind, &reason)
    }

    fn because(server: &str, kind: ConnectErrorKind, reason: &str) -> Self {
        Self { kind, server: server.to_owned(), reason: reason.to_owned() }
    }

    fn in_time(server: &str, patience: Duration) -> Self {
        let reason = format!("no answer within {patience:?}");
        Self::because(server, ConnectErrorKind::Unreachable, &reason)
    }

    fn message(&self) -> String {
        format!("could not connect to database `{}`: {}", self.server, self.reason)
    }

    fn into_error(self) -> ConnectError {
        ConnectError { kind: self.kind, message: self.message() }
    }

    fn into_source_error(self) -> SourceError {
        SourceError { kind: SourceErrorKind::Unavailable, message: self.message() }
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
    fn a_session_carries_its_bounds_except_behind_pgbouncer() {
        let mut settings = settings("postgres://db/shop");
        let for_session = |settings: &DatabaseSettings| {
            for_session(Route::new(&settings.url).unwrap().first(), settings)
        };
        let options = for_session(&settings);
        let expected = "-c jit=off -c plan_cache_mode=force_custom_plan \
                        -c statement_timeout=30000 -c default_transaction_read_only=on";
        assert_eq!(options.get_options(), Some(expected));
        settings.pgbouncer = true;
        assert_eq!(for_session(&settings).get_options(), None);
        assert_eq!(milliseconds(Duration::ZERO), 1);
    }
}
