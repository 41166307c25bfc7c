//! Settings: layers, and all problems at once.

use std::fmt::Write;
use std::time::Duration;

use preheat::adapter::redis::{FLEET_RIGHTS, RELAY_RIGHTS, RIGHTS};
use preheat::config::{
    FleetShares, HistoryMode, LogFormat, Overrides, RowSecurity, Settings, reference,
};
use preheat::domain::server_url::parameters;
use preheat::domain::share::Shares;
use secrecy::{ExposeSecret, SecretString};

use crate::support::document;

/// Settings from a file and variables, as the command line would read them.
fn load(file: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preheat.toml");
    std::fs::write(&path, file).unwrap();
    let overrides = Overrides { config: Some(path), ..Overrides::default() };
    let folder = format!("{}/", folder.path().display());
    load_with(&overrides, variables).map_err(|problems| problems.replace(&folder, ""))
}

fn load_with(overrides: &Overrides, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let environment = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Settings::load(overrides, environment).map_err(|error| error.to_string())
}

fn secret(value: Option<&SecretString>) -> Option<&str> {
    value.map(ExposeSecret::expose_secret)
}

#[test]
fn without_a_file_and_variables_the_defaults_hold() {
    let settings = load("", &[]).unwrap();
    assert_eq!(settings.jobs.to_str(), Some("jobs"));
    assert_eq!(settings.database.max_connections, 4);
    assert_eq!(settings.database.statement_timeout, Duration::from_secs(30));
    assert!(settings.database.read_only && !settings.database.pgbouncer);
    assert_eq!(settings.database.row_security, RowSecurity::Refuse);
    assert_eq!(settings.database.time_zone, None);
    assert_eq!(settings.cache.timeout, Duration::from_secs(5));
    assert_eq!(settings.tenants.column, "tenant_id");
    assert_eq!(settings.tenants.max_shrink.to_string(), "50%");
    assert_eq!((settings.runner.concurrency.get(), settings.runner.batch.get()), (4, 100));
    assert_eq!(settings.runner.drain, Duration::from_secs(20));
    assert_eq!(settings.http.listen.to_string(), "127.0.0.1:9464");
    assert!(settings.http.token.is_none());
    assert_eq!(settings.http.ready_within, Duration::from_mins(2));
    assert_eq!(settings.history.enabled, HistoryMode::Auto);
    assert_eq!(settings.history.retention, Duration::from_hours(30 * 24));
    assert_eq!(settings.log.format, LogFormat::Text);
    assert_eq!(settings.log.filter, "warn,preheat=info");
}

#[test]
fn each_layer_overrides_the_one_before() {
    let file = "[runner]\nbatch = 50\nconcurrency = 2\n[database]\nurl = \"postgres://file/a\"";
    let settings = load(file, &[]).unwrap();
    assert_eq!((settings.runner.batch.get(), settings.runner.concurrency.get()), (50, 2));
    assert_eq!(secret(settings.database.url.as_ref()), Some("postgres://file/a"));

    let conventional = ("DATABASE_URL", "postgres://conventional/a");
    let settings = load(file, &[("PREHEAT_RUNNER__BATCH", "7"), conventional]).unwrap();
    assert_eq!((settings.runner.batch.get(), settings.runner.concurrency.get()), (7, 2));
    assert_eq!(secret(settings.database.url.as_ref()), Some(conventional.1));

    let own = ("PREHEAT_DATABASE__URL", "postgresql://own/a");
    let settings = load(file, &[own, conventional]).unwrap();
    assert_eq!(secret(settings.database.url.as_ref()), Some(own.1));
}

#[test]
fn flags_go_before_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.toml");
    std::fs::write(&path, "[runner]\nbatch = 3").unwrap();
    let other = path.to_str().unwrap();
    let variables = [
        ("PREHEAT_CONFIG", other),
        ("PREHEAT_JOBS", "definitions"),
        ("PREHEAT_LOG_FORMAT", "json"),
        ("PREHEAT_LOG", "warn"),
        ("RUST_LOG", "trace"),
        ("NO_COLOR", "1"),
        ("HOSTNAME", "worker-7"),
    ];
    let settings = load_with(&Overrides::default(), &variables).unwrap();
    assert_eq!(settings.runner.batch.get(), 3);
    assert_eq!(settings.jobs.to_str(), Some("definitions"));
    assert_eq!((settings.log.format, settings.log.filter.as_str()), (LogFormat::Json, "warn"));
    assert!(!settings.log.colour);
    assert_eq!(settings.replica, "worker-7");

    let flags = Overrides {
        jobs: Some("mine".into()),
        log_format: Some(LogFormat::Text),
        verbosity: 1,
        ..Overrides::default()
    };
    let settings = load_with(&flags, &variables).unwrap();
    assert_eq!(settings.jobs.to_str(), Some("mine"));
    assert_eq!(settings.log.format, LogFormat::Text);
    assert_eq!(settings.log.filter, "warn,preheat=debug");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let overrides =
        Overrides { config: Some("/nowhere/preheat.toml".into()), ..Overrides::default() };
    let problems = load_with(&overrides, &[]).unwrap_err();
    assert!(problems.starts_with("/nowhere/preheat.toml: the settings cannot be read: "));
}

#[test]
fn all_problems_are_told_at_once() {
    let file = r#"
url = "postgres://user:hunter2@host/db"
[database]
ulr = "postgres://user:hunter2@host/db"
max_connections = 0
statement_timeout = 30
read_only = "yes"
[cache]
url = "memcached://:hunter2@host"
concurrency = 4
[tenants]
column = "tenant id"
max_shrink = "150%"
[runer]
batch = 5
[http]
listen = "localhost"
token = 12345
[history]
enabled = "maybe"
retention = "30 fortnights"
"#;
    let variables = [
        ("PREHEAT_RUNNER__BATCH", "many"),
        ("PREHEAT_DATABASE_URL", "postgres://user:hunter2@host/db"),
        ("PREHEAT_RUNNER__BACH", "5"),
        ("PREHEAT_LOG_FORMAT", "xml"),
    ];
    let problems = load(file, &variables).unwrap_err();
    assert!(!problems.contains("hunter2"), "{problems}");
    insta::assert_snapshot!(problems, @r##"
    preheat.toml:2: unknown setting `url`
      hint: did you mean `cache.url`?
    preheat.toml:4: unknown setting `database.ulr`
      hint: did you mean `database.url`?
    preheat.toml:5: setting `database.max_connections`: found `0`; allowed: a whole number from 1 to 1000
    preheat.toml:6: setting `database.statement_timeout`: found `30`; allowed: a duration from `"100ms"` to `"1h"`
      hint: a duration is text with its unit, as in `"30s"`
    preheat.toml:7: setting `database.read_only`: found `"yes"`; allowed: `true` or `false`
    preheat.toml:9: setting `cache.url`: found `memcached://…`; allowed: a URL with `redis://` or `rediss://` or `redis+unix://` or `unix://` or `redis+cluster://` or `rediss+cluster://` or `redis+sentinel://` or `rediss+sentinel://`
    preheat.toml:10: unknown setting `cache.concurrency`
      hint: did you mean `runner.concurrency`?
    preheat.toml:12: setting `tenants.column`: found `"tenant id"`; allowed: a column name of letters, digits and `_`
    preheat.toml:13: setting `tenants.max_shrink`: found `"150%"`; allowed: a share from `"0%"` to `"100%"`
    preheat.toml:14: unknown setting `runer`
      hint: did you mean `[runner]`?
    preheat.toml:17: setting `http.listen`: found `"localhost"`; allowed: an IP address with a port
      hint: as in `"127.0.0.1:9464"`, or `"0.0.0.0:9464"` for all
    preheat.toml:18: setting `http.token` is not valid; allowed: visible ASCII characters without a space
    preheat.toml:20: setting `history.enabled`: found `"maybe"`; allowed: `"auto"` or `true` or `false`
    preheat.toml:21: setting `history.retention`: found `"30 fortnights"`; allowed: a duration from `"1h"` to `"3660d"`
      hint: a duration is a number and a unit, as in `90s`, `10m` or `1h30m`
    variable `PREHEAT_DATABASE_URL`: unknown setting
      hint: did you mean `PREHEAT_DATABASE__URL`?
    variable `PREHEAT_LOG_FORMAT`: found `xml`; allowed: `text` or `json`
    variable `PREHEAT_RUNNER__BACH`: unknown setting
      hint: did you mean `PREHEAT_RUNNER__BATCH`?
    variable `PREHEAT_RUNNER__BATCH`: setting `runner.batch`: found `many`; allowed: a whole number from 1 to 10000
    "##);
}

#[test]
fn a_section_that_is_no_table_and_a_setting_that_is_one_are_told_apart() {
    let problems = load("database = 5\n[http.listen]\nport = 5\n[runner]\nbatch = -1", &[]);
    insta::assert_snapshot!(problems.unwrap_err(), @r##"
    preheat.toml:1: unknown setting `database`
      hint: write it as a table: `[database]`
    preheat.toml:2: setting `http.listen`: found a table; allowed: an IP address with a port
      hint: as in `"127.0.0.1:9464"`, or `"0.0.0.0:9464"` for all
    preheat.toml:5: setting `runner.batch`: found `-1`; allowed: a whole number from 1 to 10000
    "##);
}

#[test]
fn a_file_that_is_no_toml_is_told_by_its_lines_and_without_their_text() {
    let problems = load("[database]\nurl = postgres://user:hunter2@host/db\n", &[]).unwrap_err();
    assert!(problems.starts_with("preheat.toml:2: cannot be read as TOML: "), "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn variables_are_text_so_a_password_of_digits_is_one() {
    let variables = [
        ("PREHEAT_HTTP__TOKEN", "0123456789"),
        ("PREHEAT_CACHE__PREFIX", "20240101"),
        ("PREHEAT_DATABASE__READ_ONLY", "false"),
        ("PREHEAT_HISTORY__ENABLED", "true"),
        ("PREHEAT_TENANTS__MAX_SHRINK", "12.5%"),
    ];
    let settings = load("", &variables).unwrap();
    assert_eq!(secret(settings.http.token.as_ref()), Some("0123456789"));
    assert_eq!(settings.cache.prefix, "20240101");
    assert!(!settings.database.read_only);
    assert_eq!(settings.history.enabled, HistoryMode::Required);
    assert_eq!(settings.tenants.max_shrink.to_string(), "12.5%");
}

#[test]
fn history_is_auto_or_a_flag() {
    for (file, mode) in [
        ("enabled = \"auto\"", HistoryMode::Auto),
        ("enabled = true", HistoryMode::Required),
        ("enabled = false", HistoryMode::Off),
    ] {
        assert_eq!(load(&format!("[history]\n{file}"), &[]).unwrap().history.enabled, mode);
    }
}

#[test]
fn a_variable_that_is_set_to_nothing_counts_as_not_set() {
    let file = "[cache]\nurl = \"redis://file\"\n[http]\ntoken = \"\"";
    let settings = load(file, &[("REDIS_URL", ""), ("PREHEAT_RUNNER__BATCH", "")]).unwrap();
    assert_eq!(secret(settings.cache.url.as_ref()), Some("redis://file"));
    assert_eq!(settings.runner.batch.get(), 100);
    assert!(settings.http.token.is_none(), "an empty token would let everybody in");
}

#[test]
fn what_kubernetes_sets_beside_a_service_named_preheat_is_nobodys_mistake() {
    let variables = [
        ("PREHEAT_PORT", "tcp://10.0.0.7:9464"),
        ("PREHEAT_SERVICE_HOST", "10.0.0.7"),
        ("PREHEAT_SERVICE_PORT_HTTP", "9464"),
        ("PREHEAT_PORT_9464_TCP_ADDR", "10.0.0.7"),
        ("PREHEAT_METRICS_SERVICE_HOST", "10.0.0.8"),
    ];
    load("", &variables).unwrap();
}

#[test]
fn a_missing_url_is_told_only_by_what_needs_it() {
    let settings = load("", &[]).unwrap();
    insta::assert_snapshot!(settings.servers().unwrap_err(), @r##"
    setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`
    "##);
    let settings = load("", &[("DATABASE_URL", "postgres://a/b")]).unwrap();
    settings.database_url().unwrap();
    assert!(settings.cache_url().unwrap_err().to_string().contains("`cache.url` is missing"));
}

#[test]
fn hazard_32_a_secret_is_never_shown() {
    let variables = [
        ("DATABASE_URL", "postgres://user:hunter2@host/db"),
        ("REDIS_URL", "redis://:hunter2@host"),
        ("PREHEAT_HISTORY__URL", "postgres://user:hunter2@host/history"),
        ("PREHEAT_HTTP__TOKEN", "hunter2"),
        ("PREHEAT_HTTP__READ_TOKEN", "hunter2-to-look"),
        ("PREHEAT_CHANGES__URL", "postgres://user:hunter2@host/changes"),
    ];
    let settings = load("", &variables).unwrap();
    assert!(!format!("{settings:?} {settings:#?}").contains("hunter2"));
    let bad = [("DATABASE_URL", "postgres://user:hunter2@ho st/db"), ("REDIS_URL", "hunter2")];
    let problems = load("[http]\ntoken = \"hunter2 \"", &bad).unwrap_err();
    assert_eq!(problems.matches("setting `").count(), 3, "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

/// The problem of a database's URL; empty if there is none.
fn database(url: &str) -> String {
    load("", &[("DATABASE_URL", url)]).err().unwrap_or_default()
}

/// The problem of a cache's URL; empty if there is none.
fn cache(url: &str) -> String {
    load("", &[("REDIS_URL", url)]).err().unwrap_or_default()
}

#[test]
fn the_urls_that_services_and_libraries_hand_out_are_taken() {
    let urls = [
        // Supabase: directly, through its pooler, and with the parameters that its integrations
        // add.
        "postgresql://postgres:pass%40word@db.abcdefghijkl.supabase.co:5432/postgres",
        "postgresql://postgres.abcdefghijkl:pass@aws-0-eu-central-1.pooler.supabase.com:6543/postgres?pgbouncer=true&connection_limit=1",
        "postgres://postgres.abc:pass@aws-0-us-east-1.pooler.supabase.com:6543/postgres?sslmode=require&supa=base-pooler.x",
        // Neon: directly, through its pooler, and for clients that send no host name with TLS.
        "postgresql://app:pass@ep-cool-rain-123456.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require",
        "postgresql://app:pass@ep-cool-rain-123456-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require&options=endpoint%3Dep-cool-rain-123456",
        // Heroku, RDS, Azure, DigitalOcean, Render, Fly, Railway, Aiven, Cloud SQL.
        "postgres://user:pass@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?sslmode=no-verify",
        "postgres://app:pass@mydb.c9akciq32.eu-central-1.rds.amazonaws.com:5432/shop?sslmode=verify-full&sslrootcert=/certs/global-bundle.pem",
        "postgres://app%40server:pass@server.postgres.database.azure.com/shop?sslmode=require",
        "postgresql://doadmin:pass@db-postgresql-fra1-1-do-user-1-0.b.db.ondigitalocean.com:25060/defaultdb?sslmode=require",
        "postgresql://app:pass@dpg-abc-a.frankfurt-postgres.render.com/shop_x",
        "postgres://postgres:pass@my-db.flycast:5432/app?sslmode=disable",
        "postgres://postgres:pass@my-db.internal:5432",
        "postgresql://postgres:pass@postgres.railway.internal:5432/railway",
        "postgres://avnadmin:pass@pg-1.aivencloud.com:12345/defaultdb?sslmode=require",
        "postgres://app:pass@/shop?host=/cloudsql/project:region:instance",
        // Prisma, node-postgres, SQLAlchemy, Rails, JDBC, libpq.
        "postgresql://app:pass@localhost:5432/shop?schema=public&connect_timeout=10&statement_cache_size=0&sslaccept=strict",
        "postgres://app:pass@db/shop?ssl=true&application_name=shop&uselibpqcompat=true",
        "postgresql+psycopg://app:pass@db/shop",
        "postgresql+asyncpg://app:pass@db/shop?ssl=require&prepared_statement_cache_size=0",
        "postgresql+psycopg2://app:pass@/shop?host=a:5432&host=b:5433",
        "postgresql://db/shop?encoding=unicode&prepared_statements=false",
        "jdbc:postgresql://a:5432,b:5433/shop?user=app&password=pass&currentSchema=app,public&targetServerType=primary&ApplicationName=x&ssl=true",
        "postgresql://a,b,[::1]:5433/shop?port=5432,5433,5434&target_session_attrs=read-write&sslrootcert=system",
        "postgres:///shop",
        "postgres://%2Frun%2Fpostgresql/shop",
        "  postgres://app:pass@db/shop?options=-c%20work_mem%3D64MB%20-c%20search_path%3Dapp \n",
    ];
    for url in urls {
        assert_eq!(database(url), "", "{url}");
    }
    let urls = [
        "rediss://default:pass@eu1-cool-cat-12345.upstash.io:6379",
        "rediss://:pass@ec2-1-2-3-4.compute-1.amazonaws.com:6380",
        "redis://default:pass@redis.railway.internal:6379?family=0",
        "redis://master.cache.abc.euc1.cache.amazonaws.com:6379/2?protocol=resp3",
        " redis://[::1]:6379 ",
        "redis+unix:///run/redis.sock?db=2&user=u&pass=p",
        "redis+cluster://h1,h2:7001,[::1]:7002",
        "rediss+cluster://user:p%40ss@clustercfg.cache.amazonaws.com:6379/0?protocol=resp3",
        "redis+sentinel://:pass@h1,h2:26380,h3/main?db=2",
        "rediss+sentinel://h1/main%20one/2",
        "redis+sentinel://:pass@h1,h2/main?sentinel_user=watch&sentinel_pass=p%40ss",
    ];
    for url in urls {
        assert_eq!(cache(url), "", "{url}");
    }
}

#[test]
fn all_that_a_url_has_and_cannot_be_honoured_is_told_at_once() {
    insta::assert_snapshot!(database(
        "postgres://db/shop?pool_timeout=20&keepalives=1&sslmode=on&sslmod=require&sslpassword=hunter2\
         &statement_timeout=5000&mystery=hunter2&client_encoding=latin1&connect_timeout=0&hunter2"
    ), @r##"
    variable `DATABASE_URL`: setting `database.url`: a parameter has no value
      hint: write it as `name=value`, and a `&` within a value as `%26`
    variable `DATABASE_URL`: setting `database.url`: parameter `pool_timeout` is not supported
      hint: leave it out: a batch waits for one of preheat's connections as long as its job's `timeout`
    variable `DATABASE_URL`: setting `database.url`: parameter `keepalives` is not supported
      hint: leave it out: each query and each connection attempt has a time limit of its own, after which the connection is given up; the driver does not set options of the socket
    variable `DATABASE_URL`: setting `database.url`: parameter `sslmode` cannot be honoured
      hint: it is `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`
    variable `DATABASE_URL`: setting `database.url`: parameter `sslmod` is unknown
      hint: did you mean `sslmode`?
    variable `DATABASE_URL`: setting `database.url`: parameter `sslpassword` is not supported
      hint: name a key without a passphrase as `sslkey`
    variable `DATABASE_URL`: setting `database.url`: parameter `statement_timeout` is not supported
      hint: leave it out, and set `[database] statement_timeout` or a job's `timeout`
    variable `DATABASE_URL`: setting `database.url`: parameter `mystery` is unknown
      hint: leave it out: preheat does not know what it means
    variable `DATABASE_URL`: setting `database.url`: parameter `client_encoding` cannot be honoured
      hint: it can be `UTF8`, `utf8`, `UTF-8`, `utf-8`, `auto` or `unicode` only: text is always UTF-8
    variable `DATABASE_URL`: setting `database.url`: parameter `connect_timeout` cannot be honoured
      hint: it is a number of seconds from 1 to 300: no wait is endless
    "##);
}

/// URLs, the problem of each, and the hint.
const DATABASES: [(&str, &str, &str); 24] = [
    (
        "postgres://db/shop?sslmode=verfy-full",
        "parameter `sslmode` cannot be honoured",
        "did you mean `verify-full`?",
    ),
    (
        "postgres://db/shop?ssl_mode=require",
        "parameter `ssl_mode` is unknown",
        "did you mean `sslmode`?",
    ),
    (
        "postgres://db/shop?sslrootcert=/ca.pem",
        "parameter `sslrootcert` has no effect",
        "write `sslmode=verify-full` or `sslmode=verify-ca` beside it; otherwise no certificate is compared with it",
    ),
    (
        "postgres://db/shop?sslmode=require&sslrootcert=system",
        "parameter `sslrootcert=system` needs `sslmode=verify-full`",
        "write `sslmode=verify-full` beside it, or leave `sslmode` out",
    ),
    (
        "postgres://db/shop?sslmode=disable&channel_binding=require",
        "parameter `channel_binding=require` beside `sslmode=disable`",
        "it needs TLS: leave one of the two out",
    ),
    (
        "postgres://db/shop?sslcert=/c.pem",
        "parameter `sslcert` without `sslkey`",
        "`sslcert` is our own certificate and needs its `sslkey`; the authority that signs for the server, which is Prisma's `sslcert`, is `sslrootcert`",
    ),
    (
        "postgres://db/shop?sslmode=require&sslmode=disable",
        "parameter `sslmode` is there twice",
        "write it once",
    ),
    (
        "postgres://a,b/shop?port=1,2,3",
        "there are more or fewer ports than hosts",
        "write one port for each host, or one for all",
    ),
    (
        "postgres://db/shop?target_session_attrs=writer",
        "parameter `target_session_attrs` cannot be honoured",
        "it is `any`, `read-write`, `read-only`, `primary`, `standby` or `prefer-standby`",
    ),
    (
        "postgres://db/shop?sslmode=verify-full&hostaddr=10.0.0.7",
        "parameter `hostaddr` beside `sslmode=verify-full`",
        "the certificate is compared with the host that is connected to; leave `hostaddr` out, and let the host's name lead there",
    ),
    (
        "postgres://db/shop?options=-c%20statement_timeout%3D1",
        "parameter `options` cannot be honoured",
        "leave `statement_timeout` out of it: see `[database] statement_timeout`",
    ),
    (
        "postgres://db/shop?options=-c%20lock_timeout%3D1",
        "parameter `options` cannot be honoured",
        "leave `lock_timeout` out of it: preheat sets it itself",
    ),
    (
        "postgres://db/shop?options=-d5",
        "parameter `options` cannot be honoured",
        "it is `-c name=value`, as often as needed",
    ),
    (
        "postgres://aws-0.pooler.supabase.com/shop?options=reference%3Dabc",
        "parameter `options` cannot be honoured",
        "write the user with the project, as in `postgres.REFERENCE`",
    ),
    (
        "postgres://other.neon.tech/shop?options=endpoint%3Dep-cool",
        "parameter `options` names another endpoint than the host",
        "the endpoint is the first part of the host's name, which is sent with TLS: leave `options` out, and connect to that host",
    ),
    (
        "postgres://db/shop?search_path=app,,public",
        "parameter `search_path` cannot be honoured",
        "it is names of schemas with commas, as in `app,public`",
    ),
    (
        "postgres://db/shop?load_balance_hosts=random",
        "parameter `load_balance_hosts` cannot be honoured",
        "it can be `disable` or `false` only: hosts are tried in the order in which they are written",
    ),
    ("postgres://u:p#ss@db/shop", "is not valid", "a `#` is written `%23`"),
    (
        "postgres://u:p/ss@db/shop",
        "is not valid",
        "a port is a number from 1 to 65535; characters such as `@`, `:`, `/`, `?` and `#` in a user or password are written with per cent signs, as in `%40`",
    ),
    (
        "postgres://u@::1/shop",
        "is not valid",
        "an IPv6 address stands in brackets, as in `[::1]:5432`; characters such as `@`, `:`, `/`, `?` and `#` in a user or password are written with per cent signs, as in `%40`",
    ),
    (
        "postgres://u:p@h:0/shop",
        "is not valid",
        "a port is a number from 1 to 65535; characters such as `@`, `:`, `/`, `?` and `#` in a user or password are written with per cent signs, as in `%40`",
    ),
    (
        "prisma://accelerate.prisma-data.net/?api_key=hunter2",
        "found `prisma://…`",
        "that is an address of Prisma's proxy; take the one of the database itself",
    ),
    ("postgis://db/shop", "found `postgis://…`", "write the same with `postgres://`"),
    (
        "host=db dbname=shop password=hunter2",
        "is not valid",
        "a URL begins with its scheme and `://`",
    ),
];

/// URLs, the problem of each, and the hint.
const CACHES: [(&str, &str, &str); 18] = [
    (
        "redis://db/0?ssl_cert_reqs=none",
        "parameter `ssl_cert_reqs` is not supported",
        "leave it out; `[cache] verify = false` is for a server whose certificate cannot be verified",
    ),
    (
        "rediss://db/0#insecure",
        "`#insecure` is not supported",
        "leave it out, and set `[cache] verify = false`",
    ),
    (
        "redis://db/0?ssl=true",
        "parameter `ssl` is not supported",
        "leave it out, and write `rediss://` for TLS",
    ),
    ("redis://db/two", "is not valid", "the database is a number, as in `redis://host:6379/2`"),
    ("redis:///2", "is not valid", "name the host, as in `redis://host:6379`"),
    (
        "redis://h1,h2/2",
        "is not valid",
        "several hosts are the nodes of a Redis Cluster, `redis+cluster://h1,h2,h3`, or Sentinels, `redis+sentinel://h1,h2,h3/service`",
    ),
    ("redis+cluster://h1,,h3", "is not valid", "name the host, as in `redis://host:6379`"),
    (
        "redis+cluster://h1,h2/2",
        "the database cannot be chosen",
        "leave the number out: a Redis Cluster has only database 0",
    ),
    (
        "rediss+cluster://h1?db=1",
        "the database cannot be chosen",
        "leave the number out: a Redis Cluster has only database 0",
    ),
    (
        "redis://h1?sentinel_pass=hush",
        "parameter `sentinel_pass` is not supported",
        "leave it out: it is for a URL with `redis+sentinel://`",
    ),
    (
        "redis+sentinel://h1/main?sentinelPassword=hush",
        "parameter `sentinelPassword` is not supported",
        "write `sentinel_user` and `sentinel_pass`",
    ),
    (
        "redis+sentinel://h1,h2",
        "is not valid",
        "name the service that the Sentinels watch, as in `redis+sentinel://h1,h2,h3/service`",
    ),
    (
        "redis+sentinel://h1/main/two",
        "is not valid",
        "the database is a number, as in `redis://host:6379/2`",
    ),
    ("unix://", "is not valid", "name the socket, as in `redis+unix:///run/redis.sock`"),
    ("unix:///run/redis.sock?db=two", "is not valid", "the database is a number: `?db=2`"),
    (
        "redis://db?protocol=4",
        "parameter `protocol` cannot be honoured",
        "it is `resp2` or `resp3`",
    ),
    ("redis://db?dbb=4", "parameter `dbb` is unknown", "did you mean `db`?"),
    (
        "https://eu1-cool-cat-12345.upstash.io",
        "found `https://…`",
        "that is the address of a REST API; the same server speaks Redis' protocol at `rediss://default:TOKEN@eu1-cool-cat-12345.upstash.io:6379`, with the token as the password",
    ),
];

#[test]
fn every_other_parameter_of_a_url_is_refused_by_name_with_what_to_write() {
    let databases = DATABASES.map(|(url, what, hint)| (url, database(url), what, hint));
    let caches = CACHES.map(|(url, what, hint)| (url, cache(url), what, hint));
    for (url, told, what, expected) in databases.into_iter().chain(caches) {
        let (message, hint) =
            told.split_once("\n  hint: ").unwrap_or_else(|| panic!("{url}: {told}"));
        assert_eq!(hint, expected, "{url}");
        assert!(message.contains(what), "{url}: {message}");
        assert!(!told.contains("hunter2") && !told.contains("ss@"), "{told}");
    }
}

#[test]
fn the_urls_of_the_history_and_of_the_feed_are_read_like_that_of_the_database() {
    for variable in ["PREHEAT_DATABASE__URL", "PREHEAT_HISTORY__URL", "PREHEAT_CHANGES__URL"] {
        load("", &[(variable, "postgres://a,[::1]:1/shop?schema=app&sslmode=no-verify")]).unwrap();
        let told = load("", &[(variable, "postgres://db/shop?keepalives=1")]).unwrap_err();
        assert!(told.contains("parameter `keepalives` is not supported"), "{told}");
        assert!(told.contains(variable) && told.contains("hint: "), "{told}");
    }
}

#[test]
fn a_connection_limit_in_the_url_bounds_the_connections_and_never_raises_them() {
    for (limit, most) in [(2, 2), (9, 4)] {
        let url = format!("postgres://db/shop?connection_limit={limit}");
        let settings = load("", &[("DATABASE_URL", &url)]).unwrap();
        assert_eq!(settings.database.max_connections, most);
    }
}

#[test]
fn upstashs_variable_is_taken_where_nothing_else_names_the_cache() {
    let upstash = ("UPSTASH_REDIS_URL", "rediss://default:t@cat.upstash.io:6379");
    let rest = ("UPSTASH_REDIS_REST_URL", "https://cat.upstash.io");
    let url = |file: &str, variables: &[(&str, &str)]| {
        let settings = load(file, variables).unwrap();
        secret(settings.cache.url.as_ref()).unwrap().to_owned()
    };
    assert_eq!(url("", &[upstash]), upstash.1);
    assert_eq!(url("", &[upstash, rest]), upstash.1);
    assert_eq!(url("", &[upstash, ("REDIS_URL", "redis://own")]), "redis://own");
    assert_eq!(url("", &[rest, ("PREHEAT_CACHE__URL", "redis://own")]), "redis://own");
    assert_eq!(url("[cache]\nurl = \"redis://file\"", &[upstash, rest]), "redis://file");

    let address = "https://default:hunter2@cat.upstash.io";
    for variable in ["UPSTASH_REDIS_URL", "UPSTASH_REDIS_REST_URL", "REDIS_URL"] {
        let token = ("UPSTASH_REDIS_TOKEN", "hunter2");
        let told = load("", &[(variable, address), token]).unwrap_err();
        assert!(told.contains(&format!("variable `{variable}`")), "{told}");
        assert!(told.contains("`rediss://default:TOKEN@cat.upstash.io:6379`"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[test]
fn a_cache_that_is_not_verified_is_noticed() {
    assert_eq!(load("", &[]).unwrap().notices(), Vec::<String>::new());
    let notices = load("[cache]\nverify = false", &[]).unwrap().notices();
    assert!(notices[0].contains("`cache.verify` is false"), "{notices:?}");
}

#[test]
fn replicas_share_the_tenants_in_one_of_two_ways() {
    let fleet = |file: &str| load(&format!("[fleet]\n{file}"), &[]).map(|settings| settings.fleet);
    assert_eq!(load("", &[]).unwrap().fleet.shares, FleetShares::All);
    let leased = fleet("enabled = true\ndatabase_connections = 12").unwrap();
    assert_eq!(leased.shares, FleetShares::Leased);
    assert_eq!(leased.database_connections, Some(12));
    let part = Shares::part(2, 5).unwrap();
    assert_eq!(fleet("share = \"2/5\"").unwrap().shares, FleetShares::Fixed(part));
    let variable = load("", &[("PREHEAT_FLEET__SHARE", "2/5")]).unwrap();
    assert_eq!(variable.fleet.shares, FleetShares::Fixed(part));
    let wrong = [
        "share = \"5/5\"",
        "share = \"2\"",
        "share = \"0/65\"",
        "share = \"2/5\"\nenabled = true",
        "database_connections = 12",
        "enabled = true\ndatabase_connections = 1",
        "enabled = true\ndatabase_connections = 12\n[database]\nmax_connections = 1",
    ];
    insta::assert_snapshot!(wrong.map(|file| fleet(file).unwrap_err()).join("\n"));
}

#[test]
fn docs_settings_are_those_of_the_code() {
    let mut page = SETTINGS_INTRODUCTION.to_owned();
    let mut section = "";
    for setting in reference() {
        let (within, name) = setting.key.split_once('.').unwrap();
        if within != section {
            section = within;
            let head = "| setting | default | what | allowed |\n| --- | --- | --- | --- |";
            writeln!(page, "\n## `[{section}]`\n\n{head}").unwrap();
        }
        let default = setting.default.as_ref().map_or("–".to_owned(), |text| format!("`{text}`"));
        let row = [format!("`{name}`"), default, format!("{}.", setting.help), setting.allowed];
        writeln!(page, "| {} |", row.join(" | ")).unwrap();
    }
    page += PARAMETERS_INTRODUCTION;
    for note in parameters() {
        let names: Vec<_> = note.names.iter().map(|name| format!("`{name}`")).collect();
        let is_taken = if note.is_taken { "" } else { "**Refused**: " };
        writeln!(page, "| {} | {is_taken}{}. |", names.join(", "), note.note).unwrap();
    }
    let of_fleet = format!("{FLEET_RIGHTS} {RELAY_RIGHTS}");
    page += &CACHE_URL.replace("FLEET_RIGHTS", &of_fleet).replace("RIGHTS", RIGHTS);
    document::compare("docs/settings.md", &page);
}

const PARAMETERS_INTRODUCTION: &str = "
## The URL of a database

`postgres://user:password@host:5432/name?parameter=value`, for `database.url`, `history.url` and `changes.url` alike. Blanks around it
are left out. `postgresql://` is the same, as are SQLAlchemy's `postgresql+psycopg://` and JDBC's `jdbc:postgresql://`. An IPv6 address
stands in brackets: `[::1]:5432`. Several hosts are written with commas, `a:5432,b:5433`, and tried in order, again after each lost
connection. What is special in a password is written with per cent signs, as in `%40` for `@`.

Each parameter is honoured or refused: no parameter is passed over, and no value of one is ever logged.

| parameter | what it does |
| --- | --- |
";

const CACHE_URL: &str = "
## The URL of a cache

`redis://user:password@host:6379/2`, or `rediss://` for TLS; `redis+unix:///run/redis.sock?db=2&user=u&pass=p` for a socket;
`redis+cluster://user:password@h1,h2:7001,h3` for a Redis Cluster, `rediss+cluster://` for one with TLS: [`cluster.md`](cluster.md). Without
a user the password is that of `default`. Of parameters `db` and `protocol` (`resp2` or `resp3`) are honoured, and others are refused
by name. An IPv6 address stands in brackets: `redis://[::1]:6379`. The address of a REST API (`https://…upstash.io`) is refused with
the `rediss://` URL to write.

`redis+sentinel://user:password@h1,h2:26380,h3/service` names Sentinels and the service that they watch; preheat finds the primary
through them. The login is that of the primary; that of the Sentinels, if they have one, is `?sentinel_user=u&sentinel_pass=p`. `?db=2`
or `/service/2` is the database. `rediss+sentinel://` uses TLS to the Sentinels and to the primary: [`sentinel.md`](sentinel.md).

The certificate of a `rediss://` server is compared with the public authorities, or with `cache.ca`: either an authority signed it for
the host's name, or it is one of those in the file, whatever name and dates it bears. `cache.verify = false` takes any certificate, and
each command warns of it.

The rights that suffice for a user, after `ACL SETUSER preheat on >PASSWORD`. Add a `~…` for the keys of each job: with the shipped
jobs `~services:* ~products:* ~staff:* ~slots:* ~pet:* ~content:*`. With a `cache.prefix` every key begins with it, preheat's own too:
with `prefix = \"r1:\"`, `~r1:preheat:* ~r1:services:*` and so on. `preheat check` does not try these rights; the first `warm` does.

```
RIGHTS
```

`select` is needed where the URL has a database's number. With `fleet.enabled`, the user also needs `FLEET_RIGHTS`. From Redis 7.2 on `+client|setinfo` shows the client's name to the
server; a server that refuses it is used all the same.
";

const SETTINGS_INTRODUCTION: &str = "\
# Settings

Made from the code; `PREHEAT_BLESS=1 cargo test --test it docs_` writes this page anew.

Five layers, each overriding the one before: the defaults below, then `preheat.toml`, then `.env`, then the
environment, then flags. preheat reports all problems of all layers at once, each with its file and line or
its variable.

- `preheat.toml` in the working directory is read if it is there; `--config FILE` or
  `PREHEAT_CONFIG` names another one, which must exist. Paths in it are relative to the working
  directory.
- A setting's variable is `PREHEAT_SECTION__KEY` with two underscores, as in
  `PREHEAT_DATABASE__MAX_CONNECTIONS=8`. `DATABASE_URL` and `REDIS_URL` are honoured as the
  conventional names; `PREHEAT_DATABASE__URL` and `PREHEAT_CACHE__URL` go before them. `UPSTASH_REDIS_URL` is taken
  where neither a file nor another variable names the cache.
- A file `.env` in the working directory is read if it is there: [`authoring.md`](authoring.md#where-the-servers-are-env).
- In a variable, a list has commas and neither brackets nor quotes: `PREHEAT_HTTP__TRUSTED_PROXIES=10.0.0.0/8,127.0.0.1`.
- A variable that is set to nothing counts as not set. A `PREHEAT_…` variable that names no setting is
  an error, but for those that Kubernetes sets beside a service named `preheat`.
- A password or a token is never shown: not in a log, an error, a metric or a page.

| variable | flag | default | what |
| --- | --- | --- | --- |
| `PREHEAT_CONFIG` | `--config` | `preheat.toml` | The file of settings. |
| `PREHEAT_JOBS` | `--jobs` | `jobs` | The folder of job files. |
| `PREHEAT_DOTENV` | | `true` | Whether a `.env` file is read. |
| `PREHEAT_LOG_FORMAT` | `--log-format` | `text` | The form of log lines: `text` or `json`. |
| `PREHEAT_LOG`, then `RUST_LOG` | `-v`, `-vv` | `warn,preheat=info` | Which lines are logged, as in `debug` or `info,preheat=debug`. |
| `NO_COLOR` | | | Anything in it: no colours, not even on a terminal. |
| `HOSTNAME` | | `/etc/hostname` | The name of this worker in run records. |
";
