//! Run records: what they contain, and that a history which cannot be written never delays a run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use preheat::adapter::memory::MemoryHistory;
use preheat::domain::job::{Job, JobName};
use preheat::domain::report::Report;
use preheat::domain::run::{Outcome, RunFilter, RunId, RunRecord, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::domain::share::Shares;
use preheat::domain::whole;
use preheat::engine::ports::{Beside, Clock, History, HistoryError};
use preheat::engine::run::record::Records;
use preheat::observe::Metrics;

use crate::support::dice::Dice;
use crate::support::virtual_clock::VirtualClock;

use super::{MINUTE, SECOND, Setup, World, at, job, ready, start, tenants};

/// A history in memory that can be away and counts its calls.
pub(crate) struct Fickle {
    pub(crate) memory: MemoryHistory,
    pub(crate) away: AtomicBool,
    /// The next append waits for this.
    held: Mutex<Option<BoxFuture<'static, ()>>>,
    appends: AtomicUsize,
    largest: AtomicUsize,
    pruned: Mutex<Vec<DateTime<Utc>>>,
}

impl Fickle {
    pub(crate) fn new(away: bool) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryHistory::new(10_000),
            away: AtomicBool::new(away),
            held: Mutex::default(),
            appends: AtomicUsize::new(0),
            largest: AtomicUsize::new(0),
            pruned: Mutex::default(),
        })
    }

    async fn kept(&self) -> usize {
        self.memory.recent(None, usize::MAX).await.unwrap().len()
    }

    fn gone<T: Send + 'static>(&self) -> Option<BoxFuture<'static, Result<T, HistoryError>>> {
        let error = || Err(HistoryError("could not write the history".to_owned()));
        self.away.load(Ordering::Relaxed).then(|| ready(error()))
    }
}

impl History for Fickle {
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>> {
        self.appends.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(records.len(), Ordering::Relaxed);
        let held = self.held.lock().unwrap().take();
        Box::pin(async move {
            if let Some(held) = held {
                held.await;
            }
            self.gone().unwrap_or_else(|| self.memory.append(records)).await
        })
    }

    fn find<'a>(
        &'a self,
        filter: &'a RunFilter,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        self.gone().unwrap_or_else(|| self.memory.find(filter))
    }

    fn recall<'a>(
        &'a self,
        jobs: &'a [JobName],
        newest: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        self.gone().unwrap_or_else(|| self.memory.recall(jobs, newest))
    }

    fn beside<'a>(&'a self, run: &'a RunRecord) -> BoxFuture<'a, Result<Beside, HistoryError>> {
        self.gone().unwrap_or_else(|| self.memory.beside(run))
    }

    fn parts<'a>(
        &'a self,
        due: &'a [DateTime<Utc>],
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        self.gone().unwrap_or_else(|| self.memory.parts(due))
    }

    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>> {
        self.gone().unwrap_or_else(|| self.memory.get(id))
    }

    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        self.pruned.lock().unwrap().push(before);
        self.gone().unwrap_or_else(|| self.memory.prune(before))
    }
}

fn world_with(history: &Arc<Fickle>, job: Job) -> World {
    let setup = Setup::new([job], tenants(1));
    Setup { history: Arc::clone(history) as _, ..setup }.start()
}

#[tokio::test]
async fn every_run_is_kept_newest_first() {
    let history = Fickle::new(false);
    let world = world_with(&history, job("list"));
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.insert(0, world.warm("list").await.id);
        world.clock.advance(SECOND).await;
    }
    let found = world.handle.runs(&RunFilter::newest(None, 10)).await.unwrap().runs;
    assert_eq!(found.iter().map(|record| record.id).collect::<Vec<_>>(), ids);
    assert_eq!(world.handle.runs(&RunFilter::newest(None, 2)).await.unwrap().runs.len(), 2);
    let other = JobName::parse("other").unwrap();
    assert!(world.handle.runs(&RunFilter::newest(Some(&other), 10)).await.unwrap().runs.is_empty());
    assert_eq!(history.kept().await, 3);
    assert_eq!((found[0].replica.as_str(), found[0].version.as_str()), ("test", "0.1.0"));
}

#[tokio::test]
async fn a_history_that_is_away_holds_no_run_up_and_gets_all_of_them_when_it_is_back() {
    let history = Fickle::new(true);
    let world = world_with(&history, job("list"));
    let mut last = None;
    for _ in 0..30 {
        let record = world.warm("list").await;
        assert_eq!(record.outcome, Outcome::Ok);
        last = Some(record.id);
        world.clock.advance(10 * SECOND).await;
    }
    let asked = history.appends.load(Ordering::Relaxed);
    assert!((20..60).contains(&asked), "it was asked {asked} times in five minutes");
    let waiting = world.handle.run(last.unwrap()).await.unwrap();
    assert!(waiting.is_some(), "a run on its way into the history is found");
    history.away.store(false, Ordering::Relaxed);
    world.clock.advance(11 * SECOND).await;
    assert_eq!(history.kept().await, 30);
    assert!(world.shows("preheat_history_dropped_total 0"));
}

#[tokio::test]
async fn records_that_wait_are_bounded_and_those_given_up_are_counted() {
    let history = Fickle::new(true);
    let every_second = Schedule::Every(SECOND);
    let world = world_with(&history, Job { schedule: every_second, ..job("list") });
    world.clock.advance(1_200 * SECOND + SECOND / 2).await;
    history.away.store(false, Ordering::Relaxed);
    world.clock.advance(20 * SECOND).await;
    let dropped = world.metric("preheat_history_dropped_total");
    assert!((200..=210).contains(&dropped), "{dropped} of those beyond a thousand");
    let kept = history.memory.recent(None, usize::MAX).await.unwrap();
    assert_eq!(kept.len(), 1_220 - dropped as usize, "all others came");
    assert_eq!(history.largest.load(Ordering::Relaxed), 100, "not all at once");
    let oldest = kept.last().unwrap().due_at - start();
    assert_eq!(oldest.num_seconds(), i64::from(dropped) + 1, "the oldest were given up");
}

#[tokio::test]
async fn a_record_is_forgotten_only_when_it_was_written_however_many_are_given_up_meanwhile() {
    let history = Fickle::new(false);
    let world = world_with(&history, Job { schedule: Schedule::Every(SECOND), ..job("list") });
    *history.held.lock().unwrap() = Some(world.clock.sleep(1_100 * SECOND + SECOND / 2));
    world.clock.advance(1_105 * SECOND + SECOND / 2).await;
    let dropped = world.metric("preheat_history_dropped_total");
    assert!(dropped > 90, "{dropped}");
    let kept = history.kept().await;
    // The first one was dropped while it was being written.
    assert_eq!(kept + dropped as usize, 1_105 + 1);
}

#[tokio::test]
async fn what_waits_is_written_once_more_when_the_worker_stops() {
    let history = Fickle::new(true);
    let world = world_with(&history, job("list"));
    world.warm("list").await;
    world.clock.advance(MINUTE).await;
    world.stops.drain.cancel();
    world.ended().await;
    history.away.store(false, Ordering::Relaxed);
    world.stop_records.cancel();
    world.settle().await;
    assert_eq!(history.kept().await, 1);
}

#[tokio::test]
async fn records_older_than_the_retention_are_removed_each_hour() {
    let history = Fickle::new(false);
    let setup = Setup::new([job("list")], tenants(1));
    let retention = 30 * MINUTE;
    let world = Setup { history: Arc::clone(&history) as _, retention, ..setup }.start();
    world.clock.advance(125 * MINUTE).await;
    let pruned = history.pruned.lock().unwrap().clone();
    assert_eq!(pruned.len(), 3, "at the start, and each hour: {pruned:?}");
    assert_eq!(pruned[0], at("2026-02-28T23:30:00Z"));
    assert_eq!(history.kept().await, 4, "those from half past one on");
}

#[tokio::test]
async fn a_retention_beyond_the_calendar_keeps_everything() {
    for retention in [Duration::MAX, Duration::from_secs(u64::MAX / 1_000_000)] {
        let history = Fickle::new(false);
        let setup = Setup::new([job("list")], tenants(1));
        let world = Setup { history: Arc::clone(&history) as _, retention, ..setup }.start();
        world.warm("list").await;
        world.clock.advance(61 * MINUTE).await;
        assert_eq!(history.kept().await, 7);
        assert!(history.pruned.lock().unwrap().is_empty());
    }
}

/// A history of a fleet: runs that were due each ten seconds, in parts that start and end as the dice say, runs of one
/// worker alone, and runs for changed tenants.
async fn fleets_history(dice: &mut Dice) -> (MemoryHistory, Vec<RunRecord>) {
    let history = MemoryHistory::new(10_000);
    let mut records = Vec::new();
    for number in 0..30 {
        let due_at = start() + chrono::TimeDelta::seconds(10 * number);
        let trigger = if dice.one_in(4) { Trigger::Change } else { Trigger::Schedule };
        for shares in [0x0000_ffff_u64, 0xffff_0000, 0xffff_ffff_0000_0000] {
            let started_at = due_at + Duration::from_secs(dice.between(0, 40));
            records.push(RunRecord {
                id: RunId::new(started_at),
                job: JobName::parse("list").unwrap(),
                trigger,
                outcome: if dice.one_in(5) { Outcome::Partial } else { Outcome::Ok },
                due_at,
                started_at,
                finished_at: started_at + chrono::TimeDelta::seconds(1),
                report: Report::default(),
                replica: format!("of {shares:x}"),
                version: "1".to_owned(),
                all_tenants: Some(true),
                requested_by: None,
                shares: (!dice.one_in(4)).then(|| Shares::from_bits(shares)),
                fleet: None,
                parts: Vec::new(),
            });
        }
    }
    history.append(&records).await.unwrap();
    (history, records)
}

#[tokio::test]
async fn a_fleets_run_is_on_one_page_of_the_list_with_all_its_parts() {
    for seed in 0..50 {
        let mut dice = Dice::new(seed);
        let (history, mut all) = fleets_history(&mut dice).await;
        let clock = Arc::new(VirtualClock::new(start(), seed));
        let records = Records::new(Arc::new(history), clock, Metrics::new(), MINUTE);
        all.sort_by_key(|record| std::cmp::Reverse(record.place()));
        for outcome in [None, Some(Outcome::Ok), Some(Outcome::Partial)] {
            let is_wanted = |run: &RunRecord| outcome.is_none_or(|outcome| run.outcome == outcome);
            let mut expected: Vec<_> = whole::together(all.clone()).into_iter().collect();
            expected.retain(is_wanted);
            let limit = dice.size(1, 8);
            let mut filter = RunFilter { outcome, limit, ..RunFilter::default() };
            let mut found = Vec::new();
            loop {
                let page = records.page(&filter).await.unwrap();
                assert!(page.runs.len() == limit || page.next.is_none(), "seed {seed}");
                found.extend(page.runs);
                filter.after = page.next;
                if filter.after.is_none() {
                    break;
                }
            }
            let said = |runs: &[RunRecord]| -> BTreeMap<RunId, usize> {
                runs.iter().map(|run| (run.id, run.parts.len())).collect()
            };
            assert_eq!(found.len(), expected.len(), "each once: seed {seed}");
            assert_eq!(said(&found), said(&expected), "seed {seed}");
            if outcome.is_none() {
                let ids = |runs: &[RunRecord]| runs.iter().map(|run| run.id).collect::<Vec<_>>();
                assert_eq!(ids(&found), ids(&expected), "seed {seed}");
            }
            for run in found {
                let got = records.get(run.id).await.unwrap().unwrap();
                assert_eq!((got.id, got.parts), (run.id, run.parts.clone()));
                for part in run.parts {
                    assert_eq!(records.get(part.id).await.unwrap().unwrap().id, part.id);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_fleets_run_is_compared_with_the_fleets_run_before_it() {
    let history = Fickle::new(false);
    let due = |number: i64| start() + chrono::TimeDelta::minutes(number);
    let (_, some) = fleets_history(&mut Dice::new(1)).await;
    let part = |number: i64, shares: &str, outcome: Outcome| RunRecord {
        id: RunId::new(due(number)),
        trigger: Trigger::Schedule,
        outcome,
        due_at: due(number),
        started_at: due(number) + Duration::from_secs(shares.len() as u64),
        shares: Shares::parse(shares),
        ..some[0].clone()
    };
    let kept = [
        part(0, "0-3", Outcome::Ok),
        part(0, "10-63", Outcome::Ok),
        part(1, "0-3", Outcome::Ok),
        part(1, "10-63", Outcome::Partial),
        part(2, "0-3", Outcome::Ok),
        part(2, "10-63", Outcome::Ok),
    ];
    history.append(&kept[..5]).await.unwrap();
    let clock = Arc::new(VirtualClock::new(start(), 0));
    let records = Records::new(Arc::clone(&history) as _, clock, Metrics::new(), MINUTE);
    // The last one is on its way.
    history.away.store(true, Ordering::Relaxed);
    records.push(Arc::new(kept[5].clone()));
    history.away.store(false, Ordering::Relaxed);
    let of = |number: i64| part(number, "", Outcome::Ok).listed_id();
    let run = records.get(of(1)).await.unwrap().unwrap();
    assert_eq!((run.parts.len(), run.outcome), (2, Outcome::Partial));
    let beside = records.beside(&run).await.unwrap();
    assert_eq!((beside.earlier, beside.later), (Some(of(0)), Some(of(2))));
    let before = beside.last_ok.unwrap();
    assert_eq!((before.id, before.parts.len()), (of(0), 2));
    let last = records.get(of(2)).await.unwrap().unwrap();
    assert_eq!(last.parts.len(), 2, "written or not");
    let beside = records.beside(&last).await.unwrap();
    assert_eq!((beside.earlier, beside.later), (Some(of(1)), None));
    assert!(beside.last_ok.is_none(), "the one before it was partial");
    let alone = records.beside(&kept[4]).await.unwrap();
    assert_eq!((alone.earlier, alone.later), (Some(of(1)), None), "of a part as of the run");
}
