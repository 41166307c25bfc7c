//! The page `/audit`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /audit`
pub(super) async fn show(shell: Shell) -> Response {
    page("Audit", &shell, html! { h1 { "Audit" } })
}
