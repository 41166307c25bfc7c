//! Compares the cache with the database, key for key, and writes nothing.
//!
//! An audit reads a batch of tenants as a run does, with one permit and behind the same breakers, and looks
//! at their keys in slices. If a key differs, the audit looks at it again after each of the windows of
//! [`crate::domain::audit`], while it goes on with the rest. Only a key that differs at every look is a
//! finding.

mod examine;
mod orphans;
mod search;
mod session;
mod verifier;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

pub use session::MAX_SUSPECTS;
pub use verifier::Verifier;

use self::examine::{Examiner, KeyFilter};
use self::orphans::Orphans;
use self::session::{Due, JobUnderAudit, KeyOwner, Session};
use crate::domain::audit::{Finding, JobAudit, Keep};
use crate::domain::job::{Job, JobName};
use crate::domain::report::Failure;
use crate::domain::share::Shares;
use crate::engine::ports::SourceError;
use crate::engine::run::Runner;
use crate::engine::run::retry::Refusal;

/// How many differences a report describes for each finding.
const FEW_DIFFERENCES: usize = 3;
/// How many differences are described if the request is about one key.
const MANY_DIFFERENCES: usize = 20;

/// Compares the cache with the database. It works on one batch at a time.
pub struct Auditor {
    runner: Arc<Runner>,
    pace: Pace,
}

/// How fast an audit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One batch after another, for a caller that waits.
    Steady,
    /// In the background, at work for at most a tenth of the time.
    Gentle,
}

impl Pace {
    fn rest_after(self, work: Duration) -> Duration {
        match self {
            Self::Steady => Duration::ZERO,
            Self::Gentle => work * 9,
        }
    }
}

/// What to audit.
#[derive(Clone, Debug)]
pub struct AuditOrder {
    /// These jobs.
    pub jobs: Vec<Arc<Job>>,
    /// The size of a random sample of each job's tenants; all tenants if it is `None`.
    pub sample: Option<NonZeroUsize>,
    /// Of these shares' tenants alone; global jobs are audited whatever the shares.
    pub shares: Shares,
    /// Whether suspects are looked at again; if not, a write in flight is a finding.
    pub rechecks: bool,
    /// Whether it also searches for keys that no job writes any more.
    pub orphans: bool,
    /// Whether the findings keep the beginnings of both values.
    pub values: Keep,
}

/// The answer about one key.
#[derive(Clone, Debug)]
pub struct KeyAnswer {
    /// The job that writes it, and its tenant; no tenant for a key of a global job.
    pub owner: Option<(JobName, Option<String>)>,
    /// The state of the key.
    pub state: KeyState,
    /// How long after the first look the state was clear.
    pub after: Duration,
    /// What could not be read.
    pub failures: Vec<Failure>,
}

/// The state of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Its value equals the database's.
    Equal,
    /// Something is wrong with it.
    Wrong(Finding),
    /// Its data changes too often to be judged.
    Changing,
    /// No job writes it, and it is not in the cache.
    Nowhere,
}

/// An audit could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The tenants could not be read.
    #[error(transparent)]
    Tenants(#[from] SourceError),
    /// A server could not be reached, and the retries are used up.
    #[error("{0}")]
    Unreachable(String),
}

impl From<Refusal> for AuditError {
    fn from(refusal: Refusal) -> Self {
        Self::Unreachable(refusal.message)
    }
}

impl Auditor {
    /// An auditor within the runner's bounds.
    pub fn new(runner: Arc<Runner>, pace: Pace) -> Self {
        Self { runner, pace }
    }

    /// Audits some jobs. The answers are in their order; jobs that are gone and left keys behind come last.
    pub async fn audit(&self, order: &AuditOrder) -> Result<Vec<JobAudit>, AuditError> {
        let mut session = Session::new(&self.runner, self.pace);
        let list = order.shares.only(session.tenants(&order.jobs).await?);
        // The tenants have been read, so the form of their ids is known.
        let layout = self.runner.layout();
        for (index, job) in order.jobs.iter().enumerate() {
            let examiner = Examiner::new(layout.clone(), job, FEW_DIFFERENCES, order.values);
            let mut job = JobUnderAudit::new(examiner, order.rechecks);
            let batches = session.batches(&list, order.sample, &mut job);
            session.jobs.push(job);
            for batch in batches {
                session.first_look(index, batch, KeyFilter::All).await?;
                session.look_again(Due::Now).await?;
            }
        }
        let mut orphans = Orphans::default();
        if order.orphans {
            orphans = Orphans::first_look(&self.runner).await?;
        }
        session.look_again(Due::All).await?;
        if order.rechecks {
            orphans = orphans.look_again(&self.runner).await?;
        }
        // A caller may audit again at once.
        session.rest().await;
        let mut audits = session.jobs.into_iter().map(|job| job.audit).collect();
        orphans.add_to(&mut audits, order.rechecks);
        Ok(audits)
    }

    /// Explains one key of these jobs. Where a key does not name its tenant, tenants are read until it is
    /// found.
    pub async fn explain(
        &self,
        jobs: &[Arc<Job>],
        key: &str,
        rechecks: bool,
    ) -> Result<KeyAnswer, AuditError> {
        let mut session = Session::new(&self.runner, self.pace);
        let layout = self.runner.layout();
        let makes = |job: &&Arc<Job>| layout.may_write(job, None, key);
        let jobs: Vec<Arc<Job>> = jobs.iter().filter(makes).cloned().collect();
        let list = session.tenants(&jobs).await?;
        // The form of the tenants' ids is known by now.
        let layout = self.runner.layout();
        let only = HashSet::from([key.to_owned()]);
        for (index, job) in jobs.iter().enumerate() {
            let examiner = Examiner::new(layout.clone(), job, MANY_DIFFERENCES, Keep::Nothing);
            let mut under_audit = JobUnderAudit::new(examiner, rechecks);
            let own = list.only(|tenant| layout.may_write(job, Some(tenant), key));
            let batches = session.batches(&Arc::new(own), None, &mut under_audit);
            session.jobs.push(under_audit);
            for batch in batches {
                let owner = session.first_look(index, batch, KeyFilter::Only(&only)).await?;
                let Some(KeyOwner(tenant)) = owner else { continue };
                return session.answer(index, tenant).await;
            }
        }
        let wrong = examine::unexpected(&self.runner, &[key.to_owned()]).await?.pop().flatten();
        let finding = |wrong| Finding { key: key.to_owned(), tenant: None, wrong };
        let state = wrong.map_or(KeyState::Nowhere, |wrong| KeyState::Wrong(finding(wrong)));
        let failures = session.jobs.into_iter().flat_map(|job| job.audit.failures).collect();
        Ok(KeyAnswer { owner: None, state, after: Duration::ZERO, failures })
    }
}
