//! The page `/runs/{id}`.

use axum::extract::{Path, State};
use axum::response::Response;
use maud::html;
use uuid::Uuid;

use super::layout::{Shell, page};
use crate::domain::run::RunId;
use crate::http::answer::ApiError;
use crate::http::{AppState, limited};

/// `GET /runs/{id}`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let run = Uuid::try_parse(&id).map_err(|_no_id| ApiError::no_such_run(&id))?;
    let run = RunId(run);
    let found = limited(state.control.handle.run(run)).await??;
    let _run = found.ok_or_else(|| ApiError::no_such_run(&id))?;
    let shell = shell.with_json(format_args!("runs/{run}"));
    Ok(page(&format!("Run {run}"), &shell, html! { h1 { "Run " (run) } }))
}
