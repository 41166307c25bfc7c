//! `preheat warm`: one pass now.

use std::fs::File;
use std::future::pending;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::MultiProgress;
use serde::Serialize;
use tokio::task::JoinSet;

use super::bars::{Bar, Bars, REDRAW, Said};
use super::load::Loaded;
use super::signal::StopSignals;
use super::{Exit, Failure, Global, output};
use crate::app::App;
use crate::domain::duration;
use crate::domain::job::{Job, Scope};
use crate::domain::report::{FailedTenant, Report};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::tenant::TenantId;
use crate::engine::limit::Lane;
use crate::engine::run::{Ended, Failed, Order, Runner, Stops};

/// How often tenants whose data kept changing are tried again, and how long after the last try. More
/// would keep a deploy waiting for a tenant that never stops writing; the worker goes on with it.
const FOLLOW_UPS: u32 = 5;
const FOLLOW_UP_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all enabled ones if none is named
    #[arg(value_name = "JOB")]
    names: Vec<String>,
    /// Only this tenant; may be given several times
    #[arg(long = "tenant", value_name = "ID")]
    tenants: Vec<String>,
    /// Begin no more batches after this time, as in 90s or 10m; the exit code is then 4
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// Print one JSON report to stdout
    #[arg(long)]
    json: bool,
    /// Write all tenants that failed to this file, a JSON object a line with `job`, `tenant`, `kind` and `message`
    #[arg(long, value_name = "FILE")]
    failed_tenants: Option<PathBuf>,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let loaded = global.load(&bars)?;
    let jobs = selected_jobs(&loaded, &options)?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;

    let said = if options.json { Said::Nothing } else { Said::EveryRun };
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: Stops::default(),
        bars: Bars::new(&bars, &jobs, said),
        drain: loaded.settings.runner.drain,
        deadline: options.deadline,
    };
    let tenants = options.tenants.iter().map(TenantId::new).collect::<Vec<_>>();
    let tenants = Some(tenants).filter(|tenants| !tenants.is_empty());
    let say = || {
        pass.bars.say(
            "stopping: batches in flight are finished first; press Ctrl-C again to abort them",
        );
    };
    let done = tokio::select! {
        done = pass.warm(&jobs, tenants) => done?,
        never = StopSignals::listen()?.stop(&pass.stops, say) => match never {},
    };
    if let Err(why) = app.keep(&loaded.settings, &done.records).await {
        output::problem(&format!("warning: {why}"));
    }
    if let Some(path) = &options.failed_tenants {
        done.write_failed(path)?;
    }
    if options.json {
        output::json(&PassReport::new(&done))?;
    }
    Ok(done.exit())
}

/// The jobs that were named, or all enabled ones. Tenants narrow these to the jobs that have some; a
/// named job that has none cannot be warmed for one.
fn selected_jobs(loaded: &Loaded, options: &Options) -> Result<Vec<Arc<Job>>, Failure> {
    let mut jobs = loaded.select(&options.names)?;
    if options.tenants.is_empty() {
        return Ok(jobs);
    }
    let fleet = jobs.iter().find(|job| job.scope == Scope::Fleet);
    if let Some(job) = fleet.filter(|_| !options.names.is_empty()) {
        let name = &job.name;
        return Err(Failure::usage(anyhow::anyhow!(
            "job `{name}` warms the whole fleet: it takes no `--tenant`"
        )));
    }
    jobs.retain(|job| job.scope == Scope::Tenants);
    Ok(jobs)
}

/// One pass over some jobs, all at once within the runner's bounds.
pub(super) struct Pass {
    pub(super) runner: Arc<Runner>,
    pub(super) stops: Stops,
    pub(super) bars: Bars,
    /// How long batches in flight may take to finish once the pass was told to stop.
    pub(super) drain: Duration,
    pub(super) deadline: Option<Duration>,
}

/// A job to warm, for these tenants or all.
pub(super) type Wanted = (Arc<Job>, Option<Vec<TenantId>>);

/// What a pass did.
pub(super) struct Done {
    /// In the jobs' order.
    pub(super) records: Vec<RunRecord>,
    /// All tenants that failed, of each record.
    failed: Vec<Vec<FailedTenant>>,
    deadline_passed: bool,
}

/// A line of the file of tenants that failed.
#[derive(Serialize)]
struct FailedLine<'a> {
    job: &'a str,
    /// None where the job failed before it came to its tenants, or has none.
    tenant: Option<&'a str>,
    kind: &'a str,
    message: &'a str,
}

impl Done {
    pub(super) fn exit(&self) -> Exit {
        match (self.deadline_passed, self.is_all_warm()) {
            (true, _) => Exit::Deadline,
            (false, true) => Exit::Ok,
            (false, false) => Exit::Failed,
        }
    }

    fn outcome(&self) -> Outcome {
        let any = |outcome| self.records.iter().any(|record| record.outcome == outcome);
        if self.deadline_passed {
            Outcome::Timeout
        } else if self.is_all_warm() {
            Outcome::Ok
        } else if any(Outcome::Cancelled) {
            Outcome::Cancelled
        } else if self.records.iter().any(|record| record.report.keys.written > 0) {
            Outcome::Partial
        } else {
            Outcome::Failed
        }
    }

    /// Writes all tenants that failed into a file, which is empty where none did.
    fn write_failed(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            let path = path.display();
            let error = anyhow::Error::from(error);
            Failure::new(Exit::Usage, error.context(format!("could not write `{path}`")))
        };
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        for line in self.failed_lines() {
            serde_json::to_writer(&mut file, &line).map_err(|error| failed(error.into()))?;
            file.write_all(b"\n").map_err(failed)?;
        }
        file.flush().map_err(failed)
    }

    fn failed_lines(&self) -> Vec<FailedLine<'_>> {
        let mut lines = Vec::new();
        for (record, failed) in self.records.iter().zip(&self.failed) {
            let job = record.job.as_str();
            let of_tenants = failed.iter().map(|FailedTenant { tenant, kind, message }| {
                FailedLine { job, tenant: Some(tenant), kind: kind.as_str(), message }
            });
            lines.extend(of_tenants);
            let of_none = record.report.failures.iter().filter(|failure| failure.tenant.is_none());
            let of_none = of_none.map(|failure| FailedLine {
                job,
                tenant: None,
                kind: failure.kind.as_str(),
                message: &failure.message,
            });
            lines.extend(of_none);
        }
        lines
    }

    fn is_all_warm(&self) -> bool {
        self.records.iter().all(|record| record.outcome == Outcome::Ok)
    }
}

impl Pass {
    /// Warms the jobs, for these tenants or all.
    pub(super) async fn warm(
        &self,
        jobs: &[Arc<Job>],
        tenants: Option<Vec<TenantId>>,
    ) -> Result<Done, Failure> {
        self.warm_each(jobs.iter().map(|job| (Arc::clone(job), tenants.clone())).collect()).await
    }

    /// Warms the jobs, each for its tenants or all; once more if the cache server was restarted
    /// meanwhile, since what was written before may be lost.
    pub(super) async fn warm_each(&self, jobs: Vec<Wanted>) -> Result<Done, Failure> {
        let deadline_passed = AtomicBool::new(false);
        let first_runs = Arc::new(AtomicUsize::new(0));
        let ends = async {
            let draining = self.stops.abort_after(self.runner.clock.as_ref(), self.drain);
            tokio::join!(draining, self.pass_deadline(&deadline_passed, &first_runs));
        };
        tokio::pin!(ends);

        // With what stands in the cache now, it shows at the end whether it was emptied meanwhile.
        self.runner.look_at_cache().await;
        let restarts = self.runner.cache_process.restarts();
        let mut ended = self.warm_once(&jobs, &first_runs, ends.as_mut()).await?;
        if self.was_restarted_since(restarts).await {
            self.bars.say(
                "the cache server was restarted, replaced or emptied: all is warmed once more",
            );
            ended = self.warm_once(&jobs, &first_runs, ends.as_mut()).await?;
        }
        tokio::select! {
            biased;
            () = self.stops.requested() => {}
            () = ends => {}
            // The keys of tenants that left go before the pass ends.
            () = self.runner.sweep() => {}
        }
        let (records, failed) = ended.into_iter().unzip();
        Ok(Done { records, failed, deadline_passed: deadline_passed.load(Ordering::Relaxed) })
    }

    /// Whether the cache server was restarted since then, and there is time to begin anew.
    async fn was_restarted_since(&self, restarts: u64) -> bool {
        tokio::select! {
            biased;
            () = self.stops.requested() => return false,
            // Runs that follow up others do not look themselves.
            _stats = self.runner.look_at_cache() => {}
        }
        self.runner.cache_process.restarts() > restarts
    }

    /// Does all runs once. Of `ends`, which never ends, only what it does meanwhile matters.
    async fn warm_once(
        &self,
        jobs: &[Wanted],
        first_runs: &Arc<AtomicUsize>,
        mut ends: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Vec<Warmed>, Failure> {
        first_runs.store(jobs.len(), Ordering::Relaxed);
        let mut runs = JoinSet::new();
        let mut bars: Vec<Option<Bar>> = Vec::new();
        for (index, (job, tenants)) in jobs.iter().enumerate() {
            let order = Order::on_request(self.runner.clock.as_ref(), job, tenants.clone());
            let order = Order { most_failed: usize::MAX, ..order };
            bars.push(Some(self.bars.begin(&job.name, Arc::clone(&order.progress))));
            let (runner, first_runs) = (Arc::clone(&self.runner), Arc::clone(first_runs));
            let run = run_and_follow_up(runner, order, self.stops.clone(), first_runs);
            runs.spawn(async move { (index, run.await) });
        }
        let mut all: Vec<(usize, Warmed)> = Vec::new();
        let mut redraw = tokio::time::interval(REDRAW);
        // The first one comes at once.
        redraw.tick().await;
        while !runs.is_empty() {
            tokio::select! {
                Some(ended) = runs.join_next() => {
                    let (index, warmed) = ended.map_err(|panic| Failure::new(Exit::Failed, panic))?;
                    if let Some(bar) = bars.get_mut(index).and_then(Option::take) {
                        self.bars.end(bar, &warmed.0)?;
                    }
                    all.push((index, warmed));
                }
                () = &mut ends => {}
                _ = redraw.tick() => {
                    bars.iter_mut().flatten().for_each(|bar| bar.redraw(&self.bars));
                }
            }
        }
        all.sort_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, warmed)| warmed).collect())
    }

    /// Drains when the deadline passes; never ends. It has passed only if a job was not done by
    /// then: that data kept changing is not for want of time.
    async fn pass_deadline(&self, passed: &AtomicBool, first_runs: &AtomicUsize) {
        if let Some(deadline) = self.deadline {
            self.runner.clock.sleep(deadline).await;
            if first_runs.load(Ordering::Relaxed) > 0 {
                passed.store(true, Ordering::Relaxed);
                let text = duration::text(deadline);
                self.bars
                    .say(&format!("the deadline of {text} passed: batches in flight are finished"));
            }
            self.stops.drain.cancel();
        }
        pending::<()>().await;
    }
}

/// A job's record, and all tenants that failed.
type Warmed = (RunRecord, Vec<FailedTenant>);

/// A run, and further ones for those whose data changed while it read and wrote, until all is proven
/// or was tried often enough; their record is one. `first_runs` counts down when the first is over.
async fn run_and_follow_up(
    runner: Arc<Runner>,
    first: Order,
    stops: Stops,
    first_runs: Arc<AtomicUsize>,
) -> Warmed {
    let job = Arc::clone(&first.job);
    let ended = Arc::clone(&runner).run(first, stops.clone()).await;
    let Ended { mut record, mut unsettled, failed: Failed { tenants: mut failed, .. } } = ended;
    first_runs.fetch_sub(1, Ordering::Relaxed);
    for _ in 0..FOLLOW_UPS {
        if unsettled.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = stops.requested() => break,
            () = runner.clock.sleep(FOLLOW_UP_PAUSE) => {}
        }
        let tenants = match job.scope {
            Scope::Fleet => None,
            Scope::Tenants => Some(std::mem::take(&mut unsettled.tenants).into_iter().collect()),
        };
        let again = Order::on_request(runner.clock.as_ref(), &job, tenants);
        let (trigger, lane, most_failed) = (Trigger::Change, Lane::Urgent, usize::MAX);
        let again = Order { trigger, lane, most_failed, ..again };
        let ended = Arc::clone(&runner).run(again, stops.clone()).await;
        add_follow_up(&mut record, ended.record);
        unsettled = ended.unsettled;
        failed.extend(ended.failed.tenants);
    }
    (record, failed)
}

/// Adds a run for those that were fenced to the record of the run that left them so.
fn add_follow_up(record: &mut RunRecord, follow_up: RunRecord) {
    let RunRecord { outcome, finished_at, report: more, .. } = follow_up;
    let report = &mut record.report;
    let fenced = report.tenants.fenced;
    let (still_fenced, failed, keys_fenced) = match outcome {
        Outcome::Ok | Outcome::Partial | Outcome::Failed => {
            let still_fenced = more.tenants.fenced.min(fenced);
            let failed = more.tenants.failed.min(fenced - still_fenced);
            more.failures.into_iter().for_each(|failure| report.fail(failure));
            report.add_failed(more.failed_tenants, Vec::new());
            (still_fenced, failed, more.keys.fenced)
        }
        // It was cut off: whoever it did not come to stays as it was.
        Outcome::Timeout | Outcome::Cancelled => {
            let still_fenced = fenced.saturating_sub(more.tenants.ok);
            (still_fenced, 0, report.keys.fenced.saturating_sub(more.keys.written))
        }
    };
    report.tenants.fenced = still_fenced;
    report.tenants.failed += failed;
    report.tenants.ok += fenced - still_fenced - failed;
    report.keys.written += more.keys.written;
    report.keys.removed += more.keys.removed;
    report.keys.failed += more.keys.failed;
    report.keys.fenced = keys_fenced;
    report.bytes += more.bytes;
    report.queries += more.queries;
    report.retries += more.retries;
    record.finished_at = finished_at;
    if record.outcome == Outcome::Ok {
        record.outcome = record.report.outcome();
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct PassReport<'a> {
    outcome: Outcome,
    deadline_passed: bool,
    jobs: Vec<JobReport<'a>>,
}

#[derive(Serialize)]
pub(super) struct JobReport<'a> {
    id: RunId,
    job: &'a str,
    outcome: Outcome,
    duration_ms: u128,
    report: &'a Report,
}

impl<'a> JobReport<'a> {
    pub(super) fn new(record: &'a RunRecord) -> Self {
        Self {
            id: record.id,
            job: record.job.as_str(),
            outcome: record.outcome,
            duration_ms: record.duration().as_millis(),
            report: &record.report,
        }
    }
}

impl<'a> PassReport<'a> {
    fn new(done: &'a Done) -> Self {
        let jobs = done.records.iter().map(JobReport::new);
        let deadline_passed = done.deadline_passed;
        Self { outcome: done.outcome(), deadline_passed, jobs: jobs.collect() }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::job::JobName;
    use crate::domain::report::{Failure, FailureKind, KeyCounts, TenantCounts};

    fn record(
        outcome: Outcome,
        (ok, failed, fenced): (u64, u64, u64),
        keys: (u64, u64),
    ) -> RunRecord {
        let at = chrono::DateTime::UNIX_EPOCH;
        let total = ok + failed + fenced;
        let mut report = Report {
            tenants: TenantCounts { total, ok, failed, fenced },
            keys: KeyCounts { written: keys.0, fenced: keys.1, ..KeyCounts::default() },
            ..Report::default()
        };
        if failed > 0 {
            let message = "division by zero".to_owned();
            report.fail(Failure::new(FailureKind::Query, None, message));
        }
        RunRecord {
            id: RunId(Uuid::nil()),
            job: JobName::parse("list").unwrap(),
            trigger: Trigger::Request,
            outcome,
            due_at: at,
            started_at: at,
            finished_at: at,
            report,
            replica: String::new(),
            version: String::new(),
        }
    }

    /// The counts of tenants and keys after one more run.
    fn after(first: &mut RunRecord, follow_up: RunRecord) -> ((u64, u64, u64), (u64, u64)) {
        add_follow_up(first, follow_up);
        let Report { tenants, keys, .. } = &first.report;
        assert_eq!(tenants.done(), tenants.total);
        ((tenants.ok, tenants.failed, tenants.fenced), (keys.written, keys.fenced))
    }

    #[test]
    fn what_follow_ups_settle_counts_as_warm_and_the_rest_stays_fenced() {
        let mut first = record(Outcome::Ok, (7, 0, 3), (14, 6));
        let follow_up = record(Outcome::Ok, (2, 0, 1), (4, 2));
        assert_eq!(after(&mut first, follow_up), ((9, 0, 1), (18, 2)));
        assert_eq!(first.outcome, Outcome::Ok);
        let cut_off = record(Outcome::Cancelled, (0, 0, 0), (0, 0));
        assert_eq!(after(&mut first, cut_off), ((9, 0, 1), (18, 2)));
        assert_eq!(first.outcome, Outcome::Ok);
        let gone = record(Outcome::Ok, (0, 0, 0), (0, 0));
        assert_eq!(after(&mut first, gone), ((10, 0, 0), (18, 0)));
    }

    #[test]
    fn hazard_27_a_follow_up_that_fails_makes_the_pass_fail() {
        let mut first = record(Outcome::Ok, (7, 0, 3), (14, 6));
        let follow_up = record(Outcome::Partial, (2, 1, 0), (4, 0));
        assert_eq!(after(&mut first, follow_up), ((9, 1, 0), (18, 0)));
        assert_eq!(first.outcome, Outcome::Partial);
        assert_eq!(first.report.failures.len(), 1);
    }
}
