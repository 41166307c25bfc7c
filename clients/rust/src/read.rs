//! A read, from the first look to the fill.

use std::any::TypeId;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::absent::Absent;
use crate::cache::NULL;
use crate::chain::{CacheId, Chain};
use crate::counts::{Counts, Outcome};
use crate::error::Crash;
use crate::flight::{Boarding, Flight, Flights, Landed, Landing, Pilot, Stored};
use crate::permits::Permits;
use crate::problem::{Problem, TooLarge};
use crate::protocol::{Begun, Entry, Filled, Protocol, Ticket, lease_waits};

/// What all clones of a cache share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) protocol: Arc<Protocol>,
    pub(crate) flights: Flights,
    pub(crate) permits: Permits,
    pub(crate) absent: Absent,
    pub(crate) counts: Counts,
    pub(crate) max_bytes: usize,
    /// Otherwise each read loads.
    pub(crate) is_enabled: bool,
    /// The background task ends when this goes.
    pub(crate) _alive: oneshot::Sender<()>,
}

/// What is asked.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) entry: Entry,
    /// Whether a text is a value of the type that is asked for.
    pub(crate) accepts: fn(&[u8]) -> bool,
    /// Whether "no row" is remembered for a moment.
    pub(crate) remembers_absence: bool,
}

/// What the first look said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Redis has no value.
    Nothing,
    /// Redis has a value that is not of the type.
    Unreadable,
    /// Redis was not asked, or did not answer.
    Unanswered,
}

impl Looked {
    fn outcome(self) -> Outcome {
        match self {
            Self::Nothing | Self::Unreadable => Outcome::Miss,
            Self::Unanswered => Outcome::Bypass,
        }
    }
}

/// A flight that this process began, before it loads.
pub(crate) struct Departure {
    pub(crate) pilot: Pilot,
    pub(crate) question: Question,
    pub(crate) looked: Looked,
}

/// A flight whose value must be loaded. Without a ticket there is no fill.
pub(crate) struct Load {
    pub(crate) departure: Departure,
    pub(crate) ticket: Option<Ticket>,
}

/// What Redis said before the load.
pub(crate) enum Cleared {
    /// The value was there; the flight has landed.
    Landed,
    Load(Load),
    /// Another process loads.
    Wait(Departure, Ticket),
}

/// A load without a fill, since Redis does not answer.
fn unanswered(departure: Departure) -> Load {
    Load { departure: Departure { looked: Looked::Unanswered, ..departure }, ticket: None }
}

impl Shared {
    pub(crate) fn id(&self) -> CacheId {
        CacheId(std::ptr::from_ref(self).addr())
    }

    /// Joins the flight of this key, or begins one. `E` is the type of the loader's error.
    pub(crate) async fn fly<E: 'static>(
        self: &Arc<Self>,
        question: Question,
        looked: Looked,
        load: impl Future<Output = Result<Bytes, Crash>> + Send + 'static,
    ) -> Landing {
        let chain = Chain::current();
        if chain.has(self.id(), &question.entry.key) {
            return Err(Crash::Recursive);
        }
        let urgent = Arc::new(Notify::new());
        match self.flights.board(&question.entry, TypeId::of::<E>(), &urgent) {
            Boarding::Joined(flight) => self.join(&flight, &chain).await,
            Boarding::Began(pilot) => {
                let flight = Arc::clone(&pilot.flight);
                let departure = Departure { pilot, question, looked };
                tokio::spawn(Arc::clone(self).pilot(departure, chain, load));
                flight.landing().await
            }
        }
    }

    /// Waits for a flight that another caller began.
    pub(crate) async fn join(&self, flight: &Flight, chain: &Chain) -> Landing {
        if chain.is_loading(self.id()) {
            flight.hurry();
        }
        let landing = flight.landing().await;
        let is_hit = landing.as_ref().is_ok_and(|landed| landed.outcome == Outcome::Hit);
        let outcome = if is_hit { Outcome::Hit } else { Outcome::Joined };
        self.counts.read(flight.entry.family, outcome);
        landing.map(|landed| Landed { outcome, stored: Stored::No, ..landed })
    }

    /// Brings a flight to its end, whether or not its callers still wait.
    async fn pilot(
        self: Arc<Self>,
        departure: Departure,
        chain: Chain,
        load: impl Future<Output = Result<Bytes, Crash>> + Send + 'static,
    ) {
        let cleared = match self.clear(departure).await {
            Cleared::Wait(departure, ticket) => self.wait(departure, ticket).await,
            Cleared::Landed => None,
            Cleared::Load(load) => Some(load),
        };
        if let Some(cleared) = cleared {
            let entry = &cleared.departure.question.entry;
            let keys = vec![Arc::clone(&entry.key)];
            let loading = (entry.family, keys, cleared.departure.pilot.flight.as_ref());
            let loaded = self.load(loading, chain, load).await;
            self.finish(cleared, loaded).await;
        }
    }

    /// Asks Redis once more, for the fence and for the lease.
    pub(crate) async fn clear(self: &Arc<Self>, departure: Departure) -> Cleared {
        if departure.looked != Looked::Nothing {
            return Cleared::Load(Load { departure, ticket: None });
        }
        match self.protocol.begin(&departure.question.entry).await {
            Ok(Some(Begun::Found(text))) => {
                self.found(departure, text).map_or(Cleared::Landed, Cleared::Load)
            }
            Ok(Some(Begun::Load(ticket))) => Cleared::Load(self.leased(departure, ticket)),
            Ok(Some(Begun::Wait(ticket))) => Cleared::Wait(departure, ticket),
            Ok(None) => Cleared::Load(Load { departure, ticket: None }),
            Err(_noted) => Cleared::Load(unanswered(departure)),
        }
    }

    /// This process has the lease. A load that is dropped gives it back at once, so that a reader after
    /// the write does not wait for a load from before it.
    fn leased(self: &Arc<Self>, departure: Departure, ticket: Ticket) -> Load {
        let (this, flight, lease) =
            (Arc::clone(self), Arc::clone(&departure.pilot.flight), ticket.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = flight.dropped() => this.protocol.give_back(&flight.entry, &lease).await,
                _landed = flight.landing() => {}
            }
        });
        Load { departure, ticket: Some(ticket) }
    }

    /// Waits for the load of another process; if it ends without a value or takes too long, this one loads.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        departure: Departure,
        mut ticket: Ticket,
    ) -> Option<Load> {
        for wait in lease_waits() {
            sleep(wait).await;
            match self.protocol.begin(&departure.question.entry).await {
                Ok(Some(Begun::Wait(later))) => ticket = later,
                Ok(Some(Begun::Found(text))) => {
                    self.counts.lease_wait("found");
                    return self.found(departure, text);
                }
                Ok(Some(Begun::Load(ticket))) => {
                    self.counts.lease_wait("acquired");
                    return Some(self.leased(departure, ticket));
                }
                Ok(None) | Err(_) => {
                    self.counts.lease_wait("failed");
                    return Some(unanswered(departure));
                }
            }
        }
        self.counts.lease_wait("timeout");
        Some(Load { departure, ticket: Some(ticket) })
    }

    /// Lands with a value that Redis has, unless it is not of the type.
    fn found(&self, departure: Departure, text: Bytes) -> Option<Load> {
        let Departure { pilot, question, .. } = &departure;
        if !(question.accepts)(&text) {
            return Some(Load { departure, ticket: None });
        }
        self.counts.read(question.entry.family, Outcome::Hit);
        pilot.land(Ok(Landed::of(text, Outcome::Hit)));
        None
    }

    /// Runs a loader in a task of its own, so that its panic ends nothing else.
    pub(crate) async fn load<V: Send + 'static>(
        &self,
        (family, keys, flight): (&'static str, Vec<Arc<str>>, &Flight),
        chain: Chain,
        load: impl Future<Output = Result<V, Crash>> + Send + 'static,
    ) -> Result<V, Crash> {
        let permit = if chain.is_loading(self.id()) {
            None // that of the load that asks
        } else {
            self.permits.acquire(flight).await.inspect_err(|_full| self.counts.exhausted())?
        };
        let begun_at = Instant::now();
        let loaded = tokio::spawn(chain.run(self.id(), keys, load)).await;
        drop(permit);
        let loaded = loaded.unwrap_or(Err(Crash::Panicked));
        self.counts.loaded(family, loaded.is_ok(), begun_at.elapsed());
        loaded
    }

    /// Fills, if that is allowed, and answers all who wait.
    pub(crate) async fn finish(&self, load: Load, loaded: Result<Bytes, Crash>) {
        let Load { departure: Departure { pilot, question, looked }, ticket } = load;
        let entry = &question.entry;
        self.counts.read(entry.family, looked.outcome());
        let landed = |text, stored| Ok(Landed { text, outcome: looked.outcome(), stored });
        let text = match loaded {
            Ok(text) => text,
            Err(crash) => {
                pilot.land(Err(crash));
                return self.give_back(entry, ticket).await;
            }
        };
        match (self.obstacle(&pilot.flight, &question, &text), ticket) {
            (None, Some(ticket)) => {
                let stored = self.fill(entry, &ticket, &text).await;
                pilot.land(landed(text, stored));
            }
            (obstacle, ticket) => {
                pilot.land(landed(text, obstacle.unwrap_or(Stored::No)));
                self.give_back(entry, ticket).await;
            }
        }
    }

    async fn give_back(&self, entry: &Entry, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.protocol.give_back(entry, &ticket).await;
        }
    }

    /// Why a value must not be filled.
    fn obstacle(&self, flight: &Flight, question: &Question, text: &Bytes) -> Option<Stored> {
        let entry = &question.entry;
        if text.as_ref() == NULL {
            if question.remembers_absence {
                self.absent.add(entry, Instant::now());
                if flight.is_dropped() {
                    self.absent.forget(&[&entry.key]); // the invalidation may have come before `add`
                }
            }
            Counts::not_filled(entry.family, "skipped");
            return Some(Stored::No);
        }
        if text.len() > self.max_bytes {
            let error = TooLarge { family: entry.family, bytes: text.len() };
            self.protocol.problems.note(Problem::TooLarge, &error);
            Counts::not_filled(entry.family, "skipped");
            return Some(Stored::TooLarge);
        }
        if flight.is_dropped() {
            self.counts.refused(entry.family);
            return Some(Stored::Refused);
        }
        None
    }

    async fn fill(&self, entry: &Entry, ticket: &Ticket, text: &Bytes) -> Stored {
        match self.protocol.fill(entry, ticket, text).await {
            Filled::Written => {
                self.counts.filled(entry.family);
                Stored::Yes
            }
            Filled::Refused => {
                self.counts.refused(entry.family);
                Stored::Refused
            }
            Filled::ThereAlready => {
                Counts::not_filled(entry.family, "skipped");
                Stored::No
            }
            Filled::Failed => {
                Counts::not_filled(entry.family, "failed");
                Stored::No
            }
        }
    }
}
