//! The invalidations of a worker: a bounded number at once, and no new ones once it drains.

use std::sync::Arc;

use preheat::domain::job::Job;
use preheat::domain::report::FailureKind;
use preheat::engine::ports::Clock;
use preheat::invalidate::InvalidateError;

use super::{jobs, keys, world};
use crate::engine::ledger::Call;
use crate::engine::{SECOND, Setup, a_row_each, job, many, tenants};

#[tokio::test]
async fn a_worker_that_stops_leaves_the_rest_and_says_so() {
    let world = Setup::new([Job { batch: many(400), ..job("list") }], tenants(400)).start();
    world.set_rows("list", a_row_each(400));
    world.warm("list").await;
    let stops = world.stops.clone();
    world.cache.refuse(move |key| {
        if key == "list:t150" {
            stops.drain.cancel();
        }
        None
    });
    let report = world.report(jobs(&["list"])).await;
    assert_eq!((report.complete, report.removed), (false, 200), "the slice at hand is finished");
    assert_eq!(report.failures[0].kind, FailureKind::Cancelled);
    world.ended().await;
    let gone = world.invalidate(jobs(&["list"])).await.unwrap_err();
    assert_eq!(gone, InvalidateError::Draining);
}

#[tokio::test]
async fn only_so_many_are_under_way_at_once_and_a_worker_that_drains_waits_for_them() {
    let world = world().await;
    let clock = world.clock.clone();
    world.ledger.before(move |call| {
        let asleep = clock.sleep(SECOND);
        Box::pin(async move {
            if call == Call::MoveFences {
                asleep.await;
            }
            Ok(())
        })
    });
    let ask = |world: &crate::engine::World, key: &str| {
        let (invalidations, request) = (Arc::clone(&world.invalidations), keys(&[key]));
        tokio::spawn(async move { invalidations.invalidate(request).await })
    };
    let under_way: Vec<_> = (0..16).map(|_| ask(&world, "list:t1")).collect();
    world.settle().await;
    let refused = world.invalidations.invalidate(keys(&["list:t1"])).await.unwrap_err();
    assert_eq!(refused, InvalidateError::Busy);

    world.stops.drain.cancel();
    world.settle().await;
    let refused = world.invalidations.invalidate(keys(&["list:t1"])).await.unwrap_err();
    assert_eq!(refused, InvalidateError::Draining);
    assert!(!world.has_ended(), "it waits for those under way");
    world.ended().await;
    let mut removed = 0;
    for done in under_way {
        removed += done.await.unwrap().unwrap().report.removed;
    }
    assert_eq!(removed, 1);
}

#[tokio::test]
async fn a_worker_that_aborts_waits_for_no_invalidation() {
    let world = world().await;
    world.ledger.before(|call| {
        Box::pin(async move {
            if call == Call::MoveFences {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    });
    let (invalidations, request) = (Arc::clone(&world.invalidations), keys(&["list:t1"]));
    let stuck = tokio::spawn(async move { invalidations.invalidate(request).await });
    world.settle().await;
    world.stops.drain.cancel();
    world.settle().await;
    assert!(!world.has_ended());
    world.stops.abort.cancel();
    world.ended().await;
    assert_eq!(stuck.await.unwrap().unwrap_err(), InvalidateError::Draining);
}
