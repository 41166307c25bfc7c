//! The audit, with ports in memory that accept no writes, and with a clock that the test moves.

mod failures;
mod orphans;
mod suspects;
mod verifier;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::audit::{AuditError, AuditOrder, Auditor, KeyAnswer, KeyState, Pace};
use preheat::domain::audit::{JobAudit, Keep, Kind};
use preheat::domain::job::{Job, JobName, Key, Scope, Share};
use preheat::domain::manifest::manifest_key;
use preheat::domain::report::FailureKind;
use preheat::domain::run::Outcome;
use preheat::domain::schedule::Schedule;
use preheat::domain::share::Shares;
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, Clock, Found, Ledger, ManifestEntries,
};
use preheat::engine::ports::{Ports, Unguarded};
use preheat::engine::registry::Registry;
use preheat::engine::run::Runner;
use preheat::engine::run::limit::{Limits, Priority};

use crate::engine::ledger::{Answer, Around, CacheCall, Call, Rules};
use crate::engine::{
    Gauge, MINUTE, SECOND, Setup, World, cache_error, ids, job, key, many, tenants,
};
use crate::support::memory::{MemoryCache, MemoryRow};

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
        let (jobs, values) = (self.jobs.clone(), Keep::Nothing);
        AuditOrder {
            jobs,
            sample: None,
            shares: Shares::ALL,
            rechecks: true,
            orphans: false,
            values,
        }
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
    let fleet = Job { scope: Scope::Global, keys, ..quiet("plans") };
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
