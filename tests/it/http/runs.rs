//! Jobs and their runs: shown, asked for, repeated and refused.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use preheat::engine::ports::{Clock, History};
use serde_json::{Value, json};

use super::{TOKEN, Worker, code, refused};
use crate::support::http::post;
use crate::support::{LONG, eventually};

#[tokio::test]
async fn jobs_are_shown_with_schedule_state_and_last_run() {
    let worker = Worker::start().await;
    let jobs = worker.get("/api/v1/jobs").await.json();
    let names: Vec<_> = jobs["jobs"].as_array().unwrap().iter().map(|job| &job["name"]).collect();
    assert_eq!(names, ["report", "retired", "services"]);
    let mut services = worker.get("/api/v1/jobs/services").await.json();
    assert_eq!(services, jobs["jobs"][2]);
    assert_eq!(services["last_run"].take(), Value::Null);
    insta::assert_json_snapshot!(services, @r##"
    {
      "batch": {
        "configured": 100,
        "now": 100,
        "reason": null
      },
      "description": "What a clinic offers.",
      "enabled": true,
      "keys": [
        "services:{tenant_id}"
      ],
      "last_run": null,
      "last_success_at": null,
      "name": "services",
      "next_due_at": "2026-03-01T13:00:00.000Z",
      "pause": null,
      "queued": [],
      "rejected_for": [],
      "required": true,
      "running": null,
      "schedule": "every 1h",
      "state": "idle",
      "tenants": true,
      "timeout": "5m",
      "timezone": null,
      "ttl": "3h"
    }
    "##);
    let report = worker.get("/api/v1/jobs/report").await.json();
    assert_eq!(report["schedule"], "0 30 4 * * *");
    assert_eq!(report["timezone"], "Europe/Berlin");
    assert_eq!((&report["tenants"], &report["state"]), (&json!(false), &json!("idle")));
    let retired = worker.get("/api/v1/jobs/retired").await.json();
    assert_eq!((&retired["state"], &retired["next_due_at"]), (&json!("disabled"), &Value::Null));

    worker.post("/api/v1/jobs/services/runs", r#"{"wait": true}"#).await;
    let services = worker.get("/api/v1/jobs/services").await.json();
    assert_eq!(services["last_run"]["outcome"], "ok");
    assert_eq!(services["last_success_at"], "2026-03-01T12:10:00.000Z");
    worker.stop().await;
}

#[tokio::test]
async fn what_changes_something_needs_the_token() {
    let worker = Worker::start().await;
    for path in ["/api/v1/runs", "/api/v1/jobs/services/runs", "/api/v1/jobs/nothing/runs"] {
        let answer = post(worker.address, path, &[], "").await.unwrap();
        assert_eq!(code(&answer), refused(401, "unauthorized"));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"preheat\""));
        let wrong = ("authorization", "Bearer sesame");
        let answer = post(worker.address, path, &[wrong], "").await.unwrap();
        assert_eq!(code(&answer), refused(401, "unauthorized"));
        assert!(answer.header("www-authenticate").unwrap().contains("invalid_token"));
    }
    assert!(worker.cache.keys().is_empty());
    worker.stop().await;

    let without = Worker::start_with(None).await;
    let answer = without.post("/api/v1/runs", "").await;
    assert_eq!(code(&answer), refused(403, "no_token_configured"));
    assert_eq!(without.get("/api/v1/jobs").await.status, 200);
    without.stop().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "most of it is one snapshot")]
async fn a_run_is_accepted_and_can_be_followed() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    let answer = worker.post("/api/v1/jobs/services/runs", "").await;
    assert_eq!(answer.status, 202);
    let run = answer.json();
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(path.as_str()));
    let shown = worker.get(&path).await.json();
    assert_eq!((&shown["id"], &shown["state"]), (&run["id"], &json!("running")));
    assert_eq!((&shown["outcome"], &shown["report"]), (&Value::Null, &Value::Null));
    let queued = worker.post("/api/v1/jobs/services/runs", r#"{"tenants": ["b"]}"#).await.json();
    assert_eq!((&queued["state"], &queued["started_at"]), (&json!("queued"), &Value::Null));

    worker.gate.send_replace(true);
    let finished = worker.finished(&run).await;
    insta::assert_json_snapshot!(finished, {
        ".id" => "[id]",
        ".neighbors" => "[neighbors]",
        ".report.time" => "[times]",
        ".version" => "[version]",
    }, @r##"
    {
      "compared": null,
      "due_at": "2026-03-01T12:10:00.000Z",
      "duration_ms": 0,
      "finished_at": "2026-03-01T12:10:00.000Z",
      "id": "[id]",
      "job": "services",
      "missing_shares": null,
      "neighbors": "[neighbors]",
      "outcome": "ok",
      "part_of": null,
      "parts": [],
      "progress": {
        "bytes": 60,
        "keys": 3,
        "tenants_done": 3,
        "tenants_total": 3
      },
      "replica": "test",
      "report": {
        "bytes": 60,
        "database_ms": 0,
        "evicted": 0,
        "failed_tenants": [],
        "failures": [],
        "keys": {
          "failed": 0,
          "fenced": 0,
          "removed": 0,
          "written": 3
        },
        "late": false,
        "queries": 1,
        "retries": 0,
        "tenants": {
          "failed": 0,
          "fenced": 0,
          "ok": 3,
          "total": 3
        },
        "time": "[times]"
      },
      "requested_by": "token",
      "shares": null,
      "started_at": "2026-03-01T12:10:00.000Z",
      "state": "finished",
      "trigger": "request",
      "version": "[version]"
    }
    "##);
    let tenants = worker.finished(&queued).await["report"]["tenants"].take();
    assert_eq!(tenants, json!({"total": 1, "ok": 1, "failed": 0, "fenced": 0}));
    worker.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_code() {
    let worker = Worker::start().await;
    let one = "/api/v1/jobs/services/runs";
    let cases = [
        (one, "{", 400, "bad_request"),
        (one, "[]", 422, "invalid_body"),
        (one, r#"{"tenant": ["a"]}"#, 422, "invalid_body"),
        (one, r#"{"tenants": [1.5]}"#, 422, "invalid_body"),
        (one, r#"{"tenants": []}"#, 422, "invalid_tenants"),
        ("/api/v1/jobs/report/runs", r#"{"tenants": ["a"]}"#, 422, "takes_no_tenants"),
        ("/api/v1/jobs/retired/runs", "", 409, "job_disabled"),
        ("/api/v1/jobs/nothing/runs", "", 404, "unknown_job"),
        ("/api/v1/jobs/..%2f..%2fetc/runs", "", 404, "unknown_job"),
        ("/api/v1/nothing", "", 404, "not_found"),
        ("/api/v1/jobs", "", 405, "method_not_allowed"),
        ("/healthz", "", 405, "method_not_allowed"),
    ];
    for (path, body, status, expected) in cases {
        assert_eq!(
            code(&worker.post(path, body).await),
            refused(status, expected),
            "{path} {body}"
        );
    }
    let large = format!(r#"{{"tenants": ["{}"]}}"#, "x".repeat(70_000));
    assert_eq!(code(&worker.post(one, &large).await), refused(413, "too_large"));
    let headers = [TOKEN, ("content-type", "text/plain")];
    let text = post(worker.address, one, &headers, "{}").await.unwrap();
    assert_eq!(code(&text), refused(415, "unsupported_media_type"));
    let key = worker.post_with_key(one, &"x".repeat(300), "").await;
    assert_eq!(code(&key), refused(400, "bad_request"));

    let unknown = "/api/v1/runs/01890a5d-ac96-774b-bcce-b302099a8057";
    let reads = [
        ("/api/v1/jobs/nothing", 404, "unknown_job"),
        (unknown, 404, "unknown_run"),
        ("/api/v1/runs/17", 404, "unknown_run"),
        ("/api/v1/runs?limit=0", 400, "bad_request"),
        ("/api/v1/runs?limit=501", 400, "bad_request"),
        ("/api/v1/runs?limit=many", 400, "bad_request"),
        ("/api/v1/runs?limt=5", 400, "bad_request"),
        ("/api/v1/runs?job=..", 400, "bad_request"),
        ("/nothing", 404, "not_found"),
    ];
    for (path, status, expected) in reads {
        assert_eq!(code(&worker.get(path).await), refused(status, expected), "{path}");
    }
    let parameters = worker.get("/api/v1/runs?limt=5").await.json();
    assert_eq!(
        parameters["error"]["message"],
        "the parameters are `job`, `outcome`, `trigger`, `since`, `until`, `cursor`, and `limit`, a number \
         from 1 to 500"
    );
    assert!(worker.cache.keys().is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn a_repeated_key_brings_the_same_run() {
    let worker = Worker::start().await;
    let path = "/api/v1/jobs/services/runs";
    let first = worker.post_with_key(path, "deploy-17", "").await;
    worker.finished(&first.json()).await;
    let again = worker.post_with_key(path, "\"deploy-17\"", "{}").await;
    assert_eq!(again.status, 202);
    assert_eq!(again.json()["id"], first.json()["id"]);
    assert_eq!(again.json()["outcome"], "ok", "as it is now");
    assert_eq!(again.header("location"), first.header("location"));

    let other = worker.post_with_key(path, "deploy-17", r#"{"tenants": ["a"]}"#).await;
    assert_eq!(code(&other), refused(422, "idempotency_key_reused"));
    let other = worker.post_with_key("/api/v1/runs", "deploy-17", "").await;
    assert_eq!(code(&other), refused(422, "idempotency_key_reused"));
    let new = worker.post_with_key(path, "deploy-18", "").await;
    assert_ne!(new.json()["id"], first.json()["id"]);

    worker.clock.stall(Duration::from_hours(24)).await;
    let later = worker.post_with_key(path, "deploy-17", "").await;
    assert_ne!(later.json()["id"], first.json()["id"], "a key is kept for a day");
    worker.stop().await;
}

#[tokio::test]
async fn a_repeated_key_whose_run_the_history_has_forgotten_is_a_new_run() {
    let worker = Worker::start().await;
    let path = "/api/v1/jobs/services/runs";
    let first = worker.post_with_key(path, "deploy-17", r#"{"wait": true}"#).await.json();
    let second = worker.post(path, r#"{"wait": true}"#).await.json();
    let again = worker.post_with_key(path, "deploy-17", r#"{"wait": true}"#).await.json();
    assert_eq!(again["id"], first["id"], "another run of the job changes nothing");
    eventually("the history has both runs", LONG, async || {
        worker.history.memory.recent(None, 3).await.unwrap().len() == 2
    })
    .await;
    worker.history.memory.prune(worker.clock.now() + TimeDelta::hours(1)).await.unwrap();
    let third = worker.post_with_key(path, "deploy-17", r#"{"wait": true}"#).await.json();
    assert_eq!(third["outcome"], "ok");
    assert!(third["id"] != first["id"] && third["id"] != second["id"]);
    worker.stop().await;
}

#[tokio::test]
async fn the_same_key_twice_at_once_is_one_run() {
    let worker = Worker::start().await;
    let path = "/api/v1/jobs/services/runs";
    let body = r#"{"wait": true}"#;
    let (one, other) = tokio::join!(
        worker.post_with_key(path, "deploy-17", body),
        worker.post_with_key(path, "deploy-17", body),
    );
    assert_eq!((one.status, other.status), (200, 200));
    assert_eq!(one.json(), other.json());
    let runs = worker.get("/api/v1/runs").await.json();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn a_full_queue_answers_429_and_the_key_may_try_again() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    let path = "/api/v1/jobs/services/runs";
    worker.post(path, "").await;
    worker.until_running("services").await;
    let mut tenant = 0;
    let full = loop {
        tenant += 1;
        let answer = worker.post(path, &format!(r#"{{"tenants": ["t{tenant}"]}}"#)).await;
        if answer.status != 202 {
            break answer;
        }
        assert!(tenant < 1_000, "everything has a limit");
    };
    assert_eq!(code(&full), refused(429, "queue_full"));
    assert!(full.header("retry-after").is_some());
    let keyed = || worker.post_with_key(path, "late", r#"{"tenants": ["late"]}"#);
    assert_eq!(keyed().await.status, 429);
    worker.gate.send_replace(true);
    eventually("there is room", LONG, async || keyed().await.status == 202).await;
    worker.stop().await;
}

#[tokio::test]
async fn runs_that_ended_are_listed_newest_first() {
    let worker = Worker::start().await;
    for job in ["services", "report", "services"] {
        worker.clock.advance(Duration::from_secs(1)).await;
        worker.post(&format!("/api/v1/jobs/{job}/runs"), r#"{"wait": true}"#).await;
    }
    let jobs = async |path: &str| -> Vec<String> {
        let answer = worker.get(path).await.json();
        let runs = answer["runs"].as_array().unwrap().clone();
        runs.iter().map(|run| run["job"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(jobs("/api/v1/runs").await, ["services", "report", "services"]);
    assert_eq!(jobs("/api/v1/runs?limit=2").await, ["services", "report"]);
    assert_eq!(jobs("/api/v1/runs?job=report&limit=5").await, ["report"]);
    assert_eq!(jobs("/api/v1/runs?job=&limit=1").await, ["services"]);
    let gone = worker.get("/api/v1/runs?job=gone").await;
    assert_eq!(code(&gone), refused(404, "unknown_job"));
    worker.stop().await;
}

#[tokio::test]
async fn a_history_that_is_away_is_told_and_runs_go_on() {
    let worker = Worker::start().await;
    worker.history.away.store(true, Ordering::Relaxed);
    let answer = worker.post("/api/v1/jobs/services/runs", r#"{"wait": true}"#).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("ok")));
    let run = answer.json()["id"].clone();
    for (path, runs) in
        [("/api/v1/runs", 1), ("/api/v1/runs?job=services", 1), ("/api/v1/runs?outcome=failed", 0)]
    {
        let answer = worker.get(path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        assert!(page["history_away"].as_str().unwrap().contains("connection refused"), "{page}");
        let listed: Vec<_> =
            page["runs"].as_array().unwrap().iter().map(|run| &run["id"]).collect();
        assert_eq!(listed, vec![&run; runs], "{path}");
    }
    let next = format!("/api/v1/runs?cursor=1.{}", run.as_str().unwrap());
    let answer = worker.get(&next).await;
    assert_eq!(code(&answer), refused(503, "history_unavailable"));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("connection refused"));
    worker.stop().await;
}
