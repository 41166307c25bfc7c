//! The moments of jobs with `dates.column`: their type, the parameters `$2` and `$3`, and the day of a row.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::domain::day::{BatchDays, MomentType, number};
use crate::domain::job::{Job, JobName, Query};
use crate::domain::json::{Column, write_text};
use crate::domain::row::SlotDay;
use crate::engine::ports::SourceErrorKind;
use chrono::NaiveDate;

use super::column;
use super::id::IdType;
use super::read_error::ReadError;
use super::wire::{Parameter, Row};

/// What the types of a query's parameters depend on, besides the job.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ParameterTypes {
    /// The type of the tenants' ids; `None` for a job without tenants.
    pub(super) id: Option<IdType>,
    /// The type of `dates.column`; `None` for a job without it.
    pub(super) moment: Option<MomentType>,
}

/// The types of `dates.column`, for messages.
const MOMENT_TYPES: &str = "timestamptz, timestamp or date";

pub(super) fn oid(ty: MomentType) -> u32 {
    match ty {
        MomentType::Instant => 1184,
        MomentType::WallTime => 1114,
        MomentType::Date => 1082,
    }
}

/// The types of `dates.column` that were found in the queries of jobs.
#[derive(Debug, Default)]
pub(super) struct KnownMoments(Mutex<HashMap<JobName, Known>>);

#[derive(Debug)]
struct Known {
    query: Query,
    column: String,
    ty: MomentType,
}

impl KnownMoments {
    pub(super) fn of(&self, job: &Job, column: &str) -> Option<MomentType> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&job.name)?;
        (known.query == job.query && known.column == column).then_some(known.ty)
    }

    pub(super) fn note(&self, job: &Job, ty: MomentType) {
        let Some(column) = job.moment_column() else { return };
        let known = Known { query: job.query.clone(), column: column.to_owned(), ty };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.name.clone(), known);
    }

    /// Forgets all types. A batch without rows does not tell that its column was altered, so each run for
    /// all tenants learns the types anew.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The type of the column with this name.
pub(super) fn moment_type_of(columns: &[Column], name: &str) -> Result<MomentType, ReadError> {
    let wrong = |message| ReadError::Other(SourceErrorKind::Definition, message);
    let Some((_, column)) = column::named(columns, name) else {
        return Err(wrong(format!("the query returns no column `{name}`")));
    };
    MomentType::of(&column.ty).ok_or_else(|| wrong(no_moment(column)))
}

pub(super) fn no_moment(Column { name, ty }: &Column) -> String {
    format!("the column `{name}` is {ty}, and `dates.column` is {MOMENT_TYPES}")
}

/// `$2` or `$3`: a moment, as a number like those of [`BatchDays`]; NULL for a batch of no tenants.
pub(super) fn moment(ty: MomentType, at: Option<i64>) -> Parameter {
    let bytes = |at: i64| match ty {
        MomentType::Instant | MomentType::WallTime => at.to_be_bytes().to_vec(),
        MomentType::Date => date_bytes(at).to_vec(),
    };
    Parameter { oid: oid(ty), value: at.map(bytes) }
}

/// A date in the binary format, from its [`number`]. All dates of Postgres fit.
pub(super) fn date_bytes(number: i64) -> [u8; 4] {
    let number = number.clamp(i32::MIN.into(), i32::MAX.into());
    i32::try_from(number).unwrap_or_default().to_be_bytes()
}

/// The column of a row's date.
pub(super) struct DayColumn<'d> {
    index: usize,
    column: Column,
    days: &'d BatchDays,
    /// Whether the query returns rows of other days as well: those between the first and the last moment
    /// of the whole batch.
    is_of_moments: bool,
}

impl<'d> DayColumn<'d> {
    pub(super) fn new(job: &Job, (index, column): (usize, &Column), days: &'d BatchDays) -> Self {
        let is_of_moments = job.moment_column().is_some();
        Self { index, column: column.clone(), days, is_of_moments }
    }

    /// The day of a row of this slot; `None` if the row is to be dropped. Then it is on no day of its tenant,
    /// and was returned only because other tenants of the batch have that day.
    pub(super) fn of(&self, row: Row<'_>, slot: u32) -> Result<Option<SlotDay>, ReadError> {
        let on = |day| Some(SlotDay { slot, day });
        let Some(wire) = row.value(self.index) else { return Ok(on(None)) };
        let moment = self.moment(wire)?;
        let day = moment.and_then(|moment| self.days.day(slot as usize, moment));
        Ok(if day.is_none() && self.is_of_moments { None } else { on(day) })
    }

    /// The moment in a column's bytes; `None` if they hold none.
    fn moment(&self, wire: &[u8]) -> Result<Option<i64>, ReadError> {
        Ok(match MomentType::of(&self.column.ty) {
            Some(MomentType::Instant | MomentType::WallTime) if self.is_of_moments => {
                wire.try_into().ok().map(i64::from_be_bytes)
            }
            Some(MomentType::Date) => {
                wire.try_into().ok().map(|days| i32::from_be_bytes(days).into())
            }
            Some(MomentType::Instant | MomentType::WallTime) | None => self.date(wire)?.map(number),
        })
    }

    /// The date in a text.
    fn date(&self, wire: &[u8]) -> Result<Option<NaiveDate>, ReadError> {
        let Column { name, ty } = &self.column;
        let mut text = Vec::new();
        write_text(ty, wire, &mut text).map_err(|reason| {
            let message = format!("cannot read column `{name}` as a date: {reason}");
            ReadError::Other(SourceErrorKind::Encoding, message)
        })?;
        Ok(str::from_utf8(&text).ok().and_then(|text| text.parse().ok()))
    }
}
