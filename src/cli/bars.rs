//! Progress bars on a terminal, one a job, and a summary of each run.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;
use crate::domain::duration;
use crate::domain::job::{Job, JobName};
use crate::domain::report::Failure;
use crate::domain::run::{Outcome, RunRecord};
use crate::engine::schedule::status::{Progress, ProgressNow};

/// How often the bars are redrawn.
pub(super) const REDRAW: Duration = Duration::from_millis(100);

/// The bars of some runs.
pub(super) struct Bars {
    all: MultiProgress,
    /// The width of the name column: the length of the longest name.
    width: usize,
    said: Said,
    are_drawn: bool,
}

/// What is printed about a run that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A summary of every run, to stdout.
    EveryRun,
    /// A summary of runs that failed, to stderr: the command prints another result.
    #[cfg_attr(
        not(feature = "demo"),
        expect(dead_code, reason = "only the demo has another result")
    )]
    Failures,
    /// Nothing, and no bars: the output is for a program.
    Nothing,
}

/// The bar of one run.
pub(super) struct Bar {
    progress: Arc<Progress>,
    /// `None` if no bars are drawn.
    bar: Option<ProgressBar>,
    is_drawn: bool,
}

impl Bars {
    /// Draws bars if stderr is a terminal. They are drawn by `all`, and logs must go through it
    /// too.
    pub(super) fn new(all: &MultiProgress, jobs: &[Arc<Job>], said: Said) -> Self {
        let width = jobs.iter().map(|job| job.name.as_str().len()).max().unwrap_or_default();
        let are_drawn = said != Said::Nothing && io::stderr().is_terminal();
        Self { all: all.clone(), width, said, are_drawn }
    }

    /// Begins a run's bar.
    pub(super) fn begin(&self, job: &JobName, progress: Arc<Progress>) -> Bar {
        let bar = self.are_drawn.then(|| {
            let bar = ProgressBar::hidden().with_style(waiting(self.width));
            bar.with_prefix(job.to_string())
        });
        Bar { progress, bar, is_drawn: false }
    }

    /// Removes a run's bar and prints its summary.
    pub(super) fn end(&self, bar: Bar, record: &RunRecord) -> io::Result<()> {
        if let Some(bar) = bar.bar {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        match (self.said, record.outcome) {
            (Said::EveryRun, _) => {
                let line = summary(record) + "\n";
                self.all.suspend(|| output::result(&line))
            }
            (Said::Nothing, _) | (Said::Failures, Outcome::Ok) => Ok(()),
            (
                Said::Failures,
                Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled,
            ) => {
                self.say(&summary(record));
                Ok(())
            }
        }
    }

    /// Prints a text to stderr without tearing the bars.
    pub(super) fn say(&self, text: &str) {
        self.all.suspend(|| output::problem(text));
    }
}

impl Bar {
    /// Shows the run's progress. A run that ends before the first redraw never gets a bar.
    pub(super) fn redraw(&mut self, bars: &Bars) {
        let Some(bar) = &self.bar else { return };
        if !std::mem::replace(&mut self.is_drawn, true) {
            bars.all.add(bar.clone());
        }
        let ProgressNow { tenants_total, tenants_done, keys, bytes } = self.progress.now();
        if tenants_total == 0 {
            // A bar for no tenants would look like a finished one.
            return bar.tick();
        }
        let elapsed = bar.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = keys as f64 / elapsed;
        // Nobody can tell the time left before the first tenant is done.
        let left = match (tenants_done, bar.eta().as_secs()) {
            (0, _) => String::new(),
            (_, seconds) => duration::text(Duration::from_secs(seconds)) + " left, ",
        };
        bar.set_message(format!("{left}{rate:.0} keys/s, {}", output::bytes(bytes)));
        if bar.length() != Some(tenants_total) {
            bar.set_style(style(bars.width));
            bar.set_length(tenants_total);
        }
        bar.set_position(tenants_done);
    }
}

/// The style while the tenant list is read.
fn waiting(width: usize) -> ProgressStyle {
    let bar = ProgressStyle::with_template(&format!("{{prefix:{width}}} reads the tenant list"));
    bar.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The message is as wide as the rest of the line, so no line is longer than the terminal is wide.
fn style(width: usize) -> ProgressStyle {
    let template = format!("{{prefix:{width}}} [{{bar:24}}] {{pos}}/{{len}} tenants, {{wide_msg}}");
    let bar = ProgressStyle::with_template(&template);
    bar.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// A run's summary: one line, and a line for each kind of failure.
pub(super) fn summary(record: &RunRecord) -> String {
    let report = &record.report;
    let mut lines = vec![format!(
        "{}: {}: {} of {}, {}, {} in {}",
        record.job,
        record.outcome,
        output::count(report.tenants.ok),
        output::counted(report.tenants.total, "tenant", "tenants"),
        output::counted(report.keys.written, "key", "keys"),
        output::bytes(report.bytes),
        output::seconds(record.duration()),
    )];
    if report.tenants.fenced > 0 {
        let fenced = output::counted(report.tenants.fenced, "tenant", "tenants");
        lines.push(format!("  the data of {fenced} kept changing: cached for some seconds only"));
    }
    for failure in &report.failures {
        lines.push(format!("  {}", failed(failure)));
    }
    lines.join("\n")
}

/// A kind of failure: how often it happened, and its first tenant and message.
pub(super) fn failed(failure: &Failure) -> String {
    let Failure { kind, tenant, message, count, .. } = failure;
    let first = tenant.as_ref().map(|id| format!(", the first of tenant `{}`", output::shown(id)));
    let (kind, count) = (kind.as_str(), output::count(*count));
    format!("{kind}, {count} in all{}: {}", first.unwrap_or_default(), output::shown(message))
}
