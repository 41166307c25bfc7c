//! The worker's part in a fleet: which shares of the tenants are its own, and who keeps that.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Servers, worker_shares};
use crate::adapter::postgres::ConnectionLimit;
use crate::adapter::redis::RedisCache;
use crate::config::{FleetShares, Settings};
use crate::domain::fleet::ConnectionBounds;
use crate::domain::member::MemberId;
use crate::engine::ports::Clock;
use crate::engine::run::Stops;
use crate::engine::run::limit::Limits;
use crate::engine::run::ownership::Ownership;
use crate::engine::schedule::handle::{FleetRuns, Handle};
use crate::engine::tasks::fleet::{Connections, FleetConnections, FleetKeeper, Phases};
use crate::engine::tasks::requests::{Requests, RequestsParts};
use crate::engine::tasks::supervisor::Supervisor;
use crate::observe::metric::Metrics;
use crate::overview::{Board, FleetMember};

/// The worker's part in a fleet; alone, it holds all shares and does nothing.
pub(super) struct Fleet {
    /// The shares that the worker holds.
    pub(super) ownership: Arc<Ownership>,
    /// Its id among the members, if it leases its shares.
    pub(super) member: Option<MemberId>,
    /// The permits that follow from the connections, once they are there.
    limits: Arc<OnceLock<Arc<Limits>>>,
    phases: Phases,
    keeper: Mutex<JoinSet<()>>,
}

/// A worker's connections to the database, and the batches in flight that they suffice for.
struct Bounded {
    limit: ConnectionLimit,
    limits: Arc<OnceLock<Arc<Limits>>>,
    settings: Settings,
}

impl Connections for Bounded {
    fn bound(&self, most: u32) {
        self.limit.set(most);
        if let Some(limits) = self.limits.get() {
            limits.set(worker_shares(&self.settings, most));
        }
    }

    fn open(&self) -> u32 {
        self.limit.open()
    }
}

impl Fleet {
    /// Begins to keep the membership, if the worker leases its shares. It takes none before it is [ready](Self::is_ready).
    pub(super) fn start(
        settings: &Settings,
        servers: &Servers,
        stops: &Stops,
        clock: &Arc<dyn Clock>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let ownership = match settings.fleet.shares {
            FleetShares::All => Ownership::default(),
            FleetShares::Fixed(part) => Ownership::of_part(part),
            FleetShares::Leased => Ownership::leased(Arc::clone(clock)),
        };
        let [ready, ended] = [(); 2].map(|()| CancellationToken::new());
        let phases = Phases { ready, stops: stops.clone(), ended };
        let mut fleet = Self {
            ownership: Arc::new(ownership.in_fleet_of(&settings.cache.prefix)),
            member: None,
            limits: Arc::default(),
            phases,
            keeper: Mutex::default(),
        };
        if settings.fleet.shares == FleetShares::Leased {
            let supervisor = Supervisor::with(
                Arc::clone(clock),
                Arc::clone(metrics),
                fleet.phases.ended.clone(),
            );
            let keeper = FleetKeeper::new(
                Arc::clone(&servers.cache) as _,
                Arc::clone(&fleet.ownership),
                Arc::clone(clock),
                Arc::clone(metrics),
                settings.runner.drain,
            );
            fleet.member = Some(keeper.id().clone());
            fleet.keep(supervisor, fleet.bounded(settings, servers, keeper));
        }
        fleet
    }

    fn bounded(&self, settings: &Settings, servers: &Servers, keeper: FleetKeeper) -> FleetKeeper {
        let Some(of) = settings.fleet.database_connections else { return keeper };
        let bounded = Bounded {
            limit: servers.database.limit(),
            limits: Arc::clone(&self.limits),
            settings: settings.clone(),
        };
        let bounds = ConnectionBounds { fleet: of, own: settings.database.max_connections };
        keeper.with_connections(FleetConnections { bounds, own: Arc::new(bounded) })
    }

    fn keep(&self, supervisor: Supervisor, keeper: FleetKeeper) {
        let state = (keeper, self.phases.clone());
        self.tasks().spawn(
            supervisor.keep_running("fleet", state, |(keeper, phases)| {
                keeper.run(phases.clone()).boxed()
            }),
        );
    }

    /// The worker can work: from now on it takes shares.
    pub(super) fn is_ready(&self, limits: &Arc<Limits>) {
        // It is called once.
        drop(self.limits.set(Arc::clone(limits)));
        self.phases.ready.cancel();
    }

    /// What the other members are to know of this worker, if it leases its shares.
    pub(super) fn member(
        &self,
        cache: &Arc<RedisCache>,
        listen: SocketAddr,
    ) -> Option<FleetMember> {
        let member = |id: &MemberId| FleetMember {
            id: id.clone(),
            address: listen.to_string(),
            ownership: Arc::clone(&self.ownership),
            sheets: Arc::clone(cache) as _,
        };
        self.member.as_ref().map(member)
    }

    /// Shares requests out among the members, if the worker leases its shares.
    pub(super) fn requests(
        &self,
        settings: &Settings,
        cache: &Arc<RedisCache>,
        engine: &Handle,
    ) -> Option<(Requests, FleetRuns)> {
        let parts = || RequestsParts {
            sheets: Arc::clone(cache) as _,
            ownership: Arc::clone(&self.ownership),
            engine: engine.clone(),
            replica: settings.replica.clone(),
        };
        self.member.as_ref().map(|_| Requests::new(parts()))
    }

    /// Leaves the fleet: no batch is in flight any more.
    pub(super) async fn leave(&self, within: Duration) {
        self.phases.ended.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks());
        drop(timeout(within, async { while tasks.join_next().await.is_some() {} }).await);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the tasks by which a fleet is seen and asked as one.
pub(super) fn keep_as_one(
    tasks: &mut JoinSet<()>,
    supervisor: &Supervisor,
    board: &Arc<Board>,
    requests: Option<Requests>,
) {
    let Some(requests) = requests else { return };
    let state = (Arc::clone(board), supervisor.stop().clone());
    tasks.spawn(supervisor.clone().keep_running("fleet summaries", state, |(board, stop)| {
        Arc::clone(board).keep_fleet(stop.clone()).boxed()
    }));
    let state = (requests, supervisor.stop().clone());
    tasks.spawn(supervisor.clone().keep_running("fleet requests", state, |(requests, stop)| {
        requests.run(stop.clone()).boxed()
    }));
}
