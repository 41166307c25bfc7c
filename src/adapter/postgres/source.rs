//! Tenants and rows: one query a batch, its rows encoded from the wire.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    Arguments, AssertSqlSafe, Column as _, Connection, Either, Executor, Postgres, Row, SqlSafeStr,
    Statement, Type,
};
use tokio::time::timeout;

use crate::domain::date;
use crate::domain::job::{Job, Scope};
use crate::domain::json::{Column, EncodeError, RowEncoder, ValueError, write_text};
use crate::domain::row::{KeyText, Rows, RowsFull};
use crate::domain::tenant::{Batch, TenantId, Tenants};
use crate::engine::port::{Read, Source, SourceError, SourceErrorKind};

use super::id::{BadId, ID_TYPES, IdArray, IdType, Slots};
use super::{ANSWER_GRACE, Database, Lease, column, error};

/// A loop over rows gives others their turn after so many: what has arrived is read without a wait.
const ROWS_A_TURN: usize = 256;

/// The tenant query.
#[derive(Clone, Debug)]
pub struct TenantsSettings {
    /// Its first column is the id.
    pub sql: Arc<str>,
    /// What the id is called in job queries.
    pub column: String,
}

/// Tenants and rows from Postgres.
#[derive(Debug)]
pub struct PostgresSource {
    pub(super) database: Arc<Database>,
    pub(super) settings: TenantsSettings,
    /// The tenant query for some tenants: see [`among`].
    among: Arc<str>,
    /// As the tenant query last had it.
    id_type: Mutex<Option<IdType>>,
}

/// What the tenant query returns.
pub(super) struct TenantsShape {
    pub(super) id: IdType,
    pub(super) columns: Vec<Column>,
}

impl PostgresSource {
    /// A source on this database.
    pub fn new(database: Arc<Database>, settings: TenantsSettings) -> Self {
        let among = among(&settings.sql).into();
        Self { database, settings, among, id_type: Mutex::default() }
    }

    /// A query that the server does not take within another one is read whole; so is one whose
    /// table was altered in a way that only the whole query notices, and if it is wrong itself, its
    /// own error says more.
    async fn read_tenants_among(&self, ids: &[TenantId]) -> Result<Tenants, SourceError> {
        let ids: HashSet<&str> = ids.iter().map(TenantId::as_str).collect();
        match self.read_tenants(Which::Among(&ids)).await {
            Err(error) if error.kind == SourceErrorKind::Definition => {
                let all = self.read_tenants(Which::All).await?;
                Ok(all.only(|tenant| ids.contains(tenant.id())))
            }
            done => done,
        }
    }

    async fn read_tenants(&self, which: Which<'_>) -> Result<Tenants, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut lease = self.lease(longest).await?;
        let read = async {
            let read = self.read_tenants_once(&mut lease, which).await;
            if !is_stale(&read) {
                return read;
            }
            lease.clear_cached_statements().await?;
            self.read_tenants_once(&mut lease, which).await
        };
        let read = timeout(longest + ANSWER_GRACE, read).await;
        let read = read.unwrap_or_else(|_elapsed| Err(ReadError::unanswered(longest)));
        finish(lease, read).map_err(|error| error.into_source_error("could not read the tenants"))
    }

    async fn read_tenants_once(
        &self,
        lease: &mut Lease,
        which: Which<'_>,
    ) -> Result<Tenants, ReadError> {
        let longest = self.database.settings.statement_timeout;
        let is_open = self.database.begin_read(lease, longest).await?;
        let read = self.read_tenants_on(lease, which).await;
        self.end(lease, is_open, &read).await?;
        read
    }

    async fn read_tenants_on(
        &self,
        lease: &mut Lease,
        which: Which<'_>,
    ) -> Result<Tenants, ReadError> {
        let (whole, shape) = self.tenants_shape(lease).await?;
        let (statement, arguments) = match which {
            Which::All => (whole, PgArguments::default()),
            Which::Among(ids) => self.prepare_among(lease, &shape, ids).await?,
        };
        let names = shape.columns.iter().skip(1).map(|column| column.name.as_str());
        let mut tenants = Tenants::with_columns(names);
        let mut texts = RowTexts::default();
        let mut stream = statement.query_with(arguments).fetch(&mut **lease);
        while let Some(row) = stream.try_next().await? {
            texts.read(&row, &shape.columns)?;
            let Some(id) = texts.get(0) else {
                let message = "a tenant's id is NULL".to_owned();
                return Err(ReadError::Other(SourceErrorKind::Data, message));
            };
            if !which.has(id) {
                continue;
            }
            tenants.push(id, (1..shape.columns.len()).map(|index| texts.get(index)));
            if tenants.len().is_multiple_of(ROWS_A_TURN) {
                tokio::task::yield_now().await;
            }
        }
        drop(stream);
        tenants.shrink();
        if let Some(id) = duplicate(&tenants, shape.id) {
            let message = format!("the tenant id `{id}` comes more than once");
            return Err(ReadError::Other(SourceErrorKind::Data, message));
        }
        Ok(tenants)
    }

    /// Prepares the tenant query for some tenants, with their ids.
    ///
    /// What is no id of the type is left out, since no tenant has it. The query runs even if that is
    /// all of them: if the type is not that any more, only then the server says so.
    async fn prepare_among(
        &self,
        lease: &mut Lease,
        shape: &TenantsShape,
        ids: &HashSet<&str>,
    ) -> Result<(PgStatement, PgArguments), ReadError> {
        let sql = AssertSqlSafe(Arc::clone(&self.among)).into_sql_str();
        let statement = lease.prepare_with(sql, &[shape.id.array_type()]).await?;
        let now = column::columns(&statement);
        let same_id = now.first().map(|id| &id.ty) == shape.columns.first().map(|id| &id.ty);
        if !same_id || !now.iter().skip(1).eq(shape.columns.iter().skip(1)) {
            return Err(ReadError::Stale);
        }
        let ids: Vec<&str> = ids.iter().copied().filter(|id| shape.id.takes(id)).collect();
        let ids = IdArray::of(shape.id, ids.len(), ids.iter().copied())?;
        let mut arguments = PgArguments::default();
        arguments.add(ids).map_err(sqlx::Error::Encode)?;
        Ok((statement, arguments))
    }

    /// Prepares the tenant query, where it is not prepared yet.
    pub(super) async fn tenants_shape(
        &self,
        lease: &mut Lease,
    ) -> Result<(PgStatement, TenantsShape), ReadError> {
        let sql = AssertSqlSafe(Arc::clone(&self.settings.sql)).into_sql_str();
        let statement = lease.prepare(sql).await?;
        let columns = column::columns(&statement);
        let (Some(raw), Some(first)) = (statement.columns().first(), columns.first()) else {
            let message = "the tenant query returns no column".to_owned();
            return Err(ReadError::Other(SourceErrorKind::Definition, message));
        };
        let Some(id) = column::id_type(lease, raw.type_info(), &first.ty).await? else {
            let (name, ty) = (&first.name, &first.ty);
            let message = format!(
                "the tenants' id `{name}` is {ty}, and an id is {ID_TYPES}; \
                 hint: cast it in `tenants.sql`"
            );
            return Err(ReadError::Other(SourceErrorKind::Definition, message));
        };
        *self.id_type.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok((statement, TenantsShape { id, columns }))
    }

    /// The type of the ids, as the last tenant list had it.
    async fn id_type(&self, lease: &mut Lease) -> Result<IdType, ReadError> {
        let known = *self.id_type.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(id) => Ok(id),
            None => Ok(self.tenants_shape(lease).await?.1.id),
        }
    }

    async fn read_batch(
        &self,
        job: &Job,
        read: Read<'_>,
        rows: &mut Rows,
    ) -> Result<(), SourceError> {
        let mut lease = self.lease(read.timeout).await?;
        let longest = self.database.statement_timeout(read.timeout);
        let done = async {
            let done = self.read_once(&mut lease, job, read, rows).await;
            // What has given rows already was not stale, and they must not come twice.
            if !is_stale(&done) || !rows.is_empty() {
                return done;
            }
            lease.clear_cached_statements().await?;
            self.read_once(&mut lease, job, read, rows).await
        };
        let done = timeout(longest + ANSWER_GRACE, done).await;
        let done = done.unwrap_or_else(|_elapsed| {
            Err(if rows.is_empty() {
                ReadError::unanswered(longest)
            } else {
                ReadError::late(longest)
            })
        });
        finish(lease, done).map_err(|error| {
            error.into_source_error(&format!("could not read the rows of job `{}`", job.name))
        })
    }

    async fn read_once(
        &self,
        lease: &mut Lease,
        job: &Job,
        read: Read<'_>,
        rows: &mut Rows,
    ) -> Result<(), ReadError> {
        let is_open = self.database.begin_read(lease, read.timeout).await?;
        let done = self.read_on(lease, job, read, rows).await;
        self.end(lease, is_open, &done).await?;
        done
    }

    pub(super) async fn read_on(
        &self,
        lease: &mut Lease,
        job: &Job,
        read: Read<'_>,
        rows: &mut Rows,
    ) -> Result<(), ReadError> {
        let id = match job.scope {
            Scope::Tenants => Some(self.id_type(lease).await?),
            Scope::Fleet => None,
        };
        let statement = prepare(lease, job, id).await?;
        let mut plan = Plan::new(job, &statement, id, self, read.batch)?;
        let arguments = arguments(job, id, read)?;
        let mut stream = statement.query_with(arguments).fetch(&mut **lease);
        while let Some(row) = stream.try_next().await? {
            plan.push(&row, rows)?;
            if rows.len().is_multiple_of(ROWS_A_TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    pub(super) async fn lease(&self, longest: Duration) -> Result<Lease, SourceError> {
        timeout(longest, self.database.acquire()).await.unwrap_or_else(|_elapsed| {
            let server = self.database.server();
            let message = format!("no connection to database `{server}` was free in {longest:?}");
            Err(error::unavailable(message))
        })
    }

    /// Ends the transaction, if one is open; whether it was aborted makes no difference. A
    /// connection whose rows were not read to their end is closed instead.
    async fn end<T>(
        &self,
        lease: &mut Lease,
        is_open: bool,
        done: &Result<T, ReadError>,
    ) -> Result<(), sqlx::Error> {
        let is_between_statements = match done {
            Ok(_) => true,
            Err(error) => error.leaves_connection_whole(),
        };
        if !is_open || !is_between_statements {
            return Ok(());
        }
        if self.database.settings.pgbouncer {
            // Within the transaction, while the server that prepared them is still ours.
            lease.clear_cached_statements().await?;
        }
        lease.execute(sqlx::raw_sql("rollback")).await?;
        Ok(())
    }
}

impl Source for PostgresSource {
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>> {
        Box::pin(self.read_tenants(Which::All))
    }

    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>> {
        Box::pin(self.read_tenants_among(ids))
    }

    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.read_batch(job, read, rows))
    }
}

/// Which tenants to read.
#[derive(Clone, Copy)]
enum Which<'i> {
    All,
    Among(&'i HashSet<&'i str>),
}

impl Which<'_> {
    /// Whether a tenant is one of them. The server compares ids by their type, for which `A` and `a`
    /// may be the same; a tenant's keys have the id as the tenant query writes it.
    fn has(self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Among(ids) => ids.contains(id),
        }
    }
}

/// The tenant query for those tenants whose ids are in `$1`.
///
/// The server asks what is within for these ids alone, by its index where it has one, and keeps its
/// order. The first column gets another name, since it may have none, or that of another column.
fn among(sql: &str) -> String {
    let sql = without_semicolon(sql);
    format!(
        "select * from (\n{sql}\n) as tenant (\"tenant id\") where tenant.\"tenant id\" = any($1)"
    )
}

/// A statement without the semicolon at its end. It may be wrong about one that is within a text and
/// followed by what looks like a comment; the server then sees that the text does not end.
pub(super) fn without_semicolon(sql: &str) -> &str {
    let ends = sql.match_indices(';').map(|(at, _)| sql.split_at(at));
    ends.into_iter().find(|(_, end)| is_blank(end)).map_or(sql, |(statement, _)| statement)
}

/// Whether there is nothing but semicolons, white space and comments.
fn is_blank(sql: &str) -> bool {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|char: char| char == ';' || char.is_ascii_whitespace());
        let after = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let Some((_, after)) = comment.split_once("*/") else { return false };
            after
        } else {
            return rest.is_empty();
        };
        rest = after;
    }
}

/// Gives the connection back where the next user may have it.
fn finish<T>(lease: Lease, done: Result<T, ReadError>) -> Result<T, ReadError> {
    if !matches!(&done, Err(error) if !error.leaves_connection_whole()) {
        lease.give_back();
    }
    done
}

/// Prepares a job's query with the types of what it will be given, so that it may use fewer of
/// them, and use them where a type could not be guessed.
pub(super) async fn prepare(
    lease: &mut Lease,
    job: &Job,
    id: Option<IdType>,
) -> Result<PgStatement, ReadError> {
    let types = parameter_types(job, id);
    let sql = AssertSqlSafe(Arc::clone(&job.query.sql)).into_sql_str();
    let statement = lease.prepare_with(sql, &types).await?;
    let wanted = match statement.parameters() {
        Some(Either::Left(parameters)) => parameters.len(),
        Some(Either::Right(count)) => count,
        None => 0,
    };
    if wanted > types.len() {
        let message = too_many_parameters(wanted, &types);
        return Err(ReadError::Other(SourceErrorKind::Definition, message));
    }
    Ok(statement)
}

fn too_many_parameters(wanted: usize, types: &[PgTypeInfo]) -> String {
    match types.len() {
        0 => format!("the query uses `${wanted}`, and the job gives it no parameter"),
        1 => format!("the query uses `${wanted}`, and the job gives it `$1` only"),
        most => format!("the query uses `${wanted}`, and the job gives it `$1` to `${most}`"),
    }
}

/// What a job's query is given: of a tenant job the ids and, where it has dates, each tenant's first
/// and last date; of a job for the whole fleet only the two dates.
pub(super) fn parameter_types(job: &Job, id: Option<IdType>) -> Vec<PgTypeInfo> {
    let mut types: Vec<_> = id.into_iter().map(IdType::array_type).collect();
    if job.dates.is_some() {
        let date = match job.scope {
            Scope::Tenants => <Vec<NaiveDate> as Type<Postgres>>::type_info(),
            Scope::Fleet => <NaiveDate as Type<Postgres>>::type_info(),
        };
        types.extend([date.clone(), date]);
    }
    types
}

fn arguments(job: &Job, id: Option<IdType>, read: Read<'_>) -> Result<PgArguments, ReadError> {
    let mut arguments = PgArguments::default();
    if let Some(id) = id {
        arguments.add(IdArray::new(id, read.batch)?).map_err(sqlx::Error::Encode)?;
    }
    if let Some(dates) = &job.dates {
        let first = read.first_dates;
        let last: Vec<_> = first.iter().map(|first| date::last(*first, dates.days)).collect();
        match job.scope {
            Scope::Tenants => {
                arguments.add(first).map_err(sqlx::Error::Encode)?;
                arguments.add(last).map_err(sqlx::Error::Encode)?;
            }
            Scope::Fleet => {
                arguments.add(first.first().copied()).map_err(sqlx::Error::Encode)?;
                arguments.add(last.first().copied()).map_err(sqlx::Error::Encode)?;
            }
        }
    }
    Ok(arguments)
}

/// How the rows of one batch are read. It is made for each batch, which takes microseconds: so it
/// is never that of a query, or of a table, as it was before.
struct Plan<'j> {
    job: &'j Job,
    tenant: Option<TenantColumn>,
    keys: Vec<(usize, Column)>,
    encoder: RowEncoder,
}

struct TenantColumn {
    index: usize,
    column: Column,
    id: IdType,
    slots: Slots,
}

impl<'j> Plan<'j> {
    fn new(
        job: &'j Job,
        statement: &PgStatement,
        id: Option<IdType>,
        source: &PostgresSource,
        batch: &Batch,
    ) -> Result<Self, ReadError> {
        let columns = column::columns(statement);
        let missing = |name: &str| {
            let message = format!("the query returns no column `{name}`");
            ReadError::Other(SourceErrorKind::Definition, message)
        };
        let named = |name: &str| column::named(&columns, name).ok_or_else(|| missing(name));
        let mut tenant = None;
        if let Some(id) = id {
            let (index, column) = named(&source.settings.column)?;
            if !id.fits(&column.ty) {
                let message = wrong_tenant_column(column, id);
                return Err(ReadError::Other(SourceErrorKind::Definition, message));
            }
            let (column, slots) = (column.clone(), Slots::new(id, batch)?);
            tenant = Some(TenantColumn { index, column, id, slots });
        }
        let mut keys = Vec::new();
        for name in job.key_columns() {
            let (index, column) = named(name)?;
            keys.push((index, column.clone()));
        }
        let encoder = RowEncoder::new(&job.encoding, &columns).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            ReadError::Other(SourceErrorKind::Definition, problems.join("; "))
        })?;
        Ok(Self { job, tenant, keys, encoder })
    }

    fn push(&mut self, row: &PgRow, rows: &mut Rows) -> Result<(), ReadError> {
        let slot = match &mut self.tenant {
            Some(tenant) => tenant.slot(row)?,
            None => 0,
        };
        let Self { keys, encoder, .. } = self;
        let pushed: Result<(), RowError> = rows.push(
            slot,
            |out| Ok(encoder.encode(|index| value(row, index), out)?),
            |position, out| {
                let Some((index, column)) = keys.get(position) else { return Ok(KeyText::Null) };
                let Some(wire) = value(row, *index) else { return Ok(KeyText::Null) };
                match write_text(&column.ty, wire, out) {
                    Ok(()) => Ok(KeyText::Written),
                    Err(reason) => Err(RowError::Key(*index, reason)),
                }
            },
        );
        pushed.map_err(|error| self.describe(error))
    }

    #[cold]
    fn describe(&self, error: RowError) -> ReadError {
        match error {
            RowError::Full(full) => ReadError::Other(SourceErrorKind::TooLarge, full.to_string()),
            RowError::Encode(error) => {
                ReadError::Other(SourceErrorKind::Encoding, error.to_string())
            }
            RowError::Key(index, reason) => {
                let name = self.keys.iter().find(|(position, _)| *position == index);
                let name = name.map_or("", |(_, column)| column.name.as_str());
                let job = &self.job.name;
                let message =
                    format!("cannot write column `{name}` into a key of job `{job}`: {reason}");
                ReadError::Other(SourceErrorKind::Encoding, message)
            }
        }
    }
}

pub(super) fn wrong_tenant_column(column: &Column, id: IdType) -> String {
    let Column { name, ty } = column;
    format!("the column `{name}` is {ty}, and the tenants' id is {}", id.name())
}

impl TenantColumn {
    fn slot(&mut self, row: &PgRow) -> Result<u32, ReadError> {
        let wire = value(row, self.index);
        if let Some(slot) = wire.and_then(|wire| self.slots.of(wire)) {
            return Ok(slot);
        }
        Err(self.foreign(wire))
    }

    #[cold]
    fn foreign(&self, wire: Option<&[u8]>) -> ReadError {
        let name = &self.column.name;
        let whose = match wire {
            Some(wire) => {
                format!("whose `{name}` is `{}`, a tenant", self.id.text(wire, &self.column.ty))
            }
            None => format!("whose `{name}` is NULL, no tenant"),
        };
        let message = format!(
            "the query returned a row {whose} that was not asked for; \
             hint: filter by `{name} = any($1)`"
        );
        ReadError::Other(SourceErrorKind::Foreign, message)
    }
}

/// A column's bytes on the wire; `None` for NULL.
pub(super) fn value(row: &PgRow, index: usize) -> Option<&[u8]> {
    row.try_get_raw(index).ok().and_then(|value| value.as_bytes().ok())
}

/// A row cannot be kept.
enum RowError {
    Full(RowsFull),
    Encode(EncodeError),
    /// The column at that index cannot be written into a key.
    Key(usize, ValueError),
}

impl From<RowsFull> for RowError {
    fn from(full: RowsFull) -> Self {
        Self::Full(full)
    }
}

impl From<EncodeError> for RowError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

/// A read that failed.
pub(super) enum ReadError {
    /// The server or the driver said no.
    Sql(sqlx::Error),
    /// We did, perhaps in the middle of the rows.
    Other(SourceErrorKind, String),
    /// A statement that the connection keeps prepared returns other columns than it would now.
    Stale,
}

impl ReadError {
    /// Nothing came of a server that would have ended the statement by itself: it hangs, or is
    /// behind something that swallows what we say. Fewer tenants would not help.
    pub(super) fn unanswered(longest: Duration) -> Self {
        let longest = longest + ANSWER_GRACE;
        Self::Other(SourceErrorKind::Unavailable, format!("no answer within {longest:?}"))
    }

    /// Rows came, and not all of them in time.
    fn late(longest: Duration) -> Self {
        let longest = longest + ANSWER_GRACE;
        Self::Other(SourceErrorKind::Timeout, format!("not all rows came within {longest:?}"))
    }

    /// After an error of its own the server is ready for the next statement.
    fn leaves_connection_whole(&self) -> bool {
        match self {
            Self::Sql(error) => error::database(error).is_some(),
            Self::Other(..) => false,
            Self::Stale => true,
        }
    }

    pub(super) fn into_source_error(self, doing: &str) -> SourceError {
        match self {
            Self::Sql(error) => error::source_error(doing, &error),
            Self::Other(kind, message) => {
                SourceError { kind, message: format!("{doing}: {message}") }
            }
            Self::Stale => {
                let message = format!("{doing}: the columns of its query keep changing");
                SourceError { kind: SourceErrorKind::Transient, message }
            }
        }
    }
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<BadId> for ReadError {
    fn from(error: BadId) -> Self {
        Self::Other(SourceErrorKind::Definition, error.to_string())
    }
}

/// Whether a statement that the connection keeps prepared is for tables as they were: it returns
/// other columns ("cached plan must not change result type"), or takes ids of another type ("binary
/// data has array element type …"). Both come before the first row. The codes are those of other
/// errors too, but those come again when the statement is prepared anew.
fn is_stale<T>(done: &Result<T, ReadError>) -> bool {
    match done {
        Ok(_) | Err(ReadError::Other(..)) => false,
        Err(ReadError::Stale) => true,
        Err(ReadError::Sql(error)) => matches!(error::code(error), Some("0A000" | "42804")),
    }
}

/// The texts of one row's columns.
#[derive(Default)]
struct RowTexts {
    text: Vec<u8>,
    columns: Vec<Option<Range<usize>>>,
}

impl RowTexts {
    fn read(&mut self, row: &PgRow, columns: &[Column]) -> Result<(), ReadError> {
        self.text.clear();
        self.columns.clear();
        for (index, column) in columns.iter().enumerate() {
            let Some(wire) = value(row, index) else {
                self.columns.push(None);
                continue;
            };
            let start = self.text.len();
            write_text(&column.ty, wire, &mut self.text).map_err(|reason| {
                let Column { name, ty } = column;
                let message = format!("cannot read column `{name}` of type `{ty}`: {reason}");
                ReadError::Other(SourceErrorKind::Definition, message)
            })?;
            self.columns.push(Some(start..self.text.len()));
        }
        Ok(())
    }

    fn get(&self, column: usize) -> Option<&str> {
        let range = self.columns.get(column)?.clone()?;
        self.text.get(range).and_then(|text| str::from_utf8(text).ok())
    }
}

/// An id that comes more than once.
fn duplicate<'t>(tenants: &'t Tenants, id: IdType) -> Option<String> {
    let text = |text: &'t str| -> Cow<'t, str> {
        if id.ignores_case() { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) }
    };
    let mut ids: Vec<Cow<'_, str>> = tenants.iter().map(|tenant| text(tenant.id())).collect();
    ids.sort_unstable();
    ids.windows(2).find_map(|pair| match pair {
        [one, other] if one == other => Some(one.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: &str) {
        assert_eq!(without_semicolon(sql), expected, "{sql}");
    }

    #[test]
    fn the_semicolon_at_the_end_is_found_behind_comments() {
        check("select 1", "select 1");
        check("select 1;", "select 1");
        check("select 1 ;\n ; ", "select 1 ");
        check("select 1; -- one; or two", "select 1");
        check("select 1 -- one\n;\n/* two */ -- three", "select 1 -- one\n");
        check("select 1 -- one; two", "select 1 -- one; two");
        check("select ';' as a, ';' as b", "select ';' as a, ';' as b");
        check("select ';' as \";\";/* ' */", "select ';' as \";\"");
        check("select 1; /* open", "select 1; /* open");
        check("", "");
    }
}
