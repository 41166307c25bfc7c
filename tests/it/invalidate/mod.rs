//! Removing keys on request.

mod applications;
mod shared;
mod worker;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use preheat::domain::fence::{GLOBAL, fence_key};
use preheat::domain::job::{DateZone, Dates, Job, Key, Scope};
use preheat::domain::manifest::manifest_key;
use preheat::domain::report::FailureKind;
use preheat::domain::tenant::{TenantId, Tenants};
use preheat::engine::ports::{CacheErrorKind, Clock, Ledger, SourceErrorKind};
use preheat::engine::schedule::handle::{JobSelection, RunRequest};
use preheat::invalidate::{InvalidateError, InvalidateReport, InvalidateRequest, Invalidation};

use crate::engine::ledger::Call;
use crate::engine::{
    SECOND, Setup, World, a_row_each, cache_error, ids, job, key, ready, refused, slow_reads,
    tenants,
};
use crate::support::memory::MemoryRow;

impl World {
    /// Removes keys, and moves time on until that is done.
    async fn invalidate(
        &self,
        request: InvalidateRequest,
    ) -> Result<Invalidation, InvalidateError> {
        let done = self.invalidations.invalidate(request);
        tokio::pin!(done);
        for _ in 0..10_000 {
            tokio::select! {
                biased;
                done = &mut done => return done,
                _moved = self.clock.step() => {}
            }
        }
        panic!("it never ended");
    }

    async fn report(&self, request: InvalidateRequest) -> InvalidateReport {
        let done = self.invalidate(request).await.unwrap();
        assert!(done.runs.is_empty());
        done.report
    }

    /// The values of all fences: first the fleet's, then those of the tenants `t0`, `t1`, ….
    async fn fences(&self) -> Vec<preheat::domain::fence::Fence> {
        let tenants = ids(0..4).into_iter().map(|id| fence_key(&id));
        let keys: Vec<String> = std::iter::once(GLOBAL.to_owned()).chain(tenants).collect();
        self.cache.fences(&keys).await.unwrap()
    }

    /// Which fences a request moves, named in the order of [`Self::fences`].
    async fn moved_by(&self, request: InvalidateRequest) -> (InvalidateReport, Vec<&'static str>) {
        let before = self.fences().await;
        let report = self.report(request).await;
        let after = self.fences().await;
        let names = ["fleet", "t0", "t1", "t2", "t3"];
        let moved = names.into_iter().zip(before.iter().zip(&after));
        (
            report,
            moved.filter(|(_, (before, after))| before != after).map(|(name, _)| name).collect(),
        )
    }

    async fn warm_all(&self) {
        let all = RunRequest { jobs: JobSelection::All, tenants: None };
        for ticket in self.handle.request(all).await.unwrap() {
            self.finish(ticket).await;
        }
    }

    fn keys(&self) -> BTreeSet<String> {
        self.cache.keys().into_iter().collect()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn keys(keys: &[&str]) -> InvalidateRequest {
    InvalidateRequest { keys: texts(keys), ..Default::default() }
}

fn jobs(jobs: &[&str]) -> InvalidateRequest {
    InvalidateRequest { jobs: texts(jobs), ..Default::default() }
}

fn of_tenants(ids: &[&str]) -> InvalidateRequest {
    let tenants = ids.iter().map(TenantId::new).collect();
    InvalidateRequest { tenants, ..Default::default() }
}

fn pattern(pattern: &str) -> InvalidateRequest {
    InvalidateRequest { patterns: texts(&[pattern]), ..Default::default() }
}

fn category(job: &str) -> Job {
    let listed = format!("{job}:{{tenant_id}}:{{category}}");
    Job {
        keys: vec![key(&format!("{job}:{{tenant_id}}")), key(&listed)],
        ..crate::engine::job(job)
    }
}

fn pets(job: &str) -> Job {
    let id = Key { unique: Some("id".to_owned()), ..key("pet:{id}") };
    Job { keys: vec![id], ..crate::engine::job(job) }
}

fn global() -> Job {
    Job { scope: Scope::Global, keys: vec![key("menu"), key("menu:{dish}")], ..job("menu") }
}

/// Four tenants. `list` has one key for each tenant and one for each category (`dog` for all, `cat` for
/// `t1`), `pets` one pet for each tenant (`p0` for `t0`, …), `menu` one key for the fleet and one for each
/// dish.
async fn world() -> World {
    let world = Setup::new([category("list"), pets("pets"), global()], tenants(4)).start();
    set_rows(&world, "list", "pets");
    world.warm_all().await;
    assert_eq!(world.keys().len(), 4 + 5 + 4 + 2, "{:?}", world.keys());
    world
}

fn set_rows(world: &World, list: &str, pets: &str) {
    let dogs = ids(0..4).into_iter().map(|id| MemoryRow::new(&id, "1", [("category", "dog")]));
    let cat = MemoryRow::new("t1", "2", [("category", "cat")]);
    world.set_rows(list, dogs.chain([cat]).collect());
    let pet = |id: String| MemoryRow::new(&id, "3", [("id", format!("p{}", &id[1..]).as_str())]);
    world.set_rows(pets, ids(0..4).into_iter().map(pet).collect());
    world.set_rows("menu", vec![MemoryRow::new("", "4", [("dish", "soup")])]);
}

#[tokio::test]
async fn a_key_is_removed_after_the_fence_of_whose_it_is() {
    let world = world().await;
    let cases: [(&[&str], u64, &[&str]); 6] = [
        (&["list:t1"], 1, &["t1"]),
        (&["list:t1:cat", "list:t2:dog", "list:t2:none"], 2, &["t1", "t2"]),
        (&["menu", "menu:soup"], 2, &["fleet"]),
        (&["pet:p3"], 1, &["t0", "t1", "t2", "t3"]),
        (&["list:t1"], 0, &["t1"]),
        (&["somebody:else", "list"], 0, &[]),
    ];
    for (named, removed, whose) in cases {
        let before = world.keys();
        let (report, moved) = world.moved_by(keys(named)).await;
        assert_eq!((report.removed, report.keys.removed, report.failed), (removed, removed, 0));
        assert_eq!(report.keys.asked, named.len() as u64);
        assert_eq!(report.fences, moved.len() as u64, "{named:?}");
        assert_eq!(moved, whose, "{named:?}");
        assert!(report.complete && report.failures.is_empty());
        let gone: BTreeSet<_> = before.difference(&world.keys()).cloned().collect();
        assert_eq!(gone.len() as u64, removed);
        assert!(gone.iter().all(|key| named.contains(&key.as_str())), "{gone:?}");
    }
    assert_eq!(world.metric("preheat_keys_total{job_name=\"list\",outcome=\"removed\"}"), 3);
    assert_eq!(world.metric("preheat_keys_total{job_name=\"pets\",outcome=\"removed\"}"), 1);
}

#[tokio::test]
async fn a_key_that_nobody_owns_is_removed_all_the_same() {
    let world = world().await;
    world.cache.set("somebody:else", "1");
    let (report, moved) = world.moved_by(keys(&["somebody:else"])).await;
    assert_eq!((report.removed, moved.len(), report.by_job.len()), (1, 0, 0));
}

#[tokio::test]
async fn hazard_33_ids_of_odd_characters_are_found_in_keys_and_never_taken_for_globs() {
    let odd = ["*", "a*", "[a]", "\\", "?", "a;b", "é\n", "{x}", "a"];
    let mut list = Tenants::with_columns(["timezone"]);
    for id in odd {
        list.push(id, [Some("UTC")]);
    }
    let world = Setup::new([category("list")], list).start();
    let row = |id: &&str| MemoryRow::new(id, "1", [("category", "*")]);
    world.set_rows("list", odd.iter().map(row).collect());
    world.warm_all().await;
    for id in odd {
        let before = world.keys();
        let (known, listed) = (format!("list:{id}"), format!("list:{id}:*"));
        let report = world.report(keys(&[&listed])).await;
        assert_eq!((report.removed, report.by_job.len()), (1, 1), "{id}");
        let report = world.report(of_tenants(&[id])).await;
        assert_eq!((report.removed, report.fences), (1, 1), "{id}");
        let gone: BTreeSet<_> = before.difference(&world.keys()).cloned().collect();
        assert_eq!(gone, BTreeSet::from([known, listed]), "{id}");
    }
}

#[tokio::test]
async fn jobs_and_tenants_together_are_the_keys_of_both() {
    let removed = async |request| {
        let world = world().await;
        let before = world.keys();
        let (report, moved) = world.moved_by(request).await;
        let gone: Vec<_> = before.difference(&world.keys()).cloned().collect();
        assert_eq!(report.jobs_and_tenants.removed, report.removed);
        assert_eq!(report.removed, gone.len() as u64);
        (gone.join(" "), moved)
    };
    let all = vec!["t0", "t1", "t2", "t3"];
    assert_eq!(removed(jobs(&["pets"])).await, ("pet:p0 pet:p1 pet:p2 pet:p3".into(), all));
    assert_eq!(removed(jobs(&["menu"])).await, ("menu menu:soup".into(), vec!["fleet"]));
    let (gone, moved) = removed(of_tenants(&["t1"])).await;
    assert_eq!((gone.as_str(), moved), ("list:t1 list:t1:cat list:t1:dog pet:p1", vec!["t1"]));
    let both = InvalidateRequest { jobs: texts(&["list"]), ..of_tenants(&["t1", "t3", "t1"]) };
    let (gone, moved) = removed(both).await;
    assert_eq!(gone, "list:t1 list:t1:cat list:t1:dog list:t3 list:t3:dog");
    assert_eq!(moved, ["t1", "t3"]);
}

#[tokio::test]
async fn a_tenant_without_any_key_is_no_error() {
    let world = world().await;
    let report = world.report(of_tenants(&["nobody"])).await;
    assert_eq!((report.removed, report.complete), (0, true));
}

#[tokio::test]
async fn a_tenant_that_is_not_active_loses_the_keys_that_its_registered_columns_make() {
    let dated = Job {
        dates: Some(Dates { days: 2, zone: DateZone::Fixed(chrono_tz::UTC), column: None }),
        keys: vec![
            key("slots:{tenant_id}:{date}"),
            Key { unique: Some("tenant.plan".to_owned()), ..key("plan:{tenant.plan}") },
        ],
        ..job("slots")
    };
    let mut list = Tenants::with_columns(["plan"]);
    for (id, plan) in [("t0", "free"), ("t1", "paid"), ("t2", "team")] {
        list.push(id, [Some(plan)]);
    }
    let world = Setup::new([dated], list.clone()).start();
    world.warm_all().await;
    assert_eq!(world.keys().len(), 3 * 3);
    world.source.set_tenants(list.only(|tenant| tenant.id() != "t1"));
    let report = world.report(of_tenants(&["t1"])).await;
    assert_eq!((report.removed, report.fences), (3, 1));
    assert!(!world.keys().iter().any(|key| key.contains("t1") || key == "plan:paid"));
    assert_eq!(world.keys().len(), 6);
    let (report, moved) = world.moved_by(keys(&["plan:team"])).await;
    assert_eq!((report.removed, moved), (1, vec!["t2"]), "the column says whose it is");
}

#[tokio::test]
async fn hazard_17_a_pattern_takes_what_matches_and_never_what_is_preheats_own() {
    let world = world().await;
    let (report, moved) = world.moved_by(pattern("list:t[12]*")).await;
    assert_eq!((report.removed, report.patterns.removed, report.patterns.asked), (5, 5, 1));
    assert_eq!(moved, ["t1", "t2"]);
    let own = world.cache.fences(&[fence_key("t1")]).await.unwrap();
    let everything = InvalidateRequest { all: true, ..pattern("*") };
    let report = world.report(everything).await;
    assert_eq!(report.removed, 4 + 5 + 4 + 2 - 5);
    assert!(report.patterns.kept > 0 && world.keys().is_empty());
    assert_ne!(world.cache.fences(&[fence_key("t1")]).await.unwrap(), own, "moved, not removed");
    let manifests = world.cache.manifests(&[manifest_key(&job("list").name, Some("t1"))]).await;
    assert_eq!(manifests.unwrap()[0].len(), 2, "a run at work may rely on them");

    let refused = world.invalidate(pattern("*")).await.unwrap_err();
    assert_eq!(refused, InvalidateError::Everything("*".to_owned()));
}

#[tokio::test]
async fn what_means_nothing_is_refused_and_names_what_was_meant() {
    let world = world().await;
    let before = world.keys();
    let refuse = async |request| world.invalidate(request).await.unwrap_err().to_string();
    assert!(refuse(InvalidateRequest::default()).await.contains("nothing is named"));
    assert_eq!(refuse(jobs(&["lits"])).await, "there is no job `lits`: did you mean `list`?");
    let both = InvalidateRequest { jobs: texts(&["menu"]), ..of_tenants(&["t1"]) };
    assert!(refuse(both).await.contains("job `menu` warms all tenants together"));
    assert!(refuse(keys(&["preheat:fence:t1"])).await.contains("preheat's own"));
    assert_eq!(world.keys(), before);
}

#[tokio::test]
async fn hazard_01_the_fences_move_before_the_keys_go() {
    let requests = [
        keys(&["list:t1", "pet:p2"]),
        jobs(&["list", "menu"]),
        of_tenants(&["t1"]),
        pattern("list:*"),
    ];
    for request in requests {
        let world = world().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (moves, removals) = (Arc::clone(&seen), Arc::clone(&seen));
        world.ledger.before(move |call| {
            if call == Call::MoveFences {
                moves.lock().unwrap().push("move");
            }
            ready(Ok(()))
        });
        world.cache.refuse(move |_| {
            removals.lock().unwrap().push("remove");
            None
        });
        assert!(world.report(request.clone()).await.removed > 0);
        let mut seen = seen.lock().unwrap().clone();
        seen.dedup();
        assert_eq!(seen[..2], ["move", "remove"], "{request:?}");
    }
}

#[tokio::test]
async fn hazard_01_a_run_at_work_does_not_bring_back_what_was_removed() {
    let world = Setup::new([job("list")], tenants(2)).start();
    world.set_rows("list", a_row_each(2));
    slow_reads(&world, SECOND);
    world.warm("list").await;
    // The run has read by now, and is about to write.
    let (cache, written) = (Arc::clone(&world.cache), Arc::new(Mutex::new(false)));
    let clock = world.clock.clone();
    let first = Arc::clone(&written);
    cache.before_write(move |_| {
        let wait = !std::mem::replace(&mut *first.lock().unwrap(), true);
        let asleep = clock.sleep(SECOND);
        Box::pin(async move {
            if wait {
                asleep.await;
            }
            Ok(())
        })
    });
    let ticket = world.ask("list").await;
    world.until("it is to write", |_| *written.lock().unwrap()).await;
    world
        .set_rows("list", vec![MemoryRow::new("t0", "\"new\"", []), MemoryRow::new("t1", "1", [])]);
    let report = world.report(keys(&["list:t0"])).await;
    assert_eq!(report.removed, 1);
    world.finish(ticket).await;
    assert_eq!(world.value("list:t0").as_deref(), Some("[\"new\"]"));
}

#[tokio::test]
async fn where_a_fence_cannot_move_nothing_is_removed() {
    let world = world().await;
    let before = world.keys();
    world.ledger.before(|call| {
        let down = Err(cache_error(CacheErrorKind::Unavailable));
        ready(if call == Call::MoveFences { down } else { Ok(()) })
    });
    for request in [keys(&["list:t1"]), jobs(&["list"]), pattern("list:*")] {
        let report = world.report(request).await;
        assert!(!report.complete);
        assert_eq!((report.removed, report.fences), (0, 0));
        assert_eq!(report.failures[0].kind, FailureKind::CacheUnavailable);
    }
    assert_eq!(world.keys(), before);
}

#[tokio::test]
async fn a_key_that_the_cache_refuses_to_remove_is_named_and_the_others_go() {
    let world = world().await;
    world.cache.refuse(|key| (key == "list:t1").then(|| cache_error(CacheErrorKind::Permission)));
    let report = world.report(of_tenants(&["t1"])).await;
    assert_eq!((report.complete, report.removed, report.failed), (false, 3, 1));
    assert_eq!(report.failures[0].kind, FailureKind::CachePermission);
    assert_eq!(report.failures[0].key.as_deref(), Some("list:t1"));
}

#[tokio::test]
async fn without_the_tenants_nothing_is_removed() {
    let world = world().await;
    let before = world.keys();
    world.source.before_tenants(|| ready(Err(refused(SourceErrorKind::Unavailable))));
    for request in [keys(&["pet:p1"]), jobs(&["list"]), pattern("list:*")] {
        let error = world.invalidate(request).await.unwrap_err();
        assert!(matches!(error, InvalidateError::Tenants(_)), "{error}");
    }
    assert_eq!(world.keys(), before);
}

#[tokio::test]
async fn what_was_removed_is_warmed_again_for_those_whom_it_concerned() {
    let retired = Job { enabled: false, ..job("retired") };
    let world = Setup::new([category("list"), pets("pets"), global(), retired], tenants(4)).start();
    set_rows(&world, "list", "pets");
    world.warm_all().await;
    let warm = world.keys();
    let rewarm = |request| InvalidateRequest { rewarm: true, ..request };
    let cases = [
        (rewarm(keys(&["list:t1:cat"])), vec![("list", 1)]),
        (rewarm(keys(&["pet:p1", "menu"])), vec![("menu", 1), ("pets", 4)]),
        (rewarm(of_tenants(&["t1", "t2", "nobody"])), vec![("list", 2), ("pets", 2)]),
        (rewarm(jobs(&["menu", "retired"])), vec![("menu", 1)]),
        (rewarm(pattern("*:t3*")), vec![("list", 1)]),
    ];
    for (request, expected) in cases {
        let done = world.invalidate(request.clone()).await.unwrap();
        assert!(done.report.removed > 0, "{request:?}");
        let mut runs = Vec::new();
        for ticket in done.runs {
            let record = world.finish(ticket).await;
            runs.push((record.job.to_string(), record.report.tenants.total));
        }
        let runs: Vec<_> = runs.iter().map(|(job, total)| (job.as_str(), *total)).collect();
        assert_eq!(runs, expected, "{request:?}");
        assert_eq!(world.keys(), warm, "{request:?}");
    }
}

#[tokio::test]
async fn hazard_08_a_tenant_list_that_shrank_too_much_is_no_reason_to_keep_what_was_named() {
    let world = world().await;
    world.source.set_tenants(tenants(1));
    assert_eq!(world.report(jobs(&["pets"])).await.removed, 4);
}
