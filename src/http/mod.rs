//! The control plane (probes, metrics, jobs and runs) and the dashboard. To add a route, add it to `routes`
//! in the file of its resource, with its description for the `OpenAPI` document; to add a page, see `pages`.

mod access;
mod answer;
mod auth;
mod body;
pub mod client;
mod events;
mod heads;
mod health;
mod idempotency;
mod invalidations;
mod jobs;
mod levers;
mod mount;
mod openapi;
mod overview;
mod pages;
mod probes;
mod runs;
mod server;
mod session;
mod sign_in;
mod stall;
mod starting;
mod tenants;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::access::Access;
use self::answer::ApiError;
use self::events::Streams;
pub use self::health::{HealthError, health, metrics, reachable};
use self::idempotency::Requests;
pub use self::mount::mounted;
use self::openapi::Api;
pub use self::server::{Routes, listen, serve};
use self::sign_in::Tries;
pub use self::starting::{Waiting, starting, starting_probes};
use crate::engine::schedule::handle::Handle;
use crate::engine::schedule::pauses::PauseBook;
use crate::invalidate::Invalidations;
use crate::observe::{Metrics, event};
use crate::overview::{Board, Connections};

/// The size limit of a body: at most, a body is a list of tenant ids or keys.
const MAX_BODY: usize = 64 * 1024;
/// The time limit of a request that does not wait for a run. The slowest part of such a request is
/// reading the history.
const MAX_TIME: Duration = Duration::from_secs(10);
/// How many requests may wait for their runs at once. Each holds a connection.
const MAX_WAITING: usize = 64;

/// Updates the figures that we only read for a scrape: database connections and the cache's
/// counters.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Counts the connections to the database.
pub type CountConnections = Arc<dyn Fn() -> Connections + Send + Sync>;

/// A setting as the worker uses it, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SettingInUse {
    /// Its section and name, as in `database.url`.
    pub key: &'static str,
    /// Its value; of a secret, only whether it is set. `None` if it is not set.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: String,
}

/// What the routes need from the rest of the worker.
#[derive(Clone)]
pub struct Control {
    /// The engine.
    pub handle: Handle,
    /// Removes keys on request.
    pub invalidations: Arc<Invalidations>,
    /// Pauses and resumes jobs.
    pub pauses: Arc<PauseBook>,
    /// What an operator asks.
    pub board: Arc<Board>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Called before each scrape.
    pub refresh: Refresh,
    /// Called where the connections are shown.
    pub connections: CountConnections,
    /// Who may do what.
    pub access: Access,
    /// The settings in use, for the page that shows them.
    pub settings: Arc<[SettingInUse]>,
    /// How long `/readyz` waits for required jobs.
    pub ready_within: Duration,
    /// Ends requests that wait for a run. It is the token that stops [`serve`].
    pub shutdown: CancellationToken,
}

/// The state that the routes share.
struct Shared {
    control: Control,
    requests: Requests,
    /// Of signing in with a wrong token.
    tries: Tries,
    waiting: Semaphore,
    streams: Streams,
    /// The `OpenAPI` document.
    document: Arc<str>,
}

type AppState = Arc<Shared>;

impl Shared {
    fn new(control: Control, most_waiting: usize, document: Arc<str>) -> AppState {
        let (requests, tries) = (Requests::default(), Tries::default());
        let (waiting, streams) = (Semaphore::new(most_waiting), Streams::default());
        Arc::new(Self { control, requests, tries, waiting, streams, document })
    }
}

/// All routes.
pub fn router(control: Control) -> Router {
    let (routes, document) = documented().finish();
    let pages =
        pages::routes().route("/live", get(events::changes)).layer(middleware::from_fn(limit_time));
    let clock = control.handle.clone();
    control.metrics.news.start(move || clock.now());
    let base_path = control.access.base_path.clone();
    let state = Shared::new(control, MAX_WAITING, document.into());
    let admit = middleware::from_fn_with_state(Arc::clone(&state), session::admit);
    let log = middleware::from_fn_with_state(Arc::clone(&state), log);
    let routes = with_answers_in_common(routes.merge(pages).layer(admit));
    mounted(routes.layer(log).with_state(state), &base_path)
}

/// The `OpenAPI` document of all routes.
pub fn document() -> String {
    documented().finish().1
}

fn documented() -> Api {
    let api = pages::described(probes::routes(Api::default()));
    let api = tenants::routes(overview::routes(api));
    let api = levers::routes(runs::routes(jobs::routes(api)));
    events::routes(invalidations::routes(api))
}

/// The two probe routes alone.
pub fn probes(control: Control) -> Router {
    let state = Shared::new(control, 0, Arc::default());
    let routes =
        Router::new().route("/healthz", get(probes::healthz)).route("/readyz", get(probes::readyz));
    with_answers_in_common(routes).with_state(state)
}

fn with_answers_in_common<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(answer::no_such_route)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(pages::errors::as_pages))
        .layer(middleware::from_fn(finish))
}

async fn limit_time(request: Request, next: Next) -> Result<Response, ApiError> {
    limited(next.run(request)).await
}

async fn limited<T>(answer: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(MAX_TIME, answer).await.map_err(|_elapsed| ApiError::timed_out())
}

/// Headers of every answer. Nothing from elsewhere may be loaded into a page, nothing in a page runs
/// that is not a file of ours, and no other site may frame it. Caches may store only answers that allow it.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // Not `no-referrer`: with that, a browser sends `Origin: null` with our own forms, so that a form
    // could not be told from one of another site where `Sec-Fetch-Site` is missing.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=()"),
    ),
];

async fn finish(request: Request, next: Next) -> Response {
    let is_secure = is_secure(request.headers());
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    if is_secure {
        let name = HeaderName::from_static("cross-origin-opener-policy");
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Whether the browser takes the connection for a secure one: it complains about
/// `Cross-Origin-Opener-Policy` on others. A wrong header does no harm here.
fn is_secure(headers: &HeaderMap) -> bool {
    let has = |name, test: fn(&str) -> bool| {
        headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).is_some_and(test)
    };
    let is_local = |host: &str| {
        ["localhost", "127.0.0.1", "[::1]"].iter().any(|local| host.starts_with(local))
    };
    has(HeaderName::from_static("x-forwarded-proto"), |scheme| scheme.ends_with("https"))
        || has(header::HOST, is_local)
}

/// Logs each request, at level debug unless it failed.
async fn log(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let started_at = state.control.handle.now();
    let answer = next.run(request).await;
    let status = answer.status().as_u16();
    let took = state.control.handle.now() - started_at;
    event::RequestAnswered { method: method.as_str(), path: &path, status, took }
        .emit(&state.control.metrics);
    answer
}
