//! The page `/changes`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /changes`
pub(super) async fn show(shell: Shell) -> Response {
    page("Changes", &shell, html! { h1 { "Changes" } })
}
