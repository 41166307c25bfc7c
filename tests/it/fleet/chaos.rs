//! Three replicas of which one is killed every ten seconds, another is stopped and continued, a cache that is
//! restarted, and writers that never pause. When all of it has ended, the cache equals the database, and the history
//! shows that each due time of each share ran while somebody held the share.

#![expect(clippy::print_stdout, reason = "what it measured is worth a line")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use preheat::domain::share::{Share, Shares};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Connection;
use tokio::task::JoinSet;

use crate::support::program::Running;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually};

const TENANTS: u32 = 1_000;
const WRITERS: u32 = 4;
const INTERVAL: TimeDelta = TimeDelta::seconds(2);

const LEASE: TimeDelta = TimeDelta::seconds(9);

/// How long a share may be without a holder: its lease, and the two seconds until others look.
const LONGEST_VACANCY: TimeDelta = TimeDelta::seconds(12);

/// A machine that builds and tests at the same time is late by so much.
const LATE: TimeDelta = TimeDelta::seconds(15);

/// How long it all goes on: `PREHEAT_FLEET_SECONDS`.
fn lasts() -> Duration {
    let seconds = std::env::var("PREHEAT_FLEET_SECONDS").map_or(120, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_loses_replicas_without_a_gap() {
    let shop = Shop::open(TENANTS).await;
    let mut fleet = Fleet {
        shop: &shop,
        started: 0,
        members: Vec::new(),
        killed: Vec::new(),
        stopped: Vec::new(),
        said: Vec::new(),
    };
    fleet.install().await;
    for _ in 0..3 {
        fleet.start();
    }
    fleet.is_whole().await;
    let began = Utc::now();

    let mut writers = JoinSet::new();
    let until = Instant::now() + lasts();
    for number in 0..WRITERS {
        writers.spawn(write(shop.url().to_owned(), number, until));
    }
    fleet.disturb(until).await;
    let written: u64 = writers.join_all().await.iter().sum();
    fleet.is_whole().await;
    let ended = Utc::now();

    eventually("every key is as in the database", LONG, async || shop.is_warm().await).await;
    eventually("the keys of the lazy job too", LONG, async || fleet.lazy_is_warm().await).await;
    let records = fleet.records().await;
    let runs = records.iter().filter(|record| record.job == "items").collect::<Vec<_>>();
    let losses = fleet.killed.iter().map(|(_, at)| *at).chain(fleet.stopped.iter().copied());
    let history = History { records: &runs, began, ended, losses: losses.collect() };
    history.no_share_is_left_out();
    history.no_share_runs_twice();
    history.each_takeover_is_one_startup_run();
    let mut again: Vec<_> =
        fleet.killed.iter().flat_map(|(name, at)| history.warm_again(name, *at)).collect();
    again.sort();
    let (half, most) = (again[again.len() / 2], again[again.len() - 1]);
    println!(
        "{written} writes, {} killed, {} records; a killed replica's shares were warm again after {:.1} s (half of \
         them), {:.1} s at most",
        fleet.killed.len(),
        records.len(),
        half.as_seconds_f64(),
        most.as_seconds_f64(),
    );
    assert!(half < TimeDelta::seconds(15) + LATE, "{half}");
    fleet.end().await;
}

/// The replicas of a shop.
struct Fleet<'s> {
    shop: &'s Shop,
    started: usize,
    members: Vec<(String, Running)>,
    killed: Vec<(String, DateTime<Utc>)>,
    stopped: Vec<DateTime<Utc>>,
    /// What the killed ones said.
    said: Vec<(String, String)>,
}

/// Where a check fails, what the replicas said of their shares explains it.
impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let alive = self.members.iter().map(|(name, worker)| (name.clone(), worker.stderr()));
        for (name, said) in self.said.iter().cloned().chain(alive) {
            let about = |line: &&str| {
                line.contains("share") || line.contains("fleet") || line.contains("WARN")
            };
            for line in said.lines().filter(about) {
                println!("{name}: {line}");
            }
        }
    }
}

impl Fleet<'_> {
    async fn install(&self) {
        let program = crate::support::preheat(["changes", "install"]).database(self.shop.url());
        let program = with_jobs(program.cache(self.shop.redis.url()));
        program.run().await.expect_code(0);
    }

    fn start(&mut self) {
        let name = format!("replica-{}", self.started);
        self.started += 1;
        let worker = with_jobs(self.shop.serve()).env("PREHEAT_FLEET__ENABLED", "true");
        self.members.push((name.clone(), worker.env("HOSTNAME", name).start()));
    }

    /// Waits until the replicas hold all shares, each of them its even part.
    async fn is_whole(&self) {
        for (_, worker) in &self.members {
            worker.works().await;
        }
        eventually("each share has a holder", LONG, async || {
            let mut parts = Vec::new();
            for (_, worker) in &self.members {
                let shares = worker.metric("preheat_fleet_shares").await.unwrap_or_default();
                parts.extend((0_u8..=64).find(|count| (f64::from(*count) - shares).abs() < 0.5));
            }
            let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
            parts.iter().sum::<u8>() == 64 && most - least <= 1
        })
        .await;
    }

    /// Kills a replica every ten seconds, and starts another one two seconds later; stops one for longer than its lease;
    /// restarts the cache.
    async fn disturb(&mut self, until: Instant) {
        let steps = (until - Instant::now()).as_secs() / 2;
        let mut stopped: Option<String> = None;
        for step in 1..steps.saturating_sub(5) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            match step % 5 {
                0 => {
                    let is_going = |(name, _): &(String, Running)| Some(name) != stopped.as_ref();
                    let oldest = self.members.iter().position(is_going).unwrap();
                    let (name, worker) = self.members.remove(oldest);
                    worker.signal(Signal::KILL);
                    self.killed.push((name.clone(), Utc::now()));
                    self.said.push((name, worker.stderr()));
                }
                1 if step > 1 => self.start(),
                _ => {}
            }
            match step % 15 {
                2 => {
                    let (name, worker) = self.members.last().unwrap();
                    worker.signal(Signal::STOP);
                    self.stopped.push(Utc::now());
                    stopped = Some(name.clone());
                }
                9 => self.goes_on(stopped.take()),
                _ => {}
            }
            if step == steps / 2 {
                self.shop.redis.restart().unwrap();
            }
        }
        self.goes_on(stopped);
        while self.members.len() < 3 {
            self.start();
        }
    }

    fn goes_on(&self, stopped: Option<String>) {
        let of = |name: String| self.members.iter().find(|member| member.0 == name);
        if let Some((_, worker)) = stopped.and_then(of) {
            worker.signal(Signal::CONT);
        }
    }

    async fn lazy_is_warm(&self) -> bool {
        let mut cache = self.shop.cache().await;
        let expected = self.shop.expected().await;
        let keys: Vec<String> = expected.keys().map(|key| key.replace("items:", "lazy:")).collect();
        let found: Vec<Option<String>> =
            redis::cmd("MGET").arg(&keys).query_async(&mut cache).await.unwrap();
        let found = found
            .iter()
            .map(|text| text.as_deref().map(|text| serde_json::from_str(text).unwrap()));
        found.eq(expected.into_values().map(Some::<Value>))
    }

    async fn records(&self) -> Vec<Record> {
        let sql = "select job, trigger, outcome, due_at, started_at, finished_at, replica, shares from preheat.runs \
                   where all_tenants order by started_at";
        let mut connection = self.shop.connect().await;
        let rows: Vec<Row> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        rows.into_iter().map(Record::of).collect()
    }

    async fn end(mut self) {
        for (name, worker) in std::mem::take(&mut self.members) {
            worker.signal(Signal::TERM);
            let said = worker.ended().await.expect_code(0).stderr;
            for fault in ["panicked", "defect of preheat", "internal"] {
                assert!(!said.contains(fault), "{name}: {fault}:\n{said}");
            }
        }
    }
}

/// A job that is due every two seconds, and one that only the change feed keeps fresh.
fn with_jobs(program: crate::support::program::Preheat) -> crate::support::program::Preheat {
    let busy = items("schedule = \"every 2s\"\nttl = \"2m\"\ntimeout = \"20s\"");
    let lazy = items("tables = [\"items\"]").replace("items:{", "lazy:{");
    program.job("items", &busy).job("lazy", &lazy)
}

/// Changes one tenant after the other; answers how many times.
async fn write(url: String, number: u32, until: Instant) -> u64 {
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    let mut dice = crate::support::dice::Dice::new(u64::from(number) + 1);
    let mut writes = 0;
    while Instant::now() < until {
        let tenant = i32::try_from(dice.between(2, u64::from(TENANTS) + 1)).unwrap();
        let update = "update items set version = version + 1 where tenant_id = $1";
        sqlx::query(update).bind(tenant).execute(&mut connection).await.unwrap();
        writes += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writes
}

type Row =
    (String, String, String, DateTime<Utc>, DateTime<Utc>, DateTime<Utc>, String, Option<String>);

/// A run over all tenants of some shares.
#[derive(Debug)]
struct Record {
    job: String,
    trigger: String,
    outcome: String,
    due_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    finished_at: DateTime<Utc>,
    replica: String,
    shares: Shares,
}

impl Record {
    fn of((job, trigger, outcome, due_at, started_at, finished_at, replica, shares): Row) -> Self {
        let shares = Shares::parse(&shares.expect("a fleet's run names its shares")).unwrap();
        Self { job, trigger, outcome, due_at, started_at, finished_at, replica, shares }
    }

    /// Whether the run came to its end: one that was stopped says nothing of its tenants.
    fn is_whole(&self) -> bool {
        self.outcome == "ok" || self.outcome == "partial"
    }
}

struct History<'h> {
    records: &'h [&'h Record],
    began: DateTime<Utc>,
    ended: DateTime<Utc>,
    /// When replicas were killed or stopped.
    losses: Vec<DateTime<Utc>>,
}

impl History<'_> {
    fn of(&self, share: Share) -> impl Iterator<Item = &Record> {
        let is_of = move |record: &&&Record| record.shares.has(share);
        self.records.iter().filter(is_of).map(|record| &**record)
    }

    /// Between two runs of a share by one holder lies one interval; to the first run of the next holder, a vacancy at most, or
    /// one more for each holder that was lost before it ran.
    fn no_share_is_left_out(&self) {
        for share in Shares::ALL.iter() {
            let mut before: Option<&Record> = None;
            for record in self.of(share).filter(|record| record.started_at >= self.began - INTERVAL)
            {
                if let Some(before) = before {
                    let gap = record.started_at - before.started_at;
                    let within = before.started_at - INTERVAL..=record.started_at;
                    let lost = self.losses.iter().filter(|at| within.contains(*at)).count();
                    let vacancies = i32::try_from(lost).unwrap().max(1);
                    let is_of_next = record.replica != before.replica;
                    let vacant = if is_of_next { LONGEST_VACANCY * vacancies } else { INTERVAL };
                    let limit = vacant + INTERVAL + LATE;
                    assert!(gap <= limit, "share {share}: {gap} between {before:?} and {record:?}");
                }
                before = Some(record);
            }
            let last = before.unwrap_or_else(|| panic!("share {share} never ran")).started_at;
            assert!(self.ended - last <= INTERVAL * 2 + LATE, "share {share} last ran at {last}");
        }
    }

    /// A due time runs once for each share, unless the share went to another holder just then.
    fn no_share_runs_twice(&self) {
        for share in Shares::ALL.iter() {
            let mut due: BTreeMap<_, Vec<&Record>> = BTreeMap::new();
            for record in self.of(share).filter(|record| record.trigger == "schedule") {
                due.entry(record.due_at).or_default().push(record);
            }
            let takeovers: Vec<_> =
                self.of(share).filter(|record| record.trigger == "startup").collect();
            for (at, records) in due.into_iter().filter(|(_, records)| records.len() > 1) {
                let is_near =
                    |takeover: &&Record| (takeover.started_at - at).abs() <= LONGEST_VACANCY + LATE;
                assert!(takeovers.iter().any(is_near), "share {share} at {at}: {records:?}");
                let holders: BTreeSet<_> = records.iter().map(|record| &record.replica).collect();
                assert_eq!(
                    holders.len(),
                    records.len(),
                    "one replica ran a due time twice: {records:?}"
                );
            }
        }
    }

    /// A holder starts once for a share: to start again it would have to lose the share first, which takes a lease. A takeover
    /// that a waiting run does as well has no startup run of its own.
    fn each_takeover_is_one_startup_run(&self) {
        let mut startups = 0;
        for share in Shares::ALL.iter() {
            let mut last: BTreeMap<&str, &Record> = BTreeMap::new();
            for record in self.of(share).filter(|record| record.trigger == "startup") {
                startups += 1;
                if let Some(before) = last.insert(&record.replica, record) {
                    let apart = record.started_at - before.started_at;
                    assert!(
                        apart >= LEASE,
                        "share {share} was started for twice: {before:?}, {record:?}"
                    );
                }
            }
        }
        assert!(startups > 0, "nobody took a share");
    }

    /// How long after it was killed each of a replica's shares was warm again. It is longer where the next holder was lost as
    /// well, before it ran.
    fn warm_again(&self, replica: &str, at: DateTime<Utc>) -> Vec<TimeDelta> {
        let own = self.records.iter().filter(|record| record.replica == replica);
        let held =
            own.max_by_key(|record| record.started_at).map_or(Shares::NONE, |last| last.shares);
        let warm = held.iter().filter_map(|share| {
            let next = self.of(share).find(|record| {
                record.started_at > at && record.replica != replica && record.is_whole()
            })?;
            let lost =
                self.losses.iter().filter(|loss| (at..next.started_at).contains(loss)).count();
            let took = next.finished_at - at;
            let limit = TimeDelta::seconds(15) * i32::try_from(lost).unwrap().max(1) + LATE;
            assert!(took <= limit, "share {share} of {replica}: {took}, {lost} lost");
            Some(took)
        });
        warm.collect()
    }
}
