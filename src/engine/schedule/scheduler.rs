//! The one loop that decides: run, queue or skip.
//!
//! tokio-cron-scheduler rings the bell and decides nothing: the due times come from
//! [`Schedule::next_after`](crate::domain::schedule::Schedule::next_after). Overlap, queueing, catching up
//! (at most one run for any number of missed ticks) and draining are decided here and nowhere else.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::handle::{Asker, Command, Handle, RequestError, RunRequest, Ticket, requested};
use super::health::Beats;
use super::job_state::{JobState, MAX_QUEUED, QueuedRun, Started, take_out};
use super::status::{Phase, Rejections, Status};
use super::taken::TakenShares;
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::pause::Pauses;
use crate::domain::pending::{Cause, Claim, Failures};
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::run::{Outcome, RunRecord, Trigger};
use crate::domain::server::Server;
use crate::domain::share::Shares;
use crate::domain::tenant::TenantId;
use crate::engine::ports::Clock;
use crate::engine::run::limit::{HeldLong, Priority};
use crate::engine::run::record::Records;
use crate::engine::run::{Failed, Handover, RunResult, RunSpec, Runner, Stops};
use crate::observe::event::{self, SkipReason};
use crate::observe::metric::Metrics;

/// How many requests wait for the loop, which handles each in microseconds.
const MAX_COMMANDS: usize = 64;

/// The loop looks at the clock at least this often, bell or no bell.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// If the wall clock goes back by more than this, it was set, and all due times are computed again.
const CLOCK_SET_BACK: TimeDelta = TimeDelta::seconds(2);

/// What the engine is made of.
pub struct Parts {
    /// The jobs.
    pub jobs: Jobs,
    /// Does the runs.
    pub runner: Arc<Runner>,
    /// Keeps the runs' records.
    pub records: Arc<Records>,
    /// The scheduler rings it.
    pub bell: Arc<Notify>,
    /// When the scheduler and the loop were last seen at work.
    pub beats: Arc<Beats>,
}

/// The loop and its state.
pub struct Engine {
    pub(super) jobs: BTreeMap<JobName, JobState>,
    /// Runs under way of jobs that are gone.
    leaving: Vec<QueuedRun>,
    rejections: Rejections,
    pub(super) runner: Arc<Runner>,
    records: Arc<Records>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    bell: Arc<Notify>,
    beats: Arc<Beats>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Arc<Status>>,
    runs: JoinSet<RunResult>,
    /// Where runs hand over their unverified tenants; it rings the bell.
    handover: Arc<Handover>,
    /// How often the cache server was restarted.
    restarts: watch::Receiver<u64>,
    /// Notified when the worker takes shares or shares go.
    shares: watch::Receiver<Shares>,
    /// The shares that the worker held when it was notified last.
    pub(super) held: Shares,
    pub(super) taken: TakenShares,
    stops: Stops,
    started_at: DateTime<Utc>,
    pub(super) phase: Phase,
    looked_at: DateTime<Utc>,
    scheduler_silent: bool,
    /// The pauses of all jobs, those that are gone included.
    pub(super) pauses: Pauses,
    /// Whether something changed since the status was published.
    pub(super) changed: bool,
}

impl Engine {
    /// An engine, which begins to work with [`Self::run`], and the handle to it.
    pub fn new(parts: Parts, stops: Stops) -> (Self, Handle) {
        let Parts { jobs, runner, records, bell, beats } = parts;
        let (clock, metrics) = (Arc::clone(&runner.clock), Arc::clone(&runner.metrics));
        let now = clock.now();
        runner.jobs.set(jobs.clone());
        let jobs = jobs.into_values().map(|job| (job.name.clone(), JobState::new(job, now)));
        let (command_sender, commands) = mpsc::channel(MAX_COMMANDS);
        let empty = Status {
            started_at: now,
            phase: Phase::Running,
            shares: runner.ownership.in_fleet(),
            jobs: BTreeMap::new(),
            leaving: Vec::new(),
            rejections: Rejections::default(),
        };
        let (status, status_receiver) = watch::channel(Arc::new(empty));
        let mut engine = Self {
            jobs: jobs.collect(),
            leaving: Vec::new(),
            rejections: Rejections::default(),
            restarts: runner.cache_process.subscribe(),
            shares: runner.ownership.subscribe(),
            held: runner.ownership.noticed(),
            taken: TakenShares::default(),
            handover: Arc::new(Handover::ringing(Arc::clone(&bell))),
            runner,
            records: Arc::clone(&records),
            clock: Arc::clone(&clock),
            metrics,
            bell,
            beats: Arc::clone(&beats),
            commands,
            status,
            runs: JoinSet::new(),
            stops,
            started_at: now,
            phase: Phase::Running,
            looked_at: now,
            scheduler_silent: false,
            pauses: Pauses::new(),
            changed: true,
        };
        engine.register_jobs();
        engine.publish();
        let handle = Handle::new(command_sender, status_receiver, beats, records, clock);
        (engine, handle)
    }

    /// The same, with jobs whose files are rejected.
    #[must_use]
    pub fn with_rejections(mut self, rejections: Rejections) -> Self {
        self.rejections = rejections;
        self.changed = true;
        self.publish();
        self
    }

    /// The same, with pauses that began before the worker did.
    #[must_use]
    pub fn with_pauses(mut self, pauses: Pauses) -> Self {
        self.set_pauses(pauses, None);
        self.publish();
        self
    }

    /// Works until the drain token is cancelled and no run is in flight any more.
    pub async fn run(mut self) {
        self.note_shares();
        self.start(self.jobs.keys().cloned().collect());
        loop {
            self.beats.engine_turned(self.clock.monotonic());
            self.look_at_scheduler();
            self.look_at_permits();
            self.end_pauses();
            self.start_due();
            self.note_unverified();
            self.start_changes();
            self.publish();
            if self.phase == Phase::Draining && self.runs.is_empty() {
                return;
            }
            let nap = self.nap();
            tokio::select! {
                biased;
                () = self.stops.requested(), if self.phase == Phase::Running => self.drain(),
                // Before everything that acts on changes and on the ends of runs: it says which of them concern the
                // worker.
                Ok(()) = self.shares.changed() => self.note_shares(),
                Some(Ok(())) = self.taken.moved() => self.fences_moved(),
                () = self.bell.notified() => {}
                // Before the ends of runs: the run that begins after such an end then begins late enough to
                // cover the restart.
                Ok(()) = self.restarts.changed() => self.cache_was_restarted(),
                // Before requests: many requests may come, but the number of runs that can end is bounded.
                Some(ended) = self.runs.join_next(), if !self.runs.is_empty() => self.ended(ended),
                Some(command) = self.commands.recv() => self.obey(command),
                () = self.clock.sleep(nap) => {}
            }
        }
    }

    /// Starts the runs of new or changed jobs that say `on_start`.
    fn start(&mut self, jobs: Vec<JobName>) {
        let now = self.clock.now();
        for name in jobs {
            let Some(state) = self.jobs.get(&name) else { continue };
            event::NextRun { job: &name, at: state.starts_at() }.emit(&self.metrics);
            // It starts for shares that were taken when their fences have moved.
            let own = self.own(&state.job) - self.taken.shares();
            let starts = state.job.enabled && state.job.on_start && !own.is_empty();
            if starts && state.pause.is_some() {
                self.hold_back(&name);
            } else if starts && !self.waits_for_all(&name) {
                self.take(&name, Trigger::Startup, now);
            }
        }
    }

    /// Starts what is due. Any number of missed ticks is one run.
    fn start_due(&mut self) {
        let now = self.clock.now();
        let clock_set_back = self.looked_at - now > CLOCK_SET_BACK;
        self.looked_at = now;
        if self.phase == Phase::Draining {
            return;
        }
        let mut due = Vec::new();
        for (job, state) in &mut self.jobs {
            let due_at = state.next_due_at.filter(|due_at| *due_at <= now);
            if due_at.is_none() && !clock_set_back {
                continue;
            }
            state.next_due_at = state.next_after(now);
            event::NextRun { job, at: state.starts_at() }.emit(&self.metrics);
            self.changed = true;
            due.extend(due_at.map(|due_at| (job.clone(), due_at)));
        }
        for (job, due_at) in due {
            self.tick(&job, due_at);
        }
    }

    /// Handles one due time of a job: run, queue or skip.
    pub(super) fn tick(&mut self, job: &JobName, due_at: DateTime<Utc>) {
        let Some(state) = self.jobs.get(job) else { return };
        let own = self.own(&state.job);
        if own.is_empty() {
            return;
        }
        match state.skips_tick(own) {
            Some(SkipReason::Paused) => self.hold_back(job),
            Some(reason) => self.skip(job, reason),
            None => {
                self.take(job, Trigger::Schedule, due_at);
            }
        }
    }

    /// Reports a run that does not happen.
    pub(super) fn skip(&self, job: &JobName, reason: SkipReason) {
        event::RunSkipped { job, reason }.emit(&self.metrics);
        self.records.recent.note_skip(job, self.clock.now(), reason);
    }

    /// Accepts a run over all tenants: it starts now or waits for the one under way.
    fn take(&mut self, job: &JobName, trigger: Trigger, due_at: DateTime<Utc>) -> Option<Ticket> {
        let spec = RunSpec { due_at, ..self.spec(&self.jobs.get(job)?.job, trigger, None) };
        Some(self.enqueue(job, QueuedRun::new(spec, Claim::default())))
    }

    /// The specification of a run that is requested at this moment. A run that a person asked for covers its tenants
    /// even if other workers hold their shares.
    pub(super) fn spec(
        &self,
        job: &Arc<Job>,
        trigger: Trigger,
        tenants: Option<Vec<TenantId>>,
    ) -> RunSpec {
        let handover = Arc::clone(&self.handover);
        let shares = match trigger {
            Trigger::Request => None,
            Trigger::Schedule | Trigger::Startup | Trigger::Change => {
                self.runner.ownership.bound(job)
            }
        };
        let spec = RunSpec::on_request(self.clock.as_ref(), job, tenants);
        RunSpec { trigger, shares, handover, ..spec }
    }

    /// The shares that the worker holds and that a job has work in.
    pub(super) fn own(&self, job: &Job) -> Shares {
        self.runner.ownership.noticed().of_job(job)
    }

    pub(super) fn enqueue(&mut self, job: &JobName, taken: QueuedRun) -> Ticket {
        let ticket = taken.ticket();
        if let Some(state) = self.jobs.get_mut(job) {
            state.queue.push_back(taken);
        }
        self.changed = true;
        self.start_next(job);
        ticket
    }

    /// Starts the job's next run, if one waits and none is under way.
    fn start_next(&mut self, job: &JobName) {
        let Some(state) = self.jobs.get_mut(job) else { return };
        if state.running.is_some() {
            return;
        }
        let own = self.runner.ownership.bound(&state.job);
        // A run whose shares have all gone has nothing to do, and nobody asked for it.
        let next = std::iter::from_fn(|| state.queue.pop_front()).find_map(|next| next.bind(own));
        let Some(mut next) = next else { return };
        next.started = Some(Started { at: self.clock.now(), monotonic: self.clock.monotonic() });
        next.spec.last_written_at = state.last_written_at;
        let spec = next.spec.clone();
        state.running = Some(next);
        self.spawn(spec);
    }

    fn spawn(&mut self, spec: RunSpec) {
        self.runs.spawn(run_to_a_record(Arc::clone(&self.runner), spec, self.stops.clone()));
    }

    /// Starts the runs for pending tenants that are due.
    fn start_changes(&mut self) {
        if self.phase == Phase::Draining {
            return;
        }
        let now = self.clock.monotonic();
        let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let jobs = self.jobs.iter().filter(|(_, state)| is_due(state.next_change_at()));
        let jobs: Vec<_> = jobs.map(|(job, _)| job.clone()).collect();
        for job in jobs {
            self.start_beside(&job, Cause::Unverified, now);
            self.start_beside(&job, Cause::Change, now);
            self.start_everything(&job, now);
        }
    }

    /// Starts a run for the tenants that are due for that cause, beside the job's other runs. If such a run
    /// has read the data before the change, the moved fence keeps its values from having the last word.
    fn start_beside(&mut self, job: &JobName, cause: Cause, now: Duration) {
        let started = Started { at: self.clock.now(), monotonic: now };
        let Some(state) = self.jobs.get_mut(job) else { return };
        if state.room_beside_at(cause).is_none_or(|at| at > now) {
            return;
        }
        let Some(claim) = state.changes.take_due(cause, now) else { return };
        let (job, tenants) = (Arc::clone(&state.job), claim.tenants(state.job.scope));
        let spec = self.spec(&job, Trigger::Change, tenants);
        let shares = match cause {
            Cause::Change => spec.shares,
            // The worker warms the tenants that it left unverified again, even if another worker holds them now: its own
            // values may have been the last to be written.
            Cause::Unverified => None,
        };
        let spec = RunSpec { priority: Priority::Urgent, shares, ..spec };
        if let Some(state) = self.jobs.get_mut(&job.name) {
            let taken = QueuedRun::new(spec.clone(), claim);
            state.beside.push(QueuedRun { started: Some(started), ..taken });
            self.spawn(spec);
        }
    }

    /// Queues one run for all tenants, whose data may have changed; it takes its turn like any other run.
    fn start_everything(&mut self, name: &JobName, now: Duration) {
        let Some(state) = self.jobs.get_mut(name) else { return };
        if state.everything_at().is_none_or(|due_at| due_at > now) {
            return;
        }
        let claim = state.changes.take_everything(now);
        let own = self.runner.ownership.noticed().of_job(&state.job);
        if own.is_empty() {
            return;
        }
        if let Some(covering) = state.covering_run(own, claim.asked_at()) {
            covering.claim.join(claim);
            return;
        }
        let job = Arc::clone(&state.job);
        let spec = RunSpec { extent: claim.extent(), ..self.spec(&job, Trigger::Change, None) };
        self.enqueue(name, QueuedRun::new(spec, claim));
    }

    fn ended(&mut self, ended: Result<RunResult, tokio::task::JoinError>) {
        // A run's task does not panic (see `run_to_a_record`), and nothing aborts it.
        let Ok(RunResult { record, failed }) = ended else { return };
        self.note_unverified();
        let record = Arc::new(record);
        let Some(mut taken) = self.take_running(&record) else { return };
        let kept = self.keep(&record, &taken);
        self.note_claim(std::mem::take(&mut taken.claim), &record, &failed);
        let job = &record.job;
        if let Some(state) = self.jobs.get_mut(job) {
            if taken.spec.tenants.is_none() {
                state.note_end(&record, &taken);
                self.runner.coverage_wanted.notify_one();
            }
            if !state.job.enabled {
                self.runner.not_warm.keep_jobs(|kept| kept != job);
            }
            if kept {
                state.last_run = Some(Arc::clone(&record));
            }
        } else {
            self.register_jobs();
        }
        self.changed |= kept || taken.spec.tenants.is_none();
        self.start_next(job);
        // A caller that waits for the run then finds it in the status as well.
        self.publish();
        taken.done.send_replace(Some(record));
    }

    /// Takes a run that was under way out of the state.
    fn take_running(&mut self, record: &RunRecord) -> Option<QueuedRun> {
        let is_it = |taken: &mut QueuedRun| taken.spec.id == record.id;
        if let Some(state) = self.jobs.get_mut(&record.job) {
            let regular = state.running.take_if(is_it);
            return regular.or_else(|| take_out(&mut state.beside, record.id));
        }
        let leaving = take_out(&mut self.leaving, record.id);
        self.changed |= leaving.is_some();
        leaving
    }

    /// Adds the tenants that runs left unverified, whether the runs have ended or go on.
    fn note_unverified(&mut self) {
        let now = self.clock.monotonic();
        for ((job, run), unverified) in self.handover.take() {
            let Some(state) = self.jobs.get_mut(&job) else { continue };
            if self.phase == Phase::Running && state.job.enabled {
                state.note_unverified(run, unverified, now);
            }
        }
    }

    /// Settles what a run took from the pending set; what failed goes back into the set.
    fn note_claim(&mut self, claim: Claim, record: &RunRecord, failed: &Failed) {
        let now = self.clock.monotonic();
        let Some(state) = self.jobs.get_mut(&record.job) else { return };
        if self.phase == Phase::Draining || !state.job.enabled {
            return;
        }
        let failures = Failures::of(record, failed);
        let longest = record.report.batches.longest();
        let lags = state.changes.ended(claim, &failures, longest, now);
        state.keep_own(self.runner.ownership.noticed().of_job(&state.job));
        let at = self.clock.now();
        event::ChangesWarmed { job: &record.job, lags: &lags, at }.emit(&self.metrics);
    }

    /// Reports a run that ended; answers whether its record is kept. Runs for some changed tenants that end
    /// `ok` are too many to keep: they are only counted.
    fn keep(&self, record: &Arc<RunRecord>, taken: &QueuedRun) -> bool {
        let all_tenants = taken.is_for_all();
        let kept = !taken.is_change_run() || record.outcome != Outcome::Ok;
        event::RunFinished { record, all_tenants, kept }.emit(&self.metrics);
        if kept {
            self.records.push(Arc::clone(record));
        }
        kept
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Request { request, asker, reply } => {
                let answer = self.request(request, asker);
                self.publish();
                // The caller may have gone; its runs go on all the same.
                drop(reply.send(answer));
            }
            Command::Changed(changed) => self.note_changes(changed),
            Command::Pending { of, reply } => drop(reply.send(self.pending(&of))),
            Command::Pauses { pauses, by, done } => {
                self.set_pauses(pauses, by.as_ref());
                self.publish();
                drop(done);
            }
            Command::Replace { jobs, rejections, done } => {
                self.rejections = rejections;
                self.replace(jobs);
                self.publish();
                drop(done);
            }
        }
    }

    /// Accepts all runs of a request, or none.
    fn request(&mut self, request: RunRequest, asker: Asker) -> Result<Vec<Ticket>, RequestError> {
        let Asker { by, parent, asked_at } = asker;
        let RunRequest { jobs, tenants } = request;
        let is_rejected = |job: &JobName| self.rejections.contains_key(job);
        let known = self.jobs.values().map(|state| &state.job);
        let jobs = requested(known, is_rejected, &jobs, tenants.is_some())?;
        let jobs: Vec<JobName> = jobs.iter().map(|job| job.name.clone()).collect();
        if self.phase == Phase::Draining {
            for job in &jobs {
                self.skip(job, SkipReason::Draining);
            }
            return Err(RequestError::Draining);
        }
        for job in &jobs {
            let state = self.jobs.get(job);
            let full = state.is_some_and(|state| state.queue.len() >= MAX_QUEUED);
            if full && self.waiting_twin(job, tenants.as_deref()).is_none() {
                self.skip(job, SkipReason::QueueFull);
                return Err(RequestError::QueueFull(job.clone()));
            }
        }
        let due_at = asked_at.unwrap_or_else(|| self.clock.now());
        let tickets = jobs.iter().filter_map(|job| {
            let twin = self.waiting_twin(job, tenants.as_deref());
            twin.filter(|_| asked_at.is_none()).or_else(|| {
                let job_state = &self.jobs.get(job)?.job;
                let spec = self.spec(job_state, Trigger::Request, tenants.clone());
                let shares = self.requested_shares(job_state, asked_at, tenants.as_deref());
                let spec = RunSpec { due_at, requested_by: by.clone(), parent, shares, ..spec };
                Some(self.enqueue(job, QueuedRun::new(spec, Claim::default())))
            })
        });
        Ok(tickets.collect())
    }

    /// The shares that a requested run is bound to: in a fleet that was asked at that moment, and on a worker with a fixed
    /// part of the tenants, unless the request names tenants.
    fn requested_shares(
        &self,
        job: &Job,
        asked_at: Option<DateTime<Utc>>,
        tenants: Option<&[TenantId]>,
    ) -> Option<Shares> {
        let ownership = &self.runner.ownership;
        let is_of_part = tenants.is_none() && ownership.fixed().is_some();
        let own = ownership.bound(job).filter(|_| asked_at.is_some() || is_of_part);
        // A global job of another part runs here if somebody asks for it.
        own.filter(|own| asked_at.is_some() || !own.is_empty())
    }

    /// A waiting run that will do the same as a requested one: it has not read anything yet.
    fn waiting_twin(&self, job: &JobName, tenants: Option<&[TenantId]>) -> Option<Ticket> {
        let queue = &self.jobs.get(job)?.queue;
        let is_twin = |taken: &&QueuedRun| {
            taken.spec.tenants.as_deref() == tenants
                && taken.spec.shares == self.requested_shares(&taken.spec.job, None, tenants)
        };
        queue.iter().find(is_twin).map(QueuedRun::ticket)
    }

    /// Whether a run for all tenants waits.
    fn waits_for_all(&self, job: &JobName) -> bool {
        self.jobs.get(job).is_some_and(|state| state.queue.iter().any(QueuedRun::is_for_all))
    }

    /// Starts no new runs. Waiting runs end as cancelled; runs in flight watch the same token.
    fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.changed = true;
        event::WorkerDraining { in_flight: self.runs.len() }.emit(&self.metrics);
        let waiting = self.jobs.values_mut().flat_map(|state| state.queue.drain(..)).collect();
        self.jobs.values_mut().for_each(|state| state.changes.clear());
        self.cancel(waiting, "the worker stopped before the run began");
    }

    /// Replaces the jobs.
    fn replace(&mut self, jobs: Jobs) {
        if self.phase == Phase::Draining {
            return;
        }
        let now = self.clock.now();
        self.runner.jobs.set(jobs.clone());
        let mut before = std::mem::take(&mut self.jobs);
        let mut changed = Vec::new();
        for (name, job) in jobs {
            let mut state = match before.remove(&name) {
                Some(state) if *state.job == *job => state,
                Some(state) => {
                    changed.push(name.clone());
                    state.redefined(job, now)
                }
                None => {
                    changed.push(name.clone());
                    // The job's file may have been gone so briefly that runs of the job still go on.
                    let (beside, mut regular): (Vec<_>, Vec<_>) =
                        self.take_leaving(&name).partition(QueuedRun::is_change_run);
                    JobState { running: regular.pop(), beside, ..JobState::new(job, now) }
                }
            };
            if !state.job.enabled {
                let waiting = state.queue.drain(..).collect();
                state.changes.clear();
                self.cancel(waiting, "the job was disabled before the run began");
            }
            self.jobs.insert(name, state);
        }
        for (job, state) in before {
            event::NextRun { job: &job, at: None }.emit(&self.metrics);
            self.cancel(state.queue.into(), "the job's file was gone before the run began");
            self.leaving.extend(state.running.into_iter().chain(state.beside));
        }
        self.register_jobs();
        self.set_pauses(self.pauses.clone(), None);
        self.start(changed);
        self.changed = true;
    }

    /// Takes out the runs under way of a job that was gone and is back.
    fn take_leaving(&mut self, job: &JobName) -> impl Iterator<Item = QueuedRun> {
        let is_of = |taken: &mut QueuedRun| taken.spec.job.name == *job;
        let of_job: Vec<QueuedRun> = self.leaving.extract_if(.., is_of).collect();
        self.changed |= !of_job.is_empty();
        of_job.into_iter()
    }

    /// A job's series exist until its last run has ended.
    fn register_jobs(&self) {
        let leaving = self.leaving.iter().map(|taken| &taken.spec.job.name);
        self.metrics.register_jobs(self.jobs.keys().chain(leaving));
        self.records.recent.keep_jobs(|job| self.jobs.contains_key(job));
        self.runner.batch_sizes.keep_jobs(|job| self.jobs.contains_key(job));
        for state in self.jobs.values().filter(|state| state.job.scope == Scope::Tenants) {
            let size = self.runner.batch_sizes.of(&state.job).now();
            self.metrics.set_batch_tenants(&state.job.name, size.now);
        }
        let is_warmed = |job: &JobName| self.jobs.get(job).is_some_and(|state| state.job.enabled);
        self.runner.not_warm.keep_jobs(is_warmed);
    }

    /// Cancels waiting runs.
    pub(super) fn cancel(&self, waiting: Vec<QueuedRun>, why: &str) {
        let now = self.clock.now();
        for taken in waiting {
            let mut report = Report::default();
            report.fail(Failure::new(FailureKind::Cancelled, None, why.to_owned()));
            let record = self.runner.record(&taken.spec, Outcome::Cancelled, now, report);
            let record = Arc::new(record);
            self.keep(&record, &taken);
            taken.done.send_replace(Some(record));
        }
    }

    /// How long the loop may sleep before it has to act by itself.
    fn nap(&self) -> Duration {
        let now = self.clock.monotonic();
        let due = self.jobs.values().filter_map(JobState::next_change_at).min();
        match self.phase {
            Phase::Running => {
                due.map_or(LONGEST_SLEEP, |at| at.saturating_sub(now).min(LONGEST_SLEEP))
            }
            Phase::Draining => LONGEST_SLEEP,
        }
    }

    fn look_at_scheduler(&mut self) {
        let scheduler = self.beats.health(self.clock.monotonic()).scheduler;
        match (self.scheduler_silent, scheduler.is_alive()) {
            (false, false) => {
                let silent_for = scheduler.silent_for;
                event::SchedulerSilent { silent_for }.emit(&self.metrics);
            }
            (true, true) => event::SchedulerBack.emit(&self.metrics),
            (true, false) | (false, true) => {}
        }
        self.scheduler_silent = !scheduler.is_alive();
    }

    fn look_at_permits(&self) {
        let is_down = |server| self.runner.breaker(server).is_open();
        if [Server::Database, Server::Cache].into_iter().any(is_down) {
            return self.runner.limits.look_away();
        }
        let held = self.runner.limits.look(self.clock.monotonic());
        for HeldLong { job, permits, left, held_for } in held {
            event::PermitsHeld { job: &job, permits, left, held_for }.emit(&self.metrics);
        }
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let jobs = self
            .jobs
            .iter()
            .map(|(name, state)| {
                let fit = self.runner.batch_sizes.of(&state.job);
                (name.clone(), state.status(self.held.of_job(&state.job), fit))
            })
            .collect();
        let leaving = self.leaving.iter().map(QueuedRun::active).collect();
        let (started_at, phase) = (self.started_at, self.phase);
        let rejections = self.rejections.clone();
        let shares = self.runner.ownership.in_fleet().map(|_| self.held);
        let status = Status { started_at, phase, shares, jobs, leaving, rejections };
        self.status.send_replace(Arc::new(status));
    }
}

/// Does a run. Its task always ends with a record, even if preheat itself is at fault.
async fn run_to_a_record(runner: Arc<Runner>, spec: RunSpec, stops: Stops) -> RunResult {
    let started_at = runner.clock.now();
    let run = AssertUnwindSafe(Arc::clone(&runner).run(spec.clone(), stops)).catch_unwind();
    run.await.unwrap_or_else(|_panic| {
        let message = "the run panicked: this is a defect of preheat".to_owned();
        let mut report = Report::default();
        report.fail(Failure::new(FailureKind::Internal, None, message));
        let record = runner.record(&spec, Outcome::Failed, started_at, report);
        RunResult { record, failed: Failed::default() }
    })
}
