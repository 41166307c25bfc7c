//! The page `/jobs`, and the list of jobs that the overview has too: one line a job.

use std::time::Duration;

use crate::http::AppState;
use crate::http::session::Viewer;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::{self, Bar};
use super::context::{self, Context};
use super::layout::{Shell, page};
use super::words::{self, Look};
use crate::domain::report::Outcome;
use crate::overview::{FirstFailure, JobLine, JobState, Overview, RunBar};

/// The body of `/jobs`.
pub(super) fn body(overview: &Overview, context: Context<'_>) -> Markup {
    html! {
        h1 { "Jobs" }
        p.muted { (words::counted(overview.jobs.len() as u64, "job")) ", those in trouble first" }
        (table(&overview.jobs, context))
        @if context.may_change() { (levers(&overview.jobs, context)) }
    }
}

/// The list of jobs. Each job is a `tbody`: its line, and below it what a reader has to know first.
pub(super) fn table(jobs: &[JobLine], context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 5] = ["Job", "State", "Last run", "Next", "Last 50 runs"];
    const NUMBERS: [&str; 3] = ["Coverage", "TTL margin", "Keeps"];
    if jobs.is_empty() {
        return html! { p.empty { "There are no jobs: the folder of job files is empty." } };
    }
    html! {
        table.cards.jobs #jobs data-live="jobs" aria-label="Jobs" {
            thead { tr {
                @for column in COLUMNS { th scope="col" { (column) } }
                @for column in NUMBERS { th.number scope="col" { (column) } }
            } }
            @for job in jobs {
                tbody id={ "job-" (job.name) } data-live={ "job:" (job.name) } {
                    (row(job, context))
                    (why(job, context))
                }
            }
        }
    }
}

fn row(job: &JobLine, context: Context<'_>) -> Markup {
    let (look, word) = state(job);
    html! {
        tr {
            th scope="row" title=[Some(&job.description).filter(|text| !text.is_empty())] {
                (context.job(&job.name))
            }
            td data-label="State" { (words::state(look, word)) (progress(job)) }
            td data-label="Last run" { (last_run(job, context)) }
            td data-label="Next" { (next(job, context)) }
            td.runs data-label="Last 50 runs" {
                a href=(context.links.runs(&[("job", &job.name)])) { (sparkline(job)) }
                @if let Some(share) = ok_share(&job.runs) {
                    span.muted { (words::percent(share)) " ok" }
                }
            }
            td.number data-label="Coverage" { (coverage(job, context)) }
            td.number data-label="TTL margin" { (ttl_margin(job)) }
            td.number data-label="Keeps" { (keeps(job)) }
        }
    }
}

/// What a reader has to know about the job first: why it is paused, what failed, who is not warm.
fn why(job: &JobLine, context: Context<'_>) -> Markup {
    let is_anything_wrong = job.pause.is_some() || job.first_failure.is_some() || job.not_warm > 0;
    html! {
        @if is_anything_wrong {
            tr.why {
                td.wide colspan="8" {
                    @if let Some(pause) = &job.pause { p { (context.pause(pause)) } }
                    @if job.not_warm > 0 || job.first_failure.is_some() {
                        p {
                            @if job.not_warm > 0 {
                                a href=(context.links.tenants(&[("job", &job.name)])) {
                                    (words::counted(job.not_warm, "tenant")) " not warm"
                                }
                            }
                            @if job.not_warm > 0 && job.first_failure.is_some() { " · " }
                            @if let Some(failure) = &job.first_failure { (first_failure(failure, context)) }
                        }
                    }
                }
            }
        }
    }
}

/// What a job is doing, and if it does nothing, how its last run went.
pub(super) fn state(job: &JobLine) -> (Look, &'static str) {
    match job.state {
        JobState::Held => (Look::Failed, "held"),
        JobState::Paused => (Look::Paused, "paused"),
        JobState::Disabled => (Look::Idle, "disabled"),
        JobState::Running if job.is_late => (Look::Partial, "running late"),
        JobState::Running => (Look::Running, "running"),
        JobState::Idle if job.is_late => (Look::Partial, "late"),
        JobState::Idle => match &job.last_run {
            None => (Look::Idle, "never ran"),
            Some(run) => (words::look(run.outcome), words::outcome_word(run.outcome)),
        },
    }
}

/// The first failure of a run, with how many there were of its kind.
pub(super) fn first_failure(failure: &FirstFailure, context: Context<'_>) -> Markup {
    let FirstFailure { run, kind, tenant, message, count } = failure;
    html! {
        a href=(context.links.run(run)) { (words::failure(*kind)) }
        @if *count > 1 { " (" (words::count(*count)) "×)" }
        ": " (words::text(message))
        @if tenant.is_some() { ", first for " (context.tenant(tenant.as_deref())) }
    }
}

/// How far the run under way is, and how many wait behind it.
pub(super) fn progress(job: &JobLine) -> Markup {
    html! {
        @if let Some(run) = &job.running {
            @if run.tenants_total > 0 {
                div.note {
                    (words::count(run.tenants_done)) " of " (words::count(run.tenants_total))
                }
            }
        }
        @if job.queued > 0 { div.note { (words::count(job.queued)) " waiting" } }
    }
}

fn last_run(job: &JobLine, context: Context<'_>) -> Markup {
    html! {
        @match &job.last_run {
            None => span.muted { "–" },
            Some(run) => {
                a href=(context.links.run(run.id)) { (context.ago(run.finished_at)) }
                div.note {
                    @match job.last_success_at {
                        _ if run.outcome == Outcome::Ok => { "took " (context::span(run.took_ms)) },
                        Some(at) => { "last ok " (context.ago(at)) },
                        None => "never ok",
                    }
                }
            },
        }
    }
}

/// When the job is due next. The title has the job's own time zone.
pub(super) fn next(job: &JobLine, context: Context<'_>) -> Markup {
    html! {
        @match job.next_due_at {
            None => span.muted { "–" },
            Some(at) => {
                (context.ago(at))
                div.note {
                    (job.schedule) @if let Some(zone) = &job.timezone { " " (zone) }
                }
            },
        }
    }
}

fn sparkline(job: &JobLine) -> Markup {
    let bars: Vec<_> = job.runs.iter().map(bar).collect();
    chart::sparkline(&bars, job.gap_ms.map(Duration::from_millis))
}

/// A run as a chart draws it.
pub(super) fn bar(run: &RunBar) -> Bar {
    Bar { took: Duration::from_millis(run.took_ms), outcome: run.outcome }
}

/// The share of runs that ended ok, of those that were not cancelled.
#[expect(clippy::cast_precision_loss, reason = "there are 50 runs at most")]
fn ok_share(runs: &[RunBar]) -> Option<f64> {
    let ended = runs.iter().filter(|run| run.outcome != Outcome::Cancelled).count();
    let ok = runs.iter().filter(|run| run.outcome == Outcome::Ok).count();
    (ended > 0).then(|| ok as f64 / ended as f64)
}

fn coverage(job: &JobLine, context: Context<'_>) -> Markup {
    words::or_unknown(job.coverage, |share| {
        html! {
            a href=(context.links.tenants(&[("job", &job.name)])) { (words::percent(share)) }
        }
    })
}

/// The time between the end of the next run and the expiry of the first key, as a share of the TTL.
#[expect(clippy::cast_precision_loss, reason = "a bar of 60 pixels")]
pub(super) fn ttl_margin(job: &JobLine) -> Markup {
    words::or_unknown(job.ttl_margin_ms, |margin| {
        let share = margin as f64 / job.ttl_ms.max(1) as f64;
        let class = if margin < 0 { "failed" } else { "ok" };
        html! {
            @if margin < 0 { (words::mark(Look::Failed)) " " }
            (context::signed_span(margin))
            div { (chart::gauge(share, class)) }
        }
    })
}

fn keeps(job: &JobLine) -> Markup {
    words::or_unknown(job.keys, |keys| {
        html! {
            (words::counted(keys, "key"))
            @if let Some(bytes) = job.bytes { div.note { (words::bytes(bytes)) } }
        }
    })
}

/// What can be done with all jobs at once.
pub(super) fn levers(jobs: &[JobLine], context: Context<'_>) -> Markup {
    let is_any_paused = jobs.iter().any(|job| job.pause.is_some());
    html! {
        section.levers aria-label="All jobs" { div.actions {
            details #pause-all {
                summary { "Pause all jobs…" }
                (pause_form(&context.links.action("pause-all"), "Pause all jobs"))
            }
            @if is_any_paused {
                form method="post" action=(context.links.action("resume-all")) {
                    button { "Resume all jobs" }
                }
            }
        } }
    }
}

/// A form that asks for a pause's note and end.
pub(super) fn pause_form(action: &str, button: &str) -> Markup {
    html! {
        form.form method="post" action=(action) {
            label.field {
                span { "Why" }
                input name="note" required maxlength="200" autocomplete="off";
            }
            label.field {
                span { "For how long" }
                input name="for" placeholder="until somebody resumes it" autocomplete="off"
                    title="a duration such as 20m or 2h; empty: until somebody resumes it";
            }
            p.note {
                "Scheduled runs stop, and what changed meanwhile is warmed afterwards. The pause outlives "
                "restarts and changed job files."
            }
            div.actions { button.primary { (button) } }
        }
    }
}

/// `GET /jobs`
pub(super) async fn show(shell: Shell, State(state): State<AppState>, viewer: Viewer) -> Response {
    let shell = shell.with_json("overview");
    let overview = state.control.board.overview().await;
    let context = Context::new(&shell, &state, &viewer);
    page("Jobs", &shell, body(&overview, context))
}
