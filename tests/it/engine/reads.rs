//! The applications' reads, as their clients count them.

use std::sync::Arc;

use preheat::domain::job::Jobs;
use preheat::domain::reads::ReadCounts;
use preheat::engine::ports::Clock;

use super::{SECOND, Setup, World, job, tenants};

async fn watched() -> World {
    let mut world = Setup::new([job("services"), job("slots")], tenants(2)).start();
    world.cache.count_reads("services:hit", 1_000);
    world.tasks.spawn(Arc::clone(&world.runner).watch_reads(world.stops.clone()));
    world.clock.advance(SECOND).await;
    world
}

fn counted(world: &World, family: &str, result: &str) -> Option<f64> {
    let series = format!("preheat_reads_total{{family=\"{family}\",result=\"{result}\"}} ");
    let page = world.metrics.encode();
    page.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn what_the_clients_count_is_counted_from_the_workers_start() {
    let world = watched().await;
    assert_eq!(counted(&world, "services", "hit"), Some(0.0), "what came before says nothing");
    assert_eq!(counted(&world, "slots", "bypass"), Some(0.0), "a series begins with 0");
    world.cache.count_reads("services:hit", 90);
    world.cache.count_reads("services:miss", 10);
    world.cache.count_reads("services:refused", 4);
    world.cache.count_reads("other:bypass", 7);
    world.cache.count_reads("gone_long_ago:hit", 7);
    world.clock.advance(10 * SECOND).await;
    assert_eq!(counted(&world, "services", "hit"), Some(90.0));
    assert_eq!(counted(&world, "services", "refused"), Some(4.0));
    assert_eq!(counted(&world, "other", "bypass"), Some(7.0));
    assert_eq!(counted(&world, "gone_long_ago", "hit"), None, "only families of jobs");
    let reads = world.metrics.figures().reads(world.clock.now());
    assert_eq!(reads.families["services"], ReadCounts([90, 10, 0, 0, 4]));
    assert_eq!(reads.families["services"].hit_rate(), Some(0.9));
}

#[tokio::test]
async fn counts_that_the_cache_lost_begin_at_zero_again() {
    let world = watched().await;
    world.cache.flush();
    world.cache.count_reads("services:hit", 5);
    world.clock.advance(10 * SECOND).await;
    assert_eq!(counted(&world, "services", "hit"), Some(5.0));
}

#[tokio::test]
async fn what_was_counted_before_a_job_came_is_no_growth() {
    let world = watched().await;
    world.cache.count_reads("later:hit", 500);
    world.clock.advance(10 * SECOND).await;
    let jobs = ["services", "later"].map(|name| Arc::new(job(name)));
    let jobs: Jobs = jobs.into_iter().map(|job| (job.name.clone(), job)).collect();
    world.handle.replace(jobs).await;
    world.clock.advance(10 * SECOND).await;
    assert_eq!(counted(&world, "later", "hit"), Some(0.0));
    world.cache.count_reads("later:hit", 3);
    world.clock.advance(10 * SECOND).await;
    assert_eq!(counted(&world, "later", "hit"), Some(3.0));
}

#[tokio::test]
async fn without_clients_there_are_no_reads() {
    let mut world = Setup::new([job("services")], tenants(2)).start();
    world.tasks.spawn(Arc::clone(&world.runner).watch_reads(world.stops.clone()));
    world.clock.advance(60 * SECOND).await;
    assert_eq!(counted(&world, "services", "hit"), None);
    assert!(world.metrics.figures().reads(world.clock.now()).families.is_empty());
}
