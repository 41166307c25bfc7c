//! Settings: built-in defaults, then `preheat.toml`, then `.env`, then the environment, then flags.
//! Each layer overrides the one before.
//!
//! Nothing else reads the environment. All problems are found at once: see [`ConfigError`].

mod environment;
mod fleet;
mod layer;
mod problem;
mod reader;
mod setting;
mod text;
mod traces;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;
use secrecy::{ExposeSecret, SecretString};

pub use self::environment::Environment;
pub use self::fleet::{Fleet, FleetShares};
use self::layer::Layers;
pub use self::problem::{ConfigError, Origin, Problem};
use self::reader::Reader;
pub use self::setting::{InUse, Setting};
use self::text::{base_path, column_name, header_name, visible_ascii};
pub use self::traces::Traces;
use crate::domain::job::Share;
use crate::domain::network::Network;
use crate::domain::server_url::{CacheUrl, DatabaseUrl};

/// All settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the job files.
    pub jobs: PathBuf,
    /// Whether a settings file was read.
    pub has_file: bool,
    /// The variables that come from a `.env` file.
    pub from_env_file: Vec<String>,
    /// What is logged, and how.
    pub log: Log,
    /// The worker's name in run records: the name of its host.
    pub replica: String,
    /// `[database]`
    pub database: Database,
    /// `[cache]`
    pub cache: Cache,
    /// `[tenants]`
    pub tenants: Tenants,
    /// `[runner]`
    pub runner: Runner,
    /// `[http]`
    pub http: Http,
    /// `[history]`
    pub history: History,
    /// `[audit]`
    pub audit: Audit,
    /// `[changes]`
    pub changes: Changes,
    /// `[fleet]`
    pub fleet: Fleet,
    /// Traces of runs.
    pub traces: Traces,
    /// All settings of the file, with where their values come from.
    pub in_use: Vec<InUse>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which lines: directives such as `debug` or `preheat=debug,sqlx=warn`.
    pub filter: String,
    /// Whether a terminal may show colours.
    pub colour: bool,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

const LOG_FORMAT: &str = "PREHEAT_LOG_FORMAT";

impl LogFormat {
    /// The format that the command line and the environment ask for, even if other settings are
    /// wrong.
    pub fn of(overrides: &Overrides, environment: &Environment) -> Self {
        let named = Self::named(environment.get(LOG_FORMAT));
        overrides.log_format.or(named.ok()).unwrap_or_default()
    }

    fn named(name: Option<&str>) -> Result<Self, &str> {
        match name {
            None | Some("") => Ok(Self::default()),
            Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(other),
        }
    }
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub struct Database {
    /// `postgres://…`; commands that need it call [`Settings::database_url`].
    pub url: Option<SecretString>,
    /// The limit on all connections that preheat opens to the database.
    pub max_connections: u32,
    /// The longest time of one query.
    pub statement_timeout: Duration,
    /// Whether the queries of runs may only read.
    pub read_only: bool,
    /// What to do about row-level security policies, which may hide rows.
    pub row_security: RowSecurity,
    /// The time zone of its sessions.
    pub time_zone: Option<Tz>,
    /// It has no effect: preheat works behind every pooler without it.
    pub pgbouncer: bool,
}

/// What to do about row-level security policies, which may hide rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowSecurity {
    /// The server refuses a query that a policy would filter.
    #[default]
    Refuse,
    /// The operator vouches that the policies show the role every row.
    Accept,
}

/// Where entries go.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `redis://…`; commands that need it call [`Settings::cache_url`].
    pub url: Option<SecretString>,
    /// A file with the certificates to trust for `rediss://` instead of the public authorities.
    pub ca: Option<PathBuf>,
    /// Whether the server's certificate is verified at all.
    pub verify: bool,
    /// The prefix of every key.
    pub prefix: String,
    /// The longest time of one call.
    pub timeout: Duration,
}

/// Which tenants there are.
#[derive(Clone, Debug)]
pub struct Tenants {
    /// The query that returns the active tenants; its first column is the id.
    pub sql: String,
    /// The id's name in job queries and key templates.
    pub column: String,
    /// If the tenant list shrinks by more than this, nothing is deleted because of it.
    pub max_shrink: Share,
}

/// How much work is done at once.
#[derive(Clone, Debug)]
pub struct Runner {
    /// The number of batches in flight over all jobs.
    pub concurrency: NonZeroUsize,
    /// The number of tenants in one query.
    pub batch: NonZeroUsize,
    /// How long a query of a batch should take at most; `None` if its size never changes.
    pub target_batch_time: Option<Duration>,
    /// How long a stopping worker may take to finish the batches in flight.
    pub drain: Duration,
    /// The most memory for the rows of one tenant.
    pub max_tenant_bytes: usize,
    /// Whether a worker reads its job files again once they have changed.
    pub watch_jobs: bool,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct Http {
    /// The address of the control plane.
    pub listen: SocketAddr,
    /// A second address that answers `/healthz` and `/readyz`, and nothing else.
    pub probes: Option<SocketAddr>,
    /// The token that a request must carry to change something. Without a token, no request can.
    pub token: Option<SecretString>,
    /// The token that a request must carry to look at something, if it does not carry `token`.
    pub read_token: Option<SecretString>,
    /// The proxies whose headers count.
    pub trusted_proxies: Vec<Network>,
    /// The header in which a trusted proxy names the user.
    pub user_header: String,
    /// Where the dashboard is below its host; empty at its root.
    pub base_path: String,
    /// How long `/readyz` waits for required jobs.
    pub ready_within: Duration,
}

/// Where run records are kept.
#[derive(Clone, Debug)]
pub struct History {
    /// Whether they are kept.
    pub enabled: HistoryMode,
    /// The database for run records, if it is not [`Database::url`].
    pub url: Option<SecretString>,
    /// How long they are kept.
    pub retention: Duration,
}

/// How the worker compares the cache with the database.
#[derive(Clone, Copy, Debug)]
pub struct Audit {
    /// The time between two comparisons; `None` if the worker makes none.
    pub interval: Option<Duration>,
    /// The number of tenants of each job in one comparison.
    pub sample: NonZeroUsize,
}

/// The change feed.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Whether the worker listens to it.
    pub enabled: ChangesMode,
    /// How the triggers speak that `install` makes.
    pub via: ChangesVia,
    /// Another address of [`Database::url`]'s server, for listening.
    pub url: Option<SecretString>,
}

/// Whether the worker listens to the change feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangesMode {
    /// It listens as soon as the feed's triggers are installed.
    #[default]
    Auto,
    /// It does not start if it cannot listen.
    Required,
    /// It never listens.
    Off,
}

/// How the triggers speak that `install` makes. The worker follows those that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ChangesVia {
    /// As those that are installed; by `NOTIFY` if there are none
    #[default]
    Auto,
    /// By `NOTIFY`, which every server has; commits of transactions that write to watched tables wait for each
    /// other
    Notify,
    /// Through the write-ahead log, for servers with `wal_level = logical` and roles with REPLICATION
    Wal,
}

/// Whether run records are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryMode {
    /// They are kept in the database if possible, otherwise in memory only.
    #[default]
    Auto,
    /// The worker does not start if the database cannot keep them.
    Required,
    /// They are kept in memory only.
    Off,
}

/// The command line's values, which override everything else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config FILE`; it must exist.
    pub config: Option<PathBuf>,
    /// `--jobs DIR`
    pub jobs: Option<PathBuf>,
    /// `--log-format text|json`
    pub log_format: Option<LogFormat>,
    /// The number of `-v` flags.
    pub verbosity: u8,
}

impl Settings {
    /// All settings, or all problems with them. A variable that is set to the empty string counts
    /// as not set.
    pub fn load(
        overrides: &Overrides,
        environment: impl Into<Environment>,
    ) -> Result<Self, ConfigError> {
        match Self::examine(overrides, environment)? {
            (settings, None) => Ok(settings),
            (_, Some(error)) => Err(error),
        }
    }

    /// Like [`Self::load`], but returns settings even if there are problems. They then contain
    /// defaults instead of wrong values, and serve only to find further problems. An error means
    /// that a file cannot be read at all.
    pub fn examine(
        overrides: &Overrides,
        environment: impl Into<Environment>,
    ) -> Result<(Self, Option<ConfigError>), ConfigError> {
        let (layers, mut problems) = Layers::read(overrides, environment.into());
        let is_unreadable = !problems.is_empty();
        let mut reader = Reader::new(&layers);
        let settings = Self::read(&mut reader, &layers, overrides);
        let (declared, wrong) = reader.finish();
        problems.extend(layers.unknown(&declared));
        problems.extend(wrong);
        problems.sort_by(|one, other| one.origin.cmp(&other.origin));
        if is_unreadable {
            return Err(ConfigError { problems });
        }
        Ok((settings, (!problems.is_empty()).then_some(ConfigError { problems })))
    }

    /// The built-in defaults, without any file or variable.
    pub fn builtin() -> Self {
        let layers = Layers::default();
        Self::read(&mut Reader::new(&layers), &layers, &Overrides::default())
    }

    fn read(read: &mut Reader<'_>, layers: &Layers, overrides: &Overrides) -> Self {
        let log = Log::read(read, layers, overrides);
        let database = Database::read(read);
        let connections = database.max_connections;
        Self {
            jobs: layers.jobs(overrides),
            has_file: layers.has_file(),
            from_env_file: layers.names_of_env_file(),
            log,
            replica: layers.host_name(),
            database,
            cache: Cache::read(read),
            tenants: Tenants::read(read),
            runner: Runner::read(read),
            http: Http::read(read),
            history: History::read(read),
            audit: Audit::read(read),
            changes: Changes::read(read),
            fleet: Fleet::read(read, connections),
            traces: layers.traces(),
            in_use: read.in_use(),
        }
    }

    /// Warnings about settings that are allowed, but risky: one sentence each.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if !self.cache.verify {
            notices.push(
                "the certificate of the cache is not verified, since `cache.verify` is false: \
                 an attacker on the network can read and change all data"
                    .to_owned(),
            );
        }
        match self.database.row_security {
            RowSecurity::Refuse => {}
            RowSecurity::Accept => notices.push(
                "`database.row_security` is `accept`: a row that a policy hides from the role is \
                 missing from the cache, without any warning"
                    .to_owned(),
            ),
        }
        notices
    }

    /// The database's URL; an error if it is not set.
    pub fn database_url(&self) -> Result<&SecretString, ConfigError> {
        self.database.url.as_ref().ok_or_else(|| Problem::no_database().into())
    }

    /// The cache's URL; an error if it is not set.
    pub fn cache_url(&self) -> Result<&SecretString, ConfigError> {
        self.cache.url.as_ref().ok_or_else(|| Problem::no_cache().into())
    }

    /// The URLs of the database and the cache; an error if one is not set.
    pub fn servers(&self) -> Result<(&SecretString, &SecretString), ConfigError> {
        match (&self.database.url, &self.cache.url) {
            (Some(database), Some(cache)) => Ok((database, cache)),
            (None, Some(_)) => Err(Problem::no_database().into()),
            (Some(_), None) => Err(Problem::no_cache().into()),
            (None, None) => {
                let problems = vec![Problem::no_database(), Problem::no_cache()];
                Err(ConfigError { problems })
            }
        }
    }
}

impl Log {
    fn read(read: &mut Reader<'_>, layers: &Layers, overrides: &Overrides) -> Self {
        let named = layers.variable(LOG_FORMAT);
        let format = LogFormat::named(named).unwrap_or_else(|found| {
            read.refuse_variable(LOG_FORMAT, found, "`text` or `json`");
            LogFormat::default()
        });
        let variables = || layers.variable("PREHEAT_LOG").or(layers.variable("RUST_LOG"));
        let filter = match overrides.verbosity {
            // At level info, the messages of other crates do not help an operator.
            0 => variables().unwrap_or("warn,preheat=info"),
            1 => "warn,preheat=debug",
            2.. => "debug,preheat=trace",
        };
        Self {
            format: overrides.log_format.unwrap_or(format),
            filter: filter.to_owned(),
            colour: layers.variable("NO_COLOR").is_none(),
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

impl Database {
    fn read(read: &mut Reader<'_>) -> Self {
        let url = read.url(
            "database.url",
            &["postgres", "postgresql"],
            "The database: one host or several, with parameters as `docs/settings.md` lists them. `DATABASE_URL` is honoured too",
            DatabaseUrl::parse,
        );
        let max_connections = read.number(
            "database.max_connections",
            4,
            1..=1000,
            "The most connections that preheat opens, for all purposes together",
        );
        let limit = url.as_ref().and_then(|url| DatabaseUrl::parse(url.expose_secret()).ok());
        let limit = limit.and_then(|url| url.connection_limit).map_or(u32::MAX, NonZeroU32::get);
        Self {
            url,
            max_connections: max_connections.min(limit),
            statement_timeout: read.duration(
                "database.statement_timeout",
                "30s",
                SECOND / 10..=HOUR,
                "The longest time of one query; the server cancels a query that takes longer",
            ),
            read_only: read.flag(
                "database.read_only",
                true,
                "Whether the server refuses writes in the queries of runs; it always refuses them \
                 in those of `plan`, `check` and audits",
            ),
            row_security: read.choice(
                "database.row_security",
                [("refuse", RowSecurity::Refuse), ("accept", RowSecurity::Accept)],
                "What to do if row-level security policies apply to the role: with `\"refuse\"` \
                 the server refuses a query that a policy would filter; `\"accept\"` is for \
                 policies that show the role every row",
            ),
            time_zone: read.zone(
                "database.time_zone",
                "The time zone that queries compute with; if it is not set, that of the role or \
                 the database (`alter role …`, `alter database … set timezone`), or else UTC",
            ),
            pgbouncer: read.flag(
                "database.pgbouncer",
                false,
                "Has no effect any more: preheat works with every pooler in transaction or \
                 session mode",
            ),
        }
    }
}

impl Cache {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            url: read.url(
                "cache.url",
                &CacheUrl::SCHEMES,
                "The cache: `redis://`, `rediss://` (TLS), `redis+unix://`, `redis+cluster://` (Redis Cluster) \
                 or `redis+sentinel://`, with user and password as needed. `REDIS_URL` is honoured too, \
                 and so is `UPSTASH_REDIS_URL` if nothing else is set",
                CacheUrl::parse,
            ),
            ca: read.path(
                "cache.ca",
                "A PEM file with the certificates to trust for `rediss://` instead of the public \
                 authorities: those of other authorities, or the server's own, which is then \
                 accepted whatever its name and dates",
            ),
            verify: read.flag(
                "cache.verify",
                true,
                "Whether the certificate of a `rediss://` server is verified. If it is not, an \
                 attacker on the network can read and change all data",
            ),
            prefix: read.text(
                "cache.prefix",
                "",
                "The prefix of every key, for example a release's id",
                |_any| Ok(()),
            ),
            timeout: read.duration(
                "cache.timeout",
                "5s",
                SECOND / 100..=SECOND * 300,
                "The longest wait for a connection, and for the replies to one pipeline",
            ),
        }
    }
}

impl Tenants {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            sql: read.text(
                "tenants.sql",
                "select id, timezone from tenants where status = 'active' order by created_at, id",
                "The query for the active tenants. Its first column is the tenant's id; job files \
                 can use the others. Its order decides which tenants share a batch: a batch is \
                 read much faster if its tenants' rows are close together on disk",
                |sql| if sql.trim().is_empty() { Err("a query") } else { Ok(()) },
            ),
            column: read.text(
                "tenants.column",
                "tenant_id",
                "The name of the tenant's id in job queries and key templates",
                column_name,
            ),
            max_shrink: read.share(
                "tenants.max_shrink",
                "50%",
                "If the tenant list shrinks by more than this, preheat does not delete the keys \
                 of the tenants that are missing",
            ),
        }
    }
}

impl Runner {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            concurrency: read.count(
                "runner.concurrency",
                4,
                1..=1000,
                "The most batches in flight over all jobs: the limit on the work for the database",
            ),
            batch: read.count(
                "runner.batch",
                100,
                1..=10_000,
                "The number of tenants in one query",
            ),
            target_batch_time: read.duration_or_off(
                "runner.target_batch_time",
                "2s",
                Duration::from_millis(10)..=HOUR,
                "The longest time that a batch's query should take: while a job's queries take \
                 longer, its batches have fewer tenants, but at least a sixteenth of `batch`",
            ),
            drain: read.duration(
                "runner.drain",
                "20s",
                Duration::ZERO..=HOUR,
                "How long the worker may take to finish the batches in flight after it receives SIGTERM or SIGINT",
            ),
            max_tenant_bytes: read.size(
                "runner.max_tenant_bytes",
                "16MiB",
                8 << 20..=1 << 30,
                "The most memory for the rows of one tenant; a tenant with more fails, and no other. \
                 The worker may need six times as much, plus 32MiB",
            ),
            watch_jobs: read.flag(
                "runner.watch_jobs",
                true,
                "Whether the worker reads the job files again when the contents of their folder \
                 have changed, and not only after SIGHUP",
            ),
        }
    }
}

impl Http {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            listen: read.address(
                "http.listen",
                SocketAddr::from(([127, 0, 0, 1], 9464)),
                "The address of the HTTP server; port 0 takes any free port",
            ),
            probes: read.optional_address(
                "http.probes",
                "A second address that answers only `/healthz` and `/readyz`. It has connections \
                 of its own, so probes are answered even if clients use up the connections of \
                 `listen`",
            ),
            token: read.secret(
                "http.token",
                "The token that a request must carry as `Authorization: Bearer …` to change \
                 something. If it is not set, all such requests are refused, even from this \
                 machine",
                visible_ascii,
            ),
            read_token: read.secret(
                "http.read_token",
                "With it, requests that only look at something need it or `token`, too, except \
                 `/healthz`, `/readyz` and `/metrics`",
                visible_ascii,
            ),
            trusted_proxies: read.networks(
                "http.trusted_proxies",
                "The reverse proxies in front of the worker, whose headers `X-Forwarded-For`, \
                 `-Proto`, `-Host` and `-Prefix`, and that of `user_header`, are believed. They must \
                 set or remove each of them",
            ),
            user_header: read.text(
                "http.user_header",
                "X-Forwarded-User",
                "The header in which a trusted proxy names the user. The log and run records have \
                 the name; it gives no rights",
                header_name,
            ),
            base_path: read.text(
                "http.base_path",
                "",
                "The path at which a proxy serves the worker, such as `/preheat`, whether or not \
                 the proxy takes it off; a trusted proxy may send `X-Forwarded-Prefix` instead",
                base_path,
            ),
            ready_within: read.duration(
                "http.ready_within",
                "2m",
                Duration::ZERO..=DAY,
                "`/readyz` waits no longer than this for `required` jobs",
            ),
        }
    }
}

impl History {
    fn read(read: &mut Reader<'_>) -> Self {
        let modes = [
            ("auto", HistoryMode::Auto),
            ("true", HistoryMode::Required),
            ("false", HistoryMode::Off),
        ];
        Self {
            enabled: read.choice(
                "history.enabled",
                modes,
                "Whether run records are kept in schema `preheat`. If the role may not create it, \
                 `\"auto\"` keeps them in memory, and `true` refuses to start",
            ),
            url: read.url(
                "history.url",
                &["postgres", "postgresql"],
                "The database for run records, if it is not `database.url`",
                DatabaseUrl::parse,
            ),
            retention: read.duration(
                "history.retention",
                "30d",
                HOUR..=DAY * 3660,
                "How long run records are kept",
            ),
        }
    }
}

impl Audit {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            interval: read.duration_or_off(
                "audit.interval",
                "10m",
                SECOND..=DAY * 7,
                "How often the worker compares some tenants' keys with the database, to measure how \
                 consistent the cache is",
            ),
            sample: read.count(
                "audit.sample",
                20,
                1..=10_000,
                "The number of tenants of each job in one comparison, chosen at random each time",
            ),
        }
    }
}

impl Changes {
    fn read(read: &mut Reader<'_>) -> Self {
        let modes = [
            ("auto", ChangesMode::Auto),
            ("true", ChangesMode::Required),
            ("false", ChangesMode::Off),
        ];
        Self {
            enabled: read.choice(
                "changes.enabled",
                modes,
                "Whether the worker listens for changes of the jobs' `tables`; `\"auto\"` listens \
                 once `preheat changes install` was run, `true` refuses to start before that",
            ),
            via: read.choice(
                "changes.via",
                [
                    ("auto", ChangesVia::Auto),
                    ("notify", ChangesVia::Notify),
                    ("wal", ChangesVia::Wal),
                ],
                "How the triggers speak that `preheat changes install` makes, which the worker \
                 follows: with `\"wal\"`, commits of transactions that write to watched tables do not wait for each other; it needs \
                 `wal_level = logical` and a role with REPLICATION; `\"auto\"` leaves triggers as \
                 they are, and makes new ones `\"notify\"`",
            ),
            url: read.url(
                "changes.url",
                &["postgres", "postgresql"],
                "The address to listen at, if `database.url` leads through a pooler in \
                 transaction mode: that of the database itself",
                DatabaseUrl::parse,
            ),
        }
    }
}

/// Every setting of the file, in the order of the documentation.
pub fn reference() -> Vec<Setting> {
    let layers = Layers::default();
    let mut reader = Reader::new(&layers);
    Settings::read(&mut reader, &layers, &Overrides::default());
    reader.finish().0
}
