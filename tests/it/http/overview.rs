//! What an operator asks over HTTP: the overview, tenants, and runs by filters.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use preheat::audit::Verifier;
use preheat::engine::ports::{CacheError, CacheErrorKind};
use serde_json::{Value, json};

use super::{Worker, code, refused};
use crate::support::{LONG, eventually};

async fn run(worker: &Worker, job: &str) -> Value {
    worker.clock.advance(Duration::from_secs(1)).await;
    worker.post(&format!("/api/v1/jobs/{job}/runs"), r#"{"wait": true}"#).await.json()
}

#[tokio::test]
async fn the_overview_says_whether_all_is_warm_and_asks_the_history_nothing() {
    let worker = Worker::start().await;
    let overview = worker.get("/api/v1/overview").await.json();
    assert_eq!(overview["verdict"]["sentence"], "2 jobs have not run yet.");
    assert_eq!(overview["jobs"].as_array().unwrap().len(), 3);
    run(&worker, "services").await;
    run(&worker, "report").await;
    let asked = worker.history.questions.load(Ordering::Relaxed);
    let overview = worker.get("/api/v1/overview").await.json();
    assert_eq!(overview["verdict"], json!({"level": "ok", "sentence": "All 3 tenants are warm."}));
    assert_eq!(overview["figures"]["coverage"]["tenants_warm"], 3);
    assert_eq!(overview["figures"]["hit_rate"]["ratio"], Value::Null);
    let services =
        &overview["jobs"].as_array().unwrap().iter().find(|job| job["name"] == "services");
    assert_eq!(services.unwrap()["runs"][0]["outcome"], "ok");
    assert_eq!(services.unwrap()["state"], "idle");
    assert_eq!(overview["next_hour"]["runs"], 1);
    let job = worker.get("/api/v1/jobs/services/overview").await.json();
    assert_eq!(job["next_due"].as_array().unwrap().len(), 5);
    assert_eq!(job["line"]["name"], "services");
    let gone = worker.get("/api/v1/jobs/gone/overview").await;
    assert_eq!(code(&gone), refused(404, "unknown_job"));
    worker.get("/api/v1/tenants?warm=false").await;
    worker.get("/api/v1/tenants/a").await;
    assert_eq!(worker.history.questions.load(Ordering::Relaxed), asked);
    worker.stop().await;
}

#[tokio::test]
async fn keys_that_differ_are_shown_and_their_values_only_to_those_who_may_change_something() {
    let mut worker = Worker::start().await;
    run(&worker, "services").await;
    worker.cache.set("services:b", "[\"secret\"]");
    let interval = Duration::from_mins(10);
    let verifier = Verifier::new(Arc::clone(&worker.runner), interval, NonZeroUsize::MAX);
    let stops = worker.stops.clone();
    worker.tasks.spawn(async move { verifier.run(stops).await });
    worker.clock.advance(Duration::from_mins(12)).await;
    let audit = worker.get_with_token("/api/v1/audit").await.json();
    assert_eq!(audit["has_values"], true);
    let jobs: Vec<_> = audit["jobs"].as_array().unwrap().iter().map(|job| &job["job"]).collect();
    assert_eq!(jobs, ["report", "services"], "not the job that is off");
    let services = &audit["jobs"][1];
    assert_eq!((&services["wrong"], &services["tenants"]), (&json!(1), &json!(3)));
    let found = &services["findings"][0];
    assert_eq!((&found["key"], &found["tenant"]), (&json!("services:b"), &json!("b")));
    assert_eq!(found["kind"], "stale");
    assert_eq!(found["found_at"], services["compared_at"]);
    assert_eq!(found["cache"], json!({"text": "[\"secret\"]", "bytes": 10, "is_cut": false}));
    assert_eq!(found["database"]["text"], "[{\"name\":\"Checkup\"}]");
    for path in ["/api/v1/audit", "/audit"] {
        let open = worker.get(path).await;
        assert!(open.body.contains("services:b") && !open.body.contains("secret"), "{open:?}");
    }
    let page = worker.get_with_token("/audit").await.body;
    assert!(page.contains("secret") && page.contains("Checkup"), "{page}");
    worker.stop().await;
}

#[tokio::test]
async fn the_limits_in_force_and_the_breakers_are_shown() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    worker.post("/api/v1/jobs/services/runs", "{}").await;
    let limits = async || worker.get("/api/v1/settings").await.json()["limits"].take();
    eventually("a batch holds a permit", LONG, async || limits().await["permits"]["in_use"] == 1)
        .await;
    let now = limits().await;
    let permits = json!({
        "most": 4, "for_changes": 0, "in_use": 1, "in_use_for_changes": 0, "waiting": 0,
        "jobs": [{"job": "services", "permits": 1}],
    });
    assert_eq!(now["permits"], permits);
    assert_eq!(now["connections"], json!({"most": 4, "in_use": 2, "idle": 1}));
    assert_eq!(now["memory"]["all_bytes"], 32 * 1024 * 1024);
    let up = |server: &str| {
        json!({
            "server": server, "state": "closed", "since": "2026-03-01T12:10:00.000Z", "failures": 0,
            "reason": null, "next_try_at": null, "times_open": 0,
        })
    };
    assert_eq!(now["breakers"], json!([up("database"), up("cache")]));
    let unavailable = || CacheError {
        kind: CacheErrorKind::Unavailable,
        message: "connection refused".to_owned(),
    };
    worker.cache.before_write(move |_| Box::pin(async move { Err(unavailable()) }));
    worker.gate.send_replace(true);
    eventually("the breaker opens", LONG, async || {
        worker.clock.advance(Duration::from_millis(100)).await;
        limits().await["breakers"][1]["state"] == "open"
    })
    .await;
    let cache = limits().await["breakers"][1].take();
    assert_eq!((&cache["failures"], &cache["times_open"]), (&json!(3), &json!(1)), "{cache}");
    assert_eq!(cache["reason"], "connection refused");
    assert!(cache["next_try_at"].as_str() > cache["since"].as_str(), "{cache}");
    let page = worker.get("/settings").await.body;
    assert!(page.contains("it is left alone") && page.contains("1 of 4 in use"), "{page}");
    worker.cache.before_write(|_| Box::pin(async { Ok(()) }));
    eventually("the breaker closes", LONG, async || {
        worker.clock.advance(Duration::from_secs(1)).await;
        limits().await["breakers"][1]["state"] == "closed"
    })
    .await;
    let cache = limits().await["breakers"][1].take();
    assert_eq!((&cache["failures"], &cache["times_open"]), (&json!(0), &json!(1)), "{cache}");
    assert_eq!(cache["reason"], Value::Null);
    worker.stop().await;
}

#[tokio::test]
async fn a_tenant_is_shown_with_its_keys_in_each_job() {
    let worker = Worker::start().await;
    run(&worker, "services").await;
    let tenant = worker.get("/api/v1/tenants/b").await.json();
    assert_eq!((&tenant["active"], &tenant["fence"].is_i64()), (&json!(true), &true));
    let jobs = tenant["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2, "not the job without tenants");
    assert_eq!((&jobs[0]["job"], &jobs[0]["state"]), (&json!("retired"), &json!("off")));
    assert_eq!((&jobs[1]["state"], &jobs[1]["keys_present"]), (&json!("warm"), &json!(1)));
    assert_eq!(jobs[1]["keys"][0]["key"], "services:b");
    assert_eq!(jobs[1]["not_warm"], Value::Null);
    let nobody = worker.get("/api/v1/tenants/nobody").await;
    assert_eq!(code(&nobody), refused(404, "unknown_tenant"));

    worker.fails.store(true, Ordering::Relaxed);
    run(&worker, "services").await;
    run(&worker, "services").await;
    let tenant = worker.get("/api/v1/tenants/b").await.json();
    assert_eq!(tenant["jobs"][1]["state"], "not_warm");
    let not_warm = &tenant["jobs"][1]["not_warm"];
    assert_eq!((&not_warm["kind"], &not_warm["tries"]), (&json!("query"), &json!(2)), "{not_warm}");
    assert_eq!(not_warm["next_try_at"], "2026-03-01T13:00:00.000Z", "when the job is due again");
    worker.stop().await;
}

#[tokio::test]
async fn tenants_that_are_not_warm_come_in_pages() {
    let worker = Worker::start().await;
    worker.fails.store(true, Ordering::Relaxed);
    run(&worker, "services").await;
    let page = async |query: &str| worker.get(&format!("/api/v1/tenants?{query}")).await.json();
    let first = page("warm=false&limit=2").await;
    assert_eq!((&first["total"], &first["more"]), (&json!(3), &json!(0)));
    assert_eq!((&first["active"], &first["next"]), (&json!(3), &json!("services:b")));
    let second = page("limit=2&cursor=services:b").await;
    assert_eq!(second["next"], Value::Null);
    assert_eq!(second["tenants"][0]["tenant"], "c");
    assert_eq!(second["tenants"][0]["kind"], "query");
    assert_eq!(page("job=report").await["total"], 0);
    assert_eq!(page("kind=query&job=services&cursor=").await["total"], 3);
    assert_eq!(page("kind=locked").await["total"], 0);
    for query in ["warm=true", "limit=0", "limit=1001", "job=a/b", "cursor=a/b", "who=me"] {
        let answer = worker.get(&format!("/api/v1/tenants?{query}")).await;
        assert_eq!(code(&answer), refused(400, "bad_request"), "{query}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn runs_are_filtered_and_come_in_pages() {
    let worker = Worker::start().await;
    let first = run(&worker, "services").await;
    run(&worker, "report").await;
    worker.fails.store(true, Ordering::Relaxed);
    run(&worker, "services").await;
    worker.fails.store(false, Ordering::Relaxed);
    let last = run(&worker, "services").await;
    let page = async |query: &str| worker.get(&format!("/api/v1/runs?{query}")).await.json();
    let ids = |page: &Value| -> Vec<Value> {
        page["runs"].as_array().unwrap().iter().map(|run| run["id"].clone()).collect()
    };
    assert_eq!(ids(&page("outcome=failed&job=services&trigger=request").await).len(), 1);
    assert_eq!(ids(&page("outcome=failed&trigger=schedule").await).len(), 0);
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let asked = worker.history.questions.load(Ordering::Relaxed);
        let next = page(&format!("limit=1&cursor={cursor}")).await;
        assert_eq!(worker.history.questions.load(Ordering::Relaxed), asked + 1);
        all.extend(ids(&next));
        let Some(text) = next["next"].as_str() else { break };
        cursor = text.to_owned();
    }
    assert_eq!(all.len(), 4);
    assert_eq!(ids(&page("").await), all);
    let since = last["started_at"].as_str().unwrap();
    assert_eq!(ids(&page(&format!("since={since}")).await), [last["id"].clone()]);
    assert_eq!(ids(&page(&format!("until={since}")).await).len(), 3);
    for query in ["outcome=good", "trigger=moon", "since=now", "until=9", "cursor=1", "limit=501"] {
        let answer = worker.get(&format!("/api/v1/runs?{query}")).await;
        assert_eq!(code(&answer), refused(400, "bad_request"), "{query}");
    }

    eventually("the history has all runs", LONG, async || worker.history.memory_len().await == 4)
        .await;
    let detail = worker.get(&format!("/api/v1/runs/{}", last["id"].as_str().unwrap())).await.json();
    assert_eq!(detail["compared"]["run"], first["id"], "not with the failed run");
    assert_eq!(detail["compared"]["keys"], json!({"now": 3, "before": 3, "percent": 0.0}));
    assert_eq!(detail["neighbors"]["later"], Value::Null);
    assert_eq!(detail["neighbors"]["earlier"], all[1]);
    worker.history.away.store(true, Ordering::Relaxed);
    let detail = worker.get(&format!("/api/v1/runs/{}", last["id"].as_str().unwrap())).await.json();
    assert_eq!((&detail["state"], &detail["compared"]), (&json!("finished"), &Value::Null));
    worker.stop().await;
}
