//! Which batches an estimate reads, and how it treats batches that cannot be read.

use std::sync::Arc;

use crate::domain::job::Job;
use crate::domain::report::FailureKind;
use crate::domain::tenant::{Batch, Tenants, batches};
use crate::engine::ports::{SourceError, SourceErrorKind};

/// How many batches are read: from the start, middle and end of the list, since the oldest tenants seldom
/// have the size of the newest.
const SAMPLE_BATCHES: usize = 3;
/// How many tenants are named for each kind of trouble.
pub const MOST_NAMED: usize = 10;
/// How much of a job may fail before failed batches are no longer split: one broken tenant among a hundred is
/// found with eight queries.
const PATIENCE: u32 = 80;
/// How much of that a query uses which failed at once, and one which used up its whole timeout.
const COST: u32 = 1;
const COST_OF_TIMEOUT: u32 = 10;

/// The batches to read.
pub(super) fn sample(job: &Job, list: &Arc<Tenants>, positions: &[u32]) -> Vec<Batch> {
    let mut all = batches(list, positions, job.batch.get());
    let last_index = all.len().saturating_sub(1);
    let mut picked: Vec<usize> =
        (0..SAMPLE_BATCHES).map(|step| last_index * step / (SAMPLE_BATCHES - 1)).collect();
    picked.dedup();
    // From the end, so that the indices of the earlier batches stay valid.
    picked.retain(|index| *index < all.len());
    picked.into_iter().rev().map(|index| all.swap_remove(index)).collect()
}

/// Something that a run of the job could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What fails.
    pub kind: FailureKind,
    /// The message of the first failure.
    pub message: String,
    /// The first tenants that fail in this way, at most [`MOST_NAMED`].
    pub tenants: Vec<String>,
    /// How often it happens in the sample.
    pub count: u64,
}

/// What could not be read, or not be written.
#[derive(Default)]
pub(super) struct Refused {
    troubles: Vec<Trouble>,
    unread: u64,
    spent: u32,
    first: Option<SourceError>,
}

impl Refused {
    /// Splits a part that cannot be read into halves, the first one last, if that helps. An error that does
    /// not depend on these tenants is returned.
    pub(super) fn split(
        &mut self,
        part: Batch,
        error: SourceError,
    ) -> Result<Vec<Batch>, SourceError> {
        let (cost, splits) = match error.kind {
            SourceErrorKind::LeftAlone
            | SourceErrorKind::Unavailable
            | SourceErrorKind::Transient
            | SourceErrorKind::Locked
            | SourceErrorKind::Definition => return Err(error),
            SourceErrorKind::Timeout => (COST_OF_TIMEOUT, true),
            SourceErrorKind::Data | SourceErrorKind::Encoding | SourceErrorKind::TooLarge => {
                (COST, true)
            }
            SourceErrorKind::Foreign => (COST, false),
        };
        self.spent += cost;
        let kind = error.kind.failure_kind();
        let message = self.first.get_or_insert(error.clone()).message.clone();
        if part.len() > 1 && !splits {
            for tenant in part.tenants() {
                self.note(kind, Some(tenant.id().to_owned()), message.clone());
            }
            return Ok(Vec::new());
        }
        if part.len() > 1 && self.spent > PATIENCE {
            self.unread += part.len() as u64;
            return Ok(Vec::new());
        }
        match part.split() {
            Ok((first, second)) => Ok(vec![second, first]),
            Err(alone) => {
                let tenant = alone.tenant(0).map(|tenant| tenant.id().to_owned());
                self.note(kind, tenant, error.message);
                Ok(Vec::new())
            }
        }
    }

    /// Counts one more failure of a kind.
    pub(super) fn note(&mut self, kind: FailureKind, tenant: Option<String>, message: String) {
        let same = self.troubles.iter().position(|trouble| trouble.kind == kind);
        let index = same.unwrap_or_else(|| {
            self.troubles.push(Trouble { kind, message, tenants: Vec::new(), count: 0 });
            self.troubles.len() - 1
        });
        let Some(trouble) = self.troubles.get_mut(index) else { return };
        trouble.count += 1;
        if let Some(tenant) = tenant
            && trouble.tenants.len() < MOST_NAMED
            && !trouble.tenants.contains(&tenant)
        {
            trouble.tenants.push(tenant);
        }
    }

    /// If so many tenants could be read, the failures are no error of the whole job.
    pub(super) fn is_error_without(&mut self, read: u64) -> Result<(), SourceError> {
        match self.first.take() {
            Some(error) if read == 0 => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    /// The troubles, and how many tenants were not read alone.
    pub(super) fn into_parts(self) -> (Vec<Trouble>, u64) {
        (self.troubles, self.unread)
    }
}
