//! Fences and manifests: data that changes while a run reads and writes it, and data that is
//! deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use preheat::domain::fence::{Fence, GLOBAL, PROVISIONAL_TTL, fence_key};
use preheat::domain::job::{Job, JobName, Key, Scope};
use preheat::domain::json::Encoding;
use preheat::domain::manifest::manifest_key;
use preheat::domain::protocol::ROUNDS;
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunRecord};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::TenantId;
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, Clock, Ledger, ManifestEntries, SourceErrorKind,
};
use preheat::engine::run::limit::Priority;
use preheat::engine::run::{RunResult, RunSpec, Stops, Unverified};

use super::ledger::{Call, names};
use super::{
    Count, MINUTE, SECOND, Setup, World, cache_error, job, key, many, ready, refused, tenants,
};
use crate::support::memory::{MemoryCache, MemoryRow, MemorySource};

/// A run that ended, and the tenants that it left unverified.
struct Run {
    record: RunRecord,
    unverified: Unverified,
}

/// A world whose job `list` has a static key and one key for each category.
fn world_with_categories() -> World {
    let by_category = key("list:{tenant_id}:{category}");
    let schedule = Schedule::Every(Duration::from_hours(24));
    let job = Job { schedule, keys: vec![key("list:{tenant_id}"), by_category], ..job("list") };
    Setup::new([job], tenants(3)).start()
}

/// One row for each tenant and category, with a version.
fn rows(version: u32, categories: &[(&str, &str)]) -> Vec<MemoryRow> {
    let row = |(tenant, category): &(&str, &str)| {
        MemoryRow::new(tenant, &version.to_string(), [("category", *category)])
    };
    categories.iter().map(row).collect()
}

/// An application that commits, moves the fence and deletes the key.
#[derive(Clone)]
struct Application {
    source: Arc<MemorySource>,
    cache: Arc<MemoryCache>,
}

impl Application {
    fn of(world: &World) -> Self {
        Self { source: Arc::clone(&world.source), cache: Arc::clone(&world.cache) }
    }

    fn commit(&self, rows: Vec<MemoryRow>) {
        self.source.set_rows(&JobName::parse("list").unwrap(), rows);
    }

    async fn move_fence(&self, fence: &str) {
        self.cache.move_fences(&[fence.to_owned()], 1 << 41).await.unwrap();
    }

    async fn delete(&self, key: &str) {
        self.cache.remove(&[key.to_owned()]).await.unwrap();
    }
}

/// Calls `act` before the first writes only, when the rows have been read.
fn between_read_and_write<F>(world: &World, act: F)
where
    F: Fn(Application) -> BoxFuture<'static, ()> + Send + Sync + 'static,
{
    let (application, done) = (Application::of(world), Arc::new(AtomicBool::new(false)));
    world.cache.before_write(move |_| {
        let first = !done.swap(true, Ordering::Relaxed);
        let acted = first.then(|| act(application.clone()));
        Box::pin(async move {
            if let Some(acted) = acted {
                acted.await;
            }
            Ok(())
        })
    });
}

impl World {
    /// Does a run without the scheduler.
    async fn run(&self, job: &str, priority: Priority) -> Run {
        let job = Arc::clone(&self.runner.jobs.get()[&JobName::parse(job).unwrap()]);
        let spec = RunSpec { priority, ..RunSpec::on_request(&self.clock, &job, None) };
        let handover = Arc::clone(&spec.handover);
        let run = Arc::clone(&self.runner).run(spec, Stops::default());
        tokio::pin!(run);
        loop {
            tokio::select! {
                biased;
                ended = &mut run => {
                    let RunResult { record, failed: _ } = ended;
                    let unverified = handover.take().into_values().next().unwrap_or_default();
                    return Run { record, unverified };
                }
                _moved = self.clock.step() => {}
            }
        }
    }

    async fn fence(&self, tenant: &str) -> Fence {
        self.cache.fences(&[fence_key(tenant)]).await.unwrap()[0]
    }

    async fn manifest_keys(&self, tenant: &str) -> Vec<String> {
        let key = manifest_key(&JobName::parse("list").unwrap(), Some(tenant));
        names(&self.cache, key).await
    }
}

fn unverified(ids: &[&str]) -> Unverified {
    Unverified { tenants: ids.iter().map(TenantId::new).collect(), global: false }
}

#[tokio::test]
async fn hazard_01_a_value_that_was_read_before_a_change_does_not_outlive_it() {
    let world = Setup::new([job("list")], tenants(3)).start();
    world.set_rows("list", rows(1, &[("t0", ""), ("t1", "")]));
    between_read_and_write(&world, |application| {
        Box::pin(async move {
            application.commit(rows(2, &[("t0", ""), ("t1", "")]));
            application.move_fence(&fence_key("t1")).await;
            application.delete("list:t1").await;
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t1").as_deref(), Some("[2]"));
    assert_eq!(
        world.cache.ttl("list:t1"),
        Some(30 * MINUTE),
        "once verified it lives for its whole TTL"
    );
    assert_eq!(world.value("list:t0").as_deref(), Some("[1]"), "nobody said that it changed");
    assert_eq!(world.reads(), [vec!["t0", "t1", "t2"], vec!["t1"]]);
    let report = &ended.record.report;
    assert_eq!((ended.record.outcome, report.tenants.ok), (Outcome::Ok, 3));
    assert_eq!((report.keys.written, report.keys.fenced), (3, 0), "a key counts once");
    assert_eq!(ended.unverified, Unverified::default());
}

#[tokio::test]
async fn hazard_01_a_tenant_that_never_stands_still_is_fenced_and_its_keys_live_for_seconds() {
    let world = Setup::new([job("list")], tenants(3)).start();
    let (application, writes) = (Application::of(&world), Count::default());
    let count = writes.clone();
    world.cache.before_write(move |_| {
        let (application, version) = (application.clone(), count.up());
        Box::pin(async move {
            application.commit(rows(u32::try_from(version).unwrap(), &[("t1", "")]));
            application.move_fence(&fence_key("t1")).await;
            Ok(())
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(writes.now(), ROUNDS as usize);
    assert_eq!(world.cache.ttl("list:t1"), Some(PROVISIONAL_TTL));
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
    let report = &ended.record.report;
    assert_eq!((report.tenants.ok, report.tenants.fenced, report.tenants.failed), (2, 1, 0));
    assert_eq!((report.keys.written, report.keys.fenced), (2, 1));
    assert_eq!(ended.record.outcome, Outcome::Ok, "its keys are there, and it is warmed again");
    assert_eq!(ended.unverified, unverified(&["t1"]));
}

#[tokio::test]
async fn hazard_01_a_fence_that_was_evicted_counts_as_moved_even_if_a_bare_incr_made_it_anew() {
    for bare_incr in [false, true] {
        let world = Setup::new([job("list")], tenants(1)).start();
        world.set_rows("list", rows(1, &[("t0", "")]));
        // Long ago the application moved the fence once, with nothing but `INCR`.
        world.cache.move_fences(&[fence_key("t0")], 0).await.unwrap();
        assert_eq!(world.fence("t0").await, Fence::At(1));
        between_read_and_write(&world, move |application| {
            Box::pin(async move {
                application.commit(rows(2, &[("t0", "")]));
                application.cache.evict(&fence_key("t0"));
                if bare_incr {
                    application.cache.move_fences(&[fence_key("t0")], 0).await.unwrap();
                }
            })
        });
        let ended = world.run("list", Priority::Regular).await;
        assert_eq!(world.value("list:t0").as_deref(), Some("[2]"), "bare INCR: {bare_incr}");
        assert_eq!(ended.unverified, Unverified::default());
        assert!(!world.fence("t0").await.needs_start());
    }
}

#[tokio::test]
async fn hazard_01_the_fleet_has_a_fence_of_its_own() {
    let fleet = Job { scope: Scope::Global, keys: vec![key("menu")], ..job("list") };
    let world = Setup::new([fleet], tenants(2)).start();
    world.set_rows("list", rows(1, &[("", "")]));
    between_read_and_write(&world, |application| {
        Box::pin(async move {
            application.commit(rows(2, &[("", "")]));
            application.move_fence(GLOBAL).await;
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(world.value("menu").as_deref(), Some("[2]"));
    assert_eq!(ended.record.report.tenants.ok, 1);

    let application = Application::of(&world);
    world.cache.before_write(move |_| {
        let application = application.clone();
        Box::pin(async move {
            application.move_fence(GLOBAL).await;
            Ok(())
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert!(ended.unverified.global && ended.unverified.tenants.is_empty());
    assert_eq!(ended.record.report.tenants.fenced, 1);
}

#[tokio::test]
async fn what_is_written_while_data_changes_lives_for_seconds_until_it_is_verified() {
    let world = Setup::new([job("list")], tenants(1)).start();
    let (cache, seen) = (Arc::clone(&world.cache), Count::default());
    let count = seen.clone();
    world.ledger.before(move |call| {
        if call == Call::Fences && count.up() == 1 {
            assert_eq!(cache.ttl("list:t0"), Some(PROVISIONAL_TTL), "before the second look");
        }
        ready(Ok(()))
    });
    world.run("list", Priority::Urgent).await;
    assert_eq!(seen.now(), 2);
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
}

#[tokio::test]
async fn a_change_that_cannot_be_read_leaves_nothing_old_for_long() {
    let world = Setup::new([Job { retries: 0, ..job("list") }], tenants(2)).start();
    world.set_rows("list", rows(1, &[("t0", ""), ("t1", "")]));
    let reads = Count::default();
    let count = reads.clone();
    world.on_read(move |_| match count.up() {
        0 => Ok(()),
        _ => Err(refused(SourceErrorKind::Unavailable)),
    });
    between_read_and_write(&world, |application| {
        Box::pin(async move {
            application.commit(rows(2, &[("t0", ""), ("t1", "")]));
            application.move_fence(&fence_key("t1")).await;
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(world.cache.ttl("list:t1"), Some(PROVISIONAL_TTL), "it may be old");
    assert_eq!(world.cache.ttl("list:t0"), Some(30 * MINUTE));
    assert_eq!(ended.record.outcome, Outcome::Partial);
    assert_eq!(ended.record.report.failures[0].kind, FailureKind::DatabaseUnavailable);
    assert_eq!(ended.unverified, unverified(&["t1"]));
}

#[tokio::test]
async fn what_could_not_be_looked_at_after_it_was_written_is_unverified() {
    let world = Setup::new([Job { retries: 0, ..job("list") }], tenants(2)).start();
    let calls = Count::default();
    let count = calls.clone();
    world.ledger.before(move |call| {
        let away = call == Call::Fences && count.up() > 0;
        ready(if away { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.outcome, Outcome::Partial, "it is there, and nobody knows how old");
    assert_eq!(ended.record.report.tenants.failed, 2);
    assert_eq!(ended.unverified, unverified(&["t0", "t1"]));
}

#[tokio::test]
async fn what_was_sent_to_a_server_that_did_not_answer_may_come_late_and_is_unverified() {
    let world = Setup::new([job("list")], tenants(2)).start();
    let writes = Count::default();
    let count = writes.clone();
    world.cache.before_write(move |_| {
        let lost = count.up() == 0;
        ready(if lost { Err(cache_error(CacheErrorKind::Unavailable)) } else { Ok(()) })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.outcome, Outcome::Ok);
    assert_eq!(ended.unverified, unverified(&["t0", "t1"]));
}

#[tokio::test]
async fn a_run_that_is_cut_off_between_write_and_look_leaves_its_tenants_unverified() {
    let job = Job { batch: many(1), concurrency: Some(many(1)), timeout: MINUTE, ..job("list") };
    let world = Setup::new([job], tenants(3)).start();
    let calls = Count::default();
    let count = calls.clone();
    world.ledger.before(move |call| {
        // The second read of the second batch's fences never ends.
        if call == Call::Fences && count.up() == 3 {
            return Box::pin(std::future::pending());
        }
        ready(Ok(()))
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.outcome, Outcome::Timeout);
    assert_eq!(ended.unverified, unverified(&["t1"]));
}

#[tokio::test]
async fn hazard_07_a_key_whose_data_is_gone_goes_at_the_next_complete_run() {
    let world = world_with_categories();
    let all = [("t0", "food"), ("t0", "toys"), ("t1", "food")];
    world.set_rows("list", rows(1, &all));
    world.run("list", Priority::Regular).await;
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:food", "list:t0:toys"]);

    world.set_rows("list", rows(2, &[("t0", "toys"), ("t0", "care"), ("t1", "food")]));
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t0:food"), None);
    assert_eq!(world.value("list:t0:care").as_deref(), Some("[2]"));
    assert_eq!(ended.record.report.keys.removed, 1);

    world.set_rows("list", Vec::new());
    world.run("list", Priority::Regular).await;
    assert_eq!(world.cache.keys(), ["list:t0", "list:t1", "list:t2"], "static keys stay: `[]`");
}

#[tokio::test]
async fn hazard_07_a_run_that_read_before_may_write_a_key_again_and_it_goes_all_the_same() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food"), ("t0", "toys")]));
    world.run("list", Priority::Regular).await;
    world.set_rows("list", rows(2, &[("t0", "toys")]));
    world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t0:food"), None);

    // Another run read while there was food, writes now, and is then killed.
    world.cache.set("list:t0:food", "[1]");
    world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t0:food"), None, "its name is still there");

    // An entry is pruned once its key cannot exist any more; renewed entries stay.
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:food", "list:t0:toys"]);
    for _ in 0..3 {
        world.clock.advance(25 * MINUTE).await;
        world.run("list", Priority::Regular).await;
    }
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:toys"]);
}

#[tokio::test]
async fn hazard_05_a_read_that_fails_writes_nothing_and_removes_nothing() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food"), ("t1", "food")]));
    world.run("list", Priority::Regular).await;
    let before = world.cache.keys();
    world.set_rows("list", rows(2, &[("t1", "food")]));
    world.on_read(|tenants| {
        let fails = tenants.iter().any(|id| id == "t0");
        if fails { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.outcome, Outcome::Partial);
    assert_eq!(world.cache.keys(), before);
    assert_eq!(world.value("list:t0:food").as_deref(), Some("[1]"));
    assert_eq!(world.value("list:t1:food").as_deref(), Some("[2]"));
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:food"]);
}

#[tokio::test]
async fn hazard_07_a_tenant_that_fails_for_good_does_not_let_the_manifests_of_its_batch_grow() {
    let by_category = key("list:{tenant_id}:{category}");
    let encoding = Encoding { max_bytes: 10, ..job("list").encoding };
    let schedule = Schedule::Every(Duration::from_hours(1_000));
    let job = Job { schedule, encoding, keys: vec![by_category], ..job("list") };
    let world = Setup::new([job], tenants(3)).start();
    let large = "\"a value of more than ten bytes\"";
    for day in 0..20 {
        let category = format!("day {day}");
        let row = |tenant: &str, json: &str| {
            MemoryRow::new(tenant, json, [("category", category.as_str())])
        };
        world.set_rows("list", vec![row("t0", large), row("t1", "1"), row("t2", "2")]);
        let ended = world.run("list", Priority::Regular).await;
        assert_eq!(ended.record.report.failures[0].kind, FailureKind::ValueTooLarge);
        assert_eq!((ended.record.report.tenants.ok, world.reads().len()), (2, day + 1));
        world.clock.advance(25 * MINUTE).await;
    }
    // Entries live for twice the TTL plus the longest run.
    for tenant in ["t1", "t2"] {
        let listed = world.manifest_keys(tenant).await;
        assert!(listed.len() <= 3, "{tenant}: {listed:?}");
    }
    assert!(world.manifest_keys("t0").await.is_empty());
}

#[tokio::test]
async fn a_manifest_names_a_key_before_the_key_is_written_and_until_it_is_removed() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food")]));
    let (cache, manifest) =
        (Arc::clone(&world.cache), manifest_key(&JobName::parse("list").unwrap(), Some("t0")));
    let named = move |expected: &'static [&'static str]| {
        let (cache, manifest) = (Arc::clone(&cache), manifest.clone());
        async move { assert_eq!(names(&cache, manifest).await, expected) }
    };
    let check = named.clone();
    world.cache.before_write(move |_| {
        let check = check(&["list:t0:food"]);
        Box::pin(async move {
            check.await;
            Ok(())
        })
    });
    world.run("list", Priority::Regular).await;

    // The key cannot be removed: it stays in the cache and in the manifest, and the run reports
    // that.
    world.set_rows("list", Vec::new());
    world.cache.before_write(|_| ready(Ok(())));
    world
        .cache
        .refuse(|key| (key == "list:t0:food").then(|| cache_error(CacheErrorKind::Permission)));
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.report.failures[0].kind, FailureKind::CachePermission);
    assert!(world.value("list:t0:food").is_some());
    named(&["list:t0:food"]).await;
    world.cache.refuse(|_| None);
    world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t0:food"), None);
}

#[tokio::test]
async fn hazard_07_a_shared_key_that_went_to_another_tenant_is_never_removed() {
    for (batch, from, to) in [(10, "t0", "t1"), (1, "t0", "t1"), (1, "t1", "t0")] {
        let world = Setup::new([pets(batch)], tenants(2)).start();
        world.set_rows("list", rows(1, &[(from, "7")]));
        world.run("list", Priority::Regular).await;
        world.clock.advance(MINUTE).await;
        world.set_rows("list", rows(2, &[(to, "7")]));
        world.run("list", Priority::Regular).await;
        assert_eq!(world.value("pet:7").as_deref(), Some("[2]"), "{batch} {from} {to}");
        assert!(world.manifest_keys(to).await.is_empty(), "no manifest names a shared key");
        // Its former tenant is warmed alone.
        world.clock.advance(MINUTE).await;
        world.warm_some("list", &[from]).await;
        assert_eq!(world.value("pet:7").as_deref(), Some("[2]"), "{batch} {from} {to}");
    }
}

#[tokio::test]
async fn a_manifest_outlives_its_keys_and_goes_when_nobody_renews_it() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food")]));
    world.run("list", Priority::Regular).await;
    // Twice the TTL plus the longest run.
    world.clock.advance(65 * MINUTE).await;
    assert_eq!(world.cache.keys(), Vec::<String>::new());
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:food"]);
    world.clock.advance(MINUTE + SECOND).await;
    assert!(world.manifest_keys("t0").await.is_empty());
}

#[tokio::test]
async fn fences_cost_two_questions_a_batch_and_manifests_one_and_now_and_then_a_renewal() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food"), ("t1", "food")]));
    world.run("list", Priority::Regular).await;
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    world.ledger.before(move |call| {
        // The run reads the registry, its batches do not.
        if !matches!(call, Call::ReadRegistry | Call::Register) {
            seen.lock().unwrap().push(call);
        }
        ready(Ok(()))
    });
    world.clock.advance(Duration::from_secs(5)).await;
    world.run("list", Priority::Regular).await;
    let expected = [Call::Fences, Call::Manifests, Call::Fences];
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), expected);
    world.clock.advance(31 * MINUTE).await;
    world.run("list", Priority::Regular).await;
    let expected = [Call::Fences, Call::Manifests, Call::AddEntries, Call::Fences];
    assert_eq!(*calls.lock().unwrap(), expected);
}

/// A job of pets, whose keys are shared.
fn pets(batch: usize) -> Job {
    let pet = Key { unique: Some("category".to_owned()), ..key("pet:{category}") };
    Job { keys: vec![pet], batch: many(batch), concurrency: Some(many(1)), ..job("list") }
}

/// The pet's row for tenant `owner`; no row without an owner.
fn pet_of(version: u32, owner: Option<&str>) -> Vec<MemoryRow> {
    owner.map(|tenant| rows(version, &[(tenant, "7")])).unwrap_or_default()
}

#[tokio::test]
async fn hazard_07_a_shared_key_that_goes_to_and_fro_is_right_and_ends_by_its_ttl_without_data() {
    const OWNERS: [Option<&str>; 3] = [Some("t0"), Some("t1"), None];
    for course in 0..27_usize {
        let owners = [course % 3, course / 3 % 3, course / 9].map(|nth| OWNERS[nth]);
        for spec in [["t0", "t1"], ["t1", "t0"]] {
            let world = Setup::new([pets(10)], tenants(2)).start();
            let mut last = None;
            for (version, owner) in (1..).zip(owners) {
                world.set_rows("list", pet_of(version, owner));
                // The former and the present owner are warmed, in separate runs.
                for tenant in spec {
                    world.warm_some("list", &[tenant]).await;
                }
                last = owner.map(|_| format!("[{version}]")).or(last);
                assert_eq!(world.value("pet:7"), last, "{owners:?} {spec:?}");
                world.clock.advance(SECOND).await;
            }
            if owners[2].is_none() {
                world.clock.advance(pets(10).ttl).await;
                assert_eq!(world.value("pet:7"), None, "{owners:?} {spec:?}: nobody renews it");
            }
        }
    }
}

#[tokio::test]
async fn hazard_01_an_unverified_value_of_a_shared_key_lives_for_seconds_only() {
    let world = Setup::new([pets(10)], tenants(1)).start();
    world.set_rows("list", pet_of(1, Some("t0")));
    let application = Application::of(&world);
    world.cache.before_write(move |_| {
        let application = application.clone();
        Box::pin(async move {
            application.move_fence(&fence_key("t0")).await;
            Ok(())
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.unverified, unverified(&["t0"]));
    assert!(world.cache.ttl("pet:7").unwrap() <= PROVISIONAL_TTL);
}

#[tokio::test]
async fn hazard_07_a_key_that_outlives_its_name_is_removed_before_the_name_is() {
    let world = world_with_categories();
    let manifest = manifest_key(&JobName::parse("list").unwrap(), Some("t0"));
    let food = "list:t0:food".to_owned();
    // Until now the job's `ttl` was five hours.
    let listing = ManifestEntries { manifest, keys: vec![food.clone()] };
    let (life, now) = (Duration::from_hours(5), world.clock.now());
    world.cache.add_entries(&[listing], now, life).await.unwrap();
    world.cache.set(&food, "[1]");
    world.cache.expire(&[(food.clone(), life)]).await.unwrap();
    world.clock.advance(Duration::from_hours(2)).await;

    world
        .cache
        .refuse(|key| (key == "list:t0:food").then(|| cache_error(CacheErrorKind::Permission)));
    world.run("list", Priority::Regular).await;
    assert_eq!(world.manifest_keys("t0").await, [food.as_str()], "it is still there");
    world.cache.refuse(|_| None);
    world.run("list", Priority::Regular).await;
    assert_eq!(world.value(&food), None);
    assert_eq!(world.manifest_keys("t0").await, [""; 0]);
}

#[tokio::test]
async fn hazard_01_what_was_written_in_one_round_and_refused_in_the_next_is_unverified() {
    let world = Setup::new([Job { retries: 0, ..job("list") }], tenants(2)).start();
    world.set_rows("list", rows(1, &[("t0", ""), ("t1", "")]));
    let (application, writes) = (Application::of(&world), Count::default());
    world.cache.before_write(move |_| {
        let (application, nth) = (application.clone(), writes.up());
        Box::pin(async move {
            match nth {
                0 => {
                    application.commit(rows(2, &[("t0", ""), ("t1", "")]));
                    application.move_fence(&fence_key("t1")).await;
                }
                _ => application.cache.refuse(|key| {
                    (key == "list:t1").then(|| cache_error(CacheErrorKind::Permission))
                }),
            }
            Ok(())
        })
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(world.value("list:t1").as_deref(), Some("[1]"), "unverified");
    // Another, verified run may meanwhile set its full TTL, as that run wrote there as well.
    assert_eq!(ended.unverified, unverified(&["t1"]));
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.report.tenants.failed, 1);
    assert_eq!(ended.unverified, Unverified::default(), "nothing of it was written this time");
}

#[tokio::test]
async fn hazard_07_a_key_that_could_not_be_made_does_not_stand_in_for_one_that_is_not_named() {
    let mut job = Job { keys: vec![key("list:{tenant_id}:{category}")], ..job("list") };
    job.encoding.max_bytes = 8;
    let world = Setup::new([job], tenants(1)).start();
    world.set_rows("list", rows(1, &[("t0", "food")]));
    world.run("list", Priority::Regular).await;
    // The key in the manifest has become too large, and another key is new.
    let row = |json, category| MemoryRow::new("t0", json, [("category", category)]);
    world.set_rows("list", vec![row("1234567890", "food"), row("2", "toys")]);
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.report.failures[0].kind, FailureKind::ValueTooLarge);
    assert_eq!(world.value("list:t0:toys").as_deref(), Some("[2]"));
    assert_eq!(world.manifest_keys("t0").await, ["list:t0:food", "list:t0:toys"]);
}

/// Restarts the cache before the next write, and calls `then` before that write and each later one.
fn restarted_before_a_write<F>(world: &World, then: F)
where
    F: Fn(usize, Application) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync + 'static,
{
    let (application, writes) = (Application::of(world), Count::default());
    world.cache.before_write(move |_| {
        let nth = writes.up();
        if nth == 0 {
            application.cache.restart();
        }
        then(nth, application.clone())
    });
}

#[tokio::test]
async fn hazard_07_a_write_that_is_tried_again_names_its_keys_again_as_the_cache_may_be_another() {
    let world = world_with_categories();
    world.set_rows("list", rows(1, &[("t0", "food")]));
    world.run("list", Priority::Regular).await;
    let named = Count::default();
    let count = named.clone();
    restarted_before_a_write(&world, move |nth, application| {
        let count = count.clone();
        Box::pin(async move {
            if nth == 0 {
                return Err(cache_error(CacheErrorKind::Transient));
            }
            let manifest = manifest_key(&JobName::parse("list").unwrap(), Some("t0"));
            assert_eq!(names(&application.cache, manifest).await, ["list:t0:food"]);
            count.up();
            Ok(())
        })
    });
    world.run("list", Priority::Regular).await;
    assert_eq!(named.now(), 2, "tried again, and a round later since the fence is gone");
}

#[tokio::test]
async fn hazard_07_what_was_written_to_a_cache_that_had_lost_its_name_goes_with_its_data() {
    let world = world_with_categories();
    let food = "list:t0:food";
    world.set_rows("list", rows(1, &[("t0", "food"), ("t0", "toys")]));
    world.run("list", Priority::Regular).await;
    restarted_before_a_write(&world, move |nth, application| {
        if nth == 0 {
            application.commit(rows(2, &[("t0", "toys")]));
            application
                .cache
                .refuse(move |key| (key == food).then(|| cache_error(CacheErrorKind::Permission)));
            // The key was written all the same, which the adapter does not show.
            application.cache.set(food, "[1]");
        }
        ready(Ok(()))
    });
    let ended = world.run("list", Priority::Regular).await;
    assert_eq!(ended.record.report.failures[0].kind, FailureKind::CachePermission);
    assert!(world.value(food).is_some());
    assert_eq!(world.manifest_keys("t0").await, [food, "list:t0:toys"], "it is named anew");
    world.cache.refuse(|_| None);
    world.run("list", Priority::Regular).await;
    assert_eq!(world.value(food), None);
}
