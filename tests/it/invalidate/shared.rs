//! Shared keys: their text names no tenant, so only the rows show their owner.

use crate::support::memory::MemoryRow;
use preheat::domain::job::{DateZone, Dates, Job, Key};
use preheat::domain::manifest::manifest_key;
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::domain::tenant::{IdClass, Tenants};
use preheat::engine::ports::{Clock, Ledger, ManifestEntries, SourceErrorKind};
use preheat::invalidate::InvalidateRequest;

use super::{jobs, keys, of_tenants, pets, texts, world};
use crate::engine::{MINUTE, SECOND, Setup, World, ids, key, many, refused, slow_reads, tenants};

fn pet(tenant: &str, id: &str) -> MemoryRow {
    MemoryRow::new(tenant, "3", [("id", id)])
}

/// The pets in the cache.
fn cached(world: &World) -> String {
    let pets = world.cache.keys().into_iter();
    pets.filter(|key| key.starts_with("pet:")).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn hazard_09_a_key_that_moved_to_another_tenant_stays_when_its_former_tenant_is_invalidated()
{
    let world = world().await;
    world
        .set_rows("pets", vec![pet("t0", "p0"), pet("t2", "p1"), pet("t2", "p2"), pet("t3", "p3")]);
    assert_eq!(world.warm_some("pets", &["t2"]).await.outcome, Outcome::Ok);
    let report = world.report(of_tenants(&["t1"])).await;
    assert!(report.complete, "{report:?}");
    assert_eq!(cached(&world), "pet:p0 pet:p1 pet:p2 pet:p3");
    let both = InvalidateRequest { jobs: texts(&["pets"]), ..of_tenants(&["t1"]) };
    assert_eq!(world.report(both).await.removed, 0);
    // It belongs to its present tenant.
    let report = world.report(of_tenants(&["t2"])).await;
    assert_eq!((report.by_job[&pets("pets").name], cached(&world).as_str()), (2, "pet:p0 pet:p3"));
}

#[tokio::test]
async fn the_shared_keys_of_a_tenant_go_with_it_and_those_of_a_job_with_that() {
    let world = world().await;
    let (report, moved) = world.moved_by(of_tenants(&["t1", "t3"])).await;
    assert_eq!((moved, cached(&world).as_str()), (vec!["t1", "t3"], "pet:p0 pet:p2"));
    assert_eq!(report.by_job[&pets("pets").name], 2);
    assert_eq!(report.jobs_and_tenants.removed, report.removed);
    let of_both = InvalidateRequest { jobs: texts(&["pets"]), ..of_tenants(&["t0"]) };
    assert_eq!(world.report(of_both).await.removed, 1);
    assert_eq!(world.report(jobs(&["pets"])).await.removed, 1);
    assert_eq!(cached(&world), "");
}

#[tokio::test]
async fn a_shared_key_without_its_row_stays_until_its_name_is_given() {
    let world = world().await;
    world.set_rows("pets", vec![pet("t0", "p0")]);
    assert_eq!(world.report(jobs(&["pets"])).await.removed, 1);
    assert_eq!(cached(&world), "pet:p1 pet:p2 pet:p3");
    let (report, moved) = world.moved_by(keys(&["pet:p1"])).await;
    assert_eq!((report.removed, moved.len()), (1, 4), "it may be anyone's");
}

#[tokio::test]
async fn a_departed_tenant_loses_the_shared_keys_of_its_rows() {
    let world = world().await;
    world.source.set_tenants(tenants(4).only(|tenant| tenant.id() != "t1"));
    let report = world.report(of_tenants(&["t1"])).await;
    assert!(report.complete, "{report:?}");
    assert_eq!(cached(&world), "pet:p0 pet:p2 pet:p3");
}

#[tokio::test]
async fn hazard_09_a_web_address_that_a_departed_tenant_had_stays_where_it_is_anothers_now() {
    let sites = Job {
        keys: vec![Key { unique: Some("tenant.site".to_owned()), ..key("site:{tenant.site}") }],
        ..crate::engine::job("sites")
    };
    let list = |sites: &[(&str, &str)]| {
        let mut list = Tenants::with_columns(["site"]);
        for (id, site) in sites {
            list.push(id, [Some(*site)]);
        }
        list
    };
    let world = Setup::new([sites], list(&[("a", "paws"), ("b", "fins"), ("c", "ears")])).start();
    world.warm("sites").await;
    world.source.set_tenants(list(&[("b", "paws"), ("c", "ears")]));
    let report = world.report(of_tenants(&["a"])).await;
    assert_eq!((report.removed, report.complete), (0, true));
    world.source.set_tenants(list(&[("c", "ears")]));
    assert_eq!(world.report(of_tenants(&["a"])).await.removed, 1, "it is nobody else's any more");
}

#[tokio::test]
async fn hazard_09_names_of_shared_keys_in_old_manifests_mean_nothing() {
    let id = Key { unique: Some("id".to_owned()), ..key("pet:{id}") };
    let job = Job { keys: vec![id, key("pets:{tenant_id}:{id}")], ..crate::engine::job("pets") };
    let world = Setup::new([job.clone()], tenants(2)).start();
    world.set_rows("pets", vec![pet("t0", "p0"), pet("t1", "p1")]);
    world.warm("pets").await;
    // An earlier version added shared keys to manifests too.
    let manifest = manifest_key(&job.name, Some("t0"));
    let old = ManifestEntries { manifest, keys: texts(&["pet:p0", "pet:p1"]) };
    world.cache.add_entries(&[old], world.clock.now(), 30 * MINUTE).await.unwrap();
    world.set_rows("pets", vec![pet("t1", "p1")]);
    assert_eq!(world.warm("pets").await.outcome, Outcome::Ok);
    assert_eq!(cached(&world), "pet:p0 pet:p1", "no run removes one");
    let report = world.report(of_tenants(&["t0"])).await;
    assert_eq!((report.complete, cached(&world).as_str()), (true, "pet:p0 pet:p1"));
    assert_eq!(world.report(of_tenants(&["t1"])).await.removed, 2);
}

#[tokio::test]
async fn where_the_rows_cannot_be_read_the_report_says_which_keys_stay() {
    let world = world().await;
    world.on_read(|tenants| {
        let bad = tenants.iter().any(|id| id == "t1");
        if bad { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    let (report, moved) = world.moved_by(of_tenants(&["t0", "t1"])).await;
    assert_eq!((report.complete, moved), (false, vec!["t0", "t1"]));
    assert_eq!(cached(&world), "pet:p1 pet:p2 pet:p3");
    assert!(world.value("list:t1").is_none(), "what needs no query is gone");
    let [failure] = report.failures.as_slice() else { panic!("{report:?}") };
    assert_eq!((failure.kind, failure.tenant.as_deref()), (FailureKind::Query, Some("t1")));
    let expected = "the shared keys of job `pets` could not be told and were not removed: ";
    assert!(failure.message.starts_with(expected), "{failure:?}");
    // The report's numbers are true.
    assert_eq!(report.removed, 2 + 3 + 1);
}

#[tokio::test]
async fn a_query_that_is_broken_is_not_sent_for_every_tenant() {
    let world = Setup::new([Job { batch: many(10), ..pets("pets") }], tenants(250)).start();
    world.on_read(|_| Err(refused(SourceErrorKind::Definition)));
    let report = world.report(jobs(&["pets"])).await;
    assert_eq!((report.complete, world.reads().len()), (false, 1));
    assert_eq!(report.failures[0].count, 250);
}

#[tokio::test]
async fn a_database_that_stays_away_ends_the_request_with_what_was_done() {
    let world = world().await;
    world.on_read(|_| Err(refused(SourceErrorKind::Unavailable)));
    let report = world.report(of_tenants(&["t1"])).await;
    assert_eq!((report.complete, report.removed), (false, 3));
    assert_eq!(report.failures[0].kind, FailureKind::DatabaseUnavailable);
    assert_eq!(cached(&world), "pet:p0 pet:p1 pet:p2 pet:p3");
}

#[tokio::test]
async fn rows_are_read_in_the_jobs_batches_and_a_giant_alone() {
    const GIANT: usize = 9 * 1024 * 1024;
    let world = Setup::new([Job { batch: many(10), ..pets("pets") }], tenants(25)).start();
    let mut rows: Vec<_> = ids(0..25).iter().map(|id| pet(id, id)).collect();
    rows.push(MemoryRow::new("t7", &format!("\"{}\"", "x".repeat(GIANT)), [("id", "giant")]));
    world.set_rows("pets", rows);
    world.warm("pets").await;
    let before = world.reads().len();
    let report = world.report(jobs(&["pets"])).await;
    assert_eq!((report.complete, report.removed, cached(&world).as_str()), (true, 26, ""));
    let reads = world.reads().split_off(before);
    assert!(reads.iter().all(|tenants| tenants.len() <= 10), "{reads:?}");
    let alone = reads.iter().filter(|tenants| **tenants == ["t7"]).count();
    assert_eq!(alone, 2, "in the room of a batch, and then in that of all batches: {reads:?}");
}

#[tokio::test]
async fn a_worker_that_stops_does_not_wait_for_the_rows() {
    let world = world().await;
    slow_reads(&world, 3 * MINUTE);
    let (stops, clock) = (world.stops.clone(), world.clock.clone());
    tokio::spawn(async move {
        clock.sleep(SECOND).await;
        stops.drain.cancel();
    });
    let began = world.clock.monotonic();
    let report = world.report(of_tenants(&["t1"])).await;
    assert!(world.clock.monotonic() < began + MINUTE);
    assert_eq!((report.complete, report.removed), (false, 3));
    assert_eq!(report.failures[0].kind, FailureKind::Cancelled);
}

#[tokio::test]
async fn shared_keys_with_dates_are_those_of_the_tenants_dates() {
    let dates =
        Some(Dates { days: 2, zone: DateZone::TenantColumn("timezone".to_owned()), column: None });
    let id = Key { unique: Some("id".to_owned()), ..key("pet:{id}:{date}") };
    let job = Job { keys: vec![id], dates, ..crate::engine::job("pets") };
    let world = Setup::new([job], tenants(2)).start();
    let visit = |tenant: &str, id: &str, date: &str| {
        MemoryRow::new(tenant, "1", [("id", id), ("date", date)])
    };
    let rows = vec![visit("t0", "p0", "2026-03-01"), visit("t1", "p1", "2026-03-02")];
    world.set_rows("pets", rows);
    world.warm("pets").await;
    assert_eq!(cached(&world), "pet:p0:2026-03-01 pet:p1:2026-03-02");
    assert_eq!(world.report(of_tenants(&["t1"])).await.removed, 1);
    assert_eq!(cached(&world), "pet:p0:2026-03-01");
    // A tenant that never existed has no known time zone, and no keys.
    world.source.set_id_class(IdClass::Text);
    assert!(world.report(of_tenants(&["nobody"])).await.complete);
}

#[tokio::test]
async fn a_text_that_cannot_be_an_id_is_not_asked_of_the_database() {
    let world = Setup::new([pets("pets")], Tenants::default()).start();
    world.source.set_id_class(IdClass::Integer);
    assert!(world.report(of_tenants(&["seven"])).await.complete);
    assert_eq!(world.reads().len(), 0);
    assert!(world.report(of_tenants(&["7"])).await.complete);
    assert_eq!(world.reads(), [["7"]]);
}
