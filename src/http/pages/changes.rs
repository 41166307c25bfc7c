//! The page `/changes`: whether the worker hears of changes, of which tables, and how fast they reach the cache.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::Span;
use super::context::{self, Context};
use super::job::line_chart;
use super::layout::{Shell, page};
use super::overview::milliseconds;
use super::words::{self, Look};
use crate::domain::change::ResyncCause;
use crate::http::AppState;
use crate::http::session::Viewer;
use crate::overview::{Changes, Feed, FeedState, Freshness, LastResync, Moment, WatchedTable};

/// The body of the page.
pub(super) fn body(changes: &Changes, context: Context<'_>) -> Markup {
    let Changes { as_of: _, started_at, feed, freshness: fresh, tables, last_resync } = changes;
    html! {
        h1 { "Changes" }
        section #feed data-live="changes" aria-labelledby="feed-title" {
            h2 #feed-title { "The change feed " (state(feed)) }
            @if let Some(reason) = &feed.reason { p { (words::text(reason)) } }
            (facts(feed, context))
        }
        section #freshness data-live="changes" aria-labelledby="freshness-title" {
            h2 #freshness-title { "From the change to the cache" }
            (freshness(fresh))
            (line_chart("lag", ("p99 of each five minutes", Span::FromZero, milliseconds), &fresh.day, context))
        }
        section #tables data-live="changes" aria-labelledby="tables-title" {
            h2 #tables-title { "By table" }
            (by_table(tables, *started_at, context))
        }
        section #resync data-live="changes" aria-labelledby="resync-title" {
            h2 #resync-title { "The last resync" }
            (resync(last_resync.as_ref(), context))
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

/// What was heard of each table.
fn by_table(tables: &[WatchedTable], started_at: Moment, context: Context<'_>) -> Markup {
    html! {
        @if tables.is_empty() {
            p.empty { "No enabled job names a table in " code { "tables" } "." }
        } @else {
            p.muted { "Notifications since the worker started, " (context.moment(started_at)) "." }
            table.cards aria-label="Changes by table" {
                thead { tr {
                    th scope="col" { "Table" }
                    th scope="col" { "Jobs" }
                    th.number scope="col" { "Notifications" }
                    th scope="col" { "Last" }
                } }
                tbody {
                    @for WatchedTable { table, jobs, notifications, last_at } in tables {
                        tr {
                            th scope="row" { code { (words::text(table)) } }
                            td.wide data-label="Jobs" { (names(jobs, context)) }
                            td.number data-label="Notifications" { (words::count(*notifications)) }
                            td data-label="Last" {
                                @match last_at {
                                    Some(at) => (context.moment(*at)),
                                    None => span.muted { "none yet" },
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// When jobs last had to run for all tenants, and why.
fn resync(last: Option<&LastResync>, context: Context<'_>) -> Markup {
    html! {
        @match last {
            None => p.empty { "Since the worker started, no job had to run for all tenants outside of its schedule." },
            Some(LastResync { at, cause, jobs }) => {
                p { (context.moment(*at)) ": " (why(*cause)) }
                p { "Jobs that run for all tenants because of it: " (names(jobs, context)) "." }
            },
        }
    }
}

fn why(cause: ResyncCause) -> &'static str {
    match cause {
        ResyncCause::FeedConnected => {
            "the change feed connected, and had not heard of the changes before."
        }
        ResyncCause::CacheLost => "the cache was restarted, replaced or emptied.",
        ResyncCause::AnyTenant => {
            "a change may have been any tenant's: a TRUNCATE, a trigger that could not tell whose rows changed, \
             triggers or tables that changed themselves, or a change of very many tenants."
        }
    }
}

fn names(jobs: &[String], context: Context<'_>) -> Markup {
    html! {
        @for (place, job) in jobs.iter().enumerate() {
            @if place > 0 { ", " }
            (context.job(job))
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
    let shell = shell.with_json("changes");
    let changes = state.control.board.changes().await;
    page("Changes", &shell, body(&changes, Context::new(&shell, &state, &viewer)))
}
