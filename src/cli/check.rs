//! `preheat check`: the settings, the job files and, with the database, the queries.

use indicatif::MultiProgress;

use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{PostgresSource, QueryPlace, QueryProblem};
use crate::app;
use crate::definition::{JobFiles, Place, Problems};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Check files only, without the database
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let files = &loaded.files;
    let jobs = files.jobs().len();
    if options.offline {
        output::result(&format!("{jobs} jobs, no problems; queries were not checked\n"))?;
        return Ok(Exit::Ok);
    }
    let source = app::connect_source(&loaded.settings).await?;
    check_tenants(&source).await?;
    let problems = check_queries(&source, files).await?;
    if !problems.is_empty() {
        return Err(Failure::problems(&problems));
    }
    output::result(&format!("{jobs} jobs, no problems; every query was prepared\n"))?;
    Ok(Exit::Ok)
}

/// Prepares every query, those of disabled jobs too: they are to work when they are enabled.
async fn check_queries(source: &PostgresSource, files: &JobFiles) -> Result<Problems, Failure> {
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
    Ok(Problems::new(problems))
}

/// How many characters of a text stand before a byte of it.
fn characters_before(text: &str, byte: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}

/// The tenant query is a setting: what is wrong with it is wrong with no job file.
async fn check_tenants(source: &PostgresSource) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for QueryProblem { place: _, message, hint } in source.describe_tenants().await? {
        lines.push(format!("error: setting `tenants.sql`: {message}"));
        lines.extend(hint.map(|hint| format!("  hint: {hint}")));
    }
    if lines.is_empty() { Ok(()) } else { Err(Failure::shown(Exit::Usage, lines.join("\n"))) }
}
