//! The regular look at the triggers, which locks no table and finds out what the feed cannot have
//! heard of.

use std::collections::BTreeMap;

use tokio::time::timeout;

use crate::domain::change::{ChangeSource, ChangeSourceId};

use super::super::{ANSWER_GRACE, Database, error};
use super::survey::{self, Relation, TriggerVersion, Triggers};
use super::{ChangesError, Refused, TableProblem, begin_look};

const LOOKING: &str = "could not look for the triggers of the change feed";

/// What a look shows.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// What of the triggers is there.
    pub standing: Standing,
    /// Which triggers these are.
    pub versions: Versions,
}

/// What of the triggers is there, each table in one of the first three lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Every change is told.
    pub whole: Vec<String>,
    /// Changes are told, but for what is written to some partitions or children directly.
    pub partly: Vec<String>,
    /// No change is told, or not in every way that jobs need.
    pub lacking: Vec<String>,
    /// Of the first two lists, those whose triggers do not name the shared keys that are gone.
    pub without_keys: Vec<String>,
}

/// Which relations and triggers each source has, so that two looks can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions(BTreeMap<ChangeSourceId, Version>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// The table and all below it, by `oid`.
    relations: Vec<u32>,
    /// None while the table itself lacks some.
    triggers: Option<Vec<TriggerVersion>>,
}

impl Versions {
    /// The sources of which the feed may have missed changes between an earlier look and this one:
    /// their triggers were missing or switched off in between, or another table has the name now.
    pub fn missed_since(&self, earlier: &Self) -> Vec<ChangeSourceId> {
        let may_have_missed = |(id, now): &(&ChangeSourceId, &Version)| {
            let before = earlier.0.get(*id);
            let is_heard_anew = now.triggers.is_some()
                && before.is_none_or(|before| before.triggers != now.triggers);
            let is_another = !now.relations.is_empty()
                && before.is_some_and(|before| before.relations != now.relations);
            is_heard_anew || is_another
        };
        self.0.iter().filter(may_have_missed).map(|(id, _)| id.clone()).collect()
    }
}

/// Looks whether these sources have their triggers; changes nothing.
pub async fn look(database: &Database, sources: &[ChangeSource]) -> Result<Looked, ChangesError> {
    let looking = async {
        let mut transaction = begin_look(database).await?;
        let found = survey::look(&mut transaction, sources).await?;
        transaction.end().await?;
        Ok(found)
    };
    let found = in_time(database, looking).await?;
    Ok(Looked { standing: standing(&found), versions: versions(&found) })
}

/// Why what these sources tell, or would tell, is of no use. Asking waits a moment for tables that
/// somebody has locked, and then fails.
pub async fn table_problems(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
) -> Result<Vec<TableProblem>, ChangesError> {
    let looking = async {
        let mut transaction = begin_look(database).await?;
        let found = survey::look(&mut transaction, sources).await?;
        let problems = survey::problems(&mut transaction, &found, tenants).await?;
        transaction.end().await?;
        Ok(problems)
    };
    in_time(database, looking).await
}

/// Waits a little longer than the server does.
async fn in_time<T>(
    database: &Database,
    looking: impl Future<Output = Result<T, Refused>>,
) -> Result<T, ChangesError> {
    let longest = database.settings.statement_timeout;
    match timeout(longest + ANSWER_GRACE, looking).await {
        Ok(found) => found.map_err(|refused| refused.into_error(LOOKING)),
        Err(_elapsed) => {
            Err(error::unavailable(format!("{LOOKING}: no answer within {longest:?}")).into())
        }
    }
}

fn standing(found: &[Triggers<'_>]) -> Standing {
    let mut standing = Standing::default();
    // A table that is watched in several ways stands there several times, one after another.
    for ways in found.chunk_by(|one, other| one.source.table == other.source.table) {
        let list = if !ways.iter().all(Triggers::is_installed) {
            &mut standing.lacking
        } else if !ways.iter().all(Triggers::has_all_triggers) {
            &mut standing.partly
        } else {
            &mut standing.whole
        };
        let Some(table) = ways.first().map(|triggers| &triggers.source.table) else { continue };
        list.push(table.clone());
        let is_heard = ways.iter().all(Triggers::is_installed);
        if is_heard && !ways.iter().all(|triggers| triggers.names_keys) {
            standing.without_keys.push(table.clone());
        }
    }
    standing
}

fn versions(found: &[Triggers<'_>]) -> Versions {
    let version = |triggers: &Triggers<'_>| {
        let mut relations: Vec<_> =
            triggers.relations.iter().map(|relation| relation.oid.0).collect();
        relations.sort_unstable();
        let of = |relation: &Relation| relation.versions.clone();
        let mut all: Vec<_> = triggers.relations.iter().flat_map(of).collect();
        all.sort();
        Version { relations, triggers: triggers.is_installed().then_some(all) }
    };
    let version = |triggers: &Triggers<'_>| (triggers.source.id.clone(), version(triggers));
    Versions(found.iter().map(version).collect())
}
