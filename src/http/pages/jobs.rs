//! The page `/jobs`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /jobs`
pub(super) async fn show(shell: Shell) -> Response {
    page("Jobs", &shell, html! { h1 { "Jobs" } })
}
