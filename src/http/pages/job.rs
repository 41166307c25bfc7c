//! The page `/jobs/{job}`.

use axum::extract::{Path, State};
use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};
use crate::domain::job::JobName;
use crate::http::AppState;
use crate::http::answer::ApiError;

/// `GET /jobs/{job}`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    Path(job): Path<String>,
) -> Result<Response, ApiError> {
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    let status = state.control.handle.status();
    let job = status.jobs.get(&name).ok_or_else(|| ApiError::no_such_job(&job))?;
    let shell = shell.with_json(format_args!("jobs/{name}"));
    Ok(page(name.as_str(), &shell, html! { h1 { (job.job.name) } }))
}
