//! `preheat warm`: one pass now.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::domain::report::Report;
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::tenant::TenantId;
use crate::engine::limit::Lane;
use crate::engine::run::{Order, Runner, Stops};
use crate::engine::status::Progress;

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
    let say = || pass.bars.say("stopping: batches in flight are finished; again, and they are not");
    let done = tokio::select! {
        done = pass.warm(&jobs, tenants) => done?,
        never = StopSignals::listen()?.stop(&pass.stops, say) => match never {},
    };
    if let Err(why) = app.keep(&loaded.settings, &done.records).await {
        output::problem(&format!("warning: {why}"));
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

/// What a pass did.
pub(super) struct Done {
    /// In the jobs' order.
    pub(super) records: Vec<RunRecord>,
    deadline_passed: bool,
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

    /// Warms the jobs, each for its tenants or all.
    pub(super) async fn warm_each(
        &self,
        jobs: Vec<(Arc<Job>, Option<Vec<TenantId>>)>,
    ) -> Result<Done, Failure> {
        let draining = self.stops.abort_after(self.runner.clock.as_ref(), self.drain);
        tokio::pin!(draining);
        let deadline_passed = AtomicBool::new(false);
        let deadline = self.pass_deadline(&deadline_passed);
        tokio::pin!(deadline);

        let mut runs = JoinSet::new();
        let mut bars: Vec<Option<Bar>> = Vec::new();
        for (index, (job, tenants)) in jobs.into_iter().enumerate() {
            let order = self.order(&job, tenants);
            bars.push(Some(self.bars.begin(&job.name, Arc::clone(&order.progress))));
            let run = Arc::clone(&self.runner).run(order, self.stops.clone());
            runs.spawn(async move { (index, run.await) });
        }
        let mut records: Vec<(usize, RunRecord)> = Vec::new();
        let mut redraw = tokio::time::interval(REDRAW);
        while !runs.is_empty() {
            tokio::select! {
                Some(ended) = runs.join_next() => {
                    let (index, ended) = ended.map_err(|panic| Failure::new(Exit::Failed, panic))?;
                    let record = ended.record;
                    if let Some(bar) = bars.get_mut(index).and_then(Option::take) {
                        self.bars.end(bar, &record)?;
                    }
                    records.push((index, record));
                }
                () = &mut draining => {}
                () = &mut deadline => {}
                _ = redraw.tick() => bars.iter().flatten().for_each(Bar::redraw),
            }
        }
        records.sort_by_key(|(index, _)| *index);
        let records = records.into_iter().map(|(_, record)| record).collect();
        Ok(Done { records, deadline_passed: deadline_passed.load(Ordering::Relaxed) })
    }

    fn order(&self, job: &Arc<Job>, tenants: Option<Vec<TenantId>>) -> Order {
        let now = self.runner.clock.now();
        Order {
            id: RunId::new(now),
            job: Arc::clone(job),
            trigger: Trigger::Request,
            due_at: now,
            asked_at: self.runner.clock.monotonic(),
            tenants,
            last_written_at: None,
            progress: Arc::new(Progress::default()),
            lane: Lane::Regular,
        }
    }

    /// Drains when the deadline passes; never ends.
    async fn pass_deadline(&self, passed: &AtomicBool) {
        if let Some(deadline) = self.deadline {
            self.runner.clock.sleep(deadline).await;
            passed.store(true, Ordering::Relaxed);
            let text = duration::text(deadline);
            self.bars
                .say(&format!("the deadline of {text} passed: batches in flight are finished"));
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
