//! The cache as applications see it.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::absent::Absent;
use crate::background;
use crate::connection::Connection;
use crate::counts::{Counts, Outcome, Stats};
use crate::error::{Crash, Error};
use crate::flight::{Flights, Landed};
use crate::key::Key;
use crate::names::Names;
use crate::permits::Permits;
use crate::problem::{Listener, Problem, Problems};
use crate::protocol::Protocol;
use crate::read::{Looked, Question, Shared};

/// How long a command may take, by default.
const DEADLINE: Duration = Duration::from_millis(50);
/// How many loads may run at a time, by default.
const LOADS: usize = 16;
/// The largest value that is cached, by default: as preheat's `max_bytes`.
const MAX_BYTES: usize = 5 << 20;

/// Reads through the keys that preheat keeps warm, and removes them after a write.
///
/// A clone is the same cache. Make one for each process.
///
/// # Loaders
///
/// A loader runs in a task of its own: a caller that goes away does not end it for the others. It must read
/// what is committed *after* it was called, so give it no transaction that is already open, and no replica. It
/// may ask the cache for other keys, but not in a circle.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) shared: Arc<Shared>,
}

/// The settings of a [`Cache`].
#[must_use]
pub struct Builder {
    connection: Connection,
    prefix: String,
    deadline: Duration,
    loads: usize,
    max_bytes: usize,
    is_enabled: bool,
    listener: Option<Listener>,
}

impl Builder {
    /// What stands before every key and name: preheat's `cache.prefix`. None by default.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// How long Redis may take to answer a command; 50 ms by default. Afterwards the read goes on without it.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// How many loads may run at a time; 16 by default. 64 times as many may wait: see [`Error::Exhausted`].
    pub fn loads(self, loads: usize) -> Self {
        Self { loads, ..self }
    }

    /// The largest value that is cached; 5 MiB by default.
    pub fn max_bytes(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Without the cache each read loads, and nothing is sent to Redis: for tests of an application, and to
    /// measure what the cache is worth.
    pub fn enabled(self, is_enabled: bool) -> Self {
        Self { is_enabled, ..self }
    }

    /// Calls this when something is wrong with the cache, at most once in ten seconds for each kind of problem.
    /// It must not block.
    pub fn on_problem(
        self,
        listener: impl Fn(Problem, &(dyn StdError + 'static)) + Send + Sync + 'static,
    ) -> Self {
        Self { listener: Some(Arc::new(listener)), ..self }
    }

    /// Makes the cache and starts its background task, which ends when the last clone of the cache is dropped.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn build(self) -> Cache {
        let Self { connection, prefix, deadline, loads, max_bytes, is_enabled, listener } = self;
        let problems = Problems::new(listener);
        let protocol = Protocol::new(connection, Names::new(prefix), deadline, problems);
        let (alive, gone) = oneshot::channel();
        let shared = Arc::new(Shared {
            protocol: Arc::new(protocol),
            flights: Flights::default(),
            permits: Permits::new(loads),
            absent: Absent::default(),
            counts: Counts::default(),
            max_bytes,
            is_enabled,
            _alive: alive,
        });
        if is_enabled {
            tokio::spawn(background::run(Arc::downgrade(&shared), gone));
        }
        Cache { shared }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connection, prefix, deadline, loads, max_bytes, is_enabled, listener: _ } = self;
        f.debug_struct("Builder")
            .field("connection", connection)
            .field("prefix", prefix)
            .field("deadline", deadline)
            .field("loads", loads)
            .field("max_bytes", max_bytes)
            .field("is_enabled", is_enabled)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache on a connection of the application, such as a `redis::aio::ConnectionManager`, or on one that
    /// [`Connection::open`] makes.
    pub fn builder(connection: impl Into<Connection>) -> Builder {
        Builder {
            connection: connection.into(),
            prefix: String::new(),
            deadline: DEADLINE,
            loads: LOADS,
            max_bytes: MAX_BYTES,
            is_enabled: true,
            listener: None,
        }
    }

    /// The key's value: from Redis, or else from the loader.
    ///
    /// A miss gives the same value as a hit: what the loader returns is written as JSON and read back.
    pub async fn get_or_load<T, E, L, F>(&self, key: Key<T>, load: L) -> Result<T, Error<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.value(&key, false, load).await.map(|(value, _)| value)
    }

    /// A row's value, or none if the loader says that there is no such row.
    ///
    /// That there is none is remembered in this process for a second, and not in Redis.
    pub async fn find_or_load<T, E, L, F>(
        &self,
        key: Key<T>,
        load: L,
    ) -> Result<Option<T>, Error<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        self.value(&key, true, load).await.map(|(value, _)| value)
    }

    /// The value's JSON, which is not parsed on a hit.
    pub async fn raw_or_load<T, E, L, F>(&self, key: Key<T>, load: L) -> Result<Bytes, Error<E>>
    where
        T: Serialize + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.text(&key, load).await.map(|landed| landed.text)
    }

    /// Counts since the cache was made.
    pub fn stats(&self) -> Stats {
        let Shared { protocol, counts, .. } = &*self.shared;
        Stats {
            problems: protocol.problems.counts(),
            breaker_open: protocol.breaker.is_open(),
            ..counts.stats()
        }
    }

    /// Sends the counts to Redis now, and not only when the ten seconds are over. For the application's shutdown;
    /// what Redis does not take is lost.
    pub async fn flush(&self) {
        self.shared.flush().await;
    }

    /// The value, and its JSON with how it was come by.
    pub(crate) async fn value<T, V, E, L, F>(
        &self,
        key: &Key<T>,
        remembers_absence: bool,
        load: L,
    ) -> Result<(V, Landed), Error<E>>
    where
        V: Serialize + DeserializeOwned + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let entry = self.shared.protocol.entry(key);
        if !self.shared.is_enabled {
            let text = self.shared.without_cache(entry.family, text_of(load)).await;
            let landed = text.map(|text| Landed::of(text, Outcome::Bypass));
            return with_value(landed);
        }
        let looked = match self.shared.protocol.get(&entry.key).await {
            Ok(Some(text)) => match serde_json::from_slice(&text) {
                Ok(value) => {
                    self.shared.counts.read(entry.family, Outcome::Hit);
                    return Ok((value, Landed::of(text, Outcome::Hit)));
                }
                Err(error) => self.shared.unreadable(&error),
            },
            Ok(None) => Looked::Nothing,
            Err(_noted) => Looked::Unanswered,
        };
        if remembers_absence
            && self.shared.absent.has(&entry, Instant::now())
            && let Ok(absent) = serde_json::from_slice(NULL)
        {
            self.shared.counts.read(entry.family, Outcome::Joined);
            return Ok((absent, Landed::of(Bytes::from_static(NULL), Outcome::Joined)));
        }
        let question = Question { entry, accepts: is_readable::<V>, remembers_absence };
        with_value(self.shared.fly::<E>(question, looked, text_of(load)).await)
    }

    /// The value's JSON, and how it was come by.
    pub(crate) async fn text<T, E, L, F>(&self, key: &Key<T>, load: L) -> Result<Landed, Error<E>>
    where
        T: Serialize + Send + 'static,
        E: Send + Sync + 'static,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.bytes::<_, E>(key, text_of(load)).await.map_err(Crash::into_error)
    }

    /// The same, of a loader that returns JSON.
    pub(crate) async fn bytes<T, E: 'static>(
        &self,
        key: &Key<T>,
        load: impl Future<Output = Result<Bytes, Crash>> + Send + 'static,
    ) -> Result<Landed, Crash> {
        let entry = self.shared.protocol.entry(key);
        if !self.shared.is_enabled {
            let text = self.shared.without_cache(entry.family, load).await?;
            return Ok(Landed::of(text, Outcome::Bypass));
        }
        let looked = match self.shared.protocol.get(&entry.key).await {
            Ok(Some(text)) => {
                self.shared.counts.read(entry.family, Outcome::Hit);
                return Ok(Landed::of(text, Outcome::Hit));
            }
            Ok(None) => Looked::Nothing,
            Err(_noted) => Looked::Unanswered,
        };
        let question = Question { entry, accepts: |_any| true, remembers_absence: false };
        self.shared.fly::<E>(question, looked, load).await
    }
}

impl Shared {
    /// Loads for one caller.
    pub(crate) async fn without_cache<V>(
        &self,
        family: &'static str,
        load: impl Future<Output = Result<V, Crash>>,
    ) -> Result<V, Crash> {
        let begun_at = Instant::now();
        let loaded = load.await;
        self.counts.read(family, Outcome::Bypass);
        self.counts.loaded(family, loaded.is_ok(), begun_at.elapsed());
        loaded
    }

    /// A value in the cache is not of the type: the reader loads, and the worker will write a newer one.
    pub(crate) fn unreadable(&self, error: &serde_json::Error) -> Looked {
        self.protocol.problems.note(Problem::Unreadable, error);
        Looked::Unreadable
    }
}

/// What says that there is no row.
pub(crate) const NULL: &[u8] = b"null";

fn with_value<V: DeserializeOwned, E: Send + Sync + 'static>(
    landed: Result<Landed, Crash>,
) -> Result<(V, Landed), Error<E>> {
    let landed = landed.map_err(Crash::into_error)?;
    Ok((read(Ok(landed.text.clone()))?, landed))
}

/// The value that a load brought.
pub(crate) fn read<V: DeserializeOwned, E: Send + Sync + 'static>(
    text: Result<Bytes, Crash>,
) -> Result<V, Error<E>> {
    let text = text.map_err(Crash::into_error)?;
    serde_json::from_slice(&text).map_err(|error| Error::Value(Arc::new(error)))
}

/// Whether a text is a value of this type.
pub(crate) fn is_readable<V: DeserializeOwned>(text: &[u8]) -> bool {
    serde_json::from_slice::<V>(text).is_ok()
}

/// The JSON of a loader's value.
async fn text_of<V, E, L, F>(load: L) -> Result<Bytes, Crash>
where
    V: Serialize,
    E: Send + Sync + 'static,
    L: FnOnce() -> F,
    F: Future<Output = Result<V, E>>,
{
    let value = load().await.map_err(|error| Crash::Load(Arc::new(error)))?;
    json(&value)
}

pub(crate) fn json<V: Serialize>(value: &V) -> Result<Bytes, Crash> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Crash::Value(Arc::new(error)))
}
