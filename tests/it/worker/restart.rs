//! A cache server that is restarted or emptied while no run is due.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually};

const DAILY: &str = "schedule = \"every 24h\"\nttl = \"72h\"\nrequired = true";
const RESTARTS: &str = "preheat_cache_restarts_total";

#[tokio::test]
async fn a_job_of_once_a_day_is_warm_again_within_seconds() {
    let shop = Shop::open(30).await;
    let mut worker = shop.serve().job("items", &items(DAILY)).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    assert_eq!(worker.metric(RESTARTS).await, Some(0.0));
    for restarts in 1..=2 {
        shop.redis.restart().unwrap();
        worker.metric_becomes(RESTARTS, |value| value >= f64::from(restarts)).await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        let is_change = async || {
            let last = worker.runs("items").await.remove(0);
            (&last["trigger"], &last["outcome"]) == (&json!("change"), &json!("ok"))
        };
        eventually("its run is told", LONG, is_change).await;
        let registered: usize = redis::cmd("HLEN")
            .arg("preheat:tenants")
            .query_async(&mut shop.cache().await)
            .await
            .unwrap();
        assert_eq!(registered, 30, "the tenants are registered again");
    }
    assert_eq!(worker.runs("items").await.len(), 3, "each restart is one run");
    worker.says("the cache server, or a node of it, is another process than before").await;
    assert!(!worker.stderr().contains("ERROR"), "{}", worker.stderr());
}

#[tokio::test]
async fn hazard_42_a_cache_that_is_emptied_is_warm_again_within_seconds() {
    const FLUSHES: &str = "preheat_cache_flushes_total";
    let shop = Shop::open(30).await;
    let mut worker = shop.serve().job("items", &items(DAILY)).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    let mut cache = shop.cache().await;
    let marked = async |cache: &mut MultiplexedConnection| {
        let there = redis::cmd("EXISTS").arg("preheat:marker:7").query_async(cache).await;
        there.unwrap_or(0) == 1
    };
    for (flushes, command) in [(1, "FLUSHALL"), (2, "FLUSHDB")] {
        eventually("the markers stand", LONG, async || marked(&mut cache.clone()).await).await;
        let () = redis::cmd(command).query_async(&mut cache).await.unwrap();
        // Other applications of that Redis go on.
        let () = cache.set("theirs", "value").await.unwrap();
        worker.metric_becomes(FLUSHES, |value| value >= f64::from(flushes)).await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        let registered = redis::cmd("HLEN").arg("preheat:tenants").query_async(&mut cache).await;
        assert_eq!(registered, Ok(30), "the tenants are registered again");
    }
    worker.says("the cache was emptied").await;
    eventually("each is one run", LONG, async || worker.runs("items").await.len() == 3).await;
    assert_eq!(worker.metric(FLUSHES).await, Some(2.0));
    assert_eq!(worker.metric(RESTARTS).await, Some(0.0), "it is the same process");
}
