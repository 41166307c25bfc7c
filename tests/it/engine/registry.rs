//! Departed tenants, and tenant lists that preheat does not trust.

use std::collections::BTreeSet;
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::domain::fence::fence_key;
use preheat::domain::job::{DateZone, Dates, Job, Key, Scope, Share};
use preheat::domain::manifest::manifest_key;
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunRecord};
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{CacheErrorKind, Clock, Ledger, REGISTRY_KEY};
use preheat::engine::registry::{Registered, Registry};
use preheat::engine::schedule::handle::{JobSelection, RunRequest};

use super::ledger::{Answer, Around, CacheCall, Call, HookedLedger, Rules, names};
use super::{
    Count, MINUTE, SECOND, Said, Setup, World, a_row_each, cache_error, ids, job, key, ready,
    start, tenants,
};
use crate::support::memory::{MemoryCache, MemoryRow};
use crate::support::virtual_clock::VirtualClock;

/// A cache that outlives its worlds. Its registry may be unreachable, and its removals may be slow.
struct Kept {
    memory: Arc<MemoryCache>,
    ledger: Arc<HookedLedger>,
    clock: VirtualClock,
    /// Whether the registry is unreachable.
    away: Arc<AtomicBool>,
    /// How often the registry was read or written.
    asked: Count,
    removals: Arc<Around<SlowRemovals>>,
}

impl Kept {
    fn new() -> Arc<Self> {
        let clock = VirtualClock::new(start(), 1);
        let memory = Arc::new(MemoryCache::new(Arc::new(clock.clone())));
        let ledger = Arc::new(HookedLedger::new(Arc::clone(&memory)));
        let (away, asked) = (Arc::new(AtomicBool::new(false)), Count::default());
        let (is_away, count) = (Arc::clone(&away), asked.clone());
        ledger.before(move |call| {
            if !matches!(call, Call::ReadRegistry | Call::Register | Call::Deregister) {
                return ready(Ok(()));
            }
            count.up();
            let error = || cache_error(CacheErrorKind::Unavailable);
            ready(if is_away.load(Ordering::Relaxed) { Err(error()) } else { Ok(()) })
        });
        let (takes, most, times) = (Mutex::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let slow = SlowRemovals { clock: clock.clone(), takes, most, times };
        let removals = Around::with(Arc::clone(&memory), slow);
        Arc::new(Self { memory, ledger, clock, away, asked, removals })
    }

    /// A worker's world on this cache.
    fn setup(&self, jobs: impl IntoIterator<Item = Job>, tenants: Tenants) -> Setup {
        Setup {
            clock: self.clock.clone(),
            cache: Some(Arc::clone(&self.removals) as _),
            ledger: Some(Arc::clone(&self.ledger) as _),
            ..Setup::new(jobs, tenants)
        }
    }

    fn keys(&self) -> BTreeSet<String> {
        self.memory.keys().into_iter().collect()
    }

    fn has(&self, key: &str) -> bool {
        self.keys().contains(key)
    }

    async fn registered(&self) -> Registered {
        let ledger: &dyn Ledger = self.memory.as_ref();
        Registry::new(Share::NONE).known(ledger).await.unwrap()
    }

    /// The ids that the registry has as active, and those it has as gone.
    async fn registered_ids(&self) -> (Vec<String>, Vec<String>) {
        let Registered { active, gone } = self.registered().await;
        (ids_of(&active), ids_of(&gone))
    }

    /// The keys in a job's manifest of a tenant.
    async fn manifest(&self, job: &Job, tenant: &str) -> Vec<String> {
        let key = manifest_key(&job.name, Some(tenant));
        names(&self.memory, key).await
    }
}

/// Slow removals.
struct SlowRemovals {
    clock: VirtualClock,
    takes: Mutex<Duration>,
    /// The maximum number of keys that were removed at once.
    most: AtomicUsize,
    times: AtomicUsize,
}

impl Rules for SlowRemovals {
    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        let CacheCall::Remove(keys) = call else { return then };
        self.most.fetch_max(keys.len(), Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
        let asleep = self.clock.sleep(*self.takes.lock().unwrap());
        Box::pin(async move {
            asleep.await;
            then.await
        })
    }
}

/// Runs a job, and lets the departed tenants be swept.
async fn warm(world: &World, job: &str) -> Arc<RunRecord> {
    let record = world.warm(job).await;
    world.settle().await;
    record
}

fn ids_of(list: &Tenants) -> Vec<String> {
    list.iter().map(|tenant| tenant.id().to_owned()).collect()
}

/// This many tenants, without those in `gone`.
fn without(count: usize, gone: &[&str]) -> Tenants {
    tenants(count).only(|tenant| !gone.contains(&tenant.id()))
}

/// A job with static keys, with and without dates, and with data keys.
fn of_all_kinds() -> Job {
    let zone = DateZone::Fixed(chrono_tz::UTC);
    Job {
        keys: ["all:{tenant_id}", "day:{tenant_id}:{date}", "kind:{tenant_id}:{kind}"]
            .map(key)
            .into(),
        dates: Some(Dates { days: 3, zone, column: None }),
        ..job("kinds")
    }
}

fn rows_of_kinds(count: usize) -> Vec<MemoryRow> {
    let columns = [("date", "2026-03-02"), ("kind", "cat")];
    ids(0..count).iter().map(|id| MemoryRow::new(id, "1", columns)).collect()
}

/// The keys that contain the tenant's id.
fn keys_of(kept: &Kept, tenant: &str) -> Vec<String> {
    let has = |key: &String| key.split(':').any(|part| part == tenant);
    kept.keys().into_iter().filter(has).collect()
}

fn first_kind(record: &RunRecord) -> Option<FailureKind> {
    record.report.failures.first().map(|failure| failure.kind)
}

/// Jobs whose keys live for two days, and the worlds of two days with one cache. In the first, all jobs run
/// for four tenants; in the second, `off` is disabled.
async fn second_day(kept: &Arc<Kept>) -> (Job, World) {
    const DAYS: Duration = Duration::from_hours(48);
    let kinds = Job { ttl: DAYS, ..of_all_kinds() };
    let fleet = Job { ttl: DAYS, scope: Scope::Global, keys: vec![key("menu")], ..job("fleet") };
    let jobs = |enabled| {
        let plain = |name| Job { ttl: DAYS, ..job(name) };
        [plain("list"), Job { enabled, ..plain("off") }, kinds.clone(), fleet.clone()]
    };
    let first = kept.setup(jobs(true), tenants(4)).start();
    first.set_rows("list", a_row_each(4));
    first.set_rows("kinds", rows_of_kinds(4));
    for name in ["list", "off", "kinds", "fleet"] {
        assert_eq!(first.warm(name).await.outcome, Outcome::Ok);
    }
    drop(first);
    kept.clock.stall(Duration::from_hours(24)).await;
    let second = kept.setup(jobs(false), tenants(4)).start();
    second.set_rows("kinds", rows_of_kinds(4));
    (kinds, second)
}

#[tokio::test]
async fn hazard_09_a_tenant_that_is_gone_loses_all_its_keys_at_the_next_list() {
    let kept = Kept::new();
    let (kinds, world) = second_day(&kept).await;
    assert_eq!(warm(&world, "kinds").await.outcome, Outcome::Ok);
    // The keys of `list`, of `off`, of `all`, of one day behind and three ahead, and of the kind.
    assert_eq!(keys_of(&kept, "t1").len(), 1 + 1 + 1 + 4 + 1, "{:?}", keys_of(&kept, "t1"));
    assert_eq!(kept.manifest(&kinds, "t1").await, ["kind:t1:cat"]);
    let fence = kept.memory.fences(&[fence_key("t1")]).await.unwrap();

    world.source.set_tenants(without(4, &["t1"]));
    let record = warm(&world, "list").await;
    assert_eq!((record.outcome, record.report.tenants.total), (Outcome::Ok, 3));
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
    assert_ne!(kept.memory.fences(&[fence_key("t1")]).await.unwrap(), fence);
    assert_eq!(keys_of(&kept, "t2").len(), 8, "what is another's stays");
    assert_eq!(kept.manifest(&kinds, "t2").await, ["kind:t2:cat"]);
    assert!(kept.has("menu"), "what is the fleet's stays");
    for (job, removed) in [("list", 1), ("kinds", 6), ("off", 1), ("fleet", 0)] {
        let series = format!("preheat_keys_total{{job_name=\"{job}\",outcome=\"removed\"}}");
        assert_eq!(world.metric(&series), removed, "{job}");
    }
}

#[tokio::test]
async fn hazard_09_a_tenant_that_went_while_no_worker_ran_loses_its_keys_at_the_first_list() {
    let kept = Kept::new();
    let (kinds, world) = second_day(&kept).await;
    world.source.set_tenants(without(4, &["t0", "t3"]));
    assert_eq!(world.warm_some("list", &["t1"]).await.outcome, Outcome::Ok);
    world.settle().await;
    for gone in ["t0", "t3"] {
        assert_eq!(keys_of(&kept, gone), [""; 0]);
        // A run that read before may still write the keys that the manifest names.
        assert_eq!(kept.manifest(&kinds, gone).await, [format!("kind:{gone}:cat")]);
    }
    assert_eq!(keys_of(&kept, "t2").len(), 7, "a run for one tenant leaves the others alone");
}

#[tokio::test]
async fn hazard_09_what_a_run_with_an_older_list_writes_later_is_removed_too() {
    let kept = Kept::new();
    let (slow, quick) = (Job { timeout: 5 * MINUTE, ..of_all_kinds() }, job("list"));
    let world = kept.setup([slow, quick], tenants(3)).start();
    world.set_rows("kinds", rows_of_kinds(3));
    let clock = kept.clock.clone();
    world.source.before_read(move |seen| {
        let takes = if seen.job.as_str() == "kinds" { MINUTE } else { Duration::ZERO };
        let asleep = clock.sleep(takes);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let older = world.ask("kinds").await;
    world.until("the older run reads", |world| world.source.reads().len() == 1).await;
    world.source.set_tenants(without(3, &["t1"]));
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    assert_eq!(world.finish(older).await.outcome, Outcome::Ok);
    let wrote = keys_of(&kept, "t1");
    assert_eq!(wrote.len(), 5, "the older run did not know: {wrote:?}");
    assert_eq!(kept.registered_ids().await, (vec!["t0".into(), "t2".into()], vec!["t1".into()]));

    warm(&world, "list").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
    assert_eq!(kept.registered_ids().await.1, ["t1"], "another such run may still be under way");
    kept.clock.stall(6 * MINUTE).await;
    warm(&world, "list").await;
    assert_eq!(kept.registered_ids().await, (vec!["t0".into(), "t2".into()], vec![]));
    let asked = kept.asked.now();
    warm(&world, "list").await;
    assert_eq!(kept.asked.now(), asked, "there is nobody left to sweep");
}

#[tokio::test]
async fn a_list_that_was_begun_before_another_says_nothing_new() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(3)).start();
    warm(&world, "list").await;
    let (reads, clock) = (Count::default(), kept.clock.clone());
    let source = Arc::downgrade(&world.source);
    world.source.before_tenants(move || {
        let first = reads.up() == 0;
        let (asleep, source) =
            (clock.sleep(if first { 20 * SECOND } else { SECOND }), source.clone());
        Box::pin(async move {
            asleep.await;
            // What the database returned when the reading began.
            let list = if first { tenants(3) } else { without(3, &["t1"]) };
            source.upgrade().unwrap().set_tenants(list);
            Ok(())
        })
    });
    let older = world.ask("list").await;
    kept.clock.advance(10 * SECOND).await;
    assert_eq!(warm(&world, "other").await.report.tenants.total, 2);
    assert_eq!(kept.registered_ids().await.1, ["t1"]);
    let older = world.finish(older).await;
    assert_eq!((older.outcome, older.report.tenants.total), (Outcome::Ok, 3));
    assert_eq!(kept.registered_ids().await.1, ["t1"], "it is as gone as before");
    warm(&world, "other").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
}

#[tokio::test]
async fn hazard_08_a_list_that_shrank_by_more_than_it_may_is_not_trusted() {
    // Tenants before and after, the setting in per cent, and whether the list is trusted.
    for (before, after, percent, trusted) in [
        (10, 5, 50.0, true),
        (10, 4, 50.0, false),
        (10, 0, 50.0, false),
        (2, 1, 50.0, true),
        (1, 0, 50.0, false),
        (100, 71, 29.0, true),
        (100, 70, 29.0, false),
        (3, 2, 0.0, false),
        (3, 3, 0.0, true),
        (3, 0, 100.0, true),
    ] {
        let what = format!("{after} of {before} with {percent}%");
        let kept = Kept::new();
        let setup = kept.setup([job("list")], tenants(before));
        let max_shrink = Share::from_percent(percent).unwrap();
        let world = Setup { max_shrink, ..setup }.start();
        assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
        world.source.set_tenants(tenants(after));
        let record = warm(&world, "list").await;
        let left = if trusted { after } else { before };
        assert_eq!(kept.keys().len(), left, "{what}");
        if trusted {
            assert_eq!(record.outcome, Outcome::Ok, "{what}");
        } else {
            assert_eq!(record.outcome, Outcome::Failed, "{what}");
            assert_eq!(first_kind(&record), Some(FailureKind::TenantsShrank), "{what}");
            assert_eq!(kept.registered_ids().await.1, [""; 0], "{what}");
        }
    }
}

#[tokio::test]
async fn hazard_08_every_run_by_such_a_list_fails_at_once_and_writes_nothing() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(8)).start();
    world.set_rows("list", a_row_each(8));
    warm(&world, "list").await;
    let (reads, asked) = (world.source.reads().len(), Count::default());
    let mut wrong = tenants(2);
    wrong.push("somebody else", [Some("UTC")]);
    world.source.set_tenants(wrong);
    let (counted, clock) = (asked.clone(), kept.clock.clone());
    world.source.before_tenants(move || {
        counted.up();
        let asleep = clock.sleep(SECOND);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let mut message = String::new();
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    for ticket in world.handle.request(all).await.unwrap() {
        let record = world.finish(ticket).await;
        assert_eq!((record.outcome, record.report.retries), (Outcome::Failed, 0));
        assert_eq!(first_kind(&record), Some(FailureKind::TenantsShrank));
        message = record.report.failures[0].message.clone();
    }
    insta::assert_snapshot!(message, @"6 of 8 tenants are missing from the tenant list, more than `tenants.max_shrink` (50%) allows: nothing is warmed and nothing removed");
    assert!(asked.now() <= 2, "a run reads it once, and not again in the hope of another");
    assert_eq!(world.source.reads().len(), reads, "nothing of it is warmed");
    assert!(world.shows("preheat_breaker_open{server=\"database\"} 0"));
    assert_eq!(kept.keys(), ids(0..8).iter().map(|id| format!("list:{id}")).collect());

    world.source.set_tenants(tenants(8));
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok, "the right list is trusted again");
}

#[tokio::test]
async fn hazard_08_a_list_that_is_right_is_trusted_once_it_was_accepted_with_100_per_cent() {
    let kept = Kept::new();
    let worker = kept.setup([job("list")], tenants(8)).start();
    worker.warm("list").await;
    worker.source.set_tenants(tenants(1));
    assert_eq!(worker.warm("list").await.outcome, Outcome::Failed);

    let setup = kept.setup([job("list")], tenants(1));
    let once = Setup { max_shrink: Share::from_percent(100.0).unwrap(), ..setup }.start();
    assert_eq!(once.warm("list").await.outcome, Outcome::Ok);
    assert_eq!(kept.keys(), BTreeSet::from(["list:t0".to_owned()]));
    assert_eq!(worker.warm("list").await.outcome, Outcome::Ok);
}

#[tokio::test]
async fn hazard_08_a_cache_that_was_flushed_knows_nobody_and_learns_it_again() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(4)).start();
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    kept.memory.evict(REGISTRY_KEY);
    // Only the registry shows it: it is enough if it is read in time.
    kept.clock.stall(10 * MINUTE).await;
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    assert_eq!(kept.registered_ids().await.0, ids(0..4));
    world.source.set_tenants(without(4, &["t1"]));
    warm(&world, "list").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);

    kept.memory.restart();
    world.source.set_tenants(tenants(0));
    let run = warm(&world, "list").await;
    assert_eq!(run.report.failures[0].kind, FailureKind::TenantsShrank, "this worker knows them");
    kept.memory.restart();
    let another = kept.setup([job("list")], tenants(0)).start();
    assert_eq!(another.warm("list").await.outcome, Outcome::Ok, "there is nothing to lose");
}

#[tokio::test]
async fn hazard_09_a_worker_remembers_who_left_when_the_cache_lost_the_registry() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(4)).start();
    world.set_rows("list", a_row_each(4));
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    let clock = kept.clock.clone();
    world.source.before_read(move |read| {
        let asleep = clock.sleep(if read.job.as_str() == "list" { 20 * SECOND } else { SECOND });
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    let older = world.ask("list").await;
    kept.clock.advance(SECOND).await;
    kept.memory.restart();
    world.source.set_tenants(without(4, &["t1"]));
    warm(&world, "other").await;
    assert_eq!(kept.registered_ids().await.1, ["t1"], "it is registered as gone");
    world.finish(older).await;
    kept.clock.stall(MINUTE).await;
    warm(&world, "other").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
}

#[tokio::test]
async fn hazard_09_a_tenant_that_comes_back_during_its_sweep_keeps_what_is_written_afterwards() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(3)).start();
    world.set_rows("list", a_row_each(3));
    warm(&world, "list").await;
    world.source.set_tenants(without(3, &["t1"]));
    *kept.removals.takes.lock().unwrap() = 5 * SECOND;
    warm(&world, "other").await;
    let waits = || kept.removals.most.load(Ordering::Relaxed) > 0;
    world.until("the sweep removes", |_| waits()).await;
    kept.clock.advance(SECOND).await;
    world.source.set_tenants(tenants(3));
    let fence = kept.memory.fences(&[fence_key("t1")]).await.unwrap();
    let back = world.ask("list").await;
    assert_eq!(world.finish(back).await.outcome, Outcome::Ok);
    assert!(kept.has("list:t1"));
    assert_ne!(kept.memory.fences(&[fence_key("t1")]).await.unwrap(), fence);
    assert_eq!(kept.registered_ids().await, (ids(0..3), vec![]));
    kept.clock.stall(15 * MINUTE).await;
    warm(&world, "other").await;
    assert!(kept.has("list:t1"), "nothing of it is removed from then on");
}

#[tokio::test]
async fn hazard_09_a_tenant_that_comes_back_before_its_turn_is_not_swept() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(1_000)).start();
    world.set_rows("list", a_row_each(1_000));
    warm(&world, "list").await;
    world.source.set_tenants(tenants(500));
    *kept.removals.takes.lock().unwrap() = 5 * SECOND;
    warm(&world, "other").await;
    // Three slices of two hundred, in any order; nine tenants come back while the first slice is swept.
    let mut list = tenants(500);
    let back = ["t500", "t555", "t600", "t666", "t700", "t777", "t800", "t888", "t999"];
    for id in back {
        list.push(id, [Some("UTC")]);
    }
    world.source.set_tenants(list);
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    kept.clock.advance(MINUTE).await;
    let keys = kept.keys();
    assert!(back.iter().all(|id| keys.contains(&format!("list:{id}"))), "{keys:?}");
    assert_eq!(keys.iter().filter(|key| key.starts_with("list:")).count(), 509);
}

#[tokio::test]
async fn slow_removals_of_many_tenants_that_left_hold_up_no_run() {
    let kept = Kept::new();
    let world = kept.setup([job("list"), job("other")], tenants(2_000)).start();
    world.set_rows("list", a_row_each(2_000));
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    world.source.set_tenants(tenants(1_000));
    *kept.removals.takes.lock().unwrap() = 5 * SECOND;
    for name in ["list", "other", "list"] {
        let before = kept.clock.monotonic();
        let record = world.warm(name).await;
        assert_eq!((record.outcome, record.report.tenants.total), (Outcome::Ok, 1_000));
        let took = kept.clock.monotonic().saturating_sub(before);
        assert!(took < SECOND, "{name} took {took:?}");
    }
    let lists = kept.keys().iter().filter(|key| key.starts_with("list:")).count();
    assert!(lists > 1_000, "not all are swept yet");
    kept.clock.advance(MINUTE).await;
    let lists = kept.keys().iter().filter(|key| key.starts_with("list:")).count();
    assert_eq!(lists, 1_000);
}

#[tokio::test]
async fn no_run_uses_a_list_that_cannot_be_registered_and_the_next_list_is_registered() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(3)).start();
    warm(&world, "list").await;
    world.source.set_tenants(without(3, &["t1"]));
    kept.away.store(true, Ordering::Relaxed);
    let record = warm(&world, "list").await;
    assert_eq!((record.outcome, record.report.queries), (Outcome::Failed, 0));
    assert!(kept.has("list:t1"), "nobody knew that it is gone");
    kept.away.store(false, Ordering::Relaxed);
    warm(&world, "list").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
}

#[tokio::test]
async fn hazard_09_a_sweep_that_is_cut_off_goes_on_with_the_next_workers_list() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(3)).start();
    warm(&world, "list").await;
    world.source.set_tenants(without(3, &["t1"]));
    *kept.removals.takes.lock().unwrap() = 10 * MINUTE;
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    assert!(kept.has("list:t1"));
    assert_eq!(kept.registered_ids().await.1, ["t1"]);
    drop(world);
    *kept.removals.takes.lock().unwrap() = Duration::ZERO;
    let world = kept.setup([job("list")], without(3, &["t1"])).start();
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
}

#[tokio::test]
async fn hazard_09_a_sweep_that_panics_goes_on_with_the_next_list() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(3)).start();
    warm(&world, "list").await;
    let said = Said::default();
    let heard = said.hear();
    kept.ledger.before(|call| {
        if call == Call::MoveFences {
            resume_unwind(Box::new("a defect, on purpose"));
        }
        ready(Ok(()))
    });
    world.source.set_tenants(without(3, &["t1"]));
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    drop(heard);
    assert!(kept.has("list:t1"), "it was not swept");
    let logged = said.text();
    assert_eq!(logged.matches("the background task `sweep` panicked").count(), 1, "{logged}");

    kept.ledger.before(|_| ready(Ok(())));
    kept.clock.advance(SECOND).await;
    assert_eq!(warm(&world, "list").await.outcome, Outcome::Ok);
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
}

#[tokio::test]
async fn a_list_with_a_new_tenant_does_not_wait_for_ever_for_a_sweep_that_gets_no_answer() {
    for silent in [Call::MoveFences, Call::Manifests] {
        let kept = Kept::new();
        let world = kept.setup([job("list"), job("other")], tenants(3)).start();
        warm(&world, "list").await;
        let calls = Count::default();
        let count = calls.clone();
        kept.ledger.before(move |call| {
            let is_silent = call == silent && count.up() == 0;
            if is_silent { Box::pin(pending()) } else { ready(Ok(())) }
        });
        world.source.set_tenants(without(3, &["t1"]));
        assert_eq!(warm(&world, "other").await.outcome, Outcome::Ok);
        assert_eq!(calls.now(), 1, "the sweep waits for {silent:?}");
        let mut with_new = without(3, &["t1"]);
        with_new.push("new", [Some("UTC")]);
        world.source.set_tenants(with_new);
        let record = warm(&world, "list").await;
        assert_eq!(record.outcome, Outcome::Ok, "{silent:?}: {record:?}");
        assert!(kept.has("list:new"));
        warm(&world, "list").await;
        assert_eq!(keys_of(&kept, "t1"), [""; 0], "{silent:?}");
    }
}

#[tokio::test]
async fn a_key_whose_removal_is_refused_is_removed_as_soon_as_it_may_be() {
    let kept = Kept::new();
    let kinds = of_all_kinds();
    let world = kept.setup([kinds.clone()], tenants(3)).start();
    world.set_rows("kinds", rows_of_kinds(3));
    warm(&world, "kinds").await;
    kept.memory
        .refuse(|key| (key == "kind:t1:cat").then(|| cache_error(CacheErrorKind::Permission)));
    world.source.set_tenants(without(3, &["t1"]));
    assert_eq!(warm(&world, "kinds").await.outcome, Outcome::Ok);
    kept.clock.stall(10 * MINUTE).await;
    warm(&world, "kinds").await;
    assert_eq!(keys_of(&kept, "t1"), ["kind:t1:cat"], "all others are gone");
    assert_eq!(kept.manifest(&kinds, "t1").await, ["kind:t1:cat"]);
    assert_eq!(kept.registered_ids().await.1, ["t1"], "it is not done with");
    kept.memory.refuse(|_| None);
    warm(&world, "kinds").await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
    assert_eq!(kept.registered_ids().await.1, [""; 0]);
}

#[tokio::test]
async fn thousands_of_tenants_are_swept_in_slices() {
    let kept = Kept::new();
    let world = kept.setup([of_all_kinds()], tenants(5_000)).start();
    world.set_rows("kinds", rows_of_kinds(5_000));
    assert_eq!(warm(&world, "kinds").await.outcome, Outcome::Ok);
    kept.removals.most.store(0, Ordering::Relaxed);
    world.source.set_tenants(tenants(2_500));
    assert_eq!(warm(&world, "kinds").await.outcome, Outcome::Ok);
    assert_eq!(kept.keys().len(), 2_500 * 5);
    assert_eq!(kept.registered_ids().await.1.len(), 2_500);
    // There are more possible dates than dates with keys.
    let most = kept.removals.most.load(Ordering::Relaxed);
    assert!((200..=200 * 9).contains(&most), "{most} keys at once");
    kept.clock.stall(10 * MINUTE).await;
    warm(&world, "kinds").await;
    assert_eq!(kept.registered_ids().await.1.len(), 0);
}

#[tokio::test]
async fn a_list_that_says_nothing_new_asks_nothing_of_the_cache() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(3)).start();
    warm(&world, "list").await;
    let asked = kept.asked.now();
    let mut turned_round = Tenants::with_columns(["timezone"]);
    ids(0..3).iter().rev().for_each(|id| turned_round.push(id, [Some("UTC")]));
    world.source.set_tenants(turned_round);
    warm(&world, "list").await;
    warm(&world, "list").await;
    assert_eq!(kept.asked.now(), asked);
}

#[tokio::test]
async fn a_sweep_that_took_long_is_not_repeated_with_every_list() {
    let kept = Kept::new();
    let world = kept.setup([job("list")], tenants(3)).start();
    warm(&world, "list").await;
    *kept.removals.takes.lock().unwrap() = 2 * SECOND;
    world.source.set_tenants(without(3, &["t1"]));
    warm(&world, "list").await;
    kept.clock.advance(3 * SECOND).await;
    assert_eq!(keys_of(&kept, "t1"), [""; 0]);
    let swept = || kept.removals.times.load(Ordering::Relaxed);
    let before = swept();
    warm(&world, "list").await;
    assert_eq!(swept(), before, "it took two seconds and rests eighteen");
    kept.clock.stall(18 * SECOND).await;
    warm(&world, "list").await;
    assert!(swept() > before);
}

#[tokio::test]
async fn hazard_09_what_is_another_tenants_now_stays() {
    let unique =
        |template: &str, column: &str| Key { unique: Some(column.into()), ..key(template) };
    let sites = Job { keys: vec![unique("site:{tenant.slug}", "tenant.slug")], ..job("sites") };
    let pets = Job { keys: vec![unique("pet:{id}", "id")], ..job("pets") };
    let list = |tenants: &[(&str, &str)]| {
        let mut list = Tenants::with_columns(["slug"]);
        for (id, slug) in tenants {
            list.push(id, [Some(*slug)]);
        }
        list
    };
    let kept = Kept::new();
    let before = list(&[("a", "paws"), ("b", "tails"), ("c", "fins")]);
    let world = kept.setup([sites, pets], before).start();
    let pet = |tenant: &str, id: &str| MemoryRow::new(tenant, id, [("id", id)]);
    world.set_rows("pets", vec![pet("a", "1"), pet("a", "2"), pet("b", "3"), pet("c", "4")]);
    warm(&world, "sites").await;
    warm(&world, "pets").await;

    // `b` takes over the first pet while `a` is still active, and its web address when `a` leaves.
    world.set_rows("pets", vec![pet("b", "1"), pet("b", "3"), pet("c", "4")]);
    assert_eq!(world.warm_some("pets", &["b"]).await.outcome, Outcome::Ok);
    world.source.set_tenants(list(&[("b", "paws"), ("c", "fins")]));
    assert_eq!(world.warm_some("pets", &["c"]).await.outcome, Outcome::Ok);
    world.settle().await;
    // A shared key expires by its TTL, whether or not its tenant has left.
    let expected = ["pet:1", "pet:2", "pet:3", "pet:4", "site:fins", "site:paws", "site:tails"];
    assert_eq!(kept.keys(), expected.map(str::to_owned).into());
}

#[tokio::test]
async fn a_list_that_shrank_is_told_once_for_all_jobs_that_share_it() {
    let said = Said::default();
    let _heard = said.hear();
    let jobs = ["a", "b", "c", "d"].map(job);
    let world = Setup::new(jobs, tenants(10)).start();
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    for ticket in world.handle.request(all.clone()).await.unwrap() {
        assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
    }
    world.source.set_tenants(tenants(1));
    for ticket in world.handle.request(all).await.unwrap() {
        let record = world.finish(ticket).await;
        assert_eq!(first_kind(&record), Some(FailureKind::TenantsShrank));
    }
    let said = said.text();
    assert_eq!(said.matches("PREHEAT_TENANTS__MAX_SHRINK=100%").count(), 1, "{said}");
    assert_eq!(said.matches("9 of 10 tenants are missing").count(), 5, "once more for each run");
}
