//! Keys that go from tenant to tenant: whoever has one no more removes it, and whoever has it now
//! gets it back.

use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::memory::MemoryRow;
use preheat::domain::fence::fence_key;
use preheat::domain::job::{Job, Key};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::Tenants;
use preheat::engine::port::{CacheErrorKind, Clock, Ledger};

use super::ledger::Call;
use super::{Count, MINUTE, SECOND, Setup, World, cache_error, job, key, ready, tenants};

/// A job of pets, whose keys go from tenant to tenant; no test lives to see it due.
fn pets() -> Job {
    let pet = Key { unique: Some("id".to_owned()), ..key("pet:{id}") };
    let schedule = Schedule::Every(Duration::from_hours(24));
    Job { schedule, keys: vec![pet], ..job("pets") }
}

fn world() -> World {
    Setup::new([pets(), job("other")], tenants(3)).start()
}

impl World {
    /// That tenant has these pets from now on, and no other tenant has any.
    fn give_pets(&self, version: u32, owner: &str, pets: impl IntoIterator<Item = usize>) {
        let row = |pet: usize| {
            MemoryRow::new(owner, &version.to_string(), [("id", pet.to_string().as_str())])
        };
        self.set_rows("pets", pets.into_iter().map(row).collect());
    }

    /// Whoever may be the new or the old owner is warmed, one after the other.
    async fn warm_in_turn(&self, tenants: &[&str]) {
        for tenant in tenants {
            self.warm_some("pets", &[tenant]).await;
        }
    }

    async fn pet_becomes(&self, value: &str) {
        let pet = || self.value("pet:7");
        self.until(&format!("the pet is {value}"), |_| pet().as_deref() == Some(value)).await;
    }

    /// The same while a tenant's fence never stands still.
    fn searches_while_it_moves(&self, tenant: &str) -> Count {
        let (cache, searches) = (Arc::clone(&self.cache), Count::default());
        let (seen, fence) = (searches.clone(), [fence_key(tenant)]);
        self.ledger.before(move |call| {
            let (cache, fence) = (Arc::clone(&cache), fence.clone());
            if call == Call::NamedAmong {
                seen.up();
            }
            Box::pin(async move {
                if call == Call::Fences {
                    cache.move_fences(&fence, 1 << 41).await?;
                }
                Ok(())
            })
        });
        searches
    }

    /// How often the manifests are asked for names from now on.
    fn searches(&self) -> Count {
        let searches = Count::default();
        let seen = searches.clone();
        self.ledger.before(move |call| {
            if call == Call::NamedAmong {
                seen.up();
            }
            ready(Ok(()))
        });
        searches
    }
}

#[tokio::test]
async fn hazard_07_a_key_that_was_taken_from_its_new_owner_comes_back() {
    let world = world();
    world.give_pets(1, "t0", [7]);
    world.warm("pets").await;
    world.clock.advance(SECOND).await;
    world.give_pets(2, "t1", [7]);
    world.warm_in_turn(&["t1", "t0"]).await;
    world.pet_becomes("[2]").await;
    // That its former owner is warmed again and again for half a minute takes it no more for good.
    for _ in 0..40 {
        world.warm_some("pets", &["t0"]).await;
        world.clock.advance(2 * SECOND).await;
        assert_eq!(world.value("pet:7").as_deref(), Some("[2]"));
    }
    assert_eq!(world.cache.ttl("pet:7"), Some(30 * MINUTE));
}

#[tokio::test]
async fn hazard_07_a_key_that_went_on_is_its_last_owners() {
    for last in ["t0", "t1", "t2"] {
        for order in [["t0", "t1", "t2"], ["t2", "t1", "t0"], ["t1", "t2", "t0"]] {
            let world = world();
            for (version, owner) in (1..).zip(["t2", "t1", "t0", last]) {
                world.give_pets(version, owner, [7]);
                world.warm_in_turn(&order).await;
            }
            world.pet_becomes("[4]").await;
            // It is quiet then: nobody takes it from anybody for ever.
            let searches = world.searches();
            world.clock.advance(MINUTE).await;
            assert_eq!(world.value("pet:7").as_deref(), Some("[4]"), "{last} {order:?}");
            let before = searches.now();
            world.clock.advance(MINUTE).await;
            assert_eq!(searches.now(), before, "{last} {order:?}");
        }
    }
}

#[tokio::test]
async fn whoever_had_a_key_is_looked_for_only_where_one_was_removed_and_once_a_second() {
    let world = world();
    world.give_pets(1, "t0", 0..50);
    let searches = world.searches();
    world.warm("pets").await;
    world.warm("pets").await;
    world.warm_in_turn(&["t2", "t1"]).await;
    world.clock.advance(MINUTE).await;
    assert_eq!(searches.now(), 0);

    // Fifty keys are taken away, each with a run of its own.
    for left in (0..50).rev() {
        world.give_pets(2, "t0", 0..left);
        world.warm_some("pets", &["t0"]).await;
        world.clock.advance(SECOND / 10).await;
    }
    assert!((5..=6).contains(&searches.now()), "{}", searches.now());
    world.clock.advance(MINUTE).await;
    assert!((5..=7).contains(&searches.now()), "{}", searches.now());
    assert_eq!(world.cache.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn hazard_07_a_removal_without_an_answer_may_come_late_and_its_key_comes_back() {
    let world = world();
    world.give_pets(1, "t0", [7]);
    world.warm("pets").await;
    world.give_pets(2, "t1", [7]);
    world.warm_some("pets", &["t1"]).await;
    // The server does not answer; half a second later it does what it was asked for.
    let (cache, clock) = (Arc::clone(&world.cache), world.clock.clone());
    let refusals = Count::default();
    let count = refusals.clone();
    world.cache.refuse(move |key| {
        let lost = key == "pet:7" && count.up() == 0;
        if lost {
            let (cache, late) = (Arc::clone(&cache), clock.sleep(SECOND / 2));
            tokio::spawn(async move {
                late.await;
                cache.evict("pet:7");
            });
        }
        lost.then(|| cache_error(CacheErrorKind::Unavailable))
    });
    world.warm_some("pets", &["t0"]).await;
    assert_eq!(refusals.now(), 1);
    world.until("it came late", |world| world.value("pet:7").is_none()).await;
    world.pet_becomes("[2]").await;
    world.clock.advance(10 * SECOND).await;
    assert_eq!(world.value("pet:7").as_deref(), Some("[2]"));
}

#[tokio::test]
async fn hazard_07_what_took_a_keys_place_and_ended_by_itself_makes_way_for_its_owners() {
    let world = world();
    world.give_pets(2, "t1", [7]);
    world.warm_some("pets", &["t1"]).await;
    // A run for its former owner still read it, and that tenant's data does not stand still.
    world.give_pets(1, "t0", [7]);
    let searches = world.searches_while_it_moves("t0");
    let record = world.warm_some("pets", &["t0"]).await;
    assert_eq!(record.report.tenants.fenced, 1);
    world.clock.advance(MINUTE).await;
    assert_eq!(world.value("pet:7").as_deref(), Some("[1]"));
    assert_eq!(searches.now(), 0, "as far as anybody knows it is its own");
    // Its life is over before that tenant comes back and finds it gone: there is nothing to remove.
    world.ledger.before(|_| ready(Ok(())));
    world.give_pets(2, "t1", [7]);
    world.cache.evict("pet:7");
    world.pet_becomes("[2]").await;
}

#[tokio::test]
async fn what_a_tenant_still_has_when_it_stands_still_is_nobody_elses() {
    let world = world();
    world.give_pets(1, "t0", [7]);
    let searches = world.searches_while_it_moves("t0");
    let record = world.warm_some("pets", &["t0"]).await;
    assert_eq!(record.report.tenants.fenced, 1);
    let seen = searches.clone();
    world.ledger.before(move |call| {
        if call == Call::NamedAmong {
            seen.up();
        }
        ready(Ok(()))
    });
    let is_proven = |world: &World| world.cache.ttl("pet:7") > Some(MINUTE);
    world.until("it stands still", is_proven).await;
    world.clock.advance(MINUTE).await;
    assert_eq!(searches.now(), 0);
}

#[tokio::test]
async fn hazard_07_what_its_new_owner_in_the_same_batch_could_not_write_goes() {
    let world = world();
    world.give_pets(1, "t0", [7]);
    world.warm("pets").await;
    world.give_pets(2, "t1", [7]);
    let asked = Count::default();
    let count = asked.clone();
    world.cache.refuse(move |key| {
        let is_first = key == "pet:7" && count.up() == 0;
        is_first.then(|| cache_error(CacheErrorKind::Full))
    });
    let record = world.warm("pets").await;
    let (failed, removed) = (record.report.tenants.failed, record.report.keys.removed);
    assert_eq!((failed, removed), (1, 1), "what its former owner wrote is old");
    world.pet_becomes("[2]").await;
}

#[tokio::test]
async fn hazard_07_owners_are_looked_for_again_where_the_cache_was_away() {
    let world = world();
    world.give_pets(1, "t0", [7]);
    world.warm("pets").await;
    world.give_pets(2, "t1", [7]);
    world.warm_some("pets", &["t1"]).await;
    let away = Count::default();
    let count = away.clone();
    world.ledger.before(move |call| {
        let is_away = call == Call::NamedAmong && count.up() < 3;
        ready(if is_away { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    world.warm_some("pets", &["t0"]).await;
    world.pet_becomes("[2]").await;
    assert_eq!(away.now(), 4);
}

#[tokio::test]
async fn hazard_07_many_keys_that_were_taken_at_once_come_back() {
    let world = world();
    world.give_pets(1, "t0", 0..500);
    world.warm("pets").await;
    world.give_pets(2, "t1", 0..500);
    let reads = world.reads().len();
    world.warm_in_turn(&["t1", "t0"]).await;
    world.pet_becomes("[2]").await;
    assert_eq!(world.cache.keys().len(), 500);
    assert_eq!(world.reads()[reads..], [["t1"], ["t0"], ["t1"]], "and nobody else is warmed");
}

#[tokio::test]
async fn hazard_07_keys_too_many_to_look_for_have_the_job_run_for_all() {
    const MANY: usize = 10_001;
    let world = world();
    world.give_pets(1, "t0", 0..MANY);
    world.warm("pets").await;
    world.give_pets(2, "t1", 0..MANY);
    let reads = world.reads().len();
    world.warm_in_turn(&["t1", "t0"]).await;
    world.pet_becomes("[2]").await;
    assert_eq!(world.reads()[reads..], [vec!["t1"], vec!["t0"], vec!["t0", "t1", "t2"]]);
    assert_eq!(world.cache.keys().len(), MANY);
}

#[tokio::test]
async fn hazard_09_what_a_tenant_that_is_gone_named_last_and_another_has_comes_back() {
    let world = world();
    world.give_pets(1, "t1", [7]);
    world.warm_some("pets", &["t1"]).await;
    world.clock.advance(SECOND).await;
    world.give_pets(2, "t0", [7]);
    world.warm_some("pets", &["t0"]).await;
    // It is sold back, and its seller is gone.
    world.give_pets(3, "t1", [7]);
    let mut left = Tenants::with_columns(["timezone"]);
    left.push("t1", [Some("UTC")]);
    left.push("t2", [Some("UTC")]);
    world.source.set_tenants(left);
    world.warm("other").await;
    assert_eq!(world.value("pet:7"), None, "whoever named it last is gone");
    world.pet_becomes("[3]").await;
}
