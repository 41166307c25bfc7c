//! Keys that went from one tenant to another: its former owner's manifest names them still.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::examine::{Look, See, Walk};
use crate::domain::audit::Wrong;
use crate::domain::date::first_dates;
use crate::domain::entry::entries;
use crate::domain::layout::Checks;
use crate::domain::tenant::{Batch, TenantId, Tenants, batches};
use crate::engine::run::Runner;
use crate::engine::tries::{Refusal, Remedy};

/// A key that is there, and that a tenant named and has not.
pub(super) struct Stray {
    pub(super) key: String,
    /// The tenant's.
    pub(super) slot: usize,
    pub(super) wrong: Wrong,
}

impl Walk {
    /// Tells of those that no other tenant has either. Where that cannot be found out, nothing is
    /// known of them.
    pub(super) async fn see_strays(
        &mut self,
        runner: &Runner,
        part: &Batch,
        strays: Vec<Stray>,
        see: &mut See<'_>,
    ) -> Result<(), Refusal> {
        if strays.is_empty() {
            return Ok(());
        }
        let owned = match self.owned_by_others(runner, part, &strays).await {
            Ok(owned) => owned,
            Err(refusal) => match refusal.remedy {
                Remedy::Wait(_) | Remedy::StandBy(_) => return Err(refusal),
                Remedy::AwaitLock | Remedy::Split | Remedy::Fail | Remedy::GiveUp => {
                    self.fail_strays(part, &strays, &refusal);
                    return Ok(());
                }
            },
        };
        let mut done = owned;
        for Stray { key, slot, wrong } in strays {
            // Several tenants of a part may have named it.
            if !done.contains(&key) {
                see(Look { key: &key, tenant: part.tenant(slot), wrong: Some(wrong) });
                done.insert(key);
            }
        }
        Ok(())
    }

    /// Those that a tenant has which is not of this part. Whoever has one whose value preheat wrote
    /// names it.
    async fn owned_by_others(
        &mut self,
        runner: &Runner,
        part: &Batch,
        strays: &[Stray],
    ) -> Result<HashSet<String>, Refusal> {
        let job = Arc::clone(self.job());
        let keys: BTreeSet<&str> = strays.iter().map(|stray| stray.key.as_str()).collect();
        let keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
        let seen: HashSet<&str> = part.tenants().map(|tenant| tenant.id()).collect();
        let others = self.active(runner).await?.only(|tenant| !seen.contains(tenant.id()));
        let owners = runner.tenants_that_name(&job, &others, &keys, |_, _| true).await?;
        let owners = Arc::new(others.only(|tenant| owners.contains(&TenantId::new(tenant.id()))));
        let positions: Vec<u32> = owners.iter().zip(0..).map(|(_, position)| position).collect();
        let checks = Checks::new(runner.layout(), &job);
        let mut owned = HashSet::new();
        for batch in batches(&owners, &positions, job.batch.get()) {
            let first_dates = first_dates(&job, &batch, runner.clock.now());
            let permit = self.read(runner, &batch, &first_dates).await?;
            let found = entries(&job, &checks, &batch, &first_dates, permit.rows());
            owned.extend(found.failed_keys().map(str::to_owned));
            owned.extend(found.writes.into_iter().map(|entry| entry.key));
        }
        Ok(owned)
    }

    async fn active(&self, runner: &Runner) -> Result<Tenants, Refusal> {
        let list = runner.reader.tenants().await;
        runner.note_query(list.as_ref().err());
        Ok(list?)
    }
}
