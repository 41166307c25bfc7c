//! The kinds of values that fields have: how each is read, and what it is in the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use chrono_tz::Tz;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::read::{Located, Reader, Value};
use crate::domain::date;
use crate::domain::duration::{self, BadDuration};
use crate::domain::job::{BadShare, Overlap, Shape, Share};
use crate::domain::json::{Case, ColumnCodec, Profile};
use crate::domain::size;
use crate::domain::spelling::{listed, nearest};

/// A length of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Length(pub(super) Duration);

/// A share in per cent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percent(pub(super) Share);

/// A number of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes(pub(super) u64);

/// An IANA time zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zone(pub(super) Tz);

/// One of a few words.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneOf<T>(pub(super) T);

/// The values that a field's words stand for.
pub(super) trait Choice: Copy + 'static {
    /// The field's name in a sentence.
    const NAME: &'static str;
    /// The words.
    const WORDS: &'static [(&'static str, Self)];
}

impl Choice for Overlap {
    const NAME: &'static str = "overlap";
    const WORDS: &'static [(&'static str, Self)] = &[("skip", Self::Skip), ("queue", Self::Queue)];
}

impl Choice for Shape {
    const NAME: &'static str = "shape";
    const WORDS: &'static [(&'static str, Self)] =
        &[("list", Self::List), ("object", Self::Object)];
}

impl Choice for Profile {
    const NAME: &'static str = "profile";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("drizzle", Self::Drizzle),
        ("node-postgres", Self::NodePostgres),
        ("postgres", Self::Postgres),
    ];
}

impl Choice for Case {
    const NAME: &'static str = "case";
    const WORDS: &'static [(&'static str, Self)] = &[("keep", Self::Keep), ("camel", Self::Camel)];
}

impl Choice for ColumnCodec {
    const NAME: &'static str = "codec";
    const WORDS: &'static [(&'static str, Self)] =
        &[("number", Self::Number), ("string", Self::String), ("json", Self::Json)];
}

impl Value for String {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        text(value, path, reader, "text in quotes").map(str::to_owned)
    }
}

impl Value for bool {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            reader.wrong_type(value, path, "`true` or `false`", None);
        }
        read
    }
}

impl Value for u64 {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let read = value.get_ref().as_integer().and_then(unsigned);
        if read.is_none() && value.get_ref().is_integer() {
            reader.bad_value(value, "this is negative or out of all proportion".to_owned(), None);
        } else if read.is_none() {
            reader.wrong_type(value, path, "a whole number", None);
        }
        read
    }
}

impl Value for Length {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        const KIND: &str = "a duration such as \"10m\"";
        if let Some(number) = value.get_ref().as_integer() {
            let hint = format!("write `\"{}s\"` for seconds", number.as_str());
            reader.wrong_type(value, path, KIND, Some(hint));
            return None;
        }
        let text = text(value, path, reader, KIND)?;
        match duration::parse(text) {
            Ok(duration) => Some(Self(duration)),
            Err(problem) => {
                let hint = (problem == BadDuration::NoUnit)
                    .then(|| format!("write `\"{}s\"` for seconds", text.trim()));
                reader.bad_value(value, format!("`{text}` is no duration: {problem}"), hint);
                None
            }
        }
    }
}

impl Value for Percent {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        const KIND: &str = "a percentage such as \"10%\"";
        if let Some(number) = value.get_ref().as_integer() {
            let hint = format!("write `\"{}%\"`", number.as_str());
            reader.wrong_type(value, path, KIND, Some(hint));
            return None;
        }
        let text = text(value, path, reader, KIND)?;
        match text.parse() {
            Ok(share) => Some(Self(share)),
            Err(problem) => {
                let message = format!("`{text}` is no percentage from `0%` to `100%`");
                let hint =
                    (problem == BadShare::NoSign).then(|| format!("write `\"{}%\"`", text.trim()));
                reader.bad_value(value, message, hint);
                None
            }
        }
    }
}

impl Value for Bytes {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        const KIND: &str = "a number of bytes such as \"5MiB\" or 5242880";
        if let Some(number) = value.get_ref().as_integer().and_then(unsigned) {
            return Some(Self(number));
        }
        let text = text(value, path, reader, KIND)?;
        let bytes = size::parse(text);
        if bytes.is_none() {
            let hint = "units are B, kB, MB, GB and KiB, MiB, GiB";
            reader.bad_value(value, format!("`{text}` is no size"), Some(hint.to_owned()));
        }
        bytes.map(Self)
    }
}

impl Value for Zone {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let text = text(value, path, reader, "the name of a time zone")?;
        let zone = date::zone(text);
        if zone.is_none() {
            reader.bad_value(value, unknown_zone(text), nearest_zone(text));
        }
        zone.map(Self)
    }
}

impl<T: Choice> Value for OneOf<T> {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let words = || T::WORDS.iter().map(|(word, _)| *word);
        let allowed = listed(words(), "or");
        let text = text(value, path, reader, &allowed)?;
        let choice = T::WORDS.iter().find(|(word, _)| *word == text);
        if choice.is_none() {
            let hint = match nearest(text, words()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("write {allowed}"),
            };
            reader.bad_value(value, format!("`{text}` is no {}", T::NAME), Some(hint));
        }
        choice.map(|(_, choice)| Self(*choice))
    }
}

impl<T: Value> Value for Vec<Located<T>> {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let Some(elements) = value.get_ref().as_array() else {
            let hint = value.get_ref().as_str().map(|text| format!("write `[\"{text}\"]`"));
            let hint =
                hint.or_else(|| value.get_ref().is_table().then(|| format!("write `[[{path}]]`")));
            reader.wrong_type(value, path, "a list", hint);
            return None;
        };
        let read = elements.iter().enumerate().filter_map(|(index, element)| {
            let path = format!("{path}.{index}");
            reader.locate(&path, element.span(), element.span());
            let read = T::read(element, &path, reader)?;
            Some(Located { key: element.span(), at: element.span(), value: read })
        });
        Some(read.collect())
    }
}

impl<T: Value> Value for BTreeMap<String, Located<T>> {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let table = table(value, path, reader)?;
        let read = table.iter().filter_map(|(key, value)| {
            let path = format!("{path}.{}", key.get_ref());
            reader.locate(&path, key.span(), value.span());
            let read = T::read(value, &path, reader)?;
            let located = Located { key: key.span(), at: value.span(), value: read };
            Some((key.get_ref().to_string(), located))
        });
        Some(read.collect())
    }
}

/// The value's text; adds a problem if it is not a string.
fn text<'a>(
    value: &'a Spanned<DeValue<'_>>,
    path: &str,
    reader: &mut Reader,
    kind: &str,
) -> Option<&'a str> {
    let text = value.get_ref().as_str();
    if text.is_none() {
        reader.wrong_type(value, path, kind, None);
    }
    text
}

/// The value's fields; adds a problem if it is not a table.
pub(super) fn table<'a, 'i>(
    value: &'a Spanned<DeValue<'i>>,
    path: &str,
    reader: &mut Reader,
) -> Option<&'a DeTable<'i>> {
    let table = value.get_ref().as_table();
    if table.is_none() {
        let hint =
            value.get_ref().is_array().then(|| format!("write `[{path}]`, in single brackets"));
        reader.wrong_type(value, path, "a table", hint);
    }
    table
}

fn unsigned(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
}

/// The message for a name that is not a time zone's.
pub(super) fn unknown_zone(found: &str) -> String {
    format!("`{found}` is no IANA time zone")
}

/// The hint for a name that is not a time zone's: a zone with a similar name, or the zone of that
/// city.
pub(super) fn nearest_zone(found: &str) -> Option<String> {
    let names = || chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
    let city =
        |name: &&str| name.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(found));
    let name = names().find(|name| name.contains('/') && city(name));
    let name = name.or_else(|| nearest(found, names()))?;
    Some(format!("did you mean `{name}`?"))
}

/// The schema of a value that is written as a string in a certain format.
macro_rules! schema {
    ($type:ty, $name:literal, $($schema:tt)+) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($schema)+)
            }
        }
    };
}

schema!(Length, "duration", { "type": "string", "title": "duration", "examples": ["90s", "1h30m"] });
schema!(Percent, "percentage", {
    "type": "string",
    "title": "percentage",
    "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$",
    "examples": ["10%"],
});
schema!(Bytes, "size", {
    "type": ["string", "integer"],
    "title": "size",
    "minimum": 0,
    "pattern": r"^\s*[0-9]+\s*([kKMG]B|[KMG]iB|B|bytes)?\s*$",
    "examples": ["5MiB", 5_242_880],
});
schema!(Zone, "time zone", { "type": "string", "title": "time zone", "examples": ["Europe/Berlin"] });

impl<T: Choice> JsonSchema for OneOf<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

/// The word for a value.
pub(super) fn word<T: Choice + PartialEq>(choice: T) -> &'static str {
    T::WORDS.iter().find(|(_, known)| *known == choice).map_or("", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_found_by_its_city_and_by_a_slip() {
        let hint = |found| nearest_zone(found);
        assert_eq!(hint("Berlin").as_deref(), Some("did you mean `Europe/Berlin`?"));
        assert_eq!(hint("Europe/Berlim").as_deref(), Some("did you mean `Europe/Berlin`?"));
        assert_eq!(hint("somewhere else entirely"), None);
    }
}
