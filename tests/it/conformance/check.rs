//! What is wrong with a query, told before it runs.

use preheat::adapter::postgres::{PostgresSource, QueryPlace, QueryProblem, RelationKind};
use preheat::domain::job::{DateZone, Dates, Job, Table};
use preheat::domain::json::ColumnCodec;

use super::pgbouncer::Bouncer;
use super::postgres::{connect, settings};
use super::{fleet_job, job, with_dates};
use crate::support;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

async fn clinic() -> (support::Database, PostgresSource) {
    let server = support::clinic().await;
    let sql = "select id, timezone from tenants where status = 'active' order by created_at, id";
    let source = connect(settings(&server.url()), sql).await;
    (server, source)
}

/// Each problem in a line: what it is about, what is wrong, and what to do.
async fn problems(source: &PostgresSource, job: &Job) -> Vec<String> {
    lines(&job.query.sql, source.describe(job).await.unwrap())
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
    assert_eq!(source.describe_tenants().await, Ok(Vec::new()));
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
             int8, text, varchar, bpchar or citext; hint: cast it in `tenants.sql`",
        ),
        (
            "select id from tenants where id = $1",
            "query: the tenant query has a parameter, and nothing is given to it",
        ),
        (
            "select id, lseg '((0,0),(1,1))' as line from tenants",
            "query: the column `line` is lseg, which has no codec (cast it to text: `line::text as line`)",
        ),
    ];
    for (sql, expected) in cases {
        let source = connect(settings(&server.url()), sql).await;
        assert_eq!(lines(sql, source.describe_tenants().await.unwrap()), [expected]);
        // It shows once, and not again at each job.
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
    assert_eq!(error.kind, preheat::engine::port::SourceErrorKind::Unavailable);
}

/// What a job's query reads, a relation a line: those that `tables` does not name have a `!`.
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
    let table = |name: &&str| Table { name: (*name).to_owned(), tenant: None, sql: None };
    Job { tables: tables.iter().map(table).collect(), ..job }
}

#[tokio::test]
async fn every_relation_that_a_query_reads_is_found_behind_views_partitions_and_filters() {
    let (server, source) = clinic().await;
    server
        .execute(
            "create schema app;
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
               as 'begin return (select count(*) from staff); end';",
        )
        .await;
    let cases: &[(&str, &[&str], &[&str])] = &[
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
    for (sql, tables, expected) in cases {
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
    let source = connect(bouncer.settings(server.name()), "select id from tenants").await;
    let fine = job("select tenant_id from pets where tenant_id = any($1)", &["k:{tenant_id}"]);
    let denied = job("select tenant_id from hidden where tenant_id = any($1)", &["k:{tenant_id}"]);
    for _ in 0..4 {
        assert_eq!(reads(&source, &fine).await, ["!pets by tenant"]);
        source.relations(&denied).await.unwrap_err();
    }
    let options: PgConnectOptions = bouncer.url(server.name()).parse().unwrap();
    let mut pooled = PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap();
    let sql =
        "select name || ': ' || statement from pg_prepared_statements where name like 'preheat%'";
    let left: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut pooled).await.unwrap();
    assert_eq!(left, [""; 0]);
}
