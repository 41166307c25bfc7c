//! Tenants and servers that cannot be read.

use std::collections::BTreeSet;

use preheat::audit::AuditError;
use preheat::domain::audit::Kind;
use preheat::domain::report::FailureKind;
use preheat::engine::ports::{CacheErrorKind, SourceErrorKind};

use super::{Lab, found, quiet, rows_of, with_data_keys};
use crate::engine::{Count, cache_error, refused};

#[tokio::test]
async fn who_cannot_be_read_is_named_and_all_others_are_compared() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(8, "1"))], 8).await;
    lab.world.cache.evict("list:t5");
    lab.world.on_read(|tenants| {
        let broken = tenants.iter().any(|tenant| tenant == "t3");
        if broken { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    let audit = lab.audit().await;
    assert_eq!((audit.tenants, audit.tenants_failed), (8, 1));
    assert_eq!(found(&audit), BTreeSet::from([("list:t5", Kind::Missing)]));
    let [failure] = audit.failures.as_slice() else { panic!("{audit:?}") };
    assert_eq!((failure.kind, failure.tenant.as_deref()), (FailureKind::Query, Some("t3")));
    assert_eq!(audit.counts.expected(), 7);
}

#[tokio::test]
async fn a_suspect_whose_tenant_cannot_be_read_again_stays_one() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world.cache.evict("list:t1");
    let reads = Count::default();
    lab.world.on_read(move |_| match reads.up() {
        0 => Ok(()),
        _ => Err(refused(SourceErrorKind::Data)),
    });
    let audit = lab.audit().await;
    assert_eq!(found(&audit), BTreeSet::from([("list:t1", Kind::Missing)]));
    assert_eq!((audit.tenants_failed, audit.failures.len()), (0, 1));
}

#[tokio::test]
async fn a_query_that_is_broken_is_not_sent_for_every_tenant() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(60, "1"))], 60).await;
    for (kind, most) in [(SourceErrorKind::Definition, 1), (SourceErrorKind::Data, 40)] {
        let read = lab.reads();
        lab.world.on_read(move |_| Err(refused(kind)));
        let audit = lab.audit().await;
        assert_eq!((audit.tenants_failed, audit.counts.expected()), (60, 0), "{kind:?}");
        assert!(lab.reads() - read <= most, "{kind:?}: {}", lab.reads() - read);
    }
}

#[tokio::test]
async fn a_server_that_stays_away_ends_the_audit() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world.on_read(|_| Err(refused(SourceErrorKind::Unavailable)));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Unreachable(_)), "{error:?}");

    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.read_only.before_look(|_| Err(cache_error(CacheErrorKind::Unavailable)));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Unreachable(_)), "{error:?}");

    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world
        .source
        .before_tenants(|| Box::pin(async { Err(refused(SourceErrorKind::Definition)) }));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Tenants(_)), "{error:?}");
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let lab = Lab::warm([with_data_keys()], &[("list", rows_of(3, "1"))]).await;
    let (reads, looks, lists) = (Count::default(), Count::default(), Count::default());
    lab.world.on_read(move |_| match reads.up() {
        0 => Err(refused(SourceErrorKind::Transient)),
        _ => Ok(()),
    });
    lab.read_only.before_look(move |_| match looks.up() {
        0 => Err(cache_error(CacheErrorKind::Unavailable)),
        _ => Ok(()),
    });
    lab.world.source.before_tenants(move || {
        let first = lists.up() == 0;
        let answer = if first { Err(refused(SourceErrorKind::Unavailable)) } else { Ok(()) };
        Box::pin(async move { answer })
    });
    assert_eq!(lab.audit().await.counts.equal_within, [6, 0, 0, 0]);
}
