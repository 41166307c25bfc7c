//! A cache server that was restarted, failed over or replaced, and may have lost anything: keys,
//! fences, manifests, books.
//!
//! With its stats the server says which process it is. Whoever asks for them takes note of that: a
//! run when it begins and when it ends, a scrape of the metrics, and between all of these
//! [`Runner::watch_cache`]. Where it is another process than before, the engine runs every job once,
//! and the roster and the tenant list trust nothing that they remember of the cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::port::{CacheError, CacheStats};
use super::run::{Runner, Stops};
use crate::observe::event::{self, Server};

/// How often the cache is asked which process it is. Until that shows, whoever reads finds an empty
/// cache: seconds of that may be, minutes not. The question costs the server less than a read.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Which process of the cache server answers, and how often it became another one.
#[derive(Debug)]
pub struct CacheProcess {
    seen: Mutex<Seen>,
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

impl Default for CacheProcess {
    fn default() -> Self {
        Self { seen: Mutex::default(), restarts: watch::Sender::new(0) }
    }
}

impl CacheProcess {
    /// How often another process than before answered.
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
}

impl Runner {
    /// What the cache says of itself; whether it is still the same process is taken note of.
    pub async fn cache_stats(&self) -> Result<CacheStats, CacheError> {
        let question = self.cache_process.ask();
        let stats = self.cache.stats().await?;
        if self.cache_process.answered(question, stats.process) {
            event::CacheRestarted.emit(&self.metrics);
        }
        Ok(stats)
    }

    /// The same, unless the cache counts as down or does not answer.
    pub async fn look_at_cache(&self) -> Option<CacheStats> {
        self.may_ask(Server::Cache).ok()?;
        let stats = self.cache_stats().await;
        self.note_cache(stats.as_ref().err());
        stats.ok()
    }

    /// Looks at the cache every [`LOOK_EVERY`], and as soon as it is back, until the worker stops.
    pub async fn watch_cache(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                self.look_at_cache().await;
                self.breaker(Server::Cache).pause(LOOK_EVERY, self.clock.as_ref()).await;
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
