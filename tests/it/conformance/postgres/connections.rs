//! Connections and their settings, timeouts, and servers that break, hang and come back.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::postgres::{Database, DatabaseSettings};
use preheat::domain::row::Rows;
use preheat::engine::ports::{Read, Source, SourceErrorKind};
use preheat_sandbox::{Postgres, PostgresOptions};

use super::{NUMBERS, ONE_EACH, active, connect, ended, numbered, settings, source};
use crate::conformance::certificates::Certificates;
use crate::conformance::{batch, job, read};
use crate::support::proxy::Mode;
use crate::support::{self, LONG, Proxy, eventually};

#[tokio::test]
async fn a_statement_timeout_ends_the_query_in_the_server() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let short = Duration::from_millis(300);
    let bounded = DatabaseSettings { statement_timeout: short, ..settings(&server.url()) };
    let source = connect(bounded, NUMBERS).await;
    let error = read(&source, &sleep, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout);
    assert!(
        error.message.ends_with("canceling statement due to statement timeout (57014)"),
        "{error}"
    );
    // After its answer, the server may take a moment to report that it is idle.
    ended(&mut past).await;

    // A read's own timeout reaches the server too.
    let source = numbered(&server).await;
    let mut rows = Rows::default();
    rows.reset(0, usize::MAX);
    let one = batch(&["1"]);
    let bounds = Read { batch: &one, first_dates: &[], timeout: short };
    let error = source.read(&sleep, bounds, &mut rows).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout);
    assert!(error.message.contains("57014"), "{error}");
    ended(&mut past).await;
    assert!(read(&source, &job(ONE_EACH, &["k"]), &one, &[]).await.is_ok());
}

#[tokio::test]
async fn a_read_that_was_given_up_ends_in_the_server_and_blocks_nobody() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let source = connect(one, NUMBERS).await;
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    {
        let mut reading = Box::pin(read(&source, &sleep, &ids, &[]));
        eventually("the server is at it", LONG, async || {
            tokio::select! {
                result = &mut reading => panic!("{result:?}"),
                count = active(&mut past) => count == 1,
            }
        })
        .await;
    }
    assert!(read(&source, &job(ONE_EACH, &["k"]), &ids, &[]).await.is_ok());
    ended(&mut past).await;
}

#[tokio::test]
async fn no_more_connections_are_opened_than_allowed() {
    let server = support::database().await;
    let two = DatabaseSettings {
        max_connections: NonZeroU32::new(2).unwrap(),
        ..settings(&server.url())
    };
    let database = Arc::new(Database::connect(two).await.unwrap());
    let source = source(Arc::clone(&database), NUMBERS);
    let count = job(
        "select id as tenant_id, (select count(*) from pg_stat_activity where \
         application_name = 'preheat' and datname = current_database()) as n, \
         pg_sleep(0.02)::text from unnest($1) id",
        &["k:{tenant_id}"],
    );
    let ids = batch(&["1"]);
    let reads = (0..30).map(|_| read(&source, &count, &ids, &[]));
    for found in futures::future::join_all(reads).await {
        let json: serde_json::Value = serde_json::from_str(&found.unwrap()[0].1).unwrap();
        let n: i64 =
            json["n"].as_str().map_or_else(|| json["n"].as_i64().unwrap(), |n| n.parse().unwrap());
        assert!(n <= 2, "{n} connections");
    }
    let connections = database.connections();
    assert!(connections.idle + connections.active <= 2, "{connections:?}");
}

#[tokio::test]
async fn what_a_url_sets_is_set_by_each_transaction_or_refused_by_name() {
    let server = support::database().await;
    let with = |options: &str| settings(&format!("{}&options={options}", server.url()));
    let set = with("-c%20search_path%3Dother,public%20--work-mem%3D7MB");
    let source = connect(set, NUMBERS).await;
    let sql = "select id as tenant_id, current_setting('search_path') as path, \
               current_setting('work_mem') as mem from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(found[0].1, r#"{"path":"\"other\", \"public\"","mem":"7MB"}"#);

    let refused = [
        ("-c%20statement_timeout%3D7", "see `[database] statement_timeout`"),
        ("--default-transaction-read-only%3Doff", "see `[database] read_only`"),
        ("-c%20TimeZone%3DUTC", "see `[database] time_zone`"),
        ("-crow_security%3Don", "see `[database] row_security`"),
        ("-B%207", "it is `-c name=value`, as often as needed"),
        ("-c%20nothing%3Dsecret", "\"nothing\" (42704)"),
    ];
    for (options, message) in refused {
        let error = Database::connect(with(options)).await.unwrap_err();
        assert!(error.message.contains(message), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_was_restarted_is_read_from_at_once() {
    let server = support::own_postgres();
    let source = connect(settings(&server.url("postgres")), NUMBERS).await;
    let each = job(ONE_EACH, &["k:{tenant_id}"]);
    let ids = batch(&["1", "2"]);
    for end in [Postgres::stop, |server: &Postgres| server.kill()] {
        assert_eq!(read(&source, &each, &ids, &[]).await.unwrap().len(), 2);
        end(&server);
        let error = read(&source, &each, &ids, &[]).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Unavailable);
        assert!(error.message.starts_with("could not connect to database `/"), "{error}");
        server.restart().unwrap();
        assert_eq!(read(&source, &each, &ids, &[]).await.unwrap().len(), 2);
    }

    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let mut reading = Box::pin(read(&source, &sleep, &ids, &[]));
    let ended = tokio::time::timeout(Duration::from_millis(300), &mut reading).await;
    assert!(ended.is_err());
    let killed = tokio::task::spawn_blocking(move || server.kill());
    let error = tokio::time::timeout(LONG, reading).await.unwrap().unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
    killed.await.unwrap();
}

#[tokio::test]
async fn hazard_26_a_black_hole_ends_with_the_timeout_and_a_new_connection() {
    let server = support::database().await;
    let proxy = Proxy::postgres(support::postgres()).await;
    let short = Duration::from_millis(200);
    let bounded =
        DatabaseSettings { statement_timeout: short, ..settings(&server.url_through(&proxy)) };
    let source = connect(bounded, NUMBERS).await;
    let each = job(ONE_EACH, &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    let with = async |timeout| {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        source.read(&each, Read { batch: &ids, first_dates: &[], timeout }, &mut rows).await
    };
    with(LONG).await.unwrap();
    proxy.set(Mode::Stall);
    let start = Instant::now();
    let error = with(Duration::from_millis(500)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(
        matches!(error.kind, SourceErrorKind::Unavailable | SourceErrorKind::Timeout),
        "{error}"
    );
    proxy.set(Mode::Pass);
    with(LONG).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_connection_is_said_without_the_password() {
    let certificates = Certificates::new();
    let options = PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        access: vec!["host all locked all scram-sha-256".to_owned()],
        ..PostgresOptions::default()
    };
    let server = Postgres::start(&options).unwrap();
    server.execute("postgres", "create role locked login password 'se/cr:et'").await.unwrap();
    let port = server.tcp_port().unwrap();
    let ca = certificates.ca();
    let ca = ca.display();
    let other = Certificates::new();
    let other = other.ca();
    let other = other.display();
    let at =
        |host: &str, rest: &str| format!("postgres://locked:se%2Fcr%3Aet@{host}:{port}/{rest}");

    for rest in [
        "postgres?sslmode=disable".to_owned(),
        "postgres".to_owned(),
        "postgres?sslmode=require".to_owned(),
        format!("postgres?sslmode=verify-full&sslrootcert={ca}"),
    ] {
        let database = Database::connect(settings(&at("localhost", &rest))).await.unwrap();
        assert_eq!(database.server(), format!("localhost:{port}/postgres"));
    }
    let ip = format!("postgres?sslmode=verify-ca&sslrootcert={ca}");
    Database::connect(settings(&at("127.0.0.1", &ip))).await.unwrap();

    let refused = ConnectErrorKind::Refused;
    let cases = [
        (
            at("localhost", "nowhere?sslmode=disable"),
            refused,
            "database \"nowhere\" does not exist",
        ),
        (
            at("localhost", "postgres?sslmode=disable").replace("se%2Fcr%3Aet", "hush"),
            refused,
            "password authentication failed for user \"locked\"",
        ),
        (at("127.0.0.1", &ip.replace("verify-ca", "verify-full")), refused, "certificate"),
        (
            at("localhost", &format!("postgres?sslmode=verify-full&sslrootcert={other}")),
            refused,
            "certificate",
        ),
        (at("localhost", "postgres?sslmode=verify-full"), refused, "certificate"),
        (
            "postgres://locked:hush@127.0.0.1:1/x".to_owned(),
            ConnectErrorKind::Unreachable,
            "refused",
        ),
        (
            "postgres://locked:hush@no-such-host.invalid/x".to_owned(),
            ConnectErrorKind::Unreachable,
            "no-such-host",
        ),
        ("mysql:/locked:hush@/x".to_owned(), ConnectErrorKind::Settings, "URL"),
    ];
    for (url, kind, part) in cases {
        let error = Database::connect(settings(&url)).await.unwrap_err();
        assert!(error.message.contains(part), "{url}: {error}");
        assert_eq!(error.kind, kind, "{url}: {error}");
        assert!(!error.message.contains("hush") && !error.message.contains("cr:et"), "{error}");
    }
}

#[tokio::test]
async fn a_lazy_database_is_connected_by_its_first_read() {
    let server = support::own_postgres();
    server.stop();
    let lazy = Database::lazy(settings(&server.tcp_url("postgres").unwrap())).unwrap();
    let source = source(Arc::new(lazy), NUMBERS);
    let error = source.tenants().await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable);
    server.restart().unwrap();
    assert_eq!(source.tenants().await.unwrap().len(), 9);
}

#[tokio::test]
async fn a_session_is_as_warm_queries_want_it() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let sql = "select id as tenant_id, current_setting('jit') as jit, \
               current_setting('transaction_read_only') as ro, current_setting('TimeZone') as tz, \
               current_setting('statement_timeout') as timeout, \
               current_setting('lock_timeout') as lock, current_setting('row_security') as rls, \
               current_setting('client_connection_check_interval') as check from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(
        found[0].1,
        "{\"jit\":\"off\",\"ro\":\"on\",\"tz\":\"UTC\",\
         \"timeout\":\"30s\",\"lock\":\"2s\",\"rls\":\"off\",\"check\":\"1s\"}"
    );
}
