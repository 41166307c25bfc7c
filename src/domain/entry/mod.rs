//! From rows to entries: which rows make the value of which key. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use rapidhash::fast::RandomState;

use super::job::{Job, Key, KeyKind, Scope, Shape, Share};
use super::key::{Part, Placeholder};
use super::layout::{Ambiguity, Checks, Template, says_owner};
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

/// Groups a batch's rows by key. Within a value, the rows stand in the order of their order keys, or
/// in the order of arrival if they have none.
///
/// `rows` carry the texts of [`Job::key_columns`] and, for a job with dates, each row's day. `first_dates` is the "today" of each slot; it is
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
    let sorted = rows.sorted();
    for (index, key) in job.keys.iter().enumerate() {
        let template = Template { job, index, key };
        let mut groups = Groups::new(template, checks, batch, first_dates, &columns);
        match &sorted {
            Some(sorted) => sorted.iter().for_each(|row| groups.place(rows, *row as usize)),
            None => (0..rows.len()).for_each(|row| groups.place(rows, row)),
        }
        groups.finish(rows, &mut taken, &mut found);
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
        let template = Template { job, index, key };
        let mut groups = Groups::new(template, checks, batch, first_dates, &columns);
        for row in 0..rows.len() {
            groups.place(rows, row);
        }
        let to_check = groups.slots_to_check();
        for group in &groups.groups {
            let key = groups.key_of(group, rows);
            let key = key.filter(|key| groups.ambiguity(&to_check, group, key, rows).is_none());
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
    template: Template<'a>,
    checks: &'a Checks,
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
}

impl<'a> Groups<'a> {
    fn new(
        template: Template<'a>,
        checks: &'a Checks,
        batch: &'a Batch,
        first_dates: &'a [NaiveDate],
        columns: &[&str],
    ) -> Self {
        let Template { job, key, .. } = template;
        let position = |name: &str| columns.iter().position(|column| *column == name);
        let dates = key.template.has_date().then(|| GroupDates {
            first: first_dates,
            days: job.dates.as_ref().map_or(0, |dates| dates.days),
        });
        let mut groups = Self {
            template,
            checks,
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
        let (slots, days) = match (&self.dates, self.template.job.scope) {
            (Some(dates), _) => (dates.first.len(), dates.days),
            (None, Scope::Tenants) => (self.batch.len(), 1),
            (None, Scope::Global) => (1, 1),
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
            && (self.dates.is_none() || rows.day(before) == rows.day(row))
    }

    /// The group of a row; a new group is made if there is none yet. `None` if the row has no key.
    fn find(&mut self, rows: &Rows, row: usize) -> Option<usize> {
        let slot = rows.slot(row)?;
        let day = match &self.dates {
            Some(dates) => rows.day(row).filter(|day| *day < dates.days)?,
            None => 0,
        };
        if self.template.key.template.is_static() {
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
        rows: &'r Rows,
        taken: &mut HashSet<String, RandomState>,
        found: &mut Entries<'r>,
    ) {
        let (job, shape) = (self.template.job, self.template.key.shape);
        let kind = job.kind(self.template.key);
        let to_check = self.slots_to_check();
        for group in std::mem::take(&mut self.groups) {
            let Some(key) = self.key_of(&group, rows) else { continue };
            let ambiguity = self.ambiguity(&to_check, &group, &key, rows);
            let Group { slot, members, .. } = group;
            let count = members.len();
            let value = Value::new(rows, members, shape);
            let shown = key.escape_debug();
            let refused = if let Some(ambiguity) = ambiguity {
                let message = format!("`{shown}` is not this tenant's alone: {ambiguity}");
                Some((FailureKind::AmbiguousKey, message))
            } else if !taken.insert(key.clone()) {
                let message = format!("two values for the key `{shown}`: the first one keeps it");
                Some((FailureKind::KeyConflict, message))
            } else if shape == Shape::Object && count > 1 {
                let message = format!("{count} rows for the object `{shown}`: it takes one");
                Some((FailureKind::SeveralRows, message))
            } else if value.len() > job.encoding.max_bytes {
                let (bytes, most) = (value.len(), job.encoding.max_bytes);
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
                let ttl = life_of(job, &key);
                found.writes.push(Entry { key, slot, value, ttl, kind });
            }
        }
    }

    /// Why a run must not write a group's key for its tenant.
    fn ambiguity(
        &self,
        to_check: &[bool],
        group: &Group,
        key: &str,
        rows: &Rows,
    ) -> Option<Ambiguity> {
        if !to_check.get(group.slot).copied().unwrap_or_default() {
            return None;
        }
        let owner = self.owner_of(group, rows);
        self.checks.ambiguity(self.template, key, &owner.unwrap_or_default())
    }

    /// For each slot, whether its keys need a check; empty if no key of the template needs one.
    fn slots_to_check(&self) -> Vec<bool> {
        let (checks, Template { job, index, .. }) = (self.checks, self.template);
        if !checks.needs_check(index) {
            return Vec::new();
        }
        match job.scope {
            Scope::Global => vec![true],
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
        match says_owner(self.template.key)? {
            Part::Literal(_) | Part::Placeholder(Placeholder::Date) => None,
            Part::Placeholder(Placeholder::Tenant) => Some(tenant?.id().to_owned()),
            Part::Placeholder(Placeholder::TenantColumn(name)) => {
                tenant?.column(name).map(str::to_owned)
            }
            Part::Placeholder(Placeholder::Column(name)) => {
                let place =
                    self.template.key.template.columns().position(|column| column == name)?;
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
        let mut key = self.template.key.template.empty_key();
        for part in self.template.key.template.parts() {
            match part {
                Part::Literal(text) => key.push_str(text),
                Part::Placeholder(Placeholder::Tenant) => key.push_str(tenant?.id()),
                Part::Placeholder(Placeholder::TenantColumn(name)) => {
                    key.push_str(tenant?.column(name)?);
                }
                Part::Placeholder(Placeholder::Date) => {
                    let first = *self.dates.as_ref()?.first.get(group.slot)?;
                    let date = first.checked_add_days(Days::new(group.day.into()))?;
                    let _a_string_takes_all = write!(key, "{date}");
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
mod tests;
