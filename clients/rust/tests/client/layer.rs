//! Answers of axum routes.

use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, SET_COOKIE, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use preheat_client::{Cache, Cached, Error, Fill, Key, Reads};
use tower::ServiceExt;

use crate::support::{HOUR, Loader, builder, cache, eye, list, redis, services_of};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Who asks; the authentication sets it.
#[derive(Clone)]
struct Tenant(String);

/// Believes the header.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let tenant = request.headers().get("tenant").map(|tenant| tenant.to_str().unwrap().to_owned());
    if let Some(tenant) = tenant {
        request.extensions_mut().insert(Tenant(tenant));
    }
    next.run(request).await
}

fn key(tenant: &Tenant) -> Key<Vec<String>> {
    services_of(&tenant.0)
}

type Calls = Arc<AtomicUsize>;

/// A service with one cached route, whose handler answers with what the function makes.
fn app<A: IntoResponse + 'static>(
    cache: &Cache,
    answer: impl Fn() -> A + Clone + Send + Sync + 'static,
) -> (Router, Calls) {
    let calls = Calls::default();
    let handler = move |State(calls): State<Calls>| async move {
        calls.fetch_add(1, Ordering::SeqCst);
        answer().into_response()
    };
    let route = get(handler.clone()).post(handler).layer(Cached::by(cache, key));
    let routes = Router::new().route("/services", route).route_layer(from_fn(authenticate));
    (routes.with_state(Arc::clone(&calls)), calls)
}

async fn ask(
    app: &Router,
    method: Method,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri("/services");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, String::from_utf8(body.into()).unwrap())
}

fn json() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], r#"["X-ray"]"#)
}

const OF_42: (&str, &str) = ("tenant", "42");

#[tokio::test]
async fn a_route_is_answered_from_the_cache() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, calls) = app(&cache, json);
    let (_, miss, miss_body) = ask(&app, Method::GET, &[OF_42]).await;
    let (_, hit, hit_body) = ask(&app, Method::GET, &[OF_42]).await;
    assert_eq!(miss[CACHE_STATUS], "preheat; fwd=miss; stored");
    assert_eq!(hit[CACHE_STATUS], "preheat; hit");
    assert_eq!((miss_body.as_str(), hit_body.as_str()), (r#"["X-ray"]"#, r#"["X-ray"]"#));
    for header in [CONTENT_TYPE, ETAG, CACHE_CONTROL] {
        assert_eq!(miss[&header], hit[&header]);
    }
    assert_eq!(hit[CACHE_CONTROL], "private, no-cache");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(eye(&redis).await.get("services:42").await.unwrap(), r#"["X-ray"]"#);

    let tag = hit[ETAG].to_str().unwrap();
    let (status, headers, body) = ask(&app, Method::GET, &[OF_42, ("if-none-match", tag)]).await;
    assert_eq!((status, body.as_str()), (StatusCode::NOT_MODIFIED, ""));
    assert_eq!(headers[ETAG], tag);
}

#[tokio::test]
async fn a_condition_is_no_reason_to_fill_nothing() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, _) = app(&cache, json);
    let (status, headers, _) =
        ask(&app, Method::GET, &[OF_42, ("if-none-match", "\"older\""), ("range", "bytes=0-1")])
            .await;
    assert_eq!(
        (status, &headers[CACHE_STATUS]),
        (StatusCode::OK, &"preheat; fwd=miss; stored".parse().unwrap())
    );
}

#[tokio::test]
async fn a_head_request_fills_the_whole_answer_and_gets_none_of_it() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, calls) = app(&cache, json);
    let (status, headers, body) = ask(&app, Method::HEAD, &[OF_42]).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    assert_eq!(headers[CACHE_STATUS], "preheat; fwd=miss; stored");
    let (_, _, body) = ask(&app, Method::GET, &[OF_42]).await;
    assert_eq!((body.as_str(), calls.load(Ordering::SeqCst)), (r#"["X-ray"]"#, 1));
}

#[tokio::test]
async fn without_a_tenant_nothing_is_cached() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, calls) = app(&cache, json);
    for _ in 0..2 {
        let (status, headers, body) = ask(&app, Method::GET, &[]).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, r#"["X-ray"]"#));
        assert_eq!(headers[CACHE_STATUS], "preheat; fwd=bypass; detail=no_tenant");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(eye(&redis).await.keys().await, [""; 0]);
    assert_eq!(cache.stats().reads["other"], Reads { bypass: 2, ..Reads::default() });
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, calls) = app(&cache, json);
    for tenant in ["42", "43"] {
        let (_, headers, _) = ask(&app, Method::GET, &[("tenant", tenant)]).await;
        assert_eq!(headers[CACHE_STATUS], "preheat; fwd=miss; stored");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn other_methods_go_through() {
    let redis = redis();
    let cache = cache(&redis).await;
    let (app, calls) = app(&cache, json);
    for _ in 0..2 {
        let (_, headers, _) = ask(&app, Method::POST, &[OF_42]).await;
        assert!(!headers.contains_key(CACHE_STATUS));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn answers_that_are_not_safe_to_cache_go_through_as_they_are() {
    let with = |status: StatusCode, headers: &[(HeaderName, &'static str)]| {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        move || (status, headers.clone(), r#"["X-ray"]"#)
    };
    let json = (CONTENT_TYPE, "application/json");
    let unsafe_ones = [
        with(StatusCode::CREATED, from_ref(&json)),
        with(StatusCode::NOT_FOUND, from_ref(&json)),
        with(StatusCode::FOUND, &[json.clone(), (LOCATION, "/")]),
        with(StatusCode::OK, &[(CONTENT_TYPE, "text/html")]),
        with(StatusCode::OK, &[json.clone(), (SET_COOKIE, "session=secret")]),
        with(StatusCode::OK, &[json.clone(), (VARY, "accept-language")]),
        with(StatusCode::OK, &[json.clone(), (CACHE_CONTROL, "private, no-store")]),
    ];
    for answer in unsafe_ones {
        let redis = redis();
        let cache = cache(&redis).await;
        let (status, headers, _) = answer();
        let (app, calls) = app(&cache, answer);
        for call in 1..=2 {
            let (found, found_headers, body) = ask(&app, Method::GET, &[OF_42]).await;
            assert_eq!((found, body.as_str()), (status, r#"["X-ray"]"#));
            for (name, value) in &headers {
                assert_eq!(&found_headers[name], value);
            }
            assert_eq!(found_headers[CACHE_STATUS], "preheat; fwd=miss");
            assert_eq!(calls.load(Ordering::SeqCst), call);
        }
        assert_eq!(eye(&redis).await.get("services:42").await, None);
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_or_too_large_goes_through_as_it_is() {
    for (body, max_bytes) in [("no json", 100), (r#"["X-ray"]"#, 5)] {
        let redis = redis();
        let cache = builder(&redis).await.max_bytes(max_bytes).build();
        let (app, _) = app(&cache, move || ([(CONTENT_TYPE, "application/json")], body));
        for _ in 0..2 {
            let (status, headers, found) = ask(&app, Method::GET, &[OF_42]).await;
            assert_eq!((status, found.as_str()), (StatusCode::OK, body));
            assert_eq!(headers[CACHE_STATUS], "preheat; fwd=miss");
        }
        assert_eq!(eye(&redis).await.get("services:42").await, None);
    }
}

/// One caller's answer is not for another, even if both ask at once.
#[tokio::test]
async fn a_cookie_is_not_handed_to_a_caller_who_joined() {
    let redis = redis();
    let cache = cache(&redis).await;
    let gate = Loader::waiting();
    let handler = {
        let gate = gate.clone();
        move |headers: HeaderMap| async move {
            gate.load(()).await.unwrap();
            let own = headers["caller"].clone();
            (
                [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (SET_COOKIE, own)],
                "[]",
            )
        }
    };
    let app = Router::new()
        .route("/services", get(handler).layer(Cached::by(&cache, key)))
        .route_layer(from_fn(authenticate));
    let call = |caller: &'static str| {
        let app = app.clone();
        tokio::spawn(async move { ask(&app, Method::GET, &[OF_42, ("caller", caller)]).await })
    };
    let first = call("one");
    gate.has_begun(1).await;
    let second = call("two");
    tokio::task::yield_now().await;
    gate.go();
    assert_eq!(first.await.unwrap().1[SET_COOKIE], "one");
    gate.go();
    assert_eq!(second.await.unwrap().1[SET_COOKIE], "two");
}

#[tokio::test]
async fn the_key_may_depend_on_the_request_and_may_be_none() {
    let redis = redis();
    let cache = cache(&redis).await;
    let by = |tenant: &Tenant, request: &axum::http::request::Parts| {
        let category = request.headers.get("category")?.to_str().ok()?;
        Some(Key::<Vec<String>>::plain(format!("products:{category}"), HOUR).of_tenant(&tenant.0))
    };
    let app = Router::new()
        .route("/services", get(|| async { json() }).layer(Cached::by_request(&cache, by)))
        .route_layer(from_fn(authenticate));
    let (_, headers, _) = ask(&app, Method::GET, &[OF_42, ("category", "food")]).await;
    assert_eq!(headers[CACHE_STATUS], "preheat; fwd=miss; stored");
    assert!(eye(&redis).await.get("products:food").await.is_some());
    let (_, headers, _) = ask(&app, Method::GET, &[OF_42]).await;
    assert!(!headers.contains_key(CACHE_STATUS));
}

#[tokio::test]
async fn a_handler_answers_from_the_cache_without_the_layer() {
    let redis = redis();
    let cache = cache(&redis).await;
    let loader = Loader::new();
    let respond = |request: HeaderMap| {
        let (cache, loader) = (cache.clone(), loader.clone());
        async move {
            cache
                .respond(&request, services_of("42"), || loader.load(list(&["X-ray"])))
                .await
                .unwrap()
        }
    };
    let miss = respond(HeaderMap::new()).await;
    assert_eq!(miss.headers()[CACHE_STATUS], "preheat; fwd=miss; stored");
    let request = HeaderMap::from_iter([(IF_NONE_MATCH, miss.headers()[ETAG].clone())]);
    let hit = respond(request).await;
    assert_eq!(
        (hit.status(), &hit.headers()[CACHE_STATUS]),
        (StatusCode::NOT_MODIFIED, &"preheat; hit".parse().unwrap())
    );
    assert_eq!(loader.calls(), 1);
}

#[tokio::test]
async fn an_error_shows_no_detail() {
    let failed: Error<&str> = Error::Load(Arc::new("password=secret"));
    let response = failed.into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = to_bytes(response.into_body(), 1000).await.unwrap();
    assert_eq!(body, "could not load the value");
    assert_eq!(Error::<()>::Exhausted.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
}

fn pet() -> Key<String> {
    Key::shared("pet:7", Some("42".to_owned()), HOUR, "pets", Fill::Brief)
}

#[tokio::test]
async fn a_shared_key_is_answered_only_with_a_look_whose_it_is() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    eye.ask::<()>(&["SET", "pet:7", r#""Rex""#]).await;
    let request = HeaderMap::new();
    let load = || async { Ok::<_, std::convert::Infallible>("Max".to_owned()) };
    let refused = cache.respond(&request, pet(), load).await;
    assert!(matches!(refused, Err(Error::Unchecked)), "{refused:?}");

    let find = || async { Ok::<_, std::convert::Infallible>(Some("Max".to_owned())) };
    let found = cache.respond_found(&request, pet(), find, |pet| pet == "Rex").await.unwrap();
    assert_eq!(
        (found.status(), &found.headers()[CACHE_STATUS]),
        (StatusCode::OK, &"preheat; hit".parse().unwrap())
    );
    let other = cache.respond_found(&request, pet(), find, |pet| pet == "Max").await.unwrap();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    assert!(!other.headers().contains_key(ETAG));
    assert_eq!(to_bytes(other.into_body(), 100).await.unwrap(), "");

    let layer = Cached::by(&cache, |_tenant: &Tenant| pet());
    let app = Router::new()
        .route("/services", get(|| async { json() }).layer(layer))
        .route_layer(from_fn(authenticate));
    let (_, headers, body) = ask(&app, Method::GET, &[OF_42]).await;
    assert_eq!((headers.contains_key(CACHE_STATUS), body.as_str()), (false, r#"["X-ray"]"#));
}

#[tokio::test]
async fn no_row_is_not_found() {
    let redis = redis();
    let cache = cache(&redis).await;
    let request = HeaderMap::new();
    let find = || async { Ok::<_, std::convert::Infallible>(None::<String>) };
    let none = cache.respond_found(&request, pet(), find, |_| true).await.unwrap();
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
    let key = Key::<Option<String>>::plain("row", HOUR).of_tenant("42");
    let none = cache.respond(&request, key, find).await.unwrap();
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}
