//! The page `/`: is the cache warm, and if not, what is wrong, since when, and what happens next?

use crate::domain::reads::OTHER_FAMILY;
use crate::http::AppState;
use crate::http::session::Viewer;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::{self, Span};
use super::context::{self, Context, look};
use super::jobs;
use super::layout::{Shell, page};
use super::words;
use crate::overview::{
    CacheMemory, Consistency, Coverage, Figures, Freshness, HitRate, Line, NextHour, Overview,
    Reads, ReadsOfFamily, Trouble,
};

/// How many troubles the page shows: more would hide what matters.
const MAX_TROUBLES: usize = 5;
/// How many jobs the page shows as parts of the cache's memory.
const MAX_SHARES: usize = 8;

/// The body of the page.
pub(super) fn body(overview: &Overview, context: Context<'_>) -> Markup {
    html! {
        (verdict(overview, context))
        (figures(&overview.figures, context))
        section aria-labelledby="jobs-title" {
            h2 #jobs-title { a href=(context.links.jobs()) { "Jobs" } }
            (jobs::table(&overview.jobs, context))
        }
        div.columns {
            (next_hour(&overview.next_hour, context))
            (cache(&overview.cache, context))
        }
        (reads_by_family(&overview.figures.reads, context))
        @if context.may_change() { (jobs::levers(&overview.jobs, context)) }
    }
}

fn verdict(overview: &Overview, context: Context<'_>) -> Markup {
    let Overview { as_of, started_at, replica, version, verdict, troubles, .. } = overview;
    let left = troubles.len().saturating_sub(MAX_TROUBLES);
    let look = look(verdict.level);
    html! {
        div.verdict {
            // Screen readers read the sentence when it changes, so its frame stays.
            div aria-live="polite" {
                h1 #verdict data-live="head" {
                    span class=(look.class()) { (words::mark(look)) }
                    (verdict.sentence)
                }
            }
            p.muted #as-of data-live="head" {
                "as of " (context.clock(*as_of)) " (" (context.ago(*as_of)) ") · "
                (words::text(replica)) " · preheat " (version) " · started " (context.ago(*started_at))
            }
        }
        div #troubles data-live="head" {
            @if !troubles.is_empty() {
                ul.troubles {
                    @for trouble in troubles.iter().take(MAX_TROUBLES) { (trouble_line(trouble, context)) }
                    @if left > 0 {
                        li.idle { span.muted { "and " (words::count(left as u64)) " more: see the jobs below" } }
                    }
                }
            }
        }
    }
}

fn trouble_line(trouble: &Trouble, context: Context<'_>) -> Markup {
    let Trouble { level, kind: _, sentence, reason, since, link, next_step } = trouble;
    let look = look(*level);
    html! {
        li class=(look.class()) {
            (words::mark(look))
            a href=(context.link(link)) { (words::text(sentence)) }
            @if let Some(reason) = reason { span { (words::text(reason)) } }
            @if let Some(since) = since { span.muted { "since " (context.moment(*since)) } }
            span.next.muted { (words::text(next_step)) }
        }
    }
}

fn figures(figures: &Figures, context: Context<'_>) -> Markup {
    let Figures { hit_rate, coverage, consistency, freshness, reads } = figures;
    html! {
        section.figures #figures data-live="head" aria-label="Figures" {
            (hit_rate_figure(hit_rate, reads))
            (coverage_figure(*coverage, context))
            (consistency_figure(*consistency, context))
            (freshness_figure(freshness, context))
        }
    }
}

/// A figure: its name, its value, and a line that says what the value is about.
fn figure(name: &str, [value, about, trend]: [Markup; 3]) -> Markup {
    html! {
        div.figure {
            h2 { (name) }
            p.value { (value) }
            p.note { (about) }
            (trend)
        }
    }
}

/// What the applications' clients count says more than the server's counters, which count preheat's own reads too.
fn hit_rate_figure(hit_rate: &HitRate, reads: &Reads) -> Markup {
    let HitRate { ratio, hits, misses, window_ms, day } = hit_rate;
    let of_clients: u64 = reads.families.iter().map(ReadsOfFamily::reads).sum();
    let about = html! {
        @match (reads.ratio, ratio) {
            (Some(_), _) => {
                (words::counted(of_clients, "read")) " of the applications in "
                (context::span(reads.window_ms))
            },
            (None, None) => "nothing was read yet",
            (None, Some(_)) => {
                (words::count(*hits)) " of " (words::counted(hits + misses, "read")) " in "
                (context::span(*window_ms)) ", of any client, preheat included"
            },
        }
    };
    let target = if reads.ratio.is_some() { "#reads" } else { "#cache" };
    let value = linked(target, reads.ratio.or(*ratio).map(words::percent));
    figure("Hit rate", [value, about, trend("Hit rate", day, Span::Share)])
}

fn coverage_figure(coverage: Coverage, context: Context<'_>) -> Markup {
    let Coverage { ratio, tenants, tenants_warm, tenants_not_warm } = coverage;
    let about = html! {
        @match (tenants_warm, tenants) {
            (Some(warm), Some(all)) => {
                (words::count(warm)) " of " (words::counted(all, "tenant")) " warm"
                @if tenants_not_warm > 0 {
                    ", "
                    a href=(context.links.tenants(&[])) { (words::count(tenants_not_warm)) " not" }
                }
            },
            (None, Some(all)) => { (words::counted(all, "tenant")) "; the cache is away" },
            (Some(_) | None, None) => "the tenant list was not read yet",
        }
    };
    let value = linked(&context.links.tenants(&[]), ratio.map(words::percent));
    figure("Coverage", [value, about, html! {}])
}

/// A figure's value as a link to where it comes from.
fn linked(link: &str, value: Option<String>) -> Markup {
    words::or_unknown(value, |value| html! { a href=(link) { (value) } })
}

fn consistency_figure(consistency: Consistency, context: Context<'_>) -> Markup {
    let Consistency { ratio, nines, tenants, keys, findings, at } = consistency;
    let about = html! {
        @match at {
            None => "nothing was compared lately",
            Some(at) => {
                @if let Some(nines) = nines { (words::counted(u64::from(nines), "nine")) " · " }
                @if findings > 0 {
                    a href=(context.links.audit()) { (words::count(findings)) " differed" } " of "
                }
                (words::counted(keys, "key")) " of " (words::counted(tenants, "tenant")) ", "
                (context.ago(at))
            },
        }
    };
    let value = linked(&context.links.audit(), ratio.map(words::percent));
    figure("Consistency", [value, about, html! {}])
}

fn freshness_figure(freshness: &Freshness, context: Context<'_>) -> Markup {
    let Freshness { p50_ms, p99_ms, changes, day } = freshness;
    let about = html! {
        @match p50_ms {
            None => "no change in the last minutes",
            Some(p50) => {
                "p99 of " (words::counted(*changes, "change")) ", p50 " (milliseconds(*p50))
            },
        }
    };
    let value = linked(&context.links.changes(), p99_ms.map(milliseconds));
    figure("Freshness", [value, about, trend("Freshness", day, Span::FromZero)])
}

/// A fraction of milliseconds as a duration.
pub(super) fn milliseconds(number: f64) -> String {
    let duration = std::time::Duration::try_from_secs_f64(number / 1000.0);
    match duration {
        Ok(duration) if (1.0..99.95).contains(&number) => {
            format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
        }
        Ok(duration) => words::span(duration),
        Err(_too_large) => "–".to_owned(),
    }
}

fn trend(name: &str, day: &Line, range: Span) -> Markup {
    chart::small_series(name, &values(day), range)
}

/// The values of a line as charts take them.
pub(super) fn values(line: &Line) -> Vec<Option<f64>> {
    line.values.iter().map(|value| value.map(f64::from)).collect()
}

/// The reads of applications, by the job whose keys they read; nothing where no client reports any.
fn reads_by_family(reads: &Reads, context: Context<'_>) -> Markup {
    html! {
        section #reads data-live="head" aria-labelledby="reads-title" hidden[reads.families.is_empty()] {
            h2 #reads-title { "Reads by family" }
            p.muted {
                "of the applications in the last " (context::span(reads.window_ms)) ", as their clients count them"
            }
            @if !reads.families.is_empty() {
                table.cards aria-labelledby="reads-title" {
                    thead {
                        tr {
                            th scope="col" { "Family" }
                            @for name in ["Hit rate", "Hits", "Misses", "Joined", "Bypassed", "Refused fills"] {
                                th.number scope="col" { (name) }
                            }
                        }
                    }
                    tbody { @for family in &reads.families { (reads_of(family, context)) } }
                }
            }
        }
    }
}

fn reads_of(family: &ReadsOfFamily, context: Context<'_>) -> Markup {
    let ReadsOfFamily { family, ratio, hits, misses, joined, bypassed, refused } = family;
    html! {
        tr {
            th scope="row" {
                @if family == OTHER_FAMILY { "other keys" }
                @else { a href=(context.links.job(family)) { (words::text(family)) } }
            }
            td.number data-label="Hit rate" {
                (words::or_unknown(*ratio, |ratio| html! { (words::percent(ratio)) }))
            }
            td.number data-label="Hits" { (words::count(*hits)) }
            td.number data-label="Misses" { (words::count(*misses)) }
            td.number data-label="Joined" { (words::count(*joined)) }
            td.number data-label="Bypassed" { (words::count(*bypassed)) }
            td.number data-label="Refused fills" { (words::count(*refused)) }
        }
    }
}

fn next_hour(hour: &NextHour, context: Context<'_>) -> Markup {
    let NextHour { runs, queries, database_ms, keys, bytes, unknown, busiest, collisions } = hour;
    html! {
        section #next-hour data-live="head" aria-labelledby="next-hour-title" {
            h2 #next-hour-title { "The next hour" }
            @if *runs == 0 {
                p.empty { "No run is due within the next hour." }
            } @else {
                dl.facts {
                    dt { "Runs" } dd { (words::count(*runs)) }
                    dt { "Queries" } dd { (words::count(*queries)) }
                    dt { "Database time" } dd { (context::span(*database_ms)) }
                    dt { "Written" }
                    dd { (words::counted(*keys, "key")) ", " (words::bytes(*bytes)) }
                    @if let Some(busiest) = busiest {
                        dt { "Busiest minute" }
                        dd {
                            (context.clock(busiest.minute)) ": "
                            (words::counted(busiest.runs, "run")) ", "
                            (context::span(busiest.database_ms)) " of database time ("
                            (job_links(&busiest.jobs, context)) ")"
                        }
                    }
                    @for collision in collisions.iter().take(3) {
                        dt { "Due together" }
                        dd { (context.clock(collision.at)) ": " (job_links(&collision.jobs, context)) }
                    }
                }
            }
            @if !unknown.is_empty() {
                p.muted {
                    "Not in the sums, since they have had no run over all tenants: "
                    (job_links(unknown, context))
                }
            }
        }
    }
}

/// The first jobs of a list as links, and how many more there are.
fn job_links(jobs: &[String], context: Context<'_>) -> Markup {
    const SHOWN: usize = 5;
    html! {
        @for (place, job) in jobs.iter().take(SHOWN).enumerate() {
            @if place > 0 { ", " }
            (context.job(job))
        }
        @if jobs.len() > SHOWN { " and " (words::count((jobs.len() - SHOWN) as u64)) " more" }
    }
}

fn cache(cache: &CacheMemory, context: Context<'_>) -> Markup {
    let CacheMemory { as_of: _, used, max, keys, evicted_last_hour, days_until_full, jobs, day } =
        cache;
    html! {
        section #cache data-live="head" aria-labelledby="cache-title" {
            h2 #cache-title { "The cache's memory" }
            @match used {
                None => p.empty { "The cache has not answered yet." },
                Some(used) => {
                    p { (memory(*used, *max)) " " (trend("Memory", day, Span::FromZero)) }
                    dl.facts {
                        @if let Some(keys) = keys { dt { "Keys" } dd { (words::count(*keys)) ", of all applications" } }
                        @if let Some(evicted) = evicted_last_hour {
                            dt { "Evicted in the last hour" }
                            dd {
                                @if *evicted > 0 { (words::state(words::Look::Partial, &words::count(*evicted))) }
                                @else { "none" }
                            }
                        }
                        @if let Some(days) = days_until_full {
                            dt { "Full, at this growth" } dd { "in " (days_in_words(*days)) }
                        }
                    }
                },
            }
            @if !jobs.is_empty() {
                table.shares aria-label="What each job keeps" {
                    tbody {
                        @for share in jobs.iter().take(MAX_SHARES) {
                            tr {
                                th scope="row" { (context.job(&share.job)) }
                                td.number { (words::bytes(share.bytes)) }
                                td {
                                    @if let Some(part) = share.share {
                                        (chart::gauge(part, "info")) " " span.muted { (words::percent(part)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of memory with three digits")]
fn memory(used: u64, max: Option<u64>) -> Markup {
    html! {
        @match max.filter(|max| *max > 0) {
            None => { (words::bytes(used)) " " span.muted { "without a limit" } },
            Some(max) => {
                @let share = used as f64 / max as f64;
                (words::bytes(used)) " of " (words::bytes(max)) " "
                (chart::gauge(share, if share > 0.9 { "partial" } else { "info" })) " "
                span.muted { (words::percent(share)) }
            },
        }
    }
}

/// Days from now: `less than a day`, `12 days`, `more than a year`.
fn days_in_words(days: f64) -> String {
    match days {
        days if days < 1.0 => "less than a day".to_owned(),
        days if days > 365.0 => "more than a year".to_owned(),
        days => format!("{days:.0} days"),
    }
}

/// `GET /`
pub(super) async fn show(shell: Shell, state: &AppState, viewer: &Viewer) -> Response {
    let shell = shell.with_json("overview");
    let overview = state.control.board.overview().await;
    let context = Context::new(&shell, state, viewer);
    page("Overview", &shell, body(&overview, context))
}
