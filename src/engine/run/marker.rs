//! Marker keys show whether the cache was emptied (`FLUSHALL`, `FLUSHDB`, `SWAPDB`, a script) or evicts keys.
//!
//! preheat keeps [`MARKERS`] keys in the cache that serve only this purpose. It reads them every two seconds,
//! so that an eviction policy which prefers long unused keys takes them last, and creates a missing one again
//! with another number. If none of them is as it was at the last look, the cache was emptied, unless
//! evictions explain it: since then the server has evicted at least as many keys as there were markers, and
//! at least half of all its keys. As the markers are spread like all keys, fewer evictions do not take all of
//! them.
//!
//! On a Redis Cluster each primary has that many markers and is judged by itself, because one of them may be
//! emptied alone. The names are chosen by the slots that they fall into.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::fence::{FENCE_TTL, Fence};
use crate::engine::ports::CacheStats;

/// How many markers a server has: if half of all keys were evicted at once, the chance that all markers are
/// among them is one in two hundred and fifty.
pub(crate) const MARKERS: usize = 8;

/// Among how many names the markers' names are chosen: enough for a hundred servers.
const NAMES: usize = 1_024;

/// How often their TTL is set to [`FENCE_TTL`] again.
pub(crate) const RENEW_EVERY: Duration = Duration::from_hours(1);
const _: () = assert!(RENEW_EVERY.as_secs() * 24 < FENCE_TTL.as_secs());

/// How the markers stood at the last look.
#[derive(Debug, Default)]
pub(crate) struct Markers(Mutex<Stood>);

#[derive(Debug, Default)]
struct Stood {
    markers: HashMap<String, Fence>,
    evicted: u64,
    keys: Option<u64>,
    renewed_at: Option<Duration>,
}

/// The keys of the markers: [`MARKERS`] of each server, if the server has slots for so many of the names.
/// `servers` tells which keys are on the same server.
pub(crate) fn marker_keys(servers: impl FnOnce(&[String]) -> Vec<usize>) -> MarkerKeys {
    // A worker asks every two seconds.
    static ALL: LazyLock<Vec<String>> =
        LazyLock::new(|| (0..NAMES).map(|number| format!("preheat:marker:{number}")).collect());
    let mut counts = BTreeMap::<usize, usize>::new();
    let mut chosen = MarkerKeys::default();
    for (name, server) in ALL.iter().zip(servers(&ALL)) {
        let count = counts.entry(server).or_default();
        if *count < MARKERS {
            *count += 1;
            chosen.keys.push(name.clone());
            chosen.servers.push(server);
        }
    }
    chosen
}

/// The keys of the markers, each with a number for its server.
#[derive(Debug, Default)]
pub(crate) struct MarkerKeys {
    /// The keys, in order.
    pub(crate) keys: Vec<String>,
    servers: Vec<usize>,
}

impl Markers {
    /// Whether the cache was emptied since the last look, or one of its servers, judged by the present markers.
    pub(crate) fn were_lost(&self, keys: &MarkerKeys, now: &[Fence], stats: CacheStats) -> bool {
        let before = self.lock();
        let mut servers = BTreeMap::<usize, Server>::new();
        for ((key, server), now) in keys.keys.iter().zip(&keys.servers).zip(now) {
            let then = before.markers.get(key).copied().unwrap_or(Fence::Missing);
            let server = servers.entry(*server).or_default();
            server.stood += u64::from(then != Fence::Missing);
            server.same += u64::from(then != Fence::Missing && then == *now);
        }
        let evicted = stats.evicted.saturating_sub(before.evicted);
        let keys_a_server = before.keys.map(|keys| keys / servers.len().max(1) as u64);
        let was_emptied = |server: &Server| {
            // A server that accepts no markers shows nothing.
            let is_empty = server.stood >= MARKERS as u64 / 2 && server.same == 0;
            let may_be_evicted =
                evicted >= server.stood && keys_a_server.is_none_or(|keys| evicted >= keys / 2);
            is_empty && !may_be_evicted
        };
        servers.values().any(was_emptied)
    }

    /// Records how the markers stand now.
    pub(crate) fn note(&self, markers: HashMap<String, Fence>, stats: CacheStats) {
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

/// How the markers of one server stand.
#[derive(Default)]
struct Server {
    /// How many there were at the last look.
    stood: u64,
    /// How many of these are as they were.
    same: u64,
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
        let names = marker_keys(|keys| vec![0; keys.len()]);
        let stood = names.keys.iter().cloned().zip(fences(before)).collect();
        markers.note(stood, stats(1_000, keys));
        markers.were_lost(&names, &fences(now), stats(1_000 + evicted, Some(9)))
    }

    #[test]
    fn each_server_of_a_cluster_has_its_markers_and_is_judged_by_them() {
        let by_last_digit = |keys: &[String]| {
            let last = |key: &String| usize::from(*key.as_bytes().last().unwrap() % 3);
            keys.iter().map(last).collect()
        };
        let names = marker_keys(by_last_digit);
        assert_eq!(names.keys.len(), 3 * MARKERS);
        let all = vec![Fence::At(7); names.keys.len()];
        let one_gone = names.servers.iter().map(|server| match server {
            1 => Fence::Missing,
            _ => Fence::At(7),
        });
        let one_gone: Vec<Fence> = one_gone.collect();
        for (keys, evicted, expected) in
            [(30_000, 0, true), (30_000, 4_999, true), (30_000, 5_000, false)]
        {
            let markers = Markers::default();
            let stood = names.keys.iter().cloned().zip(all.clone()).collect();
            markers.note(stood, stats(0, Some(keys)));
            assert!(!markers.were_lost(&names, &all, stats(evicted, Some(keys))));
            let lost = markers.were_lost(&names, &one_gone, stats(evicted, Some(keys)));
            assert_eq!(lost, expected, "{evicted} of {keys}");
        }
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
