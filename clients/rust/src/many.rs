//! Several keys at once: one command for all hits, and one load for all misses.

use std::any::TypeId;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::cache::{Cache, is_readable, json, read};
use crate::chain::Chain;
use crate::counts::Outcome;
use crate::error::{Crash, Error};
use crate::flight::{Boarding, Flight};
use crate::key::Key;
use crate::problem::Failure;
use crate::read::{Cleared, Departure, Load, Looked, Question, Shared};

/// A key that this call loads, and what the loader is asked for.
struct Passenger<A> {
    argument: A,
    departure: Departure,
}

/// One of the values that are asked for.
enum Part<T> {
    Ready(T),
    /// This call loads it.
    Began(Arc<Flight>),
    /// Another caller loads it.
    Joined(Arc<Flight>),
}

impl Cache {
    /// The values of several keys, in their order.
    ///
    /// With each key stands what the loader needs to know of it: the day of a day's slots, for example. The
    /// loader gets those of the missing keys, and returns their values in the same order. It is called a second
    /// time if another process loads some of the keys and does not finish.
    pub async fn many<A, T, E, L, F>(
        &self,
        keys: impl IntoIterator<Item = (A, Key<T>)>,
        load: L,
    ) -> Result<Vec<T>, Error<E>>
    where
        A: Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + Sync + 'static,
        L: Fn(Vec<A>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<T>, E>> + Send + 'static,
    {
        let (arguments, entries): (Vec<A>, Vec<_>) = keys
            .into_iter()
            .map(|(argument, key)| (argument, self.shared.protocol.entry(&key)))
            .unzip();
        let Some(first) = entries.first() else { return Ok(Vec::new()) };
        if !self.shared.is_enabled {
            let texts = texts_of(arguments.len(), load(arguments));
            let texts = self.shared.without_cache(first.family, texts).await;
            let texts = texts.map_err(Crash::into_error)?;
            return texts.into_iter().map(|text| read(Ok(text))).collect();
        }
        let keys: Vec<_> = entries.iter().map(|entry| Arc::clone(&entry.key)).collect();
        let chain = Chain::current();
        if keys.iter().any(|key| chain.has(self.shared.id(), key)) {
            return Err(Error::Recursive);
        }
        let found = self.shared.protocol.get_many(&keys).await;
        let urgent = Arc::new(Notify::new());
        let (mut parts, mut passengers) = (Vec::new(), Vec::new());
        for ((entry, argument), text) in entries.into_iter().zip(arguments).zip(texts(found)) {
            let looked = match self.shared.looked(entry.family, text) {
                Ok(value) => {
                    parts.push(Part::Ready(value));
                    continue;
                }
                Err(looked) => looked,
            };
            match self.shared.flights.board(&entry, TypeId::of::<E>(), &urgent) {
                Boarding::Joined(flight) => parts.push(Part::Joined(flight)),
                Boarding::Began(pilot) => {
                    parts.push(Part::Began(Arc::clone(&pilot.flight)));
                    let accepts = is_readable::<T>;
                    let question = Question { entry, accepts, remembers_absence: false };
                    let departure = Departure { pilot, question, looked };
                    passengers.push(Passenger { argument, departure });
                }
            }
        }
        if !passengers.is_empty() {
            let load = move |arguments: Vec<A>| texts_of(arguments.len(), load(arguments));
            tokio::spawn(Arc::clone(&self.shared).fly_together(passengers, chain.clone(), load));
        }
        let mut values = Vec::with_capacity(parts.len());
        for part in parts {
            values.push(match part {
                Part::Ready(value) => value,
                Part::Began(flight) => read(flight.landing().await.map(|landed| landed.text))?,
                Part::Joined(flight) => {
                    read(self.shared.join(&flight, &chain).await.map(|landed| landed.text))?
                }
            });
        }
        Ok(values)
    }
}

/// What was found for each key, without end if Redis did not answer.
fn texts(
    found: Result<Vec<Option<Bytes>>, Failure>,
) -> impl Iterator<Item = Result<Option<Bytes>, ()>> {
    let (found, is_answered) =
        found.map_or_else(|_noted| (Vec::new(), false), |found| (found, true));
    let rest = std::iter::repeat_with(move || if is_answered { Ok(None) } else { Err(()) });
    found.into_iter().map(Ok).chain(rest)
}

/// The JSON of each of a loader's values.
async fn texts_of<T: Serialize, E: Send + Sync + 'static>(
    expected: usize,
    load: impl Future<Output = Result<Vec<T>, E>>,
) -> Result<Vec<Bytes>, Crash> {
    let values = load.await.map_err(|error| Crash::Load(Arc::new(error)))?;
    if values.len() != expected {
        return Err(Crash::Count { expected, found: values.len() });
    }
    values.iter().map(json).collect()
}

impl Shared {
    /// The value that was found; otherwise why there is none.
    fn looked<T: DeserializeOwned>(
        &self,
        family: &'static str,
        found: Result<Option<Bytes>, ()>,
    ) -> Result<T, Looked> {
        match found {
            Ok(Some(text)) => {
                let value =
                    serde_json::from_slice(&text).map_err(|error| self.unreadable(&error))?;
                self.counts.read(family, Outcome::Hit);
                Ok(value)
            }
            Ok(None) => Err(Looked::Nothing),
            Err(()) => Err(Looked::Unanswered),
        }
    }

    /// Loads with one call what no other process loads, and what other processes did not finish with another.
    async fn fly_together<A, F>(
        self: Arc<Self>,
        passengers: Vec<Passenger<A>>,
        chain: Chain,
        load: impl Fn(Vec<A>) -> F,
    ) where
        A: Send + 'static,
        F: Future<Output = Result<Vec<Bytes>, Crash>> + Send + 'static,
    {
        let clear = |Passenger { argument, departure }| {
            let this = Arc::clone(&self);
            tokio::spawn(async move { (argument, this.clear(departure).await) })
        };
        let cleared: Vec<_> = passengers.into_iter().map(clear).collect();
        let (mut loads, mut waits) = (Vec::new(), Vec::new());
        for cleared in cleared {
            match cleared.await {
                Ok((argument, Cleared::Load(load))) => loads.push((argument, load)),
                Ok((argument, Cleared::Wait(departure, ticket))) => {
                    let this = Arc::clone(&self);
                    waits.push(tokio::spawn(async move {
                        this.wait(departure, ticket).await.map(|load| (argument, load))
                    }));
                }
                Ok((_, Cleared::Landed)) | Err(_) => {}
            }
        }
        self.load_together(loads, &chain, &load).await;
        let mut late = Vec::new();
        for wait in waits {
            late.extend(wait.await.ok().flatten());
        }
        self.load_together(late, &chain, &load).await;
    }

    async fn load_together<A, F>(
        self: &Arc<Self>,
        loads: Vec<(A, Load)>,
        chain: &Chain,
        load: &impl Fn(Vec<A>) -> F,
    ) where
        F: Future<Output = Result<Vec<Bytes>, Crash>> + Send + 'static,
    {
        let (arguments, loads): (Vec<A>, Vec<Load>) = loads.into_iter().unzip();
        let Some(first) = loads.first() else { return };
        let keys =
            loads.iter().map(|load| Arc::clone(&load.departure.question.entry.key)).collect();
        let family = first.departure.question.entry.family;
        let loading = (family, keys, first.departure.pilot.flight.as_ref());
        let loaded = self.load(loading, chain.clone(), load(arguments)).await;
        let mut texts = loaded.map(Vec::into_iter);
        for load in loads {
            let text = match &mut texts {
                Ok(texts) => texts.next().ok_or(Crash::Panicked),
                Err(crash) => Err(crash.clone()),
            };
            let this = Arc::clone(self);
            tokio::spawn(async move { this.finish(load, text).await });
        }
    }
}
