//! Reads tenants and rows: one query a batch, and rows encoded straight from the wire.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::timeout;

use crate::domain::day::{BatchDays, MomentType};
use crate::domain::job::Job;
use crate::domain::json::{Column, ColumnType, EncodeError, RowEncoder, ValueError, write_text};
use crate::domain::order::Comparison;
use crate::domain::row::{KeyText, Rows, RowsFull, SlotDay};
use crate::domain::tenant::{IdClass, TenantId, Tenants};
use crate::engine::ports::{Read, Source, SourceError, SourceErrorKind};

use super::client::Client;
use super::id::{ID_TYPES, IdType, Slots, id_array};
use super::moment::{DayColumn, KnownMoments, moment_type_of};
use super::parameters::Asked;
use super::read_error::{ReadError, in_time, refused};
use super::wire::{Described, Execution, Row, Session, Stopped};
use super::{ANSWER_GRACE, Access, Begin, Database, Transaction, column, describe, error};

/// The longest row of the tenant query, in bytes: an id, a time zone and a few more columns.
const LONGEST_TENANT: usize = 1 << 20;

/// The tenant query.
#[derive(Clone, Debug)]
pub struct TenantsSettings {
    /// The SQL; its first column is the id.
    pub sql: Arc<str>,
    /// The name of the id column in job queries.
    pub column: String,
}

/// Tenants and rows from Postgres.
#[derive(Debug)]
pub struct PostgresSource {
    pub(super) database: Arc<Database>,
    pub(super) settings: TenantsSettings,
    access: Access,
    /// The tenant query for some tenants: see [`among`].
    among: Arc<str>,
    /// The type of the ids, as of the last tenant list.
    id_type: Mutex<Option<IdType>>,
    /// The types of the jobs' `dates.column`.
    pub(super) moments: KnownMoments,
}

/// The columns of the tenant query, and the type of the ids.
pub(super) struct TenantsShape {
    pub(super) id: IdType,
    pub(super) columns: Vec<Column>,
}

impl PostgresSource {
    /// A source that reads this database.
    pub fn new(database: Arc<Database>, settings: TenantsSettings) -> Self {
        let among = among(&settings.sql).into();
        let (id_type, moments) = (Mutex::default(), KnownMoments::default());
        Self { database, settings, access: Access::AsSet, among, id_type, moments }
    }

    /// The same source for commands that only look (plan, audit, verifier): the server refuses
    /// every write of a query, whatever [`super::DatabaseSettings::read_only`] says.
    #[must_use]
    pub fn reading_only(&self) -> Self {
        let (database, settings) = (Arc::clone(&self.database), self.settings.clone());
        Self { access: Access::ReadOnly, ..Self::new(database, settings) }
    }

    /// If the server refuses the query inside of another one, we read all tenants instead. We do so
    /// too if a table was altered in a way that only the whole query notices. If the query itself
    /// is wrong, its own error says more.
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
        let mut transaction = self.begin_own(self.access, longest).await?;
        transaction.end_with_rows();
        let read = in_time(longest, self.read_tenants_in(&mut transaction, which)).await;
        let read = finish(transaction, read).await;
        read.map_err(|error| error.into_source_error("could not read the tenants"))
    }

    async fn read_tenants_in(
        &self,
        transaction: &mut Transaction<Session>,
        which: Which<'_>,
    ) -> Result<Tenants, ReadError> {
        let shape = self.tenants_shape(transaction).await?;
        let parameters = match which {
            Which::All => {
                self.moments.forget();
                Vec::new()
            }
            Which::Among(ids) => {
                let ids = ids.iter().copied().filter(|id| shape.id.takes(id));
                let ids = vec![id_array(shape.id, ids)?];
                Client::describe(&mut **transaction, &self.among, &ids).await?;
                ids
            }
        };
        let names = shape.columns.iter().skip(1).map(|column| column.name.as_str());
        let mut tenants = Tenants::with_columns(names);
        let mut texts = RowTexts::default();
        let execution = Execution {
            parameters: &parameters,
            longest: LONGEST_TENANT,
            then: transaction.ending(),
        };
        let read = transaction.rows(execution, |row| {
            texts.read(row, &shape.columns)?;
            let Some(id) = texts.get(0) else {
                let message = "a tenant's id is NULL".to_owned();
                return Err(ReadError::Other(SourceErrorKind::Data, message));
            };
            if which.has(id) {
                tenants.push(id, (1..shape.columns.len()).map(|index| texts.get(index)));
            }
            Ok(())
        });
        read.await.map_err(|stopped| match stopped {
            Stopped::Sql(error) => refused(error, parameters.len()),
            Stopped::TooLong => {
                let message = format!("a tenant has more than {LONGEST_TENANT} bytes of columns");
                ReadError::Other(SourceErrorKind::Data, message)
            }
            Stopped::Reader(error) => error,
        })?;
        tenants.shrink();
        if let Some(id) = duplicate(&tenants, shape.id) {
            let message = format!("the tenant id `{id}` comes more than once");
            return Err(ReadError::Other(SourceErrorKind::Data, message));
        }
        Ok(tenants)
    }

    /// The columns that the tenant query returns. The transaction locks the tables that the query
    /// reads against changes of their definition until it ends.
    pub(super) async fn tenants_shape<C: Client>(
        &self,
        transaction: &mut Transaction<C>,
    ) -> Result<TenantsShape, ReadError> {
        let described = Client::describe(&mut **transaction, &self.settings.sql, &[]).await?;
        let Some(Described { column: first, oid }) = described.first().cloned() else {
            let message = "the tenant query returns no column".to_owned();
            return Err(ReadError::Other(SourceErrorKind::Definition, message));
        };
        let array = if first.ty == ColumnType::Citext {
            let sql = format!("select typarray::text from pg_catalog.pg_type where oid = {oid}");
            let array = transaction.ask(&sql).await?.concat();
            // The look-up makes the server forget the statement.
            Client::describe(&mut **transaction, &self.settings.sql, &[]).await?;
            array.first().and_then(|oid| oid.as_ref()?.parse().ok())
        } else {
            None
        };
        let Some(id) = IdType::new(&first.ty, oid, array) else {
            let (name, ty) = (&first.name, &first.ty);
            let message = format!(
                "the tenants' id `{name}` is {ty}, and an id is {ID_TYPES}; \
                 hint: cast it in `tenants.sql`"
            );
            return Err(ReadError::Other(SourceErrorKind::Definition, message));
        };
        *self.id_type.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        let columns = described.into_iter().map(|one| one.column).collect();
        Ok(TenantsShape { id, columns })
    }

    /// The type of the ids, as of the last tenant list; if there was none, the tenant query is
    /// described.
    pub(super) async fn id_type<C: Client>(
        &self,
        transaction: &mut Transaction<C>,
    ) -> Result<IdType, ReadError> {
        let known = *self.id_type.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(id) => Ok(id),
            None => Ok(self.tenants_shape(transaction).await?.id),
        }
    }

    async fn read_batch(
        &self,
        job: &Job,
        read: Read<'_>,
        rows: &mut Rows,
    ) -> Result<(), SourceError> {
        let mut transaction = self.begin_own(self.access, read.timeout).await?;
        let longest = self.database.statement_timeout(read.timeout);
        transaction.end_with_rows();
        let done = self.read_in(&mut transaction, job, read, rows);
        let done = timeout(longest + ANSWER_GRACE, done).await;
        let done = done.unwrap_or_else(|_elapsed| {
            Err(if rows.is_empty() {
                ReadError::unanswered(longest)
            } else {
                ReadError::late(longest)
            })
        });
        finish(transaction, done).await.map_err(|error| {
            error.into_source_error(&format!("could not read the rows of job `{}`", job.name))
        })
    }

    /// Reads the rows of a batch.
    pub(super) async fn read_in(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        read: Read<'_>,
        rows: &mut Rows,
    ) -> Result<(), ReadError> {
        let mut asked = self.ask(transaction, job, read).await?;
        let mut columns = described(transaction, asked).await?;
        if let Some(other) = other_moment_type(asked, &columns)? {
            self.moments.note(job, other);
            asked.types.moment = Some(other);
            columns = described(transaction, asked).await?;
            if other_moment_type(asked, &columns)?.is_some() {
                let message = "the type of `dates.column` changes with that of the parameters; \
                               hint: cast the column";
                return Err(ReadError::Other(SourceErrorKind::Definition, message.to_owned()));
            }
        }
        self.read_rows(transaction, (asked, &columns), rows).await
    }

    /// Reads the rows of the query that was described last.
    async fn read_rows(
        &self,
        transaction: &mut Transaction<Session>,
        (asked, columns): (Asked<'_>, &[Column]),
        rows: &mut Rows,
    ) -> Result<(), ReadError> {
        let days = asked.days();
        let parameters = asked.parameters(days.as_ref())?;
        let limit = rows.limit();
        let longest = limit.bytes();
        let then = transaction.ending();
        let execution = Execution { parameters: &parameters, longest, then };
        let mut plan = None;
        let read = transaction.rows(execution, |row| {
            let plan = if let Some(plan) = &mut plan {
                plan
            } else {
                let column = &self.settings.column;
                plan.insert(Plan::new(asked, days.as_ref(), columns, column)?)
            };
            plan.push(row, rows)
        });
        read.await.map_err(|stopped| match stopped {
            Stopped::Sql(error) => refused(error, parameters.len()),
            Stopped::TooLong => {
                ReadError::Other(SourceErrorKind::TooLarge, RowsFull { limit }.to_string())
            }
            Stopped::Reader(error) => error,
        })
    }

    /// Begins a transaction of our own client, for tenants and rows.
    pub(super) async fn begin_own(
        &self,
        access: Access,
        longest: Duration,
    ) -> Result<Transaction<Session>, SourceError> {
        self.begin_with(access, longest).await
    }

    pub(super) async fn begin(
        &self,
        access: Access,
        longest: Duration,
    ) -> Result<Transaction, SourceError> {
        self.begin_with(access, longest).await
    }

    async fn begin_with<C: Client>(
        &self,
        access: Access,
        longest: Duration,
    ) -> Result<Transaction<C>, SourceError> {
        let begin = self.database.begin_with(Begin::reading(access, longest));
        timeout(longest, begin).await.unwrap_or_else(|_elapsed| {
            let server = self.database.server();
            let message = format!("no connection to database `{server}` was free in {longest:?}");
            Err(error::unavailable(message))
        })
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

    fn id_class(&self) -> IdClass {
        let known = *self.id_type.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(IdType::class).unwrap_or_default()
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
    /// Whether the caller asked for the tenant. The server compares ids by their type, which may
    /// treat `A` and `a` as equal, but a tenant's keys contain the id exactly as the tenant query
    /// returns it.
    fn has(self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Among(ids) => ids.contains(id),
        }
    }
}

/// The tenant query for those tenants whose ids are in `$1`.
///
/// The server runs the inner query for these ids only, by an index if there is one, and keeps its
/// order. The first column gets a new name, because it may have none, or the name of another
/// column.
fn among(sql: &str) -> String {
    let sql = describe::statement(sql);
    format!(
        "select * from (\n{sql}\n) as tenant (\"tenant id\") where tenant.\"tenant id\" = any($1)"
    )
}

/// Ends the transaction. If the rows were not read to their end, the connection is closed instead.
pub(super) async fn finish<T, C: Client>(
    transaction: Transaction<C>,
    done: Result<T, ReadError>,
) -> Result<T, ReadError> {
    match &done {
        Ok(_) => transaction.end().await?,
        Err(error) if error.leaves_connection_whole() => transaction.undo().await,
        Err(_) => {}
    }
    done
}

/// Whether the caller must run the statement again, in the new transaction that this function
/// begins. That is so if the driver met a type that was created after the connection: the server
/// forgot the statement while the driver looked the type up, and nothing ran.
pub(super) async fn learns_types<T>(
    transaction: &mut Transaction,
    done: &Result<T, ReadError>,
) -> Result<bool, ReadError> {
    match done {
        Err(error) if error.is_of_no_statement() => Ok(transaction.begin_again().await?),
        Ok(_) | Err(_) => Ok(false),
    }
}

/// The columns of a job's query.
async fn described(
    transaction: &mut Transaction<Session>,
    asked: Asked<'_>,
) -> Result<Vec<Column>, ReadError> {
    let parameters = asked.parameters(asked.days().as_ref())?;
    let described = Client::describe(&mut **transaction, &asked.job.query.sql, &parameters).await?;
    Ok(described.into_iter().map(|one| one.column).collect())
}

/// The type of the job's `dates.column`, if it is another one than that of the parameters: the query would
/// compare its rows with the wrong moments.
fn other_moment_type(
    asked: Asked<'_>,
    columns: &[Column],
) -> Result<Option<MomentType>, ReadError> {
    let (Some(name), Some(known)) = (asked.job.moment_column(), asked.types.moment) else {
        return Ok(None);
    };
    let found = moment_type_of(columns, name)?;
    Ok((found != known).then_some(found))
}

/// How to read the rows of one batch. It is made anew from each batch's first row, which takes
/// microseconds. So it never describes an older version of a query or of a table.
struct Plan<'j> {
    job: &'j Job,
    tenant: Option<TenantColumn>,
    day: Option<DayColumn<'j>>,
    keys: Vec<(usize, Column)>,
    /// The columns of `query.order`.
    order: Vec<(usize, Comparison)>,
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
        asked: Asked<'j>,
        days: Option<&'j BatchDays>,
        columns: &[Column],
        tenant_column: &str,
    ) -> Result<Self, ReadError> {
        let Asked { job, types, read } = asked;
        let definition = |message| ReadError::Other(SourceErrorKind::Definition, message);
        let missing = |name: &str| definition(format!("the query returns no column `{name}`"));
        let named = |name: &str| column::named(columns, name).ok_or_else(|| missing(name));
        let mut tenant = None;
        if let Some(id) = types.id {
            let (index, column) = named(tenant_column)?;
            if !id.fits(&column.ty) {
                return Err(definition(wrong_tenant_column(column, id)));
            }
            let (column, slots) = (column.clone(), Slots::new(id, read.batch)?);
            tenant = Some(TenantColumn { index, column, id, slots });
        }
        let mut keys = Vec::new();
        for name in job.key_columns() {
            let (index, column) = named(name)?;
            keys.push((index, column.clone()));
        }
        let day = match (job.date_column(), days) {
            (Some(name), Some(days)) => Some(DayColumn::new(job, named(name)?, days)),
            (None, _) | (_, None) => None,
        };
        let mut order = Vec::new();
        for entry in &job.query.order {
            let (index, column) = named(entry.name())?;
            let comparison = Comparison::new(entry, &column.ty)
                .map_err(|problem| definition(format!("{problem}; hint: {}", problem.hint())))?;
            order.push((index, comparison));
        }
        let encoder = RowEncoder::new(&job.encoding, columns).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            definition(problems.join("; "))
        })?;
        Ok(Self { job, tenant, day, keys, order, encoder })
    }

    fn push(&mut self, row: Row<'_>, rows: &mut Rows) -> Result<(), ReadError> {
        let slot = match &mut self.tenant {
            Some(tenant) => tenant.slot(row)?,
            None => 0,
        };
        let of = match &self.day {
            Some(day) => day.of(row, slot)?,
            None => Some(SlotDay::from(slot)),
        };
        let Some(of) = of else { return Ok(()) };
        let Self { job, keys, order, encoder, .. } = self;
        let pushed: Result<(), RowError> = rows.push_ordered(
            of,
            |out| Ok(encoder.encode(|index| row.value(index), out)?),
            |position, out| {
                let Some((index, column)) = keys.get(position) else { return Ok(KeyText::Null) };
                let Some(wire) = row.value(*index) else { return Ok(KeyText::Null) };
                match write_text(&column.ty, wire, out) {
                    Ok(()) => Ok(KeyText::Written),
                    Err(reason) => Err(RowError::Key(*index, reason)),
                }
            },
            |out| {
                order.iter().zip(&job.query.order).try_for_each(|((index, comparison), entry)| {
                    let appended = comparison.append(row.value(*index), out);
                    appended.map_err(|reason| RowError::Order(entry.name().to_owned(), reason))
                })
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
            RowError::Order(name, reason) => {
                let message = format!("cannot order rows by column `{name}`: {reason}");
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
    fn slot(&mut self, row: Row<'_>) -> Result<u32, ReadError> {
        let wire = row.value(self.index);
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

/// Why a row cannot be kept.
enum RowError {
    Full(RowsFull),
    Encode(EncodeError),
    /// The column at this index cannot be written into a key.
    Key(usize, ValueError),
    /// Rows cannot be ordered by this column.
    Order(String, ValueError),
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

/// The texts of one row's columns.
#[derive(Default)]
struct RowTexts {
    text: Vec<u8>,
    columns: Vec<Option<Range<usize>>>,
}

impl RowTexts {
    fn read(&mut self, row: Row<'_>, columns: &[Column]) -> Result<(), ReadError> {
        self.text.clear();
        self.columns.clear();
        for (index, column) in columns.iter().enumerate() {
            let Some(wire) = row.value(index) else {
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

/// An id that more than one tenant has.
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
