//! What is wrong with a query, before it is run: prepared by the server, compared with the job.

use std::sync::Arc;

use sqlx::postgres::{PgErrorPosition, PgStatement};
use sqlx::{AssertSqlSafe, Either, Executor, SqlSafeStr, Statement};
use tokio::time::timeout;

use crate::domain::job::{DATE_COLUMN, DateZone, Job, Key, Scope};
use crate::domain::json::{Column, ColumnProblem, ColumnType, RowEncoder};
use crate::domain::key::Placeholder;
use crate::domain::spelling;
use crate::engine::port::{SourceError, SourceErrorKind};

use super::id::IdType;
use super::source::{
    PostgresSource, ReadError, TenantsShape, parameter_types, prepare, wrong_tenant_column,
};
use super::{ANSWER_GRACE, Lease, column, error};

/// Something that is wrong with a query, or with what a job expects of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryProblem {
    /// What it is about.
    pub place: QueryPlace,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What a problem is about, so that its place in the job file can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryPlace {
    /// The SQL, at a byte of it where the server says at which.
    Query {
        /// That byte.
        at: Option<usize>,
    },
    /// The template of that `[[keys]]`, counted from 0.
    Key(usize),
    /// `unique` of that `[[keys]]`, counted from 0.
    Unique(usize),
    /// `dates.timezone`
    Timezone,
    /// That name in `encode.omit`.
    Omit(String),
    /// That name in `encode.columns`.
    Columns(String),
}

impl PostgresSource {
    /// Everything that is wrong with the tenant query.
    pub async fn describe_tenants(&self) -> Result<Vec<QueryProblem>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        let checked = timeout(longest + ANSWER_GRACE, self.check_tenants(&mut lease)).await;
        let checked = checked.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
        checked.map_err(|error| error.into_source_error("could not check the tenant query"))
    }

    /// Everything that is wrong with a job's query: what the server says of it, and what the job
    /// expects of its columns. A tenant query that is wrong itself shows elsewhere.
    pub async fn describe(&self, job: &Job) -> Result<Vec<QueryProblem>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        let checked = timeout(longest + ANSWER_GRACE, self.check_job(&mut lease, job)).await;
        let checked = checked.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
        checked.map_err(|error| {
            let doing = format!("could not check the query of job `{}`", job.name);
            error.into_source_error(&doing)
        })
    }

    /// The connection is not given back: what a check prepared, and an open transaction, end with
    /// it.
    async fn check_tenants(&self, lease: &mut Lease) -> Result<Vec<QueryProblem>, ReadError> {
        self.database.begin_read(lease, self.database.settings.statement_timeout).await?;
        let (statement, shape) = match self.tenants_shape(lease).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(vec![refused(error, &self.settings.sql)?]),
        };
        let mut problems = Vec::new();
        if count_parameters(&statement) > 0 {
            let message = "the tenant query has a parameter, and nothing is given to it";
            problems.push(problem(QueryPlace::Query { at: None }, message, None));
        }
        for Column { name, ty } in &shape.columns {
            if !ty.is_supported() {
                let message = format!("the column `{name}` is {ty}, which has no codec");
                let hint = format!("cast it to text: `{name}::text as {name}`");
                problems.push(problem(QueryPlace::Query { at: None }, message, Some(hint)));
            }
        }
        Ok(problems)
    }

    async fn check_job(
        &self,
        lease: &mut Lease,
        job: &Job,
    ) -> Result<Vec<QueryProblem>, ReadError> {
        self.database.begin_read(lease, self.database.settings.statement_timeout).await?;
        let mut problems = Vec::new();
        let mut id = None;
        if job.scope == Scope::Tenants {
            let shape = match self.tenants_shape(lease).await {
                Ok((_, shape)) => shape,
                Err(error) => {
                    refused(error, &self.settings.sql)?;
                    return Ok(problems);
                }
            };
            tenant_columns(job, &shape, &mut problems);
            id = Some(shape.id);
        }
        let statement = match prepare(lease, job, id).await {
            Ok(statement) => statement,
            Err(error) => {
                problems.push(refused(error, &job.query.sql)?);
                return Ok(problems);
            }
        };
        if !uses_its_parameters(lease, job, parameter_types(job, id).len()).await? {
            let column = &self.settings.column;
            let message = "the query does not use `$1`: each batch would read all tenants";
            let hint = format!("filter by `{column} = any($1)`");
            problems.push(problem(QueryPlace::Query { at: None }, message, Some(hint)));
        }
        self.check_columns(job, &column::columns(&statement), id, &mut problems);
        Ok(problems)
    }

    fn check_columns(
        &self,
        job: &Job,
        columns: &[Column],
        id: Option<IdType>,
        problems: &mut Vec<QueryProblem>,
    ) {
        if let Some(id) = id {
            let name = &self.settings.column;
            match column::named(columns, name) {
                Some((_, column)) if id.fits(&column.ty) => {}
                Some((_, column)) => {
                    let message = wrong_tenant_column(column, id);
                    problems.push(problem(QueryPlace::Query { at: None }, message, None));
                }
                None => {
                    let message = format!("the query returns no column `{name}`");
                    let hint =
                        "each row needs its tenant's id; `encode.omit` keeps it out of the value";
                    let hint = Some(hint.to_owned());
                    problems.push(problem(QueryPlace::Query { at: None }, message, hint));
                }
            }
        }
        for (index, key) in job.keys.iter().enumerate() {
            key_columns(index, key, columns, problems);
        }
        if let Err(found) = RowEncoder::new(&job.encoding, columns) {
            problems.extend(found.iter().map(encoding_problem));
        }
    }
}

/// An error of the server as a problem of its query; one that is not about the query stays an error.
fn refused(error: ReadError, sql: &str) -> Result<QueryProblem, ReadError> {
    match error {
        ReadError::Sql(error) => {
            let Some(refusal) = error::database(&error) else { return Err(error.into()) };
            let is_about_query = match error::kind(&error) {
                SourceErrorKind::Definition
                | SourceErrorKind::Data
                | SourceErrorKind::Encoding
                | SourceErrorKind::TooLarge
                | SourceErrorKind::Foreign => true,
                SourceErrorKind::Unavailable
                | SourceErrorKind::Transient
                | SourceErrorKind::Locked
                | SourceErrorKind::Timeout => false,
            };
            if !is_about_query {
                return Err(error.into());
            }
            let at = match refusal.position() {
                Some(PgErrorPosition::Original(character)) => byte_of(sql, character),
                Some(PgErrorPosition::Internal { .. }) | None => None,
            };
            let message = format!("{} ({})", refusal.message(), refusal.code());
            Ok(problem(QueryPlace::Query { at }, message, refusal.hint().map(str::to_owned)))
        }
        ReadError::Other(SourceErrorKind::Definition, message) => {
            Ok(problem(QueryPlace::Query { at: None }, message, None))
        }
        other @ (ReadError::Other(..) | ReadError::Stale) => Err(other),
    }
}

/// The byte at which a character stands; the server counts characters from 1.
fn byte_of(sql: &str, character: usize) -> Option<usize> {
    sql.char_indices().nth(character.checked_sub(1)?).map(|(byte, _)| byte)
}

fn problem(place: QueryPlace, message: impl Into<String>, hint: Option<String>) -> QueryProblem {
    QueryProblem { place, message: message.into(), hint }
}

/// What a job takes from the tenant query besides the id.
fn tenant_columns(job: &Job, shape: &TenantsShape, problems: &mut Vec<QueryProblem>) {
    let columns = shape.columns.get(1..).unwrap_or_default();
    let mut need = |place: QueryPlace, name: &str| {
        if column::named(columns, name).is_none() {
            let message = format!("the tenant query returns no column `{name}` after the id");
            let hint =
                did_you_mean(name, columns).unwrap_or_else(|| "add it to `tenants.sql`".to_owned());
            problems.push(problem(place, message, Some(hint)));
        }
    };
    for (index, key) in job.keys.iter().enumerate() {
        for placeholder in key.template.placeholders() {
            if let Placeholder::TenantColumn(name) = placeholder {
                need(QueryPlace::Key(index), name);
            }
        }
    }
    if let Some(DateZone::TenantColumn(name)) = job.dates.as_ref().map(|dates| &dates.zone) {
        need(QueryPlace::Timezone, name);
    }
}

fn key_columns(index: usize, key: &Key, columns: &[Column], problems: &mut Vec<QueryProblem>) {
    let mut need = |place: QueryPlace, name: &str| match column::named(columns, name) {
        Some((_, column)) if column.ty.is_supported() => Some(column),
        Some((_, Column { ty, .. })) => {
            let message = format!("the column `{name}` is {ty}, which no key can have");
            let hint = format!("cast it to text in the query: `{name}::text as {name}`");
            problems.push(problem(place, message, Some(hint)));
            None
        }
        None => {
            let message = format!("the query returns no column `{name}`");
            problems.push(problem(place, message, did_you_mean(name, columns)));
            None
        }
    };
    for name in key.template.columns() {
        need(QueryPlace::Key(index), name);
    }
    if let Some(name) = key.unique.as_ref().filter(|name| !name.starts_with("tenant.")) {
        need(QueryPlace::Unique(index), name);
    }
    if !key.template.has_date() {
        return;
    }
    let Some(Column { ty, .. }) = need(QueryPlace::Key(index), DATE_COLUMN) else { return };
    if !matches!(ty, ColumnType::Date | ColumnType::Text | ColumnType::Varchar) {
        let message =
            format!("the column `{DATE_COLUMN}` is {ty}, and a key's date is date or text");
        let hint = "for a moment: `(starts_at at time zone …)::date as date`".to_owned();
        problems.push(problem(QueryPlace::Key(index), message, Some(hint)));
    }
}

fn did_you_mean(name: &str, columns: &[Column]) -> Option<String> {
    let nearest = spelling::nearest(name, columns.iter().map(|column| column.name.as_str()))?;
    Some(format!("did you mean `{nearest}`?"))
}

fn encoding_problem(found: &ColumnProblem) -> QueryProblem {
    let place = match found {
        ColumnProblem::UnknownOmit { column, .. } => QueryPlace::Omit(column.clone()),
        ColumnProblem::UnknownOverride { column, .. } | ColumnProblem::Override { column, .. } => {
            QueryPlace::Columns(column.clone())
        }
        ColumnProblem::NoCodec { .. }
        | ColumnProblem::SameMember { .. }
        | ColumnProblem::NoColumns => QueryPlace::Query { at: None },
    };
    problem(place, found.to_string(), Some(found.hint()))
}

fn count_parameters(statement: &PgStatement) -> usize {
    match statement.parameters() {
        Some(Either::Left(parameters)) => parameters.len(),
        Some(Either::Right(count)) => count,
        None => 0,
    }
}

/// Whether a job that is given parameters uses any: prepared without their types, a statement has
/// only those that stand in it. One that needs the types uses them.
async fn uses_its_parameters(
    lease: &mut Lease,
    job: &Job,
    given: usize,
) -> Result<bool, ReadError> {
    if given == 0 || job.scope == Scope::Fleet {
        return Ok(true);
    }
    // Another text, since the one with types is what the connection keeps for this one.
    let sql: Arc<str> = format!("{}\n-- without types", job.query.sql).into();
    match lease.prepare(AssertSqlSafe(sql).into_sql_str()).await {
        Ok(statement) => Ok(count_parameters(&statement) > 0),
        Err(error) if error::database(&error).is_some() => Ok(true),
        Err(error) => Err(error.into()),
    }
}
