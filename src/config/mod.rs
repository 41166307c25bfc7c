//! Settings: built-in defaults, then `preheat.toml`, then the environment, then flags; each layer
//! overrides the one before.
//!
//! This is the only reader of the environment. Everything that is wrong is found at once: see
//! [`ConfigError`].

mod layer;
mod problem;
mod reader;
mod setting;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;
use secrecy::{ExposeSecret, SecretString};

use self::layer::Layers;
pub use self::problem::{ConfigError, Origin, Problem};
use self::reader::Reader;
pub use self::setting::Setting;
use crate::domain::job::Share;
use crate::domain::server_url::{CacheUrl, DatabaseUrl};

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the job files.
    pub jobs: PathBuf,
    /// Whether there was a settings file.
    pub has_file: bool,
    /// What is logged, and how.
    pub log: Log,
    /// The name of this worker in run records: the host's.
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
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which lines: directives such as `debug` or `preheat=debug,sqlx=warn`.
    pub filter: String,
    /// Whether colours are welcome where there is a terminal.
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
    /// What the command line and the environment say, whatever is wrong with the other settings.
    pub fn of(
        overrides: &Overrides,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let named = environment.into_iter().find(|(name, _)| name == LOG_FORMAT);
        let named = Self::named(named.as_ref().map(|(_, value)| value.as_str()));
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
    /// `postgres://…`; [`Settings::database_url`] where it is needed.
    pub url: Option<SecretString>,
    /// The bound on everything that preheat opens there.
    pub max_connections: u32,
    /// The longest time of one query.
    pub statement_timeout: Duration,
    /// Whether the queries of runs may only read.
    pub read_only: bool,
    /// What to do about policies that hide rows.
    pub row_security: RowSecurity,
    /// The time zone of its sessions.
    pub time_zone: Option<Tz>,
    /// Of no effect: what it was for is done behind every pooler.
    pub pgbouncer: bool,
}

/// What to do about policies of row-level security that hide rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowSecurity {
    /// A query that they would filter is refused.
    #[default]
    Refuse,
    /// They show the role every row.
    Accept,
}

/// Where entries go.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `redis://…`; [`Settings::cache_url`] where it is needed.
    pub url: Option<SecretString>,
    /// A file with the certificates to trust for `rediss://`, in place of the public ones.
    pub ca: Option<PathBuf>,
    /// Whether the server's certificate is verified at all.
    pub verify: bool,
    /// Put before every key.
    pub prefix: String,
    /// The longest time of one call.
    pub timeout: Duration,
}

/// Who the tenants are.
#[derive(Clone, Debug)]
pub struct Tenants {
    /// The query of the active ones; its first column is the id.
    pub sql: String,
    /// The id's name in job queries and key templates.
    pub column: String,
    /// A list that shrank by more is not trusted to delete anything.
    pub max_shrink: Share,
}

/// How much at once.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Batches in flight over all jobs.
    pub concurrency: NonZeroUsize,
    /// Tenants in one query.
    pub batch: NonZeroUsize,
    /// How long a stopping worker finishes what is in flight.
    pub drain: Duration,
    /// What the rows of one tenant may take in memory.
    pub max_tenant_bytes: usize,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it answers `/healthz` and `/readyz` besides, and nothing else.
    pub probes: Option<SocketAddr>,
    /// What a changing request must carry; without it there are none.
    pub token: Option<SecretString>,
    /// How long `/readyz` waits for required jobs.
    pub ready_within: Duration,
}

/// Where run records are kept.
#[derive(Clone, Debug)]
pub struct History {
    /// Whether they are.
    pub enabled: HistoryMode,
    /// Another database than [`Database::url`].
    pub url: Option<SecretString>,
    /// How long.
    pub retention: Duration,
}

/// How the worker compares the cache with the database.
#[derive(Clone, Copy, Debug)]
pub struct Audit {
    /// From one comparison to the next; `None` where it makes none.
    pub interval: Option<Duration>,
    /// Tenants of each job in one comparison.
    pub sample: NonZeroUsize,
}

/// The change feed.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Whether it is listened to.
    pub enabled: ChangesMode,
    /// Another way to [`Database::url`]'s server.
    pub url: Option<SecretString>,
}

/// Whether the change feed is listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangesMode {
    /// As soon as its triggers are there.
    #[default]
    Auto,
    /// Or the worker does not start.
    Required,
    /// Never.
    Off,
}

/// Whether run records are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryMode {
    /// Where the database lets us; else in memory only.
    #[default]
    Auto,
    /// Or the worker does not start.
    Required,
    /// In memory only.
    Off,
}

/// What the command line says, over everything else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config FILE`; it must exist.
    pub config: Option<PathBuf>,
    /// `--jobs DIR`
    pub jobs: Option<PathBuf>,
    /// `--log-format text|json`
    pub log_format: Option<LogFormat>,
    /// How many `-v`.
    pub verbosity: u8,
}

/// The environment of this process.
#[expect(clippy::disallowed_methods, reason = "the only reader of the environment")]
pub fn process_environment() -> Vec<(String, String)> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect()
}

impl Settings {
    /// All settings, or everything that is wrong with them. A variable that is set to nothing
    /// counts as not set.
    pub fn load(
        overrides: &Overrides,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        match Self::examine(overrides, environment)? {
            (settings, None) => Ok(settings),
            (_, Some(error)) => Err(error),
        }
    }

    /// The same, with the settings also where something is wrong: then they have their defaults in
    /// its place, and are for finding further problems only. An error is a file that cannot be read
    /// at all.
    pub fn examine(
        overrides: &Overrides,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Option<ConfigError>), ConfigError> {
        let (layers, mut problems) = Layers::read(overrides, environment);
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

    /// The built-in defaults, whatever files and variables there are.
    pub fn builtin() -> Self {
        let layers = Layers::default();
        Self::read(&mut Reader::new(&layers), &layers, &Overrides::default())
    }

    fn read(read: &mut Reader<'_>, layers: &Layers, overrides: &Overrides) -> Self {
        Self {
            jobs: layers.jobs(overrides),
            has_file: layers.has_file(),
            log: Log::read(read, layers, overrides),
            replica: layers.host_name(),
            database: Database::read(read),
            cache: Cache::read(read),
            tenants: Tenants::read(read),
            runner: Runner::read(read),
            http: Http::read(read),
            history: History::read(read),
            audit: Audit::read(read),
            changes: Changes::read(read),
        }
    }

    /// What is allowed, and should be known to whoever runs this: one sentence each.
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
                "`database.row_security` is `accept`: a row that a policy hides from the role is missing \
                 from the cache, and nothing tells"
                    .to_owned(),
            ),
        }
        notices
    }

    /// The database's URL, for what cannot work without.
    pub fn database_url(&self) -> Result<&SecretString, ConfigError> {
        self.database.url.as_ref().ok_or_else(|| Problem::no_database().into())
    }

    /// The cache's URL, for what cannot work without.
    pub fn cache_url(&self) -> Result<&SecretString, ConfigError> {
        self.cache.url.as_ref().ok_or_else(|| Problem::no_cache().into())
    }

    /// The URLs of the database and the cache, for what cannot work without both.
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
            // What other crates find worth telling is not what an operator looks for.
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
            "The most connections that preheat opens, for anything",
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
                "The longest time of one query; the server is told and ends it",
            ),
            read_only: read.flag(
                "database.read_only",
                true,
                "Whether the queries of runs may only read; those of `plan`, `check` and audits only \
                 read in any case",
            ),
            row_security: read.choice(
                "database.row_security",
                [("refuse", RowSecurity::Refuse), ("accept", RowSecurity::Accept)],
                "What to do where policies of row-level security apply to the role: `\"refuse\"` lets \
                 the server refuse such a query, which would not see every row; `\"accept\"` is for \
                 policies that show the role every row",
            ),
            time_zone: read.zone(
                "database.time_zone",
                "The time zone that queries compute with; without it that of the role or the \
                 database (`alter role …`, `alter database … set timezone`), or else UTC",
            ),
            pgbouncer: read.flag(
                "database.pgbouncer",
                false,
                "Of no effect any more: every pooler in transaction or session mode may be in \
                 between",
            ),
        }
    }
}

impl Cache {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            url: read.url(
                "cache.url",
                &["redis", "rediss", "redis+unix", "unix"],
                "The cache: `redis://`, `rediss://` (TLS) or `redis+unix://`, with user, password \
                 and database number as needed. `REDIS_URL` is honoured too, and \
                 `UPSTASH_REDIS_URL` where nothing else is set",
                CacheUrl::parse,
            ),
            ca: read.path(
                "cache.ca",
                "A PEM file with the certificates to trust for `rediss://`, in place of the \
                 public ones: those of authorities, or the server's own, which is then taken \
                 whatever name and dates it bears",
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
                "Put before every key, for example a release's id",
                |_any| Ok(()),
            ),
            timeout: read.duration(
                "cache.timeout",
                "5s",
                SECOND / 100..=SECOND * 300,
                "The longest time of one call",
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
                "The active tenants. The first column is the tenant's id; the others are there \
                 for job files. Batches follow the order: tenants whose rows are neighbours on \
                 disk read much faster together",
                |sql| if sql.trim().is_empty() { Err("a query") } else { Ok(()) },
            ),
            column: read.text(
                "tenants.column",
                "tenant_id",
                "The tenant id's name in job queries and key templates",
                column_name,
            ),
            max_shrink: read.share(
                "tenants.max_shrink",
                "50%",
                "A list that shrank by more than this is not trusted to delete anything",
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
                "Batches in flight over all jobs: the bound on database work",
            ),
            batch: read.count("runner.batch", 100, 1..=10_000, "Tenants in one query"),
            drain: read.duration(
                "runner.drain",
                "20s",
                Duration::ZERO..=HOUR,
                "How long a worker that was told to stop finishes what is in flight",
            ),
            max_tenant_bytes: read.size(
                "runner.max_tenant_bytes",
                "16MiB",
                8 << 20..=1 << 30,
                "What the rows of one tenant may take in memory; a tenant with more fails alone. The worker \
                 may need six times as much, beside 32MiB",
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
                "Where HTTP is served; port 0 takes any free one",
            ),
            probes: read.optional_address(
                "http.probes",
                "A second address that answers `/healthz` and `/readyz` alone, with connections of its \
                 own: probes are answered even if clients use up the connections of `listen`",
            ),
            token: read.secret(
                "http.token",
                "What a request that changes something must carry as `Authorization: Bearer …`; \
                 without it all of them are refused, from this machine too",
                |token| {
                    let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
                    if visible { Ok(()) } else { Err("visible ASCII characters without a space") }
                },
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
                "Whether run records are kept in schema `preheat`; `\"auto\"` goes on without \
                 where the role may not create it, `true` refuses to start then",
            ),
            url: read.url(
                "history.url",
                &["postgres", "postgresql"],
                "Another database for run records than `database.url`",
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
                "Tenants of each job in one comparison, chosen by chance each time",
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
                "Whether the worker listens for changes of the jobs' `tables`; `\"auto\"` does as \
                 soon as `preheat changes install` was run, `true` refuses to start without",
            ),
            url: read.url(
                "changes.url",
                &["postgres", "postgresql"],
                "Where to listen, if `database.url` leads through a pooler in transaction mode: the \
                 same database's own address",
                DatabaseUrl::parse,
            ),
        }
    }
}

fn column_name(text: &str) -> Result<(), &'static str> {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let starts = text.bytes().next().is_some_and(letter);
    if starts && text.bytes().all(|byte| letter(byte) || byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err("a column name of letters, digits and `_`")
    }
}

/// Every setting of the file, in order, as it is documented.
pub fn reference() -> Vec<Setting> {
    let layers = Layers::default();
    let mut reader = Reader::new(&layers);
    Settings::read(&mut reader, &layers, &Overrides::default());
    reader.finish().0
}
