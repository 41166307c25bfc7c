//! The whole engine in a world with random faults (longer than most: its parts share one state), and
//! the invariants that hold all the same.
//!
//! A seed determines everything: jobs, tenants, data, latencies, failures, requests, stalls, jumps of the clock, and
//! shares that come and go. A seed that fails is printed; `PREHEAT_SEED=SEED cargo test --test it simulation` runs it alone,
//! and `PREHEAT_SEEDS=NUMBER` tries that many. Breaking the world on purpose shows what the simulation would
//! catch: see [`Sabotage`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use preheat::domain::entry::{Entry, life_of};
use preheat::domain::fence::{GLOBAL, PROVISIONAL_TTL, fence_key};
use preheat::domain::job::{Job, JobName, Overlap, Scope, Share};
use preheat::domain::row::{KeyText, Rows, RowsFull};
use preheat::domain::run::{Outcome, RunId, RunRecord, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::domain::share::Shares;
use preheat::domain::tenant::{IdClass, TenantId, Tenants};
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, CacheStats, Clock, History, KeyResult, Ledger, Read, Source,
    SourceError, SourceErrorKind,
};
use preheat::engine::run::limit::Shares as Permits;
use preheat::engine::run::ownership::Ownership;
use preheat::engine::schedule::handle::{JobSelection, RunRequest, Ticket};

use super::engine::ledger::{Answer, Around, Call, Rules};
use super::engine::record::Fickle;
use super::engine::{Gauge, Setup, World, cache_error, job, key, many, refused, start};
use crate::support::dice::Dice;
use crate::support::memory::MemoryCache;
use crate::support::virtual_clock::VirtualClock;

/// How many seeds are tried by default.
const SEEDS: u64 = 1_000;
/// How many actions a period of chaos has.
const ACTIONS: u64 = 30;
/// The longest that a run takes.
const LONGEST_RUN: u64 = 6;
/// The longest rest after a sweep: nine times the sweep's duration.
const LONGEST_REST: Duration = Duration::from_mins(5);
/// How long a takeover may wait for a call that hangs.
const LONGEST_TAKEOVER: u64 = 65;
/// The longest interval of a schedule.
const LONGEST_INTERVAL: u64 = 5;

#[test]
fn hazard_29_in_a_world_that_goes_wrong_at_random_everything_holds() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("PREHEAT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PREHEAT_SEEDS").unwrap_or(SEEDS),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let problems: Vec<String> = std::thread::scope(|scope| {
        let of_thread = |first| {
            let seeds = seeds.clone().skip(first).step_by(threads);
            let try_all = move || {
                let problem =
                    |seed| run(seed, None).err().map(|text| format!("seed {seed}: {text}"));
                seeds.into_iter().find_map(problem)
            };
            scope.spawn(try_all)
        };
        let threads: Vec<_> = (0..threads).map(of_thread).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A way in which the world lies, so that an invariant must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    /// An interrupted read counts as complete.
    CutReads,
    /// The cache reports that it wrote a key, and did not.
    LostWrites,
    /// The engine has one permit more than is allowed.
    OneBatchTooMany,
    /// The engine gets half of the tenants.
    HalfOfTheTenants,
    /// The engine is dropped in the middle of its work.
    Killed,
    /// The engine sleeps too long.
    Oversleeps,
}

#[test]
fn a_world_that_is_broken_on_purpose_is_caught() {
    let cases = [
        (Sabotage::CutReads, "which was never true"),
        (Sabotage::LostWrites, "is not what the database says"),
        (Sabotage::OneBatchTooMany, "batches in flight"),
        (Sabotage::HalfOfTheTenants, "is not what the database says"),
        (Sabotage::Killed, "without a record"),
        (Sabotage::Oversleeps, "was due"),
    ];
    for (sabotage, expected) in cases {
        let problem = (0..200).find_map(|seed| run(seed, Some(sabotage)).err());
        let problem = problem.unwrap_or_else(|| panic!("{sabotage:?} is not noticed"));
        assert!(problem.contains(expected), "{sabotage:?}: {problem}");
    }
}

fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let simulated = || runtime.block_on(simulate(seed, sabotage));
    catch_unwind(AssertUnwindSafe(simulated)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("it panicked: {}", text.unwrap_or_default()))
    })
}

/// What the simulated servers share.
struct Chaos {
    state: Mutex<State>,
    clock: VirtualClock,
    gauge: Gauge,
    jobs: BTreeMap<String, Job>,
    /// Batches in flight over all jobs.
    concurrency: usize,
    sabotage: Option<Sabotage>,
}

struct State {
    dice: Dice,
    /// Whether faults have stopped.
    calm: bool,
    /// How many of a hundred calls go wrong.
    trouble: u64,
    tenants: Vec<String>,
    /// The rows of each job and tenant: their kinds and JSON.
    rows: BTreeMap<(String, String), Vec<(String, String)>>,
    /// Every value that each key ever should have had.
    true_values: BTreeMap<String, BTreeSet<String>>,
    /// The invariants that failed.
    problems: Vec<String>,
}

impl Chaos {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problem(&self, problem: String) {
        self.state().problems.push(problem);
    }

    /// One more batch of a job is at a server, until the returned value is dropped.
    fn enter(&self, job: &str) -> super::engine::InFlight {
        let in_flight = self.gauge.enter(job);
        let (all, of_job) = (self.gauge.now(), self.gauge.now_of(job));
        let said = self.jobs[job].concurrency;
        let allowed = said.map_or(self.concurrency.saturating_sub(1).max(1), NonZeroUsize::get);
        if all > self.concurrency || of_job > allowed {
            self.problem(format!("{all} batches in flight, {of_job} of job `{job}`"));
        }
        in_flight
    }

    /// How long a call takes, and whether it fails.
    fn decide<T>(&self, fates: &[T]) -> (Duration, Option<T>)
    where
        T: Copy,
    {
        let mut state = self.state();
        if state.calm {
            return (Duration::ZERO, None);
        }
        let slow = state.dice.chance(10);
        let most = if slow { 4_000 } else { 200 };
        let latency = Duration::from_millis(state.dice.between(0, most));
        let trouble = state.trouble;
        let fate = state.dice.chance(trouble).then(|| state.dice.pick(fates));
        (latency, fate)
    }

    /// Changes the rows of some tenants of a job.
    fn change_rows(&self, job: &str) {
        let mut state = self.state();
        let owners = match self.jobs[job].scope {
            Scope::Global => vec![String::new()],
            Scope::Tenants => state.tenants.clone(),
        };
        for owner in owners {
            let place = (job.to_owned(), owner.clone());
            if state.rows.contains_key(&place) && state.dice.chance(60) {
                continue;
            }
            let count = state.dice.size(0, 5);
            let row = |dice: &mut Dice| {
                let (kind, value) = (dice.between(0, 3), dice.next());
                (format!("k{kind}"), value.to_string())
            };
            let rows = (0..count).map(|_| row(&mut state.dice)).collect();
            state.rows.insert(place, rows);
            for (key, value) in self.values(&state, job, &owner) {
                state.true_values.entry(key).or_default().insert(value);
            }
        }
    }

    /// The keys of one tenant and their values, by the database.
    fn values(&self, state: &State, job: &str, tenant: &str) -> BTreeMap<String, String> {
        let list = |rows: &[&str]| format!("[{}]", rows.join(","));
        let rows = state.rows.get(&(job.to_owned(), tenant.to_owned()));
        let rows = rows.map(Vec::as_slice).unwrap_or_default();
        let all: Vec<_> = rows.iter().map(|(_, json)| json.as_str()).collect();
        let fleet = self.jobs[job].scope == Scope::Global;
        let whole = if fleet { job.to_owned() } else { format!("{job}:{tenant}") };
        let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        if self.jobs[job].keys.len() > 1 {
            for (kind, json) in rows {
                kinds.entry(format!("{job}:{tenant}:{kind}")).or_default().push(json);
            }
        }
        let of_kinds = kinds.iter().map(|(key, rows)| (key.clone(), list(rows)));
        of_kinds.chain([(whole, list(&all))]).collect()
    }

    /// What the cache must hold when all is well.
    fn expected(&self) -> BTreeMap<String, String> {
        let state = self.state();
        let mut expected = BTreeMap::new();
        for (name, job) in &self.jobs {
            match job.scope {
                _ if !job.enabled => {}
                Scope::Global => expected.extend(self.values(&state, name, "")),
                Scope::Tenants => {
                    for tenant in &state.tenants {
                        expected.extend(self.values(&state, name, tenant));
                    }
                }
            }
        }
        expected
    }

    fn push_rows(&self, job: &Job, read: Read<'_>, rows: &mut Rows) {
        let state = self.state();
        let slots: Vec<String> = match job.scope {
            Scope::Global => vec![String::new()],
            Scope::Tenants => read.batch.tenants().map(|tenant| tenant.id().to_owned()).collect(),
        };
        for (slot, tenant) in (0..).zip(&slots) {
            let all = state.rows.get(&(job.name.to_string(), tenant.clone()));
            let all = all.map(Vec::as_slice).unwrap_or_default();
            let cut = self.sabotage == Some(Sabotage::CutReads) && all.len() > 1;
            for (kind, json) in &all[usize::from(cut)..] {
                let pushed: Result<(), RowsFull> = rows.push(
                    slot,
                    |out| {
                        out.extend_from_slice(json.as_bytes());
                        Ok(())
                    },
                    |_, out| {
                        out.extend_from_slice(kind.as_bytes());
                        Ok(KeyText::Written)
                    },
                );
                pushed.unwrap();
            }
        }
    }
}

/// How a call to the database goes wrong.
#[derive(Clone, Copy)]
enum ReadFate {
    Fails(SourceErrorKind),
    /// It fails after all rows have come, and none of them counts.
    FailsAtItsEnd(SourceErrorKind),
    Hangs,
    Panics,
}

const READ_FATES: [ReadFate; 11] = [
    ReadFate::Fails(SourceErrorKind::Unavailable),
    ReadFate::Fails(SourceErrorKind::Unavailable),
    ReadFate::Fails(SourceErrorKind::Transient),
    ReadFate::Fails(SourceErrorKind::Timeout),
    ReadFate::Fails(SourceErrorKind::Data),
    ReadFate::Fails(SourceErrorKind::TooLarge),
    ReadFate::Fails(SourceErrorKind::Definition),
    ReadFate::FailsAtItsEnd(SourceErrorKind::Foreign),
    ReadFate::FailsAtItsEnd(SourceErrorKind::Unavailable),
    ReadFate::Hangs,
    ReadFate::Panics,
];

struct ShakySource(Arc<Chaos>);

impl Source for ShakySource {
    fn id_class(&self) -> IdClass {
        IdClass::Text
    }

    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>> {
        Box::pin(async {
            let (latency, fate) = self.0.decide(&READ_FATES);
            self.0.clock.sleep(latency).await;
            match fate {
                None => {}
                Some(ReadFate::Fails(kind) | ReadFate::FailsAtItsEnd(kind)) => {
                    return Err(refused(kind));
                }
                // A panic here would print its trace once for each run that waits for the list.
                Some(ReadFate::Hangs | ReadFate::Panics) => std::future::pending().await,
            }
            let tenants = self.0.state().tenants.clone();
            let half = self.0.sabotage == Some(Sabotage::HalfOfTheTenants);
            let told = if half { tenants.len() / 2 } else { tenants.len() };
            let mut list = Tenants::default();
            tenants.iter().take(told).for_each(|id| list.push(id, []));
            Ok(list)
        })
    }

    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>> {
        Box::pin(async move {
            let all = self.tenants().await?;
            Ok(all.only(|tenant| ids.iter().any(|id| id.as_str() == tenant.id())))
        })
    }

    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let _in_flight = self.0.enter(job.name.as_str());
            let (latency, fate) = self.0.decide(&READ_FATES);
            self.0.clock.sleep(latency).await;
            match fate {
                None => self.0.push_rows(job, read, rows),
                Some(ReadFate::Fails(kind)) => return Err(refused(kind)),
                Some(ReadFate::FailsAtItsEnd(kind)) => {
                    self.0.push_rows(job, read, rows);
                    return Err(refused(kind));
                }
                Some(ReadFate::Hangs) => std::future::pending().await,
                Some(ReadFate::Panics) => resume_unwind(Box::new("on purpose")),
            }
            Ok(())
        })
    }
}

/// How a call to the cache goes wrong.
#[derive(Clone, Copy)]
enum WriteFate {
    /// It fails before anything was written.
    Fails(CacheErrorKind),
    /// It fails after a part was written.
    BreaksOff(CacheErrorKind),
    /// It fails for some of the keys.
    Refuses(CacheErrorKind),
    Hangs,
    Panics,
}

const WRITE_FATES: [WriteFate; 8] = [
    WriteFate::Fails(CacheErrorKind::Unavailable),
    WriteFate::Fails(CacheErrorKind::Transient),
    WriteFate::BreaksOff(CacheErrorKind::Unavailable),
    WriteFate::BreaksOff(CacheErrorKind::Unavailable),
    WriteFate::Refuses(CacheErrorKind::Full),
    WriteFate::Refuses(CacheErrorKind::Transient),
    WriteFate::Hangs,
    WriteFate::Panics,
];

struct ShakyCache(Arc<Chaos>);

impl ShakyCache {
    /// Checks that a written value was true at some time, and that its TTL is not too long.
    fn check(&self, entry: &Entry<'_>) {
        let value = String::from_utf8(entry.value.to_vec()).unwrap();
        let values = self.0.state().true_values.get(&entry.key).cloned();
        if !values.is_some_and(|values| values.contains(&value)) {
            self.0.problem(format!("`{}` got `{value}`, which was never true", entry.key));
        }
        let job = &self.0.jobs[job_of(&entry.key)];
        let shortest = job.ttl.mul_f64(1.0 - job.ttl_jitter.fraction());
        if entry.ttl > job.ttl || entry.ttl < shortest && entry.ttl != PROVISIONAL_TTL {
            self.0.problem(format!("`{}` lives for {:?}", entry.key, entry.ttl));
        }
    }

    async fn store(
        &self,
        memory: &MemoryCache,
        entries: &[Entry<'_>],
    ) -> Result<Vec<KeyResult>, CacheError> {
        for entry in entries.iter().filter(|entry| !entry.key.starts_with("preheat:")) {
            self.check(entry);
        }
        if self.0.sabotage == Some(Sabotage::LostWrites) {
            memory.write(&entries[1..]).await?;
            return Ok(entries.iter().map(|_| Ok(())).collect());
        }
        memory.write(entries).await
    }
}

fn job_of(key: &str) -> &str {
    key.split(':').next().unwrap()
}

impl Rules for ShakyCache {
    /// A call to the ledger takes time, and now and then goes wrong.
    fn on_ledger<'a, T: Send + 'a>(&'a self, _call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let (latency, fate) = self.0.decide(&LEDGER_FATES);
            self.0.clock.sleep(latency).await;
            match fate {
                None => then.await,
                Some(LedgerFate::Fails(kind)) => Err(cache_error(kind)),
                Some(LedgerFate::IsLost) => {
                    then.await?;
                    Err(cache_error(CacheErrorKind::Unavailable))
                }
                Some(LedgerFate::Hangs) => std::future::pending().await,
                Some(LedgerFate::Panics) => resume_unwind(Box::new("on purpose")),
            }
        })
    }

    fn write<'a>(
        &'a self,
        memory: &'a MemoryCache,
        entries: &'a [Entry<'a>],
    ) -> Answer<'a, Vec<KeyResult>> {
        Box::pin(async move {
            // A run that tests whether the cache accepts writes has no batch in flight yet.
            let is_probe = entries[0].key.starts_with("preheat:");
            let _in_flight = (!is_probe).then(|| self.0.enter(job_of(&entries[0].key)));
            let (latency, fate) = self.0.decide(&WRITE_FATES);
            self.0.clock.sleep(latency).await;
            match fate {
                None => self.store(memory, entries).await,
                Some(WriteFate::Fails(kind)) => Err(cache_error(kind)),
                Some(WriteFate::BreaksOff(kind)) => {
                    self.store(memory, &entries[..entries.len().div_ceil(2)]).await?;
                    Err(cache_error(kind))
                }
                Some(WriteFate::Refuses(kind)) => {
                    let (first, rest) = entries.split_at(entries.len() / 2);
                    let mut results = self.store(memory, first).await?;
                    results.extend(rest.iter().map(|_| Err(cache_error(kind))));
                    Ok(results)
                }
                Some(WriteFate::Hangs) => std::future::pending().await,
                Some(WriteFate::Panics) => resume_unwind(Box::new("on purpose")),
            }
        })
    }

    fn stats<'a>(&'a self, memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        Box::pin(async {
            let (latency, fate) = self.0.decide(&[CacheErrorKind::Unavailable]);
            self.0.clock.sleep(latency).await;
            match fate {
                None => memory.stats().await,
                Some(kind) => Err(cache_error(kind)),
            }
        })
    }
}

/// How a call to the ledger goes wrong.
#[derive(Clone, Copy)]
enum LedgerFate {
    Fails(CacheErrorKind),
    /// The command is executed, and its answer is lost.
    IsLost,
    Hangs,
    Panics,
}

const LEDGER_FATES: [LedgerFate; 6] = [
    LedgerFate::Fails(CacheErrorKind::Unavailable),
    LedgerFate::Fails(CacheErrorKind::Transient),
    LedgerFate::IsLost,
    LedgerFate::IsLost,
    LedgerFate::Hangs,
    LedgerFate::Panics,
];

fn some_shares(dice: &mut Dice) -> Shares {
    Shares::from_bits(dice.next() & dice.pick(&[u64::MAX, u64::MAX >> 32, 0]))
}

/// Jobs that differ in everything on which the engine's decisions depend.
fn any_jobs(dice: &mut Dice) -> BTreeMap<String, Job> {
    let one = |dice: &mut Dice, name: String| {
        let fleet = dice.chance(15);
        let mut keys = if fleet { vec![key(&name)] } else { job(&name).keys };
        if !fleet && dice.chance(40) {
            keys.push(key(&format!("{name}:{{tenant_id}}:{{kind}}")));
        }
        let interval = Duration::from_secs(dice.between(2, LONGEST_INTERVAL + 1));
        let made = Job {
            schedule: Schedule::Every(interval),
            // Longer than any period of chaos: what is compared at the end must not expire.
            ttl: Duration::from_hours(12),
            ttl_jitter: Share::from_percent(dice.pick(&[0.0, 10.0, 100.0])).unwrap(),
            on_start: dice.chance(50),
            enabled: dice.chance(90),
            timeout: Duration::from_secs(dice.between(3, LONGEST_RUN + 1)),
            overlap: dice.pick(&[Overlap::Skip, Overlap::Queue]),
            retries: u32::try_from(dice.between(0, 4)).unwrap(),
            batch: many(dice.size(1, 9)),
            concurrency: dice.chance(80).then(|| many(dice.size(1, 4))),
            scope: if fleet { Scope::Global } else { Scope::Tenants },
            keys,
            ..job(&name)
        };
        (name, made)
    };
    let count = dice.between(1, 5);
    (0..count).map(|number| one(dice, format!("job{number}"))).collect()
}

/// The world of one seed, and the requests made of it.
struct Simulation {
    world: World,
    chaos: Arc<Chaos>,
    cache: Arc<Around<ShakyCache>>,
    history: Arc<Fickle>,
    dice: Dice,
    tickets: Vec<Ticket>,
    /// Whether the wall clock jumps: then it cannot show which runs overlap.
    jumps: bool,
    /// Whether jobs were removed and added: the keys of a removed job are not removed.
    reloaded: bool,
    /// Whether the worker is a member of a fleet.
    is_member: bool,
}

async fn simulate(seed: u64, sabotage: Option<Sabotage>) -> Result<(), String> {
    let mut simulation = Simulation::new(seed, sabotage);
    for _ in 0..ACTIONS {
        simulation.act().await;
        simulation.check_so_far()?;
    }
    let calm = simulation.calm_down().await;
    simulation.check_so_far()?;
    simulation.let_sweeps_come().await;
    simulation.check_the_cache()?;
    simulation.stop().await;
    simulation.check_so_far()?;
    simulation.check_records(&calm).await
}

impl Simulation {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut dice = Dice::new(seed);
        let jobs = any_jobs(&mut dice);
        let clock = VirtualClock::new(start(), seed);
        let concurrency = dice.size(1, 5);
        let tenants = dice.size(0, 16);
        let state = State {
            dice: Dice::new(dice.next()),
            calm: false,
            trouble: dice.pick(&[0, 3, 10, 30, 70]),
            tenants: (0..tenants).map(|number| format!("t{number}")).collect(),
            rows: BTreeMap::new(),
            true_values: BTreeMap::new(),
            problems: Vec::new(),
        };
        let chaos = Arc::new(Chaos {
            state: Mutex::new(state),
            clock: clock.clone(),
            gauge: Gauge::default(),
            jobs,
            concurrency,
            sabotage,
        });
        for job in chaos.jobs.keys() {
            chaos.change_rows(job);
        }
        let memory = Arc::new(MemoryCache::new(Arc::new(clock.clone())));
        let cache = Around::with(memory, ShakyCache(Arc::clone(&chaos)));
        let history = Fickle::new(false);
        let is_member = dice.chance(40);
        let ownership =
            if is_member { Ownership::of(some_shares(&mut dice)) } else { Ownership::default() };
        let too_many = usize::from(sabotage == Some(Sabotage::OneBatchTooMany));
        let setup = Setup::new(chaos.jobs.values().cloned(), Tenants::default());
        let world = Setup {
            concurrency: u32::try_from(concurrency + too_many).unwrap(),
            max_shrink: Share::from_percent(100.0).unwrap(),
            clock,
            history: Arc::clone(&history) as _,
            source: Some(Arc::new(ShakySource(Arc::clone(&chaos)))),
            cache: Some(Arc::clone(&cache) as _),
            ledger: Some(Arc::clone(&cache) as _),
            ownership,
            ..setup
        };
        let jumps = dice.chance(30);
        let world = world.start();
        if dice.chance(50) {
            world.runner.limits.set(Permits::of_worker(world.runner.limits.shares().all()));
        }
        let (tickets, reloaded) = (Vec::new(), false);
        Self { world, chaos, cache, history, dice, tickets, jumps, reloaded, is_member }
    }

    async fn act(&mut self) {
        let clock = self.world.clock.clone();
        if self.is_member && self.dice.chance(15) {
            self.deal();
        }
        match self.dice.between(0, 100) {
            0..60 => clock.advance(Duration::from_millis(self.dice.between(0, 2_000))).await,
            60..75 => self.ask().await,
            75..83 => {
                let jobs: Vec<_> = self.chaos.jobs.keys().cloned().collect();
                let job = &jobs[self.dice.size(0, jobs.len())];
                self.chaos.change_rows(job);
                if self.dice.chance(70) {
                    self.invalidate(job).await;
                }
            }
            83..84 => self.evict(),
            84..88 => self.change_tenants(),
            88..92 => clock.stall(Duration::from_millis(self.dice.between(500, 20_000))).await,
            92..95 if self.jumps => {
                let by = i64::try_from(self.dice.between(0, 7_200_000)).unwrap() - 3_600_000;
                clock.set_by(TimeDelta::milliseconds(by));
            }
            95..97 => self.reload().await,
            92..95 => {
                self.world.rings.fetch_xor(true, Ordering::Relaxed);
            }
            _ => {
                self.history.away.fetch_xor(true, Ordering::Relaxed);
            }
        }
    }

    /// Shares come and go.
    fn deal(&mut self) {
        let (ownership, some) = (&self.world.runner.ownership, some_shares(&mut self.dice));
        match self.dice.between(0, 5) {
            0 => ownership.lose_all(),
            1 | 2 => ownership.give_back(some),
            _ => ownership.take(some),
        }
    }

    /// What an application does after a commit: it moves the fences, and then deletes keys.
    async fn invalidate(&mut self, job: &str) {
        let memory = &self.cache.inner;
        let tenants = self.chaos.state().tenants.clone();
        let fences: Vec<_> = match self.chaos.jobs[job].scope {
            Scope::Tenants => tenants.iter().map(|id| fence_key(id)).collect(),
            Scope::Global => vec![GLOBAL.to_owned()],
        };
        memory.move_fences(&fences, 1 << 41).await.unwrap();
        self.world.clock.advance(Duration::from_millis(self.dice.between(0, 100))).await;
        let keys = memory.keys().into_iter().filter(|key| job_of(key) == job).collect::<Vec<_>>();
        memory.remove(&keys).await.unwrap();
    }

    /// The cache evicts a key, or a fence.
    fn evict(&mut self) {
        let memory = &self.cache.inner;
        let mut keys = memory.keys();
        keys.extend(self.chaos.state().tenants.iter().map(|id| fence_key(id)));
        if !keys.is_empty() {
            memory.evict(&keys[self.dice.size(0, keys.len())]);
        }
    }

    async fn ask(&mut self) {
        let names: Vec<_> = self.chaos.jobs.keys().cloned().collect();
        let name = &names[self.dice.size(0, names.len())];
        let one = JobSelection::One(JobName::parse(name).unwrap());
        let jobs = if self.dice.chance(30) { JobSelection::All } else { one };
        let tenants = self.dice.chance(40).then(|| {
            let some = self.dice.between(0, 5);
            (0..some).map(|_| TenantId::new(format!("t{}", self.dice.between(0, 20)))).collect()
        });
        // The request may be refused: a refusal promises nothing.
        let taken = self.world.handle.request(RunRequest { jobs, tenants }).await;
        self.tickets.extend(taken.unwrap_or_default());
    }

    /// The job files change: some are removed, some are changed, and some removed ones come back.
    async fn reload(&mut self) {
        self.reloaded = true;
        let mut jobs = BTreeMap::new();
        for job in self.chaos.jobs.values() {
            let mut job = job.clone();
            if self.dice.chance(30) {
                continue;
            }
            if self.dice.chance(30) {
                job.schedule = Schedule::Every(Duration::from_secs(self.dice.between(2, 9)));
            }
            jobs.insert(job.name.clone(), Arc::new(job));
        }
        self.world.handle.replace(jobs).await;
    }

    fn change_tenants(&mut self) {
        let (comes, id) = (self.dice.chance(60), format!("t{}", self.dice.between(0, 20)));
        {
            let tenants = &mut self.chaos.state().tenants;
            tenants.retain(|tenant| *tenant != id);
            if comes {
                tenants.push(id);
            }
        }
        for job in self.chaos.jobs.keys() {
            self.chaos.change_rows(job);
        }
    }

    /// Ends all faults; returns from when on every run must be right.
    async fn calm_down(&mut self) -> Calm {
        self.chaos.state().calm = true;
        self.world.rings.store(true, Ordering::Relaxed);
        self.history.away.store(false, Ordering::Relaxed);
        let jobs = self.chaos.jobs.values();
        let jobs = jobs.map(|job| (job.name.clone(), Arc::new(job.clone()))).collect();
        self.world.handle.replace(jobs).await;
        let clock = self.world.clock.clone();
        // A call that hangs ends with its run, and then the breakers close, or the history is tried again.
        let mut rest = (LONGEST_RUN + 5).max(10) + 1;
        if self.is_member {
            self.world.runner.ownership.take(Shares::ALL);
            rest += LONGEST_TAKEOVER;
        }
        clock.advance(Duration::from_secs(rest)).await;
        let since = clock.now();
        let before = self.records().await.iter().map(|record| record.id).collect();
        if self.chaos.sabotage == Some(Sabotage::Oversleeps) {
            clock.stall(Duration::from_secs(2 * LONGEST_INTERVAL)).await;
        }
        clock.advance(Duration::from_secs(2 * LONGEST_INTERVAL)).await;
        Calm { since, before, until: clock.now() }
    }

    async fn stop(&mut self) {
        if self.chaos.sabotage == Some(Sabotage::Killed) {
            let asked =
                self.world.handle.request(RunRequest { jobs: JobSelection::All, tenants: None });
            self.chaos.state().calm = false;
            self.tickets.extend(asked.await.unwrap());
            self.world.tasks.shutdown().await;
            return;
        }
        self.world.stops.drain.cancel();
        self.world.ended().await;
        self.world.stop_records.cancel();
        self.world.settle().await;
    }

    fn check_so_far(&self) -> Result<(), String> {
        match self.chaos.state().problems.first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }

    /// A sweep that took long during the chaos delays the next one. What a run with an older list wrote after
    /// it stays until then.
    async fn let_sweeps_come(&self) {
        let tenants = self.chaos.state().tenants.clone();
        let of_gone = |key: &String| {
            let tenant = key.split(':').nth(1);
            tenant.is_some_and(|tenant| !tenants.iter().any(|other| other == tenant))
        };
        if self.cache.inner.keys().iter().any(of_gone) {
            self.world.clock.advance(LONGEST_REST).await;
        }
    }

    fn check_the_cache(&self) -> Result<(), String> {
        let memory = &self.cache.inner;
        let expected = self.chaos.expected();
        for (key, value) in &expected {
            let found = memory.get(key).map(|value| String::from_utf8(value).unwrap());
            if found.as_ref() != Some(value) {
                return Err(format!("`{key}`: {found:?} is not what the database says, `{value}`"));
            }
            if memory.ttl(key).is_some_and(|ttl| ttl <= PROVISIONAL_TTL)
                && self.life_of(key) > PROVISIONAL_TTL
            {
                return Err(format!("`{key}` keeps its provisional TTL"));
            }
        }
        let tenants = self.chaos.state().tenants.clone();
        let is_gone = |key: &str| {
            let tenant = key.split(':').nth(1);
            tenant.is_some_and(|tenant| !tenants.iter().any(|other| other == tenant))
        };
        let mut jobs = self.chaos.jobs.values();
        let sees_tenants = jobs.any(|job| job.enabled && job.scope == Scope::Tenants);
        // No run looks after keys of a job that is disabled, or was removed when its tenant left. And a clock
        // that jumps ends the time in which a run with an older list may still write.
        let is_looked_after = |key: &str| {
            let finds_gone = sees_tenants && !self.reloaded && !self.jumps;
            if is_gone(key) { finds_gone } else { self.chaos.jobs[job_of(key)].enabled }
        };
        let mut extra = memory.keys().into_iter().filter(|key| !expected.contains_key(key));
        if let Some(key) = extra.find(|key| is_looked_after(key) && self.chaos.sabotage.is_none()) {
            return Err(format!("`{key}` is there, and its data is gone"));
        }
        for (name, status) in &self.world.handle.status().jobs {
            let outcome = status.last_run.as_ref().map(|run| run.outcome);
            if status.job.enabled && outcome != Some(Outcome::Ok) {
                return Err(format!("the last run of job `{name}` was {outcome:?}"));
            }
        }
        Ok(())
    }

    fn life_of(&self, key: &str) -> Duration {
        life_of(&self.chaos.jobs[job_of(key)], key)
    }

    /// The records, oldest first.
    async fn records(&self) -> Vec<RunRecord> {
        let mut records = self.history.memory.recent(None, usize::MAX).await.unwrap();
        records.reverse();
        records
    }

    async fn check_records(&mut self, calm: &Calm) -> Result<(), String> {
        for ticket in std::mem::take(&mut self.tickets) {
            let id = ticket.run.id;
            match ticket.finished().now_or_never().flatten() {
                Some(record) if record.id == id => {}
                _ => return Err(format!("the run {id} was taken on and is without a record")),
            }
        }
        let records = self.records().await;
        for record in &records {
            let problem = wrong_counts(record);
            if let Some(problem) = problem {
                return Err(format!("{problem}: {record:?}"));
            }
        }
        for (name, job) in &self.chaos.jobs {
            // A run for changes goes beside the other runs.
            let began = |record: &&RunRecord| {
                !was_cancelled_before_it_began(record) && record.trigger != Trigger::Change
            };
            let of_job = records.iter().filter(|record| record.job.as_str() == name);
            let mut of_job: Vec<_> = of_job.filter(began).collect();
            of_job.sort_by_key(|record| (record.started_at, record.finished_at));
            let overlap = of_job.windows(2).find(|two| two[0].finished_at > two[1].started_at);
            if let Some(two) = overlap.filter(|_| !self.jumps) {
                return Err(format!("two runs overlap: {two:?}"));
            }
            check_calm(job, &of_job, calm)?;
        }
        Ok(())
    }
}

/// The period without faults.
struct Calm {
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    /// The runs that had ended before it.
    before: BTreeSet<RunId>,
}

fn was_cancelled_before_it_began(record: &RunRecord) -> bool {
    let begins = |message: &str| message.ends_with("before the run began");
    record.report.failures.iter().any(|failure| begins(&failure.message))
}

fn wrong_counts(record: &RunRecord) -> Option<&'static str> {
    let (report, outcome) = (&record.report, record.outcome);
    let tenants = report.tenants;
    let came_to_all = tenants.done() == tenants.total;
    let counted: u64 = report.failures.iter().map(|failure| failure.count).sum();
    match outcome {
        _ if tenants.done() > tenants.total => Some("more tenants than there are"),
        Outcome::Ok if tenants.ok + tenants.fenced != tenants.total => {
            Some("`ok` and not all tenants are")
        }
        Outcome::Ok if !report.failures.is_empty() => Some("`ok` with failures"),
        Outcome::Ok | Outcome::Partial | Outcome::Failed if !came_to_all => {
            Some("a run that came to its end left tenants out")
        }
        Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled
            if report.failures.is_empty() =>
        {
            Some("a failure without a reason")
        }
        _ if counted < tenants.failed => Some("tenants failed of nothing"),
        Outcome::Ok
        | Outcome::Partial
        | Outcome::Failed
        | Outcome::Timeout
        | Outcome::Cancelled => None,
    }
}

/// Without faults, a job runs each time it is due, and reads no more than it has to.
fn check_calm(job: &Job, records: &[&RunRecord], calm: &Calm) -> Result<(), String> {
    let name = &job.name;
    let records: Vec<_> =
        records.iter().filter(|record| !calm.before.contains(&record.id)).collect();
    for record in &records {
        let queries = record.report.tenants.total.div_ceil(job.batch.get() as u64);
        if record.outcome != Outcome::Ok || record.report.queries != queries {
            return Err(format!("job `{name}` in calm: {record:?}"));
        }
    }
    let scheduled = records.iter().filter(|record| record.trigger == Trigger::Schedule);
    let ran: BTreeSet<_> = scheduled.map(|record| record.due_at).collect();
    let mut due = job.schedule.next_after(calm.since).filter(|_| job.enabled);
    // The loop looks at the clock within a second.
    while let Some(at) = due.filter(|at| *at + TimeDelta::seconds(1) <= calm.until) {
        if !ran.contains(&at) {
            return Err(format!("job `{name}` was due at {at} and did not run: {ran:?}"));
        }
        due = job.schedule.next_after(at);
    }
    Ok(())
}
