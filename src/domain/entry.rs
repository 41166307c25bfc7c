//! From rows to entries: which rows make the value of which key. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{Days, NaiveDate};
use rapidhash::fast::RandomState;

use super::job::{DATE_COLUMN, Job, Key, KeyKind, Scope, Shape, Share};
use super::key::{Part, Placeholder};
use super::layout::{Ambiguity, Checks, says_owner};
use super::report::{Failure, FailureKind};
use super::row::Rows;
use super::tenant::Batch;

/// A key, its value and its TTL, ready to write.
#[derive(Debug)]
pub struct Entry<'r> {
    /// The key, without the cache's prefix.
    pub key: String,
    /// The slot of its tenant in the batch.
    pub slot: usize,
    /// The value to write.
    pub value: Value<'r>,
    /// The TTL, shortened by the jitter.
    pub ttl: Duration,
    /// When the key can be computed, and what removes it.
    pub kind: KeyKind,
}

/// A value as a list of rows. Its JSON is put together from the rows' JSON only when it is written.
#[derive(Debug)]
pub struct Value<'r> {
    rows: &'r Rows,
    members: Vec<u32>,
    shape: Shape,
    bytes: usize,
}

/// The result of grouping a batch's rows by key.
#[derive(Debug, Default)]
pub struct Entries<'r> {
    /// The entries to write.
    pub writes: Vec<Entry<'r>>,
    /// Keys to remove: their new value must not be written, and their old one must not stay.
    pub removals: Vec<Removal>,
    /// Keys that cannot be written, each with the slot of its tenant.
    pub failures: Vec<(usize, Failure)>,
}

/// A key to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The key, without the cache's prefix.
    pub key: String,
    /// The slot of its tenant in the batch.
    pub slot: usize,
}

impl Entries<'_> {
    /// The keys that should have been written and could not be. Their old values stay, and so do their
    /// entries in manifests. Keys that may belong to another tenant are not among them.
    pub fn failed_keys(&self) -> impl Iterator<Item = &str> {
        let failures = self.failures.iter().map(|(_, failure)| failure);
        let own = failures.filter(|failure| failure.kind != FailureKind::AmbiguousKey);
        own.filter_map(|failure| failure.key.as_deref())
    }
}

impl<'r> Value<'r> {
    /// The value that these rows make, in this order.
    pub fn new(rows: &'r Rows, members: Vec<u32>, shape: Shape) -> Self {
        let json: usize = members.iter().map(|&row| rows.json(row as usize).len()).sum();
        let bytes = match shape {
            Shape::List => json + members.len().saturating_sub(1) + "[]".len(),
            Shape::Object if members.is_empty() => "null".len(),
            Shape::Object => json,
        };
        Self { rows, members, shape, bytes }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Always false: the shortest value is `[]`.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Its text, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (open, close): (&[u8], &[u8]) = match self.shape {
            Shape::List => (b"[", b"]"),
            Shape::Object if self.members.is_empty() => (b"null", b""),
            Shape::Object => (b"", b""),
        };
        let members = self.members.iter().enumerate().flat_map(|(index, &row)| {
            let comma: &[u8] = if index == 0 { b"" } else { b"," };
            [comma, self.rows.json(row as usize)]
        });
        [open].into_iter().chain(members).chain([close])
    }

    /// Its text in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.bytes);
        for piece in self.pieces() {
            text.extend_from_slice(piece);
        }
        text
    }
}

/// Groups a batch's rows by key.
///
/// `rows` carry the texts of [`Job::key_columns`]. `first_dates` is the "today" of each slot; it is
/// empty if the job has no dates. A row belongs to no value of a key if one of its key columns is NULL,
/// or if its date is not among its tenant's dates. A tenant whose `{tenant.COLUMN}` is NULL has no such
/// key. `checks` are the job's checks: a key that may belong to another tenant is not written and
/// becomes a failure of its tenant.
pub fn entries<'r>(
    job: &Job,
    checks: &Checks,
    batch: &Batch,
    first_dates: &[NaiveDate],
    rows: &'r Rows,
) -> Entries<'r> {
    let columns = job.key_columns();
    let mut found = Entries::default();
    let mut taken = HashSet::default();
    for (index, key) in job.keys.iter().enumerate() {
        let mut groups = Groups::new(job, key, batch, first_dates, &columns);
        for row in 0..rows.len() {
            groups.place(rows, row);
        }
        groups.finish((index, checks), rows, &mut taken, &mut found);
    }
    found
}

/// The shared keys that a batch's rows make, without their values; the arguments are those of [`entries`].
/// Keys that may belong to another tenant are not among them, because no run writes those.
pub fn shared_keys(
    job: &Job,
    checks: &Checks,
    batch: &Batch,
    first_dates: &[NaiveDate],
    rows: &Rows,
) -> BTreeSet<String> {
    let columns = job.key_columns();
    let mut keys = BTreeSet::new();
    let shared = |(_, key): &(usize, &Key)| job.kind(key) == KeyKind::Shared;
    for (index, key) in job.keys.iter().enumerate().filter(shared) {
        let mut groups = Groups::new(job, key, batch, first_dates, &columns);
        for row in 0..rows.len() {
            groups.place(rows, row);
        }
        let to_check = groups.slots_to_check(index, checks);
        for group in &groups.groups {
            let key = groups.key_of(group, rows);
            let key = key.filter(|key| {
                groups.ambiguity((index, checks), &to_check, (group, key), rows).is_none()
            });
            keys.extend(key);
        }
    }
    keys
}

/// The values of one kind of key, while rows are added to them.
///
/// A row's slot, date and key columns decide its group; the key's text does not. The reason: two
/// tenants whose ids or columns contain a `:` may have the same text for `{tenant_id}:{a}:{b}`, and the
/// rows of two tenants must never be in one value.
struct Groups<'a> {
    job: &'a Job,
    key: &'a Key,
    batch: &'a Batch,
    dates: Option<GroupDates<'a>>,
    /// The positions of the key's columns, without the date, among a row's key columns.
    columns: Vec<usize>,
    groups: Vec<Group>,
    by_values: HashMap<Vec<u8>, usize, RandomState>,
    /// The previous row and its group: neighbouring rows mostly belong to the same group.
    before: Option<(usize, Option<usize>)>,
    scratch: Vec<u8>,
}

struct Group {
    slot: usize,
    /// The position of the key's date among the tenant's dates; 0 if the key has no date.
    day: u16,
    members: Vec<u32>,
}

/// The dates of keys with `{date}`.
struct GroupDates<'a> {
    /// The first date of each slot.
    first: &'a [NaiveDate],
    days: u16,
    /// The position of the date's text among a row's key columns.
    column: usize,
    /// Parsed texts: a batch has many rows and few different dates.
    read: HashMap<Box<[u8]>, Option<NaiveDate>, RandomState>,
}

impl<'a> Groups<'a> {
    fn new(
        job: &'a Job,
        key: &'a Key,
        batch: &'a Batch,
        first_dates: &'a [NaiveDate],
        columns: &[&str],
    ) -> Self {
        let position = |name: &str| columns.iter().position(|column| *column == name);
        let dates = key.template.has_date().then(|| GroupDates {
            first: first_dates,
            days: job.dates.as_ref().map_or(0, |dates| dates.days),
            column: position(DATE_COLUMN).unwrap_or(usize::MAX),
            read: HashMap::default(),
        });
        let mut groups = Self {
            job,
            key,
            batch,
            dates,
            columns: key.template.columns().filter_map(position).collect(),
            groups: Vec::new(),
            by_values: HashMap::default(),
            before: None,
            scratch: Vec::new(),
        };
        if key.template.is_static() {
            groups.expect_static();
        }
        groups
    }

    /// Makes the groups of static keys in the order in which [`Self::find`] expects them: by slot, then
    /// by date.
    fn expect_static(&mut self) {
        let (slots, days) = match (&self.dates, self.job.scope) {
            (Some(dates), _) => (dates.first.len(), dates.days),
            (None, Scope::Tenants) => (self.batch.len(), 1),
            (None, Scope::Fleet) => (1, 1),
        };
        self.groups.reserve(slots * usize::from(days));
        for slot in 0..slots {
            let of_slot = (0..days).map(|day| Group { slot, day, members: Vec::new() });
            self.groups.extend(of_slot);
        }
    }

    fn place(&mut self, rows: &Rows, row: usize) {
        let group = match self.before {
            Some((before, group)) if self.belong_together(rows, before, row) => group,
            Some(_) | None => self.find(rows, row),
        };
        self.before = Some((row, group));
        if let Some(group) = group.and_then(|index| self.groups.get_mut(index)) {
            group.members.push(u32::try_from(row).unwrap_or(u32::MAX));
        }
    }

    fn belong_together(&self, rows: &Rows, before: usize, row: usize) -> bool {
        let same = |column| rows.key(before, column) == rows.key(row, column);
        rows.slot(before) == rows.slot(row)
            && self.columns.iter().all(|&column| same(column))
            && self.dates.as_ref().is_none_or(|dates| same(dates.column))
    }

    /// The group of a row; a new group is made if there is none yet. `None` if the row has no key.
    fn find(&mut self, rows: &Rows, row: usize) -> Option<usize> {
        let slot = rows.slot(row)?;
        let day = match &mut self.dates {
            Some(dates) => dates.day(slot, rows.key(row, dates.column)?)?,
            None => 0,
        };
        if self.key.template.is_static() {
            let days = self.dates.as_ref().map_or(1, |dates| dates.days);
            return Some(slot * usize::from(days) + usize::from(day));
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(&slot.to_ne_bytes());
        self.scratch.extend_from_slice(&day.to_ne_bytes());
        for &column in &self.columns {
            let value = rows.key(row, column)?;
            // The length comes first, so that different lists of values are different bytes.
            self.scratch.extend_from_slice(&value.len().to_ne_bytes());
            self.scratch.extend_from_slice(value);
        }
        if let Some(&index) = self.by_values.get(self.scratch.as_slice()) {
            return Some(index);
        }
        let index = self.groups.len();
        self.groups.push(Group { slot, day, members: Vec::new() });
        self.by_values.insert(self.scratch.clone(), index);
        Some(index)
    }

    /// Makes entries from the groups. If two groups have the same key, the first one gets it (`taken`);
    /// templates count in the order of the job file. A group whose key may belong to another tenant
    /// takes no key.
    fn finish<'r>(
        mut self,
        (index, checks): (usize, &Checks),
        rows: &'r Rows,
        taken: &mut HashSet<String, RandomState>,
        found: &mut Entries<'r>,
    ) {
        let kind = self.job.kind(self.key);
        let to_check = self.slots_to_check(index, checks);
        for group in std::mem::take(&mut self.groups) {
            let Some(key) = self.key_of(&group, rows) else { continue };
            let ambiguity = self.ambiguity((index, checks), &to_check, (&group, &key), rows);
            let Group { slot, members, .. } = group;
            let count = members.len();
            let value = Value::new(rows, members, self.key.shape);
            let shown = key.escape_debug();
            let refused = if let Some(ambiguity) = ambiguity {
                let message = format!("`{shown}` is not this tenant's alone: {ambiguity}");
                Some((FailureKind::AmbiguousKey, message))
            } else if !taken.insert(key.clone()) {
                let message = format!("two values for the key `{shown}`: the first one keeps it");
                Some((FailureKind::KeyConflict, message))
            } else if self.key.shape == Shape::Object && count > 1 {
                let message = format!("{count} rows for the object `{shown}`: it takes one");
                Some((FailureKind::SeveralRows, message))
            } else if value.len() > self.job.encoding.max_bytes {
                let (bytes, most) = (value.len(), self.job.encoding.max_bytes);
                let message = format!("`{shown}` has {bytes} bytes: `encode.max_bytes` is {most}");
                if kind != KeyKind::Shared {
                    found.removals.push(Removal { key: key.clone(), slot });
                }
                Some((FailureKind::ValueTooLarge, message))
            } else {
                None
            };
            if let Some((kind, message)) = refused {
                let tenant = self.batch.tenant(slot).map(|tenant| tenant.id().to_owned());
                let failure = Failure { kind, tenant, key: Some(key), message, count: 1 };
                found.failures.push((slot, failure));
            } else {
                let ttl = life_of(self.job, &key);
                found.writes.push(Entry { key, slot, value, ttl, kind });
            }
        }
    }

    /// Why a run must not write a group's key for its tenant.
    fn ambiguity(
        &self,
        (index, checks): (usize, &Checks),
        to_check: &[bool],
        (group, key): (&Group, &str),
        rows: &Rows,
    ) -> Option<Ambiguity> {
        if !to_check.get(group.slot).copied().unwrap_or_default() {
            return None;
        }
        let owner = self.owner_of(group, rows);
        checks.ambiguity((self.job, index), key, &owner.unwrap_or_default())
    }

    /// For each slot, whether its keys need a check; empty if no key of the template needs one.
    fn slots_to_check(&self, index: usize, checks: &Checks) -> Vec<bool> {
        if !checks.needs_check(index) {
            return Vec::new();
        }
        match self.job.scope {
            Scope::Fleet => vec![true],
            Scope::Tenants => self
                .batch
                .tenants()
                .map(|tenant| checks.tenant_needs_check(index, tenant.id()))
                .collect(),
        }
    }

    /// The owner that a group's key names.
    fn owner_of(&self, group: &Group, rows: &Rows) -> Option<String> {
        let tenant = self.batch.tenant(group.slot);
        match says_owner(self.key)? {
            Part::Literal(_) | Part::Placeholder(Placeholder::Date) => None,
            Part::Placeholder(Placeholder::Tenant) => Some(tenant?.id().to_owned()),
            Part::Placeholder(Placeholder::TenantColumn(name)) => {
                tenant?.column(name).map(str::to_owned)
            }
            Part::Placeholder(Placeholder::Column(name)) => {
                let place = self.key.template.columns().position(|column| column == name)?;
                let row = *group.members.first()? as usize;
                let value = rows.key(row, *self.columns.get(place)?)?;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        }
    }

    /// A group's key; `None` if a column of its tenant is NULL.
    fn key_of(&self, group: &Group, rows: &Rows) -> Option<String> {
        let tenant = self.batch.tenant(group.slot);
        let mut columns = self.columns.iter();
        let mut key = String::new();
        for part in self.key.template.parts() {
            match part {
                Part::Literal(text) => key.push_str(text),
                Part::Placeholder(Placeholder::Tenant) => key.push_str(tenant?.id()),
                Part::Placeholder(Placeholder::TenantColumn(name)) => {
                    key.push_str(tenant?.column(name)?);
                }
                Part::Placeholder(Placeholder::Date) => {
                    let first = *self.dates.as_ref()?.first.get(group.slot)?;
                    let date = first.checked_add_days(Days::new(group.day.into()))?;
                    key.push_str(&date.to_string());
                }
                Part::Placeholder(Placeholder::Column(_)) => {
                    let row = *group.members.first()? as usize;
                    let value = rows.key(row, *columns.next()?)?;
                    key.push_str(&String::from_utf8_lossy(value));
                }
            }
        }
        Some(key)
    }
}

impl GroupDates<'_> {
    /// The position of a date among the dates of a slot; `None` if it is none of them.
    fn day(&mut self, slot: usize, text: &[u8]) -> Option<u16> {
        let first = *self.first.get(slot)?;
        let date = if let Some(read) = self.read.get(text) {
            *read
        } else {
            let date = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            self.read.insert(text.into(), date);
            date
        };
        let after = u16::try_from((date? - first).num_days()).ok()?;
        (after < self.days).then_some(after)
    }
}

/// The TTL with which a job writes a key.
pub fn life_of(job: &Job, key: &str) -> Duration {
    jittered(job.ttl, job.ttl_jitter, key)
}

/// Shortens a TTL by up to `jitter`. A hash of the key decides by how much, so that keys do not all
/// expire together, and a key has the same TTL in every run.
fn jittered(ttl: Duration, jitter: Share, key: &str) -> Duration {
    let hash = rapidhash::v3::rapidhash_v3(key.as_bytes());
    #[expect(clippy::cast_precision_loss, reason = "53 bits are plenty")]
    let uniform = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    let shortened = ttl.mul_f64(1.0 - jitter.fraction() * uniform);
    // Redis takes whole milliseconds, and refuses 0.
    Duration::from_millis(u64::try_from(shortened.as_millis()).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::date;
    use crate::domain::job::tests::example;
    use crate::domain::job::{DateZone, Dates};
    use crate::domain::key::KeyTemplate;
    use crate::domain::layout::Layout;
    use crate::domain::row::{KeyText, RowsFull};
    use crate::domain::tenant::Tenants;

    fn job(keys: &[(&str, Shape)]) -> Job {
        let key = |&(text, shape): &(&str, Shape)| Key {
            template: KeyTemplate::parse(text, "tenant_id").unwrap(),
            shape,
            unique: None,
        };
        example("job", keys.iter().map(key).collect())
    }

    /// The entries of a job if it is the only job and tenants' ids are text.
    fn entries<'r>(
        job: &Job,
        batch: &Batch,
        first_dates: &[NaiveDate],
        rows: &'r Rows,
    ) -> Entries<'r> {
        let checks = Checks::new(Layout::default(), job);
        super::entries(job, &checks, batch, first_dates, rows)
    }

    fn lists(templates: &[&str]) -> Job {
        let keys: Vec<_> = templates.iter().map(|text| (*text, Shape::List)).collect();
        job(&keys)
    }

    fn batch(ids: &[&str]) -> Batch {
        let mut list = Tenants::with_columns(["region"]);
        for id in ids {
            list.push(id, [None]);
        }
        whole(list)
    }

    fn whole(list: Tenants) -> Batch {
        let positions = (0..u32::try_from(list.len()).unwrap()).collect();
        Batch::new(Arc::new(list), positions)
    }

    /// A row: its slot, its JSON, and its key columns; `-` stands for NULL.
    type Line<'a> = (u32, &'a str, &'a [&'a str]);

    fn rows(lines: &[Line<'_>]) -> Rows {
        let mut rows = Rows::default();
        rows.reset(lines.first().map_or(0, |line| line.2.len()), usize::MAX);
        for (slot, json, keys) in lines {
            let pushed: Result<(), RowsFull> = rows.push(
                *slot,
                |out| {
                    out.extend_from_slice(json.as_bytes());
                    Ok(())
                },
                |column, out| {
                    if keys[column] == "-" {
                        return Ok(KeyText::Null);
                    }
                    out.extend_from_slice(keys[column].as_bytes());
                    Ok(KeyText::Written)
                },
            );
            pushed.unwrap();
        }
        rows
    }

    /// The entries to write: each key with its value, in order.
    fn written(found: &Entries<'_>) -> Vec<(String, String)> {
        let text = |entry: &Entry<'_>| {
            let value = entry.value.to_vec();
            assert_eq!(value.len(), entry.value.len(), "{}", entry.key);
            (entry.key.clone(), String::from_utf8(value).unwrap())
        };
        found.writes.iter().map(text).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn rows_are_in_the_list_of_their_tenant_and_in_that_of_their_category() {
        let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
        // The rows are not in the order of the tenants: a query need not sort them for preheat.
        let rows = rows(&[(0, "1", &["x"]), (1, "2", &["x"]), (0, "3", &["y"]), (0, "4", &["x"])]);
        let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
        let expected = [
            ("p:a:all", "[1,3,4]"),
            ("p:b:all", "[2]"),
            ("p:a:x", "[1,4]"),
            ("p:b:x", "[2]"),
            ("p:a:y", "[3]"),
        ];
        assert_eq!(written(&found), pairs(&expected));
        let slots: Vec<_> = found.writes.iter().map(|entry| entry.slot).collect();
        assert_eq!(slots, [0, 1, 0, 1, 0]);
        assert!(found.removals.is_empty() && found.failures.is_empty());
    }

    #[test]
    fn hazard_06_a_static_key_without_rows_is_written_empty_and_others_are_not() {
        let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
        let none = rows(&[]);
        let found = entries(&job, &batch(&["a", "b"]), &[], &none);
        assert_eq!(written(&found), pairs(&[("p:a:all", "[]"), ("p:b:all", "[]")]));
    }

    #[test]
    fn a_row_whose_key_column_is_null_is_in_no_value_of_that_key() {
        let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{a}:{b}"]);
        let rows = rows(&[(0, "1", &["x", "-"]), (0, "2", &["x", "y"]), (0, "3", &["-", "y"])]);
        let found = entries(&job, &batch(&["t"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("p:t:all", "[1,2,3]"), ("p:t:x:y", "[2]")]));
        assert!(found.failures.is_empty());
    }

    #[test]
    fn an_object_is_one_row_and_null_where_a_static_key_has_none() {
        let job = job(&[("clinic:{tenant_id}", Shape::Object)]);
        let rows = rows(&[(0, "{\"n\":1}", &[]), (2, "{}", &[]), (2, "{}", &[])]);
        let found = entries(&job, &batch(&["a", "b", "c"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("clinic:a", "{\"n\":1}"), ("clinic:b", "null")]));
        let [(slot, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
        assert_eq!((*slot, failure.kind), (2, FailureKind::SeveralRows));
        assert_eq!(failure.tenant.as_deref(), Some("c"));
        assert_eq!(failure.key.as_deref(), Some("clinic:c"));
        assert_eq!(failure.message, "2 rows for the object `clinic:c`: it takes one");
        assert!(found.removals.is_empty());
    }

    #[test]
    fn an_object_with_a_key_of_its_own_needs_no_tenant_in_it() {
        let job = job(&[("pet:{id}", Shape::Object)]);
        let rows = rows(&[(1, "{\"id\":7}", &["7"]), (0, "{\"id\":8}", &["8"])]);
        let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
        let expected = [("pet:7", "{\"id\":7}"), ("pet:8", "{\"id\":8}")];
        assert_eq!(written(&found), pairs(&expected));
        assert_eq!(found.writes[0].slot, 1);
    }

    #[test]
    fn hazard_12_each_tenant_has_its_own_dates_and_rows_of_others_are_in_none() {
        let mut job = lists(&["slots:{tenant_id}:{date}"]);
        job.dates = Some(Dates { days: 2, zone: DateZone::TenantColumn("region".to_owned()) });
        let rows = rows(&[
            (0, "1", &["2026-02-28"]),
            (0, "2", &["2026-03-01"]),
            (0, "3", &["2026-03-02"]),
            (1, "4", &["2026-02-28"]),
            (1, "5", &["2026-03-02"]),
            (1, "6", &["2026-03-01"]),
            (1, "7", &["2026-03-02"]),
            (1, "8", &["-"]),
            (1, "9", &["not a date"]),
        ]);
        let first = [day("2026-02-28"), day("2026-03-01")];
        let found = entries(&job, &batch(&["a", "b"]), &first, &rows);
        let expected = [
            ("slots:a:2026-02-28", "[1]"),
            ("slots:a:2026-03-01", "[2]"),
            ("slots:b:2026-03-01", "[6]"),
            ("slots:b:2026-03-02", "[5,7]"),
        ];
        assert_eq!(written(&found), pairs(&expected));
        assert!(found.failures.is_empty());
    }

    #[test]
    fn hazard_12_dates_bound_keys_with_data_columns_as_well() {
        let mut job = lists(&["s:{tenant_id}:{date}:{kind}"]);
        job.dates = Some(Dates { days: 1, zone: DateZone::Fixed(chrono_tz::UTC) });
        let rows = rows(&[
            (0, "1", &["x", "2026-03-01"]),
            (0, "2", &["x", "2026-03-02"]),
            (0, "3", &["x", "2026-02-28"]),
        ]);
        let found = entries(&job, &batch(&["a"]), &[day("2026-03-01")], &rows);
        assert_eq!(written(&found), pairs(&[("s:a:2026-03-01:x", "[1]")]));
    }

    #[test]
    fn a_category_that_makes_the_key_of_another_template_does_not_get_it() {
        let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
        let rows = rows(&[(0, "1", &["all"]), (0, "2", &["x"])]);
        let found = entries(&job, &batch(&["a"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("p:a:all", "[1,2]"), ("p:a:x", "[2]")]));
        let [(0, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
        assert_eq!(failure.kind, FailureKind::KeyConflict);
        assert_eq!(failure.tenant.as_deref(), Some("a"));
        assert_eq!(failure.message, "two values for the key `p:a:all`: the first one keeps it");
    }

    #[test]
    fn a_refused_value_does_not_leave_its_key_to_another_template() {
        let mut job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
        job.encoding.max_bytes = 8;
        let rows = rows(&[(0, "11111", &["all"]), (0, "22222", &["x"])]);
        let found = entries(&job, &batch(&["a"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("p:a:x", "[22222]")]));
        let kinds: Vec<_> = found.failures.iter().map(|(_, failure)| failure.kind).collect();
        assert_eq!(kinds, [FailureKind::ValueTooLarge, FailureKind::KeyConflict]);
        assert_eq!(found.removals, [Removal { key: "p:a:all".to_owned(), slot: 0 }]);
    }

    #[test]
    fn hazard_10_two_tenants_whose_keys_read_alike_never_share_a_value() {
        let job = lists(&["x:{tenant_id}:{kind}"]);
        let rows = rows(&[(0, "\"of a\"", &["b:c"]), (1, "\"of a:b\"", &["c"])]);
        let found = entries(&job, &batch(&["a", "a:b"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("x:a:b:c", "[\"of a\"]")]));
        let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
        assert_eq!(failure.kind, FailureKind::AmbiguousKey);
        assert_eq!(failure.tenant.as_deref(), Some("a:b"));
        let message = "`x:a:b:c` is not this tenant's alone: its template reads it as a key of `a`";
        assert_eq!(failure.message, message);
        assert_eq!(found.failed_keys().count(), 0, "its place is another tenant's");
    }

    #[test]
    fn hazard_37_each_tenant_alone_comes_to_the_same_as_in_one_batch() {
        let job = lists(&["x:{tenant_id}:all", "x:{tenant_id}:{kind}"]);
        let of_a = rows(&[(0, "1", &["b:c"]), (0, "2", &["b:all"]), (0, "3", &["all"])]);
        let found = entries(&job, &batch(&["a"]), &[], &of_a);
        assert_eq!(written(&found), pairs(&[("x:a:all", "[1,2,3]"), ("x:a:b:c", "[1]")]));
        let kinds: Vec<_> = found.failures.iter().map(|(_, failure)| failure.kind).collect();
        assert_eq!(kinds, [FailureKind::AmbiguousKey, FailureKind::KeyConflict]);
        let of_b = rows(&[(0, "1", &["c"])]);
        let found = entries(&job, &batch(&["a:b"]), &[], &of_b);
        assert_eq!(written(&found), []);
        let messages: Vec<_> =
            found.failures.iter().map(|(_, failure)| &*failure.message).collect();
        assert_eq!(
            messages,
            [
                "`x:a:b:all` is not this tenant's alone: it may be a key of \
                 `x:{tenant_id}:{kind}` in job `job`",
                "`x:a:b:c` is not this tenant's alone: its template reads it as a key of `a`",
            ]
        );
    }

    #[test]
    fn hazard_37_a_key_without_its_tenant_is_that_of_one_value() {
        let mut job = lists(&["pet:{id}:{kind}"]);
        job.keys[0].unique = Some("id".to_owned());
        let rows = rows(&[(0, "1", &["7", "a:b"]), (1, "2", &["7:a", "b"])]);
        let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("pet:7:a:b", "[1]")]));
        let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
        assert_eq!(failure.kind, FailureKind::AmbiguousKey);
    }

    #[test]
    fn columns_whose_texts_join_to_one_key_are_a_conflict_and_not_one_value() {
        let job = lists(&["x:{tenant_id}:{a}:{b}"]);
        let rows = rows(&[(0, "1", &["p:q", "r"]), (0, "2", &["p", "q:r"])]);
        let found = entries(&job, &batch(&["t"]), &[], &rows);
        assert_eq!(written(&found), pairs(&[("x:t:p:q:r", "[1]")]));
        assert_eq!(found.failures.len(), 1);
    }

    #[test]
    fn hazard_19_a_value_over_its_bound_is_removed_and_all_others_are_written() {
        let mut job = lists(&["p:{tenant_id}"]);
        job.encoding.max_bytes = 9;
        let rows = rows(&[(0, "123", &[]), (0, "456", &[]), (1, "123", &[]), (1, "4567", &[])]);
        let found = entries(&job, &batch(&["fits", "large", "none"]), &[], &rows);
        let expected = [("p:fits", "[123,456]"), ("p:none", "[]")];
        assert_eq!(written(&found), pairs(&expected));
        assert_eq!(found.removals, [Removal { key: "p:large".to_owned(), slot: 1 }]);
        let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
        assert_eq!(failure.kind, FailureKind::ValueTooLarge);
        assert_eq!(failure.message, "`p:large` has 10 bytes: `encode.max_bytes` is 9");
    }

    #[test]
    fn a_fleet_job_has_one_slot_without_a_tenant() {
        let mut job = lists(&["plans", "plan:{name}"]);
        job.scope = Scope::Fleet;
        let lines = rows(&[(0, "1", &["free"]), (0, "2", &["pro"])]);
        let found = entries(&job, &Batch::fleet(), &[], &lines);
        let expected = [("plans", "[1,2]"), ("plan:free", "[1]"), ("plan:pro", "[2]")];
        assert_eq!(written(&found), pairs(&expected));
        let empty = rows(&[]);
        let found = entries(&job, &Batch::fleet(), &[], &empty);
        assert_eq!(written(&found), pairs(&[("plans", "[]")]));
        job.keys.truncate(1);
        job.keys[0].template = KeyTemplate::parse("plans:{date}", "tenant_id").unwrap();
        job.dates = Some(Dates { days: 1, zone: DateZone::Fixed(chrono_tz::UTC) });
        let dated = rows(&[(0, "1", &["2026-03-01"])]);
        let found = entries(&job, &Batch::fleet(), &[day("2026-03-01")], &dated);
        assert_eq!(written(&found), pairs(&[("plans:2026-03-01", "[1]")]));
    }

    #[test]
    fn a_column_of_the_tenant_is_in_its_keys_and_a_tenant_without_it_has_no_such_key() {
        let mut list = Tenants::with_columns(["plan", "region"]);
        list.push("a", [Some("free"), Some("eu")]);
        list.push("b", [Some("pro"), None]);
        let job = lists(&["{tenant.region}:{tenant_id}", "{tenant.plan}:{tenant_id}:{kind}"]);
        let rows = rows(&[(0, "1", &["x"]), (1, "2", &["x"])]);
        let found = entries(&job, &whole(list), &[], &rows);
        let expected = [("eu:a", "[1]"), ("free:a:x", "[1]"), ("pro:b:x", "[2]")];
        assert_eq!(written(&found), pairs(&expected));
    }

    #[test]
    fn hazard_33_a_hostile_id_is_in_its_key_as_it_is_and_in_no_message_raw() {
        let ids = ["a:b", "*", "{x}", "line\nbreak", "\u{2028}", "", "ä{{", "a\0b"];
        let mut job = lists(&["k:{tenant_id}:end"]);
        job.encoding.max_bytes = 1;
        let none = rows(&[]);
        let found = entries(&job, &batch(&ids), &[], &none);
        let keys: Vec<_> = found.removals.iter().map(|removal| removal.key.as_str()).collect();
        let expected: Vec<_> = ids.iter().map(|id| format!("k:{id}:end")).collect();
        assert_eq!(keys, expected);
        let message = &found.failures[3].1.message;
        assert_eq!(message, "`k:line\\nbreak:end` has 2 bytes: `encode.max_bytes` is 1");
    }

    #[test]
    fn hazard_15_ttls_are_spread_below_the_ttl_and_the_same_in_every_run() {
        let mut job = lists(&["k:{tenant_id}"]);
        job.ttl_jitter = Share::from_percent(10.0).unwrap();
        let ids: Vec<_> = (0..1000).map(|id| id.to_string()).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let (batch, none) = (batch(&ids), rows(&[]));
        let ttls = || {
            let found = entries(&job, &batch, &[], &none);
            found.writes.iter().map(|entry| entry.ttl).collect::<Vec<_>>()
        };
        let found = ttls();
        assert_eq!(found, ttls());
        let (ttl, jitter) = (job.ttl, job.ttl_jitter.of(job.ttl));
        let taken: Vec<_> = found.iter().map(|found| ttl.checked_sub(*found).unwrap()).collect();
        assert!(taken.iter().all(|taken| *taken <= jitter));
        let tenths: BTreeSet<_> = taken.iter().map(|taken| taken.as_millis() / 18_000).collect();
        assert_eq!(tenths, (0..10).collect(), "every tenth of the jitter is used");
        job.ttl_jitter = Share::NONE;
        assert!(entries(&job, &batch, &[], &none).writes.iter().all(|entry| entry.ttl == ttl));
    }

    fn any_row() -> impl Strategy<Value = (u32, String, Option<u8>, u8)> {
        (0..5_u32, "[0-9]{1,12}", proptest::option::of(0..4_u8), 0..6_u8)
    }

    proptest! {
        /// Lists hold each row once, in the order of the query, and nothing else.
        #[test]
        fn every_row_is_in_the_one_list_of_its_tenant_category_and_date(
            lines in proptest::collection::vec(any_row(), 0..200)
        ) {
            let first = day("2026-03-01");
            let text = |offset: u8| (first + Days::new(offset.into())).to_string();
            let keys: Vec<[String; 2]> = lines
                .iter()
                .map(|(_, _, kind, at)| {
                    [kind.map_or("-".to_owned(), |kind| format!("c{kind}")), text(*at)]
                })
                .collect();
            let keys: Vec<[&str; 2]> =
                keys.iter().map(|[kind, date]| [kind.as_str(), date.as_str()]).collect();
            let table: Vec<Line<'_>> = lines
                .iter()
                .zip(&keys)
                .map(|((slot, json, ..), keys)| (*slot, json.as_str(), keys.as_slice()))
                .collect();
            let mut job = lists(&["all:{tenant_id}", "{tenant_id}:{kind}", "{tenant_id}@{date}"]);
            job.encoding.max_bytes = usize::MAX;
            job.dates = Some(Dates { days: 3, zone: DateZone::Fixed(chrono_tz::UTC) });
            let rows = rows(&table);
            let batch = batch(&["a", "b", "c", "d", "e"]);
            let found = entries(&job, &batch, &[first + Days::new(1); 5], &rows);

            let mut expected: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            for id in ["a", "b", "c", "d", "e"] {
                expected.insert(format!("all:{id}"), Vec::new());
                for date in date::all(first + Days::new(1), 3) {
                    expected.insert(format!("{id}@{date}"), Vec::new());
                }
            }
            for (slot, json, kind, at) in &lines {
                let id = batch.tenant(*slot as usize).unwrap().id();
                expected.entry(format!("all:{id}")).or_default().push(json);
                if let Some(kind) = kind {
                    expected.entry(format!("{id}:c{kind}")).or_default().push(json);
                }
                if (1..4).contains(at) {
                    expected.entry(format!("{id}@{}", text(*at))).or_default().push(json);
                }
            }
            let expected: BTreeMap<_, _> = expected
                .into_iter()
                .map(|(key, members)| (key, format!("[{}]", members.join(","))))
                .collect();
            let found: BTreeMap<_, _> = written(&found).into_iter().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
