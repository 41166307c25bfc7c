//! What the database says about the tenant query, and about the queries and `tables` of the job
//! files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::adapter::clock::SystemClock;
use crate::adapter::postgres::{
    ChangesError, Findings, LogProblem, PostgresSource, QueryPlace, QueryProblem, ReadRelation,
    RelationKind, TableProblem, Ways,
};
use crate::config::{ChangesVia, Settings};
use crate::definition::{self, JobFiles, Place, Problem};
use crate::domain::change::change_sources;
use crate::domain::job::{Job, JobName};
use crate::engine::ports::{Clock, Source, SourceError};

use super::database_settings;

/// The problems of queries and tables, each with what it belongs to.
#[derive(Debug, Default)]
pub struct QueryProblems {
    /// Problems of the tenant query.
    pub tenants: Vec<Problem>,
    /// The problems of each job that has some, placed in its file.
    pub jobs: BTreeMap<JobName, Vec<Problem>>,
    /// Things that work, but are most likely not what the author meant.
    pub warnings: Vec<Problem>,
}

impl QueryProblems {
    /// Whether there are no problems; warnings do not count.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.jobs.is_empty()
    }

    /// These findings without the problems of all other jobs.
    pub(super) fn only(mut self, name: &JobName) -> Self {
        self.jobs.retain(|job, _| job == name);
        self
    }

    /// Adds what another check found.
    pub fn extend(&mut self, other: Self) {
        let Self { tenants, jobs, warnings } = other;
        self.tenants.extend(tenants);
        for (name, problems) in jobs {
            self.jobs.entry(name).or_default().extend(problems);
        }
        self.warnings.extend(warnings);
    }

    /// Adds what was found in a job's query.
    fn add(&mut self, files: &JobFiles, name: &JobName, found: Findings) {
        let Findings { problems, warnings } = found;
        let shown = |problem| shown_in_file(files, name, problem);
        if !problems.is_empty() {
            let of_job = self.jobs.entry(name.clone()).or_default();
            of_job.extend(problems.into_iter().map(shown));
        }
        self.warnings.extend(warnings.into_iter().map(shown).map(Problem::into_warning));
    }
}

/// Prepares and plans the tenant query and every job's query. Disabled jobs are included, because
/// their queries must work once they are enabled. If the server cannot be asked, that is an error
/// and not a problem of a query.
pub async fn check_queries(
    source: &PostgresSource,
    files: &JobFiles,
) -> Result<QueryProblems, SourceError> {
    let tenants = check_tenants(source).await?;
    Ok(QueryProblems { tenants, ..check_jobs(source, files).await? })
}

/// Prepares and plans the jobs' queries alone.
pub(super) async fn check_jobs(
    source: &PostgresSource,
    files: &JobFiles,
) -> Result<QueryProblems, SourceError> {
    let mut found = QueryProblems::default();
    for (name, job) in files.jobs() {
        found.add(files, name, source.describe(job).await?);
    }
    Ok(found)
}

/// The keys that two jobs could both write, given the ids that [`check_queries`] found to be
/// possible.
pub fn check_keys(source: &PostgresSource, files: &JobFiles) -> QueryProblems {
    let mut found = QueryProblems::default();
    for (name, problem) in files.conflicts(source.id_class()) {
        found.jobs.entry(name).or_default().push(problem);
    }
    found
}

/// Reads the tenants and tries every job's query on a few of them: see
/// [`PostgresSource::try_on_tenants`]. The jobs in `but` are left out.
pub async fn check_rows(
    source: &PostgresSource,
    files: &JobFiles,
    but: &BTreeSet<JobName>,
) -> Result<QueryProblems, SourceError> {
    let mut found = QueryProblems::default();
    let tenants = match source.tenants().await {
        Ok(tenants) => Arc::new(tenants),
        Err(error) if !error.kind.is_about_query() => return Err(error),
        Err(error) => {
            found.tenants.push(of_tenants(source, None, error.message, None));
            return Ok(found);
        }
    };
    let now = SystemClock::new().now();
    for (name, job) in files.jobs().iter().filter(|(name, _)| !but.contains(*name)) {
        found.add(files, name, source.try_on_tenants(job, &tenants, now).await?);
    }
    Ok(found)
}

/// The problems of tables in the job files' `tables` that cannot be watched. If the server supports
/// no change feed at all, that is a warning.
pub async fn check_tables(
    source: &PostgresSource,
    files: &JobFiles,
) -> Result<QueryProblems, SourceError> {
    let mut found = QueryProblems::default();
    let sources = change_sources(files.jobs(), source.tenant_column());
    let Some(first) = sources.first().and_then(|source| source.jobs.first()) else {
        return Ok(found);
    };
    let problems = match source.table_problems(&sources).await {
        Ok(problems) | Err(ChangesError::Tables(problems)) => problems,
        Err(ChangesError::Failed(error)) => return Err(error),
        Err(
            ChangesError::NotAllowed(reason)
            | ChangesError::Version(reason)
            | ChangesError::Log(reason),
        ) => {
            let problem = files.problem_at(first, Place::Field("tables"), reason, None);
            found.warnings.push(problem.into_warning());
            return Ok(found);
        }
    };
    for TableProblem { jobs, message, hint } in problems {
        for name in jobs {
            let place = Place::Field("tables");
            let problem = files.problem_at(&name, place, message.clone(), Some(hint.clone()));
            found.jobs.entry(name).or_default().push(problem);
        }
    }
    Ok(found)
}

/// A warning if triggers speak, or are to speak, through the write-ahead log, and no worker could hear them.
pub async fn check_log(
    source: &PostgresSource,
    settings: &Settings,
    files: &JobFiles,
) -> Result<Option<Problem>, SourceError> {
    let sources = change_sources(files.jobs(), source.tenant_column());
    let ways = match source.look(&sources).await {
        Ok(looked) => looked.ways,
        Err(ChangesError::Failed(error)) => return Err(error),
        // The check of the tables says so.
        Err(_) => return Ok(None),
    };
    let (place, what) = match (ways.wal, settings.changes.via) {
        (true, _) => {
            let what =
                "the triggers write to the write-ahead log, and no worker can hear of changes";
            ("triggers of the change feed", what)
        }
        (false, ChangesVia::Wal) if !sources.is_empty() => {
            ("setting `changes.via`", "it is `wal`, and nobody would hear of changes")
        }
        (false, ChangesVia::Wal | ChangesVia::Auto | ChangesVia::Notify) => return Ok(None),
    };
    let (message, hint) = match log_problem(source, settings, ways).await {
        Ok(None) => return Ok(None),
        Ok(Some(LogProblem { message, hint })) => (message, Some(hint.to_owned())),
        Err(error) => (error.to_string(), None),
    };
    let message = format!("{what}: {message}");
    Ok(Some(definition::problem_in(place, "", None, message, hint).into_warning()))
}

/// Why a worker with these settings cannot read messages in the write-ahead log.
pub async fn log_problem(
    source: &PostgresSource,
    settings: &Settings,
    ways: Ways,
) -> Result<Option<LogProblem>, ChangesError> {
    let direct = settings.changes.url.as_ref().map(|url| database_settings(settings, url));
    source.log_problem(direct, ways).await
}

/// What the change feed does not cover.
#[derive(Debug, Default)]
pub struct Unwatched {
    /// A warning for each relation that a job reads, but does not list in its `tables`.
    pub warnings: Vec<Problem>,
    /// The jobs without `tables`.
    pub jobs: Vec<JobName>,
    /// Relations that change without firing a trigger, such as materialized views, each with a job
    /// that reads it.
    pub relations: Vec<(ReadRelation, JobName)>,
}

/// Compares what each job's query reads with its `tables`. The jobs in `but` are left out. A query
/// that cannot be planned is a warning.
pub async fn unwatched(
    source: &PostgresSource,
    files: &JobFiles,
    but: &BTreeSet<JobName>,
) -> Result<Unwatched, SourceError> {
    let mut found = Unwatched::default();
    for (name, job) in files.jobs().iter().filter(|(name, _)| !but.contains(*name)) {
        if job.tables.is_empty() {
            found.jobs.push(name.clone());
            continue;
        }
        let relations = match source.relations(job).await {
            Ok(relations) => relations,
            Err(error) if !error.kind.is_about_query() => return Err(error),
            Err(error) => {
                let place = Place::Query { offset: None };
                let problem = files.problem_at(name, place, error.message, None);
                found.warnings.push(problem.into_warning());
                continue;
            }
        };
        for relation in relations.into_iter().filter(|relation| !relation.is_watched) {
            match relation.kind {
                RelationKind::Table => {
                    found.warnings.push(not_named(source, files, job, &relation));
                }
                RelationKind::MaterializedView | RelationKind::ForeignTable => {
                    found.relations.push((relation, name.clone()));
                }
            }
        }
    }
    Ok(found)
}

fn not_named(
    source: &PostgresSource,
    files: &JobFiles,
    job: &Job,
    relation: &ReadRelation,
) -> Problem {
    let name = &relation.name;
    let message = format!(
        "the query reads `{name}`, which `tables` does not name: a change there is not seen until \
         the job's next scheduled run"
    );
    let hint = if relation.has_tenant_column {
        format!("add `\"{name}\"` to `tables`")
    } else {
        let id = source.tenant_column();
        format!(
            "add `{{ name = \"{name}\", tenant = \"COLUMN\" }}` to `tables` where a column of it has \
             the tenant's id, else `{{ name = \"{name}\", sql = \"select {id} from … join changed …\" }}`"
        )
    };
    files.problem_at(&job.name, Place::Field("tables"), message, Some(hint)).into_warning()
}

/// The problems of the tenant query. It is a setting, so they belong to no job file.
pub(super) async fn check_tenants(source: &PostgresSource) -> Result<Vec<Problem>, SourceError> {
    let sql = source.tenants_sql();
    let shown = |QueryProblem { place, message, hint }: QueryProblem| {
        let offset = match place {
            QueryPlace::Query { at } => at.map(|byte| characters_before(sql, byte)),
            QueryPlace::Key(_)
            | QueryPlace::Unique(_)
            | QueryPlace::Timezone
            | QueryPlace::Order(_)
            | QueryPlace::DateColumn
            | QueryPlace::Omit(_)
            | QueryPlace::Columns(_) => None,
        };
        of_tenants(source, offset, message, hint)
    };
    // A warning about a job's query does not apply to this one.
    let Findings { problems, warnings: _ } = source.describe_tenants().await?;
    Ok(problems.into_iter().map(shown).collect())
}

fn of_tenants(
    source: &PostgresSource,
    offset: Option<usize>,
    message: String,
    hint: Option<String>,
) -> Problem {
    definition::problem_in("setting `tenants.sql`", source.tenants_sql(), offset, message, hint)
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
        QueryPlace::Order(index) => {
            field = format!("query.order.{index}");
            Place::Field(&field)
        }
        QueryPlace::DateColumn => Place::Field("dates.column"),
        QueryPlace::Omit(_) => Place::Field("encode.omit"),
        QueryPlace::Columns(column) => {
            field = format!("encode.columns.{column}");
            Place::Field(&field)
        }
    };
    files.problem_at(name, place, message, hint)
}

/// The number of characters before a byte of the text.
fn characters_before(text: &str, byte: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}
