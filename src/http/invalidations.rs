//! `/api/v1/invalidations`: removes keys, and says what it removed.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::ApiError;
use super::auth::Authorized;
use super::body::WrittenId;
use super::idempotency::Removed;
use super::runs::RunView;
use super::{AppState, body, idempotency};
use crate::domain::tenant::TenantId;
use crate::invalidate::{InvalidateReport, InvalidateRequest};

/// The body of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object with `keys`, `tenants`, `jobs`, `patterns`, `all`, `rewarm`"
)]
struct WrittenBody {
    keys: Vec<String>,
    tenants: Vec<WrittenId>,
    jobs: Vec<String>,
    patterns: Vec<String>,
    all: bool,
    rewarm: bool,
}

/// What was removed, as the API shows it.
#[derive(Debug, Serialize)]
struct InvalidationView {
    #[serde(flatten)]
    report: InvalidateReport,
    /// The runs that warm the removed keys again.
    runs: Vec<RunView>,
}

/// `POST /api/v1/invalidations`
pub(super) async fn create(
    _: Authorized,
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (headers, body) = body::read(request).await?;
    let WrittenBody { keys, tenants, jobs, patterns, all, rewarm } = body::parse(&headers, &body)?;
    let tenants = tenants.iter().map(|WrittenId(id)| TenantId::new(id)).collect();
    let request = InvalidateRequest { keys, tenants, jobs, patterns, all, rewarm };
    let key = idempotency::key(&headers)?;
    let control = &state.control;
    let Removed { report, runs } = state.requests.invalidation(control, key, request).await?;
    let runs = RunView::all_now(&control.handle, &runs).await?;
    Ok(InvalidationView { report: InvalidateReport::clone(&report), runs }.into_response())
}

impl IntoResponse for InvalidationView {
    /// The status alone tells whether keys were left, for clients that read nothing else.
    fn into_response(self) -> Response {
        if self.report.complete {
            return Json(self).into_response();
        }
        let failures = &self.report.failures;
        let first = failures.first().map(|failure| failure.message.as_str()).unwrap_or_default();
        let message = format!("not everything was done: {first}");
        let error = json!({ "code": "incomplete", "message": message });
        let body = Json(json!({ "error": error, "invalidation": self }));
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}
