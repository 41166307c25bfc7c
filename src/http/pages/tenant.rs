//! The page `/tenants/{id}`.

use axum::extract::Path;
use axum::response::Response;
use maud::html;

use super::layout::{Shell, page};

/// `GET /tenants/{id}`
pub(super) async fn show(shell: Shell, Path(id): Path<String>) -> Response {
    page(&id, &shell, html! { h1 { (id) } })
}
