//! The control plane over real connections, with a real engine whose servers are in memory and
//! whose clock stands still.

mod documents;
mod events;
mod health;
mod invalidations;
mod levers;
mod openapi;
mod overview;
mod runs;
mod sign_in;
mod waiting;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use preheat::adapter::memory::MemoryHistory;
use preheat::config::Settings;
use preheat::definition::{Defaults, JobText, check};
use preheat::domain::job::{JobName, Jobs, Share};
use preheat::domain::pause::Pauses;
use preheat::domain::run::{RunFilter, RunId, RunRecord};
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{Beside, Clock, History, HistoryError, SourceError, SourceErrorKind};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::engine::registry::Registry;
use preheat::engine::run::limit::Limits;
use preheat::engine::run::record::Records;
use preheat::engine::run::{Runner, Stops};
use preheat::engine::schedule::health::Beats;
use preheat::engine::schedule::pauses::{PauseBook, READ_EVERY};
use preheat::engine::schedule::scheduler::{Engine, Parts};
use preheat::http::{Access, Control, router, serve};
use preheat::invalidate::Invalidations;
use preheat::observe::Metrics;
use preheat::overview::{Board, Connections};
use secrecy::SecretString;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::http::{Answer, get, post, request};
use crate::support::memory::{MemoryCache, MemoryPauses, MemoryRow, MemorySource};
use crate::support::virtual_clock::VirtualClock;
use crate::support::{LONG, eventually};

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
    /// How often it was asked for runs.
    questions: AtomicU64,
}

impl MoodyHistory {
    async fn memory_len(&self) -> usize {
        self.memory.recent(None, usize::MAX).await.unwrap().len()
    }

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

    fn find<'a>(
        &'a self,
        filter: &'a RunFilter,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { self.mood()?.find(filter).await })
    }

    fn recall<'a>(
        &'a self,
        jobs: &'a [JobName],
        newest: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move { self.mood()?.recall(jobs, newest).await })
    }

    fn beside<'a>(&'a self, run: &'a RunRecord) -> BoxFuture<'a, Result<Beside, HistoryError>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { self.mood()?.beside(run).await })
    }

    fn parts<'a>(
        &'a self,
        due: &'a [DateTime<Utc>],
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { self.mood()?.parts(due).await })
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
    runner: Arc<Runner>,
    /// Reads of rows wait while it is false.
    gate: watch::Sender<bool>,
    /// Whether reads of rows fail.
    fails: Arc<AtomicBool>,
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
        let token = token.map(SecretString::from);
        Self::start_for(Access { token, ..Access::default() }).await
    }

    #[expect(
        clippy::too_many_lines,
        reason = "it only makes the parts and hands them to each other"
    )]
    async fn start_for(access: Access) -> Self {
        let clock = VirtualClock::new("2026-03-01T12:10:00Z".parse().unwrap(), 7);
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let metrics = Metrics::new();
        let cache = Arc::new(MemoryCache::new(Arc::clone(&shared_clock)));
        let fails = Arc::new(AtomicBool::new(false));
        let (gate, source) = source(&fails);
        let memory = MemoryHistory::new(100);
        let history = Arc::new(MoodyHistory {
            memory,
            away: AtomicBool::new(false),
            questions: AtomicU64::new(0),
        });
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
        let board = Board::new(Arc::clone(&runner), handle.clone());
        let invalidations = Invalidations::new(Arc::clone(&runner), handle.clone(), stops.clone());
        let store = Arc::new(MemoryPauses::default());
        let pauses = PauseBook::new(
            store,
            handle.clone(),
            Pauses::default(),
            Arc::clone(&metrics),
            READ_EVERY,
        );
        let control = Control {
            handle,
            invalidations,
            board,
            pauses,
            metrics: Arc::clone(&metrics),
            refresh: refresh(&refreshes, &metrics),
            connections: Arc::new(|| Connections { most: 4, in_use: 2, idle: 1 }),
            access,
            settings: Arc::default(),
            ready_within: Duration::from_mins(2),
            shutdown: shutdown.clone(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(engine.run());
        tasks.spawn(records.run(shutdown.clone()));
        tasks.spawn(serve(listener, router(control), shutdown.clone()));
        Self {
            address,
            clock,
            cache,
            history,
            metrics,
            runner,
            gate,
            fails,
            refreshes,
            stops,
            shutdown,
            tasks,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        get(self.address, path).await.unwrap()
    }

    /// Asks with the token.
    async fn get_with_token(&self, path: &str) -> Answer {
        request(self.address, "GET", path, &[TOKEN], "").await.unwrap()
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
fn source(fails: &Arc<AtomicBool>) -> (watch::Sender<bool>, MemorySource) {
    let mut tenants = Tenants::with_columns(["timezone"]);
    for id in ["a", "b", "c"] {
        tenants.push(id, [Some("UTC")]);
    }
    let source = MemorySource::new(tenants);
    let row = |tenant| MemoryRow::new(tenant, r#"{"name":"Checkup"}"#, []);
    source.set_rows(&name("services"), ["a", "b", "c"].map(row).to_vec());
    source.set_rows(&name("report"), vec![row("")]);
    let (gate, open) = watch::channel(true);
    let fails = Arc::clone(fails);
    source.before_read(move |_read| {
        let mut open = open.clone();
        let message = "division by zero".to_owned();
        let error = SourceError { kind: SourceErrorKind::Data, message };
        let result = if fails.load(Ordering::Relaxed) { Err(error) } else { Ok(()) };
        Box::pin(async move {
            drop(open.wait_for(|open| *open).await);
            result
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
