//! Rows as JSON: which program's JSON, and how each column is written from Postgres' binary format.
//!
//! A job's query gets one [`RowEncoder`], made from the query's columns and the job's [`Encoding`]. It
//! writes each row straight from Postgres' binary format. [`write_text`] gives Postgres' own text of a
//! value, for keys. `docs/json.md` has the table of types and profiles.

mod calendar;
mod codec;
mod column_type;
mod document;
mod encoder;
mod json_type;
mod nested;
mod number;
mod string;
mod text;
pub(super) mod wire;

use std::collections::BTreeMap;

pub use column_type::ColumnType;
pub use encoder::{Column, ColumnProblem, EncodeError, RowEncoder};
pub use json_type::{JsonType, ResultColumn, RowMember, row_members};
pub use text::write_text;
pub use wire::ValueError;

/// How a job's rows become JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The program whose JSON the value equals.
    pub profile: Profile,
    /// How column names become the names of the JSON's members.
    pub case: Case,
    /// Columns that stay out of the value.
    pub omit: Vec<String>,
    /// Columns with a codec of their own.
    pub columns: BTreeMap<String, ColumnCodec>,
    /// The largest value in bytes; a larger one is a failure of its key.
    pub max_bytes: usize,
}

/// The program whose JSON a value equals, after `JSON.parse`.
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
    /// Names stay as they are.
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
    /// The column's text is JSON, and becomes a part of the value unchanged.
    Json,
}
