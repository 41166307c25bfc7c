//! Counts of reads by family. They are kept in memory, and their growth goes to Redis now and then, where the
//! worker reads it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::problem::Problem;

/// How a read was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The value came from Redis.
    Hit,
    /// This caller loaded it.
    Miss,
    /// It waited for a load that another caller of this process had begun.
    Joined,
    /// Redis was not asked or did not answer in time, and this caller loaded it.
    Bypass,
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Bypass => "bypass",
        }
    }
}

/// The reads of one family. Each read is in one of the first four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Values that came from Redis.
    pub hit: u64,
    /// Values that a caller loaded.
    pub miss: u64,
    /// Callers that waited for another caller's load.
    pub joined: u64,
    /// Values that a caller loaded because Redis did not answer.
    pub bypass: u64,
    /// Misses whose value was not written, because its tenant's data changed meanwhile.
    pub refused: u64,
}

impl Reads {
    fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Hit => &mut self.hit,
            Outcome::Miss => &mut self.miss,
            Outcome::Joined => &mut self.joined,
            Outcome::Bypass => &mut self.bypass,
        }
    }

    /// The counts with the names that they have in Redis.
    fn named(self) -> [(&'static str, u64); 5] {
        let Self { hit, miss, joined, bypass, refused } = self;
        [("hit", hit), ("miss", miss), ("joined", joined), ("bypass", bypass), ("refused", refused)]
    }
}

/// What a cache did since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads by family: the job's name, `other` for plain keys.
    pub reads: BTreeMap<&'static str, Reads>,
    /// Loads that ended with a value.
    pub loads: u64,
    /// Loads that failed or panicked.
    pub failed_loads: u64,
    /// Values that were written to Redis.
    pub fills: u64,
    /// Waits for another process' load that were given up.
    pub lease_timeouts: u64,
    /// Reads that were refused because too many waited to load.
    pub exhausted: u64,
    /// Problems with the cache.
    pub problems: BTreeMap<Problem, u64>,
    /// Whether Redis is left alone at present.
    pub breaker_open: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stats: Stats,
    /// The counts of `stats.reads` that Redis has already.
    sent: BTreeMap<&'static str, Reads>,
}

/// Growth of the counts: the hash's fields with what to add.
pub(crate) struct Growth {
    pub(crate) fields: Vec<(String, u64)>,
    totals: BTreeMap<&'static str, Reads>,
}

impl Counts {
    pub(crate) fn read(&self, family: &'static str, outcome: Outcome) {
        *self.state().stats.reads.entry(family).or_default().of_mut(outcome) += 1;
        metric_read(family, outcome.name());
    }

    pub(crate) fn refused(&self, family: &'static str) {
        self.state().stats.reads.entry(family).or_default().refused += 1;
        metric_read(family, "refused");
        metric_fill(family, "refused");
    }

    pub(crate) fn filled(&self, family: &'static str) {
        self.state().stats.fills += 1;
        metric_fill(family, "written");
    }

    /// `outcome` says why a value was not written: `failed` or `skipped`.
    pub(crate) fn not_filled(family: &'static str, outcome: &'static str) {
        metric_fill(family, outcome);
    }

    pub(crate) fn loaded(&self, family: &'static str, is_ok: bool, time: Duration) {
        let mut state = self.state();
        if is_ok {
            state.stats.loads += 1;
        } else {
            state.stats.failed_loads += 1;
        }
        drop(state);
        metric_load(family, if is_ok { "ok" } else { "failed" }, time);
    }

    /// `outcome` says how a wait for another process' load ended.
    pub(crate) fn lease_wait(&self, outcome: &'static str) {
        if outcome == "timeout" {
            self.state().stats.lease_timeouts += 1;
        }
        metric_lease_wait(outcome);
    }

    pub(crate) fn exhausted(&self) {
        self.state().stats.exhausted += 1;
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state().stats.clone()
    }

    /// The growth since the last counts that Redis has; none if nothing grew.
    pub(crate) fn growth(&self) -> Option<Growth> {
        let state = self.state();
        let mut fields = Vec::new();
        for (family, reads) in &state.stats.reads {
            let sent = state.sent.get(family).copied().unwrap_or_default();
            let both = reads.named().into_iter().zip(sent.named());
            let grown = both.map(|((name, now), (_, then))| (field(family, name), now - then));
            fields.extend(grown.filter(|(_, growth)| *growth > 0));
        }
        let totals = state.stats.reads.clone();
        (!fields.is_empty()).then_some(Growth { fields, totals })
    }

    /// Notes that Redis has added this growth.
    pub(crate) fn sent(&self, growth: Growth) {
        self.state().sent = growth.totals;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A field of the hash of counts.
pub(crate) fn field(family: &str, result: &str) -> String {
    format!("{family}:{result}")
}

#[cfg(feature = "metrics")]
mod facade {
    use std::time::Duration;

    pub(super) fn metric_read(family: &'static str, result: &'static str) {
        metrics::counter!("preheat_client_reads_total", "family" => family, "result" => result)
            .increment(1);
    }

    pub(super) fn metric_fill(family: &'static str, outcome: &'static str) {
        metrics::counter!("preheat_client_fills_total", "family" => family, "outcome" => outcome)
            .increment(1);
    }

    pub(super) fn metric_load(family: &'static str, outcome: &'static str, time: Duration) {
        metrics::counter!("preheat_client_loads_total", "family" => family, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("preheat_client_load_seconds", "family" => family).record(time);
    }

    pub(super) fn metric_lease_wait(outcome: &'static str) {
        metrics::counter!("preheat_client_lease_waits_total", "outcome" => outcome).increment(1);
    }
}

#[cfg(not(feature = "metrics"))]
mod facade {
    use std::time::Duration;

    pub(super) fn metric_read(_family: &'static str, _result: &'static str) {}
    pub(super) fn metric_fill(_family: &'static str, _outcome: &'static str) {}
    pub(super) fn metric_load(_family: &'static str, _outcome: &'static str, _time: Duration) {}
    pub(super) fn metric_lease_wait(_outcome: &'static str) {}
}

use facade::{metric_fill, metric_lease_wait, metric_load, metric_read};

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(counts: &Counts) -> Vec<(String, u64)> {
        counts.growth().map(|growth| growth.fields).unwrap_or_default()
    }

    #[test]
    fn only_growth_is_sent_and_growth_that_did_not_arrive_is_sent_again() {
        let counts = Counts::default();
        assert!(counts.growth().is_none());
        counts.read("services", Outcome::Hit);
        counts.read("services", Outcome::Hit);
        counts.read("pets", Outcome::Miss);
        counts.refused("pets");
        let expected = [("pets:miss", 1), ("pets:refused", 1), ("services:hit", 2)]
            .map(|(f, n)| (f.into(), n));
        assert_eq!(fields(&counts), expected);
        assert_eq!(fields(&counts), expected, "the growth was not sent yet");

        let growth = counts.growth().unwrap();
        counts.read("services", Outcome::Hit);
        counts.sent(growth);
        assert_eq!(fields(&counts), [("services:hit".to_owned(), 1)]);
    }
}
