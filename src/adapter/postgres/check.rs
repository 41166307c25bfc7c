//! What is wrong with a query, before it is run: prepared by the server, compared with the job.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgArguments;
use tokio::time::timeout;

use crate::domain::job::{DATE_COLUMN, DateZone, Job, Key, Scope};
use crate::domain::json::{Column, ColumnProblem, ColumnType, RowEncoder};
use crate::domain::key::Placeholder;
use crate::domain::spelling;
use crate::domain::tenant::Batch;
use crate::engine::port::{Read, SourceError, SourceErrorKind};

use super::id::IdType;
use super::source::{
    PostgresSource, ReadError, TenantsShape, arguments, finish, learns_types, too_many_parameters,
    wrong_tenant_column,
};
use super::{ANSWER_GRACE, Access, Transaction, column, describe, error};

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
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let checked = async {
            loop {
                let checked = self.check_tenants(&mut transaction).await;
                if !learns_types(&mut transaction, &checked).await? {
                    return checked;
                }
            }
        };
        let checked = timeout(longest + ANSWER_GRACE, checked).await;
        let checked = checked.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
        let checked = finish(transaction, checked).await;
        checked.map_err(|error| error.into_source_error("could not check the tenant query"))
    }

    /// Everything that is wrong with a job's query: what the server says of it, and what the job
    /// expects of its columns. A tenant query that is wrong itself shows elsewhere.
    pub async fn describe(&self, job: &Job) -> Result<Vec<QueryProblem>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let checked = async {
            loop {
                let checked = self.check_job(&mut transaction, job).await;
                if !learns_types(&mut transaction, &checked).await? {
                    return checked;
                }
            }
        };
        let checked = timeout(longest + ANSWER_GRACE, checked).await;
        let checked = checked.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
        finish(transaction, checked).await.map_err(|error| {
            let doing = format!("could not check the query of job `{}`", job.name);
            error.into_source_error(&doing)
        })
    }

    async fn check_tenants(
        &self,
        transaction: &mut Transaction,
    ) -> Result<Vec<QueryProblem>, ReadError> {
        let sql = &self.settings.sql;
        let none = PgArguments::default;
        let planned = match describe::would_write(transaction, sql, none()).await {
            Ok(true) => return Ok(vec![writes()]),
            Ok(false) => self.tenants_shape(transaction).await,
            Err(error) => Err(error),
        };
        let shape = match planned {
            Ok(shape) => shape,
            Err(ReadError::Parameters { .. }) => {
                let message = "the tenant query has a parameter, and nothing is given to it";
                return Ok(vec![problem(QueryPlace::Query { at: None }, message, None)]);
            }
            Err(error) => return Ok(vec![about_query(error, sql)?]),
        };
        let mut problems = Vec::new();
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
        transaction: &mut Transaction,
        job: &Job,
    ) -> Result<Vec<QueryProblem>, ReadError> {
        let mut problems = Vec::new();
        let mut id = None;
        if job.scope == Scope::Tenants {
            let shape = match self.tenants_shape(transaction).await {
                Ok(shape) => shape,
                Err(error) => {
                    about_query(error, &self.settings.sql)?;
                    return Ok(problems);
                }
            };
            tenant_columns(job, &shape, &mut problems);
            id = Some(shape.id);
        }
        let sql = &job.query.sql;
        let columns = match describe::would_write(transaction, sql, no_tenant(job, id)?).await {
            Ok(true) => {
                problems.push(writes());
                return Ok(problems);
            }
            Ok(false) => describe::columns(transaction, sql, no_tenant(job, id)?).await,
            Err(error) => Err(error),
        };
        let columns = match columns {
            Ok(columns) => columns,
            Err(error) => {
                problems.push(about_query(error, sql)?);
                return Ok(problems);
            }
        };
        if id.is_some() && !uses_its_parameters(transaction, sql).await? {
            let column = &self.settings.column;
            let message = "the query does not use `$1`: each batch would read all tenants";
            let hint = format!("filter by `{column} = any($1)`");
            problems.push(problem(QueryPlace::Query { at: None }, message, Some(hint)));
        }
        self.check_columns(job, &column::columns(&columns), id, &mut problems);
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

fn writes() -> QueryProblem {
    let message = "the query writes, and a query only reads";
    let hint = "leave out `insert`, `update`, `delete` and `merge`".to_owned();
    problem(QueryPlace::Query { at: None }, message, Some(hint))
}

/// An error of the server as a problem of its query; one that is not about the query stays an error.
fn about_query(error: ReadError, sql: &str) -> Result<QueryProblem, ReadError> {
    let kind = match &error {
        ReadError::Sql { error, .. } => error::kind(error),
        ReadError::Other(kind, _) => *kind,
        ReadError::Parameters { .. } => SourceErrorKind::Definition,
    };
    let is_about_query = match kind {
        SourceErrorKind::Definition
        | SourceErrorKind::Data
        | SourceErrorKind::Encoding
        | SourceErrorKind::TooLarge
        | SourceErrorKind::Foreign => true,
        SourceErrorKind::Unavailable | SourceErrorKind::Transient | SourceErrorKind::Timeout => {
            false
        }
    };
    if !is_about_query || error.is_of_no_statement() {
        return Err(error);
    }
    let (at, message, hint) = match &error {
        ReadError::Sql { error: said, before } => {
            let Some(refusal) = error::database(said) else { return Err(error) };
            let at = error::position(refusal, *before);
            let hint = refusal.hint().or(error::our_hint(refusal));
            let message = format!("{} ({})", refusal.message(), refusal.code());
            (at.and_then(|character| byte_of(sql, character)), message, hint.map(str::to_owned))
        }
        ReadError::Other(_, message) => (None, message.clone(), None),
        ReadError::Parameters { wanted, given } => {
            (None, too_many_parameters(*wanted, *given), None)
        }
    };
    Ok(problem(QueryPlace::Query { at }, message, hint))
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

/// What the query is given for a batch of no tenants.
fn no_tenant(job: &Job, id: Option<IdType>) -> Result<PgArguments, ReadError> {
    let batch = Batch::new(Arc::default(), [].into());
    let read = Read { batch: &batch, first_dates: &[], timeout: Duration::ZERO };
    arguments(job, id, read)
}

/// Whether a job that is given parameters uses any: without them, a query that does is refused,
/// as is one that needs their types. It is the transaction's last statement.
async fn uses_its_parameters(transaction: &mut Transaction, sql: &str) -> Result<bool, ReadError> {
    match describe::columns(transaction, sql, PgArguments::default()).await {
        Ok(_) => Ok(false),
        Err(error) if error.leaves_connection_whole() => Ok(true),
        Err(error) => Err(error),
    }
}
