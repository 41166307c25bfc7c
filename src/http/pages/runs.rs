//! The page `/runs`: the runs that have ended, newest first, and those under way.

use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::runs::{self, FoundRuns, ListQuery};
use crate::http::session::Viewer;
use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::context::Context;
use super::layout::{Shell, page};
use super::links;
use super::tenants::select;
use super::words;
use crate::domain::report::{Outcome, Report};
use crate::domain::run::{RunRecord, Trigger};
use crate::domain::whole;
use crate::engine::schedule::status::ActiveRun;

/// How many runs under way the page lists.
const MAX_ACTIVE: usize = 50;

/// Which runs the page shows, as the form and the links to other pages of the list have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    /// Those of this job; empty for all.
    pub(super) job: String,
    /// Those with this outcome; empty for all.
    pub(super) outcome: String,
    /// Those with this trigger; empty for all.
    pub(super) trigger: String,
    /// Those that started at this time or later, in UTC.
    pub(super) since: String,
    /// Those that started before this time, in UTC.
    pub(super) until: String,
}

impl Filters {
    /// The filters and a page's cursor, as a link has them.
    fn pairs<'a>(&'a self, cursor: &'a str) -> [(&'static str, &'a str); 6] {
        let Self { job, outcome, trigger, since, until } = self;
        [
            ("job", job),
            ("outcome", outcome),
            ("trigger", trigger),
            ("since", since),
            ("until", until),
            ("cursor", cursor),
        ]
    }

    /// The same, with times as the API takes them.
    fn in_utc(&self) -> Self {
        let (since, until) = (in_utc(&self.since), in_utc(&self.until));
        Self { since, until, ..self.clone() }
    }
}

/// What the page shows.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The runs of this page of the list, newest first.
    pub(super) runs: Vec<RunRecord>,
    /// Runs under way or waiting, on the first page of the list.
    pub(super) active: Vec<ActiveRun>,
    /// The cursor of the next page.
    pub(super) next: Option<String>,
    /// Why older runs are missing, if the history is away.
    pub(super) history_away: Option<String>,
}

/// The body of the page. `jobs` are the names that the filter offers.
pub(super) fn body(
    view: &View,
    filters: &Filters,
    jobs: &[String],
    context: Context<'_>,
) -> Markup {
    html! {
        h1 { "Runs" }
        (filter(filters, jobs, context))
        div #runs data-live="runs" {
            (active(&view.active, context))
            @if let Some(why) = &view.history_away {
                p role="status" {
                    "The run history is away (" (words::text(why)) "). These are the runs since then and the last one "
                    "of each job; older ones are in the history."
                }
            }
            @if view.runs.is_empty() {
                p.empty { (nothing(filters)) }
            } @else {
                (table(&view.runs, context))
            }
            (older(view, filters, context))
            p.muted { "Runs for changed tenants that end ok are not kept: there are too many." }
        }
    }
}

fn nothing(filters: &Filters) -> &'static str {
    if *filters == Filters::default() {
        "No run has ended yet."
    } else {
        "No run matches these filters."
    }
}

fn filter(filters: &Filters, jobs: &[String], context: Context<'_>) -> Markup {
    let Filters { job, outcome, trigger, since, until } = filters;
    let outcomes = Outcome::ALL.map(Outcome::as_str);
    let triggers = Trigger::ALL.map(Trigger::as_str);
    html! {
        form.filters method="get" action=(context.links.runs(&[])) {
            label { "Job " (select("job", job, "all jobs", jobs.iter().map(String::as_str))) }
            label { "Outcome " (select("outcome", outcome, "all outcomes", outcomes.into_iter())) }
            label { "Why " (select("trigger", trigger, "all reasons", triggers.into_iter())) }
            label { "From (UTC) " input type="datetime-local" name="since" value=(since); }
            label { "To (UTC) " input type="datetime-local" name="until" value=(until); }
            button { "Filter" }
            @if *filters != Filters::default() { " " a href=(context.links.runs(&[])) { "show all" } }
        }
    }
}

fn active(active: &[ActiveRun], context: Context<'_>) -> Markup {
    html! {
        @if !active.is_empty() {
            h2 { "Under way" }
            ul.active {
                @for run in active { li { (active_line(run, context)) } }
            }
            h2 { "Ended" }
        }
    }
}

/// A run that has not ended, in a line.
fn active_line(run: &ActiveRun, context: Context<'_>) -> Markup {
    let ActiveRun { id, job, trigger, due_at, started_at, progress, .. } = run;
    let now = progress.now();
    html! {
        @match started_at {
            Some(_) => (words::state(words::Look::Running, "running")),
            None => (words::state(words::Look::Idle, "waiting")),
        }
        " " (context.job(job.as_str())) " "
        a href=(context.links.run(id)) { (words::short_id(&id.to_string())) }
        " · " (trigger.as_str()) " · "
        @match started_at {
            Some(at) => { "started " (words::ago(*at, context.now)) },
            None => { "due " (words::ago(*due_at, context.now)) },
        }
        @if now.tenants_total > 0 {
            " · " (words::count(now.tenants_done)) " of " (words::counted(now.tenants_total, "tenant"))
        }
    }
}

/// A list of runs that have ended.
fn table(runs: &[RunRecord], context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 9] = [
        "Started",
        "Job",
        "Why",
        "Outcome",
        "Waited",
        "Took",
        "Tenants",
        "Written",
        "First failure",
    ];
    html! {
        table.cards.runs aria-label="Runs" {
            thead { tr { @for column in COLUMNS { th scope="col" { (column) } } } }
            tbody { @for run in runs { (row(run, context)) } }
        }
    }
}

fn row(run: &RunRecord, context: Context<'_>) -> Markup {
    let RunRecord { id, job, trigger, outcome, started_at, report, .. } = run;
    html! {
        tr {
            th scope="row" {
                a href=(context.links.run(id)) title=(id) { (words::clock(*started_at, context.now)) }
                div.note { (words::ago(*started_at, context.now)) }
            }
            td data-label="Job" { (context.job(job.as_str())) }
            td data-label="Why" title=(words::trigger_reason(*trigger)) { (trigger.as_str()) }
            td data-label="Outcome" {
                (words::outcome(*outcome))
                @if !run.parts.is_empty() {
                    @let missing = whole::missing(run);
                    div.note {
                        "by " (words::counted(run.parts.len() as u64, "worker"))
                        @if !missing.is_empty() { ", without shares " (missing) }
                    }
                }
            }
            td.number data-label="Waited" { (words::span(waited(run))) }
            td.number data-label="Took" { (words::span(run.duration())) }
            td data-label="Tenants" { (tenants(report)) }
            td.number data-label="Written" {
                (words::counted(report.keys.written, "key"))
                div.note { (words::bytes(report.bytes)) }
            }
            td.wide data-label="First failure" {
                @if let Some(failure) = report.failures.first() {
                    b { (words::failure(failure.kind)) } ": " (words::text(&failure.message))
                } @else { span.muted { "none" } }
            }
        }
    }
}

/// How long a run waited after it was due or asked for.
pub(super) fn waited(run: &RunRecord) -> std::time::Duration {
    (run.started_at - run.due_at).to_std().unwrap_or_default()
}

/// Tenants by result; those that are zero are left out.
pub(super) fn tenants(report: &Report) -> Markup {
    let counts = report.tenants;
    html! {
        (words::count(counts.ok)) " ok"
        @if counts.failed > 0 { ", " b { (words::count(counts.failed)) " failed" } }
        @if counts.fenced > 0 { ", " (words::count(counts.fenced)) " fenced" }
        @if counts.left() > 0 { ", " (words::count(counts.left())) " not reached" }
    }
}

fn older(view: &View, filters: &Filters, context: Context<'_>) -> Markup {
    html! {
        @if let Some(next) = &view.next {
            nav.pager aria-label="More runs" {
                a rel="next" href=(context.links.runs(&filters.pairs(next))) { "older runs" }
            }
        }
    }
}

/// What the form and the links to older runs ask for. An empty value is no filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    #[serde(flatten)]
    filters: Filters,
    cursor: String,
}

impl Asked {
    fn query(&self) -> ListQuery {
        let Filters { job, outcome, trigger, since, until } = self.filters.in_utc();
        ListQuery {
            job: Some(job),
            outcome: Some(outcome),
            trigger: Some(trigger),
            since: Some(since),
            until: Some(until),
            cursor: Some(self.cursor.clone()),
            limit: None,
        }
    }

    /// The same page of the list as JSON, as a path below `/api/v1/`.
    fn json(&self) -> String {
        format!("runs{}", links::query(&self.filters.in_utc().pairs(&self.cursor)))
    }
}

/// A field for a time has neither seconds nor a zone.
fn in_utc(text: &str) -> String {
    match text.len() {
        16 => format!("{text}:00Z"),
        19 => format!("{text}Z"),
        _ => text.to_owned(),
    }
}

/// `GET /runs`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Query(asked): Query<Asked>,
) -> Result<Response, ApiError> {
    let status = state.control.handle.status();
    let FoundRuns { records, next, history_away } = runs::page(&state, asked.query()).await?;
    let is_wanted =
        |run: &&ActiveRun| asked.filters.job.is_empty() || run.job.as_str() == asked.filters.job;
    let active = status.jobs.values().flat_map(|job| job.running.iter().chain(&job.queued));
    let active = active.chain(&status.leaving).filter(is_wanted).take(MAX_ACTIVE).cloned();
    let active = if asked.cursor.is_empty() { active.collect() } else { Vec::new() };
    let jobs: Vec<_> = status.jobs.keys().map(ToString::to_string).collect();
    let shell = shell.with_json(asked.json());
    let context = Context::new(&shell, &state, &viewer);
    let view = View { runs: records, active, next, history_away };
    Ok(page("Runs", &shell, body(&view, &asked.filters, &jobs, context)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_list_as_json_has_the_same_filters() {
        let filters = Filters {
            job: "services".to_owned(),
            outcome: "failed".to_owned(),
            since: "2026-03-01T12:00".to_owned(),
            ..Filters::default()
        };
        let asked = Asked { filters, cursor: "1.2".to_owned() };
        assert_eq!(
            asked.json(),
            "runs?job=services&outcome=failed&since=2026-03-01T12%3A00%3A00Z&cursor=1.2"
        );
        assert_eq!(Asked::default().json(), "runs");
    }
}
