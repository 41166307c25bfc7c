//! The rows of one batch: their JSON, written once, and what places each in its keys.

use std::fmt;
use std::ops::Range;

use super::size;

/// Memory is taken in pieces of this size, so that a growing batch never copies what it has.
const CHUNK_BYTES: usize = 256 * 1024;
/// A chunk with less room than this takes no further row: one that turns out longer than its room
/// makes the chunk move.
const LEAST_ROOM: usize = 4 * 1024;
/// Rows that are longer are few: the room that chunks keep for them would be wasted.
const MOST_ROOM: usize = CHUNK_BYTES / 4;

/// The rows of one batch, in the order in which the query returned them.
///
/// A row's JSON stands in one place however many keys it belongs to. `Rows` is reused from batch to
/// batch: [`Self::reset`] keeps the memory up to a bound.
#[derive(Debug, Default)]
pub struct Rows {
    chunks: Vec<Vec<u8>>,
    /// The chunk that grows.
    open: usize,
    rows: Vec<Row>,
    /// The key columns' values of all rows, each row's one after another.
    keys: Vec<u8>,
    /// Where each value ends in `keys`; a row has [`Self::key_columns`] of them.
    key_ends: Vec<u32>,
    key_columns: usize,
    json_bytes: usize,
    /// The longest row so far, between [`LEAST_ROOM`] and [`MOST_ROOM`]: the next is as long.
    longest: usize,
    limit: Limit,
}

#[derive(Clone, Debug)]
struct Row {
    slot: u32,
    chunk: u32,
    json: Range<u32>,
}

/// Marks an end in `key_ends` whose value is NULL; offsets stay far below it.
const NULL: u32 = 1 << 31;

/// What a key column's writer did.
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
    /// Of a batch. One that takes more is split.
    Batch(usize),
    /// Of one tenant, or of the fleet of a job without tenants: `runner.max_tenant_bytes`.
    Tenant(usize),
}

impl Limit {
    fn bytes(self) -> usize {
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

/// The rows take more bytes than they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsFull {
    /// The bound that was reached.
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
    /// Empties it for a batch whose rows have `key_columns` values for their keys, and which may
    /// take at most `limit` bytes.
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
        self.json_bytes = 0;
        self.longest = LEAST_ROOM;
        self.limit = limit.into();
    }

    /// Gives memory above `keep` bytes back.
    pub fn shrink(&mut self, keep: usize) {
        self.chunks.retain(|chunk| chunk.capacity() == CHUNK_BYTES);
        self.chunks.truncate(keep / CHUNK_BYTES);
        self.rows.shrink_to(keep / 64);
        self.keys.shrink_to(keep / 64);
        self.key_ends.shrink_to(keep / 64);
    }

    /// Adds a row of the tenant in `slot`: `write` puts its JSON at the end of the buffer it is
    /// given, then `keys`, called once a key column, that column's text, or it says that it is NULL.
    ///
    /// Where one of them fails, nothing was added.
    pub fn push<E: From<RowsFull>>(
        &mut self,
        slot: u32,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        mut keys: impl FnMut(usize, &mut Vec<u8>) -> Result<KeyText, E>,
    ) -> Result<(), E> {
        let (index, chunk) = self.open_chunk();
        let start = chunk.len();
        if let Err(error) = write(chunk) {
            chunk.truncate(start);
            return Err(error);
        }
        let end = chunk.len();
        let keys_start = self.keys.len();
        for column in 0..self.key_columns {
            match keys(column, &mut self.keys) {
                Ok(KeyText::Written) => self.key_ends.push(offset(self.keys.len())),
                Ok(KeyText::Null) => self.key_ends.push(offset(self.keys.len()) | NULL),
                Err(error) => {
                    self.keys.truncate(keys_start);
                    self.key_ends.truncate(self.rows.len() * self.key_columns);
                    if let Some(chunk) = self.chunks.get_mut(index) {
                        chunk.truncate(start);
                    }
                    return Err(error);
                }
            }
        }
        self.json_bytes += end - start;
        self.longest = self.longest.max((end - start).min(MOST_ROOM));
        self.rows.push(Row { slot, chunk: offset(index), json: offset(start)..offset(end) });
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

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.json_bytes
            + self.keys.len()
            + self.rows.len() * size_of::<Row>()
            + self.key_ends.len() * size_of::<u32>()
    }

    /// The slot of a row's tenant.
    pub fn slot(&self, row: usize) -> Option<usize> {
        self.rows.get(row).map(|row| row.slot as usize)
    }

    /// A row's JSON.
    pub fn json(&self, row: usize) -> &[u8] {
        let Some(row) = self.rows.get(row) else { return &[] };
        let range = row.json.start as usize..row.json.end as usize;
        self.chunks.get(row.chunk as usize).and_then(|chunk| chunk.get(range)).unwrap_or_default()
    }

    /// The text of a row's key column; `None` where it is NULL.
    pub fn key(&self, row: usize, column: usize) -> Option<&[u8]> {
        let index = row * self.key_columns + column;
        let start = index.checked_sub(1).and_then(|before| self.key_ends.get(before)).copied();
        let end = *self.key_ends.get(index)?;
        if end & NULL != 0 {
            return None;
        }
        self.keys.get((start.unwrap_or(0) & !NULL) as usize..end as usize)
    }
}

/// Offsets are 32 bits wide: a batch is bounded far below 4 GiB.
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
        // The first long row may come when its chunk has little room, the rest find enough.
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
