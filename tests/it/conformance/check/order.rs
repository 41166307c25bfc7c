//! Whether preheat can order rows as `query.order` says.

use std::fmt::Write as _;
use std::sync::Arc;

use preheat::adapter::postgres::Findings;
use preheat::domain::job::Job;
use preheat::domain::order::OrderColumn;
use preheat::domain::tenant::Tenants;

use super::problems;
use crate::conformance::postgres::{connect, settings};
use crate::conformance::{fleet_job, job};
use crate::support::{self, postgres};

fn ordered(sql: &str, order: &[&str]) -> Job {
    let job = fleet_job(sql, &["all"]);
    with_order(job, order)
}

fn with_order(mut job: Job, order: &[&str]) -> Job {
    job.query.order = order.iter().map(|entry| OrderColumn::parse(entry).unwrap()).collect();
    job
}

const TENANTS: &str = "select 1";

#[tokio::test]
async fn columns_that_give_no_order_are_refused_with_what_to_do() {
    let server = support::database().await;
    server
        .execute(
            "create extension citext;
             create type mood as enum ('sad', 'calm');
             create domain label as text collate \"de-x-icu\";
             create table t (name text collate \"de-x-icu\", title varchar collate \"und-x-icu\",
               plain text, by_bytes text collate \"C\", blank char(3) collate \"POSIX\", tag name,
               label label, mood mood, \"Mood\" mood, alias citext, doc jsonb, tags text[], id int)",
        )
        .await;
    let source = connect(settings(&server.url()), TENANTS).await;
    let all = "select *, name || title as both, 'x' as constant from t";
    let fine = [
        "plain",
        "by_bytes desc",
        "blank",
        "tag",
        "constant",
        "id",
        "name collate C",
        "both collate C desc",
        "label collate \"C\"",
    ];
    assert_eq!(problems(&source, &ordered(all, &fine)).await, [""; 0]);
    let wrong = [
        "nme",
        "name desc nulls last",
        "title",
        "both",
        "label",
        "mood",
        "alias",
        "doc",
        "tags",
        "id collate C",
        "lower(name)",
        "t.name",
        "2",
        "Mood",
    ];
    insta::assert_snapshot!(problems(&source, &ordered(all, &wrong)).await.join("\n"));
    let labels = "select mood, array_position(enum_range(mood), mood) as mood_order from t";
    assert_eq!(problems(&source, &ordered(labels, &["mood_order"])).await, [""; 0]);
    // Columns of one name are a problem of their own, and no error.
    let twice = ordered("select name, name from t; -- all of them", &["name"]);
    assert_eq!(problems(&source, &twice).await.len(), 2);
}

#[tokio::test]
async fn the_databases_own_collation_and_encoding_count() {
    let databases = [
        ("order_icu", "locale_provider icu icu_locale 'de-DE' locale 'C'"),
        ("order_c_utf8", "locale 'C.UTF-8'"),
        ("order_latin1", "encoding 'LATIN1' locale 'C'"),
        ("order_latin9", "encoding 'LATIN9' locale 'C'"),
    ];
    let mut shown = String::new();
    for (name, options) in databases {
        postgres().drop_database(name).await.unwrap();
        let create = format!("create database {name} template template0 {options}");
        postgres().execute("postgres", &create).await.unwrap();
        let table = "create table t (tenant_id int, name text, code text collate \"C\", tag name)";
        postgres().execute(name, table).await.unwrap();
        let source = connect(settings(&postgres().url(name)), TENANTS).await;
        let sql = "select tenant_id, name, code, tag from t where tenant_id = any($1)";
        let job = job(sql, &["k:{tenant_id}"]);
        let orders: [&[&str]; 2] =
            [&["name", "code desc", "tag", "tenant_id"], &["name collate C", "code collate C"]];
        for order in orders {
            let found = problems(&source, &with_order(job.clone(), order)).await;
            writeln!(shown, "{name} {order:?}\n{}", found.join("\n")).unwrap();
        }
        drop(source);
        postgres().drop_database(name).await.unwrap();
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn the_order_of_arrival_of_a_job_with_an_order_is_no_warning() {
    let server = support::database().await;
    let source = connect(settings(&server.url()), "select 1").await;
    let mut tenants = Tenants::default();
    for id in ["1", "2", "3"] {
        tenants.push(id, []);
    }
    // The rows come in another order where a tenant is read alone.
    let sql = "select id as tenant_id, n from unnest($1) id, generate_series(1, 5) n \
               order by case when cardinality($1) = 1 then n else -n end";
    let by_query = job(sql, &["k:{tenant_id}"]);
    let by_query = Job { batch: 10.try_into().unwrap(), ..by_query };
    let tenants = Arc::new(tenants);
    let now = chrono::Utc::now();
    let found = source.try_on_tenants(&by_query, &tenants, now).await.unwrap();
    assert_eq!(found.warnings.len(), 1, "{found:?}");
    let ours = with_order(by_query, &["n desc"]);
    let found = source.try_on_tenants(&ours, &tenants, now).await.unwrap();
    assert_eq!(found, Findings::default());
}

#[tokio::test]
async fn a_query_that_sorts_what_preheat_sorts_gets_a_warning() {
    let server = support::database().await;
    server.execute("create table t (tenant_id int, name text)").await;
    let source = connect(settings(&server.url()), "select 1").await;
    let all = "select tenant_id, name from t where tenant_id = any($1)";
    let sorted = job(&format!("{all} order by tenant_id, name"), &["k:{tenant_id}"]);
    let warnings = async |job: &Job| {
        let found = source.describe(job).await.unwrap().warnings;
        found.into_iter().map(|warning| warning.message).collect::<Vec<_>>()
    };
    let twice = warnings(&with_order(sorted.clone(), &["tenant_id"])).await;
    assert_eq!(twice, ["the database sorts the rows, and preheat sorts them again by `order`"]);
    assert_eq!(warnings(&sorted).await, [""; 0]);
    let once = with_order(job(all, &["k:{tenant_id}"]), &["tenant_id"]);
    assert_eq!(warnings(&once).await, [""; 0]);
}
