//! A run together with its follow-ups, for a command; in a worker the scheduler starts the follow-ups.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use crate::domain::job::{Job, Scope};
use crate::domain::pending::FOLLOW_UP;
use crate::domain::report::FailedTenant;
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::engine::run::limit::Priority;
use crate::engine::run::{Failed, Handover, RunResult, RunSpec, Runner, Stops, Unverified};

/// How often unverified tenants are tried again once the run itself has ended. More tries would keep a deploy
/// waiting for a tenant whose data never stops changing; the worker goes on with that tenant.
const MOST_AFTERWARDS: u32 = 5;

/// The result of a run and its follow-ups.
#[derive(Clone, Debug)]
pub struct Warmed {
    /// The run's record, with the follow-ups added to it.
    pub record: RunRecord,
    /// The tenants that failed.
    pub failed: Vec<FailedTenant>,
}

/// Does a run. A second after each of its batches, it starts a follow-up for the tenants that the batch left
/// unverified, beside the run, so that their keys do not expire while the run goes on. A stop ends both.
/// `is_over` is called when the run itself has ended.
pub async fn run_with_follow_ups(
    runner: Arc<Runner>,
    run: RunSpec,
    stops: Stops,
    is_over: impl FnOnce(),
) -> Warmed {
    let mut follow_ups = FollowUps {
        job: Arc::clone(&run.job),
        handover: Arc::clone(&run.handover),
        stops: stops.clone(),
        waiting: Vec::new(),
        under_way: FuturesUnordered::new(),
        tries: HashMap::new(),
        ended: Vec::new(),
        afterwards: false,
        runner: Arc::clone(&runner),
    };
    let run = runner.run(run, stops);
    tokio::pin!(run);
    let RunResult { mut record, failed: Failed { tenants: mut failed, .. } } = tokio::select! {
        ended = &mut run => ended,
        never = follow_ups.go_on() => match never {},
    };
    is_over();
    follow_ups.end().await;
    for (asked, RunResult { record: more, failed: also }) in follow_ups.ended {
        add_follow_up(&mut record, asked, more);
        failed.extend(also.tenants);
    }
    Warmed { record, failed }
}

/// The follow-ups of a run.
struct FollowUps {
    runner: Arc<Runner>,
    job: Arc<Job>,
    handover: Arc<Handover>,
    stops: Stops,
    waiting: Vec<Waiting>,
    /// The follow-ups under way, each with the number of its tenants.
    under_way: FuturesUnordered<BoxFuture<'static, (u64, RunResult)>>,
    /// For each follow-up, how many follow-ups in a row came after the run, up to and including this one.
    tries: HashMap<RunId, u32>,
    ended: Vec<(u64, RunResult)>,
    /// Whether the run itself has ended.
    afterwards: bool,
}

/// Unverified tenants whose follow-up has not begun.
struct Waiting {
    due_at: Duration,
    unverified: Unverified,
    tries: u32,
}

impl FollowUps {
    /// Starts follow-ups when they are due; never ends.
    async fn go_on(&mut self) -> Infallible {
        loop {
            self.turn().await;
        }
    }

    /// Goes on until every tenant is verified or has been tried often enough.
    async fn end(&mut self) {
        self.afterwards = true;
        self.note_unverified();
        while !self.under_way.is_empty() || !self.waiting.is_empty() {
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        let clock = Arc::clone(&self.runner.clock);
        let due_at = self.waiting.iter().map(|waiting| waiting.due_at).min();
        let pause = due_at.unwrap_or_default().saturating_sub(clock.monotonic());
        let is_waiting = due_at.is_some();
        tokio::select! {
            biased;
            Some(ended) = self.under_way.next() => self.ended.push(ended),
            () = self.handover.rung() => {}
            () = self.stops.requested(), if is_waiting => self.waiting.clear(),
            () = clock.sleep(pause), if is_waiting => self.start_due(clock.monotonic()),
        }
        self.note_unverified();
    }

    fn note_unverified(&mut self) {
        let due_at = self.runner.clock.monotonic() + FOLLOW_UP;
        for ((_, run), unverified) in self.handover.take() {
            let tries = self.tries.get(&run).copied().unwrap_or_default();
            if tries < MOST_AFTERWARDS {
                self.waiting.push(Waiting { due_at, unverified, tries });
            }
        }
    }

    fn start_due(&mut self, now: Duration) {
        let (mut unverified, mut tries) = (Unverified::default(), 0);
        for due in self.waiting.extract_if(.., |waiting| waiting.due_at <= now) {
            unverified.add(due.unverified);
            tries = due.tries.max(tries);
        }
        if unverified.is_empty() {
            return;
        }
        let asked = unverified.tenants.len().max(1) as u64;
        let tenants = match self.job.scope {
            Scope::Global => None,
            Scope::Tenants => Some(unverified.tenants.into_iter().collect()),
        };
        let spec = RunSpec {
            trigger: Trigger::Change,
            priority: Priority::Urgent,
            most_failed: usize::MAX,
            handover: Arc::clone(&self.handover),
            ..RunSpec::on_request(self.runner.clock.as_ref(), &self.job, tenants)
        };
        self.tries.insert(spec.id, tries + u32::from(self.afterwards));
        let run = Arc::clone(&self.runner).run(spec, self.stops.clone());
        self.under_way.push(Box::pin(async move { (asked, run.await) }));
    }
}

/// Adds a follow-up for this many tenants to the record of the run that left them unverified.
fn add_follow_up(record: &mut RunRecord, asked: u64, follow_up: RunRecord) {
    let RunRecord { outcome, finished_at, report: more, .. } = follow_up;
    let report = &mut record.report;
    let covered = report.tenants.fenced.min(asked);
    let (still_fenced, failed) = match outcome {
        Outcome::Ok | Outcome::Partial | Outcome::Failed => {
            let still_fenced = more.tenants.fenced.min(covered);
            let failed = more.tenants.failed.min(covered - still_fenced);
            more.failures.into_iter().for_each(|failure| report.fail(failure));
            report.add_failed(more.failed_tenants, Vec::new());
            (still_fenced, failed)
        }
        // The follow-up was stopped: the tenants that it did not reach are still unverified.
        Outcome::Timeout | Outcome::Cancelled => (covered.saturating_sub(more.tenants.ok), 0),
    };
    report.tenants.fenced -= covered - still_fenced;
    report.tenants.failed += failed;
    report.tenants.ok += covered - still_fenced - failed;
    report.keys.fenced = match report.tenants.fenced {
        0 => 0,
        _ => report.keys.fenced.saturating_sub(more.keys.written + more.keys.failed),
    };
    report.keys.written += more.keys.written;
    report.keys.removed += more.keys.removed;
    report.keys.failed += more.keys.failed;
    report.bytes += more.bytes;
    report.queries += more.queries;
    report.retries += more.retries;
    record.finished_at = record.finished_at.max(finished_at);
    if record.outcome == Outcome::Ok {
        record.outcome = record.report.outcome();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::job::JobName;
    use crate::domain::report::{Failure, FailureKind, KeyCounts, Report, TenantCounts};

    /// The record of a run with these counts of tenants; each tenant has two keys.
    fn record(outcome: Outcome, ok: u64, failed: u64, fenced: u64) -> RunRecord {
        let at = chrono::DateTime::UNIX_EPOCH;
        let total = ok + failed + fenced;
        let mut report = Report {
            tenants: TenantCounts { total, ok, failed, fenced },
            keys: KeyCounts { written: 2 * ok, fenced: 2 * fenced, ..KeyCounts::default() },
            ..Report::default()
        };
        if failed > 0 {
            let message = "division by zero".to_owned();
            report.fail(Failure::new(FailureKind::Query, None, message));
        }
        RunRecord {
            id: RunId(Uuid::nil()),
            job: JobName::parse("list").unwrap(),
            trigger: Trigger::Request,
            outcome,
            due_at: at,
            started_at: at,
            finished_at: at,
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

    /// The counts of tenants and keys after one more run.
    fn after(
        first: &mut RunRecord,
        asked: u64,
        follow_up: RunRecord,
    ) -> ((u64, u64, u64), (u64, u64)) {
        add_follow_up(first, asked, follow_up);
        let Report { tenants, keys, .. } = &first.report;
        assert_eq!(tenants.done(), tenants.total);
        ((tenants.ok, tenants.failed, tenants.fenced), (keys.written, keys.fenced))
    }

    #[test]
    fn what_follow_ups_verify_counts_as_warm_and_the_rest_stays_fenced() {
        let mut first = record(Outcome::Ok, 7, 0, 3);
        let follow_up = record(Outcome::Ok, 2, 0, 1);
        assert_eq!(after(&mut first, 3, follow_up), ((9, 0, 1), (18, 2)));
        assert_eq!(first.outcome, Outcome::Ok);
        let cut_off = record(Outcome::Cancelled, 0, 0, 0);
        assert_eq!(after(&mut first, 1, cut_off), ((9, 0, 1), (18, 2)));
        assert_eq!(first.outcome, Outcome::Ok);
        let gone = record(Outcome::Ok, 0, 0, 0);
        assert_eq!(after(&mut first, 1, gone), ((10, 0, 0), (18, 0)));
    }

    #[test]
    fn a_follow_up_for_some_of_the_fenced_tenants_says_nothing_of_the_others() {
        let mut first = record(Outcome::Ok, 7, 0, 3);
        let again_fenced = record(Outcome::Ok, 0, 0, 1);
        assert_eq!(after(&mut first, 1, again_fenced), ((7, 0, 3), (14, 6)));
        let verified = record(Outcome::Ok, 2, 0, 0);
        assert_eq!(after(&mut first, 2, verified), ((9, 0, 1), (18, 2)));
    }

    #[test]
    fn hazard_27_a_follow_up_that_fails_makes_the_pass_fail() {
        let mut first = record(Outcome::Ok, 7, 0, 3);
        let follow_up = record(Outcome::Partial, 2, 1, 0);
        assert_eq!(after(&mut first, 3, follow_up), ((9, 1, 0), (18, 0)));
        assert_eq!(first.outcome, Outcome::Partial);
        assert_eq!(first.report.failures.len(), 1);
    }
}
