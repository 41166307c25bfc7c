//! Server-sent events: what happens, for programs, and what has changed, for pages.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use super::Worker;
use crate::support::http::Events;

impl Worker {
    async fn events(&self, path: &str, headers: &str) -> Events {
        let events = Events::open(self.address, path, headers).await;
        assert_eq!(events.status, 200);
        events
    }
}

#[tokio::test]
async fn a_program_follows_a_run() {
    let worker = Worker::start().await;
    let mut events = worker.events("/api/v1/events", "").await;
    let hello = events.named("hello").await;
    assert_eq!(hello.data["version"], env!("CARGO_PKG_VERSION"));
    let run = worker.post("/api/v1/jobs/services/runs", "").await.json();
    let started = events.named("run_started").await;
    assert_eq!((&started.data["run"], &started.data["trigger"]), (&run["id"], &json!("request")));
    let finished = events.named("run_finished").await;
    let shown = worker.finished(&run).await;
    for (name, value) in finished.data["run"].as_object().unwrap() {
        assert_eq!(value, &shown[name], "{name} is as the API shows it");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_program_that_was_away_misses_nothing_and_learns_if_it_does() {
    let worker = Worker::start().await;
    let hello = worker.events("/api/v1/events", "").await.named("hello").await;
    let id = hello.id.unwrap();
    let run = worker.post("/api/v1/jobs/services/runs", "").await.json();
    worker.finished(&run).await;
    for (path, header) in [
        ("/api/v1/events".to_owned(), format!("Last-Event-ID: {id}\r\n")),
        (format!("/api/v1/events?last={id}"), String::new()),
    ] {
        let mut events = worker.events(&path, &header).await;
        assert_eq!(events.next().await.unwrap().data["run"], run["id"]);
        assert_eq!(events.named("run_finished").await.data["run"]["id"], run["id"]);
    }
    for unknown in ["nonsense", "a-1", &format!("{id}9")] {
        let header = format!("Last-Event-ID: {unknown}\r\n");
        let first = worker.events("/api/v1/events", &header).await.next().await.unwrap();
        assert_eq!(first.name, "reset", "{unknown}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_program_chooses_what_it_hears() {
    let worker = Worker::start().await;
    let path = "/api/v1/events?types=run_finished&job=report";
    let mut events = worker.events(path, "").await;
    assert_eq!(events.next().await.unwrap().name, "hello");
    for job in ["services", "report"] {
        let run = worker.post(&format!("/api/v1/jobs/{job}/runs"), "").await.json();
        worker.finished(&run).await;
    }
    let event = events.next().await.unwrap();
    assert_eq!(
        (event.name.as_str(), &event.data["run"]["job"]),
        ("run_finished", &json!("report"))
    );
    for path in ["/api/v1/events?types=none", "/api/v1/events?x=1", "/api/v1/events?job=%20"] {
        assert_eq!(worker.get(path).await.status, 400, "{path}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_page_hears_which_of_its_parts_changed() {
    let worker = Worker::start().await;
    let mut live = worker.events("/live", "").await;
    worker.gate.send_replace(false);
    let run = worker.post("/api/v1/jobs/services/runs", "").await.json();
    let began = live.named("changed").await.data;
    let has = |data: &serde_json::Value, part: &str| {
        data["parts"].as_array().unwrap().iter().any(|found| found == part)
    };
    let of_run = format!("run:{}", run["id"].as_str().unwrap());
    for part in ["jobs", "job:services", "head", of_run.as_str()] {
        assert!(has(&began, part), "{part} is not in {began}");
    }
    assert!(!has(&began, "job:report"), "{began}");
    let goes_on = live.named("changed").await.data;
    assert!(has(&goes_on, "job:services"), "how far it is: {goes_on}");
    worker.gate.send_replace(true);
    loop {
        let ended = live.named("changed").await.data;
        if has(&ended, "jobs") {
            assert!(has(&ended, "runs") && has(&ended, of_run.as_str()), "{ended}");
            break;
        }
    }
    worker.stop().await;
}

#[tokio::test]
async fn an_open_stream_does_not_hold_up_the_end() {
    let worker = Worker::start().await;
    let mut events = worker.events("/api/v1/events", "").await;
    let mut live = worker.events("/live", "").await;
    events.named("hello").await;
    let began = Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    while events.next().await.is_some() {}
    while live.next().await.is_some() {}
}

#[tokio::test]
async fn streams_leave_room_for_probes() {
    let worker = Worker::start().await;
    let mut streams = Vec::new();
    let full = loop {
        let stream = Events::open(worker.address, "/api/v1/events", "").await;
        if stream.status != 200 {
            break stream.status;
        }
        streams.push(stream);
        assert!(streams.len() <= 128);
    };
    assert_eq!(full, 429);
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(worker.address).await.unwrap());
    }
    assert_eq!(worker.get("/healthz").await.status, 200);
    streams.clear();
    crate::support::eventually("places are given back", crate::support::LONG, async || {
        Events::open(worker.address, "/live", "").await.status == 200
    })
    .await;
    drop(idle);
    worker.stop().await;
}
