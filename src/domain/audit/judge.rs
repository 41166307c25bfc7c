//! What is wrong with one key: what the database says against what the cache holds.

use std::time::Duration;

use rapidhash::v3::rapidhash_v3;
use serde::Serialize;

use super::json::{Differences, newest_change};
use crate::domain::entry::Value;

/// What the cache holds of a key.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// Nothing.
    Nothing,
    /// A value, and what is left of its life; `None` where it never expires.
    Value(&'a [u8], Option<Duration>),
    /// Something that is no string, which no reader can read.
    OtherType,
}

/// What a key is held to.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// No key of the job lives longer.
    pub ttl: Duration,
    /// So many differences are described.
    pub differences: usize,
}

/// What can be wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It is there and is another value than the database's.
    Stale,
    /// It is not there and should be.
    Missing,
    /// It is there and should not be: its data is gone.
    Orphaned,
    /// Its value is right and its life is not: it never expires, or not within its job's TTL.
    WrongTtl,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Stale, Self::Missing, Self::Orphaned, Self::WrongTtl];

    /// Its name in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Orphaned => "orphaned",
            Self::WrongTtl => "wrong_ttl",
        }
    }
}

/// A life that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongTtl {
    /// What is left of it; `None` where it never ends.
    pub left: Option<Duration>,
    /// The most that its job gives.
    pub most: Duration,
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What it is.
    pub kind: Kind,
    /// Where the values differ, for one that is stale.
    pub differences: Differences,
    /// By how much its newest row is older than the database's, for one that is stale and says so.
    pub behind: Option<Duration>,
    /// Its life, where that is wrong as well.
    pub ttl: Option<WrongTtl>,
    /// Marks of both sides.
    pub marks: Marks,
}

/// Marks of what the database says and what the cache holds: equal ones are, but for a collision,
/// equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    database: Option<u64>,
    cache: Option<u64>,
}

impl Marks {
    /// Whether both sides are other values than they were: what differs now is not what differed
    /// then.
    pub fn both_moved(self, before: Self) -> bool {
        self.database != before.database && self.cache != before.cache
    }
}

/// Judges a key; `expected` is `None` where it should not be there. `None` is: all is well.
pub fn judge(expected: Option<&Value<'_>>, held: Held<'_>, measure: Measure) -> Option<Wrong> {
    let Some(expected) = expected else { return judge_unexpected(held) };
    match held {
        Held::Nothing => Some(Wrong::new(Kind::Missing, Some(&expected.to_vec()), None)),
        Held::OtherType => {
            let text = expected.to_vec();
            let database = format!("JSON of {} bytes", text.len());
            let differences = Differences::whole(database, "no string of Redis".to_owned());
            Some(Wrong { differences, ..Wrong::new(Kind::Stale, Some(&text), None) })
        }
        Held::Value(found, left) => {
            let is_wrong = left.is_none_or(|left| left > measure.ttl);
            let ttl = is_wrong.then_some(WrongTtl { left, most: measure.ttl });
            if is_bytes(expected, found) {
                return ttl.map(|ttl| Wrong::ttl(ttl, found));
            }
            let text = expected.to_vec();
            let database = String::from_utf8_lossy(&text);
            let differences = Differences::between(&database, found, measure.differences);
            if differences.first.is_empty() {
                return ttl.map(|ttl| Wrong::ttl(ttl, found));
            }
            let behind = behind(&database, found);
            let wrong = Wrong::new(Kind::Stale, Some(&text), Some(found));
            Some(Wrong { differences, behind, ttl, ..wrong })
        }
    }
}

fn judge_unexpected(held: Held<'_>) -> Option<Wrong> {
    match held {
        Held::Nothing => None,
        Held::OtherType => Some(Wrong::new(Kind::Orphaned, None, None)),
        Held::Value(found, _) => Some(Wrong::new(Kind::Orphaned, None, Some(found))),
    }
}

impl Wrong {
    fn new(kind: Kind, database: Option<&[u8]>, cache: Option<&[u8]>) -> Self {
        let marks = Marks { database: database.map(rapidhash_v3), cache: cache.map(rapidhash_v3) };
        Self { kind, differences: Differences::default(), behind: None, ttl: None, marks }
    }

    fn ttl(ttl: WrongTtl, value: &[u8]) -> Self {
        Self { ttl: Some(ttl), ..Self::new(Kind::WrongTtl, Some(value), Some(value)) }
    }
}

/// Whether a value is these bytes, without putting it together.
fn is_bytes(value: &Value<'_>, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    value.len() == bytes.len()
        && value.pieces().all(|piece| {
            let after = rest.strip_prefix(piece);
            rest = after.unwrap_or_default();
            after.is_some()
        })
}

fn behind(database: &str, cache: &[u8]) -> Option<Duration> {
    let cache = newest_change(std::str::from_utf8(cache).ok()?)?;
    let behind = (newest_change(database)? - cache).to_std().ok()?;
    (!behind.is_zero()).then_some(behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::Shape;
    use crate::domain::row::{KeyText, Rows, RowsFull};

    const TTL: Duration = Duration::from_mins(30);
    const MEASURE: Measure = Measure { ttl: TTL, differences: 4 };

    fn rows(lines: &[&str]) -> Rows {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        for line in lines {
            let pushed: Result<(), RowsFull> = rows.push(
                0,
                |out| {
                    out.extend_from_slice(line.as_bytes());
                    Ok(())
                },
                |_, _| Ok(KeyText::Null),
            );
            pushed.unwrap();
        }
        rows
    }

    fn of_list(lines: &[&str], held: Held<'_>) -> Option<Wrong> {
        let rows = rows(lines);
        let members = (0..u32::try_from(lines.len()).unwrap()).collect();
        judge(Some(&Value::new(&rows, members, Shape::List)), held, MEASURE)
    }

    fn kind(wrong: Option<Wrong>) -> Option<Kind> {
        wrong.map(|wrong| wrong.kind)
    }

    #[test]
    fn a_key_is_judged_by_its_value_and_its_life() {
        let short = Some(Duration::from_secs(3));
        for (held, expected) in [
            (Held::Value(b"[1,2]", Some(TTL)), None),
            (Held::Value(b"[1,2]", short), None),
            (Held::Value(b" [ 1.0, 2 ]", short), None),
            (Held::Nothing, Some(Kind::Missing)),
            (Held::Value(b"[1,3]", Some(TTL)), Some(Kind::Stale)),
            (Held::Value(b"[1,2,3]", Some(TTL)), Some(Kind::Stale)),
            (Held::Value(b"[1]", Some(TTL)), Some(Kind::Stale)),
            (Held::Value(b"[1,3]", None), Some(Kind::Stale)),
            (Held::OtherType, Some(Kind::Stale)),
            (Held::Value(b"[1,2]", None), Some(Kind::WrongTtl)),
            (Held::Value(b"[1, 2]", None), Some(Kind::WrongTtl)),
            (Held::Value(b"[1,2]", Some(TTL + Duration::from_millis(1))), Some(Kind::WrongTtl)),
        ] {
            assert_eq!(kind(of_list(&["1", "2"], held)), expected, "{held:?}");
        }
        for (held, expected) in [
            (Held::Nothing, None),
            (Held::Value(b"[]", short), Some(Kind::Orphaned)),
            (Held::OtherType, Some(Kind::Orphaned)),
        ] {
            assert_eq!(kind(judge(None, held, MEASURE)), expected, "{held:?}");
        }
    }

    #[test]
    fn a_stale_value_says_where_and_by_how_much() {
        let row = |price, at| format!("{{\"price\":{price},\"updated_at\":\"{at}\"}}");
        let new = row("12.50", "2026-03-01T10:00:12.000Z");
        let old = format!("[{}]", row("13.00", "2026-03-01T10:00:00.500Z"));
        let wrong = of_list(&[&new], Held::Value(old.as_bytes(), None)).unwrap();
        assert_eq!(wrong.behind, Some(Duration::from_millis(11_500)));
        assert_eq!(wrong.differences.first[0].to_string(), "[0].price: 12.50 ≠ 13.00");
        assert_eq!(wrong.ttl, Some(WrongTtl { left: None, most: TTL }));
        // A row that was deleted leaves the cache with the newer one.
        let wrong = of_list(&[], Held::Value(old.as_bytes(), Some(TTL))).unwrap();
        assert_eq!(wrong.behind, None);
    }

    #[test]
    fn marks_tell_whether_it_is_still_the_same_difference() {
        let marks = |lines: &[&str], cache: &[u8]| {
            of_list(lines, Held::Value(cache, Some(TTL))).unwrap().marks
        };
        let first = marks(&["1"], b"[0]");
        assert!(!marks(&["1"], b"[0]").both_moved(first));
        assert!(!marks(&["2"], b"[0]").both_moved(first), "the cache holds the same old value");
        assert!(!marks(&["1"], b"[5]").both_moved(first), "the database has long been at rest");
        assert!(marks(&["2"], b"[1]").both_moved(first), "one write behind, each time another");
    }
}
