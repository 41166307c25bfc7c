//! A restarted cache server has lost everything, and all keys are warm again within seconds.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use preheat::domain::job::{Job, JobName, Scope, Table};
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunFilter, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::engine::ports::{Cache, CacheErrorKind, CacheStats};
use preheat::engine::run::cache_process::{LOOK_EVERY, STEADY_FOR};

use super::ledger::{Answer, Around, CacheCall, Call, Rules};
use super::{
    MINUTE, SECOND, Said, Setup, World, a_row_each, cache_error, ids, job, key, many, slow_reads,
    tenants,
};
use crate::support::memory::MemoryCache;

const RESTARTS: &str = "preheat_cache_restarts_total";
/// The shortest time between two full runs of a job that its schedule did not start.
const COOLDOWN: Duration = Duration::from_secs(5);

/// How the server identifies itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// It does not report its process.
    Discreet,
    Away,
    /// It does everything, and does not answer the question for its stats.
    Forgetful,
    /// This many servers answer in turn.
    Several(u64),
}

/// A server whose behaviour a test changes.
struct Moody {
    mood: Mutex<Mood>,
    /// How often its stats were read.
    asked: AtomicU64,
}

impl Moody {
    fn new(mood: Mood) -> Self {
        Self { mood: Mutex::new(mood), asked: AtomicU64::new(0) }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }
}

impl Rules for Moody {
    fn on_ledger<'a, T: Send + 'a>(&'a self, _call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        self.on_cache(CacheCall::Stats, then)
    }

    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        _call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        match self.mood() {
            Mood::Well | Mood::Discreet | Mood::Forgetful | Mood::Several(_) => then,
            Mood::Away => Box::pin(async { Err(cache_error(CacheErrorKind::Unavailable)) }),
        }
    }

    fn stats<'a>(&'a self, memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        let stats = self.on_cache(CacheCall::Stats, memory.stats());
        Box::pin(async move {
            let stats = stats.await?;
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            let process = match self.mood() {
                Mood::Forgetful => return Err(cache_error(CacheErrorKind::Unavailable)),
                Mood::Well | Mood::Away => stats.process,
                Mood::Discreet => None,
                Mood::Several(servers) => stats.process.map(|process| process + asked % servers),
            };
            Ok(CacheStats { process, ..stats })
        })
    }
}

/// A job whose next due time is after the end of every test.
fn daily(name: &str) -> Job {
    let schedule = Schedule::Every(Duration::from_hours(24));
    Job { schedule, ttl: Duration::from_hours(72), ..job(name) }
}

/// A worker that watches its cache, with all jobs warm.
async fn watched(jobs: impl IntoIterator<Item = Job>, count: usize) -> World {
    let world = watching(Setup::new(jobs, tenants(count)));
    warm(&world, count).await;
    world
}

fn watching(setup: Setup) -> World {
    let mut world = setup.start();
    world.tasks.spawn(Arc::clone(&world.runner).watch_cache(world.stops.clone()));
    world
}

async fn warm(world: &World, count: usize) {
    for (name, job) in world.handle.status().jobs.clone() {
        world.set_rows(name.as_str(), a_row_each(count));
        if job.job.enabled {
            let record = world.warm(name.as_str()).await;
            assert_eq!(record.outcome, Outcome::Ok, "{record:?}");
        }
    }
    // The history does not order runs of the same moment.
    world.clock.advance(SECOND).await;
}

/// The runs that have ended, newest first.
async fn history(world: &World, job: &str) -> Vec<(Trigger, Outcome)> {
    let name = JobName::parse(job).unwrap();
    let runs = world.handle.runs(&RunFilter::newest(Some(&name), 1_000)).await.unwrap().runs;
    runs.into_iter().map(|run| (run.trigger, run.outcome)).collect()
}

const ONCE_MORE: [(Trigger, Outcome); 2] =
    [(Trigger::Change, Outcome::Ok), (Trigger::Request, Outcome::Ok)];

#[tokio::test]
async fn a_restart_between_runs_has_every_enabled_job_run_once() {
    let table = Table::named("t");
    let jobs = [
        daily("list"),
        Job { tables: vec![table], ..daily("with_tables") },
        Job { scope: Scope::Global, keys: vec![key("fleet")], ..daily("fleet") },
        Job { enabled: false, ..daily("off") },
    ];
    let world = watched(jobs, 3).await;
    let keys = world.cache.keys();
    assert_eq!(keys.len(), 3 + 3 + 1);
    world.clock.advance(MINUTE).await;
    assert_eq!(world.metric(RESTARTS), 0, "the first process is no other one");

    world.cache.restart();
    world.clock.advance(LOOK_EVERY + SECOND).await;
    assert_eq!(world.cache.keys(), keys);
    let known = world.runner.registry.known(world.ledger.as_ref()).await.unwrap();
    assert_eq!(known.active.len(), 3, "the registry is written anew");
    world.clock.advance(10 * MINUTE).await;
    for name in ["list", "with_tables", "fleet"] {
        assert_eq!(history(&world, name).await, ONCE_MORE, "{name}");
    }
    assert!(history(&world, "off").await.is_empty());
    assert_eq!(world.metric(RESTARTS), 1);
}

#[tokio::test]
async fn a_restarted_node_of_a_cluster_has_the_tenants_warmed_whose_keys_or_fences_it_had() {
    let global = Job { scope: Scope::Global, keys: vec![key("fleet")], ..daily("fleet") };
    let by_row = Job { keys: vec![key("row:{tenant_id}:{name}")], ..daily("by_row") };
    let world = watched([daily("list"), global, by_row], 12).await;
    let keys = world.cache.keys();
    world.clock.advance(MINUTE).await;
    world.cache.restart_node(&[u16::from(b'1')]);
    world.clock.advance(MINUTE).await;
    assert_eq!(world.cache.keys(), keys);
    let newest = async |job: &str| {
        let name = JobName::parse(job).unwrap();
        let runs = world.handle.runs(&RunFilter::newest(Some(&name), 1)).await.unwrap().runs;
        let run = &runs[0];
        (run.trigger, run.outcome, run.all_tenants, run.report.tenants.total)
    };
    let run = |total| (Trigger::Change, Outcome::Ok, Some(false), total);
    assert_eq!(newest("list").await, run(2), "t1 and t11");
    assert_eq!(newest("fleet").await, run(0));
    assert_eq!(newest("by_row").await, run(12), "its keys may be in any slot");

    world.cache.restart_node(&[u16::from(b't')]);
    world.clock.advance(MINUTE).await;
    assert_eq!(newest("fleet").await, run(1));
    assert_eq!(newest("list").await, run(0));
    assert_eq!(world.cache.keys(), keys);
    assert_eq!(world.metric(RESTARTS), 2);
}

#[tokio::test]
async fn a_run_under_way_while_a_node_is_restarted_is_repeated_whole() {
    let list = Job { batch: many(1), concurrency: Some(many(1)), required: true, ..daily("list") };
    let world = watching(Setup::new([list], tenants(4)));
    world.set_rows("list", a_row_each(4));
    slow_reads(&world, SECOND);
    let ticket = world.ask("list").await;
    world.clock.advance(2 * SECOND + SECOND / 2).await;
    world.cache.restart_node(&[u16::from(b'3')]);
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Partial);
    world.until("it is ok", |world| world.status("list").last_success_at.is_some()).await;
    assert_eq!(world.cache.keys().len(), 4);
}

#[tokio::test]
async fn a_run_whose_first_batches_are_lost_is_not_ok_and_is_repeated() {
    let list = Job { batch: many(1), concurrency: Some(many(1)), required: true, ..daily("list") };
    let world = Setup::new([list], tenants(4)).start();
    world.set_rows("list", a_row_each(4));
    slow_reads(&world, SECOND);
    let ticket = world.ask("list").await;
    world.clock.advance(2 * SECOND + SECOND / 2).await;
    assert_eq!(world.cache.keys().len(), 2);
    world.cache.restart();
    let record = world.finish(ticket).await;
    assert_eq!(record.outcome, Outcome::Partial);
    let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
    assert_eq!((failure.kind, failure.count), (FailureKind::CacheRestarted, 4));
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (0, 4));
    assert_eq!(world.status("list").last_success_at, None);

    world.until("it is ok", |world| world.status("list").last_success_at.is_some()).await;
    assert_eq!(world.cache.keys().len(), 4);
    world.clock.advance(10 * MINUTE).await;
    let runs = [(Trigger::Change, Outcome::Ok), (Trigger::Request, Outcome::Partial)];
    assert_eq!(history(&world, "list").await, runs, "nobody watched: the run itself noticed");
}

#[tokio::test]
async fn a_restart_that_is_noticed_in_the_middle_of_a_run_has_it_repeated_once() {
    let list = Job { batch: many(1), concurrency: Some(many(1)), ..daily("list") };
    let world = watched([list, daily("other")], 8).await;
    let (began, keys) = (history(&world, "list").await.len(), world.cache.keys());
    slow_reads(&world, SECOND);
    let ticket = world.ask("list").await;
    world.clock.advance(2 * SECOND + SECOND / 2).await;
    world.cache.restart();
    world.until("it is noticed", |world| world.metric(RESTARTS) == 1).await;
    assert!(world.status("list").running.is_some());
    world.until("a run waits behind it", |world| world.status("list").queued.len() == 1).await;
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Partial);
    world.clock.advance(10 * MINUTE).await;
    let runs = history(&world, "list").await;
    let repeated = [(Trigger::Change, Outcome::Ok), (Trigger::Request, Outcome::Partial)];
    assert_eq!(runs[..runs.len() - began], repeated);
    assert_eq!(history(&world, "other").await, ONCE_MORE);
    assert_eq!(world.cache.keys(), keys);
}

#[tokio::test]
async fn a_run_at_whose_end_the_cache_is_away_is_not_ok() {
    let setup = Setup::new([daily("list")], tenants(3));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(memory, Moody::new(Mood::Well));
    let world = watching(Setup { cache: Some(Arc::clone(&cache) as _), ..setup });
    warm(&world, 3).await;
    cache.set(Mood::Forgetful);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial, "{record:?}");
    let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
    assert_eq!((failure.kind, failure.count), (FailureKind::CacheUnavailable, 3));

    // It comes back as another process, without what the run wrote.
    cache.inner.restart();
    cache.set(Mood::Well);
    world.clock.advance(MINUTE).await;
    assert_eq!(cache.inner.keys().len(), 3);
    assert_eq!(history(&world, "list").await[0], (Trigger::Change, Outcome::Ok));
}

#[tokio::test]
async fn a_run_that_begins_after_the_restart_is_ok() {
    let world = Setup::new([daily("list")], tenants(3)).start();
    warm(&world, 3).await;
    world.cache.restart();
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.tenants.ok), (Outcome::Ok, 3));
    assert_eq!(world.metric(RESTARTS), 1);
}

#[tokio::test]
async fn a_run_for_some_tenants_that_notices_has_the_others_warmed_as_well() {
    let world = Setup::new([daily("list"), daily("other")], tenants(5)).start();
    warm(&world, 5).await;
    let keys = world.cache.keys();
    world.cache.restart();
    world.warm_some("list", &["t1"]).await;
    world.clock.advance(SECOND).await;
    assert_eq!(world.cache.keys(), keys);
    assert_eq!(history(&world, "other").await, ONCE_MORE);
}

#[tokio::test]
async fn a_server_that_does_not_tell_its_process_is_left_alone() {
    let setup = Setup::new([daily("list")], tenants(3));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(memory, Moody::new(Mood::Discreet));
    let world = watching(Setup { cache: Some(Arc::clone(&cache) as _), ..setup });
    warm(&world, 3).await;
    cache.inner.restart();
    world.clock.advance(10 * MINUTE).await;
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    assert_eq!(history(&world, "list").await, [(Trigger::Request, Outcome::Ok); 2]);
    assert_eq!(world.metric(RESTARTS), 0);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_noticed_as_soon_as_it_may_be_asked() {
    let setup = Setup::new([daily("list")], tenants(3));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(memory, Moody::new(Mood::Well));
    let server = Setup {
        cache: Some(Arc::clone(&cache) as _),
        ledger: Some(Arc::clone(&cache) as _),
        ..setup
    };
    let world = watching(server);
    warm(&world, 3).await;
    cache.set(Mood::Away);
    world.clock.advance(MINUTE).await;
    assert!(world.shows("preheat_breaker_open{server=\"cache\"} 1"));
    cache.inner.restart();
    cache.set(Mood::Well);
    world.clock.advance(6 * SECOND).await;
    assert!(world.shows("preheat_breaker_open{server=\"cache\"} 0"));
    assert_eq!(
        cache.inner.keys(),
        ids(0..3).iter().map(|id| format!("list:{id}")).collect::<Vec<_>>()
    );
    assert_eq!(history(&world, "list").await, ONCE_MORE);

    cache.set(Mood::Away);
    world.clock.advance(MINUTE).await;
    cache.set(Mood::Well);
    world.clock.advance(MINUTE).await;
    assert_eq!(world.metric(RESTARTS), 1, "one that was away and lost nothing is the same");
    assert_eq!(history(&world, "list").await.len(), 2);
}

#[tokio::test]
async fn a_server_that_restarts_all_the_time_does_not_keep_the_jobs_running() {
    let world = watched(
        [daily("list"), Job { scope: Scope::Global, keys: vec![key("fleet")], ..daily("fleet") }],
        3,
    )
    .await;
    let (before, keys) = (history(&world, "list").await.len(), world.cache.keys());
    slow_reads(&world, SECOND);
    for _ in 0..600 {
        world.cache.restart();
        world.clock.advance(SECOND / 10).await;
    }
    let most = usize::try_from(MINUTE.as_secs() / COOLDOWN.as_secs()).unwrap() + 1;
    for name in ["list", "fleet"] {
        let runs = history(&world, name).await.len() - before;
        assert!((2..=most).contains(&runs), "{runs} runs of `{name}` in a minute");
    }
    world.clock.advance(COOLDOWN * 2 + 2 * SECOND).await;
    assert_eq!(world.cache.keys(), keys, "and at last all is warm");
    let runs = history(&world, "list").await;
    assert_eq!(runs[0], (Trigger::Change, Outcome::Ok));
    world.clock.advance(10 * MINUTE).await;
    assert!(history(&world, "list").await.len() <= runs.len() + 1, "then it rests");
}

const SEVERAL: &str = "preheat_cache_several_servers";
const FLUSHES: &str = "preheat_cache_flushes_total";

#[tokio::test]
async fn several_servers_behind_one_address_are_told_once_and_no_reason_to_run_until_one_is_left() {
    for servers in [2, 5] {
        let said = Said::default();
        let _heard = said.hear();
        let setup = Setup::new([daily("list"), daily("other")], tenants(3));
        let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
        let cache = Around::with(memory, Moody::new(Mood::Well));
        let world = watching(Setup { cache: Some(Arc::clone(&cache) as _), ..setup });
        warm(&world, 3).await;
        cache.set(Mood::Several(servers));
        world.until("it shows", |world| world.metric(SEVERAL) == 1).await;
        let at_first = history(&world, "list").await.len();
        assert!(at_first <= 1 + usize::try_from(servers).unwrap(), "{at_first} runs");
        world.clock.advance(10 * SECOND).await;
        let before = history(&world, "list").await.len();
        world.clock.advance(10 * MINUTE).await;
        for name in ["list", "other"] {
            assert_eq!(history(&world, name).await.len(), before, "{name} of {servers} servers");
        }
        assert_eq!(world.warm("list").await.outcome, Outcome::Ok, "a run ends as its commands do");
        let text = said.text();
        assert_eq!(text.matches("several servers answer").count(), 1, "{text}");
        assert_eq!(world.metric(FLUSHES), 0);

        cache.set(Mood::Well);
        world.clock.advance(STEADY_FOR.saturating_sub(10 * SECOND)).await;
        assert_eq!(history(&world, "list").await.len(), before + 1);
        world.clock.advance(20 * SECOND).await;
        assert_eq!(world.metric(SEVERAL), 0);
        for (name, more) in [("list", 2), ("other", 1)] {
            let runs = history(&world, name).await;
            assert_eq!(runs.len(), before + more, "{name}: one run, as anything may be missing");
            assert_eq!(runs[0], (Trigger::Change, Outcome::Ok));
        }
        world.clock.advance(10 * MINUTE).await;
        assert_eq!(history(&world, "other").await.len(), before + 1, "then it rests");
        assert_eq!(said.text().matches("several servers answer").count(), 1);
    }
}

#[tokio::test]
async fn markers_that_only_one_of_several_servers_has_are_no_cache_that_was_emptied() {
    let setup = Setup::new([daily("list")], tenants(3));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(Arc::clone(&memory), Moody::new(Mood::Well));
    let ledger = Arc::clone(&memory) as _;
    let world =
        watching(Setup { cache: Some(Arc::clone(&cache) as _), ledger: Some(ledger), ..setup });
    warm(&world, 3).await;
    cache.set(Mood::Several(2));
    world.until("it shows", |world| world.metric(SEVERAL) == 1).await;
    for _ in 0..30 {
        memory.flush();
        world.clock.advance(LOOK_EVERY).await;
    }
    assert_eq!(world.metric(FLUSHES), 0);
}

#[tokio::test]
async fn a_worker_that_drains_neither_watches_nor_begins_anything() {
    let mut world = Setup::new([daily("list")], tenants(3)).start();
    warm(&world, 3).await;
    let watch = tokio::spawn(Arc::clone(&world.runner).watch_cache(world.stops.clone()));
    world.clock.advance(SECOND).await;
    world.stops.drain.cancel();
    watch.await.unwrap();
    world.cache.restart();
    world.ended().await;
    assert!(world.cache.keys().is_empty());
    assert_eq!(world.metric(RESTARTS), 0);
    world.tasks.abort_all();
}

#[tokio::test]
async fn hazard_42_a_cache_that_was_emptied_has_every_enabled_job_run_once() {
    let off = Job { enabled: false, ..daily("off") };
    let world = watched([daily("list"), daily("other"), off], 3).await;
    let keys = world.cache.keys();
    world.clock.advance(MINUTE).await;
    world.cache.flush();
    world.clock.advance(LOOK_EVERY + SECOND).await;
    assert_eq!(world.cache.keys(), keys);
    let known = world.runner.registry.known(world.ledger.as_ref()).await.unwrap();
    assert_eq!(known.active.len(), 3, "the registry is written anew");
    world.clock.advance(10 * MINUTE).await;
    for name in ["list", "other"] {
        assert_eq!(history(&world, name).await, ONCE_MORE, "{name}");
    }
    assert!(history(&world, "off").await.is_empty());
    assert_eq!((world.metric(FLUSHES), world.metric(RESTARTS)), (1, 0));
    world.cache.restart();
    world.clock.advance(MINUTE).await;
    assert_eq!((world.metric(FLUSHES), world.metric(RESTARTS)), (1, 1), "a restart is no flush");
}

#[tokio::test]
async fn hazard_42_evictions_of_whatever_key_are_no_reason_to_run() {
    let world = watched([daily("list")], 100).await;
    world.clock.advance(MINUTE).await;
    let own = |world: &World| {
        let all = world.cache.scan("*", 0);
        futures::FutureExt::now_or_never(all).unwrap().unwrap().keys
    };
    let markers = (0..8).map(|number| format!("preheat:marker:{number}"));
    for marker in markers.chain(["preheat:tenants".into()]) {
        assert!(own(&world).contains(&marker), "`{marker}` is there");
        world.cache.evict(&marker);
        world.clock.advance(LOOK_EVERY).await;
    }
    world.clock.advance(MINUTE).await;
    for key in own(&world) {
        world.cache.evict(&key);
    }
    world.clock.advance(MINUTE).await;
    assert_eq!((world.metric(FLUSHES), world.metric(RESTARTS)), (0, 0));
    assert_eq!(history(&world, "list").await, [(Trigger::Request, Outcome::Ok)]);
}
