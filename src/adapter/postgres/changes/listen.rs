//! Listening to the triggers, as they speak: by `NOTIFY`, through the write-ahead log, or both.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::domain::change::{Change, ChangeSourceId};
use crate::engine::ports::{Feed, FeedError, FeedSource};

use super::super::{Database, DatabaseSettings};
use super::look::Ways;
use super::notify::Listener;
use super::payload::Payload;
use super::wal::{LogReader, WaitNote};
use crate::adapter::ConnectError;

/// How long [`PostgresFeedSource::prepare`] waits for a replication slot, which is ready only when all older
/// transactions have ended.
const PREPARE_WITHIN: Duration = Duration::from_secs(2);

/// Called when a trigger could not find the tenants, with its source and the SQLSTATE of the error.
pub type TroubleNote = Arc<dyn Fn(&ChangeSourceId, &str) + Send + Sync>;

/// Receives the triggers' messages.
pub struct PostgresFeedSource {
    database: Arc<Database>,
    /// A direct way to the server, if the database's URL leads through a pooler.
    direct: Option<DatabaseSettings>,
    /// How many of the database's connections belong to the listener, also between two listenings: if the
    /// pool took one back, it would have to close another one in time.
    ceded: tokio::sync::Mutex<u32>,
    /// How the triggers speak.
    ways: watch::Sender<Ways>,
    /// The reader of the log that waits for its slot. It outlives a caller that gives up: the server keeps
    /// the slot of a session that is gone until the wait is over, and another try would take another slot.
    opening: tokio::sync::Mutex<Option<Opening>>,
    /// Connected by [`PostgresFeedSource::prepare`].
    prepared: Mutex<Option<PostgresFeed>>,
    ears: Ears,
    waits: WaitNote,
}

type Opening = BoxFuture<'static, Result<LogReader, FeedError>>;

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
    /// Listens with connections of its own, which count among those of `database`. If `database` leads
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
        Ok(Self {
            database,
            direct,
            ceded: tokio::sync::Mutex::default(),
            ways: watch::Sender::new(Ways::NOTIFY),
            opening: tokio::sync::Mutex::default(),
            prepared: Mutex::default(),
            ears: Ears { watched, missed, installed, trouble },
            waits: Arc::new(|_| {}),
        })
    }

    /// The same, which tells `note` when it waits for other sessions.
    #[must_use]
    pub fn telling(self, note: WaitNote) -> Self {
        Self { waits: note, ..self }
    }

    /// Replaces the sources. A message that cannot be read counts as a change of each of them.
    pub fn watch(&self, sources: impl IntoIterator<Item = ChangeSourceId>) {
        let sources = sources.into_iter().collect();
        *self.ears.watched.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// Listens on these ways from now on, as a look found the triggers. A feed that listens on other ways
    /// breaks, so that the next one counts as a change of everything.
    pub fn follow(&self, ways: Ways) {
        if ways.connections() > 0 {
            self.ways.send_replace(ways);
        }
    }

    /// Whether triggers speak through the write-ahead log, as the last look found them.
    pub fn reads_log(&self) -> bool {
        self.ways.borrow().wal
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
        let most = self.database.settings.max_connections.get();
        match self.ways.borrow().connections() {
            _ if most < 2 => {
                Some("listening takes a connection of its own, and `database.max_connections` is 1")
            }
            2.. if most < 3 => Some(
                "some triggers notify and others write to the log, so listening takes two connections, and \
                 `database.max_connections` is 2; hint: run `preheat changes install`, after which all \
                 speak alike",
            ),
            _ => None,
        }
    }

    /// Connects once, to find out whether it can listen. Messages that arrive meanwhile are kept for the
    /// next caller of `connect`. If only other transactions are in the way, that is no error.
    pub async fn prepare(&self) -> Result<(), FeedError> {
        if let Some(feed) = self.listen(PREPARE_WITHIN).await? {
            *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        }
        Ok(())
    }

    /// Makes the listener's connections as many as wanted. No feed listens meanwhile.
    async fn cede(&self, wanted: u32) -> Result<(), FeedError> {
        let mut ceded = self.ceded.lock().await;
        while *ceded < wanted {
            let place = self.database.cede_one().await;
            place.map_err(|error| FeedError(error.message))?;
            *ceded += 1;
        }
        while *ceded > wanted {
            self.database.take_back();
            *ceded -= 1;
        }
        Ok(())
    }

    /// Waits for the reader that is being opened, and begins to open one if there is none.
    async fn open_log(&self) -> Result<LogReader, FeedError> {
        let mut opening = self.opening.lock().await;
        let opened = opening
            .get_or_insert_with(|| {
                let settings = self.direct.as_ref().unwrap_or(&self.database.settings);
                let (database, waits) = (Arc::clone(&self.database), Arc::clone(&self.waits));
                Box::pin(LogReader::connect(database, settings.url.clone(), waits))
            })
            .await;
        *opening = None;
        opened
    }

    /// `None` if the replication slot was not ready within `patience`.
    async fn listen(&self, patience: Duration) -> Result<Option<PostgresFeed>, FeedError> {
        if let Some(reason) = self.impossible() {
            return Err(FeedError(reason.to_owned()));
        }
        let ways = *self.ways.borrow();
        if !ways.wal {
            *self.opening.lock().await = None;
        }
        self.cede(ways.connections()).await?;
        let log = if ways.wal {
            let Ok(opened) = timeout(patience, self.open_log()).await else { return Ok(None) };
            Some(opened?)
        } else {
            None
        };
        let listener = if ways.notify {
            Some(Listener::connect(&self.database, self.direct.as_ref()).await?)
        } else {
            None
        };
        // A new connection counts as a change of everything, which covers these.
        self.ears.missed.take();
        let (unread, ears) = (Vec::new(), self.ears.clone());
        let present = self.ways.subscribe();
        let mut feed = PostgresFeed { listener, log, ways, present, unread, ears };
        if let Some(listener) = &mut feed.listener {
            listener.hear_ourselves(&self.database, &mut feed.unread).await?;
        }
        if let Some(log) = &mut feed.log {
            log.hear_ourselves(&self.database).await?;
        }
        Ok(Some(feed))
    }
}

impl FeedSource for PostgresFeedSource {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>> {
        Box::pin(async move {
            let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(feed) = prepared {
                return Ok(Box::new(feed) as Box<dyn Feed>);
            }
            loop {
                if let Some(feed) = self.listen(Duration::MAX).await? {
                    return Ok(Box::new(feed) as Box<dyn Feed>);
                }
            }
        })
    }
}

/// The listening connections.
struct PostgresFeed {
    listener: Option<Listener>,
    log: Option<LogReader>,
    /// On which ways it listens.
    ways: Ways,
    /// On which ways the triggers speak.
    present: watch::Receiver<Ways>,
    /// Payloads that were received and not handed on yet.
    unread: Vec<String>,
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
            let Self { listener, log, ways, present, unread, ears } = self;
            let notified = OptionFuture::from(listener.as_mut().map(|it| it.hear(unread)));
            let written = OptionFuture::from(log.as_mut().map(LogReader::hear));
            tokio::select! {
                biased;
                Some(heard) = notified => heard?,
                Some(piece) = written => self.unread = piece?,
                () = ears.missed.more.notified() => {}
                // The sender lives as long as the source.
                Ok(present) = present.wait_for(|present| present != ways) => {
                    return Err(switched(*present));
                }
            }
        }
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
        vec![Change { gone: payload.gone, ..Change::new(source, payload.tenants) }]
    }
}

fn switched(present: Ways) -> FeedError {
    let now = match present {
        Ways { notify: true, wal: true } => "by NOTIFY and through the write-ahead log",
        Ways { notify: false, wal: true } => "through the write-ahead log",
        Ways { wal: false, .. } => "by NOTIFY",
    };
    FeedError(format!("the triggers were switched, and now speak {now}"))
}

impl Feed for PostgresFeed {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>> {
        Box::pin(self.hear())
    }
}
