//! Keys that are removed on request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use preheat::engine::ports::{CacheError, CacheErrorKind};
use serde_json::json;

use super::{Worker, code, refused};
use crate::support::http::post;

#[tokio::test]
async fn keys_are_removed_and_warmed_again_over_http() {
    let worker = Worker::start().await;
    worker.post("/api/v1/runs", r#"{"wait": true}"#).await;
    assert_eq!(worker.cache.keys(), ["report", "services:a", "services:b", "services:c"]);
    let path = "/api/v1/invalidations";
    let answer = worker.post(path, r#"{"tenants": ["b"], "keys": ["report", "none"]}"#).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let expected = json!({
        "complete": true, "removed": 2, "failed": 0, "fences": 2,
        "keys": { "asked": 2, "removed": 1 },
        "patterns": { "asked": 0, "slices": 0, "kept": 0, "removed": 0 },
        "jobs_and_tenants": { "jobs": 0, "tenants": 1, "removed": 1 },
        "not_active": [],
        "by_job": { "report": 1, "services": 1 },
        "failures": [], "runs": [],
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(worker.cache.keys(), ["services:a", "services:c"]);

    let body = r#"{"jobs": ["services", "report", "retired"], "rewarm": true}"#;
    let answer = worker.post(path, body).await.json();
    assert_eq!(answer["removed"], 2);
    let runs = answer["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| &run["job"]).collect::<Vec<_>>(), ["report", "services"]);
    for run in runs {
        assert_eq!(worker.finished(run).await["outcome"], "ok");
    }
    assert_eq!(worker.cache.keys().len(), 4);
    worker.stop().await;
}

#[tokio::test]
async fn an_invalidation_that_means_nothing_is_refused_with_its_code() {
    let worker = Worker::start().await;
    let path = "/api/v1/invalidations";
    let unauthorized = post(worker.address, path, &[], "{}").await.unwrap();
    assert_eq!(code(&unauthorized), refused(401, "unauthorized"));
    let many: Vec<_> = (0..=1_000).map(|number| number.to_string()).collect();
    let cases = [
        (String::new(), 400, "bad_request"),
        ("{".to_owned(), 400, "bad_request"),
        ("{}".to_owned(), 422, "invalid_body"),
        (r#"{"rewarm": true, "all": true}"#.to_owned(), 422, "invalid_body"),
        (r#"{"key": ["a"]}"#.to_owned(), 422, "invalid_body"),
        (r#"{"keys": "a"}"#.to_owned(), 422, "invalid_body"),
        (r#"{"keys": [""]}"#.to_owned(), 422, "invalid_body"),
        (r#"{"tenants": [""]}"#.to_owned(), 422, "invalid_body"),
        (json!({ "keys": many }).to_string(), 422, "invalid_body"),
        (json!({ "keys": ["x".repeat(70_000)] }).to_string(), 413, "too_large"),
        (r#"{"patterns": ["*"]}"#.to_owned(), 422, "matches_everything"),
        (r#"{"keys": ["preheat:fence:a"]}"#.to_owned(), 422, "reserved_key"),
        (r#"{"jobs": ["servces"]}"#.to_owned(), 422, "unknown_job"),
        (r#"{"jobs": ["../x"]}"#.to_owned(), 422, "unknown_job"),
        (r#"{"jobs": ["report"], "tenants": ["a"]}"#.to_owned(), 422, "takes_no_tenants"),
    ];
    for (body, status, expected) in cases {
        let answer = worker.post(path, &body).await;
        assert_eq!(code(&answer), refused(status, expected), "{body:.80}");
    }
    assert_eq!(code(&worker.get(path).await), refused(405, "method_not_allowed"));
    let hint = worker.post(path, r#"{"jobs": ["servces"]}"#).await;
    assert!(hint.body.contains("did you mean `services`?"), "{hint:?}");
    worker.stop().await;
}

#[tokio::test]
async fn an_invalidation_that_is_sent_twice_is_one_unless_something_was_left() {
    let worker = Worker::start().await;
    worker.post("/api/v1/runs", r#"{"wait": true}"#).await;
    let (path, body) = ("/api/v1/invalidations", r#"{"keys": ["services:a"]}"#);
    let first = worker.post_with_key(path, "k1", body).await.json();
    assert_eq!((&first["removed"], &first["fences"]), (&json!(1), &json!(1)));
    worker.post("/api/v1/runs", r#"{"wait": true}"#).await;
    assert_eq!(worker.post_with_key(path, "k1", body).await.json(), first);
    assert_eq!(worker.cache.keys().len(), 4, "the second was not done");
    for (path, body) in [(path, r#"{"keys": ["report"]}"#), ("/api/v1/runs", "{}")] {
        let other = worker.post_with_key(path, "k1", body).await;
        assert_eq!(code(&other), refused(422, "idempotency_key_reused"));
    }

    let refuses = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&refuses);
    worker.cache.refuse(move |_| {
        still.load(Ordering::Relaxed).then(|| CacheError {
            kind: CacheErrorKind::Permission,
            message: "this user may not".to_owned(),
        })
    });
    let left = worker.post_with_key(path, "k2", body).await;
    assert_eq!((left.status, &left.json()["error"]["code"]), (503, &json!("incomplete")));
    assert_eq!(left.json()["invalidation"]["failed"], 1);
    assert!(left.json()["error"]["message"].as_str().unwrap().contains("this user may not"));
    refuses.store(false, Ordering::Relaxed);
    let done = worker.post_with_key(path, "k2", body).await;
    assert_eq!((done.status, &done.json()["removed"]), (200, &json!(1)));
    worker.stop().await;
}
