//! What the scheduler knows of a job between and during its runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::handle::Ticket;
use super::status::{ActiveRun, BatchFit, JobStatus};
use crate::domain::change::Touched;
use crate::domain::job::{Job, Overlap, Scope};
use crate::domain::pause::Pause;
use crate::domain::pending::{Cause, Claim, PendingSet};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::engine::run::limit::Priority;
use crate::engine::run::{RunSpec, Unverified};
use crate::observe::event::SkipReason;

/// How many runs of one job may wait. Further ones would only repeat what the waiting runs will do.
pub(crate) const MAX_QUEUED: usize = 16;
/// How many runs for changed tenants of one job go on at once, so that other tenants' changes need not wait for
/// the run of a giant. They share the job's permits.
pub(crate) const MAX_CHANGE_RUNS: usize = 4;
/// While a run for changed tenants is younger than this, later changes are collected for the run after it, so
/// that many small changes do not become as many runs. Most such runs have ended by then.
pub(crate) const COLLECTING: Duration = Duration::from_millis(20);
/// How many follow-ups of one job go on at once. Unverified values live for the provisional TTL, so a
/// follow-up does not wait for a slow one. With this many under way, further due tenants are collected for
/// the next.
pub(crate) const MAX_FOLLOW_UPS: usize = 4;

/// A job between and during its runs.
pub(crate) struct JobState {
    pub(crate) job: Arc<Job>,
    pub(crate) next_due_at: Option<DateTime<Utc>>,
    /// The regular run under way; the queue has the runs that wait for it.
    pub(crate) running: Option<QueuedRun>,
    pub(crate) queue: VecDeque<QueuedRun>,
    pub(crate) last_run: Option<Arc<RunRecord>>,
    pub(crate) last_success_at: Option<DateTime<Utc>>,
    /// The shares for which a run was `ok`, since the worker took them.
    pub(crate) warmed: Shares,
    /// When the last run over all tenants started, on the monotonic clock.
    pub(crate) last_written_at: Option<Duration>,
    /// The job's pending set. `beside` has the runs for some of its tenants, which go on beside the regular
    /// run.
    pub(crate) changes: PendingSet,
    pub(crate) beside: Vec<QueuedRun>,
    /// Why the job is paused, if it is.
    pub(crate) pause: Option<Pause>,
    /// Whether the pause held back a run over all tenants, which the job makes up for when it is resumed.
    pub(crate) held_back: bool,
}

/// An accepted run, until its record exists.
pub(crate) struct QueuedRun {
    pub(crate) spec: RunSpec,
    pub(crate) started: Option<Started>,
    pub(crate) done: watch::Sender<Option<Arc<RunRecord>>>,
    /// What the run took from the pending set.
    pub(crate) claim: Claim,
}

/// When a run started, on both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    pub(crate) at: DateTime<Utc>,
    pub(crate) monotonic: Duration,
}

impl QueuedRun {
    pub(crate) fn new(spec: RunSpec, claim: Claim) -> Self {
        Self { spec, started: None, done: watch::Sender::new(None), claim }
    }

    pub(crate) fn active(&self) -> ActiveRun {
        ActiveRun {
            id: self.spec.id,
            job: self.spec.job.name.clone(),
            trigger: self.spec.trigger,
            requested_by: self.spec.requested_by.clone(),
            due_at: self.spec.due_at,
            started_at: self.started.map(|started| started.at),
            progress: Arc::clone(&self.spec.progress),
        }
    }

    /// Whether it is for all tenants: in a fleet, for all of the worker's own.
    pub(crate) fn is_for_all(&self) -> bool {
        self.spec.is_for_all()
    }

    /// Whether it is for all tenants of these shares.
    pub(crate) fn covers(&self, own: Shares) -> bool {
        let has_all = |shares: Shares| shares.has_all(own);
        self.spec.covers_all() && self.spec.shares.is_none_or(has_all)
    }

    /// The run as it starts, on a worker of a fleet that holds these of the job's shares; `None` if none of the run's shares
    /// is left. A run for all tenants is for what is held when it starts.
    pub(crate) fn bind(mut self, own: Option<Shares>) -> Option<Self> {
        let (Some(shares), Some(own)) = (self.spec.shares, own) else { return Some(self) };
        let shares = if self.is_for_all() { own } else { shares & own };
        self.spec.shares = Some(shares);
        self.spec.is_takeover &= shares != own;
        (!shares.is_empty()).then_some(self)
    }

    /// Whether the run is for changed or unverified tenants, beside the other runs.
    pub(crate) fn is_change_run(&self) -> bool {
        self.spec.priority == Priority::Urgent
    }

    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { run: self.active(), done: self.done.subscribe() }
    }
}

impl JobState {
    pub(crate) fn new(job: Arc<Job>, now: DateTime<Utc>) -> Self {
        let mut state = Self {
            job,
            next_due_at: None,
            running: None,
            queue: VecDeque::new(),
            last_run: None,
            last_success_at: None,
            warmed: Shares::NONE,
            last_written_at: None,
            changes: PendingSet::default(),
            beside: Vec::new(),
            pause: None,
            held_back: false,
        };
        state.next_due_at = state.next_after(now);
        state
    }

    /// Why a due time starts no run for these shares, if so.
    pub(crate) fn skips_tick(&self, own: Shares) -> Option<SkipReason> {
        if self.pause.is_some() {
            return Some(SkipReason::Paused);
        }
        let running = self.running.as_ref()?;
        let one_waits = self.queue.iter().any(|taken| taken.spec.trigger == Trigger::Schedule);
        match self.job.overlap {
            _ if one_waits => Some(SkipReason::Overlap),
            // A run for only some tenants does not replace the due run, which waits for its end.
            Overlap::Skip if running.covers(own) => Some(SkipReason::Overlap),
            Overlap::Skip | Overlap::Queue => {
                (self.queue.len() >= MAX_QUEUED).then_some(SkipReason::QueueFull)
            }
        }
    }

    /// Adds changed data to the pending set, if it belongs to these shares.
    pub(crate) fn note_change(
        &mut self,
        touched: Touched,
        own: Shares,
        (heard_at, now): (Duration, Duration),
    ) {
        match (self.job.scope, touched) {
            _ if !self.job.enabled || own.is_empty() => {}
            (Scope::Global, Touched::All | Touched::Tenants(_)) => {
                self.changes.changed(None, heard_at, now);
            }
            (Scope::Tenants, Touched::All) => self.changes.everything_changed(now, now),
            (Scope::Tenants, Touched::Tenants(tenants)) => {
                for tenant in tenants.into_iter().filter(|id| own.has_tenant(id.as_str())) {
                    self.changes.changed(Some(tenant), heard_at, now);
                }
            }
        }
    }

    /// Forgets what was pending for shares that the worker does not hold, and what was done for `changed`: shares that
    /// went, or were taken again.
    pub(crate) fn note_shares(&mut self, own: Shares, changed: Shares) {
        self.warmed = self.warmed - changed;
        let runs = self.running.iter_mut().chain(&mut self.beside).chain(&mut self.queue);
        for shares in runs.filter_map(|taken| taken.spec.shares.as_mut()) {
            *shares = *shares - changed;
        }
        self.keep_own(own);
    }

    /// Forgets what is pending for shares that the worker does not hold.
    pub(crate) fn keep_own(&mut self, own: Shares) {
        if own == Shares::ALL {
            return;
        }
        self.changes.keep_changes(|whose| match whose {
            Some(tenant) => own.has_tenant(tenant.as_str()),
            None => !own.is_empty(),
        });
        if own.is_empty() {
            self.changes.forget_everything();
        }
    }

    /// Records that all data may have changed; the fences moved at `moved_at`.
    pub(crate) fn note_everything(&mut self, moved_at: Duration, now: Duration) {
        match self.job.scope {
            _ if !self.job.enabled => {}
            Scope::Global => self.changes.changed(None, moved_at, now),
            Scope::Tenants => self.changes.everything_changed(moved_at, now),
        }
    }

    /// When the next run for the pending set may start, if one may. While the job is paused, its pending set
    /// waits.
    pub(crate) fn next_change_at(&self) -> Option<Duration> {
        if self.pause.is_some() {
            return None;
        }
        let causes = [Cause::Unverified, Cause::Change].into_iter();
        let some = causes.filter_map(|cause| {
            Some(self.changes.next_due_at(cause)?.max(self.room_beside_at(cause)?))
        });
        some.chain(self.everything_at()).min()
    }

    /// From when on one more run for that cause may start; `None` while as many as may are under way.
    pub(crate) fn room_beside_at(&self, cause: Cause) -> Option<Duration> {
        let (most, collecting) = match cause {
            Cause::Change => (MAX_CHANGE_RUNS, COLLECTING),
            Cause::Unverified => (MAX_FOLLOW_UPS, Duration::ZERO),
        };
        let under_way = || self.beside.iter().filter(|taken| taken.claim.cause() == cause);
        let youngest = under_way().filter_map(|taken| Some(taken.started?.monotonic)).max();
        let room_at = youngest.map_or(Duration::ZERO, |started| started + collecting);
        (under_way().count() < most).then_some(room_at)
    }

    /// Adds the tenants that a run left unverified. The run may have ended, or belong to an earlier
    /// definition of the job.
    pub(crate) fn note_unverified(&mut self, run: RunId, unverified: Unverified, now: Duration) {
        let mut runs = self.running.iter_mut().chain(&mut self.beside);
        let claim = runs.find(|taken| taken.spec.id == run).map(|taken| &mut taken.claim);
        self.changes.handed_over(unverified, claim, now);
    }

    /// When the next run for all tenants may start; while the queue is full, it waits for the end of a run.
    pub(crate) fn everything_at(&self) -> Option<Duration> {
        self.changes.everything_due_at().filter(|_| self.queue.len() < MAX_QUEUED)
    }

    /// A run for all tenants of these shares that began after that moment, or will begin: it reads the data of that
    /// moment.
    pub(crate) fn covering_run(
        &mut self,
        own: Shares,
        asked_at: Option<Duration>,
    ) -> Option<&mut QueuedRun> {
        let running = self.running.as_mut().filter(|taken| {
            let started = taken.started.map(|started| started.monotonic);
            taken.covers(own) && started > asked_at
        });
        running.or_else(|| self.queue.iter_mut().find(|taken| taken.is_for_all()))
    }

    /// The same job with another definition.
    pub(crate) fn redefined(mut self, job: Arc<Job>, now: DateTime<Utc>) -> Self {
        let keeps_its_times = self.job.schedule == job.schedule && self.job.enabled == job.enabled;
        if self.job.scope != job.scope {
            self.changes.clear();
        }
        self.job = job;
        if !keeps_its_times {
            self.next_due_at = self.next_after(now);
        }
        // Until now the job wrote other keys, or the same keys with another TTL.
        self.last_written_at = None;
        for waiting in &mut self.queue {
            waiting.spec.job = Arc::clone(&self.job);
        }
        self
    }

    /// Records the end of a run that named no tenants.
    pub(crate) fn note_end(&mut self, record: &RunRecord, taken: &QueuedRun) {
        if record.outcome == Outcome::Ok && taken.spec.covers_all() {
            self.warmed = self.warmed | taken.spec.shares.unwrap_or(Shares::ALL);
        }
        if !taken.is_for_all() {
            return;
        }
        if record.outcome == Outcome::Ok {
            self.last_success_at = Some(record.finished_at);
        }
        match record.outcome {
            // The run came to every tenant; the tenants that failed are handled elsewhere.
            Outcome::Ok | Outcome::Partial => {
                let started = taken.started.filter(|_| Arc::ptr_eq(&taken.spec.job, &self.job));
                self.last_written_at = started.map(|started| started.monotonic);
            }
            Outcome::Failed | Outcome::Timeout | Outcome::Cancelled => {}
        }
    }

    pub(crate) fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.job.enabled.then(|| self.job.schedule.next_after(now)).flatten()
    }

    /// When the job's next scheduled run starts; `None` while it is paused.
    pub(crate) fn starts_at(&self) -> Option<DateTime<Utc>> {
        self.next_due_at.filter(|_| self.pause.is_none())
    }

    pub(crate) fn status(&self, own: Shares, batch: Arc<BatchFit>) -> JobStatus {
        JobStatus {
            job: Arc::clone(&self.job),
            next_due_at: self.starts_at(),
            running: self.running.as_ref().map(QueuedRun::active),
            queued: self.queue.iter().map(QueuedRun::active).collect(),
            last_run: self.last_run.clone(),
            last_success_at: self.last_success_at,
            unwarmed: own - self.warmed,
            batch,
            pause: self.pause.clone(),
        }
    }
}

pub(crate) fn take_out(runs: &mut Vec<QueuedRun>, id: RunId) -> Option<QueuedRun> {
    let position = runs.iter().position(|taken| taken.spec.id == id)?;
    Some(runs.swap_remove(position))
}
