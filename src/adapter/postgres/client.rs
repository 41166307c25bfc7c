//! The two clients that speak to the server: sqlx, and our own for tenants and rows.

use futures::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use super::column::{self, OwnTypes};
use super::describe;
use super::pool::{Kind, Pooled};
use super::read_error::{ReadError, refused};
use super::wire::{self, Described, Parameter, Purpose, TextRow};

/// A connection of a client.
pub(super) trait Client: Sized + Send {
    const KIND: Kind;

    fn connect(
        options: &PgConnectOptions,
    ) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;

    /// Prepares a new connection for queries.
    fn settle(&mut self, types: &OwnTypes) -> impl Future<Output = ()> + Send;

    /// Runs SQL by the simple protocol, and returns the rows of all its statements as texts.
    fn ask(&mut self, sql: &str) -> impl Future<Output = Result<Vec<TextRow>, sqlx::Error>> + Send;

    /// The columns that a query returns, found without running it.
    fn describe(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> impl Future<Output = Result<Vec<Described>, ReadError>> + Send;

    /// Whether the transaction has ended already.
    fn has_ended(&self) -> bool;

    /// Whether another user may have the connection after a transaction that ended well.
    fn is_at_rest(&self) -> bool;

    /// Says goodbye.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Closes the connection at once, whatever it does.
    fn abandon(self);

    fn into_link(self) -> Link;

    fn from_link(link: Link) -> Option<Self>;
}

/// A connection of either client, for the pool.
pub(super) enum Link {
    Sqlx(Box<PgConnection>),
    Own(Box<wire::Session>),
}

impl Link {
    pub(super) async fn close(self) {
        match self {
            Self::Sqlx(connection) => Client::close(*connection).await,
            Self::Own(session) => Client::close(*session).await,
        }
    }

    pub(super) fn abandon(self) {
        match self {
            Self::Sqlx(connection) => Client::abandon(*connection),
            Self::Own(session) => Client::abandon(*session),
        }
    }
}

impl Pooled for Link {
    fn kind(&self) -> Kind {
        match self {
            Self::Sqlx(_) => Kind::Sqlx,
            Self::Own(_) => Kind::Own,
        }
    }
}

impl Client for PgConnection {
    const KIND: Kind = Kind::Sqlx;

    async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        options.connect().await
    }

    async fn settle(&mut self, types: &OwnTypes) {
        types.teach(self).await;
    }

    async fn ask(&mut self, sql: &str) -> Result<Vec<TextRow>, sqlx::Error> {
        let rows = self.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let texts =
            |row: &PgRow| (0..row.len()).map(|index| row.try_get_unchecked(index)).collect();
        rows.iter().map(texts).collect()
    }

    async fn describe(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> Result<Vec<Described>, ReadError> {
        let arguments = Parameter::arguments(parameters)?;
        Ok(column::described(&describe::columns(self, sql, arguments).await?))
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn is_at_rest(&self) -> bool {
        true
    }

    async fn close(self) {
        // It does not matter whether the server gets our goodbye.
        drop(Connection::close(self).await);
    }

    fn abandon(self) {
        drop(Connection::close(self).now_or_never());
    }

    fn into_link(self) -> Link {
        Link::Sqlx(Box::new(self))
    }

    fn from_link(link: Link) -> Option<Self> {
        match link {
            Link::Sqlx(connection) => Some(*connection),
            Link::Own(_) => None,
        }
    }
}

impl Client for wire::Session {
    const KIND: Kind = Kind::Own;

    async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        Self::connect(options, Purpose::Queries).await
    }

    async fn settle(&mut self, _types: &OwnTypes) {}

    async fn ask(&mut self, sql: &str) -> Result<Vec<TextRow>, sqlx::Error> {
        self.query(sql).await
    }

    async fn describe(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> Result<Vec<Described>, ReadError> {
        let described = Self::describe(self, sql, parameters).await;
        described.map_err(|error| refused(error, parameters.len()))
    }

    fn has_ended(&self) -> bool {
        Self::is_at_rest(self)
    }

    fn is_at_rest(&self) -> bool {
        Self::is_at_rest(self)
    }

    async fn close(self) {
        // It does not matter whether the server gets our goodbye.
        drop(Self::close(self).await);
    }

    fn abandon(self) {
        Self::abandon(self);
    }

    fn into_link(mut self) -> Link {
        self.shrink();
        Link::Own(Box::new(self))
    }

    fn from_link(link: Link) -> Option<Self> {
        match link {
            Link::Own(session) => Some(*session),
            Link::Sqlx(_) => None,
        }
    }
}
