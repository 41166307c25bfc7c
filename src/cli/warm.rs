//! `preheat warm`: one pass now.

use std::convert::Infallible;
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
use super::warm_fleet::FleetPass;
use super::{Exit, Failure, Global, complete, output};
use crate::app::follow_up::{Warmed, run_with_follow_ups};
use crate::app::{App, connect_sheets};
use crate::domain::duration;
use crate::domain::job::{Job, Scope};
use crate::domain::report::{FailedTenant, Report};
use crate::domain::run::{Outcome, RunId, RunRecord};
use crate::domain::tenant::TenantId;
use crate::engine::run::{RunSpec, Runner, Stops};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all enabled ones if none is named
    #[arg(value_name = "JOB", add = complete::jobs())]
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
    /// Have the workers of a fleet do it (`[fleet] enabled`), and wait for them
    #[arg(long, conflicts_with = "failed_tenants")]
    fleet: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let loaded = global.load(&bars)?;
    let jobs = selected_jobs(&loaded, &options)?;
    let said = if options.json { Said::Nothing } else { Said::EveryRun };
    let tenants = options.tenants.iter().map(TenantId::new).collect::<Vec<_>>();
    let tenants = Some(tenants).filter(|tenants| !tenants.is_empty());
    if options.fleet {
        let sheets = connect_sheets(&loaded.settings).await?;
        let bars = Bars::new(&bars, &jobs, said);
        let pass = FleetPass { sheets, bars, deadline: options.deadline };
        let (records, deadline_passed) = pass.warm(&jobs, tenants.as_deref()).await?;
        let done = Done { records, failed: Vec::new(), deadline_passed };
        if options.json {
            output::json(&PassReport::new(&done))?;
        }
        return Ok(done.exit());
    }
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: Stops::default(),
        bars: Bars::new(&bars, &jobs, said),
        drain: loaded.settings.runner.drain,
        deadline: options.deadline,
    };
    let say = || {
        pass.bars.say(
            "stopping: batches in flight are finished first; press Ctrl-C again to abort them",
        );
    };
    let is_for_all = tenants.is_none();
    // The server starts the sessions while preheat reads and registers the tenants.
    let ahead = async {
        if is_for_all {
            app.connect_ahead().await;
        }
        pending::<Infallible>().await
    };
    let done = tokio::select! {
        done = pass.warm(&jobs, tenants) => done?,
        never = ahead => match never {},
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
    app.close().await;
    Ok(done.exit())
}

/// The jobs that were named, or all enabled ones. With `--tenant`, jobs without tenants are left out; it is
/// an error to name one.
fn selected_jobs(loaded: &Loaded, options: &Options) -> Result<Vec<Arc<Job>>, Failure> {
    let mut jobs = loaded.select(&options.names)?;
    if options.tenants.is_empty() {
        return Ok(jobs);
    }
    let global = jobs.iter().find(|job| job.scope == Scope::Global);
    if let Some(job) = global.filter(|_| !options.names.is_empty()) {
        let name = &job.name;
        return Err(Failure::usage(anyhow::anyhow!(
            "job `{name}` warms all tenants together: it takes no `--tenant`"
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
    /// How long batches in flight may take to finish after a signal or the deadline.
    pub(super) drain: Duration,
    pub(super) deadline: Option<Duration>,
}

/// A job to warm, for these tenants or all.
pub(super) type JobTenants = (Arc<Job>, Option<Vec<TenantId>>);

/// The result of a pass.
pub(super) struct Done {
    /// In the jobs' order.
    pub(super) records: Vec<RunRecord>,
    /// For each record, all tenants that failed.
    failed: Vec<Vec<FailedTenant>>,
    deadline_passed: bool,
}

/// A line of the file of tenants that failed.
#[derive(Serialize)]
struct FailedLine<'a> {
    job: &'a str,
    /// `None` if the job failed before it came to its tenants, or has none.
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

    /// Writes all tenants that failed into a file, which is empty if none did.
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

    /// Warms the jobs, each for its tenants or for all; once more if the cache server was restarted
    /// meanwhile, since what was written before may be lost.
    pub(super) async fn warm_each(&self, jobs: Vec<JobTenants>) -> Result<Done, Failure> {
        let deadline_passed = AtomicBool::new(false);
        let first_runs = Arc::new(AtomicUsize::new(0));
        let ends = async {
            let draining = self.stops.abort_after(self.runner.clock.as_ref(), self.drain);
            tokio::join!(draining, self.pass_deadline(&deadline_passed, &first_runs));
        };
        tokio::pin!(ends);

        // Records what the cache holds now, so that a look at the end shows whether it was emptied meanwhile.
        self.runner.cache_process.look(&self.runner.ports).await;
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
            // The keys of departed tenants are removed before the pass ends.
            () = self.runner.sweep() => {}
        }
        let (records, failed) =
            ended.into_iter().map(|Warmed { record, failed }| (record, failed)).unzip();
        Ok(Done { records, failed, deadline_passed: deadline_passed.load(Ordering::Relaxed) })
    }

    /// Whether the cache server has been restarted since then, and there is time to begin anew.
    async fn was_restarted_since(&self, restarts: u64) -> bool {
        tokio::select! {
            biased;
            () = self.stops.requested() => return false,
            // Follow-ups do not look themselves.
            _stats = self.runner.cache_process.look(&self.runner.ports) => {}
        }
        self.runner.cache_process.restarts() > restarts
    }

    /// Does all runs once. `ends` never ends; it acts while the runs go on.
    async fn warm_once(
        &self,
        jobs: &[JobTenants],
        first_runs: &Arc<AtomicUsize>,
        mut ends: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Vec<Warmed>, Failure> {
        first_runs.store(jobs.len(), Ordering::Relaxed);
        let mut runs = JoinSet::new();
        let mut bars: Vec<Option<Bar>> = Vec::new();
        for (index, (job, tenants)) in jobs.iter().enumerate() {
            let spec = RunSpec::on_request(self.runner.clock.as_ref(), job, tenants.clone());
            let spec = RunSpec { most_failed: usize::MAX, ..spec };
            bars.push(Some(self.bars.begin(&job.name, Arc::clone(&spec.progress))));
            let (runner, first_runs) = (Arc::clone(&self.runner), Arc::clone(first_runs));
            let is_over = move || {
                first_runs.fetch_sub(1, Ordering::Relaxed);
            };
            let run = run_with_follow_ups(runner, spec, self.stops.clone(), is_over);
            runs.spawn(async move { (index, run.await) });
        }
        let mut all: Vec<(usize, Warmed)> = Vec::new();
        let mut redraw = tokio::time::interval(REDRAW);
        // The first tick comes at once.
        redraw.tick().await;
        while !runs.is_empty() {
            tokio::select! {
                Some(ended) = runs.join_next() => {
                    let (index, warmed) = ended.map_err(|panic| Failure::new(Exit::Failed, panic))?;
                    if let Some(bar) = bars.get_mut(index).and_then(Option::take) {
                        self.bars.end(bar, &warmed.record)?;
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

    /// Drains when the deadline passes; never ends. `passed` becomes true only if a job's own run was under
    /// way then: if only follow-ups were, time was not what was missing.
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
