//! The write-ahead log in a fleet: the holder of [`Share::FIRST`] reads it, moves the fences, and passes the changes on, and
//! the other members take them from there. One replication slot serves all.
//!
//! The reader moves the fences of all tenants that changed, even while nobody holds their share. Each member then warms its
//! own tenants. While a deploy replaces the members one by one, the reader's job files may lack a table: then each member
//! moves the fences of its own tenants itself.
//!
//! A member that may have missed changes has a gap: its feed ends and connects again, which counts
//! as a change of everything. A gap comes when another member begins to read the log, when the relay drops entries that the
//! member has not read, and when the cache is restarted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::domain::change::{Change, WatchedTables};
use crate::domain::random;
use crate::domain::share::{Share, Shares};
use crate::engine::ports::{CacheError, Clock, Feed, FeedError, FeedSource, Passed, Relay};
use crate::engine::run::Runner;
use crate::engine::run::fences::Fences;

/// How often a member looks for changes that were passed on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The feed of a member of a fleet.
pub struct RelayedSource {
    inner: Arc<dyn FeedSource>,
    relay: Arc<dyn Relay>,
    runner: Arc<Runner>,
    tenant_column: String,
    is_logged: IsLogged,
}

/// Whether the triggers speak through the write-ahead log; if not, each member listens by itself.
pub type IsLogged = Arc<dyn Fn() -> bool + Send + Sync>;

impl RelayedSource {
    /// Changes come from `inner` where this member reads them itself, and else from the relay. `tenant_column` is the name
    /// of the column with the tenant's id, for tables whose job names none.
    pub fn new(
        inner: Arc<dyn FeedSource>,
        relay: Arc<dyn Relay>,
        runner: Arc<Runner>,
        tenant_column: String,
        is_logged: IsLogged,
    ) -> Self {
        Self { inner, relay, runner, tenant_column, is_logged }
    }

    async fn read(&self, shares: watch::Receiver<Shares>) -> Result<Box<dyn Feed>, FeedError> {
        let feed = self.inner.connect().await?;
        let reader = random::bits(self.runner.clock.random());
        let mut reading = Reading {
            feed,
            relay: Arc::clone(&self.relay),
            runner: Arc::clone(&self.runner),
            watched: WatchedTables::default(),
            tenant_column: self.tenant_column.clone(),
            shares,
            reader,
            passed: 0,
            unpassed: Vec::new(),
        };
        // The others connect again: nobody has read the log for a while.
        reading.pass().await?;
        Ok(Box::new(reading))
    }

    async fn follow(&self, shares: watch::Receiver<Shares>) -> Result<Box<dyn Feed>, FeedError> {
        let restarts = self.runner.cache_process.subscribe();
        let last = self.relay.last().await.map_err(feed_error)?;
        let (relay, clock) = (Arc::clone(&self.relay), Arc::clone(&self.runner.clock));
        let is_logged = Arc::clone(&self.is_logged);
        Ok(Box::new(Following { relay, clock, is_logged, shares, restarts, last }))
    }
}

impl FeedSource for RelayedSource {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>> {
        Box::pin(async move {
            if !(self.is_logged)() {
                return self.inner.connect().await;
            }
            let mut shares = self.runner.ownership.subscribe();
            let is_first = shares.borrow_and_update().has(Share::FIRST);
            if is_first { self.read(shares).await } else { self.follow(shares).await }
        })
    }
}

fn feed_error(error: CacheError) -> FeedError {
    FeedError(error.message)
}

/// Ends when the worker holds the first share, or does not hold it, as `wanted` says.
async fn until_first(shares: &mut watch::Receiver<Shares>, wanted: bool) {
    let is_so = |shares: &Shares| shares.has(Share::FIRST) == wanted;
    if shares.wait_for(is_so).await.is_err() {
        // The worker is ending.
        std::future::pending::<()>().await;
    }
}

/// The member that reads the log.
struct Reading {
    feed: Box<dyn Feed>,
    relay: Arc<dyn Relay>,
    runner: Arc<Runner>,
    /// The tables that its jobs watch.
    watched: WatchedTables,
    tenant_column: String,
    shares: watch::Receiver<Shares>,
    /// Its number.
    reader: u64,
    /// How many entries it has passed on.
    passed: u64,
    /// What it has read and not passed on.
    unpassed: Vec<Change>,
}

impl Reading {
    /// Moves the fences of all tenants whose changes were read, even if another member, or nobody, holds their share.
    async fn move_fences(&mut self) -> Result<(), FeedError> {
        self.watched.refresh(self.runner.jobs.get(), &self.tenant_column);
        let (mut fences, mut listed) = (Fences::default(), Vec::new());
        for change in self.unpassed.iter_mut().filter(|change| !change.is_fenced) {
            let found = self.watched.find(&change.source).map(|source| &source.tenants);
            fences.add(found, change.tenants.as_deref());
            // If no job here watches the table and the change names no tenants, we cannot tell whose fences to move.
            if found.is_some() || change.tenants.is_some() {
                listed.push(change);
            }
        }
        let fences = if fences == Fences::All { Fences::Of(Shares::ALL) } else { fences };
        self.runner.try_to_move(&fences).await.map_err(|refusal| FeedError(refusal.message))?;
        for change in listed {
            change.is_fenced = true;
        }
        Ok(())
    }

    /// Passes on what was read. If that is given up halfway, the same entry is passed on again.
    async fn pass(&mut self) -> Result<Vec<Change>, FeedError> {
        let (reader, number) = (self.reader, self.passed);
        let entry = Passed { id: String::new(), reader, number, changes: self.unpassed.clone() };
        self.relay.pass(&entry).await.map_err(feed_error)?;
        self.passed += 1;
        Ok(std::mem::take(&mut self.unpassed))
    }

    async fn read(&mut self) -> Result<Vec<Change>, FeedError> {
        if self.unpassed.is_empty() {
            self.unpassed = self.feed.next().await?;
        }
        self.move_fences().await?;
        self.pass().await
    }
}

impl Feed for Reading {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>> {
        Box::pin(async move {
            let mut shares = self.shares.clone();
            tokio::select! {
                biased;
                () = until_first(&mut shares, false) => {
                    Err(FeedError("another member of the fleet reads the log from now on".to_owned()))
                }
                read = self.read() => read,
            }
        })
    }
}

/// A member that takes the changes from the relay.
struct Following {
    relay: Arc<dyn Relay>,
    clock: Arc<dyn Clock>,
    is_logged: IsLogged,
    shares: watch::Receiver<Shares>,
    restarts: watch::Receiver<u64>,
    /// The last entry that it has seen.
    last: Option<Passed>,
}

impl Following {
    async fn read(&mut self) -> Result<Vec<Change>, FeedError> {
        loop {
            if !(self.is_logged)() {
                return Err(FeedError("the triggers do not write to the log any more".to_owned()));
            }
            let after = self.last.as_ref().map(|last| last.id.as_str());
            let passed = self.relay.after(after).await.map_err(feed_error)?;
            let mut changes = Vec::new();
            for entry in passed {
                changes.extend(self.take(entry)?);
            }
            if !changes.is_empty() {
                return Ok(changes);
            }
            self.clock.sleep(LOOK_EVERY).await;
        }
    }

    /// The changes of an entry, if it follows the last one.
    fn take(&mut self, mut entry: Passed) -> Result<Vec<Change>, FeedError> {
        let gap = |text: &str| Err(FeedError(text.to_owned()));
        let changes = std::mem::take(&mut entry.changes);
        match &self.last {
            Some(last) if last.reader == entry.reader && entry.number == last.number + 1 => {
                self.last = Some(entry);
                Ok(changes)
            }
            // It was passed on twice.
            Some(last) if last.reader == entry.reader && entry.number <= last.number => {
                self.last = Some(Passed { number: last.number, ..entry });
                Ok(Vec::new())
            }
            Some(last) if last.reader == entry.reader => {
                gap("the fleet's relay has dropped changes that were not read yet")
            }
            Some(_) | None => gap("another member of the fleet reads the log now"),
        }
    }
}

impl Feed for Following {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>> {
        Box::pin(async move {
            let (mut shares, mut restarts) = (self.shares.clone(), self.restarts.clone());
            tokio::select! {
                biased;
                () = until_first(&mut shares, true) => {
                    Err(FeedError("this member of the fleet reads the log from now on".to_owned()))
                }
                Ok(()) = restarts.changed() => {
                    Err(FeedError("the cache was restarted, and the fleet's relay with it".to_owned()))
                }
                read = self.read() => read,
            }
        })
    }
}
