//! From rows to entries: which rows make which key's value. Pure.

use std::collections::HashMap;
use std::collections::hash_map;
use std::time::Duration;

use chrono::NaiveDate;
use rapidhash::fast::RandomState;

use super::date;
use super::job::{Job, Key, Scope, Shape, Share};
use super::key::{Part, Placeholder};
use super::report::{Failure, FailureKind};
use super::row::Rows;
use super::tenant::{Batch, Tenant};

/// A key, its value and how long it lives: ready to write.
#[derive(Debug)]
pub struct Entry<'r> {
    /// The key, without the cache's prefix.
    pub key: String,
    /// The slot of its tenant in the batch.
    pub slot: usize,
    /// What to write.
    pub value: Value<'r>,
    /// How long it lives, jitter taken off.
    pub ttl: Duration,
}

/// A value whose JSON still stands where its rows are: it is put together only when it is written.
#[derive(Debug)]
pub struct Value<'r> {
    rows: &'r Rows,
    members: Vec<u32>,
    shape: Shape,
    bytes: usize,
}

/// What a batch's rows came to.
#[derive(Debug, Default)]
pub struct Entries<'r> {
    /// What to write.
    pub writes: Vec<Entry<'r>>,
    /// Keys whose present value must go, since the new one may not be written.
    pub removals: Vec<Removal>,
    /// What cannot be written, with the slot of its tenant.
    pub failures: Vec<(usize, Failure)>,
}

/// A key to remove.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    /// The key, without the cache's prefix.
    pub key: String,
    /// The slot of its tenant in the batch.
    pub slot: usize,
}

impl<'r> Value<'r> {
    fn new(rows: &'r Rows, members: Vec<u32>, shape: Shape) -> Self {
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

    /// Never: the shortest value is `[]`.
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
/// `rows` carry the values of [`Job::key_columns`]; `first_dates` is each slot's "today" where the
/// job has dates, and empty otherwise. A row whose key column is NULL, or whose date is none of its
/// tenant's dates, is in no value of that key.
pub fn entries<'r>(
    job: &Job,
    batch: &Batch,
    first_dates: &[NaiveDate],
    rows: &'r Rows,
) -> Entries<'r> {
    let slots = match job.scope {
        Scope::Tenants => batch.len(),
        Scope::Fleet => 1,
    };
    let columns = job.key_columns();
    let mut found = Entries::default();
    for key in &job.keys {
        let mut groups = Groups::new(key, batch, &columns);
        groups.expect_known(job, slots, first_dates);
        for row in 0..rows.len() {
            groups.place(rows, row);
        }
        groups.finish(job, rows, &mut found);
    }
    refuse_conflicts(&mut found);
    found
}

/// The values of one kind of key while its rows are placed.
struct Groups<'a> {
    key: &'a Key,
    batch: &'a Batch,
    /// For each placeholder of the template, the position of its value among a row's key columns;
    /// `None` for those that the tenant alone decides.
    sources: Vec<Option<usize>>,
    groups: Vec<Group>,
    by_key: HashMap<String, usize, RandomState>,
    /// The row placed before and its group: neighbours mostly belong together.
    before: Option<(usize, Option<usize>)>,
    scratch: String,
}

struct Group {
    slot: usize,
    members: Vec<u32>,
}

impl<'a> Groups<'a> {
    fn new(key: &'a Key, batch: &'a Batch, columns: &[&str]) -> Self {
        let position = |name: &str| columns.iter().position(|column| *column == name);
        let sources = key
            .template
            .placeholders()
            .map(|placeholder| match placeholder {
                Placeholder::Column(name) => position(name),
                Placeholder::Date => position(super::job::DATE_COLUMN),
                Placeholder::Tenant | Placeholder::TenantColumn(_) => None,
            })
            .collect();
        Self {
            key,
            batch,
            sources,
            groups: Vec::new(),
            by_key: HashMap::default(),
            before: None,
            scratch: String::new(),
        }
    }

    /// Makes the groups of the keys that are known before the query.
    fn expect_known(&mut self, job: &Job, slots: usize, first_dates: &[NaiveDate]) {
        if !self.key.template.is_known() {
            return;
        }
        let days = job.dates.as_ref().map_or(1, |dates| dates.days);
        for slot in 0..slots {
            if !self.key.template.has_date() {
                self.expect(slot, "");
                continue;
            }
            let Some(&first) = first_dates.get(slot) else { continue };
            for day in date::all(first, days) {
                self.expect(slot, &day.to_string());
            }
        }
    }

    fn expect(&mut self, slot: usize, date: &str) {
        let tenant = self.batch.tenant(slot);
        let key = render(&self.key.template, tenant, |_placeholder| Some(date.as_bytes()));
        if let Some(key) = key {
            self.by_key.insert(key, self.groups.len());
            self.groups.push(Group { slot, members: Vec::new() });
        }
    }

    fn place(&mut self, rows: &Rows, row: usize) {
        let group = match self.before {
            Some((before, group)) if self.same_key(rows, before, row) => group,
            _ => self.find(rows, row),
        };
        self.before = Some((row, group));
        if let Some(group) = group.and_then(|index| self.groups.get_mut(index)) {
            group.members.push(u32::try_from(row).unwrap_or(u32::MAX));
        }
    }

    fn same_key(&self, rows: &Rows, before: usize, row: usize) -> bool {
        rows.slot(before) == rows.slot(row)
            && self
                .sources
                .iter()
                .flatten()
                .all(|&column| rows.key(before, column) == rows.key(row, column))
    }

    /// The group of a row's key, made where it is new and may be made: a key that was to be known
    /// beforehand and was not is another date's.
    fn find(&mut self, rows: &Rows, row: usize) -> Option<usize> {
        let slot = rows.slot(row)?;
        let tenant = self.batch.tenant(slot);
        let mut sources = self.sources.iter();
        let value = |_: &Placeholder| {
            let column = sources.next().copied().flatten();
            column.and_then(|column| rows.key(row, column))
        };
        self.scratch.clear();
        if !render_into(&self.key.template, tenant, value, &mut self.scratch) {
            return None;
        }
        if let Some(&index) = self.by_key.get(&self.scratch) {
            return Some(index);
        }
        if self.key.template.is_known() {
            return None;
        }
        let index = self.groups.len();
        self.groups.push(Group { slot, members: Vec::new() });
        self.by_key.insert(self.scratch.clone(), index);
        Some(index)
    }

    fn finish<'r>(self, job: &Job, rows: &'r Rows, found: &mut Entries<'r>) {
        let shape = self.key.shape;
        let mut keys: Vec<Option<String>> = Vec::new();
        keys.resize_with(self.groups.len(), || None);
        for (key, index) in self.by_key {
            if let Some(place) = keys.get_mut(index) {
                *place = Some(key);
            }
        }
        for (group, key) in self.groups.into_iter().zip(keys) {
            let (Some(key), slot) = (key, group.slot) else { continue };
            let count = group.members.len();
            let value = Value::new(rows, group.members, shape);
            let refused = if shape == Shape::Object && count > 1 {
                let message = format!("{count} rows for the object `{key}`; it takes one");
                Some((FailureKind::SeveralRows, message))
            } else if value.len() > job.encoding.max_bytes {
                let (bytes, most) = (value.len(), job.encoding.max_bytes);
                let message = format!("`{key}` has {bytes} bytes; `encode.max_bytes` is {most}");
                found.removals.push(Removal { key: key.clone(), slot });
                Some((FailureKind::ValueTooLarge, message))
            } else {
                None
            };
            if let Some((kind, message)) = refused {
                found.failures.push((slot, failure(kind, self.batch, slot, key, message)));
            } else {
                let ttl = jittered(job.ttl, job.ttl_jitter, &key);
                found.writes.push(Entry { key, slot, value, ttl });
            }
        }
    }
}

/// Where two templates, or two tenants, make one key, the first one keeps it: the keys of a job
/// file stand in their order, and a tenant never overwrites another's.
fn refuse_conflicts(found: &mut Entries<'_>) {
    let mut owners: HashMap<String, usize, RandomState> = HashMap::default();
    let mut conflicts = Vec::new();
    found.writes.retain(|entry| match owners.entry(entry.key.clone()) {
        hash_map::Entry::Vacant(free) => {
            free.insert(entry.slot);
            true
        }
        hash_map::Entry::Occupied(_) => {
            conflicts.push((entry.slot, entry.key.clone()));
            false
        }
    });
    for (slot, key) in conflicts {
        let message = format!("two values for the key `{key}`; the first `[[keys]]` keeps it");
        let failure = Failure {
            kind: FailureKind::KeyConflict,
            tenant: None,
            key: Some(key),
            message,
            count: 1,
        };
        found.failures.push((slot, failure));
    }
}

fn failure(kind: FailureKind, batch: &Batch, slot: usize, key: String, message: String) -> Failure {
    let tenant = batch.tenant(slot).map(|tenant| tenant.id().to_owned());
    Failure { kind, tenant, key: Some(key), message, count: 1 }
}

/// The key of a template; `value` is asked for the date and the columns, in order. `None` where a
/// value is NULL.
fn render<'v>(
    template: &super::key::KeyTemplate,
    tenant: Option<Tenant<'_>>,
    value: impl FnMut(&Placeholder) -> Option<&'v [u8]>,
) -> Option<String> {
    let mut key = String::new();
    render_into(template, tenant, value, &mut key).then_some(key)
}

/// Appends the key; `value` is called once a placeholder, whether its answer is needed or not.
fn render_into<'v>(
    template: &super::key::KeyTemplate,
    tenant: Option<Tenant<'_>>,
    mut value: impl FnMut(&Placeholder) -> Option<&'v [u8]>,
    key: &mut String,
) -> bool {
    for part in template.parts() {
        let placeholder = match part {
            Part::Literal(text) => {
                key.push_str(text);
                continue;
            }
            Part::Placeholder(placeholder) => placeholder,
        };
        let from_row = value(placeholder);
        let text = match placeholder {
            Placeholder::Tenant => tenant.map(|tenant| tenant.id().as_bytes()),
            Placeholder::TenantColumn(name) => {
                tenant.and_then(|tenant| tenant.column(name)).map(str::as_bytes)
            }
            Placeholder::Date | Placeholder::Column(_) => from_row,
        };
        let Some(text) = text else { return false };
        key.push_str(&String::from_utf8_lossy(text));
    }
    true
}

/// The TTL of a key: shortened by up to `jitter`, by a hash of the key, so that keys do not expire
/// together and a key's TTL is the same in every run.
fn jittered(ttl: Duration, jitter: Share, key: &str) -> Duration {
    let hash = rapidhash::v3::rapidhash_v3(key.as_bytes());
    #[expect(clippy::cast_precision_loss, reason = "53 bits are plenty")]
    let uniform = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    let shortened = ttl.mul_f64(1.0 - jitter.fraction() * uniform);
    // Redis takes whole milliseconds, and none is no TTL.
    Duration::from_millis(u64::try_from(shortened.as_millis()).unwrap_or(u64::MAX).max(1))
}
