//! A clock that tests move.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use preheat::engine::ports::Clock;
use tokio::sync::{oneshot, watch};

use super::dice::Dice;

/// A clock that stands still until a test moves it.
///
/// Its random numbers come from a seed, so that a run on one thread is the same every time.
#[derive(Clone, Debug)]
pub(crate) struct VirtualClock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: DateTime<Utc>,
    state: Mutex<State>,
    dice: Mutex<Dice>,
    /// How many tasks sleep, for tests that wait for sleeping tasks.
    sleeping: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    elapsed: Duration,
    /// The sum of all changes of the wall clock.
    set_by: TimeDelta,
    asleep: u64,
    /// How often tasks have read the clock or begun to sleep.
    asked: u64,
    /// The sleepers, by the time when they wake and then by the order in which they began to sleep.
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

/// Time moves on once all tasks have had this many turns, on a runtime with one thread, in which
/// none has used the clock: enough for a chain of tasks, each of which wakes the next.
const QUIET_TURNS: usize = 12;
/// Time moves on after this many turns in any case.
const MOST_TURNS: usize = 4096;

impl VirtualClock {
    /// A clock that shows `start`; `seed` determines its random numbers.
    pub(crate) fn new(start: DateTime<Utc>, seed: u64) -> Self {
        let (sleeping, _) = watch::channel(0);
        let (state, dice) = (Mutex::default(), Mutex::new(Dice::new(seed)));
        Self { shared: Arc::new(Shared { start, state, dice, sleeping }) }
    }

    /// Moves time on. Sleepers wake in order, each at its time. On a runtime with one thread, what
    /// a sleeper then does, and the sleeps that it begins, come before the next sleeper.
    pub(crate) async fn advance(&self, by: Duration) {
        let until = self.state().elapsed + by;
        self.settle().await;
        while self.wake_next(until) {
            self.settle().await;
        }
        self.state().elapsed = until;
    }

    /// Moves time on at once, as if the whole process had been suspended: all sleepers whose time
    /// has come wake together and late.
    pub(crate) async fn stall(&self, by: Duration) {
        let until = {
            let mut state = self.state();
            state.elapsed += by;
            state.elapsed
        };
        while self.wake_next(until) {}
        self.settle().await;
    }

    /// Sets the wall clock forward or back; no sleeper wakes because of that.
    pub(crate) fn set_by(&self, by: TimeDelta) {
        let mut state = self.state();
        state.set_by += by;
    }

    /// Moves time on to the next sleeper's time; returns whether there was a sleeper.
    pub(crate) async fn step(&self) -> bool {
        self.settle().await;
        let Some(at) = self.next_wake() else { return false };
        self.wake_next(at);
        self.settle().await;
        true
    }

    /// When the next sleeper wakes, in the terms of [`Clock::monotonic`].
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let mut state = self.state();
        state.sleepers.retain(|_, sleeper| !sleeper.is_closed());
        state.sleepers.keys().next().map(|(at, _)| *at)
    }

    /// Ends when at least this many tasks sleep.
    pub(crate) async fn until_sleeping(&self, count: usize) {
        let mut sleeping = self.shared.sleeping.subscribe();
        // The sender lives as long as `self`, so the wait never fails.
        drop(sleeping.wait_for(|now| *now >= count).await);
    }

    async fn settle(&self) {
        let mut quiet = 0;
        let mut asked = self.state().asked;
        for _ in 0..MOST_TURNS {
            tokio::task::yield_now().await;
            let before = std::mem::replace(&mut asked, self.state().asked);
            quiet = if asked == before { quiet + 1 } else { 0 };
            if quiet == QUIET_TURNS {
                return;
            }
        }
    }

    /// Wakes the first sleeper whose time is not later than `until`; returns whether there was one.
    fn wake_next(&self, until: Duration) -> bool {
        let mut state = self.state();
        while let Some(first) = state.sleepers.first_entry() {
            let at = first.key().0;
            if at > until {
                return false;
            }
            let sleeper = first.remove();
            state.elapsed = state.elapsed.max(at);
            // A sleeper that was dropped needs no waking.
            if sleeper.send(()).is_ok() {
                return true;
            }
        }
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        let mut state = self.state();
        state.asked += 1;
        let elapsed = TimeDelta::from_std(state.elapsed).unwrap_or(TimeDelta::MAX);
        self.shared.start + elapsed + state.set_by
    }

    fn monotonic(&self) -> Duration {
        let mut state = self.state();
        state.asked += 1;
        state.elapsed
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if duration.is_zero() {
            return Box::pin(async {});
        }
        let (wake, woken) = oneshot::channel();
        {
            let mut state = self.state();
            state.asleep += 1;
            state.asked += 1;
            let place = (state.elapsed + duration, state.asleep);
            state.sleepers.insert(place, wake);
        }
        let asleep = Asleep::new(Arc::clone(&self.shared));
        Box::pin(async move {
            // The other end is in the clock, which `asleep` keeps alive.
            drop(woken.await);
            drop(asleep);
        })
    }

    fn random(&self) -> f64 {
        self.shared.dice.lock().unwrap_or_else(PoisonError::into_inner).uniform()
    }
}

/// Counts a sleeper as long as it sleeps.
struct Asleep(Arc<Shared>);

impl Asleep {
    fn new(shared: Arc<Shared>) -> Self {
        shared.sleeping.send_modify(|count| *count += 1);
        Self(shared)
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        self.0.sleeping.send_modify(|count| *count -= 1);
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn clock() -> VirtualClock {
    VirtualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), 7)
}

#[tokio::test]
async fn sleepers_wake_in_order_and_each_at_its_moment() {
    let clock = clock();
    let woken = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for seconds in [3, 1, 2] {
        let (clock, woken) = (clock.clone(), Arc::clone(&woken));
        tasks.spawn(async move {
            clock.sleep(SECOND * seconds).await;
            woken.lock().unwrap().push((seconds, clock.monotonic()));
            clock.sleep(SECOND * 4).await;
            woken.lock().unwrap().push((seconds + 4, clock.monotonic()));
        });
    }
    clock.until_sleeping(3).await;
    assert_eq!(clock.next_wake(), Some(SECOND));
    clock.advance(SECOND * 6).await;
    let seen: Vec<_> = [1, 2, 3, 5, 6].map(|second| (second, SECOND * second)).to_vec();
    assert_eq!(*woken.lock().unwrap(), seen);
    assert_eq!(clock.now().to_string(), "2026-03-01 00:00:06 UTC");
    assert!(clock.step().await);
    assert_eq!(clock.monotonic(), SECOND * 7);
    assert!(!clock.step().await);
}

#[tokio::test]
async fn a_stall_wakes_all_at_its_end() {
    let clock = clock();
    let (first, second) = (clock.sleep(SECOND), clock.sleep(SECOND * 2));
    clock.stall(SECOND * 10).await;
    first.await;
    second.await;
    assert_eq!(clock.monotonic(), SECOND * 10);
}

#[tokio::test]
async fn setting_the_wall_clock_moves_nothing_else() {
    let clock = clock();
    clock.stall(SECOND).await;
    clock.set_by(TimeDelta::minutes(-5));
    assert_eq!(clock.now().to_string(), "2026-02-28 23:55:01 UTC");
    assert_eq!(clock.monotonic(), SECOND);
}

#[tokio::test]
async fn a_sleep_that_was_given_up_is_forgotten() {
    let clock = clock();
    drop(clock.sleep(SECOND));
    assert_eq!(clock.next_wake(), None);
}

#[test]
fn random_numbers_are_uniform_and_follow_from_the_seed() {
    let numbers = || {
        let clock = clock();
        (0..10_000).map(move |_| clock.random()).collect::<Vec<_>>()
    };
    let found = numbers();
    assert_eq!(found, numbers());
    assert!(found.iter().all(|number| (0.0..1.0).contains(number)));
    let mean = found.iter().sum::<f64>() / 10_000.0;
    assert!((0.48..0.52).contains(&mean), "{mean}");
}
