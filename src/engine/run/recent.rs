//! What the worker remembers of each job's last runs, in memory of a fixed size: lists and boards are drawn from it,
//! and none of them asks the history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::domain::job::JobName;
use crate::domain::run::{FullRun, Outcome, RunBrief, RunFailure, RunRecord, SkipReason};

/// How many runs of a job are remembered.
pub const MOST_RUNS: usize = 50;
/// How many skipped runs of a job are remembered.
pub const MOST_SKIPS: usize = 20;

/// The last runs of all jobs.
#[derive(Debug, Default)]
pub struct Recent(Mutex<BTreeMap<JobName, RecentRuns>>);

/// The last runs of one job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecentRuns {
    /// The runs, oldest first. Runs for changes that ended `ok` are not among them.
    pub runs: VecDeque<RunBrief>,
    /// When the last `ok` run over all tenants ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// The last run that came to every tenant.
    pub last_full: Option<FullRun>,
    /// The last run over all tenants that was not `ok`. A run for some tenants says nothing about its job: the table of
    /// tenants that are not warm has what it left undone.
    pub failure: Option<RunFailure>,
    /// Runs that were due or asked for and did not happen, oldest first.
    pub skips: VecDeque<(DateTime<Utc>, SkipReason)>,
}

impl RecentRuns {
    fn note(&mut self, record: &RunRecord) {
        let brief = record.brief();
        let order = |brief: &RunBrief| (brief.started_at, brief.id);
        let place = self.runs.partition_point(|known| order(known) < order(&brief));
        if self.runs.get(place).is_none_or(|known| known.id != brief.id) {
            self.runs.insert(place, brief);
        }
        if self.runs.len() > MOST_RUNS {
            self.runs.pop_front();
        }
        let finished_at = record.finished_at;
        match record.outcome {
            _ if !record.is_for_all() => {}
            Outcome::Ok => self.last_success_at = self.last_success_at.max(Some(finished_at)),
            Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled => {
                let known = self.failure.as_ref().map(|failure| failure.finished_at);
                if known <= Some(finished_at) {
                    let failure = record.report.failures.first().cloned();
                    let (run, outcome) = (record.id, record.outcome);
                    self.failure = Some(RunFailure { run, finished_at, outcome, failure });
                }
            }
        }
        if let Some(full) = FullRun::of(record)
            && self.last_full.is_none_or(|known| known.started_at <= full.started_at)
        {
            self.last_full = Some(full);
        }
    }

    /// The last run over all tenants that was not `ok`, unless an `ok` one came after it.
    pub fn open_failure(&self) -> Option<&RunFailure> {
        self.failure.as_ref().filter(|failure| Some(failure.finished_at) > self.last_success_at)
    }
}

impl Recent {
    /// Remembers a run that ended, in whatever order they come.
    pub(crate) fn note(&self, record: &RunRecord) {
        self.lock().entry(record.job.clone()).or_default().note(record);
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::report::{Failure, FailureKind, Report};
    use crate::domain::run::{RunId, Trigger};

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
        let jobs = recent.lock();
        assert_eq!(jobs.len(), 200);
        for of_job in jobs.values() {
            assert_eq!((of_job.runs.len(), of_job.skips.len()), (MOST_RUNS, MOST_SKIPS));
            assert!(of_job.runs.capacity() <= 2 * MOST_RUNS, "{}", of_job.runs.capacity());
            assert!(of_job.skips.capacity() <= 2 * MOST_SKIPS + 8);
        }
    }
}
