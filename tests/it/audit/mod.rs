//! The audit, with ports in memory that accept no writes, and with a clock that the test moves.

mod orphans;
mod verifier;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::audit::{AuditError, AuditOrder, Auditor, KeyAnswer, KeyState, MAX_SUSPECTS, Pace};
use preheat::domain::audit::{JobAudit, Kind, MAX_FINDINGS};
use preheat::domain::job::{DateZone, Dates, Job, JobName, Key, Scope, Share};
use preheat::domain::manifest::manifest_key;
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::domain::schedule::Schedule;
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, Clock, Found, Ledger, ManifestEntries, SourceErrorKind,
};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::engine::registry::Registry;
use preheat::engine::run::Runner;
use preheat::engine::run::limit::{Limits, Priority};

use crate::engine::ledger::{Answer, Around, CacheCall, Call, Rules};
use crate::engine::{
    Count, Gauge, MINUTE, SECOND, Setup, World, at, cache_error, ids, job, key, many, refused,
    tenants,
};
use crate::support::memory::{MemoryCache, MemoryRow};
use crate::support::virtual_clock::VirtualClock;

/// The cache and the ledger as an audit may use them: a write fails the test.
#[derive(Default)]
struct ReadOnly {
    /// How many keys and bytes each call has read.
    looks: Mutex<Vec<(usize, usize)>>,
    before_look: Mutex<Option<LookHook>>,
    in_flight: Gauge,
}

type LookHook = Arc<dyn Fn(&[String]) -> Result<(), CacheError> + Send + Sync>;

impl ReadOnly {
    fn before_look<F>(&self, hook: F)
    where
        F: Fn(&[String]) -> Result<(), CacheError> + Send + Sync + 'static,
    {
        *self.before_look.lock().unwrap() = Some(Arc::new(hook));
    }
}

impl Rules for ReadOnly {
    fn on_ledger<'a, T: Send + 'a>(&'a self, call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        match call {
            Call::Fences | Call::Manifests | Call::ReadRegistry => then,
            Call::StartFences
            | Call::MoveFences
            | Call::AddEntries
            | Call::Prune
            | Call::Register
            | Call::Deregister => panic!("an audit writes into the ledger: {call:?}"),
        }
    }

    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        match call {
            CacheCall::Look | CacheCall::Exist | CacheCall::Scan | CacheCall::Stats => then,
            CacheCall::Write(_) => panic!("an audit writes"),
            CacheCall::Remove(_) => panic!("an audit removes"),
            CacheCall::Expire => panic!("an audit changes lives"),
        }
    }

    fn look<'a>(
        &'a self,
        memory: &'a MemoryCache,
        keys: &'a [String],
    ) -> Answer<'a, Vec<Option<Found>>> {
        Box::pin(async move {
            let _in_flight = self.in_flight.enter("look");
            let hook = self.before_look.lock().unwrap().clone();
            if let Some(hook) = hook {
                hook(keys)?;
            }
            let found = memory.look(keys).await?;
            let bytes = found.iter().flatten().map(|found| found.value.len()).sum();
            self.looks.lock().unwrap().push((keys.len(), bytes));
            Ok(found)
        })
    }
}

/// A world with a warm cache, and an auditor beside it.
struct Lab {
    world: World,
    jobs: Vec<Arc<Job>>,
    runner: Arc<Runner>,
    read_only: Arc<Around<ReadOnly>>,
}

impl Lab {
    /// Warms these jobs for this many tenants.
    async fn warm(jobs: impl IntoIterator<Item = Job>, rows: &[(&str, Vec<MemoryRow>)]) -> Self {
        Self::warm_for(jobs, rows, 3).await
    }

    async fn warm_for(
        jobs: impl IntoIterator<Item = Job>,
        rows: &[(&str, Vec<MemoryRow>)],
        count: usize,
    ) -> Self {
        let jobs: Vec<Job> = jobs.into_iter().collect();
        let world = Setup::new(jobs.clone(), tenants(count)).start();
        for (job, rows) in rows {
            world.set_rows(job, rows.clone());
        }
        for job in &jobs {
            let record = world.warm(job.name.as_str()).await;
            assert_eq!(record.outcome, Outcome::Ok, "{record:?}");
        }
        Self::around(world, jobs)
    }

    /// An auditor for a world that is warm already.
    fn around(world: World, jobs: Vec<Job>) -> Self {
        let read_only = Around::with(Arc::clone(&world.cache), ReadOnly::default());
        let servers = Unguarded {
            source: Arc::clone(&world.source) as _,
            reader: Arc::clone(&world.source) as _,
            cache: Arc::clone(&read_only) as _,
            ledger: Arc::clone(&read_only) as _,
        };
        let ports = Ports::new(servers, Arc::new(world.clock.clone()), Arc::clone(&world.metrics));
        let runner = Arc::new(Runner::new(
            ports,
            Limits::new(2),
            Registry::new(Share::from_percent(50.0).unwrap()),
            "test".to_owned(),
        ));
        let jobs: Vec<Arc<Job>> = jobs.into_iter().map(Arc::new).collect();
        let by_name = jobs.iter().map(|job| (job.name.clone(), Arc::clone(job)));
        runner.jobs.set(by_name.collect::<BTreeMap<_, _>>());
        Self { world, jobs, runner, read_only }
    }

    fn order(&self) -> AuditOrder {
        AuditOrder { jobs: self.jobs.clone(), sample: None, rechecks: true, orphans: false }
    }

    async fn try_audit(&self, order: AuditOrder) -> Result<Vec<JobAudit>, AuditError> {
        let auditor = Auditor::new(Arc::clone(&self.runner), Pace::Steady);
        self.finish(async move { auditor.audit(&order).await }).await
    }

    /// The audit of the world's only job.
    async fn audit(&self) -> JobAudit {
        self.try_audit(self.order()).await.unwrap().remove(0)
    }

    async fn explain(&self, key: &str) -> KeyAnswer {
        let auditor = Auditor::new(Arc::clone(&self.runner), Pace::Steady);
        let (jobs, key) = (self.jobs.clone(), key.to_owned());
        self.finish(async move { auditor.explain(&jobs, &key, true).await }).await.unwrap()
    }

    /// Moves time on until the future is done.
    async fn finish<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        for _ in 0..100_000 {
            tokio::select! {
                biased;
                done = &mut future => return done,
                _moved = self.world.clock.step() => {}
            }
        }
        panic!("it never ends");
    }

    /// Runs `act` once that much time has passed.
    fn after(&self, wait: Duration, act: impl Future<Output = ()> + Send + 'static) {
        let asleep = self.world.clock.sleep(wait);
        tokio::spawn(async move {
            asleep.await;
            act.await;
        });
    }

    async fn put(&self, key: &str, value: &str, ttl: Duration) {
        put(&self.world.cache, key, value, ttl).await;
    }

    fn since(&self, began: Duration) -> Duration {
        self.world.clock.monotonic().saturating_sub(began)
    }

    /// How many times the source was asked for rows so far.
    fn reads(&self) -> usize {
        self.world.source.reads().len()
    }
}

/// Writes a value with a TTL, as another program does.
async fn put(cache: &MemoryCache, key: &str, value: &str, ttl: Duration) {
    cache.set(key, value);
    cache.expire(&[(key.to_owned(), ttl)]).await.unwrap();
}

/// A job that is not due during a test.
fn quiet(name: &str) -> Job {
    Job { schedule: Schedule::Every(Duration::from_hours(24)), ..job(name) }
}

/// The same with one key for each category, besides the static one.
fn with_data_keys() -> Job {
    Job { keys: vec![key("list:{tenant_id}"), key("list:{tenant_id}:{category}")], ..quiet("list") }
}

fn priced(price: &str, at: &str) -> String {
    format!("{{\"price\":{price},\"updated_at\":\"{at}\"}}")
}

/// One row for each tenant, in category `a`.
fn rows_of(count: usize, json: &str) -> Vec<MemoryRow> {
    ids(0..count).iter().map(|id| MemoryRow::new(id, json, [("category", "a")])).collect()
}

fn found(audit: &JobAudit) -> BTreeSet<(&str, Kind)> {
    audit.findings.iter().map(|one| (one.key.as_str(), one.wrong.kind)).collect()
}

const OLD: &str = "2026-03-01T00:00:00.000Z";
const NEW: &str = "2026-03-01T00:00:12.500Z";

#[tokio::test]
async fn a_warm_cache_is_as_in_the_database() {
    let lab = Lab::warm([with_data_keys()], &[("list", rows_of(3, &priced("1.50", OLD)))]).await;
    let began = lab.world.clock.monotonic();
    let audit = lab.audit().await;
    assert_eq!((audit.tenants, audit.counts.expected(), audit.counts.findings()), (3, 6, 0));
    assert_eq!(audit.counts.equal_within, [6, 0, 0, 0]);
    assert_eq!(audit.to_string(), "100 % consistent within 60s");
    assert_eq!(lab.world.clock.monotonic(), began, "nothing had to be looked at again");
    let looked: usize = lab.read_only.looks.lock().unwrap().iter().map(|(keys, _)| keys).sum();
    assert_eq!(looked, 6);
}

#[tokio::test]
async fn each_kind_of_damage_is_found_when_it_is_still_there_after_a_minute() {
    let lab =
        Lab::warm_for([with_data_keys()], &[("list", rows_of(6, &priced("12.50", NEW)))], 6).await;
    let (cache, life) = (&lab.world.cache, 30 * MINUTE);
    cache.evict("list:t0");
    lab.put("list:t1", &format!("[{}]", priced("13.00", OLD)), life).await;
    cache.expire(&[("list:t2".to_owned(), life * 2)]).await.unwrap();
    cache.set("list:t3", format!("[{}]", priced("12.50", NEW)));
    let manifest = manifest_key(&JobName::parse("list").unwrap(), Some("t4"));
    let keys = vec!["list:t4:gone".to_owned(), "list:t4:never".to_owned()];
    cache
        .add_entries(&[ManifestEntries { manifest, keys }], lab.world.clock.now(), life)
        .await
        .unwrap();
    lab.put("list:t4:gone", "[1]", life).await;
    // An application caches the same value as different JSON.
    let spaced = format!("[ {{ \"updated_at\" : \"{NEW}\" , \"price\" : 12.5 }} ]");
    lab.put("list:t5", &spaced, life).await;

    let (began, read) = (lab.world.clock.monotonic(), lab.reads());
    let audit = lab.audit().await;
    let expected = [
        ("list:t0", Kind::Missing),
        ("list:t1", Kind::Stale),
        ("list:t2", Kind::WrongTtl),
        ("list:t3", Kind::WrongTtl),
        ("list:t4:gone", Kind::Orphaned),
    ];
    assert_eq!(found(&audit), BTreeSet::from(expected));
    let counts = audit.counts;
    assert_eq!((counts.expected(), counts.present(), counts.all_equal()), (12, 11, 10));
    assert_eq!((counts.missing, counts.stale, counts.wrong_ttl, counts.orphaned), (1, 1, 2, 1));
    assert_eq!(counts.unchecked + counts.changing, 0);
    assert_eq!(audit.most_behind, Some(Duration::from_millis(12_500)));
    let stale = audit.findings.iter().find(|one| one.wrong.kind == Kind::Stale).unwrap();
    assert_eq!(stale.tenant.as_deref(), Some("t1"));
    assert_eq!(stale.wrong.differences.first[0].to_string(), "[0].price: 12.50 ≠ 13.00");
    assert_eq!(lab.since(began), MINUTE);
    let again = &lab.world.source.reads()[read..];
    let tenants: Vec<usize> = again.iter().map(|read| read.tenants.len()).collect();
    assert_eq!(tenants, [6, 5, 5, 5], "only the tenants of suspects are read again");
}

#[tokio::test]
async fn a_write_in_flight_is_no_finding_and_counts_in_the_window_in_which_it_came() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(4, "1"))], 4).await;
    for (number, arrives) in [(0, None), (1, Some(0.5)), (2, Some(4.0)), (3, Some(59.0))] {
        let key = format!("list:t{number}");
        lab.put(&key, "[0]", 30 * MINUTE).await;
        let Some(arrives) = arrives else {
            lab.put(&key, "[1]", 30 * MINUTE).await;
            continue;
        };
        let cache = Arc::clone(&lab.world.cache);
        lab.after(Duration::from_secs_f64(arrives), async move {
            put(&cache, &key, "[1]", 30 * MINUTE).await;
        });
    }
    let audit = lab.audit().await;
    assert_eq!(audit.counts.findings(), 0, "{audit:?}");
    assert_eq!(audit.counts.equal_within, [1, 1, 1, 1]);
}

#[tokio::test]
async fn without_looking_again_a_write_in_flight_is_a_finding() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.put("list:t1", "[0]", MINUTE).await;
    let (began, order) = (lab.world.clock.monotonic(), lab.order());
    let audits = lab.try_audit(AuditOrder { rechecks: false, ..order }).await.unwrap();
    assert_eq!(audits[0].counts.stale, 1);
    assert_eq!(audits[0].to_string(), "66.66 % consistent at the first look");
    assert_eq!(lab.world.clock.monotonic(), began);
}

#[tokio::test]
async fn hazard_03_an_application_that_deletes_without_the_fence_is_seen() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, &priced("1", OLD)))]).await;
    // The application commits and deletes the key while the warmer is between its query and its
    // writes, and does not move the fence. So the warmer writes the old value last, and cannot know
    // that.
    let (source, cache) = (Arc::clone(&lab.world.source), Arc::clone(&lab.world.cache));
    lab.world.cache.before_write(move |_| {
        source.set_rows(&JobName::parse("list").unwrap(), rows_of(3, &priced("2", NEW)));
        for id in ids(0..3) {
            cache.evict(&format!("list:{id}"));
        }
        crate::engine::ready(Ok(()))
    });
    assert_eq!(lab.world.warm("list").await.outcome, Outcome::Ok);
    let audit = lab.audit().await;
    assert_eq!((audit.counts.stale, audit.counts.expected()), (3, 3));
    assert_eq!(audit.most_behind, Some(Duration::from_millis(12_500)));
    assert_eq!(audit.to_string(), "0 % consistent within 60s");
}

#[tokio::test]
async fn a_key_that_expires_between_the_reads_and_comes_back_is_no_finding() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let (cache, looked) = (Arc::clone(&lab.world.cache), Count::default());
    lab.read_only.before_look(move |keys| {
        if looked.up() == 0 {
            for key in keys {
                cache.evict(key);
            }
        }
        Ok(())
    });
    let (handle, clock) = (lab.world.handle.clone(), lab.world.clock.clone());
    tokio::spawn(async move {
        clock.sleep(5 * SECOND).await;
        handle.request(crate::engine::request("list", None)).await.unwrap();
    });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.equal_within, audit.counts.findings()), ([0, 0, 3, 0], 0));
}

/// Tenant `t0`'s value in the database and in the cache, at each look.
async fn looks_at(values: &'static [(&str, &str)]) -> JobAudit {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let (source, cache) = (Arc::clone(&lab.world.source), Arc::clone(&lab.world.cache));
    let looks = Count::default();
    lab.world.source.before_read(move |_| {
        let (database, cached) = values[looks.up().min(values.len() - 1)];
        let row = MemoryRow::new("t0", database, []);
        let mut rows = rows_of(3, "1");
        rows[0] = row;
        source.set_rows(&JobName::parse("list").unwrap(), rows);
        let cache = Arc::clone(&cache);
        Box::pin(async move {
            put(&cache, "list:t0", &format!("[{cached}]"), 5 * MINUTE).await;
            Ok(())
        })
    });
    lab.audit().await
}

#[tokio::test]
async fn a_key_that_is_rewritten_all_the_time_is_no_finding_and_an_old_one_is() {
    // The cache is one write behind at each look, by another write each time.
    let audit = looks_at(&[("2", "1"), ("3", "2"), ("4", "3"), ("5", "4")]).await;
    assert_eq!((audit.counts.changing, audit.counts.findings()), (1, 0));
    assert_eq!(audit.counts.expected(), 2, "it is not judged");
    // The cache keeps the same old value while the database's changes.
    let audit = looks_at(&[("2", "1"), ("3", "1"), ("4", "1"), ("5", "1")]).await;
    assert_eq!((audit.counts.changing, audit.counts.stale), (0, 1));
    // The database's value stays the same, and an application writes one wrong value after another.
    let audit = looks_at(&[("9", "1"), ("9", "2"), ("9", "3"), ("9", "4")]).await;
    assert_eq!((audit.counts.changing, audit.counts.stale), (0, 1));
    // The value was equal once in between: a later difference is a new one.
    let audit = looks_at(&[("2", "1"), ("2", "2"), ("3", "2")]).await;
    assert_eq!((audit.counts.equal_within, audit.counts.findings()), ([2, 1, 0, 0], 0));
}

#[tokio::test]
async fn a_tenant_that_is_switched_off_meanwhile_is_no_finding() {
    let lab = Lab::warm([with_data_keys()], &[("list", rows_of(3, "1"))]).await;
    // What a sweep does to the tenant, before the tenant list tells the audit.
    for key in ["list:t2", "list:t2:a"] {
        lab.world.cache.evict(key);
    }
    let source = Arc::clone(&lab.world.source);
    lab.after(SECOND / 2, async move { source.set_tenants(tenants(2)) });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.findings(), audit.counts.expected()), (0, 4), "{audit:?}");
}

/// A job with one key for each of three days, due every hour.
fn dated() -> Job {
    let dates = Dates { days: 3, zone: DateZone::Fixed(chrono_tz::UTC) };
    Job {
        schedule: Schedule::Every(Duration::from_hours(1)),
        ttl: Duration::from_hours(3),
        dates: Some(dates),
        keys: vec![key("day:{tenant_id}:{date}"), key("day:{tenant_id}:{date}:{kind}")],
        ..quiet("day")
    }
}

#[tokio::test]
async fn hazard_12_the_hour_after_midnight_is_no_finding_and_the_next_is() {
    let days = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"];
    let row = |day: &&str| MemoryRow::new("t0", "1", [("date", *day), ("kind", "x")]);
    let rows: Vec<_> = days.iter().map(row).collect();
    let setup = |clock: VirtualClock| Setup { clock, ..Setup::new([dated()], tenants(1)) };
    let world = setup(VirtualClock::new(at("2026-03-01T23:58:00Z"), 1)).start();
    world.set_rows("day", rows.clone());
    world.warm("day").await;
    let lab = Lab::around(world, vec![dated()]);
    let audit = lab.audit().await;
    assert_eq!((audit.counts.expected(), audit.counts.findings()), (6, 0), "{audit:?}");

    // No runs start from now on, as if the worker were away.
    lab.world.stops.drain.cancel();
    lab.world.ended().await;
    lab.world.clock.advance(3 * MINUTE).await;
    let audit = lab.audit().await;
    assert_eq!((audit.counts.expected(), audit.counts.findings()), (4, 0), "{audit:?}");

    lab.world.clock.advance(70 * MINUTE).await;
    let audit = lab.audit().await;
    let expected = [
        ("day:t0:2026-03-01:x", Kind::Orphaned),
        ("day:t0:2026-03-04", Kind::Missing),
        ("day:t0:2026-03-04:x", Kind::Missing),
    ];
    assert_eq!(found(&audit), BTreeSet::from(expected));
}

#[tokio::test]
async fn a_sample_is_so_many_tenants_by_chance() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(50, "1"))], 50).await;
    let mut seen = HashSet::new();
    for _ in 0..40 {
        let order = AuditOrder { sample: NonZeroUsize::new(5), ..lab.order() };
        let audit = lab.try_audit(order).await.unwrap().remove(0);
        assert_eq!((audit.tenants, audit.counts.all_equal()), (5, 5));
        let read = lab.world.source.reads().pop().unwrap().tenants;
        let number = |id: &String| id[1..].parse::<u32>().unwrap();
        assert!(read.iter().map(number).is_sorted(), "neighbours are read together: {read:?}");
        assert_eq!(read.iter().collect::<HashSet<_>>().len(), 5);
        seen.extend(read);
    }
    assert!(seen.len() > 45, "in the long run all are seen: {}", seen.len());
    let order = AuditOrder { sample: NonZeroUsize::new(500), ..lab.order() };
    assert_eq!(lab.try_audit(order).await.unwrap()[0].tenants, 50);
}

#[tokio::test]
async fn one_batch_is_in_hand_at_a_time_and_looks_are_bounded() {
    let large = format!("\"{}\"", "x".repeat(100_000));
    let small = Job { batch: many(2), ..quiet("small") };
    let wide = Job { keys: vec![key("wide:{tenant_id}:{kind}")], ..quiet("wide") };
    let kinds: Vec<String> = (0..1_200).map(|kind| kind.to_string()).collect();
    let row = |kind: &String| MemoryRow::new("t0", "1", [("kind", kind.as_str())]);
    let rows = [
        ("list", rows_of(30, &large)),
        ("small", rows_of(30, "1")),
        ("wide", kinds.iter().map(row).collect()),
    ];
    let lab = Lab::warm_for([quiet("list"), small, wide], &rows, 30).await;
    lab.world.cache.evict("small:t7");
    let (gauge, clock) = (lab.read_only.in_flight.clone(), lab.world.clock.clone());
    let reads = gauge.clone();
    lab.world.source.before_read(move |_| {
        let (in_flight, asleep) = (reads.enter("read"), clock.sleep(SECOND / 10));
        Box::pin(async move {
            asleep.await;
            drop(in_flight);
            Ok(())
        })
    });
    // One of the two permits is taken all the time.
    let other = lab.runner.limits.batch(Priority::Regular).await;
    let audits = lab.try_audit(lab.order()).await.unwrap();
    drop(other);
    let expected: Vec<u64> = audits.iter().map(|audit| audit.counts.expected()).collect();
    assert_eq!(expected, [30, 30, 1_200]);
    assert_eq!(audits[1].counts.missing, 1);
    assert_eq!(gauge.most(""), 1, "never two reads or looks at once");
    let looks = lab.read_only.looks.lock().unwrap();
    assert!(looks.iter().all(|(keys, bytes)| *keys <= 500 && *bytes <= 1024 * 1024), "{looks:?}");
    assert!(looks.iter().any(|(keys, _)| *keys == 500));
}

#[tokio::test]
async fn without_a_permit_an_audit_waits() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let (read, all) = (lab.reads(), lab.runner.limits.giant(Priority::Regular).await);
    let auditor = Auditor::new(Arc::clone(&lab.runner), Pace::Steady);
    let order = lab.order();
    let audit = tokio::spawn(async move { auditor.audit(&order).await });
    lab.world.clock.advance(MINUTE).await;
    assert_eq!(lab.reads(), read);
    drop(all);
    assert_eq!(audit.await.unwrap().unwrap()[0].counts.all_equal(), 3);
}

#[tokio::test]
async fn looking_again_goes_on_beside_the_rest_of_the_work() {
    let list = Job { batch: many(1), ..quiet("list") };
    let lab = Lab::warm_for([list], &[("list", rows_of(100, "1"))], 100).await;
    for id in ids(0..100) {
        lab.world.cache.evict(&format!("list:{id}"));
    }
    crate::engine::slow_reads(&lab.world, SECOND / 2);
    let began = lab.world.clock.monotonic();
    let audit = lab.audit().await;
    assert_eq!(audit.counts.missing, 100);
    let took = lab.since(began);
    // Four looks at every tenant, half a second each, and a minute after the last.
    assert!(took < Duration::from_secs(200 + 75), "{took:?}");
}

#[tokio::test]
async fn of_too_many_suspects_the_rest_is_counted_only() {
    let count = MAX_SUSPECTS + 50;
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(count, "1"))], count).await;
    lab.world.cache.restart();
    let cache = Arc::clone(&lab.world.cache);
    // Two keys come back: one that the audit looks at again, and one that it only counts.
    lab.after(SECOND / 2, async move {
        for key in ["list:t0".to_owned(), format!("list:t{}", MAX_SUSPECTS + 49)] {
            put(&cache, &key, "[1]", 30 * MINUTE).await;
        }
    });
    let audit = lab.audit().await;
    assert_eq!((audit.counts.missing, audit.counts.unchecked), (count as u64 - 1, 50));
    assert_eq!(audit.counts.expected(), count as u64);
    assert_eq!(audit.findings.len(), MAX_FINDINGS);
}

#[tokio::test]
async fn who_cannot_be_read_is_named_and_all_others_are_compared() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(8, "1"))], 8).await;
    lab.world.cache.evict("list:t5");
    lab.world.on_read(|tenants| {
        let broken = tenants.iter().any(|tenant| tenant == "t3");
        if broken { Err(refused(SourceErrorKind::Data)) } else { Ok(()) }
    });
    let audit = lab.audit().await;
    assert_eq!((audit.tenants, audit.tenants_failed), (8, 1));
    assert_eq!(found(&audit), BTreeSet::from([("list:t5", Kind::Missing)]));
    let [failure] = audit.failures.as_slice() else { panic!("{audit:?}") };
    assert_eq!((failure.kind, failure.tenant.as_deref()), (FailureKind::Query, Some("t3")));
    assert_eq!(audit.counts.expected(), 7);
}

#[tokio::test]
async fn a_suspect_whose_tenant_cannot_be_read_again_stays_one() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world.cache.evict("list:t1");
    let reads = Count::default();
    lab.world.on_read(move |_| match reads.up() {
        0 => Ok(()),
        _ => Err(refused(SourceErrorKind::Data)),
    });
    let audit = lab.audit().await;
    assert_eq!(found(&audit), BTreeSet::from([("list:t1", Kind::Missing)]));
    assert_eq!((audit.tenants_failed, audit.failures.len()), (0, 1));
}

#[tokio::test]
async fn a_query_that_is_broken_is_not_sent_for_every_tenant() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(60, "1"))], 60).await;
    for (kind, most) in [(SourceErrorKind::Definition, 1), (SourceErrorKind::Data, 40)] {
        let read = lab.reads();
        lab.world.on_read(move |_| Err(refused(kind)));
        let audit = lab.audit().await;
        assert_eq!((audit.tenants_failed, audit.counts.expected()), (60, 0), "{kind:?}");
        assert!(lab.reads() - read <= most, "{kind:?}: {}", lab.reads() - read);
    }
}

#[tokio::test]
async fn a_server_that_stays_away_ends_the_audit() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world.on_read(|_| Err(refused(SourceErrorKind::Unavailable)));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Unreachable(_)), "{error:?}");

    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.read_only.before_look(|_| Err(cache_error(CacheErrorKind::Unavailable)));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Unreachable(_)), "{error:?}");

    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.world
        .source
        .before_tenants(|| Box::pin(async { Err(refused(SourceErrorKind::Definition)) }));
    let error = lab.try_audit(lab.order()).await.unwrap_err();
    assert!(matches!(&error, AuditError::Tenants(_)), "{error:?}");
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let lab = Lab::warm([with_data_keys()], &[("list", rows_of(3, "1"))]).await;
    let (reads, looks, lists) = (Count::default(), Count::default(), Count::default());
    lab.world.on_read(move |_| match reads.up() {
        0 => Err(refused(SourceErrorKind::Transient)),
        _ => Ok(()),
    });
    lab.read_only.before_look(move |_| match looks.up() {
        0 => Err(cache_error(CacheErrorKind::Unavailable)),
        _ => Ok(()),
    });
    lab.world.source.before_tenants(move || {
        let first = lists.up() == 0;
        let answer = if first { Err(refused(SourceErrorKind::Unavailable)) } else { Ok(()) };
        Box::pin(async move { answer })
    });
    assert_eq!(lab.audit().await.counts.equal_within, [6, 0, 0, 0]);
}

#[tokio::test]
async fn a_key_that_holds_no_string_is_stale_and_costs_no_other_its_look() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    lab.read_only.before_look(|keys| {
        let odd = keys.iter().any(|key| key == "list:t1");
        if odd { Err(cache_error(CacheErrorKind::WrongType)) } else { Ok(()) }
    });
    let audit = lab.audit().await;
    assert_eq!(found(&audit), BTreeSet::from([("list:t1", Kind::Stale)]));
    assert_eq!(audit.counts.all_equal(), 2);
}

#[tokio::test]
async fn a_giant_is_read_alone_and_a_value_that_is_too_large_may_not_be_there() {
    let mut list = quiet("list");
    list.encoding.max_bytes = 10 * 1024 * 1024;
    let giant = format!("\"{}\"", "x".repeat(9 * 1024 * 1024));
    let mut rows = rows_of(3, "1");
    rows[1] = MemoryRow::new("t1", &giant, []);
    let mut lab = Lab::warm([list.clone()], &[("list", rows)]).await;
    assert_eq!(lab.audit().await.counts.equal_within, [3, 0, 0, 0]);

    list.encoding.max_bytes = 1024;
    lab.jobs = vec![Arc::new(list)];
    let audit = lab.audit().await;
    assert_eq!(found(&audit), BTreeSet::from([("list:t1", Kind::Orphaned)]));
    assert_eq!(audit.failures[0].kind, FailureKind::ValueTooLarge);
}

#[tokio::test]
async fn a_job_for_the_whole_fleet_is_one_tenant() {
    let keys = vec![key("plans"), key("plan:{category}")];
    let fleet = Job { scope: Scope::Fleet, keys, ..quiet("plans") };
    let lab = Lab::warm([fleet], &[("plans", rows_of(2, "1"))]).await;
    lab.put("plans", "[1]", MINUTE * 5).await;
    let audit = lab.audit().await;
    assert_eq!((audit.tenants, audit.counts.expected()), (1, 2));
    assert_eq!(found(&audit), BTreeSet::from([("plans", Kind::Stale)]));
    assert_eq!(audit.findings[0].tenant, None);
    let answer = lab.explain("plans").await;
    assert!(matches!(answer.state, KeyState::Wrong(_)), "{answer:?}");
}

#[tokio::test]
async fn one_key_is_explained_whose_ever_it_is() {
    let unique = Key { unique: Some("id".to_owned()), ..key("pet:{id}") };
    let pets = Job { keys: vec![unique], batch: many(1), ..quiet("pets") };
    let pet = |number| {
        let (tenant, id) = (format!("t{number}"), format!("p{number}"));
        MemoryRow::new(&tenant, &format!("{{\"id\":{number}}}"), [("id", id.as_str())])
    };
    let rows = [("list", rows_of(3, &priced("12.50", NEW))), ("pets", (0..3).map(pet).collect())];
    let lab = Lab::warm([with_data_keys(), pets], &rows).await;
    let owner = |job: &str, tenant: &str| Some((job.to_owned(), Some(tenant.to_owned())));
    let explained = async |key: &str| {
        let KeyAnswer { owner, state, after, failures } = lab.explain(key).await;
        assert_eq!(failures, []);
        (owner.map(|(job, tenant)| (job.to_string(), tenant)), state, after)
    };

    let (found, state, after) = explained("list:t1:a").await;
    assert_eq!((found, state, after), (owner("list", "t1"), KeyState::Equal, Duration::ZERO));
    let read = lab.world.source.reads().pop().unwrap();
    assert_eq!(read.tenants, ["t1"], "its text names the tenant");
    let (found, state, _) = explained("pet:p2").await;
    assert_eq!((found, state), (owner("pets", "t2"), KeyState::Equal));

    let before: String = (0..9).map(|n| priced(&n.to_string(), OLD) + ",").collect();
    let value = format!("[{before}{}]", priced("12.50", OLD));
    lab.put("list:t1", &value, MINUTE * 5).await;
    let (found, state, after) = explained("list:t1").await;
    let KeyState::Wrong(finding) = state else { panic!("{state:?}") };
    assert_eq!((found, after), (owner("list", "t1"), MINUTE));
    assert_eq!(finding.wrong.kind, Kind::Stale);
    assert!(finding.wrong.differences.first.len() > 8, "all of it: {finding:?}");

    assert_eq!(explained("list:t1:none").await.1, KeyState::Nowhere);
    assert_eq!(explained("other:7").await, (None, KeyState::Nowhere, Duration::ZERO));
    lab.put("list:t9", "[]", MINUTE).await;
    let (found, state, _) = explained("list:t9").await;
    let KeyState::Wrong(finding) = state else { panic!("{state:?}") };
    assert_eq!((found, finding.wrong.kind), (None, Kind::Orphaned));
}
