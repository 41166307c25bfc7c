//! Changes while the database, the cache or single tenants fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, Trigger};
use preheat::engine::ports::{CacheErrorKind, SourceErrorKind};

use super::{Fed, watching};
use crate::engine::ledger::Call;
use crate::engine::{MINUTE, SECOND, Setup, cache_error, ready, refused, tenants};

#[tokio::test]
async fn a_database_that_is_away_for_a_while_loses_no_change() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    world.on_read(|_| Err(refused(SourceErrorKind::Unavailable)));
    world.commit("list", 2, &["t0"]);
    world.tell("list", &["t0"]);
    world.clock.advance(SECOND * 30).await;
    assert!(!world.is("list:t0", "[2]"));
    assert!(world.change_runs("list", "failed") > 0);
    let last = world.status("list").last_run.unwrap();
    assert_eq!((last.trigger, last.outcome), (Trigger::Change, Outcome::Failed), "it is shown");
    assert_eq!(last.report.failures[0].kind, FailureKind::DatabaseUnavailable);
    assert!(world.history("list").await.contains(&(Trigger::Change, Outcome::Failed)));
    world.on_read(|_| Ok(()));
    world.clock.advance(SECOND * 60).await;
    assert!(world.is("list:t0", "[2]"));
}

#[tokio::test]
async fn a_tenant_that_fails_for_good_is_given_up_until_its_data_changes_again() {
    let world = Fed::of(Setup::new([watching("list")], tenants(3))).await;
    world.on_read(|tenants| {
        let fails = tenants.iter().any(|id| id == "t0");
        if fails { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    world.commit("list", 2, &["t0", "t1"]);
    world.tell("list", &["t0", "t1"]);
    world.clock.advance(MINUTE * 10).await;
    assert!(world.is("list:t1", "[2]"));
    assert_eq!(world.change_runs("list", "partial"), 1, "the other one is not read again with it");
    assert_eq!(world.change_runs("list", "failed"), 4);
    world.on_read(|_| Ok(()));
    world.tell("list", &["t0"]);
    world.rests().await;
    assert!(world.is("list:t0", "[2]"));
}

#[tokio::test]
async fn a_cache_that_is_away_for_a_while_loses_no_change() {
    let world = Fed::of(Setup::new([watching("list"), watching("other")], tenants(2))).await;
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    world.ledger.before(move |call| {
        let fails = call == Call::MoveFences && is_away.load(Ordering::Relaxed);
        ready(if fails { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    world.commit("list", 2, &["t0"]);
    world.commit("other", 3, &["t1"]);
    world.tell("list", &["t0"]);
    world.clock.advance(SECOND * 20).await;
    world.tell("other", &["t1"]);
    world.clock.advance(SECOND * 20).await;
    assert!(!world.is("list:t0", "[2]"), "without its fence moved nothing is written");
    away.store(false, Ordering::Relaxed);
    world.clock.advance(SECOND * 12).await;
    assert!(world.is("list:t0", "[2]") && world.is("other:t1", "[3]"));
}

#[tokio::test]
async fn two_tenants_that_fail_in_one_way_are_no_reason_to_read_all_others_again() {
    let world = Fed::of(Setup::new([watching("list")], tenants(20))).await;
    world.on_read(|tenants| {
        let fails = tenants.iter().any(|id| id == "t1" || id == "t2");
        if fails { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    // From now on it is known that these two fail, and runs read them apart from the others.
    world.warm("list").await;
    let reads_of = |id: &str| world.reads().iter().filter(|read| read.contains(&id.into())).count();
    let before = ["t1", "t3"].map(reads_of);
    world.notifier.break_off();
    world.clock.advance(5 * MINUTE).await;
    let reads = [reads_of("t1") - before[0], reads_of("t3") - before[1]];
    assert_eq!(reads, [5, 1], "the job runs once for all, and four times for those that fail");
}

#[tokio::test]
async fn tenants_that_fail_in_one_way_hold_up_no_other_tenant_of_the_job() {
    let world = Fed::of(Setup::new([watching("list")], tenants(20))).await;
    world.commit("list", 2, &["t1", "t2", "t3", "t9"]);
    world.on_read(|tenants| {
        if tenants.iter().any(|id| id == "t1" || id == "t2") {
            return Err(refused(SourceErrorKind::Data));
        }
        Ok(())
    });
    world.tell("list", &["t1", "t2", "t3"]);
    world.clock.advance(SECOND * 10).await;
    assert!(world.is("list:t3", "[2]"));
    let reads_of = |id: &str| world.reads().iter().filter(|read| read.contains(&id.into())).count();
    let before = reads_of("t3");
    world.clock.advance(MINUTE).await;
    assert_eq!(reads_of("t3"), before, "it is warm, and not read again for the sake of others");
    world.commit("list", 3, &["t3"]);
    world.tell("list", &["t3"]);
    world.rests().await;
    assert!(world.is("list:t3", "[3]"), "its next change is warm at once");
}
