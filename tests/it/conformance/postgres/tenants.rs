//! The tenant query, as a whole and for some tenants.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{Database, DatabaseSettings};
use preheat::domain::tenant::Tenants;
use preheat::engine::ports::{Source, SourceErrorKind};
use sqlx::PgConnection;

use super::{NUMBERS, among, connect, ended, settings, source, tenant_ids};
use crate::support::proxy::Mode;
use crate::support::{self, LONG, Proxy, eventually};

#[tokio::test]
async fn a_tenant_list_that_cannot_be_trusted_is_an_error() {
    let server = support::database().await;
    let cases = [
        ("select null::int", SourceErrorKind::Data, "a tenant's id is NULL"),
        (
            "select unnest(array[1, 2, 1])",
            SourceErrorKind::Data,
            "the tenant id `1` comes more than once",
        ),
        (
            "select 1.5 as id",
            SourceErrorKind::Definition,
            "the tenants' id `id` is numeric, and an id is uuid, int2, int4, int8, text, varchar, \
             bpchar or citext; hint: cast it in `tenants.sql`",
        ),
        (
            "select id from tenant",
            SourceErrorKind::Definition,
            "relation \"tenant\" does not exist (42P01) at character 16 of the query",
        ),
        ("select", SourceErrorKind::Definition, "the tenant query returns no column"),
    ];
    for (sql, kind, message) in cases {
        let error = connect(settings(&server.url()), sql).await.tenants().await.unwrap_err();
        assert_eq!(error.kind, kind, "{sql}");
        assert_eq!(error.message, format!("could not read the tenants: {message}"));
    }
    let sql = "select unnest(array['a', 'A'])::citext";
    server.execute("create extension citext").await;
    let error = connect(settings(&server.url()), sql).await.tenants().await.unwrap_err();
    assert!(error.message.ends_with("the tenant id `a` comes more than once"), "{error}");
}

#[tokio::test]
async fn a_tenants_columns_are_its_texts() {
    let server = support::database().await;
    let sql = "select 1, null::text as zone, 7.50 as price, date '2026-03-01' as since, \
               array[1,2] as list, 'x'::varchar as \"Upper\"";
    let tenants = connect(settings(&server.url()), sql).await.tenants().await.unwrap();
    let tenant = tenants.get(0).unwrap();
    let columns = ["zone", "price", "since", "list", "Upper"].map(|name| tenant.column(name));
    assert_eq!(columns, [None, Some("7.50"), Some("2026-03-01"), Some("{1,2}"), Some("x")]);
}

/// The tenant query of the sample clinic.
const CLINIC: &str =
    "select id, timezone from tenants where status = 'active' order by created_at, id";

fn texts(tenants: &Tenants) -> Vec<(String, Option<String>)> {
    let zone = |tenant: &preheat::domain::tenant::Tenant<'_>| {
        (tenant.id().to_owned(), tenant.column("timezone").map(str::to_owned))
    };
    tenants.iter().map(|tenant| zone(&tenant)).collect()
}

#[tokio::test]
async fn some_tenants_are_those_of_the_whole_list_in_its_order() {
    let server = support::clinic().await;
    let source = connect(settings(&server.url()), CLINIC).await;
    let all = texts(&source.tenants().await.unwrap());
    let mut past = server.connect().await;
    let every: Vec<String> =
        sqlx::query_scalar("select id::text from tenants").fetch_all(&mut past).await.unwrap();
    assert!((2..every.len()).contains(&all.len()), "{} of {}", all.len(), every.len());
    let mut ids: Vec<&str> = every.iter().map(String::as_str).collect();
    ids.extend(["7", "", "0191c6c0-0000-7000-8000-00000000000a"]);
    ids.sort_unstable();
    let found = source.tenants_among(&tenant_ids(&ids)).await.unwrap();
    assert_eq!(texts(&found), all);

    let asked = tenant_ids(&[&all[2].0, &all[0].0]);
    let found = source.tenants_among(&asked).await.unwrap();
    assert_eq!(texts(&found), [all[0].clone(), all[2].clone()]);
    server.execute(&format!("update tenants set status = 'trial' where id = '{}'", all[0].0)).await;
    let found = source.tenants_among(&asked).await.unwrap();
    assert_eq!(texts(&found), [all[2].clone()]);
}

#[tokio::test]
async fn some_tenants_are_read_by_the_index_of_their_ids() {
    let server = support::clinic().await;
    server
        .execute(
            "insert into tenants (id, name, status, timezone)
             select gen_random_uuid(), 'x', 'active', 'UTC' from generate_series(1, 20000);
             analyze tenants",
        )
        .await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let source = source(Arc::clone(&database), CLINIC);
    let mut past = server.connect().await;
    let sql = "select id::text from tenants where status = 'active' limit 3";
    let ids: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut past).await.unwrap();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let read = async |past: &mut PgConnection| -> (i64, i64) {
        let sql = "select seq_tup_read, idx_tup_fetch from pg_stat_user_tables \
                   where relname = 'tenants'";
        sqlx::query_as(sql).fetch_one(past).await.unwrap()
    };
    // The server adds up a session's statistics when the session ends.
    sqlx::Connection::close(past).await.unwrap();
    let mut past = server.connect().await;
    let mut before = read(&mut past).await;
    eventually("all that was done before is counted", LONG, async || {
        let last = std::mem::replace(&mut before, read(&mut past).await);
        last == before && before.0 >= 3
    })
    .await;
    assert_eq!(among(&source, &ids).await.len(), 3);
    drop((source, database));
    eventually("what was read is counted", LONG, async || read(&mut past).await != before).await;
    assert_eq!(read(&mut past).await, (before.0, before.1 + 3));
}

#[tokio::test]
async fn some_tenants_are_found_whatever_the_tenant_query_looks_like() {
    let server = support::database().await;
    server
        .execute(
            "create table t (id int, zone text, rank int);
             insert into t values (1, 'b', 3), (2, 'a', 2), (3, null, 1), (4, 'd', null)",
        )
        .await;
    let queries = [
        "select id, zone from t order by rank desc nulls last;",
        "select id, zone from t where id < 9 -- all of them; really\n;",
        "select id, zone from t; -- that is all",
        "select id, zone from t /* one */ ; ; /* two */\n -- three",
        "select id, zone from t -- no end of line",
        "select id, ';' as zone from t",
        // A text that looks like an end is text, and an end may be hidden. Both queries are read
        // whole.
        "select id, '; -- ' as zone from t",
        "select id, zone from t; /* one /* two */ three */",
        "table t",
        "values (1, 'b'), (2, 'a')",
        "with c as (select * from t) select id, zone from c order by zone",
        "with recursive n (id) as (select 1 union all select id + 1 from n where id < 4) select id from n",
        "select id, zone from t where id < 3 union all select id, zone from t where id > 2",
        "select distinct on (zone) id, zone from t order by zone, id",
        "select id, zone from t order by id desc limit 2",
        "select id, zone, row_number() over (order by rank) as n from t",
        "select id as \"Odd \"\"name\", zone as \"tenant id\" from t",
        "select id, zone as id, rank as id from t",
        "select id + 0, zone || '', rank + 1 from t",
        "select unnest(array[3, 2, 1]), 'x' as zone",
        "select max(id), zone from t group by zone order by zone",
        "(select id, zone from t)",
    ];
    for sql in queries {
        let source = connect(settings(&server.url()), sql).await;
        let all = source.tenants().await.unwrap();
        let wanted = all.only(|tenant| ["2", "3", "1"].contains(&tenant.id()));
        assert!(!wanted.is_empty(), "{sql}");
        let found = source.tenants_among(&tenant_ids(&["2", "3", "7", "1", "x"])).await.unwrap();
        let ids =
            |list: &Tenants| list.iter().map(|tenant| tenant.id().to_owned()).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&wanted), "{sql}");
        let names = |list: &Tenants| list.column_names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&wanted), "{sql}");
        for (found, wanted) in found.iter().zip(wanted.iter()) {
            for name in all.column_names() {
                assert_eq!(found.column(name), wanted.column(name), "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn the_server_is_asked_for_some_tenants_alone() {
    let server = support::database().await;
    let cases = [
        "select 1 as id, current_query() as query",
        "select 1, current_query() as query; -- one, and; two",
        "select 1 as id, current_query() as query, 2 as id",
        "select 1 as id, current_query() as query, '; -- ' as text",
    ];
    for sql in cases {
        let source = connect(settings(&server.url()), sql).await;
        let found = source.tenants_among(&tenant_ids(&["1"])).await.unwrap();
        let query = found.get(0).unwrap().column("query").unwrap();
        assert!(query.ends_with(" = any($1)"), "{query}");
    }
}

#[tokio::test]
async fn some_tenants_of_a_table_that_changes_are_read_as_it_is_now() {
    let server = support::database().await;
    server
        .execute("create table tenants (id int, zone text); insert into tenants values (1, 'a')")
        .await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let sql = "select * from tenants";
    let changed = [
        ("alter table tenants add plan text default 'free'", "1", vec!["zone", "plan"]),
        ("alter table tenants rename zone to region", "1", vec!["region", "plan"]),
        (
            "alter table tenants alter id type bigint; insert into tenants values (3000000000, 'b')",
            "3000000000",
            vec!["region", "plan"],
        ),
        ("alter table tenants drop plan", "1", vec!["region"]),
        ("alter table tenants alter id type text", "3000000000", vec!["region"]),
        ("insert into tenants values ('x')", "x", vec!["region"]),
    ];
    // With a connection that knows only this query, and with one that knows both kinds of query.
    for knows_both in [false, true] {
        let source = connect(one.clone(), sql).await;
        assert_eq!(source.tenants().await.unwrap().len(), 1);
        if knows_both {
            assert_eq!(among(&source, &["1"]).await, ["1"]);
        }
        for (change, id, columns) in &changed {
            server.execute(change).await;
            let found = source.tenants_among(&tenant_ids(&[id])).await.unwrap();
            assert_eq!(
                found.iter().map(|tenant| tenant.id().to_owned()).collect::<Vec<_>>(),
                [*id]
            );
            assert_eq!(&found.column_names().collect::<Vec<_>>(), columns, "{change}");
            if knows_both {
                assert_eq!(among(&source, &["1"]).await, ["1"]);
            }
        }
        server
            .execute(
                "drop table tenants; create table tenants (id int, zone text);
                 insert into tenants values (1, 'a')",
            )
            .await;
    }
}

#[tokio::test]
async fn reading_some_tenants_fails_as_reading_all_does() {
    let server = support::database().await;
    let some = tenant_ids(&["1"]);
    let cases = [
        ("select 1.5 as id", SourceErrorKind::Definition, "hint: cast it in `tenants.sql`"),
        (
            "select id from tenant",
            SourceErrorKind::Definition,
            "relation \"tenant\" does not exist (42P01) at character 16 of the query",
        ),
        ("select", SourceErrorKind::Definition, "the tenant query returns no column"),
        (
            "select n / (n - 1) from generate_series(1, 2) n",
            SourceErrorKind::Data,
            "division by zero (22012)",
        ),
        (
            "select unnest(array[1, 2, 1])",
            SourceErrorKind::Data,
            "the tenant id `1` comes more than once",
        ),
    ];
    for (sql, kind, end) in cases {
        let source = connect(settings(&server.url()), sql).await;
        let error = source.tenants_among(&some).await.unwrap_err();
        assert_eq!(error.kind, kind, "{sql}: {error}");
        assert!(error.message.starts_with("could not read the tenants: "), "{error}");
        assert!(error.message.ends_with(end), "{error}");
    }

    let short = Duration::from_millis(300);
    let mut past = server.connect().await;
    let bounded = DatabaseSettings { statement_timeout: short, ..settings(&server.url()) };
    let source = connect(bounded, "select 1 as id, pg_sleep(3000)::text").await;
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout, "{error}");
    ended(&mut past).await;

    let proxy = Proxy::postgres(support::postgres()).await;
    let through = server.url_through(&proxy);
    let source =
        connect(DatabaseSettings { statement_timeout: short, ..settings(&through) }, NUMBERS).await;
    assert_eq!(among(&source, &["1", "10"]).await, ["1"]);
    proxy.set(Mode::Stall);
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
    proxy.set(Mode::Pass);
    assert_eq!(among(&source, &["1", "10"]).await, ["1"]);
    proxy.cut();
    proxy.set(Mode::Refuse);
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
}
