//! The applications' reads through the clients. The clients add what they counted to a hash every ten seconds; this task
//! reads the hash as often, and emits by how much each count has grown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::reads::{OTHER_FAMILY, ReadCounts, ReadResult, fields};
use crate::domain::share::Share;
use crate::engine::ports::CacheError;
use crate::engine::run::{Runner, Stops};
use crate::observe::event;

/// How often it looks: as often as the clients write.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The counts of each family at the last look.
type Counted = BTreeMap<String, ReadCounts>;

impl Runner {
    /// Reads the clients' counts until the worker stops.
    pub async fn watch_reads(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            let mut last = Counted::new();
            loop {
                // While the cache does not answer, the counts grow there, and the next answer has them.
                if let Ok(now) = self.counted_reads().await {
                    self.emit_growth(&last, &now);
                    last = now;
                }
                self.clock.sleep(LOOK_EVERY).await;
            }
        };
        stops.until(for_ever).await;
    }

    /// The counts of the jobs that there are, and of all other keys. The families are those that preheat knows, so
    /// that the answer is bounded, whatever the clients write.
    async fn counted_reads(&self) -> Result<Counted, CacheError> {
        let jobs = self.jobs.get();
        let mut families: BTreeSet<String> = jobs.keys().map(ToString::to_string).collect();
        families.insert(OTHER_FAMILY.to_owned());
        let fields: Vec<String> = families.iter().flat_map(|family| fields(family)).collect();
        let mut counts = self.ledger.reads(&fields).await?.into_iter();
        let mut next = |_result: ReadResult| counts.next().unwrap_or_default();
        Ok(families
            .into_iter()
            .map(|family| (family, ReadCounts(ReadResult::ALL.map(&mut next))))
            .collect())
    }

    /// A family that was not in the last look has not grown: its counts may be of hours before.
    fn emit_growth(&self, last: &Counted, now: &Counted) {
        if now.values().all(|counts| counts.is_zero()) {
            return;
        }
        let grown = |(family, counts): (&String, &ReadCounts)| {
            let before = last.get(family).copied().unwrap_or(*counts);
            (family.clone(), counts.grown_since(before))
        };
        let grown = now.iter().map(grown).collect();
        // All members of a fleet see the same growth, and their metrics add up.
        let is_counted = self.ownership.held().has(Share::FIRST);
        event::ReadsCounted { grown: &grown, is_counted, now: self.clock.now() }
            .emit(&self.metrics);
    }
}
