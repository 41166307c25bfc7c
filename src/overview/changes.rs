//! The change feed: what it heard, and when jobs last had to run for all tenants.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::day::Day;
use super::facts::{Facts, moment};
use super::{Feed, Freshness, Moment};
use crate::domain::change::ResyncCause;
use crate::observe::figures::{Heard, Resync};

/// How the worker hears of changes, and what it heard since it started.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Changes {
    /// When these figures were computed.
    pub as_of: Moment,
    /// Since when the notifications are counted: the worker's start.
    pub started_at: Moment,
    /// The change feed.
    pub feed: Feed,
    /// How fast changes reach the cache.
    pub freshness: Freshness,
    /// The tables that jobs name, in the order of their names.
    pub tables: Vec<WatchedTable>,
    /// The last time that jobs had to run for all tenants, outside of their schedules; null if they never had to
    /// since the worker started.
    pub last_resync: Option<LastResync>,
}

/// A table that jobs name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WatchedTable {
    /// Its name, as the job files have it.
    pub table: String,
    /// The jobs that a change of it concerns.
    pub jobs: Vec<String>,
    /// Notifications since the worker started: one or more for each statement that changed rows.
    pub notifications: u64,
    /// When the last one arrived; null before the first.
    pub last_at: Option<Moment>,
}

/// Jobs had to run for all tenants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LastResync {
    /// When that turned out. The runs follow in their turn.
    pub at: Moment,
    /// Why.
    pub cause: ResyncCause,
    /// Which jobs.
    pub jobs: Vec<String>,
}

impl Changes {
    pub(super) fn of(
        facts: &Facts,
        day: &Day,
        heard: &BTreeMap<String, Heard>,
        last_resync: Option<Resync>,
    ) -> Self {
        Self {
            as_of: Moment(facts.now),
            started_at: Moment(facts.status.started_at),
            feed: Feed::of(facts),
            freshness: Freshness::of(facts, day),
            tables: tables(facts, heard),
            last_resync: last_resync.map(|Resync { at, cause, jobs }| LastResync {
                at: Moment(at),
                cause,
                jobs: jobs.iter().map(ToString::to_string).collect(),
            }),
        }
    }
}

fn tables(facts: &Facts, heard: &BTreeMap<String, Heard>) -> Vec<WatchedTable> {
    let mut jobs_of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for job in facts.jobs().map(|status| &status.job).filter(|job| job.enabled) {
        for table in &job.tables {
            let jobs = jobs_of.entry(&table.name).or_default();
            // A job may name a table twice, with two ways to find the tenant.
            if jobs.last().is_none_or(|last| last != job.name.as_str()) {
                jobs.push(job.name.to_string());
            }
        }
    }
    let table = |(table, jobs): (&str, Vec<String>)| {
        let heard = heard.get(table);
        WatchedTable {
            table: table.to_owned(),
            jobs,
            notifications: heard.map_or(0, |heard| heard.notifications),
            last_at: moment(heard.map(|heard| heard.last_at)),
        }
    };
    jobs_of.into_iter().map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, change, facts};
    use super::*;
    use crate::domain::job::{Job, Table};

    #[test]
    fn each_table_is_listed_once_with_its_jobs_whether_it_was_heard_of_or_not() {
        let mut facts = facts(&["products", "services", "staff"]);
        for (job, tables) in [("products", &["items", "shops"][..]), ("services", &["shops"])] {
            let tables = tables.iter().map(|table| Table::named(*table)).collect();
            change(&mut facts, job, |status| {
                status.job = Job { tables, ..Job::clone(&status.job) }.into();
            });
        }
        let heard = Heard { notifications: 7, last_at: at("11:59") };
        let heard = BTreeMap::from([("shops".to_owned(), heard), ("gone".to_owned(), heard)]);
        let listed = tables(&facts, &heard);
        let listed: Vec<_> = listed
            .iter()
            .map(|one| (one.table.as_str(), one.jobs.join(" "), one.notifications, one.last_at))
            .collect();
        let expected = [
            ("items", "products".to_owned(), 0, None),
            ("shops", "products services".to_owned(), 7, Some(Moment(at("11:59")))),
        ];
        assert_eq!(listed, expected);
    }
}
