//! The task that keeps a membership, on a virtual clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use preheat::domain::fleet::{BEAT, ConnectionBounds, LEASE, MARGIN, View};
use preheat::domain::share::Shares;
use preheat::engine::ports::Clock;
use preheat::engine::run::Stops;
use preheat::engine::run::ownership::Ownership;
use preheat::engine::tasks::fleet::{Connections, FleetConnections, FleetKeeper, Phases};
use preheat::observe::metric::Metrics;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{REST, SECOND};
use crate::support::memory::MemoryLeases;
use crate::support::virtual_clock::VirtualClock;

const DRAIN: Duration = Duration::from_secs(20);

/// Connections that are all in use, until a test says otherwise.
#[derive(Default)]
struct Used {
    most: AtomicU32,
    open: AtomicU32,
}

impl Connections for Used {
    fn bound(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Used {
    /// The worker opens all that it may, and closes what is too much.
    fn use_all(&self) {
        self.open.store(self.most.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

struct Fleet {
    clock: VirtualClock,
    leases: MemoryLeases,
    tasks: JoinSet<()>,
}

struct Worker {
    ownership: Arc<Ownership>,
    metrics: Arc<Metrics>,
    phases: Phases,
    seen: watch::Receiver<View>,
    used: Arc<Used>,
}

impl Fleet {
    fn new() -> Self {
        let clock = VirtualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), 7);
        let leases = MemoryLeases::new(Arc::new(clock.clone()));
        Self { clock, leases, tasks: JoinSet::new() }
    }

    fn join(&mut self) -> Worker {
        self.join_with(None)
    }

    fn join_with(&mut self, bounds: Option<ConnectionBounds>) -> Worker {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let ownership = Arc::new(Ownership::leased(Arc::clone(&clock)));
        let metrics = Metrics::new();
        let leases = Arc::new(self.leases.clone());
        let keeper =
            FleetKeeper::new(leases, Arc::clone(&ownership), clock, Arc::clone(&metrics), DRAIN);
        let used: Arc<Used> = Arc::default();
        let mut keeper = match bounds {
            Some(bounds) => {
                let own = Arc::clone(&used) as _;
                keeper.with_connections(FleetConnections { bounds, own })
            }
            None => keeper,
        };
        let [ready, ended, drain, abort] = [(); 4].map(|()| CancellationToken::new());
        ready.cancel();
        let phases = Phases { ready, stops: Stops { drain, abort }, ended };
        let (seen, running) = (keeper.seen(), phases.clone());
        self.tasks.spawn(async move { keeper.run(running).await });
        Worker { ownership, metrics, phases, seen, used }
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time).await;
    }
}

impl Worker {
    fn held(&self) -> u32 {
        self.ownership.held().len()
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.encode().lines().any(|shown| shown == line)
    }
}

#[tokio::test]
async fn a_member_takes_all_and_shares_them_with_those_that_join() {
    let mut fleet = Fleet::new();
    let one = fleet.join();
    fleet.pass(SECOND).await;
    assert_eq!(one.held(), 0, "others may start at the same time");
    fleet.pass(BEAT * 2).await;
    assert_eq!(one.ownership.held(), Shares::ALL);
    let other = fleet.join();
    fleet.pass(REST).await;
    assert_eq!((one.held(), other.held()), (32, 32));
    assert!((one.ownership.held() & other.ownership.held()).is_empty());
    assert!(one.shows("preheat_fleet_shares 32") && one.shows("preheat_fleet_members 2"));
    assert_eq!(one.seen.borrow().members.len(), 2);

    // It works for its shares until its batches have ended.
    other.phases.stops.drain.cancel();
    fleet.pass(REST).await;
    assert_eq!((one.held(), other.held()), (32, 32));
    other.phases.ended.cancel();
    fleet.pass(BEAT).await;
    assert_eq!((one.held(), other.held()), (64, 0));
    assert!(one.shows("preheat_fleet_shares 64") && one.shows("preheat_fleet_members 1"));
}

#[tokio::test]
async fn members_that_start_together_share_from_the_start() {
    let mut fleet = Fleet::new();
    let workers = [fleet.join(), fleet.join(), fleet.join()];
    fleet.pass(BEAT * 2).await;
    assert_eq!(workers.each_ref().map(Worker::held).iter().sum::<u32>(), 64);
    assert!(workers.iter().all(|worker| worker.held() >= 21));
}

#[tokio::test]
async fn a_member_that_cannot_renew_stops_before_its_leases_end() {
    let mut fleet = Fleet::new();
    let worker = fleet.join();
    fleet.pass(REST).await;
    let tenure = worker.ownership.tenure();
    fleet.leases.set_away(true);
    // The last beat may have been two seconds ago.
    let safely = LEASE.saturating_sub(MARGIN + BEAT + SECOND / 2);
    fleet.pass(safely).await;
    assert_eq!(worker.held(), 64);
    fleet.pass(BEAT + SECOND / 2).await;
    assert!(tenure.is_cancelled());
    assert_eq!((worker.held(), worker.ownership.subscribe().borrow().len()), (0, 0));
    assert!(worker.shows("preheat_fleet_shares 0"));
    fleet.leases.set_away(false);
    fleet.pass(BEAT * 3).await;
    assert_eq!(worker.held(), 64);
    assert!(!worker.ownership.tenure().is_cancelled());
}

#[tokio::test]
async fn a_member_that_was_suspended_holds_nothing_from_its_first_moment_on() {
    let mut fleet = Fleet::new();
    let worker = fleet.join();
    fleet.pass(REST).await;
    let tenure = worker.ownership.tenure();
    let stalled = fleet.clock.stall(Duration::from_mins(1));
    // Nothing but the clock has moved, and the task has not had its turn.
    let held_at_once = async {
        let held = worker.held();
        (held, tenure.is_cancelled())
    };
    let ((), (held, _)) = tokio::join!(biased_first(stalled), held_at_once);
    assert_eq!(held, 0);
    assert!(tenure.is_cancelled());
    fleet.pass(BEAT * 3).await;
    assert_eq!(worker.held(), 64);
}

async fn biased_first(future: impl Future<Output = ()>) {
    future.await;
}

#[tokio::test]
async fn a_server_that_lost_its_data_gets_the_leases_again() {
    let mut fleet = Fleet::new();
    let workers = [fleet.join(), fleet.join()];
    fleet.pass(REST).await;
    let before = workers.each_ref().map(|worker| worker.ownership.held());
    fleet.leases.flush();
    fleet.pass(REST).await;
    assert_eq!(workers.each_ref().map(|worker| worker.ownership.held()), before);
}

#[tokio::test]
async fn the_connections_of_a_fleet_stay_within_their_bound() {
    const OF: u32 = 12;
    let mut fleet = Fleet::new();
    let bounds = Some(ConnectionBounds { fleet: OF, own: 8 });
    let mut workers = Vec::new();
    let pass = async |fleet: &Fleet, workers: &[Worker], time: Duration| {
        for _ in 0..time.as_millis() / 100 {
            fleet.pass(SECOND / 10).await;
            for worker in workers {
                worker.used.use_all();
            }
            let open: u32 = workers.iter().map(|worker| worker.used.open()).sum();
            assert!(open <= OF, "{open}");
        }
    };
    let shared = |workers: &[Worker]| -> Vec<u32> {
        workers.iter().map(|worker| worker.used.most.load(Ordering::Relaxed)).collect()
    };
    for expected in [&[8][..], &[6, 6], &[4, 4, 4]] {
        workers.push(fleet.join_with(bounds));
        pass(&fleet, &workers, REST).await;
        assert_eq!(shared(&workers), expected);
    }
    for _ in 0..4 {
        workers.push(fleet.join_with(bounds));
        pass(&fleet, &workers, REST).await;
    }
    assert_eq!(shared(&workers), [2, 2, 2, 2, 2, 2, 0]);
    assert_eq!(workers[6].held(), 0, "it stands by");
    let gone = workers.remove(0);
    gone.phases.stops.drain.cancel();
    gone.phases.ended.cancel();
    pass(&fleet, &workers, REST).await;
    assert_eq!(shared(&workers), [2; 6]);
    assert!(workers[5].held() >= 10);
}
