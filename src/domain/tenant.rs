//! Tenants: the active ones, in the order in which the tenant query returned them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// A tenant's id as text: a UUID in lower case with hyphens, an integer in decimal, text unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// The id with this text. Any text is safe, because ids are parameters of queries and never part of
    /// SQL.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(Arc::from(text.as_ref()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which texts may be tenants' ids, by the type of the id's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IdClass {
    /// UUIDs in lower case with hyphens.
    Uuid,
    /// Integers in decimal.
    Integer,
    /// Any text.
    #[default]
    Text,
}

impl IdClass {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Uuid, Self::Integer, Self::Text];

    /// Whether a text may be an id.
    pub fn fits(self, text: &str) -> bool {
        match self {
            Self::Uuid => is_uuid(text),
            Self::Integer => is_integer(text),
            Self::Text => true,
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let fits = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn is_integer(text: &str) -> bool {
    text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
}

/// A complete tenant list.
///
/// Every run holds its list in memory, so the list is compact: all ids are in one text. The values of
/// other columns repeat (time zones, plans, regions), so the list stores each distinct value once.
#[derive(Clone, Debug, Default)]
pub struct Tenants {
    ids: String,
    ends: Vec<usize>,
    columns: Vec<Column>,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    distinct: Vec<Box<str>>,
    /// For each tenant the index of its value in `distinct`; `None` for NULL.
    values: Vec<Option<u32>>,
    /// Finds the index of a value; only needed while the list grows.
    seen: HashMap<Box<str>, u32>,
}

impl Tenants {
    /// An empty list for tenants that have these columns besides their id.
    pub fn with_columns<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let columns = names
            .into_iter()
            .map(|name| Column {
                name: name.into(),
                distinct: Vec::new(),
                values: Vec::new(),
                seen: HashMap::new(),
            })
            .collect();
        Self { ids: String::new(), ends: Vec::new(), columns }
    }

    /// Adds a tenant: its id, and the values of its columns in the order of [`Self::with_columns`]. A
    /// missing value counts as NULL.
    pub fn push<'a>(&mut self, id: &str, values: impl IntoIterator<Item = Option<&'a str>>) {
        self.ids.push_str(id);
        self.ends.push(self.ids.len());
        let mut values = values.into_iter();
        for column in &mut self.columns {
            let index = values.next().flatten().map(|value| column.intern(value));
            column.values.push(index);
        }
    }

    /// Frees the memory that the list needed only to grow.
    pub fn shrink(&mut self) {
        self.ids.shrink_to_fit();
        self.ends.shrink_to_fit();
        for column in &mut self.columns {
            column.seen = HashMap::new();
            column.values.shrink_to_fit();
        }
    }

    /// The number of tenants.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the list has no tenant.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The tenant at a position of the list.
    pub fn get(&self, position: usize) -> Option<Tenant<'_>> {
        (position < self.len()).then_some(Tenant { list: self, position })
    }

    /// All tenants, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Tenant<'_>> {
        (0..self.len()).map(|position| Tenant { list: self, position })
    }

    /// The list of the tenants for which `wanted` is true, in the same order.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(Tenant<'_>) -> bool) -> Self {
        let mut some = Self::with_columns(self.column_names());
        for tenant in self.iter().filter(|tenant| wanted(*tenant)) {
            some.push(tenant.id(), self.column_names().map(|name| tenant.column(name)));
        }
        some.shrink();
        some
    }

    /// The names of the columns other than the id.
    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }
}

impl Column {
    fn intern(&mut self, value: &str) -> u32 {
        if let Some(&index) = self.seen.get(value) {
            return index;
        }
        let index = u32::try_from(self.distinct.len()).unwrap_or(u32::MAX);
        self.distinct.push(value.into());
        self.seen.insert(value.into(), index);
        index
    }
}

/// One tenant of a list.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'a> {
    list: &'a Tenants,
    position: usize,
}

impl<'a> Tenant<'a> {
    /// The id's text.
    pub fn id(&self) -> &'a str {
        let ends = &self.list.ends;
        let start = self.position.checked_sub(1).and_then(|before| ends.get(before)).copied();
        let end = ends.get(self.position).copied().unwrap_or_default();
        self.list.ids.get(start.unwrap_or(0)..end).unwrap_or_default()
    }

    /// The text of a column; `None` if the column is NULL or does not exist.
    pub fn column(&self, name: &str) -> Option<&'a str> {
        let column = self.list.columns.iter().find(|column| column.name == name)?;
        let index = column.values.get(self.position).copied().flatten()?;
        column.distinct.get(index as usize).map(AsRef::as_ref)
    }
}

/// Some tenants of a list, read with one query and written with one pipeline.
///
/// A tenant's *slot* is its position in the batch; rows and entries refer to their tenant by its slot.
/// A global job (`tenants = false`) has a batch with one slot and no id.
#[derive(Clone, Debug)]
pub struct Batch {
    list: Arc<Tenants>,
    positions: Vec<u32>,
}

impl Batch {
    /// The tenants at these positions of the list.
    pub fn new(list: Arc<Tenants>, positions: Vec<u32>) -> Self {
        Self { list, positions }
    }

    /// The batch of a job without tenants.
    pub fn global() -> Self {
        Self::new(Arc::default(), Vec::new())
    }

    /// The number of tenants.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether the batch has no tenant.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The tenant of a slot.
    pub fn tenant(&self, slot: usize) -> Option<Tenant<'_>> {
        let position = *self.positions.get(slot)?;
        self.list.get(position as usize)
    }

    /// The tenants, in slot order.
    pub fn tenants(&self) -> impl Iterator<Item = Tenant<'_>> {
        self.positions.iter().filter_map(|&position| self.list.get(position as usize))
    }

    /// A batch of the tenants in these slots, in this order. The batch of a job without tenants stays
    /// as is.
    #[must_use]
    pub fn some(&self, slots: impl IntoIterator<Item = usize>) -> Self {
        let positions = slots.into_iter().filter_map(|slot| self.positions.get(slot).copied());
        Self { list: Arc::clone(&self.list), positions: positions.collect() }
    }

    /// Splits the batch into two halves; the first may be larger. A batch with a single slot cannot be
    /// split and is returned as the error.
    pub fn split(self) -> Result<(Self, Self), Self> {
        if self.len() < 2 {
            return Err(self);
        }
        let (first, second) = self.positions.split_at(self.len().div_ceil(2));
        let second = Self { list: Arc::clone(&self.list), positions: second.to_vec() };
        Ok((Self { list: self.list, positions: first.to_vec() }, second))
    }
}

/// Cuts these positions of the list into batches of at most `size` tenants, in their order.
pub fn batches(list: &Arc<Tenants>, positions: &[u32], size: usize) -> Vec<Batch> {
    positions
        .chunks(size.max(1))
        .map(|chunk| Batch::new(Arc::clone(list), chunk.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Tenants {
        let mut list = Tenants::with_columns(["timezone", "plan"]);
        list.push("a", [Some("UTC"), Some("free")]);
        list.push("bb", [Some("Asia/Tokyo"), None]);
        list.push("", [Some("UTC")]);
        list.shrink();
        list
    }

    #[test]
    fn a_text_is_an_id_of_a_class_as_the_database_writes_it() {
        let uuid = "6f1c0c6e-5f0f-4e55-9f53-0f7f4f1f8a11";
        let cases: [(IdClass, &[&str], &[&str]); 3] = [
            (IdClass::Uuid, &[uuid], &["count", "7-0000", "6F1C0C6E-5f0f-4e55-9f53-0f7f4f1f8a11"]),
            (IdClass::Integer, &["7", "-1", "8000"], &["07", "+7", "7:8", "seven", ""]),
            (IdClass::Text, &["7", uuid, "zürich nord", ""], &[]),
        ];
        for (class, fit, others) in cases {
            assert!(fit.iter().all(|text| class.fits(text)), "{class:?}");
            assert!(!others.iter().any(|text| class.fits(text)), "{class:?}");
        }
    }

    #[test]
    fn a_list_gives_back_ids_and_columns() {
        let list = list();
        let ids: Vec<_> = list.iter().map(|tenant| tenant.id()).collect();
        assert_eq!(ids, ["a", "bb", ""]);
        let second = list.get(1).unwrap();
        assert_eq!(second.column("timezone"), Some("Asia/Tokyo"));
        assert_eq!(second.column("plan"), None);
        assert_eq!(second.column("nothing"), None);
        assert_eq!(list.get(2).unwrap().column("timezone"), Some("UTC"));
        assert!(list.get(3).is_none());
    }

    #[test]
    fn a_part_of_a_list_keeps_order_and_columns() {
        let some = list().only(|tenant| tenant.id() != "bb");
        assert_eq!(some.iter().map(|tenant| tenant.id()).collect::<Vec<_>>(), ["a", ""]);
        assert_eq!(some.get(0).unwrap().column("plan"), Some("free"));
        assert_eq!(some.get(1).unwrap().column("plan"), None);
    }

    #[test]
    fn batches_keep_the_order_and_splitting_ends_with_single_tenants() {
        let list = Arc::new(list());
        let batches = batches(&list, &[0, 1, 2], 2);
        assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [2, 1]);
        let (first, second) = batches[0].clone().split().unwrap();
        assert_eq!(first.tenant(0).unwrap().id(), "a");
        assert_eq!(second.tenant(0).unwrap().id(), "bb");
        assert!(first.split().is_err());
    }
}
