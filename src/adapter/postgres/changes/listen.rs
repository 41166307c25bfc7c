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

/// How often the server is asked whether it is still there: a connection that died without a word
/// brings no error, only silence.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// The longest that any answer takes; a server that is there needs milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A listener is idle most of the time. Servers before version 14 have no such timeout.
const STAY: &str = "select set_config('idle_session_timeout', '0', false) \
                    where current_setting('idle_session_timeout', true) is not null";
/// So many notifications are handed on at once.
const AT_ONCE: usize = 1_000;

/// Told when a trigger could not tell the tenants: by which source, and the SQLSTATE why.
pub type TroubleNote = Arc<dyn Fn(&ChangeSourceId, &str) + Send + Sync>;

/// Where the triggers' notifications are heard.
pub struct PostgresFeedSource {
    database: Arc<Database>,
    /// Past what stands between us and the server, where it is another way than the database's.
    direct: Option<DatabaseSettings>,
    /// Once it has listened, one of the database's connections is the listener's for good: a pool
    /// that had it in between would have to close another in time.
    ceded: OnceCell<()>,
    /// Connected by [`PostgresFeedSource::prepare`].
    prepared: Mutex<Option<PostgresFeed>>,
    ears: Ears,
}

/// What a connection that listens shares with its source.
#[derive(Clone)]
struct Ears {
    /// The sources of the jobs as they are now.
    watched: Arc<Mutex<Vec<ChangeSourceId>>>,
    /// Sources of which changes may have been missed, on their way to the engine.
    missed: Arc<SourceQueue>,
    /// Sources that somebody installed or mended.
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
    /// Listens with a connection of its own, which counts among those of `database`; `direct` leads
    /// to the same server where `database` does not lead there without a pooler.
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

    /// These are the sources from now on: a notification that nobody understands is a change of
    /// each of them.
    pub fn watch(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        let sources = sources.into_iter().collect();
        *self.ears.watched.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// Changes of these sources may have been missed: whoever listens hears that any tenant of theirs
    /// may have changed. While nobody listens it says nothing new.
    pub fn may_have_missed(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        self.ears.missed.add(sources);
    }

    /// Waits until somebody installs or mends triggers.
    pub async fn somebody_installed(&self) {
        self.ears.installed.more.notified().await;
    }

    /// The sources that were installed or mended since the last call.
    pub fn take_installed(&self) -> BTreeSet<ChangeSourceId> {
        self.ears.installed.take()
    }

    /// Why it cannot listen with these settings, whatever the servers do.
    pub fn impossible(&self) -> Option<&'static str> {
        (self.database.settings.max_connections.get() < 2).then_some(
            "listening takes a connection of its own, and `database.max_connections` is 1",
        )
    }

    /// Connects once, so that it shows whether one can listen; what comes meanwhile is kept for
    /// whoever connects next.
    pub async fn prepare(&self) -> Result<(), FeedError> {
        let feed = self.listen().await?;
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        Ok(())
    }

    /// Nothing is awaited between the connection's leaving the pool and its being noted.
    async fn cede(&self) -> Result<(), FeedError> {
        let mut ceded = None;
        let cede = async {
            ceded = Some(self.database.cede_one().await?);
            Ok(())
        };
        let done: Result<&(), SourceError> = self.ceded.get_or_try_init(|| cede).await;
        done.map_err(|error| FeedError(error.message))?;
        if let Some(connection) = ceded {
            // It is of no more use, whether or not the server hears that.
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
        // A connection that is lost has lost what came meanwhile: see `Feed::next`.
        listener.eager_reconnect(false);
        let server = direct.server().to_owned();
        answered(&server, listener.listen(CHANNEL)).await?;
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.reset();
        // Whoever connects anew is told that anything may have changed.
        self.ears.missed.take();
        let (unread, ears) = (Vec::new(), self.ears.clone());
        let mut feed = PostgresFeed { listener, server, unread, check, ears };
        self.hear_ourselves(&mut feed).await?;
        Ok(feed)
    }

    /// Refuses to listen in a session that is not the listener's own: a pooler would hand the
    /// session, and what it listens to, to its next client.
    async fn own_session(&self, listener: &mut PgListener) -> Result<(), FeedError> {
        let server = self.database.server();
        let session = || sqlx::raw_sql("select pg_backend_pid()::text");
        let of_row = |row: PgRow| row.try_get::<String, _>(0);
        let own = answered(server, listener.fetch_one(session())).await?;
        let begin = Begin::reading(Access::ReadOnly, ANSWER_WITHIN);
        let mut other =
            self.database.begin(begin).await.map_err(|error| FeedError(error.message))?;
        // While a transaction is in the session that it takes first, the listener gets another one.
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

    /// Sends a word to the listener by the way of every other statement: one that is connected to
    /// another database, or through a pooler that nobody told us of, would hear nothing for ever.
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
        // The session is its own, as it has just shown: nobody else gets what is set for it.
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

/// The pool only says that it waited; asking past it says for what.
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

/// A connection that listens.
struct PostgresFeed {
    listener: PgListener,
    server: String,
    /// Payloads that were heard and not handed on yet.
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

    /// Takes what has arrived already. Nothing is awaited, so that nothing can be dropped half way.
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

    /// The driver keeps the server's last words to itself where nothing was asked.
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

/// What a trigger tells: see `sql::body`; or `install`: see `sql::tell_installed`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Payload {
    source: String,
    tenants: Option<Vec<String>>,
    #[serde(default)]
    gone: GoneValues,
    /// The SQLSTATE of what went wrong while tenants were looked for.
    error: Option<String>,
    /// Nothing was written: the triggers are new or mended.
    installed: Option<bool>,
}

impl Payload {
    /// What else a trigger of another version says of its source, we take as any tenant's change.
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
