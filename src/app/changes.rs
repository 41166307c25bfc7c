//! The worker's change feed: whether there can be one, and from when on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{App, AppError, database_settings};
use crate::adapter::postgres::{self, Database, PostgresFeedSource, Standing, TroubleNote};
use crate::config::{ChangesMode, Settings};
use crate::domain::change::{ChangeSource, ChangeSourceId, change_sources};
use crate::domain::job::{JobName, Jobs};
use crate::domain::spelling::listed;
use crate::engine::feed::{Begun, Feeder};
use crate::engine::handle::Handle;
use crate::engine::run::Runner;
use crate::observe::event;

/// How soon somebody who installs triggers has the feed.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The same where nothing is missing: a table that is dropped and made again loses its triggers
/// without a word.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
const NOT_INSTALLED: &str = "no table has its triggers; hint: `preheat changes install` makes them, and \
                             `[changes] enabled = false` says that none are wanted";

/// Troubles of triggers that are told, each once.
const MAX_TROUBLES: usize = 100;

/// A worker's feed, or what could become one.
pub(super) struct ChangeFeed {
    mode: ChangesMode,
    tenants_sql: String,
    tenant_column: String,
    database: Arc<Database>,
    source: Arc<PostgresFeedSource>,
    runner: Arc<Runner>,
    /// As they were read last.
    jobs: watch::Receiver<Jobs>,
    told: Told,
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
    /// No table has its triggers.
    NotInstalled,
    /// It can be, more or less.
    Ready(Standing),
    /// It cannot be, for this reason.
    Impossible(String),
}

/// How a feed began; [`ChangeFeed::run`] goes on with it.
pub(super) struct Beginning {
    is_whole: bool,
    feeder: Option<(Feeder, Begun)>,
}

/// It listens, and what it listens with.
struct Listening {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl ChangeFeed {
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
            told: Told::default(),
        }))
    }

    /// Looks whether there can be a feed, and begins with it before the engine does anything, so
    /// that nothing has to be read twice. Fails where there has to be one and cannot.
    pub(super) async fn begin(&mut self, handle: &Handle) -> Result<Beginning, AppError> {
        let look = self.look(false).await;
        if self.mode == ChangesMode::Required {
            required(&look)?;
        }
        self.tell(&look, false);
        let is_whole = look.is_whole();
        let feeder = match look {
            Look::Ready(_) => {
                let feeder = self.feeder(handle);
                let begun = feeder.begin().await;
                Some((feeder, begun))
            }
            Look::NotWanted | Look::NotInstalled | Look::Impossible(_) => None,
        };
        Ok(Beginning { is_whole, feeder })
    }

    /// Keeps the feed until it is told to stop: begins with it when its triggers are there, ends
    /// with it when no job wants it any more.
    pub(super) async fn run(
        mut self,
        handle: Handle,
        beginning: Beginning,
        stop: CancellationToken,
    ) {
        let Beginning { mut is_whole, feeder } = beginning;
        let mut listening = feeder.map(|(feeder, begun)| Listening::start(feeder, begun, &stop));
        loop {
            let look = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                look = self.next_look(is_whole, listening.is_some()) => look,
            };
            is_whole = look.is_whole();
            listening = match (look, listening) {
                (Look::Ready(_), None) => {
                    let feeder = self.feeder(&handle);
                    let begun = feeder.begin().await;
                    Some(Listening::start(feeder, begun, &stop))
                }
                (Look::NotWanted, Some(listening)) => {
                    listening.end().await;
                    None
                }
                // One that listens goes on, whatever a look shows: what is missing may be back any
                // moment.
                (
                    Look::NotWanted | Look::NotInstalled | Look::Ready(_) | Look::Impossible(_),
                    listening,
                ) => listening,
            };
        }
        if let Some(listening) = listening {
            listening.end().await;
        }
    }

    /// Waits until it is time, or the jobs are others; looks, and tells what is new.
    async fn next_look(&mut self, was_whole: bool, is_listening: bool) -> Look {
        let pause = self.runner.clock.sleep(if was_whole { LOOK_AGAIN } else { LOOK_EVERY });
        tokio::select! {
            () = pause => {}
            // Without a sender there is nobody who reads job files again.
            Ok(()) = self.jobs.changed() => {}
        }
        let look = self.look(is_listening).await;
        self.tell(&look, is_listening);
        look
    }

    fn feeder(&self, handle: &Handle) -> Feeder {
        let (source, runner) = (Arc::clone(&self.source), Arc::clone(&self.runner));
        Feeder::new(source, handle.clone(), runner, self.tenant_column.clone())
    }

    async fn look(&mut self, is_listening: bool) -> Look {
        let sources = {
            let jobs = self.jobs.borrow_and_update();
            wanted(&jobs, &self.tenant_column)
        };
        self.source.watch(sources.iter().map(|source| source.id.clone()));
        if sources.is_empty() {
            return Look::NotWanted;
        }
        if let Some(reason) = self.source.impossible() {
            return Look::Impossible(reason.to_owned());
        }
        let standing = match postgres::standing(&self.database, &sources, &self.tenants_sql).await {
            Ok(standing) => standing,
            Err(error) => return Look::Impossible(error.to_string()),
        };
        if standing.whole.is_empty() && standing.partly.is_empty() {
            return Look::NotInstalled;
        }
        if !is_listening && let Err(error) = self.source.prepare().await {
            return Look::Impossible(error.0);
        }
        Look::Ready(standing)
    }

    fn tell(&mut self, look: &Look, is_listening: bool) {
        let metrics = &self.runner.metrics;
        let off = match look {
            Look::NotWanted => Some(("no enabled job has `tables`", false)),
            Look::NotInstalled if !is_listening => Some((NOT_INSTALLED, false)),
            Look::Impossible(reason) if !is_listening => Some((reason.as_str(), true)),
            Look::NotInstalled | Look::Impossible(_) | Look::Ready(_) => None,
        };
        if let Some((reason, is_fault)) = off
            && self.told.off.as_deref() != Some(reason)
        {
            event::FeedOff { reason, is_fault }.emit(metrics);
        }
        self.told.off = off.map(|(reason, _)| reason.to_owned());
        let lacks = match look {
            Look::Ready(standing) => lacks(standing),
            Look::NotInstalled if is_listening => {
                Some("any table: the triggers are gone".to_owned())
            }
            // Whoever cannot look knows nothing new.
            Look::Impossible(_) => return,
            Look::NotInstalled | Look::NotWanted => None,
        };
        if let Some(what) = lacks.as_deref().filter(|what| self.told.lacks.as_deref() != Some(what))
        {
            event::FeedLacks { what }.emit(metrics);
        }
        self.told.lacks = lacks;
    }
}

impl Look {
    fn is_whole(&self) -> bool {
        match self {
            Self::Ready(standing) => lacks(standing).is_none(),
            Self::NotWanted | Self::NotInstalled | Self::Impossible(_) => false,
        }
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

/// The sources that an enabled job has.
fn wanted(jobs: &Jobs, tenant_column: &str) -> Vec<ChangeSource> {
    let mut sources = change_sources(jobs, tenant_column);
    let is_enabled = |name: &JobName| jobs.get(name).is_some_and(|job| job.enabled);
    sources.retain(|source| source.jobs.iter().any(is_enabled));
    sources
}

/// Of what the feed does not hear.
fn lacks(standing: &Standing) -> Option<String> {
    let Standing { whole: _, partly, lacking, problems } = standing;
    let named = |tables: &[String]| listed(tables.iter().map(String::as_str), "and");
    let mut lacks = Vec::new();
    if !lacking.is_empty() {
        lacks.push(format!("changes of {}", named(lacking)));
    }
    if !partly.is_empty() {
        lacks.push(format!("what is written to some partitions of {} directly", named(partly)));
    }
    lacks.extend(problems.iter().map(|problem| format!("all changes: {problem}")));
    (!lacks.is_empty()).then(|| lacks.join("; nor of "))
}

/// Where there has to be a feed, there has to be a whole one; what is written to partitions
/// directly may be missing, since any new partition would keep a worker from starting.
fn required(look: &Look) -> Result<(), AppError> {
    let lacking = match look {
        Look::NotWanted => return Ok(()),
        Look::NotInstalled => NOT_INSTALLED.to_owned(),
        Look::Impossible(reason) => reason.clone(),
        Look::Ready(standing) => {
            let standing = Standing { partly: Vec::new(), ..standing.clone() };
            let Some(lacks) = lacks(&standing) else { return Ok(()) };
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
        let sources = change_sources(&runner.jobs.get(), &tenant_column);
        let table = sources.iter().find(|source| source.id == *id);
        let table = table.map_or(id.as_str(), |source| source.table.as_str());
        event::TriggerBlind { table, code }.emit(&runner.metrics);
    })
}
