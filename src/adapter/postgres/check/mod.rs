//! What is wrong with a query before a run: prepared and planned by the server, compared with the
//! job, and tried on a few tenants.

mod columns;
mod plan;
mod sample;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgStatement};
use sqlx::{AssertSqlSafe, Either, Executor, SqlSafeStr, Statement};
use tokio::time::timeout;

use crate::domain::change::ChangeSource;
use crate::domain::job::{Job, Scope};
use crate::domain::json::{Column, RowEncoder};
use crate::engine::port::{SourceError, SourceErrorKind};

use super::changes::{ChangesError, TableProblem, quoted_table, table_problems};
use super::id::IdType;
use super::source::{PostgresSource, ReadError, parameter_types, prepare, wrong_tenant_column};
use super::{ANSWER_GRACE, Database, Lease, column, error, local_settings, milliseconds};

pub use self::plan::{ReadRelation, RelationKind};
pub use self::sample::{SAMPLE_BYTES, SAMPLE_TENANTS, SAMPLE_TIME};

/// What was found in a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why it cannot work, or would write wrong values.
    pub problems: Vec<QueryProblem>,
    /// What works and is most likely not what was meant.
    pub warnings: Vec<QueryProblem>,
}

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
    /// The tenant query.
    pub fn tenants_sql(&self) -> &str {
        &self.settings.sql
    }

    /// What the tenant's id is called in job queries.
    pub fn tenant_column(&self) -> &str {
        &self.settings.column
    }

    /// Everything that is wrong with the tenant query.
    pub async fn describe_tenants(&self) -> Result<Findings, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        in_time(longest, "could not check the tenant query", self.check_tenants(&mut lease)).await
    }

    /// Everything that is wrong with a job's query: what the server says of it and of its plan, and
    /// what the job expects of its columns. A tenant query that is wrong itself shows elsewhere.
    pub async fn describe(&self, job: &Job) -> Result<Findings, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        let doing = format!("could not check the query of job `{}`", job.name);
        in_time(longest, &doing, self.check_job(&mut lease, job)).await
    }

    /// The relations that a job's query reads, as the planner sees it: what a function reads is not
    /// among them unless the server inlines it.
    pub async fn relations(&self, job: &Job) -> Result<Vec<ReadRelation>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        let doing = format!("could not tell what the query of job `{}` reads", job.name);
        in_time(longest, &doing, self.relations_on(&mut lease, job)).await
    }

    /// Why the tables of these sources cannot be watched; a server that can watch none says why.
    pub async fn table_problems(
        &self,
        sources: &[ChangeSource],
    ) -> Result<Vec<TableProblem>, ChangesError> {
        table_problems(&self.database, sources, &self.settings.sql).await
    }

    /// Like all that check, it does not give the connection back: what it prepared, and an open
    /// transaction, end with it.
    async fn relations_on(
        &self,
        lease: &mut Lease,
        job: &Job,
    ) -> Result<Vec<ReadRelation>, ReadError> {
        begin(&self.database, lease).await?;
        let id = match job.scope {
            Scope::Tenants => Some(self.tenants_shape(lease).await?.1.id),
            Scope::Fleet => None,
        };
        let plan = plan::explain(lease, &job.query.sql, &parameter_types(job, id)).await?;
        let watched: Vec<_> = job.tables.iter().map(|table| quoted_table(&table.name)).collect();
        Ok(plan::relations(lease, &plan, &watched, &self.settings.column).await?)
    }

    async fn check_tenants(&self, lease: &mut Lease) -> Result<Findings, ReadError> {
        begin(&self.database, lease).await?;
        let sql = &self.settings.sql;
        let mut problems = Vec::new();
        match self.tenants_shape(lease).await {
            Ok((statement, shape)) => {
                if count_parameters(&statement) > 0 {
                    let message = "the tenant query has a parameter, and nothing is given to it";
                    problems.push(problem(QueryPlace::Query { at: None }, message, None));
                    return Ok(Findings { problems, ..Findings::default() });
                }
                for Column { name, ty } in &shape.columns {
                    if !ty.is_supported() {
                        problems.push(columns::unreadable(name, ty, "which has no codec"));
                    }
                }
                match plan::explain(lease, sql, &[]).await {
                    Ok(plan) => problems.extend(plan.writes.as_deref().map(writes)),
                    Err(error) => problems.push(self.refused(error, "")?),
                }
            }
            Err(error) => problems.extend(self.not_prepared(lease, error, sql, &[]).await?),
        }
        Ok(Findings { problems, ..Findings::default() })
    }

    async fn check_job(&self, lease: &mut Lease, job: &Job) -> Result<Findings, ReadError> {
        begin(&self.database, lease).await?;
        let mut problems = Vec::new();
        let mut id = None;
        if job.scope == Scope::Tenants {
            let shape = match self.tenants_shape(lease).await {
                Ok((_, shape)) => shape,
                // It shows once, and not at each job.
                Err(error) => {
                    self.not_prepared(lease, error, &self.settings.sql, &[]).await?;
                    return Ok(Findings::default());
                }
            };
            columns::tenant_columns(job, &shape, &mut problems);
            id = Some(shape.id);
        }
        let types = parameter_types(job, id);
        let statement = match prepare(lease, job, id).await {
            Ok(statement) => statement,
            Err(error) => {
                let refused = self.not_prepared(lease, error, &job.query.sql, &types).await?;
                problems.extend(refused);
                return Ok(Findings { problems, ..Findings::default() });
            }
        };
        let columns = column::columns(&statement);
        match plan::explain(lease, &job.query.sql, &types).await {
            Ok(plan) => {
                if !uses_its_parameters(lease, job, types.len()).await? {
                    problems.push(self.reads_all_tenants());
                }
                problems.extend(plan.writes.as_deref().map(writes));
                let is_read_together = job.scope == Scope::Tenants && job.batch.get() > 1;
                if plan.is_cut && is_read_together {
                    problems.push(is_cut(&self.settings.column));
                }
            }
            // The transaction has failed with it: nothing more is asked.
            Err(error) => problems.push(self.refused(error, "")?),
        }
        self.check_columns(job, &columns, id, &mut problems);
        Ok(Findings { problems, warnings: columns::key_texts(job, &columns) })
    }

    fn reads_all_tenants(&self) -> QueryProblem {
        let column = &self.settings.column;
        let message = "the query does not use `$1`: each batch would read all tenants";
        let hint = format!("filter by `{column} = any($1)`");
        problem(QueryPlace::Query { at: None }, message, Some(hint))
    }

    /// Why a query could not be prepared. Where the driver does not know a type, it does not say of
    /// which column, and the columns are looked at one by one.
    async fn not_prepared(
        &self,
        lease: &mut Lease,
        error: ReadError,
        sql: &str,
        types: &[sqlx::postgres::PgTypeInfo],
    ) -> Result<Vec<QueryProblem>, ReadError> {
        if let ReadError::Sql(failed) = &error
            && error::is_of_driver(failed)
        {
            let found = columns::undescribed(lease, sql, types).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(vec![self.refused(error, sql)?])
    }

    /// An error as a problem of its query; one that is not about the query stays an error.
    fn refused(&self, error: ReadError, sql: &str) -> Result<QueryProblem, ReadError> {
        match error {
            ReadError::Sql(error) => {
                let Some(refusal) = error::database(&error) else { return Err(error.into()) };
                if !is_about_query(error::kind(&error)) {
                    return Err(error.into());
                }
                let at = match refusal.position() {
                    Some(PgErrorPosition::Original(character)) => byte_of(sql, character),
                    Some(PgErrorPosition::Internal { .. }) | None => None,
                };
                let message = format!("{} ({})", refusal.message(), refusal.code());
                let hint = self.hint(refusal).or_else(|| refusal.hint().map(str::to_owned));
                Ok(problem(QueryPlace::Query { at }, message, hint))
            }
            ReadError::Other(kind, message) if is_about_query(kind) => {
                let (message, hint) = match message.split_once("; hint: ") {
                    Some((message, hint)) => (message, Some(hint.to_owned())),
                    None => (message.as_str(), None),
                };
                Ok(problem(QueryPlace::Query { at: None }, message, hint))
            }
            other @ (ReadError::Other(..) | ReadError::Stale) => Err(other),
        }
    }

    /// What to do where the server's own hint does not help.
    fn hint(&self, refusal: &PgDatabaseError) -> Option<String> {
        const WRITES: &str = "25006";
        const NO_SUCH_FUNCTION: &str = "42883";
        let message = refusal.message();
        let compares_an_array = refusal.code() == NO_SUCH_FUNCTION
            && message.starts_with("operator does not exist")
            && message.contains("[]");
        if refusal.code() == WRITES {
            return Some(ONLY_READ.to_owned());
        }
        if !compares_an_array {
            return None;
        }
        let column = &self.settings.column;
        Some(if message.contains("date[]") {
            format!(
                "`$2` and `$3` are arrays of one date a tenant: join \
                 `unnest($1, $2, $3) as batch ({column}, first_date, last_date)`"
            )
        } else {
            format!("`$1` is the array of the batch's tenant ids: write `{column} = any($1)`")
        })
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
            columns::key_columns(index, key, columns, problems);
        }
        if let Err(found) = RowEncoder::new(&job.encoding, columns) {
            problems.extend(found.iter().map(columns::encoding_problem));
        }
    }
}

/// How long a check waits for a lock: a table that is being altered is no reason to hold up those
/// that want it after us.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Begins the transaction of a check, which never writes, whatever the settings say.
async fn begin(database: &Database, lease: &mut Lease) -> Result<(), sqlx::Error> {
    let locals = local_settings(database.settings.statement_timeout);
    let wait = milliseconds(LOCK_WAIT);
    let begin = format!("begin read only; {locals}; set local lock_timeout = {wait}");
    lease.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await?;
    Ok(())
}

/// Why no query may write, and what to do about it.
const ONLY_READ: &str = "preheat's queries only read, in read-only transactions: use a `select`";

fn writes(how: &str) -> QueryProblem {
    let message = format!("the query writes or locks rows: `{how}`");
    problem(QueryPlace::Query { at: None }, message, Some(ONLY_READ.to_owned()))
}

fn is_cut(tenant: &str) -> QueryProblem {
    let message =
        "`limit` or `offset` cuts off rows of the whole batch, and not those of each tenant";
    let hint = format!(
        "number each tenant's rows by `row_number() over (partition by {tenant} order by …)`, or \
         put the `limit` into a lateral subquery: \
         `from unnest($1) as batch (id) cross join lateral (select … limit 10) as one`"
    );
    problem(QueryPlace::Query { at: None }, message, Some(hint))
}

/// Waits a little longer than the server does.
async fn in_time<T>(
    longest: Duration,
    doing: &str,
    work: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, SourceError> {
    let done = timeout(longest + ANSWER_GRACE, work).await;
    let done = done.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
    done.map_err(|error| error.into_source_error(doing))
}

/// Whether an error comes back however often the query is tried, with any tenants or with some.
fn is_about_query(kind: SourceErrorKind) -> bool {
    match kind {
        SourceErrorKind::Definition
        | SourceErrorKind::Data
        | SourceErrorKind::Encoding
        | SourceErrorKind::TooLarge
        | SourceErrorKind::Foreign => true,
        SourceErrorKind::Unavailable
        | SourceErrorKind::Transient
        | SourceErrorKind::Locked
        | SourceErrorKind::Timeout => false,
    }
}

/// The byte at which a character stands; the server counts characters from 1.
fn byte_of(sql: &str, character: usize) -> Option<usize> {
    sql.char_indices().nth(character.checked_sub(1)?).map(|(byte, _)| byte)
}

fn problem(place: QueryPlace, message: impl Into<String>, hint: Option<String>) -> QueryProblem {
    QueryProblem { place, message: message.into(), hint }
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
