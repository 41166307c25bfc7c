//! How much of the cache's memory keys take, computed without writing any: a model of Redis.
//!
//! Redis' `used_memory` is the sum of its allocations as jemalloc rounds them. A key of a database is an
//! entry of its table, its name, and its value; one that expires has an entry in a second table, which
//! shares the name. The sizes are those of Redis 5 to 7.2 on 64 bits; servers that keep name and value
//! in one allocation (Redis 8, Valkey 8) take some tens of bytes a key less. The tests hold the model to
//! a real server.

/// A pointer.
const POINTER: u64 = 8;
/// `dictEntry`: key, value, next.
const TABLE_ENTRY: u64 = 3 * POINTER;
/// `robj`, which stands before each value.
const OBJECT: u64 = 16;
/// A table has one to two buckets an entry.
const BUCKETS: u64 = POINTER * 3 / 2;
/// A longer string is an allocation beside its object.
const LONGEST_EMBEDDED: u64 = 44;
/// Head and end of a listpack.
const LISTPACK: u64 = 7;
/// Up to this many elements, each of at most this many bytes, are stored in one listpack.
const SORTED_SET_LISTPACK: u64 = 128;
const HASH_LISTPACK: u64 = 512;
const LONGEST_IN_LISTPACK: u64 = 64;
/// A moment in milliseconds in a listpack: an integer of 64 bits.
const SCORE: u64 = 10;
/// `zskiplistNode` of one level, and each further level; on average an element has a third of one.
const SKIPLIST_NODE: u64 = 40;
const SKIPLIST_LEVEL: u64 = 16;
/// The heads of a sorted set: `zset`, `zskiplist`, its first node with all levels, `dict`.
const SORTED_SET: [u64; 4] = [16, 32, 536, 56];

/// How many bytes an allocation takes: jemalloc has four size classes for each doubling.
fn allocated(bytes: u64) -> u64 {
    const SMALLEST: u64 = 8;
    const QUANTUM: u64 = 16;
    if bytes <= SMALLEST {
        return SMALLEST;
    }
    let doubling: u64 = 1 << (bytes - 1).ilog2();
    let spacing = (doubling / 4).max(QUANTUM);
    bytes.next_multiple_of(spacing)
}

/// A string as Redis stores it: a header that depends on the length, the text, a zero byte.
fn text(length: u64) -> u64 {
    let head = match length {
        0..32 => 1,
        32..256 => 3,
        256..65_536 => 5,
        _ => 9,
    };
    allocated(head + length + 1)
}

/// The bytes of an expiring key, without its value.
fn key(name: u64) -> u64 {
    let tables = 2 * (allocated(TABLE_ENTRY) + BUCKETS);
    tables + text(name)
}

/// A key with a name of this many bytes, whose value is a text of this many.
pub fn string(name: u64, value: u64) -> u64 {
    // Head and end of the text stand in the object's allocation.
    const EMBEDDED: u64 = OBJECT + 3 + 1;
    let value =
        if value <= LONGEST_EMBEDDED { allocated(EMBEDDED + value) } else { OBJECT + text(value) };
    key(name) + value
}

/// A key whose value is a number.
pub fn number(name: u64) -> u64 {
    key(name) + OBJECT
}

/// A key whose value is a sorted set of members of these lengths, with moments as scores.
pub fn sorted_set(name: u64, members: &[u64]) -> u64 {
    let is_small = members.len() as u64 <= SORTED_SET_LISTPACK
        && members.iter().all(|length| *length <= LONGEST_IN_LISTPACK);
    let value = if is_small {
        allocated(LISTPACK + members.iter().map(|length| packed(*length) + SCORE).sum::<u64>())
    } else {
        let heads: u64 = SORTED_SET.iter().copied().map(allocated).sum();
        let node = allocated(SKIPLIST_NODE) + SKIPLIST_LEVEL / 3;
        let each = node + allocated(TABLE_ENTRY) + BUCKETS;
        heads + members.iter().map(|length| text(*length) + each).sum::<u64>()
    };
    key(name) + OBJECT + value
}

/// A key whose value is a hash of fields and values of these lengths.
pub fn hash(name: u64, fields: &[(u64, u64)]) -> u64 {
    let is_small = fields.len() as u64 <= HASH_LISTPACK
        && fields.iter().all(|(field, value)| (*field).max(*value) <= LONGEST_IN_LISTPACK);
    let value = if is_small {
        let each = fields.iter().map(|(field, value)| packed(*field) + packed(*value));
        allocated(LISTPACK + each.sum::<u64>())
    } else {
        let each = allocated(TABLE_ENTRY) + BUCKETS;
        fields.iter().map(|(field, value)| text(*field) + text(*value) + each).sum()
    };
    key(name) + OBJECT + value
}

/// A text in a listpack, with its lengths before and behind it.
fn packed(length: u64) -> u64 {
    let head = if length < 64 { 1 } else { 2 };
    let back = if head + length < 128 { 1 } else { 2 };
    head + length + back
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_takes_the_next_size_class() {
        let classes = [
            (1, 8),
            (8, 8),
            (9, 16),
            (24, 32),
            (100, 112),
            (128, 128),
            (129, 160),
            (257, 320),
            (513, 640),
            (5_000, 5_120),
            (20_481, 24_576),
        ];
        for (bytes, class) in classes {
            assert_eq!(allocated(bytes), class, "{bytes}");
        }
    }
}
