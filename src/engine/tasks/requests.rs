//! Runs that somebody requests of a fleet. The member that gets a request writes it into a record that all members read. Each
//! member runs it for the shares that it holds, and adds its result. If a member is gone, the members that take its shares
//! do its part. When the results cover all shares, the caller gets one run as the answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::request::{DonePart, FleetRequest, Requested};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::domain::trace::TraceParent;
use crate::engine::ports::{CacheError, Clock, Sheet, SheetKind, Sheets};
use crate::engine::run::ownership::Ownership;
use crate::engine::run::progress::Progress;
use crate::engine::schedule::handle::{
    Asker, FleetAsk, FleetRunViews, FleetRuns, Handle, JobSelection, RequestError, RunRequest,
    RunView, Ticket, requested,
};
use crate::engine::schedule::status::{ActiveRun, Phase};

/// How often a member looks for requests.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the record of a request is kept after a member last wrote into it.
pub const REQUEST_TTL: Duration = Duration::from_mins(10);
/// How long a request that is done stays, so that every member sees it.
const STAYS_FOR: Duration = Duration::from_secs(10);
/// How many requests may be open in a fleet.
const MOST_OPEN: usize = 64;
/// How many runs that ended are remembered: who asked for one may ask any member for it.
const MOST_ENDED: usize = 200;
/// How many requests wait for the task, which handles each within a round trip to the cache.
const MAX_ASKED: usize = 64;

/// What the task is made of.
pub struct RequestsParts {
    /// Where the members find requests.
    pub sheets: Arc<dyn Sheets>,
    /// The shares that the member holds.
    pub ownership: Arc<Ownership>,
    /// The member's own engine.
    pub engine: Handle,
    /// The member's name in run records.
    pub replica: String,
}

/// The requests of a fleet, as one member knows them.
pub struct Requests {
    sheets: Arc<dyn Sheets>,
    ownership: Arc<Ownership>,
    engine: Handle,
    replica: String,
    clock: Arc<dyn Clock>,
    asked: mpsc::Receiver<FleetAsk>,
    /// By the ids of their sheets: those that were there at the last look, whether they are done or not.
    open: BTreeMap<String, Open>,
    /// Parts that could not be written yet.
    unwritten: Vec<(String, DonePart)>,
    /// The runs that ended last, oldest first.
    ended: VecDeque<(RunId, Arc<RunRecord>)>,
    own: JoinSet<Ended>,
    shown: watch::Sender<FleetRunViews>,
}

/// A request as a member knows it.
struct Open {
    requested: Requested,
    /// The part of each job that this member is at.
    own: BTreeMap<JobName, Own>,
    /// Whether it was asked of this member, which keeps it until it is done.
    is_asked_here: bool,
    /// The trace that it belongs to, if it was asked of this member.
    parent: Option<TraceParent>,
    /// The jobs whose runs are done and were told.
    told: BTreeSet<JobName>,
    /// Who waits here for the run of a job.
    waiting: BTreeMap<JobName, watch::Sender<Option<Arc<RunRecord>>>>,
    /// When this member saw that it was done, on the monotonic clock.
    done_at: Option<Duration>,
}

/// A part that this member is at.
struct Own {
    started_at: DateTime<Utc>,
    progress: Arc<Progress>,
}

/// A part of this member that ended; `None` if it is to be done again.
struct Ended {
    sheet: String,
    job: JobName,
    part: Option<DonePart>,
}

impl Requests {
    /// The task of a member, and the end of it that handles have.
    pub fn new(parts: RequestsParts) -> (Self, FleetRuns) {
        let RequestsParts { sheets, ownership, engine, replica } = parts;
        let (ask, asked) = mpsc::channel(MAX_ASKED);
        let (shown, runs) = watch::channel(FleetRunViews::default());
        let requests = Self {
            sheets,
            ownership,
            clock: Arc::clone(&engine.clock),
            engine,
            replica,
            asked,
            open: BTreeMap::new(),
            unwritten: Vec::new(),
            ended: VecDeque::new(),
            own: JoinSet::new(),
            shown,
        };
        (requests, FleetRuns { ask, runs })
    }

    /// Looks for requests and does its part of them, until the worker has stopped.
    pub async fn run(&mut self, stop: CancellationToken) {
        let mut shares = self.ownership.subscribe();
        loop {
            self.look().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop().await,
                Some(ask) = self.asked.recv() => self.answer(ask).await,
                // A part's task does not panic, and nothing aborts it.
                Some(Ok(ended)) = self.own.join_next(), if !self.own.is_empty() => self.ended(ended),
                Ok(()) = shares.changed() => {}
                () = self.clock.sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Tells the others what this member has done, before it is gone.
    async fn stop(&mut self) {
        while let Some(Ok(ended)) = self.own.join_next().await {
            self.ended(ended);
        }
        self.write().await;
    }

    async fn answer(&mut self, ask: FleetAsk) {
        let FleetAsk { request, asker, reply } = ask;
        let answer = self.accept(request, asker).await;
        self.show();
        // The caller may have gone; its runs go on all the same.
        drop(reply.send(answer));
    }

    /// Accepts all runs of a request, or none.
    async fn accept(
        &mut self,
        request: RunRequest,
        asker: Asker,
    ) -> Result<Vec<Ticket>, RequestError> {
        let RunRequest { jobs, tenants } = request;
        let Asker { by, parent, asked_at: _ } = asker;
        let status = self.engine.status();
        let is_rejected = |job: &JobName| status.rejections.contains_key(job);
        let known = status.jobs.values().map(|status| &status.job);
        let jobs = requested(known, is_rejected, &jobs, tenants.is_some())?;
        if status.phase == Phase::Draining {
            return Err(RequestError::Draining);
        }
        if self.open.values().filter(|open| open.done_at.is_none()).count() >= MOST_OPEN {
            return Err(RequestError::Busy);
        }
        let wanted = FleetRequest::new(&jobs, tenants.as_deref(), self.moment(), by);
        let sheet = RunId::new(wanted.at).to_string();
        let open = Open { parent, is_asked_here: true, ..Open::new(wanted) };
        put_request(self.sheets.as_ref(), &sheet, &open.requested.request)
            .await
            .map_err(|error| RequestError::FleetAway(error.message))?;
        let open = self.open.entry(sheet).or_insert(open);
        Ok(jobs.iter().map(|job| open.ticket(&job.name)).collect())
    }

    /// The present moment to the millisecond, or a later one that no request has yet: it names runs.
    fn moment(&self) -> DateTime<Utc> {
        let now = self.clock.now();
        let last = self.open.values().map(|open| open.requested.request.at).max();
        last.map_or(now, |last| now.max(last + TimeDelta::milliseconds(1)))
    }

    /// Looks at all requests, and begins what is this member's to do.
    async fn look(&mut self) {
        self.write().await;
        // While the cache is away, what was known goes on.
        if let Ok(sheets) = self.sheets.read(SheetKind::Request).await {
            self.note(sheets);
        }
        self.keep().await;
        self.begin().await;
        self.settle().await;
        self.show();
    }

    /// Writes the parts that were done.
    async fn write(&mut self) {
        for (sheet, part) in std::mem::take(&mut self.unwritten) {
            let (field, text) = part.field();
            let put = self.sheets.put((SheetKind::Request, &sheet), &field, &text, REQUEST_TTL);
            if put.await.is_err() {
                self.unwritten.push((sheet, part));
            }
        }
    }

    /// Takes over what the sheets say. A request whose sheet is gone is over, unless this member has something to do with
    /// it: then it writes the sheet again.
    fn note(&mut self, sheets: Vec<Sheet>) {
        let mut there = BTreeSet::new();
        for Sheet { id, fields } in sheets {
            let Some(requested) = Requested::read(&fields) else { continue };
            let new = || Open::new(requested.request.clone());
            self.open.entry(id.clone()).or_insert_with(new).requested.add_all(requested);
            there.insert(id);
        }
        self.open.retain(|id, open| there.contains(id) || open.is_kept());
    }

    /// Keeps the sheets of requests that this member asked, or has begun.
    async fn keep(&self) {
        for (sheet, open) in self.open.iter().filter(|(_, open)| open.is_kept()) {
            // It is tried again at the next look.
            drop(put_request(self.sheets.as_ref(), sheet, &open.requested.request).await);
        }
    }

    /// Begins the parts for the shares that this member holds and nobody has done.
    async fn begin(&mut self) {
        let held = self.ownership.held();
        let mut wanted = Vec::new();
        for (sheet, open) in self.open.iter().filter(|(_, open)| open.done_at.is_none()) {
            for (job, _) in open.requested.request.jobs() {
                let mine = open.requested.left(&job) & held;
                if !mine.is_empty() && !open.own.contains_key(&job) {
                    wanted.push((sheet.clone(), job, mine));
                }
            }
        }
        for (sheet, job, mine) in wanted {
            self.begin_part(sheet, job, mine).await;
        }
    }

    async fn begin_part(&mut self, sheet: String, job: JobName, mine: Shares) {
        let Some(open) = self.open.get(&sheet) else { return };
        let FleetRequest { at, by, .. } = open.requested.request.clone();
        let tenants = open.requested.request.tenants_in(mine);
        let request = RunRequest { jobs: JobSelection::One(job.clone()), tenants };
        let asker = Asker { by, parent: open.parent, asked_at: Some(at) };
        // Before the run begins: a share that goes from now on is not done.
        let shares = self.ownership.subscribe();
        match self.engine.request_by(request, asker).await {
            Ok(tickets) => {
                let Some(ticket) = tickets.into_iter().next() else { return };
                let progress = Arc::clone(&ticket.run.progress);
                let own = Own { started_at: self.clock.now(), progress };
                if let Some(open) = self.open.get_mut(&sheet) {
                    open.own.insert(job.clone(), own);
                }
                self.own.spawn(async move {
                    Ended { sheet, job, part: part(ticket, shares, mine).await }
                });
            }
            // It is tried again at the next look; who takes the shares of a worker that stops does it.
            Err(RequestError::QueueFull(_) | RequestError::Busy | RequestError::Draining) => {}
            Err(
                error @ (RequestError::UnknownJob(_)
                | RequestError::Disabled(_)
                | RequestError::Rejected(_)
                | RequestError::TakesNoTenants(_)
                | RequestError::FleetAway(_)),
            ) => self.refuse((sheet, job), mine, &error),
        }
    }

    /// This member cannot do its part: it has another version of the job.
    fn refuse(&mut self, (sheet, job): (String, JobName), mine: Shares, error: &RequestError) {
        let Some(open) = self.open.get_mut(&sheet) else { return };
        let now = self.clock.now();
        let mut report = Report::default();
        report.fail(Failure::new(FailureKind::Cancelled, None, error.to_string()));
        let record = RunRecord {
            id: RunId::new(now),
            report,
            replica: self.replica.clone(),
            shares: Some(mine),
            ..open.requested.request.record(&job, Outcome::Failed, now)
        };
        let part = DonePart { shares: mine, record };
        open.requested.add(part.clone());
        self.unwritten.push((sheet, part));
    }

    /// A part of this member ended.
    fn ended(&mut self, ended: Ended) {
        let Ended { sheet, job, part } = ended;
        let Some(open) = self.open.get_mut(&sheet) else { return };
        open.own.remove(&job);
        if let Some(part) = part {
            open.requested.add(part.clone());
            self.unwritten.push((sheet, part));
        }
    }

    /// Answers who waits for runs that are done, and removes requests that were done for a while.
    async fn settle(&mut self) {
        let now = self.clock.monotonic();
        let mut over = Vec::new();
        for (sheet, open) in &mut self.open {
            for job in open.newly_done() {
                let Some(run) = open.requested.run(&job).map(Arc::new) else { continue };
                if let Some(waiting) = open.waiting.remove(&job) {
                    waiting.send_replace(Some(Arc::clone(&run)));
                }
                self.ended.push_back((run.id, run));
            }
            if open.requested.is_done() && open.own.is_empty() {
                let done_at = *open.done_at.get_or_insert(now);
                if open.is_asked_here && now.saturating_sub(done_at) >= STAYS_FOR {
                    over.push(sheet.clone());
                }
            }
        }
        while self.ended.len() > MOST_ENDED {
            self.ended.pop_front();
        }
        for sheet in over {
            // If it stays, it expires.
            drop(self.sheets.remove(SheetKind::Request, &sheet).await);
            self.open.remove(&sheet);
        }
    }

    /// Shows the runs of all requests.
    fn show(&self) {
        let finished = self.ended.iter().map(|(id, run)| (*id, RunView::Finished(Arc::clone(run))));
        let active = self.open.values().flat_map(Open::active);
        let active = active.map(|run| (run.id, RunView::Active(run)));
        let views: BTreeMap<RunId, RunView> = finished.chain(active).collect();
        if !views.is_empty() || !self.shown.borrow().is_empty() {
            self.shown.send_replace(Arc::new(views));
        }
    }
}

impl Open {
    fn new(request: FleetRequest) -> Self {
        Self {
            requested: Requested::new(request),
            own: BTreeMap::new(),
            is_asked_here: false,
            parent: None,
            told: BTreeSet::new(),
            waiting: BTreeMap::new(),
            done_at: None,
        }
    }

    /// Whether this member has something to do with it yet.
    fn is_kept(&self) -> bool {
        self.done_at.is_none() && (self.is_asked_here || !self.own.is_empty())
    }

    /// A run of it that somebody waits for.
    fn ticket(&mut self, job: &JobName) -> Ticket {
        let done = self.waiting.entry(job.clone()).or_insert_with(|| watch::Sender::new(None));
        let done = done.subscribe();
        Ticket { run: self.active_run(job), done }
    }

    /// The jobs that are done since this was asked last.
    fn newly_done(&mut self) -> Vec<JobName> {
        let jobs = self.requested.request.jobs().map(|(job, _)| job);
        let done = jobs.filter(|job| self.requested.left(job).is_empty());
        let new: Vec<JobName> = done.filter(|job| !self.told.contains(job)).collect();
        self.told.extend(new.iter().cloned());
        new
    }

    /// Its runs that are not done.
    fn active(&self) -> Vec<ActiveRun> {
        let jobs = self.requested.request.jobs().map(|(job, _)| job);
        let left = jobs.filter(|job| !self.requested.left(job).is_empty());
        left.map(|job| self.active_run(&job)).collect()
    }

    /// A run of it, as far as this member knows.
    fn active_run(&self, job: &JobName) -> ActiveRun {
        let (request, own) = (&self.requested.request, self.own.get(job));
        let done = self.requested.run(job);
        let progress = Progress::default();
        if let Some(run) = &done {
            progress.add(&run.report);
        }
        let so_far = own.map(|own| own.progress.now()).unwrap_or_default();
        progress.add_now(so_far);
        let total = done.as_ref().map_or(0, |run| run.report.tenants.total);
        progress.expect(total + so_far.tenants_total);
        let started =
            done.map(|run| run.started_at).into_iter().chain(own.map(|own| own.started_at));
        ActiveRun {
            id: request.run(job),
            job: job.clone(),
            trigger: Trigger::Request,
            requested_by: request.by.clone(),
            due_at: request.at,
            started_at: started.min(),
            progress: Arc::new(progress),
        }
    }
}

/// Writes a request where the members find it; it stays for [`REQUEST_TTL`] then.
pub async fn put_request(
    sheets: &dyn Sheets,
    sheet: &str,
    request: &FleetRequest,
) -> Result<(), CacheError> {
    let (field, text) = request.field();
    sheets.put((SheetKind::Request, sheet), field, &text, REQUEST_TTL).await
}

/// What comes of a part: it is done for those of its shares that the member holds from its start to its end. `None` if it is
/// to be done again.
async fn part(
    ticket: Ticket,
    mut shares: watch::Receiver<Shares>,
    mine: Shares,
) -> Option<DonePart> {
    let mut kept = mine & *shares.borrow_and_update();
    let mut finished = std::pin::pin!(ticket.finished());
    let record = loop {
        tokio::select! {
            biased;
            Ok(()) = shares.changed() => kept = kept & *shares.borrow_and_update(),
            record = &mut finished => break record?,
        }
    };
    let is_done = record.outcome != Outcome::Cancelled && !kept.is_empty();
    is_done.then(|| DonePart { shares: kept, record: RunRecord::clone(&record) })
}
