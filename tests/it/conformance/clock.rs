//! The conformance suite of clocks.

use std::time::Duration;

use preheat::adapter::clock::SystemClock;
use preheat::engine::ports::Clock;

use crate::support::virtual_clock::VirtualClock;

const STEP: Duration = Duration::from_millis(20);

async fn conforms(clock: &dyn Clock, pass: impl AsyncFnOnce(Duration)) {
    let (wall, steady) = (clock.now(), clock.monotonic());
    let sleep = clock.sleep(STEP);
    pass(STEP).await;
    sleep.await;
    assert!(clock.monotonic() >= steady + STEP);
    assert!((clock.now() - wall).to_std().unwrap() >= STEP / 2, "a wall clock may be set");
    clock.sleep(Duration::ZERO).await;
    let numbers: Vec<_> = (0..1000).map(|_| clock.random()).collect();
    assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    assert!(numbers.iter().any(|number| *number < 0.1) && numbers.iter().any(|n| *n > 0.9));
}

#[tokio::test]
async fn the_system_clock_conforms() {
    conforms(&SystemClock::new(), async |_| ()).await;
}

#[tokio::test]
async fn the_virtual_clock_conforms() {
    let clock = VirtualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), 1);
    conforms(&clock, async |step| clock.advance(step).await).await;
}
