//! What differs at one look and not at the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use preheat::audit::{AuditOrder, MAX_SUSPECTS};
use preheat::domain::audit::{JobAudit, Kind, MAX_FINDINGS};
use preheat::domain::job::{DateZone, Dates, Job, JobName};
use preheat::domain::run::Outcome;
use preheat::domain::schedule::Schedule;
use preheat::engine::ports::Clock;

use super::{Lab, NEW, OLD, found, priced, put, quiet, rows_of, with_data_keys};
use crate::engine::{Count, MINUTE, SECOND, Setup, at, ids, key, many, tenants};
use crate::support::memory::MemoryRow;
use crate::support::virtual_clock::VirtualClock;

#[tokio::test]
async fn a_write_in_flight_is_no_finding_and_counts_in_the_window_in_which_it_came() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(4, "1"))], 4).await;
    for (number, arrives) in [(0, None), (1, Some(0.5)), (2, Some(4.0)), (3, Some(59.0))] {
        let key = format!("list:t{number}");
        lab.put(&key, "[0]", 30 * MINUTE).await;
        let Some(arrives) = arrives else {
            lab.put(&key, "[1]", 30 * MINUTE).await;
            continue;
        };
        let cache = Arc::clone(&lab.world.cache);
        lab.after(Duration::from_secs_f64(arrives), async move {
            put(&cache, &key, "[1]", 30 * MINUTE).await;
        });
    }
    let audit = lab.audit().await;
    assert_eq!(audit.counts.findings(), 0, "{audit:?}");
    assert_eq!(audit.counts.equal_within, [1, 1, 1, 1]);
}

#[tokio::test]
async fn without_looking_again_a_write_in_flight_is_a_finding() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.put("list:t1", "[0]", MINUTE).await;
    let (began, order) = (lab.world.clock.monotonic(), lab.order());
    let audits = lab.try_audit(AuditOrder { rechecks: false, ..order }).await.unwrap();
    assert_eq!(audits[0].counts.stale, 1);
    assert_eq!(audits[0].to_string(), "66.66 % consistent at the first look");
    assert_eq!(lab.world.clock.monotonic(), began);
}

#[tokio::test]
async fn hazard_03_an_application_that_deletes_without_the_fence_is_seen() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, &priced("1", OLD)))]).await;
    // The application commits and deletes the key while the warmer is between its query and its
    // writes, and does not move the fence. So the warmer writes the old value last, and cannot know
    // that.
    let (source, cache) = (Arc::clone(&lab.world.source), Arc::clone(&lab.world.cache));
    lab.world.cache.before_write(move |_| {
        source.set_rows(&JobName::parse("list").unwrap(), rows_of(3, &priced("2", NEW)));
        for id in ids(0..3) {
            cache.evict(&format!("list:{id}"));
        }
        crate::engine::ready(Ok(()))
    });
    assert_eq!(lab.world.warm("list").await.outcome, Outcome::Ok);
    let audit = lab.audit().await;
    assert_eq!((audit.counts.stale, audit.counts.expected()), (3, 3));
    assert_eq!(audit.most_behind, Some(Duration::from_millis(12_500)));
    assert_eq!(audit.to_string(), "0 % consistent within 60s");
}

#[tokio::test]
async fn a_key_that_expires_between_the_reads_and_comes_back_is_no_finding() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let (cache, looked) = (Arc::clone(&lab.world.cache), Count::default());
    lab.read_only.before_look(move |keys| {
        if looked.up() == 0 {
            for key in keys {
                cache.evict(key);
            }
        }
        Ok(())
    });
    let (handle, clock) = (lab.world.handle.clone(), lab.world.clock.clone());
    tokio::spawn(async move {
        clock.sleep(5 * SECOND).await;
        handle.request(crate::engine::request("list", None)).await.unwrap();
    });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.equal_within, audit.counts.findings()), ([0, 0, 3, 0], 0));
}

/// Tenant `t0`'s value in the database and in the cache, at each look.
async fn looks_at(values: &'static [(&str, &str)]) -> JobAudit {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let (source, cache) = (Arc::clone(&lab.world.source), Arc::clone(&lab.world.cache));
    let looks = Count::default();
    lab.world.source.before_read(move |_| {
        let (database, cached) = values[looks.up().min(values.len() - 1)];
        let row = MemoryRow::new("t0", database, []);
        let mut rows = rows_of(3, "1");
        rows[0] = row;
        source.set_rows(&JobName::parse("list").unwrap(), rows);
        let cache = Arc::clone(&cache);
        Box::pin(async move {
            put(&cache, "list:t0", &format!("[{cached}]"), 5 * MINUTE).await;
            Ok(())
        })
    });
    lab.audit().await
}

#[tokio::test]
async fn a_key_that_is_rewritten_all_the_time_is_no_finding_and_an_old_one_is() {
    // The cache is one write behind at each look, by another write each time.
    let audit = looks_at(&[("2", "1"), ("3", "2"), ("4", "3"), ("5", "4")]).await;
    assert_eq!((audit.counts.changing, audit.counts.findings()), (1, 0));
    assert_eq!(audit.counts.expected(), 2, "it is not judged");
    // The cache keeps the same old value while the database's changes.
    let audit = looks_at(&[("2", "1"), ("3", "1"), ("4", "1"), ("5", "1")]).await;
    assert_eq!((audit.counts.changing, audit.counts.stale), (0, 1));
    // The database's value stays the same, and an application writes one wrong value after another.
    let audit = looks_at(&[("9", "1"), ("9", "2"), ("9", "3"), ("9", "4")]).await;
    assert_eq!((audit.counts.changing, audit.counts.stale), (0, 1));
    // The value was equal once in between: a later difference is a new one.
    let audit = looks_at(&[("2", "1"), ("2", "2"), ("3", "2")]).await;
    assert_eq!((audit.counts.equal_within, audit.counts.findings()), ([2, 1, 0, 0], 0));
}

#[tokio::test]
async fn a_tenant_that_is_switched_off_meanwhile_is_no_finding() {
    let lab = Lab::warm([with_data_keys()], &[("list", rows_of(3, "1"))]).await;
    // What a sweep does to the tenant, before the tenant list tells the audit.
    for key in ["list:t2", "list:t2:a"] {
        lab.world.cache.evict(key);
    }
    let source = Arc::clone(&lab.world.source);
    lab.after(SECOND / 2, async move { source.set_tenants(tenants(2)) });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.findings(), audit.counts.expected()), (0, 4), "{audit:?}");
}

/// A job with one key for each of three days, due every hour.
fn dated() -> Job {
    let dates = Dates { days: 3, zone: DateZone::Fixed(chrono_tz::UTC), column: None };
    Job {
        schedule: Schedule::Every(Duration::from_hours(1)),
        ttl: Duration::from_hours(3),
        dates: Some(dates),
        keys: vec![key("day:{tenant_id}:{date}"), key("day:{tenant_id}:{date}:{kind}")],
        ..quiet("day")
    }
}

#[tokio::test]
async fn hazard_12_the_hour_after_midnight_is_no_finding_and_the_next_is() {
    let days = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"];
    let row = |day: &&str| MemoryRow::new("t0", "1", [("date", *day), ("kind", "x")]);
    let rows: Vec<_> = days.iter().map(row).collect();
    let setup = |clock: VirtualClock| Setup { clock, ..Setup::new([dated()], tenants(1)) };
    let world = setup(VirtualClock::new(at("2026-03-01T23:58:00Z"), 1)).start();
    world.set_rows("day", rows.clone());
    world.warm("day").await;
    let lab = Lab::around(world, vec![dated()]);
    let audit = lab.audit().await;
    assert_eq!((audit.counts.expected(), audit.counts.findings()), (6, 0), "{audit:?}");

    // No runs start from now on, as if the worker were away.
    lab.world.stops.drain.cancel();
    lab.world.ended().await;
    lab.world.clock.advance(3 * MINUTE).await;
    let audit = lab.audit().await;
    assert_eq!((audit.counts.expected(), audit.counts.findings()), (4, 0), "{audit:?}");

    lab.world.clock.advance(70 * MINUTE).await;
    let audit = lab.audit().await;
    let expected = [
        ("day:t0:2026-03-01:x", Kind::Orphaned),
        ("day:t0:2026-03-04", Kind::Missing),
        ("day:t0:2026-03-04:x", Kind::Missing),
    ];
    assert_eq!(found(&audit), BTreeSet::from(expected));
}

#[tokio::test]
async fn looking_again_goes_on_beside_the_rest_of_the_work() {
    let list = Job { batch: many(1), ..quiet("list") };
    let lab = Lab::warm_for([list], &[("list", rows_of(100, "1"))], 100).await;
    for id in ids(0..100) {
        lab.world.cache.evict(&format!("list:{id}"));
    }
    crate::engine::slow_reads(&lab.world, SECOND / 2);
    let began = lab.world.clock.monotonic();
    let audit = lab.audit().await;
    assert_eq!(audit.counts.missing, 100);
    let took = lab.since(began);
    // Four looks at every tenant, half a second each, and a minute after the last.
    assert!(took < Duration::from_secs(200 + 75), "{took:?}");
}

#[tokio::test]
async fn of_too_many_suspects_the_rest_is_counted_only() {
    let count = MAX_SUSPECTS + 50;
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(count, "1"))], count).await;
    lab.world.cache.restart();
    let cache = Arc::clone(&lab.world.cache);
    // Two keys come back: one that the audit looks at again, and one that it only counts.
    lab.after(SECOND / 2, async move {
        for key in ["list:t0".to_owned(), format!("list:t{}", MAX_SUSPECTS + 49)] {
            put(&cache, &key, "[1]", 30 * MINUTE).await;
        }
    });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.missing, audit.counts.unchecked), (count as u64 - 1, 50));
    assert_eq!(audit.counts.expected(), count as u64);
    assert_eq!(audit.findings.len(), MAX_FINDINGS);
}
