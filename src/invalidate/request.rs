//! A request to remove keys, and its check.

use std::sync::Arc;

use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::key::is_own;
use crate::domain::spelling;
use crate::domain::tenant::TenantId;
use crate::engine::ports::{CacheError, SourceError};

/// How many keys, tenants or jobs one request may name. Larger requests use patterns, whole jobs, or several
/// requests.
pub const MAX_NAMED: usize = 1_000;
/// How many patterns one request may have: each scans every key of the cache.
pub const MAX_PATTERNS: usize = 16;
/// How many bytes a key or a pattern may have; the keys of templates are far shorter.
pub const MAX_TEXT_BYTES: usize = 1_024;

/// What to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InvalidateRequest {
    /// These keys, without the cache's prefix.
    pub keys: Vec<String>,
    /// All keys of these tenants; with `jobs`, only the keys of these jobs.
    pub tenants: Vec<TenantId>,
    /// All keys of these jobs; with `tenants`, only the keys of these tenants.
    pub jobs: Vec<String>,
    /// All keys that match one of these globs.
    pub patterns: Vec<String>,
    /// Confirms that a pattern which matches every key is intended.
    pub all: bool,
    /// Whether the jobs run afterwards for the tenants that the request is about.
    pub rewarm: bool,
    /// Whether to count what would be removed, and to change nothing.
    pub dry_run: bool,
}

/// Why nothing was removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidateError {
    /// Nothing is named.
    #[error("nothing is named to remove: name keys, patterns, jobs or tenants")]
    Nothing,
    /// Too many things of one kind are named.
    #[error("at most {most} {what} can be named at once: these are {found}")]
    TooMany {
        /// The kind.
        what: &'static str,
        /// How many there may be.
        most: usize,
        /// How many there are.
        found: usize,
    },
    /// A text is empty or too long.
    #[error("{what} has 1 to {MAX_TEXT_BYTES} bytes: this one has {found}")]
    Length {
        /// The kind of text.
        what: &'static str,
        /// How many bytes it has.
        found: usize,
    },
    /// There is no such job.
    #[error("there is no job `{name}`: {hint}")]
    UnknownJob {
        /// The name in the request.
        name: String,
        /// Which job may be meant.
        hint: String,
    },
    /// Tenants were named for a job that has none.
    #[error("job `{0}` warms all tenants together: it has no keys of tenants")]
    TakesNoTenants(JobName),
    /// The pattern matches every key.
    #[error(
        "pattern `{0}` matches every key: if that is meant, say `--all`, or `\"all\": true` over HTTP"
    )]
    Everything(String),
    /// The key is preheat's own.
    #[error("key `{0}` is preheat's own and cannot be removed")]
    Own(String),
    /// The tenants could not be read.
    #[error("nothing was removed: {0}")]
    Tenants(SourceError),
    /// The registry of tenants could not be read.
    #[error("nothing was removed: {0}")]
    Registry(CacheError),
    /// Too many requests at once.
    #[error("too many requests at once: try again in a moment")]
    Busy,
    /// The worker is stopping.
    #[error("the worker is stopping and removes nothing any more")]
    Draining,
}

/// A request that was checked.
#[derive(Debug)]
pub(super) struct CheckedRequest {
    pub(super) keys: Vec<String>,
    pub(super) patterns: Vec<String>,
    pub(super) jobs_and_tenants: Option<JobsAndTenants>,
}

/// Keys by their job and tenant.
#[derive(Debug)]
pub(super) struct JobsAndTenants {
    /// Their jobs.
    pub(super) jobs: Vec<Arc<Job>>,
    /// Their tenants; all if it is `None`.
    pub(super) tenants: Option<Vec<TenantId>>,
}

impl InvalidateRequest {
    /// Checks the request against these jobs.
    pub fn validate(&self, jobs: &Jobs) -> Result<(), InvalidateError> {
        self.check(jobs).map(drop)
    }

    /// The request in terms of these jobs, if it is valid.
    pub(super) fn check(&self, jobs: &Jobs) -> Result<CheckedRequest, InvalidateError> {
        let Self { keys, tenants, jobs: of_jobs, patterns, all, rewarm: _, dry_run: _ } = self;
        if keys.is_empty() && tenants.is_empty() && of_jobs.is_empty() && patterns.is_empty() {
            return Err(InvalidateError::Nothing);
        }
        let counts = [("keys", keys.len()), ("tenants", tenants.len()), ("jobs", of_jobs.len())];
        for (what, found) in counts {
            at_most(MAX_NAMED, what, found)?;
        }
        at_most(MAX_PATTERNS, "patterns", patterns.len())?;
        keys.iter().try_for_each(|key| length("a key", key))?;
        tenants.iter().try_for_each(|tenant| length("a tenant's id", tenant.as_str()))?;
        patterns.iter().try_for_each(|pattern| length("a pattern", pattern))?;
        if let Some(own) = keys.iter().find(|key| is_own(key)) {
            return Err(InvalidateError::Own(own.clone()));
        }
        if let Some(wide) = patterns.iter().find(|pattern| !all && matches_everything(pattern)) {
            return Err(InvalidateError::Everything(wide.clone()));
        }
        let jobs_and_tenants = JobsAndTenants::check(of_jobs, tenants, jobs)?;
        Ok(CheckedRequest { keys: keys.clone(), patterns: patterns.clone(), jobs_and_tenants })
    }
}

impl JobsAndTenants {
    fn check(
        names: &[String],
        tenants: &[TenantId],
        all: &Jobs,
    ) -> Result<Option<Self>, InvalidateError> {
        let mut jobs: Vec<Arc<Job>> = Vec::new();
        for name in names {
            let found = JobName::parse(name).ok().and_then(|name| all.get(&name));
            let job = found.ok_or_else(|| unknown_job(name, all))?;
            if !tenants.is_empty() && job.scope == Scope::Global {
                return Err(InvalidateError::TakesNoTenants(job.name.clone()));
            }
            if !jobs.iter().any(|known| known.name == job.name) {
                jobs.push(Arc::clone(job));
            }
        }
        if tenants.is_empty() {
            return Ok((!jobs.is_empty()).then_some(Self { jobs, tenants: None }));
        }
        if jobs.is_empty() {
            let of_tenants = all.values().filter(|job| job.scope == Scope::Tenants);
            jobs = of_tenants.cloned().collect();
        }
        let mut tenants = tenants.to_vec();
        tenants.sort_unstable();
        tenants.dedup();
        Ok(Some(Self { jobs, tenants: Some(tenants) }))
    }
}

fn at_most(most: usize, what: &'static str, found: usize) -> Result<(), InvalidateError> {
    if found > most { Err(InvalidateError::TooMany { what, most, found }) } else { Ok(()) }
}

fn length(what: &'static str, text: &str) -> Result<(), InvalidateError> {
    let found = text.len();
    let fits = (1..=MAX_TEXT_BYTES).contains(&found);
    if fits { Ok(()) } else { Err(InvalidateError::Length { what, found }) }
}

fn unknown_job(name: &str, jobs: &Jobs) -> InvalidateError {
    let known = || jobs.keys().map(JobName::as_str);
    let hint = match spelling::nearest(name, known()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("the jobs are {}", spelling::listed(known(), "and")),
    };
    InvalidateError::UnknownJob { name: name.escape_debug().to_string(), hint }
}

/// Whether a glob matches every key: it has nothing but `*`, `?` and classes in brackets.
fn matches_everything(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' | '?' => {}
            '[' => skip_class(&mut chars),
            _ => return false,
        }
    }
    true
}

fn skip_class(chars: &mut std::str::Chars<'_>) {
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            ']' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &InvalidateRequest) -> Result<CheckedRequest, InvalidateError> {
        request.check(&Jobs::new())
    }

    #[test]
    fn a_pattern_that_matches_everything_needs_to_be_meant() {
        for wide in ["*", "**", "?*", "[a-z]*", "[^x]", "[\\]]*"] {
            let mut request =
                InvalidateRequest { patterns: vec![wide.to_owned()], ..Default::default() };
            let error = check(&request).unwrap_err();
            assert_eq!(error, InvalidateError::Everything(wide.to_owned()));
            request.all = true;
            check(&request).unwrap();
        }
        for narrow in ["a*", "*:1", "\\*", "[ab]c", "?x"] {
            let patterns = vec![narrow.to_owned()];
            check(&InvalidateRequest { patterns, ..Default::default() }).unwrap();
        }
    }

    #[test]
    fn a_request_names_something_and_not_too_much() {
        assert_eq!(check(&InvalidateRequest::default()).unwrap_err(), InvalidateError::Nothing);
        let only_all = InvalidateRequest { all: true, rewarm: true, ..Default::default() };
        assert_eq!(check(&only_all).unwrap_err(), InvalidateError::Nothing);
        let keys = |keys: &[&str]| InvalidateRequest {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..Default::default()
        };
        check(&keys(&vec!["a"; MAX_NAMED])).unwrap();
        let many = check(&keys(&vec!["a"; MAX_NAMED + 1])).unwrap_err();
        assert_eq!(many.to_string(), "at most 1000 keys can be named at once: these are 1001");
        check(&keys(&[""])).unwrap_err();
        check(&keys(&[&"x".repeat(MAX_TEXT_BYTES + 1)])).unwrap_err();
        let own = check(&keys(&["preheat:fence:7"])).unwrap_err();
        assert_eq!(own, InvalidateError::Own("preheat:fence:7".to_owned()));
        let patterns = vec!["a*".to_owned(); MAX_PATTERNS + 1];
        check(&InvalidateRequest { patterns, ..Default::default() }).unwrap_err();
    }
}
