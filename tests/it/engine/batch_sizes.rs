//! Batches that have fewer tenants while their queries take too long.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use preheat::domain::job::{Job, Query, Scope};
use preheat::domain::run::Outcome;
use preheat::engine::ports::{Clock, SourceErrorKind};

use super::{SECOND, Said, Setup, World, a_row_each, ids, job, key, many, refused, tenants};

const TARGET: Duration = Duration::from_secs(2);
const TENANTS: usize = 1_600;

/// A database whose queries take some time for each tenant, in milliseconds, and a world with a job of sixteen
/// batches.
struct Slow {
    world: World,
    a_tenant: Arc<AtomicU64>,
    /// The first tenants, which take thirty seconds each.
    giants: Arc<AtomicU64>,
}

impl Slow {
    fn new(jobs: impl IntoIterator<Item = Job>) -> Self {
        let setup = Setup::new(jobs, tenants(TENANTS));
        let world = Setup { target_batch_time: Some(TARGET), ..setup }.start();
        world.set_rows("list", a_row_each(TENANTS));
        let (a_tenant, giants) = (Arc::new(AtomicU64::new(5)), Arc::new(AtomicU64::new(0)));
        let (clock, each, giant) =
            (world.clock.clone(), Arc::clone(&a_tenant), Arc::clone(&giants));
        world.source.before_read(move |seen| {
            let of = |id: &String| {
                let number: u64 = id[1..].parse().unwrap();
                let is_giant = number < giant.load(Ordering::Relaxed);
                if is_giant { 30_000 } else { each.load(Ordering::Relaxed) }
            };
            let asleep = clock.sleep(Duration::from_millis(seen.tenants.iter().map(of).sum()));
            Box::pin(async move {
                asleep.await;
                Ok(())
            })
        });
        Self { world, a_tenant, giants }
    }

    fn takes(&self, milliseconds: u64) {
        self.a_tenant.store(milliseconds, Ordering::Relaxed);
    }

    /// Runs the job once; the sizes of its batches, in the order of their reads.
    async fn run(&self) -> Vec<usize> {
        let before = self.world.reads().len();
        let record = self.world.warm("list").await;
        assert_eq!(record.outcome, Outcome::Ok, "{record:?}");
        let reads = self.world.reads().split_off(before);
        let all: BTreeSet<&String> = reads.iter().flatten().collect();
        let once: usize = reads.iter().map(Vec::len).sum();
        assert_eq!((all.len(), once), (TENANTS, TENANTS), "each tenant is read once");
        assert!(reads.iter().all(|read| read.len() <= 100), "never more than configured");
        reads.iter().map(Vec::len).collect()
    }

    fn now(&self) -> (usize, Option<String>) {
        let size = self.world.status("list").batch.now();
        assert_eq!(size.configured, many(100));
        let shown = format!("preheat_batch_tenants{{job_name=\"list\"}} {}", size.now);
        assert!(self.world.shows(&shown), "{shown}");
        (size.now.get(), size.because.map(|why| why.to_string()))
    }
}

#[tokio::test]
async fn a_step_of_the_load_makes_batches_smaller_in_the_same_run_and_they_come_back() {
    let slow = Slow::new([job("list")]);
    assert_eq!(slow.run().await, vec![100; 16]);
    assert_eq!(slow.now(), (100, None));

    slow.takes(60);
    let said = Said::default();
    let heard = said.hear();
    let sizes = slow.run().await;
    drop(heard);
    // Two batches are in flight at once; when the first one ends, the third one begins.
    assert_eq!(sizes[..6], [100, 100, 100, 50, 50, 50], "{sizes:?}");
    let rest = 25;
    assert!(sizes[6..].iter().all(|size| *size == rest), "1.5 s each: {sizes:?}");
    let (now, why) = slow.now();
    let expected = "a query for 50 tenants took 3.0 s; `runner.target_batch_time` is 2s";
    assert_eq!((now, why.as_deref()), (rest, Some(expected)));
    let expected =
        format!("the batches of job `list` now have 25 tenants instead of 100: {expected}");
    assert!(said.text().contains(&expected), "{}", said.text());

    // At rest: nothing moves.
    for _ in 0..5 {
        assert!(slow.run().await.iter().all(|size| *size == rest));
    }
    // A quarter larger after eight quick batches each.
    slow.takes(5);
    let sizes = slow.run().await;
    assert_eq!(sizes[..8], [rest; 8]);
    assert!(sizes.iter().zip(&sizes[1..]).all(|(one, next)| next <= &(one + one.div_ceil(4))));
    for _ in 0..4 {
        slow.run().await;
    }
    assert_eq!(slow.now(), (100, None));
    assert_eq!(slow.run().await, vec![100; 16]);
}

#[tokio::test]
async fn through_a_slow_drift_and_back_queries_stay_near_the_target() {
    let slow = Slow::new([job("list")]);
    for step in (0..60).chain((0..60).rev()) {
        let a_tenant = 10 + step * 2;
        slow.takes(a_tenant);
        let sizes = slow.run().await;
        let too_long = sizes.iter().filter(|size| **size as u64 * a_tenant > 2_000).count();
        // Two that say so, and those in flight with them.
        assert!(too_long <= 4, "{a_tenant} ms a tenant: {sizes:?}");
    }
    let (now, _) = slow.now();
    assert!(now >= 80, "{now}");
}

#[tokio::test]
async fn one_giant_tenant_does_not_make_all_batches_smaller() {
    let slow = Slow::new([job("list")]);
    slow.giants.store(1, Ordering::Relaxed);
    for _ in 0..10 {
        assert_eq!(slow.run().await, vec![100; 16]);
    }
    assert_eq!(slow.now(), (100, None));
}

#[tokio::test]
async fn the_configured_size_is_tried_first_for_another_query_or_size() {
    let (list, more) = (job("list"), Job { batch: many(200), ..job("list") });
    let query = Query { sql: "another".into(), ..list.query.clone() };
    let other = Job { query, ..list.clone() };
    let slow = Slow::new([list.clone()]);
    slow.takes(60);
    slow.run().await;
    assert_eq!(slow.now().0, 25);
    let sizes = |job: &Job| slow.world.runner.batch_sizes.of(job).now().now.get();
    assert_eq!(sizes(&list), 25);
    assert_eq!(sizes(&Job { ttl: SECOND, ..list }), 25, "it is the same query");
    assert_eq!(sizes(&other), 100);
    assert_eq!(sizes(&more), 200);
}

#[tokio::test]
async fn runs_for_some_tenants_use_the_size_and_do_not_change_it() {
    let slow = Slow::new([job("list")]);
    let first = ids(0..100);
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    slow.takes(60);
    for _ in 0..3 {
        slow.world.warm_some("list", &first).await;
    }
    assert_eq!(slow.now(), (100, None));
    slow.run().await;
    slow.takes(5);
    let before = slow.world.reads().len();
    for _ in 0..20 {
        slow.world.warm_some("list", &first).await;
    }
    assert!(slow.world.reads()[before..].iter().all(|read| read.len() == 25));
    assert_eq!(slow.now().0, 25);
}

#[tokio::test]
async fn an_outage_changes_no_size_and_cancelled_queries_do() {
    let slow = Slow::new([job("list")]);
    for (kind, expected) in [
        (SourceErrorKind::Unavailable, 100),
        (SourceErrorKind::Locked, 100),
        (SourceErrorKind::Data, 100),
        // Then the run gives up.
        (SourceErrorKind::Timeout, 50),
    ] {
        let clock = slow.world.clock.clone();
        slow.world.source.before_read(move |_seen| {
            let asleep = clock.sleep(10 * SECOND);
            Box::pin(async move {
                asleep.await;
                Err(refused(kind))
            })
        });
        let record = slow.world.warm("list").await;
        assert_ne!(record.outcome, Outcome::Ok);
        assert_eq!(slow.now().0, expected, "{kind:?}");
    }
}

#[tokio::test]
async fn without_a_target_each_batch_is_as_large_as_configured() {
    let setup = Setup::new([job("list")], tenants(400));
    let world = setup.start();
    super::slow_reads(&world, 20 * SECOND);
    for _ in 0..3 {
        world.warm("list").await;
    }
    assert!(world.reads().iter().all(|read| read.len() == 100));
    assert_eq!(world.status("list").batch.now().because, None);
}

#[tokio::test]
async fn a_job_without_tenants_has_no_size() {
    let fleet = Job { scope: Scope::Global, keys: vec![key("list")], ..job("list") };
    let setup = Setup::new([fleet], tenants(3));
    let world = Setup { target_batch_time: Some(TARGET), ..setup }.start();
    super::slow_reads(&world, 20 * SECOND);
    for _ in 0..3 {
        world.warm("list").await;
    }
    assert!(!world.metrics.encode().contains("preheat_batch_tenants{"));
}
