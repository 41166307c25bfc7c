//! `preheat check`: the settings, the job files and, with the database, the queries.

use indicatif::MultiProgress;

use super::load::Loaded;
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{PostgresSource, QueryPlace, QueryProblem};
use crate::app;
use crate::config::RowSecurity;
use crate::definition::{self, JobFiles, Place, Problem, Problems};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Check files only, without the database
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Loaded { settings, files } = global.load(&MultiProgress::new())?;
    let jobs = output::counted(files.jobs().len() as u64, "job", "jobs");
    if options.offline {
        output::result(&format!("{jobs}, no problems; queries were not checked\n"))?;
        return Ok(Exit::Ok);
    }
    let source = app::connect_source(&settings).await?;
    let mut problems = check_tenants(&source, &settings.tenants.sql).await?;
    problems.extend(check_queries(&source, &files).await?);
    if !problems.is_empty() {
        return Err(Failure::problems(&Problems::new(problems)));
    }
    output::result(&format!("{jobs}, no problems; every query was prepared\n"))?;
    match settings.database.row_security {
        RowSecurity::Refuse => {}
        RowSecurity::Accept => output::result(
            "`database.row_security` is `accept`: rows that a policy hides from the role are missing \
             from the cache\n",
        )?,
    }
    Ok(Exit::Ok)
}

/// Prepares every query, those of disabled jobs too: they are to work when they are enabled.
async fn check_queries(source: &PostgresSource, files: &JobFiles) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for (name, job) in files.jobs() {
        for QueryProblem { place, message, hint } in source.describe(job).await? {
            let problem = match &place {
                QueryPlace::Query { at } => {
                    let offset = at.map(|byte| characters_before(&job.query.sql, byte));
                    files.problem_at(name, Place::Query { offset }, message, hint)
                }
                QueryPlace::Key(index) => files.problem_at(name, Place::Key(*index), message, hint),
                QueryPlace::Unique(index) => {
                    let field = format!("keys.{index}.unique");
                    files.problem_at(name, Place::Field(&field), message, hint)
                }
                QueryPlace::Timezone => {
                    files.problem_at(name, Place::Field("dates.timezone"), message, hint)
                }
                QueryPlace::Omit(_) => {
                    files.problem_at(name, Place::Field("encode.omit"), message, hint)
                }
                QueryPlace::Columns(column) => {
                    let field = format!("encode.columns.{column}");
                    files.problem_at(name, Place::Field(&field), message, hint)
                }
            };
            problems.push(problem);
        }
    }
    Ok(problems)
}

/// How many characters of a text stand before a byte of it.
fn characters_before(text: &str, byte: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}

/// The tenant query is a setting: what is wrong with it is wrong with no job file.
async fn check_tenants(source: &PostgresSource, sql: &str) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for QueryProblem { place, message, hint } in source.describe_tenants().await? {
        let offset = match place {
            QueryPlace::Query { at } => at.map(|byte| characters_before(sql, byte)),
            QueryPlace::Key(_)
            | QueryPlace::Unique(_)
            | QueryPlace::Timezone
            | QueryPlace::Omit(_)
            | QueryPlace::Columns(_) => None,
        };
        let title = "setting `tenants.sql`";
        problems.push(definition::problem_in(title, sql, offset, message, hint));
    }
    Ok(problems)
}
