//! The page `/jobs/{job}`: why a job is not ok, how its runs went, and what it does.

use std::time::Duration;

use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::body::Segment;
use crate::http::session::Viewer;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::{self, Level, Run, Series, Span};
use super::context::{self, Context};
use super::layout::{Shell, page};
use super::overview::values;
use super::words;
use super::{jobs, tenants};
use crate::domain::duration;
use crate::domain::job::{Job, JobName, Overlap, Scope, Table};
use crate::overview::{
    BatchOfJob, DefinedField, JobDetail, JobLine, JobSeries, Line, Moment, Skip,
};

/// The body of the page.
pub(super) fn body(detail: &JobDetail, job: &Job, context: Context<'_>) -> Markup {
    let JobDetail { line, next_due, skipped, day, not_warm, batch, definition: fields } = detail;
    html! {
        header.title #head data-live={ "job:" (line.name) } {
            (title(line, context))
            (why_not_ok(line, context))
        }
        @if context.may_change() { (levers(line, job, context)) }
        (facts(line, next_due, context))
        (tenants::section(&line.name, line.not_warm, not_warm, context))
        section #durations data-live={ "job:" (line.name) } aria-label="Durations" {
            (durations(line, context))
        }
        div.columns #day data-live={ "job:" (line.name) } { (series(day, context)) }
        (skips(skipped, context))
        (definition(job, batch.as_ref(), fields, context))
    }
}

fn title(line: &JobLine, context: Context<'_>) -> Markup {
    let (look, word) = jobs::state(line);
    html! {
        h1 { (line.name) " " (words::state(look, word)) }
        @if !line.description.is_empty() { p.description { (words::text(&line.description)) } }
        p.links {
            a href=(context.links.runs(&[("job", &line.name)])) { "runs" }
            " · " a href="#definition" { "definition" }
            " · " a href=(context.links.tenants(&[("job", &line.name)])) { "tenants that are not warm" }
        }
    }
}

/// The reasons why the job is not ok; nothing where it is.
fn why_not_ok(line: &JobLine, context: Context<'_>) -> Markup {
    html! {
        ul.troubles {
            @if let Some(pause) = &line.pause {
                li.paused { (words::mark(words::Look::Paused)) " " span { (context.pause(pause)) } }
            }
            @if line.is_late {
                li.partial {
                    (words::mark(words::Look::Partial)) " "
                    span { "late" @if let Some(after) = line.late_after { ": a success was due by " (context.moment(after)) } }
                }
            }
            @if let Some(failure) = &line.first_failure {
                li.partial { (words::mark(words::Look::Partial)) " " span { (jobs::first_failure(failure, context)) } }
            }
        }
    }
}

/// What can be done with the job.
fn levers(line: &JobLine, job: &Job, context: Context<'_>) -> Markup {
    let action = |action| context.links.job_action(&line.name, action);
    html! {
        section.levers aria-label="What can be done" { div.actions {
            form method="post" action=(action("run")) { button.primary { "Run now" } }
            @if job.scope == Scope::Tenants {
                details #run-tenants {
                    summary { "Run for some tenants…" }
                    form.form method="post" action=(action("run")) {
                        label.field {
                            span { "Tenants, one in each line" }
                            textarea name="tenants" rows="4" required {}
                        }
                        div.actions { button.primary { "Run for these tenants" } }
                    }
                }
            }
            @if line.pause.is_some() {
                form method="post" action=(action("resume")) { button { "Resume" } }
            } @else {
                details #pause {
                    summary { "Pause…" }
                    (jobs::pause_form(&action("pause"), "Pause"))
                }
            }
            details #invalidate {
                summary { "Invalidate…" }
                form.form method="post" action=(action("invalidate")) {
                    p.note { "The next page says how many keys would be removed, and asks." }
                    div.actions { button { "Count the keys" } }
                }
            }
        } }
    }
}

fn facts(line: &JobLine, next_due: &[Moment], context: Context<'_>) -> Markup {
    let zone = line.timezone.as_deref().unwrap_or("UTC");
    html! {
        section.facts #facts data-live={ "job:" (line.name) } aria-label="Figures" {
            dl.facts {
                dt { "Schedule" } dd { (line.schedule) " (" (zone) ")" }
                dt { "Next" }
                dd {
                    @match next_due.first() {
                        None => span.muted { "not due" },
                        Some(first) => {
                            (context.ago(*first)) ": "
                            @for (place, at) in next_due.iter().enumerate() {
                                @if place > 0 { " · " }
                                (context.clock(*at))
                            }
                        },
                    }
                }
                dt { "Last run" }
                dd {
                    @match &line.last_run {
                        None => span.muted { "never ran" },
                        Some(run) => {
                            a href=(context.links.run(run.id)) { (words::outcome(run.outcome)) }
                            " " (context.moment(run.finished_at)) ", took " (context::span(run.took_ms))
                        },
                    }
                }
                dt { "Last success" }
                dd { (moment_or(line.last_success_at, "never", context)) }
                dt { "Late after" }
                dd { (moment_or(line.late_after, "never: it is paused, off, or its schedule ends", context)) }
                dt { "TTL margin" }
                dd { (margin(line, context)) }
                @if let Some(rate) = line.hit_rate {
                    dt { "Hit rate" } dd { (words::percent(rate)) " of the applications' reads in the last minutes" }
                }
                dt { "Coverage" } dd { (words::or_unknown(line.coverage, |share| html! { (words::percent(share)) })) }
                dt { "Consistency" }
                dd {
                    (words::or_unknown(line.consistency, |share| html! {
                        a href=(context.links.audit()) { (words::percent(share)) }
                    }))
                }
                dt { "Keeps" }
                dd {
                    (words::or_unknown(line.keys, |keys| html! { (words::counted(keys, "key")) }))
                    @if let Some(bytes) = line.bytes { ", " (words::bytes(bytes)) }
                }
            }
        }
    }
}

fn moment_or(at: Option<Moment>, otherwise: &str, context: Context<'_>) -> Markup {
    html! {
        @match at {
            Some(at) => (context.moment(at)),
            None => span.muted { (otherwise) },
        }
    }
}

fn margin(line: &JobLine, context: Context<'_>) -> Markup {
    html! {
        (jobs::ttl_margin(line))
        @if line.ttl_margin_ms.is_some_and(|margin| margin < 0) {
            " keys expire before the next run has written them: "
            "make the schedule denser or the TTL longer"
        }
        @if let Some(at) = line.expires_at {
            div.note { "if nothing runs, the first key expires at " (context.moment(at)) }
        }
    }
}

fn durations(line: &JobLine, context: Context<'_>) -> Markup {
    let runs: Vec<_> = line
        .runs
        .iter()
        .map(|run| Run {
            bar: jobs::bar(run),
            started_at: run.started_at.0,
            link: context.links.run(run.id),
        })
        .collect();
    let interval = line.gap_ms.map(|gap| Level {
        name: "interval",
        class: "interval",
        at: Duration::from_millis(gap),
    });
    let ttl = Level { name: "TTL", class: "ttl", at: Duration::from_millis(line.ttl_ms) };
    let levels: Vec<_> = interval.into_iter().chain([ttl]).collect();
    chart::durations(&runs, &levels, context.now)
}

fn series(day: &JobSeries, context: Context<'_>) -> Markup {
    let JobSeries { coverage, consistency, p95_ms } = day;
    html! {
        (line_chart("coverage", ("Coverage", Span::Share, words::percent), coverage, context))
        (line_chart("consistency", ("Consistency", Span::Share, words::percent), consistency, context))
        (line_chart("p95", ("Duration of 95 % of the runs", Span::FromZero, super::overview::milliseconds), p95_ms, context))
    }
}

/// A day's line as a chart: its name, its range, and how its values are written.
pub(super) fn line_chart(
    id: &str,
    (name, range, write): (&str, Span, fn(f64) -> String),
    line: &Line,
    context: Context<'_>,
) -> Markup {
    let until = line.until.map_or(context.now, |until| until.0);
    let step = Duration::from_millis(line.step_ms);
    chart::series(id, &Series { name, values: &values(line), step, until, range, write })
}

fn skips(skipped: &[Skip], context: Context<'_>) -> Markup {
    html! {
        section aria-labelledby="skipped-title" {
            h2 #skipped-title { "Runs that did not happen" }
            @if skipped.is_empty() {
                p.empty { "None, as far as this worker remembers." }
            } @else {
                ul {
                    @for skip in skipped {
                        li { (context.moment(skip.at)) ": " (skip_reason(&skip.reason)) }
                    }
                }
            }
        }
    }
}

fn skip_reason(reason: &str) -> &str {
    match reason {
        "overlap" => "the run before was still going",
        "queue_full" => "too many of its runs waited already",
        "draining" => "the worker was stopping",
        "paused" => "the job was paused",
        other => other,
    }
}

/// How many tenants one query is for, and why they are fewer than configured, if they are.
fn batch_size(batch: &BatchOfJob) -> Markup {
    let BatchOfJob { configured, now, reason } = batch;
    let tenants = |count: usize| words::counted(count as u64, "tenant");
    html! {
        @match reason {
            Some(reason) => { (tenants(*now)) " in one query instead of " (configured) " (" (reason) ")" },
            None => { (tenants(*now)) " in one query" },
        }
    }
}

/// What the job's file says, with the defaults where it says nothing.
fn definition(
    job: &Job,
    batch: Option<&BatchOfJob>,
    fields: &[DefinedField],
    context: Context<'_>,
) -> Markup {
    let from = |field: &str| origin(fields, field);
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" };
    html! {
        section #definition aria-labelledby="definition-title" {
            h2 #definition-title { "Definition" }
            p.muted {
                "With the place that each value comes from: the job's file, a "
                a href=(context.links.settings()) { "setting" } ", or a default."
                @if fields.iter().any(|field| field.origin.is_none()) {
                    " An older version of the file may be in use, so the places are not known."
                }
            }
            dl.facts {
                dt { "Keys" } dd { (keys(job, fields)) }
                dt { "Schedule" } dd { (job.schedule) (from("schedule")) }
                dt { "TTL" }
                dd {
                    (duration::text(job.ttl)) (from("ttl"))
                    ", shortened by up to " (job.ttl_jitter) " at random" (from("ttl_jitter"))
                }
                dt { "Timeout" } dd { (duration::text(job.timeout)) (from("timeout")) }
                dt { "Runs at the start" } dd { (yes_or_no(job.on_start)) (from("on_start")) }
                dt { "Required" } dd { (yes_or_no(job.required)) (from("required")) }
                dt { "Enabled" } dd { (yes_or_no(job.enabled)) (from("enabled")) }
                dt { "If it is due while it runs" }
                dd {
                    @match job.overlap {
                        Overlap::Skip => "that time is skipped",
                        Overlap::Queue => "one more run waits",
                    }
                    (from("overlap"))
                }
                dt { "Batch" }
                dd {
                    @match batch {
                        Some(batch) => { (batch_size(batch)) (from("batch")) },
                        None => { "one query for all tenants together" (from("tenants")) },
                    }
                    @if let Some(most) = value(fields, "concurrency") {
                        ", at most " (most) " at once" (from("concurrency"))
                    }
                    ", " (words::counted(u64::from(job.retries), "retry").replace("retrys", "retries"))
                    (from("retries"))
                }
                dt { "Tables" } dd { (tables(&job.tables)) (from("tables")) }
                @for (field, name) in LESS_FREQUENT {
                    @if let Some(value) = value(fields, field) {
                        dt { (name) } dd { code { (words::text(value)) } (from(field)) }
                    }
                }
            }
            p.note { "The query" (from("query.sql")) (from("query.file")) ":" }
            pre.sql tabindex="0" aria-label="The query" { code { (job.query.sql.trim()) } }
        }
    }
}

/// Fields that are shown where a job has them, with their names.
const LESS_FREQUENT: [(&str, &str); 11] = [
    ("timezone", "Time zone"),
    ("query.file", "Query's file"),
    ("query.order", "Order of rows"),
    ("dates.days", "Days"),
    ("dates.timezone", "Time zone of dates"),
    ("dates.column", "Column of dates"),
    ("encode.profile", "JSON like that of"),
    ("encode.case", "Names of members"),
    ("encode.omit", "Columns left out"),
    ("encode.columns", "Columns encoded in another way"),
    ("encode.max_bytes", "Largest value in bytes"),
];

fn defined<'f>(fields: &'f [DefinedField], field: &str) -> Option<&'f DefinedField> {
    fields.iter().find(|one| one.field == field)
}

fn value<'f>(fields: &'f [DefinedField], field: &str) -> Option<&'f str> {
    defined(fields, field).map(|one| one.value.as_str())
}

/// Where the value of a field comes from, if that is known.
fn origin(fields: &[DefinedField], field: &str) -> Markup {
    let origin = defined(fields, field).and_then(|one| one.origin.as_deref());
    html! {
        @if let Some(origin) = origin { " " span.muted { "(" (words::text(origin)) ")" } }
    }
}

fn keys(job: &Job, fields: &[DefinedField]) -> Markup {
    html! {
        @for (place, key) in job.keys.iter().enumerate() {
            @if place > 0 { br; }
            code { (words::text(key.template.as_str())) }
            (origin(fields, &format!("keys.{place}.key")))
        }
    }
}

fn tables(tables: &[Table]) -> Markup {
    html! {
        @if tables.is_empty() { span.muted { "none: changes do not start runs of this job" } }
        @for (place, table) in tables.iter().enumerate() {
            @if place > 0 { ", " }
            code { (words::text(&table.name)) }
        }
    }
}

/// `GET /jobs/{job}`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Segment(job): Segment,
) -> Result<Response, ApiError> {
    let no_such_job = || ApiError::no_such_job(&job);
    let name = JobName::parse(&job).map_err(|_no_name| no_such_job())?;
    let status = state.control.handle.status();
    let definition = &status.jobs.get(&name).ok_or_else(no_such_job)?.job;
    let detail = state.control.board.job(&name).await.ok_or_else(no_such_job)?;
    let shell = shell.with_json(format_args!("jobs/{name}/overview"));
    let context = Context::new(&shell, &state, &viewer);
    Ok(page(name.as_str(), &shell, body(&detail, definition, context)))
}
