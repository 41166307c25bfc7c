//! The worker among all its neighbours: writers that never pause, tenants that come and go, a cache that
//! loses everything, a feed that is cut. When all of them have stopped, the cache equals the database, key
//! for key.
//!
//! Two jobs are due only once an hour: only the change feed keeps their changed data correct.

mod writer;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preheat_sandbox::{Clinic, Postgres, Redis};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::de::IgnoredAny;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::writer::{Manners, Writer, Written};
use crate::support::program::{Preheat, Running};
use crate::support::shop::TOKEN;
use crate::support::{LONG, eventually, http, own_postgres, preheat, redis, redis_connection};

/// Jobs that are due every second.
const BUSY: [&str; 4] = ["content", "products", "slots", "staff"];
/// Jobs that are due once an hour.
const LAZY: [&str; 2] = ["pets", "services"];

/// A pending tenant waits five seconds at most, and ten before that if it has a shared key that was written
/// in vain. So if nothing has happened for this long, nothing is pending.
const LONGER_THAN_ANY_WAIT: Duration = Duration::from_secs(16);

/// How many wrong keys of each kind a failure shows.
const TOLD: usize = 10;

const CONNECTED: &str = "preheat_change_feed_connected";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_minute_of_everything_at_once_the_cache_is_the_database() {
    let clinic = LiveClinic::open().await;
    let worker = clinic.serve().await;
    let lasts = Duration::from_secs(seconds());

    let stop = CancellationToken::new();
    let watches = Watches::begin(&clinic, &worker, &stop);
    let began = Instant::now();
    let writers = clinic.writers(lasts).await;
    let cuts = clinic.disturb(&worker, began, lasts).await;
    let heard_since = chrono::Utc::now();
    ask_again_and_again(&worker, began + lasts.mul_f64(0.75)).await;
    let mut written = Written::default();
    let Ok(all) = tokio::time::timeout(lasts + LONG, writers.join_all()).await else {
        panic!("the writers do not end: {:#?}", clinic.sessions().await);
    };
    for one in &all {
        written.add(one);
    }
    let stopped = chrono::Utc::now();
    clinic.rest(&worker, stopped).await;
    stop.cancel();
    let read = within("those who look on end", LONG, watches.end()).await;

    // Before the audit, since runs may correct a key during the audit.
    let wrong = within("all keys are read", LONG, clinic.wrong(heard_since)).await;
    let report = clinic.audit().await;
    tell(&worker, &written, (read, cuts)).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_true(&report);
    worker.signal(rustix::process::Signal::TERM);
    let said = worker.ended().await.expect_code(0).stderr;
    for fault in ["panicked", "defect of preheat", "internal"] {
        assert!(!said.contains(fault), "{fault}:\n{said}");
    }
}

/// Requests runs for all tenants, one after another, beside those for changes: an older read that has the
/// last word would stay. In the last quarter only the feed is left, and nothing corrects what it missed.
async fn ask_again_and_again(worker: &Running, until: Instant) {
    let ask = async |job: &str| {
        while Instant::now() < until {
            let run = worker.warm(job).await;
            assert!(run["outcome"] == "ok" || run["outcome"] == "partial", "{run:#}");
        }
    };
    tokio::join!(ask(LAZY[0]), ask(LAZY[1]));
}

/// Fails with a message if the future hangs.
async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(limit, future).await;
    done.unwrap_or_else(|_elapsed| panic!("waited {limit:?} in vain until {what}"))
}

/// How long the writers write.
fn seconds() -> u64 {
    std::env::var("PREHEAT_LIVE_SECONDS").map_or(60, |seconds| seconds.parse().unwrap())
}

/// Records when a pet was deleted.
const BURIALS: &str =
    "create table burials (pet uuid, at timestamptz not null default clock_timestamp());
    create function bury() returns trigger language plpgsql as
      'begin insert into burials select id from gone; return null; end';
    create trigger bury after delete on pets referencing old table as gone
      for each statement execute function bury()";

/// A chain of clinics with servers of its own.
struct LiveClinic {
    postgres: Postgres,
    redis: Arc<Redis>,
}

impl LiveClinic {
    async fn open() -> Self {
        let clinic = Self { postgres: own_postgres(), redis: Arc::new(redis()) };
        clinic.postgres.create_database("clinic", None).await.unwrap();
        Clinic { tenants: 200, ..Clinic::small() }.load(&clinic.url()).await.unwrap();
        sqlx::raw_sql(BURIALS).execute(&mut clinic.connect().await).await.unwrap();
        clinic
    }

    fn url(&self) -> String {
        self.postgres.url("clinic")
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    async fn cache(&self) -> MultiplexedConnection {
        redis_connection(&self.redis).await
    }

    /// The program with both servers and the jobs.
    fn preheat<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
        let program = preheat(arguments).database(self.url()).cache(self.redis.url());
        let jobs = BUSY.iter().map(|name| (*name, busy(name)));
        let jobs = jobs.chain(LAZY.iter().map(|name| (*name, lazy(name))));
        jobs.fold(program, |program, (name, text)| program.job(name, &text))
    }

    /// A worker whose feed is connected and whose first runs have ended.
    async fn serve(&self) -> Running {
        self.preheat(["check"]).run().await.expect_code(0);
        self.preheat(["changes", "install"]).run().await.expect_code(0);
        let serve = self.preheat(["serve"]).env("PREHEAT_HTTP__TOKEN", TOKEN);
        let worker = serve.start();
        worker.answers("/readyz", 200).await;
        worker.metric_becomes(CONNECTED, |value| value > 0.0).await;
        worker
    }

    /// Starts four writers.
    async fn writers(&self, lasts: Duration) -> JoinSet<Written> {
        let mut connection = self.connect().await;
        let tenants = sqlx::query_scalar("select id from tenants order by created_at, id");
        let tenants: Arc<[uuid::Uuid]> = tenants.fetch_all(&mut connection).await.unwrap().into();
        let mut writers = JoinSet::new();
        for number in 0..4 {
            let manners = match number % 2 {
                0 => Manners::FollowsTheFence { redis: self.redis.url() },
                _ => Manners::KnowsNothing,
            };
            let writer = Writer::new(number, self.connect().await, Arc::clone(&tenants), manners);
            writers.spawn(writer.write_for(lasts));
        }
        writers
    }

    /// Cuts the feed three times and empties the cache once, all within the first half.
    async fn disturb(&self, worker: &Running, began: Instant, lasts: Duration) -> usize {
        let mut cuts = 0;
        for (at, restarts) in [(0.1, false), (0.25, true), (0.4, false), (0.5, false)] {
            tokio::time::sleep_until((began + lasts.mul_f64(at)).into()).await;
            if restarts {
                self.restart_redis().await;
            } else {
                cuts += 1;
                self.cut_the_feed_off(worker, cuts).await;
            }
        }
        cuts
    }

    /// Restarts the cache, which is then empty.
    async fn restart_redis(&self) {
        let redis = Arc::clone(&self.redis);
        tokio::task::spawn_blocking(move || redis.restart().unwrap()).await.unwrap();
    }

    /// Ends the listener's session, for the `cut`th time, and waits until the worker has a new one.
    async fn cut_the_feed_off(&self, worker: &Running, cut: usize) {
        // The listener's last statement is one of these: first it listens, later it checks that the server is
        // there.
        let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
            where application_name = 'preheat' and datname = current_database() \
              and (query ilike 'listen%' or query ilike 'unlisten%' or query = 'select 1')";
        let mut connection = self.connect().await;
        let ended: i64 = sqlx::query_scalar(terminate).fetch_one(&mut connection).await.unwrap();
        assert_eq!(ended, 1, "there is one listener");
        eventually("the worker missed its listener", LONG, async || {
            worker.stderr().matches("the change feed is away").count() >= cut
        })
        .await;
        worker.metric_becomes(CONNECTED, |value| value > 0.0).await;
    }

    /// Waits until only due runs are left: the feed is connected, no change came and none is pending, and
    /// each job that is due every second has run twice with the present tenants.
    async fn rest(&self, worker: &Running, stopped: chrono::DateTime<chrono::Utc>) {
        for job in BUSY {
            eventually(&format!("`{job}` ran twice"), LONG, async || {
                let runs = worker.runs(job).await;
                let late = runs.iter().filter(|run| {
                    let started: chrono::DateTime<chrono::Utc> =
                        run["started_at"].as_str().unwrap().parse().unwrap();
                    run["outcome"] == "ok" && started > stopped
                });
                late.count() >= 2
            })
            .await;
        }
        let mut before = Page::of(worker).await.changes();
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < LONGER_THAN_ANY_WAIT {
            assert!(stopped + 5 * LONG > chrono::Utc::now(), "no rest: {before:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            let page = Page::of(worker).await;
            let now = page.changes();
            if now != before || page.sum(CONNECTED, "") < 1.0 {
                (before, quiet_since) = (now, Instant::now());
            }
        }
    }

    /// What all sessions of the database are doing.
    async fn sessions(&self) -> Vec<String> {
        let sessions = "select concat_ws(' ', pid, pg_blocking_pids(pid), application_name, state, \
            wait_event, clock_timestamp() - state_change, left(query, 80)) \
            from pg_stat_activity where datname = current_database()";
        let mut connection = self.connect().await;
        sqlx::query_scalar(sessions).fetch_all(&mut connection).await.unwrap()
    }

    /// The program's audit of the cache, with four looks at each suspect.
    async fn audit(&self) -> Value {
        let audit = self.preheat(["audit", "--json", "--threshold", "100%"]).start();
        let output = audit.ended_within(3 * LONG).await;
        let report = output.json();
        assert_eq!(
            output.code(),
            Some(i32::from(report["within_threshold"] != true)),
            "{report:#}"
        );
        report
    }

    /// Keys without a row or an active tenant, and rows without a key, each with details that may explain it.
    /// An audit finds only those keys without data that preheat has recorded.
    ///
    /// A pet's key expires by its TTL if its tenant is no longer active, or if the pet was deleted before
    /// `heard_since`, when the feed may have been away.
    async fn wrong(&self, heard_since: chrono::DateTime<chrono::Utc>) -> Vec<String> {
        let expected = "with active as (select id from tenants where status = 'active') \
            select name || ':' || id from active, unnest('{content,services,staff}'::text[]) name \
            union all select 'products:' || id || ':all' from active \
            union all select distinct 'products:' || tenant_id || ':' || category from products \
              where active and tenant_id in (select id from active) \
            union all select 'slots:' || id from active \
            union all select 'pet:' || id from pets where tenant_id in (select id from active)";
        let mut connection = self.connect().await;
        let expected: Vec<String> =
            sqlx::query_scalar(expected).fetch_all(&mut connection).await.unwrap();
        let expected: HashSet<String> = expected.into_iter().collect();
        let lives_on = "select 'pet:' || pet from burials where at < $1 union all \
            select 'pet:' || id from pets where tenant_id not in \
              (select id from tenants where status = 'active')";
        let lives_on: Vec<String> = sqlx::query_scalar(lives_on)
            .bind(heard_since)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let lives_on: HashSet<String> = lives_on.into_iter().collect();
        let mut cache = self.cache().await;
        let keys: Vec<String> = cache.keys("*").await.unwrap();
        let keys = keys.into_iter().filter(|key| !key.starts_with("preheat:"));
        let undated = |key: String| match key.rsplit_once(':') {
            Some((of_tenant, _date)) if key.starts_with("slots:") => of_tenant.to_owned(),
            Some(_) | None => key,
        };
        let found: HashSet<String> = keys.map(undated).collect();
        let names = names(&mut cache).await;
        let mut wrong = Vec::new();
        let without_data = &(&found - &expected) - &lives_on;
        for (what, keys) in [("without data", without_data), ("missing", &expected - &found)] {
            if !keys.is_empty() {
                wrong.push(format!("{} are {what}", keys.len()));
            }
            for key in keys.into_iter().take(TOLD) {
                let ttl: i64 = cache.pttl(&key).await.unwrap();
                let owner = self.owner(&mut connection, &key).await;
                let names = names.get(&key);
                wrong.push(format!("{what}: {key}, {ttl} ms, of {owner:?}, named by {names:?}"));
            }
        }
        wrong
    }

    /// The owner of the pet with this key, if it exists, and the owner's state.
    async fn owner(&self, connection: &mut PgConnection, key: &str) -> Option<String> {
        let pet: uuid::Uuid = key.strip_prefix("pet:")?.parse().unwrap();
        let owner = "select tenants.id || ' ' || status from pets join tenants on tenants.id = tenant_id \
            where pets.id = $1";
        sqlx::query_scalar(owner).bind(pet).fetch_optional(connection).await.unwrap()
    }
}

/// Checks that the cache has everything that it should, as it is in the database, and nothing else.
fn assert_true(report: &Value) {
    let jobs = report["jobs"].as_array().unwrap();
    for job in jobs {
        let count = |name: &str| job[name].as_u64().unwrap();
        assert!(count("expected") > 0, "{job:#}");
        assert_eq!(count("equal"), count("expected"), "{job:#}");
        for wrong in ["stale", "missing", "orphaned", "wrong_ttl", "changing", "unchecked"] {
            assert_eq!(count(wrong), 0, "{wrong}: {job:#}");
        }
        assert_eq!(count("tenants_failed"), 0, "{job:#}");
    }
    assert_eq!(jobs.len(), BUSY.len() + LAZY.len());
    assert_eq!(report["within_threshold"], true);
}

/// The manifests that name each key, and the age of the entries in milliseconds.
async fn names(cache: &mut MultiplexedConnection) -> HashMap<String, Vec<(String, i64)>> {
    let mut names: HashMap<String, Vec<_>> = HashMap::new();
    let manifests: Vec<String> = cache.keys("preheat:manifest:*").await.unwrap();
    for manifest in manifests {
        let keys: Vec<(String, i64)> = cache.zrange_withscores(&manifest, 0, -1).await.unwrap();
        let now = chrono::Utc::now().timestamp_millis();
        for (key, at) in keys {
            names.entry(key).or_default().push((manifest.clone(), now - at));
        }
    }
    names
}

/// A shipped job that is due every second.
fn busy(name: &str) -> String {
    shipped(name, |line| match line.split(' ').next() {
        Some("schedule") => "schedule = \"every 1s\"".to_owned(),
        Some(_) | None => line.to_owned(),
    })
}

/// A shipped job that is due once an hour.
fn lazy(name: &str) -> String {
    shipped(name, |line| match line.split(' ').next() {
        Some("schedule") => "schedule = \"every 1h\"".to_owned(),
        Some("ttl") => "ttl = \"2h\"".to_owned(),
        Some(_) | None => line.to_owned(),
    })
}

fn shipped(name: &str, change: impl Fn(&str) -> String) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("jobs/{name}.toml"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(change).collect::<Vec<_>>().join("\n")
}

/// Readers and checks that run all the time.
struct Watches {
    reader: tokio::task::JoinHandle<u64>,
    health: tokio::task::JoinHandle<()>,
}

impl Watches {
    fn begin(clinic: &LiveClinic, worker: &Running, stop: &CancellationToken) -> Self {
        let reader = tokio::spawn(read_on(clinic.redis.url(), stop.clone()));
        let health = tokio::spawn(is_healthy(worker.address(), stop.clone()));
        Self { reader, health }
    }

    /// How many values were read.
    async fn end(self) -> u64 {
        self.health.await.unwrap();
        let read = self.reader.await.unwrap();
        assert!(read > 0, "the reader saw no value");
        read
    }
}

/// Reads random keys, and checks that each value is whole.
async fn read_on(url: String, stop: CancellationToken) -> u64 {
    let client = redis::Client::open(url).unwrap();
    let (mut read, mut connection) = (0, None);
    while !stop.is_cancelled() {
        if connection.is_none() {
            connection = client.get_multiplexed_async_connection().await.ok();
        }
        let value = match &mut connection {
            Some(connection) => random_value(connection).await,
            None => Ok(None),
        };
        match value {
            Ok(Some((key, value))) => {
                read += 1;
                let whole = serde_json::from_str::<IgnoredAny>(&value);
                assert!(whole.is_ok(), "`{key}` is not whole: {value:?}");
            }
            Ok(None) => {}
            Err(_away) => connection = None,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    read
}

async fn random_value(
    connection: &mut MultiplexedConnection,
) -> redis::RedisResult<Option<(String, String)>> {
    let key: Option<String> = redis::cmd("RANDOMKEY").query_async(connection).await?;
    let Some(key) = key.filter(|key| !key.starts_with("preheat:")) else { return Ok(None) };
    let value: Option<String> = connection.get(&key).await?;
    Ok(value.map(|value| (key, value)))
}

/// Checks all the time that the worker reports itself healthy.
async fn is_healthy(address: std::net::SocketAddr, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let answer = http::get(address, "/healthz").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The worker's metrics at one moment.
struct Page(String);

impl Page {
    async fn of(worker: &Running) -> Self {
        Self(worker.get("/metrics").await.body)
    }

    /// The sum of all series of a metric with these labels.
    fn sum(&self, metric: &str, labels: &str) -> f64 {
        let lines = self.0.lines().filter_map(|line| line.strip_prefix(metric));
        let series = lines.filter(|line| line.starts_with(['{', ' ']) && line.contains(labels));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The number of notifications, of runs for changes, and of tenants that a run left unverified.
    fn changes(&self) -> [u64; 3] {
        [
            self.sum("preheat_change_notifications_total", ""),
            self.sum("preheat_runs_total", "trigger=\"change\""),
            self.sum("preheat_tenants_total", "outcome=\"fenced\""),
        ]
        .map(|sum| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of what happened within a minute"
            )]
            let count = sum as u64;
            count
        })
    }
}

/// One line about everything that went on.
#[expect(clippy::print_stderr, reason = "whoever runs the test sees how much it tried")]
async fn tell(worker: &Running, written: &Written, (read, cuts): (u64, usize)) {
    let page = Page::of(worker).await;
    let runs = |labels: &str| page.sum("preheat_runs_total", labels);
    let Written { transactions, rows, rolled_back, deadlocks, moved } = written;
    eprintln!(
        "live: {transactions} transactions with {rows} rows ({rolled_back} rolled back, {deadlocks} \
         deadlocks, {moved} pets moved), {} notifications, {} runs ({} for changes; \
         {} not ok), {} tenants fenced, {} keys written, {} removed, {read} values read, feed cut \
         {cuts} times, redis restarted once",
        page.sum("preheat_change_notifications_total", ""),
        runs(""),
        runs("trigger=\"change\""),
        runs("") - runs("outcome=\"ok\""),
        page.sum("preheat_tenants_total", "outcome=\"fenced\""),
        page.sum("preheat_keys_total", "outcome=\"written\""),
        page.sum("preheat_keys_total", "outcome=\"removed\""),
    );
}
