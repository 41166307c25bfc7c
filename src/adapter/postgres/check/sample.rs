//! Tries a query on a few tenants, read alone and together, to see whether a tenant's rows depend
//! on the other tenants of the batch.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{sleep, timeout};

use crate::domain::date::{first_dates, today};
use crate::domain::job::{Job, Scope};
use crate::domain::row::Rows;
use crate::domain::tenant::{Batch, Tenants};
use crate::engine::ports::{Read, SourceError, SourceErrorKind};

use super::super::client::Client;
use super::super::read_error::ReadError;
use super::super::source::{PostgresSource, finish};
use super::super::wire::Session;
use super::super::{Access, Transaction};
use super::{Findings, QueryPlace, QueryProblem, problem};

/// The number of tenants that are read together: enough that some have rows, and few enough that a
/// query takes no longer than in a run.
pub const SAMPLE_TENANTS: usize = 12;
/// The limit on the bytes of one read, and so on its rows: a few tenants need far less, and a giant
/// tenant is not worth the memory.
pub const SAMPLE_BYTES: usize = 8 * 1024 * 1024;
/// The longest time for one job's sample. Somebody waits for a check, even for one of many jobs.
pub const SAMPLE_TIME: Duration = Duration::from_secs(10);

/// The number of tenants with rows that are read alone as well. One would not do: it may be the one
/// tenant whose rows a faulty query returns in full.
const ALONE: usize = 4;
/// The most tenants that are read alone, if many have no rows.
const ALONE_TRIES: usize = 8;

/// The wait between two transactions, so that a timestamp with milliseconds differs in each.
const PAUSE: Duration = Duration::from_millis(5);

/// The time zones with the earliest and the latest date: at any moment the date in one of them
/// differs from the date in UTC.
const ZONES: [&str; 2] = ["Pacific/Kiritimati", "Pacific/Pago_Pago"];

/// One row: its JSON, its day, and the texts of its key columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    json: Vec<u8>,
    day: Option<u16>,
    keys: Vec<Option<Vec<u8>>>,
}

/// A batch, and the rows of each of its slots.
struct Sample {
    batch: Batch,
    rows: Vec<Vec<Row>>,
}

/// The result of comparing tenants.
enum Outcome {
    /// Nothing is wrong, or there was nothing to compare.
    Same,
    /// A tenant's rows depend on the other tenants of its batch.
    Different(Difference),
    /// Only the order of a tenant's rows depends on the other tenants, but it changes the value.
    OtherOrder,
    /// Each read returns different rows, whatever the tenants.
    Unsteady,
    /// Each transaction returns different rows for all tenants.
    Drifting,
    /// The values depend on the session's time zone, and nothing defines that.
    InSomeZone,
    /// The query failed for too many tenants.
    Failed(ReadError),
}

/// How a tenant's rows differ between the two reads.
struct Difference {
    tenant: String,
    alone: usize,
    together: usize,
    others: usize,
    /// The first row that differs, counted from 1.
    first: usize,
}

impl PostgresSource {
    /// Tries a job's query on a few tenants, within [`SAMPLE_TIME`], in a read-only transaction.
    /// This finds queries that call a function that writes, and queries where a tenant's rows
    /// depend on the other tenants.
    pub async fn try_on_tenants(
        &self,
        job: &Job,
        tenants: &Arc<Tenants>,
        now: DateTime<Utc>,
    ) -> Result<Findings, SourceError> {
        let batch = match job.scope {
            Scope::Tenants => sample(job, tenants, now),
            Scope::Global => Batch::global(),
        };
        if job.scope == Scope::Tenants && batch.is_empty() {
            return Ok(Findings::default());
        }
        let mut transaction = self.begin_own(Access::Snapshot, SAMPLE_TIME).await?;
        let compare = async {
            let outcome = match job.scope {
                Scope::Tenants => self.compare(&mut transaction, job, batch.clone(), now).await?,
                // A global job's query has no tenants to compare.
                Scope::Global => {
                    self.read_sample(&mut transaction, job, &batch, now).await?;
                    Outcome::Same
                }
            };
            let asks = matches!(outcome, Outcome::Same) && self.database.is_zone_unsaid();
            if asks && self.computes_with_zone(&mut transaction, job, batch, now).await? {
                return Ok(Outcome::InSomeZone);
            }
            Ok(outcome)
        };
        let compared = timeout(SAMPLE_TIME, compare).await.unwrap_or_else(|_elapsed| {
            let message = format!("it took longer than {SAMPLE_TIME:?}");
            Err(ReadError::Other(SourceErrorKind::Timeout, message))
        });
        let outcome = finish(transaction, compared).await.unwrap_or_else(Outcome::Failed);
        self.findings(job, outcome).map_err(|error| {
            error.into_source_error(&format!("could not try the query of job `{}`", job.name))
        })
    }

    async fn compare(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        batch: Batch,
        now: DateTime<Utc>,
    ) -> Result<Outcome, ReadError> {
        let Sample { batch, rows: together } =
            self.read_together(transaction, job, batch, now).await?;
        let mut slots: Vec<usize> = (0..batch.len()).collect();
        slots.sort_by_key(|slot| together.get(*slot).is_none_or(Vec::is_empty));
        let (mut compared, mut is_in_order) = (0, true);
        for slot in slots.into_iter().take(ALONE_TRIES) {
            let with_others = together.get(slot).map(Vec::as_slice).unwrap_or_default();
            let one = batch.some([slot]);
            let alone = match self.read_sample(transaction, job, &one, now).await {
                Ok(read) => read.into_iter().next().unwrap_or_default(),
                Err(error) if may_be_of_one_tenant(&error) => continue,
                Err(error) => return Err(error),
            };
            if !are_the_same_rows(&alone, with_others) {
                let again = self.read_sample(transaction, job, &batch, now).await?;
                let again = again.get(slot).map(Vec::as_slice).unwrap_or_default();
                let alone_again = self.read_sample(transaction, job, &one, now).await?;
                let alone_again = alone_again.first().map(Vec::as_slice).unwrap_or_default();
                let is_steady =
                    are_the_same_rows(with_others, again) && are_the_same_rows(&alone, alone_again);
                return Ok(if is_steady {
                    Outcome::Different(Difference::new(&batch, slot, &alone, with_others))
                } else {
                    Outcome::Unsteady
                });
            }
            is_in_order &= make_the_same_values(job, &alone, with_others);
            compared += usize::from(!alone.is_empty());
            if compared == ALONE {
                break;
            }
        }
        if !is_in_order {
            return Ok(Outcome::OtherOrder);
        }
        let sample = Sample { batch, rows: together };
        let is_drifting = self.is_drifting(transaction, job, sample, now).await?;
        Ok(if is_drifting { Outcome::Drifting } else { Outcome::Same })
    }

    /// Reads a batch; if some tenants cannot be read, a part of it that can.
    async fn read_together(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        mut batch: Batch,
        now: DateTime<Utc>,
    ) -> Result<Sample, ReadError> {
        loop {
            let error = match self.read_sample(transaction, job, &batch, now).await {
                Ok(rows) => return Ok(Sample { batch, rows }),
                Err(error) if may_be_of_one_tenant(&error) => error,
                Err(error) => return Err(error),
            };
            batch = match batch.split() {
                Ok((half, _)) => half,
                Err(_one) => return Err(error),
            };
        }
    }

    /// Whether this sample and two later transactions return different rows for every tenant that has rows.
    /// Changes of the data would hardly hit every tenant, twice.
    async fn is_drifting(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        sample: Sample,
        now: DateTime<Utc>,
    ) -> Result<bool, ReadError> {
        let Sample { batch, rows: mut last } = sample;
        for _ in 0..2 {
            if last.iter().all(Vec::is_empty) {
                return Ok(false);
            }
            sleep(PAUSE).await;
            transaction.begin_anew().await?;
            let next = self.read_sample(transaction, job, &batch, now).await?;
            let mut pairs = last.iter().zip(&next).filter(|(last, _)| !last.is_empty());
            if pairs.any(|(last, next)| are_the_same_rows(last, next)) {
                return Ok(false);
            }
            last = next;
        }
        Ok(true)
    }

    /// Whether the session's time zone changes the rows of some tenants.
    async fn computes_with_zone(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        batch: Batch,
        now: DateTime<Utc>,
    ) -> Result<bool, ReadError> {
        transaction.begin_anew().await?;
        let Sample { batch, rows: here } = self.read_together(transaction, job, batch, now).await?;
        let mut elsewhere = Vec::new();
        for zone in ZONES {
            set_zone(transaction, zone).await?;
            elsewhere.push(self.read_sample(transaction, job, &batch, now).await?);
        }
        set_zone(transaction, "UTC").await?;
        let again = self.read_sample(transaction, job, &batch, now).await?;
        let same = |one: &[Vec<Row>], other: &[Vec<Row>]| {
            one.iter().zip(other).all(|(one, other)| are_the_same_rows(one, other))
        };
        Ok(same(&here, &again) && elsewhere.iter().any(|rows| !same(&here, rows)))
    }

    /// The rows of each slot, in the order that they have in a value. After an error of the server the transaction can go on.
    async fn read_sample(
        &self,
        transaction: &mut Transaction<Session>,
        job: &Job,
        batch: &Batch,
        now: DateTime<Utc>,
    ) -> Result<Vec<Vec<Row>>, ReadError> {
        let columns = job.key_columns().len();
        let first_dates = first_dates(job, batch, now);
        let read = Read { batch, first_dates: &first_dates, timeout: SAMPLE_TIME };
        let mut rows = Rows::default();
        rows.reset(columns, SAMPLE_BYTES);
        transaction.ask("savepoint sample").await?;
        let done = self.read_in(transaction, job, read, &mut rows).await;
        transaction.ask("rollback to sample").await?;
        done?;
        // A job for all tenants together has one slot.
        let mut read = vec![Vec::new(); batch.len().max(1)];
        let sorted = rows.sorted();
        let sorted = sorted.map(|rows| rows.into_iter().map(|row| row as usize).collect());
        for row in sorted.unwrap_or_else(|| (0..rows.len()).collect::<Vec<_>>()) {
            let keys = (0..columns).map(|column| rows.key(row, column).map(<[u8]>::to_vec));
            let of_slot = rows.slot(row).and_then(|slot| read.get_mut(slot));
            if let Some(of_slot) = of_slot {
                let (json, day) = (rows.json(row).to_vec(), rows.day(row));
                of_slot.push(Row { json, day, keys: keys.collect() });
            }
        }
        Ok(read)
    }

    fn findings(&self, job: &Job, outcome: Outcome) -> Result<Findings, ReadError> {
        let at = QueryPlace::Query { at: None };
        let warning = |message: String, hint: Option<&str>| Findings {
            warnings: vec![problem(at, message, hint.map(str::to_owned))],
            ..Findings::default()
        };
        Ok(match outcome {
            Outcome::Same => Findings::default(),
            Outcome::Different(difference) => {
                Findings::of(vec![difference.problem(&self.settings.column)])
            }
            Outcome::OtherOrder => warning(
                "the order of a tenant's rows is not determined: a second read returned another one"
                    .to_owned(),
                Some("end `order by` with a column that is unique for the tenant"),
            ),
            Outcome::Unsteady => warning(
                "the query returns different rows each time, so reading tenants alone and together \
                 cannot be compared"
                    .to_owned(),
                Some(
                    "a function such as `random()` or `clock_timestamp()` decides the rows: each run \
                     writes other values, and `preheat audit` calls them stale",
                ),
            ),
            Outcome::Drifting => warning(
                "the query returns different values in each transaction, but the data is the same"
                    .to_owned(),
                Some(
                    "a function such as `now()` is part of the value, and `preheat audit` calls it \
                     stale: round it, as in `date_trunc('hour', now())`, or leave it out",
                ),
            ),
            Outcome::InSomeZone => warning(
                "the query computes with the session's time zone, but neither the role nor the database \
                 sets one: here it is UTC, and in the application it may be another one"
                    .to_owned(),
                Some("set `database.time_zone` to that of the application's sessions"),
            ),
            Outcome::Failed(error) if is_of_query(&error) => {
                Findings::of(vec![self.about_query(error, &job.query.sql)?])
            }
            Outcome::Failed(error) if is_lost(&error) => return Err(error),
            Outcome::Failed(error) => {
                let doing = "the query could not be tried on a few tenants";
                warning(error.into_source_error(doing).message, None)
            }
        })
    }
}

impl Difference {
    fn new(batch: &Batch, slot: usize, alone: &[Row], together: &[Row]) -> Self {
        let is_same = |(alone, together): &(&Row, &Row)| alone == together;
        let tenant = batch.tenant(slot).map(|tenant| tenant.id()).unwrap_or_default();
        Self {
            // The id comes from the database, and may contain any characters.
            tenant: tenant.escape_debug().to_string(),
            alone: alone.len(),
            together: together.len(),
            others: batch.len().saturating_sub(1),
            first: alone.iter().zip(together).take_while(is_same).count() + 1,
        }
    }

    fn problem(self, column: &str) -> QueryProblem {
        let Self { tenant, alone, together, others, first } = self;
        let message = format!(
            "a tenant's rows depend on the other tenants of its batch: tenant `{tenant}` has {alone} \
             rows when it is read alone, and {together} together with {others} others; row {first} is \
             the first that differs"
        );
        let hint = format!(
            "each tenant's rows must follow from its own data: use \
             `row_number() over (partition by {column} order by …)` or a lateral subquery in place of \
             `limit` and `offset`, `partition by {column}` in window functions, `group by {column}` \
             with aggregates, and `distinct on ({column}, …)`"
        );
        problem(QueryPlace::Query { at: None }, message, Some(hint))
    }
}

async fn set_zone(transaction: &mut Transaction<Session>, zone: &str) -> Result<(), sqlx::Error> {
    transaction.ask(&format!("set local timezone = '{zone}'")).await.map(drop)
}

/// A few tenants from all over the list, at most as many as the job's batch. Tenants without a
/// valid time zone are left out if the job has dates, because they have none.
fn sample(job: &Job, tenants: &Arc<Tenants>, now: DateTime<Utc>) -> Batch {
    let has_zone = |position: &usize| match (&job.dates, tenants.get(*position)) {
        (Some(dates), tenant) => today(dates, tenant, now).is_ok(),
        (None, _) => true,
    };
    let step = tenants.len().div_ceil(SAMPLE_TENANTS).max(1);
    let most = SAMPLE_TENANTS.min(job.batch.get());
    let positions = (0..tenants.len()).step_by(step).filter(has_zone).take(most);
    let positions = positions.filter_map(|position| u32::try_from(position).ok()).collect();
    Batch::new(Arc::clone(tenants), positions)
}

fn are_the_same_rows(one: &[Row], other: &[Row]) -> bool {
    if one == other {
        return true;
    }
    let sorted = |rows: &[Row]| {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows
    };
    one.len() == other.len() && sorted(one) == sorted(other)
}

/// Whether rows that may be in another order make the same values: only the order of rows with the
/// same key counts.
fn make_the_same_values(job: &Job, one: &[Row], other: &[Row]) -> bool {
    let columns = job.key_columns();
    job.keys.iter().all(|key| {
        let is_of_key = |column: &str| key.template.columns().any(|name| name == column);
        let has_date = key.template.has_date();
        let of_key: Vec<usize> = (0..columns.len())
            .filter(|at| columns.get(*at).is_some_and(|c| is_of_key(c)))
            .collect();
        let grouped = |rows: &[Row]| {
            let mut rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    let key: Vec<_> = of_key.iter().map(|at| row.keys.get(*at).cloned()).collect();
                    ((key, row.day.filter(|_| has_date)), row.json.clone())
                })
                .collect();
            rows.sort_by(|(one, _), (other, _)| one.cmp(other));
            rows
        };
        grouped(one) == grouped(other)
    })
}

/// Whether the query may succeed for fewer tenants.
fn may_be_of_one_tenant(error: &ReadError) -> bool {
    match error.kind() {
        SourceErrorKind::Data
        | SourceErrorKind::Encoding
        | SourceErrorKind::TooLarge
        | SourceErrorKind::Timeout => true,
        SourceErrorKind::LeftAlone
        | SourceErrorKind::Unavailable
        | SourceErrorKind::Transient
        | SourceErrorKind::Locked
        | SourceErrorKind::Foreign
        | SourceErrorKind::Definition => false,
    }
}

/// Whether the query must fail for every tenant.
fn is_of_query(error: &ReadError) -> bool {
    matches!(error.kind(), SourceErrorKind::Definition | SourceErrorKind::Foreign)
}

/// Whether the server cannot be reached.
fn is_lost(error: &ReadError) -> bool {
    error.kind() == SourceErrorKind::Unavailable
}
