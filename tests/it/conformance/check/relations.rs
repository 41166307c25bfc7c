//! The relations that a query reads, as its plan tells them.

use preheat::adapter::postgres::{PostgresSource, RelationKind};
use preheat::domain::job::{DateZone, Dates, Job, Table};
use sqlx::Row;

use super::clinic;
use crate::conformance::pgbouncer::Bouncer;
use crate::conformance::postgres::{connect, settings};
use crate::conformance::{fleet_job, job, with_dates};
use crate::support;

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
        Dates { days: 7, zone: DateZone::Fixed(chrono_tz::UTC), column: None },
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
