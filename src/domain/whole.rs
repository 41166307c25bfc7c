//! Runs of a fleet. Each worker runs a due job for the shares that it holds, and keeps a record of that; the records of
//! one job that was due, or requested, at one moment are parts of one run, and are shown as one.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::report::{Outcome, Report};
use super::run::{FullRun, RunBrief, RunId, RunPart, RunRecord};
use super::share::Shares;

/// Puts the parts of each run together, and leaves other records as they are. A run stands where the first of its parts
/// stood.
pub fn together(records: Vec<RunRecord>) -> Vec<RunRecord> {
    let mut places: BTreeMap<RunId, usize> = BTreeMap::new();
    let mut runs: Vec<Vec<RunRecord>> = Vec::new();
    for record in records {
        let place = match record.part_of() {
            Some((run, _)) => *places.entry(run).or_insert(runs.len()),
            None => runs.len(),
        };
        match runs.get_mut(place) {
            Some(parts) => parts.push(record),
            None => runs.push(vec![record]),
        }
    }
    runs.into_iter().filter_map(one).collect()
}

/// The run that these records are parts of; a record that is no part is the run itself. `None` if there is no record.
pub fn one(mut parts: Vec<RunRecord>) -> Option<RunRecord> {
    parts.sort_by_key(RunRecord::place);
    let first = parts.first()?;
    let Some((id, _)) = first.part_of() else { return parts.pop() };
    let spans: Vec<Span> = parts.iter().map(Span::of_record).collect();
    let mut whole = RunRecord {
        id,
        outcome: outcome(&spans),
        finished_at: spans.iter().map(|span| span.finished_at).max()?,
        report: Report::default(),
        shares: Some(union(&spans)),
        replica: names(parts.iter().map(|part| part.replica.as_str())),
        version: names(parts.iter().map(|part| part.version.as_str())),
        requested_by: parts.iter().find_map(|part| part.requested_by.clone()),
        parts: parts.iter().filter_map(RunPart::of).collect(),
        ..first.clone()
    };
    for (part, span) in parts.into_iter().zip(&spans) {
        if !span.was_repeated(&spans) {
            add(&mut whole.report, part.report);
        }
    }
    Some(whole)
}

/// The shares for which nobody ran it, as far as its records tell: nobody held them, or their part has not ended. Empty
/// for a record that sums up no others, and for a run for some tenants alone.
pub fn missing(run: &RunRecord) -> Shares {
    match run.shares {
        Some(shares) if !run.parts.is_empty() && run.is_for_all() => Shares::ALL - shares,
        Some(_) | None => Shares::NONE,
    }
}

/// The least that a list needs of a run, and its costs, by those of its parts. `None` if there is no part.
pub(crate) fn brief(id: RunId, parts: &[(RunBrief, FullRun)]) -> Option<(RunBrief, FullRun)> {
    let spans: Vec<Span> = parts.iter().map(|(part, _)| Span::of_brief(part)).collect();
    let counted = parts.iter().zip(&spans).filter(|(_, span)| !span.was_repeated(&spans));
    let (first, _) = parts.first()?;
    let costs = counted.map(|((_, costs), _)| *costs).reduce(FullRun::and)?;
    let started_at = parts.iter().map(|(part, _)| part.started_at).min()?;
    let finished_at = parts.iter().map(|(part, _)| part.finished_at).max()?;
    let whole = RunBrief {
        id,
        outcome: outcome(&spans),
        started_at,
        finished_at,
        shares: Some(union(&spans)),
        keys: costs.keys,
        ..*first
    };
    Some((whole, FullRun { started_at, finished_at, ..costs }))
}

/// What decides how a part counts.
#[derive(Clone, Copy)]
struct Span {
    shares: Shares,
    outcome: Outcome,
    finished_at: DateTime<Utc>,
    id: RunId,
}

impl Span {
    fn of_record(part: &RunRecord) -> Self {
        let RunRecord { id, shares, outcome, finished_at, .. } = *part;
        Self { shares: shares.unwrap_or_default(), outcome, finished_at, id }
    }

    fn of_brief(part: &RunBrief) -> Self {
        let RunBrief { id, shares, outcome, finished_at, .. } = *part;
        Self { shares: shares.unwrap_or_default(), outcome, finished_at, id }
    }

    /// Whether others did all its shares again later: they had lost the worker that held them.
    fn was_repeated(&self, all: &[Self]) -> bool {
        let is_later = |other: &&Self| (other.finished_at, other.id) > (self.finished_at, self.id);
        let again: Vec<Self> = all.iter().filter(is_later).copied().collect();
        !self.shares.is_empty() && union(&again).has_all(self.shares)
    }
}

fn union(parts: &[Span]) -> Shares {
    parts.iter().fold(Shares::NONE, |all, part| all | part.shares)
}

/// The worst outcome of the parts that count.
fn outcome(parts: &[Span]) -> Outcome {
    let counted = || parts.iter().filter(|part| !part.was_repeated(parts)).map(|part| part.outcome);
    let is_theirs = |outcome: &Outcome| counted().any(|of_part| of_part == *outcome);
    Outcome::ALL.into_iter().rev().find(is_theirs).unwrap_or(Outcome::Ok)
}

fn add(whole: &mut Report, part: Report) {
    let evicted = whole.evicted.max(part.evicted);
    whole.tenants.total += part.tenants.total;
    whole.add(part);
    // Each part counted the evictions of the whole cache.
    whole.evicted = evicted;
}

/// The different names, in their order.
fn names<'n>(all: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<&str> = all.collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobName;
    use crate::domain::report::{Failure, FailureKind};
    use crate::domain::run::Trigger;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    /// A part of the run that was due at 0: 10 tenants, of which one failed if the part is not `ok`.
    fn part(shares: &str, (from, to): (i64, i64), outcome: Outcome, replica: &str) -> RunRecord {
        let mut report = Report { bytes: 5, evicted: 3, ..Report::default() };
        (report.tenants.total, report.tenants.ok, report.keys.written) = (10, 10, 20);
        if outcome != Outcome::Ok {
            report.tenants.ok = 9;
            report.tenants.failed = 1;
            report.fail(Failure::new(FailureKind::Query, None, replica.to_owned()));
        }
        RunRecord {
            id: RunId::new(at(from)),
            job: JobName::parse("a").unwrap(),
            trigger: Trigger::Schedule,
            outcome,
            due_at: at(0),
            started_at: at(from),
            finished_at: at(to),
            report,
            replica: replica.to_owned(),
            version: "1".to_owned(),
            all_tenants: Some(true),
            requested_by: None,
            shares: Shares::parse(shares),
            fleet: None,
            parts: Vec::new(),
        }
    }

    #[test]
    fn fleets_that_keep_one_history_have_runs_of_their_own() {
        let blue = part("0-63", (1, 5), Outcome::Ok, "a");
        let green = RunRecord {
            fleet: Some("green:".to_owned()),
            ..part("0-63", (1, 5), Outcome::Failed, "b")
        };
        let runs = together(vec![blue.clone(), green.clone()]);
        let outcomes: Vec<_> = runs.iter().map(|run| (run.id, run.outcome)).collect();
        assert_eq!(
            outcomes,
            [(blue.listed_id(), Outcome::Ok), (green.listed_id(), Outcome::Failed)]
        );
        assert_ne!(blue.listed_id(), green.listed_id());
    }

    #[test]
    fn parts_add_up_and_shares_that_nobody_ran_are_named() {
        let parts = vec![
            part("0-20", (1, 5), Outcome::Ok, "b"),
            part("21-40", (2, 4), Outcome::Partial, "a"),
        ];
        let run = one(parts.clone()).unwrap();
        assert_eq!(run.id, RunId::of_fleet("", &run.job, Trigger::Schedule, at(0)));
        assert_eq!(run.id.millisecond(), Some(at(0)));
        assert_eq!((run.started_at, run.finished_at), (at(1), at(5)));
        assert_eq!(run.outcome, Outcome::Partial);
        assert_eq!((run.report.tenants.total, run.report.tenants.ok), (20, 19));
        assert_eq!((run.report.keys.written, run.report.bytes), (40, 10));
        assert_eq!(run.report.evicted, 3, "of the whole cache");
        assert_eq!((run.replica.as_str(), run.version.as_str()), ("a, b", "1"));
        assert_eq!(missing(&run).to_string(), "41-63");
        let ids: Vec<_> = run.parts.iter().map(|part| part.id).collect();
        assert_eq!(ids, [parts[0].id, parts[1].id]);
        assert_eq!(run.report.outcome(), Outcome::Partial);
        let all = one(vec![part("0-63", (1, 2), Outcome::Ok, "a")]).unwrap();
        assert!(missing(&all).is_empty());
    }

    #[test]
    fn the_outcome_is_the_worst() {
        use Outcome::{Cancelled, Failed, Ok, Partial, Timeout};
        for (outcomes, expected) in [
            (&[Ok, Ok][..], Ok),
            (&[Ok, Partial], Partial),
            (&[Partial, Failed], Failed),
            (&[Timeout, Failed], Timeout),
            (&[Ok, Cancelled, Timeout], Cancelled),
        ] {
            let parts = outcomes.iter().zip(0..).map(|(outcome, number)| {
                part(&number.to_string(), (number, number + 1), *outcome, "a")
            });
            assert_eq!(one(parts.collect()).unwrap().outcome, expected, "{outcomes:?}");
        }
    }

    #[test]
    fn a_part_that_others_did_again_does_not_count() {
        let lost = part("0-3", (1, 3), Outcome::Cancelled, "lost");
        let again = [part("0-1", (4, 6), Outcome::Ok, "a"), part("2-3", (5, 6), Outcome::Ok, "b")];
        let half = one(vec![lost.clone(), again[0].clone()]).unwrap();
        assert_eq!((half.outcome, half.report.tenants.total), (Outcome::Cancelled, 20));
        let run = one([&[lost], &again[..]].concat()).unwrap();
        assert_eq!((run.outcome, run.report.tenants.total), (Outcome::Ok, 20));
        assert_eq!((run.parts.len(), run.report.failures.len()), (3, 0));
    }

    #[test]
    fn only_parts_of_the_same_run_come_together() {
        let parts = [
            part("0-9", (9, 10), Outcome::Ok, "a"),
            RunRecord { due_at: at(-60), ..part("0-9", (8, 9), Outcome::Ok, "a") },
            RunRecord { trigger: Trigger::Request, ..part("0-9", (7, 8), Outcome::Ok, "a") },
            RunRecord { trigger: Trigger::Startup, ..part("0-9", (6, 7), Outcome::Ok, "a") },
            RunRecord { shares: None, ..part("", (5, 6), Outcome::Ok, "a") },
            part("10-63", (4, 5), Outcome::Ok, "b"),
        ];
        let runs = together(parts.to_vec());
        assert_eq!(runs.len(), 5);
        assert_eq!((runs[0].parts.len(), runs[0].started_at), (2, at(4)));
        assert_eq!([1, 2].map(|run: usize| runs[run].parts.len()), [1, 1]);
        assert_eq!((runs[3].id, runs[4].id), (parts[3].id, parts[4].id), "they are as they were");
        assert!(missing(&runs[3]).is_empty() && runs[3].parts.is_empty());
    }

    #[test]
    fn a_brief_says_what_the_record_says() {
        let parts = [
            part("0-1", (1, 3), Outcome::Failed, "lost"),
            part("0-30", (2, 9), Outcome::Ok, "a"),
            part("31-63", (1, 4), Outcome::Partial, "b"),
        ];
        let run = one(parts.to_vec()).unwrap();
        let briefs = parts.each_ref().map(|part| (part.brief(), FullRun::costs(part)));
        let (brief, costs) = brief(run.id, &briefs).unwrap();
        assert_eq!((brief, costs), (run.brief(), FullRun::costs(&run)));
    }
}
