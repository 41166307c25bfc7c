//! The worker stays a guest: connections and memory are bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use serde_json::json;

use crate::support::program::{Preheat, preheat};
use crate::support::shop::{QUERY, Shop, failure_kinds, items, items_by};
use crate::support::{LONG, documented_peak_mib, eventually};

#[tokio::test]
async fn hazard_14_whatever_comes_at_once_takes_no_more_connections_than_allowed() {
    const MOST: i64 = 2;
    let shop = Arc::new(Shop::open(24).await);
    let query = QUERY.replace("from items", "from items, pg_sleep(0.02)");
    let mut worker = shop.serve().env("PREHEAT_DATABASE__MAX_CONNECTIONS", MOST.to_string());
    let jobs = ["a", "b", "c", "d", "e", "f"];
    for job in jobs {
        let file = items_by("batch = 3", &query).replace("items:", &format!("{job}:"));
        worker = worker.job(job, &file);
    }
    let (most, ended) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (shop, most, ended) = (Arc::clone(&shop), Arc::clone(&most), Arc::clone(&ended));
        tokio::spawn(async move {
            let mut connection = shop.connect().await;
            let sql = "select count(*) from pg_stat_activity \
                       where application_name = 'preheat' and datname = current_database()";
            while !ended.load(Ordering::SeqCst) {
                let now: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
                most.fetch_max(now, Ordering::SeqCst);
            }
        })
    };
    let worker = worker.start();
    worker.answers("/readyz", 200).await;
    for _ in 0..3 {
        assert_eq!(worker.post("/api/v1/runs", &json!({})).await.status, 202);
        let looks = ["/metrics", "/api/v1/runs", "/api/v1/jobs"].map(|path| worker.get(path));
        let looks = futures::future::join_all(looks).await;
        assert!(looks.iter().all(|look| look.status == 200), "{looks:?}");
    }
    eventually("every run has ended", LONG, async || {
        let mut idle = 0;
        for job in jobs {
            let job = worker.get(&format!("/api/v1/jobs/{job}")).await.json();
            idle += usize::from(job["state"] == "idle" && job["queued"] == json!([]));
        }
        idle == jobs.len()
    })
    .await;
    ended.store(true, Ordering::SeqCst);
    watch.await.unwrap();
    assert_eq!(most.load(Ordering::SeqCst), MOST, "all that are allowed are used, and no more");
    for job in jobs {
        let runs = worker.runs(job).await;
        assert!(runs.len() >= 2 && runs.iter().all(|run| run["outcome"] == "ok"), "{runs:?}");
    }
    assert_eq!(worker.metric("preheat_db_connections{state=\"max\"}").await, Some(2.0));
}

/// The most memory that a process has ever used, in KiB.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[tokio::test]
async fn hazard_20_a_giant_tenant_is_warmed_within_bounded_memory() {
    let shop = Shop::open(200).await;
    shop.execute(
        "update items set name = repeat('x', 2500) || id;
         insert into items select 5, i, repeat('g', 13000) from generate_series(21, 1020) i;
         analyze",
    )
    .await;
    let job = items("required = true") + "max_bytes = \"50MiB\"\n";
    let worker = shop.serve().job("items", &job).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    let giant = shop.value("items:5").await.unwrap().len();
    assert!(giant > 200 * shop.value("items:6").await.unwrap().len(), "{giant}");
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "ok", "{run}");
    let peak = peak(worker.id());
    assert!(peak < 120 * 1024, "{peak} KiB");
}

#[tokio::test]
async fn hazard_20_the_largest_tenant_fits_into_the_documented_memory_and_a_larger_one_fails_alone()
{
    let shop = Shop::open(200).await;
    // Rows of 13 kB: slightly less than 16 MiB, and slightly more.
    shop.execute(
        "update items set name = repeat('x', 2500) || id;
         insert into items select 5, i, repeat('g', 13000) from generate_series(21, 1280) i;
         insert into items select 9, i, repeat('g', 13000) from generate_series(21, 1380) i;
         analyze",
    )
    .await;
    let job = items("on_start = false") + "max_bytes = \"50MiB\"\n";
    let worker = shop.serve().job("items", &job).start();
    worker.answers("/readyz", 200).await;
    for _ in 0..3 {
        let run = worker.warm("items").await;
        assert_eq!(run["outcome"], "partial", "{run}");
        let tenants = &run["report"]["tenants"];
        assert_eq!((&tenants["ok"], &tenants["failed"]), (&json!(199), &json!(1)));
        assert_eq!(failure_kinds(&run), ["too_many_rows"]);
        let failure = &run["report"]["failures"][0];
        assert_eq!(failure["tenant"], "9");
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("`runner.max_tenant_bytes`, which is 16MiB"), "{message}");
    }
    let largest = shop.value("items:5").await.unwrap().len();
    assert!(largest > 15 * 1024 * 1024, "{largest}");
    assert_eq!(shop.value("items:9").await, None);
    let peak = peak(worker.id());
    assert!(peak < documented_peak_mib() * 1024, "{peak} KiB");
}

#[tokio::test]
async fn hazard_40_a_lock_on_one_table_holds_up_neither_changes_of_others_nor_their_runs() {
    let shop = Shop::open(40).await;
    shop.execute(
        "create table services (tenant_id int not null, id int not null, version int not null);
         insert into services select n, 1, 1 from generate_series(1, 40) n",
    )
    .await;
    let tables = |name: &str| format!("tables = [\"{name}\"]\nrequired = true\nbatch = 5");
    let services = items_by(
        &tables("services"),
        "select tenant_id, id, version from services where tenant_id = any($1)",
    );
    let slots = items_by(
        "schedule = \"every 1s\"\nttl = \"1m\"\ntimeout = \"20s\"\nrequired = true",
        "select id as tenant_id, id from tenants where id = any($1)",
    );
    let services = services.replace("items:", "services:");
    let jobs = [
        ("items", items(&tables("items"))),
        ("services", services),
        ("slots", slots.replace("items:", "slots:")),
    ];
    let install = preheat(["changes", "install"]).database(shop.url());
    let with_jobs =
        |program: Preheat| jobs.iter().fold(program, |p, (name, file)| p.job(name, file));
    with_jobs(install).run().await.expect_code(0);
    let worker = with_jobs(shop.serve()).start();
    worker.answers("/readyz", 200).await;
    worker.metric_becomes("preheat_change_feed_connected", |value| value > 0.0).await;
    // Changes of the table wait for the lock, and so does a run of its job.
    shop.change().await;
    let holder = shop.hold().await;
    let run = worker.post("/api/v1/jobs/items/runs", &json!({})).await;
    assert_eq!(run.status, 202);
    let held = "preheat_permits{job_name=\"items\"}";
    worker.metric_becomes(held, |permits| permits > 0.0).await;

    // The lock is held until all of this was seen.
    for version in 2..5 {
        shop.execute(&format!("update services set version = {version} where tenant_id = 7")).await;
        let expected = format!("[{{\"id\":1,\"version\":{version}}}]");
        eventually("the change is there", LONG, async || {
            shop.value("services:7").await.as_deref() == Some(&expected)
        })
        .await;
    }
    let ok_runs = async || {
        let runs = worker.runs("slots").await;
        runs.iter().filter(|run| run["outcome"] == "ok").count()
    };
    let before = ok_runs().await;
    eventually("runs of other jobs go on", LONG, async || ok_runs().await >= before + 3).await;
    assert!(worker.metric(held).await < Some(3.0), "it never holds the last permit");
    drop(holder);
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    worker.metric_becomes(held, |permits| permits < 1.0).await;
}

#[tokio::test]
async fn hazard_40_a_run_waits_for_a_lock_in_short_tries_and_says_so_if_it_waits_in_vain() {
    let shop = Shop::open(12).await;
    let lines = "on_start = false\nbatch = 4\nretries = 0";
    let in_vain = items(&format!("{lines}\ntimeout = \"4s\"")).replace("items:", "short:");
    let worker = shop.serve().job("items", &items(lines)).job("short", &in_vain);
    let mut worker = worker.start();
    worker.answers("/readyz", 200).await;
    let holder = shop.hold().await;
    let short = worker.warm("short").await;
    assert_eq!(short["outcome"], "timeout", "{short}");
    assert_eq!(failure_kinds(&short), ["locked", "deadline"], "{short}");
    assert!(short["report"]["failures"][0]["message"].as_str().unwrap().contains("55P03"));

    let run = worker.post("/api/v1/jobs/items/runs", &json!({})).await.json();
    worker.says("a batch of job `items` failed and is tried again").await;
    drop(holder);
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    eventually("the run has ended", LONG, async || {
        worker.get(&path).await.json()["state"] == "finished"
    })
    .await;
    let run = worker.get(&path).await.json();
    assert_eq!(run["outcome"], "ok", "{run}");
    let [queries, retries] =
        ["queries", "retries"].map(|name| run["report"][name].as_u64().unwrap());
    assert!(retries > 0 && queries == retries + 3, "three batches, none of them split: {run}");
    assert_eq!(worker.metric("preheat_breaker_open{server=\"database\"}").await, Some(0.0));
    shop.assert_warm().await;
}
