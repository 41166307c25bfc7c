//! The protocol of fences and manifests, in a world so small that its interleavings can be tried by the
//! million: two tenants with three keys each and two shared keys, two warmers, writers and a reader of the
//! application, the change feed, and everything that may go wrong, one atomic step at a time.
//!
//! In reading order: `world` is the database and the cache, and what one command does; `warmer` does the
//! steps of the machine that decides in the worker as well ([`preheat::domain::protocol`]); `others` are
//! those who change data and say so; `schedule` decides who has the next step, and says what must hold when
//! all has come to rest: nothing in the cache is old, nothing whose data is gone is left, nothing is missing
//! that nobody took away, and every data key is in its manifest. A shared key may be missing where another
//! tenant's run wrote over it or set its TTL, and it may be old only where something was lost or cut off: then
//! it ends by its TTL, and nobody renews it.
//!
//! There is no time: a name may end by age at any moment when its key is not there and no run is left of those
//! that were under way when it was added, or that relied on it; and a run may find any name that it read young
//! enough to rely on.
//!
//! A schedule follows from its seed. One that fails is printed step by step;
//! `PREHEAT_SCHEDULE=SEED cargo test --test it interleavings` prints it again, and
//! `PREHEAT_SCHEDULES=10000000` tries so many. What the model would catch is shown by breaking the protocol,
//! or what is around it, in all the ways of [`Harm`].

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an actor of the model does some steps, and leaves all others to the world"
)]

mod others;
mod schedule;
mod warmer;
mod world;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use preheat::domain::protocol::Sabotage;
use schedule::{Harm, Problem, Schedule, Situation, Sum};

/// So many schedules, where nothing else is asked for.
const SCHEDULES: u64 = 1_000_000;
/// Each harm shows in one of so many.
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
        Harm::DelistedAtOnce,
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

fn end_with_an_old_value(harms: &[Harm]) {
    for harm in harms {
        ends(*harm, |problem| matches!(problem, Problem::Stale { .. }));
    }
}

/// Some schedule ends in such a way where the protocol is broken like this.
fn ends(harm: Harm, is_wanted: impl Fn(Problem) -> bool + Sync) {
    let (failure, _) = explore(UNTIL_FOUND, Some(harm), is_wanted);
    let failure = failure.unwrap_or_else(|| panic!("{harm:?} does no harm"));
    say(&format!("{harm:?}: {failure}\n"));
}

/// For whoever runs the tests with `--nocapture`.
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

/// Tries so many schedules on all cores; answers the first one that ends in such a way.
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
