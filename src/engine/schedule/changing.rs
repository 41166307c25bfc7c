//! What the engine does when data changed, or may have: the pending sets keep the tenants, and the loop starts their runs.

use std::collections::BTreeSet;

use super::handle::Pending;
use super::scheduler::Engine;
use super::status::Phase;
use crate::domain::change::{Changed, ResyncCause, Touched};
use crate::domain::job::{Job, JobName, Scope};
use crate::domain::pending::PendingSet;
use crate::domain::slots::Extent;
use crate::engine::run::not_warm::Owner;
use crate::observe::event;

impl Engine {
    /// Adds changes to the pending sets; the loop starts the runs.
    pub(super) fn note_changes(&mut self, changed: Changed) {
        if self.phase == Phase::Draining {
            return;
        }
        let now = self.clock.monotonic();
        match changed {
            Changed::Everything { moved_at } => {
                let held = self.runner.ownership.noticed();
                for state in self.jobs.values_mut().filter(|state| !state.job.tables.is_empty()) {
                    if !held.of_job(&state.job).is_empty() {
                        state.note_everything(moved_at, now);
                    }
                }
                self.tell_resync(ResyncCause::FeedConnected, |job| !job.tables.is_empty());
            }
            Changed::Jobs { jobs, heard_at } => {
                let held = self.runner.ownership.noticed();
                let heard_ago = now.saturating_sub(heard_at);
                let changed_at = self.clock.now() - heard_ago;
                let mut whole = BTreeSet::new();
                for (name, touched) in jobs {
                    match &touched {
                        Touched::Tenants(tenants) => {
                            let last = &self.runner.last_changes;
                            for tenant in tenants.iter().filter(|id| held.has_tenant(id.as_str())) {
                                last.note(tenant, changed_at);
                            }
                        }
                        Touched::All => drop(whole.insert(name.clone())),
                    }
                    if let Some(state) = self.jobs.get_mut(&name) {
                        let own = held.of_job(&state.job);
                        state.note_change(touched, own, (heard_at, now));
                    }
                }
                // Any change of a job without tenants is one of all its data, and nothing special.
                self.tell_resync(ResyncCause::AnyTenant, |job| {
                    job.scope == Scope::Tenants && whole.contains(&job.name)
                });
            }
        }
    }

    /// Reports that these of the enabled jobs run for all tenants.
    fn tell_resync(&self, cause: ResyncCause, is_meant: impl Fn(&Job) -> bool) {
        let jobs = self.jobs.values().map(|state| &state.job);
        let jobs = jobs.filter(|job| job.enabled && is_meant(job) && !self.own(job).is_empty());
        let jobs = jobs.map(|job| job.name.clone());
        let (jobs, at) = (jobs.collect::<Vec<_>>(), self.clock.now());
        if !jobs.is_empty() {
            event::ResyncWanted { cause, jobs: &jobs, at }.emit(&self.metrics);
        }
    }

    /// What waits to be warmed again, and when these tenants are tried again.
    pub(super) fn pending(&self, of: &[(JobName, Owner)]) -> Pending {
        let (now, mono) = (self.clock.now(), self.clock.monotonic());
        let sets = || self.jobs.values().map(|state| &state.changes);
        let heard_at = sets().filter_map(PendingSet::oldest_change).min();
        let next_try = |(job, owner): &(JobName, Owner)| {
            let state = self.jobs.get(job)?;
            let due_at = state.changes.due_at(owner).map(|at| now + at.saturating_sub(mono));
            [due_at, state.next_due_at].into_iter().flatten().min()
        };
        Pending {
            waiting: sets().map(PendingSet::len).sum(),
            oldest: heard_at.map(|at| mono.saturating_sub(at)),
            next_tries: of.iter().map(next_try).collect(),
        }
    }

    /// The cache has lost something: every job runs, in its turn, for the tenants whose keys may be among it.
    pub(super) fn cache_was_restarted(&mut self) {
        let Some(lost) = self.runner.cache_process.take_lost() else { return };
        if self.phase == Phase::Draining {
            return;
        }
        let (now, held) = (self.clock.monotonic(), self.runner.ownership.noticed());
        for state in self.jobs.values_mut().filter(|state| state.job.enabled) {
            if !held.of_job(&state.job).is_empty() {
                // A run that was under way is not `ok`; it is repeated as a whole.
                let is_under_way = state.running.as_ref().is_some_and(|run| run.spec.covers_all());
                let lost = if is_under_way { Extent::All } else { lost.clone() };
                state.changes.cache_lost(lost, now);
            }
        }
        self.tell_resync(ResyncCause::CacheLost, |_| true);
    }
}
