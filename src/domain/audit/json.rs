//! Finds where two JSON texts differ, with JavaScript's rules: numbers are compared by value, the order
//! of an object's members does not matter, and of two members with one name the last one counts.
//!
//! The comparison parses level by level, and only parts whose bytes differ. It never builds a tree of
//! the whole value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, NaiveDateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

/// Below this depth two texts count as equal only if they are the same bytes, because each level costs
/// a parse of everything below it.
const MAX_DEPTH: usize = 64;
/// How many characters of a value are shown.
const SHOWN: usize = 60;
/// Names of members that usually hold the time of a row's last change.
const CHANGED_AT: [&str; 8] = [
    "updated_at",
    "updatedAt",
    "modified_at",
    "modifiedAt",
    "changed_at",
    "changedAt",
    "last_modified",
    "lastModified",
];
/// Shown for the side that has no value at a place.
const ABSENT: &str = "(nothing)";

/// One place where two values differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Difference {
    /// The place, as in `[3].price`; empty if the whole values differ.
    pub path: String,
    /// The database's value there, shortened.
    pub database: String,
    /// The cache's value there, shortened.
    pub cache: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, database, cache } = self;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        write!(f, "{database} ≠ {cache}")
    }
}

/// The first places where two values differ; empty if they are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first differences.
    pub first: Vec<Difference>,
    /// Whether there are more differences.
    pub more: bool,
}

impl Differences {
    /// The first `most` differences between the database's text and the cache's.
    pub fn between(database: &str, cache: &[u8], most: usize) -> Self {
        let found = std::str::from_utf8(cache).ok();
        let Some(found) = found.and_then(|text| serde_json::from_str::<&RawValue>(text).ok())
        else {
            let database = format!("JSON of {} bytes", database.len());
            return Self::whole(database, format!("{} bytes that are not JSON", cache.len()));
        };
        let mut walk = Walk { most, path: String::new(), depth: 0, found: Self::default() };
        walk.values(database.trim(), found.get());
        walk.found
    }

    /// A single difference that concerns the whole values.
    pub fn whole(database: String, cache: String) -> Self {
        let first = vec![Difference { path: String::new(), database, cache }];
        Self { first, more: false }
    }
}

/// A walk over two values at the same time.
struct Walk {
    most: usize,
    path: String,
    depth: usize,
    found: Differences,
}

type Members<'t> = BTreeMap<String, &'t RawValue>;
type Elements<'t> = Vec<&'t RawValue>;

impl Walk {
    fn values(&mut self, database: &str, cache: &str) {
        if database == cache || self.found.more {
            return;
        }
        if self.depth < MAX_DEPTH {
            if let (Some(one), Some(other)) = (read::<Elements<'_>>(database), read(cache)) {
                return self.lists(&one, &other);
            }
            if let (Some(one), Some(other)) = (read::<Members<'_>>(database), read(cache)) {
                return self.objects(&one, &other);
            }
        }
        if !same_scalar(database, cache) {
            self.note(shown(database), shown(cache));
        }
    }

    fn objects(&mut self, database: &Members<'_>, cache: &Members<'_>) {
        let names: BTreeSet<&String> = database.keys().chain(cache.keys()).collect();
        for name in names {
            let at = member(&self.path, name);
            match (database.get(name), cache.get(name)) {
                (Some(one), Some(other)) => self.within(at, one.get(), other.get()),
                (one, other) => self.one_sided(at, one.copied(), other.copied()),
            }
        }
    }

    fn lists(&mut self, database: &Elements<'_>, cache: &Elements<'_>) {
        if database.len() == cache.len() {
            if has_same_texts(database, cache) {
                let count = database.len();
                self.note(format!("{count} rows"), "the same rows in another order".to_owned());
                return;
            }
            for (index, (one, other)) in database.iter().zip(cache).enumerate() {
                self.within(format!("{}[{index}]", self.path), one.get(), other.get());
            }
            return;
        }
        self.lists_of_two_lengths(database, cache);
    }

    /// Equal rows at the beginning and at the end of both lists are not differences.
    fn lists_of_two_lengths(&mut self, database: &Elements<'_>, cache: &Elements<'_>) {
        let same = |(one, other): &(&&RawValue, &&RawValue)| is_same(one.get(), other.get());
        let shorter = database.len().min(cache.len());
        let before = database.iter().zip(cache).take_while(same).count();
        let after = database.iter().rev().zip(cache.iter().rev()).take_while(same).count();
        let after = after.min(shorter - before);
        let one = database.get(before..database.len() - after).unwrap_or_default();
        let other = cache.get(before..cache.len() - after).unwrap_or_default();
        if !one.is_empty() && !other.is_empty() {
            let rows = |list: &Elements<'_>| format!("{} rows", list.len());
            self.note(rows(database), rows(cache));
        }
        for offset in 0..one.len().max(other.len()) {
            let at = format!("{}[{}]", self.path, before + offset);
            match (one.get(offset), other.get(offset)) {
                (Some(one), Some(other)) => self.within(at, one.get(), other.get()),
                (one, other) => self.one_sided(at, one.copied(), other.copied()),
            }
        }
    }

    fn within(&mut self, path: String, database: &str, cache: &str) {
        let above = std::mem::replace(&mut self.path, path);
        self.depth += 1;
        self.values(database, cache);
        self.depth -= 1;
        self.path = above;
    }

    fn one_sided(&mut self, path: String, database: Option<&RawValue>, cache: Option<&RawValue>) {
        let text = |side: Option<&RawValue>| match side {
            Some(value) => shown(value.get()),
            None => ABSENT.to_owned(),
        };
        let above = std::mem::replace(&mut self.path, path);
        self.note(text(database), text(cache));
        self.path = above;
    }

    fn note(&mut self, database: String, cache: String) {
        if self.found.first.len() < self.most {
            let path = self.path.clone();
            self.found.first.push(Difference { path, database, cache });
        } else {
            self.found.more = true;
        }
    }
}

fn read<'t, T: serde::Deserialize<'t>>(text: &'t str) -> Option<T> {
    serde_json::from_str(text).ok()
}

fn is_same(database: &str, cache: &str) -> bool {
    let mut walk = Walk { most: 0, path: String::new(), depth: 0, found: Differences::default() };
    walk.values(database, cache);
    !walk.found.more
}

/// Whether two scalars are equal: numbers as JavaScript reads them, so that `12.50` equals `12.5`, and
/// strings after their escapes are resolved.
fn same_scalar(database: &str, cache: &str) -> bool {
    let number = |text: &str| -> Option<f64> {
        let is_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        // serde_json's fast parser may be wrong in the last digit, so it is not used here.
        text.parse().ok().filter(|_| is_number)
    };
    if let (Some(one), Some(other)) = (number(database), number(cache)) {
        #[expect(clippy::float_cmp, reason = "equal means exactly the same number")]
        return one == other;
    }
    let string = |text| read::<String>(text);
    string(database).is_some_and(|one| string(cache).as_ref() == Some(&one))
}

fn has_same_texts(database: &Elements<'_>, cache: &Elements<'_>) -> bool {
    let sorted = |list: &Elements<'_>| {
        let mut texts: Vec<String> = list.iter().map(|value| value.get().to_owned()).collect();
        texts.sort_unstable();
        texts
    };
    // Sort only if several rows are at other places: a single changed row is no other order.
    let moved = database.iter().zip(cache).filter(|(one, other)| one.get() != other.get()).count();
    moved > 1 && sorted(database) == sorted(cache)
}

fn member(path: &str, name: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || char == '_' || char == '$';
    if name.is_empty() || !name.chars().all(plain) {
        return format!("{path}[{}]", shown(&format!("{name:?}")));
    }
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A text, shortened and made safe for a terminal.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (index, char) in text.chars().enumerate() {
        if index == SHOWN {
            shown.push('…');
            break;
        }
        match char {
            '"' | '\'' | '\\' => shown.push(char),
            _ => shown.extend(char.escape_debug()),
        }
    }
    shown
}

/// The time of the newest change of a row in this value; `None` if no row says when it changed.
pub(super) fn newest_change(text: &str) -> Option<DateTime<Utc>> {
    let changed = |row: &RawValue| {
        let row = read::<Members<'_>>(row.get())?;
        let found = CHANGED_AT.iter().filter_map(|name| row.get(*name));
        found.filter_map(|value| moment(&read::<String>(value.get())?)).max()
    };
    if let Some(rows) = read::<Elements<'_>>(text) {
        return rows.into_iter().filter_map(changed).max();
    }
    changed(read(text)?)
}

/// A moment as the three profiles and JavaScript write it; a text without a zone is in UTC.
fn moment(text: &str) -> Option<DateTime<Utc>> {
    let zoned = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"];
    let found = zoned.iter().find_map(|format| DateTime::parse_from_str(text, format).ok());
    if let Some(at) = found {
        return Some(at.to_utc());
    }
    let plain = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
    let found = plain.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    found.map(|at| at.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The differences, one on each line.
    #[track_caller]
    fn check(database: &str, cache: &str, expected: &[&str]) {
        let found = Differences::between(database, cache.as_bytes(), 4);
        let lines: Vec<String> = found.first.iter().map(ToString::to_string).collect();
        assert_eq!(lines, expected, "{database} {cache}");
    }

    #[test]
    fn what_javascript_reads_alike_is_one_value() {
        for (database, cache) in [
            (r#"[{"a":1,"b":[]}]"#, "[ { \"b\" : [ ],\n\t\"a\" : 1 } ]"),
            ("[12.50,1,-0,1e2,0.1]", "[12.5,1.0,0,100,1e-1]"),
            ("9007199254740993", "9007199254740992"),
            ("\"é/\u{2028}\"", r#""\u00e9\/\u2028""#),
            (r#"{"é":1}"#, r#"{"\u00e9":1}"#),
            (r#"{"a":2}"#, r#"{"a":1,"a":2}"#),
            ("null", " null "),
            ("0.1000000000000000055511151231257827", "0.1"),
        ] {
            check(database, cache, &[]);
        }
    }

    #[test]
    fn what_differs_is_named_by_its_place() {
        check(
            r#"[{"p":12.50,"n":"a"},{"p":1,"n":"b"}]"#,
            r#"[{"p":13.00,"n":"a"},{"p":1,"n":"c"}]"#,
            &["[0].p: 12.50 ≠ 13.00", "[1].n: \"b\" ≠ \"c\""],
        );
        check(
            r#"{"a":{"b":[1,{"c":true}]}}"#,
            r#"{"a":{"b":[1,{"c":false}]}}"#,
            &["a.b[1].c: true ≠ false"],
        );
        check(
            r#"{"a":null,"x y":1}"#,
            r#"{"b":2,"x y":"1"}"#,
            &["a: null ≠ (nothing)", "b: (nothing) ≠ 2", "[\"x y\"]: 1 ≠ \"1\""],
        );
        check("[]", "null", &["[] ≠ null"]);
        check("\"12.50\"", "12.50", &["\"12.50\" ≠ 12.50"]);
        check("[1]", "{}", &["[1] ≠ {}"]);
        check("1.0", "1.0000000000000002", &["1.0 ≠ 1.0000000000000002"]);
        check("\"a\"", r#""\ud800""#, &[r#""a" ≠ "\ud800""#]);
    }

    #[test]
    fn rows_that_one_side_has_are_named_and_those_around_them_are_not() {
        let ids = |ids: &[u32]| {
            let rows: Vec<_> = ids.iter().map(|id| format!("{{\"id\":{id}}}")).collect();
            format!("[{}]", rows.join(","))
        };
        check(&ids(&[1, 2, 3, 4]), &ids(&[1, 3, 4]), &["[1]: {\"id\":2} ≠ (nothing)"]);
        check(&ids(&[1, 2]), &ids(&[9, 1, 2]), &["[0]: (nothing) ≠ {\"id\":9}"]);
        check(&ids(&[1, 1]), &ids(&[1]), &["[1]: {\"id\":1} ≠ (nothing)"]);
        check("[]", &ids(&[1]), &["[0]: (nothing) ≠ {\"id\":1}"]);
        check(
            &ids(&[1, 2, 3, 5]),
            &ids(&[1, 4, 5]),
            &["4 rows ≠ 3 rows", "[1].id: 2 ≠ 4", "[2]: {\"id\":3} ≠ (nothing)"],
        );
        check(&ids(&[1, 2, 3]), &ids(&[3, 1, 2]), &["3 rows ≠ the same rows in another order"]);
    }

    #[test]
    fn differences_are_bounded_and_values_shortened() {
        let list = |number: u32| format!("[{}]", vec![number.to_string(); 9].join(","));
        let found = Differences::between(&list(1), list(2).as_bytes(), 4);
        assert_eq!((found.first.len(), found.more), (4, true));
        let long = format!("\"{}\"", "ä".repeat(500));
        let found = Differences::between("1", long.as_bytes(), 1);
        assert_eq!(found.first[0].cache.chars().count(), SHOWN + 1);
        assert!(!found.more);
        // A C1 control character: JSON allows it unescaped, and it would control a terminal.
        check("1", "\"\u{9b}31m\u{202e}\"", &["1 ≠ \"\\u{9b}31m\\u{202e}\""]);
    }

    #[test]
    fn what_is_no_json_is_said_by_its_length_alone() {
        check("[]", "secret", &["JSON of 2 bytes ≠ 6 bytes that are not JSON"]);
        check("[]", "[] []", &["JSON of 2 bytes ≠ 5 bytes that are not JSON"]);
        let found = Differences::between("[]", b"\"\xff\"", 4);
        assert_eq!(found.first[0].cache, "3 bytes that are not JSON");
    }

    #[test]
    fn a_value_nested_without_end_is_compared_all_the_same() {
        let nested = |inner: &str| {
            let depth = 100_000;
            format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth))
        };
        let found = Differences::between(&nested("1"), nested("2").as_bytes(), 4);
        assert_eq!(found.first.len(), 1);
        assert!(found.first[0].path.len() < 1000, "{}", found.first[0].path);
    }

    #[test]
    fn the_newest_change_of_a_value_is_found_in_each_spelling() {
        for (text, expected) in [
            (
                r#"[{"updated_at":"2026-03-01T10:00:00.000Z"},{"updated_at":"2026-03-01T11:00:00Z"}]"#,
                Some("2026-03-01T11:00:00Z"),
            ),
            (
                r#"{"updatedAt":"2026-03-01T10:00:00.123456+02:00"}"#,
                Some("2026-03-01T08:00:00.123456Z"),
            ),
            (r#"[{"modified_at":"2026-03-01 10:00:00+00"}]"#, Some("2026-03-01T10:00:00Z")),
            (r#"[{"changed_at":"2026-03-01T10:00:00.5"}]"#, Some("2026-03-01T10:00:00.5Z")),
            (r#"[{"updated_at":null},{"updated_at":7},{"id":1},2]"#, None),
            (r#"[{"created_at":"2026-03-01T10:00:00Z"}]"#, None),
            ("[]", None),
            ("3", None),
        ] {
            let expected = expected.map(|at| at.parse().unwrap());
            assert_eq!(newest_change(text), expected, "{text}");
        }
    }
}
