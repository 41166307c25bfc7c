//! `/healthz`, `/readyz`, `/metrics`, and the index page that lists the routes.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use serde_json::{Value, json};

use super::AppState;
use crate::domain::job::JobName;
use crate::engine::schedule::status::{
    Beat, Health, Readiness, RejectedFor, Rejection, Rejections,
};
use crate::observe::{Metrics, event};

/// If a server hangs, a scrape waits this long for fresh figures, and then shows older ones.
const MAX_REFRESH: Duration = Duration::from_secs(2);

/// `GET /`
pub(super) async fn index() -> String {
    format!(
        "preheat {}\n\n\
         GET  /healthz                  whether this worker works\n\
         GET  /readyz                   whether the cache is warm enough to serve from\n\
         GET  /metrics                  Prometheus\n\
         GET  /api/v1/jobs              the jobs, when they are due, how they went\n\
         GET  /api/v1/jobs/{{job}}        one of them\n\
         GET  /api/v1/runs?job=&limit=  the newest runs\n\
         GET  /api/v1/runs/{{id}}         one of them\n\
         POST /api/v1/runs              warm all jobs now (with the token)\n\
         POST /api/v1/jobs/{{job}}/runs   warm one now (with the token)\n\
         POST /api/v1/invalidations     remove keys (with the token)\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// `GET /healthz`
pub(super) async fn healthz(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let (status, body) = health(state.control.handle.health());
    (status, Json(body))
}

fn health(health: Health) -> (StatusCode, Value) {
    let Health { scheduler, engine } = health;
    let beat = |beat: Beat| {
        json!({
            "alive": beat.is_alive(),
            "silent_for_ms": beat.silent_for.as_millis(),
            "limit_ms": beat.limit.as_millis(),
        })
    };
    let beats = [("scheduler", scheduler), ("engine", engine)];
    let silent: Vec<_> =
        beats.iter().filter(|(_, beat)| !beat.is_alive()).map(|(name, _)| *name).collect();
    let status = if silent.is_empty() { "ok" } else { "silent" };
    let body = json!({
        "status": status,
        "silent": silent,
        "scheduler": beat(scheduler),
        "engine": beat(engine),
    });
    let code = if silent.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, body)
}

/// `GET /readyz`
pub(super) async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let handle = &state.control.handle;
    let current = handle.status();
    let readiness = current.readiness(handle.now(), state.control.ready_within);
    let (status, body) = ready(&readiness, &current.rejections);
    (status, Json(body))
}

fn ready(readiness: &Readiness, rejections: &Rejections) -> (StatusCode, Value) {
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
    let rejected: Vec<_> = rejections.iter().map(|(job, why)| rejected(job, why)).collect();
    let body =
        json!({ "status": status, "waiting": waiting, "rejected": rejected, "message": message });
    (code, body)
}

fn rejected(job: &JobName, rejection: &Rejection) -> Value {
    let Rejection { problems, older_in_use } = rejection;
    let problems: Vec<_> = problems.iter().map(rejected_for).collect();
    json!({ "job": job.as_str(), "older_in_use": older_in_use, "problems": problems })
}

/// A reason why a job's file is rejected, as the API shows it.
pub(super) fn rejected_for(reason: &RejectedFor) -> Value {
    let RejectedFor { file, line, message, hint } = reason;
    json!({ "file": file, "line": line, "message": message, "hint": hint })
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
    use super::*;

    fn beat(silent_for: u64) -> Beat {
        Beat { silent_for: Duration::from_secs(silent_for), limit: Duration::from_secs(10) }
    }

    #[test]
    fn hazard_22_health_names_what_is_silent() {
        let (code, body) = health(Health { scheduler: beat(1), engine: beat(0) });
        assert_eq!((code, &body["status"]), (StatusCode::OK, &json!("ok")));
        let (code, body) = health(Health { scheduler: beat(11), engine: beat(0) });
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
