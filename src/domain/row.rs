//! The rows of one batch: the JSON of each row, written once, the texts that decide its keys, and the
//! bytes that decide its place within a value.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use super::size;

/// Rows get memory in chunks of this size, so that a growing batch never copies its earlier rows.
const CHUNK_BYTES: usize = 256 * 1024;
/// A chunk with less room than this takes no further row. A row that is longer than the room left makes
/// its chunk move to larger memory.
const LEAST_ROOM: usize = 4 * 1024;
/// Few rows are longer than this: to leave room for them in every chunk would waste memory.
const MOST_ROOM: usize = CHUNK_BYTES / 4;

/// The rows of one batch, in the order in which the query returned them.
///
/// A row's JSON is stored once, however many keys it belongs to. The next batch reuses the same `Rows`:
/// [`Self::reset`] keeps its memory up to a bound.
#[derive(Debug, Default)]
pub struct Rows {
    chunks: Vec<Vec<u8>>,
    /// The index of the chunk that gets the next rows.
    open: usize,
    rows: Vec<Row>,
    /// The texts of the key columns, row after row.
    keys: Vec<u8>,
    /// The end of each text in `keys`; a row has [`Self::key_columns`] texts.
    key_ends: Vec<u32>,
    key_columns: usize,
    /// The order keys, row after row; empty if the rows have none.
    order: Vec<u8>,
    /// The end of each row's order key in `order`.
    order_ends: Vec<u32>,
    json_bytes: usize,
    /// The length of the longest row so far, between [`LEAST_ROOM`] and [`MOST_ROOM`]: a guess for the
    /// next.
    longest: usize,
    limit: Limit,
}

#[derive(Clone, Debug)]
struct Row {
    slot: u32,
    day: Option<u16>,
    chunk: u32,
    json: Range<u32>,
}

/// Whose a row is, and on which day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotDay {
    /// The slot of the row's tenant.
    pub slot: u32,
    /// The position of the row's date among the tenant's dates; `None` if it is none of them.
    pub day: Option<u16>,
}

/// The row of a job without dates.
impl From<u32> for SlotDay {
    fn from(slot: u32) -> Self {
        Self { slot, day: None }
    }
}

/// This bit marks an end in `key_ends` whose column is NULL; offsets stay far below it.
const NULL: u32 = 1 << 31;

/// What the writer of a key column's text did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyText {
    /// It wrote the text.
    Written,
    /// The column is NULL.
    Null,
}

/// How many bytes the rows of one query may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The limit of a batch. A batch with more bytes is split.
    Batch(usize),
    /// The limit of one tenant, or of a job without tenants: `runner.max_tenant_bytes`.
    Tenant(usize),
}

impl Limit {
    /// The number of bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Batch(bytes) | Self::Tenant(bytes) => bytes,
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::Batch(0)
    }
}

impl From<usize> for Limit {
    fn from(bytes: usize) -> Self {
        Self::Batch(bytes)
    }
}

/// The rows take more bytes than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsFull {
    /// The limit that they exceed.
    pub limit: Limit,
}

impl std::error::Error for RowsFull {}

impl fmt::Display for RowsFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Limit::Batch(bytes) => write!(f, "the rows of the batch exceed {bytes} bytes"),
            Limit::Tenant(bytes) => write!(
                f,
                "the rows of one tenant exceed `runner.max_tenant_bytes`, which is {}; hint: select \
                 fewer rows or columns, or raise it together with the worker's memory",
                size::text(bytes)
            ),
        }
    }
}

impl Rows {
    /// Removes all rows and prepares for the next batch: its rows have `key_columns` key columns, and
    /// take at most `limit` bytes together.
    pub fn reset(&mut self, key_columns: usize, limit: impl Into<Limit>) {
        self.chunks.retain(|chunk| chunk.capacity() == CHUNK_BYTES);
        for chunk in &mut self.chunks {
            chunk.clear();
        }
        self.open = 0;
        self.rows.clear();
        self.keys.clear();
        self.key_ends.clear();
        self.key_columns = key_columns;
        self.order.clear();
        self.order_ends.clear();
        self.json_bytes = 0;
        self.longest = LEAST_ROOM;
        self.limit = limit.into();
    }

    /// Frees memory above `keep` bytes.
    pub fn shrink(&mut self, keep: usize) {
        self.chunks.retain(|chunk| chunk.capacity() == CHUNK_BYTES);
        self.chunks.truncate(keep / CHUNK_BYTES);
        self.rows.shrink_to(keep / 64);
        self.keys.shrink_to(keep / 64);
        self.key_ends.shrink_to(keep / 64);
        self.order.shrink_to(keep / 64);
        self.order_ends.shrink_to(keep / 64);
    }

    /// Adds a row of a tenant. First `write` appends the row's JSON to the buffer that it
    /// gets. Then `keys`, called once for each key column, appends the column's text, or returns that
    /// it is NULL.
    ///
    /// If one of the calls fails, no row is added.
    pub fn push<E: From<RowsFull>>(
        &mut self,
        of: impl Into<SlotDay>,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        keys: impl FnMut(usize, &mut Vec<u8>) -> Result<KeyText, E>,
    ) -> Result<(), E> {
        self.push_ordered(of, write, keys, |_| Ok(()))
    }

    /// Like [`Self::push`]; at last, `order` appends the row's order key: bytes that are never empty
    /// and whose order is that of the rows. Either all rows of a batch have one, or none.
    pub fn push_ordered<E: From<RowsFull>>(
        &mut self,
        of: impl Into<SlotDay>,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        mut keys: impl FnMut(usize, &mut Vec<u8>) -> Result<KeyText, E>,
        order: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (index, chunk) = self.open_chunk();
        let start = chunk.len();
        if let Err(error) = write(chunk) {
            chunk.truncate(start);
            return Err(error);
        }
        let end = chunk.len();
        let (keys_start, order_start) = (self.keys.len(), self.order.len());
        let written = (0..self.key_columns).try_for_each(|column| {
            let end = match keys(column, &mut self.keys)? {
                KeyText::Written => offset(self.keys.len()),
                KeyText::Null => offset(self.keys.len()) | NULL,
            };
            self.key_ends.push(end);
            Ok(())
        });
        if let Err(error) = written.and_then(|()| order(&mut self.order)) {
            self.keys.truncate(keys_start);
            self.key_ends.truncate(self.rows.len() * self.key_columns);
            self.order.truncate(order_start);
            if let Some(chunk) = self.chunks.get_mut(index) {
                chunk.truncate(start);
            }
            return Err(error);
        }
        if self.order.len() > order_start {
            self.order_ends.push(offset(self.order.len()));
        }
        self.json_bytes += end - start;
        self.longest = self.longest.max((end - start).min(MOST_ROOM));
        let SlotDay { slot, day } = of.into();
        self.rows.push(Row { slot, day, chunk: offset(index), json: offset(start)..offset(end) });
        if self.bytes() > self.limit.bytes() {
            return Err(RowsFull { limit: self.limit }.into());
        }
        Ok(())
    }

    fn open_chunk(&mut self) -> (usize, &mut Vec<u8>) {
        let longest = self.longest;
        let full = |chunk: &Vec<u8>| {
            let grown = chunk.capacity() > CHUNK_BYTES;
            !chunk.is_empty() && (grown || chunk.capacity() - chunk.len() < longest)
        };
        if self.chunks.get(self.open).is_some_and(full) {
            self.open += 1;
        }
        if self.open >= self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK_BYTES));
        }
        let index = self.open.min(self.chunks.len() - 1);
        #[expect(clippy::indexing_slicing, reason = "the chunk was made above")]
        (index, &mut self.chunks[index])
    }

    /// How many bytes the rows may take.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The memory that the rows take, in bytes.
    pub fn bytes(&self) -> usize {
        self.json_bytes
            + self.keys.len()
            + self.rows.len() * size_of::<Row>()
            + self.order.len()
            + (self.key_ends.len() + self.order_ends.len()) * size_of::<u32>()
    }

    /// The slot of a row's tenant.
    pub fn slot(&self, row: usize) -> Option<usize> {
        self.rows.get(row).map(|row| row.slot as usize)
    }

    /// The position of a row's date among the dates of its tenant; `None` if it is none of them.
    pub fn day(&self, row: usize) -> Option<u16> {
        self.rows.get(row)?.day
    }

    /// A row's JSON.
    pub fn json(&self, row: usize) -> &[u8] {
        let Some(row) = self.rows.get(row) else { return &[] };
        let range = row.json.start as usize..row.json.end as usize;
        self.chunks.get(row.chunk as usize).and_then(|chunk| chunk.get(range)).unwrap_or_default()
    }

    /// The text of a row's key column; `None` for NULL.
    pub fn key(&self, row: usize, column: usize) -> Option<&[u8]> {
        let index = row * self.key_columns + column;
        let start = index.checked_sub(1).and_then(|before| self.key_ends.get(before)).copied();
        let end = *self.key_ends.get(index)?;
        if end & NULL != 0 {
            return None;
        }
        self.keys.get((start.unwrap_or(0) & !NULL) as usize..end as usize)
    }

    /// The rows sorted by slot, order key and JSON, so that a value does not depend on the order in
    /// which its rows arrived. `None` if the rows need no sorting: they have no order keys, or each
    /// slot's rows arrived in order.
    pub fn sorted(&self) -> Option<Vec<u32>> {
        if self.order_ends.is_empty() || self.arrived_in_order() {
            return None;
        }
        let head = |(index, row): (usize, &Row)| (row.slot, self.head(index), offset(index));
        let mut rows: Vec<(u32, u64, u32)> = self.rows.iter().enumerate().map(head).collect();
        rows.sort_unstable_by(|one, other| {
            let heads = (one.0, one.1).cmp(&(other.0, other.1));
            heads.then_with(|| self.compare(one.2 as usize, other.2 as usize))
        });
        Some(rows.into_iter().map(|(_, _, row)| row).collect())
    }

    /// Whether each slot's rows are in order, even if other slots' rows lie between them.
    fn arrived_in_order(&self) -> bool {
        let mut last: Vec<Option<usize>> = Vec::new();
        self.rows.iter().enumerate().all(|(row, Row { slot, .. })| {
            let slot = *slot as usize;
            if last.len() <= slot {
                last.resize(slot + 1, None);
            }
            let before = last.get_mut(slot).and_then(|last| last.replace(row));
            before.is_none_or(|before| self.compare(before, row).is_le())
        })
    }

    fn compare(&self, one: usize, other: usize) -> Ordering {
        let keys = self.order_key(one).cmp(self.order_key(other));
        keys.then_with(|| self.json(one).cmp(self.json(other)))
    }

    fn order_key(&self, row: usize) -> &[u8] {
        let end = |row: usize| self.order_ends.get(row).map_or(0, |end| *end as usize);
        let start = row.checked_sub(1).map_or(0, end);
        self.order.get(start..end(row)).unwrap_or_default()
    }

    /// The first bytes of a row's order key as a number: most comparisons need no more.
    fn head(&self, row: usize) -> u64 {
        let key = self.order_key(row);
        let mut head = [0; 8];
        let length = key.len().min(head.len());
        if let (Some(head), Some(key)) = (head.get_mut(..length), key.get(..length)) {
            head.copy_from_slice(key);
        }
        u64::from_be_bytes(head)
    }
}

/// Offsets have 32 bits: a batch's limit is far below 4 GiB.
fn offset(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(rows: &mut Rows, slot: u32, json: &[u8], keys: &[&str]) -> Result<(), RowsFull> {
        rows.push(
            slot,
            |out| {
                out.extend_from_slice(json);
                Ok(())
            },
            |column, out| {
                if keys[column] == "NULL" {
                    return Ok(KeyText::Null);
                }
                out.extend_from_slice(keys[column].as_bytes());
                Ok(KeyText::Written)
            },
        )
    }

    #[test]
    fn rows_give_back_what_was_put_in_over_many_chunks() {
        let mut rows = Rows::default();
        for _ in 0..2 {
            rows.reset(2, usize::MAX);
            for index in 0..10_000_usize {
                let json = format!("{{\"n\":{index},\"x\":\"{}\"}}", "y".repeat(index % 300));
                push(&mut rows, 7, json.as_bytes(), &[&index.to_string(), "k"]).unwrap();
            }
            let huge = vec![b'z'; 3 * CHUNK_BYTES];
            push(&mut rows, 8, &huge, &["NULL", "last"]).unwrap();
            assert_eq!(rows.len(), 10_001);
            assert!(rows.json(299).starts_with(b"{\"n\":299,"));
            assert_eq!((rows.key(42, 0), rows.key(42, 1)), (Some(&b"42"[..]), Some(&b"k"[..])));
            assert_eq!(rows.json(10_000), huge);
            assert_eq!((rows.key(10_000, 0), rows.key(10_000, 1)), (None, Some(&b"last"[..])));
            assert_eq!((rows.slot(0), rows.slot(10_000)), (Some(7), Some(8)));
        }
        rows.shrink(CHUNK_BYTES);
        assert_eq!(rows.chunks.len(), 1);
    }

    #[test]
    fn chunks_do_not_grow_under_long_rows() {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        for length in (0..400).map(|index| 20_000 + index % 7 * 1_000) {
            push(&mut rows, 0, &vec![b'x'; length], &[]).unwrap();
        }
        // The chunk may have too little room for the first long row; all later ones find enough.
        let grown = rows.chunks.iter().filter(|chunk| chunk.capacity() > CHUNK_BYTES).count();
        assert!(grown <= 1, "{grown} of {} chunks grew", rows.chunks.len());
        let taken: usize = rows.chunks.iter().map(Vec::capacity).sum();
        assert!(taken < rows.json_bytes * 5 / 4, "{taken} for {}", rows.json_bytes);
    }

    #[test]
    fn a_row_that_cannot_be_written_leaves_nothing_behind() {
        let mut rows = Rows::default();
        rows.reset(1, usize::MAX);
        push(&mut rows, 0, b"{}", &["a"]).unwrap();
        let failed: Result<(), RowsFull> = rows.push(
            0,
            |out| {
                out.extend_from_slice(b"half");
                Err(RowsFull { limit: Limit::Batch(0) })
            },
            |_, _| Ok(KeyText::Null),
        );
        failed.unwrap_err();
        push(&mut rows, 1, b"[]", &["b"]).unwrap();
        assert_eq!((rows.len(), rows.json(1), rows.key(1, 0)), (2, &b"[]"[..], Some(&b"b"[..])));
    }

    fn push_ordered(rows: &mut Rows, slot: u32, json: &str, order: &str) -> Result<(), RowsFull> {
        let append = |text: &str, out: &mut Vec<u8>| {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        };
        let no_keys = |_, _: &mut Vec<u8>| Ok(KeyText::Null);
        rows.push_ordered(slot, |out| append(json, out), no_keys, |out| append(order, out))
    }

    #[test]
    fn rows_are_sorted_by_slot_order_key_and_json() {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        let lines = [
            (1, "a", "2"),
            (0, "d", "long key 2"),
            (0, "b", "long key 1"),
            (1, "c", "1"),
            (0, "a", "long key 2"),
            (0, "e", "long"),
        ];
        for (slot, json, order) in lines {
            push_ordered(&mut rows, slot, json, order).unwrap();
        }
        assert_eq!(rows.sorted(), Some(vec![5, 2, 4, 1, 3, 0]));
        assert!(rows.bytes() > lines.iter().map(|(_, _, order)| order.len()).sum());
    }

    #[test]
    fn rows_that_need_no_sorting_are_not_sorted() {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        assert_eq!(rows.sorted(), None);
        for (slot, json) in [(0, "b"), (0, "a")] {
            push(&mut rows, slot, json.as_bytes(), &[]).unwrap();
        }
        assert_eq!(rows.sorted(), None, "without order keys");
        rows.reset(0, usize::MAX);
        for (slot, json, order) in [(1, "z", "1"), (0, "a", "2"), (1, "a", "2"), (0, "b", "2")] {
            push_ordered(&mut rows, slot, json, order).unwrap();
        }
        assert_eq!(rows.sorted(), None, "in order of arrival");
        push_ordered(&mut rows, 1, "b", "1").unwrap();
        assert_eq!(rows.sorted(), Some(vec![1, 3, 4, 0, 2]));
    }

    #[test]
    fn order_keys_count_against_the_limit() {
        let mut rows = Rows::default();
        rows.reset(0, 100);
        let full = push_ordered(&mut rows, 0, "{}", &"x".repeat(100));
        assert_eq!(full, Err(RowsFull { limit: Limit::Batch(100) }));
    }

    #[test]
    fn a_batch_over_its_bound_says_so() {
        let mut rows = Rows::default();
        rows.reset(0, 100);
        assert_eq!(
            push(&mut rows, 0, &[b'x'; 200], &[]),
            Err(RowsFull { limit: Limit::Batch(100) })
        );
        rows.reset(0, Limit::Tenant(1 << 20));
        let full = push(&mut rows, 0, &vec![b'x'; 1 << 20], &[]).unwrap_err();
        assert!(full.to_string().contains("`runner.max_tenant_bytes`, which is 1MiB;"), "{full}");
    }
}
