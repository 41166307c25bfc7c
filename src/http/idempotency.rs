//! Requests that may be sent twice: with the same `Idempotency-Key` the second is answered with what
//! came of the first, as draft-ietf-httpapi-idempotency-key-header has it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::Control;
use super::answer::ApiError;
use super::limited;
use super::openapi::RequestHeader;
use crate::domain::run::RunId;
use crate::engine::schedule::handle::{Asker, Handle, RequestError, RunRequest, Ticket};
use crate::invalidate::{
    InvalidateError, InvalidateReport, InvalidateRequest, Invalidation, Invalidations,
};

/// The header's name.
const HEADER: &str = "idempotency-key";
/// The header for the `OpenAPI` document.
pub(super) const KEY_HEADER: &[RequestHeader] = &[RequestHeader {
    name: "Idempotency-Key",
    description: "a request that is repeated with the same key is answered with what came of the first",
    pattern: "^[ -~]{1,257}$",
}];
/// Longer than any uuid or hash that a client makes up.
const MAX_KEY_BYTES: usize = 255;
/// Above it the oldest is forgotten; a repeated run does no harm.
const MAX_KEYS: usize = 1_000;
/// Nobody tries the same request again later than this.
const KEPT_FOR: TimeDelta = TimeDelta::hours(24);

/// Recent requests that had a key. Neither a request nor the records of its runs are kept, only a
/// digest and ids: a thousand requests that name a thousand tenants each take less than a megabyte.
#[derive(Default)]
pub(super) struct Requests {
    /// Two keyed hashes, so that requests that differ have different digests.
    hashers: [RandomState; 2],
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
    digest: Digest,
    asked: Asked,
}

/// What a request asks for, as a number: a key that comes again with another one is a mistake.
type Digest = [u64; 2];

#[derive(Hash)]
enum Meaning<'a> {
    Runs { request: &'a RunRequest, wait: bool },
    Invalidation(&'a InvalidateRequest),
}

/// The request under way, or its answer. It is shared, so that it is made once even if the client that sent
/// it first is gone before the answer.
#[derive(Clone)]
enum Asked {
    Runs(Answer<Arc<[RunId]>, RequestError>),
    Invalidation(Answer<Removed, InvalidateError>),
}

type Answer<T, E> = Shared<BoxFuture<'static, Result<T, E>>>;

/// A request for runs.
#[derive(Clone, Debug)]
pub(super) struct RunsAsked {
    pub(super) request: RunRequest,
    /// Whether the answer waits for their end.
    pub(super) wait: bool,
    /// Who asks.
    pub(super) asker: Asker,
}

/// What became of a request to remove keys.
#[derive(Clone)]
pub(super) struct Removed {
    /// What was removed.
    pub(super) report: Arc<InvalidateReport>,
    /// The runs that warm it again.
    pub(super) runs: Arc<[RunId]>,
}

impl Requests {
    /// Asks the engine for runs, or answers with those that the same key asked for before. A key whose
    /// runs the history has forgotten asks anew.
    pub(super) async fn runs(
        &self,
        handle: &Handle,
        key: Option<String>,
        asked: RunsAsked,
    ) -> Result<Arc<[RunId]>, ApiError> {
        let RunsAsked { request, wait, asker } = asked;
        let ask = |request| ask_for_runs(handle.clone(), request, asker.clone());
        let Some(key) = key else { return Ok(ask(request).await?) };
        let digest = self.digest(&Meaning::Runs { request: &request, wait });
        loop {
            let mut is_new = false;
            let ask_anew = || {
                is_new = true;
                Asked::Runs(ask(request.clone()).boxed().shared())
            };
            let (at, asked) = self.known_or_new(handle.now(), &key, digest, ask_anew)?;
            let Asked::Runs(asked) = asked else { return Err(reused()) };
            let runs = match asked.await {
                Ok(runs) => runs,
                Err(error) => {
                    // Nothing was done, so the key may try again.
                    self.forget(&key, at);
                    return Err(error.into());
                }
            };
            if is_new || runs.is_empty() || is_any_known(handle, &runs).await? {
                return Ok(runs);
            }
            self.forget(&key, at);
        }
    }

    /// Removes keys, or answers with what was removed for the same key before.
    pub(super) async fn invalidation(
        &self,
        control: &Control,
        key: Option<String>,
        request: InvalidateRequest,
        from: Asker,
    ) -> Result<Removed, ApiError> {
        let ask = |request| remove(Arc::clone(&control.invalidations), request, from);
        let Some(key) = key else { return Ok(ask(request).await?) };
        let digest = self.digest(&Meaning::Invalidation(&request));
        let ask = || Asked::Invalidation(ask(request).boxed().shared());
        let (at, asked) = self.known_or_new(control.handle.now(), &key, digest, ask)?;
        let Asked::Invalidation(asked) = asked else { return Err(reused()) };
        let removed = asked.await;
        if !removed.as_ref().is_ok_and(|removed| removed.report.complete) {
            // Something was left, so the key may try again.
            self.forget(&key, at);
        }
        Ok(removed?)
    }

    fn digest(&self, meaning: &Meaning<'_>) -> Digest {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(meaning))
    }

    fn known_or_new(
        &self,
        now: DateTime<Utc>,
        key: &str,
        digest: Digest,
        ask: impl FnOnce() -> Asked,
    ) -> Result<(DateTime<Utc>, Asked), ApiError> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget_old(now);
        if let Some(known) = recent.by_key.get(key) {
            if known.digest != digest {
                return Err(reused());
            }
            return Ok((known.at, known.asked.clone()));
        }
        let asked = ask();
        let known = Known { at: now, digest, asked: asked.clone() };
        recent.by_key.insert(key.to_owned(), known);
        recent.order.push_back((now, key.to_owned()));
        Ok((now, asked))
    }

    fn forget(&self, key: &str, at: DateTime<Utc>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.forget(key, at);
    }
}

async fn ask_for_runs(
    handle: Handle,
    request: RunRequest,
    asker: Asker,
) -> Result<Arc<[RunId]>, RequestError> {
    Ok(ids(&handle.request_by(request, asker).await?))
}

async fn remove(
    invalidations: Arc<Invalidations>,
    request: InvalidateRequest,
    asker: Asker,
) -> Result<Removed, InvalidateError> {
    let done = invalidations.invalidate_by(request, asker).await?;
    let Invalidation { report, runs } = done;
    Ok(Removed { report: Arc::new(report), runs: ids(&runs) })
}

fn ids(tickets: &[Ticket]) -> Arc<[RunId]> {
    tickets.iter().map(|ticket| ticket.run.id).collect()
}

/// Whether one of these runs has not ended, or has a record.
async fn is_any_known(handle: &Handle, runs: &[RunId]) -> Result<bool, ApiError> {
    for run in runs {
        if limited(handle.run(*run)).await??.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
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
    use crate::domain::job::JobName;
    use crate::domain::tenant::TenantId;
    use crate::engine::schedule::handle::JobSelection;

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
        let none = async { Err(RequestError::Busy) }.boxed().shared();
        Known { at, digest: [0; 2], asked: Asked::Runs(none) }
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

    fn request(number: usize, tenants: usize) -> RunRequest {
        let tenants = (0..tenants).map(|tenant| TenantId::new(format!("{number:040}{tenant:040}")));
        RunRequest { jobs: JobSelection::All, tenants: Some(tenants.collect()) }
    }

    /// The bytes that the requests take while nothing is under way.
    fn taken(requests: &Requests) -> usize {
        let recent = requests.recent.lock().unwrap();
        let runs = |known: &Known| match &known.asked {
            Asked::Runs(asked) => asked.peek().unwrap().as_ref().unwrap().len(),
            Asked::Invalidation(asked) => asked.peek().unwrap().as_ref().unwrap().runs.len(),
        };
        let known = recent.by_key.iter().map(|(key, known)| {
            key.capacity() + size_of::<Known>() + runs(known) * size_of::<RunId>()
        });
        let order = recent
            .order
            .iter()
            .map(|(_, key)| size_of::<(DateTime<Utc>, String)>() + key.capacity());
        known.chain(order).sum()
    }

    #[tokio::test]
    async fn a_thousand_requests_for_a_thousand_tenants_each_take_little() {
        let requests = Requests::default();
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let runs: Arc<[RunId]> = (0..10).map(|_| RunId::new(now)).collect();
        for number in 0..MAX_KEYS {
            let request = request(number, 1_000);
            let digest = requests.digest(&Meaning::Runs { request: &request, wait: false });
            let runs = Arc::clone(&runs);
            let ask = || {
                Asked::Runs(
                    async move {
                        drop(request);
                        Ok(runs)
                    }
                    .boxed()
                    .shared(),
                )
            };
            let key = format!("{number:0255}");
            let (_, asked) = requests.known_or_new(now, &key, digest, ask).unwrap();
            let Asked::Runs(asked) = asked else { panic!("another request") };
            asked.await.unwrap();
        }
        let taken = taken(&requests);
        assert!(taken < 1_000_000, "{taken} bytes");
    }

    #[test]
    fn requests_that_differ_in_anything_have_other_digests() {
        let requests = Requests::default();
        let digest = |request: &RunRequest, wait| requests.digest(&Meaning::Runs { request, wait });
        let one = request(1, 2);
        let of_one = digest(&one, false);
        assert_eq!(of_one, digest(&one.clone(), false));
        let all = RunRequest { tenants: None, ..one.clone() };
        let job = JobSelection::One(JobName::parse("list").unwrap());
        let of_job = RunRequest { jobs: job, ..one.clone() };
        let none = RunRequest { tenants: Some(Vec::new()), ..one.clone() };
        let joined = |ids: &[&str]| RunRequest {
            tenants: Some(ids.iter().map(TenantId::new).collect()),
            ..one.clone()
        };
        let others =
            [request(1, 3), request(2, 2), all, of_job, none, joined(&["a", "b"]), joined(&["ab"])];
        let mut digests: Vec<_> = others.iter().map(|other| digest(other, false)).collect();
        digests.extend([of_one, digest(&one, true)]);
        digests.push(requests.digest(&Meaning::Invalidation(&InvalidateRequest::default())));
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }
}
