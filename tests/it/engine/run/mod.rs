//! How runs go.

mod cache_writes;
mod failing_tenants;
mod servers_away;
mod tenant_list;

use std::sync::Arc;
use std::time::Duration;

use preheat::domain::job::{DateZone, Dates, Job, Scope};
use preheat::domain::report::{BatchTime, Failure, FailureKind};
use preheat::domain::run::Outcome;
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{CacheErrorKind, Clock, SourceErrorKind};
use preheat::engine::run::limit::Priority;
use preheat::engine::schedule::handle::{JobSelection, RunRequest};

use super::{
    Count, Gauge, MINUTE, SECOND, Setup, World, a_row_each, at, cache_error, ids, job, key, many,
    ready, refused, slow_reads, tenants,
};
use crate::support::memory::MemoryRow;
use crate::support::virtual_clock::VirtualClock;

/// A world with one job for this many tenants with one row each.
fn world_of(job: Job, count: usize) -> World {
    let name = job.name.to_string();
    let world = Setup::new([job], tenants(count)).start();
    world.set_rows(&name, a_row_each(count));
    world
}

fn kinds(failures: &[Failure]) -> Vec<(FailureKind, Option<&str>, u64)> {
    failures
        .iter()
        .map(|failure| (failure.kind, failure.tenant.as_deref(), failure.count))
        .collect()
}

#[tokio::test]
async fn one_query_reads_a_batch_in_the_order_of_the_list() {
    let world = world_of(Job { batch: many(3), concurrency: Some(many(1)), ..job("list") }, 7);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(world.reads(), [ids(0..3), ids(3..6), ids(6..7)]);
    let report = &record.report;
    assert_eq!((report.queries, report.retries, report.bytes), (3, 0, 7 * 3));
    assert_eq!((report.tenants.total, report.tenants.ok, report.keys.written), (7, 7, 7));
    assert_eq!(world.value("list:t5").as_deref(), Some("[5]"));
    assert_eq!(world.cache.ttl("list:t5"), Some(30 * MINUTE));
    assert_eq!(world.cache.keys().len(), 7);
}

#[tokio::test]
async fn hazard_14_batches_in_flight_are_bounded_over_all_jobs_and_by_each_jobs_own() {
    let of_two = |name| Job { batch: many(1), concurrency: Some(many(2)), ..job(name) };
    let setup = Setup::new(["a", "b", "c"].map(of_two), tenants(10));
    let world = Setup { concurrency: 5, ..setup }.start();
    let (gauge, clock) = (Gauge::default(), world.clock.clone());
    let counted = gauge.clone();
    world.source.before_read(move |seen| {
        let (counted, asleep) = (counted.clone(), clock.sleep(SECOND));
        Box::pin(async move {
            let _in_flight = counted.enter(seen.job.as_str());
            asleep.await;
            Ok(())
        })
    });
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    for ticket in world.handle.request(all).await.unwrap() {
        assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
    }
    assert_eq!(gauge.most(""), 5, "the bound over all is kept, and reached");
    for job in ["a", "b", "c"] {
        assert_eq!(gauge.most(job), 2, "the bound of `{job}` is kept, and reached");
    }
}

#[tokio::test]
async fn hazard_12_each_tenants_dates_are_those_of_its_zone_and_one_without_fails_alone() {
    let mut list = Tenants::with_columns(["timezone"]);
    list.push("kiribati", [Some("Pacific/Kiritimati")]);
    list.push("nowhere", [Some("Mars/Olympus")]);
    list.push("samoa", [Some("Pacific/Pago_Pago")]);
    let zone = DateZone::TenantColumn("timezone".to_owned());
    let dates = Some(Dates { days: 2, zone, column: None });
    let slots = Job { keys: vec![key("slots:{tenant_id}:{date}")], dates, ..job("slots") };
    let clock = VirtualClock::new(at("2026-03-01T10:30:00Z"), 1);
    let world = Setup { clock, ..Setup::new([slots], list) }.start();
    let record = world.warm("slots").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::TimeZone, Some("nowhere"), 1)]);
    let tenants = record.report.tenants;
    assert_eq!((tenants.total, tenants.ok, tenants.failed), (3, 2, 1));
    let keys = [
        "slots:kiribati:2026-03-02",
        "slots:kiribati:2026-03-03",
        "slots:samoa:2026-02-28",
        "slots:samoa:2026-03-01",
    ];
    assert_eq!(world.cache.keys(), keys);
    let read = world.source.reads().pop().unwrap();
    assert_eq!(read.tenants, ["kiribati", "samoa"]);
    let first: Vec<_> = read.first_dates.iter().map(ToString::to_string).collect();
    assert_eq!(first, ["2026-03-02", "2026-02-28"]);
}

#[tokio::test]
async fn a_fleet_job_reads_once_whatever_the_tenants_are() {
    let fleet = Job { scope: Scope::Global, keys: vec![key("plans")], ..job("plans") };
    let world = Setup::new([fleet], tenants(5)).start();
    let lists = Count::default();
    let counted = lists.clone();
    world.source.before_tenants(move || {
        counted.up();
        ready(Ok(()))
    });
    world.set_rows("plans", vec![MemoryRow::new("", "1", []), MemoryRow::new("", "2", [])]);
    let record = world.warm("plans").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 1));
    assert_eq!((record.report.tenants.total, record.report.tenants.ok), (1, 1));
    assert_eq!(world.value("plans").as_deref(), Some("[1,2]"));
    assert_eq!(lists.now(), 0);
    world.on_read(|_| Err(refused(SourceErrorKind::Data)));
    let failed = world.warm("plans").await;
    assert_eq!((failed.outcome, failed.report.tenants.failed), (Outcome::Failed, 1));
    assert_eq!(kinds(&failed.report.failures), [(FailureKind::Query, None, 1)]);
}

#[tokio::test]
async fn hazard_26_a_run_that_hangs_ends_at_its_deadline_and_what_it_wrote_is_whole() {
    let list =
        Job { batch: many(2), concurrency: Some(many(1)), timeout: 5 * MINUTE, ..job("list") };
    let world = world_of(list, 6);
    let clock = world.clock.clone();
    world.source.before_read(move |seen| {
        let hangs = seen.tenants.contains(&"t2".to_owned());
        let clock = clock.clone();
        Box::pin(async move {
            clock.sleep(MINUTE).await;
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    });
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.duration()), (Outcome::Timeout, 5 * MINUTE));
    let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert_eq!(failure.message, "the run did not end within 5m: 4 tenants were left");
    assert_eq!((record.report.tenants.ok, record.report.tenants.left()), (2, 4));
    assert_eq!(world.cache.keys(), ["list:t0", "list:t1"]);
    let bounds: Vec<_> = world.source.reads().iter().map(|read| read.timeout).collect();
    let grace = Duration::from_secs(1);
    let expected = [5 * MINUTE + grace, 4 * MINUTE + grace];
    assert_eq!(bounds, expected, "the server gives up right after the run, and not before it");
    world.source.before_read(|_| ready(Ok(())));
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok, "its permit came back");
}

#[tokio::test]
async fn a_panic_in_a_port_fails_what_it_was_asked_for_and_nothing_else() {
    let world = world_of(Job { batch: many(2), concurrency: Some(many(1)), ..job("list") }, 6);
    world.source.before_read(|seen| {
        assert!(!seen.tenants.contains(&"t3".to_owned()), "a defect, on purpose");
        ready(Ok(()))
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Internal, Some("t2"), 2)]);
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (4, 2));

    world.source.before_read(|_| ready(Ok(())));
    world.source.before_tenants(|| panic!("a defect, on purpose"));
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Failed);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Internal, None, 1)]);

    world.source.before_tenants(|| ready(Ok(())));
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn hazard_16_a_run_that_ends_after_keys_may_have_expired_says_that_it_was_late() {
    let slow = Job { timeout: 60 * MINUTE, ..job("list") };
    let world = world_of(slow, 2);
    assert!(!world.warm("list").await.report.late, "there was none before it");
    world.clock.advance(10 * MINUTE).await;
    assert!(!world.warm("list").await.report.late);
    slow_reads(&world, 31 * MINUTE);
    assert!(world.warm("list").await.report.late, "its keys lived for thirty minutes");
}

#[tokio::test]
async fn a_run_after_partial_ones_is_not_late() {
    let world = world_of(Job { batch: many(1), ..job("list") }, 2);
    world.on_read(
        |tenants| {
            if tenants == ["t1"] { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
        },
    );
    for _ in 0..6 {
        let record = world.warm("list").await;
        assert_eq!((record.outcome, record.report.late), (Outcome::Partial, false));
        world.clock.advance(10 * MINUTE).await;
    }
}

#[tokio::test]
async fn progress_grows_to_the_whole_while_a_run_goes_on() {
    let world = world_of(Job { batch: many(2), concurrency: Some(many(1)), ..job("list") }, 6);
    slow_reads(&world, MINUTE);
    let ticket = world.ask("list").await;
    let progress = Arc::clone(&ticket.run.progress);
    let mut seen = vec![progress.now().tenants_done];
    for _ in 0..3 {
        world.clock.advance(MINUTE).await;
        seen.push(progress.now().tenants_done);
    }
    assert_eq!(seen, [0, 2, 4, 6]);
    let now = progress.now();
    assert_eq!((now.tenants_total, now.keys, now.bytes), (6, 6, 18));
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_report_says_where_the_time_of_the_batches_went() {
    let list = Job { batch: many(1), concurrency: Some(many(1)), ..job("list") };
    let world = Setup { concurrency: 1, ..Setup::new([list], tenants(2)) }.start();
    world.set_rows("list", a_row_each(2));
    slow_reads(&world, 3 * SECOND);
    let held = world.runner.limits.batch(Priority::Regular).await;
    let (clock, tries) = (world.clock.clone(), Count::default());
    world.cache.before_write(move |_| {
        let asleep = clock.sleep(SECOND);
        let fails = tries.up() == 0;
        Box::pin(async move {
            asleep.await;
            if fails { Err(cache_error(CacheErrorKind::Transient)) } else { Ok(()) }
        })
    });
    let ticket = world.ask("list").await;
    world.clock.advance(2 * SECOND).await;
    drop(held);
    world.clock.advance(MINUTE).await;
    let report = &world.finish(ticket).await.report;
    assert_eq!((report.tenants.ok, report.retries), (2, 1));
    let BatchTime { permit, encode, cache, retry } = report.time;
    assert_eq!(report.database, 6 * SECOND, "one read each");
    assert_eq!(cache, 3 * SECOND, "three writes; the wait before the second try is no part of it");
    assert!(retry > Duration::ZERO && retry < SECOND, "{retry:?}");
    assert_eq!(permit, 2 * SECOND, "somebody else had the only one");
    assert_eq!(encode, Duration::ZERO, "no time passes while a value is put together");
}
