//! How many rows a second become entries: grouping by key, without reading or writing them.
//!
//! `cargo bench --bench grouping`

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use preheat::domain::entry::entries;
use preheat::domain::job::{
    DateZone, Dates, Job, JobName, Jobs, Key, Overlap, Query, Scope, Shape, Share,
};
use preheat::domain::json::{Case, ColumnType, Encoding, Profile};
use preheat::domain::key::KeyTemplate;
use preheat::domain::layout::{Checks, Layout};
use preheat::domain::order::{Comparison, OrderColumn};
use preheat::domain::row::{KeyText, Rows, RowsFull, SlotDay};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::{Batch, IdClass, Tenants};

/// Tenants in a batch.
const TENANTS: u32 = 100;
/// Each tenant's products, in these categories.
const PRODUCTS: usize = 100;
const CATEGORIES: [&str; 8] =
    ["food", "toys", "pharmacy", "care", "beds", "leashes", "travel", "other"];
/// Each tenant's open slots a day.
const SLOTS: u32 = 48;
const DAYS: u16 = 7;

fn main() {
    divan::main();
}

/// Rows in the order of the tables, where the tenants of a batch are neighbours.
#[divan::bench]
fn products(bencher: Bencher<'_, '_>) {
    products_of(bencher, IdClass::Uuid);
}

/// The same where a category may make the key of another tenant, as ids may be any text.
#[divan::bench]
fn products_of_text_ids(bencher: Bencher<'_, '_>) {
    products_of(bencher, IdClass::Text);
}

fn products_of(bencher: Bencher<'_, '_>, ids: IdClass) {
    let job = job(&["products:{tenant_id}:all", "products:{tenant_id}:{category}"], None);
    let mut rows = empty_rows(1);
    for tenant in 0..TENANTS {
        let categories = CATEGORIES.iter().cycle().skip(tenant as usize);
        for category in categories.take(PRODUCTS) {
            push(&mut rows, tenant, &[b'x'; 180], category);
        }
    }
    run(bencher, (&job, ids), &[], &rows);
}

/// Each tenant's products sorted by name, which the database does not do: the names begin alike, and
/// come in no order.
#[divan::bench]
fn products_by_name(bencher: Bencher<'_, '_>) {
    sorted_products(bencher, |product| product * 37 % PRODUCTS);
}

/// The same where the rows come in order already.
#[divan::bench]
fn products_by_name_in_order(bencher: Bencher<'_, '_>) {
    sorted_products(bencher, |product| product);
}

fn sorted_products(bencher: Bencher<'_, '_>, number: impl Fn(usize) -> usize) {
    let job = job(&["products:{tenant_id}:all"], None);
    let entry = OrderColumn::parse("name").unwrap();
    let by_name = Comparison::new(&entry, &ColumnType::Text).unwrap();
    let mut rows = empty_rows(0);
    for tenant in 0..TENANTS {
        for product in 0..PRODUCTS {
            let name = format!("Product {:04}", number(product));
            let pushed: Result<(), RowsFull> = rows.push_ordered(
                tenant,
                |out| {
                    out.extend_from_slice(&[b'x'; 180]);
                    Ok(())
                },
                |_, _| Ok(KeyText::Null),
                |out| {
                    by_name.append(Some(name.as_bytes()), out).unwrap();
                    Ok(())
                },
            );
            pushed.unwrap();
        }
    }
    run(bencher, (&job, IdClass::Uuid), &[], &rows);
}

/// Rows in the order of their values: each has another tenant and another date than the one before.
#[divan::bench]
fn slots(bencher: Bencher<'_, '_>) {
    let today = NaiveDate::from_ymd_opt(2026, 3, 1).unwrap();
    let job = job(&["slots:{tenant_id}:{date}"], Some(DAYS));
    let mut rows = empty_rows(0);
    for _ in 0..SLOTS {
        for day in 0..DAYS {
            for slot in 0..TENANTS {
                push(&mut rows, SlotDay { slot, day: Some(day) }, &[b'x'; 150], "");
            }
        }
    }
    run(bencher, (&job, IdClass::Uuid), &[today; TENANTS as usize], &rows);
}

fn run(
    bencher: Bencher<'_, '_>,
    (job, ids): (&Job, IdClass),
    first_dates: &[NaiveDate],
    rows: &Rows,
) {
    let batch = batch();
    let jobs = Jobs::from([(job.name.clone(), Arc::new(job.clone()))]);
    let checks = Checks::new(Layout::new(&jobs, ids), job);
    bencher
        .counter(ItemsCount::new(rows.len()))
        .bench_local(|| black_box(entries(black_box(job), &checks, &batch, first_dates, rows)));
}

fn empty_rows(key_columns: usize) -> Rows {
    let mut rows = Rows::default();
    rows.reset(key_columns, usize::MAX);
    rows
}

fn push(rows: &mut Rows, of: impl Into<SlotDay>, json: &[u8], key: &str) {
    let pushed: Result<(), RowsFull> = rows.push(
        of,
        |out| {
            out.extend_from_slice(json);
            Ok(())
        },
        |_, out| {
            out.extend_from_slice(key.as_bytes());
            Ok(KeyText::Written)
        },
    );
    pushed.unwrap();
}

fn batch() -> Batch {
    let mut list = Tenants::default();
    for tenant in 0..TENANTS {
        list.push(&format!("0190a1b2-c3d4-7e5f-8a9b-{tenant:012}"), []);
    }
    Batch::new(Arc::new(list), (0..TENANTS).collect())
}

fn job(templates: &[&str], days: Option<u16>) -> Job {
    let key = |text: &&str| Key {
        template: KeyTemplate::parse(text, "tenant_id").unwrap(),
        shape: Shape::List,
        unique: None,
    };
    Job {
        name: JobName::parse("job").unwrap(),
        description: String::new(),
        schedule: Schedule::Every(Duration::from_mins(10)),
        ttl: Duration::from_mins(30),
        ttl_jitter: Share::from_percent(10.0).unwrap(),
        on_start: false,
        required: false,
        enabled: true,
        timeout: Duration::from_mins(5),
        overlap: Overlap::Skip,
        retries: 0,
        batch: NonZeroUsize::new(TENANTS as usize).unwrap(),
        concurrency: Some(NonZeroUsize::MIN),
        tables: Vec::new(),
        scope: Scope::Tenants,
        query: Query { sql: "".into(), file: None, order: Vec::new() },
        dates: days.map(|days| Dates { days, zone: DateZone::Fixed(chrono_tz::UTC), column: None }),
        keys: templates.iter().map(key).collect(),
        encoding: Encoding {
            profile: Profile::Drizzle,
            case: Case::Keep,
            omit: Vec::new(),
            columns: BTreeMap::new(),
            max_bytes: 5 * 1024 * 1024,
        },
    }
}
