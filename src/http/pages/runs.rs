//! The page `/runs`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /runs`
pub(super) async fn show(shell: Shell) -> Response {
    page("Runs", &shell, html! { h1 { "Runs" } })
}
