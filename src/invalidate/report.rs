//! What an invalidation did.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::request::InvalidateRequest;
use crate::domain::change::Touched;
use crate::domain::job::JobName;
use crate::domain::report::{Failure, MAX_FAILURES};
use crate::domain::tenant::TenantId;

/// The result of a request: a report, and the tenants to warm again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invalidated {
    /// What was removed.
    pub report: InvalidateReport,
    /// The active tenants that the request was about, for each enabled job.
    pub touched: BTreeMap<JobName, Touched>,
}

/// What an invalidation did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InvalidateReport {
    /// Whether nothing was done: then the numbers are those of the keys and fences that the same request
    /// would remove and move now. A key that two parts of the request mean counts twice.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Whether the whole request was done.
    pub complete: bool,
    /// Keys that existed and were removed.
    pub removed: u64,
    /// Keys that the cache refused to remove.
    pub failed: u64,
    /// Fences that were moved.
    pub fences: u64,
    /// The part of the request that names keys.
    pub keys: Counted,
    /// The part of the request that gives patterns.
    pub patterns: Scanned,
    /// The part of the request that names jobs or tenants.
    pub jobs_and_tenants: OfJobs,
    /// The named tenants that are not active: they have departed, or there are none of these ids.
    pub not_active: Vec<String>,
    /// How many keys of each job were removed, if the job is known.
    #[serde(serialize_with = "by_name")]
    #[schemars(with = "BTreeMap<String, u64>")]
    pub by_job: BTreeMap<JobName, u64>,
    /// The first failures of different kinds.
    pub failures: Vec<Failure>,
}

/// How many keys were named and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Counted {
    /// How many keys were named.
    pub asked: u64,
    /// How many of them existed and were removed.
    pub removed: u64,
}

/// The result of the patterns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Scanned {
    /// How many patterns were given.
    pub asked: u64,
    /// In how many slices the cache was scanned.
    pub slices: u64,
    /// Matching keys that stayed, because they are preheat's own.
    pub kept: u64,
    /// Keys that existed and were removed.
    pub removed: u64,
}

/// The result of naming jobs and tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OfJobs {
    /// How many jobs were named.
    pub jobs: u64,
    /// How many tenants were named.
    pub tenants: u64,
    /// Keys that existed and were removed.
    pub removed: u64,
}

fn by_name<S: Serializer>(
    counts: &BTreeMap<JobName, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(name, count)| (name.as_str(), count)))
}

impl InvalidateReport {
    /// The report of a request before anything is done.
    pub(super) fn of(request: &InvalidateRequest) -> Self {
        let many = |count: usize| count as u64;
        Self {
            dry_run: request.dry_run,
            complete: true,
            keys: Counted { asked: many(request.keys.len()), removed: 0 },
            patterns: Scanned { asked: many(request.patterns.len()), ..Scanned::default() },
            jobs_and_tenants: OfJobs {
                jobs: many(request.jobs.len()),
                tenants: many(request.tenants.len()),
                removed: 0,
            },
            ..Self::default()
        }
    }

    /// Adds a failure to the line of its kind; a kind that is new gets a line while there is room.
    pub fn fail(&mut self, failure: Failure) {
        self.complete = false;
        if let Some(same) = self.failures.iter_mut().find(|known| known.kind == failure.kind) {
            same.count += failure.count;
        } else if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
    }
}

impl Invalidated {
    /// Records that the request concerns all tenants of a job.
    pub(super) fn touch_all(&mut self, job: &JobName) {
        self.touched.insert(job.clone(), Touched::All);
    }

    /// Records that the request concerns a tenant of a job.
    pub(super) fn touch(&mut self, job: &JobName, tenant: &str) {
        let none = || Touched::Tenants(BTreeSet::new());
        let touched = self.touched.entry(job.clone()).or_insert_with(none);
        touched.add(TenantId::new(tenant));
    }
}
