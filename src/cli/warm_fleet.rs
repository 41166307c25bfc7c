//! `preheat warm --fleet`: hands the pass to the workers of a fleet, and waits for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::bars::{Bar, Bars};
use super::signal::StopSignals;
use super::{Exit, Failure};
use crate::adapter::clock::SystemClock;
use crate::domain::job::{Job, JobName};
use crate::domain::report::{Failure as RunFailure, FailureKind};
use crate::domain::request::{FleetRequest, Requested};
use crate::domain::run::{Outcome, RunId, RunRecord};
use crate::domain::tenant::TenantId;
use crate::engine::ports::{CacheError, Clock, SheetKind, Sheets};
use crate::engine::schedule::status::Progress;
use crate::engine::tasks::requests::put_request;

/// How often the command looks what the workers have done.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an answer of the cache may be missing before the command gives up.
const AWAY_FOR: Duration = Duration::from_secs(30);

/// A pass of a fleet.
pub(super) struct FleetPass {
    /// Where the members find requests.
    pub(super) sheets: Arc<dyn Sheets>,
    pub(super) bars: Bars,
    /// How long the command waits at most.
    pub(super) deadline: Option<Duration>,
}

/// Why a pass is not waited for any more.
enum Left {
    Deadline,
    Signal,
}

impl FleetPass {
    /// Has the fleet warm these jobs, for these tenants or all. Answers their runs, and whether the deadline passed before they
    /// had ended.
    pub(super) async fn warm(
        &self,
        jobs: &[Arc<Job>],
        tenants: Option<&[TenantId]>,
    ) -> Result<(Vec<RunRecord>, bool), Failure> {
        let members = self.sheets.read(SheetKind::Summary).await.map_err(|error| away(&error))?;
        if members.is_empty() {
            return Err(Failure::shown(
                Exit::Unreachable,
                "error: no worker of a fleet is there\n  hint: is `preheat serve` running, with \
                 `[fleet] enabled = true` and the same cache and `cache.prefix`?"
                    .to_owned(),
            ));
        }
        let clock = SystemClock::new();
        let request = FleetRequest::new(jobs, tenants, clock.now(), None);
        let id = RunId::new(request.at).to_string();
        put_request(self.sheets.as_ref(), &id, &request).await.map_err(|error| away(&error))?;
        let mut so_far = Requested::new(request);
        let left = tokio::select! {
            done = self.wait(&id, &mut so_far) => done.map(|()| None)?,
            left = self.leaves() => Some(left?),
        };
        // The members have seen the last part that they wrote; a request that was left goes on.
        if left.is_none() {
            drop(self.sheets.remove(SheetKind::Request, &id).await);
        }
        let now = clock.now();
        let record =
            |job: &Arc<Job>| match (so_far.left(&job.name).is_empty(), so_far.run(&job.name)) {
                (true, Some(run)) => run,
                (_, run) => unfinished(&so_far, &job.name, run, now),
            };
        let records = jobs.iter().map(record).collect();
        Ok((records, matches!(left, Some(Left::Deadline))))
    }

    /// Waits until the members have done all of it.
    async fn wait(&self, id: &str, so_far: &mut Requested) -> Result<(), Failure> {
        let mut bars: Vec<(JobName, Arc<Progress>, Bar)> = Vec::new();
        for (job, _) in so_far.request.jobs() {
            let progress = Arc::new(Progress::default());
            bars.push((job.clone(), Arc::clone(&progress), self.bars.begin(&job, progress)));
        }
        let clock = SystemClock::new();
        let mut answered_at = clock.monotonic();
        loop {
            match self.look(id, so_far).await {
                Ok(()) => answered_at = clock.monotonic(),
                Err(error) if clock.monotonic().saturating_sub(answered_at) > AWAY_FOR => {
                    return Err(away(&error));
                }
                Err(_) => {}
            }
            let mut open = Vec::new();
            for (job, progress, mut bar) in bars {
                if let Some(run) = so_far.run(&job).filter(|_| so_far.left(&job).is_empty()) {
                    self.bars.end(bar, &run)?;
                } else {
                    bar.redraw(&self.bars);
                    open.push((job, progress, bar));
                }
            }
            bars = open;
            if so_far.is_done() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Reads what was done since the last look. The request is written again, as long as it is waited for: the cache may
    /// have lost it.
    async fn look(&self, id: &str, so_far: &mut Requested) -> Result<(), CacheError> {
        for sheet in self.sheets.read(SheetKind::Request).await? {
            if sheet.id != id {
                continue;
            }
            if let Some(known) = Requested::read(&sheet.fields) {
                so_far.add_all(known);
            }
        }
        if so_far.is_done() {
            return Ok(());
        }
        put_request(self.sheets.as_ref(), id, &so_far.request).await
    }

    /// Ends when the command is not to wait any longer.
    async fn leaves(&self) -> Result<Left, Failure> {
        let mut signals = StopSignals::listen()?;
        let waited = timeout(self.deadline.unwrap_or(Duration::MAX), signals.next()).await;
        self.bars.say("the fleet goes on with what it was asked");
        Ok(if waited.is_ok() { Left::Signal } else { Left::Deadline })
    }
}

/// The record of a job that was not waited for to its end.
fn unfinished(
    so_far: &Requested,
    job: &JobName,
    run: Option<RunRecord>,
    now: chrono::DateTime<chrono::Utc>,
) -> RunRecord {
    let left = so_far.left(job);
    let message = format!("the command left before the workers had done the shares {left}");
    let request = &so_far.request;
    let mut record = run.unwrap_or_else(|| RunRecord {
        started_at: request.at,
        ..request.record(job, Outcome::Cancelled, now)
    });
    record.outcome = Outcome::Cancelled;
    record.report.fail(RunFailure::new(FailureKind::Cancelled, None, message));
    record
}

fn away(error: &CacheError) -> Failure {
    let message = format!("error: could not ask the fleet: {}", error.message);
    Failure::shown(Exit::Unreachable, message)
}
