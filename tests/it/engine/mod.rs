//! The engine with ports in memory and a clock that tests move: when runs start, how they go, and
//! what is recorded of them.

mod batch_sizes;
mod changes;
mod coverage;
mod fleet;
mod gone;
mod keys;
pub(crate) mod ledger;
mod load;
mod not_warm;
mod pause;
mod ports;
mod reads;
pub(crate) mod record;
mod registry;
mod requests;
mod restart;
mod rounds;
mod run;
mod schedule;
mod summaries;
mod supervisor;
mod unverified;
mod writes;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use preheat::adapter::memory::MemoryHistory;
use preheat::domain::job::{Job, JobName, Key, Overlap, Query, Scope, Shape, Share};
use preheat::domain::json::{Case, Encoding, Profile};
use preheat::domain::key::KeyTemplate;
use preheat::domain::run::RunRecord;
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::{TenantId, Tenants};
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, Clock, History, Ledger, Source, SourceError, SourceErrorKind,
};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::engine::registry::Registry;
use preheat::engine::run::limit::Limits;
use preheat::engine::run::ownership::Ownership;
use preheat::engine::run::record::Records;
use preheat::engine::run::{Runner, Stops};
use preheat::engine::schedule::handle::{Handle, JobSelection, RunRequest, Ticket};
use preheat::engine::schedule::health::Beats;
use preheat::engine::schedule::scheduler::{Engine, Parts};
use preheat::engine::schedule::status::JobStatus;
use preheat::engine::tasks::supervisor::Supervisor;
use preheat::invalidate::Invalidations;
use preheat::observe::metric::Metrics;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use ledger::HookedLedger;

use crate::support::memory::{MemoryCache, MemoryRow, MemorySource};
use crate::support::virtual_clock::VirtualClock;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_mins(1);

/// More steps of the clock than any of these tests needs: a test that takes this many has failed.
const MANY_STEPS: usize = 20_000;

/// When the clocks of tests start: at midnight, so that all schedules are on their grid.
pub(crate) fn start() -> DateTime<Utc> {
    at("2026-03-01T00:00:00Z")
}

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// A job that is due every ten minutes. It writes `NAME:{tenant_id}`, a list with a TTL of thirty
/// minutes.
pub(crate) fn job(name: &str) -> Job {
    Job {
        name: JobName::parse(name).unwrap(),
        description: String::new(),
        schedule: Schedule::Every(10 * MINUTE),
        ttl: 30 * MINUTE,
        ttl_jitter: Share::NONE,
        on_start: false,
        required: false,
        enabled: true,
        timeout: 5 * MINUTE,
        overlap: Overlap::Skip,
        retries: 3,
        batch: many(100),
        concurrency: Some(many(2)),
        tables: Vec::new(),
        scope: Scope::Tenants,
        query: Query { sql: "".into(), file: None, order: Vec::new() },
        dates: None,
        keys: vec![key(&format!("{name}:{{tenant_id}}"))],
        encoding: Encoding {
            profile: Profile::Drizzle,
            case: Case::Keep,
            omit: Vec::new(),
            columns: BTreeMap::new(),
            max_bytes: 64 * 1024 * 1024,
        },
    }
}

pub(crate) fn many(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

pub(crate) fn key(template: &str) -> Key {
    let template = KeyTemplate::parse(template, "tenant_id").unwrap();
    Key { template, shape: Shape::List, unique: None }
}

/// Tenants `t0`, `t1`, …, each in UTC.
pub(crate) fn tenants(count: usize) -> Tenants {
    let mut list = Tenants::with_columns(["timezone"]);
    for id in ids(0..count) {
        list.push(&id, [Some("UTC")]);
    }
    list
}

pub(crate) fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("t{number}")).collect()
}

/// One row for each of the tenants `t0`, `t1`, …: the tenant's number.
pub(crate) fn a_row_each(count: usize) -> Vec<MemoryRow> {
    let row = |(number, id): (usize, String)| MemoryRow::new(&id, &number.to_string(), []);
    ids(0..count).into_iter().enumerate().map(row).collect()
}

pub(crate) fn refused(kind: SourceErrorKind) -> SourceError {
    SourceError { kind, message: format!("the query failed: {kind:?}") }
}

pub(crate) fn cache_error(kind: CacheErrorKind) -> CacheError {
    CacheError { kind, message: format!("the write failed: {kind:?}") }
}

/// The parts of a world before it starts.
pub(crate) struct Setup {
    pub(crate) jobs: Vec<Job>,
    pub(crate) tenants: Tenants,
    /// Batches in flight over all jobs.
    pub(crate) concurrency: u32,
    pub(crate) clock: VirtualClock,
    pub(crate) history: Arc<dyn History>,
    pub(crate) retention: Duration,
    /// Replaces the source in memory.
    pub(crate) source: Option<Arc<dyn Source>>,
    /// Replaces the cache in memory.
    pub(crate) cache: Option<Arc<dyn Cache>>,
    /// Replaces the ledger in memory.
    pub(crate) ledger: Option<Arc<dyn Ledger>>,
    /// The share of the tenants that may be missing from a list.
    pub(crate) max_shrink: Share,
    /// How long a query should take at most.
    pub(crate) target_batch_time: Option<Duration>,
    /// Which shares the worker holds.
    pub(crate) ownership: Ownership,
}

impl Setup {
    pub(crate) fn new(jobs: impl IntoIterator<Item = Job>, tenants: Tenants) -> Self {
        Self {
            jobs: jobs.into_iter().collect(),
            tenants,
            concurrency: 4,
            clock: VirtualClock::new(start(), 1),
            history: Arc::new(MemoryHistory::new(1_000)),
            retention: Duration::from_hours(24),
            source: None,
            cache: None,
            ledger: None,
            max_shrink: Share::from_percent(50.0).unwrap(),
            target_batch_time: None,
            ownership: Ownership::default(),
        }
    }

    /// The world, and its engine, which is not running yet.
    pub(crate) fn build(self) -> (World, Engine) {
        let Self { jobs, tenants, concurrency, clock, history, retention, .. } = self;
        let Self { source: other, cache, ledger, max_shrink, target_batch_time, ownership, .. } =
            self;
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let source = Arc::new(MemorySource::new(tenants));
        let memory = Arc::new(MemoryCache::new(Arc::clone(&shared)));
        let hooked = Arc::new(HookedLedger::new(Arc::clone(&memory)));
        let metrics = Metrics::new();
        let read: Arc<dyn Source> = other.unwrap_or_else(|| Arc::clone(&source) as _);
        let servers = Unguarded {
            source: Arc::clone(&read),
            reader: read,
            cache: cache.unwrap_or_else(|| Arc::clone(&memory) as _),
            ledger: ledger.unwrap_or_else(|| Arc::clone(&hooked) as _),
        };
        let ports = Ports::new(servers, Arc::clone(&shared), Arc::clone(&metrics));
        let (limits, registry) = (Limits::new(concurrency), Registry::new(max_shrink));
        let runner = Runner::new(ports, limits, registry, "test".to_owned());
        let runner = runner.with_target_batch_time(target_batch_time);
        let runner = Arc::new(runner.with_ownership(Arc::new(ownership)));
        let records = Records::new(history, Arc::clone(&shared), Arc::clone(&metrics), retention);
        let (bell, beats) = (Arc::new(Notify::new()), Arc::new(Beats::new(clock.monotonic())));
        let made_of = Parts {
            jobs: jobs.into_iter().map(|job| (job.name.clone(), Arc::new(job))).collect(),
            runner: Arc::clone(&runner),
            records: Arc::clone(&records),
            bell: Arc::clone(&bell),
            beats: Arc::clone(&beats),
        };
        let stops = Stops::default();
        let (engine, handle) = Engine::new(made_of, stops.clone());
        let invalidations = Invalidations::new(Arc::clone(&runner), handle.clone(), stops.clone());
        let rings = Arc::new(AtomicBool::new(true));
        let mut tasks = JoinSet::new();
        let stop_records = CancellationToken::new();
        tasks.spawn(Arc::clone(&records).run(stop_records.clone()));
        tasks.spawn(ring(clock.clone(), bell, beats, Arc::clone(&rings)));
        let supervisor = Supervisor::new(&runner.ports, CancellationToken::new());
        let state = (Arc::clone(&runner), stops.clone());
        tasks.spawn(supervisor.keep_running("sweep", state, |(runner, stops)| {
            Box::pin(Arc::clone(runner).sweep_departed(stops.clone()))
        }));
        let engine_ended = CancellationToken::new();
        let world = World {
            clock,
            source,
            cache: memory,
            ledger: hooked,
            runner,
            metrics,
            handle,
            records,
            invalidations,
            stops,
            rings,
            stop_records,
            tasks,
            engine_ended,
        };
        (world, engine)
    }

    /// The world with its engine running.
    pub(crate) fn start(self) -> World {
        let (mut world, engine) = self.build();
        let ended = world.engine_ended.clone();
        let invalidations = Arc::clone(&world.invalidations);
        world.tasks.spawn(async move {
            tokio::join!(engine.run(), invalidations.drained());
            ended.cancel();
        });
        world
    }
}

/// Rings the bell each second in place of tokio-cron-scheduler, while `rings` is true.
async fn ring(clock: VirtualClock, bell: Arc<Notify>, beats: Arc<Beats>, rings: Arc<AtomicBool>) {
    loop {
        clock.sleep(SECOND).await;
        if rings.load(Ordering::Relaxed) {
            beats.scheduler_rang(clock.monotonic());
            bell.notify_one();
        }
    }
}

/// An engine and its surroundings.
pub(crate) struct World {
    pub(crate) clock: VirtualClock,
    pub(crate) source: Arc<MemorySource>,
    pub(crate) cache: Arc<MemoryCache>,
    pub(crate) ledger: Arc<HookedLedger>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) handle: Handle,
    pub(crate) records: Arc<Records>,
    pub(crate) invalidations: Arc<Invalidations>,
    pub(crate) stops: Stops,
    /// Whether the bell rings.
    pub(crate) rings: Arc<AtomicBool>,
    pub(crate) stop_records: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
    engine_ended: CancellationToken,
}

impl World {
    /// Moves time on, step by step, until the condition holds.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..MANY_STEPS {
            if is_so(self) {
                return;
            }
            self.clock.step().await;
        }
        panic!("never: {what}");
    }

    /// Lets everything happen that is due now.
    pub(crate) async fn settle(&self) {
        self.clock.advance(Duration::ZERO).await;
    }

    pub(crate) async fn ended(&self) {
        self.until("the engine ends", |world| world.engine_ended.is_cancelled()).await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.engine_ended.is_cancelled()
    }

    /// Moves time on until the run has ended.
    pub(crate) async fn finish(&self, ticket: Ticket) -> Arc<RunRecord> {
        let finished = ticket.finished();
        tokio::pin!(finished);
        for _ in 0..MANY_STEPS {
            tokio::select! {
                biased;
                record = &mut finished => return record.expect("the engine goes on"),
                _moved = self.clock.step() => {}
            }
        }
        panic!("the run never ended");
    }

    /// Requests a run of one job.
    pub(crate) async fn ask(&self, name: &str) -> Ticket {
        self.ask_for(name, None).await
    }

    pub(crate) async fn ask_for(&self, name: &str, tenants: Option<&[&str]>) -> Ticket {
        self.handle.request(request(name, tenants)).await.unwrap().remove(0)
    }

    /// Runs a job once, over all tenants.
    pub(crate) async fn warm(&self, name: &str) -> Arc<RunRecord> {
        let ticket = self.ask(name).await;
        self.finish(ticket).await
    }

    /// Runs a job once, for these tenants.
    pub(crate) async fn warm_some(&self, name: &str, tenants: &[&str]) -> Arc<RunRecord> {
        let ticket = self.ask_for(name, Some(tenants)).await;
        self.finish(ticket).await
    }

    pub(crate) fn set_rows(&self, job: &str, rows: Vec<MemoryRow>) {
        self.source.set_rows(&JobName::parse(job).unwrap(), rows);
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.cache.get(key).map(|value| String::from_utf8(value).unwrap())
    }

    pub(crate) fn status(&self, job: &str) -> JobStatus {
        self.handle.status().jobs[&JobName::parse(job).unwrap()].clone()
    }

    /// The value of a metric, by its name and labels.
    pub(crate) fn metric(&self, name: &str) -> u32 {
        let page = self.metrics.encode();
        let value = page.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().parse().unwrap()
    }

    /// Whether the metrics contain this line.
    pub(crate) fn shows(&self, line: &str) -> bool {
        self.metrics.encode().lines().any(|found| found == line)
    }

    /// The tenants of each read so far.
    pub(crate) fn reads(&self) -> Vec<Vec<String>> {
        self.source.reads().into_iter().map(|read| read.tenants).collect()
    }

    /// Calls `decide` for each read; the read fails if it returns an error.
    pub(crate) fn on_read<F>(&self, decide: F)
    where
        F: Fn(&[String]) -> Result<(), SourceError> + Send + Sync + 'static,
    {
        self.source.before_read(move |seen| {
            let decided = decide(&seen.tenants);
            Box::pin(async move { decided })
        });
    }
}

pub(crate) fn request(name: &str, tenants: Option<&[&str]>) -> RunRequest {
    let tenants = tenants.map(|ids| ids.iter().map(TenantId::new).collect());
    RunRequest { jobs: JobSelection::One(JobName::parse(name).unwrap()), tenants }
}

/// Counts what is in flight at the same time, by name and in total.
#[derive(Clone, Default)]
pub(crate) struct Gauge {
    now: Arc<Mutex<BTreeMap<String, usize>>>,
    most: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Gauge {
    /// One more of that name is in flight until the returned value is dropped.
    pub(crate) fn enter(&self, name: &str) -> InFlight {
        let mut now = self.now.lock().unwrap();
        *now.entry(name.to_owned()).or_default() += 1;
        let mut most = self.most.lock().unwrap();
        for (name, count) in [(name, now[name]), ("", now.values().sum())] {
            let most = most.entry(name.to_owned()).or_default();
            *most = count.max(*most);
        }
        InFlight { gauge: self.clone(), name: name.to_owned() }
    }

    /// How many are in flight, in total.
    pub(crate) fn now(&self) -> usize {
        self.now.lock().unwrap().values().sum()
    }

    pub(crate) fn now_of(&self, name: &str) -> usize {
        self.now.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    /// The maximum in flight at the same time, for that name; in total if the name is empty.
    pub(crate) fn most(&self, name: &str) -> usize {
        self.most.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

pub(crate) struct InFlight {
    gauge: Gauge,
    name: String,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.gauge.now.lock().unwrap().get_mut(&self.name).unwrap() -= 1;
    }
}

/// A counter that returns its former value when it counts up.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    pub(crate) fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Delays every read by this long.
pub(crate) fn slow_reads(world: &World, by: Duration) {
    let clock = world.clock.clone();
    world.source.before_read(move |_seen| {
        let asleep = clock.sleep(by);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
}

pub(crate) fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(async move { value })
}

/// The log lines of this thread.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Records log lines until the returned value is dropped.
    pub(crate) fn hear(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_ansi(false)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
