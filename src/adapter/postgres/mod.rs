//! Tenants, rows and run records in Postgres.

mod catalog;
mod changes;
mod check;
mod client;
mod column;
mod connect;
mod describe;
mod error;
mod history;
mod id;
mod moment;
mod not_connected;
mod pages;
mod parameter_types;
mod parameters;
mod pauses;
mod pool;
mod read_error;
mod replication;
mod session;
mod source;
mod transaction;
mod wire;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono_tz::Tz;
use futures::future::join_all;
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::engine::ports::{SourceError, SourceErrorKind};

use self::client::{Client, Link};
use self::column::OwnTypes;
use self::connect::Route;
use self::not_connected::NotConnected;
use self::pool::{Found, Place, Pool};
use self::session::{Bounds, LOCK_WAIT, Session};
use self::transaction::{Access, Begin, Transaction};
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

/// The pauses between tries to connect to a server that just does not take connections.
const CONNECT_PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(300)];

/// How often idle connections are looked at: those that were idle or open for too long are closed.
const LOOK_AT_IDLE_EVERY: Duration = Duration::from_secs(30);

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
    pool: Arc<Pool<Link>>,
    /// Closes connections that were idle or open for too long.
    _janitor: JoinSet<()>,
    route: Route,
    is_replica: bool,
    settings: DatabaseSettings,
    /// The session settings, as last looked up.
    session: Mutex<Option<Session>>,
    types: OwnTypes,
}

/// The number of connections by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open and unused.
    pub idle: u32,
    /// In use.
    pub active: u32,
}

/// The limit on the connections to a database.
#[derive(Clone)]
pub struct ConnectionLimit(Arc<Pool<Link>>);

impl ConnectionLimit {
    /// From now on at most this many connections are allowed. Idle ones that are too many are closed at once, and others when
    /// they are no longer in use.
    pub fn set(&self, most: u32) {
        if most != self.0.most() {
            self.0.set_most(most);
        }
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        let (idle, in_use) = self.0.counts();
        idle + in_use
    }
}

impl Database {
    /// Connects once, so that wrong settings and an unreachable server show at once.
    pub async fn connect(settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let mut database = Self::lazy(settings)?;
        database.reach().await?;
        Ok(database)
    }

    /// Connects once, to see whether the server is there and whether a transaction can begin with our
    /// settings.
    pub async fn reach(&mut self) -> Result<(), ConnectError> {
        let place = self.empty_place().await.map_err(NotConnected::into_error)?;
        let connected = Box::pin(self.route.connect::<wire::Session>()).await;
        let mut session = connected.map_err(NotConnected::into_error)?;
        // A setting that no transaction can begin with shows here, and not in every transaction.
        let begin = Begin::reading(Access::ReadOnly, CONNECT_TIMEOUT);
        match timeout(CONNECT_TIMEOUT, self.begin_on(&mut session, begin)).await {
            Ok(Ok(_sent)) => {}
            Ok(Err(error)) => return Err(NotConnected::new(self.server(), &error).into_error()),
            Err(_elapsed) => {
                return Err(NotConnected::in_time(self.server(), CONNECT_TIMEOUT).into_error());
            }
        }
        self.is_replica = is_replica(&mut session).await;
        Transaction::new(session, place, false).undo().await;
        Ok(())
    }

    /// Checks the settings; the first query connects. It must be called within a runtime.
    pub fn lazy(settings: DatabaseSettings) -> Result<Self, ConnectError> {
        let route = Route::new(&settings.url)?;
        let pool = Arc::new(Pool::new(settings.max_connections.get()));
        let mut janitor = JoinSet::new();
        janitor.spawn(close_expired(Arc::clone(&pool)));
        let (session, types) = Default::default();
        Ok(Self { pool, _janitor: janitor, route, is_replica: false, settings, session, types })
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
        let (idle, active) = self.pool.counts();
        Connections { idle, active }
    }

    /// How many connections are allowed at present.
    pub fn most_connections(&self) -> u32 {
        self.pool.most()
    }

    /// The limit on the connections, to be moved while they are in use.
    pub fn limit(&self) -> ConnectionLimit {
        ConnectionLimit(Arc::clone(&self.pool))
    }

    /// Opens connections before queries need them, until this many are open. It reports no error: a query that needs a
    /// connection tries again, and reports why it cannot have one.
    pub async fn open_ahead(&self, connections: u32) {
        let (idle, in_use) = self.pool.counts();
        let more = connections.saturating_sub(idle + in_use);
        join_all((0..more).map(|_| self.open_one())).await;
    }

    async fn open_one(&self) {
        let Ok(place) = self.empty_place().await else { return };
        if let Ok(session) = self.route.connect::<wire::Session>().await
            && let Some(unwanted) = place.give_back(session.into_link())
        {
            unwanted.abandon();
        }
    }

    /// Closes all connections; waits a while for those that are in use.
    pub async fn close(&self) {
        let idle = self.pool.close(CONNECT_TIMEOUT).await;
        idle.into_iter().for_each(Link::abandon);
    }

    /// Begins a transaction of sqlx's, once a connection is free.
    async fn begin(&self, begin: Begin) -> Result<Transaction, SourceError> {
        self.begin_with(begin).await
    }

    /// Begins a transaction of a client, once a connection is free.
    ///
    /// An idle connection may have been lost, which shows here. Then we close it and take the next
    /// one, until we make a new one.
    async fn begin_with<C: Client>(&self, begin: Begin) -> Result<Transaction<C>, SourceError> {
        let longest = self.statement_timeout(begin.bounds.statement) + ANSWER_GRACE;
        let longest = longest.min(CONNECT_TIMEOUT);
        let mut others = self.settings.max_connections.get();
        loop {
            let (client, place) = self.take::<C>().await?;
            let mut transaction = Transaction::new(client, place, self.may_write(begin.access));
            let sent = self.begin_on(&mut *transaction, begin);
            let Ok(sent) = timeout(longest, sent).await else {
                let server = self.server();
                let message = format!("no answer of database `{server}` within {longest:?}");
                return Err(error::unavailable(message));
            };
            match sent {
                Ok(sent) => {
                    transaction.begun(sent);
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
    async fn begin_on<C: Client>(
        &self,
        client: &mut C,
        begin: Begin,
    ) -> Result<String, sqlx::Error> {
        let Begin { access, bounds } = begin;
        let bounds = Bounds { statement: self.statement_timeout(bounds.statement), ..bounds };
        let locals = self.session(client).await?.locals(bounds);
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
        client.ask(&sent).await?;
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
    async fn session<C: Client>(&self, client: &mut C) -> Result<Session, sqlx::Error> {
        let known = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(Session::is_fresh) {
            return Ok(known);
        }
        let looked = Session::look(client, &self.settings, &self.route.locals).await?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(looked.clone());
        Ok(looked)
    }

    /// Lowers the limit by one connection, so that the caller may open one elsewhere, until
    /// [`Self::take_back`].
    async fn cede_one(&self) -> Result<(), SourceError> {
        let place = self.empty_place().await.map_err(NotConnected::into_source_error)?;
        place.give_away();
        Ok(())
    }

    /// A place for a new connection, whether or not one is idle.
    async fn empty_place(&self) -> Result<Place<Link>, NotConnected> {
        let mut place = self.place().await?;
        if let Some(first) = place.room() {
            close(first).await;
        }
        Ok(place)
    }

    async fn place(&self) -> Result<Place<Link>, NotConnected> {
        let closed =
            || NotConnected::because(self.server(), ConnectErrorKind::Unreachable, "it was closed");
        self.pool.place().await.ok_or_else(closed)
    }

    /// Ends what [`Self::cede_one`] began, once the connection elsewhere is closed.
    fn take_back(&self) {
        self.pool.take_back();
    }

    /// A connection, with the place that it takes.
    ///
    /// If the URL has several hosts, or wants a role, we check each idle connection. If it is lost, or its
    /// server is no longer acceptable, we close it and take the next one.
    async fn take<C: Client>(&self) -> Result<(C, Place<Link>), SourceError> {
        let mut place = self.place().await.map_err(NotConnected::into_source_error)?;
        loop {
            match place.find(C::KIND) {
                Found::Idle(link) => {
                    let Some(mut client) = C::from_link(link) else { continue };
                    if self.route.is_plain() || self.route.suits(&mut client).await {
                        return Ok((client, place));
                    }
                    client.abandon();
                }
                Found::Room(first) => {
                    if let Some(link) = first {
                        close(link).await;
                    }
                    let connected = self.connect_again().await;
                    return match connected {
                        Ok(client) => Ok((client, place)),
                        Err(failed) => Err(failed.into_source_error()),
                    };
                }
            }
        }
    }

    /// A new connection. A server that just does not take connections, because it starts or has too many, is
    /// tried again for a while.
    async fn connect_again<C: Client>(&self) -> Result<C, NotConnected> {
        let [mut pause, longest] = CONNECT_PAUSES;
        let mut waited = Duration::ZERO;
        loop {
            match Box::pin(self.route.connect::<C>()).await {
                Ok(mut client) => {
                    client.settle(&self.types).await;
                    return Ok(client);
                }
                Err(failed) if failed.may_pass && waited < self.route.patience => {}
                Err(failed) => return Err(failed),
            }
            sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(longest);
        }
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

/// Whether the server is a replica. A server that does not answer the question (it only speaks the
/// protocol) counts as a primary.
async fn is_replica<C: Client>(client: &mut C) -> bool {
    let asked = timeout(CONNECT_TIMEOUT, client.ask("select pg_is_in_recovery()")).await;
    asked.is_ok_and(|rows| rows.is_ok_and(|rows| rows.concat().contains(&Some("t".to_owned()))))
}

/// Closes a connection, and waits a while until the server has closed it as well.
async fn close(link: Link) {
    drop(timeout(ANSWER_GRACE, link.close()).await);
}

async fn close_expired(pool: Arc<Pool<Link>>) {
    loop {
        tokio::select! {
            () = pool.shrunk() => {}
            () = sleep(LOOK_AT_IDLE_EVERY) => {}
        }
        for link in pool.expired(pool::now()) {
            close(link).await;
        }
    }
}
