//! The parameters of a job's query.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Arguments;
use sqlx::postgres::PgArguments;

use crate::domain::date;
use crate::domain::day::{BatchDays, MomentType};
use crate::domain::job::{Job, Scope};
use crate::domain::tenant::Batch;
use crate::engine::ports::Read;

use super::id::IdArray;
use super::moment::{Moment, ParameterTypes};
use super::read_error::ReadError;

/// A read of a job's rows, with parameters of these types.
#[derive(Clone, Copy)]
pub(super) struct Asked<'r> {
    pub(super) job: &'r Job,
    pub(super) types: ParameterTypes,
    pub(super) read: Read<'r>,
}

impl Asked<'_> {
    /// The days of the batch; `None` if the job has no dates.
    pub(super) fn days(self) -> Option<BatchDays> {
        let ty = self.types.moment.unwrap_or(MomentType::Date);
        let Read { batch, first_dates, .. } = self.read;
        self.job.dates.as_ref().map(|dates| BatchDays::new(dates, ty, batch, first_dates))
    }

    /// The parameters of a job's query. A tenant job gives it the ids and, if it has dates, each
    /// tenant's first and last date; with `dates.column`, the first moment of the whole batch and the first
    /// one after its last. A job for the whole fleet gives it only the two dates or moments.
    pub(super) fn arguments(self, days: Option<&BatchDays>) -> Result<PgArguments, ReadError> {
        let Self { job, types, read } = self;
        let mut arguments = PgArguments::default();
        if let Some(id) = types.id {
            arguments.add(IdArray::new(id, read.batch)?).map_err(sqlx::Error::Encode)?;
        }
        if let Some(ty) = types.moment {
            let bounds = days.and_then(BatchDays::bounds);
            let (start, end) = bounds.map(|bounds| (bounds.start, bounds.end)).unzip();
            arguments.add(Moment { ty, at: start }).map_err(sqlx::Error::Encode)?;
            arguments.add(Moment { ty, at: end }).map_err(sqlx::Error::Encode)?;
        } else if let Some(dates) = &job.dates {
            let first = read.first_dates;
            let last: Vec<_> = first.iter().map(|first| date::last(*first, dates.days)).collect();
            match job.scope {
                Scope::Tenants => {
                    arguments.add(first).map_err(sqlx::Error::Encode)?;
                    arguments.add(last).map_err(sqlx::Error::Encode)?;
                }
                Scope::Fleet => {
                    arguments.add(first.first().copied()).map_err(sqlx::Error::Encode)?;
                    arguments.add(last.first().copied()).map_err(sqlx::Error::Encode)?;
                }
            }
        }
        Ok(arguments)
    }
}

/// The query's parameters for a batch of no tenants.
pub(super) fn no_tenant(job: &Job, types: ParameterTypes) -> Result<PgArguments, ReadError> {
    let batch = Batch::new(Arc::default(), [].into());
    let read = Read { batch: &batch, first_dates: &[], timeout: Duration::ZERO };
    Asked { job, types, read }.arguments(None)
}
