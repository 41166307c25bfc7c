//! The page `/audit`: how many values equal the database's, by job.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::Context;
use super::layout::{Shell, page};
use super::words;
use crate::http::AppState;
use crate::http::session::Viewer;
use crate::overview::{Consistency, JobLine, Overview};

/// The body of the page.
pub(super) fn body(overview: &Overview, context: Context<'_>) -> Markup {
    html! {
        h1 { "Audit" }
        p.muted {
            "The verifier compares keys of some tenants with the database, again and again. A key that "
            "differs is looked at again: only one that differs at every look counts as wrong."
        }
        section #audit data-live="audit" aria-label="All jobs" {
            (all(overview.figures.consistency, context))
            (table(&overview.jobs, context))
        }
        section aria-labelledby="differences-title" {
            h2 #differences-title { "What differs" }
            p {
                "Values are private data, so no page shows them. On the worker's machine, "
                code { "preheat audit JOB" } " names the keys that differ, and "
                code { "preheat audit --key KEY" } " shows how one of them does."
            }
        }
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

fn table(jobs: &[JobLine], context: Context<'_>) -> Markup {
    html! {
        @if !jobs.is_empty() {
            table.cards aria-label="Consistency by job" {
                thead { tr {
                    th scope="col" { "Job" }
                    th.number scope="col" { "Equal to the database" }
                    th.number scope="col" { "In the cache" }
                    th.number scope="col" { "Tenants not warm" }
                } }
                tbody {
                    @for job in jobs {
                        tr {
                            th scope="row" { (context.job(&job.name)) }
                            td.number data-label="Equal to the database" {
                                (words::or_unknown(job.consistency, |share| html! { (words::percent(share)) }))
                            }
                            td.number data-label="In the cache" {
                                (words::or_unknown(job.coverage, |share| html! { (words::percent(share)) }))
                            }
                            td.number data-label="Tenants not warm" {
                                a href=(context.links.tenants(&[("job", &job.name)])) { (words::count(job.not_warm)) }
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
    let shell = shell.with_json("overview");
    let overview = state.control.board.overview().await;
    page("Audit", &shell, body(&overview, Context::new(&shell, &state, &viewer)))
}
