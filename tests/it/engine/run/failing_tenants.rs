//! Batches that fail: which tenants are to blame, and what becomes of the others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use preheat::domain::job::Job;
use preheat::domain::report::{Failure, FailureKind};
use preheat::domain::run::Outcome;
use preheat::engine::ports::{Clock, SourceErrorKind};
use preheat::engine::schedule::handle::{JobSelection, RunRequest, RunView};

use super::{kinds, world_of};
use crate::engine::{Count, Gauge, SECOND, Setup, a_row_each, ids, job, many, refused, tenants};
use crate::support::memory::MemoryRow;

#[tokio::test]
async fn hazard_27_one_bad_tenant_of_a_hundred_is_named_and_all_others_are_warm() {
    let world = world_of(job("list"), 100);
    world.on_read(|tenants| {
        if tenants.contains(&"t42".to_owned()) {
            return Err(refused(SourceErrorKind::Data));
        }
        Ok(())
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    let expected = Failure {
        kind: FailureKind::Query,
        tenant: Some("t42".to_owned()),
        key: None,
        message: "the query failed: Data".to_owned(),
        count: 1,
    };
    assert_eq!(record.report.failures, [expected]);
    let tenants = record.report.tenants;
    assert_eq!((tenants.total, tenants.ok, tenants.failed), (100, 99, 1));
    assert_eq!(record.report.keys.written, 99);
    assert_eq!(world.value("list:t42"), None);
    assert_eq!(world.value("list:t43").as_deref(), Some("[43]"));
    // Two for each halving of the batch, and the batch itself.
    assert!(record.report.queries <= 15, "{} queries", record.report.queries);
    assert_eq!(world.status("list").last_success_at, None);
    assert!(
        world.shows(
            "preheat_runs_total{job_name=\"list\",trigger=\"request\",outcome=\"partial\"} 1"
        )
    );
}

#[tokio::test]
async fn a_query_that_works_for_nobody_is_given_up_after_a_few_tenants() {
    for concurrency in [1, 4] {
        let world = world_of(Job { concurrency: Some(many(concurrency)), ..job("list") }, 1_000);
        world.on_read(|_| Err(refused(SourceErrorKind::Data)));
        let record = world.warm("list").await;
        assert_eq!(record.outcome, Outcome::Failed);
        assert_eq!(record.report.tenants.failed, 1_000);
        assert_eq!(
            kinds(&record.report.failures),
            [(FailureKind::Query, Some("t0"), 1_000)],
            "each tenant is counted as failed, of the one cause"
        );
        let most = 16 * 2 + 8 * concurrency as u64;
        assert!(record.report.queries <= most, "{} queries", record.report.queries);
        assert!(world.cache.keys().is_empty());
    }
}

#[tokio::test]
async fn many_bad_neighbours_do_not_give_up_a_query_that_works_for_others() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 60);
    let bad: BTreeSet<String> = ids(15..45).into_iter().collect();
    world.on_read(move |tenants| {
        let any_bad = tenants.iter().any(|id| bad.contains(id));
        if any_bad { Err(refused(SourceErrorKind::Encoding)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (30, 30));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::Encoding, Some("t15"), 30)]);
}

#[tokio::test]
async fn a_database_that_is_too_slow_for_single_tenants_is_left_alone() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 200);
    let first = Count::default();
    world.on_read(
        move |_| {
            if first.up() == 0 { Ok(()) } else { Err(refused(SourceErrorKind::Timeout)) }
        },
    );
    let record = world.warm("list").await;
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (10, 190));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::StatementTimeout, Some("t10"), 190)]);
    assert!(record.report.queries < 50, "{} queries", record.report.queries);
}

#[tokio::test]
async fn slow_tenants_among_others_do_not_give_the_run_up() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 400);
    let slow: BTreeSet<String> = (0..400).step_by(10).map(|number| format!("t{number}")).collect();
    world.on_read(move |tenants| {
        let any_slow = tenants.iter().any(|id| slow.contains(id));
        if any_slow { Err(refused(SourceErrorKind::Timeout)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!((record.report.tenants.ok, record.report.tenants.failed), (360, 40));
}

#[tokio::test]
async fn a_query_that_is_wrong_is_sent_once() {
    let world = world_of(Job { batch: many(10), concurrency: Some(many(1)), ..job("list") }, 100);
    world.on_read(|_| Err(refused(SourceErrorKind::Definition)));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Failed, 1));
    assert_eq!(record.report.tenants.failed, 100);
    let progress = record.report.tenants;
    assert_eq!(progress.left(), 0);
}

#[tokio::test]
async fn hazard_10_a_row_of_another_tenant_fails_its_whole_batch_and_no_other() {
    let world = world_of(Job { batch: many(3), concurrency: Some(many(1)), ..job("list") }, 9);
    world.on_read(|tenants| {
        if tenants.contains(&"t4".to_owned()) {
            return Err(refused(SourceErrorKind::Foreign));
        }
        Ok(())
    });
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Partial, 3));
    assert_eq!(kinds(&record.report.failures), [(FailureKind::ForeignRow, Some("t3"), 3)]);
    let keys: Vec<_> = ids(0..3).into_iter().chain(ids(6..9)).collect();
    assert_eq!(world.cache.keys(), keys.iter().map(|id| format!("list:{id}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn hazard_20_a_giant_is_split_off_and_read_alone_with_all_the_room() {
    let other = Job { batch: many(1), ..job("other") };
    let setup =
        Setup::new([Job { concurrency: Some(many(1)), ..job("list") }, other], tenants(100));
    let world = Setup { concurrency: 3, ..setup }.start();
    let mut rows = a_row_each(100);
    let megabyte = format!("\"{}\"", "x".repeat(1024 * 1024));
    rows.extend((0..10).map(|_| MemoryRow::new("t42", &megabyte, [])));
    world.set_rows("list", rows);
    let (gauge, clock) = (Gauge::default(), world.clock.clone());
    let (counted, beside) = (gauge.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen_beside = Arc::clone(&beside);
    world.source.before_read(move |seen| {
        let (counted, clock, beside) = (counted.clone(), clock.clone(), Arc::clone(&seen_beside));
        Box::pin(async move {
            let _in_flight = counted.enter(seen.job.as_str());
            clock.sleep(SECOND).await;
            if seen.tenants == ["t42"] {
                beside.lock().unwrap().push(counted.now());
            }
            Ok(())
        })
    });
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    let mut tickets = world.handle.request(all).await.unwrap();
    let other = tickets.pop().unwrap();
    let record = world.finish(tickets.pop().unwrap()).await;
    assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report.failures);
    assert_eq!(record.report.keys.written, 100);
    assert_eq!(world.value("list:t42").unwrap().len(), 10 * (megabyte.len() + 1) + 4);
    // The read that ran out of room went beside others; the read with all the room did not.
    assert_eq!(beside.lock().unwrap().last(), Some(&1));
    assert!(gauge.most("") > 1);
    assert_eq!(world.finish(other).await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_tenant_that_is_too_large_for_all_the_room_fails_alone() {
    let world = world_of(Job { batch: many(2), ..job("list") }, 2);
    world.on_read(|tenants| {
        let giant = tenants.contains(&"t1".to_owned());
        if giant { Err(refused(SourceErrorKind::TooLarge)) } else { Ok(()) }
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::TooManyRows, Some("t1"), 1)]);
    assert_eq!(world.reads(), [ids(0..2), ids(0..1), ids(1..2), ids(1..2)]);
}

#[tokio::test]
async fn tenants_that_failed_are_read_apart_the_next_time_until_they_work_again() {
    let (all, batch) = (2_000, 100);
    let world = world_of(Job { batch: many(batch), ..job("list") }, all);
    let broken: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    broken.lock().unwrap().extend((0..100).map(|number| format!("t{}", number * 20 + 7)));
    let (failing, seen) = (Count::default(), Arc::clone(&broken));
    let counted = failing.clone();
    world.on_read(move |tenants| {
        let broken = seen.lock().unwrap();
        if tenants.iter().any(|id| broken.contains(id)) {
            counted.up();
            return Err(refused(SourceErrorKind::Data));
        }
        Ok(())
    });
    let first = world.warm("list").await;
    assert_eq!((first.report.tenants.ok, first.report.tenants.failed), (1_900, 100));
    let of_first = failing.now();
    assert!(of_first > 500, "{of_first} failing queries find who it is");

    let second = world.warm("list").await;
    assert_eq!((second.report.tenants.ok, second.report.tenants.failed), (1_900, 100));
    assert_eq!(failing.now() - of_first, 100, "one failing query each");
    assert_eq!(second.report.queries, 100 + 19);
    let [named] = second.report.failed_tenants.as_slice() else { panic!("{second:?}") };
    let all_ids: BTreeSet<String> = named.tenants.iter().cloned().collect();
    assert_eq!((&all_ids, named.more), (&*broken.lock().unwrap(), 0), "all of them, by name");

    // One of them alone does not prove that the query fails for all.
    let some: Vec<&str> = named.tenants.iter().map(String::as_str).take(40).collect();
    let third = world.warm_some("list", &some).await;
    assert_eq!((third.report.tenants.failed, third.report.queries), (40, 40));

    broken.lock().unwrap().clear();
    let fourth = world.warm("list").await;
    assert_eq!((fourth.outcome, fourth.report.queries), (Outcome::Ok, 100 + 19));
    let fifth = world.warm("list").await;
    assert_eq!((fifth.outcome, fifth.report.queries), (Outcome::Ok, 20), "back in their batches");
}

#[tokio::test]
async fn a_query_that_fails_for_all_leaves_nobody_to_be_read_apart() {
    let world = world_of(Job { batch: many(100), ..job("list") }, 1_000);
    world.on_read(|_| Err(refused(SourceErrorKind::Data)));
    for _ in 0..3 {
        assert_eq!(world.warm("list").await.outcome, Outcome::Failed);
    }
    world.on_read(|_| Ok(()));
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Ok, 10));
}

#[tokio::test]
async fn a_report_names_the_first_hundred_tenants_of_a_kind_and_counts_the_rest() {
    let world = world_of(Job { batch: many(1), ..job("list") }, 300);
    world.on_read(|tenants| {
        let number: usize = tenants[0][1..].parse().unwrap();
        match number {
            ..50 => Ok(()),
            50..200 => Err(refused(SourceErrorKind::Data)),
            _ => Err(refused(SourceErrorKind::Encoding)),
        }
    });
    let record = world.warm("list").await;
    let named = record.report.failed_tenants.iter();
    let named: Vec<_> = named.map(|of| (of.kind, of.tenants.len(), of.more)).collect();
    assert_eq!(named, [(FailureKind::Query, 100, 50), (FailureKind::Encoding, 100, 0)]);
    let Some(RunView::Finished(kept)) = world.handle.run(record.id).await.unwrap() else {
        panic!("it has ended")
    };
    assert_eq!(kept.report.failed_tenants, record.report.failed_tenants);
}
