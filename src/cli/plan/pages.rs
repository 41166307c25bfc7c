//! How many pages of the database a thousand rows take, for a sample of batches.

use std::time::Duration;

use serde::Serialize;

use super::super::output;
use crate::adapter::postgres::{Pages, PostgresSource};
use crate::domain::date::first_dates;
use crate::domain::job::Job;
use crate::engine::ports::{Read, SourceError};
use crate::estimate::Estimator;

/// The longest time for the pages of one batch: somebody waits for the plan.
const MAX_TIME: Duration = Duration::from_secs(10);

/// The pages that the queries of a job's sample touch.
#[derive(Default)]
pub(super) struct SamplePages {
    batches: u64,
    pages: Pages,
}

#[derive(Serialize)]
pub(super) struct Document {
    batches: u64,
    rows: u64,
    /// Pages in the server's own memory.
    hit: u64,
    /// Pages from the operating system or the disk.
    read: u64,
    a_thousand_rows: Option<u64>,
    packed: Option<u64>,
    is_scattered: bool,
}

impl SamplePages {
    /// Explains the job's query for each batch of the sample, and stops at the first error.
    pub(super) async fn count(
        source: &PostgresSource,
        estimator: &Estimator<'_>,
        job: &Job,
    ) -> Result<Self, SourceError> {
        let mut all = Self::default();
        for batch in estimator.batches(job) {
            let first_dates = first_dates(job, &batch, estimator.now);
            let timeout = job.timeout.min(MAX_TIME);
            let read = Read { batch: &batch, first_dates: &first_dates, timeout };
            all.pages = all.pages.plus(source.pages(job, read).await?);
            all.batches += 1;
        }
        Ok(all)
    }

    pub(super) fn document(&self) -> Document {
        let Self { batches, pages } = self;
        let Pages { rows, hit, read, ref packed } = *pages;
        let (batches, packed) = (*batches, packed.as_ref().ok().copied());
        let (a_thousand_rows, is_scattered) = (pages.a_thousand_rows(), pages.is_scattered());
        Document { batches, rows, hit, read, a_thousand_rows, packed, is_scattered }
    }

    pub(super) fn text(&self) -> String {
        let Self { batches, pages } = self;
        let of = output::counted(*batches, "batch", "batches");
        let Some(a_thousand) = pages.a_thousand_rows() else {
            return format!("unknown: {of} of the sample without rows");
        };
        format!(
            "{} for a thousand rows ({} for {} in {of})",
            output::count(a_thousand),
            output::count(pages.touched()),
            output::counted(pages.rows, "row", "rows"),
        )
    }

    /// A hint if the rows lie scattered, or if nobody knows.
    pub(super) fn scattered(&self) -> Option<String> {
        let Self { pages, .. } = self;
        match &pages.packed {
            Err(table) if pages.rows > 0 => Some(format!("not known: run `analyze {table}`")),
            Ok(packed) if pages.is_scattered() => Some(format!(
                "the rows do not lie on disk as the query reads them: side by side they would take \
                 about {} instead of {}; see \"Read order\" in docs/plan.md",
                output::counted(*packed, "page", "pages"),
                output::count(pages.touched()),
            )),
            Ok(_) | Err(_) => None,
        }
    }
}
