//! What the worker remembers of each job's last runs, in memory of a fixed size: lists and boards are drawn from it,
//! and none of them asks the history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::domain::job::JobName;
use crate::domain::run::{
    FullRun, Outcome, RunBrief, RunFailure, RunId, RunRecord, SkipReason, Trigger,
};
use crate::domain::share::Shares;
use crate::domain::whole;

/// How many runs of a job are remembered.
pub const MOST_RUNS: usize = 50;
/// How many skipped runs of a job are remembered.
pub const MOST_SKIPS: usize = 20;

/// The last runs of all jobs.
#[derive(Debug)]
pub struct Recent {
    /// The shares that all runs together are for.
    whole: Shares,
    jobs: Mutex<BTreeMap<JobName, RecentRuns>>,
}

impl Default for Recent {
    fn default() -> Self {
        Self::for_shares(Shares::ALL)
    }
}

/// The last runs of one job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecentRuns {
    /// The runs, oldest first, the parts of a fleet's run as one. Runs for changes that ended `ok` are not among them.
    pub runs: VecDeque<RunBrief>,
    /// When the last `ok` run over all tenants ended. In a fleet, runs for some shares count for these: it is the moment of
    /// the share whose last `ok` run is the oldest.
    pub last_success_at: Option<DateTime<Utc>>,
    /// The last run that came to every tenant.
    pub last_full: Option<FullRun>,
    /// The last run over all tenants that was not `ok`. A run for some tenants says nothing about its job: the table of
    /// tenants that are not warm has what it left undone.
    pub failure: Option<RunFailure>,
    /// Runs that were due or asked for and did not happen, oldest first.
    pub skips: VecDeque<(DateTime<Utc>, SkipReason)>,
    /// The parts of each of the runs that has parts.
    pub(crate) parts: BTreeMap<RunId, Vec<(RunBrief, FullRun)>>,
    /// When the last `ok` run over all tenants of these shares ended: each share once.
    pub(crate) successes: Vec<(Shares, DateTime<Utc>)>,
}

impl RecentRuns {
    /// Remembers a run; `whole` are the shares that all runs together are for.
    fn note(&mut self, record: &RunRecord, whole: Shares) {
        let full = if let Some((run, _)) = record.part_of() {
            self.note_part(run, record, whole)
        } else {
            self.insert(record.brief());
            let came_to_all = record.shares.is_none_or(|shares| shares.has_all(whole));
            FullRun::of(record).filter(|_| came_to_all)
        };
        let finished_at = record.finished_at;
        match record.outcome {
            _ if !record.is_for_all() && !is_takeover(record) => {}
            Outcome::Ok => self.succeeded(record.shares, finished_at, whole),
            Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled => {
                let known = self.failure.as_ref().map(|failure| failure.finished_at);
                if known <= Some(finished_at) {
                    let failure = record.report.failures.first().cloned();
                    let (run, outcome) = (record.listed_id(), record.outcome);
                    self.failure = Some(RunFailure { run, finished_at, outcome, failure });
                }
            }
        }
        if let Some(full) = full
            && self.last_full.is_none_or(|known| known.started_at <= full.started_at)
        {
            self.last_full = Some(full);
        }
    }

    /// Puts a run in its place, if it is not there already.
    fn insert(&mut self, brief: RunBrief) {
        if self.runs.iter().any(|known| known.id == brief.id) {
            return;
        }
        let order = |brief: &RunBrief| (brief.started_at, brief.id);
        let place = self.runs.partition_point(|known| order(known) < order(&brief));
        self.runs.insert(place, brief);
        if self.runs.len() > MOST_RUNS
            && let Some(oldest) = self.runs.pop_front()
        {
            self.parts.remove(&oldest.id);
        }
    }

    /// Adds a part to its run; the run's costs, if its parts came to every tenant.
    fn note_part(&mut self, run: RunId, record: &RunRecord, whole: Shares) -> Option<FullRun> {
        let parts = self.parts.entry(run).or_default();
        if parts.iter().all(|(part, _)| part.id != record.id) {
            parts.push((record.brief(), FullRun::costs(record)));
        }
        let (brief, costs) = whole::brief(run, parts)?;
        let came_to_all = parts.iter().all(|(part, _)| part.came_to_all())
            && brief.shares.is_some_and(|shares| shares.has_all(whole));
        self.runs.retain(|known| known.id != run);
        self.insert(brief);
        came_to_all.then_some(costs)
    }

    fn succeeded(&mut self, shares: Option<Shares>, at: DateTime<Utc>, whole: Shares) {
        let mut new = shares.unwrap_or(Shares::ALL);
        for (known, when) in &mut self.successes {
            if *when <= at {
                *known = *known - new;
            } else {
                new = new - *known;
            }
        }
        self.successes.push((new, at));
        self.successes.retain(|(shares, _)| !shares.is_empty());
        let all = self.successes.iter().fold(Shares::NONE, |all, (shares, _)| all | *shares);
        let asked = self.successes.iter().filter(|(shares, _)| !(*shares & whole).is_empty());
        self.last_success_at = asked.map(|(_, at)| *at).min().filter(|_| all.has_all(whole));
    }

    /// The last run over all tenants that was not `ok`, unless an `ok` one came after it.
    pub fn open_failure(&self) -> Option<&RunFailure> {
        self.failure.as_ref().filter(|failure| Some(failure.finished_at) > self.last_success_at)
    }
}

/// Whether it was for all tenants of shares that the worker had taken.
fn is_takeover(record: &RunRecord) -> bool {
    record.trigger == Trigger::Startup && record.shares.is_some()
}

impl Recent {
    /// Runs that are for these shares together: those of one worker alone, or of a fleet.
    pub fn for_shares(whole: Shares) -> Self {
        Self { whole, jobs: Mutex::default() }
    }

    /// Remembers a run that ended, or a part of one, in whatever order they come.
    pub(crate) fn note(&self, record: &RunRecord) {
        self.lock().entry(record.job.clone()).or_default().note(record, self.whole);
    }

    /// Remembers a run that did not happen.
    pub(crate) fn note_skip(&self, job: &JobName, at: DateTime<Utc>, reason: SkipReason) {
        let mut jobs = self.lock();
        let skips = &mut jobs.entry(job.clone()).or_default().skips;
        skips.push_back((at, reason));
        if skips.len() > MOST_SKIPS {
            skips.pop_front();
        }
    }

    /// Forgets the jobs that no longer exist.
    pub(crate) fn keep_jobs(&self, is_kept: impl Fn(&JobName) -> bool) {
        self.lock().retain(|job, _| is_kept(job));
    }

    /// All jobs with runs.
    pub fn all(&self) -> BTreeMap<JobName, RecentRuns> {
        self.lock().clone()
    }

    /// One job.
    pub fn of(&self, job: &JobName) -> RecentRuns {
        self.lock().get(job).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobName, RecentRuns>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::report::{Failure, FailureKind, Report};

    fn record(job: &str, second: i64, outcome: Outcome) -> RunRecord {
        let at = |second| DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap();
        let mut report = Report { queries: 3, ..Report::default() };
        if outcome != Outcome::Ok {
            report.fail(Failure::new(FailureKind::Query, None, format!("at {second}")));
        }
        RunRecord {
            id: RunId::new(at(second)),
            job: JobName::parse(job).unwrap(),
            trigger: Trigger::Schedule,
            outcome,
            due_at: at(second),
            started_at: at(second),
            finished_at: at(second + 1),
            report,
            replica: String::new(),
            version: String::new(),
            all_tenants: Some(true),
            requested_by: None,
            shares: None,
            fleet: None,
            parts: Vec::new(),
        }
    }

    #[test]
    fn runs_are_in_order_however_they_come_and_each_once() {
        let recent = Recent::default();
        let records = [30, 10, 20].map(|second| record("a", second, Outcome::Ok));
        records.iter().chain(&records).for_each(|record| recent.note(record));
        let of_a = recent.of(&records[0].job);
        let ids: Vec<_> = of_a.runs.iter().map(|run| run.id).collect();
        assert_eq!(ids, [records[1].id, records[2].id, records[0].id]);
        assert_eq!(of_a.last_success_at, Some(records[0].finished_at));
        assert_eq!(of_a.last_full.unwrap().started_at, records[0].started_at);
    }

    #[test]
    fn a_failure_is_open_until_a_run_over_all_tenants_is_ok() {
        let recent = Recent::default();
        let failed = record("a", 10, Outcome::Partial);
        recent.note(&failed);
        let open = recent.of(&failed.job);
        assert_eq!(open.open_failure().unwrap().failure.as_ref().unwrap().message, "at 10");
        assert_eq!(open.last_full.unwrap().queries, 3, "it came to every tenant");
        recent.note(&record("a", 5, Outcome::Failed));
        assert_eq!(recent.of(&failed.job).open_failure().unwrap().run, failed.id);
        let some = RunRecord { all_tenants: Some(false), ..record("a", 20, Outcome::Ok) };
        recent.note(&some);
        assert!(recent.of(&failed.job).open_failure().is_some(), "it was for some tenants");
        recent.note(&record("a", 30, Outcome::Ok));
        assert!(recent.of(&failed.job).open_failure().is_none());
    }

    #[test]
    fn a_run_for_some_tenants_says_nothing_about_its_job() {
        for trigger in [Trigger::Request, Trigger::Change] {
            let recent = Recent::default();
            let failed = record("a", 10, Outcome::Failed);
            let some = RunRecord { trigger, all_tenants: Some(false), ..failed };
            recent.note(&some);
            assert_eq!(recent.of(&some.job).open_failure(), None);
            // Nor does it hide what the last run over all tenants said.
            let all = record("a", 5, Outcome::Timeout);
            recent.note(&all);
            recent.note(&RunRecord { id: RunId::new(some.started_at), ..some });
            assert_eq!(recent.of(&all.job).open_failure().unwrap().run, all.id);
        }
    }

    fn part(shares: &str, second: i64, outcome: Outcome) -> RunRecord {
        let record = record("a", second, outcome);
        RunRecord {
            shares: Shares::parse(shares),
            due_at: record.due_at - TimeDelta::seconds(second % 10),
            ..record
        }
    }

    #[test]
    fn the_parts_of_a_fleets_run_are_one_run() {
        let recent = Recent::default();
        let parts = [part("0-20", 12, Outcome::Ok), part("21-63", 11, Outcome::Partial)];
        let job = &parts[0].job;
        recent.note(&parts[0]);
        assert_eq!(recent.of(job).last_full, None, "other shares are missing");
        parts.iter().chain(&parts).for_each(|part| recent.note(part));
        recent.note(&part("0-63", 25, Outcome::Ok));
        let of_a = recent.of(job);
        let run = of_a.runs[0];
        assert_eq!((of_a.runs.len(), run.outcome), (2, Outcome::Partial));
        assert_eq!((run.id, run.started_at), (parts[0].listed_id(), parts[1].started_at));
        assert_eq!(of_a.last_full.unwrap().queries, 3, "of the run of 25");
        assert_eq!(of_a.failure.as_ref().unwrap().run, run.id);
        assert_eq!(of_a.open_failure(), None);
    }

    #[test]
    fn a_job_succeeded_when_the_last_of_its_shares_did() {
        let recent = Recent::default();
        let first = part("0-20", 10, Outcome::Ok);
        let success = || recent.of(&first.job).last_success_at;
        recent.note(&first);
        assert_eq!(success(), None, "the other shares were never warm");
        // To take shares is to start for them.
        let taken = RunRecord {
            trigger: Trigger::Startup,
            all_tenants: Some(false),
            ..part("21-63", 20, Outcome::Ok)
        };
        recent.note(&taken);
        assert_eq!(success(), Some(first.finished_at));
        recent.note(&part("0-20", 40, Outcome::Ok));
        assert_eq!(success(), Some(taken.finished_at));
        recent.note(&part("0-63", 30, Outcome::Ok));
        assert_eq!(success(), Some(part("", 30, Outcome::Ok).finished_at));
        let alone = Recent::for_shares(Shares::parse("0-20").unwrap());
        alone.note(&first);
        assert_eq!(alone.of(&first.job).last_success_at, Some(first.finished_at));
        assert!(alone.of(&first.job).last_full.is_some(), "its shares are all it is for");
    }

    #[test]
    fn two_hundred_jobs_with_ten_thousand_runs_take_no_more_than_their_rings() {
        let recent = Recent::default();
        for number in 0..200 {
            let job = format!("j{number}");
            let mut one = record(&job, 0, Outcome::Partial);
            for second in 0..10_000 {
                let at = DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap();
                (one.id, one.started_at) = (RunId::new(at), at);
                recent.note(&one);
                recent.note_skip(&one.job, at, SkipReason::Overlap);
            }
        }
        let one = record("j0", 0, Outcome::Ok);
        for second in 0..2_000 {
            let at = DateTime::from_timestamp(1_700_020_000 + second, 0).unwrap();
            for shares in ["0-30", "31-63"] {
                let shares = Shares::parse(shares);
                let (id, started_at, due_at) = (RunId::new(at), at, at);
                recent.note(&RunRecord {
                    id,
                    shares,
                    due_at,
                    started_at,
                    finished_at: at,
                    ..one.clone()
                });
            }
        }
        let jobs = recent.lock();
        assert_eq!(jobs.len(), 200);
        for of_job in jobs.values() {
            assert_eq!((of_job.runs.len(), of_job.skips.len()), (MOST_RUNS, MOST_SKIPS));
            assert!(of_job.runs.capacity() <= 2 * MOST_RUNS, "{}", of_job.runs.capacity());
            assert!(of_job.skips.capacity() <= 2 * MOST_SKIPS + 8);
            assert!(of_job.parts.len() <= MOST_RUNS && of_job.successes.len() <= 2);
        }
    }
}
