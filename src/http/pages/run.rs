//! The page `/runs/{id}`: what one run did, why it is not ok, and what is different from the last `ok` one.

use crate::engine::schedule::handle::RunView;
use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::body::Segment;
use crate::http::runs::find;
use crate::http::session::Viewer;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use uuid::Uuid;

use super::chart;
use super::context::{self, Context};
use super::layout::{Shell, page};
use super::runs;
use super::words;
use crate::domain::report::{BatchTime, FailedOfKind, Failure, KeyCounts, Report};
use crate::domain::run::{RunId, RunPart, RunRecord, Trigger};
use crate::domain::whole;
use crate::engine::schedule::status::ActiveRun;
use crate::overview::{Change, Comparison, Neighbors};

/// What the page shows of a run that has ended.
#[derive(Clone, Debug)]
pub(super) struct Ended<'a> {
    /// The run.
    pub(super) run: &'a RunRecord,
    /// The same job's runs before and after it.
    pub(super) neighbors: Neighbors,
    /// The run compared with the last `ok` one; `None` if there is none.
    pub(super) comparison: Option<Comparison>,
}

/// The body of the page of a run that has ended.
pub(super) fn ended(view: &Ended<'_>, context: Context<'_>) -> Markup {
    let Ended { run, neighbors, comparison } = view;
    html! {
        div #run data-live={ "run:" (run.id) } {
            (title(run, context))
            (beside(*neighbors, context))
            (time(run))
            (result(run, context))
            (parts(run, context))
            (failures(run, context))
            (compared(comparison.as_ref(), context))
        }
    }
}

/// The body of the page of a run that has not ended.
pub(super) fn active(run: &ActiveRun, context: Context<'_>) -> Markup {
    let ActiveRun { id, job, trigger, requested_by, due_at, started_at, progress } = run;
    let now = progress.now();
    html! {
        div #run data-live={ "run:" (id) } {
            header.title {
                h1 {
                    "Run of " (context.job(job.as_str())) " "
                    @match started_at {
                        Some(_) => (words::state(words::Look::Running, "running")),
                        None => (words::state(words::Look::Idle, "waiting")),
                    }
                }
                p.description { "It was started because " (words::trigger_reason(*trigger)) @if let Some(who) = requested_by { ": " (words::text(who.as_str())) } "." }
                p.muted { code { (id) } }
            }
            dl.facts {
                dt { "Due" } dd { (words::moment(*due_at, context.now)) }
                @if let Some(at) = started_at { dt { "Started" } dd { (words::moment(*at, context.now)) } }
                dt { "Tenants" }
                dd {
                    @if now.tenants_total == 0 { "the tenant list is being read" }
                    @else { (words::count(now.tenants_done)) " of " (words::count(now.tenants_total)) " done" }
                }
                dt { "Written" }
                dd { (words::counted(now.keys, "key")) ", " (words::bytes(now.bytes)) }
            }
            @if now.tenants_total > 0 {
                progress max=(now.tenants_total) value=(now.tenants_done) aria-label="Tenants done" {}
            }
        }
    }
}

fn title(run: &RunRecord, context: Context<'_>) -> Markup {
    let RunRecord { id, job, trigger, requested_by, outcome, .. } = run;
    let RunRecord { started_at, replica, version, .. } = run;
    html! {
        header.title {
            h1 { "Run of " (context.job(job.as_str())) " " (words::outcome(*outcome)) }
            p.description {
                "Started " (words::moment(*started_at, context.now)) " because "
                (words::trigger_reason(*trigger))
                @if let Some(who) = requested_by { ": " (words::text(who.as_str())) }
                "."
            }
            p.muted { code { (id) } " · " (words::text(replica)) " · preheat " (words::text(version)) }
            (part_of(run, context))
            @if *trigger == Trigger::Change {
                p.links { a href=(context.links.changes()) { "the change feed" } }
            }
        }
    }
}

/// The record of one worker of a fleet leads to the run of which it is a part.
fn part_of(run: &RunRecord, context: Context<'_>) -> Markup {
    let whole = run.part_of().filter(|(whole, _)| *whole != run.id);
    html! {
        @if let Some((whole, shares)) = whole {
            p.links {
                "This worker's part, the shares " (shares) ", of "
                a href=(context.links.run(whole)) { "the fleet's run" }
            }
        } @else if run.parts.is_empty() && let Some(shares) = run.shares {
            p.muted { "It was for the shares " (shares) ", which the worker took or held." }
        }
    }
}

fn beside(neighbors: Neighbors, context: Context<'_>) -> Markup {
    let Neighbors { earlier, later } = neighbors;
    let link = |run: Option<RunId>, rel: &str, word: &str| {
        html! {
            @match run {
                Some(run) => a rel=(rel) href=(context.links.run(run)) { (word) },
                None => span.muted { "no " (word) },
            }
        }
    };
    html! {
        nav.pager aria-label="Runs of the same job" {
            (link(earlier, "prev", "earlier run")) " · " (link(later, "next", "later run"))
        }
    }
}

/// Where the time went.
fn time(run: &RunRecord) -> Markup {
    let (waited, took) = (runs::waited(run), run.duration());
    let Report { database, time: BatchTime { permit, encode, cache, retry }, .. } = run.report;
    let of_batches = [
        ("permits", permit),
        ("database", database),
        ("encode", encode),
        ("cache", cache),
        ("retry", retry),
    ];
    let is_known = of_batches.iter().any(|(_, part)| !part.is_zero());
    html! {
        section aria-labelledby="time-title" {
            h2 #time-title { "Where the time went" }
            (chart::parts("Time", &[("waited", waited), ("ran", took)]))
            dl.facts {
                dt { "Waited" } dd { (words::span(waited)) " after it was due or asked for" }
                dt { "Ran" } dd { (words::span(took)) }
                dt { "Database" }
                dd {
                    @if run.report.queries == 0 { "no query" }
                    @else if database.is_zero() {
                        (words::counted(run.report.queries, "query").replace("querys", "queries"))
                    } @else {
                        (words::span(database)) " in "
                        (words::counted(run.report.queries, "query").replace("querys", "queries"))
                        " (several at once each count)"
                    }
                }
                @if run.report.retries > 0 {
                    dt { "Tried again" } dd { (words::counted(run.report.retries, "batch").replace("batchs", "batches")) }
                }
            }
            @if is_known {
                p.muted { "What the batches spent it on. Several at once each count, so it may be longer than the run." }
                (chart::parts("Time of the batches", &of_batches))
                dl.facts {
                    dt { "Waited for permits" } dd { (words::span(permit)) " while other batches had them" }
                    dt { "Read rows" } dd { (words::span(database)) ": the queries; rows become JSON while they are read" }
                    dt { "Put values together" } dd { (words::span(encode)) }
                    dt { "Cache" } dd { (words::span(cache)) ": fences, manifests, values, TTLs" }
                    @if !retry.is_zero() { dt { "Waited to try again" } dd { (words::span(retry)) } }
                }
            }
        }
    }
}

fn result(run: &RunRecord, context: Context<'_>) -> Markup {
    let report = &run.report;
    let KeyCounts { written, removed, failed, fenced } = report.keys;
    html! {
        section aria-labelledby="result-title" {
            h2 #result-title { "What it did" }
            dl.facts {
                dt { "Tenants" }
                dd { (runs::tenants(report)) " of " (words::count(report.tenants.total)) }
                dt { "Keys written" } dd { (words::count(written)) ", " (words::bytes(report.bytes)) }
                @if removed > 0 { dt { "Keys removed" } dd { (words::count(removed)) } }
                @if failed > 0 { dt { "Keys failed" } dd { (words::state(words::Look::Failed, &words::count(failed))) } }
                @if fenced > 0 {
                    dt { "Keys unverified" }
                    dd { (words::count(fenced)) ": their tenants' data kept changing; a follow-up warms them again" }
                }
                @if report.evicted > 0 {
                    dt { "Evicted meanwhile" }
                    dd {
                        (words::state(words::Look::Partial, &words::count(report.evicted)))
                        " keys of any application: the cache lacks memory"
                    }
                }
                @if report.late {
                    dt { "Late" }
                    dd { (words::state(words::Look::Partial, "keys may have expired before it")) }
                }
            }
        }
        @if report.tenants.total == 0 && report.failures.is_empty() {
            p.empty { "The run had no tenants: see " a href=(context.links.settings()) { "the settings" } " for the tenant query." }
        }
    }
}

/// What each worker of the fleet did of the run.
fn parts(run: &RunRecord, context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 7] =
        ["Worker", "Shares", "Outcome", "Started", "Took", "Tenants ok", "Keys written"];
    if run.parts.is_empty() {
        return html! {};
    }
    let missing = whole::missing(run);
    html! {
        section aria-labelledby="parts-title" {
            h2 #parts-title { "Parts" }
            @if !missing.is_empty() {
                p { (words::state(words::Look::Partial, "not complete")) " No worker has ended it for the shares " (missing) ": nobody held them, or their part goes on." }
            }
            table.cards.parts aria-label="Parts" {
                thead { tr { @for column in COLUMNS { th scope="col" { (column) } } } }
                tbody { @for one in &run.parts { (part(one, context)) } }
            }
        }
    }
}

fn part(part: &RunPart, context: Context<'_>) -> Markup {
    let RunPart { id, shares, outcome, started_at, finished_at, tenants, keys, replica, version } =
        part;
    let took = (*finished_at - *started_at).to_std().unwrap_or_default();
    html! {
        tr {
            th scope="row" {
                a href=(context.links.run(id)) title=(id) { (words::text(replica)) }
                div.note { "preheat " (words::text(version)) }
            }
            td data-label="Shares" { (shares) }
            td data-label="Outcome" { (words::outcome(*outcome)) }
            td data-label="Started" { (words::clock(*started_at, context.now)) }
            td.number data-label="Took" { (words::span(took)) }
            td.number data-label="Tenants ok" { (words::count(tenants.ok)) " of " (words::count(tenants.total)) }
            td.number data-label="Keys written" { (words::count(*keys)) }
        }
    }
}

fn failures(run: &RunRecord, context: Context<'_>) -> Markup {
    let report = &run.report;
    html! {
        section aria-labelledby="failures-title" {
            h2 #failures-title { "Failures" }
            @if report.failures.is_empty() {
                p.empty { "Nothing failed." }
            }
            @for failure in &report.failures {
                @let named = report.failed_tenants.iter().find(|named| named.kind == failure.kind);
                (failure_of_kind(failure, named, context))
            }
        }
    }
}

fn failure_of_kind(
    failure: &Failure,
    named: Option<&FailedOfKind>,
    context: Context<'_>,
) -> Markup {
    let Failure { kind, tenant, key, message, count } = failure;
    html! {
        article.failure {
            h3 { (words::state(words::Look::Failed, &words::failure(*kind))) " " span.muted { (words::count(*count)) "×" } }
            p { (crate::domain::shown::shown(message)) }
            @if tenant.is_some() || key.is_some() {
                p.muted {
                    "first"
                    @if tenant.is_some() { " for " (context.tenant(tenant.as_deref())) }
                    @if let Some(key) = key { ", key " code { (words::text(key)) } }
                }
            }
            @if let Some(FailedOfKind { tenants, more, .. }) = named.filter(|named| named.tenants.len() > 1) {
                details id={ "tenants-" (kind.as_str()) } {
                    summary { (words::counted(tenants.len() as u64 + more, "tenant")) }
                    p.tenants {
                        @for tenant in tenants { (context.tenant(Some(tenant))) " " }
                        @if *more > 0 { span.muted { "and " (words::count(*more)) " more" } }
                    }
                }
            }
        }
    }
}

fn compared(comparison: Option<&Comparison>, context: Context<'_>) -> Markup {
    html! {
        section aria-labelledby="compared-title" {
            h2 #compared-title { "Compared with the last ok run" }
            @match comparison {
                None => p.empty { "There is no ok run before this one to compare it with." },
                Some(comparison) => (comparison_table(comparison, context)),
            }
        }
    }
}

/// How a number is shown.
type InWords = fn(u64) -> String;

fn comparison_table(comparison: &Comparison, context: Context<'_>) -> Markup {
    let Comparison { run, finished_at, took_ms, tenants, keys, bytes, .. } = comparison;
    let Comparison { queries, database_ms, retries, .. } = comparison;
    let rows: [(&str, &Change, InWords); 7] = [
        ("Took", took_ms, context::span),
        ("Tenants", tenants, words::count),
        ("Keys written", keys, words::count),
        ("Bytes written", bytes, words::bytes),
        ("Queries", queries, words::count),
        ("Database time", database_ms, context::span),
        ("Retries", retries, words::count),
    ];
    html! {
        p.muted { a href=(context.links.run(run)) { "the run" } " that ended " (context.moment(*finished_at)) }
        table.cards.compared aria-label="Compared with the last ok run" {
            thead { tr {
                th scope="col" { "Figure" }
                th scope="col" { "This run" }
                th scope="col" { "Last ok run" }
                th scope="col" { "Difference" }
            } }
            tbody {
                @for (name, change, write) in rows {
                    tr {
                        th scope="row" { (name) }
                        td.number data-label="This run" { (write(change.now)) }
                        td.number data-label="Last ok run" { (write(change.before)) }
                        td.number data-label="Difference" { (difference(change)) }
                    }
                }
            }
        }
    }
}

/// How much a figure grew: `+40 %`, `−3 %`, `the same`.
fn difference(change: &Change) -> String {
    match (change.now == change.before, change.percent) {
        (true, _) => "the same".to_owned(),
        (false, Some(percent)) if percent.abs() < 0.5 => "under 1 %".to_owned(),
        (false, Some(percent)) if percent < 0.0 => format!("−{:.0} %", percent.abs()),
        (false, Some(percent)) if percent < 1000.0 => format!("+{percent:.0} %"),
        (false, Some(percent)) => format!("{:.0}×", 1.0 + percent / 100.0),
        (false, None) => format!("+{}", words::count(change.now)),
    }
}

/// `GET /runs/{id}`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let no_such_run = || ApiError::no_such_run(&id);
    let uuid = Uuid::try_parse(&id).map_err(|_no_id| no_such_run())?;
    let found = find(&state, RunId(uuid)).await?.ok_or_else(no_such_run)?;
    let shell = shell.with_json(format_args!("runs/{uuid}"));
    let context = Context::new(&shell, &state, &viewer);
    let body = match &found {
        RunView::Active(run) => active(run, context),
        RunView::Finished(run) => {
            // A run that the worker still knows is shown while the history is away.
            let beside = state.control.board.beside(run).await.unwrap_or_default();
            let (neighbors, comparison) = beside;
            ended(&Ended { run, neighbors, comparison }, context)
        }
    };
    Ok(page("Run", &shell, body))
}
