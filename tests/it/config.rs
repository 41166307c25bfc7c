//! Settings: layers, and everything that can be wrong with them at once.

use std::fmt::Write;
use std::time::Duration;

use preheat::config::{
    HistoryMode, LogFormat, Overrides, RowSecurity, Settings, redacted, reference,
};
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
    preheat.toml:9: setting `cache.url`: found `memcached://…`; allowed: a URL with `redis://` or `rediss://` or `redis+unix://` or `unix://`
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
      hint: unknown time unit "fortnights", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)
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
    ];
    let settings = load("", &variables).unwrap();
    assert!(!format!("{settings:?} {settings:#?}").contains("hunter2"));
    let bad = [("DATABASE_URL", "postgres://user:hunter2@ho st/db"), ("REDIS_URL", "hunter2")];
    let problems = load("[http]\ntoken = \"hunter2 \"", &bad).unwrap_err();
    assert_eq!(problems.matches("setting `").count(), 3, "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn hazard_32_a_url_is_shown_without_its_password() {
    let cases = [
        ("postgres://app:hunter2@db:5433/shop", "postgres://app:***@db:5433/shop"),
        ("postgres://db/shop", "postgres://db/shop"),
        (
            "postgres://db/shop?user=app&password=hunter2&sslmode=require",
            "postgres://db/shop?user=app&password=***&sslmode=require",
        ),
        ("rediss://default:hunter2@cache:6380/1", "rediss://default:***@cache:6380/1"),
        (
            "redis+unix:///run/redis.sock?db=1&pass=hunter2",
            "redis+unix:///run/redis.sock?db=1&pass=***",
        ),
        (
            "postgres:///shop?host=/tmp&sslpassword=hunter2",
            "postgres:///shop?host=%2Ftmp&sslpassword=***",
        ),
        ("no url: hunter2", "(a URL that cannot be read)"),
    ];
    for (url, shown) in cases {
        assert_eq!(redacted(&SecretString::from(url)), shown);
    }
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
    document::compare("docs/settings.md", &page);
}

const SETTINGS_INTRODUCTION: &str = "\
# Settings

Made from the code; `PREHEAT_BLESS=1 cargo test --test it docs_` writes this page anew.

Four layers, each overriding the one before: the defaults below, then `preheat.toml`, then the
environment, then flags. All problems of all layers are told at once, each with its file and line or
its variable.

- `preheat.toml` in the working directory is read if it is there; `--config FILE` or
  `PREHEAT_CONFIG` names another one, which must exist. Paths in it are relative to the working
  directory.
- A setting's variable is `PREHEAT_SECTION__KEY` with two underscores, as in
  `PREHEAT_DATABASE__MAX_CONNECTIONS=8`. `DATABASE_URL` and `REDIS_URL` are honoured as the
  conventional names; `PREHEAT_DATABASE__URL` and `PREHEAT_CACHE__URL` go before them.
- A variable that is set to nothing counts as not set. A `PREHEAT_…` variable that names no setting is
  an error, but for those that Kubernetes sets beside a service named `preheat`.
- A password or a token is never shown: not in a log, an error, a metric or a page.

| variable | flag | default | what |
| --- | --- | --- | --- |
| `PREHEAT_CONFIG` | `--config` | `preheat.toml` | The file of settings. |
| `PREHEAT_JOBS` | `--jobs` | `jobs` | The folder of job files. |
| `PREHEAT_LOG_FORMAT` | `--log-format` | `text` | The form of log lines: `text` or `json`. |
| `PREHEAT_LOG`, then `RUST_LOG` | `-v`, `-vv` | `warn,preheat=info` | Which lines are logged, as in `debug` or `info,preheat=debug`. |
| `NO_COLOR` | | | Anything in it: no colours, not even on a terminal. |
| `HOSTNAME` | | `/etc/hostname` | The name of this worker in run records. |
";
