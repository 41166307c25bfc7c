//! Background tasks that panic.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use preheat::engine::ports::Clock;
use preheat::engine::tasks::supervisor::Supervisor;
use tokio_util::sync::CancellationToken;

use super::{MINUTE, SECOND, Said, Setup, World, tenants};

/// A world, and a supervisor of tasks in it.
fn supervised() -> (World, Supervisor, CancellationToken) {
    let world = Setup::new([], tenants(0)).start();
    let stop = CancellationToken::new();
    let supervisor = Supervisor::new(&world.runner.ports, stop.clone());
    (world, supervisor, stop)
}

#[tokio::test]
async fn a_task_that_panics_starts_again_each_time_with_its_state_and_after_a_pause() {
    let (mut world, supervisor, _stop) = supervised();
    let said = Said::default();
    let heard = said.hear();
    let starts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let state = (0, Arc::clone(&starts), world.clock.clone());
    world.tasks.spawn(supervisor.keep_running("task", state, |(started, starts, clock)| {
        async move {
            *started += 1;
            starts.lock().unwrap().push(clock.monotonic());
            let steady = if *started == 12 { 2 * MINUTE } else { Duration::ZERO };
            clock.sleep(steady).await;
            if *started < 14 {
                resume_unwind(Box::new("a defect, on purpose"));
            }
        }
        .boxed()
    }));
    world.clock.advance(10 * MINUTE).await;
    drop(heard);
    let starts = starts.lock().unwrap().clone();
    let pauses: Vec<_> = starts.windows(2).map(|two| two[1].saturating_sub(two[0])).collect();
    let pause = |millis: u64| Duration::from_millis(millis);
    let growing = [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000, 10_000];
    let mut expected: Vec<_> = growing.map(pause).to_vec();
    // A task that worked for long starts again soon.
    expected.extend([2 * MINUTE + pause(100), pause(200)]);
    assert_eq!(pauses, expected);
    let logged = said.text();
    let errors = logged.lines().filter(|line| line.contains("ERROR")).count();
    assert_eq!(errors, 13, "one for each panic: {logged}");
    assert!(logged.contains("the background task `task` panicked: this is a defect of preheat"));
}

#[tokio::test]
async fn a_task_that_panicked_does_not_start_again_once_the_worker_stops() {
    let (world, supervisor, stop) = supervised();
    let mut starts = 0;
    let panicking = supervisor.keep_running("task", &mut starts, |starts| {
        **starts += 1;
        async { resume_unwind(Box::new("a defect, on purpose")) }.boxed()
    });
    let stopping = async {
        world.clock.advance(SECOND / 20).await;
        stop.cancel();
    };
    tokio::join!(panicking, stopping);
    assert_eq!(starts, 1);
}
