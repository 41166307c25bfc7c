//! The parameters of a job's query.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;

use crate::domain::date;
use crate::domain::day::{BatchDays, MomentType, number};
use crate::domain::job::{Job, Scope};
use crate::domain::tenant::Batch;
use crate::engine::ports::Read;

use super::id::id_array;
use super::moment::{self, ParameterTypes, date_bytes, moment};
use super::read_error::ReadError;
use super::wire::Parameter;

/// The OID of arrays of dates.
pub(super) const DATES: u32 = 1182;

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
    /// one after its last. A job for all tenants together gives it only the two dates or moments.
    pub(super) fn parameters(self, days: Option<&BatchDays>) -> Result<Vec<Parameter>, ReadError> {
        let Self { job, types, read } = self;
        let mut parameters = Vec::new();
        if let Some(id) = types.id {
            parameters.push(id_array(id, read.batch.tenants().map(|tenant| tenant.id()))?);
        }
        if let Some(ty) = types.moment {
            let bounds = days.and_then(BatchDays::bounds);
            let (start, end) = bounds.map(|bounds| (bounds.start, bounds.end)).unzip();
            parameters.extend([moment(ty, start), moment(ty, end)]);
        } else if let Some(dates) = &job.dates {
            let first = read.first_dates;
            let last: Vec<_> = first.iter().map(|first| date::last(*first, dates.days)).collect();
            parameters.extend(match job.scope {
                Scope::Tenants => [date_array(first), date_array(&last)],
                Scope::Global => [first, &last]
                    .map(|dates| moment(MomentType::Date, dates.first().map(|date| number(*date)))),
            });
        }
        Ok(parameters)
    }
}

fn date_array(dates: &[NaiveDate]) -> Parameter {
    let ty = (DATES, moment::oid(MomentType::Date));
    let Ok(array) = Parameter::array(ty, dates.iter(), |date, out| {
        out.extend_from_slice(&date_bytes(number(*date)));
        Ok::<_, Infallible>(())
    });
    array
}

/// The query's parameters for a batch of no tenants.
pub(super) fn no_tenant(job: &Job, types: ParameterTypes) -> Result<Vec<Parameter>, ReadError> {
    let batch = Batch::new(Arc::default(), [].into());
    let read = Read { batch: &batch, first_dates: &[], timeout: Duration::ZERO };
    Asked { job, types, read }.parameters(None)
}
