//! `/api/v1/invalidations`: removes keys, and says what it removed.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::ApiError;
use super::auth::Authorized;
use super::body::WrittenId;
use super::idempotency::{KEY_HEADER, Removed};
use super::openapi::{Api, ErrorDetail, Operation};
use super::runs::{RunView, trace_parent};
use super::{AppState, body, idempotency, levers};
use crate::domain::tenant::TenantId;
use crate::engine::schedule::handle::Asker;
use crate::invalidate::{InvalidateReport, InvalidateRequest};

/// The body of a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object with `keys`, `tenants`, `jobs`, `patterns`, `all`, `rewarm`, `dry_run`"
)]
struct WrittenBody {
    keys: Vec<String>,
    tenants: Vec<WrittenId>,
    jobs: Vec<String>,
    patterns: Vec<String>,
    all: bool,
    rewarm: bool,
    /// Whether to count what would be removed, and to change nothing.
    dry_run: bool,
}

/// What was removed, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Invalidation")]
struct InvalidationView {
    #[serde(flatten)]
    report: InvalidateReport,
    /// The runs that warm the removed keys again.
    runs: Vec<RunView>,
}

/// The answer if a part of the request could not be done.
#[derive(Debug, Serialize, JsonSchema)]
struct Incomplete {
    error: ErrorDetail,
    /// The part that was done. It is absent if nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    invalidation: Option<InvalidationView>,
}

pub(super) fn routes(api: Api) -> Api {
    let create = Operation::new("invalidate", "Removes keys: fences first, then the keys")
        .needs_token()
        .body::<WrittenBody>()
        .headers(KEY_HEADER)
        .answers::<InvalidationView>(200, "everything was done")
        .answers::<Incomplete>(503, "`incomplete`: a part was done; or nothing, as the code says")
        .refuses(504, "`timeout`: the answer took too long");
    api.post("/api/v1/invalidations", self::create, create)
}

/// `POST /api/v1/invalidations`
async fn create(
    Authorized { by }: Authorized,
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (headers, body) = body::read(request).await?;
    let written: WrittenBody = body::parse(&headers, &body)?;
    let WrittenBody { keys, tenants, jobs, patterns, all, rewarm, dry_run } = written;
    let tenants = tenants.iter().map(|WrittenId(id)| TenantId::new(id)).collect();
    let request = InvalidateRequest { keys, tenants, jobs, patterns, all, rewarm, dry_run };
    levers::tell_invalidation(&state, &by, &request);
    let key = idempotency::key(&headers)?;
    let control = &state.control;
    let asker = Asker { parent: trace_parent(&headers), ..by.into() };
    let removed = state.requests.invalidation(control, key, request, asker).await?;
    let Removed { report, runs } = removed;
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
        let error = ErrorDetail::new("incomplete", message);
        let body = Json(Incomplete { error, invalidation: Some(self) });
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}
