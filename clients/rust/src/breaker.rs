//! The breaker: after some failures in a row Redis is left alone, but for one probe a second.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

/// How many commands in a row must fail.
const FAILURES: u32 = 5;

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Failures since the last success.
    failures: AtomicU32,
    is_open: AtomicBool,
    opened: Notify,
}

impl Breaker {
    /// Whether Redis is left alone.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// A command was answered.
    pub(crate) fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A command was not answered, or only that the server cannot answer. True if this opened the breaker.
    pub(crate) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let opens = failures >= FAILURES && !self.is_open.swap(true, Ordering::Relaxed);
        if opens {
            self.opened.notify_one();
        }
        opens
    }

    /// A probe was answered in time.
    pub(crate) fn close(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// Waits until the breaker opens; returns at once if it opened since the last call.
    pub(crate) async fn opened(&self) {
        self.opened.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_open_it() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                assert!(!breaker.failed());
            }
            breaker.answered();
        }
        for _ in 1..FAILURES {
            breaker.failed();
        }
        assert!(!breaker.is_open());
        assert!(breaker.failed(), "the last one opens it");
        assert!(breaker.is_open() && !breaker.failed(), "and it opens once");
    }

    #[test]
    fn a_late_answer_does_not_close_it() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.failed();
        }
        breaker.answered();
        assert!(breaker.is_open());
        breaker.close();
        assert!(!breaker.is_open() && !breaker.failed());
    }
}
