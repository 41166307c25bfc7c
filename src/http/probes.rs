//! `/healthz`, `/readyz`, `/metrics`, and the list of routes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AppState;
use super::openapi::{Api, Operation};
use crate::domain::job::JobName;
use crate::engine::schedule::status::{
    Beat, Health, Readiness, RejectedFor, Rejection, Rejections,
};
use crate::observe::{Metrics, event};

/// If a server hangs, a scrape waits this long for fresh figures, and then shows older ones.
const MAX_REFRESH: Duration = Duration::from_secs(2);

/// `GET /` for clients that are no browser.
pub(super) fn index() -> String {
    format!(
        "preheat {}\n\n\
         GET  /healthz                  whether this worker works\n\
         GET  /readyz                   whether the cache is warm enough to serve from\n\
         GET  /metrics                  Prometheus\n\
         GET  /api/v1/jobs              the jobs, when they are due, how they went\n\
         GET  /api/v1/jobs/{{job}}        one of them\n\
         GET  /api/v1/overview          whether the cache is warm, what is wrong, what comes next\n\
         GET  /api/v1/tenants?warm=false  the tenants that are not warm, and why\n\
         GET  /api/v1/tenants/{{id}}      everything about one tenant\n\
         GET  /api/v1/runs              the newest runs, by filters\n\
         GET  /api/v1/runs/{{id}}         one of them\n\
         GET  /api/v1/events            what happens, as it happens\n\
         GET  /api/v1/openapi.json      the document of all routes\n\
         POST /api/v1/runs              warm all jobs now (with the token)\n\
         POST /api/v1/jobs/{{job}}/runs   warm one now (with the token)\n\
         POST /api/v1/jobs/{{job}}/pause  pause one, or /resume it (with the token)\n\
         POST /api/v1/pause             pause all, or /api/v1/resume them (with the token)\n\
         POST /api/v1/invalidations     remove keys (with the token)\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Whether the process works.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "Health")]
pub(super) struct HealthView {
    status: &'static str,
    /// The parts that have been silent for too long.
    silent: Vec<&'static str>,
    /// Absent while the worker starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<BeatView>,
    /// Absent while the worker starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<BeatView>,
}

/// A repeated sign of life.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Beat")]
struct BeatView {
    alive: bool,
    silent_for_ms: u128,
    limit_ms: u128,
}

/// Whether the cache is warm enough to serve from.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Readiness")]
pub(super) struct ReadyView {
    pub(super) status: &'static str,
    /// Required jobs that have not succeeded yet.
    pub(super) waiting: Vec<String>,
    pub(super) rejected: Vec<RejectedView>,
    /// What is wrong with the job files that were read last, if the last good ones stay in use because of it.
    pub(super) unreadable: Vec<ProblemView>,
    /// The servers that the worker waits for; absent once it has started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) servers: Vec<ServerView>,
    pub(super) message: String,
}

/// A rejected job file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Rejection")]
pub(super) struct RejectedView {
    job: String,
    older_in_use: bool,
    problems: Vec<ProblemView>,
}

/// What is wrong with a job file, or with the tenant query.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemView {
    file: String,
    line: Option<usize>,
    message: String,
    hint: Option<String>,
}

/// A server that the worker needs.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Server")]
pub(super) struct ServerView {
    pub(super) server: &'static str,
    /// Without user and password.
    pub(super) address: String,
    /// `unknown`, `away` or `connected`.
    pub(super) state: &'static str,
    /// Why it is away.
    pub(super) message: Option<String>,
}

pub(super) fn routes(api: Api) -> Api {
    let healthz = Operation::new("health", "Whether this worker works")
        .answers::<HealthView>(200, "its scheduler and its loop are alive")
        .answers::<HealthView>(503, "one of them is silent");
    let readyz = Operation::new("readiness", "Whether the cache is warm enough to serve from")
        .answers::<ReadyView>(200, "it is, or `ready_within` has passed")
        .answers::<ReadyView>(503, "it is not yet, or the worker stops");
    let metrics = Operation::new("metrics", "Metrics for Prometheus")
        .answers_text("the text format", "text/plain")
        .answers_text("OpenMetrics, for a client that accepts it", "application/openmetrics-text");
    let document = Operation::new("openapi", "This document")
        .answers::<BTreeMap<String, Value>>(200, "the document");
    api.get("/healthz", self::healthz, healthz)
        .get("/readyz", self::readyz, readyz)
        .get("/metrics", self::metrics, metrics)
        .get("/api/v1/openapi.json", self::openapi, document)
}

async fn openapi(State(state): State<AppState>) -> ([(HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, "application/json")], state.document.to_string())
}

/// `GET /healthz`
pub(super) async fn healthz(State(state): State<AppState>) -> (StatusCode, Json<HealthView>) {
    let (status, body) = health(state.control.handle.health());
    (status, Json(body))
}

fn health(health: Health) -> (StatusCode, HealthView) {
    let Health { scheduler, engine } = health;
    let beats = [("scheduler", scheduler), ("engine", engine)];
    let silent = beats.iter().filter(|(_, beat)| !beat.is_alive()).map(|(name, _)| *name);
    let body = HealthView {
        scheduler: Some(BeatView::new(scheduler)),
        engine: Some(BeatView::new(engine)),
        ..HealthView::new(silent.collect())
    };
    let is_alive = body.silent.is_empty();
    (if is_alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

impl HealthView {
    pub(super) fn new(silent: Vec<&'static str>) -> Self {
        let status = if silent.is_empty() { "ok" } else { "silent" };
        Self { status, silent, ..Self::default() }
    }
}

impl BeatView {
    fn new(beat: Beat) -> Self {
        Self {
            alive: beat.is_alive(),
            silent_for_ms: beat.silent_for.as_millis(),
            limit_ms: beat.limit.as_millis(),
        }
    }
}

/// `GET /readyz`
pub(super) async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<ReadyView>) {
    let handle = &state.control.handle;
    let current = handle.status();
    let readiness = current.readiness(handle.now(), state.control.ready_within);
    let (status, body) = ready(&readiness, &current.rejections);
    let unreadable = ProblemView::all(&state.control.board.unreadable());
    (status, Json(ReadyView { unreadable, ..body }))
}

fn ready(readiness: &Readiness, rejections: &Rejections) -> (StatusCode, ReadyView) {
    let names = |jobs: &[JobName]| jobs.iter().map(JobName::to_string).collect::<Vec<_>>();
    let (code, status, waiting, message) = match readiness {
        Readiness::Ready => {
            (StatusCode::OK, "ready", vec![], "every required job has succeeded once")
        }
        Readiness::Unasked => {
            (StatusCode::OK, "ready", vec![], "no job is `required`: no run was waited for")
        }
        Readiness::Waiting { jobs } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting",
            names(jobs),
            "these required jobs have not succeeded yet",
        ),
        Readiness::GaveUp { jobs } => (
            StatusCode::OK,
            "gave_up",
            names(jobs),
            "`ready_within` has passed and these required jobs have not succeeded yet",
        ),
        Readiness::Rejected { jobs, held: _ } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "rejected",
            names(jobs),
            "the database refuses the queries of jobs, and nothing warms their keys",
        ),
        Readiness::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining", vec![], "the worker is stopping")
        }
    };
    let (rejected, unreadable) = (RejectedView::all(rejections), Vec::new());
    let message = message.to_owned();
    (code, ReadyView { status, waiting, rejected, unreadable, servers: Vec::new(), message })
}

impl RejectedView {
    pub(super) fn all(rejections: &Rejections) -> Vec<Self> {
        rejections.iter().map(|(job, why)| Self::new(job, why)).collect()
    }

    fn new(job: &JobName, rejection: &Rejection) -> Self {
        let Rejection { problems, older_in_use } = rejection;
        let problems = ProblemView::all(problems);
        Self { job: job.to_string(), older_in_use: *older_in_use, problems }
    }
}

impl ProblemView {
    pub(super) fn all(reasons: &[RejectedFor]) -> Vec<Self> {
        reasons.iter().map(Self::new).collect()
    }

    pub(super) fn new(reason: &RejectedFor) -> Self {
        let RejectedFor { file, line, message, hint } = reason.clone();
        Self { file, line, message, hint }
    }
}

/// `GET /metrics`: OpenMetrics if the client asks for it, otherwise the older text format.
pub(super) async fn metrics(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> ([(HeaderName, &'static str); 1], String) {
    let refreshed = tokio::time::timeout(MAX_REFRESH, (state.control.refresh)()).await;
    if refreshed.is_err() {
        event::ScrapeOutdated.emit(&state.control.metrics);
    }
    metrics_page(&state.control.metrics, &headers)
}

/// The metrics page in the format that the client accepts.
pub(super) fn metrics_page(
    metrics: &Metrics,
    headers: &HeaderMap,
) -> ([(HeaderName, &'static str); 1], String) {
    metrics.look_at_process();
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (kind, page) = if wants_openmetrics(accepted) {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (kind, metrics.encode_openmetrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", metrics.encode())
    };
    ([(header::CONTENT_TYPE, kind)], page)
}

fn wants_openmetrics<'a>(mut accepted: impl Iterator<Item = &'a str>) -> bool {
    accepted.any(|value| value.contains("application/openmetrics-text"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json_of(body: impl Serialize) -> Value {
        serde_json::to_value(body).unwrap()
    }

    fn beat(silent_for: u64) -> Beat {
        Beat { silent_for: Duration::from_secs(silent_for), limit: Duration::from_secs(10) }
    }

    #[test]
    fn hazard_22_health_names_what_is_silent() {
        let (code, body) = health(Health { scheduler: beat(1), engine: beat(0) });
        let body = json_of(body);
        assert_eq!((code, &body["status"]), (StatusCode::OK, &json!("ok")));
        let (code, body) = health(Health { scheduler: beat(11), engine: beat(0) });
        let body = json_of(body);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["silent"], json!(["scheduler"]));
        assert_eq!(body["scheduler"]["silent_for_ms"], 11_000);
        assert_eq!(body["engine"]["alive"], true);
    }

    #[test]
    fn hazard_28_readiness_names_the_jobs_that_are_missing() {
        let jobs = || vec![JobName::parse("services").unwrap()];
        let cases = [
            (Readiness::Ready, 200, "ready", json!([])),
            (Readiness::Unasked, 200, "ready", json!([])),
            (Readiness::Waiting { jobs: jobs() }, 503, "waiting", json!(["services"])),
            (Readiness::GaveUp { jobs: jobs() }, 200, "gave_up", json!(["services"])),
            (Readiness::Rejected { held: jobs(), jobs: vec![] }, 503, "rejected", json!([])),
            (Readiness::Draining, 503, "draining", json!([])),
        ];
        for (readiness, code, status, waiting) in cases {
            let (found, body) = ready(&readiness, &Rejections::default());
            let body = json_of(body);
            assert_eq!(found.as_u16(), code, "{readiness:?}");
            assert_eq!((&body["status"], &body["waiting"]), (&json!(status), &waiting));
        }
    }

    #[test]
    fn openmetrics_is_for_whoever_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        assert!(wants_openmetrics([prometheus].into_iter()));
        assert!(!wants_openmetrics(["*/*"].into_iter()));
        assert!(!wants_openmetrics(std::iter::empty()));
    }
}
