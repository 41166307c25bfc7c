//! Pausing and resuming over HTTP, and who is said to have done what.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Worker, code, name};
use crate::support::http::post;

const JOB: &str = "/api/v1/jobs/services";

fn pause_of(answer: &Value, job: &str) -> Value {
    let jobs = answer["jobs"].as_array().unwrap();
    jobs.iter().find(|one| one["job"] == job).unwrap()["pause"].clone()
}

#[tokio::test]
async fn a_job_is_paused_and_resumed_as_often_as_one_asks() {
    let worker = Worker::start().await;
    let note = r#"{"note":" vet migration\n"}"#;
    let paused = worker.post(&format!("{JOB}/pause"), note).await;
    assert_eq!(paused.status, 200, "{paused:?}");
    let pause = json!({
        "note": "vet migration", "by": "token", "since": "2026-03-01T12:10:00.000Z", "until": null
    });
    let expected = json!({
        "jobs": [{ "job": "services", "pause": pause, "was_paused": false }],
        "kept": true, "kept_in": "cache"
    });
    assert_eq!(paused.json(), expected);
    let shown = worker.get(JOB).await.json();
    assert_eq!((&shown["state"], &shown["pause"]), (&json!("paused"), &pause));
    assert_eq!(shown["next_due_at"], Value::Null);
    assert_eq!(worker.get("/readyz").await.status, 200, "it was the only required job");

    let until = r#"{"note":"longer","for":"20m"}"#;
    let again = worker.post(&format!("{JOB}/pause"), until).await.json();
    let again = pause_of(&again, "services");
    assert_eq!(
        (&again["note"], &again["until"]),
        (&json!("longer"), &json!("2026-03-01T12:30:00.000Z"))
    );
    let run = worker.post(&format!("{JOB}/runs"), r#"{"wait":true}"#).await;
    assert_eq!(run.json()["outcome"], "ok", "a person starts its runs");

    for (body, was_paused) in [("", true), ("{}", false)] {
        let resumed = worker.post(&format!("{JOB}/resume"), body).await;
        assert_eq!(resumed.status, 200, "{resumed:?}");
        assert_eq!(pause_of(&resumed.json(), "services"), Value::Null);
        assert_eq!(resumed.json()["jobs"][0]["was_paused"], was_paused);
    }
    assert_eq!(worker.get(JOB).await.json()["state"], "idle");
    worker.stop().await;
}

#[tokio::test]
async fn all_jobs_are_paused_with_one_request() {
    let worker = Worker::start().await;
    let body = r#"{"note":"upgrade of Redis","until":"2026-03-01T13:00:00+01:00"}"#;
    assert_eq!(code(&worker.post("/api/v1/pause", body).await), (422, "invalid_until".to_owned()));
    let body = body.replace("13:00", "14:00");
    let paused = worker.post("/api/v1/pause", &body).await.json();
    for job in ["services", "report", "retired"] {
        assert_eq!(pause_of(&paused, job)["until"], "2026-03-01T13:00:00.000Z", "{job}");
    }
    let resumed = worker.post("/api/v1/resume", "").await.json();
    assert_eq!(pause_of(&resumed, "report"), Value::Null);
    worker.stop().await;
}

#[tokio::test]
async fn what_cannot_be_paused_is_refused_with_the_reason() {
    let worker = Worker::start().await;
    let refused = async |path: &str, body: &str| code(&worker.post(path, body).await);
    let pause = &format!("{JOB}/pause");
    for (path, body, status, expected) in [
        (pause, "{}", 422, "invalid_note"),
        (pause, "", 422, "invalid_note"),
        (pause, r#"{"note":"x","until":"tomorrow"}"#, 422, "invalid_until"),
        (pause, r#"{"note":"x","for":"soon"}"#, 422, "invalid_until"),
        (pause, r#"{"note":"x","for":"1h","until":"2026-03-02T00:00:00Z"}"#, 422, "invalid_until"),
        (pause, r#"{"note":"x","why":"y"}"#, 422, "invalid_body"),
        (pause, "{", 400, "bad_request"),
        (&"/api/v1/jobs/nothing/pause".to_owned(), r#"{"note":"x"}"#, 404, "unknown_job"),
        (&"/api/v1/jobs/nothing/resume".to_owned(), "", 404, "unknown_job"),
        (&"/api/v1/jobs/no%20name/resume".to_owned(), "", 404, "unknown_job"),
    ] {
        assert_eq!(refused(path, body).await, (status, expected.to_owned()), "{path} {body}");
    }
    let long = json!({ "note": "x".repeat(201) }).to_string();
    assert_eq!(refused(pause, &long).await, (422, "invalid_note".to_owned()));
    let without_token = post(worker.address, pause, &[], r#"{"note":"x"}"#).await.unwrap();
    assert_eq!(code(&without_token), (401, "unauthorized".to_owned()));
    assert_eq!(worker.get(JOB).await.json()["pause"], Value::Null);
    worker.stop().await;
}

#[tokio::test]
async fn a_removal_is_counted_before_it_is_done() {
    let worker = Worker::start().await;
    worker.post(&format!("{JOB}/runs"), r#"{"wait":true}"#).await;
    let fence = || worker.cache.get("preheat:fence:a");
    let before = fence();
    for _twice in 0..2 {
        let body = r#"{"jobs":["services"],"keys":["other"],"rewarm":true,"dry_run":true}"#;
        let counted = worker.post("/api/v1/invalidations", body).await.json();
        assert_eq!(counted["dry_run"], true);
        assert_eq!((&counted["removed"], &counted["fences"]), (&json!(3), &json!(3)));
        assert_eq!(counted["by_job"], json!({ "services": 3 }));
        assert_eq!(counted["runs"], json!([]));
    }
    let body = r#"{"patterns":["services:[ab]"],"dry_run":true}"#;
    // A scan rests between its slices.
    let mut counting = Box::pin(worker.post("/api/v1/invalidations", body));
    let counted = loop {
        tokio::select! {
            counted = &mut counting => break counted.json(),
            () = worker.clock.advance(Duration::from_millis(10)) => {}
        }
    };
    drop(counting);
    assert_eq!(counted["removed"], 2);
    assert!(worker.cache.get("services:a").is_some() && fence() == before, "nothing was done");
    let body = r#"{"jobs":["services"]}"#;
    let removed = worker.post("/api/v1/invalidations", body).await.json();
    assert_eq!((&removed["removed"], &removed["dry_run"]), (&json!(3), &Value::Null));
    assert!(fence() != before);
    worker.stop().await;
}

#[tokio::test]
async fn a_run_says_who_asked_for_it() {
    let worker = Worker::start().await;
    let run = worker.post(&format!("{JOB}/runs"), r#"{"wait":true}"#).await.json();
    assert_eq!(run["requested_by"], "token");
    let body = r#"{"jobs":["services"],"rewarm":true}"#;
    let removed = worker.post("/api/v1/invalidations", body).await.json();
    assert_eq!(removed["runs"][0]["requested_by"], "token");
    worker.clock.advance(Duration::from_hours(1)).await;
    let last = worker.get(&format!("/api/v1/runs?job={}&limit=1", name("services"))).await.json();
    assert_eq!(last["runs"][0]["requested_by"], Value::Null, "{last}");
    assert_eq!(last["runs"][0]["trigger"], "schedule");
    worker.stop().await;
}
