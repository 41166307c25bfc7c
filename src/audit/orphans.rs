//! Orphans: keys in the cache that no job writes any more. [`super::search`] names the candidates; this file
//! looks for them in the cache.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::AuditError;
use super::examine::unexpected;
use super::search::{Orphan, Search, SearchError};
use super::session::MAX_SUSPECTS;
use crate::domain::audit::{Finding, JobAudit, WINDOWS};
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind};
use crate::engine::run::Runner;

/// How many keys one call looks at: their values come with the answer, and may have any size.
const SLICE: usize = 16;
/// The job name under which a search is reported that could not tell which tenants have departed.
const NO_JOB: &str = "-";

/// The orphans that are in the cache.
#[derive(Default)]
pub(super) struct Orphans {
    found: Vec<(JobName, Finding)>,
    /// The number of orphans above the bound, by job; these are not looked at again.
    more: BTreeMap<JobName, u64>,
    /// Why the search cannot tell which tenants have departed.
    refused: Option<String>,
    seen_at: Duration,
}

impl Orphans {
    /// Searches once.
    pub(super) async fn first_look(runner: &Arc<Runner>) -> Result<Self, AuditError> {
        let mut orphans = Self::default();
        orphans.search(runner, None).await?;
        orphans.seen_at = runner.clock.monotonic();
        Ok(orphans)
    }

    /// Keeps the orphans that are found again after the last window.
    pub(super) async fn look_again(self, runner: &Arc<Runner>) -> Result<Self, AuditError> {
        if self.found.is_empty() {
            return Ok(self);
        }
        let last = WINDOWS.last().copied().unwrap_or_default();
        let wait = (self.seen_at + last).saturating_sub(runner.clock.monotonic());
        runner.clock.sleep(wait).await;
        let keys = self.found.into_iter().map(|(_, finding)| finding.key).collect();
        let mut again = Self { more: self.more, ..Self::default() };
        again.search(runner, Some(&keys)).await?;
        Ok(again)
    }

    /// Adds the findings to the audits of their jobs; a job that no longer exists gets an audit of its own.
    pub(super) fn add_to(self, audits: &mut Vec<JobAudit>, rechecked: bool) {
        for (job, finding) in self.found {
            let Some(audit) = of_job(audits, &job, rechecked) else { continue };
            audit.find(finding, Duration::ZERO);
        }
        for (job, count) in self.more {
            let Some(audit) = of_job(audits, &job, rechecked) else { continue };
            audit.counts.orphaned += count;
            audit.counts.unchecked += if rechecked { count } else { 0 };
        }
        if let (Some(message), Ok(job)) = (self.refused, JobName::parse(NO_JOB))
            && let Some(audit) = of_job(audits, &job, rechecked)
        {
            audit.fail([Failure::new(FailureKind::TenantsShrank, None, message)]);
        }
    }

    /// Looks at all candidates, or only at those in `only`.
    async fn search(
        &mut self,
        runner: &Arc<Runner>,
        only: Option<&HashSet<String>>,
    ) -> Result<(), AuditError> {
        let begun = Search::begin(runner).await;
        if let Err(SearchError::Shrank(why)) = begun {
            self.refused = Some(why);
            return Ok(());
        }
        let mut search = begun?;
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(mut some) = search.next().await? {
            some.retain(|orphan| only.is_none_or(|only| only.contains(&orphan.key)));
            for some in some.chunks(SLICE) {
                self.look(runner, some, &mut seen).await?;
            }
        }
        Ok(())
    }

    async fn look(
        &mut self,
        runner: &Arc<Runner>,
        candidates: &[Orphan],
        seen: &mut HashSet<String>,
    ) -> Result<(), AuditError> {
        let keys: Vec<String> = candidates.iter().map(|orphan| orphan.key.clone()).collect();
        for (orphan, wrong) in candidates.iter().zip(unexpected(runner, &keys).await?) {
            let Some(wrong) = wrong.filter(|_| !seen.contains(&orphan.key)) else { continue };
            let Orphan { key, job, tenant } = orphan.clone();
            if self.found.len() < MAX_SUSPECTS {
                seen.insert(key.clone());
                let tenant = tenant.map(|tenant| tenant.to_string());
                self.found.push((job, Finding { key, tenant, wrong }));
            } else {
                *self.more.entry(job).or_default() += 1;
            }
        }
        Ok(())
    }
}

fn of_job<'a>(
    audits: &'a mut Vec<JobAudit>,
    job: &JobName,
    rechecked: bool,
) -> Option<&'a mut JobAudit> {
    if !audits.iter().any(|audit| audit.job == *job) {
        audits.push(JobAudit::new(job.clone(), rechecked));
    }
    audits.iter_mut().find(|audit| audit.job == *job)
}

impl From<SearchError> for AuditError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Source(error) => Self::Tenants(error),
            SearchError::Cache(error) => Self::Unreachable(error.message),
            SearchError::Shrank(why) => Self::Unreachable(why),
        }
    }
}
