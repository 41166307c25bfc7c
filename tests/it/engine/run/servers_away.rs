//! Servers that are away for a while, and what is tried again.

use std::sync::Arc;
use std::time::Duration;

use preheat::domain::job::Job;
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::engine::ports::{CacheErrorKind, Clock, SourceErrorKind};
use preheat::engine::schedule::handle::Ticket;
use tokio::sync::Barrier;

use super::{kinds, world_of};
use crate::engine::ledger::Call;
use crate::engine::{
    Count, MINUTE, SECOND, Said, Setup, World, a_row_each, cache_error, job, many, ready, refused,
    tenants,
};

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
        assert!(world.shows("preheat_batch_retries_total{job_name=\"list\"} 2"));
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
    assert!(world.shows("preheat_batch_retries_total{job_name=\"list\"} 1"));
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
