//! One query's rows as JSON objects.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use super::codec::Codec;
use super::column_type::ColumnType;
use super::string::write_string;
use super::wire::ValueError;
use super::{Case, ColumnCodec, Encoding};
use crate::domain::spelling;

/// A column of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The column's name.
    pub name: String,
    /// The column's type.
    pub ty: ColumnType,
}

/// Writes the rows of one query as JSON objects, straight from Postgres' binary format.
#[derive(Clone, Debug)]
pub struct RowEncoder {
    members: Vec<Member>,
}

/// A column that becomes a member of the row's object.
#[derive(Clone, Debug)]
struct Member {
    /// The column's position in the row.
    index: usize,
    /// `{"name":` or `,"name":`
    prefix: Box<[u8]>,
    codec: Codec,
    column: Column,
}

/// Why a job's encoding does not fit the columns of its query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnProblem {
    /// A column's type has no codec.
    #[error("column `{column}` has the type `{ty}`, which has no codec")]
    NoCodec {
        /// The column.
        column: String,
        /// Its type.
        ty: String,
    },
    /// `omit` names a column that the query does not return.
    #[error("`omit` names a column `{column}` that the query does not return")]
    UnknownOmit {
        /// The name.
        column: String,
        /// The column that was probably meant.
        nearest: Option<String>,
    },
    /// `columns` names a column that the query does not return.
    #[error("`columns` names a column `{column}` that the query does not return")]
    UnknownOverride {
        /// The name.
        column: String,
        /// The column that was probably meant.
        nearest: Option<String>,
    },
    /// The codec that `columns` gives cannot write the column's type.
    #[error("column `{column}` has the type `{ty}`, which the codec `{codec}` cannot write")]
    Override {
        /// The column.
        column: String,
        /// Its type.
        ty: String,
        /// The codec.
        codec: ColumnCodec,
    },
    /// Two columns would become the same member.
    #[error("{}", same_member(first, second, member))]
    SameMember {
        /// The first column.
        first: String,
        /// The second, which may have the same name.
        second: String,
        /// The member's name.
        member: String,
    },
    /// The value would be empty, because `omit` names all columns.
    #[error("no column of the query is left for the value")]
    NoColumns,
}

impl ColumnProblem {
    /// How to mend the problem.
    pub fn hint(&self) -> String {
        let did_you_mean = |nearest: &Option<String>| match nearest {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "use a name that the query returns".to_owned(),
        };
        match self {
            Self::NoCodec { column, .. } => {
                let name = identifier(column);
                format!("cast it to text in the query: `{name}::text as {name}`")
            }
            Self::UnknownOmit { nearest, .. } | Self::UnknownOverride { nearest, .. } => {
                did_you_mean(nearest)
            }
            Self::Override { codec, .. } => {
                let writes = match codec {
                    ColumnCodec::Number => "integers, floats and numeric",
                    ColumnCodec::String => "every type that has a codec",
                    ColumnCodec::Json => "text, json and jsonb",
                };
                format!("`{codec}` writes {writes}; cast the column in the query")
            }
            Self::SameMember { first, second, .. } if first == second => {
                format!("rename one, as in `{first} as other_{first}`")
            }
            Self::SameMember { .. } => {
                "give one of them another name in the query, or name it in `omit`".into()
            }
            Self::NoColumns => "take a column out of `omit`".into(),
        }
    }

    /// The column that has the problem.
    pub fn column(&self) -> Option<&str> {
        match self {
            Self::NoCodec { column, .. }
            | Self::UnknownOmit { column, .. }
            | Self::UnknownOverride { column, .. }
            | Self::Override { column, .. }
            | Self::SameMember { second: column, .. } => Some(column),
            Self::NoColumns => None,
        }
    }
}

fn same_member(first: &str, second: &str, member: &str) -> String {
    if first == second {
        return format!("two columns are called `{first}`");
    }
    format!("columns `{first}` and `{second}` both become the member `{member}`")
}

/// A row that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write column `{column}` of type `{ty}` as JSON: {reason}")]
pub struct EncodeError {
    /// The column.
    pub column: String,
    /// Its type.
    pub ty: String,
    /// The reason.
    pub reason: ValueError,
}

impl RowEncoder {
    /// The encoder for a query with these columns, or all problems of the encoding with them.
    pub fn new(encoding: &Encoding, columns: &[Column]) -> Result<Self, Vec<ColumnProblem>> {
        let mut problems = unknown_names(encoding, columns);
        let mut members: Vec<Member> = Vec::new();
        let mut names = BTreeMap::new();
        for (index, column) in columns.iter().enumerate() {
            if encoding.omit.contains(&column.name) {
                continue;
            }
            let name = member_name(encoding.case, &column.name);
            if let Some(first) = names.insert(name.clone(), column) {
                problems.push(ColumnProblem::SameMember {
                    first: first.name.clone(),
                    second: column.name.clone(),
                    member: name.clone(),
                });
            }
            match codec(encoding, column) {
                Ok(codec) => {
                    let prefix = prefix(members.is_empty(), &name);
                    members.push(Member { index, prefix, codec, column: column.clone() });
                }
                Err(problem) => problems.push(problem),
            }
        }
        if names.is_empty() {
            problems.push(ColumnProblem::NoColumns);
        }
        if problems.is_empty() { Ok(Self { members }) } else { Err(problems) }
    }

    /// The members of a row: each with the position of its column, its name and its codec.
    pub(super) fn members(&self, case: Case) -> impl Iterator<Item = (usize, String, &Codec)> {
        let name = move |member: &Member| member_name(case, &member.column.name);
        self.members.iter().map(move |member| (member.index, name(member), &member.codec))
    }

    /// Appends one row as a JSON object. `value` gives, for a column's position, its bytes in Postgres'
    /// binary format, and `None` for NULL.
    ///
    /// After an error, nothing is appended.
    pub fn encode<'v>(
        &self,
        value: impl Fn(usize) -> Option<&'v [u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        for member in &self.members {
            out.extend_from_slice(&member.prefix);
            match value(member.index) {
                None => out.extend_from_slice(b"null"),
                Some(wire) => {
                    if let Err(reason) = member.codec.write(wire, out) {
                        out.truncate(start);
                        return Err(member.error(reason));
                    }
                }
            }
        }
        out.push(b'}');
        Ok(())
    }
}

impl Member {
    #[cold]
    fn error(&self, reason: ValueError) -> EncodeError {
        let Column { name, ty } = &self.column;
        EncodeError { column: name.clone(), ty: ty.to_string(), reason }
    }
}

impl fmt::Display for ColumnCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number => "number",
            Self::String => "string",
            Self::Json => "json",
        })
    }
}

/// A name as SQL needs it: in quotes if it has to be. It does not quote keywords.
fn identifier(name: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.bytes().all(plain) && !name.starts_with(|first: char| first.is_ascii_digit()) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(format!("\"{}\"", name.replace('"', "\"\"")))
    }
}

fn unknown_names(encoding: &Encoding, columns: &[Column]) -> Vec<ColumnProblem> {
    let unknown = |name: &&String| !columns.iter().any(|column| column.name == **name);
    let omitted = encoding.omit.iter().filter(unknown).map(|name| ColumnProblem::UnknownOmit {
        column: name.clone(),
        nearest: nearest(name, columns),
    });
    let overridden = encoding.columns.keys().filter(unknown).map(|name| {
        ColumnProblem::UnknownOverride { column: name.clone(), nearest: nearest(name, columns) }
    });
    omitted.chain(overridden).collect()
}

fn nearest(name: &str, columns: &[Column]) -> Option<String> {
    let names = columns.iter().map(|column| column.name.as_str());
    spelling::nearest(name, names).map(str::to_owned)
}

fn codec(encoding: &Encoding, column: &Column) -> Result<Codec, ColumnProblem> {
    if !column.ty.is_supported() {
        return Err(ColumnProblem::NoCodec {
            column: column.name.clone(),
            ty: column.ty.to_string(),
        });
    }
    let Some(chosen) = encoding.columns.get(&column.name) else {
        return Ok(Codec::of(encoding.profile, column.ty.base()));
    };
    Codec::chosen(*chosen, column.ty.base()).ok_or_else(|| ColumnProblem::Override {
        column: column.name.clone(),
        ty: column.ty.to_string(),
        codec: *chosen,
    })
}

/// `updated_at` → `updatedAt`; underscores before the first letter and after the last one stay.
fn member_name(case: Case, column: &str) -> String {
    match case {
        Case::Keep => column.to_owned(),
        Case::Camel => {
            let inner = column.trim_matches('_');
            let Some((before, after)) = column.split_once(inner).filter(|_| !inner.is_empty())
            else {
                return column.to_owned();
            };
            let mut name = before.to_owned();
            for (index, word) in inner.split('_').enumerate() {
                let mut letters = word.chars();
                match letters.next() {
                    Some(first) if index > 0 => name.extend(first.to_uppercase()),
                    Some(first) => name.push(first),
                    None => {}
                }
                name.push_str(letters.as_str());
            }
            name.push_str(after);
            name
        }
    }
}

fn prefix(first: bool, name: &str) -> Box<[u8]> {
    let mut prefix = vec![if first { b'{' } else { b',' }];
    // A string is only refused if it is not UTF-8, and a name always is.
    let written = write_string(name.as_bytes(), &mut prefix);
    debug_assert_eq!(written, Ok(()));
    prefix.push(b':');
    prefix.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;
    use crate::domain::json::Profile;

    fn encoding() -> Encoding {
        Encoding {
            profile: Profile::Drizzle,
            case: Case::Keep,
            omit: Vec::new(),
            columns: BTreeMap::new(),
            max_bytes: usize::MAX,
        }
    }

    fn columns(columns: &[(&str, &str)]) -> Vec<Column> {
        let column = |(name, ty): &(&str, &str)| Column {
            name: (*name).to_owned(),
            ty: ColumnType::from_name(ty),
        };
        columns.iter().map(column).collect()
    }

    fn row(encoder: &RowEncoder, values: &[Option<&[u8]>]) -> Result<String, EncodeError> {
        let mut out = b"before".to_vec();
        let written = encoder.encode(|index| values[index], &mut out);
        let row = String::from_utf8(out.split_off(6)).unwrap();
        assert!(written.is_ok() || row.is_empty());
        written.map(|()| row)
    }

    #[test]
    fn a_row_is_an_object_in_the_querys_order() {
        let columns = columns(&[("b", "int4"), ("a\"b", "text"), ("n", "bool"), ("left", "int4")]);
        let encoding = Encoding { omit: vec!["left".to_owned()], ..encoding() };
        let encoder = RowEncoder::new(&encoding, &columns).unwrap();
        let values = [Some(&[0, 0, 0, 7][..]), Some(b"x\ny"), None, None];
        assert_eq!(row(&encoder, &values).unwrap(), r#"{"b":7,"a\"b":"x\ny","n":null}"#);
    }

    #[test]
    fn names_become_camel_case_and_keep_what_is_outside() {
        let cases = [
            ("updated_at", "updatedAt"),
            ("id", "id"),
            ("address_1", "address1"),
            ("_private_key_", "_privateKey_"),
            ("a__b", "aB"),
            ("alreadyCamel", "alreadyCamel"),
            ("straße_ändern", "straßeÄndern"),
            ("__", "__"),
            ("", ""),
        ];
        for (column, member) in cases {
            assert_eq!(member_name(Case::Camel, column), member);
            assert_eq!(member_name(Case::Keep, column), column);
        }
    }

    #[test]
    fn a_chosen_codec_replaces_that_of_the_profile() {
        let columns = columns(&[("price", "numeric"), ("id", "int8"), ("body", "text")]);
        let chosen = [
            ("price".to_owned(), ColumnCodec::Number),
            ("id".to_owned(), ColumnCodec::String),
            ("body".to_owned(), ColumnCodec::Json),
        ];
        let encoding = Encoding { columns: chosen.into(), ..encoding() };
        let encoder = RowEncoder::new(&encoding, &columns).unwrap();
        let price = [0, 2, 0, 0, 0, 0, 0, 2, 0, 1, 0x13, 0x88];
        let id = 9_007_199_254_740_993_i64.to_be_bytes();
        let written = row(&encoder, &[Some(&price), Some(&id), Some(b" [1e400]")]).unwrap();
        assert_eq!(written, r#"{"price":1.50,"id":"9007199254740993","body": [1e400]}"#);

        let error = row(&encoder, &[Some(&price), Some(&id), Some(b"[1")]).unwrap_err();
        let expected = "cannot write column `body` of type `text` as JSON: its text is not JSON";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn all_problems_are_said_at_once_each_with_a_hint() {
        let columns = columns(&[
            ("tenant_id", "uuid"),
            ("updated_at", "timestamptz"),
            ("updatedAt", "timestamptz"),
            ("Shape", "polygon"),
            ("shapes", "box[]"),
            ("name", "text"),
        ]);
        let chosen = [
            ("nmae".to_owned(), ColumnCodec::String),
            ("name".to_owned(), ColumnCodec::Number),
            ("tenant_id".to_owned(), ColumnCodec::Json),
        ];
        let encoding = Encoding {
            case: Case::Camel,
            omit: vec!["tenant".to_owned(), "zzz".to_owned()],
            columns: chosen.into(),
            ..encoding()
        };
        let problems = RowEncoder::new(&encoding, &columns).unwrap_err();
        let lines: Vec<String> = problems
            .iter()
            .map(|problem| {
                let column = problem.column().unwrap_or_default();
                format!("{column}: {problem}\n  hint: {}", problem.hint())
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        tenant: `omit` names a column `tenant` that the query does not return
          hint: did you mean `tenant_id`?
        zzz: `omit` names a column `zzz` that the query does not return
          hint: use a name that the query returns
        nmae: `columns` names a column `nmae` that the query does not return
          hint: did you mean `name`?
        tenant_id: column `tenant_id` has the type `uuid`, which the codec `json` cannot write
          hint: `json` writes text, json and jsonb; cast the column in the query
        updatedAt: columns `updated_at` and `updatedAt` both become the member `updatedAt`
          hint: give one of them another name in the query, or name it in `omit`
        Shape: column `Shape` has the type `polygon`, which has no codec
          hint: cast it to text in the query: `"Shape"::text as "Shape"`
        shapes: column `shapes` has the type `box[]`, which has no codec
          hint: cast it to text in the query: `shapes::text as shapes`
        name: column `name` has the type `text`, which the codec `number` cannot write
          hint: `number` writes integers, floats and numeric; cast the column in the query
        "#);
    }

    #[test]
    fn a_value_needs_a_column() {
        let encoding = Encoding { omit: vec!["id".to_owned()], ..encoding() };
        let problems = RowEncoder::new(&encoding, &columns(&[("id", "uuid")])).unwrap_err();
        assert_eq!(problems, [ColumnProblem::NoColumns]);
        assert_eq!(problems[0].to_string(), "no column of the query is left for the value");
    }

    fn any_type() -> impl Strategy<Value = ColumnType> {
        let names = vec![
            "bool",
            "int2",
            "int4",
            "int8",
            "oid",
            "float4",
            "float8",
            "numeric",
            "text",
            "name",
            "xml",
            "\"char\"",
            "uuid",
            "date",
            "time",
            "timetz",
            "timestamp",
            "timestamptz",
            "interval",
            "bytea",
            "inet",
            "cidr",
            "macaddr",
            "macaddr8",
            "bit",
            "point",
            "numrange",
            "tsrange",
            "int4range",
        ];
        let scalar = prop::sample::select(names).prop_map(ColumnType::from_name);
        let of = |ty: ColumnType, kind| match kind {
            0 => ColumnType::Array(Box::new(ty)),
            1 => ColumnType::Range(Box::new(ty)),
            2 => ColumnType::Domain(Box::new(ty)),
            _ => ty,
        };
        (scalar, 0..6, 0..8).prop_map(move |(ty, inner, outer)| of(of(ty, inner), outer))
    }

    /// Bytes that are valid for a type more often than random bytes are.
    fn any_wire() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            (0_i32..4).prop_map(|n| n.to_be_bytes().to_vec()),
            Just((-1_i32).to_be_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..9),
        ];
        prop::collection::vec(word, 0..16).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn any_bytes_are_refused_or_become_json(ty in any_type(), wire in any_wire(), profile in 0..4) {
            let column = [Column { name: "value".to_owned(), ty: ty.clone() }];
            let mut encoding = encoding();
            match profile {
                0 => encoding.profile = Profile::Drizzle,
                1 => encoding.profile = Profile::NodePostgres,
                2 => encoding.profile = Profile::Postgres,
                _ => drop(encoding.columns.insert("value".to_owned(), ColumnCodec::String)),
            }
            let encoder = RowEncoder::new(&encoding, &column).unwrap();
            if let Ok(json) = row(&encoder, &[Some(&wire)]) {
                prop_assert!(serde_json::from_str::<IgnoredAny>(&json).is_ok(), "{} {}", ty, json);
            }
            let mut text = Vec::new();
            if crate::domain::json::write_text(&ty, &wire, &mut text).is_err() {
                prop_assert!(text.is_empty());
            }
        }
    }
}
