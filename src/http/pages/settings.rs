//! The page `/settings`: each setting's value and where it comes from, and job files that are rejected.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::Context;
use super::layout::{Shell, page};
use super::words::{self, Look};
use crate::engine::schedule::status::{RejectedFor, Rejection, Rejections};
use crate::http::session::Viewer;
use crate::http::{AppState, SettingInUse};

/// The body of the page.
pub(super) fn body(
    settings: &[SettingInUse],
    rejections: &Rejections,
    context: Context<'_>,
) -> Markup {
    html! {
        h1 { "Settings" }
        section #rejected data-live="head" aria-labelledby="rejected-title" {
            h2 #rejected-title { "Rejected job files" }
            @if rejections.is_empty() {
                p.empty { "None: the database accepts the queries of all jobs." }
            }
            @for (job, rejection) in rejections { (rejected(job.as_str(), rejection, context)) }
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
    let Rejection { problems, older_in_use } = rejection;
    html! {
        article.failure {
            h3 {
                (context.job(job)) " "
                @if *older_in_use { (words::state(Look::Partial, "an older version is in use")) }
                @else { (words::state(Look::Failed, "held: nothing warms its keys")) }
            }
            @for RejectedFor { file, line, message, hint } in problems {
                p {
                    code { (words::text(file)) @if let Some(line) = line { ":" (line) } }
                    ": " (words::text(message))
                    @if let Some(hint) = hint { " " span.muted { (words::text(hint)) } }
                }
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
    let status = state.control.handle.status();
    let context = Context::new(&shell, &state, &viewer);
    page("Settings", &shell, body(&state.control.settings, &status.rejections, context))
}
