//! What the tests share: real servers, a database or cache of a test's own, connections that break,
//! and the real program.
//!
//! One Postgres serves the whole test process, and each test has its own database in it. A test that stops,
//! suspends or configures a server starts one for itself. All servers end with the process: see
//! `preheat_sandbox`.
#![allow(dead_code, unused_imports, reason = "not every test needs every part")]

pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod dice;
pub(crate) mod document;
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod node;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod python;
pub(crate) mod sentinels;
pub(crate) mod shop;
pub(crate) mod tls;
pub(crate) mod virtual_clock;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use preheat_sandbox::{Clinic, Postgres, PostgresOptions, Redis, RedisOptions};
use redis::aio::MultiplexedConnection;
use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;

pub(crate) use program::{Output, Running, preheat};
pub(crate) use proxy::Proxy;
pub(crate) use shop::Shop;

/// Far longer than anything takes on a slow machine: a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// The Postgres of this test process, on a Unix socket and a TCP port.
pub(crate) fn postgres() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(|| {
        Postgres::start(&PostgresOptions { tcp: true, ..PostgresOptions::default() })
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

/// The Postgres of this test process whose write-ahead log can be decoded. A replication slot waits for all
/// transactions of the server, so tests that leave some open for long use [`postgres`].
pub(crate) fn logical_postgres() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(|| own_logical_postgres(&[]))
}

/// Such a Postgres for one test, with further settings.
pub(crate) fn own_logical_postgres(settings: &[(&str, &str)]) -> Postgres {
    let logical =
        [("wal_level", "logical"), ("max_wal_senders", "90"), ("max_replication_slots", "90")];
    let settings = logical.iter().chain(settings);
    let settings = settings.map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Postgres::start(&PostgresOptions { tcp: true, settings, ..PostgresOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Restarts the server as a standby, of a primary that sends nothing new.
pub(crate) fn restart_as_standby(postgres: &Postgres) {
    let signal = postgres.socket().with_file_name("data").join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    std::fs::set_permissions(&signal, std::fs::Permissions::from_mode(0o666)).unwrap();
    postgres.restart().unwrap();
}

/// A Postgres for one test, which may stop or suspend it.
pub(crate) fn own_postgres() -> Postgres {
    Postgres::start(&PostgresOptions { tcp: true, ..PostgresOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A Redis for one test, on a Unix socket and a TCP port.
pub(crate) fn redis() -> Redis {
    redis_with(&[])
}

/// The same with settings as in `redis.conf`.
pub(crate) fn redis_with(settings: &[(&str, &str)]) -> Redis {
    let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Redis::start(&RedisOptions { tcp: true, settings, ..RedisOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A connection to a Redis of the sandbox.
pub(crate) async fn redis_connection(redis: &Redis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// A database for one test, in [`postgres`] or [`logical_postgres`].
pub(crate) struct Database {
    postgres: &'static Postgres,
    name: String,
}

/// Databases whose tests have ended, with their servers; the next test that needs one removes them.
static ENDED: Mutex<Vec<(&'static Postgres, String)>> = Mutex::new(Vec::new());

/// A new, empty database.
pub(crate) async fn database() -> Database {
    new_database(postgres(), None).await
}

/// A new, empty database in [`logical_postgres`].
pub(crate) async fn logical_database() -> Database {
    new_database(logical_postgres(), None).await
}

/// A new database with a small sample clinic: see [`Clinic::small`].
pub(crate) async fn clinic() -> Database {
    static TEMPLATE: OnceCell<&str> = OnceCell::const_new();
    let make = || async {
        let name = "clinic";
        postgres().drop_database(name).await.unwrap();
        postgres().create_database(name, None).await.unwrap();
        Clinic::small().load(&postgres().url(name)).await.unwrap();
        name
    };
    let template = TEMPLATE.get_or_init(make).await;
    new_database(postgres(), Some(template)).await
}

async fn new_database(postgres: &'static Postgres, template: Option<&str>) -> Database {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let ended = std::mem::take(&mut *ENDED.lock().unwrap_or_else(PoisonError::into_inner));
    for (postgres, name) in ended {
        // The server may not have noticed yet that a replication session has ended.
        eventually("nobody uses an ended test's database", LONG, async || {
            postgres.drop_database(&name).await.is_ok()
        })
        .await;
    }
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    postgres.create_database(&name, template).await.unwrap();
    Database { postgres, name }
}

impl Database {
    pub(crate) fn server(&self) -> &'static Postgres {
        self.postgres
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its URL over the Unix socket.
    pub(crate) fn url(&self) -> String {
        self.postgres.url(&self.name)
    }

    /// Its URL for another role.
    pub(crate) fn url_as(&self, role: &str) -> String {
        let (url, user) = (self.url(), "user=postgres");
        assert!(url.contains(user), "{url}");
        url.replace(user, &format!("user={role}"))
    }

    /// Its URL over TCP.
    pub(crate) fn tcp_url(&self) -> String {
        self.postgres.tcp_url(&self.name).unwrap()
    }

    /// Its URL through a proxy that leads to its server.
    pub(crate) fn url_through(&self, proxy: &Proxy) -> String {
        format!("postgres://postgres@{}/{}?sslmode=disable", proxy.address(), self.name)
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.postgres.execute(&self.name, sql).await.unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let ended = (self.postgres, std::mem::take(&mut self.name));
        ENDED.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
    }
}

/// Whether this machine has an IPv6 address of its own; tests that need one are skipped otherwise.
pub(crate) fn has_ipv6() -> bool {
    let is_there = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !is_there {
        skipped("this machine has no IPv6");
    }
    is_there
}

/// The most memory that a worker with the default settings uses, in MiB, as `docs/load.md` says.
pub(crate) fn documented_peak_mib() -> u64 {
    let load =
        include_str!("../../../docs/load.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let peak = load.split("the worker stays below ").nth(1).unwrap();
    peak.split(" MiB").next().unwrap().parse().unwrap()
}

/// Reports that a test was skipped, and why. `scripts/test` names a file, whose lines it counts:
/// what a test prints is only seen if the test fails.
#[expect(clippy::print_stderr, reason = "a test that was not run has to be seen")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("PREHEAT_SKIPPED") {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(file, "{why}").unwrap();
    }
}

/// How often a cache has run each command since its statistics were reset.
pub(crate) async fn commands(cache: &mut MultiplexedConnection) -> BTreeMap<String, u64> {
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(cache).await.unwrap();
    let stats = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
    let calls = |(name, rest): (&str, &str)| {
        let calls = rest.strip_prefix("calls=").unwrap().split(',').next().unwrap();
        (name.to_owned(), calls.parse().unwrap())
    };
    stats.map(calls).collect()
}

pub(crate) async fn forget_commands(cache: &mut MultiplexedConnection) {
    let () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(cache).await.unwrap();
}

/// Waits until `check` returns true; after `limit` it fails the test and names `what`.
pub(crate) async fn eventually(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
