//! What the engine does when the worker takes shares, and when shares go to another member of the fleet.
//!
//! To take a share is to start for it: while nobody had it, anything may have changed unheard, and its former holder may
//! still be about to write what it read before. So the fences of its tenants move first. Then each job that runs at the
//! start of a worker, or that has tables, runs once for these tenants. What the schedule alone keeps fresh stays with the
//! schedule.
//!
//! When a share goes, its changes are forgotten: its new holder starts for it. Only the tenants that this worker itself
//! left unverified stay pending, even if another member holds them now: this worker's values may be the last that were
//! written.

use std::sync::Arc;

use super::job_state::QueuedRun;
use super::scheduler::Engine;
use super::status::Phase;
use crate::domain::job::JobName;
use crate::domain::pending::Claim;
use crate::domain::run::Trigger;
use crate::domain::share::Shares;
use crate::engine::run::RunSpec;
use crate::engine::run::ownership::ShareNews;
use crate::observe::event;

impl Engine {
    /// Acts on shares that went and on shares that were taken.
    pub(super) fn note_shares(&mut self) {
        let ShareNews { held, taken } = self.runner.ownership.news();
        let gone = std::mem::replace(&mut self.held, held) - held;
        let changed = gone | taken;
        if changed.is_empty() {
            return;
        }
        self.changed = true;
        for state in self.jobs.values_mut() {
            let own = held.of_job(&state.job);
            state.note_shares(own, changed);
            if own.is_empty() {
                event::AuditForgotten { job: &state.job.name }.emit(&self.metrics);
            }
        }
        self.runner.not_warm.keep_shares(held, &self.metrics);
        self.taken.note(changed, taken);
        if self.phase == Phase::Running {
            self.taken.move_next(&self.runner);
        }
    }

    /// Starts for the shares whose fences were moved.
    pub(super) fn fences_moved(&mut self) {
        let shares = self.taken.take_moved();
        if self.phase == Phase::Draining {
            return;
        }
        let starts = self.jobs.values().map(|state| &state.job);
        let starts = starts.filter(|job| job.enabled && (job.on_start || !job.tables.is_empty()));
        let names: Vec<JobName> = starts.map(|job| job.name.clone()).collect();
        for name in names {
            self.start_for(&name, shares);
        }
        self.taken.move_next(&self.runner);
    }

    /// Starts a job for shares that were taken. A run that waits does that as well.
    fn start_for(&mut self, name: &JobName, shares: Shares) {
        let (now, asked_at) = (self.clock.now(), self.clock.monotonic());
        let Some(state) = self.jobs.get_mut(name) else { return };
        let job = Arc::clone(&state.job);
        let shares = shares.of_job(&job);
        if shares.is_empty() {
            return;
        }
        if state.pause.is_some() {
            return self.hold_back(name);
        }
        let mut waiting = state.queue.iter_mut().map(|waiting| &mut waiting.spec);
        if let Some(spec) = waiting.find(|spec| spec.tenants.is_none()) {
            spec.shares = spec.shares.map(|known| known | shares);
            spec.asked_at = asked_at;
            return;
        }
        let spec = self.spec(&job, Trigger::Startup, None);
        let spec = RunSpec { due_at: now, shares: Some(shares), is_takeover: true, ..spec };
        self.enqueue(name, QueuedRun::new(spec, Claim::default()));
    }
}
