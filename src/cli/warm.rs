//! `preheat warm`: one pass now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::MultiProgress;
use serde::Serialize;
use tokio::task::JoinSet;

use super::bars::{Bar, Bars, REDRAW};
use super::signal::StopSignals;
use super::{Exit, Failure, Global, output};
use crate::app::App;
use crate::domain::job::{Job, Scope};
use crate::domain::report::Report;
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::tenant::TenantId;
use crate::engine::run::{Order, Runner, Stops};
use crate::engine::status::Progress;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all enabled ones if none is named
    #[arg(id = "job", value_name = "JOB")]
    jobs: Vec<String>,
    /// Only this tenant; may be given several times
    #[arg(long = "tenant", value_name = "ID")]
    tenants: Vec<String>,
    /// Stop in order after this time, with exit code 4
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Print one JSON report to stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let loaded = global.load(&bars)?;
    let jobs = loaded.select(&options.jobs)?;
    let tenants = selected_tenants(&jobs, &options)?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;

    let width = jobs.iter().map(|job| job.name.as_str().len()).max().unwrap_or_default();
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: Stops::default(),
        bars: Bars::new(&bars, width, options.json),
        drain: loaded.settings.runner.drain,
        deadline: options.deadline,
    };
    let (records, deadline_passed) = pass.warm(&jobs, tenants).await?;
    if let Err(why) = app.keep(&loaded.settings, &records).await {
        output::problem(&format!("warning: {why}"));
    }
    if options.json {
        output::json(&PassReport::new(&records, deadline_passed))?;
    }
    Ok(exit(&records, deadline_passed))
}

/// The tenants that were named; a job without tenants cannot be warmed for one.
fn selected_tenants(
    jobs: &[Arc<Job>],
    options: &Options,
) -> Result<Option<Vec<TenantId>>, Failure> {
    if options.tenants.is_empty() {
        return Ok(None);
    }
    let fleet = jobs.iter().find(|job| job.scope == Scope::Fleet);
    if let Some(job) = fleet.filter(|_| !options.jobs.is_empty()) {
        let name = &job.name;
        return Err(Failure::usage(anyhow::anyhow!(
            "job `{name}` warms the whole fleet: it takes no `--tenant`"
        )));
    }
    Ok(Some(options.tenants.iter().map(TenantId::new).collect()))
}

fn exit(records: &[RunRecord], deadline_passed: bool) -> Exit {
    if deadline_passed {
        Exit::Deadline
    } else if records.iter().all(|record| record.outcome == Outcome::Ok) {
        Exit::Ok
    } else {
        Exit::Failed
    }
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

impl Pass {
    /// Warms the jobs; answers the records, in the jobs' order, and whether the deadline passed.
    pub(super) async fn warm(
        &self,
        jobs: &[Arc<Job>],
        tenants: Option<Vec<TenantId>>,
    ) -> Result<(Vec<RunRecord>, bool), Failure> {
        let stopping = StopSignals::listen()?.stop(self.stops.clone());
        tokio::pin!(stopping);
        let deadline_passed = AtomicBool::new(false);
        let deadline = self.pass_deadline(&deadline_passed);
        tokio::pin!(deadline);

        let mut runs = JoinSet::new();
        let mut bars: Vec<Option<Bar>> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            let tenants = tenants.clone().filter(|_| job.scope == Scope::Tenants);
            let order = self.order(job, tenants);
            bars.push(Some(self.bars.begin(&job.name, Arc::clone(&order.progress))));
            let run = Arc::clone(&self.runner).run(order, self.stops.clone());
            runs.spawn(async move { (index, run.await) });
        }
        let mut records: Vec<(usize, RunRecord)> = Vec::new();
        let mut redraw = tokio::time::interval(REDRAW);
        while !runs.is_empty() {
            tokio::select! {
                Some(ended) = runs.join_next() => {
                    let (index, record) = ended.map_err(|panic| Failure::new(Exit::Failed, panic))?;
                    if let Some(bar) = bars.get_mut(index).and_then(Option::take) {
                        self.bars.end(bar, &record);
                    }
                    records.push((index, record));
                }
                () = &mut stopping => {}
                () = &mut deadline => {}
                _ = redraw.tick() => bars.iter().flatten().for_each(Bar::redraw),
            }
        }
        records.sort_by_key(|(index, _)| *index);
        let records = records.into_iter().map(|(_, record)| record).collect();
        Ok((records, deadline_passed.load(Ordering::Relaxed)))
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
        }
    }

    /// Drains when the deadline passes, and aborts what has not ended in the time for that; never
    /// ends.
    async fn pass_deadline(&self, passed: &AtomicBool) {
        if let Some(deadline) = self.deadline {
            self.runner.clock.sleep(deadline).await;
            passed.store(true, Ordering::Relaxed);
            self.stops.drain.cancel();
            self.runner.clock.sleep(self.drain).await;
            self.stops.abort.cancel();
        }
        std::future::pending::<()>().await;
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct PassReport<'a> {
    outcome: &'static str,
    deadline_passed: bool,
    jobs: Vec<JobReport<'a>>,
}

#[derive(Serialize)]
struct JobReport<'a> {
    id: RunId,
    job: &'a str,
    outcome: Outcome,
    duration_ms: u128,
    report: &'a Report,
}

impl<'a> PassReport<'a> {
    fn new(records: &'a [RunRecord], deadline_passed: bool) -> Self {
        let jobs = records.iter().map(|record| JobReport {
            id: record.id,
            job: record.job.as_str(),
            outcome: record.outcome,
            duration_ms: record.duration().as_millis(),
            report: &record.report,
        });
        let any_written = records.iter().any(|record| record.report.keys.written > 0);
        let outcome = match exit(records, deadline_passed) {
            Exit::Ok => Outcome::Ok,
            Exit::Deadline => Outcome::Timeout,
            Exit::Failed | Exit::Usage | Exit::Unreachable if any_written => Outcome::Partial,
            Exit::Failed | Exit::Usage | Exit::Unreachable => Outcome::Failed,
        };
        Self { outcome: outcome.as_str(), deadline_passed, jobs: jobs.collect() }
    }
}
