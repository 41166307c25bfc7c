//! The composition root: connects, builds, starts and drains the worker.

mod feed;
mod fleet;
mod folder_watch;
pub mod follow_up;
mod front;
mod keeper;
mod queries;
mod start;
mod traces;
mod versions;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::feed::{FeedSupervisor, Supervised};
use self::fleet::Fleet;
use self::folder_watch::FolderWatch;
use self::front::Front;
use self::keeper::{Keeper, bell_patterns, tell_rejected};
pub use self::queries::{
    QueryProblems, Unwatched, check_keys, check_log, check_queries, check_rows, check_tables,
    log_problem, unwatched,
};
use self::start::Start;
use self::versions::Versions;
use crate::adapter::ConnectError;
use crate::adapter::bell::{Bell, Ring};
use crate::adapter::clock::SystemClock;
use crate::adapter::memory::MemoryHistory;
use crate::adapter::postgres::{
    self, Database, DatabaseSettings, MigrateError, PostgresHistory, PostgresSource, RowSecurity,
    TenantsSettings,
};
use crate::adapter::redis::{CacheSettings, RedisCache};
use crate::audit::Verifier;
use crate::config::{self, ChangesMode, ConfigError, FleetShares, HistoryMode, InUse, Settings};
use crate::definition::{Defaults, JobFiles};
use crate::domain::job::Jobs;
use crate::domain::pause::Pauses;
use crate::domain::run::RunRecord;
use crate::domain::{self, duration};
use crate::engine::ports::{CacheStats, Clock, History, PauseStore, Sheets};
use crate::engine::ports::{Ports, Unguarded};
use crate::engine::registry::Registry;
use crate::engine::run::limit::{Limits, Shares};
use crate::engine::run::ownership::Ownership;
use crate::engine::run::record::Records;
use crate::engine::run::{Runner, Stops};
use crate::engine::schedule::health::Beats;
use crate::engine::schedule::pauses::{PauseBook, READ_EVERY, READ_IN_FLEET_EVERY};
use crate::engine::schedule::scheduler::{Engine, Parts};
use crate::engine::tasks::supervisor::Supervisor;
use crate::http::{Access, Control, CountConnections, Refresh, SettingInUse};
use crate::invalidate::Invalidations;
use crate::observe::event;
use crate::observe::metric::{CacheCounts, Metrics};
use crate::overview::{Board, Connections};

/// The number of run records kept in memory if no database keeps them: some hours of six jobs.
const RECORDS_IN_MEMORY: usize = 1_000;
/// How long the last records and answers may take when the worker stops.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the worker, or a command, could not begin.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A setting is missing or invalid.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// A server could not be reached, or refused the connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Both servers failed.
    #[error("{database}\nerror: {cache}")]
    ConnectBoth {
        /// The database's error.
        database: ConnectError,
        /// The cache's error.
        cache: ConnectError,
    },
    /// Servers were away for as long as the worker was allowed to wait for them.
    #[error("gave up after {}: {}", duration::text(*wait), away.join("\nerror: "))]
    GaveUp {
        /// The time that the worker was allowed to wait.
        wait: Duration,
        /// For each server, why it could not be reached.
        away: Vec<String>,
    },
    /// The settings require a history, and it cannot be kept.
    #[error(transparent)]
    History(#[from] MigrateError),
    /// The settings require the change feed, and it cannot work.
    #[error("the change feed cannot work, and `changes.enabled` is true: {0}")]
    NoFeed(String),
    /// Anything else.
    #[error(transparent)]
    Start(#[from] anyhow::Error),
}

/// Everything that a command or a worker uses, connected and built, before anything runs.
pub struct App {
    /// Executes runs.
    pub runner: Arc<Runner>,
    /// Reads tenants and rows.
    pub source: Arc<PostgresSource>,
    jobs: Jobs,
    database: Arc<Database>,
    cache: Arc<RedisCache>,
}

/// Where a worker keeps what has to outlive it.
struct Stores {
    history: Arc<dyn History>,
    pauses: Arc<dyn PauseStore>,
}

impl App {
    /// Closes the connections to the database.
    pub async fn close(&self) {
        traces::close(self.runner.traces.as_ref()).await;
        self.database.close().await;
    }

    /// Connects to both servers and builds what runs need.
    pub async fn connect(settings: &Settings, jobs: Jobs) -> Result<Self, AppError> {
        let mut servers = Servers::lazy(settings)?;
        match tokio::join!(servers.database.reach(), servers.cache.reach()) {
            (Err(database), Err(cache)) => return Err(AppError::ConnectBoth { database, cache }),
            (database, cache) => database.and(cache)?,
        }
        let around = Around {
            clock: Arc::new(SystemClock::new()),
            metrics: Metrics::new(),
            ownership: Arc::default(),
        };
        Ok(Self::build(settings, jobs, servers, around))
    }

    /// Opens a connection for each batch that may be in flight.
    pub async fn connect_ahead(&self) {
        self.database.open_ahead(self.runner.limits.shares().all()).await;
    }

    fn build(settings: &Settings, jobs: Jobs, servers: Servers, around: Around) -> Self {
        let Around { clock, metrics, ownership } = around;
        let (database, cache) = (Arc::new(servers.database), servers.cache);
        let source = Arc::new(source_on(settings, &database));
        let servers = Unguarded {
            source: Arc::clone(&source) as _,
            reader: Arc::new(source.reading_only()),
            cache: Arc::clone(&cache) as _,
            ledger: Arc::clone(&cache) as _,
        };
        let ports = Ports::new(servers, clock, metrics);
        let traces = traces::traces(settings, &ports.metrics);
        let runner = Runner::new(
            ports,
            Limits::with_tenants_of(
                settings.runner.max_tenant_bytes,
                permits(settings, settings.database.max_connections),
            ),
            Registry::new(settings.tenants.max_shrink),
            settings.replica.clone(),
        );
        let runner = runner.with_target_batch_time(settings.runner.target_batch_time);
        let runner = Arc::new(Runner { traces, ..runner.with_ownership(ownership) });
        runner.jobs.set(jobs.clone());
        if settings.database.pgbouncer {
            event::PgbouncerIsSet.emit(&runner.metrics);
        }
        if database.is_replica() {
            event::DatabaseIsReplica { server: database.server() }.emit(&runner.metrics);
        }
        Self { runner, source, jobs, database, cache }
    }

    /// Works until `stops` is cancelled, and then drains.
    #[expect(
        clippy::too_many_lines,
        reason = "it only makes the parts and hands them to each other"
    )]
    async fn work(
        self,
        settings: &Settings,
        begun: Begun,
        orders: Orders<'_>,
    ) -> Result<(), AppError> {
        let Begun { front, fleet, stores, pauses, versions } = begun;
        let Orders { stops, reload, .. } = orders;
        let limits = Arc::clone(&self.runner.limits);
        limits.set(worker_shares(settings, self.database.most_connections()));
        let traces = self.runner.traces.clone();
        let (clock, metrics) = (Arc::clone(&self.runner.clock), Arc::clone(&self.runner.metrics));
        let retention = settings.history.retention;
        let tools = (Arc::clone(&clock), Arc::clone(&metrics));
        let records = Records::for_shares(whole(settings), stores.history, tools, retention);
        let notify = Arc::new(Notify::new());
        let beats = Arc::new(Beats::new(clock.monotonic()));
        let ring = ring(&notify, &beats, &clock);
        let bell = Bell::start(&bell_patterns(&self.jobs), Arc::clone(&ring)).await;
        let bell = bell.context("could not start the bell")?;
        let (version, at) = (env!("CARGO_PKG_VERSION"), clock.now());
        event::WorkerStarted { version, jobs: self.jobs.len(), listen: front.listen, at }
            .emit(&metrics);
        tell_rejected(&versions, &metrics);

        let (jobs_read, jobs) = watch::channel(self.jobs.clone());
        let feed = FeedSupervisor::new(settings, &self, jobs)?;
        let runner = Arc::clone(&self.runner);
        let parts =
            Parts { jobs: self.jobs, runner, records: Arc::clone(&records), bell: notify, beats };
        let (engine, handle) = Engine::new(parts, stops.clone());
        let engine = engine.with_rejections(versions.rejections()).with_pauses(pauses.clone());
        let read_every = if fleet.member.is_some() { READ_IN_FLEET_EVERY } else { READ_EVERY };
        let pauses =
            PauseBook::new(stores.pauses, handle.clone(), pauses, Arc::clone(&metrics), read_every);
        let (requests, requested) = fleet.requests(settings, &self.cache, &handle).unzip();
        let handle = handle.in_fleet(requested);
        let invalidations =
            Invalidations::new(Arc::clone(&self.runner), handle.clone(), stops.clone());
        let background = front.shutdown.clone();
        let supervisor = Supervisor::new(&self.runner.ports, background.clone());
        let mut tasks = look_after(settings, &self.runner, &records, &stops, &supervisor);
        tasks.spawn(keep_pauses(&supervisor, &pauses));
        let member = fleet.member(&self.cache, front.listen);
        let board = Board::of_member(Arc::clone(&self.runner), handle.clone(), member);
        tasks.spawn(keep_board(&supervisor, &board, &stops));
        fleet::keep_as_one(&mut tasks, &supervisor, &board, requests);
        board.set_origins(versions.origins(settings));
        let connections = Arc::clone(&self.database);
        front.works(Control {
            handle: handle.clone(),
            invalidations: Arc::clone(&invalidations),
            pauses,
            board: Arc::clone(&board),
            metrics: Arc::clone(&metrics),
            refresh: refresh(Arc::clone(&board), self.runner, self.database, Arc::clone(&records)),
            connections: count_connections(connections),
            access: access(settings, front.listen),
            settings: in_use(settings),
            ready_within: settings.http.ready_within,
            shutdown: background.clone(),
        });
        let Supervised { head_start, refused } =
            FeedSupervisor::start(feed, handle.clone(), &mut tasks, background.clone());
        let mut keeper = Keeper {
            settings,
            watch: FolderWatch::of(settings, &versions, &clock),
            versions,
            source: self.source,
            bell,
            ring,
            jobs_read,
            handle,
            board: Arc::clone(&board),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
        };
        let engine = head_start.then(|()| engine.run());
        fleet.is_ready(&limits);
        let ended = tokio::select! {
            ((), ()) = async { tokio::join!(engine, invalidations.drained()) } => Ok(()),
            () = stops.abort_after(clock.as_ref(), settings.runner.drain) => Ok(()),
            () = keeper.keep(reload) => Ok(()),
            error = refused => Err(error),
        };
        fleet.leave(LAST_WORDS).await;
        background.cancel();
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        // Tasks that have not ended by then are aborted when the set is dropped.
        drop(tokio::join!(tokio::time::timeout(LAST_WORDS, all_ended), front.close(LAST_WORDS)));
        drop(tasks);
        records.give_up();
        keeper.stop().await?;
        traces::close(traces.as_ref()).await;
        event::WorkerStopped.emit(&metrics);
        ended
    }

    /// Where run records and pauses are kept: in the database, or in memory and in the cache if that
    /// fails and is not required.
    async fn stores(
        &self,
        settings: &Settings,
        database: &Arc<Database>,
    ) -> Result<Stores, MigrateError> {
        match (postgres::migrate(database).await, settings.history.enabled) {
            (Ok(_applied), _) => {
                let history = Arc::new(PostgresHistory::new(Arc::clone(database)));
                Ok(Stores { history: Arc::clone(&history) as _, pauses: history })
            }
            (Err(error), HistoryMode::Required) => Err(error),
            (Err(error), _) => {
                let (reason, sql) = match error {
                    MigrateError::NotAllowed { message, sql } => (message, sql),
                    MigrateError::Changed(_) | MigrateError::Failed(_) => {
                        (error.to_string(), String::new())
                    }
                };
                let disabled = event::HistoryDisabled { reason: &reason, sql: &sql };
                disabled.emit(&self.runner.metrics);
                Ok(self.stores_without_history())
            }
        }
    }

    fn stores_without_history(&self) -> Stores {
        let history = Arc::new(MemoryHistory::new(RECORDS_IN_MEMORY));
        Stores { history, pauses: Arc::clone(&self.cache) as _ }
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

    /// Saves the records of a pass, if there is a history. The error says why a required history
    /// failed.
    pub async fn keep(&self, settings: &Settings, records: &[RunRecord]) -> Result<(), String> {
        if settings.history.enabled == HistoryMode::Off {
            return Ok(());
        }
        let database = self.history_database(settings).map_err(|error| error.to_string())?;
        let history = PostgresHistory::new(database);
        match (history.append(records).await, settings.history.enabled) {
            (Err(error), HistoryMode::Required) => Err(error.to_string()),
            // The schema may be missing: a pass does not create it.
            (Ok(()) | Err(_), _) => Ok(()),
        }
    }
}

/// The servers that runs need; not connected yet.
struct Servers {
    database: Database,
    cache: Arc<RedisCache>,
}

/// What a worker or a command has besides its servers.
#[derive(Clone)]
struct Around {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    ownership: Arc<Ownership>,
}

impl Servers {
    /// Checks the settings and connects to nothing.
    fn lazy(settings: &Settings) -> Result<Self, AppError> {
        let (database_url, cache_url) = settings.servers()?;
        let database = Database::lazy(database_settings(settings, database_url));
        let cache = RedisCache::lazy(cache_settings(settings, cache_url));
        match (database, cache) {
            (Err(database), Err(cache)) => Err(AppError::ConnectBoth { database, cache }),
            (database, cache) => Ok(Self { database: database?, cache: Arc::new(cache?) }),
        }
    }
}

/// What a worker is asked while it starts and works.
pub struct Orders<'a> {
    /// Stops the worker.
    pub stops: Stops,
    /// Each notification makes the worker read its job files again.
    pub reload: &'a Notify,
    /// How long the worker waits at its start for servers that are away; `None` means for ever.
    pub wait: Option<Duration>,
}

/// What the worker's start made before the engine is there.
struct Begun {
    front: Front,
    fleet: Fleet,
    stores: Stores,
    pauses: Pauses,
    versions: Versions,
}

/// The worker: it listens, waits for its servers, works until `orders.stops` is cancelled, and drains.
pub async fn serve(
    settings: &Settings,
    files: JobFiles,
    orders: Orders<'_>,
) -> Result<(), AppError> {
    let (clock, metrics): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), Metrics::new());
    let servers = Servers::lazy(settings)?;
    let fleet = Fleet::start(settings, &servers, &orders.stops, &clock, &metrics);
    let around = Around {
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
        ownership: Arc::clone(&fleet.ownership),
    };
    let start = Start::new(&servers, around);
    let front = Front::open(settings, start.waiting())?;
    let connecting = async {
        let mut app = start.connect(settings, files.jobs().clone(), servers).await?;
        let (stores, pauses) = start.stores(settings, &app).await?;
        let mut versions = Versions::new(files);
        versions.check(&app.source, clock.as_ref()).await;
        app.jobs = versions.in_use();
        Ok((app, stores, pauses, versions))
    };
    let outcome = tokio::select! {
        biased;
        () = orders.stops.requested() => Ok(None),
        connected = Box::pin(connecting) => connected.map(Some),
        error = start.gives_up(orders.wait) => Err(error),
    };
    match outcome {
        Ok(Some((app, stores, pauses, versions))) => {
            let begun = Begun { front, fleet, stores, pauses, versions };
            Box::pin(app.work(settings, begun, orders)).await
        }
        Ok(None) => {
            fleet.leave(LAST_WORDS).await;
            front.close(LAST_WORDS).await;
            event::WorkerStopped.emit(&metrics);
            Ok(())
        }
        Err(error) => {
            fleet.leave(LAST_WORDS).await;
            front.close(LAST_WORDS).await;
            Err(error)
        }
    }
}

/// Starts a background task of the runner.
type RunnerTask = fn(Arc<Runner>, Stops) -> BoxFuture<'static, ()>;

/// Collects the figures of the last 24 hours.
fn keep_board(
    supervisor: &Supervisor,
    board: &Arc<Board>,
    stops: &Stops,
) -> impl Future<Output = ()> + use<> {
    let state = (Arc::clone(board), stops.clone());
    supervisor.clone().keep_running("overview", state, |(board, stops)| {
        Arc::clone(board).watch(stops.clone()).boxed()
    })
}

/// Starts the background tasks of a worker, except its change feed.
fn look_after(
    settings: &Settings,
    runner: &Arc<Runner>,
    records: &Arc<Records>,
    stops: &Stops,
    supervisor: &Supervisor,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let state = (Arc::clone(records), supervisor.stop().clone());
    tasks.spawn(supervisor.clone().keep_running("run records", state, |(records, stop)| {
        Arc::clone(records).run(stop.clone()).boxed()
    }));
    let (recalling, stop) = (Arc::clone(records), supervisor.stop().clone());
    let jobs = runner.jobs.get().keys().cloned().collect();
    tasks.spawn(async move { recalling.recall(jobs, stop).await });
    let of_every_worker: [(&str, RunnerTask); 4] = [
        ("cache watch", |runner, stops| runner.watch_cache(stops).boxed()),
        ("coverage", |runner, stops| runner.watch_coverage(stops).boxed()),
        ("reads", |runner, stops| runner.watch_reads(stops).boxed()),
        ("sweep", |runner, stops| runner.sweep_departed(stops).boxed()),
    ];
    for (name, start) in of_every_worker {
        let state = (Arc::clone(runner), stops.clone());
        tasks.spawn(supervisor.clone().keep_running(name, state, move |(runner, stops)| {
            start(Arc::clone(runner), stops.clone())
        }));
    }
    if let Some(interval) = settings.audit.interval {
        let verifier = Verifier::new(Arc::clone(runner), interval, settings.audit.sample);
        let state = (verifier, stops.clone());
        tasks.spawn(supervisor.clone().keep_running("verifier", state, |(verifier, stops)| {
            verifier.run(stops.clone()).boxed()
        }));
    }
    tasks
}

/// Wakes the engine at each ring, and records that the bell is alive.
fn ring(notify: &Arc<Notify>, beats: &Arc<Beats>, clock: &Arc<dyn Clock>) -> Ring {
    let (notify, beats, clock) = (Arc::clone(notify), Arc::clone(beats), Arc::clone(clock));
    Arc::new(move |_job| {
        beats.scheduler_rang(clock.monotonic());
        notify.notify_one();
    })
}

/// Keeps the pauses until the worker stops.
fn keep_pauses(
    supervisor: &Supervisor,
    pauses: &Arc<PauseBook>,
) -> impl Future<Output = ()> + use<> {
    let state = (Arc::clone(pauses), supervisor.stop().clone());
    supervisor.clone().keep_running("pauses", state, |(pauses, stop)| {
        Arc::clone(pauses).run(stop.clone()).boxed()
    })
}

/// The permits of a worker with these settings and at most so many connections to the database. One permit is for changes
/// alone, if that leaves enough for the rest.
pub fn worker_shares(settings: &Settings, most: u32) -> Shares {
    // If there is only one connection, the change feed cannot listen.
    let listens = settings.changes.enabled != ChangesMode::Off && most > 1;
    Shares::of_worker(permits(settings, most - u32::from(listens)))
}

/// The shares that all runs together are for, of which this worker knows: the replicas that lease shares know of each
/// other's runs.
fn whole(settings: &Settings) -> domain::share::Shares {
    match settings.fleet.shares {
        FleetShares::Fixed(part) => part,
        FleetShares::All | FleetShares::Leased => domain::share::Shares::ALL,
    }
}

/// The number of batches in flight. A permit without a connection would only wait for a connection.
fn permits(settings: &Settings, connections: u32) -> u32 {
    let concurrency = u32::try_from(settings.runner.concurrency.get()).unwrap_or(u32::MAX);
    concurrency.min(connections)
}

/// Applies the migrations of preheat's own schema; returns how many it applied.
pub async fn migrate(settings: &Settings) -> Result<usize, AppError> {
    let url = match &settings.history.url {
        Some(url) => url,
        None => settings.database_url()?,
    };
    let database = Database::connect(database_settings(settings, url)).await?;
    Ok(postgres::migrate(&database).await?)
}

/// Connects to the database alone, to check queries.
pub async fn connect_source(settings: &Settings) -> Result<PostgresSource, AppError> {
    Ok(source_on(settings, &Arc::new(connect_database(settings).await?)))
}

/// Connects to the cache alone, for what the members of a fleet share.
pub async fn connect_sheets(settings: &Settings) -> Result<Arc<dyn Sheets>, AppError> {
    let cache = RedisCache::connect(cache_settings(settings, settings.cache_url()?)).await?;
    Ok(Arc::new(cache))
}

/// Connects to the cache once, to see whether that works, and whether the cache can keep keys and the leases of a fleet.
/// Returns the address of the primary, if Sentinels name it.
pub async fn try_cache(settings: &Settings) -> Result<Option<Arc<str>>, AppError> {
    let cache = RedisCache::connect(cache_settings(settings, settings.cache_url()?)).await?;
    cache.has_keys().await?;
    if settings.fleet.shares == FleetShares::Leased {
        cache.can_lease().await?;
    }
    Ok(cache.primary())
}

/// Connects to the database alone.
pub async fn connect_database(settings: &Settings) -> Result<Database, AppError> {
    let url = settings.database_url()?;
    Ok(Database::connect(database_settings(settings, url)).await?)
}

/// Reads tenants and rows from a connected database.
pub fn source_on(settings: &Settings, database: &Arc<Database>) -> PostgresSource {
    let sql = settings.tenants.sql.as_str().into();
    let column = settings.tenants.column.clone();
    PostgresSource::new(Arc::clone(database), TenantsSettings { sql, column })
}

fn database_settings(settings: &Settings, url: &SecretString) -> DatabaseSettings {
    let config::Database {
        url: _,
        max_connections,
        statement_timeout,
        read_only,
        row_security,
        time_zone,
        pgbouncer: _,
    } = settings.database;
    let max_connections = NonZeroU32::new(max_connections).unwrap_or(NonZeroU32::MIN);
    let row_security = match row_security {
        config::RowSecurity::Refuse => RowSecurity::Refuse,
        config::RowSecurity::Accept => RowSecurity::Accept,
    };
    let url = url.clone();
    DatabaseSettings { url, max_connections, statement_timeout, read_only, row_security, time_zone }
}

fn cache_settings(settings: &Settings, url: &SecretString) -> CacheSettings {
    let config::Cache { url: _, ca, verify, prefix, timeout } = &settings.cache;
    let (prefix, timeout, verify) = (prefix.clone(), *timeout, *verify);
    CacheSettings { url: url.clone(), prefix, timeout, ca_file: ca.clone(), verify }
}

/// The settings' values for fields that a job file leaves out.
pub fn job_defaults(settings: &Settings) -> Defaults {
    Defaults {
        batch: settings.runner.batch,
        concurrency: settings.runner.concurrency,
        tenant_column: settings.tenants.column.clone(),
        has_settings_file: settings.has_file,
    }
}

/// Who may do what over HTTP.
fn access(settings: &Settings, listen: SocketAddr) -> Access {
    let config::Http { token, read_token, trusted_proxies, user_header, base_path, .. } =
        &settings.http;
    Access {
        token: token.clone(),
        read_token: read_token.clone(),
        trusted_proxies: trusted_proxies.clone(),
        user_header: user_header.clone(),
        base_path: base_path.clone(),
        only_local: listen.ip().is_loopback(),
    }
}

/// Updates the figures that come from the servers, at each scrape.
fn refresh(
    board: Arc<Board>,
    runner: Arc<Runner>,
    database: Arc<Database>,
    records: Arc<Records>,
) -> Refresh {
    Arc::new(move || {
        let (runner, database) = (Arc::clone(&runner), Arc::clone(&database));
        let (board, pending) = (Arc::clone(&board), records.pending());
        board.show();
        Box::pin(async move {
            runner.metrics.set_history_pending(pending);
            let connections = database.connections();
            let most = database.most_connections();
            runner.metrics.set_db_connections(connections.idle, connections.active, most);
            runner.metrics.set_permits(&runner.limits.held());
            runner.metrics.set_concurrency_limit(runner.limits.shares().all());
            if !board.reads_for_all() {
                return runner.metrics.leave_cache_server_out();
            }
            // If the cache does not answer, its last figures stay.
            if let Ok(stats) = runner.cache_process.stats(&runner.ports).await {
                let CacheStats { hits, misses, evicted, used_memory, maxmemory, .. } = stats;
                runner.metrics.set_cache_counters(CacheCounts { hits, misses, evicted });
                runner
                    .metrics
                    .set_cache_memory(used_memory, Some(maxmemory).filter(|max| *max > 0));
            }
        })
    })
}

fn count_connections(database: Arc<Database>) -> CountConnections {
    Arc::new(move || {
        let postgres::Connections { idle, active } = database.connections();
        Connections { most: database.most_connections(), in_use: active, idle }
    })
}

/// The settings as their page shows them.
fn in_use(settings: &Settings) -> Arc<[SettingInUse]> {
    let shown = |InUse { key, value, origin }: &InUse| SettingInUse {
        key,
        value: value.clone(),
        origin: origin.to_string(),
    };
    settings.in_use.iter().map(shown).collect()
}
