//! Rows as JSON: whose JSON, and how each column is written from its bytes on the wire.
//!
//! [`RowEncoder`] is made once for a job's query, from its columns and the job's [`Encoding`], and
//! writes each row straight from Postgres' binary format. [`write_text`] gives Postgres' own text of
//! a value, for keys. `docs/json.md` has the table of types and profiles.

mod calendar;
mod codec;
mod column_type;
mod document;
mod encoder;
mod nested;
mod number;
mod string;
mod text;
mod wire;

use std::collections::BTreeMap;

pub use column_type::ColumnType;
pub use encoder::{Column, ColumnProblem, EncodeError, RowEncoder};
pub use text::write_text;
pub use wire::ValueError;

/// How a job's rows become JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Whose JSON the value equals.
    pub profile: Profile,
    /// How column names become the names of the JSON's members.
    pub case: Case,
    /// Columns that stay out of the value.
    pub omit: Vec<String>,
    /// Columns with a codec of their own.
    pub columns: BTreeMap<String, ColumnCodec>,
    /// A larger value is an error for its key.
    pub max_bytes: usize,
}

/// Whose JSON a value equals, after `JSON.parse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// `JSON.stringify` of what `drizzle-orm` on `pg` returns in its default modes.
    #[default]
    Drizzle,
    /// `JSON.stringify` of what `pg` returns.
    NodePostgres,
    /// `row_to_json`.
    Postgres,
}

/// How column names become member names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Case {
    /// As they are.
    #[default]
    Keep,
    /// `updated_at` → `updatedAt`.
    Camel,
}

/// A codec that a job chooses for a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnCodec {
    /// A JSON number.
    Number,
    /// A JSON string of the value's text, as Postgres prints it.
    String,
    /// The text of the column is JSON itself and stands in the value as it is.
    Json,
}
