//! The page `/changes`: whether the worker hears of changes, and how fast they reach the cache.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::Span;
use super::context::{self, Context};
use super::job::line_chart;
use super::layout::{Shell, page};
use super::overview::milliseconds;
use super::words::{self, Look};
use crate::http::AppState;
use crate::http::session::Viewer;
use crate::overview::{Feed, FeedState, Freshness, Overview};

/// The body of the page.
pub(super) fn body(overview: &Overview, context: Context<'_>) -> Markup {
    let Overview { feed, figures, .. } = overview;
    html! {
        h1 { "Changes" }
        section #feed data-live="changes" aria-labelledby="feed-title" {
            h2 #feed-title { "The change feed " (state(feed)) }
            @if let Some(reason) = &feed.reason { p { (words::text(reason)) } }
            (facts(feed, context))
        }
        section #freshness data-live="changes" aria-labelledby="freshness-title" {
            h2 #freshness-title { "From the change to the cache" }
            (freshness(&figures.freshness))
            (line_chart("lag", ("p99 of each five minutes", Span::FromZero, milliseconds), &figures.freshness.day, context))
        }
    }
}

/// What the change feed is doing, in words.
fn state(feed: &Feed) -> Markup {
    match feed.state {
        FeedState::Off => words::state(Look::Idle, "off"),
        FeedState::Connected => words::state(Look::Ok, "connected"),
        FeedState::Lacking => words::state(Look::Partial, "connected, but triggers are missing"),
        FeedState::Away => words::state(Look::Failed, "not connected"),
    }
}

fn facts(feed: &Feed, context: Context<'_>) -> Markup {
    let Feed { state, reason: _, since, last_heard_at, last_minute, .. } = feed;
    let Feed { tables_without_triggers, waiting, oldest_waiting_ms, .. } = feed;
    html! {
        @if *state == FeedState::Off {
            p.empty {
                "The schedules alone keep the cache fresh. " code { "preheat changes install" }
                " creates the triggers that tell of changes."
            }
        }
        dl.facts {
            @if let Some(since) = since { dt { "Since" } dd { (context.moment(*since)) } }
            dt { "Last heard" }
            dd {
                @match last_heard_at {
                    Some(at) => (context.moment(*at)),
                    None => span.muted { "nothing yet" },
                }
            }
            dt { "Last minute" } dd { (words::counted(*last_minute, "notification")) }
            dt { "Tenants that wait" }
            dd {
                (words::count(*waiting))
                @if let Some(oldest) = oldest_waiting_ms { ", the oldest change for " (context::span(*oldest)) }
            }
            @if *tables_without_triggers > 0 {
                dt { "Tables without triggers" }
                dd {
                    (words::state(Look::Partial, &words::count(*tables_without_triggers)))
                    ": run " code { "preheat changes install" }
                }
            }
        }
    }
}

fn freshness(freshness: &Freshness) -> Markup {
    let Freshness { p50_ms, p99_ms, changes, day: _ } = freshness;
    html! {
        @match (p50_ms, p99_ms) {
            (Some(p50), Some(p99)) => {
                p {
                    "Of the last " (words::counted(*changes, "change")) ", half were in the cache within "
                    b { (milliseconds(*p50)) } ", and 99 % within " b { (milliseconds(*p99)) } "."
                }
            },
            _ => p.empty { "No change in the last five minutes." },
        }
    }
}

/// `GET /changes`
pub(super) async fn show(shell: Shell, State(state): State<AppState>, viewer: Viewer) -> Response {
    let shell = shell.with_json("overview");
    let overview = state.control.board.overview().await;
    page("Changes", &shell, body(&overview, Context::new(&shell, &state, &viewer)))
}
