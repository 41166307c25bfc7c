//! The servers, the services and preheat: one of the three settings on a fresh copy of the data.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use preheat_sandbox::{Clinic, Options, PostgresOptions, Sandbox};
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;

use crate::cost::{self, Cost};
use crate::mix::Site;
use crate::service::{Running, Services, ask, free_address};

/// Services beside each other, as pods of one deployment.
const SERVICES: usize = 4;
/// The database of which each setting gets a copy.
const TEMPLATE: &str = "site";
/// The shipped jobs.
pub(crate) const JOBS: [&str; 6] = ["services", "products", "staff", "slots", "pets", "content"];
const JOB_FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");

/// How the service reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setting {
    NoCache,
    ReadThrough,
    Preheat,
}

impl Setting {
    pub(crate) const ALL: [Self; 3] = [Self::NoCache, Self::ReadThrough, Self::Preheat];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoCache => "no cache",
            Self::ReadThrough => "read-through only",
            Self::Preheat => "preheat",
        }
    }
}

/// The servers, and the data from which each setting begins.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) site: Site,
    counter: PgPool,
    folder: tempfile::TempDir,
    settings_made: std::cell::Cell<u32>,
}

impl World {
    pub(crate) async fn new(tenants: u32) -> Self {
        let settings = [
            ("shared_preload_libraries", "pg_stat_statements"),
            ("autovacuum", "off"),
            ("shared_buffers", "512MB"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = PostgresOptions { settings, ..PostgresOptions::default() };
        let options = Options { postgres, ..Options::default() };
        let sandbox = Sandbox::start(options).await.expect("servers");
        let postgres = sandbox.postgres();
        postgres.execute("postgres", cost::PREPARE).await.expect("the contributed modules");
        postgres.create_database(TEMPLATE, None).await.unwrap();
        let clinic = Clinic { pets: 20, pages: 4, days: 10, ..Clinic::bench(tenants) };
        clinic.load(&postgres.url(TEMPLATE)).await.expect("the sample clinic");
        postgres.execute(TEMPLATE, cost::GRANT).await.unwrap();
        let pool = PgPool::connect(&postgres.url(TEMPLATE)).await.unwrap();
        let site = Site::of(&pool).await;
        pool.close().await;
        let counter = PgPool::connect(&postgres.url("postgres")).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { sandbox, site, counter, folder, settings_made: std::cell::Cell::new(0) }
    }

    /// Begins a setting: fresh data, an empty cache, services that know the tenants.
    pub(crate) async fn begin(&self, setting: Setting) -> Stage<'_> {
        self.settings_made.set(self.settings_made.get() + 1);
        let database = format!("copy_{}", self.settings_made.get());
        let postgres = self.sandbox.postgres();
        postgres.create_database(&database, Some(TEMPLATE)).await.unwrap();
        let grant = format!("grant create on database {database} to preheat");
        postgres.execute("postgres", &grant).await.unwrap();
        self.sandbox.redis().restart().unwrap();
        let cache = self.cache().await;
        let site = self.site.clone();
        let has_cache = setting != Setting::NoCache;
        let url = self.url(&database, cost::APPLICATION);
        let redis = self.sandbox.redis().url();
        let services = Services::start(SERVICES, &url, &redis, has_cache).await;
        services.meet(site.clinics.iter().map(|clinic| &*clinic.id)).await;
        Stage { world: self, setting, database, site, cache, services, worker: None }
    }

    async fn cache(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.sandbox.redis().url()).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    fn url(&self, database: &str, role: &str) -> String {
        self.sandbox.postgres().url(database).replace("user=postgres", &format!("user={role}"))
    }
}

/// A setting under way.
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a World,
    pub(crate) setting: Setting,
    database: String,
    /// With the writes that were planned so far.
    pub(crate) site: Site,
    pub(crate) cache: MultiplexedConnection,
    pub(crate) services: Services,
    worker: Option<Running>,
}

impl Stage<'_> {
    pub(crate) async fn cost(&self) -> Cost {
        cost::so_far(&self.world.counter, &self.database).await
    }

    /// A connection that may do everything.
    pub(crate) async fn database(&self) -> PgPool {
        PgPool::connect(&self.world.sandbox.postgres().url(&self.database)).await.unwrap()
    }

    pub(crate) fn preheat(&self, role: &str, words: &[&str]) -> Command {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_preheat"));
        command
            .args(words)
            .current_dir(self.world.folder.path())
            .env("DATABASE_URL", self.world.url(&self.database, role))
            .env("REDIS_URL", self.world.sandbox.redis().url())
            .env("PREHEAT_JOBS", JOB_FILES)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    fn log(&self) -> PathBuf {
        self.world.folder.path().join("log")
    }

    /// Runs a command of preheat's to its end.
    pub(crate) async fn run(&self, role: &str, words: &[&str]) {
        let status =
            tokio::process::Command::from(self.preheat(role, words)).status().await.unwrap();
        assert!(status.success(), "preheat {words:?}: {}", self.read_log());
    }

    pub(crate) async fn warm(&self) {
        self.run(cost::PREHEAT, &["warm"]).await;
    }

    fn read_log(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Starts the change feed and the worker, and waits until the runs of its start are over.
    pub(crate) async fn start_worker(&mut self) {
        self.run("postgres", &["changes", "install"]).await;
        let address = free_address();
        let mut worker = self.preheat(cost::PREHEAT, &["serve"]);
        worker.env("PREHEAT_HTTP__LISTEN", address.to_string());
        let mut worker = Running(worker.spawn().expect("the program"));
        let start = Instant::now();
        while ask(address, "/readyz", "").await.is_none_or(|(status, _)| status != 200) {
            assert!(
                worker.0.try_wait().unwrap().is_none(),
                "the worker ended: {}",
                self.read_log()
            );
            assert!(start.elapsed() < Duration::from_mins(1), "not ready: {}", self.read_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.worker = Some(worker);
        self.quiet().await;
    }

    /// Waits until preheat has not read a row for a second.
    pub(crate) async fn quiet(&self) {
        loop {
            let before = self.cost().await.preheat.rows;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.cost().await.preheat.rows - before < 100.0 {
                return;
            }
        }
    }

    /// Suspends the worker, or resumes it.
    pub(crate) fn hold_worker(&self, signal: Signal) {
        if let Some(worker) = &self.worker {
            let id = Pid::from_raw(worker.0.id().try_into().unwrap()).unwrap();
            kill_process(id, signal).unwrap();
        }
    }

    pub(crate) async fn empty_cache(&mut self) {
        let () = redis::cmd("FLUSHALL").query_async(&mut self.cache).await.unwrap();
    }

    /// The keys that hold the application's values.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut cache = self.cache.clone();
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut cache).await.unwrap();
        keys.retain(|key| !key.starts_with("preheat:"));
        keys
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        let Self { world, database, services, worker, .. } = self;
        drop((worker, services));
        world.sandbox.postgres().drop_database(&database).await.unwrap();
    }
}
