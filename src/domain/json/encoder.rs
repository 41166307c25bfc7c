//! One query's rows as JSON objects.

use std::collections::BTreeMap;

use super::codec::Codec;
use super::column_type::ColumnType;
use super::string::write_string;
use super::wire::ValueError;
use super::{Case, ColumnCodec, Encoding};

/// A column of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
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
    /// Its position in the row.
    index: usize,
    /// `{"name":` or `,"name":`
    prefix: Box<[u8]>,
    codec: Codec,
    column: Column,
}

/// Why a query's columns and a job's encoding do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnProblem {
    /// A type that has no codec.
    #[error("column `{column}` has the type `{ty}`, which has no codec")]
    NoCodec {
        /// The column.
        column: String,
        /// Its type.
        ty: String,
    },
    /// `omit` names what the query does not return.
    #[error("`omit` names a column `{column}` that the query does not return")]
    UnknownOmit {
        /// The name.
        column: String,
        /// The column that is likely meant.
        nearest: Option<String>,
    },
    /// `columns` names what the query does not return.
    #[error("`columns` names a column `{column}` that the query does not return")]
    UnknownOverride {
        /// The name.
        column: String,
        /// The column that is likely meant.
        nearest: Option<String>,
    },
    /// A codec that cannot write the column's type.
    #[error("column `{column}` has the type `{ty}`, which the codec `{codec}` cannot write")]
    Override {
        /// The column.
        column: String,
        /// Its type.
        ty: String,
        /// The codec.
        codec: &'static str,
    },
    /// Two columns become the same member.
    #[error("columns `{first}` and `{second}` both become the member `{member}`")]
    SameMember {
        /// The first column.
        first: String,
        /// The second, which may have the same name.
        second: String,
        /// The member's name.
        member: String,
    },
    /// Nothing would be in the value.
    #[error("no column of the query is left for the value")]
    NoColumns,
}

impl ColumnProblem {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let did_you_mean = |nearest: &Option<String>| match nearest {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "use a name that the query returns".to_owned(),
        };
        match self {
            Self::NoCodec { column, .. } => {
                format!("cast it to text in the query: `{column}::text as {column}`")
            }
            Self::UnknownOmit { nearest, .. } | Self::UnknownOverride { nearest, .. } => {
                did_you_mean(nearest)
            }
            Self::Override { codec, .. } if *codec == ColumnCodec::Number.as_str() => {
                "`number` writes integers, floats and numeric; cast the column in the query".into()
            }
            Self::Override { .. } => {
                "`json` writes text, json and jsonb; cast the column in the query".into()
            }
            Self::SameMember { .. } => {
                "give one of them another name in the query, or name it in `omit`".into()
            }
            Self::NoColumns => "take a column out of `omit`".into(),
        }
    }

    /// The column it is about.
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

/// A row that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write column `{column}` of type `{ty}` as JSON: {reason}")]
pub struct EncodeError {
    /// The column.
    pub column: String,
    /// Its type.
    pub ty: String,
    /// Why not.
    pub reason: ValueError,
}

impl RowEncoder {
    /// Fits an encoding to the columns of a query, or says everything that does not fit.
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

    /// Appends one row as a JSON object. `value` gives a column's bytes in Postgres' binary format
    /// by its position, `None` for NULL.
    ///
    /// On an error nothing was appended.
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

impl ColumnCodec {
    /// Its name in a job file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::String => "string",
            Self::Json => "json",
        }
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
    /// Names less alike than this are other names.
    const ALIKE: f64 = 0.7;
    columns
        .iter()
        .map(|column| (strsim::jaro_winkler(name, &column.name), &column.name))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name.clone())
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
        codec: chosen.as_str(),
    })
}

/// `updated_at` → `updatedAt`; underscores before the first letter and behind the last stay.
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
    // A name is UTF-8, the only thing for which a string can be refused.
    let written = write_string(name.as_bytes(), &mut prefix);
    debug_assert_eq!(written, Ok(()));
    prefix.push(b':');
    prefix.into_boxed_slice()
}
