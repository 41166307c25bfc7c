//! What the cache server's counters say about the last minutes: differences between its answers, never the counts
//! since its start.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::engine::ports::CacheStats;

/// How long one bucket is.
const BUCKET: Duration = Duration::from_secs(10);
/// How far back the hit rate looks.
pub const WINDOW: Duration = Duration::from_mins(5);
/// How far back evictions are counted.
const HOUR: Duration = Duration::from_hours(1);
const MOST_BUCKETS: usize = 360;

/// The counters' differences, and the last answer.
#[derive(Debug, Default)]
pub struct CacheUsage(Mutex<Usage>);

#[derive(Debug, Default)]
struct Usage {
    last: Option<(Duration, CacheStats)>,
    first_at: Option<Duration>,
    buckets: VecDeque<Bucket>,
    total: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it began, on the monotonic clock.
    at: Duration,
    counts: Counts,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Keys that the server evicted for lack of memory.
    pub evicted: u64,
}

/// The cache's use at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageNow {
    /// The last answer, and how old it is.
    pub last: Option<(Duration, CacheStats)>,
    /// The counts of the window.
    pub window: Counts,
    /// How long the window is: [`WINDOW`] at most, and less soon after the first answer.
    pub window_length: Duration,
    /// Keys evicted within the last hour.
    pub evicted_last_hour: u64,
    /// The counts since the worker's start.
    pub total: Counts,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.evicted += other.evicted;
    }

    /// How much the counters grew from one answer to the next. Another process, or a counter that was reset, began
    /// at zero again: what it counts now came since.
    fn between(before: &CacheStats, after: &CacheStats) -> Self {
        let is_same = before.process == after.process;
        let grown = |before: u64, after: u64| {
            if is_same && after >= before { after - before } else { after }
        };
        Self {
            hits: grown(before.hits, after.hits),
            misses: grown(before.misses, after.misses),
            evicted: grown(before.evicted, after.evicted),
        }
    }

    /// The share of reads that found their key; `None` if there were none.
    #[expect(clippy::cast_precision_loss, reason = "reads of some minutes are far below 2^53")]
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 / reads as f64)
    }

    /// The growth since an earlier count.
    #[must_use]
    pub fn since(&self, earlier: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
            evicted: self.evicted.saturating_sub(earlier.evicted),
        }
    }
}

impl CacheUsage {
    /// Records an answer at a monotonic moment. The process of an answer to an older question may be another one; with
    /// several servers behind one address, the counts mean nothing, and `is_one` is false.
    pub(crate) fn note(&self, stats: CacheStats, is_one: bool, now: Duration) {
        let mut usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = match &usage.last {
            Some((_, before)) if is_one => Counts::between(before, &stats),
            Some(_) | None => Counts::default(),
        };
        usage.last = Some((now, stats));
        usage.first_at.get_or_insert(now);
        usage.total.add(grown);
        match usage.buckets.back_mut() {
            Some(bucket) if now.saturating_sub(bucket.at) < BUCKET => bucket.counts.add(grown),
            Some(_) | None => usage.buckets.push_back(Bucket { at: now, counts: grown }),
        }
        if usage.buckets.len() > MOST_BUCKETS {
            usage.buckets.pop_front();
        }
    }

    /// The use at a monotonic moment.
    pub fn at(&self, now: Duration) -> UsageNow {
        let usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |length: Duration| {
            let mut counts = Counts::default();
            let young = usage.buckets.iter().filter(|b| now.saturating_sub(b.at) <= length);
            young.for_each(|bucket| counts.add(bucket.counts));
            counts
        };
        let window_length = usage.first_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        UsageNow {
            last: usage.last.map(|(at, stats)| (now.saturating_sub(at), stats)),
            window: within(WINDOW),
            window_length: window_length.min(WINDOW),
            evicted_last_hour: within(HOUR).evicted,
            total: usage.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(process: u64, hits: u64, misses: u64, evicted: u64) -> CacheStats {
        CacheStats { process: Some(process), hits, misses, evicted, ..CacheStats::default() }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_hit_rate_is_of_the_last_minutes_and_not_since_the_servers_start() {
        let usage = CacheUsage::default();
        usage.note(stats(1, 1_000_000, 0, 9), true, seconds(0));
        assert_eq!(usage.at(seconds(0)).window.hit_rate(), None);
        usage.note(stats(1, 1_000_030, 10, 9), true, seconds(20));
        assert_eq!(usage.at(seconds(20)).window, Counts { hits: 30, misses: 10, evicted: 0 });
        assert_eq!(usage.at(seconds(20)).window.hit_rate(), Some(0.75));
        assert_eq!(usage.at(seconds(20)).window_length, seconds(20));
        usage.note(stats(1, 1_000_030, 20, 12), true, seconds(400));
        let later = usage.at(seconds(400));
        assert_eq!(later.window, Counts { hits: 0, misses: 10, evicted: 3 });
        assert_eq!((later.window_length, later.evicted_last_hour), (WINDOW, 3));
        assert_eq!(later.total, Counts { hits: 30, misses: 20, evicted: 3 });
    }

    #[test]
    fn a_restarted_server_counts_from_zero() {
        let usage = CacheUsage::default();
        usage.note(stats(1, 500, 500, 0), true, seconds(0));
        usage.note(stats(2, 3, 1, 0), true, seconds(2));
        usage.note(stats(2, 5, 1, 0), true, seconds(4));
        // CONFIG RESETSTAT
        usage.note(stats(2, 1, 0, 0), true, seconds(6));
        assert_eq!(usage.at(seconds(6)).window, Counts { hits: 6, misses: 1, evicted: 0 });
        usage.note(stats(7, 9_000, 0, 0), false, seconds(8));
        assert_eq!(usage.at(seconds(8)).window.hits, 6, "another of several servers");
    }

    #[test]
    fn the_buckets_are_bounded() {
        let usage = CacheUsage::default();
        for second in 0..100_000 {
            usage.note(stats(1, second, 0, 0), true, seconds(second));
        }
        assert!(usage.0.lock().unwrap().buckets.len() <= MOST_BUCKETS);
        let hits = usage.at(seconds(99_999)).window.hits;
        assert!((300..=310).contains(&hits), "{hits}");
    }
}
