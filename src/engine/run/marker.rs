//! Marker keys show whether the cache was emptied (`FLUSHALL`, `FLUSHDB`, `SWAPDB`, a script) or evicts keys.
//!
//! preheat keeps [`MARKERS`] keys in the cache that serve only this purpose. It reads them every two seconds,
//! so that an eviction policy which prefers long unused keys takes them last, and creates a missing one again
//! with another number. If none of them is as it was at the last look, the cache was emptied, unless
//! evictions explain it: since then the server has evicted at least as many keys as there were markers, and
//! at least half of all its keys. As the markers are spread like all keys, fewer evictions do not take all of
//! them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::fence::{FENCE_TTL, Fence};
use crate::engine::ports::CacheStats;

/// How many markers there are: if half of all keys were evicted at once, the chance that all markers are
/// among them is one in two hundred and fifty.
pub(crate) const MARKERS: usize = 8;

/// How often their TTL is set to [`FENCE_TTL`] again.
pub(crate) const RENEW_EVERY: Duration = Duration::from_hours(1);
const _: () = assert!(RENEW_EVERY.as_secs() * 24 < FENCE_TTL.as_secs());

/// How the markers stood at the last look.
#[derive(Debug, Default)]
pub(crate) struct Markers(Mutex<Stood>);

#[derive(Debug, Default)]
struct Stood {
    markers: Vec<Fence>,
    evicted: u64,
    keys: Option<u64>,
    renewed_at: Option<Duration>,
}

/// Their keys, in order.
pub(crate) fn marker_keys() -> Vec<String> {
    (0..MARKERS).map(|number| format!("preheat:marker:{number}")).collect()
}

impl Markers {
    /// Whether the cache was emptied since the last look, judged by the present markers.
    pub(crate) fn were_lost(&self, now: &[Fence], stats: CacheStats) -> bool {
        let before = self.lock();
        let stood = before.markers.iter().filter(|marker| **marker != Fence::Missing);
        let stood = stood.count();
        let same = |(then, now): (&Fence, &Fence)| *then != Fence::Missing && then == now;
        // A cache that accepts no markers shows nothing.
        if stood < MARKERS / 2 || before.markers.iter().zip(now).any(same) {
            return false;
        }
        let evicted = stats.evicted.saturating_sub(before.evicted);
        let may_be_evicted =
            evicted >= stood as u64 && before.keys.is_none_or(|keys| evicted >= keys / 2);
        !may_be_evicted
    }

    /// Records how the markers stand now.
    pub(crate) fn note(&self, markers: Vec<Fence>, stats: CacheStats) {
        let mut stood = self.lock();
        let renewed_at = stood.renewed_at;
        *stood = Stood { markers, evicted: stats.evicted, keys: stats.keys, renewed_at };
    }

    /// Forgets the markers.
    pub(crate) fn forget(&self) {
        *self.lock() = Stood::default();
    }

    /// Whether to renew their TTL at this monotonic moment; it then counts as done.
    pub(crate) fn renews(&self, now: Duration) -> bool {
        let mut stood = self.lock();
        let is_due = stood.renewed_at.is_none_or(|at| now.saturating_sub(at) >= RENEW_EVERY);
        if is_due {
            stood.renewed_at = Some(now);
        }
        is_due
    }

    fn lock(&self) -> MutexGuard<'_, Stood> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(evicted: u64, keys: Option<u64>) -> CacheStats {
        CacheStats { evicted, keys, ..CacheStats::default() }
    }

    /// Whether the cache counts as emptied, if it had the markers `before` and this number of `keys` at the
    /// last look, and has evicted `evicted` keys since.
    fn lost(before: &[i64], keys: Option<u64>, evicted: u64, now: &[i64]) -> bool {
        let fences = |numbers: &[i64]| {
            let fence =
                |number: &i64| if *number == 0 { Fence::Missing } else { Fence::At(*number) };
            numbers.iter().map(fence).collect::<Vec<_>>()
        };
        let markers = Markers::default();
        markers.note(fences(before), stats(1_000, keys));
        markers.were_lost(&fences(now), stats(1_000 + evicted, Some(9)))
    }

    #[test]
    fn all_markers_gone_at_once_is_a_cache_that_was_emptied_unless_half_of_it_was_evicted() {
        let all = [7; MARKERS];
        let none = [0; MARKERS];
        assert!(lost(&all, Some(10_000), 0, &none));
        assert!(lost(&all, Some(10_000), 4_999, &none), "others are evicted meanwhile");
        assert!(lost(&all, None, 7, &none), "fewer than there were markers");
        assert!(!lost(&all, Some(10_000), 5_000, &none));
        assert!(!lost(&all, None, 8, &none), "nobody knows of how many");
        assert!(lost(&all, Some(12), 0, &[9; MARKERS]), "another worker has made them again");
    }

    #[test]
    fn markers_that_are_evicted_one_by_one_are_no_cache_that_was_emptied() {
        let mut left = [0; MARKERS];
        left[3] = 7;
        assert!(!lost(&[7; MARKERS], Some(100), 90, &left));
        assert!(!lost(&left, Some(100), 0, &[0; MARKERS]), "too few stood to tell");
        assert!(!lost(&[0; MARKERS], Some(100), 0, &[0; MARKERS]), "a cache that takes none");
        assert!(!lost(&[], Some(100), 0, &[0; MARKERS]), "the first look");
    }

    #[test]
    fn markers_live_on_without_being_renewed_at_every_look() {
        let markers = Markers::default();
        let hours = |hours| Duration::from_hours(hours);
        assert!(markers.renews(hours(0)) && !markers.renews(hours(0)));
        assert!(markers.renews(hours(1)) && !markers.renews(hours(1)));
    }
}
