//! Data that changes: a feed reports the change, the engine warms it again at once, and no change
//! is lost.

mod failing;
mod feed;
mod relay;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use preheat::domain::change::{Change, ChangeSource, GoneValues, TouchedTenants, change_sources};
use preheat::domain::fence::{Fence, GLOBAL, PROVISIONAL_TTL, fence_key};
use preheat::domain::job::{Job, JobName, Jobs, Scope, Table};
use preheat::domain::run::{Outcome, RunFilter, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{Clock, Feed, FeedError, FeedSource, Ledger};
use preheat::engine::tasks::feed::Feeder;
use preheat::engine::tasks::supervisor::Supervisor;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ledger::Call;
use super::{
    Count, MINUTE, SECOND, Setup, World, a_row_each, ids, job, key, many, ready, slow_reads,
    tenants,
};
use crate::support::memory::MemoryRow;

/// How long a tenant rests after a run for it that took no time.
const REST: Duration = Duration::from_millis(20);
/// How soon a change is in the cache if nothing delays it, on a clock on which only waiting takes
/// time.
const AT_ONCE: Duration = Duration::from_millis(5);

/// A watched table, with nothing but its name.
fn table(name: &str) -> Table {
    Table::named(name)
}

/// A job that watches the table with the job's own name, and whose schedule does not matter.
pub(super) fn watching(name: &str) -> Job {
    let schedule = Schedule::Every(Duration::from_hours(24));
    Job { schedule, tables: vec![table(name)], ..job(name) }
}

/// A feed in place of Postgres: a test sends changes through it and disconnects it.
#[derive(Default)]
struct Notifier {
    away: AtomicBool,
    connects: Count,
    listener: Mutex<Option<mpsc::Sender<Said>>>,
}

type Said = Result<Vec<Change>, FeedError>;

struct Listener(mpsc::Receiver<Said>);

fn feed_error() -> FeedError {
    FeedError("could not listen: connection refused".to_owned())
}

impl FeedSource for Notifier {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>> {
        Box::pin(async {
            self.connects.up();
            if self.away.load(Ordering::Relaxed) {
                return Err(feed_error());
            }
            let (sender, receiver) = mpsc::channel(100_000);
            *self.listener.lock().unwrap() = Some(sender);
            Ok(Box::new(Listener(receiver)) as Box<dyn Feed>)
        })
    }
}

impl Feed for Listener {
    fn next(&mut self) -> BoxFuture<'_, Said> {
        Box::pin(async { self.0.recv().await.unwrap_or_else(|| Err(feed_error())) })
    }
}

impl Notifier {
    fn say(&self, said: Said) {
        if let Some(listener) = self.listener.lock().unwrap().as_ref() {
            // Where the feed broke before, nothing listens any more.
            drop(listener.try_send(said));
        }
    }

    fn break_off(&self) {
        self.say(Err(feed_error()));
    }

    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

/// A world with a change feed.
pub(super) struct Fed {
    world: World,
    notifier: Arc<Notifier>,
}

impl std::ops::Deref for Fed {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Fed {
    /// A world whose engine and feed are running and have nothing left to do.
    pub(super) async fn of(setup: Setup) -> Self {
        let fed = Self::begin(setup, Arc::default()).await;
        fed.rests().await;
        fed
    }

    async fn begin(setup: Setup, notifier: Arc<Notifier>) -> Self {
        let source = Arc::clone(&notifier);
        Self::begin_with(setup, notifier, |_| source).await
    }

    /// The same with another source of changes.
    async fn begin_with(
        setup: Setup,
        notifier: Arc<Notifier>,
        source: impl FnOnce(&World) -> Arc<dyn FeedSource>,
    ) -> Self {
        let (mut world, engine) = setup.build();
        let (handle, runner) = (world.handle.clone(), Arc::clone(&world.runner));
        let source = source(&world);
        let feeder = Feeder::new(source, handle, runner, "tenant_id".to_owned());
        let begun = feeder.begin().await;
        // About as long as a worker takes from there to its first run.
        world.clock.stall(Duration::from_millis(1)).await;
        let ended = world.engine_ended.clone();
        world.tasks.spawn(async move {
            engine.run().await;
            ended.cancel();
        });
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(&world.runner.ports, stop.clone());
        let state = (feeder, begun, stop);
        let listening = supervisor.keep_running("change feed", state, |(feeder, begun, stop)| {
            Box::pin(feeder.run(std::mem::take(begun), stop.clone()))
        });
        world.tasks.spawn(listening);
        Self { world, notifier }
    }

    /// Waits until everything that is due at once is done.
    pub(super) async fn rests(&self) {
        self.clock.advance(AT_ONCE).await;
    }

    /// Reports that a table changed for these tenants; for any tenant if there are none.
    pub(super) fn tell(&self, table: &str, tenants: &[&str]) {
        self.tell_all(table, Some(tenants.iter().map(|id| (*id).to_owned()).collect()));
    }

    pub(super) fn tell_all(&self, table: &str, tenants: Option<Vec<String>>) {
        let source = source_of(&self.runner.jobs.get(), table).id;
        self.notifier.say(Ok(vec![Change::new(source, tenants)]));
    }

    /// Reports that these values of a table's column are gone from shared keys of these tenants.
    pub(super) fn tell_gone(&self, table: &str, tenants: &[&str], column: &str, values: &[&str]) {
        let source = source_of(&self.runner.jobs.get(), table).id;
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let gone = GoneValues::from([(column.to_owned(), texts(values))]);
        let first = Change::new(source.clone(), Some(texts(tenants)));
        self.notifier
            .say(Ok(vec![first, Change { gone, ..Change::new(source, Some(Vec::new())) }]));
    }

    /// Commits new rows of a job.
    pub(super) fn commit(&self, job: &str, version: u32, tenants: &[&str]) {
        let row = |tenant: &&str| MemoryRow::new(tenant, &version.to_string(), []);
        self.set_rows(job, tenants.iter().map(row).collect());
    }

    /// How many runs for changes have ended with that outcome.
    fn change_runs(&self, job: &str, outcome: &str) -> u32 {
        let labels = format!("{{job_name=\"{job}\",trigger=\"change\",outcome=\"{outcome}\"}}");
        self.metric(&format!("preheat_runs_total{labels}"))
    }

    async fn history(&self, job: &str) -> Vec<(Trigger, Outcome)> {
        let name = JobName::parse(job).unwrap();
        let runs = self.handle.runs(&RunFilter::newest(Some(&name), 1_000)).await.unwrap().runs;
        runs.into_iter().map(|run| (run.trigger, run.outcome)).collect()
    }

    async fn fence(&self, key: &str) -> Fence {
        self.cache.fences(&[key.to_owned()]).await.unwrap()[0]
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.value(key).as_deref() == Some(value)
    }
}

fn source_of(jobs: &Jobs, table: &str) -> ChangeSource {
    let sources = change_sources(jobs, "tenant_id");
    sources.into_iter().find(|source| source.table == table).unwrap()
}

#[test]
fn a_table_is_one_source_for_each_way_to_find_its_tenants() {
    let by_column = |tenant: &str| Table { tenant: Some(tenant.to_owned()), ..table("t") };
    let by_sql = Table { sql: Some("select 1".to_owned()), ..table("t") };
    let job = |name: &str, scope, tables: &[Table]| {
        let job = Job { scope, tables: tables.to_vec(), ..job(name) };
        (job.name.clone(), Arc::new(job))
    };
    let jobs = Jobs::from([
        job("a", Scope::Tenants, &[table("t"), table("s")]),
        job("b", Scope::Tenants, &[by_column("tenant_id"), by_column("tenant_id"), by_sql]),
        job("c", Scope::Tenants, &[by_column("clinic")]),
        job("d", Scope::Global, &[table("t")]),
        job("e", Scope::Global, &[by_column("clinic")]),
        job("f", Scope::Global, &[]),
    ]);
    let sources = change_sources(&jobs, "tenant_id");
    let found: BTreeMap<String, String> = sources
        .iter()
        .map(|source| {
            let of: Vec<_> = source.jobs.iter().map(JobName::as_str).collect();
            (format!("{} {:?}", source.table, source.tenants), of.join(" "))
        })
        .collect();
    let column = |name: &str| TouchedTenants::Column(name.to_owned());
    let sql = TouchedTenants::Sql("select 1".to_owned());
    let expected = [
        (format!("s {:?}", column("tenant_id")), "a"),
        (format!("t {:?}", column("tenant_id")), "a b"),
        (format!("t {:?}", column("clinic")), "c"),
        (format!("t {sql:?}"), "b"),
        (format!("t {:?}", TouchedTenants::Global), "d e"),
    ];
    let expected = expected.map(|(source, jobs)| (source, jobs.to_owned()));
    assert_eq!(found, BTreeMap::from(expected));
    assert_eq!(sources.len(), 5);
}

#[tokio::test]
async fn a_change_is_in_the_cache_at_once_and_nobody_else_is_read() {
    let jobs = [watching("list"), watching("other")];
    let world = Fed::of(Setup::new(jobs, tenants(3))).await;
    let (fence, reads) = (world.fence(&fence_key("t1")).await, world.reads().len());
    let last_run = world.status("list").last_run.unwrap().id;
    world.commit("list", 2, &["t1"]);
    world.tell("list", &["t1"]);
    let told_at = world.clock.monotonic();
    world
        .until("the change is there", |world| world.value("list:t1").is_some_and(|v| v == "[2]"))
        .await;
    assert!(world.clock.monotonic() <= told_at + AT_ONCE);
    world.rests().await;
    assert_ne!(world.fence(&fence_key("t1")).await, fence, "older reads do not have the last word");
    assert_eq!(world.reads()[reads..], [["t1"]]);
    assert_eq!(world.cache.ttl("list:t1"), Some(30 * MINUTE), "it is verified");

    assert_eq!((world.change_runs("list", "ok"), world.change_runs("other", "ok")), (2, 1));
    assert_eq!(world.metric("preheat_change_lag_seconds_count"), 1);
    assert_eq!(world.metric("preheat_change_notifications_total"), 1);
    assert_eq!(world.status("list").last_run.unwrap().id, last_run, "one of many is not shown");
    assert_eq!(world.history("list").await, [(Trigger::Change, Outcome::Ok)], "nor is it kept");
}

#[tokio::test]
async fn a_tenant_that_changes_a_thousand_times_a_second_is_warmed_at_a_bounded_rate() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    let (reads, seconds) = (world.reads().len(), 10);
    for version in 1..=seconds * 1_000 {
        world.commit("list", version, &["t0"]);
        world.tell("list", &["t0"]);
        world.clock.advance(Duration::from_millis(1)).await;
    }
    world.clock.advance(REST + AT_ONCE).await;
    let runs = world.reads().len() - reads;
    let most = usize::try_from(seconds).unwrap() * 50 + 2;
    assert!((most * 9 / 10..=most).contains(&runs), "{runs} reads");
    assert!(world.is("list:t0", "[10000]"), "the last state wins");
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

/// From now on it takes this long to read any of these tenants.
fn slow_reads_of(world: &World, tenants: &'static [&'static str], time: Duration) {
    let clock = world.clock.clone();
    world.source.before_read(move |seen| {
        let is_slow = seen.tenants.iter().any(|id| tenants.contains(&id.as_str()));
        let asleep = is_slow.then(|| clock.sleep(time));
        Box::pin(async move {
            if let Some(asleep) = asleep {
                asleep.await;
            }
            Ok(())
        })
    });
}

#[tokio::test]
async fn a_thousand_changes_of_fifty_tenants_in_twenty_seconds_are_each_fresh_within_50_ms() {
    let world = Fed::of(Setup::new([watching("list")], tenants(50))).await;
    // A warming on an idle machine takes less.
    slow_reads(&world, Duration::from_millis(5));
    let (mut versions, mut random) = ([0_u32; 50], 1_u64);
    let (mut waiting, mut lags) = (Vec::new(), Vec::new());
    for millisecond in 0_u32..20_500 {
        if millisecond % 20 == 0 && millisecond < 20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let tenant = usize::try_from(random >> 33).unwrap() % 50;
            versions[tenant] += 1;
            let row = |(tenant, version): (usize, &u32)| {
                MemoryRow::new(&format!("t{tenant}"), &version.to_string(), [])
            };
            world.set_rows("list", versions.iter().enumerate().map(row).collect());
            world.tell("list", &[&format!("t{tenant}")]);
            waiting.push((tenant, versions[tenant], world.clock.monotonic()));
        }
        world.clock.advance(Duration::from_millis(1)).await;
        waiting.retain(|(tenant, version, at)| {
            let value = world.value(&format!("list:t{tenant}")).unwrap_or_default();
            let cached = value.trim_matches(['[', ']']).parse::<u32>().unwrap_or_default();
            let is_fresh = cached >= *version;
            lags.extend(is_fresh.then(|| world.clock.monotonic().saturating_sub(*at)));
            !is_fresh
        });
    }
    lags.sort();
    assert_eq!(lags.len(), 1_000);
    assert!(lags[989] < Duration::from_millis(50), "p99 {:?}", lags[989]);
    assert!(lags[499] <= Duration::from_millis(12), "p50 {:?}", lags[499]);
}

#[tokio::test]
async fn a_giant_is_warmed_a_quarter_of_the_time_and_holds_up_nobody() {
    let job = Job { batch: many(1), ..watching("list") };
    let world = Fed::of(Setup::new([job], tenants(20))).await;
    slow_reads_of(&world, &["t0"], 2 * SECOND);
    let (before, mut giant) = (world.reads().len(), 0);
    for version in 1..=600 {
        let small = format!("t{}", 1 + version % 19);
        // The giant's data changes as soon as the last change is in the cache.
        let changes = giant == 0 || world.is("list:t0", &format!("[{giant}]"));
        giant += u32::from(changes);
        let row = |tenant: &str, version: u32| MemoryRow::new(tenant, &version.to_string(), []);
        world.set_rows("list", vec![row("t0", giant), row(&small, version)]);
        if changes {
            world.tell("list", &["t0"]);
        }
        world.clock.advance(Duration::from_millis(30)).await;
        world.tell("list", &[&small]);
        world.clock.advance(Duration::from_millis(70)).await;
        assert!(world.is(&format!("list:{small}"), &format!("[{version}]")), "{small}");
    }
    let reads = world.reads().into_iter().skip(before);
    let of_giant = reads.filter(|tenants| *tenants == ["t0"]).count();
    assert!((7..=8).contains(&of_giant), "{of_giant} reads of two seconds in a minute");
}

#[tokio::test]
async fn a_burst_of_changes_of_many_tenants_is_one_run() {
    let world = Fed::of(Setup::new([watching("list")], tenants(1_000))).await;
    world.set_rows("list", a_row_each(1_000));
    for some in ids(0..1_000).chunks(7) {
        world.tell_all("list", Some(some.to_vec()));
    }
    world.rests().await;
    assert_eq!(world.change_runs("list", "ok"), 2, "one when the feed was connected, and this");
    for (number, id) in ids(0..1_000).iter().enumerate() {
        assert!(world.is(&format!("list:{id}"), &format!("[{number}]")));
    }
    assert_eq!(world.metric("preheat_change_lag_seconds_count"), 1_000);
}

#[tokio::test]
async fn where_any_tenant_may_have_changed_the_job_runs_for_all() {
    let world = Fed::of(Setup::new([watching("list"), watching("other")], tenants(3))).await;
    let fences = [world.fence(&fence_key("t0")).await, world.fence(GLOBAL).await];
    world.clock.advance(MINUTE).await;
    world.commit("list", 2, &["t0", "t1", "t2"]);
    world.tell_all("list", None);
    world.rests().await;
    assert!(world.is("list:t2", "[2]"));
    assert_ne!(world.fence(&fence_key("t0")).await, fences[0]);
    let all = [(Trigger::Change, Outcome::Ok); 2];
    assert_eq!(world.history("list").await, all, "a run for all is kept as any other");
    assert_eq!(world.history("other").await, all[..1]);
}

#[tokio::test]
async fn what_the_fleet_has_is_warmed_again_as_one_thing() {
    let fleet = Job { scope: Scope::Global, keys: vec![key("fleet")], ..watching("fleet") };
    let world = Fed::of(Setup::new([fleet], tenants(3))).await;
    let fence = world.fence(GLOBAL).await;
    world.clock.advance(SECOND).await;
    for version in 1..=10 {
        world.commit("fleet", version, &["anybody"]);
        world.tell_all("fleet", None);
        world.clock.advance(Duration::from_millis(1)).await;
    }
    world.clock.advance(REST).await;
    assert!(world.is("fleet", "[10]"));
    assert_ne!(world.fence(GLOBAL).await, fence);
    assert_eq!(world.reads().len(), 3, "at the start, at once, and after the rest");
    assert!(world.history("fleet").await.is_empty());
    assert!(world.status("fleet").last_success_at.is_some());
}

#[tokio::test]
async fn a_change_does_not_wait_for_the_batches_of_other_runs() {
    let slow = Job { batch: many(1), concurrency: Some(many(1)), ..job("slow") };
    let setup = Setup::new([slow, watching("list")], tenants(20));
    let world = Fed::of(Setup { concurrency: 1, ..setup }).await;
    let reads = world.reads().len();
    slow_reads(&world, SECOND);
    let ticket = world.ask("slow").await;
    world.clock.advance(SECOND * 3 / 2).await;
    world.commit("list", 2, &["t7"]);
    world.tell("list", &["t7"]);
    world
        .until("the change is there", |world| world.value("list:t7").is_some_and(|v| v == "[2]"))
        .await;
    let read: Vec<_> = world.source.reads().into_iter().skip(reads).collect();
    let order: Vec<_> = read.iter().map(|read| read.job.as_str()).take(3).collect();
    assert_eq!(order, ["slow", "slow", "list"]);
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn hazard_02_an_older_run_that_writes_later_does_not_have_the_last_word() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    world.commit("list", 1, &["t0"]);
    // The regular run has read, and takes long to write.
    let (clock, first) = (world.clock.clone(), Arc::new(AtomicBool::new(true)));
    world.cache.before_write(move |_| {
        let is_first = first.swap(false, Ordering::Relaxed);
        let asleep = is_first.then(|| clock.sleep(SECOND));
        Box::pin(async move {
            if let Some(asleep) = asleep {
                asleep.await;
            }
            Ok(())
        })
    });
    let older = world.ask("list").await;
    world.rests().await;
    world.commit("list", 2, &["t0"]);
    world.tell("list", &["t0"]);
    world.clock.advance(SECOND / 2).await;
    assert!(world.is("list:t0", "[2]"), "the change goes beside the run");
    let record = world.finish(older).await;
    assert_eq!(record.report.tenants.ok, 2);
    assert!(world.is("list:t0", "[2]"), "and stays");
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

#[tokio::test]
async fn hazard_03_an_application_that_knows_no_fences_is_helped_by_the_feed() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    world.commit("list", 1, &["t0"]);
    // Between a run's read and its write, the application commits and deletes the key.
    let (source, cache) = (Arc::clone(&world.source), Arc::clone(&world.cache));
    let (notifier, first) = (Arc::clone(&world.notifier), Arc::new(AtomicBool::new(true)));
    let (told, clock) = (source_of(&world.runner.jobs.get(), "list").id, world.clock.clone());
    world.cache.before_write(move |_| {
        let is_first = first.swap(false, Ordering::Relaxed);
        let (source, cache) = (Arc::clone(&source), Arc::clone(&cache));
        let (notifier, told, clock) = (Arc::clone(&notifier), told.clone(), clock.clone());
        Box::pin(async move {
            if is_first {
                let rows = vec![MemoryRow::new("t0", "2", [])];
                source.set_rows(&JobName::parse("list").unwrap(), rows);
                cache.evict("list:t0");
                let tenants = Some(vec!["t0".to_owned()]);
                notifier.say(Ok(vec![Change::new(told, tenants)]));
                clock.sleep(SECOND).await;
            }
            Ok(())
        })
    });
    let record = world.warm("list").await;
    assert_eq!(record.report.tenants.ok, 2);
    assert!(world.is("list:t0", "[2]"));
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

#[tokio::test]
async fn hazard_01_a_tenant_that_never_stops_writing_stays_cached_and_is_verified_once_it_rests() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    world.commit("list", 1, &["t0", "t1"]);
    let (cache, writes) = (Arc::clone(&world.cache), Arc::new(AtomicBool::new(true)));
    let goes_on = Arc::clone(&writes);
    world.cache.before_write(move |keys| {
        let (cache, goes_on) = (Arc::clone(&cache), Arc::clone(&goes_on));
        Box::pin(async move {
            if goes_on.load(Ordering::Relaxed) && keys.iter().any(|key| key == "list:t0") {
                cache.move_fences(&[fence_key("t0")], 1 << 41).await?;
            }
            Ok(())
        })
    });
    let record = world.warm("list").await;
    let tenants = record.report.tenants;
    assert_eq!((record.outcome, tenants.ok, tenants.fenced), (Outcome::Ok, 1, 1));
    assert!(world.shows("preheat_tenants_total{job_name=\"list\",outcome=\"fenced\"} 1"));
    assert!(world.shows("preheat_keys_total{job_name=\"list\",outcome=\"fenced\"} 1"));
    for _ in 0..600 {
        world.clock.advance(SECOND / 10).await;
        assert!(world.is("list:t0", "[1]"), "at {:?}", world.clock.monotonic());
        assert!(
            world.cache.ttl("list:t0").unwrap() <= PROVISIONAL_TTL,
            "nothing old outlives a crash"
        );
    }
    let runs = world.change_runs("list", "ok");
    assert!((12..=18).contains(&runs), "at a bounded rate: {runs}");
    writes.store(false, Ordering::Relaxed);
    world.clock.advance(SECOND * 6).await;
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE), "verified at last");
    let reads = world.reads().len();
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), reads, "and at rest");
}

#[tokio::test]
async fn the_fences_are_moved_before_anything_is_read_again() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    let (moved, clock) = (Arc::new(AtomicBool::new(false)), world.clock.clone());
    let is_moved = Arc::clone(&moved);
    world.ledger.before(move |call| {
        let (is_moved, asleep) = (Arc::clone(&is_moved), clock.sleep(SECOND));
        Box::pin(async move {
            if call == Call::MoveFences {
                asleep.await;
                is_moved.store(true, Ordering::Relaxed);
            }
            Ok(())
        })
    });
    let is_moved = Arc::clone(&moved);
    world.on_read(move |_| {
        assert!(is_moved.load(Ordering::Relaxed), "it is read before its fence is moved");
        Ok(())
    });
    world.commit("list", 2, &["t0"]);
    world.tell("list", &["t0"]);
    world.clock.advance(SECOND * 2).await;
    assert!(world.is("list:t0", "[2]"));
}

#[tokio::test]
async fn a_feed_that_panics_connects_anew_and_loses_no_change() {
    let fed = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    fed.commit("list", 2, &["t1"]);
    let connects = fed.notifier.connects.now();
    let calls = Count::default();
    fed.ledger.before(move |call| {
        if call == Call::MoveFences && calls.up() == 0 {
            resume_unwind(Box::new("a defect, on purpose"));
        }
        ready(Ok(()))
    });
    fed.tell("list", &["t1"]);
    fed.rests().await;
    assert!(!fed.is("list:t1", "[2]"), "the feed panicked");
    // Everything was warmed when the feed connected first, and is not warmed again at once.
    fed.clock.advance(SECOND * 6).await;
    assert!(fed.is("list:t1", "[2]"));
    assert_eq!(fed.notifier.connects.now(), connects + 1);
}

#[tokio::test]
async fn a_tenant_that_came_with_its_change_is_warmed_and_one_that_went_is_no_failure() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    let lists = Count::default();
    let counted = lists.clone();
    world.source.before_tenants(move || {
        counted.up();
        ready(Ok(()))
    });
    let mut others = tenants(3).only(|tenant| tenant.id() != "t0");
    others.push("late", [Some("UTC")]);
    world.source.set_tenants(others);
    world.commit("list", 2, &["t0", "t1", "t2", "late"]);
    world.tell("list", &["t0", "t2"]);
    world.rests().await;
    assert!(world.is("list:t2", "[2]"));
    assert_eq!(world.value("list:t0"), None, "a complete list was read, and it lost its keys");
    let (read, known) = (lists.now(), world.runner.registry.known(world.ledger.as_ref()).await);
    assert!(known.unwrap().active.iter().any(|tenant| tenant.id() == "late"));
    for _ in 0..5 {
        world.clock.advance(SECOND).await;
        world.tell("list", &["t0", "t2"]);
    }
    world.rests().await;
    assert_eq!(lists.now(), read + 5, "what the list said already is not asked again");
    assert_eq!(world.change_runs("list", "ok"), 7);
    assert_eq!(world.history("list").await.len(), 1, "none of them failed");
}

#[tokio::test]
async fn hazard_09_a_tenant_that_comes_or_goes_while_a_change_is_looked_up_is_as_the_registry_has_it()
 {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    // The answer to the small query, and then the complete list.
    let answers: Arc<Mutex<Vec<Tenants>>> = Arc::default();
    let (of_hook, source) = (Arc::clone(&answers), Arc::downgrade(&world.source));
    world.source.before_tenants(move || {
        if let Some(list) = of_hook.lock().unwrap().pop() {
            source.upgrade().unwrap().set_tenants(list);
        }
        ready(Ok(()))
    });
    world.commit("list", 2, &["t0", "t1", "t2"]);
    *answers.lock().unwrap() = vec![tenants(2), tenants(3)];
    world.tell("list", &["t0", "t2"]);
    world.rests().await;
    assert!(world.is("list:t0", "[2]"));
    assert_eq!(world.value("list:t2"), None, "it is not registered: nobody would remove its keys");

    *answers.lock().unwrap() = vec![tenants(2), tenants(1)];
    world.tell("list", &["t1"]);
    world.rests().await;
    assert!(world.is("list:t1", "[2]"), "it was not removed, so it has to be written");
    assert!(answers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_change_of_a_trigger_that_no_job_has_moves_the_fence_and_warms_nothing() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    let (fence, reads) = (world.fence(&fence_key("t0")).await, world.reads().len());
    let source = preheat::domain::change::ChangeSourceId::new("of another time");
    let tenants = Some(vec!["t0".to_owned()]);
    world.notifier.say(Ok(vec![Change::new(source, tenants)]));
    world.rests().await;
    assert_ne!(world.fence(&fence_key("t0")).await, fence);
    assert_eq!(world.reads().len(), reads);
}
