//! The page `/login`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Shell, page};
use super::links::Links;
use crate::http::AppState;

/// Where the sign-in leads, and why the last try failed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// A path relative to the dashboard's first page.
    next: String,
    /// `token` after a wrong one, `wait` after too many.
    failed: String,
}

/// `GET /login`. Everybody may see it, whatever else a worker hides.
pub(super) async fn show(
    State(state): State<AppState>,
    uri: Uri,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let shell = Shell::at(uri.path());
    let Query(asked) = asked.unwrap_or_default();
    let can_sign_in = state.control.access.has_token();
    let body = if can_sign_in { form(&shell.links, &asked) } else { no_token() };
    page("Sign in", &shell, body)
}

fn form(links: &Links, Asked { next, failed }: &Asked) -> Markup {
    let refused = match failed.as_str() {
        "token" => Some("That is not this worker's token."),
        "wait" => Some("Too many tries with a wrong token: wait a minute."),
        _ => None,
    };
    html! {
        section.narrow {
            h1 { "Sign in" }
            p.muted { "To run, pause and resume jobs, and to remove keys." }
            @if let Some(refused) = refused {
                p.notice.failed #refused role="alert" { (refused) }
            }
            form.form method="post" action=(links.login()) {
                input type="hidden" name="next" value=(next);
                label.field {
                    span { "Token" }
                    input type="password" name="token" required autofocus
                        autocomplete="current-password" aria-describedby="token-help";
                    small.muted #token-help {
                        "The setting " code { "http.token" } ", or " code { "http.read_token" } " to look only."
                    }
                }
                label.field {
                    span { "Your name (optional)" }
                    input type="text" name="name" maxlength="64" autocomplete="username"
                        aria-describedby="name-help";
                    small.muted #name-help { "The log, run records and pauses show it." }
                }
                div.actions { button.primary { "Sign in" } }
            }
        }
    }
}

fn no_token() -> Markup {
    html! {
        section.narrow {
            h1 { "Sign in" }
            p {
                "This worker has no token, so nothing can be changed over HTTP. To sign in, set "
                code { "PREHEAT_HTTP__TOKEN" } " or " code { "[http] token" }
                " and start the worker again."
            }
        }
    }
}
