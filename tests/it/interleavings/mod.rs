//! The protocol of fences and manifests, in a world so small that its interleavings can be tried by
//! the million.

mod others;
mod schedule;
mod warmer;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use schedule::{Problem, Sabotage, Schedule};

/// Schedules, where nothing else is asked for.
const SCHEDULES: u64 = 1_000_000;
/// Each sabotage is found in so many.
const BOUND: u64 = 500_000;

struct Failure {
    seed: u64,
    problem: Problem,
}

/// Tries the seeds on all cores; answers the lowest that fails, and the steps of all.
fn explore(seeds: u64, sabotage: Option<Sabotage>) -> (Option<Failure>, u64) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bound = AtomicU64::new(seeds);
    let steps = AtomicU64::new(0);
    let failures: Vec<Failure> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..threads)
            .map(|first| {
                let (bound, steps) = (&bound, &steps);
                scope.spawn(move || {
                    let mut seed = first as u64;
                    let mut sum = 0;
                    let mut failure = None;
                    while seed < bound.load(Ordering::Relaxed) {
                        match Schedule::new(seed, sabotage, false).run() {
                            Ok(steps) => sum += u64::from(steps),
                            Err(problem) => {
                                bound.fetch_min(seed, Ordering::Relaxed);
                                failure = Some(Failure { seed, problem });
                            }
                        }
                        seed += threads as u64;
                    }
                    steps.fetch_add(sum, Ordering::Relaxed);
                    failure
                })
            })
            .collect();
        tries.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    let lowest = failures.into_iter().min_by_key(|failure| failure.seed);
    (lowest, steps.into_inner())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn try_it() {
    let (failure, steps) = explore(number("PREHEAT_SCHEDULES").unwrap_or(SCHEDULES), None);
    println!("{steps} steps");
    if let Some(Failure { seed, problem }) = failure {
        let mut schedule = Schedule::new(seed, None, true);
        let _ = schedule.run();
        panic!("seed {seed}: {problem}\n{}", schedule.trace());
    }
}

#[test]
fn sabotages() {
    for sabotage in Sabotage::ALL {
        match explore(number("PREHEAT_SCHEDULES").unwrap_or(BOUND), Some(sabotage)) {
            (Some(Failure { seed, problem }), _) => println!("{sabotage:?}: {seed}: {problem}"),
            (None, steps) => println!("{sabotage:?}: NOT FOUND {steps}"),
        }
    }
}
