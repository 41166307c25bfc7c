//! A layer that caches the answers of a route.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE,
    SET_COOKIE, VARY,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::IgnoredAny;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::{CACHE_STATUS, NO_TENANT, answer, cache_status};
use crate::cache::Cache;
use crate::counts::Outcome;
use crate::error::Crash;
use crate::flight::Stored;
use crate::key::Key;
use crate::problem::{Problem, TooLarge};

/// A layer that answers `GET` and `HEAD` from the cache.
///
/// It caches only what is safe: answers with status 200 and `application/json`, without `Set-Cookie`, `Vary`,
/// `Content-Encoding` and `Cache-Control: no-store`; all others go through as they are. Their body is what is
/// stored, so it must equal preheat's value. Headers of the handler's own are not kept.
///
/// Its key needs an extension of the request that the layer of the authentication sets: the tenant. A request
/// without one goes through uncached, and so does one with a shared key, whose value may be another tenant's. Set that layer outside of this one, with `route_layer` for example:
///
/// ```text
/// Router::new()
///     .route("/services", get(services).layer(Cached::by(&cache, |Tenant(id)| keys::services(id))))
///     .route_layer(authentication)
/// ```
pub struct Cached<X, T> {
    cache: Cache,
    key: KeyOf<X, T>,
}

/// The key of a request; none if it is not to be cached. `X` is the extension that it needs.
type KeyOf<X, T> = Arc<dyn Fn(&X, &Parts) -> Option<Key<T>> + Send + Sync>;

impl<X, T> Cached<X, T>
where
    X: Clone + Send + Sync + 'static,
{
    /// One key a tenant: whatever else the request says must not change the answer.
    pub fn by(cache: &Cache, key: impl Fn(&X) -> Key<T> + Send + Sync + 'static) -> Self {
        Self::by_request(cache, move |tenant, _request| Some(key(tenant)))
    }

    /// A key of the tenant and of the request's path or query; none if the answer is not to be cached.
    pub fn by_request(
        cache: &Cache,
        key: impl Fn(&X, &Parts) -> Option<Key<T>> + Send + Sync + 'static,
    ) -> Self {
        Self { cache: cache.clone(), key: Arc::new(key) }
    }
}

impl<X, T> Clone for Cached<X, T> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), key: Arc::clone(&self.key) }
    }
}

impl<S, X, T> Layer<S> for Cached<X, T> {
    type Service = CachedService<S, X, T>;

    fn layer(&self, inner: S) -> Self::Service {
        CachedService { inner, layer: self.clone() }
    }
}

/// A service whose answers are cached.
pub struct CachedService<S, X, T> {
    inner: S,
    layer: Cached<X, T>,
}

impl<S: Clone, X, T> Clone for CachedService<S, X, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl<S, X, T> Service<Request> for CachedService<S, X, T>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    X: Clone + Send + Sync + 'static,
    T: 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The clone that is left was not asked whether it is ready.
        let left = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, left);
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Box::pin(inner.call(request));
        }
        let (parts, body) = request.into_parts();
        let Some(extension) = parts.extensions.get::<X>() else {
            self.layer.cache.shared.counts.read("other", Outcome::Bypass);
            let answer = inner.call(Request::from_parts(parts, body));
            return Box::pin(async { Ok(with_status(answer.await?, NO_TENANT)) });
        };
        let Some(key) = (self.layer.key)(extension, &parts) else {
            return Box::pin(inner.call(Request::from_parts(parts, body)));
        };
        let has_body = !body.is_end_stream();
        let request = Request::from_parts(parts, body);
        // A body may decide the answer, and is in no key.
        if has_body || key.is_shared() {
            return Box::pin(inner.call(request));
        }
        Box::pin(read_through(self.layer.cache.clone(), key, inner, request))
    }
}

/// The type of the error of loads that this layer begins: the answer was not one to cache.
struct NotCached;

async fn read_through<S, T>(
    cache: Cache,
    key: Key<T>,
    inner: S,
    request: Request,
) -> Result<Response, Infallible>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (parts, body) = request.into_parts();
    let (method, headers) = (parts.method.clone(), parts.headers.clone());
    let again = whole(parts.clone(), Body::empty());
    // An answer that is not cached is for the caller alone that asked for it.
    let private: Arc<Mutex<Option<Response>>> = Arc::default();
    let load = {
        let (inner, private, cache) = (inner.clone(), Arc::clone(&private), cache.clone());
        let family = key.family();
        async move {
            let Ok(response) = ask(inner, whole(parts, body)).await;
            body_of(response, &cache, family).await.map_err(|response| {
                *private.lock().unwrap_or_else(PoisonError::into_inner) = Some(*response);
                Crash::Load(Arc::new(NotCached))
            })
        }
    };
    let mut response = match cache.bytes::<T, NotCached>(&key, load).await {
        Ok(landed) => answer(&headers, landed),
        Err(Crash::Load(_not_cached)) => {
            let own = private.lock().unwrap_or_else(PoisonError::into_inner).take();
            let response = match own {
                Some(response) => response,
                None => ask(inner, again).await?,
            };
            with_status(response, cache_status(Outcome::Miss, Stored::No))
        }
        Err(crash) => crash.into_error::<NotCached>().into_response(),
    };
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    Ok(response)
}

async fn ask<S>(mut inner: S, request: Request) -> Result<Response, Infallible>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    poll_fn(|context| inner.poll_ready(context)).await?;
    inner.call(request).await
}

/// The request for the whole body, whatever part of it the caller has or wants.
fn whole(mut parts: Parts, body: Body) -> Request {
    parts.method = Method::GET;
    for condition in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE] {
        parts.headers.remove(condition);
    }
    Request::from_parts(parts, body)
}

/// The body of an answer that may be cached; otherwise the answer.
async fn body_of(
    response: Response,
    cache: &Cache,
    family: &'static str,
) -> Result<Bytes, Box<Response>> {
    if response.status() != StatusCode::OK || !is_safe(response.headers()) {
        return Err(Box::new(response));
    }
    let Some(bytes) = response.body().size_hint().exact() else {
        return Err(Box::new(response)); // a stream, which may have no end
    };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes > cache.shared.max_bytes {
        cache.shared.protocol.problems.note(Problem::TooLarge, &TooLarge { family, bytes });
        return Err(Box::new(response));
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, bytes).await {
        Ok(body) if serde_json::from_slice::<IgnoredAny>(&body).is_ok() => Ok(body),
        Ok(body) => Err(Box::new(Response::from_parts(parts, Body::from(body)))),
        Err(_broken) => Err(Box::new(StatusCode::INTERNAL_SERVER_ERROR.into_response())),
    }
}

/// Whether headers allow that other callers with the same key get the body.
fn is_safe(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let control = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = control.flat_map(|value| value.split(',')).map(str::trim);
    essence.trim().eq_ignore_ascii_case("application/json")
        && !directives.any(|directive| directive.eq_ignore_ascii_case("no-store"))
        && ![SET_COOKIE, VARY, CONTENT_ENCODING].iter().any(|name| headers.contains_key(name))
}

fn with_status(mut response: Response, status: &'static str) -> Response {
    response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(status));
    response
}
