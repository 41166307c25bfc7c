//! What a run writes, what the cache refuses, and what it pushes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use preheat::domain::job::Job;
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::engine::ports::{CacheErrorKind, CacheStats, SourceErrorKind};

use super::{kinds, world_of};
use crate::engine::ledger::{Answer, Around, CacheCall, Rules};
use crate::engine::{Setup, cache_error, job, many, ready, refused, start, tenants};
use crate::support::memory::{MemoryCache, MemoryRow};
use crate::support::virtual_clock::VirtualClock;

#[tokio::test]
async fn hazard_05_a_failed_read_writes_nothing_and_removes_nothing() {
    let world = world_of(job("list"), 3);
    assert_eq!(world.warm("list").await.outcome, Outcome::Ok);
    world.set_rows("list", vec![MemoryRow::new("t0", "\"new\"", [])]);
    let errors = [
        SourceErrorKind::Data,
        SourceErrorKind::Definition,
        SourceErrorKind::Foreign,
        SourceErrorKind::TooLarge,
        SourceErrorKind::Timeout,
        SourceErrorKind::Encoding,
        SourceErrorKind::Transient,
        SourceErrorKind::Unavailable,
    ];
    for kind in errors {
        world.on_read(move |_| Err(refused(kind)));
        assert_eq!(world.warm("list").await.outcome, Outcome::Failed, "{kind:?}");
        for number in 0..3 {
            let value = world.value(&format!("list:t{number}"));
            assert_eq!(value, Some(format!("[{number}]")), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn what_the_cache_says_of_each_key_is_told_apart() {
    let world = world_of(job("list"), 8);
    let refusals = [
        (CacheErrorKind::Full, FailureKind::CacheFull),
        (CacheErrorKind::ReadOnly, FailureKind::CacheReadOnly),
        (CacheErrorKind::Moved, FailureKind::CacheMoved),
        (CacheErrorKind::WrongType, FailureKind::CacheWrongType),
        (CacheErrorKind::Permission, FailureKind::CachePermission),
        (CacheErrorKind::Refused, FailureKind::CacheRefused),
    ];
    world.cache.refuse(move |key| {
        let number: usize = key.strip_prefix("list:t").unwrap().parse().unwrap();
        refusals.get(number).map(|(kind, _)| cache_error(*kind))
    });
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(record.report.retries, 0, "none of these passes");
    let found: Vec<_> = record.report.failures.iter().map(|failure| failure.kind).collect();
    assert_eq!(found, refusals.map(|(_, kind)| kind));
    let first = &record.report.failures[0];
    assert_eq!((first.tenant.as_deref(), first.key.as_deref()), (Some("t0"), Some("list:t0")));
    let (keys, tenants) = (record.report.keys, record.report.tenants);
    assert_eq!((keys.written, keys.failed, tenants.ok, tenants.failed), (2, 6, 2, 6));
    assert_eq!(world.cache.keys(), ["list:t6", "list:t7"]);
}

#[tokio::test]
async fn a_full_cache_keeps_what_it_has_and_the_run_says_so() {
    let world = world_of(Job { concurrency: Some(many(1)), ..job("list") }, 10);
    world.cache.set_maxmemory(40);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::CacheFull, Some("t4"), 6)]);
    assert_eq!(world.cache.keys().len(), 4);
}

#[tokio::test]
async fn hazard_19_a_value_that_is_too_large_is_removed_and_the_rest_is_written() {
    let mut list = job("list");
    list.encoding.max_bytes = 100;
    let world = world_of(list, 3);
    world.warm("list").await;
    let large = format!("\"{}\"", "x".repeat(200));
    world.set_rows("list", vec![MemoryRow::new("t1", &large, [])]);
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Partial);
    assert_eq!(kinds(&record.report.failures), [(FailureKind::ValueTooLarge, Some("t1"), 1)]);
    let keys = record.report.keys;
    assert_eq!((keys.written, keys.removed, keys.failed), (2, 1, 1));
    assert_eq!(world.value("list:t0").as_deref(), Some("[]"));
    assert_eq!(world.value("list:t1"), None);
}

/// A cache that evicts keys at every write.
struct Evicting {
    evicted: AtomicU64,
    silent: AtomicBool,
}

impl Rules for Evicting {
    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        if let CacheCall::Write(entries) = call {
            self.evicted.fetch_add(entries.len() as u64, Ordering::Relaxed);
        }
        then
    }

    fn stats<'a>(&'a self, _memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        if self.silent.load(Ordering::Relaxed) {
            return ready(Err(cache_error(CacheErrorKind::Permission)));
        }
        let evicted = self.evicted.load(Ordering::Relaxed);
        ready(Ok(CacheStats { evicted, ..CacheStats::default() }))
    }
}

#[tokio::test]
async fn hazard_21_keys_that_the_cache_pushed_out_meanwhile_are_counted() {
    let clock = VirtualClock::new(start(), 1);
    let memory = Arc::new(MemoryCache::new(Arc::new(clock.clone())));
    let (evicted, silent) = (AtomicU64::new(1_000), AtomicBool::new(false));
    let cache = Around::with(memory, Evicting { evicted, silent });
    let setup = Setup::new([job("list")], tenants(5));
    let world = Setup { clock, cache: Some(Arc::clone(&cache) as _), ..setup }.start();
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.evicted), (Outcome::Ok, 5));
    cache.silent.store(true, Ordering::Relaxed);
    let record = world.warm("list").await;
    assert_eq!((record.outcome, record.report.evicted), (Outcome::Ok, 0));
}
