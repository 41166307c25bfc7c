//! Listening for the notifications of the triggers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use sqlx::postgres::{PgListener, PgNotification, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::sync::{Notify, OnceCell};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::domain::change::{Change, ChangeSourceId, GoneValues};
use crate::engine::ports::{Feed, FeedError, FeedSource, SourceError};

use super::super::{
    Access, Begin, CONNECT_TIMEOUT, Database, DatabaseSettings, NotConnected, error,
};
use super::sql::CHANNEL;
use crate::adapter::ConnectError;

/// How often the feed asks the server whether it is still there: a connection that died silently brings no
/// error.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// The longest wait for any answer; a server that is up needs milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Keeps the session open, as a listener is idle most of the time. Servers before version 14 have no such
/// timeout.
const STAY: &str = "select set_config('idle_session_timeout', '0', false) \
                    where current_setting('idle_session_timeout', true) is not null";
/// How many notifications are handed on at once.
const AT_ONCE: usize = 1_000;

/// Called when a trigger could not find the tenants, with its source and the SQLSTATE of the error.
pub type TroubleNote = Arc<dyn Fn(&ChangeSourceId, &str) + Send + Sync>;

/// Receives the triggers' notifications.
pub struct PostgresFeedSource {
    database: Arc<Database>,
    /// A direct way to the server, if the database's URL leads through a pooler.
    direct: Option<DatabaseSettings>,
    /// From the first listening on, one of the database's connections belongs to the listener for good: if
    /// the pool took it back in between, the pool would have to close another one in time.
    ceded: OnceCell<()>,
    /// Connected by [`PostgresFeedSource::prepare`].
    prepared: Mutex<Option<PostgresFeed>>,
    ears: Ears,
}

/// What a listening connection shares with its source.
#[derive(Clone)]
struct Ears {
    /// The sources of the present jobs.
    watched: Arc<Mutex<Vec<ChangeSourceId>>>,
    /// Sources whose changes the feed may have missed, on their way to the engine.
    missed: Arc<SourceQueue>,
    /// Sources whose triggers were just installed or mended.
    installed: Arc<SourceQueue>,
    trouble: TroubleNote,
}

/// Sources on their way from one task to another, each once.
#[derive(Default)]
struct SourceQueue {
    sources: Mutex<BTreeSet<ChangeSourceId>>,
    more: Notify,
}

impl SourceQueue {
    fn add(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        let mut all = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(sources);
        if !all.is_empty() {
            self.more.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<ChangeSourceId> {
        std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PostgresFeedSource {
    /// Listens with a connection of its own, which counts among those of `database`. If `database` leads
    /// through a pooler, `direct` leads to the same server without it.
    pub fn new(
        database: Arc<Database>,
        direct: Option<DatabaseSettings>,
        trouble: TroubleNote,
    ) -> Result<Self, ConnectError> {
        if let Some(settings) = &direct {
            super::super::connect::Route::new(&settings.url)?;
        }
        let (watched, missed, installed) = Default::default();
        let ears = Ears { watched, missed, installed, trouble };
        Ok(Self { database, direct, ceded: OnceCell::new(), prepared: Mutex::default(), ears })
    }

    /// Replaces the sources. A notification that cannot be read counts as a change of each of them.
    pub fn watch(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        let sources = sources.into_iter().collect();
        *self.ears.watched.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// Records that changes of these sources may have been missed: the listening feed then reports that any
    /// of their tenants may have changed. Without a listening feed this adds nothing, since the next
    /// connection covers everything.
    pub fn may_have_missed(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        self.ears.missed.add(sources);
    }

    /// Waits until triggers are installed or mended.
    pub async fn somebody_installed(&self) {
        self.ears.installed.more.notified().await;
    }

    /// The sources whose triggers were installed or mended since the last call.
    pub fn take_installed(&self) -> BTreeSet<ChangeSourceId> {
        self.ears.installed.take()
    }

    /// Why it cannot listen with these settings, whatever state the servers are in.
    pub fn impossible(&self) -> Option<&'static str> {
        (self.database.settings.max_connections.get() < 2).then_some(
            "listening takes a connection of its own, and `database.max_connections` is 1",
        )
    }

    /// Connects once, to find out whether it can listen. Notifications that arrive meanwhile are kept for the
    /// next caller of `connect`.
    pub async fn prepare(&self) -> Result<(), FeedError> {
        let feed = self.listen().await?;
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        Ok(())
    }

    /// It awaits nothing between taking the connection out of the pool and recording that.
    async fn cede(&self) -> Result<(), FeedError> {
        let mut ceded = None;
        let cede = async {
            ceded = Some(self.database.cede_one().await?);
            Ok(())
        };
        let done: Result<&(), SourceError> = self.ceded.get_or_try_init(|| cede).await;
        done.map_err(|error| FeedError(error.message))?;
        if let Some(connection) = ceded {
            // The connection is no longer needed, whether or not the server receives the close.
            drop(timeout(ANSWER_WITHIN, connection.close()).await);
        }
        Ok(())
    }

    async fn listen(&self) -> Result<PostgresFeed, FeedError> {
        if let Some(reason) = self.impossible() {
            return Err(FeedError(reason.to_owned()));
        }
        self.cede().await?;
        let main = &self.database.settings;
        let settings = self.direct.as_ref().unwrap_or(main).clone();
        let direct = Database::lazy(settings).map_err(|error| FeedError(error.to_string()))?;
        let mut listener = connect(&direct).await?;
        if self.direct.is_none() {
            self.own_session(&mut listener).await?;
        }
        // A lost connection has lost the notifications of the meantime: see `Feed::next`.
        listener.eager_reconnect(false);
        let server = direct.server().to_owned();
        answered(&server, listener.listen(CHANNEL)).await?;
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.reset();
        // A new connection counts as a change of everything, which covers these.
        self.ears.missed.take();
        let (unread, ears) = (Vec::new(), self.ears.clone());
        let mut feed = PostgresFeed { listener, server, unread, check, ears };
        self.hear_ourselves(&mut feed).await?;
        Ok(feed)
    }

    /// Refuses to listen in a session that is not the listener's own: a pooler would give the session, and
    /// its notifications, to its next client.
    async fn own_session(&self, listener: &mut PgListener) -> Result<(), FeedError> {
        let server = self.database.server();
        let session = || sqlx::raw_sql("select pg_backend_pid()::text");
        let of_row = |row: PgRow| row.try_get::<String, _>(0);
        let own = answered(server, listener.fetch_one(session())).await?;
        let begin = Begin::reading(Access::ReadOnly, ANSWER_WITHIN);
        let mut other =
            self.database.begin(begin).await.map_err(|error| FeedError(error.message))?;
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

    /// Sends a notification to the listener on the same way as every other statement. A listener that is
    /// connected to another database, or through an unknown pooler, would otherwise receive nothing for ever.
    async fn hear_ourselves(&self, feed: &mut PostgresFeed) -> Result<(), FeedError> {
        let id = uuid::Uuid::now_v7().simple();
        let channel = format!("preheat_probe_{id}");
        answered(&feed.server, feed.listener.listen(&channel)).await?;
        let begin = Begin::writing(ANSWER_WITHIN);
        let mut transaction =
            self.database.begin(begin).await.map_err(|error| FeedError(error.message))?;
        let notify = AssertSqlSafe(format!("select pg_notify('{channel}', '')"));
        answered(self.database.server(), transaction.execute(sqlx::raw_sql(notify))).await?;
        answered(self.database.server(), transaction.commit()).await?;
        let heard = timeout(ANSWER_WITHIN, async {
            loop {
                let heard = feed.listener.try_recv().await;
                let heard = feed.heard(heard)?;
                if heard.channel() == channel {
                    return Ok(());
                }
                feed.keep(&heard);
            }
        });
        let Ok(heard) = heard.await else {
            return Err(FeedError(format!(
                "what database `{}` tells is not heard by the listener on `{}`; hint: it has to be \
                 the same database, without a pooler in transaction mode: see `[changes] url`",
                self.database.server(),
                feed.server
            )));
        };
        heard?;
        // The session is the listener's own, as the check has just shown: no other client inherits the
        // setting.
        answered(&feed.server, feed.listener.execute(sqlx::raw_sql(STAY))).await?;
        answered(&feed.server, feed.listener.unlisten(&channel)).await
    }
}

impl FeedSource for PostgresFeedSource {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>> {
        Box::pin(async move {
            let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
            let feed = match prepared {
                Some(feed) => feed,
                None => self.listen().await?,
            };
            Ok(Box::new(feed) as Box<dyn Feed>)
        })
    }
}

/// The pool's error only says that it waited; a direct connection says why.
async fn connect(direct: &Database) -> Result<PgListener, FeedError> {
    if !direct.route.is_plain() {
        let found = direct.try_connection().await;
        drop(found.map_err(|failed| FeedError(failed.message()))?.close().await);
    }
    let failed = match timeout(CONNECT_TIMEOUT * 2, PgListener::connect_with(&direct.pool)).await {
        Ok(Ok(listener)) => return Ok(listener),
        Ok(Err(sqlx::Error::PoolTimedOut)) => match direct.try_connection().await {
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
    match timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let reason = error::text(&error);
            Err(FeedError(format!("could not listen to database `{server}`: {reason}")))
        }
        Err(_elapsed) => Err(FeedError(format!(
            "could not listen to database `{server}`: no answer within {ANSWER_WITHIN:?}"
        ))),
    }
}

/// A listening connection.
struct PostgresFeed {
    listener: PgListener,
    server: String,
    /// Payloads that were received and not handed on yet.
    unread: Vec<String>,
    check: Interval,
    ears: Ears,
}

impl PostgresFeed {
    async fn hear(&mut self) -> Result<Vec<Change>, FeedError> {
        loop {
            let unread = std::mem::take(&mut self.unread);
            let missed = self.ears.missed.take().into_iter();
            let missed = missed.map(|source| Change::new(source, None));
            let heard = unread.iter().flat_map(|payload| self.changes(payload));
            let changes: Vec<_> = heard.chain(missed).collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
            tokio::select! {
                biased;
                heard = self.listener.try_recv() => {
                    let heard = self.heard(heard)?;
                    self.keep(&heard);
                    self.hear_what_is_there()?;
                }
                () = self.ears.missed.more.notified() => {}
                _ = self.check.tick() => {
                    answered(&self.server, self.listener.execute("select 1")).await?;
                }
            }
        }
    }

    /// Takes the notifications that have arrived already. It awaits nothing, so it cannot be dropped half
    /// way.
    fn hear_what_is_there(&mut self) -> Result<(), FeedError> {
        while self.unread.len() < AT_ONCE {
            let Some(heard) = self.listener.try_recv().now_or_never() else { break };
            let heard = self.heard(heard)?;
            self.keep(&heard);
        }
        Ok(())
    }

    fn heard(
        &self,
        heard: Result<Option<PgNotification>, sqlx::Error>,
    ) -> Result<PgNotification, FeedError> {
        heard.map_err(|error| self.lost(&error))?.ok_or_else(|| self.gone())
    }

    fn keep(&mut self, heard: &PgNotification) {
        if heard.channel() == CHANNEL {
            self.unread.push(heard.payload().to_owned());
        }
    }

    fn lost(&self, error: &sqlx::Error) -> FeedError {
        let (server, reason) = (&self.server, error::text(error));
        FeedError(format!("lost the connection that listens to database `{server}`: {reason}"))
    }

    /// Without an open question, the driver does not pass on the server's last message.
    fn gone(&self) -> FeedError {
        let server = &self.server;
        FeedError(format!(
            "lost the connection that listens to database `{server}`: the server, or something on \
             the way to it, closed it; hint: the server's log says why"
        ))
    }

    fn changes(&self, payload: &str) -> Vec<Change> {
        let Some(payload) = Payload::read(payload) else {
            let watched = self.ears.watched.lock().unwrap_or_else(PoisonError::into_inner);
            return watched.iter().map(|id| Change::new(id.clone(), None)).collect();
        };
        let source = ChangeSourceId::new(payload.source);
        if payload.installed == Some(true) {
            self.ears.installed.add([source]);
            return Vec::new();
        }
        if let Some(code) = &payload.error {
            (self.ears.trouble)(&source, code);
        }
        vec![Change { source, tenants: payload.tenants, gone: payload.gone }]
    }
}

impl Feed for PostgresFeed {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>> {
        Box::pin(self.hear())
    }
}

/// The payload of a trigger's notification (see `sql::body`) or of `install` (see `sql::tell_installed`).
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Payload {
    source: String,
    tenants: Option<Vec<String>>,
    #[serde(default)]
    gone: GoneValues,
    /// The SQLSTATE of an error while the trigger looked for tenants.
    error: Option<String>,
    /// No row was written: the triggers are new or mended.
    installed: Option<bool>,
}

impl Payload {
    /// If a trigger of another version reports more than this, the payload counts as a change of any tenant.
    fn read(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Source {
            source: String,
        }
        serde_json::from_str(text).ok().or_else(|| {
            let Source { source } = serde_json::from_str(text).ok()?;
            let gone = GoneValues::new();
            Some(Self { source, tenants: None, gone, error: None, installed: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_however_little_of_it_is_understood() {
        let read = |text: &str| {
            Payload::read(text).map(|payload| (payload.source, payload.tenants, payload.error))
        };
        let text = |text: &str| text.to_owned();
        let of = |tenants: &[&str]| Some(tenants.iter().map(|id| text(id)).collect::<Vec<_>>());
        assert_eq!(read(r#"{"source":"a"}"#), Some((text("a"), None, None)));
        assert_eq!(
            read(r#"{"source":"a","tenants":["1","\"\u00e4\n"]}"#),
            Some((text("a"), of(&["1", "\"ä\n"]), None))
        );
        assert_eq!(
            read(r#"{"source":"a","error":"42501"}"#),
            Some((text("a"), None, Some(text("42501"))))
        );
        assert_eq!(read(r#"{"source":"a","tenants":[1]}"#), Some((text("a"), None, None)));
        let of_keys = r#"{"source":"a","tenants":[],"gone":{"i\"d":["7","\u00e4"]}}"#;
        assert_eq!(read(of_keys), Some((text("a"), of(&[]), None)));
        let gone = Payload::read(of_keys).unwrap().gone;
        assert_eq!(gone, GoneValues::from([(text("i\"d"), of(&["7", "ä"]).unwrap())]));
        let unknown = r#"{"source":"a","tenants":[],"gone":7}"#;
        assert_eq!(read(unknown), Some((text("a"), None, None)));
        assert_eq!(read(r#"{"source":"a","rows":7}"#), Some((text("a"), None, None)));
        for nothing in ["", "a", "7", "[]", "{}", r#"{"source":7}"#] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
