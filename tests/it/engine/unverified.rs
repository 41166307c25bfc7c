//! Tenants that a run left unverified. Their values live for the provisional TTL, and their follow-ups come
//! before it ends, however long the runs of their job take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::app::follow_up::{Warmed, run_with_follow_ups};
use preheat::domain::fence::fence_key;
use preheat::domain::job::{Job, JobName};
use preheat::domain::run::Outcome;
use preheat::domain::schedule::Schedule;
use preheat::engine::ports::{Cache, CacheStats, Clock, Ledger};
use preheat::engine::run::{RunSpec, Stops};

use super::changes::{Fed, watching};
use super::ledger::{Answer, Around, Rules};
use super::{Count, MINUTE, SECOND, Setup, World, a_row_each, ids, job, many, tenants};
use crate::support::memory::MemoryCache;

/// A job with batches of one tenant, done one after another, and whose schedule does not matter.
fn slow(job: Job) -> Job {
    let schedule = Schedule::Every(Duration::from_hours(24));
    Job { schedule, batch: many(1), concurrency: Some(many(1)), ..job }
}

/// From now on each read takes a second, and while this tenant is read its data changes: its fence moves. The
/// changes stop once the returned flag is set.
fn keep_busy(world: &World, tenant: &'static str) -> Arc<AtomicBool> {
    let (clock, cache) = (world.clock.clone(), Arc::clone(&world.cache));
    let rests = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&rests);
    world.source.before_read(move |seen| {
        let is_read = seen.tenants.iter().any(|id| id == tenant);
        let moves = is_read && !told.load(Ordering::Relaxed);
        let (asleep, cache) = (clock.sleep(SECOND), Arc::clone(&cache));
        Box::pin(async move {
            asleep.await;
            if moves {
                cache.move_fences(&[fence_key(tenant)], 1 << 41).await.unwrap();
            }
            Ok(())
        })
    });
    rests
}

/// Lets this many seconds pass, and checks after each that the key exists.
async fn stays(world: &World, cache: &MemoryCache, key: &str, seconds: u32) {
    for second in 0..seconds {
        world.clock.advance(SECOND).await;
        assert!(cache.get(key).is_some(), "`{key}` is missing at second {second}");
    }
}

/// A world whose job `list` is warm.
async fn warm(job: Job, count: usize) -> World {
    let world = Setup::new([job], tenants(count)).start();
    world.set_rows("list", a_row_each(count));
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    world
}

#[tokio::test]
async fn hazard_01_a_busy_tenant_stays_cached_for_as_long_as_a_run_takes() {
    let world = warm(slow(job("list")), 40).await;
    let rests = keep_busy(&world, "t0");
    let ticket = world.ask("list").await;
    stays(&world, &world.cache, "list:t0", 30).await;
    let read = world.reads().len();
    let record = world.finish(ticket).await;
    assert!(world.reads().len() > read, "the run went on until now");
    let counts = record.report.tenants;
    assert_eq!((record.outcome, counts.ok, counts.fenced), (Outcome::Ok, 39, 1));
    stays(&world, &world.cache, "list:t0", 30).await;
    rests.store(true, Ordering::Relaxed);
    world.clock.advance(15 * SECOND).await;
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE), "verified once it stands still");
    let (read, ids) = (world.reads().len(), ids(0..40));
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), read, "and all comes to rest");
    assert!(ids.iter().all(|id| world.value(&format!("list:{id}")).is_some()));
}

#[tokio::test]
async fn hazard_01_a_busy_tenant_stays_cached_for_as_long_as_a_run_for_changes_takes() {
    let world = Fed::of(Setup::new([slow(watching("list"))], tenants(40))).await;
    let all = ids(0..40);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    world.commit("list", 2, &all);
    keep_busy(&world, "t0");
    world.tell("list", &all);
    stays(&world, &world.cache, "list:t0", 30).await;
    assert_eq!(world.value("list:t39"), Some("[]".to_owned()), "the run goes on until now");
    stays(&world, &world.cache, "list:t0", 60).await;
    assert_eq!(world.value("list:t39"), Some("[2]".to_owned()));
}

#[tokio::test]
async fn a_follow_up_does_not_wait_for_a_run_for_changes_that_was_there_before_it() {
    let world = Fed::of(Setup::new([slow(watching("list"))], tenants(40))).await;
    let all = ids(0..39);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    keep_busy(&world, "t39");
    world.tell("list", &all);
    let fenced = world.warm_some("list", &["t39"]).await;
    assert_eq!(fenced.report.tenants.fenced, 1);
    stays(&world, &world.cache, "list:t39", 30).await;
}

#[tokio::test]
async fn hazard_01_a_busy_tenant_stays_cached_when_the_run_that_left_it_does_not_end_in_time() {
    let world = warm(Job { timeout: 10 * SECOND, ..slow(job("list")) }, 5).await;
    world.source.set_tenants(tenants(40));
    keep_busy(&world, "t0");
    let ticket = world.ask("list").await;
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Timeout);
    stays(&world, &world.cache, "list:t0", 30).await;
}

/// The second run that reads the cache's stats at its end meets a defect of preheat.
#[derive(Default)]
struct Defect(Count);

impl Rules for Defect {
    fn stats<'a>(&'a self, memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        assert!(self.0.up() < 3, "this panic is the test's");
        memory.stats()
    }
}

#[tokio::test]
async fn hazard_01_a_run_that_panics_leaves_no_tenant_to_expire() {
    let setup = Setup::new([slow(job("list"))], tenants(3));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(memory, Defect::default());
    let world = Setup { cache: Some(Arc::clone(&cache) as _), ..setup }.start();
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    let rests = keep_busy(&world, "t2");
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Failed, "it panicked: {record:?}");
    stays(&world, &cache.inner, "list:t2", 30).await;
    rests.store(true, Ordering::Relaxed);
    world.clock.advance(15 * SECOND).await;
    assert_eq!(cache.inner.ttl("list:t2"), Some(30 * MINUTE));
}

/// A pass of a command over `list`, which goes on as time moves, and its result.
fn pass(world: &mut World, stops: Stops) -> Arc<Mutex<Option<Warmed>>> {
    let job = Arc::clone(&world.runner.jobs.get()[&JobName::parse("list").unwrap()]);
    let spec = RunSpec::on_request(&world.clock, &job, None);
    let (runner, ended) = (Arc::clone(&world.runner), Arc::new(Mutex::new(None)));
    let end = Arc::clone(&ended);
    world.tasks.spawn(async move {
        let warmed = run_with_follow_ups(runner, spec, stops, || {}).await;
        *end.lock().unwrap() = Some(warmed);
    });
    ended
}

#[tokio::test]
async fn hazard_01_a_busy_tenant_stays_cached_for_as_long_as_a_pass_takes() {
    let mut world = warm(slow(job("list")), 40).await;
    let rests = keep_busy(&world, "t0");
    let ended = pass(&mut world, Stops::default());
    stays(&world, &world.cache, "list:t0", 30).await;
    assert!(ended.lock().unwrap().is_none());
    rests.store(true, Ordering::Relaxed);
    world.until("the pass ends", |_| ended.lock().unwrap().is_some()).await;
    let report = ended.lock().unwrap().take().unwrap().record.report;
    assert_eq!((report.tenants.ok, report.tenants.fenced), (40, 0), "it was verified meanwhile");
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

#[tokio::test]
async fn a_pass_does_not_wait_for_ever_for_a_busy_tenant_nor_beyond_its_deadline() {
    let mut world = warm(slow(job("list")), 3).await;
    keep_busy(&world, "t0");
    let ended = pass(&mut world, Stops::default());
    let begun = world.clock.monotonic();
    world.until("the pass ends", |_| ended.lock().unwrap().is_some()).await;
    assert!(world.clock.monotonic() < begun + 30 * SECOND);
    let Warmed { record, failed } = ended.lock().unwrap().take().unwrap();
    assert_eq!((record.outcome, failed.len()), (Outcome::Ok, 0));
    assert_eq!((record.report.tenants.ok, record.report.tenants.fenced), (2, 1));

    let stops = Stops::default();
    let ended = pass(&mut world, stops.clone());
    world.clock.advance(8 * SECOND).await;
    stops.drain.cancel();
    world.clock.advance(3 * SECOND).await;
    let record = ended.lock().unwrap().take().unwrap().record;
    assert_eq!((record.report.tenants.ok, record.report.tenants.fenced), (2, 1));
}
