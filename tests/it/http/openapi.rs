//! The `OpenAPI` document: it is the committed one, and the worker keeps to it.

use serde_json::Value;

use super::Worker;
use crate::support::document;

#[test]
fn docs_openapi_is_that_of_the_code() {
    document::compare("docs/openapi.json", &preheat::http::document());
}

#[tokio::test]
async fn the_worker_serves_its_document() {
    let worker = Worker::start().await;
    let answer = worker.get("/api/v1/openapi.json").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, preheat::http::document());
    let document: Value = serde_json::from_str(&answer.body).unwrap();
    let runs = &document["paths"]["/api/v1/runs"];
    assert_eq!(runs["post"]["security"][0]["token"], serde_json::json!([]));
    let parameters = runs["get"]["parameters"].as_array().unwrap();
    let names: Vec<_> = parameters.iter().map(|parameter| &parameter["name"]).collect();
    assert_eq!(names, ["cursor", "job", "limit", "outcome", "since", "trigger", "until"]);
    worker.stop().await;
}
