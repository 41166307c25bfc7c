//! Dates that preheat computes from a column of moments, compared with those that Postgres computes.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{Days, NaiveDate};
use preheat::adapter::postgres::PostgresSource;
use preheat::domain::date::first_dates;
use preheat::domain::entry::entries;
use preheat::domain::job::{DateZone, Dates, Job};
use preheat::domain::layout::Checks;
use preheat::domain::row::Rows;
use preheat::domain::tenant::Batch;
use preheat::engine::ports::{Read, Source, SourceErrorKind};

use super::{connect, settings};
use crate::conformance::{Found, fleet_job, job, read, with_dates};
use crate::support::{self, LONG};

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn days(days: u16, column: Option<&str>) -> Dates {
    let zone = DateZone::TenantColumn("timezone".to_owned());
    Dates { days, zone, column: column.map(str::to_owned) }
}

/// All tenants in one batch.
async fn all(source: &PostgresSource) -> Batch {
    let list = source.tenants().await.unwrap();
    let positions = (0..u32::try_from(list.len()).unwrap()).collect();
    Batch::new(Arc::new(list), positions)
}

/// Zones whose clocks are set just before, at and after midnight, or by half an hour, or by days.
const ZONES: [&str; 24] = [
    "UTC",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tehran",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Amman",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Europe/Berlin",
    "Europe/London",
    "Atlantic/Azores",
    "America/St_Johns",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Asuncion",
    "Antarctica/Troll",
];

/// First dates, each shortly before some of the zones change their offset.
const FIRST: [&str; 9] = [
    "2010-11-06",
    "2011-12-29",
    "2018-11-03",
    "2019-03-08",
    "2019-03-30",
    "2019-04-06",
    "2019-09-07",
    "2019-10-26",
    "2019-11-02",
];

#[tokio::test]
async fn hazard_12_an_instant_has_the_date_that_postgres_gives_it_around_each_change_of_a_clock() {
    let server = support::database().await;
    server
        .execute(
            "create table instants as select at from unnest($${2010-11-04, 2011-12-27, 2018-11-01,
               2019-03-06, 2019-03-28, 2019-04-04, 2019-09-05, 2019-10-24, 2019-10-31}$$::timestamptz[]) start,
               generate_series(start, start + interval '7 days', interval '29 minutes 59.999999 seconds') at",
        )
        .await;
    let list = ZONES.map(|zone| format!("('{zone}', '{zone}')")).join(",");
    let sql = format!("select id, timezone from (values {list}) as t (id, timezone)");
    let source = connect(settings(&server.url()), &sql).await;
    let batch = all(&source).await;
    let of_server = job(
        "select t.id as tenant_id, (at at time zone t.id)::date as date, at from instants, \
         unnest($1, $2, $3) as t (id, first, last) \
         where (at at time zone t.id)::date between t.first and t.last order by t.id, at",
        &["d:{tenant_id}:{date}"],
    );
    let ours = job(
        "select id as tenant_id, at from instants, unnest($1) as id \
         where at >= $2 and at < $3 order by id, at",
        &["d:{tenant_id}:{date}"],
    );
    let of_server = with_dates(without(of_server, "date"), days(3, None));
    let ours = with_dates(ours, days(3, Some("at")));
    for first in FIRST.map(date) {
        let first: Vec<_> = (0..ZONES.len() as u64).map(|n| first + Days::new(n % 2)).collect();
        let expected = read(&source, &of_server, &batch, &first).await.unwrap();
        let found = read(&source, &ours, &batch, &first).await.unwrap();
        assert!(expected.len() > ZONES.len() * 3 * 47, "{} rows", expected.len());
        assert_eq!(found, expected, "{}", first[0]);
    }
}

fn without(mut job: Job, column: &str) -> Job {
    job.encoding.omit.push(column.to_owned());
    job
}

/// Three tenants in zones with three different dates, and one row an hour for each in a table whose column
/// `at` has this type.
async fn hours(server: &support::Database, ty: &str) {
    server
        .execute(&format!(
            "drop table if exists tenants, items;
             create table tenants (id int primary key, timezone text);
             insert into tenants values
               (1, 'Pacific/Kiritimati'), (2, 'Pacific/Pago_Pago'), (3, 'America/New_York');
             create table items (id serial, tenant_id int, at {ty});
             insert into items (tenant_id, at)
               select t.id, h::timestamp::{ty} from tenants t,
               generate_series('2026-03-04Z'::timestamptz, '2026-03-12Z', interval '1 hour') h order by 1, h;
             insert into items (tenant_id, at) values (1, null), (2, 'infinity'), (3, '-infinity');"
        ))
        .await;
}

/// The clocks of New York are set on 8 March.
const TODAY: [&str; 3] = ["2026-03-08", "2026-03-06", "2026-03-07"];

fn hourly(dates: Dates, sql: &str) -> Job {
    let job = job(sql, &["d:{tenant_id}:{date}", "i:{id}"]);
    let returns_date = dates.column.is_none();
    let job = if returns_date { without(job, "date") } else { job };
    with_dates(without(job, "at"), dates)
}

#[tokio::test]
async fn hazard_12_moments_of_each_type_are_on_the_days_of_their_tenants_whoever_shares_the_batch()
{
    let server = support::database().await;
    server.execute("set timezone = 'UTC'; create domain opening as timestamptz").await;
    let of_type = [
        ("timestamptz", "(at at time zone t.timezone)::date"),
        ("opening", "(at at time zone t.timezone)::date"),
        ("timestamp", "at::date"),
        ("date", "at"),
    ];
    for (ty, of_server) in of_type {
        hours(&server, ty).await;
        let source = connect(settings(&server.url()), "select * from tenants order by id").await;
        let batch = all(&source).await;
        let first = TODAY.map(date);
        let of_server = hourly(
            days(2, None),
            &format!(
                "select i.id, i.tenant_id, at, {of_server} as date from items i \
                 join tenants t on t.id = i.tenant_id \
                 join unnest($1, $2, $3) as d (id, first, last) on d.id = t.id \
                 where {of_server} between d.first and d.last or at is null order by i.id"
            ),
        );
        let expected = read(&source, &of_server, &batch, &first).await.unwrap();
        assert!(expected.len() > 3 * 47, "{ty}: {} rows", expected.len());
        let null = expected.iter().filter(|(.., keys)| keys[1].is_none());
        assert_eq!(null.count(), 1, "a NULL is of no date");

        let plain = "select id, tenant_id, at from items \
                     where tenant_id = any($1) and (at >= $2 and at < $3 or at is null) order by id";
        let unbounded = "select id, tenant_id, at from items where tenant_id = any($1) order by id";
        for sql in [plain, unbounded] {
            let ours = hourly(days(2, Some("at")), sql);
            assert_eq!(read(&source, &ours, &batch, &first).await.as_ref(), Ok(&expected), "{ty}");
            let mut alone: Found = Vec::new();
            for slot in 0..batch.len() {
                let one = batch.some([slot]);
                let rows = read(&source, &ours, &one, &first[slot..=slot]).await.unwrap();
                alone.extend(rows.into_iter().map(|(_, json, keys)| (slot, json, keys)));
            }
            let mut by_slot = expected.clone();
            by_slot.sort_by_key(|(slot, ..)| *slot);
            assert_eq!(alone, by_slot, "{ty}: each tenant alone");
        }
    }
}

#[tokio::test]
async fn hazard_12_a_fleet_job_gets_the_moments_of_its_own_zone() {
    let server = support::database().await;
    for (ty, of_server) in [
        ("timestamptz", "(at at time zone 'America/New_York')::date"),
        ("timestamp", "at::date"),
        ("date", "at"),
    ] {
        hours(&server, ty).await;
        let source = connect(settings(&server.url()), "select * from tenants order by id").await;
        let zone = DateZone::Fixed(chrono_tz::America::New_York);
        let fleet = |sql: &str, column: Option<&str>| {
            let job = without(fleet_job(sql, &["d:{date}"]), "at");
            let job = if column.is_none() { without(job, "date") } else { job };
            with_dates(
                job,
                Dates { days: 2, zone: zone.clone(), column: column.map(str::to_owned) },
            )
        };
        let of_server = format!(
            "select id, at, {of_server} as date from items where {of_server} between $1 and $2 order by id"
        );
        let first = [date("2026-03-08")];
        let of_server = fleet(&of_server, None);
        let expected = read(&source, &of_server, &Batch::global(), &first).await.unwrap();
        assert!(expected.len() > 3 * 46, "{ty}: {} rows", expected.len());
        let ours = "select id, at from items where at >= $1 and at < $2 order by id";
        let found = read(&source, &fleet(ours, Some("at")), &Batch::global(), &first).await;
        assert_eq!(found, Ok(expected), "{ty}");
    }
}

#[tokio::test]
async fn the_type_of_moments_is_learnt_however_the_query_uses_them_and_anew_when_it_changes() {
    let server = support::database().await;
    let range = |ty: &str| match ty {
        "timestamptz" => "tstzrange",
        "timestamp" => "tsrange",
        _ => "daterange",
    };
    hours(&server, "timestamptz").await;
    let url = server.url();
    let source = connect(settings(&url), "select * from tenants order by id").await;
    let batch = all(&source).await;
    let first = TODAY.map(date);
    let sql = "select id, tenant_id, at from items \
               where tenant_id = any($1) and at >= $2 and at < $3 order by id";
    let compares = hourly(days(2, Some("at")), sql);
    for ty in ["timestamptz", "date", "timestamp", "timestamptz"] {
        server
            .execute(&format!(
                "set timezone = 'UTC'; alter table items alter at type {ty} using at::timestamp::{ty}"
            ))
            .await;
        let expected = {
            let fresh = connect(settings(&url), "select * from tenants order by id").await;
            let contains = hourly(
                days(2, Some("at")),
                &format!(
                    "select id, tenant_id, at from items \
                     where tenant_id = any($1) and {}($2, $3) @> at order by id",
                    range(ty)
                ),
            );
            read(&fresh, &contains, &batch, &first).await.unwrap()
        };
        assert!(expected.len() > 3 * 40, "{ty}: {} rows", expected.len());
        let found = read(&source, &compares, &batch, &first).await.unwrap();
        assert_eq!(found, expected, "{ty}, by a source that knew another type");
        let again = read(&source, &compares, &batch, &first).await.unwrap();
        assert_eq!(again, expected, "{ty}, by a source that knows the type");
    }
    server.execute("alter table items alter at type text").await;
    let sql = "select id, tenant_id, at from items where tenant_id = any($1)";
    let of_text = hourly(days(2, Some("at")), sql);
    let error = read(&source, &of_text, &batch, &first).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Definition);
    let message = "could not read the rows of job `products`: the column `at` is text, and \
                   `dates.column` is timestamptz, timestamp or date";
    assert_eq!(error.message, message);
}

#[tokio::test]
async fn a_date_that_the_query_returns_is_a_date_or_a_text() {
    let server = support::database().await;
    server
        .execute(
            "create domain day as date; create table tenants (id int, timezone text);
             insert into tenants values (1, 'UTC');
             create table items (tenant_id int, day text);
             insert into items values (1, '2026-03-07'), (1, '2026-03-08'), (1, null), (1, '2026-03-10'),
               (1, '2026-03-09')",
        )
        .await;
    let source = connect(settings(&server.url()), "select * from tenants").await;
    let batch = all(&source).await;
    let dates = async |column: &str| {
        let sql =
            format!("select tenant_id, {column} as date from items where tenant_id = any($1)");
        let by_date = with_dates(job(&sql, &["d:{tenant_id}:{date}"]), days(2, None));
        let found = read(&source, &by_date, &batch, &[date("2026-03-08")]).await.unwrap();
        let mut dates: Vec<_> = found.into_iter().map(|(.., mut keys)| keys.remove(0)).collect();
        dates.sort_unstable();
        dates
    };
    let expected = [None, None, None, Some("2026-03-08".to_owned()), Some("2026-03-09".to_owned())];
    for column in ["day", "day::varchar", "day::date", "day::day"] {
        assert_eq!(dates(column).await, expected, "{column}");
    }
    let none = [None, None, None, None, None];
    for column in ["day || 'T00:00'", "'infinity'::date", "null::date", "'no date'"] {
        assert_eq!(dates(column).await, none, "{column}");
    }
}

/// The query of the clinic's slots that dates its rows in SQL.
const SLOTS_BY_SQL: &str = "\
select batch.tenant_id, (s.starts_at at time zone tenant.timezone)::date as date, s.*
from unnest($1::uuid[], $2::date[], $3::date[]) as batch(tenant_id, first_date, last_date)
cross join lateral (
  select tenants.timezone from tenants where tenants.id = batch.tenant_id offset 0
) tenant
cross join lateral (
  select id, staff_id, starts_at, ends_at from slots
  where slots.tenant_id = batch.tenant_id and status = 'open'
    and starts_at >= batch.first_date::timestamp at time zone tenant.timezone
    and starts_at < (batch.last_date + 1)::timestamp at time zone tenant.timezone
  order by starts_at, id
) s";

const SLOTS: &str = "\
select tenant_id, id, staff_id, starts_at, ends_at from slots
where tenant_id = any($1) and status = 'open' and starts_at >= $2 and starts_at < $3
order by starts_at, id";

#[tokio::test]
async fn hazard_12_the_slots_of_the_clinic_are_those_that_sql_dates() {
    let server = support::clinic().await;
    let tenants =
        "select id, timezone from tenants where status = 'active' order by created_at, id";
    let source = connect(settings(&server.url()), tenants).await;
    let batch = all(&source).await;
    let values = async |sql: &str, column: Option<&str>| {
        let job = job(sql, &["slots:{tenant_id}:{date}"]);
        let job = if column.is_none() { without(job, "date") } else { job };
        let job = with_dates(job, days(7, column));
        let first_dates = first_dates(&job, &batch, chrono::Utc::now());
        let mut rows = Rows::default();
        rows.reset(job.key_columns().len(), usize::MAX);
        let read = Read { batch: &batch, first_dates: &first_dates, timeout: LONG };
        source.read(&job, read, &mut rows).await.unwrap();
        let found = entries(&job, &Checks::default(), &batch, &first_dates, &rows);
        assert!(found.failures.is_empty());
        let values = found.writes.iter().map(|entry| (entry.key.clone(), entry.value.to_vec()));
        values.collect::<BTreeMap<_, _>>()
    };
    let expected = values(SLOTS_BY_SQL, None).await;
    assert!(expected.len() > 7 && expected.values().any(|value| value.len() > 2));
    assert!(values(SLOTS, Some("starts_at")).await == expected);
}
