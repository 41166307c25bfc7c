//! What a pause does to a job: nothing but a person starts its runs.
//!
//! Runs under way go on to their end, and runs that people asked for stay in the queue. What the schedule, the
//! start of the worker, the change feed or a restart of the cache would have started waits: the pending set
//! keeps the tenants, and one run makes up for all that were held back.

use crate::domain::job::JobName;
use crate::domain::pause::{Pause, Pauses};
use crate::domain::run::{SkipReason, Trigger};
use crate::domain::who::Who;
use crate::observe::event;

use super::job_state::QueuedRun;
use super::scheduler::Engine;
use super::status::Phase;

impl Engine {
    /// Replaces all pauses; `by` resumed the jobs whose pauses are gone.
    pub(super) fn set_pauses(&mut self, mut pauses: Pauses, by: Option<&Who>) {
        let now = self.clock.now();
        pauses.retain(|_, pause| !pause.is_over(now));
        let jobs: Vec<JobName> = self.jobs.keys().cloned().collect();
        for job in jobs {
            match pauses.get(&job) {
                Some(pause) => self.pause(&job, pause),
                None => self.resume(&job, by),
            }
        }
        self.pauses = pauses;
    }

    /// Ends the pauses whose time has come.
    pub(super) fn end_pauses(&mut self) {
        let now = self.clock.now();
        let over: Vec<JobName> =
            self.pauses.extract_if(.., |_, pause| pause.is_over(now)).map(|(job, _)| job).collect();
        for job in over {
            self.resume(&job, None);
        }
    }

    /// Records that the pause holds back a run over all tenants.
    pub(super) fn hold_back(&mut self, job: &JobName) {
        self.skip(job, SkipReason::Paused);
        if let Some(state) = self.jobs.get_mut(job) {
            state.held_back = true;
        }
    }

    fn pause(&mut self, job: &JobName, pause: &Pause) {
        let Some(state) = self.jobs.get_mut(job) else { return };
        let before = state.pause.replace(pause.clone());
        if before.as_ref() == Some(pause) {
            return;
        }
        self.changed = true;
        let is_requested = |run: &QueuedRun| run.spec.trigger == Trigger::Request;
        let (stays, held_back): (Vec<_>, Vec<_>) = state.queue.drain(..).partition(is_requested);
        state.queue.extend(stays);
        // A run that waited for the pending set covers all tenants, and so does the run that makes up for it.
        state.held_back |= !held_back.is_empty();
        self.cancel(held_back, "the job was paused before the run began");
        event::JobPaused { job, pause }.emit(&self.metrics);
        event::NextRun { job, at: None }.emit(&self.metrics);
    }

    fn resume(&mut self, job: &JobName, by: Option<&Who>) {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let Some(state) = self.jobs.get_mut(job) else { return };
        let Some(pause) = state.pause.take() else { return };
        self.changed = true;
        state.changes.resumed(monotonic);
        let held_back = std::mem::take(&mut state.held_back) && state.job.enabled;
        event::JobResumed { job, by, is_over: pause.is_over(now) }.emit(&self.metrics);
        event::NextRun { job, at: state.starts_at() }.emit(&self.metrics);
        if held_back && self.phase == Phase::Running {
            self.tick(job, now);
        }
    }
}
