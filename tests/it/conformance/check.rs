//! What is wrong with a query, found before it runs.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{
    DatabaseSettings, Findings, PostgresSource, QueryPlace, QueryProblem, RelationKind,
};
use preheat::domain::job::{DateZone, Dates, Job, Table};
use preheat::domain::json::ColumnCodec;
use preheat::engine::ports::Source;

use super::pgbouncer::Bouncer;
use super::postgres::{connect, settings};
use super::{fleet_job, job, with_dates};
use crate::support;
use sqlx::Row;

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
        Dates { days: 7, zone: DateZone::TenantColumn("timezone".to_owned()) },
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
    let wrong = with_dates(wrong, Dates { days: 2, zone });
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

/// The relations that a job's query reads, one a line; `!` marks those that `tables` does not name.
async fn reads(source: &PostgresSource, job: &Job) -> Vec<String> {
    let line = |relation: preheat::adapter::postgres::ReadRelation| {
        let watched = if relation.is_watched { "" } else { "!" };
        let kind = match relation.kind {
            RelationKind::Table => "",
            RelationKind::MaterializedView => " (materialized view)",
            RelationKind::ForeignTable => " (foreign table)",
        };
        let tenant = if relation.has_tenant_column { " by tenant" } else { "" };
        format!("{watched}{}{kind}{tenant}", relation.name)
    };
    source.relations(job).await.unwrap().into_iter().map(line).collect()
}

fn watching(job: Job, tables: &[&str]) -> Job {
    let table = |name: &&str| Table::named(*name);
    Job { tables: tables.iter().map(table).collect(), ..job }
}

/// Relations of every kind.
const RELATIONS: &str = "create schema app;
             create table app.\"Prices\" (tenant_id uuid, amount numeric);
             create view menu as select s.tenant_id, s.name, p.amount
               from services s join app.\"Prices\" p using (tenant_id);
             create view app.menus as select * from menu where false or name <> '';
             create materialized view totals as
               select tenant_id, count(*) as n from pets group by 1;
             create table visits (tenant_id uuid, at date) partition by range (at);
             create table visits_old partition of visits for values from ('2000-01-01') to ('2010-01-01');
             create table visits_new partition of visits for values from ('2010-01-01') to (maxvalue)
               partition by list (tenant_id);
             create table app.visits_rest partition of visits_new default;
             create table events (tenant_id uuid check (tenant_id is not null));
             create table events_here () inherits (events);
             create extension file_fdw;
             create server files foreign data wrapper file_fdw;
             create foreign table elsewhere (tenant_id uuid) server files options (filename '/dev/null');
             create function hidden() returns bigint language plpgsql stable
               as 'begin return (select count(*) from staff); end';";

/// A query, the job's `tables`, and the relations that the query reads; `!` marks those that no
/// entry of `tables` watches.
const READS: &[(&str, &[&str], &[&str])] = &[
    (
        "select tenant_id from services where tenant_id = any($1)",
        &["services"],
        &["services by tenant"],
    ),
    (
        "select tenant_id, name, amount from menu where tenant_id = any($1)",
        &["app.Prices"],
        &["app.Prices by tenant", "!services by tenant"],
    ),
    (
        "select tenant_id, name from app.menus where tenant_id = any($1);",
        &["public.services"],
        &["!app.Prices by tenant", "services by tenant"],
    ),
    (
        "select tenant_id, n from totals where tenant_id = any($1) -- by night",
        &[],
        &["!totals (materialized view) by tenant"],
    ),
    (
        "select tenant_id from visits where tenant_id = any($1) and at > '2020-01-01'",
        &[],
        &["!visits by tenant"],
    ),
    (
        "select tenant_id from visits where tenant_id = any($1) and at > '2020-01-01'",
        &["visits"],
        &["visits by tenant"],
    ),
    (
        "select tenant_id from visits_old where tenant_id = any($1)",
        &["visits_old"],
        &["visits by tenant"],
    ),
    (
        "select tenant_id from app.visits_rest where tenant_id = any($1)",
        &["visits_new"],
        &["visits by tenant"],
    ),
    (
        "select tenant_id from visits where tenant_id = any($1)",
        &["visits_old"],
        &["!visits by tenant"],
    ),
    (
        "select tenant_id from events where tenant_id = any($1) and tenant_id is null",
        &[],
        &["!events by tenant"],
    ),
    (
        "select tenant_id from events_here where tenant_id = any($1)",
        &["events"],
        &["events by tenant"],
    ),
    (
        "select tenant_id from elsewhere where tenant_id = any($1)",
        &[],
        &["!elsewhere (foreign table) by tenant"],
    ),
    (
        "with a as materialized (select * from pets where tenant_id = any($1)) \
          select t.id as tenant_id, (select count(*) from a where a.tenant_id = t.id), \
            exists (select from slots s where s.tenant_id = t.id) \
          from tenants t where t.id = any($1) and t.status = (select max(status) from tenants) \
          union all select tenant_id, 1, true from pages where tenant_id = any($1)",
        &[],
        &["!pages by tenant", "!pets by tenant", "!slots by tenant", "!tenants"],
    ),
    ("select id as tenant_id, hidden() from unnest($1) id", &[], &[]),
    ("select id as tenant_id, (select count(*) from pg_class) from unnest($1) id", &[], &[]),
];

#[tokio::test]
async fn every_relation_that_a_query_reads_is_found_behind_views_partitions_and_filters() {
    let (server, source) = clinic().await;
    server.execute(RELATIONS).await;
    for (sql, tables, expected) in READS {
        let job = watching(job(sql, &["k:{tenant_id}"]), tables);
        assert_eq!(reads(&source, &job).await, *expected, "{sql} {tables:?}");
    }
    let dated = with_dates(
        job(
            "select tenant_id, starts_at::date as date from slots \
             join unnest($1, $2, $3) as d(id, first, last) on d.id = tenant_id \
             where starts_at between d.first and d.last",
            &["k:{tenant_id}:{date}"],
        ),
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC) },
    );
    assert_eq!(reads(&source, &dated).await, ["!slots by tenant"]);
    let fleet = fleet_job("select count(*) as n from tenants", &["fleet"]);
    assert_eq!(reads(&source, &watching(fleet, &["tenants"])).await, ["tenants"]);
}

#[tokio::test]
async fn a_look_at_a_plan_leaves_no_statement_in_a_poolers_sessions() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::clinic().await;
    let source = connect(settings(&bouncer.url(server.name())), "select id from tenants").await;
    let fine = job("select tenant_id from pets where tenant_id = any($1)", &["k:{tenant_id}"]);
    let denied = job("select tenant_id from hidden where tenant_id = any($1)", &["k:{tenant_id}"]);
    for _ in 0..4 {
        assert_eq!(reads(&source, &fine).await, ["!pets by tenant"]);
        source.relations(&denied).await.unwrap_err();
    }
    let mut neighbour = bouncer.neighbour(server.name()).await;
    for _ in 0..8 {
        let sql = "select coalesce(string_agg(statement, '; '), '') from pg_prepared_statements";
        let left = sqlx::raw_sql(sql).fetch_one(&mut neighbour).await.unwrap();
        assert_eq!(left.get::<String, _>(0), "");
    }
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
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC) },
    );
    let found = problems(&source, &dated).await.join("\n");
    assert!(found.contains("unnest($1, $2, $3) as batch (tenant_id, first_date"), "{found}");
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
    let (_server, source) = items().await;
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
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC) },
    );
    assert_eq!(tried(&source, &dated).await, [""; 0]);
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
