//! The table of the tenants that are not warm: what is in it, and what is not any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use preheat::domain::job::{DateZone, Dates, Job, JobName};
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunFilter};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{Clock, SourceErrorKind};
use preheat::engine::run::not_warm::{Listed, Reason, Wanted};
use preheat::overview::{Board, Level, TroubleKind, WarmState};

use super::record::Fickle;
use super::{
    MINUTE, SECOND, Setup, World, a_row_each, at, job, key, many, refused, slow_reads, start,
    tenants,
};

fn listed(world: &World) -> Vec<Listed> {
    world.runner.not_warm.page(&Wanted { limit: 100, ..Wanted::default() }).tenants
}

fn names(world: &World) -> Vec<String> {
    let shown = |one: Listed| one.owner.map_or_else(|| "fleet".to_owned(), |id| id.to_string());
    listed(world).into_iter().map(shown).collect()
}

/// A world whose reads fail while the flag is set, if they are for one of these tenants.
fn failing(job: Job, count: usize, bad: &'static [&'static str]) -> (World, Arc<AtomicBool>) {
    let world = Setup::new([job], tenants(count)).start();
    world.set_rows("list", a_row_each(count));
    let fails = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&fails);
    world.on_read(move |tenants| {
        let is_bad = tenants.iter().any(|id| bad.contains(&id.as_str()));
        let is_bad = is_bad && told.load(Ordering::Relaxed);
        if is_bad { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    (world, fails)
}

const NOT_WARM: &str = "preheat_tenants_not_warm{job_name=\"list\"}";

#[tokio::test]
async fn a_tenant_that_failed_is_listed_with_its_reason_until_it_is_warm() {
    let (world, fails) = failing(job("list"), 100, &["t42"]);
    assert!(!world.metrics.encode().contains(NOT_WARM), "nothing is known yet");
    world.warm("list").await;
    let first = world.clock.now();
    world.clock.advance(MINUTE).await;
    world.warm("list").await;
    let found = listed(&world);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].owner.as_ref().unwrap().as_str(), "t42");
    let entry = &found[0].entry;
    assert_eq!(entry.reason, Reason::Failed(FailureKind::Query));
    assert_eq!((entry.message.as_ref(), entry.tries), ("the query failed: Data", 2));
    assert_eq!(entry.since, first);
    assert_eq!(world.metric(NOT_WARM), 1);

    fails.store(false, Ordering::Relaxed);
    world.warm_some("list", &["t42"]).await;
    assert!(listed(&world).is_empty());
    assert_eq!(world.metric(NOT_WARM), 0);
}

#[tokio::test]
async fn a_tenant_that_is_no_longer_active_and_a_job_that_is_gone_are_forgotten() {
    let (world, _fails) = failing(job("list"), 5, &["t3", "t4"]);
    world.warm("list").await;
    assert_eq!(names(&world), ["t3", "t4"]);
    world.source.set_tenants(tenants(4));
    world.warm("list").await;
    assert_eq!(names(&world), ["t3"]);
    world.handle.replace([].into()).await;
    world.settle().await;
    assert!(listed(&world).is_empty());
    assert!(!world.metrics.encode().contains(NOT_WARM));
}

#[tokio::test]
async fn a_tenant_that_left_is_forgotten_before_the_next_run_over_all_tenants() {
    let (world, _fails) = failing(job("list"), 5, &["t3", "t4"]);
    world.warm("list").await;
    world.source.set_tenants(tenants(4));
    world.clock.advance(MINUTE).await;
    world.warm_some("list", &["t0"]).await;
    world.settle().await;
    assert_eq!(names(&world), ["t3"]);
    assert_eq!(world.metric(NOT_WARM), 1);
}

#[tokio::test]
async fn a_tenant_whose_time_zone_is_unknown_counts_whichever_run_finds_it() {
    let zones = |zone| {
        let mut list = Tenants::with_columns(["timezone"]);
        list.push("t0", [Some(zone)]);
        list
    };
    let zone = DateZone::TenantColumn("timezone".to_owned());
    let dates = Some(Dates { days: 2, zone, column: None });
    let daily = Job { keys: vec![key("list:{tenant_id}:{date}")], dates, ..job("list") };
    let world = Setup::new([daily], zones("Asia/Tokyo")).start();
    world.warm("list").await;
    assert_eq!(world.metric(NOT_WARM), 0);
    for (zone, count) in [("Mars/Olympus", 1), ("Asia/Tokyo", 0)] {
        world.source.set_tenants(zones(zone));
        world.warm_some("list", &["t0"]).await;
        assert_eq!(names(&world).len(), count, "{zone}");
        assert_eq!(world.metric(NOT_WARM) as usize, count, "{zone}");
    }
}

#[tokio::test]
async fn tenants_that_the_deadline_kept_from_their_turn_are_not_warm() {
    let job =
        Job { timeout: 5 * SECOND, batch: many(1), concurrency: Some(many(1)), ..job("list") };
    let (world, _fails) = failing(job, 10, &[]);
    slow_reads(&world, 2 * SECOND);
    assert_eq!(world.warm("list").await.outcome, Outcome::Timeout);
    let found = listed(&world);
    assert_eq!(names(&world), ["t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"]);
    let is_late = |one: &Listed| one.entry.reason == Reason::Failed(FailureKind::Deadline);
    assert!(found.iter().all(is_late));
}

#[tokio::test]
async fn a_run_for_named_tenants_says_nothing_about_its_job() {
    let (world, fails) = failing(job("list"), 3, &["t1"]);
    fails.store(false, Ordering::Relaxed);
    world.warm("list").await;
    let board = Board::new(Arc::clone(&world.runner), world.handle.clone());
    assert_eq!(world.warm_some("list", &["nosuch"]).await.outcome, Outcome::Failed);
    let overview = board.overview().await;
    assert_eq!(overview.verdict.sentence, "All 3 tenants are warm.", "{:?}", overview.troubles);
    assert!(overview.troubles.is_empty() && overview.jobs[0].first_failure.is_none());

    fails.store(true, Ordering::Relaxed);
    assert_eq!(world.warm_some("list", &["t1"]).await.outcome, Outcome::Failed);
    let overview = board.overview().await;
    let said: Vec<_> = overview.troubles.iter().map(|one| one.sentence.as_str()).collect();
    assert_eq!(said, ["1 tenant of job `list` is not warm."]);
}

#[tokio::test]
async fn a_board_says_who_is_not_warm_why_and_when_it_is_tried_again() {
    let (world, fails) = failing(job("list"), 100, &["t42"]);
    let board = Board::new(Arc::clone(&world.runner), world.handle.clone());
    let before = board.overview().await;
    assert_eq!(before.verdict.sentence, "Job `list` has not run yet.");
    assert_eq!(before.figures.coverage.tenants, None, "nothing is known yet");
    world.clock.advance(12 * MINUTE).await;
    let overview = board.overview().await;
    assert_eq!(overview.verdict.level, Level::Warning);
    assert_eq!(overview.verdict.sentence, "1 tenant is not warm.");
    assert_eq!(overview.troubles[0].kind, TroubleKind::NotWarm);
    assert_eq!(overview.troubles[0].next_step, "Tried 1 time; it is tried again at 00:20 UTC.");
    let coverage = overview.figures.coverage;
    assert_eq!((coverage.tenants, coverage.tenants_warm), (Some(100), Some(99)));
    let line = &overview.jobs[0];
    assert_eq!((line.not_warm, line.level), (1, Level::Warning));
    assert_eq!(line.first_failure.as_ref().unwrap().tenant.as_deref(), Some("t42"));
    assert_eq!(line.runs.len(), 1);
    assert_eq!(line.late_after.unwrap().0, start() + 20 * MINUTE, "it has not succeeded");
    assert!(!line.is_late);
    assert_eq!(line.expires_at.unwrap().0, start() + 40 * MINUTE);
    assert_eq!(overview.next_hour.runs, 6);

    let tenants = board.not_warm(&Wanted { limit: 10, ..Wanted::default() }).await;
    assert_eq!((tenants.total, tenants.active, tenants.next), (1, Some(100), None));
    let tenant = &tenants.tenants[0];
    assert_eq!(tenant.next_try_at.unwrap().0, at("2026-03-01T00:20:00Z"));

    let of_bad = board.tenant(&preheat::domain::tenant::TenantId::new("t42")).await.unwrap();
    assert_eq!(of_bad.jobs[0].state, WarmState::NotWarm);
    assert_eq!((of_bad.jobs[0].keys_expected, of_bad.jobs[0].keys_present), (1, 0));
    let of_good = board.tenant(&preheat::domain::tenant::TenantId::new("t43")).await.unwrap();
    assert_eq!(of_good.jobs[0].state, WarmState::Warm);
    assert_eq!(of_good.active, Some(true));
    let key = &of_good.jobs[0].keys[0];
    assert_eq!((key.key.as_str(), key.present, key.bytes), ("list:t43", true, Some(4)));
    assert!(key.ttl_ms > Some(27 * 60_000) && key.ttl_ms <= Some(30 * 60_000), "{key:?}");
    assert!(board.tenant(&preheat::domain::tenant::TenantId::new("nobody")).await.is_none());

    fails.store(false, Ordering::Relaxed);
    world.clock.advance(10 * MINUTE).await;
    let overview = board.overview().await;
    assert_eq!(overview.verdict.sentence, "All 100 tenants are warm.");
    assert!(overview.troubles.is_empty());
    board.show();
    let late_after = world.metrics.encode();
    let line = "preheat_job_late_after_timestamp_seconds{job_name=\"list\"} 1772325600.0";
    assert!(late_after.lines().any(|found| found.starts_with(line)), "{late_after}");
}

#[tokio::test]
async fn what_the_history_knows_is_recalled_with_one_query_and_nobody_is_ready_by_it() {
    let history = Fickle::new(false);
    let of = |history: &Arc<Fickle>| {
        let schedule = Schedule::Every(24 * 60 * MINUTE);
        let setup = Setup::new([Job { required: true, schedule, ..job("list") }], tenants(3));
        Setup { history: Arc::clone(history) as _, ..setup }.start()
    };
    let before = of(&history);
    before.set_rows("list", a_row_each(3));
    for _ in 0..60 {
        before.warm("list").await;
        before.clock.advance(SECOND).await;
    }
    let last = before.handle.runs(&RunFilter::newest(None, 1)).await.unwrap().runs.remove(0);

    let after = of(&history);
    let name = JobName::parse("list").unwrap();
    assert!(after.handle.recent().of(&name).runs.is_empty());
    after.records.recall(vec![name.clone()], after.stop_records.clone()).await;
    let recent = after.handle.recent().of(&name);
    assert_eq!(recent.runs.len(), 50);
    assert_eq!(recent.runs.back().unwrap().id, last.id);
    assert_eq!(recent.last_success_at, Some(last.finished_at));
    assert_eq!(recent.last_full.unwrap().keys, 3);
    assert_eq!(after.status("list").last_success_at, None, "this worker has warmed nothing");
    let seconds = last.finished_at.timestamp().to_string();
    let page = after.metrics.encode();
    let shown = page.lines().find(|line| line.starts_with("preheat_last_success")).unwrap();
    assert!(shown.contains(&seconds), "{shown} {seconds}");
}
