//! Jobs share the permits: a job that is slow or meets a lock holds up no other job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use preheat::domain::job::{Job, JobName};
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::engine::ports::{Clock, SourceErrorKind};
use preheat::engine::run::limit::Shares;

use super::changes::{Fed, watching};
use super::{Count, MINUTE, SECOND, Setup, job, many, refused, tenants};

/// A job whose file does not bound its batches in flight.
fn greedy(job: Job) -> Job {
    Job { batch: many(1), concurrency: None, ..job }
}

#[tokio::test]
async fn hazard_40_a_slow_table_holds_up_its_own_job_and_neither_other_jobs_nor_changes() {
    for permits in [3, 4, 8] {
        let jobs = [watching("products"), watching("services"), job("slots")].map(greedy);
        let world = Fed::of(Setup { concurrency: permits, ..Setup::new(jobs, tenants(20)) }).await;
        world.runner.limits.set(Shares::of_worker(permits));
        let clock = world.clock.clone();
        world.source.before_read(move |seen| {
            let asleep = clock.sleep(if seen.job.as_str() == "products" { MINUTE } else { SECOND });
            Box::pin(async move {
                asleep.await;
                Ok(())
            })
        });
        let slow = world.ask("products").await;
        world.tell("products", &["t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"]);
        world.clock.advance(SECOND).await;
        let products = JobName::parse("products").unwrap();
        assert_eq!(world.runner.limits.held()[&products], permits - 1, "all that it may hold");

        let began = world.clock.monotonic();
        world.commit("services", 2, &["t1"]);
        world.tell("services", &["t1"]);
        world.until("the change is there", |w| w.value("services:t1").is_some()).await;
        let record = world.warm_some("slots", &["t1"]).await;
        assert_eq!(record.outcome, Outcome::Ok);
        let took = world.clock.monotonic().saturating_sub(began);
        assert!(took < MINUTE / 6, "with {permits} permits: {took:?}");
        drop(slow);
    }
}

#[tokio::test]
async fn hazard_40_a_lock_is_waited_for_without_a_permit_and_splits_nothing() {
    let list = Job { retries: 1, timeout: 30 * MINUTE, ..job("list") };
    let setup = Setup::new([list, job("other")], tenants(100));
    let world = Setup { concurrency: 1, ..setup }.start();
    let (locked, tries) = (Arc::new(AtomicBool::new(true)), Count::default());
    let (is_locked, seen_tries, clock) = (Arc::clone(&locked), tries.clone(), world.clock.clone());
    world.source.before_read(move |seen| {
        let waits = seen.job.as_str() == "list" && is_locked.load(Ordering::Relaxed);
        let asleep = waits.then(|| clock.sleep(2 * SECOND));
        seen_tries.up();
        Box::pin(async move {
            let Some(asleep) = asleep else { return Ok(()) };
            asleep.await;
            Err(refused(SourceErrorKind::Locked))
        })
    });
    let waits = world.ask("list").await;
    world.until("it was tried more often than anything else is", |_| tries.now() > 8).await;
    let began = world.clock.monotonic();
    assert_eq!(world.warm("other").await.outcome, Outcome::Ok);
    assert!(world.clock.monotonic() < began + 5 * SECOND, "the permit is free between the tries");
    locked.store(false, Ordering::Relaxed);
    let record = world.finish(waits).await;
    assert_eq!((record.outcome, record.report.tenants.ok), (Outcome::Ok, 100));
    let reads = world.source.reads().into_iter().filter(|read| read.job.as_str() == "list");
    assert!(reads.into_iter().all(|read| read.tenants.len() == 100), "nothing is split");
    assert_eq!(record.report.retries, record.report.queries - 1);
}

#[tokio::test]
async fn a_run_that_a_lock_kept_until_its_deadline_says_so() {
    let world = Setup::new([job("list")], tenants(5)).start();
    world.on_read(|_| Err(refused(SourceErrorKind::Locked)));
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Timeout);
    let kinds: Vec<_> = record.report.failures.iter().map(|failure| failure.kind).collect();
    assert_eq!(kinds, [FailureKind::Locked, FailureKind::Deadline]);
    assert!(world.shows("preheat_breaker_open{server=\"database\"} 0"), "a lock is no outage");
}
