//! Decides which version of each job file is in use: never one whose query the database refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::queries::{QueryProblems, check_jobs, check_keys, check_tenants};
use crate::adapter::postgres::PostgresSource;
use crate::config::{Origin, Settings};
use crate::definition::{Contents, JobFiles, Problem, Problems};
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::tenant::IdClass;
use crate::engine::ports::{Clock, Source, SourceErrorKind};
use crate::engine::schedule::status::{RejectedFor, Rejection, Rejections};
use crate::overview::Origins;

/// The longest check of one job. It is longer than the wait for a lock, so that the server ends a
/// check that waits for one.
const ONE_CHECK: Duration = Duration::from_secs(3);
/// The longest check of all jobs. The rest is checked later.
const ALL_CHECKS: Duration = Duration::from_secs(10);

/// The job files as last read, and what the database said about them.
pub(super) struct Versions {
    files: JobFiles,
    standings: BTreeMap<JobName, Standing>,
    /// The last good version of each job.
    good: BTreeMap<JobName, Arc<Job>>,
    /// Why the last check was not complete.
    unchecked: Option<String>,
    /// What tenants' ids can be, as of the last check.
    ids: IdClass,
}

/// What is known about the newest version of a job.
enum Standing {
    /// Nothing yet. Meanwhile the version is in use.
    Unchecked,
    /// Its query works, or the job is disabled, so nothing runs the query.
    Good,
    /// The database refuses its query.
    Rejected(Vec<Problem>),
}

/// What a check changed.
#[derive(Default)]
pub(super) struct Changed {
    /// Whether other versions are in use now, or the rejections are different.
    pub(super) anything: bool,
    /// Jobs that were rejected before and are good now.
    pub(super) mended: Vec<JobName>,
}

impl Versions {
    /// The versions of job files that were just read.
    pub(super) fn new(files: JobFiles) -> Self {
        let (standings, good) = (BTreeMap::new(), BTreeMap::new());
        let mut versions = Self { files, standings, good, unchecked: None, ids: IdClass::Text };
        versions.stand_anew();
        versions
    }

    /// Takes over the newest versions.
    pub(super) fn read(&mut self, files: JobFiles) {
        self.files = files;
        self.stand_anew();
    }

    /// The contents of the folder that the newest versions come from, as of just before they were read.
    pub(super) fn contents(&self) -> Option<Contents> {
        self.files.contents()
    }

    /// Marks all versions as unchecked, except those that need no check: a version that was good
    /// before, and one that nothing runs.
    fn stand_anew(&mut self) {
        let jobs = self.files.jobs();
        self.good.retain(|name, _| jobs.contains_key(name));
        self.standings.clear();
        for (name, job) in jobs {
            let is_known = self.good.get(name).is_some_and(|good| **good == **job);
            let standing = if is_known || !job.enabled {
                self.good.insert(name.clone(), Arc::clone(job));
                Standing::Good
            } else {
                Standing::Unchecked
            };
            self.standings.insert(name.clone(), standing);
        }
    }

    /// Whether any version is still to be checked, or rejected and to be checked again.
    pub(super) fn are_open(&self) -> bool {
        self.standings.values().any(|standing| !matches!(standing, Standing::Good))
    }

    /// Asks the database about each job that is not known to be good. If the database cannot be
    /// asked, the job's standing does not change.
    pub(super) async fn check(&mut self, source: &PostgresSource, clock: &dyn Clock) -> Changed {
        let open = |(name, standing): (&JobName, &Standing)| {
            (!matches!(standing, Standing::Good)).then(|| name.clone())
        };
        let open: Vec<_> = self.standings.iter().filter_map(open).collect();
        let ends_at = clock.monotonic() + ALL_CHECKS;
        let mut changed = Changed::default();
        self.unchecked = None;
        // The problems of the tenant query, once it was checked.
        let mut tenants: Option<Vec<Problem>> = None;
        for name in open {
            if clock.monotonic() >= ends_at {
                self.unchecked = Some(format!("there was no time left after {ALL_CHECKS:?}"));
                break;
            }
            let one = self.files.only(&name);
            let check = async {
                if tenants.is_none() {
                    tenants = Some(check_tenants(source).await?);
                }
                check_jobs(source, &one).await
            };
            let found = tokio::select! {
                found = check => found,
                () = clock.sleep(ONE_CHECK) => {
                    self.unchecked = Some(format!("job `{name}`: no answer within {ONE_CHECK:?}"));
                    continue;
                }
            };
            match found {
                Ok(mut problems) => {
                    problems.tenants = tenants.clone().unwrap_or_default();
                    self.ids = source.id_class();
                    problems.extend(check_keys(source, &self.files).only(&name));
                    self.note(&name, problems, &mut changed);
                }
                Err(error) => {
                    self.unchecked = Some(error.message);
                    if error.kind == SourceErrorKind::Unavailable {
                        break;
                    }
                }
            }
        }
        changed
    }

    fn note(&mut self, name: &JobName, found: QueryProblems, changed: &mut Changed) {
        let Some(job) = self.files.jobs().get(name) else { return };
        let of_tenants = if job.scope == Scope::Tenants { found.tenants } else { Vec::new() };
        let problems: Vec<_> =
            of_tenants.into_iter().chain(found.jobs.into_values().flatten()).collect();
        let standing = if problems.is_empty() {
            self.good.insert(name.clone(), Arc::clone(job));
            Standing::Good
        } else {
            Standing::Rejected(problems)
        };
        let before = self.standings.insert(name.clone(), standing);
        match (before, self.standings.get(name)) {
            (Some(Standing::Rejected(_)), Some(Standing::Good)) => {
                changed.mended.push(name.clone());
                changed.anything = true;
            }
            (Some(Standing::Rejected(before)), Some(Standing::Rejected(now))) => {
                changed.anything |= shown(before.iter()) != shown(now.iter());
            }
            (_, Some(Standing::Rejected(_))) => changed.anything = true,
            (_, Some(Standing::Good | Standing::Unchecked) | None) => {}
        }
    }

    /// The jobs in use. A held job is among them, but disabled: nothing runs it, and its keys still
    /// belong to it.
    pub(super) fn in_use(&self) -> Jobs {
        let rejected = self.rejected();
        let mut jobs = self.files.jobs().clone();
        for (name, _) in &rejected {
            let version = self.older(name).or_else(|| {
                let job = Job { enabled: false, ..Job::clone(jobs.get(*name)?) };
                Some(Arc::new(job))
            });
            if let Some(version) = version {
                jobs.insert((*name).clone(), version);
            }
        }
        jobs
    }

    /// Where the values of the jobs in use come from that are no defaults. A job is left out while an older version
    /// of its file is in use, whose lines are not known any more.
    pub(super) fn origins(&self, settings: &Settings) -> BTreeMap<JobName, Origins> {
        let rejected: BTreeSet<&JobName> =
            self.rejected().into_iter().map(|(name, _)| name).collect();
        let of_job = |name: &JobName| {
            let is_rejected = rejected.contains(name);
            if is_rejected && self.older(name).is_some() {
                return None;
            }
            let (file, lines) = self.files.lines(name)?;
            let line = |(field, line): (&str, usize)| {
                (field.to_owned(), format!("{}:{line}", file.display()))
            };
            // What a setting says holds for a field that the file leaves out.
            let mut origins: Origins = from_settings(settings).collect();
            origins.extend(lines.into_iter().map(line));
            if is_rejected {
                let held = "the job is held: the database refuses its query".to_owned();
                origins.insert("enabled".to_owned(), held);
            }
            Some((name.clone(), origins))
        };
        self.files.jobs().keys().filter_map(of_job).collect()
    }

    /// The last good version of a job whose newest version is rejected. `None` if it could write
    /// the same key as the newest version of another job.
    fn older(&self, name: &JobName) -> Option<Arc<Job>> {
        let older = self.good.get(name)?;
        let others = self.files.jobs().iter().filter(|(other, _)| *other != name);
        let clashes = |(_, other): (&JobName, &Arc<Job>)| can_write_one_key(older, other, self.ids);
        (!others.into_iter().any(clashes)).then(|| Arc::clone(older))
    }

    pub(super) fn rejected(&self) -> Vec<(&JobName, &[Problem])> {
        let mut rejected = Vec::new();
        for (name, standing) in &self.standings {
            match standing {
                Standing::Rejected(problems) => rejected.push((name, problems.as_slice())),
                Standing::Good | Standing::Unchecked => {}
            }
        }
        rejected
    }

    /// The rejected jobs as HTTP shows them.
    pub(super) fn rejections(&self) -> Rejections {
        let rejection = |(name, problems): (&JobName, &[Problem])| {
            let older_in_use = self.older(name).is_some();
            let problems = problems.iter().map(rejected_for).collect();
            (name.clone(), Rejection { problems, older_in_use })
        };
        self.rejected().into_iter().map(rejection).collect()
    }

    /// The rejected jobs' problems as the log shows them. A problem of the tenant query appears
    /// once.
    pub(super) fn problems(&self) -> String {
        shown(self.rejected().into_iter().flat_map(|(_, problems)| problems))
    }

    /// How many jobs were not checked, and why.
    pub(super) fn unchecked(&self) -> Option<(usize, &str)> {
        let unchecked = |standing: &&Standing| matches!(standing, Standing::Unchecked);
        let count = self.standings.values().filter(unchecked).count();
        self.unchecked.as_deref().filter(|_| count > 0).map(|why| (count, why))
    }
}

/// The fields whose defaults are settings, with the origins of those that somebody set.
fn from_settings(settings: &Settings) -> impl Iterator<Item = (String, String)> {
    const FIELDS: [(&str, &str); 2] =
        [("batch", "runner.batch"), ("concurrency", "runner.concurrency")];
    FIELDS.into_iter().filter_map(|(field, key)| {
        let setting = settings.in_use.iter().find(|setting| setting.key == key)?;
        let is_set = setting.origin != Origin::Unset;
        is_set.then(|| (field.to_owned(), format!("{} (`{key}`)", setting.origin)))
    })
}

fn can_write_one_key(one: &Job, other: &Job, ids: IdClass) -> bool {
    let keys = one.keys.iter().flat_map(|key| other.keys.iter().map(move |of| (key, of)));
    one.enabled
        && other.enabled
        && keys.into_iter().any(|(a, b)| a.template.may_equal(&b.template, ids))
}

/// A problem as HTTP shows it.
pub(super) fn rejected_for(problem: &Problem) -> RejectedFor {
    RejectedFor {
        file: problem.file().display().to_string(),
        line: problem.line_and_column().map(|(line, _)| line),
        message: problem.message().to_owned(),
        hint: problem.hint_text().map(str::to_owned),
    }
}

fn shown<'a>(problems: impl Iterator<Item = &'a Problem>) -> String {
    let problems = Problems::new(problems.cloned());
    let mut shown: Vec<String> = Vec::new();
    for problem in problems.iter().map(|problem| problem.render(false)) {
        if shown.last() != Some(&problem) {
            shown.push(problem);
        }
    }
    shown.join("\n\n")
}
