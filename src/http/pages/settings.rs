//! The page `/settings`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /settings`
pub(super) async fn show(shell: Shell) -> Response {
    page("Settings", &shell, html! { h1 { "Settings" } })
}
