//! Keeps the worker's membership of a fleet: beats, takes shares, gives them back when their batches have ended, and loses
//! them when their leases could not be renewed in time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::fleet::{
    ANSWER_WITHIN, ConnectionBounds, Membership, Orders, RETRY, Standing, View,
};
use crate::domain::member::MemberId;
use crate::engine::ports::{CacheError, Clock, Leases};
use crate::engine::run::Stops;
use crate::engine::run::ownership::Ownership;
use crate::observe::event;
use crate::observe::metric::Metrics;

/// The worker's connections to the database, whose bound a fleet may move.
pub trait Connections: Send + Sync {
    /// At most this many may be open. What is idle is closed at once, and the others as soon as they are not in use.
    fn bound(&self, most: u32);

    /// How many are open.
    fn open(&self) -> u32;
}

/// A share of the fleet's connections to the database.
#[derive(Clone)]
pub struct FleetConnections {
    /// Their bounds.
    pub bounds: ConnectionBounds,
    /// This worker's connections.
    pub own: Arc<dyn Connections>,
}

impl fmt::Debug for FleetConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetConnections").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

/// When a member works, and when it leaves.
#[derive(Clone, Debug)]
pub struct Phases {
    /// Cancelled when the worker can work.
    pub ready: CancellationToken,
    /// The worker finishes what it has begun, and takes no more shares.
    pub stops: Stops,
    /// Cancelled when no batch is in flight any more: the member leaves.
    pub ended: CancellationToken,
}

/// The task that keeps a worker's membership.
pub struct FleetKeeper {
    leases: Arc<dyn Leases>,
    ownership: Arc<Ownership>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// The longest wait for batches whose shares are given back.
    drain: Duration,
    connections: Option<FleetConnections>,
    membership: Membership,
    seen: watch::Sender<View>,
    /// When it began to give back the shares that it gives back now.
    giving_since: Duration,
    /// Whether the last beat failed; `None` before the first answer.
    is_away: Option<bool>,
    lacks_connections: bool,
}

impl FleetKeeper {
    /// A keeper that has not joined yet.
    pub fn new(
        leases: Arc<dyn Leases>,
        ownership: Arc<Ownership>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        drain: Duration,
    ) -> Self {
        let membership = Membership::new(MemberId::random(clock.random()), None);
        Self {
            leases,
            ownership,
            clock,
            metrics,
            drain,
            connections: None,
            membership,
            seen: watch::Sender::default(),
            giving_since: Duration::ZERO,
            is_away: None,
            lacks_connections: false,
        }
    }

    /// The same, where the members share a bound on their connections to the database. This worker may have none open until
    /// it has joined.
    #[must_use]
    pub fn with_connections(self, connections: FleetConnections) -> Self {
        connections.own.bound(0);
        let membership = Membership::new(self.membership.id().clone(), Some(connections.bounds));
        Self { membership, connections: Some(connections), ..self }
    }

    /// The id of this member.
    pub fn id(&self) -> &MemberId {
        self.membership.id()
    }

    /// The fleet, as the last beat was answered.
    pub fn seen(&self) -> watch::Receiver<View> {
        self.seen.subscribe()
    }

    /// Keeps the membership until the worker has ended, and leaves the fleet.
    pub async fn run(&mut self, phases: Phases) {
        while !phases.ended.is_cancelled() {
            self.lose_if_over();
            let pause = self.beat().await;
            self.wait(pause, &phases).await;
        }
        self.depart().await;
    }

    /// Waits until it is time for the next beat.
    async fn wait(&mut self, pause: Duration, phases: &Phases) {
        let now = self.clock.monotonic();
        let giving = self.membership.giving();
        let may_hand_over = !giving.is_empty() && self.is_away == Some(false);
        let patience = (self.giving_since + self.drain).saturating_sub(now);
        let standing = self.membership.standing();
        let lease = self.membership.until().saturating_sub(now);
        let pause = if self.membership.has_any() { pause.min(lease) } else { pause };
        tokio::select! {
            biased;
            () = phases.ended.cancelled() => {}
            () = phases.stops.requested(), if standing != Standing::Leaves => {
                self.membership.leaves();
            }
            () = phases.ready.cancelled(), if !self.membership.is_ready() => {
                self.membership.gets_ready();
            }
            () = self.ownership.idle(giving), if may_hand_over => self.hand_over().await,
            () = self.clock.sleep(patience), if may_hand_over => {
                event::SharesHandedOverBusy { shares: giving }.emit(&self.metrics);
                self.hand_over().await;
            }
            () = self.clock.sleep(pause) => {}
        }
    }

    /// Beats; returns when to do so again.
    async fn beat(&mut self) -> Duration {
        let open = self.connections.as_ref().map_or(0, |connections| connections.own.open());
        // The lease counts from before the question: it may arrive at once, and its answer late.
        let asked_at = self.clock.monotonic();
        let beat = self.membership.beat(open);
        let answer = self.within(self.leases.beat(&beat)).await;
        let now = self.clock.monotonic();
        let orders = answer.and_then(|view| {
            let orders = self.membership.answered(asked_at, now, view);
            orders.ok_or_else(|| "the answer came when the leases were over".to_owned())
        });
        match orders {
            Ok(orders) => {
                self.obey(orders, now);
                self.membership.next_beat()
            }
            Err(message) => {
                if self.is_away != Some(true) {
                    event::FleetUnreachable { message: &message }.emit(&self.metrics);
                }
                self.is_away = Some(true);
                RETRY
            }
        }
    }

    /// The answer, unless it takes too long. With leases the wait ends with them at the latest.
    async fn within<T>(&self, answer: BoxFuture<'_, Result<T, CacheError>>) -> Result<T, String> {
        let left = self.membership.until().saturating_sub(self.clock.monotonic());
        let patience = if left.is_zero() { ANSWER_WITHIN } else { left.min(ANSWER_WITHIN) };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|error| error.message),
            () = self.clock.sleep(patience) => Err(format!("no answer within {patience:.1?}")),
        }
    }

    fn obey(&mut self, Orders { take, give_back, gone }: Orders, now: Duration) {
        let held = self.membership.held();
        self.ownership.lasts(self.membership.until());
        if !gone.is_empty() {
            self.ownership.give_back(gone);
            event::SharesGone { shares: gone, held }.emit(&self.metrics);
        }
        if !give_back.is_empty() {
            self.ownership.give_back(give_back);
            self.giving_since = now;
            event::SharesGivenBack { shares: give_back, held }.emit(&self.metrics);
        }
        let take = take - give_back;
        if !take.is_empty() {
            self.ownership.take(take);
            event::SharesTaken { shares: take, held }.emit(&self.metrics);
        }
        self.bound_connections();
        self.tell();
    }

    fn tell(&mut self) {
        let view = self.membership.view();
        let members = view.members.len();
        match self.is_away {
            None => event::FleetJoined { id: self.membership.id(), members }.emit(&self.metrics),
            Some(true) => event::FleetReached.emit(&self.metrics),
            Some(false) => {}
        }
        self.is_away = Some(false);
        event::FleetSize { members }.emit(&self.metrics);
        event::SharesHeld { held: self.membership.held() }.emit(&self.metrics);
        let before = self.seen.send_replace(view.clone());
        let is_gone = |id: &&MemberId| view.member(id).is_none();
        for id in before.members.iter().map(|member| &member.id).filter(is_gone) {
            event::MemberGone { id }.emit(&self.metrics);
        }
    }

    fn bound_connections(&mut self) {
        let Some(FleetConnections { bounds, own }) = &self.connections else { return };
        let most = self.membership.connections().unwrap_or_default();
        own.bound(most);
        // A member that has just joined has none for a moment.
        let settled = self.membership.view().member(self.membership.id());
        let lacks_connections = most == 0 && settled.is_some_and(|me| me.age > ANSWER_WITHIN * 2);
        if lacks_connections && !self.lacks_connections {
            event::ConnectionsAwaited { connections: bounds.fleet }.emit(&self.metrics);
        }
        self.lacks_connections = lacks_connections;
    }

    /// Stops everything if the leases are over.
    fn lose_if_over(&mut self) {
        if !self.membership.is_over(self.clock.monotonic()) {
            return;
        }
        let lost = self.membership.lose();
        self.ownership.lose_all();
        self.bound_connections();
        if !lost.is_empty() {
            event::SharesLost { shares: lost }.emit(&self.metrics);
        }
        event::SharesHeld { held: self.membership.held() }.emit(&self.metrics);
    }

    async fn hand_over(&mut self) {
        let release = self.membership.hands_over();
        // If it failed, the shares are still leased, and are handed over after the next beat.
        if self.within(self.leases.release(&release)).await == Ok(true) {
            self.membership.handed_over();
        }
    }

    async fn depart(&mut self) {
        let release = self.membership.departs();
        self.ownership.give_back(self.membership.giving());
        // If it fails, the leases end by themselves.
        if self.within(self.leases.release(&release)).await == Ok(true) {
            event::FleetLeft.emit(&self.metrics);
        }
    }
}
