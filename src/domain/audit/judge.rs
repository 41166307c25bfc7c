//! Judges one key: compares the database's value with what the cache holds.

use std::fmt;
use std::time::Duration;

use rapidhash::v3::rapidhash_v3;
use schemars::JsonSchema;
use serde::Serialize;

use super::json::{Differences, newest_change};
use crate::domain::entry::Value;

/// What the cache holds under a key.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// Nothing.
    Nothing,
    /// A value and its remaining TTL; `None` if the key never expires.
    Value(&'a [u8], Option<Duration>),
    /// A Redis type other than a string, which no reader of the key expects.
    OtherType,
}

/// The limits for judging a key.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// The longest TTL that the job gives to a key.
    pub ttl: Duration,
    /// How many differences are described at most.
    pub differences: usize,
    /// Whether the beginnings of values that differ are kept.
    pub values: Keep,
}

/// Whether a judgement keeps the beginnings of the values that it compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// It does not.
    #[default]
    Nothing,
    /// It keeps the first [`MAX_VALUE`] bytes of each.
    Beginnings,
}

/// How many bytes of a value are kept.
pub const MAX_VALUE: usize = 2_000;

/// The beginnings of both values of a key. They are private data: for people who may change something, and never
/// for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// What the database's rows make; `None` if they make no value.
    pub database: Option<Beginning>,
    /// What the cache has; `None` if it has nothing, or no Redis string.
    pub cache: Option<Beginning>,
}

/// The beginning of a value, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Beginning {
    /// At most [`MAX_VALUE`] bytes of it. Bytes that are not UTF-8 are replaced.
    pub text: String,
    /// How many bytes the whole value has.
    pub bytes: usize,
    /// Whether the text is only a part of the value.
    pub is_cut: bool,
}

impl Beginning {
    fn of(value: &[u8]) -> Self {
        let first = value.get(..MAX_VALUE).unwrap_or(value);
        let is_cut = first.len() < value.len();
        let whole = match std::str::from_utf8(first) {
            // The cut goes through a character, which is left out.
            Err(error) if is_cut && error.error_len().is_none() => error.valid_up_to(),
            Ok(_) | Err(_) => first.len(),
        };
        let text = String::from_utf8_lossy(first.get(..whole).unwrap_or(first)).into_owned();
        Self { text, bytes: value.len(), is_cut }
    }
}

/// Without the text, so that no log shows it by mistake.
impl fmt::Debug for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beginning").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The ways in which a key can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "FindingKind")]
pub enum Kind {
    /// The key is there, but its value is not the database's.
    Stale,
    /// The key should be there, but is not.
    Missing,
    /// The key is there, but should not be: its data is gone.
    Orphaned,
    /// The value is right, but the TTL is not: the key never expires, or not within its job's TTL.
    WrongTtl,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Stale, Self::Missing, Self::Orphaned, Self::WrongTtl];

    /// The kind's name in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Orphaned => "orphaned",
            Self::WrongTtl => "wrong_ttl",
        }
    }
}

/// A TTL that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongTtl {
    /// The remaining TTL; `None` if the key never expires.
    pub left: Option<Duration>,
    /// The longest TTL that its job gives.
    pub most: Duration,
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The kind of fault.
    pub kind: Kind,
    /// Where the values differ; only for a stale key.
    pub differences: Differences,
    /// How much older the newest row of a stale value is than the database's; `None` if the rows do not
    /// say.
    pub behind: Option<Duration>,
    /// The key's TTL, if that is wrong too.
    pub ttl: Option<WrongTtl>,
    /// The hashes of both sides.
    pub marks: Marks,
    /// The beginnings of both values, if they were to be kept and differ.
    pub values: Option<Box<Values>>,
}

/// Hashes of the database's value and of the cache's value. Equal hashes mean equal values, except for a
/// collision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    database: Option<u64>,
    cache: Option<u64>,
}

impl Marks {
    /// Whether both sides have other values than before, so that the present difference is not the
    /// earlier one.
    pub fn both_moved(self, before: Self) -> bool {
        self.database != before.database && self.cache != before.cache
    }
}

/// Judges a key. `expected` is `None` if the key should not be there. The result is `None` if nothing is
/// wrong.
pub fn judge(expected: Option<&Value<'_>>, held: Held<'_>, measure: Measure) -> Option<Wrong> {
    let Some(expected) = expected else { return judge_unexpected(held, measure.values) };
    match held {
        Held::Nothing => {
            Some(Wrong::differs(Kind::Missing, Some(&expected.to_vec()), None, measure.values))
        }
        Held::OtherType => {
            let text = expected.to_vec();
            let database = format!("JSON of {} bytes", text.len());
            let differences = Differences::whole(database, "not a Redis string".to_owned());
            let wrong = Wrong::differs(Kind::Stale, Some(&text), None, measure.values);
            Some(Wrong { differences, ..wrong })
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
            let wrong = Wrong::differs(Kind::Stale, Some(&text), Some(found), measure.values);
            Some(Wrong { differences, behind, ttl, ..wrong })
        }
    }
}

fn judge_unexpected(held: Held<'_>, values: Keep) -> Option<Wrong> {
    match held {
        Held::Nothing => None,
        Held::OtherType => Some(Wrong::differs(Kind::Orphaned, None, None, values)),
        Held::Value(found, _) => Some(Wrong::differs(Kind::Orphaned, None, Some(found), values)),
    }
}

impl Wrong {
    fn new(kind: Kind, database: Option<&[u8]>, cache: Option<&[u8]>) -> Self {
        let marks = Marks { database: database.map(rapidhash_v3), cache: cache.map(rapidhash_v3) };
        let (differences, behind, ttl, values) = (Differences::default(), None, None, None);
        Self { kind, differences, behind, ttl, marks, values }
    }

    /// A key whose values differ.
    fn differs(kind: Kind, database: Option<&[u8]>, cache: Option<&[u8]>, values: Keep) -> Self {
        let values = match values {
            Keep::Nothing => None,
            Keep::Beginnings => Some(Box::new(Values {
                database: database.map(Beginning::of),
                cache: cache.map(Beginning::of),
            })),
        };
        Self { values, ..Self::new(kind, database, cache) }
    }

    fn ttl(ttl: WrongTtl, value: &[u8]) -> Self {
        Self { ttl: Some(ttl), ..Self::new(Kind::WrongTtl, Some(value), Some(value)) }
    }
}

/// Whether a value's text is these bytes; does not put the text together.
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
    const MEASURE: Measure = Measure { ttl: TTL, differences: 4, values: Keep::Nothing };

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
        // After the newest row is deleted, the cache has the newer row.
        let wrong = of_list(&[], Held::Value(old.as_bytes(), Some(TTL))).unwrap();
        assert_eq!(wrong.behind, None);
    }

    #[test]
    fn the_beginnings_of_both_values_are_kept_where_they_differ_and_are_not_debugged() {
        let keep = Measure { values: Keep::Beginnings, ..MEASURE };
        let (long, rows) = (format!("\"{}\"", "é".repeat(MAX_VALUE)), rows(&["1"]));
        let value = Value::new(&rows, vec![0], Shape::List);
        let values = |expected: Option<&Value<'_>>, held| {
            let values = *judge(expected, held, keep).unwrap().values.unwrap();
            assert!(!format!("{values:?}").contains("é"), "{values:?}");
            (values.database, values.cache)
        };
        let one = Beginning { text: "[1]".to_owned(), bytes: 3, is_cut: false };
        let (database, cache) = values(Some(&value), Held::Value(long.as_bytes(), Some(TTL)));
        assert_eq!(database, Some(one.clone()));
        let cache = cache.unwrap();
        assert_eq!((cache.bytes, cache.is_cut), (2 * MAX_VALUE + 2, true));
        assert_eq!(cache.text, format!("\"{}", "é".repeat(MAX_VALUE / 2 - 1)), "no half character");
        assert_eq!(values(Some(&value), Held::Nothing), (Some(one), None));
        let (database, cache) = values(None, Held::Value(b"\xff\0", None));
        assert_eq!((database, cache.unwrap().text), (None, "\u{fffd}\0".to_owned()));
        let same = judge(Some(&value), Held::Value(b"[1]", None), keep).unwrap();
        assert_eq!((same.kind, same.values), (Kind::WrongTtl, None));
        let other = Held::Value(b"[2]", Some(TTL));
        assert_eq!(judge(Some(&value), other, MEASURE).unwrap().values, None);
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
