//! The worker's change feed: whether it can work, and since when.

use std::collections::{BTreeSet, HashSet};
use std::future::{pending, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{App, AppError, database_settings};
use crate::adapter::postgres::{
    self, ChangesError, Database, PostgresFeedSource, Standing, TroubleNote, Versions, WaitNote,
};
use crate::config::{ChangesMode, FleetShares, Settings};
use crate::domain::change::{ChangeSource, ChangeSourceId, WatchedTables};
use crate::domain::job::Jobs;
use crate::domain::share::Share;
use crate::domain::spelling::listed;
use crate::engine::ports::{FeedSource, Relay};
use crate::engine::run::Runner;
use crate::engine::schedule::handle::Handle;
use crate::engine::tasks::feed::{Begun, Feeder};
use crate::engine::tasks::relay::RelayedSource;
use crate::engine::tasks::supervisor::Supervisor;
use crate::observe::event;

/// How soon the supervisor notices that triggers were installed or removed. A look is two or three
/// queries of the catalogue.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the sources' queries are tried if no trigger changed: somebody may have dropped a
/// column.
const EXAMINE_EVERY: Duration = Duration::from_mins(5);
/// How long the engine waits for the feed to connect, because a job that runs earlier has to run
/// once more. If nothing is in the way, the feed connects within milliseconds.
const HEAD_START: Duration = Duration::from_secs(1);
/// With `changes.enabled = true`, the time limit of the look that may stop the worker's start.
/// After it the worker starts anyway.
const FIRST_LOOK: Duration = Duration::from_secs(3);
const NOT_INSTALLED: &str = "no table has its triggers; hint: `preheat changes install` makes them, and \
                             `[changes] enabled = false` says that none are wanted";

/// How many different problems of triggers are logged, each once.
const MAX_TROUBLES: usize = 100;

/// Looks after a worker's change feed: finds out whether it can work, and keeps it going.
pub(super) struct FeedSupervisor {
    mode: ChangesMode,
    tenants_sql: String,
    tenant_column: String,
    database: Arc<Database>,
    source: Arc<PostgresFeedSource>,
    /// Where the members of a fleet pass on what one of them reads in the log.
    relay: Option<Arc<dyn Relay>>,
    runner: Arc<Runner>,
    /// The jobs as last read.
    jobs: watch::Receiver<Jobs>,
    /// The triggers that the last look found.
    versions: Versions,
    examined: Option<Examined>,
    told: Told,
}

/// What the worker's start waits for.
pub(super) struct Supervised {
    /// Ends when the feed is connected, when it cannot connect now, or when that takes too long.
    pub(super) head_start: BoxFuture<'static, ()>,
    /// Ends if the settings require the feed and it cannot work. Otherwise it never ends.
    pub(super) refused: BoxFuture<'static, AppError>,
}

/// The result of trying the sources' queries.
struct Examined {
    versions: Versions,
    at: Duration,
    problems: Vec<String>,
}

/// What was logged last, so that each change is logged once.
#[derive(Default)]
struct Told {
    off: Option<String>,
    lacks: Option<String>,
    not_switched: Vec<String>,
}

/// What a look found.
enum Look {
    /// No enabled job has `tables`.
    NotWanted,
    /// None of this many tables has its triggers.
    NotInstalled(usize),
    /// The feed can work, at least in part.
    Ready(Standing),
    /// The feed cannot work, for this reason.
    Impossible(String),
    /// The database could not be asked, for this reason: a server is away, or a migration holds a
    /// lock.
    Failed(String),
}

/// A supervisor that was started.
struct AtWork {
    supervisor: FeedSupervisor,
    handle: Handle,
    /// Cancelled after the first attempt.
    begun: CancellationToken,
    /// Receives the error if the settings require the feed and it cannot work; `None` once that is decided.
    refuse: Option<oneshot::Sender<AppError>>,
    listening: Option<Listening>,
    stop: CancellationToken,
}

/// A feed that listens, and its tasks.
struct Listening {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl FeedSupervisor {
    /// `None` if the settings switch the feed off. `jobs` delivers the jobs of every reload.
    pub(super) fn new(
        settings: &Settings,
        app: &App,
        jobs: watch::Receiver<Jobs>,
    ) -> Result<Option<Self>, AppError> {
        let mode = settings.changes.enabled;
        if mode == ChangesMode::Off {
            return Ok(None);
        }
        let direct = settings.changes.url.as_ref().map(|url| database_settings(settings, url));
        let (database, runner) = (Arc::clone(&app.database), Arc::clone(&app.runner));
        let tenant_column = settings.tenants.column.clone();
        let trouble = trouble_note(Arc::clone(&runner), tenant_column.clone());
        let waits = wait_note(Arc::clone(&runner));
        let source = PostgresFeedSource::new(Arc::clone(&database), direct, trouble)?;
        let source = source.telling(waits);
        // Replicas with fixed parts may have caches of their own: each of them reads the log itself.
        let is_member = settings.fleet.shares == FleetShares::Leased;
        Ok(Some(Self {
            mode,
            tenants_sql: settings.tenants.sql.clone(),
            tenant_column,
            database,
            source: Arc::new(source),
            relay: is_member.then(|| Arc::clone(&app.cache) as _),
            runner,
            jobs,
            versions: Versions::default(),
            examined: None,
            told: Told::default(),
        }))
    }

    /// Starts the supervisor as a task, if there is one.
    pub(super) fn start(
        supervisor: Option<Self>,
        handle: Handle,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Supervised {
        let Some(supervisor) = supervisor else {
            return Supervised { head_start: ready(()).boxed(), refused: pending().boxed() };
        };
        let clock = Arc::clone(&supervisor.runner.clock);
        let begun = CancellationToken::new();
        let (refuse, refused) = oneshot::channel();
        let at_work = AtWork {
            supervisor,
            handle,
            begun: begun.clone(),
            refuse: Some(refuse),
            listening: None,
            stop,
        };
        tasks.spawn(at_work.run());
        let head_start = async move {
            tokio::select! {
                () = begun.cancelled() => {}
                () = clock.sleep(HEAD_START) => {}
            }
        };
        let refused = async {
            match refused.await {
                Ok(error) => error,
                Err(_there_can_be_one) => pending().await,
            }
        };
        Supervised { head_start: head_start.boxed(), refused: refused.boxed() }
    }

    /// If the settings require the feed: the look that decides whether it can work. It fails if the
    /// feed cannot work. If it does not finish in time, later looks take its place.
    async fn first_look(&mut self) -> Result<Option<Look>, AppError> {
        if self.mode != ChangesMode::Required {
            return Ok(None);
        }
        let clock = Arc::clone(&self.runner.clock);
        let looking = async {
            let look = self.look(false).await;
            self.examine(&look).await;
            look
        };
        let look = tokio::select! {
            look = looking => look,
            () = clock.sleep(FIRST_LOOK) => return Ok(None),
        };
        required(&look, self.problems())?;
        Ok(Some(look))
    }

    /// Waits until it is time to look, the jobs have changed, or somebody has installed triggers.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.runner.clock.sleep(LOOK_EVERY) => {}
            () = self.source.somebody_installed() => {}
            // If the sender is gone, nobody reloads job files any more.
            Ok(()) = self.jobs.changed() => {}
        }
    }

    fn feeder(&self, handle: &Handle) -> Feeder {
        let (source, runner) = (Arc::clone(&self.source), Arc::clone(&self.runner));
        let source: Arc<dyn FeedSource> = match &self.relay {
            None => source,
            Some(relay) => {
                let log = Arc::clone(&source);
                let is_logged = Arc::new(move || log.reads_log());
                let runner = Arc::clone(&runner);
                let (relay, column) = (Arc::clone(relay), self.tenant_column.clone());
                Arc::new(RelayedSource::new(source, relay, runner, column, is_logged))
            }
        };
        Feeder::new(source, handle.clone(), runner, self.tenant_column.clone())
    }

    /// Whether another member of the fleet reads the log for this one.
    fn follows(&self) -> bool {
        let is_first = || self.runner.ownership.held().has(Share::FIRST);
        self.relay.is_some() && self.source.reads_log() && !is_first()
    }

    fn sources(&self) -> Vec<ChangeSource> {
        let jobs = Arc::new(self.jobs.borrow().clone());
        WatchedTables::of(jobs, &self.tenant_column).of_enabled_jobs()
    }

    async fn look(&mut self, is_listening: bool) -> Look {
        self.jobs.mark_unchanged();
        let sources = self.sources();
        self.source.watch(sources.iter().map(|source| source.id.clone()));
        if sources.is_empty() {
            self.versions = Versions::default();
            return Look::NotWanted;
        }
        let looked = postgres::look(&self.database, &sources).await;
        let mut missed = self.source.take_installed();
        if let Ok(looked) = &looked {
            missed.extend(looked.versions.missed_since(&self.versions));
            self.versions = looked.versions.clone();
            self.source.follow(looked.ways);
        }
        if let Some(reason) = self.source.impossible() {
            return Look::Impossible(reason.to_owned());
        }
        // A feed that begins to listen reports a change of all tenants itself.
        if is_listening {
            self.hand_on(&sources, &missed);
        }
        let standing = match looked {
            Ok(looked) => looked.standing,
            Err(ChangesError::Failed(error)) => return Look::Failed(error.to_string()),
            Err(
                error @ (ChangesError::Tables(_)
                | ChangesError::NotAllowed(_)
                | ChangesError::Version(_)
                | ChangesError::Log(_)),
            ) => return Look::Impossible(error.to_string()),
        };
        if standing.whole.is_empty() && standing.partly.is_empty() {
            return Look::NotInstalled(standing.lacking.len());
        }
        if !is_listening
            && !self.follows()
            && let Err(error) = self.source.prepare().await
        {
            return Look::Impossible(error.0);
        }
        Look::Ready(standing)
    }

    fn hand_on(&self, sources: &[ChangeSource], missed: &BTreeSet<ChangeSourceId>) {
        let missed: Vec<_> = sources.iter().filter(|source| missed.contains(&source.id)).collect();
        let mut tables: Vec<_> = missed.iter().map(|source| source.table.as_str()).collect();
        tables.dedup();
        if !tables.is_empty() {
            let tables = listed(tables, "and");
            event::ChangesMissed { tables: &tables }.emit(&self.runner.metrics);
        }
        self.source.may_have_missed(missed.into_iter().map(|source| source.id.clone()));
    }

    /// Tries the sources' queries, if that is due. It may have to wait for locked tables, so
    /// nothing may wait for it. If it fails, the next look tries again.
    async fn examine(&mut self, look: &Look) {
        if !matches!(look, Look::Ready(_)) {
            return;
        }
        let now = self.runner.clock.monotonic();
        let is_fresh = |examined: &Examined| {
            examined.versions == self.versions && now.saturating_sub(examined.at) < EXAMINE_EVERY
        };
        if self.examined.as_ref().is_some_and(is_fresh) {
            return;
        }
        let sources = self.sources();
        let problems =
            match postgres::table_problems(&self.database, &sources, &self.tenants_sql).await {
                Ok(problems) | Err(ChangesError::Tables(problems)) => {
                    problems.iter().map(ToString::to_string).collect()
                }
                Err(
                    ChangesError::NotAllowed(problem)
                    | ChangesError::Version(problem)
                    | ChangesError::Log(problem),
                ) => vec![problem],
                Err(ChangesError::Failed(_)) => return,
            };
        let versions = self.versions.clone();
        self.examined = Some(Examined { versions, at: now, problems });
    }

    fn problems(&self) -> &[String] {
        self.examined.as_ref().map_or(&[], |examined| &examined.problems)
    }

    fn tell(&mut self, look: &Look, is_listening: bool) {
        let metrics = &self.runner.metrics;
        let off = match look {
            Look::NotWanted => Some(("no enabled job has `tables`", false)),
            Look::NotInstalled(_) if !is_listening => Some((NOT_INSTALLED, false)),
            Look::Impossible(reason) | Look::Failed(reason) if !is_listening => {
                Some((reason.as_str(), true))
            }
            Look::NotInstalled(_) | Look::Impossible(_) | Look::Failed(_) | Look::Ready(_) => None,
        };
        if let Some((reason, is_fault)) = off
            && self.told.off.as_deref() != Some(reason)
        {
            event::FeedOff { reason, is_fault, at: self.runner.clock.now() }.emit(metrics);
        }
        self.told.off = off.map(|(reason, _)| reason.to_owned());
        self.tell_mixed(look);
        let metrics = &self.runner.metrics;
        let (lacks, lacking) = match look {
            Look::Ready(standing) => (lacks(standing, self.problems()), standing.lacking.len()),
            Look::NotInstalled(tables) if is_listening => {
                (Some("any table: the triggers are gone".to_owned()), *tables)
            }
            // The look failed, so it shows nothing new.
            Look::Impossible(_) | Look::Failed(_) => return,
            Look::NotInstalled(tables) => (None, *tables),
            Look::NotWanted => (None, 0),
        };
        metrics.set_feed_lacking(lacking);
        if let Some(what) = lacks.as_deref().filter(|what| self.told.lacks.as_deref() != Some(what))
        {
            event::FeedLacks { what }.emit(metrics);
        }
        self.told.lacks = lacks;
    }

    fn tell_mixed(&mut self, look: &Look) {
        let Look::Ready(Standing { not_switched, .. }) = look else { return };
        if !not_switched.is_empty() && self.told.not_switched != *not_switched {
            let tables = listed(not_switched.iter().map(String::as_str), "and");
            event::FeedMixed { tables: &tables }.emit(&self.runner.metrics);
        }
        self.told.not_switched.clone_from(not_switched);
    }
}

impl AtWork {
    /// Keeps the feed going until the worker stops. After a panic it goes on, and a feed that listens is not
    /// disturbed by it.
    async fn run(mut self) {
        let stop = self.stop.clone();
        let supervisor = Supervisor::new(&self.supervisor.runner.ports, stop.clone());
        let keeping = supervisor
            .keep_running("change feed supervisor", &mut self, |at_work| at_work.keep().boxed());
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = keeping => {}
        }
        if let Some(listening) = self.listening {
            listening.end().await;
        }
    }

    /// Starts the feed when its triggers are there, stops it when no job wants it any more, and
    /// reports changes that it may have missed. Returns only if there has to be a feed and it cannot work.
    async fn keep(&mut self) {
        let mut first = None;
        if self.refuse.is_some() {
            match (self.supervisor.first_look().await, self.refuse.take()) {
                (Ok(look), _) => first = look,
                (Err(error), refuse) => {
                    // If the worker has stopped already, nobody receives the error.
                    drop(refuse.map(|refuse| refuse.send(error)));
                    return;
                }
            }
        }
        loop {
            let look = match first.take() {
                Some(look) => look,
                None => self.supervisor.look(self.listening.is_some()).await,
            };
            match &look {
                Look::Ready(_) if self.listening.is_none() => {
                    let feeder = self.supervisor.feeder(&self.handle);
                    let begun = feeder.begin().await;
                    let ports = &self.supervisor.runner.ports;
                    let supervisor = Supervisor::new(ports, self.stop.child_token());
                    self.listening = Some(Listening::start(feeder, begun, supervisor));
                }
                Look::NotWanted => {
                    if let Some(listening) = self.listening.take() {
                        listening.end().await;
                    }
                }
                // A feed that listens goes on, whatever a look finds: what is missing may come back
                // at any moment.
                Look::NotInstalled(_) | Look::Ready(_) | Look::Impossible(_) | Look::Failed(_) => {}
            }
            self.begun.cancel();
            self.supervisor.examine(&look).await;
            self.supervisor.tell(&look, self.listening.is_some());
            self.supervisor.wait().await;
        }
    }
}

impl Listening {
    /// After a panic the feeder connects anew, and hands on that anything may have changed.
    fn start(feeder: Feeder, begun: Begun, supervisor: Supervisor) -> Self {
        let stop = supervisor.stop().clone();
        let mut tasks = JoinSet::new();
        let state = (feeder, begun, stop.clone());
        tasks.spawn(supervisor.keep_running("change feed", state, |(feeder, begun, stop)| {
            feeder.run(std::mem::take(begun), stop.clone()).boxed()
        }));
        Self { tasks, stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.join_all().await;
    }
}

/// The changes that the feed misses.
fn lacks(standing: &Standing, problems: &[String]) -> Option<String> {
    let Standing { whole: _, partly, lacking, without_keys, not_switched: _ } = standing;
    let named = |tables: &[String]| listed(tables.iter().map(String::as_str), "and");
    let mut lacks = Vec::new();
    if !lacking.is_empty() {
        lacks.push(format!("changes of {}", named(lacking)));
    }
    if !partly.is_empty() {
        lacks.push(format!("what is written to some partitions of {} directly", named(partly)));
    }
    if !without_keys.is_empty() {
        lacks.push(format!("shared keys that are gone from {}", named(without_keys)));
    }
    lacks.extend(problems.iter().map(|problem| format!("all changes: {problem}")));
    (!lacks.is_empty()).then(|| lacks.join("; nor of "))
}

/// A required feed must be complete, with two exceptions. It may miss rows that are written to
/// partitions directly: otherwise every new partition would keep a worker from starting. And it may
/// miss the names of shared keys, which expire with their TTL.
fn required(look: &Look, problems: &[String]) -> Result<(), AppError> {
    let lacking = match look {
        // If the look did not find out anything, the worker starts anyway.
        Look::NotWanted | Look::Failed(_) => return Ok(()),
        Look::NotInstalled(_) => NOT_INSTALLED.to_owned(),
        Look::Impossible(reason) => reason.clone(),
        Look::Ready(standing) => {
            let standing =
                Standing { partly: Vec::new(), without_keys: Vec::new(), ..standing.clone() };
            let Some(lacks) = lacks(&standing, problems) else { return Ok(()) };
            format!("nobody tells of {lacks}; hint: run `preheat changes install`")
        }
    };
    Err(AppError::NoFeed(lacking))
}

/// Logs each transaction once that the feed waits for.
fn wait_note(runner: Arc<Runner>) -> WaitNote {
    let told = Mutex::new(String::new());
    Arc::new(move |what| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != what {
            what.clone_into(&mut told);
            event::FeedWaits { what }.emit(&runner.metrics);
        }
    })
}

fn trouble_note(runner: Arc<Runner>, tenant_column: String) -> TroubleNote {
    let told: Mutex<HashSet<(ChangeSourceId, String)>> = Mutex::default();
    Arc::new(move |id, code| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_TROUBLES || !told.insert((id.clone(), code.to_owned())) {
            return;
        }
        let watched = WatchedTables::of(runner.jobs.get(), &tenant_column);
        let table = watched.find(id).map_or(id.as_str(), |source| source.table.as_str());
        event::TriggerBlind { table, code }.emit(&runner.metrics);
    })
}
