//! The page `/tenants`: the tenants that are not warm, and a way to look one up.

use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::session::Viewer;
use crate::http::tenants::TenantsQuery;
use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::context::Context;
use super::layout::{Shell, page};
use super::words;
use crate::domain::report::FailureKind;
use crate::overview::{NotWarmTenant, NotWarmTenants};

/// Which tenants the page shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    /// Those of this job; empty for all.
    pub(super) job: String,
    /// Those with this kind of failure, or `fenced`; empty for all.
    pub(super) kind: String,
}

/// The body of the page. `jobs` are the names that the filter offers.
pub(super) fn body(
    view: &NotWarmTenants,
    filters: &Filters,
    jobs: &[String],
    context: Context<'_>,
) -> Markup {
    html! {
        h1 { "Tenants" }
        (filter(filters, jobs, context))
        div #tenants data-live="tenants" {
            (summary(view, filters))
            @if !view.tenants.is_empty() { (table(&view.tenants, context)) }
            (more(view, filters, context))
        }
    }
}

fn filter(filters: &Filters, jobs: &[String], context: Context<'_>) -> Markup {
    let kinds = FailureKind::ALL.map(FailureKind::as_str);
    html! {
        form.filters method="get" action=(context.links.tenants(&[])) {
            label { "Job " (select("job", &filters.job, "all jobs", jobs.iter().map(String::as_str))) }
            label { "Reason " (select("kind", &filters.kind, "all reasons", ["fenced"].into_iter().chain(kinds))) }
            button { "Filter" }
            @if *filters != Filters::default() { " " a href=(context.links.tenants(&[])) { "show all" } }
        }
    }
}

/// A choice of one of `values`, or of all.
pub(super) fn select<'a>(
    name: &str,
    chosen: &str,
    all: &str,
    values: impl Iterator<Item = &'a str>,
) -> Markup {
    html! {
        select name=(name) {
            option value="" selected[chosen.is_empty()] { (all) }
            @for value in values {
                option value=(value) selected[value == chosen] { (value.replace('_', " ")) }
            }
        }
    }
}

fn summary(view: &NotWarmTenants, filters: &Filters) -> Markup {
    let of = view.active.map(|active| format!(" (of {} active)", words::count(active)));
    let is_filtered = !filters.job.is_empty() || !filters.kind.is_empty();
    html! {
        p.summary {
            @match (view.total, is_filtered) {
                (0, true) => "No tenant that is not warm matches these filters.",
                (0, false) => (words::state(words::Look::Ok, "Every tenant is warm, as far as this worker knows.")),
                (total, _) => {
                    (words::state(words::Look::Partial, &words::count(total)))
                    " not warm" (of.unwrap_or_default())
                    @let shown = view.tenants.len() as u64;
                    @if shown < total { ", showing " (words::count(shown)) }
                },
            }
            @if view.more > 0 {
                " " (words::count(view.more)) " more are not known by name: the worker remembers 10,000."
            }
        }
    }
}

/// The list of tenants that are not warm.
pub(super) fn table(tenants: &[NotWarmTenant], context: Context<'_>) -> Markup {
    const COLUMNS: [&str; 6] = ["Tenant", "Job", "Why", "Since", "Tries", "Next try"];
    html! {
        table.cards aria-label="Tenants that are not warm" {
            thead { tr {
                @for column in COLUMNS { th scope="col" { (column) } }
                @if context.may_change() { th scope="col" { span.hidden-text { "Warm now" } } }
            } }
            tbody { @for tenant in tenants { (row(tenant, context)) } }
        }
    }
}

fn row(row: &NotWarmTenant, context: Context<'_>) -> Markup {
    let NotWarmTenant { tenant, job, kind, message, since, tries, next_try_at } = row;
    html! {
        tr {
            th scope="row" { (context.tenant(tenant.as_deref())) }
            td data-label="Job" { (context.job(job)) }
            td.wide data-label="Why" {
                b { (reason(*kind)) }
                @if !message.is_empty() { ": " (words::text(message)) }
            }
            td data-label="Since" { (context.moment(*since)) }
            td.number data-label="Tries" { (words::count(*tries)) }
            td data-label="Next try" {
                @match next_try_at {
                    Some(at) => (context.ago(*at)),
                    None => span.muted { "nothing is due" },
                }
            }
            @if context.may_change() {
                td {
                    @if let Some(tenant) = tenant { (warm_form(tenant, context)) }
                }
            }
        }
    }
}

/// Why a tenant is not warm, in words.
pub(super) fn reason(kind: Option<FailureKind>) -> String {
    kind.map_or_else(|| "fenced: its data kept changing".to_owned(), words::failure)
}

/// The button that warms one tenant.
pub(super) fn warm_form(tenant: &str, context: Context<'_>) -> Markup {
    html! {
        form method="post" action=(context.links.tenant_action(tenant, "warm")) {
            button aria-label={ "Warm now: tenant " (words::text(tenant)) } { "Warm now" }
        }
    }
}

fn more(view: &NotWarmTenants, filters: &Filters, context: Context<'_>) -> Markup {
    html! {
        @if let Some(next) = &view.next {
            nav.pager aria-label="More tenants" {
                a rel="next" href=(context.links.tenants(&[
                    ("job", &filters.job),
                    ("kind", &filters.kind),
                    ("cursor", next),
                ])) { "next page" }
            }
        }
    }
}

/// The first tenants of a job that are not warm, for its page.
pub(super) fn section(
    job: &str,
    total: u64,
    tenants: &[NotWarmTenant],
    context: Context<'_>,
) -> Markup {
    html! {
        section #not-warm data-live={ "job:" (job) } aria-labelledby="not-warm-title" {
            h2 #not-warm-title { "Tenants that are not warm" }
            @if total == 0 {
                p.empty { "None: every tenant is warm, as far as this worker knows." }
            } @else {
                (table(tenants, context))
                @if total > tenants.len() as u64 {
                    p { a href=(context.links.tenants(&[("job", job)])) { "all " (words::count(total)) } }
                }
            }
        }
    }
}

/// What the form and the links to other pages of the list ask for. An empty value is no filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    #[serde(flatten)]
    filters: Filters,
    cursor: String,
}

impl Asked {
    fn query(&self) -> TenantsQuery {
        let Filters { job, kind } = &self.filters;
        TenantsQuery {
            warm: Some(false),
            job: Some(job.clone()),
            kind: Some(kind.clone()),
            cursor: Some(self.cursor.clone()),
            limit: None,
        }
    }
}

/// `GET /tenants`
pub(super) async fn show(
    shell: Shell,
    State(state): State<AppState>,
    viewer: Viewer,
    Query(asked): Query<Asked>,
) -> Result<Response, ApiError> {
    let view = state.control.board.not_warm(&asked.query().wanted()?).await;
    let jobs: Vec<_> = state.control.handle.status().jobs.keys().map(ToString::to_string).collect();
    let shell = shell.with_json("tenants?warm=false");
    let context = Context::new(&shell, &state, &viewer);
    Ok(page("Tenants", &shell, body(&view, &asked.filters, &jobs, context)))
}
