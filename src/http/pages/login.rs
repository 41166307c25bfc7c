//! The page `/login`.

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{Links, Shell, page};
use crate::http::AppState;

/// `GET /login`. Everybody may see it, whatever else a worker hides.
pub(super) async fn show(State(state): State<AppState>, uri: Uri) -> Response {
    let shell = Shell::at(uri.path());
    let body = if state.control.token.is_some() { form(&shell.links, None) } else { no_token() };
    page("Sign in", &shell, body)
}

/// The form, with the reason why the last try failed.
pub(in crate::http) fn form(links: &Links, refused: Option<&str>) -> Markup {
    html! {
        section.narrow {
            h1 { "Sign in" }
            p.muted { "To run, pause and resume jobs, and to remove keys." }
            @if let Some(refused) = refused {
                p.notice.failed #refused role="alert" { (refused) }
            }
            form.form method="post" action=(links.login()) {
                label.field {
                    span { "Token" }
                    input type="password" name="token" required autofocus
                        autocomplete="current-password"
                        aria-describedby=[refused.map(|_| "refused")];
                }
                label.field {
                    span { "Your name, for the log (optional)" }
                    input type="text" name="name" maxlength="64" autocomplete="username";
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
