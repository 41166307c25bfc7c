//! The worker's life from its start until runs are requested.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::program::Running;
use crate::support::shop::{Shop, TOKEN, items, items_by};
use crate::support::{LONG, eventually, preheat};

/// All counters and histograms of a job that the contract names, with their labels.
fn series_of(job: &str) -> Vec<String> {
    let mut series = Vec::new();
    for outcome in ["ok", "partial", "failed", "timeout", "cancelled"] {
        for trigger in ["schedule", "startup", "request"] {
            let labels = format!("job_name=\"{job}\",trigger=\"{trigger}\",outcome=\"{outcome}\"");
            series.push(format!("preheat_runs_total{{{labels}}}"));
        }
    }
    for outcome in ["written", "removed", "failed", "fenced"] {
        series.push(format!("preheat_keys_total{{job_name=\"{job}\",outcome=\"{outcome}\"}}"));
    }
    for outcome in ["ok", "failed"] {
        series.push(format!("preheat_tenants_total{{job_name=\"{job}\",outcome=\"{outcome}\"}}"));
    }
    for reason in ["overlap", "queue_full", "draining"] {
        series
            .push(format!("preheat_runs_skipped_total{{job_name=\"{job}\",reason=\"{reason}\"}}"));
    }
    let plain = [
        "preheat_run_duration_seconds_count",
        "preheat_fire_lag_seconds_count",
        "preheat_bytes_total",
    ];
    series.extend(plain.map(|name| format!("{name}{{job_name=\"{job}\"}}")));
    series
}

#[tokio::test]
async fn a_worker_warms_at_its_start_and_is_ready_when_it_has() {
    let shop = Shop::open(30).await;
    let holder = shop.hold().await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.works().await;
    shop.held(1).await;
    let ready = worker.get("/readyz").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert_eq!(ready.json()["waiting"], json!(["items"]));
    for series in series_of("items") {
        assert_eq!(worker.metric(&series).await, Some(0.0), "{series}");
    }
    let last = ["preheat_last_success_timestamp_seconds", "preheat_last_run_timestamp_seconds"]
        .map(|name| format!("{name}{{job_name=\"items\"}}"));
    for series in &last {
        assert_eq!(worker.metric(series).await, None, "{series}");
    }
    let next = "preheat_next_run_timestamp_seconds{job_name=\"items\"}";
    assert!(worker.metric(next).await > Some(1_700_000_000.0));
    assert_eq!(worker.metric("preheat_change_feed_connected").await, None, "no job has `tables`");
    for state in ["idle", "in_use", "max"] {
        let series = format!("preheat_db_connections{{state=\"{state}\"}}");
        assert!(worker.metric(&series).await.is_some(), "{series}");
    }
    assert_eq!(worker.metric("preheat_change_lag_seconds_count").await, Some(0.0));

    drop(holder);
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!((&job["state"], &job["last_run"]["trigger"]), (&json!("idle"), &json!("startup")));
    assert_eq!(job["last_run"]["outcome"], "ok");
    let bytes = job["last_run"]["report"]["bytes"].as_f64();
    for (series, value) in [
        ("preheat_runs_total{job_name=\"items\",trigger=\"startup\",outcome=\"ok\"}", Some(1.0)),
        ("preheat_tenants_total{job_name=\"items\",outcome=\"ok\"}", Some(30.0)),
        ("preheat_keys_total{job_name=\"items\",outcome=\"written\"}", Some(30.0)),
        ("preheat_bytes_total{job_name=\"items\"}", bytes),
        ("preheat_run_duration_seconds_count{job_name=\"items\"}", Some(1.0)),
        ("preheat_db_connections{state=\"max\"}", Some(4.0)),
        ("preheat_concurrency_limit", Some(3.0)),
        ("preheat_permits{job_name=\"items\"}", Some(0.0)),
        ("preheat_cache_evicted_during_run_total{job_name=\"items\"}", Some(0.0)),
        ("preheat_cache_max_memory_bytes", None),
    ] {
        assert_eq!(worker.metric(series).await, value, "{series}");
    }
    let started = ["preheat_start_timestamp_seconds", "process_start_time_seconds"];
    for series in last.iter().map(String::as_str).chain(started) {
        let value = worker.metric(series).await;
        assert!(value > Some(1_700_000_000.0), "{series} {value:?}");
    }
    for series in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "preheat_cache_used_memory_bytes",
    ] {
        assert!(worker.metric(series).await > Some(0.0), "{series}");
    }
    worker.metric_becomes("preheat_history_pending", |pending| pending < 1.0).await;
    worker
        .metric_becomes("preheat_coverage_ratio{job_name=\"items\"}", |share| share > 0.999)
        .await;
    shop.value("nothing").await;
    assert!(worker.metric("preheat_cache_misses_total").await > Some(0.0));
}

#[tokio::test]
async fn hazard_28_a_required_job_that_fails_is_named_until_one_waits_no_longer() {
    let shop = Shop::open(2).await;
    let query = "select tenant_id, id, id / (id - id) as none from items where tenant_id = any($1)";
    let worker = shop
        .serve()
        .env("PREHEAT_HTTP__READY_WITHIN", "4s")
        .job("items", &items_by("required = true", query))
        .job("others", &items("").replace("items:", "others:"))
        .start();
    for (status, code) in [("waiting", 503), ("gave_up", 200)] {
        let mut answer = None;
        eventually(&format!("/readyz says {status}"), LONG, async || {
            answer = http::get(worker.address(), "/readyz").await.ok();
            answer.as_ref().is_some_and(|answer| answer.json()["status"] == status)
        })
        .await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, &answer.json()["waiting"]), (code, &json!(["items"])));
    }
    assert_eq!(worker.get("/healthz").await.status, 200);
    let failed = worker.warm("items").await;
    assert_eq!(failed["outcome"], "partial", "a tenant has no rows");
    let message = failed["report"]["failures"][0]["message"].as_str().unwrap();
    assert!(message.contains("division by zero (22012)"), "{message}");
    let success = "preheat_last_success_timestamp_seconds{job_name=\"items\"}";
    assert_eq!(worker.metric(success).await, None);
}

#[tokio::test]
async fn a_worker_refuses_to_start_with_a_bad_job_file_and_shows_all_problems() {
    let shop = Shop::open(1).await;
    let bad = items("shedule = \"every 1m\"\nretries = 21");
    let output = shop.serve().job("items", &items("")).job("bad", &bad).run().await.expect_code(2);
    for part in ["jobs/bad.toml", "shedule", "schedule", "retries"] {
        assert!(output.stderr.contains(part), "{part} in {}", output.stderr);
    }
    assert!(shop.cached().await.is_empty());
}

#[tokio::test]
async fn a_worker_whose_port_is_taken_says_so() {
    let shop = Shop::open(1).await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let worker = shop.serve().env("PREHEAT_HTTP__LISTEN", &listen).job("items", &items(""));
    let output = worker.run().await.expect_code(1);
    let expected = format!("could not listen on `{listen}`");
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
    assert!(output.stderr.contains("in use"), "{}", output.stderr);
}

const RUNS: &str = "/api/v1/runs";
const RUNS_OF_ITEMS: &str = "/api/v1/jobs/items/runs";

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned())
}

/// A worker with a job for tenants, one for the fleet and a disabled one, all of them idle.
async fn idle_worker(shop: &Shop) -> Running {
    let fleet = "schedule = \"every 1h\"\nttl = \"3h\"\ntenants = false\non_start = false\n\
                 [query]\nsql = \"select count(*)::int as tenants from tenants\"\n\
                 [[keys]]\nkey = \"fleet\"\n";
    let disabled = items("enabled = false").replace("items:", "retired:");
    let worker = shop
        .serve()
        .job("items", &items("on_start = false"))
        .job("fleet", fleet)
        .job("retired", &disabled)
        .start();
    worker.answers("/readyz", 200).await;
    worker
}

#[tokio::test]
async fn runs_can_be_asked_for_with_the_token_and_looked_at_without() {
    let shop = Shop::open(10).await;
    let worker = idle_worker(&shop).await;

    let all = worker.post(RUNS, &json!({"wait": true})).await;
    assert_eq!(all.status, 200, "{all:?}");
    let all = all.json();
    let runs: Vec<_> = all["runs"].as_array().unwrap().iter().collect();
    let jobs: BTreeSet<_> = runs.iter().map(|run| run["job"].as_str().unwrap()).collect();
    assert_eq!(jobs, BTreeSet::from(["fleet", "items"]));
    assert!(runs.iter().all(|run| run["outcome"] == "ok" && run["trigger"] == "request"));
    assert_eq!(shop.value("fleet").await.as_deref(), Some("[{\"tenants\":10}]"));

    shop.change().await;
    let some = worker.post(RUNS_OF_ITEMS, &json!({"tenants": ["3", "99"], "wait": true})).await;
    assert_eq!(some.status, 200, "{some:?}");
    let some = some.json();
    assert_eq!(some["outcome"], "partial");
    assert_eq!(some["report"]["tenants"], json!({"total": 2, "ok": 1, "failed": 1, "fenced": 0}));
    assert_eq!(some["report"]["failures"][0]["tenant"], "99");
    let version = |value: Option<String>| {
        serde_json::from_str::<Value>(&value.unwrap()).unwrap()[0]["version"].clone()
    };
    assert_eq!(version(shop.value("items:3").await), 2);
    assert_eq!(version(shop.value("items:4").await), 1);

    let accepted = worker.post(RUNS_OF_ITEMS, &json!({})).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let location = accepted.header("location").unwrap().to_owned();
    assert_eq!(location, format!("{RUNS}/{}", accepted.json()["id"].as_str().unwrap()));
    eventually("the run has ended", LONG, async || {
        worker.get(&location).await.json()["state"] == "finished"
    })
    .await;
    shop.assert_warm().await;
    let newest = worker.runs("items").await;
    assert_eq!(newest[0]["id"], accepted.json()["id"]);
    assert_eq!(newest.len(), 3);
    let one = worker.get("/api/v1/runs?limit=1").await.json();
    assert_eq!(one["runs"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_request_that_is_refused_says_why() {
    let shop = Shop::open(2).await;
    let worker = idle_worker(&shop).await;
    let address = worker.address();
    let none = http::post(address, RUNS, &[], "").await.unwrap();
    assert_eq!(code(&none), (401, "unauthorized".to_owned()));
    let wrong = [("authorization", "Bearer abracadabra")];
    let wrong = http::post(address, RUNS, &wrong, "").await.unwrap();
    assert_eq!(code(&wrong), (401, "unauthorized".to_owned()));
    for (path, body, status, expected) in [
        ("/api/v1/jobs/itmes/runs", json!({}), 404, "unknown_job"),
        ("/api/v1/jobs/retired/runs", json!({}), 409, "job_disabled"),
        ("/api/v1/jobs/fleet/runs", json!({"tenants": ["1"]}), 422, "takes_no_tenants"),
        (RUNS_OF_ITEMS, json!({"tenants": []}), 422, "invalid_tenants"),
        (RUNS_OF_ITEMS, json!({"tenant": "1"}), 422, "invalid_body"),
    ] {
        let answer = worker.post(path, &body).await;
        assert_eq!(code(&answer), (status, expected.to_owned()), "{path} {body}");
    }
    let unknown = worker.get("/api/v1/runs/0191c6c0-0000-7000-8000-00000000000a").await;
    assert_eq!(code(&unknown), (404, "unknown_run".to_owned()));
    assert!(worker.runs("items").await.is_empty());

    let closed = shop.serve().env("PREHEAT_HTTP__TOKEN", "").job("items", &items("")).start();
    closed.answers("/readyz", 200).await;
    assert_eq!(code(&closed.post(RUNS, &json!({})).await), (403, "no_token_configured".to_owned()));
}

#[tokio::test]
async fn a_full_queue_sends_requests_away_until_it_has_room() {
    let shop = Shop::open(40).await;
    let worker = idle_worker(&shop).await;
    let holder = shop.hold().await;
    let ask = async |tenant: u32| {
        worker.post(RUNS_OF_ITEMS, &json!({"tenants": [tenant.to_string()]})).await
    };
    assert_eq!(ask(1).await.status, 202);
    shop.held(1).await;
    for tenant in 2..=17 {
        assert_eq!(ask(tenant).await.status, 202, "{tenant}");
    }
    let full = ask(18).await;
    assert_eq!(code(&full), (429, "queue_full".to_owned()));
    assert!(full.header("retry-after").is_some(), "{full:?}");
    assert_eq!(ask(17).await.status, 202, "a run for the same waits already");
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!(job["queued"].as_array().map(Vec::len), Some(16));
    let skipped = "preheat_runs_skipped_total{job_name=\"items\",reason=\"queue_full\"}";
    assert_eq!(worker.metric(skipped).await, Some(1.0));
    drop(holder);
    eventually("all runs have ended", LONG, async || worker.runs("items").await.len() == 17).await;
    assert_eq!(ask(18).await.status, 202);
}

#[tokio::test]
async fn a_request_that_comes_twice_is_one_run() {
    let shop = Shop::open(3).await;
    let worker = idle_worker(&shop).await;
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("idempotency-key", "deploy-7")];
    let ask = async |body: &'static str| {
        http::post(worker.address(), RUNS_OF_ITEMS, &headers, body).await.unwrap()
    };
    let (first, second) = tokio::join!(ask("{\"wait\":true}"), ask("{\"wait\":true}"));
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(ask("{\"wait\":true}").await.json()["id"], first.json()["id"]);
    let other = ask("{\"tenants\":[\"1\"]}").await;
    assert_eq!(code(&other), (422, "idempotency_key_reused".to_owned()));
    assert_eq!(worker.runs("items").await.len(), 1);
}

#[tokio::test]
async fn a_worker_whose_log_nobody_reads_any_more_goes_on() {
    let shop = Shop::open(3).await;
    let mut worker = idle_worker(&shop).await;
    worker.log_is_closed().await;
    for _ in 0..3 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    shop.assert_warm().await;
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
}

#[tokio::test]
async fn the_program_can_be_asked_whether_its_worker_is_well() {
    let shop = Shop::open(1).await;
    let worker = idle_worker(&shop).await;
    let ask = preheat(["health"]).env("PREHEAT_HTTP__LISTEN", worker.address().to_string());
    ask.run().await.expect_code(0);
}
