//! The registry's entry of a tenant, and what a tenant list changes in the registry. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::serde::ts_milliseconds_option;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::tenant::{Tenant, Tenants};

/// What the registry says of one tenant. If the text of an entry cannot be read, only the tenant's id is
/// known, and the tenant counts as active.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// Its columns by name, without those that are NULL.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, String>,
    /// Since when the tenant list lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "ts_milliseconds_option")]
    gone_at: Option<DateTime<Utc>>,
}

impl Registration {
    fn of(tenant: Tenant<'_>, columns: &[&str]) -> Self {
        let column = |name: &&str| Some(((*name).to_owned(), tenant.column(name)?.to_owned()));
        Self { columns: columns.iter().filter_map(column).collect(), gone_at: None }
    }

    fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    fn text(&self) -> String {
        // A map of texts always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A tenant that the tenant list does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Departed {
    pub(crate) id: String,
    /// Since when it is gone, if the registry has recorded that already.
    pub(crate) gone_at: Option<DateTime<Utc>>,
    columns: BTreeMap<String, String>,
}

impl Departed {
    /// The entry that says that the tenant left at `now`.
    pub(crate) fn mark(&self, now: DateTime<Utc>) -> (String, String) {
        let entry = Registration { columns: self.columns.clone(), gone_at: Some(now) };
        (self.id.clone(), entry.text())
    }

    /// The same tenant, gone since this moment.
    pub(crate) fn since(&self, now: DateTime<Utc>) -> Self {
        Self { gone_at: Some(now), ..self.clone() }
    }

    /// These tenants as a list with their columns.
    pub(crate) fn list(some: &[Self]) -> Tenants {
        list(some.iter().map(|tenant| (tenant.id.as_str(), &tenant.columns)))
    }
}

/// The registry's content after the last list. The cache may lose it while its tenants still have keys,
/// because a run with an older list may write them later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) active: Arc<Tenants>,
    pub(crate) departed: Vec<Departed>,
}

impl Remembered {
    /// The entries that the registry lacks. It may rightly lack a tenant that was gone by `outdated`, as such
    /// a tenant is removed from it.
    pub(crate) fn lacking(
        &self,
        registry: &HashMap<String, String>,
        outdated: DateTime<Utc>,
    ) -> Vec<(String, String)> {
        let columns: Vec<&str> = self.active.column_names().collect();
        let active = self.active.iter().filter(|tenant| !registry.contains_key(tenant.id()));
        let active = active
            .map(|tenant| (tenant.id().to_owned(), Registration::of(tenant, &columns).text()));
        let departed = self.departed.iter().filter(|tenant| !registry.contains_key(&tenant.id));
        let departed = departed.filter_map(|tenant| {
            let gone_at = tenant.gone_at.filter(|at| *at > outdated)?;
            Some(tenant.mark(gone_at))
        });
        active.chain(departed).collect()
    }
}

/// What a tenant list changes in the registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RegistryDiff {
    /// How many active tenants the registry had.
    pub(crate) known: usize,
    /// Entries to add: of tenants that are new, came back, or have other columns.
    pub(crate) added: Vec<(String, String)>,
    /// The tenants that came back.
    pub(crate) back: Vec<String>,
    /// The tenants that left since the last list.
    pub(crate) left: Vec<Departed>,
    /// The tenants that had left before.
    pub(crate) departed: Vec<Departed>,
}

impl RegistryDiff {
    /// Between the registry and the tenants that are active now.
    pub(crate) fn between(mut registry: HashMap<String, String>, list: &Tenants) -> Self {
        let columns: Vec<&str> = list.column_names().collect();
        let mut changes = Self::default();
        // A tenant query with a join may name a tenant twice.
        let mut seen = HashSet::with_capacity(list.len());
        for tenant in list.iter().filter(|tenant| seen.insert(tenant.id())) {
            let before = registry.remove(tenant.id());
            let text = Registration::of(tenant, &columns).text();
            let same = before.as_ref() == Some(&text);
            let was_gone = !same
                && before.as_ref().is_some_and(|text| Registration::read(text).gone_at.is_some());
            changes.known += usize::from(before.is_some() && !was_gone);
            if was_gone {
                changes.back.push(tenant.id().to_owned());
            }
            if !same {
                changes.added.push((tenant.id().to_owned(), text));
            }
        }
        for (id, text) in registry {
            let Registration { columns, gone_at } = Registration::read(&text);
            let tenant = Departed { id, gone_at, columns };
            if gone_at.is_some() {
                changes.departed.push(tenant);
            } else {
                changes.known += 1;
                changes.left.push(tenant);
            }
        }
        changes
    }
}

/// The tenants of the registry, as lists with the columns that they had.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// Those that were in the last tenant list.
    pub active: Tenants,
    /// Those that have left, and may still have keys until they were swept.
    pub gone: Tenants,
}

impl Registered {
    pub(crate) fn read(entries: Vec<(String, String)>) -> Self {
        // The same entry may come twice from a registry that changes while it is read.
        let entries: BTreeMap<String, Registration> =
            entries.into_iter().map(|(id, text)| (id, Registration::read(&text))).collect();
        let those = |gone: bool| {
            let some = entries.iter().filter(move |(_, entry)| entry.gone_at.is_some() == gone);
            list(some.map(|(id, entry)| (id.as_str(), &entry.columns)))
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

    fn registry(list: &Tenants) -> HashMap<String, String> {
        RegistryDiff::between(HashMap::new(), list).added.into_iter().collect()
    }

    fn at() -> DateTime<Utc> {
        "2026-03-01T00:00:00.250Z".parse().unwrap()
    }

    #[test]
    fn an_entry_is_short_and_read_again_as_it_was_written() {
        let list = tenants(&[("a", Some("free")), ("b", None)]);
        let entries = registry(&list);
        assert_eq!(entries["a"], r#"{"columns":{"plan":"free"}}"#);
        assert_eq!(entries["b"], "{}");
        let gone = RegistryDiff::between(entries, &tenants(&[("b", None)])).left;
        let (id, text) = gone[0].mark(at());
        assert_eq!(
            (id.as_str(), text.as_str()),
            ("a", r#"{"columns":{"plan":"free"},"gone_at":1772323200250}"#)
        );
        assert_eq!(Registration::read(&text).gone_at, Some(at()));
        let list = Departed::list(&gone);
        assert_eq!(list.get(0).unwrap().column("plan"), Some("free"));
    }

    #[test]
    fn what_a_registry_lost_is_remembered_but_a_tenant_that_may_have_been_removed_is_not() {
        let active = Arc::new(tenants(&[("a", Some("free")), ("b", None)]));
        let mut entries = registry(&active);
        let all = entries.clone();
        let before = RegistryDiff::between(
            registry(&tenants(&[("c", None), ("d", None)])),
            &Tenants::default(),
        );
        let (early, late) = (at(), at() + chrono::TimeDelta::seconds(1));
        let departed = before.left.iter().map(|tenant| match tenant.id.as_str() {
            "c" => tenant.since(early),
            _ => tenant.since(late),
        });
        let remembered = Remembered { active, departed: departed.collect() };
        let entries_again: HashMap<_, _> =
            remembered.lacking(&HashMap::new(), early).into_iter().collect();
        let marked = before.left.iter().filter(|tenant| tenant.id == "d");
        let expected = all.into_iter().chain(marked.map(|tenant| tenant.mark(late)));
        assert_eq!(entries_again, expected.collect());
        entries.remove("b");
        entries.extend(before.left.iter().map(|tenant| tenant.mark(late)));
        assert_eq!(remembered.lacking(&entries, early), [("b".to_owned(), "{}".to_owned())]);
    }

    #[test]
    fn a_list_changes_what_is_new_other_back_or_gone() {
        let before = tenants(&[("a", None), ("b", Some("free")), ("c", None), ("d", None)]);
        let mut registry = registry(&before);
        let kept = tenants(&[("a", None), ("b", Some("free"))]);
        let marks = RegistryDiff::between(registry.clone(), &kept).left;
        registry.extend(marks.iter().map(|tenant| tenant.mark(at())));
        let now = tenants(&[("b", Some("paid")), ("c", None), ("e", None), ("e", None)]);
        let changes = RegistryDiff::between(registry, &now);
        let ids = |some: &[Departed]| some.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
        assert_eq!(changes.known, 2, "`a` and `b`");
        assert_eq!(changes.back, ["c"]);
        assert_eq!(
            (ids(&changes.left), ids(&changes.departed)),
            (vec!["a".into()], vec!["d".into()])
        );
        let names: Vec<_> = changes.added.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(names, ["b", "c", "e"]);
        assert_eq!(changes.added[0].1, r#"{"columns":{"plan":"paid"}}"#);
    }

    #[test]
    fn a_list_that_says_nothing_new_writes_nothing() {
        let list = tenants(&[("a", Some("free")), ("b", None)]);
        let changes = RegistryDiff::between(registry(&list), &list);
        assert_eq!(changes, RegistryDiff { known: 2, ..RegistryDiff::default() });
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_a_tenant_all_the_same() {
        let registry = HashMap::from([("a".to_owned(), "?".to_owned())]);
        let changes = RegistryDiff::between(registry, &tenants(&[]));
        assert_eq!((changes.known, changes.left.len()), (1, 1));
    }
}
