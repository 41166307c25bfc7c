//! Loads under way in this process. All callers that ask for the same key meanwhile wait for the same load.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::counts::Outcome;
use crate::error::Crash;
use crate::protocol::Entry;

/// How a flight ended.
pub(crate) type Landing = Result<Landed, Crash>;

/// What a flight brought.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    /// The value's JSON.
    pub(crate) text: Bytes,
    /// How the caller that began it was answered.
    pub(crate) outcome: Outcome,
    #[cfg_attr(not(feature = "axum"), expect(dead_code, reason = "HTTP answers say it"))]
    pub(crate) stored: Stored,
}

impl Landed {
    /// A value that this read did not store.
    pub(crate) fn of(text: Bytes, outcome: Outcome) -> Self {
        Self { text, outcome, stored: Stored::No }
    }
}

/// Whether the value is in Redis now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Yes,
    No,
    /// Not, because the tenant's data changed meanwhile.
    Refused,
    /// Not, because it is too large.
    TooLarge,
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) entry: Entry,
    /// The type of the loader's error: only callers with the same type can share it.
    error: TypeId,
    landing: watch::Receiver<Option<Landing>>,
    /// Its data changed in this process: it answers those who wait, and fills nothing.
    dropped: watch::Sender<bool>,
    /// A load that has a permit waits for this one, so this one must not wait for a permit.
    urgent: Arc<Notify>,
}

impl Flight {
    /// Waits for its end.
    pub(crate) async fn landing(&self) -> Landing {
        let mut landing = self.landing.clone();
        let landed = landing.wait_for(Option::is_some).await;
        // Without an end, its task panicked or the runtime shut down.
        landed.ok().and_then(|landed| landed.clone()).unwrap_or(Err(Crash::Panicked))
    }

    pub(crate) fn is_dropped(&self) -> bool {
        *self.dropped.borrow()
    }

    /// Waits until it is dropped; for ever, if it lands before that.
    pub(crate) async fn dropped(&self) {
        // Its sender is here, so there is no other end to this.
        self.dropped.subscribe().wait_for(|is_dropped| *is_dropped).await.ok();
    }

    /// Lets it load without a permit.
    pub(crate) fn hurry(&self) {
        self.urgent.notify_one();
    }

    pub(crate) async fn hurried(&self) {
        self.urgent.notified().await;
    }
}

/// The flights of a cache, by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flights {
    by_key: Arc<Mutex<ByKey>>,
}

/// Several of one key, if their loaders have different types of errors, or load for different tenants: what one
/// may see of a shared key, another may not.
type ByKey = HashMap<Arc<str>, Vec<Arc<Flight>>>;

/// Who begins a flight, or joins one.
pub(crate) enum Boarding {
    /// The caller must see to it that the pilot lands.
    Began(Pilot),
    Joined(Arc<Flight>),
}

impl Flights {
    /// `urgent` is the flight's own, or that of all flights with which it shares a load.
    pub(crate) fn board(&self, entry: &Entry, error: TypeId, urgent: &Arc<Notify>) -> Boarding {
        let mut by_key = self.by_key();
        let flights = by_key.entry(Arc::clone(&entry.key)).or_default();
        let is_same =
            |flight: &&Arc<Flight>| flight.error == error && flight.entry.fence == entry.fence;
        if let Some(flight) = flights.iter().find(is_same) {
            return Boarding::Joined(Arc::clone(flight));
        }
        let (land, landing) = watch::channel(None);
        let flight = Arc::new(Flight {
            entry: entry.clone(),
            error,
            landing,
            dropped: watch::Sender::new(false),
            urgent: Arc::clone(urgent),
        });
        flights.push(Arc::clone(&flight));
        drop(by_key);
        Boarding::Began(Pilot { flight, land, flights: self.clone() })
    }

    /// Drops the flights of these keys: who asks from now on loads anew.
    pub(crate) fn drop_keys(&self, keys: &[&str]) {
        let mut by_key = self.by_key();
        let dropped = keys.iter().filter_map(|key| by_key.remove(*key));
        for flight in dropped.flatten() {
            flight.dropped.send_replace(true);
        }
    }

    /// Drops the flights of all keys with this fence.
    pub(crate) fn drop_fence(&self, fence: &str) {
        self.by_key().retain(|_, flights| {
            flights.retain(|flight| {
                let is_of_fence = flight.entry.fence.as_deref() == Some(fence);
                if is_of_fence {
                    flight.dropped.send_replace(true);
                }
                !is_of_fence
            });
            !flights.is_empty()
        });
    }

    fn remove(&self, flight: &Arc<Flight>) {
        let mut by_key = self.by_key();
        if let Some(flights) = by_key.get_mut(&flight.entry.key) {
            flights.retain(|other| !Arc::ptr_eq(other, flight));
            if flights.is_empty() {
                by_key.remove(&flight.entry.key);
            }
        }
    }

    fn by_key(&self) -> MutexGuard<'_, ByKey> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a flight. If it is dropped, those who wait get an error, and the next caller begins anew.
#[derive(Debug)]
pub(crate) struct Pilot {
    pub(crate) flight: Arc<Flight>,
    land: watch::Sender<Option<Landing>>,
    flights: Flights,
}

impl Pilot {
    /// Answers all who wait.
    pub(crate) fn land(&self, landing: Landing) {
        self.flights.remove(&self.flight);
        self.land.send_replace(Some(landing));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.flights.remove(&self.flight);
    }
}
