//! The one loop that decides: run, queue or skip.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::status::{Beat, Health};

/// How long the scheduler may stay silent: it rings every second.
const SCHEDULER_SILENCE: Duration = Duration::from_secs(10);
/// How long the loop may take for a round: it waits for nothing but wake-ups, and one comes at
/// least every second.
const ENGINE_SILENCE: Duration = Duration::from_secs(10);

/// The last signs of life, as milliseconds of the monotonic clock.
#[derive(Debug, Default)]
pub struct Beats {
    scheduler: AtomicU64,
    engine: AtomicU64,
}

impl Beats {
    /// The scheduler rang.
    pub fn scheduler_rang(&self, now: Duration) {
        self.scheduler.store(millis(now), Ordering::Relaxed);
    }

    fn engine_turned(&self, now: Duration) {
        self.engine.store(millis(now), Ordering::Relaxed);
    }

    /// How it looks at a moment of the monotonic clock.
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
