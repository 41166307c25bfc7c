//! One suite for each port, run against every adapter of it. The other files test what only one
//! server can do.

pub(crate) mod cache;
pub(crate) mod certificates;
mod changes;
mod check;
mod clock;
mod gone;
mod history;
mod leases;
pub(crate) mod ledger;
mod missed;
pub(crate) mod pauses;
pub(crate) mod pgbouncer;
mod postgres;
pub(crate) mod redis;
pub(crate) mod relay;
mod rights;
pub(crate) mod sheets;
mod source;
mod urls;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use preheat::domain::entry::{Entry, entries};
use preheat::domain::job::{Dates, Job, JobName, Key, Overlap, Query, Scope, Shape, Share};
use preheat::domain::json::{Case, Encoding, Profile};
use preheat::domain::key::KeyTemplate;
use preheat::domain::layout::Checks;
use preheat::domain::row::{KeyText, Rows, RowsFull};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::{Batch, Tenants};
use preheat::engine::ports::{Read, Source, SourceError};

pub(crate) fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

pub(crate) fn key(template: &str) -> Key {
    let template = KeyTemplate::parse(template, "tenant_id").unwrap();
    Key { template, shape: Shape::List, unique: None }
}

/// A job with this query and these keys, for tenants.
pub(crate) fn job(sql: &str, keys: &[&str]) -> Job {
    Job {
        name: name("products"),
        description: String::new(),
        schedule: Schedule::Every(Duration::from_mins(1)),
        ttl: Duration::from_mins(5),
        ttl_jitter: Share::NONE,
        on_start: false,
        required: false,
        enabled: true,
        timeout: Duration::from_mins(1),
        overlap: Overlap::Skip,
        retries: 0,
        batch: NonZeroUsize::MIN,
        concurrency: Some(NonZeroUsize::MIN),
        tables: Vec::new(),
        scope: Scope::Tenants,
        query: Query { sql: sql.into(), file: None, order: Vec::new() },
        dates: None,
        keys: keys.iter().map(|template| key(template)).collect(),
        encoding: Encoding {
            profile: Profile::Drizzle,
            case: Case::Keep,
            omit: vec!["tenant_id".to_owned()],
            columns: [].into(),
            max_bytes: 50 * 1024 * 1024,
        },
    }
}

/// The same for all tenants together.
pub(crate) fn fleet_job(sql: &str, keys: &[&str]) -> Job {
    let job = job(sql, keys);
    let encoding = Encoding { omit: Vec::new(), ..job.encoding };
    Job { scope: Scope::Global, encoding, ..job }
}

pub(crate) fn with_dates(job: Job, dates: Dates) -> Job {
    Job { dates: Some(dates), ..job }
}

/// A batch of the tenants with these ids.
pub(crate) fn batch(ids: &[&str]) -> Batch {
    let mut list = Tenants::default();
    for id in ids {
        list.push(id, []);
    }
    Batch::new(Arc::new(list), (0..).take(ids.len()).collect())
}

/// Rows that were read: each with its slot, its JSON, its key columns and, where the job's keys have dates,
/// its date.
pub(crate) type Found = Vec<(usize, String, Vec<Option<String>>)>;

pub(crate) async fn read(
    source: &dyn Source,
    job: &Job,
    batch: &Batch,
    first_dates: &[NaiveDate],
) -> Result<Found, SourceError> {
    let read = Read { batch, first_dates, timeout: Duration::from_secs(50) };
    let columns = job.key_columns().len();
    let mut rows = Rows::default();
    rows.reset(columns, usize::MAX);
    source.read(job, read, &mut rows).await?;
    let text = |bytes: &[u8]| str::from_utf8(bytes).unwrap().to_owned();
    let found = (0..rows.len()).map(|row| {
        let slot = rows.slot(row).unwrap();
        let mut keys: Vec<_> = (0..columns).map(|column| rows.key(row, column).map(text)).collect();
        if job.date_column().is_some() {
            let date = |day: u16| (first_dates[slot] + Days::new(day.into())).to_string();
            keys.push(rows.day(row).map(date));
        }
        (slot, text(rows.json(row)), keys)
    });
    Ok(found.collect())
}

/// Keys with their values, as entries.
pub(crate) struct Values {
    job: Job,
    batch: Batch,
    rows: Rows,
}

impl Values {
    /// These keys with these JSON texts.
    pub(crate) fn new<'v>(pairs: impl IntoIterator<Item = (&'v str, &'v str)>) -> Self {
        let mut job = job("", &["{k}"]);
        job.keys[0].shape = Shape::Object;
        let mut rows = Rows::default();
        rows.reset(1, usize::MAX);
        for (key, json) in pairs {
            let pushed: Result<(), RowsFull> = rows.push(
                0,
                |out| {
                    out.extend_from_slice(json.as_bytes());
                    Ok(())
                },
                |_, out| {
                    out.extend_from_slice(key.as_bytes());
                    Ok(KeyText::Written)
                },
            );
            pushed.unwrap();
        }
        Self { job, batch: batch(&["t"]), rows }
    }

    /// The same with another TTL.
    pub(crate) fn ttl(mut self, ttl: Duration) -> Self {
        self.job.ttl = ttl;
        self
    }

    pub(crate) fn entries(&self) -> Vec<Entry<'_>> {
        entries(&self.job, &Checks::default(), &self.batch, &[], &self.rows).writes
    }
}
