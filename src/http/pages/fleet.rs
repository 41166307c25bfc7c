//! The page `/fleet`: the workers that share the tenants, and what each holds.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::Context;
use super::layout::{Shell, page};
use super::words::{self, Look};
use crate::domain::share::SHARES;
use crate::http::AppState;
use crate::http::session::Viewer;
use crate::overview::{FleetView, MemberView};

/// The body of the page.
pub(super) fn body(fleet: &FleetView, context: Context<'_>) -> Markup {
    let FleetView { enabled, as_of: _, members, vacant } = fleet;
    html! {
        h1 { "Fleet" }
        section #fleet data-live="fleet" aria-labelledby="members-title" {
            h2 #members-title { "Members" }
            @if !enabled {
                p.empty {
                    @if members.iter().any(|member| u32::from(SHARES) > member.share_count) {
                        "This worker has a fixed part of the tenants, by " code { "[fleet] share" } ", and does not hear of the others."
                    } @else {
                        "This worker does everything itself: " code { "[fleet] enabled" } " is false."
                    }
                }
            }
            @match vacant {
                Some(vacant) if *enabled => p {
                    (words::state(Look::Partial, "vacant shares"))
                    " Nobody warms the tenants of the shares " (vacant) " at this moment. Members take free shares within seconds."
                },
                Some(_) | None => {},
            }
            (table(members, context))
            p.muted {
                "A tenant belongs to one of " (SHARES) " shares, by its id. What a member says is shown for eight seconds: then it is gone."
            }
        }
    }
}

fn table(members: &[MemberView], context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 8] = [
        "Member",
        "Version",
        "Started",
        "Address",
        "Shares",
        "Leases end",
        "Tenants not warm",
        "Runs now",
    ];
    html! {
        table.cards aria-label="Members" {
            thead { tr { @for column in COLUMNS { th scope="col" { (column) } } } }
            tbody { @for member in members { (row(member, context)) } }
        }
    }
}

fn row(member: &MemberView, context: Context<'_>) -> Markup {
    let MemberView { id, replica, version, address, since, shares, share_count, .. } = member;
    let MemberView { lease_ends_at, is_this, tenants_not_warm, running, .. } = member;
    html! {
        tr {
            th scope="row" title=(words::text(id)) {
                (words::text(replica))
                @if *is_this { div.note { "this one" } }
            }
            td data-label="Version" { (words::text(version)) }
            td data-label="Started" { (context.moment(*since)) }
            td data-label="Address" { (words::text(address)) }
            td data-label="Shares" {
                @if *share_count == 0 { (words::state(Look::Idle, "stands by")) }
                @else { (words::count(u64::from(*share_count))) div.note { (words::text(shares)) } }
            }
            td data-label="Leases end" {
                @match lease_ends_at {
                    Some(at) => { (context.moment(*at)) }
                    None => { span.muted { "–" } }
                }
            }
            td.number data-label="Tenants not warm" { (words::count(*tenants_not_warm)) }
            td.wide data-label="Runs now" {
                @if running.is_empty() { span.muted { "nothing" } }
                @for (place, job) in running.iter().enumerate() {
                    @if place > 0 { ", " }
                    (context.job(job))
                }
            }
        }
    }
}

/// `GET /fleet`
pub(super) async fn show(shell: Shell, State(state): State<AppState>, viewer: Viewer) -> Response {
    let shell = shell.with_json("fleet");
    let fleet = state.control.board.fleet().await;
    page("Fleet", &shell, body(&fleet, Context::new(&shell, &state, &viewer)))
}
