//! Listening to the notifications of triggers.

use std::time::Duration;

use futures::FutureExt;
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::engine::ports::FeedError;

use super::super::{
    Access, Begin, CONNECT_TIMEOUT, Database, DatabaseSettings, NotConnected, error,
};
use super::sql::CHANNEL;
use super::{ANSWER_WITHIN, AT_ONCE};

/// How often the listener asks the server whether it is still there: a connection that died silently brings
/// no error.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// Keeps the session open, as a listener is idle most of the time. Servers before version 14 have no such
/// timeout.
const STAY: &str = "select set_config('idle_session_timeout', '0', false) \
                    where current_setting('idle_session_timeout', true) is not null";

/// A connection that receives notifications.
pub(super) struct Listener {
    listener: PgListener,
    server: String,
    check: Interval,
}

impl Listener {
    /// Listens at `direct`, or else at the server of `database`.
    pub(super) async fn connect(
        database: &Database,
        direct: Option<&DatabaseSettings>,
    ) -> Result<Self, FeedError> {
        let is_direct = direct.is_some();
        let settings = direct.unwrap_or(&database.settings).clone();
        let direct = Database::lazy(settings).map_err(|error| FeedError(error.to_string()))?;
        let mut listener = connect(&direct).await?;
        if !is_direct {
            own_session(database, &mut listener).await?;
        }
        // A lost connection has lost the notifications of the meantime: see `Feed::next`.
        listener.eager_reconnect(false);
        let server = direct.server().to_owned();
        answered(&server, listener.listen(CHANNEL)).await?;
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.reset();
        Ok(Self { listener, server, check })
    }

    /// Sends a notification to the listener on the same way as every other statement. A listener that is
    /// connected to another database, or through an unknown pooler, would otherwise receive nothing for ever.
    pub(super) async fn hear_ourselves(
        &mut self,
        database: &Database,
        unread: &mut Vec<String>,
    ) -> Result<(), FeedError> {
        let id = uuid::Uuid::now_v7().simple();
        let channel = format!("preheat_probe_{id}");
        answered(&self.server, self.listener.listen(&channel)).await?;
        let notify = format!("select pg_notify('{channel}', '')");
        speak(database, &notify).await?;
        let heard = timeout(ANSWER_WITHIN, async {
            loop {
                let heard = self.listener.try_recv().await;
                let heard = self.heard(heard)?;
                if heard.channel() == channel {
                    return Ok(());
                }
                keep(&heard, unread);
            }
        });
        let Ok(heard) = heard.await else { return Err(not_heard(database, &self.server)) };
        heard?;
        // The session is the listener's own, as the check has just shown: no other client inherits the
        // setting.
        answered(&self.server, self.listener.execute(sqlx::raw_sql(STAY))).await?;
        answered(&self.server, self.listener.unlisten(&channel)).await
    }

    /// Waits for notifications, and adds them to `unread`. A caller may give up at any time.
    pub(super) async fn hear(&mut self, unread: &mut Vec<String>) -> Result<(), FeedError> {
        tokio::select! {
            biased;
            heard = self.listener.try_recv() => {
                let heard = self.heard(heard)?;
                keep(&heard, unread);
                self.hear_what_is_there(unread)
            }
            _ = self.check.tick() => {
                answered(&self.server, self.listener.execute("select 1")).await.map(drop)
            }
        }
    }

    /// Takes the notifications that have arrived already. It awaits nothing, so it cannot be dropped half
    /// way.
    fn hear_what_is_there(&mut self, unread: &mut Vec<String>) -> Result<(), FeedError> {
        while unread.len() < AT_ONCE {
            let Some(heard) = self.listener.try_recv().now_or_never() else { break };
            let heard = self.heard(heard)?;
            keep(&heard, unread);
        }
        Ok(())
    }

    fn heard(
        &self,
        heard: Result<Option<PgNotification>, sqlx::Error>,
    ) -> Result<PgNotification, FeedError> {
        heard.map_err(|error| self.lost(&error))?.ok_or_else(|| self.gone())
    }

    fn lost(&self, error: &sqlx::Error) -> FeedError {
        super::lost(&self.server, &error::text(error))
    }

    /// Without an open question, the driver does not pass on the server's last message.
    fn gone(&self) -> FeedError {
        let reason =
            "the server, or something on the way to it, closed it; hint: the server's log says why";
        super::lost(&self.server, reason)
    }
}

fn keep(heard: &PgNotification, unread: &mut Vec<String>) {
    if heard.channel() == CHANNEL {
        unread.push(heard.payload().to_owned());
    }
}

/// Runs a statement in a transaction on the way of all other statements.
pub(super) async fn speak(database: &Database, statement: &str) -> Result<(), FeedError> {
    let begin = Begin::writing(ANSWER_WITHIN);
    let transaction = database.begin(begin).await;
    let mut transaction = transaction.map_err(|error| FeedError(error.message))?;
    let statement = sqlx::raw_sql(AssertSqlSafe(statement));
    answered(database.server(), transaction.execute(statement)).await?;
    answered(database.server(), transaction.commit()).await
}

pub(super) fn not_heard(database: &Database, listener: &str) -> FeedError {
    FeedError(format!(
        "what database `{}` tells is not heard by the listener on `{listener}`; hint: it has to be \
         the same database, without a pooler in transaction mode: see `[changes] url`",
        database.server(),
    ))
}

/// Refuses to listen in a session that is not the listener's own: a pooler would give the session, and its
/// notifications, to its next client.
async fn own_session(database: &Database, listener: &mut PgListener) -> Result<(), FeedError> {
    let server = database.server();
    let session = || sqlx::raw_sql("select pg_backend_pid()::text");
    let of_row = |row: PgRow| row.try_get::<String, _>(0);
    let own = answered(server, listener.fetch_one(session())).await?;
    let begin = Begin::reading(Access::ReadOnly, ANSWER_WITHIN);
    let mut other = database.begin(begin).await.map_err(|error| FeedError(error.message))?;
    // While a transaction occupies the session that this one takes first, the listener gets another one.
    let others = answered(server, other.fetch_one(session())).await?;
    let now = answered(server, listener.fetch_one(session())).await?;
    answered(server, other.end()).await?;
    let [own, others, now] = [own, others, now].map(of_row);
    if own.is_ok() && own.as_ref().ok() == now.as_ref().ok() && own.ok() != others.ok() {
        return Ok(());
    }
    Err(FeedError(format!(
        "nobody can listen to database `{server}` through a pooler in transaction mode; hint: \
         set `[changes] url` to the server's own address"
    )))
}

/// A listener comes with a pool of its own. The pool's error only says that it waited; a direct connection says
/// why.
async fn connect(direct: &Database) -> Result<PgListener, FeedError> {
    let route = &direct.route;
    let directly = async || route.connect::<PgConnection>().await;
    if !route.is_plain() {
        let found = directly().await;
        drop(found.map_err(|failed| FeedError(failed.message()))?.close().await);
    }
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(route.patience);
    let pool = pool.idle_timeout(None).max_lifetime(None).connect_lazy_with(route.reached());
    let failed = match timeout(CONNECT_TIMEOUT * 2, PgListener::connect_with(&pool)).await {
        Ok(Ok(listener)) => return Ok(listener),
        Ok(Err(sqlx::Error::PoolTimedOut)) => match directly().await {
            Ok(_there_now) => NotConnected::in_time(direct.server(), CONNECT_TIMEOUT),
            Err(failed) => failed,
        },
        Ok(Err(error)) => NotConnected::new(direct.server(), &error),
        Err(_elapsed) => NotConnected::in_time(direct.server(), CONNECT_TIMEOUT * 2),
    };
    Err(FeedError(failed.message()))
}

async fn answered<T>(
    server: &str,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, FeedError> {
    super::answered(server, call, error::text).await
}
