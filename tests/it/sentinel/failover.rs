//! A worker whose cache fails over.

use std::time::Duration;

use preheat_sandbox::Redis;
use serde_json::{Value, json};

use crate::support::program::Running;
use crate::support::sentinels::Watched;
use crate::support::shop::{Shop, cached_in, failure_kinds, items};
use crate::support::{LONG, eventually};

const RESTARTS: &str = "preheat_cache_restarts_total";

/// A shop whose cache is behind Sentinels, with its worker.
async fn shop(watched: &Watched, tenants: u32, lines: &str) -> (Shop, Running) {
    let shop = Shop::open(tenants).await;
    let worker = shop.serve().cache(watched.url()).job("items", &items(lines)).start();
    worker.answers("/readyz", 200).await;
    (shop, worker)
}

async fn is_warm(shop: &Shop, server: &Redis) -> bool {
    cached_in(server).await == shop.expected().await
}

async fn becomes_warm(shop: &Shop, server: &Redis) {
    eventually("every key is right on the new primary", LONG, async || is_warm(shop, server).await)
        .await;
}

/// A run whose queries wait until the failover is over.
async fn run_during(shop: &Shop, worker: &Running, failover: impl Future<Output = ()>) -> Value {
    shop.change().await;
    let holder = shop.hold().await;
    let during = async {
        shop.held(1).await;
        failover.await;
        drop(holder);
    };
    let (run, ()) = tokio::join!(worker.warm("items"), during);
    run
}

#[tokio::test]
async fn a_run_under_way_while_the_replica_takes_over_is_not_ok() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let lines = "batch = 10\nconcurrency = 1\nrequired = true";
    let (shop, worker) = shop(&watched, 40, lines).await;
    becomes_warm(&shop, old).await;
    let failover = async {
        watched.fail_over().await;
        watched.name(new).await;
    };
    let run = run_during(&shop, &worker, failover).await;
    assert_eq!(
        (&run["outcome"], failure_kinds(&run)),
        (&json!("partial"), vec!["cache_restarted"]),
        "{run}"
    );
    becomes_warm(&shop, new).await;
    worker.metric_becomes(RESTARTS, |count| count > 0.5).await;

    // The first primary takes over again within minutes, with the same process.
    watched.is_in_step(old).await;
    let failover = watched.fail_over_to(old);
    let run = run_during(&shop, &worker, failover).await;
    assert_eq!(failure_kinds(&run), ["cache_restarted"], "{run}");
    becomes_warm(&shop, old).await;
    worker.metric_becomes(RESTARTS, |count| count > 1.5).await;
    assert_eq!(worker.metric("preheat_cache_several_servers").await, Some(0.0));
}

#[tokio::test]
async fn a_run_under_way_while_the_primary_dies_is_not_ok() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let lines = "batch = 10\nconcurrency = 1\nrequired = true";
    let (shop, worker) = shop(&watched, 40, lines).await;
    becomes_warm(&shop, old).await;
    let failover = async {
        old.kill();
        watched.name(new).await;
    };
    let run = run_during(&shop, &worker, failover).await;
    assert!(["partial", "failed"].contains(&run["outcome"].as_str().unwrap()), "{run}");
    becomes_warm(&shop, new).await;
    // It comes back empty and as a primary; the Sentinels make a replica of it.
    old.restart().unwrap();
    watched.is_in_step(old).await;
    shop.change().await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    assert!(is_warm(&shop, new).await);
}

/// Changes one tenant after the other, until it is dropped.
async fn write_on(shop: &Shop) {
    let mut connection = shop.connect().await;
    for tenant in (2..=60).cycle() {
        let change = format!("update items set version = version + 1 where tenant_id = {tenant}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut connection).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn every_key_is_right_after_failovers_under_a_schedule_and_writers() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let lines = "schedule = \"every 1s\"\nttl = \"10m\"\ntimeout = \"20s\"\nbatch = 10";
    let (shop, worker) = shop(&watched, 60, lines).await;
    becomes_warm(&shop, old).await;
    let failovers = async {
        watched.fail_over().await;
        watched.name(new).await;
        worker.metric_becomes(RESTARTS, |count| count > 0.5).await;
        watched.is_in_step(old).await;
        new.kill();
        watched.name(old).await;
        worker.metric_becomes(RESTARTS, |count| count > 1.5).await;
    };
    tokio::select! {
        () = failovers => {}
        () = write_on(&shop) => {}
    }
    becomes_warm(&shop, old).await;
    let ends_well = async || worker.runs("items").await[0]["outcome"] == "ok";
    eventually("runs are ok again", LONG, ends_well).await;
}
