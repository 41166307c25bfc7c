//! What keeps a server that is down from being asked by every batch.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Clock;
use crate::domain::retry::Breaker;

/// Failures in a row, of all batches, after which a server is not asked any more for a while. Fewer
/// than a batch's tries with the default `retries`, so that its last try comes after the pause.
const FAILURES_TO_OPEN: u32 = 3;
/// How long it is left alone.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

/// The breaker of one server, shared by all batches.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    breaker: Mutex<Breaker>,
    closed: Notify,
}

/// A breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerChange {
    /// The server is not asked any more for a while.
    Opened,
    /// It answers again.
    Closed,
}

impl Default for SharedBreaker {
    fn default() -> Self {
        let breaker = Mutex::new(Breaker::new(FAILURES_TO_OPEN, BREAKER_PAUSE));
        Self { breaker, closed: Notify::new() }
    }
}

impl SharedBreaker {
    /// Whether the server may be asked at the monotonic moment `now`; what comes of it must be
    /// told to [`Self::note`].
    pub(crate) fn try_start(&self, now: Duration) -> bool {
        self.lock().try_start(now)
    }

    /// Takes note of whether the server could be reached; says if that changed the breaker.
    pub(crate) fn note(&self, reached: bool, now: Duration) -> Option<BreakerChange> {
        let mut breaker = self.lock();
        let before = breaker.is_open();
        if reached {
            breaker.succeeded();
        } else {
            breaker.failed(now);
        }
        match (before, breaker.is_open()) {
            (false, true) => Some(BreakerChange::Opened),
            (true, false) => {
                self.closed.notify_waiters();
                Some(BreakerChange::Closed)
            }
            (true, true) | (false, false) => None,
        }
    }

    /// How long the server may not be asked, at the monotonic moment `now`; `None` where it may.
    pub(crate) fn pause_left(&self, now: Duration) -> Option<Duration> {
        self.lock().pause_left(now)
    }

    /// How often the server was asked in vain while it counted as down, since ever.
    pub(crate) fn in_vain(&self) -> u64 {
        self.lock().in_vain()
    }

    /// Whether the server counts as down.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    /// Ends when the server may be asked again, but not before `least` has passed while nobody found
    /// it up.
    pub(crate) async fn pause(&self, least: Duration, clock: &dyn Clock) {
        // Made before the look at the breaker, so that its closing in between is not missed.
        let closed = self.closed.notified();
        let left = self.lock().pause_left(clock.monotonic());
        tokio::select! {
            biased;
            () = closed, if left.is_some() => {}
            () = clock.sleep(least.max(left.unwrap_or_default())) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
