//! The rows of job queries: ids, parameters, types, and data that breaks them.

use std::num::NonZeroU32;

use preheat::adapter::postgres::{DatabaseSettings, PostgresSource};
use preheat::domain::job::{DateZone, Dates};
use preheat::engine::ports::{Source, SourceError, SourceErrorKind};

use super::{NUMBERS, ONE_EACH, among, connect, numbered, settings};
use crate::conformance::{batch, fleet_job, job, read, with_dates};
use crate::support;

async fn fails(source: &PostgresSource, sql: &str, ids: &[&str]) -> SourceError {
    read(source, &job(sql, &["k:{tenant_id}"]), &batch(ids), &[]).await.unwrap_err()
}

#[tokio::test]
async fn ids_of_every_type_are_asked_for_and_found() {
    let server = support::database().await;
    server
        .execute("create extension citext; create schema ext; create domain tenant_key as int8")
        .await;
    let cases = [
        ("uuid", "0191c6c0-0000-7000-8000-00000000000a", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        ("int2", "-7", "32767"),
        ("int4", "-7", "2147483647"),
        ("int8", "-7", "9223372036854775807"),
        ("tenant_key", "12", "13"),
        ("text", "a'b{}\"\\,", "NULL"),
        ("varchar(20)", "é", ""),
        ("char(4)", "ab  ", "abcd"),
        ("citext", "Abc", "ÄB"),
    ];
    for (ty, one, other) in cases {
        server
            .execute(&format!(
                "drop table if exists t, i;
                 create table t (id {ty} primary key); create table i (tenant_id {ty}, n int);"
            ))
            .await;
        let mut past = server.connect().await;
        for (n, id) in [(1, one), (2, other)] {
            for sql in [
                format!("insert into t values ($1::text::{ty})"),
                format!("insert into i values ($1::text::{ty}, {n})"),
            ] {
                let insert = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id);
                insert.execute(&mut past).await.unwrap();
            }
        }
        let source = connect(settings(&server.url()), "select id from t").await;
        let tenants = source.tenants().await.unwrap();
        let mut ids: Vec<_> = tenants.iter().map(|tenant| tenant.id().to_owned()).collect();
        ids.sort_unstable();
        let mut expected = vec![one.to_owned(), other.to_owned()];
        expected.sort_unstable();
        assert_eq!(ids, expected, "{ty}");
        let job = job(
            "select tenant_id, n from i where tenant_id = any($1) order by n",
            &["k:{tenant_id}"],
        );
        let found = read(&source, &job, &batch(&[other, one]), &[]).await.unwrap();
        let slots: Vec<_> = found.iter().map(|(slot, json, _)| (*slot, json.as_str())).collect();
        assert_eq!(slots, [(1, "{\"n\":1}"), (0, "{\"n\":2}")], "{ty}");

        // A text that is no such id, or another spelling of one, is not among them.
        let odd = ["nobody", "7", "+12", "012", "aBC", "9223372036854775808", "a\0b", "{}", "ab"];
        let upper = one.to_uppercase();
        let upper = (upper != one).then_some(upper.as_str());
        let asked: Vec<_> = odd.into_iter().chain(upper).chain([other, other]).collect();
        assert_eq!(among(&source, &asked).await, [other], "{ty}");
        assert_eq!(among(&source, &odd).await, [""; 0], "{ty}");
        assert_eq!(among(&source, &[one, "nobody"]).await, [one], "{ty}");
        assert_eq!(among(&source, &[]).await, [""; 0], "{ty}");
    }
}

#[tokio::test]
async fn an_id_that_another_column_writes_otherwise_is_the_same_id() {
    let server = support::database().await;
    let source = numbered(&server).await;
    for ty in ["int2", "int8"] {
        let sql = format!("select id::{ty} as tenant_id, 1 as one from unnest($1) id");
        let found = read(&source, &job(&sql, &["k:{tenant_id}"]), &batch(&["3", "4"]), &[]).await;
        assert_eq!(found.unwrap().len(), 2);
    }
    let source = connect(settings(&server.url()), "select 'x'::text").await;
    let sql = "select id::varchar(9) as tenant_id, 1 as one from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["x"]), &[]).await;
    assert_eq!(found.unwrap().len(), 1);
}

#[tokio::test]
async fn hazard_10_a_row_of_another_tenant_fails_the_batch() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let sql = "select n as tenant_id, 1 as one from generate_series(1, 9) n \
               where cardinality($1) > 0";
    let error = fails(&source, sql, &["1", "2"]).await;
    assert_eq!(error.kind, SourceErrorKind::Foreign);
    assert_eq!(
        error.message,
        "could not read the rows of job `products`: the query returned a row whose `tenant_id` is \
         `3`, a tenant that was not asked for; hint: filter by `tenant_id = any($1)`"
    );
    let error = fails(&source, "select null::int as tenant_id, 1 as one", &["1"]).await;
    assert_eq!(error.kind, SourceErrorKind::Foreign);
    assert!(error.message.contains("whose `tenant_id` is NULL"), "{error}");
}

#[tokio::test]
async fn what_breaks_on_data_is_told_from_what_can_never_work() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let by_tenant = "select id as tenant_id, 10 / (id - 2) as n from unnest($1) id";
    let found = read(&source, &job(by_tenant, &["k:{tenant_id}"]), &batch(&["1", "3"]), &[]).await;
    assert_eq!(found.unwrap().len(), 2);
    server
        .execute("create table w (n int); create table text_json as select '{x'::text as j")
        .await;
    let json = "select id as tenant_id, j from unnest($1) id, text_json";
    let cases = [
        (by_tenant, SourceErrorKind::Data, "division by zero (22012)"),
        (
            "select id as tenant_id, id::text::date from unnest($1) id",
            SourceErrorKind::Data,
            "invalid input syntax for type date: \"2\" (22007)",
        ),
        (
            "select i as tenant_id from unnest($1) id",
            SourceErrorKind::Definition,
            "column \"i\" does not exist (42703) at character 8 of the query",
        ),
        (
            "with w as (insert into w values (1) returning n) select n as tenant_id, 1 as one \
             from w where n = any($1)",
            SourceErrorKind::Definition,
            "cannot execute SELECT in a read-only transaction (25006); hint: queries only read: \
             `database.read_only = false` lets those of runs write, while `check`, `plan` and \
             audits only read in any case",
        ),
        (
            "select id as tenant_id, $2::int as n from unnest($1) id",
            SourceErrorKind::Definition,
            "the query uses `$2`, and the job gives it `$1` only",
        ),
        (
            "select 1 as one from unnest($1) id",
            SourceErrorKind::Definition,
            "the query returns no column `tenant_id`",
        ),
        (
            "select id::text as tenant_id, 1 as one from unnest($1) id",
            SourceErrorKind::Definition,
            "the column `tenant_id` is text, and the tenants' id is int4",
        ),
        (
            "select id as tenant_id, point '(1,1)' <-> point '(0,0)', lseg '((0,0),(1,1))' as l \
             from unnest($1) id",
            SourceErrorKind::Definition,
            "column `l` has the type `lseg`, which has no codec",
        ),
    ];
    for (sql, kind, message) in cases {
        let error = fails(&source, sql, &["2"]).await;
        assert_eq!(error.message, format!("could not read the rows of job `products`: {message}"));
        assert_eq!(error.kind, kind, "{sql}");
    }
    let mut as_json = job(json, &["k:{tenant_id}"]);
    as_json.encoding.columns = [("j".to_owned(), preheat::domain::json::ColumnCodec::Json)].into();
    let error = read(&source, &as_json, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Encoding, "{error}");
    assert!(!error.message.contains("{x"), "{error}");
    assert!(read(&source, &job(ONE_EACH, &["k"]), &batch(&["1"]), &[]).await.is_ok());
}

#[tokio::test]
async fn a_query_may_leave_parameters_out_and_a_fleet_has_dates_alone() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let week = || Dates { days: 7, zone: DateZone::Fixed(chrono_tz::Tz::UTC), column: None };
    let first = "2026-02-27".parse().unwrap();
    let only_ids = with_dates(job(ONE_EACH, &["k:{tenant_id}"]), week());
    assert_eq!(read(&source, &only_ids, &batch(&["1"]), &[first]).await.unwrap().len(), 1);

    let sql = "select d::date as date from generate_series($1, $2, '1 day') d";
    let fleet = with_dates(fleet_job(sql, &["k:{date}"]), week());
    let found = read(&source, &fleet, &preheat::domain::tenant::Batch::global(), &[first]).await;
    let dates: Vec<_> =
        found.unwrap().into_iter().map(|(.., keys)| keys[0].clone().unwrap()).collect();
    assert_eq!(
        (dates.len(), dates[0].as_str(), dates[6].as_str()),
        (7, "2026-02-27", "2026-03-05")
    );
}

#[tokio::test]
async fn a_table_that_changes_under_a_prepared_query_is_read_as_it_is_now() {
    let server = support::database().await;
    server.execute("create table t (tenant_id int, v int); insert into t values (1, 2)").await;
    let source = numbered(&server).await;
    let all = job("select * from t where tenant_id = any($1)", &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    let json = async || read(&source, &all, &ids, &[]).await.unwrap()[0].1.clone();
    assert_eq!(json().await, "{\"v\":2}");
    server.execute("alter table t alter v type text using 'v' || v").await;
    assert_eq!(json().await, "{\"v\":\"v2\"}");
    server.execute("alter table t add w bool").await;
    assert_eq!(json().await, "{\"v\":\"v2\",\"w\":null}");
    server.execute("alter table t drop v").await;
    assert_eq!(json().await, "{\"w\":null}");

    server.execute("create table tenants (id int); insert into tenants values (1)").await;
    let source = connect(settings(&server.url()), "select * from tenants").await;
    assert_eq!(source.tenants().await.unwrap().column_names().count(), 0);
    server.execute("alter table tenants add zone text").await;
    assert_eq!(source.tenants().await.unwrap().column_names().collect::<Vec<_>>(), ["zone"]);
    server.execute("alter table tenants alter id type text").await;
    assert_eq!(source.tenants().await.unwrap().get(0).unwrap().id(), "1");
}

#[tokio::test]
async fn custom_types_are_read() {
    let server = support::database().await;
    server
        .execute(
            "create type mood as enum ('sad', 'happy'); create domain short as varchar(9);
             create schema other; create type other.size as enum ('S', 'XL');
             create table t (tenant_id int, mood mood, size other.size, short short, moods mood[]);
             insert into t values (1, 'happy', 'XL', 'a', '{sad,happy}')",
        )
        .await;
    let source = numbered(&server).await;
    let mut all = job("select * from t where tenant_id = any($1)", &["k:{mood}:{size}"]);
    all.encoding.omit.push("moods".to_owned());
    let found = read(&source, &all, &batch(&["1"]), &[]).await.unwrap();
    let keys = vec![Some("happy".to_owned()), Some("XL".to_owned())];
    let json = "{\"mood\":\"happy\",\"size\":\"XL\",\"short\":\"a\"}".to_owned();
    assert_eq!(found, vec![(0, json, keys)]);
}

#[tokio::test]
async fn a_type_that_is_newer_than_the_connection_is_read() {
    let server = support::database().await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let source = connect(one, "select id, kind from tenants").await;
    server
        .execute("create table tenants (id int, kind text); insert into tenants values (1)")
        .await;
    assert_eq!(source.tenants().await.unwrap().len(), 1);
    for kind in ["first", "second"] {
        server
            .execute(&format!(
                "create type {kind} as enum ('{kind}');
                 alter table tenants alter kind type {kind} using '{kind}';"
            ))
            .await;
        let sql = "select id as tenant_id, kind from tenants where id = any($1)";
        let found = read(&source, &job(sql, &["k:{kind}"]), &batch(&["1"]), &[]).await.unwrap();
        assert_eq!(found[0].2, [Some(kind.to_owned())]);
        let tenants = source.tenants().await.unwrap();
        assert_eq!(tenants.get(0).unwrap().column("kind"), Some(kind));
        assert_eq!(among(&source, &["1", "2"]).await, ["1"]);
    }
}

#[tokio::test]
async fn a_query_of_the_databases_own_types_is_no_error_in_the_servers_log() {
    let server = support::own_postgres();
    let types = "create type mood as enum ('sad', 'happy'); create domain moods as mood[];
                 create type steps as range (subtype = numeric); create table letters (text xml)";
    server.execute("postgres", types).await.unwrap();
    let source = connect(settings(&server.url("postgres")), NUMBERS).await;
    let sql = "select id as tenant_id, 'sad'::mood as mood, '{sad,happy}'::moods as moods, \
               '[1,2]'::steps as steps, '<a/>'::xml as xml from unnest($1) id";
    assert_eq!(source.describe(&job(sql, &["k:{mood}"])).await.unwrap().problems, []);
    let found = read(&source, &job(sql, &["k:{mood}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(found[0].2, [Some("sad".to_owned())]);
    assert!(!server.log_tail().contains("ERROR"), "{}", server.log_tail());
}
