//! The control plane over real connections, with a real engine whose servers are in memory and
//! whose clock stands still.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use preheat::adapter::memory::MemoryHistory;
use preheat::config::Settings;
use preheat::definition::{Defaults, JobText, check};
use preheat::domain::job::{JobName, Jobs, Share};
use preheat::domain::run::{RunId, RunRecord};
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{CacheError, CacheErrorKind, Clock, History, HistoryError};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::engine::registry::Registry;
use preheat::engine::run::limit::Limits;
use preheat::engine::run::record::Records;
use preheat::engine::run::{Runner, Stops};
use preheat::engine::schedule::health::Beats;
use preheat::engine::schedule::scheduler::{Engine, Parts};
use preheat::http::{Control, HealthError, health, router, serve};
use preheat::invalidate::Invalidations;
use preheat::observe::Metrics;
use preheat::observe::metric::DECLARED;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::http::{Answer, get, post, request};
use crate::support::memory::{MemoryCache, MemoryRow, MemorySource};
use crate::support::virtual_clock::VirtualClock;
use crate::support::{LONG, document, eventually};

const TOKEN: (&str, &str) = ("authorization", "Bearer open sesame");

const SERVICES: &str = r#"
description = "What a clinic offers."
schedule = "every 1h"
ttl = "3h"
required = true
on_start = false
[query]
sql = "select tenant_id, name from services where tenant_id = any($1)"
[[keys]]
key = "services:{tenant_id}"
"#;

const REPORT: &str = r#"
schedule = "0 30 4 * * *"
timezone = "Europe/Berlin"
ttl = "3d"
on_start = false
tenants = false
[query]
sql = "select 1 as one"
[[keys]]
key = "report"
"#;

const RETIRED: &str = r#"
schedule = "every 1h"
ttl = "3h"
enabled = false
on_start = false
[query]
sql = "select tenant_id from old where tenant_id = any($1)"
[[keys]]
key = "old:{tenant_id}"
"#;

fn jobs() -> Jobs {
    let text = |name: &str, text: &str| JobText {
        path: format!("jobs/{name}.toml").into(),
        text: text.to_owned(),
    };
    let files = vec![text("services", SERVICES), text("report", REPORT), text("retired", RETIRED)];
    let runner = Settings::builtin().runner;
    let defaults = Defaults {
        batch: runner.batch,
        concurrency: runner.concurrency,
        tenant_column: "tenant_id".to_owned(),
        has_settings_file: true,
    };
    let no_sql = |_: &std::path::Path| Err("there is none".to_owned());
    check(files, &no_sql, &defaults)
        .unwrap_or_else(|p| panic!("{}", p.render(false)))
        .jobs()
        .clone()
}

/// A history that can be away.
struct MoodyHistory {
    memory: MemoryHistory,
    away: AtomicBool,
}

impl MoodyHistory {
    fn mood(&self) -> Result<&MemoryHistory, HistoryError> {
        let away = self.away.load(Ordering::Relaxed);
        let error = || HistoryError("connection refused".to_owned());
        if away { Err(error()) } else { Ok(&self.memory) }
    }
}

impl History for MoodyHistory {
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>> {
        Box::pin(async { self.mood()?.append(records).await })
    }

    fn recent<'a>(
        &'a self,
        job: Option<&'a JobName>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move { self.mood()?.recent(job, limit).await })
    }

    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>> {
        Box::pin(async move { self.mood()?.get(id).await })
    }

    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move { self.mood()?.prune(before).await })
    }
}

/// A worker, with its control plane on a port of its own.
struct Worker {
    address: SocketAddr,
    clock: VirtualClock,
    cache: Arc<MemoryCache>,
    history: Arc<MoodyHistory>,
    metrics: Arc<Metrics>,
    /// Reads of rows wait while it is false.
    gate: watch::Sender<bool>,
    refreshes: Arc<AtomicU64>,
    stops: Stops,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Worker {
    async fn start() -> Self {
        Self::start_with(Some("open sesame")).await
    }

    async fn start_with(token: Option<&str>) -> Self {
        let clock = VirtualClock::new("2026-03-01T12:10:00Z".parse().unwrap(), 7);
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let metrics = Metrics::new();
        let cache = Arc::new(MemoryCache::new(Arc::clone(&shared_clock)));
        let (gate, source) = source();
        let memory = MemoryHistory::new(100);
        let history = Arc::new(MoodyHistory { memory, away: AtomicBool::new(false) });
        let shared_history: Arc<dyn History> = Arc::clone(&history) as _;
        let retention = Duration::from_hours(24);
        let records = Records::new(
            shared_history,
            Arc::clone(&shared_clock),
            Arc::clone(&metrics),
            retention,
        );
        let source = Arc::new(source);
        let servers = Unguarded {
            source: Arc::clone(&source) as _,
            reader: source,
            cache: Arc::clone(&cache) as _,
            ledger: Arc::clone(&cache) as _,
        };
        let ports = Ports::new(servers, Arc::clone(&shared_clock), Arc::clone(&metrics));
        let runner = Arc::new(Runner::new(
            ports,
            Limits::new(4),
            Registry::new(Share::NONE),
            "test".to_owned(),
        ));
        let made_of = Parts {
            jobs: jobs(),
            runner: Arc::clone(&runner),
            records: Arc::clone(&records),
            bell: Arc::new(Notify::new()),
            beats: Arc::new(Beats::new(shared_clock.monotonic())),
        };
        let (stops, shutdown) = (Stops::default(), CancellationToken::new());
        let (engine, handle) = Engine::new(made_of, stops.clone());
        let refreshes = Arc::new(AtomicU64::new(0));
        let invalidations = Invalidations::new(runner, handle.clone(), stops.clone());
        let control = Control {
            handle,
            invalidations,
            metrics: Arc::clone(&metrics),
            refresh: refresh(&refreshes, &metrics),
            token: token.map(SecretString::from),
            ready_within: Duration::from_mins(2),
            shutdown: shutdown.clone(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(engine.run());
        tasks.spawn(records.run(shutdown.clone()));
        tasks.spawn(serve(listener, router(control), shutdown.clone()));
        Self { address, clock, cache, history, metrics, gate, refreshes, stops, shutdown, tasks }
    }

    async fn get(&self, path: &str) -> Answer {
        get(self.address, path).await.unwrap()
    }

    /// Sends a request with the token.
    async fn post(&self, path: &str, body: &str) -> Answer {
        post(self.address, path, &[TOKEN], body).await.unwrap()
    }

    async fn post_with_key(&self, path: &str, key: &str, body: &str) -> Answer {
        post(self.address, path, &[TOKEN, ("idempotency-key", key)], body).await.unwrap()
    }

    async fn finished(&self, run: &Value) -> Value {
        let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
        let mut last = Value::Null;
        eventually("the run has ended", LONG, async || {
            last = self.get(&path).await.json();
            last["state"] == "finished"
        })
        .await;
        last
    }

    /// Waits until the job of that name runs.
    async fn until_running(&self, job: &str) {
        let path = format!("/api/v1/jobs/{job}");
        eventually("the job runs", LONG, async || {
            self.get(&path).await.json()["state"] == "running"
        })
        .await;
    }

    /// Stops everything and waits for the end.
    async fn stop(mut self) {
        self.gate.send_replace(true);
        self.stops.drain.cancel();
        self.shutdown.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(LONG, all).await.unwrap();
    }
}

/// Three tenants with one service each, behind a gate.
fn source() -> (watch::Sender<bool>, MemorySource) {
    let mut tenants = Tenants::with_columns(["timezone"]);
    for id in ["a", "b", "c"] {
        tenants.push(id, [Some("UTC")]);
    }
    let source = MemorySource::new(tenants);
    let row = |tenant| MemoryRow::new(tenant, r#"{"name":"Checkup"}"#, []);
    source.set_rows(&name("services"), ["a", "b", "c"].map(row).to_vec());
    source.set_rows(&name("report"), vec![row("")]);
    let (gate, open) = watch::channel(true);
    source.before_read(move |_read| {
        let mut open = open.clone();
        Box::pin(async move {
            drop(open.wait_for(|open| *open).await);
            Ok(())
        })
    });
    (gate, source)
}

fn refresh(count: &Arc<AtomicU64>, metrics: &Arc<Metrics>) -> preheat::http::Refresh {
    let (count, metrics) = (Arc::clone(count), Arc::clone(metrics));
    Arc::new(move || {
        let (count, metrics) = (Arc::clone(&count), Arc::clone(&metrics));
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
            metrics.set_db_connections(1, 2, 4);
        })
    })
}

fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

/// The code of an error answer, which must have the usual form.
#[track_caller]
fn code(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let body = answer.json();
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 5), "{answer:?}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{answer:?}");
    (answer.status, error["code"].as_str().unwrap().to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

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
        "preheat_runs_total{job=\"services\",trigger=\"request\",outcome=\"ok\"} 1\n",
        "preheat_runs_total{job=\"report\",trigger=\"schedule\",outcome=\"failed\"} 0\n",
        "preheat_keys_total{job=\"services\",outcome=\"written\"} 3\n",
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
      "description": "What a clinic offers.",
      "enabled": true,
      "keys": [
        "services:{tenant_id}"
      ],
      "last_run": null,
      "last_success_at": null,
      "name": "services",
      "next_due_at": "2026-03-01T13:00:00.000Z",
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
    insta::assert_json_snapshot!(finished, { ".id" => "[id]", ".version" => "[version]" }, @r##"
    {
      "due_at": "2026-03-01T12:10:00.000Z",
      "duration_ms": 0,
      "finished_at": "2026-03-01T12:10:00.000Z",
      "id": "[id]",
      "job": "services",
      "outcome": "ok",
      "progress": {
        "bytes": 60,
        "keys": 3,
        "tenants_done": 3,
        "tenants_total": 3
      },
      "replica": "test",
      "report": {
        "bytes": 60,
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
        }
      },
      "started_at": "2026-03-01T12:10:00.000Z",
      "state": "finished",
      "trigger": "request",
      "version": "[version]"
    }
    "##);
    let finished = worker.finished(&queued).await;
    assert_eq!(
        finished["report"]["tenants"],
        json!({"total": 1, "ok": 1, "failed": 0, "fenced": 0})
    );
    worker.stop().await;
}

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
        "the parameters are `job`, a job's name, and `limit`, a number from 1 to 500"
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
    assert!(jobs("/api/v1/runs?job=gone").await.is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn a_history_that_is_away_is_told_and_runs_go_on() {
    let worker = Worker::start().await;
    worker.history.away.store(true, Ordering::Relaxed);
    let answer = worker.get("/api/v1/runs").await;
    assert_eq!(code(&answer), refused(503, "history_unavailable"));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("connection refused"));
    let answer = worker.post("/api/v1/jobs/services/runs", r#"{"wait": true}"#).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("ok")));
    worker.stop().await;
}

#[tokio::test]
async fn the_first_page_names_the_routes() {
    let worker = Worker::start().await;
    let page = worker.get("/").await;
    assert_eq!(page.status, 200);
    for route in ["/healthz", "/readyz", "/metrics", "/api/v1/jobs", "POST /api/v1/runs"] {
        assert!(page.body.contains(route), "{}", page.body);
    }
    let head = request(worker.address, "HEAD", "/healthz", &[], "").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(worker.metrics.encode().contains("preheat_build_info"));
    worker.stop().await;
}

#[tokio::test]
async fn docs_http_names_every_route_and_every_code() {
    let page = include_str!("../../docs/http.md");
    let worker = Worker::start().await;
    let index = worker.get("/").await.body;
    let routes: Vec<_> = index.lines().filter(|line| line.contains(" /")).collect();
    assert!(routes.len() >= 9, "{index}");
    for route in routes {
        let mut words = route.split_whitespace();
        let row = format!("| `{} {}` |", words.next().unwrap(), words.next().unwrap());
        assert!(page.contains(&row), "docs/http.md has no {row}");
    }
    let sources = [
        include_str!("../../src/http/answer.rs"),
        include_str!("../../src/http/auth.rs"),
        include_str!("../../src/http/idempotency.rs"),
        include_str!("../../src/http/runs.rs"),
        include_str!("../../src/http/starting.rs"),
    ];
    let texts = sources.iter().flat_map(|source| source.split('"').skip(1).step_by(2));
    let is_code = |text: &&str| {
        text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let codes: Vec<_> = texts.filter(is_code).filter(|text| *text != "snake_case").collect();
    assert!(codes.len() >= 12, "{codes:?}");
    for code in codes {
        let documented = page.contains(&format!("`{code}`"));
        assert!(documented || code == "invalid_token", "docs/http.md has no `{code}`");
    }
    worker.stop().await;
}

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

#[test]
fn docs_http_explains_every_kind_of_failure() {
    let page = include_str!("../../docs/http.md");
    let source = include_str!("../../src/domain/report.rs");
    let (_, names) = source.split_once("pub fn as_str").unwrap();
    let (names, _) = names.split_once("impl Failure ").unwrap();
    let kinds: Vec<_> = names.split('"').skip(1).step_by(2).collect();
    assert!(kinds.len() >= 21, "{kinds:?}");
    for kind in kinds {
        assert!(page.contains(&format!("`{kind}`")), "docs/http.md has no `{kind}`");
    }
}

#[test]
fn docs_metrics_are_those_of_the_code() {
    use std::fmt::Write;

    let mut page = METRICS_INTRODUCTION.to_owned();
    for metric in DECLARED {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let (name, kind, labels) = (metric.name, metric.kind.as_str(), labels.join(", "));
        writeln!(page, "| `{name}` | {kind} | {labels} | {}. |", metric.help).unwrap();
    }
    document::compare("docs/metrics.md", &page);
}

const METRICS_INTRODUCTION: &str = "\
# Metrics

Made from the code; `PREHEAT_BLESS=1 cargo test --test it docs_` writes this page anew.

`GET /metrics` answers in the Prometheus text format, or in OpenMetrics where the client asks for it.
A tenant is never a label. All series of a job stand from the start with 0, so that a first failure is
an increase; what was never measured (what the verifier fills before its first sample, the coverage before
the tenants are known, the cache server's counters before its first answer) is absent. When a job's file goes, its gauges go with it and its counters stay until
the worker restarts.

- `outcome` of a run: `ok`, `partial`, `failed`, `timeout`, `cancelled`; `trigger`: `schedule`,
  `startup`, `request`, `change`.
- `outcome` of a tenant: `ok`, `failed`, `fenced`; of a key: `written`, `removed`, `failed`, `fenced`.
- `reason` of a skipped run: `overlap`, `queue_full`, `draining`.
- `kind` of a finding: `stale`, `missing`, `orphaned`, `wrong_ttl`; [audit](audit.md) says what they are.
- `state` of a connection: `idle`, `in_use`, `max`.

Worth an alert: `time() - preheat_last_success_timestamp_seconds` above a job's `ttl`,
`preheat_coverage_ratio` below 1, an increase of `preheat_runs_total{outcome!=\"ok\"}`,
`preheat_breaker_open`, `preheat_scheduler_silent` or `preheat_jobs_rejected` at 1; with the change feed
`preheat_change_feed_tables_without_triggers` above 0, or `preheat_change_feed_connected` at 0.

| metric | type | labels | what |
| --- | --- | --- | --- |
";
