//! The cache is away, hangs, is full, or refuses writes.

use std::time::{Duration, Instant};

use preheat_sandbox::Redis;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::program::Running;
use crate::support::shop::{Shop, failure_kinds, items, items_by};
use crate::support::{self, LONG, Proxy, eventually, preheat};

pub(super) const EVERY_SECOND: &str = "schedule = \"every 1s\"\nttl = \"1m\"\ntimeout = \"20s\"";

const BREAKER: &str = "preheat_breaker_open{server=\"cache\"}";

async fn configure(shop: &Shop, command: &[&str]) {
    let mut set = redis::cmd(command[0]);
    set.arg(&command[1..]);
    let () = set.query_async(&mut shop.cache().await).await.unwrap();
}

/// Requests runs until one is `ok`.
pub(super) async fn recovers(worker: &Running, shop: &Shop) {
    eventually("a run is ok", LONG, async || worker.warm("items").await["outcome"] == "ok").await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_run_outlives_a_restart_of_the_cache() {
    let shop = Shop::open(60).await;
    let lines = "batch = 10\nconcurrency = 1\nrequired = true";
    let worker = shop.serve().job("items", &items(lines)).start();
    worker.answers("/readyz", 200).await;
    shop.change().await;
    let holder = shop.hold().await;
    let release = async {
        shop.held(1).await;
        shop.redis.restart().unwrap();
        drop(holder);
    };
    let (run, ()) = tokio::join!(worker.warm("items"), release);
    // The run reached its end and reports that what it wrote before the restart is gone.
    assert_eq!(
        (&run["outcome"], failure_kinds(&run)),
        (&json!("partial"), vec!["cache_restarted"])
    );
    eventually("a run is ok", LONG, async || {
        let last = worker.runs("items").await.remove(0);
        last["outcome"] == "ok" && last["trigger"] == "change"
    })
    .await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_pass_during_which_the_cache_is_restarted_begins_anew() {
    let shop = Shop::open(40).await;
    let query = "select id as tenant_id, id from tenants where id = any($1)";
    let quick = items_by("", query).replace("items:", "quick:");
    let holder = shop.hold().await;
    let pass = preheat(["warm"]).database(shop.url()).cache(shop.redis.url());
    let pass = pass.job("items", &items("")).job("quick", &quick).start();
    shop.held(1).await;
    pass.prints("quick: ok: 40 of 40 tenants").await;
    shop.redis.restart().unwrap();
    drop(holder);
    let output = pass.ended().await.expect_code(0);
    let begins = ["quick: ok: ", "items: partial: 0 of 40", "quick: ok: ", "items: ok: 40 of 40"];
    let said = output.stdout.lines().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>();
    assert_eq!(said.len(), 4, "{}", output.stdout);
    for begin in begins {
        assert!(said.iter().any(|line| line.starts_with(begin)), "{}", output.stdout);
    }
    assert!(output.stdout.contains("  cache_restarted, 40 in all: "), "{}", output.stdout);
    assert!(output.stderr.contains("all is warmed once more"), "{}", output.stderr);
    shop.assert_warm().await;
    let quick: Vec<String> = shop.cache().await.keys("quick:*").await.unwrap();
    assert_eq!(quick.len(), 40, "what had ended before is lost and warmed again as well");
}

#[tokio::test]
async fn a_cache_that_is_gone_is_left_alone_and_the_database_with_it() {
    let shop = Shop::open(40).await;
    let lines = format!("{EVERY_SECOND}\nretries = 1\nbatch = 5\nconcurrency = 1");
    let mut worker = shop.serve().job("items", &items(&lines)).start();
    worker.answers("/readyz", 200).await;
    eventually("the cache is warm", LONG, async || shop.is_warm().await).await;
    let reader = shop.reader();
    let before = worker.runs("items").await.len();
    shop.redis.kill();
    worker.metric_becomes(BREAKER, |open| open > 0.5).await;
    worker.says("the cache counts as down").await;
    let failed = async || -> Vec<Value> {
        let runs = worker.runs("items").await;
        runs.into_iter().filter(|run| run["outcome"] == "failed").collect()
    };
    eventually("a run has failed", LONG, async || failed().await.len() >= 2).await;
    for run in failed().await {
        assert_eq!(failure_kinds(&run), ["cache_unavailable"], "{run}");
        let queries = run["report"]["queries"].as_u64();
        assert!(queries <= Some(4), "rows were read for nothing: {run}");
    }
    assert_eq!(worker.get("/healthz").await.status, 200);
    shop.change().await;
    shop.redis.restart().unwrap();
    worker.metric_becomes(BREAKER, |open| open < 0.5).await;
    eventually("the cache is warm again", LONG, async || shop.is_warm().await).await;
    eventually("runs are ok again", LONG, async || {
        let runs = worker.runs("items").await;
        runs.len() > before && runs[0]["outcome"] == "ok"
    })
    .await;
    reader.stop().await;
}

#[tokio::test]
async fn hazard_26_a_cache_that_hangs_fails_the_run_in_time_and_is_used_again_when_it_answers() {
    let shop = Shop::open(30).await;
    let worker = shop
        .serve()
        .env("PREHEAT_CACHE__TIMEOUT", "300ms")
        .job("items", &items("retries = 1\nrequired = true"))
        .start();
    worker.answers("/readyz", 200).await;
    let reader = shop.reader();
    shop.change().await;
    let holder = shop.hold().await;
    let freeze = async {
        shop.held(1).await;
        shop.redis.freeze();
        drop(holder);
    };
    let start = Instant::now();
    let (run, ()) = tokio::join!(worker.warm("items"), freeze);
    assert_eq!(run["outcome"], "failed", "{run}");
    assert_eq!(failure_kinds(&run), ["cache_unavailable"], "{run}");
    let message = run["report"]["failures"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("did not answer within 300ms") || message.contains("could not connect")
    );
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(worker.get("/healthz").await.status, 200);
    assert!(worker.metric(BREAKER).await.is_some(), "a scrape does not hang with the cache");
    shop.redis.thaw();
    recovers(&worker, &shop).await;
    reader.stop().await;
}

/// A shop whose values take several megabytes in total, and a cache with room for three.
async fn too_large(policy: &str) -> Shop {
    let small = support::redis_with(&[("maxmemory", "3mb"), ("maxmemory-policy", policy)]);
    let shop = Shop::open(200).await.with_redis(small);
    shop.execute("update items set name = repeat('x', 1500) || id").await;
    shop
}

#[tokio::test]
async fn hazard_21_a_cache_that_is_full_keeps_what_it_has_and_the_run_is_not_ok() {
    let shop = too_large("noeviction").await;
    let mut worker = shop.serve().job("items", &items("batch = 10\non_start = false")).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "partial", "{run}");
    assert_eq!(failure_kinds(&run), ["cache_full"], "{run}");
    let written = run["report"]["keys"]["written"].as_u64().unwrap();
    assert_eq!(run["report"]["tenants"]["failed"], 200 - written);
    assert!(shop.cached().await.len() > 10);
    worker.says("first failure (cache_full)").await;
    let metric = async |series: &str| worker.metric(series).await;
    assert!(
        metric("preheat_tenants_total{job_name=\"items\",outcome=\"failed\"}").await > Some(0.0)
    );
    worker.metric_becomes("preheat_coverage_ratio{job_name=\"items\"}", |share| share < 1.0).await;
    assert_eq!(metric("preheat_last_success_timestamp_seconds{job_name=\"items\"}").await, None);
    assert_eq!(metric(BREAKER).await, Some(0.0), "it is there, it is only full");
    configure(&shop, &["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_21_a_cache_that_comes_back_full_does_not_have_the_database_read_again_and_again() {
    let keeps = [("maxmemory", "3mb"), ("maxmemory-policy", "noeviction"), ("appendonly", "yes")];
    let shop = Shop::open(200).await.with_redis(support::redis_with(&keeps));
    shop.execute("update items set name = repeat('x', 1500) || id").await;
    configure(&shop, &["CONFIG", "SET", "maxmemory", "0"]).await;
    let worker = shop.serve().job("items", &items("batch = 10\non_start = false")).start();
    worker.answers("/readyz", 200).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");

    shop.redis.restart().unwrap();
    let failed = async || {
        let runs = worker.runs("items").await;
        runs.into_iter().filter(|run| run["outcome"] == "failed").collect::<Vec<Value>>()
    };
    eventually("the run is repeated", LONG, async || failed().await.len() >= 3).await;
    let failed = failed().await;
    assert!(failed.iter().all(|run| failure_kinds(run) == ["cache_full"]), "{failed:?}");
    let queries: u64 = failed.iter().map(|run| run["report"]["queries"].as_u64().unwrap()).sum();
    assert!(queries < 10, "{queries} of 20 queries that a run takes: {failed:?}");
    assert_eq!(shop.cached().await, shop.expected().await, "it kept what it had");

    shop.change().await;
    configure(&shop, &["CONFIG", "SET", "maxmemory", "0"]).await;
    // The run that does it may be one for some tenants, which the history does not keep if it is `ok`.
    eventually("the cache is warm again", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn hazard_21_keys_that_are_pushed_out_meanwhile_are_counted_and_warned_of() {
    let shop = too_large("allkeys-lru").await;
    let mut worker = shop.serve().job("items", &items("batch = 10\non_start = false")).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    let evicted = run["report"]["evicted"].as_u64().unwrap();
    assert!(evicted > 10, "{run}");
    worker.says("keys, anybody's, for want of memory").await;
    assert!((shop.cached().await.len() as u64) < 200);
    // Now and then the server evicts the markers as well, and everything of this run.
    for _ in 0..3 {
        worker.warm("items").await;
    }
    let evicted = worker.metric("preheat_cache_evicted_keys_total").await;
    assert!(evicted > Some(40.0), "{evicted:?}");
    let seen = async || {
        support::commands(&mut shop.cache().await).await.get("info").copied().unwrap_or_default()
    };
    let before = seen().await;
    eventually("the worker looks again and again", LONG, async || seen().await > before + 8).await;
    worker.metric_becomes("preheat_coverage_ratio{job_name=\"items\"}", |share| share < 1.0).await;
    assert_eq!(worker.metric("preheat_cache_flushes_total").await, Some(0.0));
    assert_eq!(worker.metric("preheat_cache_restarts_total").await, Some(0.0));
    assert_eq!(worker.runs("items").await.len(), 4, "evictions are no reason for a run");
    assert_eq!(worker.stderr().matches("for want of memory").count(), 1, "{}", worker.stderr());
}

#[tokio::test]
async fn a_cache_that_is_a_replica_is_named_and_used_again_once_it_is_the_primary() {
    let primary = support::redis();
    let port = primary.tcp_port().unwrap();
    let replica = support::redis_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);
    let shop = Shop::open(30).await.with_redis(replica);
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "failed", "{run}");
    assert_eq!(failure_kinds(&run), ["cache_read_only"], "{run}");
    assert_eq!(run["report"]["queries"], 0, "nothing is read for nothing: {run}");
    configure(&shop, &["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    shop.assert_warm().await;
}

/// One key for each of a tenant's items.
fn items_one_by_one(lines: &str) -> String {
    items(lines).replace("\"items:{tenant_id}\"", "\"items:{tenant_id}:{id}\"")
}

#[tokio::test]
async fn a_key_of_another_type_holds_back_neither_other_removals_nor_other_tenants() {
    let shop = Shop::open(40).await;
    let worker = shop.serve().job("items", &items_one_by_one("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    let mut cache = shop.cache().await;
    let keys = async |pattern: &str| -> usize {
        let keys: Vec<String> = shop.cache().await.keys(pattern).await.unwrap();
        keys.len()
    };
    assert_eq!(keys("items:*:3").await, 39);

    // Among the keys to remove is one that an application has replaced by a list.
    let () = cache.del("items:7:3").await.unwrap();
    let () = cache.lpush("items:7:3", "theirs").await.unwrap();
    shop.execute("delete from items where id = 3").await;
    let run = worker.warm("items").await;
    assert_eq!((&run["outcome"], &run["report"]["keys"]["removed"]), (&json!("ok"), &json!(39)));
    assert_eq!(keys("items:*:3").await, 0);

    // A manifest key that holds a string fails its own tenant, also when its keys are removed for good.
    let () = cache.set("preheat:manifest:items:9", "theirs").await.unwrap();
    shop.execute("delete from items where id = 4").await;
    let run = worker.warm("items").await;
    assert_eq!(
        (&run["outcome"], failure_kinds(&run)),
        (&json!("partial"), vec!["cache_wrong_type"])
    );
    assert_eq!(run["report"]["tenants"]["failed"], 1, "{run}");
    assert_eq!(keys("items:*:4").await, 1);
    shop.execute("update tenants set status = 'left' where id between 8 and 20").await;
    worker.warm("items").await;
    eventually("all others are swept", LONG, async || {
        keys("items:9:*").await > 0 && keys("items:1[0-9]:*").await == 0
    })
    .await;
    assert_eq!((keys("items:8:*").await, keys("items:20:*").await), (0, 0));
    assert_eq!(keys("items:21:*").await, 18);
}

#[tokio::test]
async fn several_servers_behind_one_address_are_told_once_and_no_reason_for_runs_without_end() {
    const SEVERAL: &str = "preheat_cache_several_servers";
    let shop = Shop::open(30).await;
    let other = support::redis();
    let proxy = Proxy::redis(&shop.redis).await;
    let job = items("schedule = \"every 24h\"\nttl = \"72h\"\nrequired = true");
    let worker = shop.serve().cache(proxy.redis_url()).job("items", &job).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    // A load balancer leads each new connection to the next server.
    let turn = async |server: &Redis| {
        proxy.lead_to(server);
        let mut connection = support::redis_connection(server).await;
        eventually("the worker asks the other server which process it is", LONG, async || {
            let clients = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await;
            let clients: String = clients.unwrap();
            clients.contains("cmd=info")
        })
        .await;
    };
    turn(&other).await;
    worker.metric_becomes("preheat_cache_restarts_total", |value| value > 0.0).await;
    turn(&shop.redis).await;
    worker.metric_becomes(SEVERAL, |value| value > 0.0).await;
    let idle = async || worker.get("/api/v1/jobs/items").await.json()["state"] == "idle";
    eventually("the run for the first change has ended", LONG, idle).await;
    let before = worker.runs("items").await.len();
    for _ in 0..3 {
        turn(&other).await;
        turn(&shop.redis).await;
    }
    assert_eq!(worker.runs("items").await.len(), before);
    assert!(idle().await);
    assert_eq!(worker.metric(SEVERAL).await, Some(1.0));
    let said = worker.stderr();
    assert_eq!(
        said.matches("several servers answer behind the cache's address").count(),
        1,
        "{said}"
    );
    assert_eq!(worker.warm("items").await["outcome"], "ok", "a run that is asked for is done");
}
