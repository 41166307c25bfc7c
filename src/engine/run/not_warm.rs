//! The tenants that are not warm, and why: what the last batch that covered each of them left undone.
//!
//! The table is bounded and lives in memory. After the worker's start it is empty, and each job's first run over all
//! tenants fills it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use super::spec::RunSpec;
use crate::domain::job::{JobName, Scope};
use crate::domain::report::{FailureKind, Report};
use crate::domain::share::{Share, Shares};
use crate::domain::tenant::{Batch, TenantId, Tenants};
use crate::engine::ports::Ports;
use crate::observe::metric::Metrics;

/// How many tenants are remembered by name, over all jobs. Further ones are counted.
pub const MOST_NAMED: usize = 10_000;
/// How much of a message is kept, in bytes.
const LONGEST_MESSAGE: usize = 500;

/// A tenant's id; `None` for the one slot of a job without tenants.
pub type Owner = Option<TenantId>;

/// Why a tenant is not warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Something failed.
    Failed(FailureKind),
    /// It is unverified: its data kept changing while it was warmed, or it is not known whether it did.
    Unverified,
}

impl Reason {
    /// The reason's name in filters: the kind of failure, or `fenced`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed(kind) => kind.as_str(),
            Self::Unverified => "fenced",
        }
    }
}

/// What is known of a tenant that is not warm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Why it is not.
    pub reason: Reason,
    /// What happened at the last try.
    pub message: Arc<str>,
    /// When the first try failed since it was last warm.
    pub since: DateTime<Utc>,
    /// How many tries have failed since then.
    pub tries: u64,
}

/// A tenant that is not warm in a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The job.
    pub job: JobName,
    /// The tenant.
    pub owner: Owner,
    /// What is known.
    pub entry: Entry,
}

/// Which tenants are listed, in the order of their jobs and ids.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Those of one job alone.
    pub job: Option<JobName>,
    /// Those with this reason alone, by its name.
    pub reason: Option<String>,
    /// Those that come after this one.
    pub after: Option<(JobName, Owner)>,
    /// At most this many.
    pub limit: usize,
}

/// A part of the list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The tenants.
    pub tenants: Vec<Listed>,
    /// How many match, over all pages.
    pub total: u64,
    /// Whether more follow.
    pub has_more: bool,
}

/// The table.
#[derive(Debug, Default)]
pub struct NotWarm(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    jobs: BTreeMap<JobName, OfJob>,
    /// How many tenants all jobs name.
    named: usize,
}

/// The tenants of one job.
#[derive(Debug, Default)]
struct OfJob {
    entries: BTreeMap<Owner, Entry>,
    /// Tenants for which there was no room, counted since the last run over all tenants began.
    unnamed: u64,
    /// The same, counted by the run over all tenants before: it counts until the next one has ended its count.
    unnamed_before: u64,
}

impl OfJob {
    fn unnamed(&self) -> u64 {
        self.unnamed.max(self.unnamed_before)
    }

    fn count(&self) -> u64 {
        self.entries.len() as u64 + self.unnamed()
    }
}

impl Table {
    fn fail(&mut self, job: &JobName, owner: Owner, failed: Failed<'_>, now: DateTime<Utc>) {
        let Failed { reason, message } = failed;
        let has_room = self.named < MOST_NAMED;
        let of_job = self.jobs.entry(job.clone()).or_default();
        if let Some(known) = of_job.entries.get_mut(&owner) {
            known.reason = reason;
            known.message = clipped(message);
            known.tries += 1;
        } else if has_room {
            let entry = Entry { reason, message: clipped(message), since: now, tries: 1 };
            of_job.entries.insert(owner, entry);
            self.named += 1;
        } else {
            of_job.unnamed += 1;
        }
    }

    /// Keeps the entries of a job for which `is_kept` is true.
    fn retain(&mut self, job: &JobName, mut is_kept: impl FnMut(&Owner) -> bool) {
        let Some(of_job) = self.jobs.get_mut(job) else { return };
        let before = of_job.entries.len();
        of_job.entries.retain(|owner, _| is_kept(owner));
        self.named -= before - of_job.entries.len();
    }
}

/// A failure of one tenant.
#[derive(Clone, Copy)]
struct Failed<'f> {
    reason: Reason,
    message: &'f Arc<str>,
}

impl NotWarm {
    /// How many tenants of each job are not warm. A job is missing until one of its batches has ended.
    pub fn counts(&self) -> BTreeMap<JobName, u64> {
        self.lock().jobs.iter().map(|(job, of_job)| (job.clone(), of_job.count())).collect()
    }

    /// How many tenants are not warm in some job. Those that the table does not name may be the same in several jobs;
    /// the largest number of a job counts.
    pub fn tenants(&self) -> u64 {
        let table = self.lock();
        let named: HashSet<&Owner> =
            table.jobs.values().flat_map(|of_job| of_job.entries.keys()).collect();
        let unnamed = table.jobs.values().map(OfJob::unnamed).max().unwrap_or_default();
        named.len() as u64 + unnamed
    }

    /// How many tenants are not warm that the table does not name, in one job or in all.
    pub fn unnamed(&self, job: Option<&JobName>) -> u64 {
        let table = self.lock();
        let wanted = table.jobs.iter().filter(|(name, _)| job.is_none_or(|job| job == *name));
        wanted.map(|(_, of_job)| of_job.unnamed()).sum()
    }

    /// What is known of one tenant, by job.
    pub fn of_tenant(&self, owner: &Owner) -> BTreeMap<JobName, Entry> {
        let table = self.lock();
        let known = |(job, of_job): (&JobName, &OfJob)| {
            Some((job.clone(), of_job.entries.get(owner)?.clone()))
        };
        table.jobs.iter().filter_map(known).collect()
    }

    /// Since when each job has a tenant that is not warm, with the reason that most of its tenants have and the message of
    /// the first of them.
    pub fn summary(&self, job: &JobName) -> Option<Entry> {
        let table = self.lock();
        let entries = &table.jobs.get(job)?.entries;
        let mut by_reason: HashMap<&'static str, u64> = HashMap::new();
        for entry in entries.values() {
            *by_reason.entry(entry.reason.as_str()).or_default() += 1;
        }
        let most = entries.values().max_by_key(|entry| by_reason.get(entry.reason.as_str()))?;
        let since = entries.values().map(|entry| entry.since).min()?;
        let tries = entries.values().map(|entry| entry.tries).max()?;
        Some(Entry { since, tries, ..most.clone() })
    }

    /// A part of the list.
    pub fn page(&self, wanted: &Wanted) -> Page {
        let Wanted { job, reason, after, limit } = wanted;
        let table = self.lock();
        let is_reason =
            |entry: &Entry| reason.as_deref().is_none_or(|reason| entry.reason.as_str() == reason);
        let jobs =
            || table.jobs.iter().filter(|(name, _)| job.as_ref().is_none_or(|job| job == *name));
        let total = jobs()
            .map(|(_, of_job)| of_job.entries.values().filter(|entry| is_reason(entry)).count())
            .sum::<usize>() as u64;
        let mut found = jobs().flat_map(|(name, of_job)| {
            let from = match after {
                Some((job, _)) if name < job => None,
                Some((job, owner)) if name == job => Some(Bound::Excluded(owner)),
                Some(_) | None => Some(Bound::Unbounded),
            };
            let entries = from.map(|from| of_job.entries.range((from, Bound::Unbounded)));
            entries.into_iter().flatten().map(move |(owner, entry)| (name, owner, entry))
        });
        let mut found = found.by_ref().filter(|(_, _, entry)| is_reason(entry)).peekable();
        let listed = |(job, owner, entry): (&JobName, &Owner, &Entry)| Listed {
            job: job.clone(),
            owner: owner.clone(),
            entry: entry.clone(),
        };
        let tenants = found.by_ref().take(*limit).map(listed).collect();
        Page { tenants, total, has_more: found.peek().is_some() }
    }

    /// Forgets the jobs that no longer exist or are disabled.
    pub(crate) fn keep_jobs(&self, is_kept: impl Fn(&JobName) -> bool) {
        let mut table = self.lock();
        table.jobs.retain(|job, _| is_kept(job));
        table.named = table.jobs.values().map(|of_job| of_job.entries.len()).sum();
    }

    /// Forgets the tenants whose shares the worker no longer holds.
    pub(crate) fn keep_shares(&self, held: Shares, metrics: &Metrics) {
        self.in_each_job(metrics, |table, job| {
            table.retain(job, |owner| match owner {
                Some(tenant) => held.has_tenant(tenant.as_str()),
                None => held.has(Share::of_job(job)),
            });
            if let Some(of_job) = table.jobs.get_mut(job).filter(|_| held.is_empty()) {
                (of_job.unnamed, of_job.unnamed_before) = (0, 0);
            }
        });
    }

    /// Forgets the tenants of a job that are no longer active or in these shares: a run over all tenants begins.
    pub(crate) fn keep_tenants(
        &self,
        job: &JobName,
        list: &Tenants,
        own: Shares,
        metrics: &Metrics,
    ) {
        let mut table = self.lock();
        let Some(of_job) = table.jobs.get_mut(job) else { return };
        of_job.unnamed_before = std::mem::take(&mut of_job.unnamed);
        if !of_job.entries.is_empty() {
            let active: HashSet<&str> = list.iter().map(|tenant| tenant.id()).collect();
            table.retain(job, |owner| {
                let is_own = |id: &str| active.contains(id) && own.has_tenant(id);
                owner.as_ref().is_some_and(|tenant| is_own(tenant.as_str()))
            });
        }
        show(&table, job, metrics);
    }

    /// Forgets tenants that are no longer active, in all jobs.
    pub(crate) fn forget(&self, departed: &HashSet<&str>, metrics: &Metrics) {
        let has_left = |tenant: &TenantId| departed.contains(tenant.as_str());
        self.in_each_job(metrics, |table, job| {
            table.retain(job, |owner| !owner.as_ref().is_some_and(has_left));
        });
    }

    /// Records that a tenant of a job failed before it was in a batch.
    pub(crate) fn fail(
        &self,
        spec: &RunSpec,
        tenant: &str,
        (kind, message): (FailureKind, &str),
        ports: &Ports,
    ) {
        let failed = Failed { reason: Reason::Failed(kind), message: &Arc::from(message) };
        let (job, owner) = (&spec.job.name, Some(TenantId::new(tenant)));
        let mut table = self.lock();
        table.fail(job, owner, failed, ports.clock.now());
        show(&table, job, &ports.metrics);
    }

    /// Records what a batch left undone; all its other tenants are warm.
    pub(crate) fn settle(&self, spec: &RunSpec, batch: &Batch, report: &Report, ports: &Ports) {
        let now = ports.clock.now();
        let job = &spec.job.name;
        let mut failed: BTreeMap<Owner, Failed<'_>> = BTreeMap::new();
        let changing: Arc<str> = Arc::from("its data kept changing while it was warmed");
        let unverified = &report.unverified;
        for owner in unverified.tenants.iter().cloned().map(Some) {
            failed.insert(owner, Failed { reason: Reason::Unverified, message: &changing });
        }
        if unverified.global {
            failed.insert(None, Failed { reason: Reason::Unverified, message: &changing });
        }
        for one in &report.failed {
            let reason = Reason::Failed(one.kind);
            let owner = Some(TenantId::new(&one.tenant));
            failed.insert(owner, Failed { reason, message: &one.message });
        }
        let first = report.failures.first();
        let message: Option<Arc<str>> = first.map(|first| first.message.as_str().into());
        if let (Scope::Global, Some(first), Some(message), 1..) =
            (spec.job.scope, first, &message, report.tenants.failed)
        {
            failed.insert(None, Failed { reason: Reason::Failed(first.kind), message });
        }
        let mut table = self.lock();
        let of_job = table.jobs.entry(job.clone()).or_default();
        if !of_job.entries.is_empty() {
            let covered: BTreeSet<Owner> = match spec.job.scope {
                Scope::Global => BTreeSet::from([None]),
                Scope::Tenants => {
                    batch.tenants().map(|tenant| Some(TenantId::new(tenant.id()))).collect()
                }
            };
            table.retain(job, |owner| !covered.contains(owner) || failed.contains_key(owner));
        }
        for (owner, one) in failed {
            table.fail(job, owner, one, now);
        }
        show(&table, job, &ports.metrics);
    }

    /// Changes the tenants of each job, and shows how many are left.
    fn in_each_job(&self, metrics: &Metrics, mut change: impl FnMut(&mut Table, &JobName)) {
        let mut table = self.lock();
        let jobs: Vec<JobName> = table.jobs.keys().cloned().collect();
        for job in &jobs {
            change(&mut table, job);
            show(&table, job, metrics);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(table: &Table, job: &JobName, metrics: &Metrics) {
    if let Some(of_job) = table.jobs.get(job) {
        metrics.set_not_warm(job, of_job.count());
    }
}

fn clipped(message: &Arc<str>) -> Arc<str> {
    if message.len() <= LONGEST_MESSAGE {
        return Arc::clone(message);
    }
    let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end));
    let kept = message.get(..end.unwrap_or_default()).unwrap_or_default();
    format!("{kept}…").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> JobName {
        JobName::parse(name).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "an owner is an option")]
    fn owner(number: usize) -> Owner {
        Some(TenantId::new(format!("t{number:06}")))
    }

    fn now(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    fn fail(table: &NotWarm, name: &str, number: usize, kind: FailureKind, at: i64) {
        let failed = Failed { reason: Reason::Failed(kind), message: &Arc::from("no") };
        table.lock().fail(&job(name), owner(number), failed, now(at));
    }

    fn listed(page: &Page) -> Vec<String> {
        let shown = |one: &Listed| format!("{}/{}", one.job, one.owner.as_ref().unwrap());
        page.tenants.iter().map(shown).collect()
    }

    #[test]
    fn an_entry_keeps_its_first_moment_and_the_last_reason() {
        let table = NotWarm::default();
        fail(&table, "a", 1, FailureKind::Query, 0);
        fail(&table, "a", 1, FailureKind::Locked, 9);
        let entry = table.of_tenant(&owner(1)).remove(&job("a")).unwrap();
        assert_eq!((entry.since, entry.tries), (now(0), 2));
        assert_eq!(entry.reason, Reason::Failed(FailureKind::Locked));
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_repetition() {
        let table = NotWarm::default();
        for number in 0..3 {
            fail(&table, "b", number, FailureKind::Query, 0);
            fail(&table, "a", number, FailureKind::Locked, 0);
        }
        let mut wanted = Wanted { limit: 2, ..Wanted::default() };
        let mut all = Vec::new();
        loop {
            let page = table.page(&wanted);
            assert_eq!(page.total, 6);
            all.extend(listed(&page));
            let last = page.tenants.last().unwrap();
            wanted.after = Some((last.job.clone(), last.owner.clone()));
            if !page.has_more {
                break;
            }
        }
        let expected =
            ["a", "b"].iter().flat_map(|job| (0..3).map(move |n| format!("{job}/t00000{n}")));
        assert_eq!(all, expected.collect::<Vec<_>>());

        let locked = Wanted { reason: Some("locked".to_owned()), limit: 9, ..Wanted::default() };
        assert_eq!(table.page(&locked).total, 3);
        let of_b = Wanted { job: Some(job("b")), limit: 1, ..Wanted::default() };
        let page = table.page(&of_b);
        assert_eq!(
            (listed(&page), page.total, page.has_more),
            (vec!["b/t000000".to_owned()], 3, true)
        );
    }

    #[test]
    fn the_table_is_bounded_and_counts_the_others() {
        let table = NotWarm::default();
        for number in 0..MOST_NAMED + 5 {
            fail(&table, "a", number, FailureKind::Query, 0);
        }
        assert_eq!(table.counts()[&job("a")], (MOST_NAMED + 5) as u64);
        assert_eq!((table.unnamed(None), table.tenants()), (5, (MOST_NAMED + 5) as u64));
        let metrics = Metrics::new();
        table.keep_tenants(&job("a"), &Tenants::default(), Shares::ALL, &metrics);
        assert_eq!(table.unnamed(None), 5, "until the run has counted anew");
        fail(&table, "b", 1, FailureKind::Query, 0);
        assert_eq!(table.counts()[&job("b")], 1, "there is room again");
        table.keep_tenants(&job("a"), &Tenants::default(), Shares::ALL, &metrics);
        assert_eq!(table.counts()[&job("a")], 0);
        table.keep_jobs(|kept| *kept == job("a"));
        assert_eq!(table.counts().len(), 1);
    }

    #[test]
    fn a_long_message_is_clipped_between_characters() {
        let message: Arc<str> = "ä".repeat(LONGEST_MESSAGE).into();
        let kept = clipped(&message);
        assert!(kept.len() < LONGEST_MESSAGE + 4 && kept.ends_with("ä…"), "{kept}");
    }
}
