//! Links between the pages. They are relative, so that the dashboard works below any path.

use std::fmt::Display;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::assets::Asset;

/// What is percent-encoded in a path segment or in a query's value: everything but what RFC 3986
/// calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

    pub(super) fn to(&self, path: impl Display) -> String {
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

    pub(super) fn asset(&self, asset: &Asset) -> String {
        self.to(format_args!("assets/{}", asset.name))
    }
}

/// A path segment, or a value in a query, as a URL has it.
pub(super) fn encoded(text: &str) -> impl Display {
    utf8_percent_encode(text, ENCODED)
}

/// A query of these pairs. Empty values are left out.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        query.push_str(&encoded(value).to_string());
    }
    query
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
}
