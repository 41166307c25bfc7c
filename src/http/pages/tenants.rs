//! The page `/tenants`.

use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /tenants`
pub(super) async fn show(shell: Shell) -> Response {
    page("Tenants", &shell, html! { h1 { "Tenants" } })
}
