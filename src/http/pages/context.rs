//! What the bodies of all pages need besides their data.

use std::time::Duration;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::layout::Shell;
use super::links::Links;
use super::words;
use crate::http::AppState;
use crate::http::access::Rights;
use crate::http::session::Viewer;
use crate::overview::{Level, Link, LinkKind, Moment, PauseView};

/// What a page's body needs besides its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// Makes links from this page to others.
    pub(super) links: &'a Links,
    /// The time at which the page is made. Relative times (`4 min ago`) are relative to it.
    pub(super) now: DateTime<Utc>,
    /// What the viewer may do: forms are only for those who may change something.
    pub(super) rights: Rights,
}

impl<'a> Context<'a> {
    /// What the body of the page in this frame needs.
    pub(super) fn new(shell: &'a Shell, state: &AppState, viewer: &Viewer) -> Self {
        Self { links: &shell.links, now: state.control.handle.now(), rights: viewer.rights }
    }

    /// Whether the page has forms that change something.
    pub(super) fn may_change(self) -> bool {
        self.rights == Rights::Write
    }

    /// How long ago, or in how long, a moment is.
    pub(super) fn ago(self, at: Moment) -> Markup {
        words::ago(at.0, self.now)
    }

    /// A moment's time of day.
    pub(super) fn clock(self, at: Moment) -> Markup {
        words::clock(at.0, self.now)
    }

    /// A moment's time of day, and how far it is from now.
    pub(super) fn moment(self, at: Moment) -> Markup {
        words::moment(at.0, self.now)
    }

    /// Where a trouble or a figure points to.
    pub(super) fn link(self, link: &Link) -> String {
        let Link { kind, name } = link;
        let name = name.as_deref().unwrap_or_default();
        match kind {
            LinkKind::Job if !name.is_empty() => self.links.job(name),
            LinkKind::Jobs | LinkKind::Job => self.links.jobs(),
            LinkKind::Run if !name.is_empty() => self.links.run(name),
            LinkKind::Runs | LinkKind::Run => self.links.runs(&[("job", name)]),
            LinkKind::Tenant if !name.is_empty() => self.links.tenant(name),
            LinkKind::Tenants | LinkKind::Tenant => self.links.tenants(&[("job", name)]),
            LinkKind::Audit => self.links.audit(),
            LinkKind::Changes => self.links.changes(),
            LinkKind::Settings => self.links.settings(),
        }
    }

    /// A job's name as a link to its page.
    pub(super) fn job(self, job: &str) -> Markup {
        html! { a href=(self.links.job(job)) { (job) } }
    }

    /// A tenant's id as a link to its page; all tenants together if there is none.
    pub(super) fn tenant(self, tenant: Option<&str>) -> Markup {
        html! {
            @match tenant {
                Some(id) => a.tenant href=(self.links.tenant(id)) { (words::text(id)) },
                None => span.muted { "all tenants together" },
            }
        }
    }

    /// A pause in a sentence.
    pub(super) fn pause(self, pause: &PauseView) -> Markup {
        let PauseView { note, by, since, until } = pause;
        html! {
            "paused by " (words::text(by)) " " (self.ago(*since))
            @if let Some(until) = until { ", until " (self.moment(*until)) }
            ": “" (words::text(note)) "”"
        }
    }
}

/// How a level looks.
pub(super) fn look(level: Level) -> words::Look {
    match level {
        Level::Ok => words::Look::Ok,
        Level::Info => words::Look::Info,
        Level::Warning => words::Look::Partial,
        Level::Critical => words::Look::Failed,
    }
}

/// A duration of a view.
pub(super) fn span(milliseconds: u64) -> String {
    words::span(Duration::from_millis(milliseconds))
}

/// A duration of a view that may be negative.
pub(super) fn signed_span(milliseconds: i64) -> String {
    let sign = if milliseconds < 0 { "−" } else { "" };
    format!("{sign}{}", span(milliseconds.unsigned_abs()))
}
