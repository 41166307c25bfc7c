//! Orphans, the keys that no job writes any more: an audit of all jobs and tenants finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::memory::MemoryRow;
use preheat::audit::{AuditOrder, KeyState};
use preheat::domain::audit::Kind;
use preheat::domain::job::{Job, Key, Share};
use preheat::domain::report::FailureKind;
use preheat::engine::ports::Clock;

use super::{Lab, found, quiet, rows_of, with_data_keys};
use crate::engine::{MINUTE, SECOND, job, key, many, tenants};

/// A lab without its job `old` and tenant `t3`, whose keys are all still in the cache.
async fn with_gone() -> Lab {
    let old = Job {
        keys: vec![key("old:{tenant_id}"), key("old:{tenant_id}:{category}")],
        ..quiet("old")
    };
    let rows = [("list", rows_of(4, "1")), ("old", rows_of(1, "1"))];
    let mut lab = Lab::warm_for([with_data_keys(), old], &rows, 4).await;
    lab.jobs.truncate(1);
    let list = Arc::clone(&lab.jobs[0]);
    lab.runner.jobs.set(BTreeMap::from([(list.name.clone(), list)]));
    lab.world.source.set_tenants(tenants(3));
    lab
}

#[tokio::test]
async fn keys_of_what_is_gone_are_orphans_of_a_whole_audit() {
    let lab = with_gone().await;
    let order = AuditOrder { orphans: true, ..lab.order() };
    let began = lab.world.clock.monotonic();
    let audits = lab.try_audit(order.clone()).await.unwrap();
    assert_eq!(lab.since(began), MINUTE, "they are looked at again too");
    let [list, old] = audits.as_slice() else { panic!("{audits:?}") };
    assert_eq!((list.job.as_str(), old.job.as_str()), ("list", "old"));
    let of_tenant = [("list:t3", Kind::Orphaned), ("list:t3:a", Kind::Orphaned)];
    assert_eq!(found(list), BTreeSet::from(of_tenant));
    assert!(list.findings.iter().all(|one| one.tenant.as_deref() == Some("t3")));
    // preheat keeps no record of the static keys of a removed job: they expire by their TTL.
    assert_eq!(found(old), BTreeSet::from([("old:t0:a", Kind::Orphaned)]));
    assert_eq!((old.counts.orphaned, old.counts.expected()), (1, 0));
    assert!(!old.is_within(Share::NONE));
    assert_eq!(lab.audit().await.counts.findings(), 0, "a part of an audit says nothing of them");

    // A key that disappears within the minute is no orphan.
    let cache = Arc::clone(&lab.world.cache);
    lab.after(30 * SECOND, async move {
        for key in cache.keys() {
            cache.evict(&key);
        }
    });
    let order = AuditOrder { jobs: Vec::new(), ..order };
    assert_eq!(lab.try_audit(order).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_tenant_list_that_shrank_too_much_says_of_nobody_that_it_is_gone() {
    let lab = with_gone().await;
    lab.world.source.set_tenants(tenants(1));
    let audits = lab.try_audit(AuditOrder { orphans: true, ..lab.order() }).await.unwrap();
    let failures: Vec<_> = audits.iter().flat_map(|audit| &audit.failures).collect();
    assert_eq!(failures.len(), 1, "{audits:?}");
    assert_eq!(failures[0].kind, FailureKind::TenantsShrank);
    assert_eq!(audits[0].counts.equal_within, [2, 0, 0, 0], "all else was compared");
}

#[tokio::test]
async fn hazard_07_an_audit_compares_shared_keys_and_does_not_look_for_their_orphans() {
    for batch in [1, 10] {
        let pet = Key { unique: Some("id".to_owned()), ..key("pet:{id}") };
        let pets = Job { keys: vec![pet], batch: many(batch), ..job("list") };
        let pet = |tenant: &str, id: &str| MemoryRow::new(tenant, "1", [("id", id)]);
        let rows = vec![pet("t0", "7"), pet("t2", "8"), pet("t1", "9")];
        let lab = Lab::warm_for([pets], &[("list", rows)], 3).await;
        lab.world.clock.advance(MINUTE).await;
        lab.world.set_rows("list", vec![pet("t2", "7"), pet("t0", "8"), pet("t1", "9")]);
        lab.world.warm("list").await;
        let counts = lab.audit().await.counts;
        assert_eq!((counts.expected(), counts.all_equal(), counts.orphaned), (3, 3, 0));
        let answer = lab.explain("pet:7").await;
        assert_eq!(answer.state, KeyState::Equal);
        assert_eq!(answer.owner.unwrap().1.as_deref(), Some("t2"));

        // Its row is gone, and its TTL will end it.
        lab.world.set_rows("list", vec![pet("t0", "8"), pet("t1", "9")]);
        let counts = lab.audit().await.counts;
        assert_eq!((counts.expected(), counts.all_equal(), counts.orphaned), (2, 2, 0));
    }
}
