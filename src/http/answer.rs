//! Error answers: all have the same JSON form.

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};

use super::openapi::ErrorBody;
use crate::engine::schedule::handle::{HistoryError, RequestError};
use crate::engine::schedule::pauses::PauseError;
use crate::invalidate::InvalidateError;

/// A refused request: the status, a code, and a message.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, &'static str)>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), header: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The request is well formed, but cannot be done.
    pub(super) fn unprocessable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    pub(super) fn no_such_job(name: &str) -> Self {
        let message = format!("there is no job `{}`", name.escape_debug());
        Self::new(StatusCode::NOT_FOUND, "unknown_job", message)
    }

    pub(super) fn no_such_run(id: &str) -> Self {
        let message = format!("there is no run `{}`", id.escape_debug());
        Self::new(StatusCode::NOT_FOUND, "unknown_run", message)
    }

    pub(super) fn timed_out() -> Self {
        let message = "the answer took too long; try again";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    /// The worker stopped before it knew the end of the run.
    pub(super) fn stopped() -> Self {
        let message = "the worker stopped before the run ended";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", message)
    }

    pub(super) fn too_many_waiting() -> Self {
        let message = "too many requests wait for their runs: ask without `wait`, or try again";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_waiting", message).retry_after("5")
    }

    pub(super) fn too_many_streams() -> Self {
        let message = "too many streams of events are open: close some, or try again";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", message).retry_after("5")
    }

    pub(super) fn too_many_tries() -> Self {
        let message = "too many tries with a wrong token: wait a minute";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_tries", message).retry_after("60")
    }

    pub(super) fn with_header(self, name: HeaderName, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    fn retry_after(self, seconds: &'static str) -> Self {
        self.with_header(header::RETRY_AFTER, seconds)
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown_job", message),
            RequestError::Disabled(_) => Self::new(StatusCode::CONFLICT, "job_disabled", message),
            RequestError::Rejected(_) => Self::new(StatusCode::CONFLICT, "job_rejected", message),
            RequestError::TakesNoTenants(_) => Self::unprocessable("takes_no_tenants", message),
            RequestError::QueueFull(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).retry_after("10")
            }
            RequestError::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).retry_after("1")
            }
            RequestError::Draining => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message).retry_after("10")
            }
            RequestError::FleetAway(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "fleet_away", message).retry_after("2")
            }
        }
    }
}

impl From<PauseError> for ApiError {
    fn from(error: PauseError) -> Self {
        let message = error.to_string();
        match error {
            PauseError::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown_job", message),
            PauseError::Over => Self::unprocessable("invalid_until", message),
            PauseError::Draining => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message).retry_after("10")
            }
        }
    }
}

impl From<InvalidateError> for ApiError {
    fn from(error: InvalidateError) -> Self {
        let message = error.to_string();
        let unavailable = |code, message| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after("5")
        };
        match error {
            InvalidateError::Nothing
            | InvalidateError::TooMany { .. }
            | InvalidateError::Length { .. } => Self::unprocessable("invalid_body", message),
            InvalidateError::UnknownJob { .. } => Self::unprocessable("unknown_job", message),
            InvalidateError::TakesNoTenants(_) => Self::unprocessable("takes_no_tenants", message),
            InvalidateError::Everything(_) => Self::unprocessable("matches_everything", message),
            InvalidateError::Own(_) => Self::unprocessable("reserved_key", message),
            InvalidateError::Tenants(_) => unavailable("database_unavailable", message),
            InvalidateError::Registry(_) => unavailable("cache_unavailable", message),
            InvalidateError::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).retry_after("1")
            }
            InvalidateError::Draining => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message).retry_after("10")
            }
        }
    }
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> Self {
        let message = format!("the history could not be read: {error}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "history_unavailable", message).retry_after("5")
    }
}

/// Why a request was refused. It travels in the extensions of the answer, so that a browser can get
/// a page in place of the JSON.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message, header } = self;
        let body = axum::Json(ErrorBody::new(code, message.clone()));
        let mut answer = (status, header.map(|header| [header]), body).into_response();
        answer.extensions_mut().insert(Refusal { code, message });
        answer
    }
}

pub(super) async fn no_such_route(uri: Uri) -> ApiError {
    let message = format!("there is no route `{}`; `/` names those there are", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// A time as answers show it.
pub(super) fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Whether the client is a browser that shows the answer to a person.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.into_iter().any(|value| value.contains("text/html"))
}
