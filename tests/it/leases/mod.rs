//! The leases of a fleet, in a simulated world.

mod keeper;
mod world;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use preheat::domain::fleet::{BEAT, LEASE};
use preheat::domain::share::Share;

use self::world::{Sabotage, World};

const SECOND: Duration = Duration::from_secs(1);
/// After this time without a fault, all is at rest.
const REST: Duration = Duration::from_secs(40);

/// Fleets of three, to which anything happens: as many seeds as a test run has seconds for.
const SCHEDULES: u64 = 10_000;

/// A fleet that is at rest.
fn fleet(seed: u64, replicas: usize, sabotage: Sabotage, slow_messages: u64) -> World {
    let mut world = World::new(seed, sabotage).with_slow_messages(slow_messages);
    for _ in 0..replicas {
        world.join();
        let pause = Duration::from_millis(world.dice.between(0, 3_000));
        world.pass(pause);
    }
    world
}

/// Kills, stalls, partitions, joins and leaves, one after the other.
fn hurt(world: &mut World) {
    let alive = world.alive();
    let one = alive[world.dice.below(alive.len())];
    let time = |world: &mut World| Duration::from_millis(world.dice.between(100, 25_000));
    match world.dice.below(8) {
        0 if alive.len() < 6 => drop(world.join()),
        1 if alive.len() > 1 => world.leave(one),
        2 if alive.len() > 1 => world.kill(one),
        3 | 4 => {
            let by = time(world);
            world.suspend(one, by);
        }
        5 | 6 => {
            let by = time(world);
            world.part(one, by);
        }
        _ => {}
    }
}

fn any_schedule(seed: u64, sabotage: Sabotage) -> World {
    let replicas = 2 + usize::try_from(seed % 3).unwrap();
    let mut world = fleet(seed, replicas, sabotage, seed % 4 * 3);
    for _ in 0..5 {
        hurt(&mut world);
        let pause = Duration::from_millis(world.dice.between(100, 8_000));
        world.pass(pause);
        if world.wrong.is_some() {
            break;
        }
    }
    world
}

/// Runs the check for all seeds, on two threads.
fn each_seed(seeds: u64, check: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        for half in 0..2 {
            let check = &check;
            scope.spawn(move || {
                for seed in (half..seeds).step_by(2) {
                    let checked = std::panic::catch_unwind(AssertUnwindSafe(|| check(seed)));
                    assert!(checked.is_ok(), "seed {seed}");
                }
            });
        }
    });
}

#[test]
fn no_share_ever_has_two_holders_and_at_rest_each_has_one() {
    each_seed(SCHEDULES, |seed| {
        let mut world = any_schedule(seed, Sabotage::None);
        assert_eq!(world.wrong, None);
        if seed % 10 == 0 {
            // The last fault may last for 25 seconds.
            world = world.with_slow_messages(0);
            world.pass(25 * SECOND + REST);
            assert_eq!(world.wrong, None);
            world.check_rest();
        }
    });
}

#[test]
fn each_sabotage_is_caught() {
    for sabotage in [
        Sabotage::NoMargin,
        Sabotage::CountsFromAnswer,
        Sabotage::HandsOverBusy,
        Sabotage::NeverLoses,
    ] {
        let caught = (0..SCHEDULES).find(|seed| any_schedule(*seed, sabotage).wrong.is_some());
        assert!(caught.is_some(), "{sabotage:?}");
    }
}

#[test]
fn a_server_that_loses_its_data_comes_to_the_same_rest() {
    each_seed(200, |seed| {
        let mut world = fleet(seed, 3, Sabotage::None, 0);
        // Two may hold a share then, for the time of a beat: fences are the reason that this does no harm.
        world.is_strict = false;
        world.pass(REST);
        let before = world.holders();
        world.forget();
        world.server.flush();
        world.pass(REST);
        world.check_rest();
        assert_eq!(world.holders(), before);
        assert!(world.longest_vacant <= BEAT * 2, "{:?}", world.longest_vacant);
    });
}

/// The shares that have other holders than before.
fn moved(before: &BTreeMap<Share, usize>, after: &BTreeMap<Share, usize>) -> Vec<(usize, usize)> {
    let pairs = before.iter().map(|(share, from)| (*from, after[share]));
    pairs.filter(|(from, to)| from != to).collect()
}

#[test]
fn no_share_moves_without_need() {
    each_seed(1_000, |seed| {
        let mut world = fleet(seed, 1 + usize::try_from(seed % 6).unwrap(), Sabotage::None, 0);
        world.pass(REST);
        world.check_rest();
        let before = world.holders();
        world.forget();
        let alive = world.alive();
        let one = alive[world.dice.below(alive.len())];
        let held = world.held(one).len();
        let short = Duration::from_millis(world.dice.between(100, 3_000));
        let moves = match world.dice.below(5) {
            0 => {
                let new = world.join();
                world.pass(REST);
                let moves = moved(&before, &world.holders());
                assert!(moves.iter().all(|(_, to)| *to == new));
                assert_eq!(moves.len(), world.held(new).len() as usize);
                moves
            }
            kind @ (1 | 2) if alive.len() > 1 => {
                if kind == 1 {
                    world.leave(one);
                } else {
                    world.kill(one);
                }
                world.pass(REST);
                let moves = moved(&before, &world.holders());
                assert!(moves.iter().all(|(from, _)| *from == one));
                assert_eq!(moves.len(), held as usize);
                moves
            }
            3 => {
                world.suspend(one, short * 2);
                world.pass(REST);
                moved(&before, &world.holders())
            }
            _ => {
                world.part(one, short);
                world.pass(REST);
                moved(&before, &world.holders())
            }
        };
        world.check_rest();
        assert_eq!(world.takes as usize, moves.len(), "a share moved twice");
        if world.alive().len() == alive.len() {
            assert_eq!(moves, []);
        }
    });
}

#[test]
fn in_a_rolling_deploy_each_share_moves_once() {
    each_seed(100, |seed| {
        let mut world = fleet(seed, 3, Sabotage::None, 0);
        world.pass(REST);
        world.forget();
        for old in 0..3 {
            world.join();
            // The new one is ready after some seconds.
            let pause = Duration::from_millis(world.dice.between(3_000, 9_000));
            world.pass(pause);
            world.leave(old);
            let pause = Duration::from_millis(world.dice.between(100, 2_000));
            world.pass(pause);
        }
        world.pass(REST);
        world.check_rest();
        assert_eq!(world.takes, 64);
    });
}

#[test]
fn shares_of_a_dead_member_are_vacant_for_its_lease_and_two_seconds_at_most() {
    each_seed(1_000, |seed| {
        let mut world = fleet(seed, 3, Sabotage::None, 0);
        world.pass(REST);
        world.forget();
        world.kill(0);
        if seed % 2 == 0 {
            // Before it can take any of these shares.
            let pause = Duration::from_millis(world.dice.between(0, 7_500));
            world.pass(pause);
            world.suspend(1, SECOND * 60);
            world.pass(SECOND * 60);
        }
        world.pass(REST);
        world.check_rest();
        let most = LEASE + SECOND * 2;
        assert!(world.longest_vacant <= most, "{:?}", world.longest_vacant);
    });
}
