//! A cache server that was restarted, failed over, replaced or emptied, and may have lost anything: keys,
//! fences, manifests, books.
//!
//! With its stats the server says which process it is. Whoever asks for them takes note of that: a
//! run when it begins and when it ends, a scrape of the metrics, and between all of these
//! [`Runner::watch_cache`], which looks at the markers as well (see `marker.rs`). Where it is another
//! process than before, or was emptied, the engine runs every job once, and the roster and the tenant list
//! trust nothing that they remember of the cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::marker::{Markers, marker_keys};
use super::port::{CacheError, CacheStats};
use super::run::{Runner, Stops};
use crate::domain::fence::{FENCE_TTL, Fence, start_number};
use crate::observe::event::{self, Server};

/// How often the cache is asked which process it is. Until that shows, whoever reads finds an empty
/// cache: seconds of that may be, minutes not. The question costs the server less than a read.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Evictions are told at most so often.
const TELL_EVICTIONS_EVERY: Duration = Duration::from_mins(10);

/// Which process of the cache server answers, and how often it became another one or was emptied.
#[derive(Debug)]
pub struct CacheProcess {
    seen: Mutex<Seen>,
    markers: Markers,
    evictions: Mutex<Evictions>,
    restarts: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Seen {
    /// None while the server has not told.
    process: Option<u64>,
    /// How often it was asked.
    questions: u64,
    /// The question to which this process was first the answer. Answers to earlier ones, which are
    /// only noted now, may be those of the process before.
    since: u64,
}

/// Evictions by the server's own counter.
#[derive(Debug, Default)]
struct Evictions {
    /// How many had been told; none before the first answer.
    told: Option<u64>,
    told_at: Option<Duration>,
}

impl Evictions {
    /// How many keys were evicted since that was told last, if it is to be told at this monotonic moment.
    fn newly(&mut self, evicted: u64, now: Duration) -> Option<u64> {
        // A server that was restarted counts from zero again.
        let told = self.told.filter(|told| *told <= evicted);
        self.told = told.or(Some(evicted));
        let count = evicted - told?;
        let is_due = self.told_at.is_none_or(|at| now.saturating_sub(at) >= TELL_EVICTIONS_EVERY);
        if count == 0 || !is_due {
            return None;
        }
        (self.told, self.told_at) = (Some(evicted), Some(now));
        Some(count)
    }
}

impl Default for CacheProcess {
    fn default() -> Self {
        let restarts = watch::Sender::new(0);
        let (seen, evictions) = (Mutex::default(), Mutex::default());
        Self { seen, markers: Markers::default(), evictions, restarts }
    }
}

impl CacheProcess {
    /// How often another process than before answered, or the cache was emptied.
    pub fn restarts(&self) -> u64 {
        *self.restarts.borrow()
    }

    /// The same, again whenever it grows.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.restarts.subscribe()
    }

    /// The number of a question that is about to be asked.
    fn ask(&self) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.questions += 1;
        seen.questions
    }

    /// Takes note of an answer; says whether it shows that the server was restarted. One that does
    /// not tell its process changes nothing.
    fn answered(&self, question: u64, process: Option<u64>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let same = process.is_none() || process == seen.process;
        if same || question < seen.since {
            return false;
        }
        seen.since = question;
        let was_restarted = std::mem::replace(&mut seen.process, process).is_some();
        if was_restarted {
            // Before anybody else can find the new process noted.
            self.restarts.send_modify(|restarts| *restarts += 1);
        }
        was_restarted
    }

    fn was_emptied(&self) {
        self.restarts.send_modify(|restarts| *restarts += 1);
    }
}

impl Runner {
    /// What the cache says of itself; whether it is still the same process is taken note of.
    pub async fn cache_stats(&self) -> Result<CacheStats, CacheError> {
        let question = self.cache_process.ask();
        let stats = self.cache.stats().await?;
        if self.cache_process.answered(question, stats.process) {
            event::CacheRestarted.emit(&self.metrics);
        }
        self.tell_evictions(stats);
        Ok(stats)
    }

    fn tell_evictions(&self, stats: CacheStats) {
        let evictions = &self.cache_process.evictions;
        let mut evictions = evictions.lock().unwrap_or_else(PoisonError::into_inner);
        let CacheStats { evicted, used_memory, maxmemory, .. } = stats;
        if let Some(count) = evictions.newly(evicted, self.clock.monotonic()) {
            event::KeysEvicted { count, used_memory, maxmemory }.emit(&self.metrics);
        }
    }

    /// The same, unless the cache counts as down or does not answer; whether it was emptied is taken
    /// note of as well. One at a time looks.
    pub async fn look_at_cache(&self) -> Option<CacheStats> {
        self.look_at_markers().await.ok()
    }

    async fn look_at_markers(&self) -> Result<CacheStats, CacheError> {
        let CacheProcess { markers, .. } = &self.cache_process;
        let (keys, restarts) = (marker_keys(), self.cache_process.restarts());
        // Before the stats: a server that lost them in between is another process by then, or tells
        // the next time.
        let found = self.ledger.fences(&keys).await;
        let stats = self.cache_stats().await?;
        if self.cache_process.restarts() > restarts {
            markers.forget();
            return Ok(stats);
        }
        // Where they cannot be read, as nobody may, nothing is told by them.
        let Ok(mut found) = found else { return Ok(stats) };
        if markers.were_lost(&found, stats) {
            self.cache_process.was_emptied();
            event::CacheEmptied.emit(&self.metrics);
        }
        self.make_markers(&keys, &mut found).await;
        markers.note(found, stats);
        Ok(stats)
    }

    /// Makes the markers that are missing. That it fails is no matter: the next look tries again.
    async fn make_markers(&self, keys: &[String], found: &mut [Fence]) {
        let missing = keys.iter().zip(found.iter()).filter(|(_, found)| **found == Fence::Missing);
        let missing: Vec<_> = missing.map(|(key, found)| (key.clone(), *found)).collect();
        if !missing.is_empty() {
            let number = start_number(self.clock.random());
            let made = self.ledger.start_fences(&missing, number).await.unwrap_or_default();
            let places = found.iter_mut().filter(|found| **found == Fence::Missing);
            places.zip(made).for_each(|(place, made)| *place = made);
        }
        if self.cache_process.markers.renews(self.clock.monotonic()) {
            let lives: Vec<_> = keys.iter().map(|key| (key.clone(), FENCE_TTL)).collect();
            let _tried_again_in_an_hour = self.cache.expire(&lives).await;
        }
    }

    /// Looks at the cache every [`LOOK_EVERY`], and as soon as it is back, until the worker stops.
    pub async fn watch_cache(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                self.look_at_cache().await;
                self.pause(Server::Cache, LOOK_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            () = stops.requested() => {}
            () = for_ever => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks, and notes the answer at once.
    fn noted(process: &CacheProcess, answer: Option<u64>) -> bool {
        let question = process.ask();
        process.answered(question, answer)
    }

    #[test]
    fn evictions_are_told_with_all_that_came_since_and_not_too_often() {
        let mut evictions = Evictions::default();
        let minutes = Duration::from_mins;
        let told = [
            (1_000, minutes(0)),
            (1_000, minutes(1)),
            (1_005, minutes(2)),
            (1_050, minutes(3)),
            (1_050, minutes(12)),
            (1_060, minutes(13)),
            (3, minutes(30)),
            (4, minutes(31)),
        ];
        let told = told.map(|(evicted, at)| evictions.newly(evicted, at));
        assert_eq!(told, [None, None, Some(5), None, Some(45), None, None, Some(1)]);
    }

    #[test]
    fn another_process_is_a_restart_and_the_first_one_is_none() {
        let process = CacheProcess::default();
        let answers = [Some(7), Some(7), Some(8), Some(8), Some(7)];
        let restarts = answers.map(|answer| noted(&process, answer));
        assert_eq!(restarts, [false, false, true, false, true]);
        assert_eq!(process.restarts(), 2);
    }

    #[test]
    fn an_answer_that_does_not_tell_changes_nothing() {
        let process = CacheProcess::default();
        let answers = [None, Some(7), None, Some(7), None, Some(8)];
        let restarts = answers.map(|answer| noted(&process, answer));
        assert_eq!(restarts, [false, false, false, false, false, true]);
    }

    #[test]
    fn an_answer_that_comes_after_that_to_a_later_question_is_of_the_past() {
        let process = CacheProcess::default();
        noted(&process, Some(7));
        let (early, late) = (process.ask(), process.ask());
        assert!(process.answered(late, Some(8)));
        assert!(!process.answered(early, Some(7)));
        assert!(!noted(&process, Some(8)));
        assert_eq!(process.restarts(), 1);
    }
}
