//! When the scheduler and the engine's loop last showed that they work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::status::{Beat, Health};

/// How long the scheduler may be silent: it rings every second.
const SCHEDULER_SILENCE: Duration = Duration::from_secs(10);
/// How long one round of the loop may take: the loop waits only for wake-ups, and one comes at
/// least every second.
const ENGINE_SILENCE: Duration = Duration::from_secs(10);
/// If the loop was away for longer than this, the whole process was stopped; then the scheduler's
/// silence says nothing about the scheduler.
const PROCESS_STOPPED: Duration = Duration::from_secs(3);
/// When each was last seen at work, in milliseconds of the monotonic clock.
#[derive(Debug)]
pub struct Beats {
    scheduler: AtomicU64,
    engine: AtomicU64,
}

impl Beats {
    /// Both start as seen just now.
    pub fn new(now: Duration) -> Self {
        Self { scheduler: AtomicU64::new(millis(now)), engine: AtomicU64::new(millis(now)) }
    }

    /// Records that the scheduler rang.
    pub fn scheduler_rang(&self, now: Duration) {
        self.scheduler.store(millis(now), Ordering::Relaxed);
    }

    pub(crate) fn engine_turned(&self, now: Duration) {
        let before = self.engine.swap(millis(now), Ordering::Relaxed);
        if now.saturating_sub(Duration::from_millis(before)) > PROCESS_STOPPED {
            self.scheduler_rang(now);
        }
    }

    /// The health at a moment of the monotonic clock.
    pub fn health(&self, now: Duration) -> Health {
        let beat = |last: &AtomicU64, limit| Beat {
            silent_for: now.saturating_sub(Duration::from_millis(last.load(Ordering::Relaxed))),
            limit,
        };
        Health {
            scheduler: beat(&self.scheduler, SCHEDULER_SILENCE),
            engine: beat(&self.engine, ENGINE_SILENCE),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
