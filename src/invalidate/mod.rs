//! Removes keys on request, so that nothing old comes back: the fences move first, then the keys go.
//!
//! A run that read the data before the fences moved notices that they did, and reads again; its old values
//! were removed with the keys. So each fence moves once a request: the data that the request is about was
//! committed before. Manifests keep the names of removed keys: a run that has read its manifest and writes
//! later must find in it every name that it does not add itself.

pub(crate) mod census;
pub(crate) mod job_reader;
mod removal;
mod report;
mod request;
mod worker;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::census::{Census, CensusError};
use self::removal::{Present, Removal};
use self::request::CheckedRequest;
use crate::domain::job::{DateZone, Dates, Job, Jobs, Scope};
use crate::domain::layout::{Layout, Owner};
use crate::domain::tenant::TenantId;
use crate::engine::run::{Runner, Stops};
use crate::observe::event;
use crate::observe::metric::Metrics;

pub use self::report::{Counted, InvalidateReport, Invalidated, OfJobs, Scanned};
pub use self::request::{
    InvalidateError, InvalidateRequest, MAX_NAMED, MAX_PATTERNS, MAX_TEXT_BYTES,
};
pub use self::worker::{Invalidation, Invalidations};

/// Removes keys on request.
pub struct Invalidator {
    runner: Arc<Runner>,
}

impl Invalidator {
    /// An invalidator with the runner's servers and jobs.
    pub fn new(runner: Arc<Runner>) -> Self {
        Self { runner }
    }

    /// Moves the fences and removes the keys. An error means that nothing was done; later failures are in the
    /// report.
    pub async fn invalidate(
        &self,
        request: &InvalidateRequest,
        stops: &Stops,
    ) -> Result<Invalidated, InvalidateError> {
        let runner = &self.runner;
        let jobs = runner.jobs.get();
        let checked = request.check(&jobs)?;
        let census = census(runner, &jobs, &checked).await?;
        // The tenants have been read, so the form of their ids is known.
        let layout = runner.layout();
        let mut report = InvalidateReport::of(request);
        let not_active = request.tenants.iter().filter(|id| !census.is_active(id.as_str()));
        report.not_active = not_active.map(|id| id.as_str().to_owned()).collect();
        let present = Present { jobs: &jobs, census: &census, layout: &layout };
        let removal = Removal::new(runner, stops, present, report);
        let mut done = removal.all(checked).await;
        if request.dry_run {
            done.touched.clear();
            return Ok(done);
        }
        done.touched.retain(|name, _| jobs.get(name).is_some_and(|job| job.enabled));
        tell(&done.report, &runner.metrics);
        Ok(done)
    }
}

fn tell(report: &InvalidateReport, metrics: &Metrics) {
    let InvalidateReport { removed, failed, fences, .. } = *report;
    let (by_job, failure) = (&report.by_job, report.failures.first());
    event::Invalidated { removed, failed, fences, by_job, failure }.emit(metrics);
}

/// The tenants that a request is about. For a key, they are found by the templates.
async fn census(
    runner: &Arc<Runner>,
    jobs: &Jobs,
    request: &CheckedRequest,
) -> Result<Census, InvalidateError> {
    let CheckedRequest { keys, patterns, jobs_and_tenants } = request;
    let named = jobs_and_tenants.as_ref().and_then(|named| named.tenants.as_ref());
    let all_of_jobs = jobs_and_tenants.as_ref().is_some_and(|named| named.tenants.is_none());
    let named: BTreeSet<TenantId> = named.into_iter().flatten().cloned().collect();
    let of_keys = owners_of_all(jobs, &runner.layout(), keys);
    let mut census = match of_keys {
        Some(owners) if !all_of_jobs && patterns.is_empty() => {
            let ids = named.iter().cloned().chain(owners).collect();
            Census::among(runner, &ids).await?
        }
        Some(_) | None => Census::all(runner).await?,
    };
    // For the keys of a departed tenant, the columns of the registry may be needed, and such a key may belong
    // to another tenant by now.
    let needs_columns = |job: &Arc<Job>| {
        let of_zone = matches!(&job.dates, Some(Dates { zone: DateZone::TenantColumn(_), .. }));
        of_zone || job.keys.iter().any(|key| key.template.has_tenant_column())
    };
    let needs_columns =
        jobs_and_tenants.as_ref().is_some_and(|named| named.jobs.iter().any(needs_columns));
    if needs_columns && named.iter().any(|id| census.get(id.as_str()).is_none()) {
        census = Census::all(runner).await?;
    }
    census.add(&named);
    Ok(census)
}

/// The ids of the tenants that the keys may belong to; `None` if a key may belong to any tenant.
fn owners_of_all(jobs: &Jobs, layout: &Layout, keys: &[String]) -> Option<BTreeSet<TenantId>> {
    let mut ids = BTreeSet::new();
    for job in jobs.values().filter(|job| job.scope == Scope::Tenants) {
        for (index, key) in
            (0..job.keys.len()).flat_map(|index| keys.iter().map(move |key| (index, key)))
        {
            match layout.owner(job, index, key) {
                Owner::Nobody => {}
                Owner::Tenant(id) => drop(ids.insert(TenantId::new(id))),
                Owner::WithColumn(..) | Owner::Anyone => return None,
            }
        }
    }
    Some(ids)
}

impl From<CensusError> for InvalidateError {
    fn from(error: CensusError) -> Self {
        match error {
            CensusError::Tenants(error) => Self::Tenants(error),
            CensusError::Registry(error) => Self::Registry(error),
        }
    }
}
