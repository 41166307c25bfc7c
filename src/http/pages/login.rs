//! The page `/login`.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use maud::html;
use serde::Deserialize;

use super::layout::{Shell, page};

/// Where the sign-in leads, and why the last try failed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// A path relative to the dashboard's first page.
    next: String,
    /// `token` after a wrong one, `wait` after too many.
    failed: String,
}

/// `GET /login`
pub(super) async fn show(shell: Shell, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let Query(Asked { next, failed }) = asked.unwrap_or_default();
    let problem = match failed.as_str() {
        "token" => Some("That is not this worker's token."),
        "wait" => Some("Too many tries with a wrong token: wait a minute."),
        _ => None,
    };
    let body = html! {
        h1 { "Sign in" }
        @if let Some(problem) = problem {
            p role="alert" { (problem) }
        }
        form method="post" action=(shell.links.login()) {
            input type="hidden" name="next" value=(next);
            p {
                label for="token" { "Token" }
                input #token type="password" name="token" required
                    autocomplete="current-password" aria-describedby="token-help";
                small #token-help { "The setting `http.token`, or `http.read_token` to look only." }
            }
            p {
                label for="name" { "Your name" }
                input #name type="text" name="name" maxlength="64" autocomplete="nickname"
                    aria-describedby="name-help";
                small #name-help { "The log, run records and pauses show it." }
            }
            button type="submit" { "Sign in" }
        }
    };
    page("Sign in", &shell, body)
}
