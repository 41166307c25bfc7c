//! What goes wrong with the cache. Reads go on without it, so problems are counted and reported to a listener, not returned.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::RedisError;

/// The shortest time between two reports of one kind of problem.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A kind of problem with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Problem {
    /// Redis did not answer within the deadline.
    Timeout,
    /// There is no connection to Redis, or it broke.
    Connection,
    /// Redis refused a command, for example because its memory is full.
    Refused,
    /// Scripts cannot be used, because of the ACL or on a cluster: from now on fills live for ten seconds at
    /// most. Reported once.
    Scripts,
    /// A value in the cache is not of the type that the reader asks for.
    Unreadable,
    /// A value is too large for the cache.
    TooLarge,
    /// A text that makes no key was given to `Cache::changed`.
    Key,
}

impl Problem {
    /// A word for logs and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::Refused => "refused",
            Self::Scripts => "scripts",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Key => "key",
        }
    }
}

/// Why a command had no result.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The breaker is open, so it was not sent.
    LeftAlone,
    /// The deadline passed.
    Timeout,
    Redis(RedisError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftAlone => f.write_str("Redis is left alone after several failures"),
            Self::Timeout => f.write_str("Redis did not answer in time"),
            Self::Redis(_) => f.write_str("Redis failed"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::LeftAlone | Self::Timeout => None,
            Self::Redis(source) => Some(source),
        }
    }
}

/// A value that is larger than the cache may have.
#[derive(Debug)]
pub(crate) struct TooLarge {
    pub(crate) family: &'static str,
    pub(crate) bytes: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, bytes } = self;
        write!(f, "a value of `{family}` has {bytes} bytes and is not cached")
    }
}

impl Error for TooLarge {}

/// What an application does with a problem.
pub(crate) type Listener = Arc<dyn Fn(Problem, &(dyn Error + 'static)) + Send + Sync>;

/// Counts problems, and reports each kind at most once in ten seconds.
#[derive(Default)]
pub(crate) struct Problems {
    listener: Option<Listener>,
    seen: Mutex<BTreeMap<Problem, Seen>>,
}

#[derive(Default)]
struct Seen {
    count: u64,
    reported_at: Option<Instant>,
}

impl Problems {
    pub(crate) fn new(listener: Option<Listener>) -> Self {
        Self { listener, seen: Mutex::default() }
    }

    pub(crate) fn note(&self, problem: Problem, error: &(dyn Error + 'static)) {
        #[cfg(feature = "metrics")]
        metrics::counter!("preheat_client_cache_errors_total", "kind" => problem.name())
            .increment(1);
        if self.is_to_be_reported(problem, Instant::now())
            && let Some(listener) = &self.listener
        {
            listener(problem, error);
        }
    }

    /// What a failed command says; a command that was not sent says nothing new.
    pub(crate) fn note_failure(&self, failure: &Failure) {
        match failure {
            Failure::LeftAlone => {}
            Failure::Timeout => self.note(Problem::Timeout, failure),
            Failure::Redis(error) if is_lost(error) => self.note(Problem::Connection, failure),
            Failure::Redis(_) => self.note(Problem::Refused, failure),
        }
    }

    fn is_to_be_reported(&self, problem: Problem, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry(problem).or_default();
        seen.count += 1;
        let is_silent = seen.reported_at.is_some_and(|at| now.duration_since(at) < REPORT_EVERY);
        if !is_silent {
            seen.reported_at = Some(now);
        }
        !is_silent
    }

    pub(crate) fn counts(&self) -> BTreeMap<Problem, u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|(problem, seen)| (*problem, seen.count)).collect()
    }
}

impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Problems").field(&self.counts()).finish()
    }
}

/// Whether the connection is not there, or is no longer any good.
pub(crate) fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_problem_is_counted_always_and_reported_once_in_ten_seconds() {
        let (problems, now) = (Problems::default(), Instant::now());
        assert!(problems.is_to_be_reported(Problem::Timeout, now));
        assert!(!problems.is_to_be_reported(Problem::Timeout, now));
        assert!(problems.is_to_be_reported(Problem::TooLarge, now), "another kind");
        let later = now + REPORT_EVERY;
        assert!(problems.is_to_be_reported(Problem::Timeout, later));
        let counts = [(Problem::Timeout, 3), (Problem::TooLarge, 1)];
        assert_eq!(problems.counts(), BTreeMap::from(counts));
    }

    #[test]
    fn a_command_that_was_not_sent_is_no_new_problem() {
        let problems = Problems::default();
        problems.note_failure(&Failure::LeftAlone);
        assert!(problems.counts().is_empty());
        problems.note_failure(&Failure::Timeout);
        assert_eq!(problems.counts(), BTreeMap::from([(Problem::Timeout, 1)]));
    }
}
