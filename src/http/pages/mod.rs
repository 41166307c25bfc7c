//! The dashboard: HTML that is made here, and that works without JavaScript. To add a page, add a
//! line to [`routes`] and a file with its handler, which takes a [`layout::Shell`] and answers with
//! [`layout::page`].

mod actions;
mod assets;
mod audit;
mod changes;
mod chart;
mod context;
pub(super) mod errors;
mod find;
mod fleet;
mod job;
mod jobs;
pub(super) mod layout;
pub(super) mod links;
pub(super) mod login;
mod overview;
mod run;
mod runs;
mod settings;
pub(super) mod starting;
mod tenant;
mod tenants;
mod words;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::answer::wants_html;
use super::openapi::{Api, Operation};
use super::session::Viewer;
use super::{AppState, probes};

/// The first page, which is the list of routes for a client that is no browser.
pub(super) fn described(api: Api) -> Api {
    let index = Operation::new("index", "The dashboard, or the list of routes")
        .answers_text("the routes", "text/plain")
        .answers_text("the dashboard, for a client that accepts it", "text/html");
    api.get("/", first, index)
}

/// The routes of all other pages.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/jobs", get(jobs::show))
        .route("/jobs/{job}", get(job::show))
        .route("/runs", get(runs::show))
        .route("/runs/{id}", get(run::show))
        .route("/tenants", get(tenants::show))
        .route("/tenants/{id}", get(tenant::show))
        .route("/audit", get(audit::show))
        .route("/changes", get(changes::show))
        .route("/settings", get(settings::show))
        .route("/fleet", get(fleet::show))
        .route("/login", get(login::show))
        .route("/find", get(find::show))
        .merge(actions::routes())
        .merge(files())
}

/// The routes of the static files, which a worker needs before it works, too.
pub(super) fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/assets/{name}", get(assets::serve))
}

/// `GET /`: the overview for a browser; for other clients the list of routes.
async fn first(
    shell: layout::Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    headers: HeaderMap,
) -> Response {
    let mut answer = if wants_html(&headers) {
        overview::show(shell, &state, &viewer).await
    } else {
        probes::index().into_response()
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    answer
}
