//! `preheat demo`: everything, on a sample clinic with private, throw-away servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::MultiProgress;
use redis::AsyncCommands;
use secrecy::SecretString;

use super::bars::Bars;
use super::load::defaults;
use super::signal::StopSignals;
use super::warm::Pass;
use super::{Exit, Failure, Global, output};
use crate::app::App;
use crate::config::Settings;
use crate::definition::{self, JobFiles, JobText};
use crate::domain::job::Job;
use crate::domain::run::{Outcome, RunRecord};
use crate::engine::run::Stops;
use crate::sandbox::{Clinic, Options as SandboxOptions, Sandbox};

/// The jobs that are shipped, so that the demo works in any folder.
const SHIPPED: [(&str, &str); 6] = [
    ("content.toml", include_str!("../../jobs/content.toml")),
    ("pets.toml", include_str!("../../jobs/pets.toml")),
    ("products.toml", include_str!("../../jobs/products.toml")),
    ("services.toml", include_str!("../../jobs/services.toml")),
    ("slots.toml", include_str!("../../jobs/slots.toml")),
    ("staff.toml", include_str!("../../jobs/staff.toml")),
];

/// Keys whose values are shown, by the first that begins like this.
const EXAMPLES: [&str; 3] = ["services:", "products:", "slots:"];
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
    let signals = StopSignals::listen()?;
    let stops = Stops::default();
    // The sandbox lives in here, so that a signal at any moment removes what was started.
    tokio::select! {
        shown = show(global, &options, stops.clone()) => shown,
        () = signals.stop(stops) => Ok(Exit::Ok),
    }
}

async fn show(global: &Global, options: &Options, stops: Stops) -> Result<Exit, Failure> {
    let bars = MultiProgress::new();
    let mut settings = global.settings(&bars)?;
    output::problem("starting a private Postgres and a private Redis in a temporary folder");
    let sandbox = Sandbox::start(SandboxOptions::default()).await.map_err(Failure::unreachable)?;
    let tenants = options.tenants;
    output::problem(&format!("making a sample clinic of {tenants} tenants"));
    let database_url = make_clinic(&sandbox, tenants).await.map_err(Failure::unreachable)?;
    use_sandbox(&mut settings, &sandbox, &database_url);

    let files = job_files(global, &settings)?;
    let jobs: Vec<Arc<Job>> = files.jobs().values().filter(|job| job.enabled).cloned().collect();
    let app = App::connect(&settings, files.jobs().clone()).await?;
    let width = jobs.iter().map(|job| job.name.as_str().len()).max().unwrap_or_default();
    let pass = Pass {
        runner: Arc::clone(&app.runner),
        stops: stops.clone(),
        bars: Bars::new(&bars, width, false),
        drain: settings.runner.drain,
        deadline: None,
    };
    let (records, _deadline_passed) = pass.warm(&jobs, None).await?;
    output::result(&format!("\n{}\n", table(&records)))?;
    let examples = examples(&sandbox).await.map_err(|error| Failure::new(Exit::Failed, error))?;
    output::result(&examples)?;
    let all_ok = records.iter().all(|record| record.outcome == Outcome::Ok);
    if options.once || stops.drain.is_cancelled() {
        return Ok(if all_ok { Exit::Ok } else { Exit::Failed });
    }
    output::result(&invitation(&settings, &sandbox))?;
    app.serve(&settings, stops).await?;
    Ok(Exit::Ok)
}

async fn make_clinic(sandbox: &Sandbox, tenants: u32) -> anyhow::Result<String> {
    let postgres = sandbox.postgres();
    postgres.create_database("clinic", None).await?;
    let url = postgres.url("clinic");
    Clinic::demo(tenants).load(&url).await.context("could not make the sample clinic")?;
    Ok(url)
}

fn use_sandbox(settings: &mut Settings, sandbox: &Sandbox, database_url: &str) {
    settings.database.url = Some(SecretString::from(database_url));
    settings.cache.url = Some(SecretString::from(sandbox.redis().url()));
    if settings.http.token.is_none() {
        settings.http.token = Some(SecretString::from("demo"));
    }
}

/// The job files of `--jobs` where it is given, and the shipped ones otherwise.
fn job_files(global: &Global, settings: &Settings) -> Result<JobFiles, Failure> {
    let defaults = defaults(settings);
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

/// The shipped jobs have their SQL in them.
fn no_sql_files(path: &Path) -> Result<String, String> {
    Err(format!("`{}` is not shipped", path.display()))
}

/// What is now in the cache.
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

/// Three keys with the heads of their values, as any client reads them.
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
        // The first with something in it, so that there is something to see.
        for key in keys {
            let value: String = connection.get(&key).await?;
            if value.len() > "[]".len() {
                let head: String = value.chars().take(HEAD).collect();
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
    format!(
        "\nthe worker runs: http://{listen}\n\
         the cache:       redis-cli -s {}\n\
         warm a job now:  curl -X POST -H 'Authorization: Bearer demo' http://{listen}/api/v1/jobs/slots/runs\n\
         Ctrl-C ends everything and removes it\n\n",
        redis.display()
    )
}
