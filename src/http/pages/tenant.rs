//! The page `/tenants/{id}`: everything about one tenant.

use crate::domain::tenant::TenantId;
use crate::http::answer::ApiError;
use crate::http::body::Segment;
use crate::http::session::Viewer;
use crate::http::{AppState, tenants as api};
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::context::{self, Context};
use super::layout::{Shell, page};
use super::links::encoded;
use super::tenants;
use super::words::{self, Look};
use crate::overview::{JobOfTenant, KeyOfTenant, TenantDetail, WarmState};

/// The body of the page.
pub(super) fn body(detail: &TenantDetail, context: Context<'_>) -> Markup {
    let TenantDetail { id, active, timezone, fence, last_change_at, jobs } = detail;
    html! {
        header.title {
            h1 { "Tenant " span.data { (words::text(id)) } }
            p.description { (activity(*active)) }
        }
        @if context.may_change() && *active != Some(false) {
            section.levers aria-label="What can be done" { (tenants::warm_form(id, context)) }
        }
        dl.facts #facts data-live="tenants" {
            dt { "Last change heard" }
            dd {
                @match last_change_at {
                    Some(at) => (context.moment(*at)),
                    None => span.muted { "none since this worker started, as far as it remembers" },
                }
            }
            dt title="moves when the tenant's data changed" { "Fence" }
            dd { (words::or_unknown(*fence, |fence| html! { code { (fence) } })) }
            @if let Some(zone) = timezone { dt { "Time zone" } dd { (words::text(zone)) } }
        }
        section #jobs data-live="tenants" aria-labelledby="jobs-title" {
            h2 #jobs-title { "Jobs" }
            @if jobs.is_empty() { p.empty { "No job has tenants." } }
            @for job in jobs { (job_of_tenant(job, context)) }
        }
    }
}

fn activity(active: Option<bool>) -> Markup {
    match active {
        Some(true) => words::state(Look::Ok, "active"),
        Some(false) => words::state(
            Look::Idle,
            "not in the tenant list: no job warms it, and its keys are removed after a while",
        ),
        None => html! { span.muted { "The tenant list was not read yet." } },
    }
}

fn job_of_tenant(job: &JobOfTenant, context: Context<'_>) -> Markup {
    let JobOfTenant { job: name, state, not_warm, keys_expected, keys_present, .. } = job;
    let JobOfTenant { problem, shortest_ttl_ms, keys, more_keys, .. } = job;
    let (look, word) = warm_state(*state);
    html! {
        article.job {
            h3 { (context.job(name)) " " (words::state(look, word)) }
            @if let Some(why) = not_warm {
                p.why {
                    b { (tenants::reason(why.kind)) } ": " (words::text(&why.message))
                    " (since " (context.moment(why.since)) ", "
                    (words::counted(why.tries, "try").replace("trys", "tries"))
                    @if let Some(next) = why.next_try_at { ", next try " (context.ago(next)) }
                    ")"
                }
            }
            @if let Some(problem) = problem {
                p { (words::state(Look::Partial, "its keys could not be looked at")) ": " (words::text(problem)) }
            }
            p {
                @if *keys_expected == 0 && problem.is_none() { "No key: the job has no row for this tenant." }
                @else { (words::count(*keys_present)) " of " (words::counted(*keys_expected, "key")) " in the cache" }
                @if let Some(ttl) = shortest_ttl_ms { ", the first expires in " (context::span(*ttl)) }
            }
            @if !keys.is_empty() {
                details id={ "keys-" (name) } {
                    summary { "Keys" }
                    (key_table(name, keys))
                    @if *more_keys > 0 { p.muted { "and " (words::count(*more_keys)) " more" } }
                }
            }
        }
    }
}

fn warm_state(state: WarmState) -> (Look, &'static str) {
    match state {
        WarmState::Warm => (Look::Ok, "warm"),
        WarmState::NotWarm => (Look::Partial, "not warm"),
        WarmState::Unknown => {
            (Look::Idle, "not known yet: no run has covered it since this worker started")
        }
        WarmState::Off => (Look::Idle, "the job is off"),
        WarmState::NotActive => (Look::Idle, "not active"),
    }
}

fn key_table(job: &str, keys: &[KeyOfTenant]) -> Markup {
    html! {
        table.cards aria-label={ "Keys of " (job) } {
            thead { tr {
                th scope="col" { "Key" }
                th scope="col" { "In the cache" }
                th scope="col" { "TTL left" }
                th scope="col" { "Size" }
            } }
            tbody {
                @for key in keys {
                    tr {
                        th scope="row" { code { (words::text(&key.key)) } }
                        td data-label="In the cache" {
                            @if key.present { (words::state(Look::Ok, "yes")) }
                            @else { (words::state(Look::Partial, "missing")) }
                        }
                        td.number data-label="TTL left" { (ttl_left(key)) }
                        td.number data-label="Size" {
                            (words::or_unknown(key.bytes, |bytes| html! { (words::bytes(bytes)) }))
                        }
                    }
                }
            }
        }
    }
}

fn ttl_left(key: &KeyOfTenant) -> Markup {
    html! {
        @match (key.present, key.ttl_ms) {
            (false, _) => (words::unknown()),
            (true, Some(ttl)) => (context::span(ttl)),
            (true, None) => "never expires",
        }
    }
}

/// `GET /tenants/{id}`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    shown(shell, &state, &viewer, &id).await
}

/// The page of this tenant.
pub(super) async fn shown(
    shell: Shell,
    state: &AppState,
    viewer: &Viewer,
    id: &str,
) -> Result<Response, ApiError> {
    let tenant = state.control.board.tenant(&TenantId::new(id)).await;
    let tenant = tenant.ok_or_else(|| api::no_such_tenant(id))?;
    let shell = shell.with_json(format_args!("tenants/{}", encoded(id)));
    let context = Context::new(&shell, state, viewer);
    Ok(page(id, &shell, body(&tenant, context)))
}
