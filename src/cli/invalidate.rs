//! `preheat invalidate`: remove keys, safely.

use std::fmt::Write;
use std::sync::Arc;

use indicatif::MultiProgress;
use serde::Serialize;

use super::bars::{Bars, Said};
use super::load::Loaded;
use super::signal::StopSignals;
use super::warm::{JobReport, Pass};
use super::{Exit, Failure, Global, complete, output};
use crate::app::App;
use crate::domain::job::Job;
use crate::domain::report;
use crate::domain::run::{Outcome, RunRecord};
use crate::domain::tenant::TenantId;
use crate::engine::run::Stops;
use crate::invalidate::{
    InvalidateError, InvalidateReport, InvalidateRequest, Invalidated, Invalidator,
};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(super) struct Options {
    /// This key, without `cache.prefix`; may be given several times, as may all of these
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// All keys that match this glob (`*`, `?`, `[…]`, `\\` before one of them itself)
    #[arg(long = "pattern", value_name = "GLOB")]
    patterns: Vec<String>,
    /// All keys of this job; with --tenant, those of that tenant only
    // `jobs` is the folder of all commands.
    #[arg(id = "named_jobs", long = "job", value_name = "JOB", add = complete::jobs())]
    jobs: Vec<String>,
    /// All keys of this tenant; with --job, those of that job only
    #[arg(long = "tenant", value_name = "ID")]
    tenants: Vec<String>,
    /// Yes, a --pattern that matches every key under the prefix
    #[arg(long)]
    all: bool,
    /// Warm again what was removed, and wait for it
    #[arg(long)]
    rewarm: bool,
    /// Count what would be removed, and change nothing
    #[arg(long, conflicts_with = "rewarm")]
    dry_run: bool,
    /// Print one JSON report to stdout
    #[arg(long)]
    json: bool,
}

impl Options {
    fn request(&self) -> InvalidateRequest {
        let Self { keys, patterns, jobs, tenants, all, rewarm, dry_run, json: _ } = self;
        InvalidateRequest {
            keys: keys.clone(),
            tenants: tenants.iter().map(TenantId::new).collect(),
            jobs: jobs.clone(),
            patterns: patterns.clone(),
            all: *all,
            rewarm: *rewarm,
            dry_run: *dry_run,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a InvalidateReport,
    /// The runs that warmed the keys again.
    runs: Vec<JobReport<'a>>,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let loaded = global.load(&bars)?;
    options.request().validate(loaded.files.jobs())?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let stops = Stops::default();
    let work = remove_and_warm(&app, &loaded, &options, &stops, &bars);
    let say = || {
        output::problem(
            "stopping: what is under way is finished first; press Ctrl-C again to abort it",
        );
    };
    let (report, records) = tokio::select! {
        done = work => done?,
        never = StopSignals::listen()?.stop(&stops, say) => match never {},
    };
    if let Err(why) = app.keep(&loaded.settings, &records).await {
        output::problem(&format!("warning: {why}"));
    }
    for id in &report.not_active {
        let id = output::shown(id);
        output::problem(&format!("warning: there is no active tenant `{id}`"));
    }
    for report::Failure { message, count, .. } in &report.failures {
        let times =
            if *count > 1 { format!(" ({} times)", output::count(*count)) } else { String::new() };
        output::problem(&format!("error: {}{times}", output::shown(message)));
    }
    if options.json {
        let runs = records.iter().map(JobReport::new).collect();
        output::json(&Printed { report: &report, runs })?;
    }
    let all_warm = records.iter().all(|record| record.outcome == Outcome::Ok);
    Ok(if report.complete && all_warm { Exit::Ok } else { Exit::Failed })
}

async fn remove_and_warm(
    app: &App,
    loaded: &Loaded,
    options: &Options,
    stops: &Stops,
    bars: &MultiProgress,
) -> Result<(InvalidateReport, Vec<RunRecord>), Failure> {
    let invalidator = Invalidator::new(Arc::clone(&app.runner));
    let Invalidated { report, touched } = invalidator.invalidate(&options.request(), stops).await?;
    if !options.json {
        output::result(&summary(&report))?;
    }
    if !options.rewarm || touched.is_empty() {
        return Ok((report, Vec::new()));
    }
    let jobs = touched.into_iter().filter_map(|(name, tenants)| {
        Some((Arc::clone(loaded.files.jobs().get(&name)?), tenants.into_ids()))
    });
    let jobs: Vec<(Arc<Job>, Option<Vec<TenantId>>)> = jobs.collect();
    let names: Vec<Arc<Job>> = jobs.iter().map(|(job, _)| Arc::clone(job)).collect();
    let said = if options.json { Said::Nothing } else { Said::EveryRun };
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: stops.clone(),
        bars: Bars::new(bars, &names, said),
        drain: loaded.settings.runner.drain,
        deadline: None,
    };
    let records = pass.warm_each(jobs).await?.records;
    Ok((report, records))
}

/// What was removed, for people: a line for the whole request, and one for each kind of thing that
/// it named.
fn summary(report: &InvalidateReport) -> String {
    let keys = |number| output::counted(number, "key", "keys");
    let InvalidateReport { dry_run, removed, failed, fences, .. } = *report;
    let moved = output::counted(fences, "fence", "fences");
    let (would, removed_word) = if dry_run { ("would be ", "there") } else { ("", "removed") };
    let mut text = format!("{} {would}removed, {moved} {would}moved before", keys(removed));
    if failed > 0 {
        let _into_a_string = write!(text, ", {} refused by the cache", keys(failed));
    }
    text.push('\n');
    let mut line = |what: String, removed| {
        let _into_a_string = writeln!(text, "  {what}: {} {removed_word}", keys(removed));
    };
    if report.keys.asked > 0 {
        line(format!("{} named", keys(report.keys.asked)), report.keys.removed);
    }
    let named = report.jobs_and_tenants;
    let jobs = output::counted(named.jobs, "job", "jobs");
    let tenants = output::counted(named.tenants, "tenant", "tenants");
    match (named.jobs, named.tenants) {
        (0, 0) => {}
        (0, _) => line(tenants, named.removed),
        (_, 0) => line(jobs, named.removed),
        (_, _) => line(format!("{jobs} of {tenants}"), named.removed),
    }
    let patterns = report.patterns;
    if patterns.asked > 0 {
        line(output::counted(patterns.asked, "pattern", "patterns"), patterns.removed);
    }
    for (job, removed) in &report.by_job {
        let _into_a_string = writeln!(text, "  of job `{job}`: {}", keys(*removed));
    }
    text
}

impl From<InvalidateError> for Failure {
    fn from(error: InvalidateError) -> Self {
        match error {
            InvalidateError::Tenants(error) => error.into(),
            InvalidateError::Registry(error) => {
                let unreachable = error.kind.is_transient();
                let exit = if unreachable { Exit::Unreachable } else { Exit::Failed };
                Self::new(exit, error)
            }
            InvalidateError::Busy | InvalidateError::Draining => Self::new(Exit::Failed, error),
            InvalidateError::Nothing
            | InvalidateError::TooMany { .. }
            | InvalidateError::Length { .. }
            | InvalidateError::UnknownJob { .. }
            | InvalidateError::TakesNoTenants(_)
            | InvalidateError::Everything(_)
            | InvalidateError::Own(_) => Self::usage(error),
        }
    }
}
