//! The conformance suite of sources.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use preheat::domain::job::{DateZone, Dates, Job};
use preheat::domain::order::OrderColumn;
use preheat::domain::row::Rows;
use preheat::domain::tenant::{Batch, Tenant, TenantId, Tenants};
use preheat::engine::ports::{Read, Source, SourceErrorKind};

use super::postgres::{connect, settings};
use super::{batch, fleet_job, job, read, with_dates};
use crate::support::memory::{MemoryRow, MemorySource};
use crate::support::{self, LONG};

const TENANTS: [(&str, Option<&str>, Option<&str>); 3] = [
    ("c:1", Some("Asia/Tokyo"), None),
    ("a*{}\n", Some("UTC"), Some("free")),
    ("", None, Some("paid")),
];

/// Each row: tenant, category, date, JSON.
const ROWS: [(&str, Option<&str>, &str, i32); 6] = [
    ("c:1", Some("food"), "2026-03-01", 1),
    ("", Some("food"), "2026-03-02", 2),
    ("c:1", None, "2026-03-03", 3),
    ("a*{}\n", Some("toys:é"), "2026-03-01", 4),
    ("c:1", Some(""), "2026-02-28", 5),
    ("c:1", Some("food"), "2026-03-02", 6),
];

const SQL: &str = "select tenant_id, category, id from items where tenant_id = any($1) order by id";

const DATED: &str = "select i.tenant_id, i.date, i.id from items i \
     join unnest($1, $2, $3) as t(id, first, last) on i.tenant_id = t.id \
     where i.date between t.first and t.last order by i.id";

fn dated() -> Job {
    let mut dated = job(DATED, &["d:{tenant_id}:{date}"]);
    dated.encoding.omit.push("date".to_owned());
    with_dates(dated, Dates { days: 2, zone: DateZone::Fixed(chrono_tz::Tz::UTC), column: None })
}

const OF_ALL_DAYS: &str = "select tenant_id, date, id from items \
     where tenant_id = any($1) and date >= $2 and date < $3 order by id";

/// The same by the moments of a column.
fn by_column(column: &str, sql: &str) -> Job {
    let mut job = dated();
    job.query.sql = sql.into();
    job.dates.as_mut().unwrap().column = Some(column.to_owned());
    job
}

/// The tenants of a list, in the form of [`TENANTS`].
fn listed(tenants: &Tenants) -> Vec<(&str, Option<&str>, Option<&str>)> {
    fn columns(tenant: Tenant<'_>) -> (&str, Option<&str>, Option<&str>) {
        (tenant.id(), tenant.column("timezone"), tenant.column("plan"))
    }
    assert_eq!(tenants.column_names().collect::<Vec<_>>(), ["timezone", "plan"]);
    tenants.iter().map(columns).collect()
}

async fn conforms(source: &dyn Source) {
    assert_eq!(listed(&source.tenants().await.unwrap()), TENANTS);

    // Some tenants: the existing ones, in the query's order, each once.
    let among = async |ids: &[&str]| {
        let ids: Vec<TenantId> = ids.iter().map(TenantId::new).collect();
        source.tenants_among(&ids).await.unwrap()
    };
    let some = among(&["", "nobody", "c:1", "c:1 ", "C:1", "c:1", "a\0", "'; --"]).await;
    assert_eq!(listed(&some), [TENANTS[0], TENANTS[2]]);
    assert_eq!(listed(&among(&["a*{}\n", "", "c:1"]).await), TENANTS);
    assert_eq!(listed(&among(&["nobody"]).await), []);
    assert_eq!(listed(&among(&["a\0"]).await), []);
    assert_eq!(listed(&among(&[]).await), []);

    let mut job = job(SQL, &["p:{tenant_id}", "p:{tenant_id}:{category}"]);
    job.encoding.omit.push("category".to_owned());
    let row = |slot, id: i32, category: Option<&str>| {
        (slot, format!("{{\"id\":{id}}}"), vec![category.map(str::to_owned)])
    };
    let some = batch(&["", "c:1"]);
    let expected = vec![
        row(1, 1, Some("food")),
        row(0, 2, Some("food")),
        row(1, 3, None),
        row(1, 5, Some("")),
        row(1, 6, Some("food")),
    ];
    assert_eq!(read(source, &job, &some, &[]).await, Ok(expected));
    let other = batch(&["a*{}\n"]);
    assert_eq!(read(source, &job, &other, &[]).await, Ok(vec![row(0, 4, Some("toys:é"))]));
    assert_eq!(read(source, &job, &batch(&["nobody"]), &[]).await, Ok(Vec::new()));

    // Each tenant gets its own days, and no others.
    let date = |text: &str| text.parse::<NaiveDate>().unwrap();
    let dated = dated();
    let days = [date("2026-03-02"), date("2026-03-01")];
    let expected = vec![
        row(1, 1, Some("2026-03-01")),
        row(0, 2, Some("2026-03-02")),
        row(1, 6, Some("2026-03-02")),
    ];
    assert_eq!(read(source, &dated, &some, &days).await, Ok(expected.clone()));
    // So it does where the query returns the days of all of them.
    let by_column = by_column("date", OF_ALL_DAYS);
    assert_eq!(read(source, &by_column, &some, &days).await, Ok(expected));

    let fleet = fleet_job("select id from items order by id", &["all"]);
    let all = read(source, &fleet, &Batch::global(), &[]).await.unwrap();
    assert_eq!(all.len(), ROWS.len());
    assert!(all.iter().all(|(slot, ..)| *slot == 0));

    // Order keys sort rows by slot, and within a slot as the job says.
    let mut ordered = job.clone();
    let entries = ["category desc nulls last", "date desc"];
    ordered.query.order = entries.map(|entry| OrderColumn::parse(entry).unwrap()).to_vec();
    ordered.query.sql = SQL.replace(", id", ", date, id").into();
    ordered.encoding.omit.push("date".to_owned());
    let mut rows = Rows::default();
    rows.reset(ordered.key_columns().len(), usize::MAX);
    let bounds = Read { batch: &some, first_dates: &[], timeout: LONG };
    source.read(&ordered, bounds, &mut rows).await.unwrap();
    let sorted = rows.sorted().unwrap().into_iter().map(|row| rows.json(row as usize));
    let sorted: Vec<_> = sorted.map(|json| str::from_utf8(json).unwrap()).collect();
    assert_eq!(sorted, [2, 6, 1, 5, 3].map(|id| format!("{{\"id\":{id}}}")));

    // More rows than a batch may hold.
    let mut rows = Rows::default();
    rows.reset(job.key_columns().len(), 60);
    let bounds = Read { batch: &some, first_dates: &[], timeout: LONG };
    let error = source.read(&job, bounds, &mut rows).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::TooLarge, "{error}");
    assert!(error.message.contains("`products`"), "{error}");
    assert_eq!(read(source, &job, &other, &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_source_in_memory_conforms() {
    let mut tenants = Tenants::with_columns(["timezone", "plan"]);
    for (id, timezone, plan) in TENANTS {
        tenants.push(id, [timezone, plan]);
    }
    let source = MemorySource::new(tenants);
    let rows = ROWS.map(|(tenant, category, date, id)| {
        let category = category.map(|category| ("category".to_owned(), category.to_owned()));
        let date = Some(("date".to_owned(), date.to_owned()));
        let columns: BTreeMap<_, _> = category.into_iter().chain(date).collect();
        MemoryRow { tenant: tenant.to_owned(), json: format!("{{\"id\":{id}}}"), columns }
    });
    source.set_rows(&super::name("products"), rows.to_vec());
    conforms(&source).await;
}

#[tokio::test]
async fn postgres_conforms() {
    let server = support::database().await;
    server
        .execute(
            "create table tenants (n serial, id text primary key, timezone text, plan text);
             create table items (tenant_id text, category text, date date, id int);",
        )
        .await;
    let mut connection = server.connect().await;
    for (id, timezone, plan) in TENANTS {
        let insert = "insert into tenants (id, timezone, plan) values ($1, $2, $3)";
        let insert = sqlx::query(insert).bind(id).bind(timezone).bind(plan);
        insert.execute(&mut connection).await.unwrap();
    }
    for (tenant, category, date, id) in ROWS {
        let insert = "insert into items values ($1, $2, $3::text::date, $4)";
        let insert = sqlx::query(insert).bind(tenant).bind(category).bind(date).bind(id);
        insert.execute(&mut connection).await.unwrap();
    }
    let sql = "select id, timezone, plan from tenants order by n";
    conforms(&connect(settings(&server.url()), sql).await).await;
}
