//! What the database says about the queries of the settings and the job files.

use std::collections::BTreeMap;

use crate::adapter::postgres::{PostgresSource, QueryPlace, QueryProblem};
use crate::definition::{self, JobFiles, Place, Problem};
use crate::domain::job::JobName;
use crate::engine::port::SourceError;

/// The problems of queries, by what they belong to.
#[derive(Debug, Default)]
pub struct QueryProblems {
    /// Of the tenant query.
    pub tenants: Vec<Problem>,
    /// Of each job that has one, shown in its file.
    pub jobs: BTreeMap<JobName, Vec<Problem>>,
}

impl QueryProblems {
    /// All of them.
    pub fn into_all(self) -> impl Iterator<Item = Problem> {
        self.tenants.into_iter().chain(self.jobs.into_values().flatten())
    }
}

/// Prepares the tenant query and every job's query, those of disabled jobs too: they must work when
/// they are enabled. A server that cannot be asked is an error and no problem of a query.
pub async fn check_queries(
    source: &PostgresSource,
    files: &JobFiles,
) -> Result<QueryProblems, SourceError> {
    let mut problems =
        QueryProblems { tenants: check_tenants(source).await?, jobs: BTreeMap::default() };
    for name in files.jobs().keys() {
        let found = check_job(source, files, name).await?;
        if !found.is_empty() {
            problems.jobs.insert(name.clone(), found);
        }
    }
    Ok(problems)
}

/// The tenant query is a setting: its problems belong to no job file.
async fn check_tenants(source: &PostgresSource) -> Result<Vec<Problem>, SourceError> {
    let sql = source.tenants_sql();
    let shown = |QueryProblem { place, message, hint }: QueryProblem| {
        let offset = match place {
            QueryPlace::Query { at } => at.map(|byte| characters_before(sql, byte)),
            QueryPlace::Key(_)
            | QueryPlace::Unique(_)
            | QueryPlace::Timezone
            | QueryPlace::Omit(_)
            | QueryPlace::Columns(_) => None,
        };
        definition::problem_in("setting `tenants.sql`", sql, offset, message, hint)
    };
    Ok(source.describe_tenants().await?.into_iter().map(shown).collect())
}

async fn check_job(
    source: &PostgresSource,
    files: &JobFiles,
    name: &JobName,
) -> Result<Vec<Problem>, SourceError> {
    let Some(job) = files.jobs().get(name) else { return Ok(Vec::new()) };
    let found = source.describe(job).await?;
    Ok(found.into_iter().map(|problem| shown_in_file(files, name, problem)).collect())
}

fn shown_in_file(files: &JobFiles, name: &JobName, problem: QueryProblem) -> Problem {
    let QueryProblem { place, message, hint } = problem;
    let field;
    let place = match &place {
        QueryPlace::Query { at } => {
            let sql = files.jobs().get(name).map_or("", |job| &*job.query.sql);
            Place::Query { offset: at.map(|byte| characters_before(sql, byte)) }
        }
        QueryPlace::Key(index) => Place::Key(*index),
        QueryPlace::Unique(index) => {
            field = format!("keys.{index}.unique");
            Place::Field(&field)
        }
        QueryPlace::Timezone => Place::Field("dates.timezone"),
        QueryPlace::Omit(_) => Place::Field("encode.omit"),
        QueryPlace::Columns(column) => {
            field = format!("encode.columns.{column}");
            Place::Field(&field)
        }
    };
    files.problem_at(name, place, message, hint)
}

/// How many characters of a text stand before a byte of it.
fn characters_before(text: &str, byte: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}
