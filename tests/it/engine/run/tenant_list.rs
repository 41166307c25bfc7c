//! The tenant list that a run goes by.

use preheat::domain::change::{Changed, Touched};
use preheat::domain::job::{Job, JobName};
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::domain::tenant::TenantId;
use preheat::engine::ports::{Clock, SourceErrorKind};
use preheat::engine::schedule::handle::{JobSelection, RunRequest};

use super::{kinds, world_of};
use crate::engine::{
    Count, SECOND, Setup, a_row_each, ids, job, many, ready, refused, slow_reads, tenants,
};

#[tokio::test]
async fn a_list_that_was_begun_before_another_one_and_ends_after_it_is_of_the_past() {
    let world = Setup::new(["early", "late", "third"].map(job), tenants(3)).start();
    let (lists, clock) = (Count::default(), world.clock.clone());
    let count = lists.clone();
    world.source.before_tenants(move || {
        // The first reading takes so long that the next run begins its own.
        let asleep = (count.up() == 0).then(|| clock.sleep(10 * SECOND));
        Box::pin(async move {
            if let Some(asleep) = asleep {
                asleep.await;
            }
            Ok(())
        })
    });
    let early = world.ask("early").await;
    world.clock.advance(7 * SECOND).await;
    world.source.set_tenants(tenants(4));
    world.warm("late").await;
    world.source.set_tenants(tenants(3));
    world.finish(early).await;
    world.source.set_tenants(tenants(4));
    assert_eq!(lists.now(), 2);

    let changed = Touched::Tenants([TenantId::new("t3")].into());
    let jobs = [(JobName::parse("third").unwrap(), changed)].into();
    world.handle.changed(Changed::Jobs { jobs, heard_at: world.clock.monotonic() }).await;
    world.clock.advance(SECOND).await;
    assert!(world.value("third:t3").is_some());
    assert_eq!(lists.now(), 3, "its small query says no other thing than the latest list");
}

#[tokio::test]
async fn the_tenant_list_is_read_once_for_runs_that_start_together() {
    let setup = Setup::new(["a", "b", "c"].map(job), tenants(5));
    let world = setup.start();
    let (lists, clock) = (Count::default(), world.clock.clone());
    let counted = lists.clone();
    world.source.before_tenants(move || {
        counted.up();
        let asleep = clock.sleep(10 * SECOND);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let all = || RunRequest { jobs: JobSelection::All, tenants: None };
    let first = world.handle.request(all()).await.unwrap();
    world.clock.advance(5 * SECOND).await;
    assert_eq!(lists.now(), 1);
    let late = world.ask_for("a", Some(&["t1"])).await;
    for ticket in first {
        assert_eq!(world.finish(ticket).await.report.tenants.ok, 5);
    }
    assert_eq!(world.finish(late).await.report.tenants.ok, 1);
    assert_eq!(lists.now(), 2, "a run reads a list that began after it was asked for");
}

#[tokio::test]
async fn hazard_26_a_reading_of_the_tenant_list_that_hangs_takes_no_later_run_with_it() {
    let world = Setup::new(["busy", "hangs"].map(job), tenants(1)).start();
    let lists = Count::default();
    world.source.before_tenants(move || {
        if lists.up() == 1 { Box::pin(std::future::pending()) } else { ready(Ok(())) }
    });
    slow_reads(&world, 10 * SECOND);
    let busy = world.ask("busy").await;
    world.clock.advance(SECOND).await;
    let queued = world.ask("busy").await;
    world.clock.advance(SECOND).await;
    let hangs = world.ask("hangs").await;
    assert_eq!(world.finish(busy).await.outcome, Outcome::Ok);
    // It was requested before that reading began, and started while the reading hangs.
    assert_eq!(world.finish(queued).await.outcome, Outcome::Ok);
    assert_eq!(world.finish(hangs).await.outcome, Outcome::Timeout);
}

#[tokio::test]
async fn a_tenant_list_that_cannot_be_read_fails_the_run_and_touches_no_key() {
    let world = world_of(Job { retries: 1, ..job("list") }, 3);
    world.warm("list").await;
    world.source.before_tenants(|| ready(Err(refused(SourceErrorKind::Unavailable))));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.retries), (Outcome::Failed, 1));
    let [failure] = record.report.failures.as_slice() else { panic!("{record:?}") };
    assert_eq!(failure.kind, FailureKind::Tenants);
    assert_eq!(failure.message, "the query failed: Unavailable");
    assert_eq!(world.cache.keys().len(), 3);
    world.source.before_tenants(|| ready(Ok(())));
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_tenant_that_the_list_names_twice_is_warmed_once() {
    let mut list = tenants(2);
    list.push("t0", [Some("UTC")]);
    let world = Setup::new([job("list")], list).start();
    world.set_rows("list", a_row_each(2));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.tenants.total), (Outcome::Ok, 2));
    assert_eq!(world.reads(), [ids(0..2)]);
    assert_eq!(world.value("list:t0").as_deref(), Some("[0]"));
}

#[tokio::test]
async fn without_tenants_a_run_is_ok_and_does_nothing() {
    let world = world_of(job("list"), 0);
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 0));
}

#[tokio::test]
async fn a_run_for_some_tenants_warms_them_and_says_which_are_not_there() {
    let world = world_of(Job { batch: many(2), ..job("list") }, 10);
    let record = world.warm_some("list", &["t7", "t1", "gone\n", "t7", "t4", "gone\n"]).await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Tenants, Some("gone\n"), 1)]);
    let message = "tenant `gone\\n` is not among the active tenants";
    assert_eq!(record.report.failures[0].message, message);
    let tenants = record.report.tenants;
    assert_eq!((tenants.total, tenants.ok, tenants.failed), (4, 3, 1));
    assert_eq!(world.cache.keys(), ["list:t1", "list:t4", "list:t7"]);
    let status = world.status("list");
    assert_eq!(status.last_success_at, None, "the job is not warm by that");
    let only = world.warm_some("list", &["t2"]).await;
    assert_eq!(only.outcome, Outcome::Ok);
    assert_eq!(world.status("list").last_success_at, None);
}
