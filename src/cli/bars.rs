//! A progress bar a job on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;
use crate::domain::job::JobName;
use crate::domain::run::RunRecord;
use crate::engine::status::{Progress, ProgressNow};

/// How often the bars move.
pub(super) const REDRAW: Duration = Duration::from_millis(100);

/// The bars of some runs.
pub(super) struct Bars {
    display: Display,
}

enum Display {
    /// A bar a job.
    Bars { all: MultiProgress, width: usize },
    /// A line a job, when it has ended.
    Lines,
    /// Nothing: the result is for a program.
    Silent,
}

/// The bar of one run.
pub(super) struct Bar {
    progress: Arc<Progress>,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars where stderr is a terminal, lines elsewhere. The bars are drawn by `all`, through which
    /// logs must go as well.
    pub(super) fn new(all: &MultiProgress, width: usize, silent: bool) -> Self {
        let display = match (silent, std::io::stderr().is_terminal()) {
            (true, _) => Display::Silent,
            (false, true) => Display::Bars { all: all.clone(), width },
            (false, false) => Display::Lines,
        };
        Self { display }
    }

    /// Begins a run's bar.
    pub(super) fn begin(&self, job: &JobName, progress: Arc<Progress>) -> Bar {
        let bar = match &self.display {
            Display::Bars { all, width } => {
                let bar = all.add(ProgressBar::new(0).with_style(style(*width)));
                bar.set_prefix(job.to_string());
                Some(bar)
            }
            Display::Lines | Display::Silent => None,
        };
        Bar { progress, bar }
    }

    /// Ends a run's bar with what became of it.
    pub(super) fn end(&self, bar: Bar, record: &RunRecord) {
        let line = summary(record);
        match (&self.display, bar.bar) {
            (Display::Bars { .. }, Some(shown)) => {
                shown.finish_and_clear();
                shown.println(line);
            }
            (Display::Lines, _) => output::problem(&line),
            (Display::Silent | Display::Bars { .. }, _) => {}
        }
    }
}

impl Bar {
    /// Shows how far the run is.
    pub(super) fn redraw(&self) {
        let Some(bar) = &self.bar else { return };
        let ProgressNow { tenants_total, tenants_done, keys, bytes } = self.progress.now();
        bar.set_length(tenants_total);
        bar.set_position(tenants_done);
        let elapsed = bar.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = keys as f64 / elapsed;
        bar.set_message(format!("{rate:.0} keys/s, {}", output::bytes(bytes)));
    }
}

fn style(width: usize) -> ProgressStyle {
    let template =
        format!("{{prefix:{width}}} [{{bar:30}}] {{pos}}/{{len}} tenants, {{msg}}, {{eta}} left");
    let bar = ProgressStyle::with_template(&template);
    bar.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// What became of a run, in one line, with a line for each kind of failure.
pub(super) fn summary(record: &RunRecord) -> String {
    let report = &record.report;
    let mut lines = vec![format!(
        "{}: {}: {} of {} tenants, {} keys, {} in {}",
        record.job,
        record.outcome,
        output::count(report.tenants.ok),
        output::count(report.tenants.total),
        output::count(report.keys.written),
        output::bytes(report.bytes),
        output::seconds(record.duration()),
    )];
    for failure in &report.failures {
        let tenant = failure.tenant.as_ref().map(|id| format!(" of tenant `{id}`"));
        let (kind, count, message) = (failure.kind.as_str(), failure.count, &failure.message);
        let tenant = tenant.unwrap_or_default();
        lines.push(format!("  {kind}{tenant}, {count} in all: {message}"));
    }
    lines.join("\n")
}
