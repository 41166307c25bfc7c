//! `preheat check`: the settings, the job files and, with the database, the queries.

use std::collections::BTreeSet;

use indicatif::MultiProgress;

use super::load::Loaded;
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{PostgresSource, RelationKind};
use crate::app::{self, QueryProblems, Unwatched};
use crate::config::{ChangesMode, Settings};
use crate::definition::{JobFiles, Problem, Problems};
use crate::domain::job::JobName;
use crate::domain::spelling;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Check files only, without the database
    #[arg(long)]
    offline: bool,
    /// Prepare the queries only, and do not try them on a few tenants
    #[arg(long, conflicts_with = "offline")]
    no_data: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Loaded { settings, files } = global.load(&MultiProgress::new())?;
    let jobs = output::counted(files.jobs().len() as u64, "job", "jobs");
    if options.offline {
        output::result(&format!("{jobs}, no problems; queries were not checked\n"))?;
        return Ok(Exit::Ok);
    }
    let source = app::connect_source(&settings).await?;
    let (mut found, unwatched) = check(&source, &settings, &files, &options).await?;
    let warnings = std::mem::take(&mut found.warnings);
    let counted = output::counted(warnings.len() as u64, "warning", "warnings");
    let has_warnings = !warnings.is_empty();
    let is_good = found.is_empty();
    let all: Vec<Problem> = found.into_all().chain(warnings).collect();
    if !is_good {
        return Err(Failure::problems(&Problems::new(all)));
    }
    if has_warnings {
        output::problem(&Problems::new(all).render(output::is_coloured()));
    }
    let counted = if has_warnings { format!(", {counted}") } else { String::new() };
    let tried = if options.no_data { "" } else { " and tried on a few tenants" };
    output::result(&format!("{jobs}, no problems{counted}; every query was prepared{tried}\n"))?;
    output::result(&not_watched(&unwatched))?;
    Ok(Exit::Ok)
}

/// Everything that the database can say; a job whose query does not work is not asked for more.
async fn check(
    source: &PostgresSource,
    settings: &Settings,
    files: &JobFiles,
    options: &Options,
) -> Result<(QueryProblems, Unwatched), Failure> {
    let mut found = app::check_queries(source, files).await?;
    let broken: BTreeSet<JobName> = if found.tenants.is_empty() {
        found.jobs.keys().cloned().collect()
    } else {
        files.jobs().keys().cloned().collect()
    };
    let mut unwatched = Unwatched::default();
    if settings.changes.enabled != ChangesMode::Off {
        found.extend(app::check_tables(source, files, &settings.tenants.column).await?);
        unwatched = app::unwatched(source, files, &broken).await?;
        found.warnings.append(&mut unwatched.warnings);
    }
    if !options.no_data && found.tenants.is_empty() {
        found.extend(app::check_rows(source, files, &broken).await?);
    }
    Ok((found, unwatched))
}

/// What changes unseen and cannot be named in `tables`, or is not meant to be.
fn not_watched(unwatched: &Unwatched) -> String {
    let mut text = String::new();
    if !unwatched.jobs.is_empty() {
        let names = spelling::listed(unwatched.jobs.iter().map(JobName::as_str), "and");
        text += &format!("without `tables`, so that no change feed warms them: {names}\n");
    }
    for (relation, job) in &unwatched.relations {
        let kind = match relation.kind {
            RelationKind::Table => "table",
            RelationKind::MaterializedView => "materialized view",
            RelationKind::ForeignTable => "foreign table",
        };
        let name = &relation.name;
        text += &format!("`{job}` reads the {kind} `{name}`, which no change feed can watch\n");
    }
    text
}
