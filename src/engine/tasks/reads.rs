//! The applications' reads through the clients. The clients add what they counted to a hash every ten seconds; this task
//! reads the hash as often, and tells by how much each count has grown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::reads::{OTHER_FAMILY, ReadCounts, ReadResult, fields};
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
            let mut last = None;
            loop {
                // While the cache does not answer, the counts grow there, and the next answer has them.
                if let Ok(now) = self.counted_reads().await {
                    self.tell_reads(last.as_ref(), &now);
                    last = Some(now);
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
        let mut families: Vec<String> = jobs.keys().map(ToString::to_string).collect();
        families.push(OTHER_FAMILY.to_owned());
        families.dedup();
        let fields: Vec<String> = families.iter().flat_map(|family| fields(family)).collect();
        let mut counts = self.ledger.reads(&fields).await?.into_iter();
        let mut next = |_result: ReadResult| counts.next().unwrap_or_default();
        Ok(families
            .into_iter()
            .map(|family| (family, ReadCounts(ReadResult::ALL.map(&mut next))))
            .collect())
    }

    /// The first look says nothing: it has the counts of hours before.
    fn tell_reads(&self, last: Option<&Counted>, now: &Counted) {
        if now.values().all(|counts| counts.is_zero()) {
            return;
        }
        let grown = |(family, counts): (&String, &ReadCounts)| {
            let before = last.map(|last| last.get(family).copied().unwrap_or_default());
            (family.clone(), before.map_or_else(ReadCounts::default, |it| counts.grown_since(it)))
        };
        let grown = now.iter().map(grown).collect();
        event::ReadsCounted { grown: &grown, now: self.clock.now() }.emit(&self.metrics);
    }
}
