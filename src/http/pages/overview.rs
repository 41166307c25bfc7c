//! The page `/`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /`
pub(super) async fn show(shell: Shell) -> Response {
    page("Overview", &shell, html! { h1 { "Overview" } })
}
