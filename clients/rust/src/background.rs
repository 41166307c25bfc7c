//! The background task of a cache: it tells the worker the counts, and asks whether Redis answers again.

use std::sync::Weak;
use std::time::{Duration, Instant};

use redis::cmd;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, interval_at, timeout};

use crate::problem::is_lost;
use crate::protocol::Protocol;
use crate::read::Shared;

/// How often the counts are sent to Redis.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// How often Redis is asked while it is left alone, and how long such a question may take.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After how many probes without any answer the connection is replaced.
const PROBES_OF_ONE_CONNECTION: u32 = 3;

/// Runs until the cache is dropped.
pub(crate) async fn run(cache: Weak<Shared>, mut gone: oneshot::Receiver<()>) {
    let Some(protocol) = cache.upgrade().map(|cache| cache.protocol.clone()) else { return };
    let mut flush = interval_at(tokio::time::Instant::now() + FLUSH_EVERY, FLUSH_EVERY);
    let mut probe = interval(PROBE_EVERY);
    flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A connection that is made when it is first needed is made here, and by no caller within its deadline.
    let mut unanswered = u32::from(!probed(&protocol).await);
    loop {
        tokio::select! {
            _ = &mut gone => return,
            _ = flush.tick() => {
                if let Some(cache) = cache.upgrade() {
                    cache.flush().await;
                }
            }
            () = protocol.breaker.opened() => probe.reset(),
            _ = probe.tick(), if protocol.breaker.is_open() => {
                unanswered = if probed(&protocol).await { 0 } else { unanswered + 1 };
                if unanswered >= PROBES_OF_ONE_CONNECTION {
                    protocol.connection.renew();
                    unanswered = 0;
                }
            }
        }
    }
}

/// Asks Redis. An answer within the deadline closes the breaker, and also an error will do that is the
/// server's own: a client without the right to `PING` can read. False if there was no answer at all.
async fn probed(protocol: &Protocol) -> bool {
    let asked_at = Instant::now();
    let Ok(answer) = timeout(PROBE_EVERY, protocol.connection.send(cmd("PING"))).await else {
        return false;
    };
    let is_answered = answer.as_ref().err().is_none_or(|error| !is_lost(error));
    let is_serving = answer.err().is_none_or(|error| !Protocol::is_not_serving(&error));
    if is_answered && is_serving && asked_at.elapsed() <= protocol.deadline {
        protocol.close_breaker();
    }
    is_answered
}

impl Shared {
    /// Adds the growth of the counts to the counts in Redis. If that fails, the next flush sends the same growth again.
    pub(crate) async fn flush(&self) {
        if !self.is_enabled || self.protocol.breaker.is_open() {
            return;
        }
        if let Some(growth) = self.counts.growth()
            && self.protocol.add_reads(&growth).await.is_ok()
        {
            self.counts.sent(growth);
        }
    }
}
