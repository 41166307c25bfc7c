//! The leases of a fleet in memory, by a clock that tests move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use preheat::domain::fleet::{Beat, LEASE, Lease, Member, Release, Standing, View, Wanted};
use preheat::domain::member::MemberId;
use preheat::domain::share::Share;
use preheat::engine::ports::{CacheError, CacheErrorKind, Clock, Leases};

use super::lock;

/// What a server knows of a fleet.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseServer {
    members: BTreeMap<MemberId, Known>,
    leases: BTreeMap<Share, Leased>,
}

#[derive(Clone, Debug)]
struct Known {
    since: Duration,
    beat_at: Duration,
    number: u64,
    connections: u32,
    standing: Standing,
}

#[derive(Clone, Debug)]
struct Leased {
    ends: Duration,
    by: Option<MemberId>,
}

impl LeaseServer {
    /// `None` if a later beat came first.
    pub(crate) fn beat(&mut self, now: Duration, beat: &Beat) -> Option<View> {
        let Beat { id, number, standing, claims, connections } = beat;
        if self.members.get(id).is_some_and(|own| own.number > *number) {
            return None;
        }
        self.members.retain(|_, known| now.saturating_sub(known.beat_at) < LEASE);
        let own = self.members.get(id);
        let (since, has) = own.map_or((now, 0), |own| (own.since, own.connections));
        let others = self.members.iter().filter(|(name, _)| *name != id);
        let used: u32 = others.map(|(_, known)| known.connections).sum();
        let granted = |Wanted { connections, of }: &Wanted| {
            if *connections <= has {
                *connections
            } else {
                has.max((*connections).min(of.saturating_sub(used)))
            }
        };
        let connections = connections.as_ref().map_or(0, granted);
        let (number, standing) = (*number, *standing);
        let known = Known { since, beat_at: now, number, connections, standing };
        self.members.insert(id.clone(), known);

        let end = now + LEASE;
        for share in claims.iter() {
            let lease = self.leases.entry(share).or_insert(Leased { ends: now, by: None });
            if lease.ends <= now || lease.by.is_none() || lease.by.as_ref() == Some(id) {
                *lease = Leased { ends: end, by: Some(id.clone()) };
            }
        }
        for lease in self.leases.values_mut() {
            let is_own = lease.by.as_ref() == Some(id) && lease.ends > now;
            lease.ends = if is_own { end } else { lease.ends.min(end) };
        }
        Some(self.view(now))
    }

    pub(crate) fn release(&mut self, now: Duration, release: &Release) -> bool {
        let Release { id, number, shares, leaves } = release;
        if self.members.get(id).is_none_or(|known| known.number != *number) {
            return false;
        }
        for (share, to) in shares {
            let Some(lease) = self.leases.get_mut(share) else { continue };
            if lease.by.as_ref() != Some(id) {
                continue;
            }
            let next = to.as_ref().filter(|to| {
                self.members.get(*to).is_some_and(|known| now.saturating_sub(known.beat_at) < LEASE)
            });
            let ends = if next.is_some() { now + LEASE } else { now };
            *lease = Leased { ends, by: next.cloned() };
        }
        if *leaves {
            self.members.remove(id);
        }
        true
    }

    pub(crate) fn view(&self, now: Duration) -> View {
        let member = |(id, known): (&MemberId, &Known)| Member {
            id: id.clone(),
            standing: known.standing,
            age: now.saturating_sub(known.since),
            silent_for: now.saturating_sub(known.beat_at),
            connections: known.connections,
        };
        let mut view = View::of(self.members.iter().map(member).collect());
        for (share, Leased { ends, by }) in &self.leases {
            view.leases[usize::from(share.number())] = match by {
                Some(by) if *ends > now => {
                    Lease::Held { by: by.clone(), left: ends.saturating_sub(now) }
                }
                Some(_) | None => Lease::Free(now.saturating_sub(*ends)),
            };
        }
        view
    }

    /// Forgets everything, as an emptied cache does.
    pub(crate) fn flush(&mut self) {
        self.members.clear();
        self.leases.clear();
    }
}

/// Leases in memory. Its clones are the same server, as for several members.
#[derive(Clone)]
pub(crate) struct MemoryLeases {
    clock: Arc<dyn Clock>,
    server: Arc<Mutex<LeaseServer>>,
    is_away: Arc<AtomicBool>,
}

impl MemoryLeases {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, server: Arc::default(), is_away: Arc::default() }
    }

    /// While it is away, nothing arrives and nothing is answered.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    pub(crate) fn flush(&self) {
        lock(&self.server).flush();
    }

    pub(crate) fn view(&self) -> View {
        lock(&self.server).view(self.clock.monotonic())
    }

    fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }
}

impl Leases for MemoryLeases {
    fn beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<View, CacheError>> {
        Box::pin(async move {
            if self.is_away() {
                return std::future::pending().await;
            }
            let late = || CacheError {
                kind: CacheErrorKind::Refused,
                message: "a later beat came first".to_owned(),
            };
            lock(&self.server).beat(self.clock.monotonic(), beat).ok_or_else(late)
        })
    }

    fn release<'a>(&'a self, release: &'a Release) -> BoxFuture<'a, Result<bool, CacheError>> {
        Box::pin(async move {
            if self.is_away() {
                return std::future::pending().await;
            }
            Ok(lock(&self.server).release(self.clock.monotonic(), release))
        })
    }
}
