//! The ports that the engine uses, each server's behind one circuit breaker: no caller asks a server that
//! counts as down, and every answer tells the breaker whether the server can be reached.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::breaker::{BreakerChange, SharedBreaker};
use super::{
    Cache, CacheError, CacheErrorKind, CacheStats, Clock, Found, KeyResult, Ledger,
    ManifestEntries, Read, Size, Slice, Source, SourceError, SourceErrorKind,
};
use crate::domain::entry::Entry;
use crate::domain::fence::{Fence, start_number};
use crate::domain::job::Job;
use crate::domain::manifest::ManifestEntry;
use crate::domain::row::Rows;
use crate::domain::slots::Extent;
use crate::domain::tenant::{IdClass, TenantId, Tenants};
use crate::observe::event::{self, Server};
use crate::observe::metric::Metrics;

/// What the engine needs of the world.
#[derive(Clone)]
pub struct Ports {
    /// Where tenants and rows come from.
    pub source: Arc<dyn Source>,
    /// The same database for the tools that only read: its queries cannot write, whatever the settings say.
    pub reader: Arc<dyn Source>,
    /// Where entries go.
    pub cache: Arc<dyn Cache>,
    /// What preheat keeps in the cache for itself.
    pub ledger: Arc<dyn Ledger>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    breakers: Breakers,
}

/// The servers as the adapters reach them.
pub struct Unguarded {
    /// The database.
    pub source: Arc<dyn Source>,
    /// The same, for queries that must not write.
    pub reader: Arc<dyn Source>,
    /// The cache.
    pub cache: Arc<dyn Cache>,
    /// The same, for what preheat keeps there for itself.
    pub ledger: Arc<dyn Ledger>,
}

#[derive(Clone, Default)]
struct Breakers {
    database: Arc<SharedBreaker>,
    cache: Arc<SharedBreaker>,
}

impl Ports {
    /// Puts each server behind a breaker of its own.
    pub fn new(servers: Unguarded, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        let Unguarded { source, reader, cache, ledger } = servers;
        let breakers = Breakers::default();
        let guard = |server| {
            let breaker = Arc::clone(breakers.of(server));
            Guard { server, breaker, clock: Arc::clone(&clock), metrics: Arc::clone(&metrics) }
        };
        let (database, redis) = (|| guard(Server::Database), || guard(Server::Cache));
        Self {
            source: Arc::new(Guarded { inner: source, guard: database() }),
            reader: Arc::new(Guarded { inner: reader, guard: database() }),
            cache: Arc::new(Guarded { inner: cache, guard: redis() }),
            ledger: Arc::new(Guarded { inner: ledger, guard: redis() }),
            clock,
            metrics,
            breakers,
        }
    }

    /// A server's breaker, for callers that wait until they may ask the server again.
    pub(crate) fn breaker(&self, server: Server) -> &SharedBreaker {
        self.breakers.of(server)
    }

    /// The error that a question to the cache would get while its breaker is open: for callers that would
    /// otherwise read rows that they cannot write.
    pub(crate) fn cache_answers(&self) -> Result<(), CacheError> {
        let left = self.breaker(Server::Cache).pause_left(self.clock.monotonic());
        if left.is_some() { Answer::left_alone(left_alone(Server::Cache)) } else { Ok(()) }
    }

    /// Gives fences a start, at a random number, and returns where they stand then.
    pub(crate) async fn start_fences(
        &self,
        keys: &[(String, Fence)],
    ) -> Result<Vec<Fence>, CacheError> {
        self.ledger.start_fences(keys, start_number(self.clock.random())).await
    }

    /// Moves fences; a missing one starts at a random number first.
    pub(crate) async fn move_fences(&self, keys: &[String]) -> Result<(), CacheError> {
        self.ledger.move_fences(keys, start_number(self.clock.random())).await
    }

    /// Waits for `least`; if the server counts as down, until callers may ask it again.
    pub(crate) async fn pause(&self, server: Server, least: Duration) {
        self.breaker(server).pause(least, self.clock.as_ref()).await;
    }
}

impl Breakers {
    fn of(&self, server: Server) -> &Arc<SharedBreaker> {
        match server {
            Server::Database => &self.database,
            Server::Cache => &self.cache,
        }
    }
}

/// A server's breaker, with what it needs to report that the breaker changed.
struct Guard {
    server: Server,
    breaker: Arc<SharedBreaker>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

fn left_alone(server: Server) -> String {
    format!("the {} counts as down and is left alone for some seconds", server.as_str())
}

/// A port behind a breaker.
struct Guarded<P: ?Sized> {
    inner: Arc<P>,
    guard: Guard,
}

/// An answer that shows whether its server could be reached.
trait Answer {
    /// The answer to a caller if the server was not asked.
    fn left_alone(message: String) -> Self;

    /// Why the server could not be reached; `None` if it answered, even with an error.
    fn unreachable(&self) -> Option<&str>;
}

impl Guard {
    /// Asks the server, unless it counts as down.
    async fn ask<A: Answer>(&self, question: impl Future<Output = A>) -> A {
        if !self.breaker.try_start(self.clock.monotonic()) {
            return A::left_alone(left_alone(self.server));
        }
        let answer = question.await;
        let unreachable = answer.unreachable();
        let change = self.breaker.note(unreachable.is_none(), self.clock.monotonic());
        if let Some(change) = change {
            let (server, message) = (self.server, unreachable.unwrap_or("it answers again"));
            let open = change == BreakerChange::Opened;
            event::BreakerChanged { server, open, message, at: self.clock.now() }
                .emit(&self.metrics);
        }
        answer
    }
}

impl<T> Answer for Result<T, SourceError> {
    fn left_alone(message: String) -> Self {
        Err(SourceError { kind: SourceErrorKind::LeftAlone, message })
    }

    fn unreachable(&self) -> Option<&str> {
        let error = self.as_ref().err()?;
        (error.kind == SourceErrorKind::Unavailable).then_some(error.message.as_str())
    }
}

impl<T: Parts> Answer for Result<T, CacheError> {
    fn left_alone(message: String) -> Self {
        Err(CacheError { kind: CacheErrorKind::LeftAlone, message })
    }

    fn unreachable(&self) -> Option<&str> {
        let error = match self {
            Ok(parts) => parts.all_failed()?,
            Err(error) => error,
        };
        error.kind.is_transient().then_some(error.message.as_str())
    }
}

/// The answers to the commands of a pipeline: if one of them is not an outage, the server can be reached.
trait Parts {
    /// An outage, if every answer is one.
    fn all_failed(&self) -> Option<&CacheError> {
        None
    }
}

impl<T> Parts for Vec<Result<T, CacheError>> {
    fn all_failed(&self) -> Option<&CacheError> {
        let is_outage = |part: &Result<T, CacheError>| {
            part.as_ref().err().is_some_and(|error| error.kind.is_transient())
        };
        self.first().filter(|_| self.iter().all(is_outage))?.as_ref().err()
    }
}

impl Parts for () {}
impl Parts for u64 {}
impl Parts for Vec<u64> {}
impl Parts for Slice {}
impl Parts for CacheStats {}
impl Parts for Vec<Option<Found>> {}
impl Parts for Vec<Option<Size>> {}
impl Parts for Vec<Fence> {}
impl Parts for Vec<Vec<ManifestEntry>> {}
impl Parts for Vec<(String, String)> {}

/// The answer of a guarded port.
type Asked<'a, T, E> = BoxFuture<'a, Result<T, E>>;

impl Source for Guarded<dyn Source> {
    fn tenants(&self) -> Asked<'_, Tenants, SourceError> {
        self.guard.ask(self.inner.tenants()).boxed()
    }

    fn tenants_among<'a>(&'a self, ids: &'a [TenantId]) -> Asked<'a, Tenants, SourceError> {
        self.guard.ask(self.inner.tenants_among(ids)).boxed()
    }

    fn id_class(&self) -> IdClass {
        self.inner.id_class()
    }

    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> Asked<'a, (), SourceError> {
        self.guard.ask(self.inner.read(job, read, rows)).boxed()
    }
}

impl Cache for Guarded<dyn Cache> {
    fn write<'a>(&'a self, entries: &'a [Entry<'a>]) -> Asked<'a, Vec<KeyResult>, CacheError> {
        self.guard.ask(self.inner.write(entries)).boxed()
    }

    fn remove<'a>(
        &'a self,
        keys: &'a [String],
    ) -> Asked<'a, Vec<Result<bool, CacheError>>, CacheError> {
        self.guard.ask(self.inner.remove(keys)).boxed()
    }

    fn expire<'a>(&'a self, keys: &'a [(String, Duration)]) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.expire(keys)).boxed()
    }

    fn look<'a>(&'a self, keys: &'a [String]) -> Asked<'a, Vec<Option<Found>>, CacheError> {
        self.guard.ask(self.inner.look(keys)).boxed()
    }

    fn sizes<'a>(&'a self, keys: &'a [String]) -> Asked<'a, Vec<Option<Size>>, CacheError> {
        self.guard.ask(self.inner.sizes(keys)).boxed()
    }

    fn exist<'a>(&'a self, keys: &'a [String]) -> Asked<'a, u64, CacheError> {
        self.guard.ask(self.inner.exist(keys)).boxed()
    }

    fn scan<'a>(&'a self, pattern: &'a str, cursor: u64) -> Asked<'a, Slice, CacheError> {
        self.guard.ask(self.inner.scan(pattern, cursor)).boxed()
    }

    fn stats(&self) -> Asked<'_, CacheStats, CacheError> {
        self.guard.ask(self.inner.stats()).boxed()
    }

    fn servers(&self, keys: &[String]) -> Vec<usize> {
        self.inner.servers(keys)
    }

    fn slot(&self, key: &str) -> u16 {
        self.inner.slot(key)
    }

    fn lost_between(&self, before: u64, now: u64) -> Extent {
        self.inner.lost_between(before, now)
    }
}

impl Ledger for Guarded<dyn Ledger> {
    fn fences<'a>(&'a self, keys: &'a [String]) -> Asked<'a, Vec<Fence>, CacheError> {
        self.guard.ask(self.inner.fences(keys)).boxed()
    }

    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        number: i64,
    ) -> Asked<'a, Vec<Fence>, CacheError> {
        self.guard.ask(self.inner.start_fences(keys, number)).boxed()
    }

    fn move_fences<'a>(&'a self, keys: &'a [String], number: i64) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.move_fences(keys, number)).boxed()
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> Asked<'a, Vec<Vec<ManifestEntry>>, CacheError> {
        self.guard.ask(self.inner.manifests(keys)).boxed()
    }

    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.add_entries(manifests, now, ttl)).boxed()
    }

    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.prune(manifests, before)).boxed()
    }

    fn registry(&self) -> Asked<'_, Vec<(String, String)>, CacheError> {
        self.guard.ask(self.inner.registry()).boxed()
    }

    fn register<'a>(&'a self, entries: &'a [(String, String)]) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.register(entries)).boxed()
    }

    fn deregister<'a>(&'a self, tenants: &'a [String]) -> Asked<'a, (), CacheError> {
        self.guard.ask(self.inner.deregister(tenants)).boxed()
    }

    fn reads<'a>(&'a self, fields: &'a [String]) -> Asked<'a, Vec<u64>, CacheError> {
        self.guard.ask(self.inner.reads(fields)).boxed()
    }
}
