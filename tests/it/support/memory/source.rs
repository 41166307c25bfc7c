//! Tenants and rows in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime};
use futures::future::BoxFuture;

use super::lock;
use preheat::domain::date;
use preheat::domain::day::{BatchDays, MomentType, number};
use preheat::domain::job::{Job, JobName, Scope};
use preheat::domain::json::ColumnType;
use preheat::domain::order::Comparison;
use preheat::domain::row::{KeyText, Rows, RowsFull, SlotDay};
use preheat::domain::tenant::{IdClass, Tenant, TenantId, Tenants};
use preheat::engine::ports::{Read, Source, SourceError, SourceErrorKind};

/// Tenants and rows in memory; hooks add failures and delays.
#[derive(Default)]
pub(crate) struct MemorySource {
    state: Mutex<SourceState>,
}

#[derive(Default)]
struct SourceState {
    tenants: Tenants,
    id_class: IdClass,
    tables: HashMap<JobName, Vec<MemoryRow>>,
    before_tenants: Option<TenantsHook>,
    before_read: Option<ReadHook>,
    reads: Vec<ReadSeen>,
}

type TenantsHook = Arc<dyn Fn() -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync>;
type ReadHook = Arc<dyn Fn(ReadSeen) -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync>;

/// A row of a job's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryRow {
    /// The id of its tenant; ignored for a job without tenants.
    pub(crate) tenant: String,
    /// Its JSON.
    pub(crate) json: String,
    /// The texts of the columns that keys, dates and the order may name; a missing one is NULL.
    pub(crate) columns: BTreeMap<String, String>,
}

impl MemoryRow {
    /// A row with these columns for its keys.
    pub(crate) fn new<'c>(
        tenant: &str,
        json: &str,
        columns: impl IntoIterator<Item = (&'c str, &'c str)>,
    ) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let columns = columns.into_iter().map(own).collect();
        Self { tenant: tenant.to_owned(), json: json.to_owned(), columns }
    }
}

/// A read, as the engine asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadSeen {
    /// The job.
    pub(crate) job: JobName,
    /// The tenants, in slot order.
    pub(crate) tenants: Vec<String>,
    /// Each slot's first date.
    pub(crate) first_dates: Vec<NaiveDate>,
    /// The longest time that it may take.
    pub(crate) timeout: Duration,
}

impl MemorySource {
    /// A source with these tenants and no rows.
    pub(crate) fn new(tenants: Tenants) -> Self {
        let state = SourceState { tenants, ..SourceState::default() };
        Self { state: Mutex::new(state) }
    }

    /// Replaces the tenants.
    pub(crate) fn set_tenants(&self, tenants: Tenants) {
        lock(&self.state).tenants = tenants;
    }

    /// Sets the kind of the tenants' ids; without it, any text.
    pub(crate) fn set_id_class(&self, ids: IdClass) {
        lock(&self.state).id_class = ids;
    }

    /// Replaces the rows of a job, in the order in which they are read.
    pub(crate) fn set_rows(&self, job: &JobName, rows: Vec<MemoryRow>) {
        lock(&self.state).tables.insert(job.clone(), rows);
    }

    /// Calls the hook before every read of the tenant list: it may wait, fail or change this
    /// source.
    pub(crate) fn before_tenants<F>(&self, hook: F)
    where
        F: Fn() -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_tenants = Some(Arc::new(hook));
    }

    /// Calls the hook before every read of rows: it may wait, fail or change this source.
    pub(crate) fn before_read<F>(&self, hook: F)
    where
        F: Fn(ReadSeen) -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_read = Some(Arc::new(hook));
    }

    /// All reads of rows so far, including failed ones.
    pub(crate) fn reads(&self) -> Vec<ReadSeen> {
        lock(&self.state).reads.clone()
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySource").finish_non_exhaustive()
    }
}

impl Source for MemorySource {
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>> {
        Box::pin(async {
            let hook = lock(&self.state).before_tenants.clone();
            if let Some(hook) = hook {
                hook().await?;
            }
            Ok(lock(&self.state).tenants.clone())
        })
    }

    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>> {
        Box::pin(async move {
            let all = self.tenants().await?;
            Ok(all.only(|tenant| ids.iter().any(|id| id.as_str() == tenant.id())))
        })
    }

    fn id_class(&self) -> IdClass {
        lock(&self.state).id_class
    }

    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let seen = ReadSeen {
                job: job.name.clone(),
                tenants: read.batch.tenants().map(|tenant| tenant.id().to_owned()).collect(),
                first_dates: read.first_dates.to_vec(),
                timeout: read.timeout,
            };
            let hook = {
                let mut state = lock(&self.state);
                state.reads.push(seen.clone());
                state.before_read.clone()
            };
            if let Some(hook) = hook {
                hook(seen).await?;
            }
            let state = lock(&self.state);
            let table = state.tables.get(&job.name).map(Vec::as_slice).unwrap_or_default();
            push_matching(job, read, table, rows)
        })
    }
}

/// Adds the rows of a table that the read asks for.
fn push_matching(
    job: &Job,
    read: Read<'_>,
    table: &[MemoryRow],
    rows: &mut Rows,
) -> Result<(), SourceError> {
    let slots: HashMap<&str, usize> =
        read.batch.tenants().enumerate().map(|(slot, tenant)| (tenant.id(), slot)).collect();
    let columns = job.key_columns();
    let days = job
        .dates
        .as_ref()
        .map(|dates| BatchDays::new(dates, MomentType::Date, read.batch, read.first_dates));
    for row in table {
        let slot = match job.scope {
            Scope::Tenants => slots.get(row.tenant.as_str()).copied(),
            Scope::Global => Some(0),
        };
        let Some(slot) = slot else { continue };
        let day = match date_of(job, read.batch.tenant(slot), row) {
            RowDate::None => None,
            RowDate::Date(date) => {
                let day = days.as_ref().and_then(|days| days.day(slot, number(date)));
                if day.is_none() {
                    continue;
                }
                day
            }
            RowDate::Unreadable => continue,
        };
        let pushed: Result<(), RowsFull> = rows.push_ordered(
            SlotDay { slot: u32::try_from(slot).unwrap_or(u32::MAX), day },
            |out| {
                out.extend_from_slice(row.json.as_bytes());
                Ok(())
            },
            |column, out| {
                let value = columns.get(column).and_then(|name| row.columns.get(*name));
                let Some(value) = value else { return Ok(KeyText::Null) };
                out.extend_from_slice(value.as_bytes());
                Ok(KeyText::Written)
            },
            |out| {
                for entry in &job.query.order {
                    let value = row.columns.get(entry.name()).map(String::as_bytes);
                    let comparison = Comparison::new(entry, &ColumnType::Text).unwrap();
                    comparison.append(value, out).unwrap();
                }
                Ok(())
            },
        );
        pushed.map_err(|full| SourceError {
            kind: SourceErrorKind::TooLarge,
            message: format!("job `{}`: {full}", job.name),
        })?;
    }
    Ok(())
}

/// What a row's column says about its date.
enum RowDate {
    /// The column is NULL, or the job has no dates.
    None,
    /// The date, or the local date of a moment.
    Date(NaiveDate),
    /// Neither a date nor a moment.
    Unreadable,
}

fn date_of(job: &Job, tenant: Option<Tenant<'_>>, row: &MemoryRow) -> RowDate {
    let text = job.date_column().and_then(|column| row.columns.get(column));
    let (Some(dates), Some(text)) = (&job.dates, text) else { return RowDate::None };
    let local = |at: DateTime<FixedOffset>| {
        let zone = date::zone_of(dates, tenant).ok()?;
        Some(at.with_timezone(&zone).date_naive())
    };
    let instant = || DateTime::parse_from_rfc3339(text).ok().and_then(local);
    let wall_time = || text.parse().ok().map(|at: NaiveDateTime| at.date());
    let date = text.parse().ok().or_else(instant).or_else(wall_time);
    date.map_or(RowDate::Unreadable, RowDate::Date)
}
