//! Serves the routes below a base path as well, for proxies that pass the whole path on.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

/// The routes, at the root and below the base path. Most proxies take the prefix off; others do not.
pub fn mounted(routes: Router, base_path: &str) -> Router {
    if base_path.is_empty() {
        return routes;
    }
    let base_path = base_path.to_owned();
    Router::new().fallback(move |request: Request| {
        let (routes, base_path) = (routes.clone(), base_path.clone());
        async move { pass_on(routes, &base_path, request).await }
    })
}

async fn pass_on(routes: Router, base_path: &str, mut request: Request<Body>) -> Response {
    match below(base_path, request.uri()) {
        Below::Root(uri) => *request.uri_mut() = uri,
        Below::NoSlash => {
            // The links of a page at `/preheat` would lead out of it.
            let location = format!("{base_path}/");
            return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)])
                .into_response();
        }
        Below::Elsewhere => {}
    }
    match TowerToHyperService::new(routes).call(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

/// Where a path is, seen from the base path.
#[derive(Debug, PartialEq, Eq)]
enum Below {
    /// Below it: the path without it.
    Root(Uri),
    /// It is the base path itself.
    NoSlash,
    /// It has another beginning.
    Elsewhere,
}

fn below(base_path: &str, uri: &Uri) -> Below {
    let Some(whole) = uri.path_and_query() else { return Below::Elsewhere };
    let Some(rest) = whole.as_str().strip_prefix(base_path) else { return Below::Elsewhere };
    if !rest.starts_with('/') {
        return if rest.is_empty() { Below::NoSlash } else { Below::Elsewhere };
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = rest.parse::<PathAndQuery>().ok();
    Uri::from_parts(parts).map_or(Below::Elsewhere, Below::Root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_path_is_taken_off() {
        let found = |uri: &str| below("/tools/preheat", &uri.parse().unwrap());
        assert_eq!(found("/tools/preheat/"), Below::Root("/".parse().unwrap()));
        let rest = "/jobs/a%2Fb?x=/tools/preheat/";
        let whole = format!("/tools/preheat{rest}");
        assert_eq!(found(&whole), Below::Root(rest.parse().unwrap()));
        assert_eq!(found("/tools/preheat"), Below::NoSlash);
        for other in ["/", "/tools/preheats/", "/jobs", "/tools/"] {
            assert_eq!(found(other), Below::Elsewhere, "{other}");
        }
    }
}
