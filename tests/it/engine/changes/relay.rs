//! Members of a fleet with one reader of the write-ahead log, which passes the changes on to the others.

use std::sync::Arc;

use preheat::domain::run::{Outcome, Trigger};
use preheat::domain::share::{Share, Shares};
use preheat::engine::ports::{Cache, FeedSource, Ledger};
use preheat::engine::run::ownership::Ownership;
use preheat::engine::tasks::relay::RelayedSource;

use super::{Fed, Notifier, watching};
use crate::engine::{SECOND, Setup, tenants};
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
        let (log, relay) = (Arc::<Notifier>::default(), MemoryRelay::default());
        let setup = || Setup::new([watching("list")], tenants(20));
        let first = Setup { ownership: Ownership::of(half(true)), ..setup() };
        let clock = first.clock.clone();
        let reader = Self::member(first, &log, &relay).await;
        let second = Setup {
            clock,
            cache: Some(Arc::clone(&reader.cache) as Arc<dyn Cache>),
            ledger: Some(Arc::clone(&reader.cache) as Arc<dyn Ledger>),
            ownership: Ownership::of(half(false)),
            ..setup()
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
            Arc::new(RelayedSource::new(inner, relay, runner, Arc::new(|| true)))
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
