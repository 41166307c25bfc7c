//! A worker that shares the tenants with others: it warms those of the shares that it holds, starts for shares that it
//! takes, and stops for shares that go.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use preheat::audit::Verifier;
use preheat::domain::fence::{Fence, GLOBAL, fence_key};
use preheat::domain::job::{Job, JobName, Scope};
use preheat::domain::run::{Outcome, RunFilter, RunRecord, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::domain::share::{Share, Shares};
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{Cache, Clock, Ledger, SourceErrorKind};
use preheat::engine::run::ownership::Ownership;
use preheat::engine::schedule::status::Readiness;

use super::changes::{Fed, watching};
use super::{
    MINUTE, SECOND, Setup, World, a_row_each, ids, job, key, many, refused, slow_reads, start,
    tenants,
};
use crate::support::dice::Dice;
use crate::support::memory::MemoryRow;
use crate::support::virtual_clock::VirtualClock;

/// How many tenants there are.
pub(super) const TENANTS: usize = 40;

pub(super) fn shares(numbers: impl IntoIterator<Item = u8>) -> Shares {
    numbers.into_iter().map(|number| Share::new(number).unwrap()).collect()
}

/// The lower half of the shares, and the upper one.
fn halves() -> [Shares; 2] {
    [shares(0..32), shares(32..64)]
}

/// The tenants of these shares.
pub(super) fn of(some: Shares) -> BTreeSet<String> {
    ids(0..TENANTS).into_iter().filter(|id| some.has_tenant(id)).collect()
}

/// The shares of these tenants.
fn of_tenants(some: &[&str]) -> Shares {
    some.iter().map(|id| Share::of_tenant(id)).collect()
}

/// A job that runs when the worker starts.
fn on_start(job: Job) -> Job {
    Job { on_start: true, ..job }
}

/// A job with the schedule of a day, and batches of one tenant that follow one another.
fn slow(job: Job) -> Job {
    let schedule = Schedule::Every(Duration::from_hours(24));
    Job { schedule, batch: many(1), concurrency: Some(many(1)), ..job }
}

fn setup(held: Shares, jobs: impl IntoIterator<Item = Job>) -> Setup {
    Setup { ownership: Ownership::of(held), ..Setup::new(jobs, tenants(TENANTS)) }
}

/// A worker of a fleet that holds these shares.
fn member(held: Shares, jobs: impl IntoIterator<Item = Job>) -> World {
    let world = setup(held, jobs).start();
    for name in world.runner.jobs.get().keys() {
        world.set_rows(name.as_str(), a_row_each(TENANTS));
    }
    world
}

impl World {
    /// The tenants that were read so far, each once.
    fn tenants_read(&self) -> BTreeSet<String> {
        self.reads().into_iter().flatten().collect()
    }

    fn take(&self, some: Shares) {
        self.runner.ownership.take(some);
    }

    fn give_back(&self, some: Shares) {
        self.runner.ownership.give_back(some);
    }

    /// The runs of a job, oldest first.
    async fn runs(&self, job: &str) -> Vec<RunRecord> {
        let name = JobName::parse(job).unwrap();
        let mut runs = self.handle.runs(&RunFilter::newest(Some(&name), 1_000)).await.unwrap().runs;
        runs.reverse();
        runs
    }

    /// The trigger, the outcome and the number of tenants of each run of a job, oldest first.
    async fn outline(&self, job: &str) -> Vec<(Trigger, Outcome, usize)> {
        let total = |run: &RunRecord| usize::try_from(run.report.tenants.total).unwrap();
        let runs = self.runs(job).await;
        runs.iter().map(|run| (run.trigger, run.outcome, total(run))).collect()
    }
}

async fn fence_of(world: &World, key: &str) -> Fence {
    world.cache.fences(&[key.to_owned()]).await.unwrap()[0]
}

#[tokio::test]
async fn a_worker_warms_the_tenants_of_its_shares_and_nobody_elses() {
    let [own, _] = halves();
    let global = |name: &str| Job { scope: Scope::Global, keys: vec![key(name)], ..job(name) };
    let jobs = [on_start(job("list")), global("a"), global("b"), global("c"), global("d")];
    let is_own = |name: &str| own.has(Share::of_job(&JobName::parse(name).unwrap()));
    let names = ["a", "b", "c", "d"];
    let mine = names.iter().filter(|name| is_own(name)).count();
    assert!((1..4).contains(&mine), "the test needs a global job on either side");
    let world = member(own, jobs);
    world.clock.advance(11 * MINUTE).await;
    assert_eq!(world.tenants_read(), of(own));
    for name in names {
        assert_eq!(world.value(name).is_some(), is_own(name), "{name}");
        assert_eq!(world.runs(name).await.len(), usize::from(is_own(name)), "{name}");
    }
    let count = of(own).len();
    let expected =
        [(Trigger::Startup, Outcome::Ok, count), (Trigger::Schedule, Outcome::Ok, count)];
    assert_eq!(world.outline("list").await, expected);
    assert_eq!(world.status("list").last_success_at, Some(world.runs("list").await[1].finished_at));
}

#[tokio::test]
async fn a_request_covers_every_tenant_whoever_holds_it() {
    let [own, others] = halves();
    let world = member(own, [job("list")]);
    let record = world.warm("list").await;
    assert_eq!(record.report.tenants.ok, TENANTS as u64);
    let one = of(others).pop_first().unwrap();
    assert_eq!(world.warm_some("list", &[&one]).await.report.tenants.ok, 1);
    assert_eq!(world.tenants_read(), of(Shares::ALL));
}

#[tokio::test]
async fn a_worker_that_holds_nothing_runs_nothing_and_skips_nothing() {
    let world = member(Shares::NONE, [on_start(job("list")), on_start(watching("fed"))]);
    world.clock.advance(25 * MINUTE).await;
    assert!(world.reads().is_empty());
    assert!(world.runs("list").await.is_empty() && world.runs("fed").await.is_empty());
    assert!(world.handle.recent().of(&JobName::parse("list").unwrap()).skips.is_empty());
    world.cache.restart();
    world.clock.advance(MINUTE).await;
    assert!(world.reads().is_empty());
}

#[tokio::test]
async fn to_take_shares_is_to_move_their_fences_and_then_to_start_for_them() {
    let [first, second] = halves();
    let off = Job { enabled: false, ..on_start(job("off")) };
    let jobs = [on_start(job("list")), watching("fed"), job("scheduled"), off];
    let world = member(first, jobs);
    world.clock.advance(11 * MINUTE).await;
    let read = world.reads().len();
    let [own, taken] = [first, second].map(|some| fence_key(&of(some).pop_first().unwrap()));
    let before = (fence_of(&world, &own).await, fence_of(&world, &taken).await);
    let (cache, fence) = (Arc::clone(&world.cache), taken.clone());
    world.on_read(move |_| {
        let stands = cache.fences(std::slice::from_ref(&fence)).now_or_never().unwrap().unwrap()[0];
        assert!(stands != Fence::Missing, "the fences move before anything is read");
        Ok(())
    });
    world.take(second);
    world.clock.advance(SECOND).await;
    let after = (fence_of(&world, &own).await, fence_of(&world, &taken).await);
    assert_eq!(after.0, before.0, "what it held before goes on");
    assert_ne!(after.1, before.1);
    let of_second = of(second).len();
    let reads: Vec<String> = world.reads()[read..].iter().flatten().cloned().collect();
    assert_eq!(reads.len(), 2 * of_second, "two jobs, each once");
    assert_eq!(reads.into_iter().collect::<BTreeSet<_>>(), of(second));
    for name in ["list", "fed"] {
        let runs = world.outline(name).await;
        assert_eq!(runs.last(), Some(&(Trigger::Startup, Outcome::Ok, of_second)), "{name}");
        assert_eq!(world.runs(name).await.last().unwrap().all_tenants, Some(false), "{name}");
    }
    assert_eq!(world.outline("scheduled").await.len(), 1, "the schedule keeps it fresh");
    assert!(world.runs("off").await.is_empty());
    let success = world.status("list").last_success_at;
    assert_eq!(success, Some(world.runs("list").await[1].finished_at), "a part is not the whole");
    world.clock.advance(10 * MINUTE).await;
    let last = world.outline("list").await.pop();
    assert_eq!(last, Some((Trigger::Schedule, Outcome::Ok, TENANTS)), "and all is its own now");
}

#[tokio::test]
async fn the_first_shares_of_a_worker_are_its_start() {
    let [own, _] = halves();
    let world = member(Shares::NONE, [on_start(job("list"))]);
    world.clock.advance(MINUTE).await;
    world.take(own);
    world.clock.advance(SECOND).await;
    let runs = world.runs("list").await;
    assert_eq!(
        (runs.len(), runs[0].trigger, runs[0].all_tenants),
        (1, Trigger::Startup, Some(true))
    );
    assert_eq!(world.status("list").last_success_at, Some(runs[0].finished_at));
}

#[tokio::test]
async fn the_global_fence_moves_with_a_share_that_has_a_global_job() {
    let fleet = Job { scope: Scope::Global, keys: vec![key("all")], ..on_start(job("all")) };
    let share: Shares = Share::of_job(&fleet.name).into();
    let world = member(Shares::NONE, [fleet]);
    world.take(Shares::ALL - share);
    world.clock.advance(SECOND).await;
    assert_eq!(fence_of(&world, GLOBAL).await, Fence::Missing);
    assert!(world.reads().is_empty() && world.value("all").is_none());
    world.take(share);
    world.clock.advance(SECOND).await;
    assert_ne!(fence_of(&world, GLOBAL).await, Fence::Missing);
    assert_eq!(world.outline("all").await, [(Trigger::Startup, Outcome::Ok, 1)]);
}

#[tokio::test]
async fn takeovers_that_wait_become_one_run() {
    let [first, second] = halves();
    let world = member(first, [on_start(slow(job("list")))]);
    slow_reads(&world, SECOND);
    world.clock.advance(SECOND).await;
    for number in 32..64 {
        world.take(shares([number]));
        world.clock.advance(SECOND / 10).await;
    }
    world.clock.advance(2 * MINUTE).await;
    let expected = [first, second].map(|some| (Trigger::Startup, Outcome::Ok, of(some).len()));
    assert_eq!(world.outline("list").await, expected);
    assert_eq!(world.tenants_read(), of(Shares::ALL));
}

#[tokio::test]
async fn a_takeover_waits_for_the_servers_and_is_not_forgotten() {
    let [first, second] = halves();
    let world = member(first, [on_start(job("list"))]);
    world.clock.advance(SECOND).await;
    // Without the tenant list nobody knows whose fences to move.
    let away = || std::future::ready(Err(refused(SourceErrorKind::Unavailable)));
    world.source.before_tenants(move || away().boxed());
    world.take(second);
    world.clock.advance(30 * SECOND).await;
    let own = (Trigger::Startup, Outcome::Ok, of(first).len());
    assert_eq!(world.outline("list").await, [own], "nothing starts before the fences have moved");
    world.source.before_tenants(|| std::future::ready(Ok(())).boxed());
    world.clock.advance(30 * SECOND).await;
    let taken = (Trigger::Startup, Outcome::Ok, of(second).len());
    assert_eq!(world.outline("list").await, [own, taken]);
}

#[tokio::test]
async fn a_share_that_is_lost_and_taken_again_between_two_looks_is_started_for() {
    let world = member(Shares::ALL, [on_start(job("list"))]);
    world.clock.advance(SECOND).await;
    world.runner.ownership.lose_all();
    world.take(Shares::ALL);
    world.clock.advance(SECOND).await;
    let all = (Trigger::Startup, Outcome::Ok, TENANTS);
    assert_eq!(world.outline("list").await, [all, all]);
}

#[tokio::test]
async fn to_give_a_share_back_is_to_end_its_batch_in_flight_and_to_begin_none() {
    let world = member(Shares::ALL, [on_start(slow(job("list")))]);
    slow_reads(&world, SECOND);
    world.clock.advance(SECOND / 2).await;
    let in_flight = of_tenants(&["t0"]);
    let given = in_flight | of_tenants(&["t9", "t39"]);
    world.give_back(given);
    let idle = |some| world.runner.ownership.idle(some).now_or_never().is_some();
    assert!(!idle(given) && idle(given - in_flight));
    world.clock.advance(SECOND).await;
    assert!(idle(given));
    assert!(world.value("list:t0").is_some(), "what was in flight has ended");
    world.clock.advance(MINUTE).await;
    let left = of(given).into_iter().filter(|id| id != "t0").collect::<BTreeSet<_>>();
    assert!(left.contains("t9") && left.is_disjoint(&world.tenants_read()));
    let total = TENANTS - left.len();
    assert_eq!(world.outline("list").await, [(Trigger::Startup, Outcome::Ok, total)]);
}

#[tokio::test]
async fn to_lose_all_shares_stops_their_runs_at_once() {
    let world = member(Shares::ALL, [on_start(slow(job("list")))]);
    slow_reads(&world, SECOND);
    world.clock.advance(3 * SECOND + SECOND / 2).await;
    assert!(world.value("list:t2").is_some());
    world.runner.ownership.lose_all();
    world.clock.advance(5 * SECOND).await;
    assert!(world.value("list:t3").is_none(), "nothing in flight goes on");
    let runs = world.runs("list").await;
    assert_eq!((runs.len(), runs[0].outcome), (1, Outcome::Cancelled));
    assert_eq!(
        runs[0].report.failures[0].message,
        "the worker lost its shares: 37 tenants were left"
    );
    assert!(world.status("list").running.is_none());
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), 4);
}

#[tokio::test]
async fn a_request_goes_on_when_shares_are_lost() {
    let world = member(Shares::ALL, [slow(job("list"))]);
    slow_reads(&world, SECOND);
    let ticket = world.ask("list").await;
    world.clock.advance(3 * SECOND).await;
    world.runner.ownership.lose_all();
    let record = world.finish(ticket).await;
    assert_eq!((record.outcome, record.report.tenants.ok), (Outcome::Ok, TENANTS as u64));
}

#[tokio::test]
async fn a_member_keeps_the_changes_of_its_own_tenants() {
    let [own, others] = halves();
    let world = Fed::of(setup(own, [watching("list")])).await;
    let read = world.reads().len();
    let [one, other] = [own, others].map(|some| of(some).pop_first().unwrap());
    let stood = fence_of(&world, &fence_key(&other)).await;
    world.commit("list", 2, &[&one, &other]);
    world.tell("list", &[&one, &other]);
    world.rests().await;
    assert_eq!(world.reads()[read..], [vec![one.clone()]]);
    assert_eq!(fence_of(&world, &fence_key(&other)).await, stood, "its holder moves it");
    world.tell_all("list", None);
    world.rests().await;
    world.clock.advance(10 * SECOND).await;
    assert_eq!(world.tenants_read(), of(own), "any tenant is any of its own");
    world.take(others);
    world.rests().await;
    assert_eq!(world.value(&format!("list:{other}")), Some("[2]".to_owned()));
}

#[tokio::test]
async fn changes_that_wait_are_forgotten_when_their_share_goes() {
    let world = Fed::of(setup(Shares::ALL, [watching("list")])).await;
    slow_reads(&world, SECOND);
    world.tell("list", &["t0", "t1"]);
    world.rests().await;
    // Both rest while their run is under way, and wait.
    world.tell("list", &["t0", "t1"]);
    world.rests().await;
    let read = world.reads().len();
    world.give_back(of_tenants(&["t0"]));
    world.clock.advance(MINUTE).await;
    // The batch in flight goes on: its fences have moved.
    let both = ["t0", "t1"].map(str::to_owned).to_vec();
    assert_eq!(world.reads()[read..], [both, vec!["t1".to_owned()]]);
    assert_eq!(world.handle.pending(Vec::new()).await.unwrap().waiting, 0);
}

#[tokio::test]
async fn a_failed_change_is_not_tried_again_for_a_share_that_went() {
    let world = Fed::of(setup(Shares::ALL, [watching("list")])).await;
    let clock = world.clock.clone();
    world.source.before_read(move |_| {
        let asleep = clock.sleep(SECOND);
        Box::pin(async move {
            asleep.await;
            Err(refused(SourceErrorKind::Data))
        })
    });
    world.tell("list", &["t0"]);
    world.rests().await;
    world.give_back(of_tenants(&["t0"]));
    let read = world.reads().len();
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), read);
}

#[tokio::test]
async fn hazard_01_a_worker_comes_back_for_what_it_left_unverified_whoever_holds_it_by_then() {
    let world = member(Shares::ALL, [on_start(job("list"))]);
    world.clock.advance(SECOND).await;
    let (clock, cache) = (world.clock.clone(), Arc::clone(&world.cache));
    world.source.before_read(move |_| {
        let (asleep, cache) = (clock.sleep(SECOND), Arc::clone(&cache));
        Box::pin(async move {
            asleep.await;
            // The data changes, and another member takes the share.
            cache.move_fences(&[fence_key("t0")], 1 << 41).await.unwrap();
            Ok(())
        })
    });
    // It has written what it read before that, and not looked at the fence again.
    world.clock.advance(10 * MINUTE + SECOND / 2).await;
    assert_eq!(world.value("list:t0"), Some("[0]".to_owned()));
    world.runner.ownership.lose_all();
    world.source.before_read(|_| Box::pin(async { Ok(()) }));
    world.set_rows("list", Vec::new());
    world.clock.advance(10 * SECOND).await;
    assert_eq!(world.value("list:t0"), Some("[]".to_owned()), "its old value is not the last");
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

#[tokio::test]
async fn readiness_is_about_ones_own_shares() {
    let [first, second] = halves();
    let required = Job { required: true, ..on_start(job("list")) };
    let world = member(Shares::NONE, [required]);
    world.settle().await;
    let readiness = || world.handle.status().readiness(world.handle.now(), MINUTE);
    let waiting = || Readiness::Waiting { jobs: vec![JobName::parse("list").unwrap()] };
    assert_eq!(readiness(), Readiness::Ready, "a stand-by");
    slow_reads(&world, SECOND);
    world.take(first);
    world.settle().await;
    assert_eq!(readiness(), waiting());
    assert_eq!(world.handle.status().shares, Some(first));
    world.clock.advance(3 * SECOND).await;
    assert_eq!(readiness(), Readiness::Ready);
    world.take(second);
    world.settle().await;
    assert_eq!(readiness(), waiting());
    world.give_back(second);
    world.settle().await;
    assert_eq!(readiness(), Readiness::Ready);
    world.take(second);
    world.clock.advance(5 * SECOND).await;
    assert_eq!(readiness(), Readiness::Ready);
}

#[tokio::test]
async fn a_member_sweeps_its_own_tenants_and_asks_for_its_own_keys() {
    let [own, others] = halves();
    let mut world = member(own, [job("list")]);
    world.tasks.spawn(Arc::clone(&world.runner).watch_coverage(world.stops.clone()));
    let every = ids(0..TENANTS);
    world.warm("list").await;
    for id in of(others) {
        world.cache.evict(&format!("list:{id}"));
    }
    world.clock.advance(31 * SECOND).await;
    assert!(
        world.shows("preheat_coverage_ratio{job_name=\"list\"} 1.0"),
        "{}",
        world.metrics.encode()
    );
    world.warm("list").await;
    let [mine, theirs] = [own, others].map(|some| of(some).pop_last().unwrap());
    let mut left = Tenants::with_columns(["timezone"]);
    for id in every.iter().filter(|id| **id != mine && **id != theirs) {
        left.push(id, [Some("UTC")]);
    }
    world.source.set_tenants(left);
    world.warm("list").await;
    world.clock.advance(SECOND).await;
    assert!(world.value(&format!("list:{mine}")).is_none());
    assert!(world.value(&format!("list:{theirs}")).is_some(), "its holder sweeps it");
    world.take(others);
    world.clock.advance(11 * MINUTE).await;
    assert!(world.value(&format!("list:{theirs}")).is_none());
}

#[tokio::test]
async fn a_worker_that_loses_all_shares_of_a_job_forgets_what_the_verifier_found() {
    let mut world = member(Shares::ALL, [job("list")]);
    let name = JobName::parse("list").unwrap();
    let verifier = Verifier::new(Arc::clone(&world.runner), MINUTE, NonZeroUsize::MIN);
    let stops = world.stops.clone();
    world.tasks.spawn(async move { verifier.run(stops).await });
    world.warm("list").await;
    world.clock.advance(2 * MINUTE).await;
    let is_told = || {
        let figures = world.metrics.figures();
        let has_gauge = world.metrics.encode().contains("preheat_consistency_ratio{");
        (has_gauge, figures.audits().contains_key(&name), figures.findings().contains_key(&name))
    };
    world.give_back(of_tenants(&["t1"]));
    world.clock.advance(SECOND).await;
    assert_eq!(is_told(), (true, true, true), "of the tenants that are left");
    world.give_back(Shares::ALL);
    world.clock.advance(SECOND).await;
    assert_eq!(is_told(), (false, false, false));
}

#[tokio::test]
async fn a_worker_that_loses_a_share_forgets_who_was_not_warm() {
    let world = member(Shares::ALL, [on_start(slow(job("list")))]);
    world.on_read(|tenants| match tenants {
        [id] if id == "t0" || id == "t1" => Err(refused(SourceErrorKind::Data)),
        _ => Ok(()),
    });
    world.clock.advance(SECOND).await;
    assert_eq!(world.runner.not_warm.tenants(), 2);
    world.give_back(of_tenants(&["t1"]));
    world.settle().await;
    assert_eq!(world.runner.not_warm.tenants(), 1);
}

/// Two members of one fleet, with one cache and one clock.
struct Pair {
    members: [World; 2],
    /// What each of them holds.
    held: [Shares; 2],
    dice: Dice,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let jobs = || {
            let due = |seconds| Schedule::Every(Duration::from_secs(seconds));
            [
                Job { schedule: due(5), batch: many(7), ..on_start(job("list")) },
                Job { schedule: due(3_600), batch: many(5), ..watching("fed") },
            ]
        };
        let first =
            Setup { clock: VirtualClock::new(start(), seed), ..setup(Shares::NONE, jobs()) };
        let clock = first.clock.clone();
        let first = first.start();
        let second = Setup {
            clock,
            cache: Some(Arc::clone(&first.cache) as Arc<dyn Cache>),
            ledger: Some(Arc::clone(&first.cache) as Arc<dyn Ledger>),
            ..setup(Shares::NONE, jobs())
        };
        let members = [first, second.start()];
        let pair = Self { members, held: [Shares::NONE; 2], dice: Dice::new(seed) };
        pair.commit(0);
        pair
    }

    fn commit(&self, version: usize) {
        for member in &self.members {
            for name in ["list", "fed"] {
                let row = |id: &String| MemoryRow::new(id, &version.to_string(), []);
                member.set_rows(name, ids(0..TENANTS).iter().map(row).collect());
            }
        }
    }

    /// A share goes from wherever it is to a member, or to nobody.
    async fn deal(&mut self) {
        let some = shares((0..64).filter(|_| self.dice.chance(30)));
        let to = self.dice.size(0, 3);
        for (member, held) in self.members.iter().zip(&mut self.held) {
            if (*held & some).is_empty() {
                continue;
            }
            member.give_back(some);
            let ownership = Arc::clone(&member.runner.ownership);
            for _ in 0..1_000 {
                if ownership.idle(some).now_or_never().is_some() {
                    break;
                }
                member.clock.step().await;
            }
            assert!(ownership.idle(some).now_or_never().is_some(), "it never gives them back");
            *held = *held - some;
        }
        if let Some(member) = self.members.get(to) {
            member.take(some);
            self.held[to] = self.held[to] | some;
        }
    }
}

/// Whatever shares come and go: nobody reads a tenant that another holds, and in the end everybody is warm.
#[tokio::test]
async fn each_tenant_is_warmed_by_its_holder_while_shares_come_and_go() {
    for seed in 0..60 {
        let mut pair = Pair::new(seed);
        let clock = pair.members[0].clock.clone();
        for member in &pair.members {
            slow_reads(member, Duration::from_millis(pair.dice.between(1, 900)));
        }
        for _ in 0..25 {
            pair.deal().await;
            let read: Vec<usize> = pair.members.iter().map(|member| member.reads().len()).collect();
            clock.advance(Duration::from_millis(pair.dice.between(0, 4_000))).await;
            for ((member, read), held) in pair.members.iter().zip(read).zip(pair.held) {
                for id in member.reads()[read..].iter().flatten() {
                    assert!(held.has_tenant(id), "seed {seed}: `{id}` was read by another");
                }
            }
        }
        pair.commit(7);
        let [first, second] = &pair.members;
        first.runner.ownership.lose_all();
        second.runner.ownership.lose_all();
        let [one, other] = halves();
        first.take(one);
        second.take(other);
        clock.advance(20 * SECOND).await;
        for id in ids(0..TENANTS) {
            for name in ["list", "fed"] {
                let value = first.value(&format!("{name}:{id}"));
                assert_eq!(value.as_deref(), Some("[7]"), "seed {seed}: {name}:{id}");
            }
        }
    }
}
