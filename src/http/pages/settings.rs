//! The page `/settings`: rejected job files, circuit breakers, the limits in force, and each setting's value and where
//! it comes from.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::Context;
use super::layout::{Shell, page};
use super::words::{self, Look};
use crate::domain::retry::BreakerState;
use crate::engine::schedule::status::{RejectedFor, Rejection, Rejections};
use crate::http::overview::limits;
use crate::http::session::Viewer;
use crate::http::{AppState, SettingInUse};
use crate::overview::{Connections, Limits, Permits, PermitsOfJob, RowMemory, ServerBreaker};

/// The job files that are not used as they are.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    /// The jobs whose queries the database refuses.
    pub(super) rejections: &'a Rejections,
    /// What is wrong with the files that were read last.
    pub(super) unreadable: &'a [RejectedFor],
}

/// The body of the page.
pub(super) fn body(
    settings: &[SettingInUse],
    files: Files<'_>,
    limits: &Limits,
    context: Context<'_>,
) -> Markup {
    let Files { rejections, unreadable } = files;
    let Limits { as_of: _, breakers, connections, permits, memory } = limits;
    html! {
        h1 { "Settings" }
        section #rejected data-live="head" aria-labelledby="rejected-title" {
            h2 #rejected-title { "Rejected job files" }
            @if rejections.is_empty() && unreadable.is_empty() {
                p.empty { "None: all job files are in use, and the database accepts their queries." }
            }
            @if !unreadable.is_empty() {
                article.failure {
                    h3 {
                        "Files with problems "
                        (words::state(Look::Partial, "the last good files are in use"))
                    }
                    (problems(unreadable))
                }
            }
            @for (job, rejection) in rejections { (rejected(job.as_str(), rejection, context)) }
        }
        section #breakers data-live="limits" aria-labelledby="breakers-title" {
            h2 #breakers-title { "Circuit breakers" }
            (table_of_breakers(breakers, context))
        }
        section #limits data-live="limits" aria-labelledby="limits-title" {
            h2 #limits-title { "Limits in force" }
            (facts(*connections, permits, *memory, context))
        }
        section aria-labelledby="settings-title" {
            h2 #settings-title { "In use" }
            p.muted {
                "Defaults, the settings file, the environment and flags, each overriding the one before. "
                "Secrets are never shown."
            }
            (table(settings))
        }
    }
}

fn rejected(job: &str, rejection: &Rejection, context: Context<'_>) -> Markup {
    let older_in_use = &rejection.older_in_use;
    html! {
        article.failure {
            h3 {
                (context.job(job)) " "
                @if *older_in_use { (words::state(Look::Partial, "an older version is in use")) }
                @else { (words::state(Look::Failed, "held: nothing warms its keys")) }
            }
            (problems(&rejection.problems))
        }
    }
}

fn problems(problems: &[RejectedFor]) -> Markup {
    html! {
        @for RejectedFor { file, line, message, hint } in problems {
            p {
                code { (words::text(file)) @if let Some(line) = line { ":" (line) } }
                ": " (words::text(message))
                @if let Some(hint) = hint { " " span.muted { (words::text(hint)) } }
            }
        }
    }
}

fn table_of_breakers(breakers: &[ServerBreaker], context: Context<'_>) -> Markup {
    html! {
        table.cards aria-label="Circuit breakers" {
            thead { tr {
                th scope="col" { "Server" } th scope="col" { "State" } th scope="col" { "Since" }
                th.number scope="col" { "Failures in a row" }
                th.number scope="col" { "Opened since the start" }
            } }
            tbody {
                @for breaker in breakers {
                    tr {
                        th scope="row" { (breaker.server) }
                        td.wide data-label="State" {
                            (breaker_state(breaker.state))
                            @if let Some(at) = breaker.next_try_at { ", asked again " (context.ago(at)) }
                            @if let Some(reason) = &breaker.reason { div.note { (words::text(reason)) } }
                        }
                        td data-label="Since" { (context.moment(breaker.since)) }
                        td.number data-label="Failures in a row" { (words::count(u64::from(breaker.failures))) }
                        td.number data-label="Opened since the start" { (words::count(breaker.times_open)) }
                    }
                }
            }
        }
    }
}

fn breaker_state(state: BreakerState) -> Markup {
    match state {
        BreakerState::Closed => words::state(Look::Ok, "closed: it is asked"),
        BreakerState::Open => words::state(Look::Failed, "open: it is left alone"),
        BreakerState::HalfOpen => words::state(Look::Partial, "half open: one question finds out"),
    }
}

fn facts(
    connections: Connections,
    permits: &Permits,
    memory: RowMemory,
    context: Context<'_>,
) -> Markup {
    let Connections { most, in_use, idle } = connections;
    let RowMemory { batch_bytes, tenant_bytes, all_bytes } = memory;
    let count = |number: u32| words::count(u64::from(number));
    html! {
        dl.facts {
            dt { "Connections to the database" }
            dd { (count(in_use)) " in use, " (count(idle)) " idle, of at most " (count(most)) }
            dt { "Permits for batches" }
            dd {
                (count(permits.in_use)) " of " (count(permits.most)) " in use"
                @if permits.in_use_for_changes > 0 { ", " (count(permits.in_use_for_changes)) " for changes" }
                @if permits.for_changes > 0 { "; " (count(permits.for_changes)) " is for changes alone" }
                @if permits.waiting > 0 { "; " (words::counted(permits.waiting, "batch").replace("batchs", "batches")) " waiting" }
                @for PermitsOfJob { job, permits } in &permits.jobs {
                    div.note { (context.job(job)) ": " (count(*permits)) }
                }
            }
            dt { "Memory for rows" }
            dd {
                "at most " (words::bytes(all_bytes)) " in all, " (words::bytes(batch_bytes)) " a batch, "
                (words::bytes(tenant_bytes)) " a tenant"
            }
        }
    }
}

fn table(settings: &[SettingInUse]) -> Markup {
    html! {
        table.cards aria-label="Settings in use" {
            thead { tr {
                th scope="col" { "Setting" } th scope="col" { "Value" } th scope="col" { "From" }
            } }
            tbody {
                @for SettingInUse { key, value, origin } in settings {
                    tr {
                        th scope="row" { code { (key) } }
                        td.wide data-label="Value" {
                            @match value {
                                Some(value) => code { (words::text(value)) },
                                None => span.muted { "not set" },
                            }
                        }
                        td data-label="From" {
                            @if origin == "default" { span.muted { "default" } }
                            @else { (words::text(origin)) }
                        }
                    }
                }
            }
        }
    }
}

/// `GET /settings`
pub(super) async fn show(shell: Shell, State(state): State<AppState>, viewer: Viewer) -> Response {
    let shell = shell.with_json("settings");
    let status = state.control.handle.status();
    let context = Context::new(&shell, &state, &viewer);
    let limits = limits(&state);
    let unreadable = state.control.board.unreadable();
    let files = Files { rejections: &status.rejections, unreadable: &unreadable };
    page("Settings", &shell, body(&state.control.settings, files, &limits, context))
}
