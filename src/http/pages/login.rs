//! The page `/login`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /login`
pub(super) async fn show(shell: Shell) -> Response {
    page("Sign in", &shell, html! { h1 { "Sign in" } })
}
