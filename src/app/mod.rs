//! The composition root: connect, build, start, drain.

mod changes;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::changes::ChangeFeed;
use crate::adapter::ConnectError;
use crate::adapter::bell::{Bell, Ring};
use crate::adapter::clock::SystemClock;
use crate::adapter::memory::MemoryHistory;
use crate::adapter::postgres::{
    self, Database, DatabaseSettings, MigrateError, PostgresHistory, PostgresSource,
    TenantsSettings,
};
use crate::adapter::redis::{CacheSettings, RedisCache};
use crate::config::{self, ConfigError, HistoryMode, Settings};
use crate::definition::{self, Defaults};
use crate::domain::job::{Job, JobName, Jobs};
use crate::domain::run::RunRecord;
use crate::engine::audit::Verifier;
use crate::engine::handle::Handle;
use crate::engine::limit::Limits;
use crate::engine::port::History;
use crate::engine::record::Records;
use crate::engine::restart::CacheProcess;
use crate::engine::roster::Roster;
use crate::engine::run::{Breakers, Runner, SharedJobs, Stops, TenantList};
use crate::engine::scheduler::{Beats, Engine, Parts};
use crate::http::{self, Control, Refresh};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// Records kept where there is no history in a database: some hours of six jobs.
const RECORDS_IN_MEMORY: usize = 1_000;
/// How long the last records and answers may take when the worker stops.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the worker, or a command, could not begin.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings lack something that it needs, or have something that cannot be.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// A server could not be reached, or refused.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Neither server could.
    #[error("{database}\nerror: {cache}")]
    ConnectBoth {
        /// Why not the database.
        database: ConnectError,
        /// Why not the cache.
        cache: ConnectError,
    },
    /// The history is required and cannot be kept.
    #[error(transparent)]
    History(#[from] MigrateError),
    /// The change feed is required and cannot be.
    #[error("there cannot be a change feed, and `changes.enabled` is true: {0}")]
    NoFeed(String),
    /// Anything else.
    #[error(transparent)]
    Start(#[from] anyhow::Error),
}

/// Everything that is connected and built, before anything runs.
pub struct App {
    /// Does runs.
    pub runner: Arc<Runner>,
    /// Reads tenants and rows.
    pub source: Arc<PostgresSource>,
    jobs: Jobs,
    database: Arc<Database>,
}

impl App {
    /// Connects to both servers and builds what runs need.
    pub async fn connect(settings: &Settings, jobs: Jobs) -> Result<Self, AppError> {
        let (database_url, cache_url) = settings.servers()?;
        let (database, cache) = tokio::join!(
            Database::connect(database_settings(settings, database_url)),
            RedisCache::connect(cache_settings(settings, cache_url))
        );
        let (database, cache) = match (database, cache) {
            (Err(database), Err(cache)) => return Err(AppError::ConnectBoth { database, cache }),
            (database, cache) => (Arc::new(database?), Arc::new(cache?)),
        };
        let source = Arc::new(source(settings, &database));
        let concurrency = u32::try_from(settings.runner.concurrency.get()).unwrap_or(u32::MAX);
        let runner = Arc::new(Runner {
            source: Arc::clone(&source) as _,
            cache: Arc::clone(&cache) as _,
            ledger: cache,
            clock: Arc::new(SystemClock::new()),
            metrics: Metrics::new(),
            limits: Limits::new(concurrency),
            breakers: Breakers::default(),
            cache_process: CacheProcess::default(),
            list: TenantList::default(),
            roster: Roster::new(settings.tenants.max_shrink, settings.tenants.column.as_str()),
            jobs: SharedJobs::default(),
            replica: settings.replica.clone(),
        });
        runner.jobs.set(jobs.clone());
        if database.is_replica() {
            event::DatabaseIsReplica { server: database.server() }.emit(&runner.metrics);
        }
        Ok(Self { runner, source, jobs, database })
    }

    /// The worker: runs until it is told to stop and has drained. At each `reload` it reads its job
    /// files again.
    pub async fn serve(
        self,
        settings: &Settings,
        stops: Stops,
        reload: &Notify,
    ) -> Result<(), AppError> {
        let listen = settings.http.listen;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("could not listen on `{listen}`"))?;
        let (clock, metrics) = (Arc::clone(&self.runner.clock), Arc::clone(&self.runner.metrics));
        let history = self.history(settings).await?;
        let retention = settings.history.retention;
        let records = Records::new(history, Arc::clone(&clock), Arc::clone(&metrics), retention);
        let notify = Arc::new(Notify::new());
        let beats = Arc::new(Beats::new(clock.monotonic()));
        let mut bell = self.bell(&notify, &beats).await?;
        let version = env!("CARGO_PKG_VERSION");
        let listen = listener.local_addr().context("could not tell the address of HTTP")?;
        event::WorkerStarted { version, jobs: self.jobs.len(), listen }.emit(&metrics);

        let (jobs_read, jobs) = watch::channel(self.jobs.clone());
        let feed = ChangeFeed::new(settings, &self, jobs)?;
        let runner = Arc::clone(&self.runner);
        let parts =
            Parts { jobs: self.jobs, runner, records: Arc::clone(&records), bell: notify, beats };
        let (engine, handle) = Engine::new(parts, stops.clone());
        let background = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&records).run(background.clone()));
        tasks.spawn(Arc::clone(&self.runner).watch_cache(stops.clone()));
        if let Some(interval) = settings.audit.interval {
            let runner = Arc::clone(&self.runner);
            let verifier = Verifier::new(runner, interval, settings.audit.sample);
            tasks.spawn(verifier.run(stops.clone()));
        }
        let control = Control {
            handle: handle.clone(),
            metrics: Arc::clone(&metrics),
            refresh: refresh(self.runner, self.database, settings.database.max_connections),
            token: settings.http.token.clone(),
            ready_within: settings.http.ready_within,
            shutdown: background.clone(),
        };
        tasks.spawn(http::serve(listener, http::router(control), background.clone()));
        if let Some(mut feed) = feed {
            let beginning = feed.begin(&handle).await?;
            tasks.spawn(feed.run(handle.clone(), beginning, background.clone()));
        }
        tokio::select! {
            () = engine.run() => {}
            () = stops.abort_after(clock.as_ref(), settings.runner.drain) => {}
            () = reload_jobs((settings, reload), &mut bell, &jobs_read, (&handle, &metrics)) => {}
        }
        background.cancel();
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        // Whoever has not ended by then ends with the set.
        drop(tokio::time::timeout(LAST_WORDS, all_ended).await);
        drop(tasks);
        records.give_up();
        bell.stop().await.context("could not stop the bell")?;
        event::WorkerStopped.emit(&metrics);
        Ok(())
    }

    async fn bell(&self, notify: &Arc<Notify>, beats: &Arc<Beats>) -> Result<Bell, AppError> {
        let (notify, beats) = (Arc::clone(notify), Arc::clone(beats));
        let clock = Arc::clone(&self.runner.clock);
        let ring: Ring = Arc::new(move |_job| {
            beats.scheduler_rang(clock.monotonic());
            notify.notify_one();
        });
        Ok(Bell::start(&bell_patterns(&self.jobs), ring)
            .await
            .context("could not start the bell")?)
    }

    /// Where the worker keeps run records: in the database, or in memory where that may not be.
    async fn history(&self, settings: &Settings) -> Result<Arc<dyn History>, AppError> {
        let memory = || Arc::new(MemoryHistory::new(RECORDS_IN_MEMORY));
        let mode = settings.history.enabled;
        if mode == HistoryMode::Off {
            return Ok(memory());
        }
        let database = self.history_database(settings)?;
        match (postgres::migrate(&database).await, mode) {
            (Ok(_applied), _) => Ok(Arc::new(PostgresHistory::new(database))),
            (Err(error), HistoryMode::Required) => Err(error.into()),
            (Err(MigrateError::NotAllowed { message, sql }), _) => {
                let disabled = event::HistoryDisabled { reason: &message, sql: &sql };
                disabled.emit(&self.runner.metrics);
                Ok(memory())
            }
            (Err(error @ (MigrateError::Changed(_) | MigrateError::Failed(_))), _) => {
                let disabled = event::HistoryDisabled { reason: &error.to_string(), sql: "" };
                disabled.emit(&self.runner.metrics);
                Ok(memory())
            }
        }
    }

    fn history_database(&self, settings: &Settings) -> Result<Arc<Database>, ConnectError> {
        match &settings.history.url {
            None => Ok(Arc::clone(&self.database)),
            Some(url) => {
                let one = NonZeroU32::MIN;
                let settings =
                    DatabaseSettings { max_connections: one, ..database_settings(settings, url) };
                Database::lazy(settings).map(Arc::new)
            }
        }
    }

    /// Keeps the records of a pass, where there is a history to keep them in; answers why not.
    pub async fn keep(&self, settings: &Settings, records: &[RunRecord]) -> Result<(), String> {
        if settings.history.enabled == HistoryMode::Off {
            return Ok(());
        }
        let database = self.history_database(settings).map_err(|error| error.to_string())?;
        let history = PostgresHistory::new(database);
        match (history.append(records).await, settings.history.enabled) {
            (Err(error), HistoryMode::Required) => Err(error.to_string()),
            // Without a schema there is none: a pass does not make one.
            (Ok(()) | Err(_), _) => Ok(()),
        }
    }
}

/// Applies the migrations of preheat's own schema; answers how many that took.
pub async fn migrate(settings: &Settings) -> Result<usize, AppError> {
    let url = match &settings.history.url {
        Some(url) => url,
        None => settings.database_url()?,
    };
    let database = Database::connect(database_settings(settings, url)).await?;
    Ok(postgres::migrate(&database).await?)
}

/// Connects to the database alone, for checking queries.
pub async fn connect_source(settings: &Settings) -> Result<PostgresSource, AppError> {
    Ok(source(settings, &Arc::new(connect_database(settings).await?)))
}

/// Connects to the database alone.
pub async fn connect_database(settings: &Settings) -> Result<Database, AppError> {
    let url = settings.database_url()?;
    Ok(Database::connect(database_settings(settings, url)).await?)
}

fn source(settings: &Settings, database: &Arc<Database>) -> PostgresSource {
    let sql = settings.tenants.sql.as_str().into();
    let column = settings.tenants.column.clone();
    PostgresSource::new(Arc::clone(database), TenantsSettings { sql, column })
}

fn database_settings(settings: &Settings, url: &SecretString) -> DatabaseSettings {
    let config::Database { url: _, max_connections, statement_timeout, read_only, pgbouncer } =
        settings.database;
    let max_connections = NonZeroU32::new(max_connections).unwrap_or(NonZeroU32::MIN);
    DatabaseSettings { url: url.clone(), max_connections, statement_timeout, read_only, pgbouncer }
}

fn cache_settings(settings: &Settings, url: &SecretString) -> CacheSettings {
    let config::Cache { url: _, ca, prefix, timeout } = &settings.cache;
    let (prefix, timeout) = (prefix.clone(), *timeout);
    CacheSettings { url: url.clone(), prefix, timeout, ca_file: ca.clone() }
}

/// What the settings say for jobs that say nothing.
pub fn job_defaults(settings: &Settings) -> Defaults {
    Defaults {
        batch: settings.runner.batch,
        concurrency: settings.runner.concurrency,
        tenant_column: settings.tenants.column.clone(),
    }
}

/// When the bell rings: for each job that is enabled, by its schedule.
fn bell_patterns(jobs: &Jobs) -> Vec<(JobName, String)> {
    let pattern = |(name, job): (&JobName, &Arc<Job>)| (name.clone(), job.schedule.bell_pattern());
    jobs.iter().filter(|(_, job)| job.enabled).map(pattern).collect()
}

/// Reads the job files again each time that somebody asks for it; never ends. Files with problems
/// change nothing: the last good ones stay.
async fn reload_jobs(
    (settings, reload): (&Settings, &Notify),
    bell: &mut Bell,
    jobs_read: &watch::Sender<Jobs>,
    (handle, metrics): (&Handle, &Metrics),
) {
    loop {
        reload.notified().await;
        match load_jobs(settings, bell).await {
            Ok(jobs) => {
                handle.replace(jobs.clone()).await;
                jobs_read.send_replace(jobs);
            }
            Err(problems) => event::JobsRejected { problems: &problems }.emit(metrics),
        }
    }
}

/// The jobs of the folder, with a bell that rings for them; or what is wrong, as it is shown.
async fn load_jobs(settings: &Settings, bell: &mut Bell) -> Result<Jobs, String> {
    let (folder, defaults) = (settings.jobs.clone(), job_defaults(settings));
    // Away from the loop: a folder may be on a disk that hangs.
    let load = tokio::task::spawn_blocking(move || definition::load(&folder, &defaults));
    let loaded = load.await.map_err(|error| error.to_string())?;
    let files = loaded.map_err(|problems| problems.render(false))?;
    let ringing = bell.replace(&bell_patterns(files.jobs())).await;
    // A bell that rings for others now and then harms nothing: the loop looks at the clock itself.
    ringing.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    Ok(files.jobs().clone())
}

/// Asks the servers for the numbers that are theirs, whenever somebody looks.
fn refresh(runner: Arc<Runner>, database: Arc<Database>, most: u32) -> Refresh {
    Arc::new(move || {
        let (runner, database) = (Arc::clone(&runner), Arc::clone(&database));
        Box::pin(async move {
            let connections = database.connections();
            runner.metrics.set_db_connections(connections.idle, connections.active, most);
            // A cache that does not tell keeps the numbers that it had.
            if let Ok(stats) = runner.cache_stats().await {
                runner.metrics.set_cache_counters(stats.hits, stats.misses);
            }
        })
    })
}
