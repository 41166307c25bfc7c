//! How runs go.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::domain::change::{Changed, Touched};
use preheat::domain::job::{DateZone, Dates, Job, JobName, Scope};
use preheat::domain::report::{Failure, FailureKind};
use preheat::domain::run::Outcome;
use preheat::domain::tenant::{TenantId, Tenants};
use preheat::engine::ports::{CacheErrorKind, CacheStats, Clock, SourceErrorKind};
use preheat::engine::schedule::handle::{JobSelection, RunRequest, RunView, Ticket};
use tokio::sync::Barrier;

use super::ledger::{Answer, Around, CacheCall, Call, Rules};
use super::{
    Count, Gauge, MINUTE, SECOND, Said, Setup, World, a_row_each, at, cache_error, ids, job, key,
    many, ready, refused, slow_reads, start, tenants,
};
use crate::support::memory::{MemoryCache, MemoryRow};
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
async fn a_list_that_was_begun_before_another_one_and_ends_after_it_is_of_the_past() {
    let world = Setup::new(["early", "late", "third"].map(job), tenants(3)).start();
    let (lists, clock) = (Count::default(), world.clock.clone());
    let count = lists.clone();
    world.source.before_tenants(move || {
        // The first reading takes so long that the next run begins its own.
        let asleep = (count.up() == 0).then(|| clock.sleep(10 * SECOND));
        Box::pin(async move {
            if let Some(asleep) = asleep {
                asleep.await;
            }
            Ok(())
        })
    });
    let early = world.ask("early").await;
    world.clock.advance(7 * SECOND).await;
    world.source.set_tenants(tenants(4));
    world.warm("late").await;
    world.source.set_tenants(tenants(3));
    world.finish(early).await;
    world.source.set_tenants(tenants(4));
    assert_eq!(lists.now(), 2);

    let changed = Touched::Tenants([TenantId::new("t3")].into());
    let jobs = [(JobName::parse("third").unwrap(), changed)].into();
    world.handle.changed(Changed::Jobs { jobs, heard_at: world.clock.monotonic() }).await;
    world.clock.advance(SECOND).await;
    assert!(world.value("third:t3").is_some());
    assert_eq!(lists.now(), 3, "its small query says no other thing than the latest list");
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
async fn hazard_27_one_bad_tenant_of_a_hundred_is_named_and_all_others_are_warm() {
    let world = world_of(job("list"), 100);
    world.on_read(|tenants| {
        if tenants.contains(&"t42".to_owned()) {
            return Err(refused(SourceErrorKind::Data));
        }
        Ok(())
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    let expected = Failure {
        kind: FailureKind::Query,
        tenant: Some("t42".to_owned()),
        key: None,
        message: "the query failed: Data".to_owned(),
        count: 1,
    };
    assert_eq!(record.report.failures, [expected]);
    let tenants = record.report.tenants;
    assert_eq!((tenants.total, tenants.ok, tenants.failed), (100, 99, 1));
    assert_eq!(record.report.keys.written, 99);
    assert_eq!(world.value("list:t42"), None);
    assert_eq!(world.value("list:t43").as_deref(), Some("[43]"));
    // Two for each halving of the batch, and the batch itself.
    assert!(record.report.queries <= 15, "{} queries", record.report.queries);
    assert_eq!(world.status("list").last_success_at, None);
    assert!(
        world.shows("preheat_runs_total{job=\"list\",trigger=\"request\",outcome=\"partial\"} 1")
    );
}

#[tokio::test]
async fn a_query_that_works_for_nobody_is_given_up_after_a_few_tenants() {
    for concurrency in [1, 4] {
        let world = world_of(Job { concurrency: Some(many(concurrency)), ..job("list") }, 1_000);
        world.on_read(|_| Err(refused(SourceErrorKind::Data)));
        let record = world.warm("list").await;
        assert_eq!(record.outcome, Outcome::Failed);
        assert_eq!(record.report.tenants.failed, 1_000);
        assert_eq!(
            kinds(&record.report.failures),
            [(FailureKind::Query, Some("t0"), 1_000)],
            "each tenant is counted as failed, of the one cause"
        );
        let most = 16 * 2 + 8 * concurrency as u64;
        assert!(record.report.queries <= most, "{} queries", record.report.queries);
        assert!(world.cache.keys().is_empty());
    }
}

#[tokio::test]
async fn many_bad_neighbours_do_not_give_up_a_query_that_works_for_others() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 60);
    let bad: BTreeSet<String> = ids(15..45).into_iter().collect();
    world.on_read(move |tenants| {
        let any_bad = tenants.iter().any(|id| bad.contains(id));
        if any_bad { Err(refused(SourceErrorKind::Encoding)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (30, 30));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Encoding, Some("t15"), 30)]);
}

#[tokio::test]
async fn a_database_that_is_too_slow_for_single_tenants_is_left_alone() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 200);
    let first = Count::default();
    world.on_read(
        move |_| {
            if first.up() == 0 { Ok(()) } else { Err(refused(SourceErrorKind::Timeout)) }
        },
    );
    let record = world.warm("list").await;
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (10, 190));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::StatementTimeout, Some("t10"), 190)]);
    assert!(record.report.queries < 50, "{} queries", record.report.queries);
}

#[tokio::test]
async fn slow_tenants_among_others_do_not_give_the_run_up() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 400);
    let slow: BTreeSet<String> = (0..400).step_by(10).map(|number| format!("t{number}")).collect();
    world.on_read(move |tenants| {
        let any_slow = tenants.iter().any(|id| slow.contains(id));
        if any_slow { Err(refused(SourceErrorKind::Timeout)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (360, 40));
}

#[tokio::test]
async fn a_query_that_is_wrong_is_sent_once() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 100);
    world.on_read(|_| Err(refused(SourceErrorKind::Definition)));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Failed, 1));
    assert_eq!(record.report.tenants.failed, 100);
    let progress = record.report.tenants;
    assert_eq!(progress.left(), 0);
}

#[tokio::test]
async fn hazard_10_a_row_of_another_tenant_fails_its_whole_batch_and_no_other() {
    let world = world_of(Job { batch: many(3), concurrency: Some(many(1)), ..job("list") }, 9);
    world.on_read(|tenants| {
        if tenants.contains(&"t4".to_owned()) {
            return Err(refused(SourceErrorKind::Foreign));
        }
        Ok(())
    });
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Partial, 3));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::ForeignRow, Some("t3"), 3)]);
    let keys: Vec<_> = ids(0..3).into_iter().chain(ids(6..9)).collect();
    assert_eq!(world.cache.keys(), keys.iter().map(|id| format!("list:{id}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn hazard_20_a_giant_is_split_off_and_read_alone_with_all_the_room() {
    let other = Job { batch: many(1), ..job("other") };
    let setup =
        Setup::new([Job { concurrency: Some(many(1)), ..job("list") }, other], tenants(100));
    let world = Setup { concurrency: 3, ..setup }.start();
    let mut rows = a_row_each(100);
    let megabyte = format!("\"{}\"", "x".repeat(1024 * 1024));
    rows.extend((0..10).map(|_| MemoryRow::new("t42", &megabyte, [])));
    world.set_rows("list", rows);
    let (gauge, clock) = (Gauge::default(), world.clock.clone());
    let (counted, beside) = (gauge.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen_beside = Arc::clone(&beside);
    world.source.before_read(move |seen| {
        let (counted, clock, beside) = (counted.clone(), clock.clone(), Arc::clone(&seen_beside));
        Box::pin(async move {
            let _in_flight = counted.enter(seen.job.as_str());
            clock.sleep(SECOND).await;
            if seen.tenants == ["t42"] {
                beside.lock().unwrap().push(counted.now());
            }
            Ok(())
        })
    });
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    let mut tickets = world.handle.request(all).await.unwrap();
    let other = tickets.pop().unwrap();
    let record = world.finish(tickets.pop().unwrap()).await;
    assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report.failures);
    assert_eq!(record.report.keys.written, 100);
    assert_eq!(world.value("list:t42").unwrap().len(), 10 * (megabyte.len() + 1) + 4);
    // The read that ran out of room went beside others; the read with all the room did not.
    assert_eq!(beside.lock().unwrap().last(), Some(&1));
    assert!(gauge.most("") > 1);
    assert_eq!(world.finish(other).await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_tenant_that_is_too_large_for_all_the_room_fails_alone() {
    let world = world_of(Job { batch: many(2), ..job("list") }, 2);
    world.on_read(|tenants| {
        let giant = tenants.contains(&"t1".to_owned());
        if giant { Err(refused(SourceErrorKind::TooLarge)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::TooManyRows, Some("t1"), 1)]);
    assert_eq!(world.reads(), [ids(0..2), ids(0..1), ids(1..2), ids(1..2)]);
}

#[tokio::test]
async fn what_fails_for_a_reason_that_passes_is_tried_again_as_often_as_the_job_says() {
    for (fails, outcome) in [(2, Outcome::Ok), (3, Outcome::Failed)] {
        let world = world_of(Job { retries: 2, ..job("list") }, 3);
        let tries = Count::default();
        let counted = tries.clone();
        world.on_read(move |_| {
            if counted.up() < fails { Err(refused(SourceErrorKind::Transient)) } else { Ok(()) }
        });
        let record = world.warm("list").await;
        assert_eq!(record.outcome, outcome);
        assert_eq!((record.report.retries, record.report.queries), (2, 3));
        assert_eq!(tries.now(), 3);
        assert!(record.duration() > Duration::ZERO, "it waited between its tries");
        assert!(world.shows("preheat_batch_retries_total{job=\"list\"} 2"));
    }
}

#[tokio::test]
async fn a_batch_that_waits_to_be_tried_again_keeps_no_other_from_the_database() {
    let setup = Setup::new([job("broken"), job("good")], tenants(3));
    let world = Setup { concurrency: 1, ..setup }.start();
    world.source.before_read(|seen| {
        let broken = seen.job.as_str() == "broken";
        ready(if broken { Err(refused(SourceErrorKind::Transient)) } else { Ok(()) })
    });
    let broken = world.ask("broken").await;
    world.settle().await;
    let waits_since = world.clock.monotonic();
    let good = world.ask("good").await;
    world.settle().await;
    let good = good.finished().await.unwrap();
    assert_eq!((good.outcome, world.clock.monotonic()), (Outcome::Ok, waits_since));
    assert_eq!(world.finish(broken).await.outcome, Outcome::Failed);
}

/// The database is away until this moment.
fn away_until(world: &World, back: Duration) {
    let clock = world.clock.clone();
    world.on_read(move |_| {
        if clock.monotonic() < back { Err(refused(SourceErrorKind::Unavailable)) } else { Ok(()) }
    });
}

const OPEN: &str = "preheat_breaker_open{server=\"database\"} 1";
const CLOSED: &str = "preheat_breaker_open{server=\"database\"} 0";

#[tokio::test]
async fn a_run_outlives_a_restart_of_the_database_and_asks_it_seldom_meanwhile() {
    let world = world_of(Job { batch: many(5), concurrency: Some(many(4)), ..job("list") }, 100);
    away_until(&world, 4 * SECOND);
    let ticket = world.ask("list").await;
    world.until("the breaker opens", |world| world.shows(OPEN)).await;
    let asked = world.reads().len();
    world.clock.advance(4 * SECOND).await;
    assert!(asked <= 6, "{asked} queries opened it");
    assert_eq!(world.reads().len(), asked, "an open breaker lets nothing through");
    let record = world.finish(ticket).await;
    assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report);
    assert_eq!(record.report.tenants.ok, 100);
    assert!(world.shows(CLOSED));
    assert!(record.duration() < 8 * SECOND, "the first answer woke all others");
}

#[tokio::test]
async fn the_first_answer_of_a_database_that_is_back_wakes_all_who_wait() {
    let world = world_of(Job { batch: many(1), concurrency: Some(many(3)), ..job("list") }, 3);
    let clock = world.clock.clone();
    world.source.before_read(move |_| {
        let clock = clock.clone();
        Box::pin(async move {
            if clock.monotonic() < 2 * SECOND {
                return Err(refused(SourceErrorKind::Unavailable));
            }
            clock.sleep(SECOND).await;
            Ok(())
        })
    });
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 3 + 3));
    // The pause, one try, and then all others at once, without another pause.
    assert!(record.duration() < 8 * SECOND, "{:?}", record.duration());
}

#[tokio::test]
async fn a_run_gives_up_a_database_that_stays_away_and_the_next_one_finds_it_back() {
    let world = world_of(Job { batch: many(5), concurrency: Some(many(4)), ..job("list") }, 1_000);
    away_until(&world, MINUTE);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Failed);
    assert_eq!(record.report.tenants.failed, 1_000);
    assert_eq!(record.report.failures.len(), 1);
    assert!(record.report.queries < 12, "{} queries", record.report.queries);
    assert!(record.duration() < 30 * SECOND, "{:?}", record.duration());
    assert!(world.shows(OPEN));
    world.clock.advance(MINUTE).await;
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    assert!(world.shows(CLOSED));
}

/// A world in which the three batches of job `first` hold all permits for a second and then find the database
/// down. A hundred batches of job `list` wait behind them and have asked nothing. After this many more
/// questions the database is back.
async fn a_hundred_left_alone(retries: u32, in_vain: usize) -> (World, Ticket) {
    let first = Job { batch: many(1), concurrency: Some(many(3)), retries: 0, ..job("first") };
    let list = Job { batch: many(1), concurrency: Some(many(100)), retries, ..job("list") };
    let setup = Setup::new([first, list], tenants(100));
    let world = Setup { concurrency: 3, ..setup }.start();
    let (clock, asked, together) =
        (world.clock.clone(), Count::default(), Arc::new(Barrier::new(3)));
    world.source.before_read(move |seen| {
        let (asleep, together) = (clock.sleep(SECOND), Arc::clone(&together));
        let is_first = seen.job.as_str() == "first";
        let is_back = !is_first && asked.up() >= in_vain;
        Box::pin(async move {
            if is_first {
                asleep.await;
                together.wait().await;
            }
            if is_back { Ok(()) } else { Err(refused(SourceErrorKind::Unavailable)) }
        })
    });
    let first = world.ask_for("first", Some(&["t0", "t1", "t2"])).await;
    world.settle().await;
    let list = world.ask("list").await;
    world.settle().await;
    let record = world.finish(first).await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Failed, 3));
    assert!(world.shows(OPEN));
    (world, list)
}

#[tokio::test]
async fn being_left_alone_is_no_try_of_a_batch() {
    let (world, list) = a_hundred_left_alone(1, 1).await;
    let record = world.finish(list).await;
    assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report);
    assert_eq!(record.report.tenants.ok, 100);
    assert_eq!(record.report.retries, 1, "of the one that asked in vain");
    assert_eq!(record.report.queries, 1 + 100);
    assert!(world.shows("preheat_batch_retries_total{job=\"list\"} 1"));
}

#[tokio::test]
async fn what_is_left_alone_waits_for_a_server_no_longer_than_its_own_tries_would_take() {
    for retries in 0..4 {
        let (world, list) = a_hundred_left_alone(retries, usize::MAX).await;
        let record = world.finish(list).await;
        assert_eq!(record.outcome, Outcome::Failed);
        assert_eq!(record.report.tenants.failed, 100);
        let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
        assert_eq!((failure.kind, failure.count), (FailureKind::DatabaseUnavailable, 100));
        assert_eq!(record.report.queries, u64::from(retries) + 1, "one question a pause");
    }
}

#[tokio::test]
async fn a_run_that_starts_while_the_database_is_left_alone_waits_for_it_without_a_retry() {
    let world =
        Setup::new([job("first"), job("list")].map(|job| Job { retries: 0, ..job }), tenants(5));
    let world = world.start();
    world.source.before_tenants(|| ready(Err(refused(SourceErrorKind::Unavailable))));
    for _ in 0..3 {
        assert_eq!(world.warm("first").await.outcome, Outcome::Failed);
    }
    assert!(world.shows(OPEN));
    world.source.before_tenants(|| ready(Ok(())));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.retries), (Outcome::Ok, 0), "{:?}", record.report);
}

#[tokio::test]
async fn a_write_that_the_cache_is_not_asked_for_is_no_try() {
    let first = Job { batch: many(1), concurrency: Some(many(3)), retries: 0, ..job("first") };
    let list = Job { retries: 0, ..job("list") };
    let world = Setup::new([first, list], tenants(3)).start();
    world.set_rows("list", a_row_each(3));
    let clock = world.clock.clone();
    world.source.before_read(move |seen| {
        let is_first = seen.job.as_str() == "first";
        let asleep = clock.sleep(if is_first { Duration::ZERO } else { SECOND });
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let list = world.ask("list").await;
    world.settle().await;
    world.ledger.before(|call| {
        let is_away = call == Call::Fences;
        ready(if is_away { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    assert_eq!(world.warm("first").await.outcome, Outcome::Failed);
    world.ledger.before(|_| ready(Ok(())));
    assert!(world.shows("preheat_breaker_open{server=\"cache\"} 1"));
    assert!(world.clock.monotonic() < SECOND, "the other still reads");
    let record = world.finish(list).await;
    assert_eq!((record.outcome, record.report.retries), (Outcome::Ok, 0), "{:?}", record.report);
    assert_eq!(world.value("list:t1").as_deref(), Some("[1]"));
}

#[tokio::test]
async fn hazard_05_a_failed_read_writes_nothing_and_removes_nothing() {
    let world = world_of(job("list"), 3);
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    world.set_rows("list", vec![MemoryRow::new("t0", "\"new\"", [])]);
    let errors = [
        SourceErrorKind::Data,
        SourceErrorKind::Definition,
        SourceErrorKind::Foreign,
        SourceErrorKind::TooLarge,
        SourceErrorKind::Timeout,
        SourceErrorKind::Encoding,
        SourceErrorKind::Transient,
        SourceErrorKind::Unavailable,
    ];
    for kind in errors {
        world.on_read(move |_| Err(refused(kind)));
        assert_eq!(world.warm("list").await.outcome, Outcome::Failed, "{kind:?}");
        for number in 0..3 {
            let value = world.value(&format!("list:t{number}"));
            assert_eq!(value, Some(format!("[{number}]")), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn what_the_cache_says_of_each_key_is_told_apart() {
    let world = world_of(job("list"), 8);
    let refusals = [
        (CacheErrorKind::Full, FailureKind::CacheFull),
        (CacheErrorKind::ReadOnly, FailureKind::CacheReadOnly),
        (CacheErrorKind::Moved, FailureKind::CacheMoved),
        (CacheErrorKind::WrongType, FailureKind::CacheWrongType),
        (CacheErrorKind::Permission, FailureKind::CachePermission),
        (CacheErrorKind::Refused, FailureKind::CacheRefused),
    ];
    world.cache.refuse(move |key| {
        let number: usize = key.strip_prefix("list:t").unwrap().parse().unwrap();
        refusals.get(number).map(|(kind, _)| cache_error(*kind))
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(record.report.retries, 0, "none of these passes");
    let found: Vec<_> = record.report.failures.iter().map(|failure| failure.kind).collect();
    assert_eq!(found, refusals.map(|(_, kind)| kind));
    let first = &record.report.failures[0];
    assert_eq!((first.tenant.as_deref(), first.key.as_deref()), (Some("t0"), Some("list:t0")));
    let (keys, tenants) = (record.report.keys, record.report.tenants);
    assert_eq!((keys.written, keys.failed, tenants.ok, tenants.failed), (2, 6, 2, 6));
    assert_eq!(world.cache.keys(), ["list:t6", "list:t7"]);
}

#[tokio::test]
async fn a_full_cache_keeps_what_it_has_and_the_run_says_so() {
    let world = world_of(Job { concurrency: Some(many(1)), ..job("list") }, 10);
    world.cache.set_maxmemory(40);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::CacheFull, Some("t4"), 6)]);
    assert_eq!(world.cache.keys().len(), 4);
}

#[tokio::test]
async fn a_run_outlives_a_restart_of_the_cache() {
    let world = world_of(Job { batch: many(5), concurrency: Some(many(2)), ..job("list") }, 40);
    let clock = world.clock.clone();
    world.cache.before_write(move |_| {
        let away = clock.monotonic() < 4 * SECOND;
        ready(if away { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report);
    assert_eq!(record.report.queries, 8, "rows are read once, however often they are written");
    assert_eq!(world.cache.keys().len(), 40);
}

#[tokio::test]
async fn rows_are_not_read_for_a_cache_that_stays_away() {
    let world = world_of(Job { batch: many(5), concurrency: Some(many(2)), ..job("list") }, 1_000);
    world.cache.before_write(|_| ready(Err(cache_error(CacheErrorKind::Unavailable))));
    world.ledger.before(|_| ready(Err(cache_error(CacheErrorKind::Unavailable))));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Failed, 0));
    assert_eq!(kinds(&record.report.failures)[0].0, FailureKind::CacheUnavailable);
    assert!(world.shows("preheat_breaker_open{server=\"cache\"} 1"));
    assert!(world.shows(CLOSED), "the database is well");
}

#[tokio::test]
async fn while_the_cache_counts_as_down_no_job_reads_rows_for_it() {
    let world = Setup::new([job("first"), job("second")], tenants(3)).start();
    let clock = world.clock.clone();
    world.cache.before_write(move |_| {
        let away = clock.monotonic() < 4 * SECOND;
        ready(if away { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    let first = world.ask("first").await;
    world
        .until("the breaker opens", |world| world.shows("preheat_breaker_open{server=\"cache\"} 1"))
        .await;
    let asked = world.reads().len();
    let second = world.ask("second").await;
    world.clock.advance(3 * SECOND).await;
    assert_eq!(world.reads().len(), asked);
    for ticket in [first, second] {
        assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
    }
}

#[tokio::test]
async fn hazard_19_a_value_that_is_too_large_is_removed_and_the_rest_is_written() {
    let mut list = job("list");
    list.encoding.max_bytes = 100;
    let world = world_of(list, 3);
    world.warm("list").await;
    let large = format!("\"{}\"", "x".repeat(200));
    world.set_rows("list", vec![MemoryRow::new("t1", &large, [])]);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::ValueTooLarge, Some("t1"), 1)]);
    let keys = record.report.keys;
    assert_eq!((keys.written, keys.removed, keys.failed), (2, 1, 1));
    assert_eq!(world.value("list:t0").as_deref(), Some("[]"));
    assert_eq!(world.value("list:t1"), None);
}

#[tokio::test]
async fn hazard_12_each_tenants_dates_are_those_of_its_zone_and_one_without_fails_alone() {
    let mut list = Tenants::with_columns(["timezone"]);
    list.push("kiribati", [Some("Pacific/Kiritimati")]);
    list.push("nowhere", [Some("Mars/Olympus")]);
    list.push("samoa", [Some("Pacific/Pago_Pago")]);
    let zone = DateZone::TenantColumn("timezone".to_owned());
    let dates = Some(Dates { days: 2, zone });
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
    let fleet = Job { scope: Scope::Fleet, keys: vec![key("plans")], ..job("plans") };
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
async fn the_tenant_list_is_read_once_for_runs_that_start_together() {
    let setup = Setup::new(["a", "b", "c"].map(job), tenants(5));
    let world = setup.start();
    let (lists, clock) = (Count::default(), world.clock.clone());
    let counted = lists.clone();
    world.source.before_tenants(move || {
        counted.up();
        let asleep = clock.sleep(10 * SECOND);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let all = || RunRequest { jobs: JobSelection::All, tenants: None };
    let first = world.handle.request(all()).await.unwrap();
    world.clock.advance(5 * SECOND).await;
    assert_eq!(lists.now(), 1);
    let late = world.ask_for("a", Some(&["t1"])).await;
    for ticket in first {
        assert_eq!(world.finish(ticket).await.report.tenants.ok, 5);
    }
    assert_eq!(world.finish(late).await.report.tenants.ok, 1);
    assert_eq!(lists.now(), 2, "a run reads a list that began after it was asked for");
}

#[tokio::test]
async fn hazard_26_a_reading_of_the_tenant_list_that_hangs_takes_no_later_run_with_it() {
    let world = Setup::new(["busy", "hangs"].map(job), tenants(1)).start();
    let lists = Count::default();
    world.source.before_tenants(move || {
        if lists.up() == 1 { Box::pin(std::future::pending()) } else { ready(Ok(())) }
    });
    slow_reads(&world, 10 * SECOND);
    let busy = world.ask("busy").await;
    world.clock.advance(SECOND).await;
    let queued = world.ask("busy").await;
    world.clock.advance(SECOND).await;
    let hangs = world.ask("hangs").await;
    assert_eq!(world.finish(busy).await.outcome, Outcome::Ok);
    // It was requested before that reading began, and started while the reading hangs.
    assert_eq!(world.finish(queued).await.outcome, Outcome::Ok);
    assert_eq!(world.finish(hangs).await.outcome, Outcome::Timeout);
}

#[tokio::test]
async fn a_tenant_list_that_cannot_be_read_fails_the_run_and_touches_no_key() {
    let world = world_of(Job { retries: 1, ..job("list") }, 3);
    world.warm("list").await;
    world.source.before_tenants(|| ready(Err(refused(SourceErrorKind::Unavailable))));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.retries), (Outcome::Failed, 1));
    let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
    assert_eq!(failure.kind, FailureKind::Tenants);
    assert_eq!(failure.message, "the query failed: Unavailable");
    assert_eq!(world.cache.keys().len(), 3);
    world.source.before_tenants(|| ready(Ok(())));
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_tenant_that_the_list_names_twice_is_warmed_once() {
    let mut list = tenants(2);
    list.push("t0", [Some("UTC")]);
    let world = Setup::new([job("list")], list).start();
    world.set_rows("list", a_row_each(2));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.tenants.total), (Outcome::Ok, 2));
    assert_eq!(world.reads(), [ids(0..2)]);
    assert_eq!(world.value("list:t0").as_deref(), Some("[0]"));
}

#[tokio::test]
async fn without_tenants_a_run_is_ok_and_does_nothing() {
    let world = world_of(job("list"), 0);
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 0));
}

#[tokio::test]
async fn a_run_for_some_tenants_warms_them_and_says_which_are_not_there() {
    let world = world_of(Job { batch: many(2), ..job("list") }, 10);
    let record = world.warm_some("list", &["t7", "t1", "gone\n", "t7", "t4", "gone\n"]).await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Tenants, Some("gone\n"), 1)]);
    let message = "tenant `gone\\n` is not among the active tenants";
    assert_eq!(record.report.failures[0].message, message);
    let tenants = record.report.tenants;
    assert_eq!((tenants.total, tenants.ok, tenants.failed), (4, 3, 1));
    assert_eq!(world.cache.keys(), ["list:t1", "list:t4", "list:t7"]);
    let status = world.status("list");
    assert_eq!(status.last_success_at, None, "the job is not warm by that");
    let only = world.warm_some("list", &["t2"]).await;
    assert_eq!(only.outcome, Outcome::Ok);
    assert_eq!(world.status("list").last_success_at, None);
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

/// A cache that evicts keys at every write.
struct Evicting {
    evicted: AtomicU64,
    silent: AtomicBool,
}

impl Rules for Evicting {
    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        if let CacheCall::Write(entries) = call {
            self.evicted.fetch_add(entries.len() as u64, Ordering::Relaxed);
        }
        then
    }

    fn stats<'a>(&'a self, _memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        if self.silent.load(Ordering::Relaxed) {
            return ready(Err(cache_error(CacheErrorKind::Permission)));
        }
        let evicted = self.evicted.load(Ordering::Relaxed);
        ready(Ok(CacheStats { evicted, ..CacheStats::default() }))
    }
}

#[tokio::test]
async fn hazard_21_keys_that_the_cache_pushed_out_meanwhile_are_counted() {
    let clock = VirtualClock::new(start(), 1);
    let memory = Arc::new(MemoryCache::new(Arc::new(clock.clone())));
    let (evicted, silent) = (AtomicU64::new(1_000), AtomicBool::new(false));
    let cache = Around::with(memory, Evicting { evicted, silent });
    let setup = Setup::new([job("list")], tenants(5));
    let world = Setup { clock, cache: Some(Arc::clone(&cache) as _), ..setup }.start();
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.evicted), (Outcome::Ok, 5));
    cache.silent.store(true, Ordering::Relaxed);
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.evicted), (Outcome::Ok, 0));
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
async fn tenants_that_failed_are_read_apart_the_next_time_until_they_work_again() {
    let (all, batch) = (2_000, 100);
    let world = world_of(Job { batch: many(batch), ..job("list") }, all);
    let broken: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    broken.lock().unwrap().extend((0..100).map(|number| format!("t{}", number * 20 + 7)));
    let (failing, seen) = (Count::default(), Arc::clone(&broken));
    let counted = failing.clone();
    world.on_read(move |tenants| {
        let broken = seen.lock().unwrap();
        if tenants.iter().any(|id| broken.contains(id)) {
            counted.up();
            return Err(refused(SourceErrorKind::Data));
        }
        Ok(())
    });
    let first = world.warm("list").await;
    assert_eq!((first.report.tenants.ok, first.report.tenants.failed), (1_900, 100));
    let of_first = failing.now();
    assert!(of_first > 500, "{of_first} failing queries find who it is");

    let second = world.warm("list").await;
    assert_eq!((second.report.tenants.ok, second.report.tenants.failed), (1_900, 100));
    assert_eq!(failing.now() - of_first, 100, "one failing query each");
    assert_eq!(second.report.queries, 100 + 19);
    let [named] = second.report.failed_tenants.as_slice() else { panic!("{second:?}") };
    let all_ids: BTreeSet<String> = named.tenants.iter().cloned().collect();
    assert_eq!((&all_ids, named.more), (&*broken.lock().unwrap(), 0), "all of them, by name");

    // One of them alone does not prove that the query fails for all.
    let some: Vec<&str> = named.tenants.iter().map(String::as_str).take(40).collect();
    let third = world.warm_some("list", &some).await;
    assert_eq!((third.report.tenants.failed, third.report.queries), (40, 40));

    broken.lock().unwrap().clear();
    let fourth = world.warm("list").await;
    assert_eq!((fourth.outcome, fourth.report.queries), (Outcome::Ok, 100 + 19));
    let fifth = world.warm("list").await;
    assert_eq!((fifth.outcome, fifth.report.queries), (Outcome::Ok, 20), "back in their batches");
}

#[tokio::test]
async fn a_query_that_fails_for_all_leaves_nobody_to_be_read_apart() {
    let world = world_of(Job { batch: many(100), ..job("list") }, 1_000);
    world.on_read(|_| Err(refused(SourceErrorKind::Data)));
    for _ in 0..3 {
        assert_eq!(world.warm("list").await.outcome, Outcome::Failed);
    }
    world.on_read(|_| Ok(()));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 10));
}

#[tokio::test]
async fn a_report_names_the_first_hundred_tenants_of_a_kind_and_counts_the_rest() {
    let world = world_of(Job { batch: many(1), ..job("list") }, 300);
    world.on_read(|tenants| {
        let number: usize = tenants[0][1..].parse().unwrap();
        match number {
            ..50 => Ok(()),
            50..200 => Err(refused(SourceErrorKind::Data)),
            _ => Err(refused(SourceErrorKind::Encoding)),
        }
    });
    let record = world.warm("list").await;
    let named = record.report.failed_tenants.iter();
    let named: Vec<_> = named.map(|of| (of.kind, of.tenants.len(), of.more)).collect();
    assert_eq!(named, [(FailureKind::Query, 100, 50), (FailureKind::Encoding, 100, 0)]);
    let Some(RunView::Finished(kept)) = world.handle.run(record.id).await.unwrap() else {
        panic!("it has ended")
    };
    assert_eq!(kept.report.failed_tenants, record.report.failed_tenants);
}

#[tokio::test]
async fn a_retry_says_how_long_it_waits_for_a_server_that_counts_as_down() {
    let said = Said::default();
    let _heard = said.hear();
    let world = world_of(Job { batch: many(5), retries: 3, ..job("list") }, 5);
    let tries = Count::default();
    world.on_read(move |_| match tries.up() {
        0..3 => Err(refused(SourceErrorKind::Unavailable)),
        _ => Ok(()),
    });
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    let said = said.text();
    let waits: Vec<_> = said.lines().filter(|line| line.contains("is tried again")).collect();
    let [first, second, third] = waits.as_slice() else { panic!("{said}") };
    assert!([first, second].iter().all(|line| line.contains("ms: ")), "{said}");
    assert!(
        third.contains("is tried again in 5.0s: "),
        "it is left alone for five seconds: {said}"
    );
}
