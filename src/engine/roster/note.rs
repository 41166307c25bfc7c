//! The notes in the book of tenants, and what a tenant list changes in them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::serde::ts_milliseconds_option;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::tenant::{Tenant, Tenants};

/// What the book of tenants says of one. A text that cannot be read says nothing of it, and it
/// counts as active.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TenantNote {
    /// Its columns but those that are NULL, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, String>,
    /// Since when it is not in the tenant list any more.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "ts_milliseconds_option")]
    gone_at: Option<DateTime<Utc>>,
}

impl TenantNote {
    fn of(tenant: Tenant<'_>, columns: &[&str]) -> Self {
        let column = |name: &&str| Some(((*name).to_owned(), tenant.column(name)?.to_owned()));
        Self { columns: columns.iter().filter_map(column).collect(), gone_at: None }
    }

    fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    fn text(&self) -> String {
        // Text by text cannot fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A tenant that is not in the tenant list any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    pub(super) id: String,
    /// Since when, where that was noted before.
    pub(super) gone_at: Option<DateTime<Utc>>,
    columns: BTreeMap<String, String>,
}

impl Leaving {
    /// The note that it is gone.
    pub(super) fn mark(&self, now: DateTime<Utc>) -> (String, String) {
        let note = TenantNote { columns: self.columns.clone(), gone_at: Some(now) };
        (self.id.clone(), note.text())
    }

    /// The same, gone since a moment.
    pub(super) fn since(&self, now: DateTime<Utc>) -> Self {
        Self { gone_at: Some(now), ..self.clone() }
    }

    /// Some of them as a list with their columns.
    pub(super) fn list(some: &[Self]) -> Tenants {
        list(some.iter().map(|tenant| (tenant.id.as_str(), &tenant.columns)))
    }
}

/// What the book said after the last look. The cache may lose it, and whoever stood in it may have
/// keys all the same: a run with an older list may write them after that.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub(super) active: Arc<Tenants>,
    pub(super) leaving: Vec<Leaving>,
}

impl Remembered {
    /// The notes that a book lacks. Who was gone by `outdated` already may have been struck out of it.
    pub(super) fn lacking(
        &self,
        book: &HashMap<String, String>,
        outdated: DateTime<Utc>,
    ) -> Vec<(String, String)> {
        let columns: Vec<&str> = self.active.column_names().collect();
        let active = self.active.iter().filter(|tenant| !book.contains_key(tenant.id()));
        let active =
            active.map(|tenant| (tenant.id().to_owned(), TenantNote::of(tenant, &columns).text()));
        let leaving = self.leaving.iter().filter(|tenant| !book.contains_key(&tenant.id));
        let leaving = leaving.filter_map(|tenant| {
            let gone_at = tenant.gone_at.filter(|at| *at > outdated)?;
            Some(tenant.mark(gone_at))
        });
        active.chain(leaving).collect()
    }
}

/// What a tenant list changes in the book.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// How many tenants the book had that were not gone.
    pub(super) known: usize,
    /// Notes to write: of tenants that are new, came back, or have other columns.
    pub(super) notes: Vec<(String, String)>,
    /// Those that came back.
    pub(super) back: Vec<String>,
    /// Those that are gone since the last list.
    pub(super) gone: Vec<Leaving>,
    /// Those that were gone before.
    pub(super) leaving: Vec<Leaving>,
}

impl Changes {
    /// Between a book and the tenants that are active now.
    pub(super) fn between(mut book: HashMap<String, String>, list: &Tenants) -> Self {
        let columns: Vec<&str> = list.column_names().collect();
        let mut changes = Self::default();
        // A tenant query with a join may name a tenant twice.
        let mut seen = HashSet::with_capacity(list.len());
        for tenant in list.iter().filter(|tenant| seen.insert(tenant.id())) {
            let before = book.remove(tenant.id());
            let text = TenantNote::of(tenant, &columns).text();
            let same = before.as_ref() == Some(&text);
            let was_gone = !same
                && before.as_ref().is_some_and(|text| TenantNote::read(text).gone_at.is_some());
            changes.known += usize::from(before.is_some() && !was_gone);
            if was_gone {
                changes.back.push(tenant.id().to_owned());
            }
            if !same {
                changes.notes.push((tenant.id().to_owned(), text));
            }
        }
        for (id, text) in book {
            let TenantNote { columns, gone_at } = TenantNote::read(&text);
            let tenant = Leaving { id, gone_at, columns };
            if gone_at.is_some() {
                changes.leaving.push(tenant);
            } else {
                changes.known += 1;
                changes.gone.push(tenant);
            }
        }
        changes
    }
}

/// The tenants of the book, as lists with the columns that they had.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Those that were in the last tenant list.
    pub active: Tenants,
    /// Those that are gone, and may still have keys until they were swept.
    pub gone: Tenants,
}

impl Noted {
    pub(super) fn read(notes: Vec<(String, String)>) -> Self {
        // The same note may come twice from a book that changes while it is read.
        let notes: BTreeMap<String, TenantNote> =
            notes.into_iter().map(|(id, text)| (id, TenantNote::read(&text))).collect();
        let those = |gone: bool| {
            let some = notes.iter().filter(move |(_, note)| note.gone_at.is_some() == gone);
            list(some.map(|(id, note)| (id.as_str(), &note.columns)))
        };
        Self { active: those(false), gone: those(true) }
    }
}

/// A list of tenants from their columns by name.
fn list<'a>(
    tenants: impl Iterator<Item = (&'a str, &'a BTreeMap<String, String>)> + Clone,
) -> Tenants {
    let names: BTreeSet<&str> =
        tenants.clone().flat_map(|(_, columns)| columns.keys().map(String::as_str)).collect();
    let mut list = Tenants::with_columns(names.iter().copied());
    for (id, columns) in tenants {
        list.push(id, names.iter().map(|name| columns.get(*name).map(String::as_str)));
    }
    list.shrink();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(ids: &[(&str, Option<&str>)]) -> Tenants {
        let mut list = Tenants::with_columns(["plan"]);
        for (id, plan) in ids {
            list.push(id, [*plan]);
        }
        list
    }

    fn book(list: &Tenants) -> HashMap<String, String> {
        Changes::between(HashMap::new(), list).notes.into_iter().collect()
    }

    fn at() -> DateTime<Utc> {
        "2026-03-01T00:00:00.250Z".parse().unwrap()
    }

    #[test]
    fn a_note_is_short_and_read_again_as_it_was_written() {
        let list = tenants(&[("a", Some("free")), ("b", None)]);
        let notes = book(&list);
        assert_eq!(notes["a"], r#"{"columns":{"plan":"free"}}"#);
        assert_eq!(notes["b"], "{}");
        let gone = Changes::between(notes, &tenants(&[("b", None)])).gone;
        let (id, text) = gone[0].mark(at());
        assert_eq!(
            (id.as_str(), text.as_str()),
            ("a", r#"{"columns":{"plan":"free"},"gone_at":1772323200250}"#)
        );
        assert_eq!(TenantNote::read(&text).gone_at, Some(at()));
        let list = Leaving::list(&gone);
        assert_eq!(list.get(0).unwrap().column("plan"), Some("free"));
    }

    #[test]
    fn what_a_book_lost_is_remembered_but_who_may_have_been_struck_out_is_not() {
        let active = Arc::new(tenants(&[("a", Some("free")), ("b", None)]));
        let mut notes = book(&active);
        let all = notes.clone();
        let left =
            Changes::between(book(&tenants(&[("c", None), ("d", None)])), &Tenants::default());
        let (early, late) = (at(), at() + chrono::TimeDelta::seconds(1));
        let leaving = left.gone.iter().map(|tenant| match tenant.id.as_str() {
            "c" => tenant.since(early),
            _ => tenant.since(late),
        });
        let remembered = Remembered { active, leaving: leaving.collect() };
        let notes_again: HashMap<_, _> =
            remembered.lacking(&HashMap::new(), early).into_iter().collect();
        let marked = left.gone.iter().filter(|tenant| tenant.id == "d");
        let expected = all.into_iter().chain(marked.map(|tenant| tenant.mark(late)));
        assert_eq!(notes_again, expected.collect());
        notes.remove("b");
        notes.extend(left.gone.iter().map(|tenant| tenant.mark(late)));
        assert_eq!(remembered.lacking(&notes, early), [("b".to_owned(), "{}".to_owned())]);
    }

    #[test]
    fn a_list_changes_what_is_new_other_back_or_gone() {
        let before = tenants(&[("a", None), ("b", Some("free")), ("c", None), ("d", None)]);
        let mut book = book(&before);
        let kept = tenants(&[("a", None), ("b", Some("free"))]);
        let marks = Changes::between(book.clone(), &kept).gone;
        book.extend(marks.iter().map(|tenant| tenant.mark(at())));
        let now = tenants(&[("b", Some("paid")), ("c", None), ("e", None), ("e", None)]);
        let changes = Changes::between(book, &now);
        let ids = |some: &[Leaving]| some.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
        assert_eq!(changes.known, 2, "`a` and `b`");
        assert_eq!(changes.back, ["c"]);
        assert_eq!(
            (ids(&changes.gone), ids(&changes.leaving)),
            (vec!["a".into()], vec!["d".into()])
        );
        let names: Vec<_> = changes.notes.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(names, ["b", "c", "e"]);
        assert_eq!(changes.notes[0].1, r#"{"columns":{"plan":"paid"}}"#);
    }

    #[test]
    fn a_list_that_says_nothing_new_writes_nothing() {
        let list = tenants(&[("a", Some("free")), ("b", None)]);
        let changes = Changes::between(book(&list), &list);
        assert_eq!(changes, Changes { known: 2, ..Changes::default() });
    }

    #[test]
    fn a_note_that_cannot_be_read_is_a_tenant_all_the_same() {
        let book = HashMap::from([("a".to_owned(), "?".to_owned())]);
        let changes = Changes::between(book, &tenants(&[]));
        assert_eq!((changes.known, changes.gone.len()), (1, 1));
    }
}
