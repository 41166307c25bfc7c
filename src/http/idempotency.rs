//! Requests that may be sent twice: with the same `Idempotency-Key` the second is answered with the
//! what came of the first, as draft-ietf-httpapi-idempotency-key-header has it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::Control;
use super::answer::ApiError;
use crate::engine::handle::{Handle, RequestError, RunRequest, Ticket};
use crate::invalidate::{InvalidateError, InvalidateRequest, Invalidation};

/// The header's name.
const HEADER: &str = "idempotency-key";
/// Longer than any uuid or hash that a client makes up.
const MAX_KEY_BYTES: usize = 255;
/// Above it the oldest is forgotten; a repeated run does no harm.
const MAX_KEYS: usize = 1_000;
/// Nobody tries the same request again later than this.
const KEPT_FOR: TimeDelta = TimeDelta::hours(24);

/// The requests of late that had a key.
#[derive(Default)]
pub(super) struct Requests {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    by_key: HashMap<String, Known>,
    /// In the order in which they came. A key that failed and came again is there twice, with the
    /// moment that tells which.
    order: VecDeque<(DateTime<Utc>, String)>,
}

struct Known {
    at: DateTime<Utc>,
    meaning: Meaning,
    asked: Asked,
}

/// What a request asks for: a key that comes again with another one is a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Runs { request: RunRequest, wait: bool },
    Invalidation(InvalidateRequest),
}

/// The request under way. It is shared, so that it is made once even if the client that sent it first is
/// gone before the answer.
#[derive(Clone)]
enum Asked {
    Runs(Answer<Vec<Ticket>, RequestError>),
    Invalidation(Answer<Invalidation, InvalidateError>),
}

type Answer<T, E> = Shared<BoxFuture<'static, Result<T, E>>>;

impl Requests {
    /// Asks the engine for runs, or answers with those that the same key asked for before.
    pub(super) async fn runs(
        &self,
        handle: &Handle,
        key: Option<String>,
        request: RunRequest,
        wait: bool,
    ) -> Result<Vec<Ticket>, ApiError> {
        let ask = |handle: Handle, request| async move { handle.request(request).await };
        let Some(key) = key else { return Ok(ask(handle.clone(), request).await?) };
        let meaning = Meaning::Runs { request: request.clone(), wait };
        let ask = || Asked::Runs(ask(handle.clone(), request).boxed().shared());
        let (at, asked) = self.known_or_new(handle.now(), &key, meaning, ask)?;
        let Asked::Runs(asked) = asked else { return Err(reused()) };
        let tickets = asked.await;
        if tickets.is_err() {
            // Nothing was done, so the key may try again.
            self.forget(&key, at);
        }
        Ok(tickets?)
    }

    /// Removes keys, or answers with what was removed for the same key before.
    pub(super) async fn invalidation(
        &self,
        control: &Control,
        key: Option<String>,
        request: InvalidateRequest,
    ) -> Result<Invalidation, ApiError> {
        let Some(key) = key else { return Ok(control.invalidations.invalidate(request).await?) };
        let meaning = Meaning::Invalidation(request.clone());
        let invalidations = Arc::clone(&control.invalidations);
        let done = async move { invalidations.invalidate(request).await };
        let ask = || Asked::Invalidation(done.boxed().shared());
        let (at, asked) = self.known_or_new(control.handle.now(), &key, meaning, ask)?;
        let Asked::Invalidation(asked) = asked else { return Err(reused()) };
        let done = asked.await;
        if !done.as_ref().is_ok_and(|done| done.report.complete) {
            // Something was left, so the key may try again.
            self.forget(&key, at);
        }
        Ok(done?)
    }

    fn known_or_new(
        &self,
        now: DateTime<Utc>,
        key: &str,
        meaning: Meaning,
        ask: impl FnOnce() -> Asked,
    ) -> Result<(DateTime<Utc>, Asked), ApiError> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget_old(now);
        if let Some(known) = recent.by_key.get(key) {
            if known.meaning != meaning {
                return Err(reused());
            }
            return Ok((known.at, known.asked.clone()));
        }
        let asked = ask();
        let known = Known { at: now, meaning, asked: asked.clone() };
        recent.by_key.insert(key.to_owned(), known);
        recent.order.push_back((now, key.to_owned()));
        Ok((now, asked))
    }

    fn forget(&self, key: &str, at: DateTime<Utc>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget(key, at);
    }
}

impl Recent {
    fn forget_old(&mut self, now: DateTime<Utc>) {
        while let Some((at, _)) = self.order.front() {
            if self.order.len() < MAX_KEYS && now - *at < KEPT_FOR {
                return;
            }
            if let Some((at, key)) = self.order.pop_front() {
                self.forget(&key, at);
            }
        }
    }

    fn forget(&mut self, key: &str, at: DateTime<Utc>) {
        if self.by_key.get(key).is_some_and(|known| known.at == at) {
            self.by_key.remove(key);
        }
    }
}

/// The key of a request, if it has one. The draft writes it in quotes; most clients do not.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let printable = bare.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if bare.is_empty() || bare.len() > MAX_KEY_BYTES || !printable {
        let allowed = format!("`Idempotency-Key` has 1 to {MAX_KEY_BYTES} printable characters");
        return Err(ApiError::bad_request(allowed));
    }
    Ok(Some(bare.to_owned()))
}

fn reused() -> ApiError {
    let message = "this `Idempotency-Key` came before with another request: take a new one";
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::engine::handle::JobSelection;

    fn read(value: &str) -> Result<Option<String>, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(value).unwrap());
        key(&headers)
    }

    #[test]
    fn a_key_comes_with_quotes_or_without() {
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("deploy-17").unwrap().as_deref(), Some("deploy-17"));
        assert_eq!(read("\"deploy-17\"").unwrap().as_deref(), Some("deploy-17"));
        for bad in ["", "\"\"", " ", &"x".repeat(256)] {
            read(bad).unwrap_err();
        }
    }

    fn known(at: DateTime<Utc>) -> Known {
        let request = RunRequest { jobs: JobSelection::All, tenants: None };
        let none = async { Err(RequestError::Busy) }.boxed().shared();
        Known { at, meaning: Meaning::Runs { request, wait: false }, asked: Asked::Runs(none) }
    }

    #[test]
    fn keys_are_forgotten_after_a_day_and_above_a_number() {
        let mut recent = Recent::default();
        let start = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let remember = |recent: &mut Recent, key: String, at| {
            recent.forget_old(at);
            recent.by_key.insert(key.clone(), known(at));
            recent.order.push_back((at, key));
        };
        remember(&mut recent, "old".to_owned(), start);
        remember(&mut recent, "young".to_owned(), start + TimeDelta::hours(23));
        recent.forget_old(start + TimeDelta::hours(24));
        assert!(!recent.by_key.contains_key("old") && recent.by_key.contains_key("young"));

        let later = start + TimeDelta::hours(25);
        for number in 0..MAX_KEYS {
            remember(&mut recent, number.to_string(), later);
        }
        assert_eq!((recent.by_key.len(), recent.order.len()), (MAX_KEYS, MAX_KEYS));
        assert!(!recent.by_key.contains_key("young"));
    }

    #[test]
    fn a_key_that_failed_and_came_again_is_not_forgotten_with_its_first_try() {
        let mut recent = Recent::default();
        let first = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let second = first + TimeDelta::hours(1);
        recent.by_key.insert("key".to_owned(), known(second));
        recent.order.extend([(first, "key".to_owned()), (second, "key".to_owned())]);
        recent.forget_old(first + TimeDelta::hours(24));
        assert!(recent.by_key.contains_key("key"));
    }
}
