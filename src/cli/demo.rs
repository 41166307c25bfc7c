//! `preheat demo`: the whole of preheat on a sample clinic, with private, throw-away servers.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::MultiProgress;
use preheat_sandbox::{Clinic, Options as SandboxOptions, Sandbox};
use redis::AsyncCommands;
use secrecy::SecretString;
use tokio::sync::Notify;

use super::bars::{Bars, Said};
use super::output::{self, counted};
use super::signal::StopSignals;
use super::warm::Pass;
use super::{Exit, Failure, Global};
use crate::adapter::postgres::{Security, Wanted, install};
use crate::app::{self, App, Orders, job_defaults};
use crate::config::{Origin, Settings};
use crate::definition::{self, JobFiles, JobText};
use crate::domain::change::change_sources;
use crate::domain::job::Job;
use crate::domain::run::RunRecord;
use crate::engine::run::Stops;

/// The shipped jobs, so that the demo works in any folder.
const SHIPPED: [(&str, &str); 6] = [
    ("content.toml", include_str!("../../jobs/content.toml")),
    ("pets.toml", include_str!("../../jobs/pets.toml")),
    ("products.toml", include_str!("../../jobs/products.toml")),
    ("services.toml", include_str!("../../jobs/services.toml")),
    ("slots.toml", include_str!("../../jobs/slots.toml")),
    ("staff.toml", include_str!("../../jobs/staff.toml")),
];

/// Which values are shown: for each of these, the first key that begins with it.
const EXAMPLES: [&str; 3] = ["services:", "products:", "slots:"];
/// The clinic's database in the sandbox.
const DATABASE: &str = "clinic";
/// Not a secret: the server that it opens ends with the demo.
const TOKEN: &str = "demo";
/// When the startup runs have ended. Their log lines push the suggestions off a small terminal, so the demo
/// prints these once more.
const FIRST_RUNS: Duration = Duration::from_secs(5);
/// How much of an example's value is shown.
const HEAD: usize = 160;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// End after the first pass
    #[arg(long)]
    once: bool,
    /// How many tenants the clinic has
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tenants: u32,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let mut settings = global.settings(&bars)?;
    if !options.once {
        settings.http.listen = free_address(settings.http.listen)?;
    }
    let mut signals = StopSignals::listen()?;
    output::problem("starting a private Postgres and a private Redis in a temporary folder");
    // A signal takes effect once both servers run: a cancelled start would leave its folder behind.
    let sandbox = Sandbox::start(SandboxOptions::default()).await.map_err(Failure::unreachable)?;
    let settings = for_sandbox(settings, &sandbox);
    let (files, exit) = tokio::select! {
        shown = first_pass(global, &options, &settings, &sandbox, &bars) => shown?,
        () = signals.next() => return Ok(Exit::Failed),
    };
    if options.once {
        return Ok(exit);
    }
    output::result(&invitation(&settings, &sandbox))?;
    // The demo's jobs never change, and a closed terminal ends it.
    let (stops, reload) = (Stops::default(), Notify::new());
    let orders = Orders { stops: stops.clone(), reload: &reload, wait: None };
    let again = async {
        tokio::time::sleep(FIRST_RUNS).await;
        if io::stdout().is_terminal() {
            output::result(&invitation(&settings, &sandbox))?;
        }
        pending::<io::Result<Infallible>>().await
    };
    tokio::select! {
        never = again => match never? {},
        served = app::serve(&settings, files, orders) => served?,
        never = signals.stop(&stops, || {}) => match never {},
    }
    Ok(Exit::Ok)
}

/// Where the worker can listen, checked before anything slow; a port 0 becomes a free one.
fn free_address(listen: SocketAddr) -> Result<SocketAddr, Failure> {
    let address = TcpListener::bind(listen).and_then(|listener| listener.local_addr());
    address.map_err(|error| {
        let hint = "set `PREHEAT_HTTP__LISTEN`, for example to `127.0.0.1:0` for any free port";
        let text = format!("error: could not listen on `{listen}`: {error}\n  hint: {hint}");
        Failure::shown(Exit::Failed, text)
    })
}

/// Creates the clinic, warms it, and shows what the cache holds then.
async fn first_pass(
    global: &Global,
    options: &Options,
    settings: &Settings,
    sandbox: &Sandbox,
    bars: &MultiProgress,
) -> Result<(JobFiles, Exit), Failure> {
    let files = job_files(global, settings)?;
    let tenants = options.tenants;
    output::problem(&format!(
        "making a sample clinic of {}",
        counted(tenants.into(), "tenant", "tenants")
    ));
    make_clinic(sandbox, tenants).await.map_err(Failure::unreachable)?;

    if let Err(failure) = install_triggers(settings, &files).await {
        output::problem(&format!("{}\nchanges wait for the jobs' schedules", failure.text));
    }
    let jobs: Vec<Arc<Job>> = files.jobs().values().filter(|job| job.enabled).cloned().collect();
    let app = App::connect(settings, files.jobs().clone()).await?;
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: Stops::default(),
        bars: Bars::new(bars, &jobs, Said::Failures),
        drain: settings.runner.drain,
        deadline: None,
    };
    let done = pass.warm(&jobs, None).await?;
    app.close().await;
    output::result(&format!("\n{}\n\n", table(&done.records)))?;
    let examples = examples(sandbox).await.map_err(|error| Failure::new(Exit::Failed, error))?;
    output::result(&examples)?;
    Ok((files, done.exit()))
}

async fn make_clinic(sandbox: &Sandbox, tenants: u32) -> anyhow::Result<()> {
    let postgres = sandbox.postgres();
    postgres.create_database(DATABASE, None).await?;
    let clinic = Clinic::demo(tenants).load(&postgres.url(DATABASE)).await;
    clinic.context("could not make the sample clinic")
}

/// Installs the triggers, so that changes of the clinic's data reach the cache at once.
async fn install_triggers(settings: &Settings, files: &JobFiles) -> Result<(), Failure> {
    let sources = change_sources(files.jobs(), &settings.tenants.column);
    let database = app::connect_database(settings).await?;
    let wanted = Wanted { security: Security::Invoker, via: None };
    let installed = install(&database, &sources, &settings.tenants.sql, wanted).await;
    installed.map_err(|error| Failure::new(Exit::Failed, error))?;
    database.close().await;
    Ok(())
}

/// The settings without those for servers and tenants: the sandbox has its own servers, and the demo touches
/// no others.
fn for_sandbox(settings: Settings, sandbox: &Sandbox) -> Settings {
    let Settings { jobs, log, replica, runner, mut http, traces, mut in_use, .. } = settings;
    let Settings { mut database, mut cache, tenants, history, audit, changes, fleet, .. } =
        Settings::builtin();
    database.url = Some(SecretString::from(sandbox.postgres().url(DATABASE)));
    cache.url = Some(SecretString::from(sandbox.redis().url()));
    http.token = Some(SecretString::from(TOKEN));
    for setting in &mut in_use {
        if ["database.url", "cache.url", "http.token"].contains(&setting.key) {
            setting.value = Some("set by the demo".to_owned());
            setting.origin = Origin::Unset;
        }
    }
    let has_file = true;
    Settings {
        jobs,
        has_file,
        from_env_file: Vec::new(),
        log,
        replica,
        database,
        cache,
        tenants,
        runner,
        http,
        history,
        audit,
        changes,
        fleet,
        traces,
        in_use,
    }
}

/// The job files of `--jobs` where it is given, and the shipped ones otherwise.
fn job_files(global: &Global, settings: &Settings) -> Result<JobFiles, Failure> {
    let defaults = job_defaults(settings);
    let files = match &global.jobs {
        Some(folder) => definition::load(folder, &defaults),
        None => definition::check(shipped(), &no_sql_files, &defaults),
    };
    files.map_err(|problems| Failure::problems(&problems))
}

fn shipped() -> Vec<JobText> {
    let text = |(file, text): (&str, &str)| JobText {
        path: PathBuf::from("jobs").join(file),
        text: text.to_owned(),
    };
    SHIPPED.map(text).into()
}

/// The shipped jobs contain their SQL.
fn no_sql_files(path: &Path) -> Result<String, String> {
    Err(format!("`{}` is not shipped", path.display()))
}

/// What the cache holds now.
fn table(records: &[RunRecord]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["job", "outcome", "tenants", "keys", "bytes", "time"]);
    for record in records {
        let report = &record.report;
        let numbers = [
            output::count(report.tenants.ok),
            output::count(report.keys.written),
            output::bytes(report.bytes),
            output::seconds(record.duration()),
        ];
        let mut row = vec![Cell::new(&record.job), Cell::new(record.outcome)];
        row.extend(numbers.map(|number| Cell::new(number).set_alignment(CellAlignment::Right)));
        table.add_row(row);
    }
    table
}

/// Three keys with the beginnings of their values, as any client reads them.
async fn examples(sandbox: &Sandbox) -> anyhow::Result<String> {
    let client = redis::Client::open(sandbox.redis().url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut lines = Vec::new();
    for prefix in EXAMPLES {
        let keys: Vec<String> = {
            let mut found = connection.scan_match::<_, String>(format!("{prefix}*")).await?;
            let mut keys = Vec::new();
            while let Some(key) = found.next_item().await {
                keys.push(key?);
            }
            keys
        };
        // The first one that is not empty, so that there is something to see.
        for key in keys {
            let value: String = connection.get(&key).await?;
            if value.len() > "[]".len() {
                let room = output::columns()
                    .map_or(HEAD, |columns| usize::from(columns).saturating_sub(3));
                let head: String = value.chars().take(room.min(HEAD)).collect();
                let more = if head.len() < value.len() { "…" } else { "" };
                lines.push(format!("{key}\n  {head}{more}\n"));
                break;
            }
        }
    }
    Ok(lines.concat())
}

fn invitation(settings: &Settings, sandbox: &Sandbox) -> String {
    let listen = settings.http.listen;
    let redis = sandbox.redis().socket();
    let database = sandbox.postgres().url(DATABASE);
    format!(
        "\nthe worker runs: http://{listen}\n\
         the database:    psql '{database}'\n\
         the cache:       redis-cli -s {}\n\
         warm a job now:  curl -X POST -H 'Authorization: Bearer {TOKEN}' \\\n  \
           http://{listen}/api/v1/jobs/slots/runs\n\
         Ctrl-C ends everything and removes it\n\n",
        redis.display()
    )
}
