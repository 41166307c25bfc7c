//! The sessions that rows come through: what may happen between two rows, and who shares the connections.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{Database, DatabaseSettings, PostgresHistory, migrate};
use preheat::domain::row::{Limit, Rows};
use preheat::engine::ports::{History, Read, Source, SourceErrorKind};
use preheat_sandbox::{Postgres, PostgresOptions};
use sqlx::AssertSqlSafe;

use super::{NUMBERS, ONE_EACH, active, connect, ended, settings, source};
use crate::conformance::certificates::Certificates;
use crate::conformance::{batch, job, read};
use crate::support::{self, LONG, eventually};

const KEYS: &[&str] = &["k:{tenant_id}"];

fn one(url: &str) -> DatabaseSettings {
    DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(url) }
}

#[tokio::test]
async fn both_clients_live_with_one_connection_even_if_the_role_has_no_more() {
    let server = support::own_postgres();
    let rights = "create role narrow login connection limit 1;
                  grant create on database postgres to narrow";
    server.execute("postgres", rights).await.unwrap();
    let url = server.url("postgres").replace("user=postgres", "user=narrow");
    let database = Arc::new(Database::connect(one(&url)).await.unwrap());
    let source = source(Arc::clone(&database), NUMBERS);
    assert_eq!(migrate(&database).await.unwrap(), 5);
    let history = PostgresHistory::new(Arc::clone(&database));
    let each = job(ONE_EACH, KEYS);
    for _ in 0..5 {
        assert_eq!(source.tenants().await.unwrap().len(), 9);
        assert_eq!(read(&source, &each, &batch(&["1", "2"]), &[]).await.unwrap().len(), 2);
        assert_eq!(history.recent(None, 5).await.unwrap().len(), 0);
        assert_eq!(source.describe(&each).await.unwrap().problems, []);
    }
    let ids = batch(&["1"]);
    let reads = (0..20).map(async |number| {
        if number % 2 == 0 {
            read(&source, &each, &ids, &[]).await.map(drop).unwrap();
        } else {
            history.recent(None, 5).await.map(drop).unwrap();
        }
    });
    futures::future::join_all(reads).await;
    let connections = database.connections();
    assert_eq!((connections.idle, connections.active), (1, 0));
    database.close().await;
    assert_eq!(database.connections().idle, 0);
}

#[tokio::test]
async fn what_a_server_says_between_two_rows_is_no_part_of_them() {
    let server = support::database().await;
    server
        .execute(
            "create function noisy(n int) returns int language plpgsql as $$ begin
               raise notice 'row %', n;
               perform set_config('application_name', 'preheat ' || n, true);
               perform pg_notify('anybody', n::text);
               return n;
             end $$",
        )
        .await;
    let listens = DatabaseSettings { read_only: false, ..one(&server.url()) };
    let source = connect(listens, NUMBERS).await;
    let sql =
        "select id as tenant_id, noisy(n) as n from unnest($1) id, generate_series(1, 3000) n";
    for _ in 0..2 {
        let found = read(&source, &job(sql, KEYS), &batch(&["1"]), &[]).await.unwrap();
        assert_eq!(found.len(), 3000);
        assert!((1..).zip(&found).all(|(n, (_, json, _))| *json == format!("{{\"n\":{n}}}")));
    }
}

#[tokio::test]
async fn an_error_between_two_rows_fails_the_batch_and_leaves_the_session_whole() {
    let server = support::database().await;
    let source = connect(one(&server.url()), NUMBERS).await;
    let process = "select id as tenant_id, pg_backend_pid() as process from unnest($1) id";
    let process = async || read(&source, &job(process, KEYS), &batch(&["1"]), &[]).await.unwrap();
    let before = process().await;
    let sql = "select id as tenant_id, 'secret' as text, 1 / (5000 - n) as n \
               from unnest($1) id, generate_series(1, 9000) n";
    let error = read(&source, &job(sql, KEYS), &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Data, "{error}");
    assert_eq!(
        error.message,
        "could not read the rows of job `products`: division by zero (22012)"
    );
    assert_eq!(process().await, before);
}

#[tokio::test]
async fn a_session_that_is_killed_between_two_rows_fails_the_batch_and_is_replaced() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let source = connect(one(&server.url()), NUMBERS).await;
    let sql = "select id as tenant_id, repeat('x', 1000) as text, \
                 case when n = 5000 then pg_sleep(3000)::text end as slept \
               from unnest($1) id, generate_series(1, 9000) n";
    let (job, ids) = (job(sql, KEYS), batch(&["1"]));
    {
        let mut reading = Box::pin(read(&source, &job, &ids, &[]));
        eventually("the server sleeps", LONG, async || {
            tokio::select! {
                result = &mut reading => panic!("{result:?}"),
                count = asleep(&mut past) => count == 1,
            }
        })
        .await;
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where wait_event = 'PgSleep' and datname = current_database()";
        sqlx::raw_sql(kill).execute(&mut past).await.unwrap();
        let error = tokio::time::timeout(LONG, reading).await.unwrap().unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("(57P01)"), "{error}");
    }
    // An idle one is replaced without an error.
    for _ in 0..2 {
        let each = crate::conformance::job(ONE_EACH, KEYS);
        assert_eq!(read(&source, &each, &ids, &[]).await.unwrap().len(), 1);
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where application_name = 'preheat' and datname = current_database()";
        sqlx::raw_sql(kill).execute(&mut past).await.unwrap();
    }
}

async fn asleep(past: &mut sqlx::PgConnection) -> i64 {
    let sql = "select count(*) from pg_stat_activity \
               where wait_event = 'PgSleep' and datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(past).await.unwrap()
}

#[tokio::test]
async fn a_huge_row_meets_the_limit_before_it_is_in_memory() {
    const LIMIT: usize = 8 << 20;
    let server = support::database().await;
    let mut past = server.connect().await;
    let source = connect(one(&server.url()), NUMBERS).await;
    let ids = batch(&["1"]);
    let with = async |bytes: usize, limit: Limit| {
        let sql = format!("select id as tenant_id, repeat('x', {bytes}) as x from unnest($1) id");
        let job = job(&sql, KEYS);
        let mut rows = Rows::default();
        rows.reset(job.key_columns().len(), limit);
        let bounds = Read { batch: &ids, first_dates: &[], timeout: LONG };
        source.read(&job, bounds, &mut rows).await.map(|()| rows.len())
    };
    assert_eq!(with(LIMIT - 1000, Limit::Batch(LIMIT)).await, Ok(1));
    for (limit, message) in [
        (Limit::Batch(LIMIT), "the rows of the batch exceed 8388608 bytes"),
        (Limit::Tenant(LIMIT), "the rows of one tenant exceed `runner.max_tenant_bytes`"),
    ] {
        let error = with(100 << 20, limit).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::TooLarge, "{error}");
        assert!(error.message.contains(message), "{error}");
        ended(&mut past).await;
    }
    assert_eq!(with(1, Limit::Batch(LIMIT)).await, Ok(1));
    assert_eq!(active(&mut past).await, 0);
}

#[tokio::test]
async fn batches_are_read_over_tls_by_a_role_with_a_password() {
    let certificates = Certificates::new();
    let options = PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        access: vec![
            "hostssl all scram all scram-sha-256".to_owned(),
            "hostssl all md5 all md5".to_owned(),
            "hostssl all plain all password".to_owned(),
        ],
        ..PostgresOptions::default()
    };
    let server = Postgres::start(&options).unwrap();
    let mut roles = String::new();
    for role in ["scram", "md5", "plain"] {
        let kind = if role == "md5" { "md5" } else { "scram-sha-256" };
        let _a_string_takes_all = write!(
            roles,
            "set password_encryption = '{kind}'; create role {role} login password 'se/cr:et';"
        );
    }
    server.execute("postgres", &roles).await.unwrap();
    let (port, ca) = (server.tcp_port().unwrap(), certificates.ca());
    let sql = "select id as tenant_id, repeat(n::text, 100) as text \
               from unnest($1) id, generate_series(1, 20000) n";
    for role in ["scram", "md5", "plain"] {
        let url = format!(
            "postgres://{role}:se%2Fcr%3Aet@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}",
            ca.display()
        );
        let source = connect(settings(&url), NUMBERS).await;
        for _ in 0..2 {
            let found = read(&source, &job(sql, KEYS), &batch(&["1"]), &[]).await.unwrap();
            assert_eq!(found.len(), 20_000, "{role}");
            let last = format!("{{\"text\":\"{}\"}}", "20000".repeat(100));
            assert_eq!(found[19_999].1, last, "{role}");
        }
    }
}

#[tokio::test]
async fn what_a_query_writes_is_kept_only_if_its_rows_were_read() {
    let server = support::database().await;
    server.execute("create table marks (n int)").await;
    let mut past = server.connect().await;
    let writes = DatabaseSettings { read_only: false, ..one(&server.url()) };
    let source = connect(writes, NUMBERS).await;
    let mark = |id: &str| {
        format!(
            "with mark as (insert into marks values (1) returning n) \
             select {id} as tenant_id, mark.n from mark, unnest($1) id"
        )
    };
    for (id, is_kept) in [("id", true), ("77", false)] {
        let done = read(&source, &job(&mark(id), KEYS), &batch(&["1"]), &[]).await;
        assert_eq!(done.is_ok(), is_kept, "{done:?}");
        eventually("the transaction has ended", LONG, async || active(&mut past).await == 0).await;
        let count = "select count(*) from marks";
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut past).await.unwrap();
        assert_eq!(count, 1);
    }
}

#[tokio::test]
async fn a_read_that_is_given_up_between_two_rows_ends_in_the_server() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let source = connect(one(&server.url()), NUMBERS).await;
    let sql = "select id as tenant_id, repeat('x', 1000) as text, \
                 case when n = 3000 then pg_sleep(3000)::text end as slept \
               from unnest($1) id, generate_series(1, 9000) n";
    let (sleeps, ids) = (job(sql, KEYS), batch(&["1"]));
    {
        let mut reading = Box::pin(read(&source, &sleeps, &ids, &[]));
        eventually("the server sleeps", LONG, async || {
            tokio::select! {
                result = &mut reading => panic!("{result:?}"),
                count = asleep(&mut past) => count == 1,
            }
        })
        .await;
    }
    assert_eq!(read(&source, &job(ONE_EACH, KEYS), &ids, &[]).await.unwrap().len(), 1);
    eventually("the server has noticed", Duration::from_secs(10), async || {
        asleep(&mut past).await == 0
    })
    .await;
}
