//! Notices that the cache server was restarted, failed over, replaced or emptied, and so may have lost
//! anything: keys, fences, manifests, the registry.
//!
//! The server's stats say which process it is. Every caller that reads the stats records that: a run when it
//! begins and when it ends, a scrape of the metrics, and in between `Runner::watch_cache`, which also looks
//! at the markers (see `marker.rs`). If another process answers than before, or the cache was emptied, the
//! engine runs every job once, and the registry and the tenant list no longer trust what they remember of the
//! cache.
//!
//! A process that ended never comes back, as each start has a new id. If an id returns within
//! [`RETURNS_WITHIN`], several servers answer behind one address (a load balancer, a name with several
//! addresses), and one resync would follow another without end. This is reported once. From then on neither a
//! change of the process nor a missing marker causes a resync, until one server has answered alone for
//! [`STEADY_FOR`]. Then there is one resync, as that server may lack anything.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::cache_usage::CacheUsage;
use super::marker::{Markers, marker_keys};
use crate::domain::fence::{FENCE_TTL, Fence};
use crate::domain::slots::Extent;
use crate::engine::ports::{CacheError, CacheStats, Ports};
use crate::observe::event;

/// How often the worker asks the cache which process it is. Until the worker notices a new process, readers
/// find an empty cache: that may last seconds, not minutes. The question costs the server less than a read.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The shortest time between two reports of evictions.
const TELL_EVICTIONS_EVERY: Duration = Duration::from_mins(10);

/// A process that answers again this soon after another one has answered was never gone. Failing back to a
/// former primary usually takes longer.
pub const RETURNS_WITHIN: Duration = Duration::from_mins(10);

/// If several servers answered, and then the same one for this long, it is the only one: the chance that a
/// load balancer with two servers picks one of them for that long is negligible.
pub const STEADY_FOR: Duration = Duration::from_mins(2);

/// How many processes are remembered: more than there are servers behind any one address.
const MOST_REMEMBERED: usize = 32;

/// Which process of the cache server answers, and how often it became another one or was emptied.
#[derive(Debug)]
pub struct CacheProcess {
    seen: Mutex<Seen>,
    markers: Markers,
    evictions: Mutex<Evictions>,
    restarts: watch::Sender<u64>,
    /// What its counters say about the last minutes.
    pub usage: CacheUsage,
}

#[derive(Debug, Default)]
struct Seen {
    /// `None` while the server has not reported it.
    process: Option<u64>,
    /// How many questions were asked.
    questions: u64,
    /// The number of the first question that was asked after this process was recorded. An answer to an
    /// earlier question that arrives only now may come from the process before.
    since: u64,
    /// The processes that answered before this one, and until when each did; the latest comes last.
    earlier: VecDeque<(u64, Duration)>,
    /// While several servers answer: when the answering server last changed.
    changed_at: Option<Duration>,
    /// What was lost since [`CacheProcess::take_lost`] was called.
    lost: Option<Extent>,
}

/// What an answer of the cache server shows about its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Nothing new.
    Same,
    /// The server was restarted or replaced.
    Restarted,
    /// Several servers answer behind one address.
    Several,
    /// Only one server answers, after several did.
    OneAgain,
}

impl Seen {
    fn note(&mut self, question: u64, process: u64, now: Duration) -> Shown {
        if question < self.since {
            return Shown::Same;
        }
        if self.process == Some(process) {
            let is_steady = |at: &mut Duration| now.saturating_sub(*at) >= STEADY_FOR;
            if self.changed_at.take_if(is_steady).is_none() {
                return Shown::Same;
            }
            self.earlier.clear();
            return Shown::OneAgain;
        }
        self.since = self.questions + 1;
        let Some(before) = self.process.replace(process) else { return Shown::Same };
        self.earlier.retain(|(_, until)| now.saturating_sub(*until) <= RETURNS_WITHIN);
        let is_back = self.earlier.iter().any(|(earlier, _)| *earlier == process);
        self.earlier.retain(|(earlier, _)| *earlier != process);
        self.earlier.push_back((before, now));
        if self.earlier.len() > MOST_REMEMBERED {
            self.earlier.pop_front();
        }
        match self.changed_at {
            Some(_) => {
                self.changed_at = Some(now);
                Shown::Same
            }
            None if is_back => {
                self.changed_at = Some(now);
                Shown::Several
            }
            None => Shown::Restarted,
        }
    }
}

/// Evictions by the server's own counter.
#[derive(Debug, Default)]
struct Evictions {
    /// The counter at the last report; `None` before the first answer.
    told: Option<u64>,
    told_at: Option<Duration>,
}

impl Evictions {
    /// How many keys were evicted since the last report, if a report is due at this monotonic moment.
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
        let usage = CacheUsage::default();
        Self { seen, markers: Markers::default(), evictions, restarts, usage }
    }
}

impl CacheProcess {
    /// How often another process answered than before, or the cache was emptied.
    pub fn restarts(&self) -> u64 {
        *self.restarts.borrow()
    }

    /// The same number, with a notice whenever it grows.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.restarts.subscribe()
    }

    /// The number of a question that is about to be asked.
    fn ask(&self) -> u64 {
        let mut seen = self.seen();
        seen.questions += 1;
        seen.questions
    }

    /// Records an answer at a monotonic moment. An answer without a process shows nothing.
    /// `lost_between` tells what was lost between two processes.
    fn answered(
        &self,
        question: u64,
        process: Option<u64>,
        lost_between: impl Fn(u64, u64) -> Extent,
        now: Duration,
    ) -> Shown {
        let Some(process) = process else { return Shown::Same };
        let mut seen = self.seen();
        let before = seen.process;
        let shown = seen.note(question, process, now);
        match (shown, before) {
            // Counted before any other caller can see the new process.
            (Shown::Restarted, Some(before)) => self.lost(seen, lost_between(before, process)),
            (Shown::Restarted | Shown::OneAgain, _) => self.lost(seen, Extent::All),
            (Shown::Same | Shown::Several, _) => {}
        }
        shown
    }

    fn lost(&self, mut seen: MutexGuard<'_, Seen>, lost: Extent) {
        seen.lost = Some(match seen.lost.take() {
            Some(before) => before.and(lost),
            None => lost,
        });
        self.restarts.send_modify(|restarts| *restarts += 1);
    }

    /// What was lost since the last call.
    pub(crate) fn take_lost(&self) -> Option<Extent> {
        self.seen().lost.take()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether several servers answer, so that the answer of one says nothing about the next command.
    fn are_several(&self) -> bool {
        self.seen().changed_at.is_some()
    }

    fn was_emptied(&self) {
        self.lost(self.seen(), Extent::All);
    }
}

impl CacheProcess {
    /// The cache's stats; records whether the process is still the same.
    pub async fn stats(&self, ports: &Ports) -> Result<CacheStats, CacheError> {
        let question = self.ask();
        let stats = ports.cache.stats().await?;
        let lost_between = |before, now| ports.cache.lost_between(before, now);
        match self.answered(question, stats.process, lost_between, ports.clock.monotonic()) {
            Shown::Same => {}
            Shown::Restarted => event::CacheRestarted.emit(&ports.metrics),
            Shown::Several => event::SeveralCaches.emit(&ports.metrics),
            Shown::OneAgain => event::OneCacheAgain.emit(&ports.metrics),
        }
        let is_one = !self.are_several();
        self.usage.note(stats, is_one, ports.clock.monotonic());
        if is_one {
            self.tell_evictions(ports, stats);
        }
        Ok(stats)
    }

    fn tell_evictions(&self, ports: &Ports, stats: CacheStats) {
        let evictions = &self.evictions;
        let mut evictions = evictions.lock().unwrap_or_else(PoisonError::into_inner);
        let CacheStats { evicted, used_memory, maxmemory, .. } = stats;
        if let Some(count) = evictions.newly(evicted, ports.clock.monotonic()) {
            event::KeysEvicted { count, used_memory, maxmemory }.emit(&ports.metrics);
        }
    }

    /// The cache's stats, unless the cache counts as down or does not answer; also records whether the cache
    /// was emptied. Only one caller at a time looks.
    pub async fn look(&self, ports: &Ports) -> Option<CacheStats> {
        self.look_at_markers(ports).await.ok()
    }

    async fn look_at_markers(&self, ports: &Ports) -> Result<CacheStats, CacheError> {
        let markers = &self.markers;
        let restarts = self.restarts();
        let keys = marker_keys(|keys| ports.cache.servers(keys));
        // Read before the stats: if the server lost the markers in between, the stats show another process,
        // or the next look notices.
        let found = ports.ledger.fences(&keys.keys).await;
        let stats = self.stats(ports).await?;
        if self.restarts() > restarts || self.are_several() {
            markers.forget();
            return Ok(stats);
        }
        // Without the right to read the markers, they say nothing.
        let Ok(mut found) = found else { return Ok(stats) };
        if markers.were_lost(&keys, &found, stats) {
            self.was_emptied();
            event::CacheEmptied.emit(&ports.metrics);
        }
        self.make_markers(ports, &keys.keys, &mut found).await;
        markers.note(keys.keys.into_iter().zip(found).collect(), stats);
        Ok(stats)
    }

    /// Creates the missing markers. If that fails, the next look tries again.
    async fn make_markers(&self, ports: &Ports, keys: &[String], found: &mut [Fence]) {
        let missing = keys.iter().zip(found.iter()).filter(|(_, found)| **found == Fence::Missing);
        let missing: Vec<_> = missing.map(|(key, found)| (key.clone(), *found)).collect();
        if !missing.is_empty() {
            let made = ports.start_fences(&missing).await.unwrap_or_default();
            let places = found.iter_mut().filter(|found| **found == Fence::Missing);
            places.zip(made).for_each(|(place, made)| *place = made);
        }
        if self.markers.renews(ports.clock.monotonic()) {
            let lives: Vec<_> = keys.iter().map(|key| (key.clone(), FENCE_TTL)).collect();
            let _tried_again_in_an_hour = ports.cache.expire(&lives).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anything(_before: u64, _now: u64) -> Extent {
        Extent::All
    }

    /// Asks and records the answer at once, both at the same second.
    fn noted(process: &CacheProcess, answer: Option<u64>, at: u64) -> Shown {
        let question = process.ask();
        process.answered(question, answer, anything, Duration::from_secs(at))
    }

    /// What each answer shows, given with the seconds since the first one.
    fn shown<const N: usize>(process: &CacheProcess, answers: [(u64, u64); N]) -> [Shown; N] {
        answers.map(|(at, answer)| noted(process, Some(answer), at))
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
        use Shown::{Restarted, Same};
        let process = CacheProcess::default();
        let answers = [(0, 7), (2, 7), (4, 8), (6, 8), (8, 9), (10, 10)];
        assert_eq!(shown(&process, answers), [Same, Same, Restarted, Same, Restarted, Restarted]);
        assert_eq!(process.restarts(), 3);
    }

    #[test]
    fn a_process_that_comes_back_soon_is_one_of_several_servers_until_one_answers_for_long() {
        use Shown::{OneAgain, Restarted, Same, Several};
        let process = CacheProcess::default();
        let turns = [(0, 7), (2, 8), (4, 7), (6, 8), (8, 7), (10, 9), (12, 8), (14, 8)];
        assert_eq!(
            shown(&process, turns),
            [Same, Restarted, Several, Same, Same, Same, Same, Same]
        );
        assert_eq!((process.restarts(), process.are_several()), (1, true));
        let steady = [(131, 8), (132, 8), (134, 8), (136, 9), (138, 8)];
        assert_eq!(shown(&process, steady), [Same, OneAgain, Same, Restarted, Several]);
        assert_eq!(process.restarts(), 3);
    }

    #[test]
    fn failing_back_after_long_is_a_restart() {
        let process = CacheProcess::default();
        let minutes = |minutes: u64| minutes * 60;
        let answers = [(0, 7), (minutes(30), 8), (minutes(40) + 1, 7)];
        assert_eq!(shown(&process, answers), [Shown::Same, Shown::Restarted, Shown::Restarted]);
    }

    #[test]
    fn an_answer_that_does_not_tell_changes_nothing() {
        let process = CacheProcess::default();
        let answers = [None, Some(7), None, Some(7), None, Some(8)];
        let restarts = answers.map(|answer| noted(&process, answer, 0) == Shown::Restarted);
        assert_eq!(restarts, [false, false, false, false, false, true]);
    }

    #[test]
    fn an_answer_to_a_question_from_before_another_process_was_noted_is_of_the_past() {
        let process = CacheProcess::default();
        noted(&process, Some(7), 0);
        let [one, other, late] = [process.ask(), process.ask(), process.ask()];
        let answered = |question, answer| {
            process.answered(question, Some(answer), anything, Duration::from_secs(1))
        };
        assert_eq!(answered(other, 8), Shown::Restarted);
        assert_eq!([answered(one, 7), answered(late, 7)], [Shown::Same; 2]);
        assert_eq!(noted(&process, Some(8), 2), Shown::Same);
        assert_eq!(process.restarts(), 1);
    }
}
