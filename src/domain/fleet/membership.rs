//! What one member remembers from beat to beat, and what follows from each answer.

use std::time::Duration;

use super::{
    BEAT, Beat, ConnectionBounds, LEASE, LEFT_FOR, Lease, MARGIN, NEWCOMER, Release, Standing,
    View, Wanted, moves,
};
use crate::domain::member::MemberId;
use crate::domain::share::Shares;

/// A beat comes this much after the end of another member's lease, so that the lease is over by then.
const AFTER_END: Duration = Duration::from_millis(20);

/// One member. All times are of its own monotonic clock, unless a view has them.
#[derive(Clone, Debug)]
pub struct Membership {
    id: MemberId,
    number: u64,
    is_ready: bool,
    is_leaving: bool,
    /// The shares that it works for.
    held: Shares,
    /// The shares that it works for no more. It keeps their leases until its batches for them have ended.
    giving: Shares,
    /// The shares that it claims with the next beat.
    wanted: Shares,
    /// When its leases are over.
    until: Duration,
    /// The bounds on its connections, if the fleet has one.
    bounds: Option<ConnectionBounds>,
    /// How many connections it may have open.
    connections: u32,
    /// The last answer.
    view: View,
}

/// What a member does after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Work for these shares, too.
    pub take: Shares,
    /// Begin no batch for these any more, and hand them over when no batch in flight is for them.
    pub give_back: Shares,
    /// Others have these: stop working for them.
    pub gone: Shares,
}

impl Membership {
    /// A member that waits. `bounds` is `None` if the connections of the fleet have no bound.
    pub fn new(id: MemberId, bounds: Option<ConnectionBounds>) -> Self {
        Self {
            id,
            number: 0,
            is_ready: false,
            is_leaving: false,
            held: Shares::NONE,
            giving: Shares::NONE,
            wanted: Shares::NONE,
            until: Duration::ZERO,
            bounds,
            connections: 0,
            view: View::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &MemberId {
        &self.id
    }

    /// The last answer.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The shares that it works for.
    pub fn held(&self) -> Shares {
        self.held
    }

    /// The shares that it works for no more, and whose leases it still has.
    pub fn giving(&self) -> Shares {
        self.giving
    }

    /// What it does.
    pub fn standing(&self) -> Standing {
        if self.is_leaving {
            Standing::Leaves
        } else if self.is_ready && self.has_connections() {
            Standing::Works
        } else {
            Standing::Waits
        }
    }

    /// How many connections to the database it may have open; `None` if the fleet does not bound them.
    pub fn connections(&self) -> Option<u32> {
        self.bounds.map(|_| self.connections)
    }

    fn has_connections(&self) -> bool {
        self.connections() != Some(0)
    }

    /// It can work from now on.
    pub fn gets_ready(&mut self) {
        self.is_ready = true;
    }

    /// Whether it can work.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// It takes nothing more. It works for what it has until it [departs](Self::departs).
    pub fn leaves(&mut self) {
        self.is_leaving = true;
    }

    /// When its leases are over, unless they are renewed.
    pub fn until(&self) -> Duration {
        self.until
    }

    /// Whether it has leases, or connections to the database that count as its own as long as it beats.
    pub fn has_any(&self) -> bool {
        !(self.held | self.giving).is_empty() || self.connections > 0
    }

    /// Whether what it has is over.
    pub fn is_over(&self, now: Duration) -> bool {
        self.has_any() && self.until <= now
    }

    /// The next beat. `open` is the number of connections to the database that it has open.
    pub fn beat(&mut self, open: u32) -> Beat {
        self.number += 1;
        let wanted = |bounds: ConnectionBounds| {
            let connections = match self.standing() {
                // It gives nothing back before it is gone.
                Standing::Leaves => self.connections,
                Standing::Waits | Standing::Works => self.view.connections_for(&self.id, bounds),
            };
            Wanted { connections: connections.max(open), of: bounds.fleet }
        };
        Beat {
            id: self.id.clone(),
            number: self.number,
            standing: self.standing(),
            claims: self.held | self.giving | self.wanted,
            connections: self.bounds.map(wanted),
        }
    }

    /// The beat that was sent at `asked_at` is answered. `None` if the answer comes so late that the leases are over already.
    pub fn answered(&mut self, asked_at: Duration, now: Duration, view: View) -> Option<Orders> {
        let until = (asked_at + LEASE).saturating_sub(MARGIN);
        if until <= now {
            return None;
        }
        self.until = until;
        self.wanted = Shares::NONE;
        self.view = view;
        let leased = self.view.held_by(&self.id);
        let gone = self.held - leased;
        self.held = self.held & leased;
        self.giving = self.giving & leased;
        let came = leased - self.held - self.giving;
        self.note_connections();
        let mut orders = Orders { gone, ..Orders::default() };
        match self.standing() {
            Standing::Works => {
                self.held = self.held | came;
                orders.take = came;
                orders.give_back = self.plan();
            }
            // What it cannot work for goes on to others.
            Standing::Waits => {
                self.giving = self.giving | came;
                orders.give_back = self.held;
            }
            Standing::Leaves => self.giving = self.giving | came,
        }
        self.held = self.held - orders.give_back;
        self.giving = self.giving | orders.give_back;
        Some(orders)
    }

    /// Decides what to claim next; returns what to give back.
    fn plan(&mut self) -> Shares {
        let moves = moves(&self.view);
        let is_newcomer = self.view.member(&self.id).is_none_or(|me| me.age < NEWCOMER);
        let of_others = moves.iter().filter(|(_, to)| **to != self.id).map(|(share, _)| *share);
        let give_back = self.held & of_others.collect();
        let own = moves.iter().filter(|(_, to)| **to == self.id).map(|(share, _)| *share);
        let free = self.view.leases().filter(|(_, lease)| lease.holder().is_none());
        let free: Shares = free.map(|(share, _)| share).collect();
        if !is_newcomer {
            self.wanted = free & own.collect();
        }
        give_back
    }

    /// It has at most the connections that the server has granted, and at once fewer if it is to have fewer.
    fn note_connections(&mut self) {
        let Some(bounds) = self.bounds else { return };
        let granted = self.view.member(&self.id).map_or(0, |me| me.connections);
        self.connections = if self.is_leaving {
            granted
        } else {
            granted.min(self.view.connections_for(&self.id, bounds))
        };
    }

    /// When to beat next, after an answer.
    pub fn next_beat(&self) -> Duration {
        if !self.wanted.is_empty() {
            return Duration::ZERO;
        }
        let next = self.view.leases.iter().map(|lease| match lease {
            Lease::Free(since) if *since < LEFT_FOR => LEFT_FOR.saturating_sub(*since) + AFTER_END,
            Lease::Free(_) => LEFT_FOR,
            Lease::Held { by, .. } if *by == self.id => BEAT,
            Lease::Held { left, .. } => *left + AFTER_END,
        });
        next.min().unwrap_or(BEAT).min(BEAT)
    }

    /// The leases are over: it works for nothing any more. Returns what it worked for.
    pub fn lose(&mut self) -> Shares {
        (self.giving, self.wanted) = (Shares::NONE, Shares::NONE);
        self.connections = 0;
        std::mem::take(&mut self.held)
    }

    /// Hands over what it gives back. No batch in flight may be for these shares.
    pub fn hands_over(&self) -> Release {
        self.release(self.giving, false)
    }

    /// Leaves the fleet, and works for nothing from now on. No batch may be in flight.
    pub fn departs(&mut self) -> Release {
        self.is_leaving = true;
        self.giving = self.giving | std::mem::take(&mut self.held);
        self.release(self.giving, true)
    }

    fn release(&self, shares: Shares, leaves: bool) -> Release {
        // The others may not have heard yet what this member does.
        let moves = moves(&self.view.with(&self.id, self.standing()));
        let to = |share| moves.get(&share).filter(|to| **to != self.id).cloned();
        let shares = shares.iter().map(|share| (share, to(share))).collect();
        Release { id: self.id.clone(), number: self.number, shares, leaves }
    }

    /// The server has done what [`Self::hands_over`] said.
    pub fn handed_over(&mut self) {
        self.giving = Shares::NONE;
    }
}
