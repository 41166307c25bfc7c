//! What all pages have in common: the frame around a page's body, and the links between pages.

use std::fmt::Display;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::assets::{Asset, ICON, SCRIPT, STYLE};
use crate::domain::who::Who;
use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::session::Viewer;

/// What is percent-encoded in a path segment or in a query's value: everything but what RFC 3986
/// calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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
        Self { links, section, signed: Signed::Unknown, json: None, now: None }
    }

    /// The same, with a link to the same data as JSON: a path below `/api/v1/`, such as
    /// `jobs/services`.
    pub(in crate::http) fn with_json(mut self, path: impl Display) -> Self {
        self.json = Some(self.links.api(path));
        self
    }
}

impl FromRequestParts<AppState> for Shell {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let viewer = Viewer::from_request_parts(parts, state).await?;
        let signed = match viewer.who {
            Some(who) if viewer.is_signed_in => Signed::In(who),
            Some(_) | None if state.control.access.has_token() => Signed::Out,
            Some(_) | None => Signed::Never,
        };
        let now = Some(state.control.handle.now());
        Ok(Self { signed, now, ..Self::at(parts.uri.path()) })
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
    Settings,
}

impl Section {
    const ALL: [Self; 7] = [
        Self::Overview,
        Self::Jobs,
        Self::Runs,
        Self::Tenants,
        Self::Audit,
        Self::Changes,
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
            Self::Settings => "Settings",
        }
    }

    fn of(path: &str) -> Option<Self> {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        Self::ALL.into_iter().find(|section| section.segment() == first)
    }
}

/// Makes links to pages. They are relative, so that they work below any prefix of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Links {
    /// From the page to the dashboard's first page: `./`, `../`, `../../` ….
    root: String,
}

impl Links {
    /// The links of the page at this path.
    pub(in crate::http) fn from(path: &str) -> Self {
        let depth = path.matches('/').count().saturating_sub(1);
        let root = if depth == 0 { "./".to_owned() } else { "../".repeat(depth) };
        Self { root }
    }

    fn to(&self, path: impl Display) -> String {
        format!("{}{path}", self.root)
    }

    /// The overview.
    pub(in crate::http) fn overview(&self) -> String {
        self.root.clone()
    }

    /// The list of jobs.
    pub(in crate::http) fn jobs(&self) -> String {
        self.to("jobs")
    }

    /// A job's page.
    pub(in crate::http) fn job(&self, job: &str) -> String {
        self.to(format_args!("jobs/{}", encoded(job)))
    }

    /// Where a form posts what is to be done with a job: `run`, `pause`, `resume`, `invalidate`.
    pub(in crate::http) fn job_action(&self, job: &str, action: &str) -> String {
        self.to(format_args!("jobs/{}/{action}", encoded(job)))
    }

    /// The list of runs, with filters: pairs of a name and a value.
    pub(in crate::http) fn runs(&self, filters: &[(&str, &str)]) -> String {
        self.to(format_args!("runs{}", query(filters)))
    }

    /// A run's page.
    pub(in crate::http) fn run(&self, run: impl Display) -> String {
        self.to(format_args!("runs/{run}"))
    }

    /// The list of tenants, with filters.
    pub(in crate::http) fn tenants(&self, filters: &[(&str, &str)]) -> String {
        self.to(format_args!("tenants{}", query(filters)))
    }

    /// A tenant's page.
    pub(in crate::http) fn tenant(&self, tenant: &str) -> String {
        match tenant {
            // A browser takes these two for steps between folders, even when they are encoded.
            id @ ("." | "..") => self.to(format_args!("find?tenant={id}")),
            id => self.to(format_args!("tenants/{}", encoded(id))),
        }
    }

    /// Where a form posts what is to be done with a tenant: `warm`.
    pub(in crate::http) fn tenant_action(&self, tenant: &str, action: &str) -> String {
        self.to(format_args!("tenants/{}/{action}", encoded(tenant)))
    }

    /// The audit's page.
    pub(in crate::http) fn audit(&self) -> String {
        self.to("audit")
    }

    /// The page of the change feed.
    pub(in crate::http) fn changes(&self) -> String {
        self.to("changes")
    }

    /// The settings' page.
    pub(in crate::http) fn settings(&self) -> String {
        self.to("settings")
    }

    /// The page to sign in, which is also where its form is posted.
    pub(in crate::http) fn login(&self) -> String {
        self.to("login")
    }

    /// The page to sign in, which leads back to a path of the dashboard: relative to its first page.
    pub(in crate::http) fn login_for(&self, next: &str) -> String {
        self.to(format_args!("login{}", query(&[("next", next)])))
    }

    /// The page to sign in again, with why it did not work: `token` or `wait`.
    pub(in crate::http) fn login_failed(&self, why: &str, next: &str) -> String {
        self.to(format_args!("login{}", query(&[("failed", why), ("next", next)])))
    }

    /// A path of the dashboard from outside, relative to its first page; the overview if the text could
    /// lead elsewhere.
    pub(in crate::http) fn next(&self, path: &str) -> String {
        let path_only = path.split('?').next().unwrap_or_default();
        let is_own = !path_only.contains([':', '\\']) && !path_only.contains("//");
        let is_inside = !path_only.split('/').any(|segment| matches!(segment, "." | ".."));
        let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
        let is_right = is_own && is_inside && is_plain && !path.starts_with('/');
        self.to(if is_right { path } else { "" })
    }

    /// Where the form to sign out is posted.
    pub(in crate::http) fn logout(&self) -> String {
        self.to("logout")
    }

    /// Any other form of the dashboard, such as `pause-all`.
    pub(in crate::http) fn action(&self, action: &str) -> String {
        self.to(action)
    }

    /// Where what somebody looks for is found.
    pub(in crate::http) fn find(&self) -> String {
        self.to("find")
    }

    /// A path below `/api/v1/`.
    pub(in crate::http) fn api(&self, path: impl Display) -> String {
        self.to(format_args!("api/v1/{path}"))
    }

    fn asset(&self, asset: &Asset) -> String {
        self.to(format_args!("assets/{}", asset.name))
    }
}

/// A path segment, or a value in a query, as a URL has it.
pub(super) fn encoded(text: &str) -> impl Display {
    utf8_percent_encode(text, ENCODED)
}

/// A query of these pairs. Empty values are left out.
fn query(pairs: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.extend([name, "=", &encoded(value).to_string()]);
    }
    query
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
                    @for section in Section::ALL {
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
    fn links_are_relative_to_the_page() {
        for (path, overview) in [
            ("/", "./"),
            ("/jobs", "./"),
            ("/jobs/a", "../"),
            ("/tenants/a%2Fb", "../"),
            ("", "./"),
        ] {
            assert_eq!(Links::from(path).overview(), overview, "{path}");
        }
        let links = Links::from("/runs/1");
        assert_eq!(links.job("services"), "../jobs/services");
        assert_eq!(links.runs(&[]), "../runs");
        let filters = [("job", "a"), ("since", ""), ("outcome", "a&b=c d")];
        assert_eq!(links.runs(&filters), "../runs?job=a&outcome=a%26b%3Dc%20d");
        for (id, link) in [
            ("t_1", "../tenants/t_1"),
            ("../x?y#z", "../tenants/..%2Fx%3Fy%23z"),
            ("<script>", "../tenants/%3Cscript%3E"),
            ("ü", "../tenants/%C3%BC"),
            ("..", "../find?tenant=.."),
        ] {
            assert_eq!(links.tenant(id), link);
        }
    }

    #[test]
    fn a_path_from_outside_leads_nowhere_else() {
        let links = Links::from("/login");
        for own in ["", "jobs/services", "runs?job=a&since=2026-03-01T00:00:00Z", "tenants/a%3Ab"] {
            assert_eq!(links.next(own), format!("./{own}"), "{own}");
        }
        for other in [
            "//evil.example",
            "/\\\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "a//b",
            "../x",
            "jobs/../../x",
            "a b",
            "a\r\nb",
        ] {
            assert_eq!(links.next(other), "./", "{other}");
        }
    }

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
