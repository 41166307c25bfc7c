//! The page `/jobs`, and the list of jobs that the overview has too: one line a job.

use std::time::Duration;

use maud::{Markup, html};

use super::chart::{self, Bar};
use super::context::{self, Context};
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

/// The list of jobs.
pub(super) fn table(jobs: &[JobLine], context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 9] = [
        "Job",
        "State",
        "Last run",
        "Last ok",
        "Next",
        "Last 50 runs",
        "Coverage",
        "TTL margin",
        "Kept",
    ];
    if jobs.is_empty() {
        return html! { p.empty { "There are no jobs: the folder of job files is empty." } };
    }
    html! {
        table.list.jobs aria-label="Jobs" {
            thead { tr { @for column in COLUMNS { th scope="col" { (column) } } } }
            tbody #jobs data-live="jobs" {
                @for job in jobs { (row(job, context)) }
            }
        }
    }
}

fn row(job: &JobLine, context: Context<'_>) -> Markup {
    let (look, word) = state(job);
    html! {
        tr id={ "job-" (job.name) } data-live={ "job:" (job.name) } class=(look.class()) {
            th scope="row" title=(job.description) {
                (context.job(&job.name))
                (below_name(job, context))
            }
            td data-label="State" { (words::state(look, word)) (progress(job)) }
            td data-label="Last run" { (last_run(job, context)) }
            td data-label="Last ok" {
                @match job.last_success_at {
                    Some(at) => (context.ago(at)),
                    None => span.muted { "never" },
                }
            }
            td data-label="Next" { (next(job, context)) }
            td.runs data-label="Last runs" {
                a href=(context.links.runs(&[("job", &job.name)])) { (sparkline(job)) }
                @if let Some(share) = ok_share(&job.runs) {
                    " " span.number.muted title="the share of these runs that ended ok" { (words::percent(share)) }
                }
            }
            td.number data-label="Coverage" { (coverage(job, context)) }
            td.number data-label="TTL margin" { (ttl_margin(job)) }
            td.number data-label="Kept" { (kept(job)) }
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

/// What a reader has to know about the job first: why it is paused, or what failed.
fn below_name(job: &JobLine, context: Context<'_>) -> Markup {
    html! {
        @if let Some(pause) = &job.pause { div.why { (context.pause(pause)) } }
        @if let Some(failure) = &job.first_failure { div.why { (first_failure(failure, context)) } }
        @if job.not_warm > 0 {
            div.why {
                a href=(context.links.tenants(&[("job", &job.name)])) {
                    (words::counted(job.not_warm, "tenant")) " not warm"
                }
            }
        }
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
                div.small.muted {
                    (words::count(run.tenants_done)) " of " (words::count(run.tenants_total))
                }
            }
        }
        @if job.queued > 0 { div.small.muted { (words::count(job.queued)) " waiting" } }
    }
}

fn last_run(job: &JobLine, context: Context<'_>) -> Markup {
    html! {
        @match &job.last_run {
            None => span.muted { "never ran" },
            Some(run) => {
                a href=(context.links.run(run.id)) {
                    @if run.outcome != Outcome::Ok { (words::outcome(run.outcome)) " " }
                    (context.ago(run.finished_at))
                }
                div.small.muted { "took " (context::span(run.took_ms)) }
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
                div.small.muted {
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
            " " (chart::gauge(share, class))
        }
    })
}

fn kept(job: &JobLine) -> Markup {
    words::or_unknown(job.keys, |keys| {
        html! {
            (words::counted(keys, "key"))
            @if let Some(bytes) = job.bytes { div.small.muted { (words::bytes(bytes)) } }
        }
    })
}

/// What can be done with all jobs at once.
pub(super) fn levers(jobs: &[JobLine], context: Context<'_>) -> Markup {
    let is_any_paused = jobs.iter().any(|job| job.pause.is_some());
    html! {
        section.levers aria-label="All jobs" {
            details #pause-all {
                summary { "Pause all jobs…" }
                (pause_form(&context.links.action("pause-all"), "Pause all jobs"))
            }
            @if is_any_paused {
                form method="post" action=(context.links.action("resume-all")) {
                    button { "Resume all jobs" }
                }
            }
        }
    }
}

/// A form that asks for a pause's note and end.
pub(super) fn pause_form(action: &str, button: &str) -> Markup {
    html! {
        form.stack method="post" action=(action) {
            label { "Why " input name="note" required maxlength="200" autocomplete="off"; }
            label {
                "For "
                input name="for" placeholder="until somebody resumes it" autocomplete="off"
                    title="a duration such as 20m or 2h; empty: until somebody resumes it";
            }
            p.hint {
                "Scheduled runs stop, and what changed meanwhile is warmed afterwards. The pause outlives "
                "restarts and changed job files."
            }
            button { (button) }
        }
    }
}
