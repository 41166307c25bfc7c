//! Queries that are tried on a sample of the tenants.

use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{DatabaseSettings, Findings, PostgresSource};
use preheat::domain::job::{DateZone, Dates, Job};
use preheat::engine::ports::Source;

use super::{by_batches, clinic, lines};
use crate::conformance::postgres::{connect, settings};
use crate::conformance::{fleet_job, job, with_dates};
use crate::support;

/// Nine tenants, of whom the first six have five items each.
async fn items() -> (support::Database, PostgresSource) {
    let server = support::database().await;
    server
        .execute(
            "create table items (tenant_id int8, n int, category text, at timestamptz default now());
             insert into items select t, n, case when n < 3 then 'few' else 'many' end
               from generate_series(1, 6) t, generate_series(1, 5) n;
             create table seen (id int8);
             create function look(id int8) returns int8 language sql volatile
               as 'insert into seen values (id) returning id';
             create function broken(id int8) returns int8 language plpgsql
               as 'begin if id = 3 then raise ''no''; end if; return id; end';",
        )
        .await;
    let source = connect(settings(&server.url()), "select n::int8 from generate_series(1, 9) n");
    let source = source.await;
    (server, source)
}

/// The result of trying a few tenants: problems, and warnings marked with `!`.
async fn tried(source: &PostgresSource, job: &Job) -> Vec<String> {
    let tenants = Arc::new(source.tenants().await.unwrap());
    let now = "2026-03-01T12:00:00Z".parse().unwrap();
    let Findings { problems, warnings } = source.try_on_tenants(job, &tenants, now).await.unwrap();
    let warnings = lines(&job.query.sql, warnings);
    let mut all = lines(&job.query.sql, problems);
    all.extend(warnings.into_iter().map(|line| format!("!{line}")));
    all
}

#[tokio::test]
async fn a_query_that_computes_with_the_zone_asks_for_it_where_nothing_says_one() {
    let (server, source) = items().await;
    let asks = "!query: the query computes with the session's time zone, but neither the role nor the \
                database sets one: here it is UTC, and in the application it may be another one (set \
                `database.time_zone` to that of the application's sessions)";
    let cases = [
        ("select tenant_id, n, at from items where tenant_id = any($1) order by n", false),
        (
            "select tenant_id, n, at::date as day from items where tenant_id = any($1) order by n",
            true,
        ),
        (
            "select tenant_id, n, at at time zone 'Asia/Tokyo' as day from items \
             where tenant_id = any($1) order by n",
            false,
        ),
        (
            "select tenant_id, n from items where tenant_id = any($1) \
             and extract(hour from at) = extract(hour from now() at time zone 'UTC') order by n",
            true,
        ),
    ];
    let job = |sql: &str| job(sql, &["i:{tenant_id}"]);
    for (sql, computes) in cases {
        let said = tried(&source, &job(sql)).await;
        assert_eq!(said, [asks][..usize::from(computes)], "{sql}");
    }
    let fleet = fleet_job("select max(at)::date::text as newest from items", &["newest"]);
    assert_eq!(tried(&source, &fleet).await, [asks]);

    // If a setting gives the time zone, that one counts.
    let zone = Some(chrono_tz::UTC);
    let said = DatabaseSettings { time_zone: zone, ..settings(&server.url()) };
    let said = connect(said, source.tenants_sql()).await;
    server.execute(&format!("alter database {} set timezone = 'Asia/Tokyo'", server.name())).await;
    let of_database = connect(settings(&server.url()), source.tenants_sql()).await;
    for source in [said, of_database] {
        assert_eq!(tried(&source, &job(cases[1].0)).await, [""; 0]);
    }
}

#[tokio::test]
async fn queries_that_are_one_of_each_tenant_pass_the_sample() {
    let (server, source) = items().await;
    for sql in [
        "select tenant_id, n, category from items where tenant_id = any($1) order by n",
        "select tenant_id, n, category, row_number() over (partition by tenant_id order by n) \
         from items where tenant_id = any($1) order by n desc",
        "select batch.id as tenant_id, i.* from unnest($1) as batch (id) cross join lateral \
         (select n, category from items where tenant_id = batch.id order by n limit 2) i",
        "select tenant_id, count(*)::int as n, max(category) as category from items \
         where tenant_id = any($1) group by tenant_id",
        "select distinct on (tenant_id, category) tenant_id, category, n from items \
         where tenant_id = any($1) order by tenant_id, category, n",
        "select tenant_id, n, category from items where tenant_id = any($1) and at < now() order by n",
        "select tenant_id, n, category from items where tenant_id = any($1) and false",
    ] {
        let job = by_batches(sql, &["k:{tenant_id}", "k:{tenant_id}:{category}"]);
        assert_eq!(tried(&source, &job).await, [""; 0], "{sql}");
    }
    // Each row has a key of its own, so no value has an order.
    let unordered = by_batches(
        "select tenant_id, n from items where tenant_id = any($1) \
         order by (cardinality($1) > 1) = (n > 2), n",
        &["k:{tenant_id}:{n}"],
    );
    assert_eq!(tried(&source, &unordered).await, [""; 0]);
    let dated = with_dates(
        by_batches(
            "select tenant_id, n, first as date from items \
             join unnest($1, $2, $3) as d(id, first, last) on d.id = tenant_id order by n",
            &["s:{tenant_id}:{date}"],
        ),
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC), column: None },
    );
    assert_eq!(tried(&source, &dated).await, [""; 0]);
    // The query returns rows from the first to the last day of all its tenants. Those outside a tenant's own
    // days are dropped, so that its rows are the same alone and together.
    let zoned = "select n::int8, (array['Pacific/Kiritimati', 'Pacific/Pago_Pago'])[n % 2 + 1] as zone \
                 from generate_series(1, 9) n";
    let zoned = connect(settings(&server.url()), zoned).await;
    server
        .execute(
            "update items set at = case n when 1 then '2026-03-01 10:30Z' when 2 then '2026-03-02 10:30Z' \
             else '2026-03-01 12:00Z' end::timestamptz",
        )
        .await;
    let zone = DateZone::TenantColumn("zone".to_owned());
    let moments = with_dates(
        by_batches(
            "select tenant_id, n, at from items \
             where tenant_id = any($1) and at >= $2 and at < $3 order by n",
            &["s:{tenant_id}:{date}", "i:{tenant_id}"],
        ),
        Dates { days: 1, zone, column: Some("at".to_owned()) },
    );
    assert_eq!(tried(&zoned, &moments).await, [""; 0]);
    // Batches of one tenant have nothing to compare.
    let one =
        job("select tenant_id, n from items where tenant_id = any($1) limit 2", &["k:{tenant_id}"]);
    assert_eq!(tried(&source, &one).await, [""; 0]);
    let fleet = fleet_job("select count(*) as n, random() from items", &["fleet"]);
    assert_eq!(tried(&source, &fleet).await, [""; 0]);
}

#[tokio::test]
async fn hazard_36_a_query_whose_rows_of_a_tenant_depend_on_its_batch_is_a_problem() {
    let (_server, source) = items().await;
    for (sql, expected) in [
        (
            "select tenant_id, n from items where tenant_id = any($1) order by tenant_id, n limit 7",
            "tenant `2` has 5 rows when it is read alone, and 2 together with 8 others; row 3",
        ),
        (
            "select tenant_id, n from items where tenant_id = any($1) order by tenant_id, n offset 1",
            "tenant `2` has 4 rows when it is read alone, and 5 together",
        ),
        (
            "select tenant_id, n, row_number() over (order by tenant_id, n) as place from items \
          where tenant_id = any($1) order by n",
            "tenant `2` has 5 rows when it is read alone, and 5 together with 8 others; row 1",
        ),
        (
            "select tenant_id, n, count(*) over () as all from items where tenant_id = any($1)",
            "row 1",
        ),
        (
            "select tenant_id, n, (select count(*) from items where tenant_id = any($1)) as all \
          from items where tenant_id = any($1)",
            "row 1",
        ),
        (
            "select id as tenant_id, (select sum(n) from items where tenant_id = any($1)) as all \
          from unnest($1) as id",
            "row 1",
        ),
        (
            "select distinct on (category) category, tenant_id, n from items \
          where tenant_id = any($1) order by category, tenant_id, n",
            "tenant `2` has 2 rows when it is read alone, and 0 together",
        ),
        (
            "with few as materialized (select * from items where tenant_id = any($1) \
          order by tenant_id limit 7) select tenant_id, n from few",
            "2 together with 8 others",
        ),
    ] {
        let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
        assert_eq!(found.len(), 1, "{sql}: {found:?}");
        let message = "query: a tenant's rows depend on the other tenants of its batch: ";
        assert!(found[0].starts_with(message), "{sql}: {found:?}");
        assert!(found[0].contains(expected), "{sql}: {found:?}");
        assert!(found[0].contains("row_number() over (partition by tenant_id"), "{found:?}");
    }
}

#[tokio::test]
async fn a_query_that_returns_other_rows_each_time_is_not_accused_of_mixing_tenants() {
    let (_server, source) = items().await;
    for (sql, expected) in [
        (
            "select tenant_id, n, random() as r from items where tenant_id = any($1) order by n",
            "!query: the query returns different rows each time",
        ),
        (
            "select tenant_id, n, clock_timestamp() as now from items where tenant_id = any($1)",
            "!query: the query returns different rows each time",
        ),
        (
            "select tenant_id, n from items where tenant_id = any($1) and random() < 0.5",
            "!query: the query returns different rows each time",
        ),
        (
            "select tenant_id, n, now() as now from items where tenant_id = any($1) order by n",
            "!query: the query returns different values in each transaction",
        ),
        (
            "select tenant_id, n from items where tenant_id = any($1) \
          order by (cardinality($1) > 1) = (n > 2), n",
            "!query: the order of a tenant's rows is not determined",
        ),
    ] {
        let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
        assert_eq!(found.len(), 1, "{sql}: {found:?}");
        assert!(found[0].starts_with(expected), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn hazard_41_a_function_that_writes_is_refused_whatever_the_settings_say() {
    let (server, _source) = items().await;
    let settings = DatabaseSettings { read_only: false, ..settings(&server.url()) };
    let source = connect(settings, "select n::int8 from generate_series(1, 9) n").await;
    let expected = "query: cannot execute INSERT in a read-only transaction (25006) \
                    (preheat's queries only read, in read-only transactions: use a `select`)";
    let sql = "select id as tenant_id, look(id) as n from unnest($1) as id";
    assert_eq!(tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await, [expected]);
    let fleet = fleet_job("select look(1) as n", &["fleet"]);
    assert_eq!(tried(&source, &fleet).await, [expected]);
    let mut connection = server.connect().await;
    let seen: i64 =
        sqlx::query_scalar("select count(*) from seen").fetch_one(&mut connection).await.unwrap();
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn a_tenant_whose_rows_cannot_be_read_does_not_keep_the_others_from_being_compared() {
    let (_server, source) = items().await;
    let sql = "select tenant_id, broken(tenant_id) as n from items where tenant_id = any($1)";
    assert_eq!(tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await, [""; 0]);
    let sql = "select tenant_id, broken(tenant_id), count(*) over () as all from items \
               where tenant_id = any($1)";
    let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
    assert!(found[0].contains("depend on the other tenants"), "{found:?}");
    let sql = "select tenant_id, broken(3) as n from items where tenant_id = any($1)";
    let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
    let expected = "!query: the query could not be tried on a few tenants: no (P0001)";
    assert_eq!(found, [expected]);
    let sql = "select tenant_id + 1 as tenant_id, n from items where tenant_id = any($1)";
    let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
    assert!(found[0].starts_with("query: the query returned a row whose `tenant_id`"), "{found:?}");
}

#[tokio::test]
async fn a_sample_is_bounded_in_time_and_bytes_and_waits_for_no_lock() {
    let (server, source) = items().await;
    let sql = "select tenant_id, repeat('x', 3000000) as n from items where tenant_id = any($1)";
    let found = tried(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
    assert!(found[0].contains("could not be tried on a few tenants: the rows"), "{found:?}");
    let sql = "select tenant_id, n from items where tenant_id = any($1) order by n";
    let plain = by_batches(sql, &["k:{tenant_id}"]);
    let mut writer = server.connect().await;
    sqlx::raw_sql("begin; lock table items in access exclusive mode")
        .execute(&mut writer)
        .await
        .unwrap();
    let found = tried(&source, &plain).await;
    assert!(found[0].contains("could not be tried on a few tenants: "), "{found:?}");
    assert!(found[0].contains("(55P03)"), "{found:?}");
    sqlx::raw_sql("rollback").execute(&mut writer).await.unwrap();
    let hurried = DatabaseSettings {
        statement_timeout: Duration::from_millis(200),
        ..settings(&server.url())
    };
    let source = connect(hurried, "select n::int8 from generate_series(1, 9) n").await;
    let slow = "select tenant_id, pg_sleep(30)::text as n from items where tenant_id = any($1)";
    let found = tried(&source, &by_batches(slow, &["k:{tenant_id}"])).await;
    assert!(found[0].contains("statement timeout (57014)"), "{found:?}");
}

#[tokio::test]
async fn a_key_column_that_an_application_writes_otherwise_is_a_warning() {
    let (_server, source) = clinic().await;
    let sql = "select tenant_id, active, updated_at, updated_at::timestamp as local, \
               'ab'::char(3) as code, '{}'::jsonb as doc, updated_at::date as day, price, id, sku \
               from products where tenant_id = any($1)";
    let warned = job(
        sql,
        &[
            "a:{tenant_id}:{active}",
            "b:{tenant_id}:{updated_at}",
            "c:{tenant_id}:{code}",
            "d:{tenant_id}:{doc}",
            "e:{tenant_id}:{local}",
        ],
    );
    let Findings { problems, warnings } = source.describe(&warned).await.unwrap();
    assert_eq!(problems, []);
    insta::assert_snapshot!(lines(sql, warnings).join("\n"));
    let fine = job(sql, &["a:{tenant_id}:{day}:{price}", "b:{tenant_id}:{id}:{sku}"]);
    assert_eq!(source.describe(&fine).await, Ok(Findings::default()));
}
