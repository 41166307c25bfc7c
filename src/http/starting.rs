//! The routes of a worker that waits for its servers: they say that it is alive and what it waits
//! for.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use tokio::sync::watch;

use super::answer::{ApiError, wants_html};
use super::probes::{HealthView, ReadyView, ServerView};
use super::{answer, pages, probes, with_answers_in_common};
use crate::engine::schedule::status::{NeededServer, ServerState, Starting};
use crate::observe::Metrics;

/// What the routes need from the rest of the worker.
#[derive(Clone)]
pub struct Waiting {
    /// The servers that the worker waits for.
    pub starting: watch::Receiver<Starting>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
}

/// All routes.
pub fn starting(waiting: Waiting) -> Router {
    let routes = only_probes()
        .merge(pages::files())
        .route("/", get(first))
        .route("/metrics", get(metrics))
        .route("/api/v1/{*path}", any(not_yet))
        .route("/{*path}", any(page));
    with_answers_in_common(routes).with_state(waiting)
}

/// `GET /`
async fn first(State(waiting): State<Waiting>, headers: HeaderMap, uri: Uri) -> Response {
    if wants_html(&headers) {
        return pages::starting::page(uri.path(), &waiting.starting.borrow());
    }
    probes::index().into_response()
}

/// Any page, which will be there soon.
async fn page(State(waiting): State<Waiting>, headers: HeaderMap, uri: Uri) -> Response {
    if wants_html(&headers) {
        return pages::starting::page(uri.path(), &waiting.starting.borrow());
    }
    answer::no_such_route(uri).await.into_response()
}

/// The two probe routes alone.
pub fn starting_probes(waiting: Waiting) -> Router {
    with_answers_in_common(only_probes()).with_state(waiting)
}

fn only_probes() -> Router<Waiting> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// The process is alive. There is no scheduler yet that could be silent.
async fn healthz() -> Json<HealthView> {
    Json(HealthView::new(Vec::new()))
}

async fn readyz(State(waiting): State<Waiting>) -> (StatusCode, Json<ReadyView>) {
    let body = not_ready(&waiting.starting.borrow());
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}

fn not_ready(starting: &Starting) -> ReadyView {
    ReadyView {
        status: "starting",
        waiting: Vec::new(),
        rejected: Vec::new(),
        unreadable: Vec::new(),
        servers: starting.servers.iter().map(server).collect(),
        message: message(starting),
    }
}

fn server(server: &NeededServer) -> ServerView {
    let NeededServer { role, address, state } = server.clone();
    let (state, message) = match state {
        ServerState::Unknown => ("unknown", None),
        ServerState::Away { message } => ("away", Some(message)),
        ServerState::Connected => ("connected", None),
    };
    ServerView { server: role, address, state, message }
}

fn message(starting: &Starting) -> String {
    let away: Vec<_> = starting.away().map(|(server, _)| server.role).collect();
    if away.is_empty() {
        return "the worker is starting".to_owned();
    }
    format!("the worker waits for the {}", away.join(" and the "))
}

async fn metrics(
    State(waiting): State<Waiting>,
    headers: HeaderMap,
) -> ([(HeaderName, &'static str); 1], String) {
    probes::metrics_page(&waiting.metrics, &headers)
}

async fn not_yet(State(waiting): State<Waiting>) -> impl IntoResponse {
    let message = message(&waiting.starting.borrow());
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "starting", message)
        .with_header(header::RETRY_AFTER, "5")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(role: &'static str, state: ServerState) -> NeededServer {
        NeededServer { role, address: format!("{role}.local:1"), state }
    }

    #[test]
    fn each_server_is_shown_with_the_reason_why_it_is_away() {
        let away = || ServerState::Away { message: "connection refused".to_owned() };
        let cases = [
            (ServerState::Connected, away(), "the worker waits for the cache"),
            (away(), away(), "the worker waits for the database and the cache"),
            (ServerState::Connected, ServerState::Unknown, "the worker is starting"),
        ];
        for (database, cache, message) in cases {
            let servers = vec![needed("database", database), needed("cache", cache)];
            assert_eq!(not_ready(&Starting { servers }).message, message);
        }
        let servers = vec![needed("database", ServerState::Connected), needed("cache", away())];
        let body = not_ready(&Starting { servers });
        assert_eq!(body.status, "starting");
        let server = |server, state, message: Option<&str>| ServerView {
            server,
            address: format!("{server}.local:1"),
            state,
            message: message.map(ToOwned::to_owned),
        };
        let away = server("cache", "away", Some("connection refused"));
        assert_eq!(body.servers, [server("database", "connected", None), away]);
    }
}
