//! The regular look at the triggers. It locks no table, and finds out which changes the feed may
//! have missed.

use std::collections::BTreeMap;

use crate::domain::change::{ChangeSource, ChangeSourceId, Via};

use super::super::Database;
use super::survey::{self, Relation, TriggerVersion, Triggers};
use super::{ChangesError, TableProblem, begin_look, in_time};

/// The result of a look.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// How complete the triggers are.
    pub standing: Standing,
    /// The versions of the triggers.
    pub versions: Versions,
    /// How the triggers speak.
    pub ways: Ways,
}

/// The ways on which triggers speak, and on which a feed listens: both if some triggers were switched and
/// others were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Some notify.
    pub notify: bool,
    /// Some write messages to the write-ahead log.
    pub wal: bool,
}

impl Ways {
    /// By `NOTIFY` only.
    pub const NOTIFY: Self = Self { notify: true, wal: false };

    fn of(triggers: &[Triggers<'_>]) -> Self {
        let speaks = |via| triggers.iter().any(|triggers| triggers.via == Some(via));
        Self { notify: speaks(Via::Notify), wal: speaks(Via::Wal) }
    }

    /// How many connections listening takes.
    pub(super) fn connections(self) -> u32 {
        u32::from(self.notify) + u32::from(self.wal)
    }
}

/// How complete the triggers are; each table is in one of the first three lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The feed receives every change.
    pub whole: Vec<String>,
    /// The feed receives the changes, except those written directly to some partitions or children.
    pub partly: Vec<String>,
    /// The feed receives no change, or not in every way that jobs need.
    pub lacking: Vec<String>,
    /// Tables of the first two lists whose triggers do not name the shared keys that are gone.
    pub without_keys: Vec<String>,
    /// Tables of the first two lists whose triggers notify, if those of others write to the log.
    pub not_switched: Vec<String>,
}

/// The relations and triggers of each source, for a comparison of two looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions(BTreeMap<ChangeSourceId, Version>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// The table and all its partitions or children, by `oid`.
    relations: Vec<u32>,
    /// `None` while the table itself lacks some.
    triggers: Option<Vec<TriggerVersion>>,
}

impl Versions {
    /// The sources whose changes the feed may have missed between an earlier look and this one: in
    /// between their triggers were missing or switched off, or another table has taken the name.
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

/// Looks whether these sources have their triggers; it changes nothing.
pub async fn look(database: &Database, sources: &[ChangeSource]) -> Result<Looked, ChangesError> {
    let looking = async {
        let mut transaction = begin_look(database).await?;
        let found = survey::look(&mut transaction, sources).await?;
        transaction.end().await?;
        Ok(found)
    };
    let found = in_time(database, looking).await?;
    Ok(Looked { standing: standing(&found), versions: versions(&found), ways: Ways::of(&found) })
}

/// Why the notifications of these sources are, or would be, useless. It waits a moment for locked
/// tables, and then fails.
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

fn standing(found: &[Triggers<'_>]) -> Standing {
    let mut standing = Standing::default();
    let is_mixed = Ways::of(found).connections() > 1;
    // A table that is watched in several ways is there several times, one after another.
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
        if is_mixed && ways.iter().any(|triggers| triggers.via == Some(Via::Notify)) {
            standing.not_switched.push(table.clone());
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
