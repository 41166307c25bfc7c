//! `GET /find`: leads from what somebody typed into the search field to the page that they mean.

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use uuid::Uuid;

use super::layout::Shell;
use super::links::Links;
use super::tenant;
use crate::engine::schedule::status::Status;
use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::session::Viewer;
use crate::overview::Sought;

/// What somebody looks for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Search {
    #[serde(default)]
    q: String,
    /// A tenant whose id cannot be a part of a path.
    tenant: Option<String>,
}

/// `GET /find?q=`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Query(Search { q, tenant }): Query<Search>,
) -> Result<Response, ApiError> {
    if let Some(id) = tenant {
        return tenant::shown(shell, &state, &viewer, &id).await;
    }
    let board = &state.control.board;
    let page = page_of(q.trim(), &shell.links, &state.control.handle.status(), |text| {
        board.beginning_with(text)
    });
    Ok(Redirect::to(&page).into_response())
}

/// A job by its name, a run by its id, a run or a tenant by the beginning of its id; anything else is taken for the
/// id of a tenant.
fn page_of(
    text: &str,
    links: &Links,
    status: &Status,
    beginning_with: impl Fn(&str) -> Option<Sought>,
) -> String {
    let is_job = status.jobs.keys().any(|name| name.as_str() == text);
    match Uuid::try_parse(text) {
        _ if text.is_empty() => links.overview(),
        _ if is_job => links.job(text),
        // Ids of runs are UUIDs of version 7; those of tenants may be UUIDs too.
        Ok(id) if id.get_version_num() == 7 => links.run(id),
        Ok(_) => links.tenant(text),
        Err(_) => match beginning_with(text) {
            Some(Sought::Run(run)) => links.run(run),
            Some(Sought::Tenant(id)) => links.tenant(id.as_str()),
            None => links.tenant(text),
        },
    }
}
