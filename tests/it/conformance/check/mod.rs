//! What is wrong with a query, found before it runs.

mod order;
mod relations;
mod sample;

use std::num::NonZeroUsize;

use preheat::adapter::postgres::{Findings, PostgresSource, QueryPlace, QueryProblem};
use preheat::domain::job::{DateZone, Dates, Job};
use preheat::domain::json::ColumnCodec;

use super::postgres::{connect, settings};
use super::{fleet_job, job, with_dates};
use crate::support;

async fn clinic() -> (support::Database, PostgresSource) {
    let server = support::clinic().await;
    let sql = "select id, timezone from tenants where status = 'active' order by created_at, id";
    let source = connect(settings(&server.url()), sql).await;
    (server, source)
}

/// Each problem as one line: its subject, the problem, and the hint.
async fn problems(source: &PostgresSource, job: &Job) -> Vec<String> {
    lines(&job.query.sql, source.describe(job).await.unwrap().problems)
}

fn lines(sql: &str, problems: Vec<QueryProblem>) -> Vec<String> {
    let line = |problem: QueryProblem| {
        let place = match problem.place {
            QueryPlace::Query { at: Some(at) } => {
                format!("query at `{}`", sql[at..].split_whitespace().next().unwrap())
            }
            QueryPlace::Query { at: None } => "query".to_owned(),
            QueryPlace::Key(index) => format!("key {index}"),
            QueryPlace::Unique(index) => format!("unique {index}"),
            QueryPlace::Timezone => "timezone".to_owned(),
            QueryPlace::Order(index) => format!("order {index}"),
            QueryPlace::DateColumn => "date column".to_owned(),
            QueryPlace::Omit(name) => format!("omit {name}"),
            QueryPlace::Columns(name) => format!("columns {name}"),
        };
        let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{place}: {}{hint}", problem.message)
    };
    problems.into_iter().map(line).collect()
}

#[tokio::test]
async fn a_query_that_fits_has_no_problem() {
    let (_server, source) = clinic().await;
    assert_eq!(source.describe_tenants().await, Ok(Findings::default()));
    let products = job(
        "select tenant_id, category, id, name, price from products where tenant_id = any($1)",
        &["p:{tenant_id}", "p:{tenant_id}:{category}", "z:{tenant_id}:{tenant.timezone}"],
    );
    assert_eq!(problems(&source, &products).await, [""; 0]);
    let slots = with_dates(
        job(
            "select s.tenant_id, (s.starts_at at time zone t.timezone)::date as date, s.starts_at \
             from slots s join tenants t on t.id = s.tenant_id \
             join unnest($1, $2, $3) as d(id, first, last) on d.id = t.id \
             where (s.starts_at at time zone t.timezone)::date between d.first and d.last",
            &["s:{tenant_id}:{date}"],
        ),
        Dates { days: 7, zone: DateZone::TenantColumn("timezone".to_owned()), column: None },
    );
    assert_eq!(problems(&source, &slots).await, [""; 0]);
    let fleet = fleet_job("select count(*) as n from tenants", &["fleet"]);
    assert_eq!(problems(&source, &fleet).await, [""; 0]);
}

#[tokio::test]
async fn what_the_server_says_comes_with_its_place() {
    let (_server, source) = clinic().await;
    let cases = [
        (
            "select tenant_id, nam from products where tenant_id = any($1)",
            "query at `nam`: column \"nam\" does not exist (42703) (Perhaps you meant to reference \
             the column \"products.name\".)",
        ),
        (
            "select 'é', tenant_id from product where tenant_id = any($1)",
            "query at `product`: relation \"product\" does not exist (42P01)",
        ),
        (
            "select tenant_id from products where stock = any($1)",
            "query at `=`: operator does not exist: integer = uuid (42883) (No operator matches \
             the given name and argument types. You might need to add explicit type casts.)",
        ),
        (
            "select tenant_id frm products",
            "query at `products`: syntax error at or near \"products\" (42601)",
        ),
        (
            "select tenant_id from products where tenant_id = any($1) and stock > $2",
            "query: the query uses `$2`, and the job gives it `$1` only",
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(problems(&source, &job(sql, &["p:{tenant_id}"])).await, [expected], "{sql}");
    }
}

#[tokio::test]
async fn everything_that_a_job_expects_is_checked_at_once() {
    let (_server, source) = clinic().await;
    let mut wrong = job(
        "select products.tenant_id::text, name, starts_at as date, lseg '((0,0),(1,1))' as line \
         from products, slots",
        &["a:{tenant_id}:{date}", "b:{tenant_id}:{nme}", "c:{tenant_id}:{tenant.zone}:{line}"],
    );
    wrong.keys[1].unique = Some("sku".to_owned());
    wrong.encoding.omit.push("nothing".to_owned());
    wrong.encoding.columns = [("name".to_owned(), ColumnCodec::Number)].into();
    let zone = DateZone::TenantColumn("time_zone".to_owned());
    let wrong = with_dates(wrong, Dates { days: 2, zone, column: None });
    insta::assert_snapshot!(problems(&source, &wrong).await.join("\n"));
}

#[tokio::test]
async fn a_tenant_query_that_cannot_work_says_why() {
    let server = support::clinic().await;
    let cases = [
        (
            "select idd from tenants",
            "query at `idd`: column \"idd\" does not exist (42703) (Perhaps you meant to reference the column \"tenants.id\".)",
        ),
        (
            "select created_at from tenants",
            "query: the tenants' id `created_at` is timestamptz, and an id is uuid, int2, int4, \
             int8, text, varchar, bpchar or citext (cast it in `tenants.sql`)",
        ),
        (
            "select id from tenants where id = $1",
            "query: the tenant query has a parameter, but gets no value for it",
        ),
        (
            "select id, lseg '((0,0),(1,1))' as line from tenants",
            "query: the column `line` is lseg, which has no codec (cast it to text in the query: `line::text as line`)",
        ),
    ];
    for (sql, expected) in cases {
        let source = connect(settings(&server.url()), sql).await;
        assert_eq!(lines(sql, source.describe_tenants().await.unwrap().problems), [expected]);
        // It is reported once, and not again for each job.
        let fine = job("select id as tenant_id, 1 as one from unnest($1) id", &["k:{tenant_id}"]);
        if expected.starts_with("query at") {
            assert_eq!(problems(&source, &fine).await, [""; 0]);
        }
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_no_problem_of_a_query() {
    let server = support::own_postgres();
    let source = connect(settings(&server.url("postgres")), "select 1").await;
    server.stop();
    let error = source.describe(&job("select 1 as tenant_id", &["k"])).await.unwrap_err();
    assert_eq!(error.kind, preheat::engine::ports::SourceErrorKind::Unavailable);
}

fn by_batches(sql: &str, keys: &[&str]) -> Job {
    Job { batch: NonZeroUsize::new(100).unwrap(), ..job(sql, keys) }
}

#[tokio::test]
async fn an_array_that_is_compared_like_one_id_gets_the_way_to_write_it() {
    let (_server, source) = clinic().await;
    for sql in [
        "select tenant_id from products where tenant_id = $1",
        "select tenant_id from products where tenant_id in ($1)",
        "select tenant_id from products where $1 = tenant_id",
        "select tenant_id from products where tenant_id::text = $1",
    ] {
        let found = problems(&source, &job(sql, &["p:{tenant_id}"])).await.join("\n");
        assert!(found.contains("operator does not exist"), "{found}");
        let hint = "(`$1` is the array of the batch's tenant ids: write `tenant_id = any($1)`)";
        assert!(found.ends_with(hint), "{sql}: {found}");
    }
    let dated = with_dates(
        job(
            "select tenant_id, starts_at::date as date from slots \
             where tenant_id = any($1) and starts_at >= $2",
            &["s:{tenant_id}:{date}"],
        ),
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC), column: None },
    );
    let found = problems(&source, &dated).await.join("\n");
    assert!(found.contains("unnest($1, $2, $3) as batch (tenant_id, first_date"), "{found}");
}

fn by_starts_at(sql: &str, column: &str) -> Job {
    let zone = DateZone::TenantColumn("timezone".to_owned());
    let dates = Dates { days: 7, zone, column: Some(column.to_owned()) };
    with_dates(job(sql, &["s:{tenant_id}:{date}"]), dates)
}

#[tokio::test]
async fn hazard_12_a_query_that_takes_its_moments_as_they_are_has_no_problem() {
    let (server, source) = clinic().await;
    server
        .execute(
            "create domain opening as timestamptz;
             create table shifts (tenant_id uuid, at opening, wall timestamp, day date)",
        )
        .await;
    for (column, sql) in [
        (
            "starts_at",
            "select tenant_id, id, starts_at from slots \
             where tenant_id = any($1) and starts_at >= $2 and starts_at < $3",
        ),
        ("starts_at", "select tenant_id, id, starts_at from slots where tenant_id = any($1)"),
        (
            "starts_at",
            "select tenant_id, starts_at from slots where tenant_id = any($1) and starts_at < $3",
        ),
        (
            "starts_at",
            "select tenant_id, starts_at, 'x' as date from slots \
             where tenant_id = any($1) and tstzrange($2, $3) @> starts_at",
        ),
        (
            "at",
            "select tenant_id, at from shifts where tenant_id = any($1) and at between $2 and $3",
        ),
        (
            "wall",
            "select tenant_id, wall from shifts \
             where tenant_id = any($1) and wall >= $2::timestamp and wall < $3",
        ),
        (
            "day",
            "select tenant_id, day from shifts \
             where tenant_id = any($1) and daterange($2, $3) @> day",
        ),
    ] {
        assert_eq!(problems(&source, &by_starts_at(sql, column)).await, [""; 0], "{sql}");
    }
    let fleet = fleet_job(
        "select starts_at from slots where starts_at >= $1 and starts_at < $2",
        &["s:{date}"],
    );
    let (zone, column) = (DateZone::Fixed(chrono_tz::UTC), Some("starts_at".to_owned()));
    let fleet = with_dates(fleet, Dates { days: 7, zone, column });
    assert_eq!(problems(&source, &fleet).await, [""; 0]);
}

#[tokio::test]
async fn a_query_that_reads_the_rows_of_all_days_gets_a_warning() {
    let (_server, source) = clinic().await;
    let select = "select tenant_id, starts_at from slots where tenant_id = any($1)";
    let warnings = async |bounds: &str| {
        let job = by_starts_at(&format!("{select}{bounds}"), "starts_at");
        lines(&job.query.sql, source.describe(&job).await.unwrap().warnings)
    };
    let mut found = Vec::new();
    for bounds in [" -- $2 $3", " and starts_at >= $2", " and starts_at < $3"] {
        found.extend(warnings(bounds).await);
    }
    insta::assert_snapshot!(found.join("\n"));
    assert_eq!(warnings(" and starts_at >= $2 and starts_at < $3").await, [""; 0]);
    let zone = DateZone::Fixed(chrono_tz::UTC);
    let fleet = fleet_job("select starts_at from slots", &["s:{date}"]);
    let dates = Dates { days: 7, zone, column: Some("starts_at".to_owned()) };
    let found = source.describe(&with_dates(fleet, dates)).await.unwrap().warnings;
    assert!(found[0].message.contains("`$1` and `$2`"), "{found:?}");
}

#[tokio::test]
async fn a_column_of_moments_that_cannot_be_one_says_why() {
    let (server, source) = clinic().await;
    server.execute("create table visits (tenant_id uuid, n int, said text, doc jsonb)").await;
    let cases = [
        (
            "startsat",
            "select tenant_id, starts_at from slots where tenant_id = any($1) and starts_at >= $2",
        ),
        ("ends_at", "select tenant_id, id from slots where tenant_id = any($1)"),
        (
            "status",
            "select tenant_id, status from slots where tenant_id = any($1) and starts_at >= $2",
        ),
        (
            "starts_at",
            "select tenant_id, starts_at from slots -- from $2 on
             where tenant_id = any($1) and starts_at >= $2::date and starts_at < $3::date",
        ),
        (
            "local",
            "select tenant_id, starts_at at time zone 'UTC' as local from slots \
             where tenant_id = any($1) and starts_at >= $2 and starts_at < $3",
        ),
        (
            "starts_at",
            "select tenant_id, starts_at from slots \
             join unnest($1, $2, $3) as batch (id, first, last) on id = tenant_id",
        ),
        (
            "starts_at",
            "select tenant_id, starts_at from slots \
             join unnest($1::uuid[], $2::date[], $3::date[]) as batch (id, first, last) on id = tenant_id",
        ),
        (
            "starts_at",
            "select tenant_id, starts_at from slots where tenant_id = any($1) and starts_at >= any($2)",
        ),
        ("starts_at", "select tenant_id, starts_at frm slots"),
        ("starts_at", "delete from slots where tenant_id = any($1) returning tenant_id, starts_at"),
        (
            "starts_at",
            "select tenant_id, starts_at from slots where tenant_id = any($1) and id = $4",
        ),
        // The server knows no operator for the column's type and that of the moments.
        ("n", "select tenant_id, n from visits where tenant_id = any($1) and n >= $2 and n < $3"),
        ("n", "select tenant_id, n from visits where tenant_id = any($1) and n between $2 and $3"),
        ("said", "select tenant_id, said from visits where tenant_id = any($1) and said >= $2"),
        ("doc", "select tenant_id, doc from visits where tenant_id = any($1)"),
    ];
    let mut found = Vec::new();
    for (column, sql) in cases {
        found.extend(problems(&source, &by_starts_at(sql, column)).await);
    }
    // The dates are arrays if `[dates]` names no column.
    let arrays = with_dates(
        job(
            "select tenant_id, starts_at::date as date from slots \
             where tenant_id = any($1) and starts_at::date between $2::date and $3::date",
            &["s:{tenant_id}:{date}"],
        ),
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC), column: None },
    );
    found.extend(problems(&source, &arrays).await);
    // A job without tenants gives no ids.
    let fleet = fleet_job(
        "select starts_at from slots where starts_at >= $2 and starts_at < $3",
        &["s:{date}"],
    );
    let (zone, column) = (DateZone::Fixed(chrono_tz::UTC), Some("starts_at".to_owned()));
    let fleet = with_dates(fleet, Dates { days: 7, zone, column });
    found.extend(problems(&source, &fleet).await);
    insta::assert_snapshot!(found.join("\n"));
}

#[tokio::test]
async fn columns_that_the_driver_does_not_know_are_named_with_their_cast() {
    let (server, source) = clinic().await;
    server
        .execute(
            "create type shift as range (subtype = time);
             create domain spans as int4multirange;
             create type odd as enum ('a,b', 'NULL');
             create type fine as enum ('a,b', 'c\"d', 'e\\f', '{g}', 'null', '', 'ä ');
             create type calm as enum ('free', 'busy');",
        )
        .await;
    let sql = "select tenant_id, '{}'::nummultirange as price, name, '{}'::shift_multirange as open, \
               '{}'::spans as off, array['{}'::datemultirange] as days, int4range(1, 2) as fine \
               from products where tenant_id = any($1);";
    assert_eq!(
        problems(&source, &job(sql, &["p:{tenant_id}"])).await,
        [
            "query: the column `price` is nummultirange, which the driver cannot read \
             (cast it to text in the query: `price::text as price`)",
            "query: the column `open` is shift_multirange, which the driver cannot read \
             (cast it to text in the query: `open::text as open`)",
            "query: the column `off` is int4multirange, which the driver cannot read \
             (cast it to text in the query: `off::text as off`)",
            "query: the column `days` is datemultirange[], which the driver cannot read \
             (cast it to text in the query: `days::text as days`)",
        ]
    );
    // The driver cannot read one of its labels.
    let odd = "select tenant_id, 'a,b'::odd as mood, 'free'::calm as calm, array['a,b']::odd[] as moods, \
               'ä '::fine as fine \
               from products where tenant_id = any($1)";
    assert_eq!(
        problems(&source, &job(odd, &["p:{tenant_id}"])).await,
        [
            "query: the column `mood` is odd, which the driver cannot read \
             (cast it to text in the query: `mood::text as mood`)",
            "query: the column `moods` is odd[], which the driver cannot read \
             (cast it to text in the query: `moods::text as moods`)",
        ]
    );
    let url = server.url();
    let sql = "select id, '{}'::int4multirange as off from tenants";
    let tenants = connect(settings(&url), sql).await;
    assert_eq!(
        lines(sql, tenants.describe_tenants().await.unwrap().problems),
        ["query: the column `off` is int4multirange, which the driver cannot read \
          (cast it to text in the query: `off::text as off`)"]
    );
    // It is reported there, and not for each job.
    let fine = job("select id as tenant_id from unnest($1) id", &["k:{tenant_id}"]);
    assert_eq!(problems(&tenants, &fine).await, [""; 0]);
}

#[tokio::test]
async fn two_columns_of_one_name_are_a_problem() {
    let (_server, source) = clinic().await;
    let sql = "select s.tenant_id, s.id, p.id, p.name from services s join products p \
               using (tenant_id) where tenant_id = any($1)";
    assert_eq!(
        problems(&source, &job(sql, &["p:{tenant_id}"])).await,
        ["query: two columns are called `id` (rename one, as in `id as other_id`)"]
    );
}

#[tokio::test]
async fn a_query_that_writes_or_locks_rows_is_refused() {
    let (_server, source) = clinic().await;
    for (sql, how) in [
        ("delete from pets where tenant_id = any($1) returning tenant_id, id", "delete"),
        ("update pets set name = '' where tenant_id = any($1) returning tenant_id, id", "update"),
        ("insert into pages (tenant_id) select unnest($1) returning tenant_id, id", "insert"),
        (
            "with gone as (delete from pets where tenant_id = any($1) returning tenant_id, id) \
          select tenant_id, id from gone",
            "delete",
        ),
        (
            "with gone as (delete from pets) select tenant_id, id from pages where tenant_id = any($1)",
            "delete",
        ),
        (
            "select tenant_id, id from pets where tenant_id = any($1) for update",
            "select … for update",
        ),
        (
            "select tenant_id, id from (select * from pets for share) p where tenant_id = any($1)",
            "select … for update",
        ),
    ] {
        assert_eq!(
            problems(&source, &job(sql, &["k:{tenant_id}"])).await,
            [format!(
                "query: the query writes or locks rows: `{how}` \
                 (preheat's queries only read, in read-only transactions: use a `select`)"
            )],
            "{sql}"
        );
    }
    let fleet = fleet_job("delete from pets returning id", &["fleet"]);
    assert_eq!(problems(&source, &fleet).await.len(), 1);
    let (server, _source) = clinic().await;
    let tenants = "update tenants set name = name returning id";
    let source = connect(settings(&server.url()), tenants).await;
    let found = lines(tenants, source.describe_tenants().await.unwrap().problems);
    assert!(found[0].contains("the query writes or locks rows: `update`"), "{found:?}");
}

#[tokio::test]
async fn a_limit_over_the_whole_batch_is_refused_and_one_for_each_tenant_is_not() {
    let (_server, source) = clinic().await;
    for sql in [
        "select tenant_id, name from products where tenant_id = any($1) order by name limit 10",
        "select tenant_id, name from products where tenant_id = any($1) limit 100000",
        "select tenant_id, name from products where tenant_id = any($1) offset 1",
        "select tenant_id, name from products where tenant_id = any($1) \
         fetch first 3 rows only",
        "select tenant_id, name from products where tenant_id = any($1) order by name \
         fetch first 3 rows with ties",
        "select tenant_id, count(*) from (select * from products where tenant_id = any($1) \
         order by name limit 10) p group by tenant_id order by 2",
    ] {
        let found = problems(&source, &by_batches(sql, &["k:{tenant_id}"])).await;
        assert_eq!(found.len(), 1, "{sql}");
        let message = "query: `limit` or `offset` cuts off rows of the whole batch";
        assert!(found[0].starts_with(message), "{found:?}");
        // Batches of one tenant read each tenant alone anyway.
        assert_eq!(problems(&source, &job(sql, &["k:{tenant_id}"])).await, [""; 0], "{sql}");
    }
    for sql in [
        "select batch.id as tenant_id, p.name from unnest($1) as batch (id) \
         cross join lateral (select name from products where tenant_id = batch.id \
         order by name limit 3) p",
        "select t.id as tenant_id, (select name from products where tenant_id = t.id \
         order by price limit 1) as best from tenants t where t.id = any($1) offset 0",
        "select tenant_id, name from products where tenant_id = any($1) limit null",
        "select tenant_id, name, d.n from products, (select 1 as n limit 1) d \
         where tenant_id = any($1)",
    ] {
        assert_eq!(problems(&source, &by_batches(sql, &["k:{tenant_id}"])).await, [""; 0], "{sql}");
    }
    let fleet = Job {
        batch: NonZeroUsize::new(100).unwrap(),
        ..fleet_job("select id from tenants order by created_at limit 3", &["fleet"])
    };
    assert_eq!(problems(&source, &fleet).await, [""; 0]);
}
