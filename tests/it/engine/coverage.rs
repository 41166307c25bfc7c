//! The coverage: the share of expected keys that a look finds in the cache.

use std::sync::Arc;

use preheat::domain::job::{DateZone, Dates, Job, JobName, Scope};
use preheat::domain::run::Outcome;
use preheat::engine::ports::Clock;

use preheat::domain::tenant::TenantId;
use preheat::overview::{Board, WarmState};

use super::{MINUTE, SECOND, Setup, World, a_row_each, ids, job, key, tenants};
use crate::support::memory::MemoryRow;

const OPEN: &str = "preheat_breaker_open{server=\"cache\"} 1";

/// A world that measures its coverage. All jobs are warm, except disabled ones.
async fn watched(jobs: impl IntoIterator<Item = Job>, count: usize) -> World {
    let mut world = Setup::new(jobs, tenants(count)).start();
    world.tasks.spawn(Arc::clone(&world.runner).watch_coverage(world.stops.clone()));
    for (name, job) in world.handle.status().jobs.clone() {
        let kind = |id: &String| MemoryRow::new(id, "1", [("kind", "a")]);
        let rows = ids(0..count).iter().map(kind).collect();
        world.set_rows(name.as_str(), rows);
        if job.job.enabled {
            assert_eq!(world.warm(name.as_str()).await.outcome, Outcome::Ok);
        }
    }
    world.clock.advance(2 * SECOND).await;
    world
}

fn coverage(world: &World, job: &str) -> Option<f64> {
    let series = format!("preheat_coverage_ratio{{job_name=\"{job}\"}} ");
    let page = world.metrics.encode();
    page.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn coverage_is_what_is_in_the_cache_and_not_what_a_run_wrote() {
    let dates =
        Dates { days: 2, zone: DateZone::TenantColumn("timezone".to_owned()), column: None };
    let jobs = [
        job("list"),
        Job { keys: vec![key("dated:{tenant_id}:{date}")], dates: Some(dates), ..job("dated") },
        Job { keys: vec![key("kinds:{tenant_id}:{kind}")], ..job("kinds") },
        Job { scope: Scope::Global, keys: vec![key("fleet")], ..job("fleet") },
        Job { enabled: false, ..job("off") },
    ];
    let world = watched(jobs, 10).await;
    for name in ["list", "dated", "kinds", "fleet"] {
        assert_eq!(coverage(&world, name), Some(1.0), "{name}, soon after its run");
    }
    assert_eq!(coverage(&world, "off"), None);
    for key in ["list:t0", "list:t7", "dated:t1:2026-03-02", "kinds:t2:a", "fleet"] {
        world.cache.evict(key);
    }
    world.clock.advance(31 * SECOND).await;
    for (name, share) in [("list", 0.8), ("dated", 0.95), ("kinds", 0.9), ("fleet", 0.0)] {
        assert_eq!(coverage(&world, name), Some(share), "{name}");
    }
    world.warm("list").await;
    world.clock.advance(2 * SECOND).await;
    assert_eq!(coverage(&world, "list"), Some(1.0));
}

#[tokio::test]
async fn keys_whose_data_vanished_are_not_missing() {
    let world =
        watched([Job { keys: vec![key("kinds:{tenant_id}:{kind}")], ..job("kinds") }], 4).await;
    let rows = ids(0..4).iter().map(|id| MemoryRow::new(id, "2", [("kind", "b")])).collect();
    world.set_rows("kinds", rows);
    assert_eq!(world.warm("kinds").await.outcome, Outcome::Ok);
    world.clock.advance(MINUTE).await;
    assert_eq!(coverage(&world, "kinds"), Some(1.0));
}

#[tokio::test]
async fn a_look_is_a_few_hundred_keys_of_a_job_however_many_tenants_there_are() {
    let world = watched([job("list")], 5_000).await;
    assert_eq!(coverage(&world, "list"), Some(1.0));
    for id in ids(0..2_500) {
        world.cache.evict(&format!("list:{id}"));
    }
    world.clock.advance(31 * SECOND).await;
    let share = coverage(&world, "list").unwrap();
    assert!((0.45..0.55).contains(&share), "the sample is from all parts of the list: {share}");
    let hundredths = share * 100.0;
    assert!((hundredths.round() - hundredths).abs() < 1e-6, "a hundred tenants are looked at");
}

#[tokio::test]
async fn coverage_is_not_known_while_the_cache_is_away() {
    let world = watched([job("list")], 3).await;
    let board = Board::new(Arc::clone(&world.runner), world.handle.clone());
    assert_eq!(coverage(&world, "list"), Some(1.0));
    assert_eq!(board.overview().await.figures.coverage.tenants_warm, Some(3));
    world.cache.set_away(true);
    world.until("a look notices it", |world| coverage(world, "list").is_none()).await;
    world.until("the breaker opens", |world| world.shows(OPEN)).await;
    let overview = board.overview().await;
    let figures = &overview.figures;
    assert_eq!((figures.coverage.ratio, figures.coverage.tenants_warm), (None, None));
    assert_eq!(overview.jobs[0].coverage, None);
    let tenant = board.tenant(&TenantId::new("t1")).await.unwrap();
    assert_eq!(tenant.jobs[0].state, WarmState::Unknown, "{:?}", tenant.jobs[0].problem);
    assert!(tenant.jobs[0].problem.is_some());
    world.cache.set_away(false);
    world.until("a look finds the keys", |world| coverage(world, "list") == Some(1.0)).await;
}

#[tokio::test]
async fn coverage_is_not_known_before_the_tenants_are() {
    let mut world = Setup::new([job("list")], tenants(3)).start();
    world.tasks.spawn(Arc::clone(&world.runner).watch_coverage(world.stops.clone()));
    world.set_rows("list", a_row_each(3));
    let began = world.clock.monotonic();
    world.clock.advance(MINUTE).await;
    assert_eq!(coverage(&world, "list"), None);
    world.until("its schedule is due", |world| coverage(world, "list") == Some(1.0)).await;
    assert!(world.clock.monotonic() < began + 11 * MINUTE);
    world.handle.replace(std::collections::BTreeMap::<JobName, Arc<Job>>::new()).await;
    world.settle().await;
    assert_eq!(coverage(&world, "list"), None);
}
