//! `GET /api/v1/events`: what happens, for programs. A reader that was away for a moment goes on
//! where it was: each event has an id, and the newest news are kept.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::view::{self, NAMES};
use super::{Source, event, stream};
use crate::domain::job::JobName;
use crate::http::AppState;
use crate::http::answer::{ApiError, moment};
use crate::http::openapi::{Api, Operation, RequestHeader};
use crate::http::session::Viewer;
use crate::http::tenants::check_job;
use crate::observe::Metrics;
use crate::observe::news::Item;

/// How many news are taken from the log at once.
const AT_ONCE: usize = 50;

const LAST_EVENT: &[RequestHeader] = &[RequestHeader {
    name: "Last-Event-ID",
    description: "The id of the last event that the client received",
    pattern: "^[0-9a-f]+-[0-9]+$",
}];

pub(in crate::http) fn routes(api: Api) -> Api {
    let events = Operation::new("events", "What happens, as it happens")
        .query::<Wanted>()
        .headers(LAST_EVENT)
        .answers_text("server-sent events, without end", "text/event-stream")
        .refuses(404, "`unknown_job`")
        .refuses(429, "`too_many_streams`");
    api.get("/api/v1/events", self::events, events)
}

/// Which events a client wants.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// These kinds alone, separated by commas.
    types: Option<String>,
    /// Those of this job alone, and those that are about no job.
    job: Option<String>,
    /// The same as the header `Last-Event-ID`, for clients that cannot send it.
    last: Option<String>,
}

/// `GET /api/v1/events?types=&job=&last=`
async fn events(
    _: Viewer,
    State(state): State<AppState>,
    query: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(wanted) = query.map_err(|_rejected| {
        ApiError::bad_request("the parameters are `types`, `job` and `last`".to_owned())
    })?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok().map(str::to_owned));
    let last = last.or(wanted.last.clone()).filter(|id| !id.is_empty());
    let filter = Filter::new(&wanted)?;
    check_job(&state, wanted.job.as_deref())?;
    let place = state.streams.place()?;
    let control = &state.control;
    let boot = boot(&state);
    let metrics = Arc::clone(&control.metrics);
    let follower = Follower::new(metrics, filter, boot, last.as_deref());
    Ok(stream(place, follower, control.shutdown.clone()))
}

/// Tells the events of this process from those of others.
fn boot(state: &AppState) -> String {
    let started_at = state.control.handle.status().started_at;
    format!("{:x}", started_at.timestamp_micros())
}

/// The events that a client wants.
#[derive(Debug, Default)]
struct Filter {
    /// Names of events; empty for all.
    types: BTreeSet<&'static str>,
    job: Option<JobName>,
}

impl Filter {
    fn new(wanted: &Wanted) -> Result<Self, ApiError> {
        let types = wanted.types.iter().flat_map(|types| types.split(','));
        let types = types.filter(|name| !name.is_empty()).map(|name| {
            let known = NAMES.into_iter().find(|known| *known == name);
            known.ok_or_else(|| {
                let name = name.escape_debug();
                let known = NAMES.join(", ");
                ApiError::bad_request(format!("there are no events `{name}`; there are {known}"))
            })
        });
        let job = wanted.job.as_deref().filter(|job| !job.is_empty()).map(JobName::parse);
        let job = job.transpose().map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Self { types: types.collect::<Result<_, _>>()?, job })
    }

    fn wants(&self, item: &Item) -> bool {
        let of_type = self.types.is_empty() || self.types.contains(view::name(&item.news));
        let of_job = match (&self.job, item.news.job()) {
            (Some(wanted), Some(job)) => wanted == job,
            (None, _) | (_, None) => true,
        };
        of_type && of_job
    }
}

/// Follows the news.
struct Follower {
    metrics: Arc<Metrics>,
    arrived: watch::Receiver<u64>,
    filter: Filter,
    boot: String,
    /// The number of the newest item of the news that was read.
    read: u64,
    /// What is to be sent next.
    ready: VecDeque<String>,
    state: FollowerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FollowerState {
    Follows,
    /// It sends what is ready, and ends.
    Ends,
}

/// The data of the first event of a stream, and of one that says that events were lost.
#[derive(Debug, Serialize)]
struct Beginning {
    version: &'static str,
    boot: String,
}

impl Follower {
    fn new(metrics: Arc<Metrics>, filter: Filter, boot: String, last: Option<&str>) -> Self {
        let (arrived, latest) = (metrics.news.subscribe(), metrics.news.latest());
        let state = FollowerState::Follows;
        let mut follower =
            Self { metrics, arrived, filter, boot, read: latest, ready: VecDeque::new(), state };
        match last.map(|last| follower.number(last)) {
            None => follower.begin("hello"),
            Some(None) => follower.begin("reset"),
            Some(Some(number)) => follower.read = number,
        }
        follower
    }

    /// The number in an id, if its news, and all since, can be read.
    fn number(&self, id: &str) -> Option<u64> {
        let (boot, number) = id.rsplit_once('-')?;
        let number = number.parse().ok().filter(|_| boot == self.boot)?;
        self.metrics.news.after(number, 0).ok().map(|_none| number)
    }

    fn begin(&mut self, name: &str) {
        let id = format!("{}-{}", self.boot, self.read);
        let beginning = Beginning { version: env!("CARGO_PKG_VERSION"), boot: self.boot.clone() };
        self.ready.push_back(event(Some(&id), name, &beginning));
    }

    fn read(&mut self) {
        let Ok(items) = self.metrics.news.after(self.read, AT_ONCE) else {
            self.read = self.metrics.news.latest();
            self.begin("reset");
            self.state = FollowerState::Ends;
            return;
        };
        for item in items {
            self.read = item.number;
            if self.filter.wants(&item) {
                self.ready.push_back(sent(&self.boot, &item));
            }
        }
    }
}

fn sent(boot: &str, item: &Item) -> String {
    let id = format!("{boot}-{}", item.number);
    event(Some(&id), view::name(&item.news), &view::data(&item.news, &moment(item.at)))
}

impl Source for Follower {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.state == FollowerState::Ends {
                return None;
            }
            self.arrived.borrow_and_update();
            self.read();
            if self.ready.is_empty() && self.read >= self.metrics.news.latest() {
                self.arrived.changed().await.ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::observe::event;

    fn metrics() -> Arc<Metrics> {
        let metrics = Metrics::new();
        metrics.news.start(|| chrono::DateTime::UNIX_EPOCH);
        metrics
    }

    fn follow(metrics: &Arc<Metrics>, last: Option<&str>) -> Follower {
        Follower::new(Arc::clone(metrics), Filter::default(), "b".to_owned(), last)
    }

    /// The events that are ready, each as its id and name.
    fn ready(follower: &mut Follower) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(Some(sent)) = follower.next().now_or_never() {
            let line = |name: &str| sent.lines().find_map(|line| line.strip_prefix(name));
            found.push(format!("{} {}", line("id: ").unwrap(), line("event: ").unwrap()));
        }
        found
    }

    #[test]
    fn a_client_begins_with_what_happens_next() {
        let metrics = metrics();
        event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        let mut follower = follow(&metrics, None);
        assert_eq!(ready(&mut follower), ["b-1 hello"]);
        event::FeedLost { message: "gone", at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        assert_eq!(ready(&mut follower), ["b-2 feed_lost", "b-3 feed_connected"]);
    }

    #[test]
    fn a_client_that_was_away_misses_nothing() {
        let metrics = metrics();
        event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        event::CacheEmptied.emit(&metrics);
        assert_eq!(ready(&mut follow(&metrics, Some("b-1"))), ["b-2 cache_lost"]);
        assert_eq!(ready(&mut follow(&metrics, Some("b-2"))), [""; 0]);
    }

    #[test]
    fn a_client_learns_that_events_were_lost() {
        let metrics = metrics();
        event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        for last in ["other-1", "b-2", "b-", "b-x", "nonsense", "b-18446744073709551615"] {
            assert_eq!(ready(&mut follow(&metrics, Some(last))), ["b-1 reset"], "{last}");
        }
    }

    #[test]
    fn a_client_that_reads_too_slowly_is_dropped_with_a_word() {
        let metrics = metrics();
        let mut slow = follow(&metrics, None);
        assert_eq!(ready(&mut slow), ["b-0 hello"]);
        for _ in 0..2_000 {
            event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        }
        assert_eq!(ready(&mut slow), ["b-2000 reset"]);
        assert_eq!(slow.next().now_or_never(), Some(None), "its stream has ended");
        assert_eq!(ready(&mut follow(&metrics, Some("b-2000"))), [""; 0]);
    }

    #[test]
    fn a_client_chooses() {
        let wanted = |types: &str, job: &str| Wanted {
            types: Some(types.to_owned()),
            job: Some(job.to_owned()),
            last: None,
        };
        let filter = |types, job| Filter::new(&wanted(types, job));
        assert!(filter("feed_lost,nonsense", "").is_err());
        assert!(filter("", "no job's name").is_err());
        let metrics = metrics();
        let mut follower = follow(&metrics, None);
        follower.filter = filter("feed_lost,run_skipped", "a").unwrap();
        event::FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        event::FeedLost { message: "gone", at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        let reason = event::SkipReason::Overlap;
        for job in ["a", "b"].map(|name| JobName::parse(name).unwrap()) {
            event::RunSkipped { job: &job, reason }.emit(&metrics);
        }
        assert_eq!(ready(&mut follower), ["b-0 hello", "b-2 feed_lost", "b-3 run_skipped"]);
    }
}
