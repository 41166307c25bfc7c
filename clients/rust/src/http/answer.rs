//! A cached value as an HTTP answer.

use std::fmt::Display;
use std::future::Future;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::etag::etag;
use crate::cache::{Cache, NULL};
use crate::counts::Outcome;
use crate::error::Error;
use crate::flight::{Landed, Stored};
use crate::key::Key;

/// RFC 9211. The `http` crate has no constant of it.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// A browser asks each time, and gets 304 if nothing changed; a proxy keeps nothing.
const ASK_EACH_TIME: HeaderValue = HeaderValue::from_static("private, no-cache");

impl Cache {
    /// Answers a request with the key's value, which is not parsed on a hit.
    ///
    /// The answer has a strong `ETag`, and no body if the request names it (304); `Cache-Status` says whether the
    /// value came from Redis. A value that is `null` is a 404. Authenticate first, and make the key of the tenant
    /// that this gave. A shared key ([`Key::shared`]) is refused with [`Error::Unchecked`]: see
    /// [`Cache::respond_found`].
    pub async fn respond<T, E, L, F>(
        &self,
        request: &HeaderMap,
        key: Key<T>,
        load: L,
    ) -> Result<Response, Error<E>>
    where
        T: Serialize + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        if key.is_shared() {
            return Err(Error::Unchecked);
        }
        self.text(&key, load).await.map(|landed| answer(request, landed))
    }

    /// The same for a row that may not exist, or not be the caller's: 404 unless there is one and `may_see` says
    /// yes. That there is none is remembered as by [`Cache::find_or_load`].
    pub async fn respond_found<T, E, L, F>(
        &self,
        request: &HeaderMap,
        key: Key<T>,
        load: L,
        may_see: impl FnOnce(&T) -> bool,
    ) -> Result<Response, Error<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let (value, landed) = self.value(&key, true, load).await?;
        Ok(match value {
            Some(value) if may_see(&value) => answer(request, landed),
            Some(_) | None => not_found(&landed),
        })
    }
}

/// The answer to a request with these headers.
pub(super) fn answer(request: &HeaderMap, landed: Landed) -> Response {
    if landed.text.as_ref() == NULL {
        return not_found(&landed);
    }
    let Landed { text, outcome, stored } = landed;
    let tag = etag(&text);
    let has_it = request.get_all(IF_NONE_MATCH).iter().any(|tags| names(tags, &tag));
    let mut response = if has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, JSON)], Body::from(text)).into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_maybe_shared(Bytes::from(tag)) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, ASK_EACH_TIME);
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status(outcome, stored)));
    response
}

fn not_found(landed: &Landed) -> Response {
    let status = HeaderValue::from_static(cache_status(landed.outcome, landed.stored));
    let headers = [(CACHE_CONTROL, ASK_EACH_TIME), (CACHE_STATUS, status)];
    (StatusCode::NOT_FOUND, headers).into_response()
}

/// Whether an `If-None-Match` names this tag: any, or the same, weak or strong.
fn names(tags: &HeaderValue, tag: &str) -> bool {
    let tags = tags.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.into_iter().any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

pub(super) const NO_TENANT: &str = "preheat; fwd=bypass; detail=no_tenant";

pub(super) fn cache_status(outcome: Outcome, stored: Stored) -> &'static str {
    match (outcome, stored) {
        (Outcome::Hit, _) => "preheat; hit",
        (Outcome::Miss, Stored::Yes) => "preheat; fwd=miss; stored",
        (Outcome::Miss, Stored::No) => "preheat; fwd=miss",
        (Outcome::Miss, Stored::Refused) => "preheat; fwd=miss; detail=refused",
        (Outcome::Miss, Stored::TooLarge) => "preheat; fwd=miss; detail=too_large",
        (Outcome::Joined, _) => "preheat; fwd=miss; collapsed",
        (Outcome::Bypass, _) => "preheat; fwd=bypass",
    }
}

/// 503 if too many loads wait, otherwise 500. The loader's error is not shown.
impl<E> IntoResponse for Error<E> {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Load(_)
            | Self::Panicked
            | Self::Recursive
            | Self::Unchecked
            | Self::Value(_)
            | Self::Count { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message: &dyn Display = &self;
        (status, message.to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../vectors.json")).unwrap()
    }

    #[test]
    fn tags_are_those_of_all_clients() {
        for case in vectors()["etags"]["cases"].as_array().unwrap() {
            let body = case["body"].as_str().unwrap();
            assert_eq!(etag(body.as_bytes()), case["etag"].as_str().unwrap(), "{body}");
        }
    }

    #[test]
    fn the_status_is_that_of_all_clients() {
        for case in vectors()["cache_status"].as_array().unwrap() {
            let outcome = match case["result"].as_str().unwrap() {
                "hit" => Outcome::Hit,
                "miss" => Outcome::Miss,
                "joined" => Outcome::Joined,
                "bypass" => Outcome::Bypass,
                other => panic!("{other}"),
            };
            let stored = match (case["stored"].as_bool().unwrap(), case["detail"].as_str()) {
                (true, None) => Stored::Yes,
                (false, None) => Stored::No,
                (false, Some("refused")) => Stored::Refused,
                (false, Some("too_large")) => Stored::TooLarge,
                (false, Some("no_tenant")) => {
                    assert_eq!(NO_TENANT, case["text"].as_str().unwrap());
                    continue;
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(cache_status(outcome, stored), case["text"].as_str().unwrap());
        }
    }

    #[test]
    fn a_request_that_names_the_tag_gets_no_body() {
        let landed = || Landed {
            text: Bytes::from_static(b"[]"),
            outcome: Outcome::Hit,
            stored: Stored::No,
        };
        let ask = |tags: &str| {
            let mut request = HeaderMap::new();
            request.insert(IF_NONE_MATCH, tags.parse().unwrap());
            answer(&request, landed()).status()
        };
        let tag = etag(b"[]");
        for tags in ["*", &tag, &format!("W/{tag}"), &format!("\"other\", {tag}")] {
            assert_eq!(ask(tags), StatusCode::NOT_MODIFIED, "{tags}");
        }
        for tags in ["\"other\"", "", &tag.replace('"', "")] {
            assert_eq!(ask(tags), StatusCode::OK, "{tags}");
        }
        assert_eq!(answer(&HeaderMap::new(), landed()).status(), StatusCode::OK);
    }
}
