//! Each server is behind one circuit breaker, for all callers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::Utc;
use preheat::domain::fence::Fence;
use preheat::domain::row::Rows;
use preheat::domain::tenant::{Batch, TenantId};
use preheat::engine::ports::{CacheErrorKind, ManifestEntries, Read, SourceError, SourceErrorKind};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::observe::metric::Metrics;

use super::ledger::{Answer, Around, CacheCall, Call, Rules};
use super::{SECOND, VirtualClock, cache_error, job, ready, refused, start, tenants};
use crate::support::memory::{MemoryCache, MemorySource};

/// Longer than an open breaker keeps callers away from its server.
const PAUSE: Duration = Duration::from_secs(6);

/// Counts the calls that reach the server, which may be away.
#[derive(Default)]
struct Counted {
    asked: AtomicUsize,
    is_away: AtomicBool,
}

impl Counted {
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }

    fn go_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    fn answer<'a, T: Send + 'a>(&'a self, then: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.is_away.load(Ordering::Relaxed) {
                return Err(cache_error(CacheErrorKind::Unavailable));
            }
            then.await
        })
    }
}

impl Rules for Counted {
    fn on_ledger<'a, T: Send + 'a>(&'a self, _call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        self.answer(then)
    }

    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        _call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        self.answer(then)
    }
}

struct Lab {
    ports: Ports,
    clock: VirtualClock,
    source: Arc<MemorySource>,
    cache: Arc<Around<Counted>>,
}

impl Lab {
    fn new() -> Self {
        let clock = VirtualClock::new(start(), 1);
        let source = Arc::new(MemorySource::new(tenants(2)));
        let memory = Arc::new(MemoryCache::new(Arc::new(clock.clone())));
        let cache = Around::with(memory, Counted::default());
        let servers = Unguarded {
            source: Arc::clone(&source) as _,
            reader: Arc::clone(&source) as _,
            cache: Arc::clone(&cache) as _,
            ledger: Arc::clone(&cache) as _,
        };
        let ports = Ports::new(servers, Arc::new(clock.clone()), Metrics::new());
        Self { ports, clock, source, cache }
    }

    /// Calls every command of the cache once; returns how each failed.
    async fn ask_all_of_the_cache(&self) -> Vec<Option<CacheErrorKind>> {
        let Ports { cache, ledger, .. } = &self.ports;
        let (keys, manifests) = (["k".to_owned()], ["m".to_owned()]);
        let fences = [("k".to_owned(), Fence::Missing)];
        let lives = [("k".to_owned(), SECOND)];
        let entry_lists = [ManifestEntries { manifest: "m".to_owned(), keys: keys.to_vec() }];
        let entries = [("t".to_owned(), "x".to_owned())];
        let results = [
            cache.write(&[]).await.err(),
            cache.remove(&keys).await.err(),
            cache.expire(&lives).await.err(),
            cache.look(&keys).await.err(),
            cache.exist(&keys).await.err(),
            cache.scan("*", 0).await.err(),
            cache.stats().await.err(),
            ledger.fences(&keys).await.err(),
            ledger.start_fences(&fences, 7).await.err(),
            ledger.move_fences(&keys, 7).await.err(),
            ledger.manifests(&manifests).await.err(),
            ledger.add_entries(&entry_lists, Utc::now(), SECOND).await.err(),
            ledger.prune(&manifests, Utc::now()).await.err(),
            ledger.registry().await.err(),
            ledger.register(&entries).await.err(),
            ledger.deregister(&keys).await.err(),
        ];
        results.into_iter().map(|error| error.map(|error| error.kind)).collect()
    }
}

#[tokio::test]
async fn a_cache_that_counts_as_down_gets_no_command_of_any_kind() {
    let lab = Lab::new();
    let all = lab.ask_all_of_the_cache().await;
    assert!(all.iter().all(Option::is_none), "{all:?}");
    assert_eq!(lab.cache.asked(), all.len());

    lab.cache.go_away(true);
    let _the_breaker_opens = lab.ask_all_of_the_cache().await;
    lab.cache.asked();
    let left_alone = lab.ask_all_of_the_cache().await;
    assert_eq!(left_alone, vec![Some(CacheErrorKind::LeftAlone); all.len()]);
    assert_eq!(lab.cache.asked(), 0);

    lab.clock.advance(PAUSE).await;
    let one_finds_out = lab.ask_all_of_the_cache().await;
    assert_eq!(one_finds_out.first(), Some(&Some(CacheErrorKind::Unavailable)));
    assert_eq!(lab.cache.asked(), 1);

    lab.cache.go_away(false);
    lab.clock.advance(PAUSE).await;
    assert!(lab.ask_all_of_the_cache().await.iter().all(Option::is_none));
    assert_eq!(lab.cache.asked(), all.len());
}

#[tokio::test]
async fn a_database_that_counts_as_down_is_left_alone_by_runs_and_tools_alike() {
    let lab = Lab::new();
    lab.source.before_tenants(|| ready(Err(refused(SourceErrorKind::Unavailable))));
    for _ in 0..3 {
        let error = lab.ports.source.tenants().await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Unavailable);
    }
    let job = job("list");
    let batch = Batch::global();
    let read = Read { batch: &batch, first_dates: &[], timeout: SECOND };
    let kind = |error: SourceError| error.kind;
    for port in [&lab.ports.source, &lab.ports.reader] {
        let mut rows = Rows::default();
        let errors = [
            port.tenants().await.map_err(kind).err(),
            port.tenants_among(&[TenantId::new("t0")]).await.map_err(kind).err(),
            port.read(&job, read, &mut rows).await.map_err(kind).err(),
        ];
        assert_eq!(errors, [Some(SourceErrorKind::LeftAlone); 3]);
    }
    lab.source.before_tenants(|| ready(Ok(())));
    lab.clock.advance(PAUSE).await;
    assert!(lab.ports.reader.tenants().await.is_ok());
    assert!(lab.ports.source.tenants().await.is_ok(), "the two share one breaker");
}
