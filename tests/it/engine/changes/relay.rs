//! Members of a fleet with one reader of the write-ahead log, which passes the changes on to the others.

use std::sync::Arc;

use preheat::domain::fence::{Fence, GLOBAL, fence_key};
use preheat::domain::job::{Job, JobName, Scope};
use preheat::domain::run::{Outcome, Trigger};
use preheat::domain::share::{Share, Shares};
use preheat::engine::ports::{Cache, FeedSource, Ledger};
use preheat::engine::run::ownership::Ownership;
use preheat::engine::tasks::relay::RelayedSource;

use super::{Fed, Notifier, watching};
use crate::engine::{SECOND, Setup, key, tenants};
use crate::support::memory::MemoryRelay;

/// Two members that hold half of the shares each; the first one has the first share.
struct Fleet {
    reader: Fed,
    follower: Fed,
    log: Arc<Notifier>,
    relay: MemoryRelay,
}

fn half(first: bool) -> Shares {
    (0..64).filter(|number| (*number < 32) == first).filter_map(Share::new).collect()
}

/// A tenant of the one or the other half.
fn tenant(first: bool) -> String {
    let of_half = |id: &String| half(first).has_tenant(id);
    (0..20).map(|number| format!("t{number}")).find(of_half).unwrap()
}

impl Fleet {
    async fn start() -> Self {
        Self::of([watching("list")], [watching("list")]).await
    }

    /// Members with these jobs: the reader's, and the follower's.
    async fn of<const N: usize, const M: usize>(reader: [Job; N], follower: [Job; M]) -> Self {
        let (log, relay) = (Arc::<Notifier>::default(), MemoryRelay::default());
        let ownership = Ownership::of(half(true));
        let first = Setup { ownership, ..Setup::new(reader, tenants(20)) };
        let clock = first.clock.clone();
        let reader = Self::member(first, &log, &relay).await;
        let second = Setup {
            clock,
            cache: Some(Arc::clone(&reader.cache) as Arc<dyn Cache>),
            ledger: Some(Arc::clone(&reader.cache) as Arc<dyn Ledger>),
            ownership: Ownership::of(half(false)),
            ..Setup::new(follower, tenants(20))
        };
        let follower = Self::member(second, &log, &relay).await;
        let fleet = Self { reader, follower, log, relay };
        fleet.rest().await;
        fleet
    }

    async fn member(setup: Setup, log: &Arc<Notifier>, relay: &MemoryRelay) -> Fed {
        let (inner, relay) = (Arc::clone(log), Arc::new(relay.clone()));
        Fed::begin_with(setup, Arc::clone(log), |world| {
            let runner = Arc::clone(&world.runner);
            let column = "tenant_id".to_owned();
            Arc::new(RelayedSource::new(inner, relay, runner, column, Arc::new(|| true)))
                as Arc<dyn FeedSource>
        })
        .await
    }

    async fn rest(&self) {
        self.reader.clock.advance(SECOND).await;
    }

    fn commit(&self, version: u32) {
        let both = [tenant(true), tenant(false)];
        let both = both.each_ref().map(String::as_str);
        self.reader.commit("list", version, &both);
        self.follower.commit("list", version, &both);
    }

    fn tell(&self) {
        self.reader.tell("list", &[&tenant(true), &tenant(false)]);
    }

    /// The number of a fence that is there.
    async fn fence(&self, key: &str) -> i64 {
        match self.reader.fence(key).await {
            Fence::At(number) => number,
            Fence::Missing => panic!("there is no fence `{key}`"),
        }
    }

    /// The numbers of the fences of the two tenants.
    async fn fences(&self) -> [i64; 2] {
        [self.fence(&fence_key(&tenant(true))).await, self.fence(&fence_key(&tenant(false))).await]
    }

    fn holds(&self, version: u32) -> bool {
        let is =
            |first| self.reader.is(&format!("list:{}", tenant(first)), &format!("[{version}]"));
        is(true) && is(false)
    }
}

#[tokio::test]
async fn one_member_reads_the_log_and_each_warms_its_own() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.log.connects.now(), 1);
    let read = [fleet.reader.reads().len(), fleet.follower.reads().len()];
    fleet.commit(2);
    fleet.tell();
    fleet.rest().await;
    assert!(fleet.holds(2));
    assert_eq!(fleet.reader.reads()[read[0]..], [[tenant(true)]]);
    assert_eq!(fleet.follower.reads()[read[1]..], [[tenant(false)]]);
}

#[tokio::test]
async fn hazard_01_the_reader_moves_the_fences_of_tenants_whose_share_nobody_holds() {
    let fleet = Fleet::start().await;
    fleet.follower.runner.ownership.give_back(half(false));
    fleet.rest().await;
    let (before, read) = (fleet.fences().await, fleet.follower.reads().len());
    fleet.tell();
    fleet.rest().await;
    assert_eq!(fleet.fences().await, before.map(|number| number + 1), "each moves once");
    assert_eq!(fleet.follower.reads().len(), read);
}

#[tokio::test]
async fn the_reader_moves_the_fences_before_it_passes_the_change_on() {
    let fleet = Fleet::start().await;
    let before = fleet.fences().await;
    fleet.relay.set_away(true);
    fleet.tell();
    fleet.reader.clock.advance(SECOND / 100).await;
    assert_eq!(fleet.fences().await, before.map(|number| number + 1));
    fleet.relay.set_away(false);
    fleet.reader.clock.advance(20 * SECOND).await;
    let before = fleet.fences().await;
    fleet.reader.tell_all("list", None);
    fleet.rest().await;
    assert_eq!(fleet.fences().await, before.map(|number| number + 1), "any tenant is each tenant");
}

#[tokio::test]
async fn the_reader_moves_the_global_fence_for_a_job_that_another_member_holds() {
    let global = |name: &str| Job { scope: Scope::Global, keys: vec![key(name)], ..watching(name) };
    let is_followed = |name: &&str| half(false).has(Share::of_job(&JobName::parse(name).unwrap()));
    let name = ["a", "b", "c", "d"].into_iter().find(is_followed).unwrap();
    let fleet = Fleet::of([global(name)], [global(name)]).await;
    let (before, runs) = (fleet.fence(GLOBAL).await, fleet.follower.change_runs(name, "ok"));
    fleet.reader.tell_all(name, None);
    fleet.rest().await;
    assert_eq!(fleet.fence(GLOBAL).await, before + 1);
    assert_eq!(fleet.follower.change_runs(name, "ok"), runs + 1);
}

#[tokio::test]
async fn a_member_moves_its_own_fences_for_a_table_that_the_reader_does_not_know() {
    let fleet = Fleet::of([watching("list")], [watching("list"), watching("new")]).await;
    let (before, runs) = (fleet.fences().await, fleet.follower.change_runs("new", "ok"));
    fleet.follower.tell_all("new", None);
    fleet.reader.clock.advance(20 * SECOND).await;
    assert_eq!(fleet.fences().await, [before[0], before[1] + 1]);
    assert_eq!(fleet.follower.change_runs("new", "ok"), runs + 1);
    fleet.follower.tell("new", &[&tenant(true), &tenant(false)]);
    fleet.rest().await;
    assert_eq!(fleet.fences().await, [before[0] + 1, before[1] + 2], "they say whose they are");
}

#[tokio::test]
async fn another_reader_is_a_gap() {
    let fleet = Fleet::start().await;
    fleet.reader.runner.ownership.give_back(half(true));
    fleet.rest().await;
    // Nobody reads the log.
    fleet.commit(2);
    fleet.tell();
    fleet.follower.runner.ownership.take(half(true));
    fleet.reader.clock.advance(20 * SECOND).await;
    assert_eq!(fleet.log.connects.now(), 2);
    assert!(fleet.holds(2));
    let resynced = fleet.follower.history("list").await;
    assert!(resynced.contains(&(Trigger::Startup, Outcome::Ok)));
    fleet.reader.runner.ownership.take(half(false) - Share::new(40).unwrap().into());
    fleet.commit(3);
    fleet.tell();
    fleet.reader.clock.advance(20 * SECOND).await;
    assert!(fleet.holds(3), "the former reader follows");
    assert_eq!(fleet.log.connects.now(), 2);
}

#[tokio::test]
async fn a_reader_that_connects_again_is_a_gap_for_all() {
    let fleet = Fleet::start().await;
    let before = fleet.follower.history("list").await.len();
    fleet.log.break_off();
    fleet.reader.clock.advance(20 * SECOND).await;
    assert_eq!(fleet.log.connects.now(), 2);
    assert!(fleet.follower.history("list").await.len() > before);
    fleet.commit(2);
    fleet.tell();
    fleet.rest().await;
    assert!(fleet.holds(2));
}

#[tokio::test]
async fn changes_that_fell_out_of_the_relay_are_a_gap() {
    let fleet = Fleet::start().await;
    let before = fleet.follower.history("list").await.len();
    fleet.relay.set_away(true);
    fleet.follower.clock.advance(SECOND / 10).await;
    fleet.relay.set_away(false);
    fleet.follower.clock.advance(20 * SECOND).await;
    let after = fleet.follower.history("list").await.len();
    assert!(after > before, "a relay that was away may have lost anything");
    fleet.commit(2);
    // The follower looks only after both were passed on, and the first of them was dropped.
    fleet.tell();
    fleet.reader.clock.advance(SECOND / 100).await;
    fleet.tell();
    fleet.reader.clock.advance(SECOND / 100).await;
    fleet.relay.lose_one();
    fleet.reader.clock.advance(20 * SECOND).await;
    assert!(fleet.holds(2));
    assert!(fleet.follower.history("list").await.len() > after);
}
