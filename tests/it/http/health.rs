//! Health, readiness and metrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use preheat::http::{HealthError, health};
use serde_json::json;

use super::{Worker, code, refused};
use crate::support::http::request;
use crate::support::{LONG, eventually};

#[tokio::test]
async fn hazard_22_health_turns_when_the_scheduler_is_silent() {
    let worker = Worker::start().await;
    let answer = worker.get("/healthz").await;
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("ok")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    health(worker.address).await.unwrap();

    // The bell is silent here, and the loop turns by itself.
    worker.clock.advance(Duration::from_secs(11)).await;
    let answer = worker.get("/healthz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["silent"], json!(["scheduler"]));
    let unwell = health(worker.address).await.unwrap_err();
    assert!(matches!(&unwell, HealthError::Unwell { answer, .. } if answer.contains("scheduler")));

    let address = worker.address;
    worker.stop().await;
    let gone = health(address).await.unwrap_err();
    assert!(matches!(gone, HealthError::Unreachable { .. }), "{gone}");
}

#[tokio::test]
async fn readiness_waits_for_required_jobs() {
    let worker = Worker::start().await;
    let answer = worker.get("/readyz").await;
    assert_eq!((answer.status, &answer.json()["waiting"]), (503, &json!(["services"])));
    worker.post("/api/v1/jobs/services/runs", r#"{"wait": true, "tenants": ["a"]}"#).await;
    assert_eq!(worker.get("/readyz").await.status, 503, "one tenant is not the job");
    worker.post("/api/v1/jobs/services/runs", r#"{"wait": true}"#).await;
    let answer = worker.get("/readyz").await;
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("ready")));
    worker.gate.send_replace(false);
    worker.post("/api/v1/jobs/services/runs", "").await;
    worker.until_running("services").await;
    worker.stops.drain.cancel();
    eventually("the worker drains", LONG, async || {
        worker.get("/readyz").await.json()["status"] == "draining"
    })
    .await;
    assert_eq!(worker.get("/readyz").await.status, 503);
    assert_eq!(worker.get("/healthz").await.status, 200, "a worker that stops is well");
    let answer = worker.post("/api/v1/runs", "").await;
    assert_eq!(code(&answer), refused(503, "draining"));
    assert!(answer.header("retry-after").is_some());
    worker.stop().await;
}

#[tokio::test]
async fn readiness_gives_up_and_names_what_is_missing() {
    let worker = Worker::start().await;
    worker.clock.advance(Duration::from_secs(121)).await;
    let answer = worker.get("/readyz").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["status"], "gave_up");
    assert_eq!(answer.json()["waiting"], json!(["services"]));
    worker.stop().await;
}

#[tokio::test]
async fn metrics_come_in_both_formats_and_fresh() {
    let worker = Worker::start().await;
    worker.post("/api/v1/jobs/services/runs", r#"{"wait": true}"#).await;
    let page = worker.get("/metrics").await;
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "preheat_runs_total{job_name=\"services\",trigger=\"request\",outcome=\"ok\"} 1\n",
        "preheat_runs_total{job_name=\"report\",trigger=\"schedule\",outcome=\"failed\"} 0\n",
        "preheat_keys_total{job_name=\"services\",outcome=\"written\"} 3\n",
        "preheat_db_connections{state=\"in_use\"} 2\n",
    ] {
        assert!(page.body.contains(line), "{line} in\n{}", page.body);
    }
    assert_eq!(worker.refreshes.load(Ordering::Relaxed), 1);
    let accept = ("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let page = request(worker.address, "GET", "/metrics", &[accept], "").await.unwrap();
    assert!(page.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(page.body.ends_with("# EOF\n"));
    worker.stop().await;
}
