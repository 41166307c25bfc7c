//! A cache that answers every read and refuses every write: runs then do not read the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use preheat::domain::job::Job;
use preheat::domain::run::Outcome;
use preheat::engine::ports::{CacheErrorKind, Clock};

use super::changes::{Fed, watching};
use super::{
    Count, MINUTE, SECOND, Setup, World, a_row_each, cache_error, job, many, ready, tenants,
};

/// The longest wait for the next run while the cache refuses all writes.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// Refuses every write from now on, while the returned flag is set.
fn refuse_writes(world: &World, kind: CacheErrorKind) -> Arc<AtomicBool> {
    let refuses = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&refuses);
    world.cache.refuse(move |_| told.load(Ordering::Relaxed).then(|| cache_error(kind)));
    refuses
}

/// Counts the reads of tenant lists from now on.
fn count_lists(world: &World) -> Count {
    let lists = Count::default();
    let counted = lists.clone();
    world.source.before_tenants(move || {
        counted.up();
        ready(Ok(()))
    });
    lists
}

#[tokio::test]
async fn a_cache_that_refuses_all_writes_is_no_reason_to_read_the_database_again_and_again() {
    for kind in [CacheErrorKind::Full, CacheErrorKind::ReadOnly, CacheErrorKind::Moved] {
        let list = Job { batch: many(10), ..job("list") };
        let mut world = Setup::new([list, job("other")], tenants(1_000)).start();
        world.tasks.spawn(Arc::clone(&world.runner).watch_cache(world.stops.clone()));
        world.set_rows("list", a_row_each(1_000));
        assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
        world.clock.advance(SECOND).await;

        // All jobs are due for all tenants, at once and by their schedules.
        let (refuses, lists, reads) =
            (refuse_writes(&world, kind), count_lists(&world), world.reads().len());
        world.cache.restart();
        world.clock.advance(35 * MINUTE).await;
        let (reads, lists) = (world.reads().len() - reads, lists.now());
        assert!(reads <= 6, "{reads} of 110 batches a pass for {kind:?}");
        assert!(lists <= 4, "{lists} lists for {kind:?}");
        let run = world.status("list").last_run.unwrap();
        assert_eq!(run.outcome, Outcome::Failed);
        assert_eq!(run.report.failures[0].kind, kind.failure_kind());

        refuses.store(false, Ordering::Relaxed);
        world.clock.advance(LONGEST_WAIT + SECOND).await;
        assert_eq!(world.cache.keys().len(), 2_000, "{kind:?}");
    }
}

#[tokio::test]
async fn a_change_that_the_cache_does_not_take_is_warm_soon_after_it_takes_writes_again() {
    let world = Fed::of(Setup::new([watching("list")], tenants(100))).await;
    let (refuses, lists) = (refuse_writes(&world, CacheErrorKind::Full), count_lists(&world));
    world.commit("list", 2, &["t7"]);
    let before = world.reads().len();
    for _ in 0..20 {
        world.tell("list", &["t7"]);
        world.clock.advance(MINUTE).await;
    }
    let reads = world.reads().len() - before;
    assert!(reads <= 2 && lists.now() <= 2, "{reads} reads, {} lists", lists.now());
    refuses.store(false, Ordering::Relaxed);
    world.clock.advance(LONGEST_WAIT).await;
    assert_eq!(world.value("list:t7").as_deref(), Some("[2]"));
    let told_at = world.clock.monotonic();
    world.commit("list", 3, &["t7"]);
    world.tell("list", &["t7"]);
    world.until("the next change", |world| world.value("list:t7").as_deref() == Some("[3]")).await;
    assert!(world.clock.monotonic() < told_at + SECOND, "and the next one at once");
}

#[tokio::test]
async fn a_cache_that_refuses_one_key_is_written_all_others() {
    let world = Setup::new([Job { batch: many(1), ..job("list") }], tenants(20)).start();
    world.set_rows("list", a_row_each(20));
    world.cache.refuse(|key| (key == "list:t3").then(|| cache_error(CacheErrorKind::Permission)));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.tenants.ok), (Outcome::Partial, 19));
}
