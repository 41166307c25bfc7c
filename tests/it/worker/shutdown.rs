//! How a worker ends: in order, at once, or killed.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::shop::{Shop, failure_kinds, items, items_by};
use crate::support::{LONG, eventually};

/// How much longer than its drain the worker may take to end, on a slow machine.
const SLACK: Duration = Duration::from_secs(10);

async fn outcomes(shop: &Shop) -> Vec<(String, i64, i64)> {
    let sql = "select outcome, tenants_total, tenants_ok from preheat.runs order by started_at, id";
    sqlx::query_as(sql).fetch_all(&mut shop.connect().await).await.unwrap()
}

#[tokio::test]
async fn hazard_30_a_signal_lets_batches_in_flight_end_and_begins_no_more() {
    for signal in [Signal::TERM, Signal::INT] {
        let shop = Shop::open(40).await;
        let holder = shop.hold().await;
        let lines = "batch = 1\nconcurrency = 2\nrequired = true";
        let mut worker = shop.serve().job("items", &items(lines)).start();
        worker.works().await;
        shop.held(2).await;
        let runs = "/api/v1/jobs/items/runs";
        assert_eq!(worker.post(runs, &json!({"tenants": ["7"]})).await.status, 202);
        worker.signal(signal);
        worker.says("the worker stops: no new runs, 1 is under way").await;
        let ready = worker.get("/readyz").await;
        assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("draining")));
        assert_eq!(worker.get("/healthz").await.status, 200);
        let refused = worker.post(runs, &json!({})).await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("draining")));
        drop(holder);
        let output = worker.ended().await.expect_code(0);
        assert!(output.stderr.contains("the worker has stopped"), "{}", output.stderr);
        assert_eq!(shop.cached().await.len(), 2, "{signal:?}");
        let mut outcomes = outcomes(&shop).await;
        outcomes.sort();
        let cancelled = |total, ok| ("cancelled".to_owned(), total, ok);
        assert_eq!(outcomes, [cancelled(0, 0), cancelled(40, 2)]);
    }
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_and_so_do_its_queries() {
    let shop = Shop::open(3).await;
    let _holder = shop.hold().await;
    let sleeps = "select tenant_id, pg_sleep(120)::text from unnest($1::int[]) as t(tenant_id)";
    let worker = shop
        .serve()
        .env("PREHEAT_RUNNER__DRAIN", "1s")
        .job("items", &items(""))
        .job("sleeps", &items_by("", sleeps).replace("items:", "sleeps:"))
        .start();
    worker.works().await;
    shop.held(1).await;
    eventually("both are read", LONG, async || shop.active_queries().await == 2).await;
    let start = Instant::now();
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
    assert!(start.elapsed() > Duration::from_secs(1), "it did not drain");
    assert!(start.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", start.elapsed());
    let outcomes = outcomes(&shop).await;
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    assert!(outcomes.iter().all(|(outcome, ..)| outcome == "cancelled"), "{outcomes:?}");
    eventually("the queries have ended", SLACK, async || shop.active_queries().await == 0).await;
    assert!(shop.cached().await.is_empty());
}

#[tokio::test]
async fn a_second_signal_ends_the_worker_at_once() {
    let shop = Shop::open(3).await;
    let _holder = shop.hold().await;
    let drain = shop.serve().env("PREHEAT_RUNNER__DRAIN", "1h");
    let mut worker = drain.job("items", &items("")).start();
    worker.works().await;
    shop.held(1).await;
    worker.signal(Signal::TERM);
    worker.says("the worker stops").await;
    worker.signal(Signal::TERM);
    let start = Instant::now();
    worker.ended().await.expect_code(0);
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    assert_eq!(outcomes(&shop).await, [("cancelled".to_owned(), 3, 0)]);
}

#[tokio::test]
async fn a_request_that_waits_is_answered_when_the_worker_stops() {
    let shop = Shop::open(3).await;
    let worker = shop
        .serve()
        .env("PREHEAT_RUNNER__DRAIN", "500ms")
        .job("items", &items("on_start = false"))
        .start();
    worker.answers("/readyz", 200).await;
    let _holder = shop.hold().await;
    let signal = async {
        shop.held(1).await;
        worker.signal(Signal::TERM);
    };
    let (run, ()) = tokio::join!(worker.warm("items"), signal);
    assert_eq!(run["outcome"], "cancelled");
    assert_eq!(failure_kinds(&run), ["cancelled"]);
    worker.ended().await.expect_code(0);
}

#[tokio::test]
async fn hazard_30_a_worker_that_is_killed_leaves_whole_values_and_no_query_behind() {
    let shop = Shop::open(300).await;
    let reader = shop.reader();
    for keys in [1, 100, 200] {
        let worker = shop.serve().job("items", &items("batch = 3\nconcurrency = 2")).start();
        eventually("it has begun to write", LONG, async || shop.cached().await.len() >= keys).await;
        worker.signal(Signal::KILL);
        assert_eq!(worker.ended().await.code(), None);
        shop.change().await;
    }
    eventually("no query goes on", SLACK, async || shop.active_queries().await == 0).await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    reader.stop().await;
}
