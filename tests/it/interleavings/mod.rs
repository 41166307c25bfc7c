//! A model of the protocol of fences and manifests, in a world so small that millions of its interleavings
//! can be tried: two tenants with three keys each and two shared keys, two warmers, writers and readers of
//! the application, the change feed, and every fault that may happen, one atomic step at a time.
//!
//! In reading order: `world` is the database and the cache, and the effect of each command. `warmer` does the
//! steps of the machine that decides in the worker as well ([`preheat::domain::protocol`]). `others` are the
//! actors that change data and report it; `readers` fill keys that they miss. `schedule` decides which actor has the next step, and says what
//! must hold when all actors have finished: nothing in the cache is old, no key is left whose data are gone,
//! no key is missing that nothing removed, and every data key is in its manifest. A shared key may be missing
//! if another tenant's run wrote over it or set its TTL. It may be old only if something was lost or
//! interrupted; then it expires by its TTL, and no run renews it.
//!
//! In some schedules two processes are members of a fleet: each warms the tenants that it holds and keeps their changes
//! alone. At any step, a process may be away for so long that its lease ends. It goes on as before until it notices that,
//! and meanwhile the other takes the tenants: so both hold them, between any two steps of either. A process that dies
//! after it came back, before it could follow up what it wrote for a tenant that it had lost, may leave old values (see
//! `abandoned`).
//!
//! There is no time. A manifest entry may be pruned at any moment when its key does not exist and all runs
//! have ended that were under way when it was added, or that relied on it. A run may consider any entry that
//! it has read fresh enough to rely on.
//!
//! A seed determines a schedule. A schedule that fails is printed step by step; `PREHEAT_SCHEDULE=SEED cargo
//! test --test it interleavings` prints it again, and `PREHEAT_SCHEDULES=10000000` tries that many. Breaking
//! the protocol, or its surroundings, in all the ways of [`Harm`] shows what the model would catch.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an actor of the model does some steps, and leaves all others to the world"
)]

mod others;
mod problem;
mod readers;
mod schedule;
mod warmer;
mod world;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use preheat::domain::protocol::Sabotage;
use problem::{Harm, Problem, Situation, Sum};
use schedule::Schedule;

/// How many schedules are tried by default.
const SCHEDULES: u64 = 1_000_000;
/// Each harm shows in one of this many schedules.
const UNTIL_FOUND: u64 = 2_000_000;

#[test]
fn hazard_01_no_schedule_ends_with_an_old_value_in_the_cache() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("PREHEAT_SCHEDULE") {
        let (problem, trace) = replay(seed, None);
        say(&trace);
        assert_eq!(problem, None);
        return;
    }
    let schedules = number("PREHEAT_SCHEDULES").unwrap_or(SCHEDULES);
    let (failure, sum) = explore(schedules, None, |_| true);
    assert!(failure.is_none(), "{}", failure.unwrap());
    say(&format!("{sum:?}"));
    for (situation, count) in Situation::ALL.into_iter().zip(sum.met) {
        assert!(count * 20_000 >= schedules, "{situation:?} was met {count} times");
    }
}

#[test]
fn hazard_01_a_warmer_that_does_not_look_or_does_not_come_back_leaves_old_values() {
    end_with_an_old_value(&[
        Harm::Protocol(Sabotage::NoLookAfter),
        Harm::Protocol(Sabotage::FencesAfterQuery),
        Harm::Protocol(Sabotage::LastRoundCounts),
        Harm::Protocol(Sabotage::RefusalsForgotten),
        Harm::Protocol(Sabotage::LossesForgotten),
        Harm::Protocol(Sabotage::EarlierRoundsForgotten),
        Harm::NoFollowUps,
        Harm::NoPauseAfterLoss,
        Harm::NoRunAfterCrash,
    ]);
}

#[test]
fn hazard_01_a_fence_that_may_come_to_the_same_number_again_proves_nothing() {
    end_with_an_old_value(&[Harm::Protocol(Sabotage::BareFences), Harm::BareFencesRelied]);
}

#[test]
fn hazard_01_an_application_that_deletes_before_it_moves_the_fence_leaves_old_values() {
    end_with_an_old_value(&[Harm::DeletesBeforeMoving]);
}

#[test]
fn hazard_01_a_fence_that_lives_for_less_time_than_a_run_never_verifies_anything() {
    ends(Harm::ShortFences, |problem| problem == Problem::Restless);
}

#[test]
fn hazard_02_a_feed_that_moves_no_fence_or_forgets_what_it_missed_leaves_old_values() {
    end_with_an_old_value(&[Harm::FeedWithoutFence, Harm::NoRunAfterLoss]);
}

#[test]
fn hazard_07_a_manifest_that_names_too_little_leaves_keys_whose_data_is_gone() {
    end_with_an_old_value(&[
        Harm::Protocol(Sabotage::NamesAfterKeys),
        Harm::Protocol(Sabotage::OnlyNewNamed),
        Harm::DelistedBeforeRemoval,
        Harm::PrunedAtOnce,
    ]);
}

#[test]
fn hazard_07_a_shared_key_is_old_where_it_is_extended_or_where_the_feed_removes_it_too_early_or_never()
 {
    end_with_an_old_value(&[
        Harm::Protocol(Sabotage::SharedExtended),
        Harm::DropsBeforeMoving,
        Harm::GoneKeysStay,
    ]);
}

#[test]
fn hazard_01_a_reader_that_does_not_compare_the_fence_of_before_its_load_leaves_old_values() {
    end_with_an_old_value(&[
        Harm::FillNotCompared,
        Harm::FenceReadAfterLoad,
        Harm::BriefFillExtended,
        Harm::DataKeysFilledForLong,
    ]);
}

#[test]
fn hazard_01_a_takeover_that_moves_no_fence_or_runs_for_nobody_leaves_old_values() {
    end_with_an_old_value(&[
        Harm::TakenWithoutFences,
        Harm::TakenWithoutRun,
        Harm::LostNotFollowedUp,
    ]);
}

fn end_with_an_old_value(harms: &[Harm]) {
    for harm in harms {
        ends(*harm, |problem| matches!(problem, Problem::Stale { .. }));
    }
}

/// Checks that some schedule ends in such a way if the protocol is broken like this.
fn ends(harm: Harm, is_wanted: impl Fn(Problem) -> bool + Sync) {
    let (failure, _) = explore(UNTIL_FOUND, Some(harm), is_wanted);
    let failure = failure.unwrap_or_else(|| panic!("{harm:?} does no harm"));
    say(&format!("{harm:?}: {failure}\n"));
}

/// Prints for a person who runs the tests with `--nocapture`.
#[expect(clippy::print_stdout, reason = "a trace is there to be read")]
fn say(text: &str) {
    println!("{text}");
}

/// A schedule that ended badly.
struct Failure {
    seed: u64,
    problem: Problem,
    trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, problem, trace } = self;
        write!(f, "schedule {seed}: {problem}\n{trace}")
    }
}

/// The same schedule again, with its trace.
fn replay(seed: u64, harm: Option<Harm>) -> (Option<Problem>, String) {
    let mut schedule = Schedule::new(seed, harm, true);
    let problem = schedule.run().err();
    (problem, schedule.trace())
}

/// Tries this many schedules on all cores; returns the first one that ends in such a way.
fn explore(
    schedules: u64,
    harm: Option<Harm>,
    is_wanted: impl Fn(Problem) -> bool + Sync,
) -> (Option<Failure>, Sum) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let bound = AtomicU64::new(schedules);
    let of_thread = |first: u64| {
        let mut sum = Sum::default();
        let mut seed = first;
        while seed < bound.load(Ordering::Relaxed) {
            match Schedule::new(seed, harm, false).run() {
                Ok(course) => sum.add(course),
                Err(problem) if is_wanted(problem) => {
                    bound.fetch_min(seed, Ordering::Relaxed);
                }
                Err(_) => {}
            }
            seed += threads;
        }
        sum
    };
    let sum = std::thread::scope(|scope| {
        let tries: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || of_thread(first))).collect();
        tries.into_iter().map(|thread| thread.join().unwrap()).fold(Sum::default(), Sum::join)
    });
    let first = bound.into_inner();
    let failure = (first < schedules).then(|| {
        let (problem, trace) = replay(first, harm);
        Failure { seed: first, problem: problem.unwrap(), trace }
    });
    (failure, sum)
}
