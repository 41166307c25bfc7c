//! The worker's change feed: whether there can be one, and from when on.

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
    self, ChangesError, Database, PostgresFeedSource, Standing, TroubleNote, Versions,
};
use crate::config::{ChangesMode, Settings};
use crate::domain::change::{ChangeSource, ChangeSourceId, WatchedTables};
use crate::domain::job::Jobs;
use crate::domain::spelling::listed;
use crate::engine::run::Runner;
use crate::engine::schedule::handle::Handle;
use crate::engine::tasks::feed::{Begun, Feeder};
use crate::observe::event;

/// How soon triggers that are there, or gone, are noticed. A look is two or three queries of the catalogue.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the sources' queries are tried where no trigger changed: a column may have gone.
const EXAMINE_EVERY: Duration = Duration::from_mins(5);
/// How long the engine waits for the feed to be connected: jobs that run before that run once more.
/// Where nothing is in the way it takes some milliseconds.
const HEAD_START: Duration = Duration::from_secs(1);
/// What a start with `changes.enabled = true` has not found out by then keeps no worker from working.
const FIRST_LOOK: Duration = Duration::from_secs(3);
const NOT_INSTALLED: &str = "no table has its triggers; hint: `preheat changes install` makes them, and \
                             `[changes] enabled = false` says that none are wanted";

/// Troubles of triggers that are told, each once.
const MAX_TROUBLES: usize = 100;

/// Looks after a worker's change feed: finds out whether there can be one, and keeps it going.
pub(super) struct FeedSupervisor {
    mode: ChangesMode,
    tenants_sql: String,
    tenant_column: String,
    database: Arc<Database>,
    source: Arc<PostgresFeedSource>,
    runner: Arc<Runner>,
    /// As they were read last.
    jobs: watch::Receiver<Jobs>,
    /// Which triggers the last look found.
    versions: Versions,
    examined: Option<Examined>,
    told: Told,
}

/// What others wait for of a supervisor that was started.
pub(super) struct Supervised {
    /// Ends when the feed is connected, cannot be now, or takes too long.
    pub(super) head_start: BoxFuture<'static, ()>,
    /// Ends where there has to be a feed and cannot.
    pub(super) refused: BoxFuture<'static, AppError>,
}

/// What came of trying the sources' queries.
struct Examined {
    versions: Versions,
    at: Duration,
    problems: Vec<String>,
}

/// What was told last, so that it is told once.
#[derive(Default)]
struct Told {
    off: Option<String>,
    lacks: Option<String>,
}

/// What a look shows.
enum Look {
    /// No enabled job has tables.
    NotWanted,
    /// No table has its triggers, of so many.
    NotInstalled(usize),
    /// It can be, more or less.
    Ready(Standing),
    /// It cannot be, for this reason.
    Impossible(String),
    /// The database could not be asked, for this reason: a server is away, or a migration holds a lock.
    Failed(String),
}

/// It listens, and what it listens with.
struct Listening {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl FeedSupervisor {
    /// None where it is switched off. `jobs` has those of every reload.
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
        let source = PostgresFeedSource::new(Arc::clone(&database), direct, trouble)?;
        Ok(Some(Self {
            mode,
            tenants_sql: settings.tenants.sql.clone(),
            tenant_column,
            database,
            source: Arc::new(source),
            runner,
            jobs,
            versions: Versions::default(),
            examined: None,
            told: Told::default(),
        }))
    }

    /// Starts it as a task, where there is one.
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
        tasks.spawn(supervisor.run(handle, (begun.clone(), refuse), stop));
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

    /// Keeps the feed until it is told to stop; `begun` ends when there was a first try, and `refuse`
    /// hears where there has to be a feed and cannot.
    async fn run(
        mut self,
        handle: Handle,
        (begun, refuse): (CancellationToken, oneshot::Sender<AppError>),
        stop: CancellationToken,
    ) {
        let mut listening = None;
        let keeping = async {
            let first = match self.first_look().await {
                Ok(first) => first,
                Err(error) => {
                    // Nobody hears of it where the worker has stopped already.
                    drop(refuse.send(error));
                    return;
                }
            };
            drop(refuse);
            self.keep(first, &mut listening, (&handle, &begun, &stop)).await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = keeping => {}
        }
        if let Some(listening) = listening {
            listening.end().await;
        }
    }

    /// The look that shows whether there can be a feed, where there has to be one; fails where it shows
    /// that there cannot. Where it shows nothing in time, later looks do.
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

    /// Begins with the feed when its triggers are there, ends with it when no job wants it any more,
    /// and hands on what it may have missed; never ends itself.
    async fn keep(
        &mut self,
        mut first: Option<Look>,
        listening: &mut Option<Listening>,
        (handle, begun, stop): (&Handle, &CancellationToken, &CancellationToken),
    ) {
        loop {
            let look = match first.take() {
                Some(look) => look,
                None => self.look(listening.is_some()).await,
            };
            match &look {
                Look::Ready(_) if listening.is_none() => {
                    let feeder = self.feeder(handle);
                    let begun = feeder.begin().await;
                    *listening = Some(Listening::start(feeder, begun, stop));
                }
                Look::NotWanted => {
                    if let Some(listening) = listening.take() {
                        listening.end().await;
                    }
                }
                // One that listens goes on, whatever a look shows: what is missing may be back any
                // moment.
                Look::NotInstalled(_) | Look::Ready(_) | Look::Impossible(_) | Look::Failed(_) => {}
            }
            begun.cancel();
            self.examine(&look).await;
            self.tell(&look, listening.is_some());
            self.wait().await;
        }
    }

    /// Waits until it is time to look, the jobs are others, or somebody installed triggers.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.runner.clock.sleep(LOOK_EVERY) => {}
            () = self.source.somebody_installed() => {}
            // Without a sender there is nobody who reads job files again.
            Ok(()) = self.jobs.changed() => {}
        }
    }

    fn feeder(&self, handle: &Handle) -> Feeder {
        let (source, runner) = (Arc::clone(&self.source), Arc::clone(&self.runner));
        Feeder::new(source, handle.clone(), runner, self.tenant_column.clone())
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
        if let Some(reason) = self.source.impossible() {
            return Look::Impossible(reason.to_owned());
        }
        let looked = postgres::look(&self.database, &sources).await;
        let mut missed = self.source.take_installed();
        if let Ok(looked) = &looked {
            missed.extend(looked.versions.missed_since(&self.versions));
            self.versions = looked.versions.clone();
        }
        // Whoever begins to listen is told that anything may have changed.
        if is_listening {
            self.hand_on(&sources, &missed);
        }
        let standing = match looked {
            Ok(looked) => looked.standing,
            Err(ChangesError::Failed(error)) => return Look::Failed(error.to_string()),
            Err(
                error @ (ChangesError::Tables(_)
                | ChangesError::NotAllowed(_)
                | ChangesError::Version(_)),
            ) => return Look::Impossible(error.to_string()),
        };
        if standing.whole.is_empty() && standing.partly.is_empty() {
            return Look::NotInstalled(standing.lacking.len());
        }
        if !is_listening && let Err(error) = self.source.prepare().await {
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

    /// Tries the sources' queries, where that is due. It waits for tables that are locked, so that
    /// nothing may wait for it; what could not be tried is tried after the next look.
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
                Err(ChangesError::NotAllowed(problem) | ChangesError::Version(problem)) => {
                    vec![problem]
                }
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
            event::FeedOff { reason, is_fault }.emit(metrics);
        }
        self.told.off = off.map(|(reason, _)| reason.to_owned());
        let (lacks, lacking) = match look {
            Look::Ready(standing) => (lacks(standing, self.problems()), standing.lacking.len()),
            Look::NotInstalled(tables) if is_listening => {
                (Some("any table: the triggers are gone".to_owned()), *tables)
            }
            // Whoever cannot look knows nothing new.
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
}

impl Listening {
    fn start(feeder: Feeder, begun: Begun, stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        tasks.spawn(feeder.run(begun, stop.clone()));
        Self { tasks, stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.join_all().await;
    }
}

/// Of what the feed does not hear.
fn lacks(standing: &Standing, problems: &[String]) -> Option<String> {
    let Standing { whole: _, partly, lacking, without_keys } = standing;
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

/// Where there has to be a feed, there has to be a whole one. What is written to partitions directly may
/// be missing, since any new partition would keep a worker from starting; and so may the names of shared
/// keys, which end by their TTL.
fn required(look: &Look, problems: &[String]) -> Result<(), AppError> {
    let lacking = match look {
        // What nobody could find out does not keep a worker from its work.
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
