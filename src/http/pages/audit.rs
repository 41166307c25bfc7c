//! The page `/audit`: how many values equal the database's, by job, and which do not.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::{self, Context};
use super::layout::{Shell, page};
use super::words;
use crate::domain::audit::{Difference, Kind};
use crate::domain::shown::shown;
use crate::http::AppState;
use crate::http::overview::privacy;
use crate::http::session::Viewer;
use crate::overview::{Audit, AuditOfJob, Consistency, ValuePart, WrongKey};

/// The body of the page.
pub(super) fn body(audit: &Audit, context: Context<'_>) -> Markup {
    let Audit { as_of: _, consistency, has_values, jobs } = audit;
    html! {
        h1 { "Audit" }
        p.muted {
            "The verifier compares keys of some tenants with the database, again and again. A key that "
            "differs is looked at again: only one that differs at every look counts as wrong."
        }
        section #audit data-live="audit" aria-label="All jobs" {
            (all(*consistency, context))
            (table(jobs, context))
        }
        section #differences data-live="audit" aria-labelledby="differences-title" {
            h2 #differences-title { "What differs" }
            (found(jobs, *has_values, context))
        }
    }
}

/// The keys that were wrong at the last look at each job.
fn found(jobs: &[AuditOfJob], has_values: bool, context: Context<'_>) -> Markup {
    let wrong = || jobs.iter().filter(|job| !job.findings.is_empty());
    html! {
        @if wrong().next().is_none() {
            p.empty { "No key was wrong at the last look at each job." }
        } @else if !has_values {
            p.muted {
                "Values are private data: only people who have signed in with the worker's token see them here. \
                 On the worker's machine, "
                code { "preheat audit --key KEY" } " shows how a key differs."
            }
        }
        @for job in wrong() {
            h3 { (context.job(&job.job)) }
            ul.findings {
                @for (place, key) in job.findings.iter().enumerate() {
                    li { (wrong_key(&format!("{}-{place}", job.job), key, context)) }
                }
            }
            @let more = job.wrong.saturating_sub(job.findings.len() as u64);
            @if more > 0 {
                p.muted {
                    "and " (words::counted(more, "more key")) ": "
                    code { "preheat audit " (job.job) } " looks at all tenants"
                }
            }
        }
    }
}

fn wrong_key(id: &str, found: &WrongKey, context: Context<'_>) -> Markup {
    let WrongKey { key, tenant, kind, found_at, behind_ms, ttl, differences, database, cache } =
        found;
    html! {
        (words::state(words::Look::Partial, kind_word(*kind))) " "
        code { (words::text(key)) }
        " of " (context.tenant(tenant.as_deref()))
        ", found " (context.ago(*found_at))
        @if let Some(behind) = behind_ms { ", up to " (context::span(*behind)) " behind" }
        @if let Some(ttl) = ttl { div.note { (ttl) } }
        @if database.is_some() || cache.is_some() {
            details id={ "finding-" (id) } {
                summary { "Both values" }
                @if let Some(differences) = differences.as_deref().filter(|all| !all.is_empty()) {
                    ul {
                        @for Difference { path, database, cache } in differences {
                            li {
                                @if !path.is_empty() { code { (words::text(path)) } ": " }
                                (words::text(database)) " ≠ " (words::text(cache))
                            }
                        }
                    }
                }
                (value("The database gives", database.as_ref()))
                (value("The cache has", cache.as_ref()))
            }
        }
    }
}

fn value(whose: &str, part: Option<&ValuePart>) -> Markup {
    html! {
        p.note {
            (whose)
            @match part {
                Some(ValuePart { bytes, is_cut: true, .. }) => { ", the beginning of " (words::bytes(*bytes)) ":" },
                Some(_) => ":",
                None => " no value.",
            }
        }
        @if let Some(part) = part {
            pre.value tabindex="0" aria-label=(whose) { code { (shown(&part.text)) } }
        }
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Stale => "stale",
        Kind::Missing => "missing",
        Kind::Orphaned => "orphaned",
        Kind::WrongTtl => "wrong TTL",
    }
}

fn all(consistency: Consistency, context: Context<'_>) -> Markup {
    let Consistency { ratio, nines, tenants, keys, findings, at } = consistency;
    html! {
        @match (ratio, at) {
            (Some(ratio), Some(at)) => {
                p.summary {
                    @if findings == 0 { (words::state(words::Look::Ok, "no key was wrong")) }
                    @else { (words::state(words::Look::Partial, &words::counted(findings, "wrong key"))) }
                    " of " (words::counted(keys, "key")) " of " (words::counted(tenants, "tenant"))
                    ": " (words::percent(ratio)) " are equal"
                    @if let Some(nines) = nines { " (" (words::counted(u64::from(nines), "nine")) ")" }
                    ", last compared " (context.moment(at))
                }
            },
            _ => p.empty { "Nothing was compared yet: the first comparison comes some minutes after the start." },
        }
    }
}

fn table(jobs: &[AuditOfJob], context: Context<'_>) -> Markup {
    html! {
        @if !jobs.is_empty() {
            table.cards aria-label="Consistency by job" {
                thead { tr {
                    th scope="col" { "Job" }
                    th.number scope="col" { "Equal to the database" }
                    th.number scope="col" { "In the cache" }
                    th.number scope="col" { "Tenants not warm" }
                    th scope="col" { "Last look" }
                } }
                tbody {
                    @for job in jobs {
                        tr {
                            th scope="row" { (context.job(&job.job)) }
                            td.number data-label="Equal to the database" {
                                (words::or_unknown(job.consistency, |share| html! { (words::percent(share)) }))
                            }
                            td.number data-label="In the cache" {
                                (words::or_unknown(job.coverage, |share| html! { (words::percent(share)) }))
                            }
                            td.number data-label="Tenants not warm" {
                                a href=(context.links.tenants(&[("job", &job.job)])) { (words::count(job.not_warm)) }
                            }
                            td data-label="Last look" {
                                (words::or_unknown(job.compared_at, |at| html! {
                                    (context.ago(at)) ": " (words::counted(job.wrong, "wrong key"))
                                    " of " (words::count(job.keys))
                                }))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `GET /audit`
pub(super) async fn show(shell: Shell, State(state): State<AppState>, viewer: Viewer) -> Response {
    let shell = shell.with_json("audit");
    let audit = state.control.board.audit(privacy(&viewer)).await;
    page("Audit", &shell, body(&audit, Context::new(&shell, &state, &viewer)))
}
