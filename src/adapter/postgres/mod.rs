//! Tenants, rows and run records in Postgres.

mod catalog;
mod changes;
mod check;
mod column;
mod connect;
mod describe;
mod error;
mod history;
mod id;
mod moment;
mod pages;
mod parameter_types;
mod parameters;
mod pauses;
mod read_error;
mod replication;
mod session;
mod source;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono_tz::Tz;
use futures::FutureExt;
use secrecy::SecretString;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::engine::ports::{SourceError, SourceErrorKind};

use self::column::OwnTypes;
use self::connect::Route;
use self::replication::ReplicationError;
use self::session::{Bounds, LOCK_WAIT, Session};
use super::{ConnectError, ConnectErrorKind};

pub use catalog::{CatalogColumn, CatalogReference, CatalogTable};
pub use changes::{
    ChangesError, Done, Installed, LogProblem, Looked, PostgresFeedSource, Removed, Security,
    Standing, TableProblem, TroubleNote, Versions, WaitNote, Wanted, Ways, could_read_log, install,
    install_sql, look, table_problems, uninstall, uninstall_sql,
};
pub use check::{
    Findings, QueryPlace, QueryProblem, ReadRelation, RelationKind, SAMPLE_BYTES, SAMPLE_TENANTS,
    SAMPLE_TIME,
};
pub use history::{MigrateError, PostgresHistory, administrator_sql, migrate};
pub use pages::Pages;
pub use source::{PostgresSource, TenantsSettings};

/// The longest wait for one connection to be made. A healthy server needs milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for the pool if the URL has several hosts: another host may answer meanwhile.
const HOST_PATIENCE: Duration = Duration::from_secs(1);

/// We wait this much longer than the server's own timeout, because the server's answer says more.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// `postgres://`, with `sslmode` and `sslrootcert` as libpq takes them.
    pub url: SecretString,
    /// The limit on all connections that preheat opens.
    pub max_connections: NonZeroU32,
    /// The server cancels a statement after this time.
    pub statement_timeout: Duration,
    /// Whether queries run in read-only transactions, in which the server refuses writes.
    pub read_only: bool,
    /// What to do about row-level security policies, which may hide rows.
    pub row_security: RowSecurity,
    /// The time zone that queries compute with; if `None`, the time zone of the role or the
    /// database.
    pub time_zone: Option<Tz>,
}

/// What to do about row-level security policies, which hide rows from a role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowSecurity {
    /// The server refuses a query that a policy would filter.
    #[default]
    Refuse,
    /// The operator vouches that the policies show the role every row it has to read.
    Accept,
}

/// The connections to one database, bounded by [`DatabaseSettings::max_connections`].
pub struct Database {
    pool: PgPool,
    /// One permit for each connection that is in use or being made. The pool has a limit too, but
    /// its error does not tell a wait for the pool from a wait for the server.
    permits: Arc<Semaphore>,
    route: Route,
    is_replica: bool,
    settings: DatabaseSettings,
    /// The session settings, as last looked up.
    session: Mutex<Option<Session>>,
}

/// The number of connections by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open and unused.
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

    /// Connects once, past the pool, to see whether the server is there and whether a transaction
    /// can begin with our settings.
    pub async fn reach(&mut self) -> Result<(), ConnectError> {
        let mut connection = self.try_connection().await.map_err(NotConnected::into_error)?;
        // A setting that no transaction can begin with shows here, and not in every transaction.
        let begin = Begin::reading(Access::ReadOnly, CONNECT_TIMEOUT);
        match timeout(CONNECT_TIMEOUT, self.begin_on(&mut connection, begin)).await {
            Ok(Ok(_sent)) => {}
            Ok(Err(error)) => return Err(NotConnected::new(self.server(), &error).into_error()),
            Err(_elapsed) => {
                return Err(NotConnected::in_time(self.server(), CONNECT_TIMEOUT).into_error());
            }
        }
        self.is_replica = is_replica(&mut connection).await;
        // The server was there, so a failed goodbye does not matter.
        drop(connection.close().await);
        Ok(())
    }

    /// Checks the settings; the first query connects. It must be called within a runtime.
    pub fn lazy(settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let route = Route::new(&settings.url)?;
        let most = settings.max_connections.get();
        let types = Arc::new(OwnTypes::default());
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(route.patience)
            .acquire_slow_threshold(Duration::MAX)
            // The beginning of a transaction shows whether the connection works.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let types = Arc::clone(&types);
                Box::pin(async move {
                    types.teach(connection).await;
                    Ok(())
                })
            })
            .connect_lazy_with(route.first());
        let permits = Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        let session = Mutex::default();
        Ok(Self { pool, permits, route, is_replica: false, settings, session })
    }

    /// Whether the server was a replica when [`Self::reach`] looked.
    pub fn is_replica(&self) -> bool {
        self.is_replica
    }

    /// The server and database for messages: without user and password.
    pub fn server(&self) -> &str {
        self.route.server()
    }

    /// The number of connections.
    pub fn connections(&self) -> Connections {
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        Connections { idle, active: self.pool.size().saturating_sub(idle) }
    }

    /// Closes all connections; waits a while for those that are in use.
    pub async fn close(&self) {
        drop(timeout(CONNECT_TIMEOUT, self.pool.close()).await);
    }

    /// Begins a transaction, once a connection is free.
    ///
    /// An idle connection may have been lost, which shows here. Then we close it and take the next
    /// one, until the pool makes a new one.
    async fn begin(&self, begin: Begin) -> Result<Transaction, SourceError> {
        let longest = self.statement_timeout(begin.bounds.statement) + ANSWER_GRACE;
        let longest = longest.min(CONNECT_TIMEOUT);
        let mut others = self.settings.max_connections.get();
        loop {
            let (connection, permit) = self.take().await?;
            let mut transaction = Transaction {
                connection,
                begin: String::new(),
                may_write: self.may_write(begin.access),
                has_begun_again: false,
                is_whole: false,
                _permit: permit,
            };
            let sent = self.begin_on(&mut transaction, begin);
            let Ok(sent) = timeout(longest, sent).await else {
                let server = self.server();
                let message = format!("no answer of database `{server}` within {longest:?}");
                return Err(error::unavailable(message));
            };
            match sent {
                Ok(sent) => {
                    transaction.begin = sent;
                    return Ok(transaction);
                }
                Err(error) => {
                    let error = error::of_begin(&error);
                    if error.kind != SourceErrorKind::Unavailable || others == 0 {
                        return Err(error);
                    }
                    others -= 1;
                }
            }
        }
    }

    /// Begins a transaction on a connection; returns the SQL that it sent.
    async fn begin_on(
        &self,
        connection: &mut PgConnection,
        begin: Begin,
    ) -> Result<String, sqlx::Error> {
        let Begin { access, bounds } = begin;
        let bounds = Bounds { statement: self.statement_timeout(bounds.statement), ..bounds };
        let locals = self.session(connection).await?.locals(bounds);
        let begin = match (self.may_write(access), access) {
            (true, Access::Write) => "begin read write",
            (true, _) => "begin",
            (false, Access::Snapshot) => "begin isolation level repeatable read read only",
            (false, _) => "begin read only",
        };
        let mut sent = format!("{begin}; {locals}");
        if access != Access::Write && self.settings.row_security == RowSecurity::Refuse {
            sent.push_str("; set local row_security = off");
        }
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sent.as_str()))).await?;
        Ok(sent)
    }

    fn may_write(&self, access: Access) -> bool {
        match access {
            Access::ReadOnly | Access::Snapshot => false,
            Access::AsSet => !self.settings.read_only,
            Access::Write => true,
        }
    }

    /// Whether neither the settings nor the URL nor the server define the time zone of queries, as
    /// of the last look-up.
    fn is_zone_unsaid(&self) -> bool {
        let known = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(Session::is_zone_unsaid)
    }

    /// The settings of each transaction; looked up again every minute.
    async fn session(&self, connection: &mut PgConnection) -> Result<Session, sqlx::Error> {
        let known = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(Session::is_fresh) {
            return Ok(known);
        }
        let looked = Session::look(connection, &self.settings, &self.route.locals).await?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(looked.clone());
        Ok(looked)
    }

    /// Takes one connection out of the pool and lowers the limit for good, so that the caller may
    /// open one elsewhere. The caller has to close the connection that it gets.
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
            // The pool only says that it waited. Our permit allows one connection, so we connect
            // once ourselves to find out what is wrong.
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

    /// A connection of the pool; `Err(None)` if the pool only says that it waited.
    ///
    /// All connections of the pool lead to one host. If the URL has several hosts, or wants a role,
    /// we check each connection. If it is lost, or its server is no longer acceptable, we close it
    /// and point the pool at a host that is acceptable.
    async fn pooled(&self) -> Result<PoolConnection<Postgres>, Option<NotConnected>> {
        if self.route.is_plain() {
            return self.pool.acquire().await.map_err(|error| {
                let has_only_waited = matches!(error, sqlx::Error::PoolTimedOut);
                (!has_only_waited).then(|| NotConnected::new(self.server(), &error))
            });
        }
        let mut patience = HOST_PATIENCE.min(self.route.patience);
        // Each of the pool's connections may be lost.
        for _ in 0..=self.settings.max_connections.get() {
            let acquired = timeout(patience, self.pool.acquire()).await;
            if let Ok(Ok(mut connection)) = acquired {
                if self.route.suits(&mut connection).await {
                    return Ok(connection);
                }
                connection.close_on_drop();
            }
            drop(self.try_connection().await?.close().await);
            patience = self.route.patience;
        }
        Err(None)
    }

    /// Connects once, past the pool, and points the pool at the same host.
    async fn try_connection(&self) -> Result<PgConnection, NotConnected> {
        let (connection, options) = Box::pin(self.route.connect()).await?;
        if !self.route.is_plain() {
            self.pool.set_connect_options(options);
        }
        Ok(connection)
    }

    /// The statement timeout of a call that may take `longest`.
    fn statement_timeout(&self, longest: Duration) -> Duration {
        self.settings.statement_timeout.min(longest)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("server", &self.server()).finish_non_exhaustive()
    }
}

/// What a transaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// It only reads, whatever the settings say.
    ReadOnly,
    /// It only reads, and all its statements see the data of one moment.
    Snapshot,
    /// It may write, unless [`DatabaseSettings::read_only`] forbids it.
    AsSet,
    /// It may write, whatever the settings say: to our own tables and triggers.
    Write,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug)]
struct Begin {
    access: Access,
    bounds: Bounds,
}

impl Begin {
    /// Each statement takes at most `longest`, and never longer than the settings allow.
    fn reading(access: Access, longest: Duration) -> Self {
        let bounds = Bounds { statement: longest, lock: LOCK_WAIT };
        Self { access, bounds }
    }

    /// No statement waits for a lock longer than `lock`.
    fn writing(lock: Duration) -> Self {
        let bounds = Bounds { statement: Duration::MAX, lock };
        Self { access: Access::Write, bounds }
    }
}

/// A transaction. It has a connection of its own until it ends.
///
/// If it is dropped before its end, the connection is closed. A query's future may be dropped at
/// any await, but the query goes on in the server, and the connection's next user would wait behind
/// it.
struct Transaction {
    connection: PoolConnection<Postgres>,
    /// The SQL that began it.
    begin: String,
    may_write: bool,
    has_begun_again: bool,
    is_whole: bool,
    _permit: OwnedSemaphorePermit,
}

impl Transaction {
    /// Ends the transaction after a statement whose rows were all read. A read-only transaction has
    /// nothing to commit, so we roll it back without waiting for the reply: the pool reads it
    /// before it lends the connection again.
    async fn end(mut self) -> Result<(), sqlx::Error> {
        if self.may_write {
            return self.commit().await;
        }
        // The end of the last reply is still on its way, and nothing can be sent before it has
        // come.
        self.flush().await?;
        let sent = self.execute(sqlx::raw_sql("rollback")).now_or_never();
        self.is_whole = sent.is_none_or(|answer| answer.is_ok());
        Ok(())
    }

    async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.execute(sqlx::raw_sql("commit")).await?;
        self.is_whole = true;
        Ok(())
    }

    /// Rolls back after an error of the server.
    async fn undo(mut self) {
        let undone = timeout(ANSWER_GRACE, self.execute(sqlx::raw_sql("rollback"))).await;
        self.is_whole = matches!(undone, Ok(Ok(_)));
    }

    /// Restarts the transaction, but only once; returns whether it did.
    async fn begin_again(&mut self) -> Result<bool, sqlx::Error> {
        if self.has_begun_again {
            return Ok(false);
        }
        self.has_begun_again = true;
        self.begin_anew().await?;
        Ok(true)
    }

    /// Rolls back and begins again with the same SQL.
    async fn begin_anew(&mut self) -> Result<(), sqlx::Error> {
        let begin = AssertSqlSafe(format!("rollback; {}", self.begin));
        self.execute(sqlx::raw_sql(begin)).await?;
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.is_whole {
            self.connection.close_on_drop();
        }
    }
}

/// Whether the server is a replica. A server that does not answer the question (it only speaks the
/// protocol) counts as a primary.
async fn is_replica(connection: &mut PgConnection) -> bool {
    let asked = connection.fetch_one(sqlx::raw_sql("select pg_is_in_recovery()"));
    let row = timeout(CONNECT_TIMEOUT, asked).await;
    row.is_ok_and(|row| row.and_then(|row| row.try_get(0)).unwrap_or(false))
}

/// Why a connection could not be made.
struct NotConnected {
    kind: ConnectErrorKind,
    server: String,
    reason: String,
}

impl NotConnected {
    fn new(server: &str, error: &sqlx::Error) -> Self {
        let kind = Self::kind(error::code(error), error::is_tls(error));
        let hint = error::connect_hint(error).map(|hint| format!("; hint: {hint}"));
        let reason = error::text(error) + &hint.unwrap_or_default();
        Self::because(server, kind, &reason)
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
    fn replicating(server: &str, error: &ReplicationError) -> Self {
        let kind = Self::kind(error.code(), error.is_tls());
        let hint = match error.code() {
            Some("42501") => {
                "; hint: messages through the write-ahead log need a role with REPLICATION \
                 (`alter role … replication`), which may read the whole cluster; \
                 `preheat changes install --via notify` needs no right"
            }
            Some("53300") => "; hint: every worker takes one WAL sender: raise `max_wal_senders`",
            Some("08P01" | "0A000") => {
                "; hint: a pooler does not pass on replication connections: set `[changes] url` to \
                 the server's own address"
            }
            _ => "",
        };
        Self::because(server, kind, &format!("{error}{hint}"))
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
