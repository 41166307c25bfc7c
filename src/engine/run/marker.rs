//! Keys that tell a cache that was emptied (`FLUSHALL`, `FLUSHDB`, `SWAPDB`, a script) from one that evicts.
//!
//! [`MARKERS`] keys of preheat's own stand in the cache for nothing else. They are read every two seconds, so
//! that a policy which evicts what was not used lately takes them last, and one that is missing is made
//! again with another number. Where none of them stands as it did at the last look, the cache was emptied,
//! unless evictions explain it: at least as many keys as there were markers, and half of all keys of the
//! server, were evicted since then. As the markers are spread like all keys, less than that does not
//! take all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::fence::{FENCE_TTL, Fence};
use crate::engine::ports::CacheStats;

/// How many there are: were half of all keys evicted at once, by chance, all would be gone one time in
/// two hundred and fifty.
pub(crate) const MARKERS: usize = 8;

/// How often they are given a new life of [`FENCE_TTL`].
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
    /// Whether the cache was emptied since the last look, by how they stand now.
    pub(crate) fn were_lost(&self, now: &[Fence], stats: CacheStats) -> bool {
        let before = self.lock();
        let stood = before.markers.iter().filter(|marker| **marker != Fence::Missing);
        let stood = stood.count();
        let same = |(then, now): (&Fence, &Fence)| *then != Fence::Missing && then == now;
        // Of a cache that takes no markers nothing can be told.
        if stood < MARKERS / 2 || before.markers.iter().zip(now).any(same) {
            return false;
        }
        let evicted = stats.evicted.saturating_sub(before.evicted);
        let may_be_evicted =
            evicted >= stood as u64 && before.keys.is_none_or(|keys| evicted >= keys / 2);
        !may_be_evicted
    }

    /// They stand like this from now on.
    pub(crate) fn note(&self, markers: Vec<Fence>, stats: CacheStats) {
        let mut stood = self.lock();
        let renewed_at = stood.renewed_at;
        *stood = Stood { markers, evicted: stats.evicted, keys: stats.keys, renewed_at };
    }

    /// Nothing is known of them any more.
    pub(crate) fn forget(&self) {
        *self.lock() = Stood::default();
    }

    /// Whether it is time to give them a new life, at this monotonic moment; then it is taken for done.
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

    /// Whether it counts as emptied where these stood before 100 keys of so many were evicted.
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
