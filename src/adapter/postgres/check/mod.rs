//! Finds what is wrong with a query before a run: the server prepares and plans it, its columns are
//! compared with the job, and it is tried on a few tenants.

mod collation;
mod columns;
mod nulls;
mod plan;
mod result;
mod sample;

use sqlx::postgres::types::Oid;

use crate::domain::change::ChangeSource;
use crate::domain::day::MomentType;
use crate::domain::job::{Job, Scope};
use crate::domain::json::{Column, ColumnType, RowEncoder};
use crate::engine::ports::SourceError;

use self::plan::Plan;
use super::changes::{self, ChangesError, LogProblem, Looked, TableProblem, Ways, quoted_table};
use super::client::Client;
use super::error::Refusal;
use super::id::IdType;
use super::moment::{self, ParameterTypes};
use super::parameter_types::moment_to_check;
use super::parameters::{DATES, no_tenant};
use super::read_error::{ReadError, in_time, too_many_parameters};
use super::source::{PostgresSource, finish, learns_types, wrong_tenant_column};
use super::{Access, DatabaseSettings, Transaction, column, describe, error};

pub use self::plan::{ReadRelation, RelationKind};
pub use self::sample::{SAMPLE_BYTES, SAMPLE_TENANTS, SAMPLE_TIME};

/// What a check found in a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Reasons why the query cannot work, or would write wrong values.
    pub problems: Vec<QueryProblem>,
    /// Things that work, but are most likely not what the author meant.
    pub warnings: Vec<QueryProblem>,
}

impl Findings {
    fn of(problems: Vec<QueryProblem>) -> Self {
        Self { problems, warnings: Vec::new() }
    }
}

/// Something wrong with a query, or with what a job expects of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryProblem {
    /// The part of the job file that the problem is about.
    pub place: QueryPlace,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The part of a job file that a problem is about, so that its place can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryPlace {
    /// The SQL.
    Query {
        /// The byte that the server's error points to, if it points to one.
        at: Option<usize>,
    },
    /// The template of this `[[keys]]`, counted from 0.
    Key(usize),
    /// The `unique` of this `[[keys]]`, counted from 0.
    Unique(usize),
    /// `dates.timezone`
    Timezone,
    /// This entry of `query.order`, counted from 0.
    Order(usize),
    /// `dates.column`
    DateColumn,
    /// This name in `encode.omit`.
    Omit(String),
    /// This name in `encode.columns`.
    Columns(String),
}

/// The query whose relations are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// The job's.
    Job,
    /// The tenant query.
    Tenants,
}

impl PostgresSource {
    /// The tenant query.
    pub fn tenants_sql(&self) -> &str {
        &self.settings.sql
    }

    /// The name of the tenant's id in job queries.
    pub fn tenant_column(&self) -> &str {
        &self.settings.column
    }

    /// Everything that is wrong with the tenant query.
    pub async fn describe_tenants(&self) -> Result<Findings, SourceError> {
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
        let checked = in_time(longest, checked).await;
        let checked = finish(transaction, checked).await;
        checked.map_err(|error| error.into_source_error("could not check the tenant query"))
    }

    /// Everything that is wrong with a job's query: the server's errors, problems of the plan, and
    /// columns that do not fit the job. Problems of the tenant query are not among them:
    /// [`Self::describe_tenants`] finds those.
    pub async fn describe(&self, job: &Job) -> Result<Findings, SourceError> {
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
        let checked = in_time(longest, checked).await;
        finish(transaction, checked).await.map_err(|error| {
            let doing = format!("could not check the query of job `{}`", job.name);
            error.into_source_error(&doing)
        })
    }

    /// The relations that a job's query reads, according to the planner. It does not see what a
    /// function reads, unless the server inlines the function.
    pub async fn relations(&self, job: &Job) -> Result<Vec<ReadRelation>, SourceError> {
        self.relations_of(job, Reader::Job).await
    }

    /// The relations that the tenant query reads; whether the job's `tables` list them is part of
    /// each.
    pub async fn tenant_relations(&self, job: &Job) -> Result<Vec<ReadRelation>, SourceError> {
        self.relations_of(job, Reader::Tenants).await
    }

    async fn relations_of(
        &self,
        job: &Job,
        reader: Reader,
    ) -> Result<Vec<ReadRelation>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let read = async {
            loop {
                let read = self.relations_in(&mut transaction, job, reader).await;
                if !learns_types(&mut transaction, &read).await? {
                    return read;
                }
            }
        };
        let read = in_time(longest, read).await;
        finish(transaction, read).await.map_err(|error| {
            error.into_source_error(&match reader {
                Reader::Job => format!("could not tell what the query of job `{}` reads", job.name),
                Reader::Tenants => "could not tell what the tenant query reads".to_owned(),
            })
        })
    }

    /// Which of the tables of these sources have their triggers, and how these speak.
    pub async fn look(&self, sources: &[ChangeSource]) -> Result<Looked, ChangesError> {
        changes::look(&self.database, sources).await
    }

    /// Reasons why the tables of these sources cannot be watched. A server that can watch no table
    /// at all is an error.
    pub async fn table_problems(
        &self,
        sources: &[ChangeSource],
    ) -> Result<Vec<TableProblem>, ChangesError> {
        changes::table_problems(&self.database, sources, &self.settings.sql).await
    }

    /// Why a worker cannot read messages of triggers in the write-ahead log. It listens at `direct`, if its
    /// settings name such an address.
    pub async fn log_problem(
        &self,
        direct: Option<DatabaseSettings>,
        ways: Ways,
    ) -> Result<Option<LogProblem>, ChangesError> {
        changes::log_problem(&self.database, direct, ways.wal).await
    }

    async fn relations_in(
        &self,
        transaction: &mut Transaction,
        job: &Job,
        reader: Reader,
    ) -> Result<Vec<ReadRelation>, ReadError> {
        let id = match (reader, job.scope) {
            (Reader::Tenants, _) | (Reader::Job, Scope::Global) => None,
            (Reader::Job, Scope::Tenants) => Some(self.tenants_shape(transaction).await?.id),
        };
        let (sql, types) = match reader {
            Reader::Tenants => (&self.settings.sql, Vec::new()),
            Reader::Job => {
                let moment = self.moment_type_to_check(transaction, job, id).await?;
                (&job.query.sql, parameter_types(job, ParameterTypes { id, moment }))
            }
        };
        let plan = plan::explain(transaction, sql, &types).await?;
        let watched: Vec<_> = job.tables.iter().map(|table| quoted_table(&table.name)).collect();
        Ok(plan::relations(transaction, &plan, &watched, &self.settings.column).await?)
    }

    /// The plan comes first: the server does not describe the columns of a query that writes.
    async fn check_tenants(&self, transaction: &mut Transaction) -> Result<Findings, ReadError> {
        let sql = &self.settings.sql;
        let shape = match plan::explain(transaction, sql, &[]).await {
            Ok(Plan { writes: Some(how), .. }) => return Ok(Findings::of(vec![writes(&how)])),
            Ok(_reads) => self.tenants_shape(transaction).await,
            Err(error) => Err(error),
        };
        Ok(Findings::of(match shape {
            Ok(shape) => {
                let unsupported = shape.columns.iter().filter(|column| !column.ty.is_supported());
                let problem = |Column { name, ty }: &Column| {
                    columns::unreadable(name, ty, "which has no codec")
                };
                unsupported.map(problem).collect()
            }
            Err(ReadError::Parameters { .. }) => {
                let message = "the tenant query has a parameter, but gets no value for it";
                vec![problem(QueryPlace::Query { at: None }, message, None)]
            }
            Err(error) => self.not_described(transaction, error, sql, &[]).await?,
        }))
    }

    async fn check_job(
        &self,
        transaction: &mut Transaction,
        job: &Job,
    ) -> Result<Findings, ReadError> {
        let mut problems = Vec::new();
        let mut id = None;
        if job.scope == Scope::Tenants {
            let shape = match self.tenants_shape(transaction).await {
                Ok(shape) => shape,
                // The problem shows once, with the tenant query, and not with each job.
                Err(error) => {
                    self.not_described(transaction, error, &self.settings.sql, &[]).await?;
                    return Ok(Findings::default());
                }
            };
            columns::tenant_columns(job, &shape, &mut problems);
            id = Some(shape.id);
        }
        let learnt = self.learn_moment_type(transaction, job, id).await;
        let other_type = if learnt.as_ref().is_err_and(ReadError::is_refusal) {
            columns::moment_column_of_other_type(transaction, job, id).await?
        } else {
            None
        };
        let known = ParameterTypes { id, moment: moment_to_check(learnt)? };
        let (sql, types) = (&*job.query.sql, parameter_types(job, known));
        let mut sorts = false;
        let described = match plan::explain(transaction, sql, &types).await {
            Ok(Plan { writes: Some(how), .. }) => {
                problems.push(writes(&how));
                return Ok(Findings::of(problems));
            }
            Ok(plan) => {
                let is_read_together = job.scope == Scope::Tenants && job.batch.get() > 1;
                if plan.is_cut && is_read_together {
                    problems.push(is_cut(&self.settings.column));
                }
                sorts = plan.sorts;
                Client::describe(&mut **transaction, sql, &no_tenant(job, known)?).await
            }
            Err(error) => Err(error),
        };
        let columns = match described {
            Ok(described) => described.into_iter().map(|one| one.column).collect::<Vec<_>>(),
            Err(error) => {
                problems.extend(match other_type {
                    Some(problem) => vec![problem],
                    None => self.not_described(transaction, error, sql, &types).await?,
                });
                return Ok(Findings::of(problems));
            }
        };
        if id.is_some() && !describe::has_parameter(sql) {
            problems.push(self.reads_all_tenants());
        }
        self.check_columns(job, &columns, id, &mut problems);
        problems.extend(other_moments(transaction, job, known, &columns).await?);
        let parameters = no_tenant(job, known)?;
        problems.extend(collation::problems(transaction, job, &columns, &parameters).await?);
        let mut warnings = columns::key_texts(job, &columns);
        warnings.extend(columns::all_days(job));
        warnings.extend((sorts && !job.query.order.is_empty()).then(sorted_twice));
        Ok(Findings { problems, warnings })
    }

    fn reads_all_tenants(&self) -> QueryProblem {
        let column = &self.settings.column;
        let message = "the query does not use `$1`: each batch would read all tenants";
        let hint = format!("filter by `{column} = any($1)`");
        problem(QueryPlace::Query { at: None }, message, Some(hint))
    }

    /// The problems that kept a query from being described. If the driver does not know a type, it
    /// does not say of which column, so each column is looked at by itself.
    async fn not_described(
        &self,
        transaction: &mut Transaction,
        error: ReadError,
        sql: &str,
        types: &[Oid],
    ) -> Result<Vec<QueryProblem>, ReadError> {
        if let ReadError::Sql { error, .. } = &error
            && error::is_of_driver(error)
        {
            let found = columns::undescribed(transaction, sql, types).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(vec![self.about_query(error, sql)?])
    }

    /// Turns an error into a problem of its query. An error that is not about the query stays an
    /// error.
    fn about_query(&self, error: ReadError, sql: &str) -> Result<QueryProblem, ReadError> {
        if !error.kind().is_about_query() || error.is_of_no_statement() {
            return Err(error);
        }
        let (at, message, hint) = match &error {
            ReadError::Sql { error: said, before } => {
                let Some(refusal) = error::database(said) else { return Err(error) };
                let at = refusal.position(*before);
                let theirs = || refusal.hint.or(refusal.our_hint()).map(str::to_owned);
                let message = format!("{} ({})", refusal.message, refusal.code);
                let at = at.and_then(|character| byte_of(sql, character));
                let hint = self.hint(&refusal).or_else(|| folded(&refusal, sql, at?));
                (at, message, hint.or_else(theirs))
            }
            ReadError::Other(_, message) => match message.split_once("; hint: ") {
                Some((message, hint)) => (None, message.to_owned(), Some(hint.to_owned())),
                None => (None, message.clone(), None),
            },
            ReadError::Parameters { wanted, given } => {
                // Only a job with dates and without tenants gives two.
                let hint = "a job without tenants gives no ids: its days are `$1` and `$2`";
                let hint = (*given == 2).then(|| hint.to_owned());
                (None, too_many_parameters(*wanted, *given), hint)
            }
        };
        Ok(problem(QueryPlace::Query { at }, message, hint))
    }

    /// Our own hint, for errors where the server's hint does not help.
    fn hint(&self, refusal: &Refusal<'_>) -> Option<String> {
        const WRITES: &str = "25006";
        const NO_SUCH_FUNCTION: &str = "42883";
        const NO_SUCH_CAST: &str = "42846";
        let Refusal { code, message, .. } = *refusal;
        let is_array_wrong = match code {
            WRITES => return Some(ONLY_READ.to_owned()),
            NO_SUCH_FUNCTION | NO_SUCH_CAST if takes_moments_for_arrays(message) => true,
            NO_SUCH_FUNCTION => message.starts_with("operator does not exist"),
            NO_SUCH_CAST => message.starts_with("cannot cast type date[] to "),
            _ => false,
        };
        if !is_array_wrong || !message.contains("[]") {
            return None;
        }
        let column = &self.settings.column;
        Some(if takes_moments_for_arrays(message) {
            format!(
                "with `column` in `[dates]`, `$2` and `$3` are two moments for the whole batch: write \
                 `{column} = any($1) and … >= $2 and … < $3`"
            )
        } else if message.contains("date[]") {
            format!(
                "`$2` and `$3` are arrays of one date a tenant: join \
                 `unnest($1, $2, $3) as batch ({column}, first_date, last_date)`; or name a column in \
                 `[dates]`, as in `column = \"starts_at\"`: then they are two moments"
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
            columns::key_columns(job, (index, key), columns, problems);
        }
        for (index, entry) in job.query.order.iter().enumerate() {
            columns::order_column(index, entry, columns, problems);
        }
        columns::moment_column(job, columns, problems);
        if let Err(found) = RowEncoder::new(&job.encoding, columns) {
            problems.extend(found.iter().map(columns::encoding_problem));
        }
    }
}

/// Whether a query takes the two moments of a job with `dates.column` for arrays.
fn takes_moments_for_arrays(message: &str) -> bool {
    let is_moment = |ty: &str| (ty == "date" || ty.starts_with("timestamp")) && !ty.ends_with("[]");
    if let Some(cast) = message.strip_prefix("cannot cast type ") {
        return cast.split_once(" to ").is_some_and(|(ty, to)| is_moment(ty) && to.ends_with("[]"));
    }
    let types = message.split_once("unnest(").and_then(|(_, rest)| rest.split_once(')'));
    types.is_some_and(|(types, _)| types.split(", ").any(is_moment))
}

/// The hint for every query that writes.
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

/// A warning that the database sorts what preheat sorts again.
fn sorted_twice() -> QueryProblem {
    let message = "the database sorts the rows, and preheat sorts them again by `order`";
    let hint = "leave `order by` out of the query";
    problem(QueryPlace::Query { at: None }, message, Some(hint.to_owned()))
}

/// The types of the query's parameters.
fn parameter_types(job: &Job, types: ParameterTypes) -> Vec<Oid> {
    let mut oids: Vec<u32> = types.id.into_iter().map(IdType::array_oid).collect();
    oids.extend(match (types.moment, &job.dates, job.scope) {
        (Some(ty), _, _) => vec![moment::oid(ty); 2],
        (None, Some(_), Scope::Tenants) => vec![DATES; 2],
        (None, Some(_), Scope::Global) => vec![moment::oid(MomentType::Date); 2],
        (None, None, _) => Vec::new(),
    });
    oids.into_iter().map(Oid).collect()
}

/// A problem for each of the two moments that the query takes for another type than that of
/// `dates.column`: by a cast, or because it compares another column.
async fn other_moments(
    transaction: &mut Transaction,
    job: &Job,
    types: ParameterTypes,
    columns: &[Column],
) -> Result<Vec<QueryProblem>, ReadError> {
    let Some(name) = job.moment_column() else { return Ok(Vec::new()) };
    let Some(ty) = column::named(columns, name).and_then(|(_, column)| MomentType::of(&column.ty))
    else {
        return Ok(Vec::new());
    };
    let sql = &job.query.sql;
    let told: Vec<Oid> = types.id.into_iter().map(|id| Oid(id.array_oid())).collect();
    let inferred = plan::inferred_types(transaction, sql, &told).await?;
    let mut problems = Vec::new();
    for (number, oid) in (1..).zip(inferred).skip(told.len()) {
        if oid.0 == moment::oid(ty) {
            continue;
        }
        let found = match ColumnType::from_oid(oid.0) {
            Some(ty) => ty.to_string(),
            None => plan::type_names(transaction, &[oid]).await?.concat(),
        };
        let ty = ty.name();
        let message = format!(
            "the query takes `${number}` as {found}, but it is a moment of the column `{name}`, which \
             is {ty}"
        );
        let hint = format!(
            "compare `${number}` with `{name}` itself, without a cast; in the call of a function, write \
             `${number}::{ty}`"
        );
        let at = QueryPlace::Query { at: describe::place_of_parameter(sql, number) };
        problems.push(problem(at, message, Some(hint)));
    }
    Ok(problems)
}

/// The hint for a name with capitals that the server reads in lower case, because it is not quoted.
fn folded(refusal: &Refusal<'_>, sql: &str, at: usize) -> Option<String> {
    const UNKNOWN: [&str; 2] = ["42P01", "42703"];
    let rest = sql.get(at..).filter(|_| UNKNOWN.contains(&refusal.code))?;
    let is_of_name = |char: char| char.is_alphanumeric() || char == '_' || char == '.';
    let name = rest.split(|char| !is_of_name(char)).next()?;
    let has_capitals = |part: &str| part.contains(char::is_uppercase);
    let part = |part: &str| {
        if has_capitals(part) { format!("\"{part}\"") } else { part.to_owned() }
    };
    let quoted = name.split('.').map(part).collect::<Vec<_>>().join(".");
    has_capitals(name)
        .then(|| format!("without quotes Postgres reads a name in lower case: write `{quoted}`"))
}

/// The byte at which a character begins; the server counts characters from 1.
fn byte_of(sql: &str, character: usize) -> Option<usize> {
    sql.char_indices().nth(character.checked_sub(1)?).map(|(byte, _)| byte)
}

fn problem(place: QueryPlace, message: impl Into<String>, hint: Option<String>) -> QueryProblem {
    QueryProblem { place, message: message.into(), hint }
}
