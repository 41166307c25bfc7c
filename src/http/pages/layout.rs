//! What all pages have in common: the frame around a page's body, and the links between pages.

use std::convert::Infallible;
use std::fmt::Display;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON, SCRIPT, STYLE};
use super::links::Links;
use crate::domain::who::Who;
use crate::http::AppState;
use crate::http::session::Viewer;

/// What the frame of a page needs to know. Handlers of pages take it as an argument.
#[derive(Clone, Debug)]
pub(in crate::http) struct Shell {
    /// Makes the page's links.
    pub(in crate::http) links: Links,
    /// The entry of the navigation that this page belongs to.
    section: Option<Section>,
    signed: Signed,
    /// The link to the same data as JSON.
    json: Option<String>,
    /// Whether the worker is a member of a fleet, which has a page.
    has_fleet: bool,
    /// The worker's clock, for a browser whose clock is wrong.
    now: Option<DateTime<Utc>>,
}

/// Whether the viewer has signed in, and can.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Signed {
    /// The page does not tell.
    Unknown,
    /// Nobody can sign in, because the worker has no token.
    Never,
    /// The viewer has not signed in, and sees pages without levers.
    Out,
    /// The viewer has signed in under this name.
    In(Who),
}

impl Shell {
    /// The frame of the page at this path, as the worker sees the path: without the prefix that a
    /// proxy takes off.
    pub(in crate::http) fn at(path: &str) -> Self {
        let (links, section) = (Links::from(path), Section::of(path));
        let signed = Signed::Unknown;
        Self { links, section, signed, json: None, has_fleet: false, now: None }
    }

    fn sections(&self) -> impl Iterator<Item = Section> {
        let has_fleet = self.has_fleet;
        Section::ALL.into_iter().filter(move |section| has_fleet || *section != Section::Fleet)
    }

    /// The same for this viewer, if they signed in.
    pub(in crate::http) fn signed_in(mut self, viewer: Option<Viewer>) -> Self {
        if let Some(Viewer { who: Some(who), is_signed_in: true, .. }) = viewer {
            self.signed = Signed::In(who);
        }
        self
    }

    /// The same, with a link to the same data as JSON: a path below `/api/v1/`, such as
    /// `jobs/services`.
    pub(in crate::http) fn with_json(mut self, path: impl Display) -> Self {
        self.json = Some(self.links.api(path));
        self
    }
}

impl FromRequestParts<AppState> for Shell {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let Ok(viewer) = Viewer::from_request_parts(parts, state).await;
        let signed = match viewer.who {
            Some(who) if viewer.is_signed_in => Signed::In(who),
            Some(_) | None if state.control.access.has_token() => Signed::Out,
            Some(_) | None => Signed::Never,
        };
        let now = Some(state.control.handle.now());
        let has_fleet = state.control.board.is_in_fleet();
        Ok(Self { signed, has_fleet, now, ..Self::at(parts.uri.path()) })
    }
}

/// An entry of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Overview,
    Jobs,
    Runs,
    Tenants,
    Audit,
    Changes,
    Fleet,
    Settings,
}

impl Section {
    const ALL: [Self; 8] = [
        Self::Overview,
        Self::Jobs,
        Self::Runs,
        Self::Tenants,
        Self::Audit,
        Self::Changes,
        Self::Fleet,
        Self::Settings,
    ];

    /// The first segment of its paths.
    fn segment(self) -> &'static str {
        match self {
            Self::Overview => "",
            Self::Jobs => "jobs",
            Self::Runs => "runs",
            Self::Tenants => "tenants",
            Self::Audit => "audit",
            Self::Changes => "changes",
            Self::Fleet => "fleet",
            Self::Settings => "settings",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Jobs => "Jobs",
            Self::Runs => "Runs",
            Self::Tenants => "Tenants",
            Self::Audit => "Audit",
            Self::Changes => "Changes",
            Self::Fleet => "Fleet",
            Self::Settings => "Settings",
        }
    }

    fn of(path: &str) -> Option<Self> {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        Self::ALL.into_iter().find(|section| section.segment() == first)
    }
}

/// A page. The body begins with the page's `h1`. A node with an `id` and `data-live="PART"` is
/// drawn anew when that part of the worker's state changes.
#[expect(clippy::needless_pass_by_value, reason = "a body is made for its page")]
pub(in crate::http) fn page(title: &str, shell: &Shell, body: Markup) -> Response {
    let html = document(title, shell, &body).into_string();
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (StatusCode::OK, headers, html).into_response()
}

fn document(title: &str, shell: &Shell, body: &Markup) -> Markup {
    let links = &shell.links;
    html! {
        (DOCTYPE)
        html lang="en" data-root=(links.overview())
            data-now=[shell.now.map(|now| now.timestamp_millis())] {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · preheat" }
                link rel="icon" type="image/svg+xml" href=(links.asset(&ICON));
                link rel="stylesheet" href=(links.asset(&STYLE));
                script src=(links.asset(&SCRIPT)) {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                (header(shell))
                main #main tabindex="-1" { (body) }
                (footer(shell))
                (help())
            }
        }
    }
}

fn header(shell: &Shell) -> Markup {
    let links = &shell.links;
    html! {
        header.bar {
            div.top {
                a.brand href=(links.overview()) {
                    img src=(links.asset(&ICON)) alt="" width="20" height="20";
                    "preheat"
                }
                nav aria-label="Pages" {
                    @for section in shell.sections() {
                        @let current = (shell.section == Some(section)).then_some("page");
                        a href=(links.to(section.segment())) aria-current=[current] {
                            (section.title())
                        }
                    }
                }
                form.search role="search" method="get" action=(links.find()) {
                    input #search type="search" name="q" required placeholder="Tenant, job or run"
                        aria-label="Find a tenant, a job or a run" aria-keyshortcuts="/"
                        autocomplete="off" spellcheck="false";
                }
                div.tools {
                    span.live #live hidden {}
                    button.plain #theme type="button" hidden { "Theme" }
                    (signed(shell))
                }
            }
        }
    }
}

fn signed(shell: &Shell) -> Markup {
    let links = &shell.links;
    html! {
        @match &shell.signed {
            Signed::Unknown => {},
            Signed::Never => {
                span.muted title="This worker has no token, so nothing can be changed over HTTP" {
                    "read-only"
                }
            },
            Signed::Out => a href=(links.login()) { "Sign in" },
            Signed::In(who) => {
                span.muted { (who.as_str()) }
                form method="post" action=(links.logout()) { button.plain { "Sign out" } }
            },
        }
    }
}

fn footer(shell: &Shell) -> Markup {
    html! {
        footer.bottom {
            span { "preheat " (env!("CARGO_PKG_VERSION")) }
            @if let Some(json) = &shell.json {
                a href=(json) { "This page as JSON" }
            }
            a href=(shell.links.to("metrics")) { "Metrics" }
            button.plain.small #open-help type="button" hidden aria-keyshortcuts="?" { "Keys" }
        }
    }
}

fn help() -> Markup {
    html! {
        dialog #help aria-labelledby="help-title" {
            h2 #help-title { "Keys" }
            dl.facts {
                dt { kbd { "/" } } dd { "find a tenant, a job or a run" }
                dt { kbd { "?" } } dd { "show this" }
                dt { kbd { "Esc" } } dd { "close this" }
            }
            form.actions method="dialog" { button { "Close" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_navigation_says_where_one_is() {
        for (path, section) in [
            ("/", Some(Section::Overview)),
            ("/jobs/a", Some(Section::Jobs)),
            ("/login", None),
            ("/runsx", None),
        ] {
            assert_eq!(Section::of(path), section, "{path}");
        }
    }

    #[test]
    fn what_a_page_shows_is_escaped() {
        let shell = Shell::at("/").with_json("x?a=<b>");
        let html = document("<script>", &shell, &html! { h1 { "<script>" } }).into_string();
        assert!(html.contains("<title>&lt;script&gt; · preheat</title>"), "{html}");
        assert!(html.contains("<h1>&lt;script&gt;</h1>"), "{html}");
        assert!(html.contains("x?a=&lt;b&gt;"), "{html}");
    }
}
