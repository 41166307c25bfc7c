//! Clients that wait for a run, hang up or stay idle.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{TOKEN, Worker, code, refused};
use crate::support::http::post;
use crate::support::{LONG, eventually};

#[tokio::test]
async fn waiting_brings_the_report() {
    let worker = Worker::start().await;
    let answer = worker.post("/api/v1/runs", r#"{"wait": true}"#).await;
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    let runs = answer["runs"].as_array().unwrap();
    let ended: Vec<_> = runs.iter().map(|run| (&run["job"], &run["outcome"])).collect();
    assert_eq!(ended, [(&json!("report"), &json!("ok")), (&json!("services"), &json!("ok"))]);
    assert_eq!(worker.cache.keys(), ["report", "services:a", "services:b", "services:c"]);
    assert_eq!(worker.cache.get("services:a").unwrap(), br#"[{"name":"Checkup"}]"#);

    let body = r#"{"wait": true, "tenants": ["b", "nobody"]}"#;
    let answer = worker.post("/api/v1/jobs/services/runs", body).await;
    assert_eq!(answer.status, 200, "the request was done; how the run went is in the answer");
    let run = answer.json();
    assert_eq!(run["outcome"], "partial");
    assert_eq!(run["report"]["failures"][0]["tenant"], "nobody");
    let named = json!([{"kind": "tenants", "tenants": ["nobody"], "more": 0}]);
    assert_eq!(run["report"]["failed_tenants"], named);
    let again = worker.get(&format!("/api/v1/runs/{}", run["id"].as_str().unwrap())).await.json();
    assert_eq!(again["report"]["failed_tenants"], named);
    worker.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_waiting_and_not_the_run() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    let body = r#"{"wait": true}"#;
    let head = format!(
        "POST /api/v1/jobs/services/runs HTTP/1.1\r\nhost: preheat\r\nauthorization: Bearer open sesame\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    worker.until_running("services").await;
    drop(stream);
    worker.gate.send_replace(true);
    eventually("the run has ended well", LONG, async || {
        worker.get("/api/v1/jobs/services").await.json()["last_run"]["outcome"] == "ok"
    })
    .await;
    assert_eq!(worker.cache.keys().len(), 3);
    worker.stop().await;
}

#[tokio::test]
async fn too_many_that_wait_are_refused_before_anything_is_done() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    let (address, path) = (worker.address, "/api/v1/jobs/services/runs");
    let mut waiting = JoinSet::new();
    for _ in 0..65 {
        let body = r#"{"wait": true}"#;
        waiting.spawn(async move { post(address, path, &[TOKEN], body).await.unwrap() });
    }
    let first = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(code(&first), refused(429, "too_many_waiting"));
    assert_eq!(worker.post(path, "").await.status, 202, "who does not wait is not refused");
    worker.gate.send_replace(true);
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    worker.stop().await;
}

#[tokio::test]
async fn waiting_ends_when_the_worker_stops() {
    let worker = Worker::start().await;
    worker.gate.send_replace(false);
    let address = worker.address;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        let body = r#"{"wait": true}"#;
        post(address, "/api/v1/jobs/services/runs", &[TOKEN], body).await.unwrap()
    });
    worker.until_running("services").await;
    worker.shutdown.cancel();
    let answer = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(code(&answer), refused(503, "stopped"));
    worker.stop().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let worker = Worker::start().await;
    let mut idle = TcpStream::connect(worker.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: preheat\r\n\r\n").await.unwrap();
    let mut some = [0; 16];
    idle.read_exact(&mut some).await.unwrap();
    assert_eq!(&some, b"HTTP/1.1 200 OK\r");
    worker.stop().await;
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
}
