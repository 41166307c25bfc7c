//! Keys that are there though no job writes them any more: of jobs and templates that are gone, and
//! of tenants that are not active. [`crate::audit::orphans`] finds them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::AuditError;
use super::examine::unexpected;
use super::session::MAX_SUSPECTS;
use crate::audit::orphans::{Orphan, Orphans, OrphansError};
use crate::domain::audit::{Finding, JobAudit, WINDOWS};
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind};
use crate::engine::run::Runner;

/// Keys that are looked at at once: their values come with the answer, and are of any size.
const SLICE: usize = 16;
/// Under what a key is counted of which not even the job is known any more.
const NO_JOB: &str = "-";

/// Orphans that are there.
#[derive(Default)]
pub(super) struct Gone {
    found: Vec<(Option<JobName>, Finding)>,
    /// Those above the bound, which are not looked at again.
    more: BTreeMap<Option<JobName>, u64>,
    /// Why it cannot be said who is gone.
    refused: Option<String>,
    seen_at: Duration,
}

impl Gone {
    /// Searches the whole cache once.
    pub(super) async fn first_look(runner: &Arc<Runner>) -> Result<Self, AuditError> {
        let mut gone = Self::default();
        gone.search(runner, None).await?;
        gone.seen_at = runner.clock.monotonic();
        Ok(gone)
    }

    /// Keeps those that are found again when the last window is over.
    pub(super) async fn look_again(self, runner: &Arc<Runner>) -> Result<Self, AuditError> {
        if self.found.is_empty() {
            return Ok(self);
        }
        let last = WINDOWS.last().copied().unwrap_or_default();
        let wait = (self.seen_at + last).saturating_sub(runner.clock.monotonic());
        runner.clock.sleep(wait).await;
        let wanted = self.found.into_iter().map(|(_, finding)| finding.key).collect();
        let mut again = Self { more: self.more, ..Self::default() };
        again.search(runner, Some(&wanted)).await?;
        Ok(again)
    }

    /// Adds what was found to the audits of its jobs; one of a job that is gone gets its own.
    pub(super) fn add_to(self, audits: &mut Vec<JobAudit>, rechecked: bool) {
        for (job, finding) in self.found {
            let Some(audit) = of_job(audits, job, rechecked) else { continue };
            audit.find(finding, Duration::ZERO);
        }
        for (job, count) in self.more {
            let Some(audit) = of_job(audits, job, rechecked) else { continue };
            audit.counts.orphaned += count;
            audit.counts.unchecked += if rechecked { count } else { 0 };
        }
        if let Some(message) = self.refused
            && let Some(audit) = of_job(audits, None, rechecked)
        {
            audit.fail([Failure::new(FailureKind::TenantsShrank, None, message)]);
        }
    }

    async fn search(
        &mut self,
        runner: &Arc<Runner>,
        only: Option<&HashSet<String>>,
    ) -> Result<(), AuditError> {
        let begun = Orphans::begin(runner).await;
        if let Err(OrphansError::Shrank(why)) = &begun {
            self.refused = Some(why.clone());
            return Ok(());
        }
        let mut orphans = begun?;
        let mut seen: HashSet<String> = HashSet::new();
        loop {
            let mut some = match orphans.next().await {
                Ok(Some(some)) => some,
                Ok(None) => return Ok(()),
                // Then nobody is said to be gone, of whom it was found before either.
                Err(OrphansError::Shrank(why)) => {
                    *self = Self { refused: Some(why), ..Self::default() };
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            some.retain(|orphan| only.is_none_or(|only| only.contains(&orphan.key)));
            for some in some.chunks(SLICE) {
                self.look(runner, some, &mut seen).await?;
            }
        }
    }

    async fn look(
        &mut self,
        runner: &Arc<Runner>,
        orphans: &[Orphan],
        seen: &mut HashSet<String>,
    ) -> Result<(), AuditError> {
        let keys: Vec<String> = orphans.iter().map(|orphan| orphan.key.clone()).collect();
        for (orphan, wrong) in orphans.iter().zip(unexpected(runner, &keys).await?) {
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

fn of_job(
    audits: &mut Vec<JobAudit>,
    job: Option<JobName>,
    rechecked: bool,
) -> Option<&mut JobAudit> {
    let job = job.or_else(|| JobName::parse(NO_JOB).ok())?;
    if !audits.iter().any(|audit| audit.job == job) {
        audits.push(JobAudit::new(job.clone(), rechecked));
    }
    audits.iter_mut().find(|audit| audit.job == job)
}

impl From<OrphansError> for AuditError {
    fn from(error: OrphansError) -> Self {
        match error {
            OrphansError::Source(error) => Self::Tenants(error),
            OrphansError::Cache(error) => Self::Unreachable(error.message),
            OrphansError::Shrank(why) => Self::Unreachable(why),
        }
    }
}
