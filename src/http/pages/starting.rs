//! The page of a worker that waits for its servers.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{self, Shell};
use crate::engine::schedule::status::{NeededServer, ServerState, Starting};

/// After how many seconds the browser asks again.
const AGAIN: &str = "3";

/// The page, in place of the one at this path.
pub(in crate::http) fn page(path: &str, starting: &Starting) -> Response {
    let mut page = layout::page("Starting", &Shell::at(path), body(starting));
    *page.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let again = HeaderValue::from_static(AGAIN);
    page.headers_mut().insert(header::REFRESH, again.clone());
    page.headers_mut().insert(header::RETRY_AFTER, again);
    page
}

fn body(starting: &Starting) -> Markup {
    html! {
        section.narrow {
            h1 { "The worker is starting" }
            p { "It waits for its servers. This page asks again every " (AGAIN) " seconds." }
            dl.facts {
                @for server in &starting.servers {
                    dt { (server.role) }
                    dd { (state(server)) }
                }
            }
        }
    }
}

fn state(server: &NeededServer) -> Markup {
    let NeededServer { address, state, .. } = server;
    html! {
        @match state {
            ServerState::Unknown => { span.badge { "connecting" } " " (address) },
            ServerState::Connected => { span.badge.ok { "connected" } " " (address) },
            ServerState::Away { message } => {
                span.badge.failed { "away" } " " (address) span.muted { ": " (message) }
            },
        }
    }
}
