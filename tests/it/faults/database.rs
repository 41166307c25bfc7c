//! The database is away, hangs, or comes back.

use std::time::{Duration, Instant};

use preheat_sandbox::{Postgres, PostgresOptions};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::cache::{EVERY_SECOND, recovers};
use crate::support::shop::{Shop, failure_kinds, items};
use crate::support::{self, LONG, eventually};

const BREAKER: &str = "preheat_breaker_open{server=\"database\"}";

#[tokio::test]
async fn hazard_04_a_replica_is_read_and_warned_of() {
    let settings = vec![("wal_level".to_owned(), "replica".to_owned())];
    let options = PostgresOptions { tcp: true, settings, ..PostgresOptions::default() };
    let postgres = Postgres::start(&options).unwrap();
    let shop = Shop::open_in(&postgres, 3).await;
    let warm = || {
        let preheat = support::preheat(["warm"]).database(shop.url()).cache(shop.redis.url());
        preheat.job("items", &items(""))
    };
    let output = warm().run().await.expect_code(0);
    assert!(!output.stderr.contains("is a replica"), "{}", output.stderr);
    support::restart_as_standby(&postgres);
    let output = warm().run().await.expect_code(0);
    assert!(output.stderr.contains("is a replica"), "{}", output.stderr);
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_run_outlives_a_restart_of_the_database() {
    let postgres = support::own_postgres();
    let shop = Shop::open_in(&postgres, 60).await;
    let lines = "batch = 10\nconcurrency = 2\nrequired = true";
    let worker = shop.serve().job("items", &items(lines)).start();
    worker.answers("/readyz", 200).await;
    let reader = shop.reader();
    shop.change().await;
    let holder = shop.hold().await;
    let release = async {
        shop.held(2).await;
        postgres.restart().unwrap();
        drop(holder);
    };
    let (run, ()) = tokio::join!(worker.warm("items"), release);
    assert_eq!(run["outcome"], "ok", "{run}");
    assert!(run["report"]["retries"].as_u64() > Some(0), "{run}");
    shop.assert_warm().await;
    eventually("its record is kept all the same", LONG, async || {
        shop.number("select count(*) from preheat.runs").await == 2
    })
    .await;
    reader.stop().await;
}

#[tokio::test]
async fn a_database_that_is_gone_takes_nothing_out_of_the_cache() {
    let postgres = support::own_postgres();
    let shop = Shop::open_in(&postgres, 20).await;
    let lines = format!("{EVERY_SECOND}\nretries = 1");
    let mut worker = shop.serve().job("items", &items(&lines)).start();
    worker.answers("/readyz", 200).await;
    eventually("the cache is warm", LONG, async || shop.is_warm().await).await;
    let expected = shop.expected().await;
    let reader = shop.reader();
    // The server commits asynchronously: without this, it forgets the table of the history.
    shop.execute("checkpoint").await;
    postgres.kill();
    worker.metric_becomes(BREAKER, |open| open > 0.5).await;
    worker.says("the database counts as down").await;
    worker.says("job `items` ended failed").await;
    // A shorter outage may pass while the history still waits for a connection.
    worker.says("could not write the history").await;
    assert_eq!(shop.cached().await, expected);
    assert_eq!(worker.get("/healthz").await.status, 200);
    postgres.restart().unwrap();
    shop.change().await;
    worker.metric_becomes(BREAKER, |open| open < 0.5).await;
    eventually("the cache is warm again", LONG, async || shop.is_warm().await).await;
    worker.says("the history can be written again").await;
    let runs = worker.runs("items").await;
    let failed = runs.iter().filter(|run| run["outcome"] == "failed");
    let failed: Vec<&Value> = failed.collect();
    assert!(!failed.is_empty(), "the outage is in the history: {runs:?}");
    for run in failed {
        // A run reads the tenant list first.
        let kinds = failure_kinds(run);
        assert!(kinds == ["tenants"] || kinds == ["database_unavailable"], "{run}");
    }
    reader.stop().await;
}

#[tokio::test]
async fn hazard_26_a_database_that_hangs_ends_the_run_at_its_deadline() {
    let postgres = support::own_postgres();
    let shop = Shop::open_in(&postgres, 20).await;
    let worker = shop
        .serve()
        .env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "1s")
        .job("items", &items("required = true").replace("\"1m\"", "\"4s\""))
        .start();
    worker.answers("/readyz", 200).await;
    let expected = shop.expected().await;
    postgres.freeze();
    let start = Instant::now();
    let run = worker.warm("items").await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(run["outcome"] == "timeout" || run["outcome"] == "failed", "{run}");
    assert_eq!(worker.get("/healthz").await.status, 200);
    assert_eq!(shop.cached().await, expected);
    postgres.thaw();
    shop.change().await;
    recovers(&worker, &shop).await;
}

#[tokio::test]
async fn hazard_26_a_database_that_hangs_counts_as_down_and_holds_no_end_up() {
    let postgres = support::own_postgres();
    let shop = Shop::open_in(&postgres, 20).await;
    let mut worker = shop
        .serve()
        .env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "1s")
        .env("PREHEAT_RUNNER__DRAIN", "1s")
        .job("items", &items("batch = 2\nrequired = true"))
        .start();
    worker.answers("/readyz", 200).await;
    let holder = shop.hold().await;
    let answer = worker.post("/api/v1/jobs/items/runs", &json!({})).await;
    assert_eq!(answer.status, 202);
    // The job leaves one permit to other jobs and one to changes, and the listener holds one
    // connection.
    shop.held(1).await;
    postgres.freeze();
    worker.metric_becomes(BREAKER, |open| open > 0.5).await;
    worker.says("no answer within 2s").await;
    worker.signal(Signal::TERM);
    let start = Instant::now();
    let output = worker.ended().await.expect_code(0);
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    let lost = "lost: the history could not be written before the end";
    assert!(output.stderr.contains(lost), "{}", output.stderr);
    drop(holder);
}
