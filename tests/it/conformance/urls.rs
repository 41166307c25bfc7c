//! Databases by their URLs: several hosts, a standby and its promotion, search paths, TLS, IPv6.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::postgres::{Database, DatabaseSettings, PostgresFeedSource, TroubleNote};
use preheat::engine::ports::Source;
use preheat_sandbox::{Postgres, PostgresOptions};

use super::certificates::Certificates;
use super::pgbouncer::Bouncer;
use super::postgres::{settings, source};
use super::{batch, job, read};
use crate::support::{self, LONG, Proxy, eventually};

/// Reads the port of the server that answers.
const PORT: &str = "select current_setting('port')";

async fn connect(url: &str) -> Arc<Database> {
    Arc::new(Database::connect(settings(url)).await.unwrap())
}

async fn refused(url: &str) -> String {
    Database::connect(settings(url)).await.expect_err(url).message
}

/// The first column of a query's rows, read like the tenant list.
async fn column(database: &Arc<Database>, sql: &str) -> Result<Vec<String>, String> {
    let tenants = source(Arc::clone(database), sql).tenants().await;
    let tenants = tenants.map_err(|error| error.message)?;
    let ids =
        (0..).map_while(|position| tenants.get(position).map(|tenant| tenant.id().to_string()));
    Ok(ids.collect())
}

/// A primary and its standby; `None` if no program here can copy a server.
fn primary_and_standby() -> Option<(Postgres, Postgres)> {
    let settings = [("wal_level", "replica"), ("max_wal_senders", "4"), ("hot_standby", "on")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = PostgresOptions { tcp: true, settings, ..PostgresOptions::default() };
    let primary = Postgres::start(&options).unwrap();
    let standby = Postgres::start(&options).unwrap();
    standby.stop();
    let folder = standby.socket().parent().unwrap().join("data");
    let owner = folder.metadata().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let port = primary.tcp_port().unwrap().to_string();
    let copied = Command::new("pg_basebackup")
        .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--username=postgres"])
        .args(["--host=127.0.0.1", "--port", &port, "--pgdata"])
        .arg(&folder)
        .output();
    let Ok(copied) = copied else {
        support::skipped("pg_basebackup is not installed");
        return None;
    };
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    give(&folder, owner.uid(), owner.gid());
    standby.restart().unwrap();
    Some((primary, standby))
}

fn give(path: &std::path::Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid, gid);
        }
    }
}

#[tokio::test]
async fn hosts_are_tried_in_order_and_again_when_one_is_lost() {
    let servers = [support::own_postgres(), support::own_postgres()];
    let ports = servers.each_ref().map(|server| server.tcp_port().unwrap().to_string());
    let [one, two] = &ports;
    let url = format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{one},localhost:{two}/postgres");
    let database = connect(&url).await;
    assert_eq!(database.server(), format!("127.0.0.1:1,127.0.0.1:{one},localhost:{two}/postgres"));
    assert_eq!(column(&database, PORT).await.unwrap(), [one.as_str()]);
    servers[0].kill();
    eventually("the next host is asked", LONG, async || {
        column(&database, PORT).await.is_ok_and(|found| found == [two.as_str()])
    })
    .await;
    servers[0].restart().unwrap();
    servers[1].kill();
    eventually("the first is asked again", LONG, async || {
        column(&database, PORT).await.is_ok_and(|found| found == [one.as_str()])
    })
    .await;
    servers[0].kill();
    let error = refused(&url).await;
    for part in
        ["`127.0.0.1:1`: ", &format!("; `127.0.0.1:{one}`: "), &format!("; `localhost:{two}`: ")]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn the_change_feed_listens_at_the_host_that_will_do() {
    let server = support::database().await;
    let port = support::postgres().tcp_port().unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/{}?target_session_attrs=read-write",
        server.name()
    );
    let direct = settings(&url);
    for direct in [None, Some(direct)] {
        let trouble: TroubleNote = Arc::new(|_, _| {});
        let feed = PostgresFeedSource::new(connect(&url).await, direct, trouble).unwrap();
        feed.prepare().await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_never_answers_is_passed_over_within_its_connect_timeout() {
    let server = support::database().await;
    let proxy = Proxy::postgres(support::postgres()).await;
    proxy.set(crate::support::proxy::Mode::Stall);
    let (hole, port) = (proxy.address(), support::postgres().tcp_port().unwrap());
    let url = format!(
        "postgres://postgres@{hole},127.0.0.1:{port}/{}?connect_timeout=1&sslmode=disable",
        server.name()
    );
    let lazy = Arc::new(Database::lazy(settings(&url)).unwrap());
    assert_eq!(column(&lazy, PORT).await.unwrap(), [port.to_string()]);
    let alone = format!("postgres://postgres@{hole}/x?connect_timeout=1&sslmode=disable");
    let error = refused(&alone).await;
    assert!(error.ends_with("no answer within 1s"), "{error}");
}

#[tokio::test]
async fn target_session_attrs_chooses_among_a_primary_and_its_standby_also_after_a_failover() {
    let Some((primary, standby)) = primary_and_standby() else { return };
    let ports = [&primary, &standby].map(|server| server.tcp_port().unwrap().to_string());
    let [at_primary, at_standby] = &ports;
    let url = |first: &str, second: &str, wanted: &str| {
        format!(
            "postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres\
             ?target_session_attrs={wanted}"
        )
    };
    let wanted = [
        ("any", at_standby),
        ("read-write", at_primary),
        ("primary", at_primary),
        ("read-only", at_standby),
        ("standby", at_standby),
        ("prefer-standby", at_standby),
    ];
    for (wanted, expected) in wanted {
        let database = connect(&url(at_standby, at_primary, wanted)).await;
        assert_eq!(column(&database, PORT).await.unwrap(), [expected.as_str()], "{wanted}");
        assert_eq!(database.is_replica(), expected == at_standby, "{wanted}");
    }
    let preferred = connect(&url(at_primary, at_primary, "prefer-standby")).await;
    assert_eq!(column(&preferred, PORT).await.unwrap(), [at_primary.as_str()]);
    let error = refused(&url(at_standby, at_standby, "read-write")).await;
    assert!(
        error.contains("it is a standby, and `target_session_attrs` is `read-write`"),
        "{error}"
    );
    let alone =
        format!("postgres://postgres@127.0.0.1:{at_primary}/postgres?target_session_attrs=standby");
    assert!(refused(&alone).await.contains("it is no standby"));

    let writable = connect(&url(at_primary, at_standby, "read-write")).await;
    let only = connect(&url(at_primary, at_standby, "standby")).await;
    assert_eq!(column(&writable, PORT).await.unwrap(), [at_primary.as_str()]);
    assert_eq!(column(&only, PORT).await.unwrap(), [at_standby.as_str()]);
    primary.kill();
    standby.execute("postgres", "select pg_promote()").await.unwrap();
    eventually("the promoted server is asked", LONG, async || {
        column(&writable, PORT).await.is_ok_and(|found| found == [at_standby.as_str()])
    })
    .await;
    // The connection is the same as before, to a server that is no longer a standby.
    let error = column(&only, PORT).await.unwrap_err();
    assert!(error.contains(&format!("`127.0.0.1:{at_standby}`: it is no standby")), "{error}");
}

#[tokio::test]
async fn a_search_path_in_the_url_holds_for_every_query_and_behind_a_pooler() {
    let server = support::database().await;
    server
        .execute(
            "create schema \"App\"; create schema app; \
             create table public.t as select 'public' as id; create table app.t as select 'app' as id; \
             create table \"App\".t as select 'App' as id; create table app.u as select 'u' as id",
        )
        .await;
    let bouncer = Bouncer::start().await;
    let direct = server.url();
    let through = bouncer.as_ref().map(|bouncer| bouncer.url(server.name()) + "&pgbouncer=true");
    for url in [Some(direct), through].into_iter().flatten() {
        for (parameter, found) in [
            ("", "public"),
            ("&schema=App", "App"),
            ("&search_path=App", "app"),
            ("&search_path=%22App%22,app", "App"),
            ("&currentSchema=nowhere,app", "app"),
            ("&options=-c%20search_path%3Dapp,public%20-c%20work_mem%3D65MB", "app"),
        ] {
            let database = connect(&format!("{url}{parameter}")).await;
            assert_eq!(
                column(&database, "select id from t").await.unwrap(),
                [found],
                "{parameter}"
            );
            let reader = source(database, "select 1");
            let sql =
                "select k as tenant_id, id, current_setting('work_mem') as m from t, unnest($1) k";
            let rows =
                read(&reader, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
            let memory = if parameter.contains("work_mem") { "65MB" } else { "4MB" };
            assert_eq!(rows[0].1, format!("{{\"id\":\"{found}\",\"m\":\"{memory}\"}}"));
            let unqualified =
                job("select k as tenant_id, id from u, unnest($1) k", &["k:{tenant_id}"]);
            let problems = reader.describe(&unqualified).await.unwrap();
            assert_eq!(
                problems.problems.is_empty(),
                found == "app" || parameter.contains(",app"),
                "{problems:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_setting_that_the_server_refuses_is_told_without_its_value() {
    let server = support::database().await;
    for option in ["work_mem%3Dhush", "search_paht%3Dhush", "enable_seqscan%3Dhush"] {
        let error = refused(&format!("{}&options=-c%20{option}", server.url())).await;
        assert!(!error.contains("hush"), "{error}");
        assert!(error.contains("parameter"), "{error}");
    }
}

#[tokio::test]
async fn a_database_is_reached_by_an_address_of_ipv6() {
    if !support::has_ipv6() {
        return;
    }
    let settings = vec![("listen_addresses".to_owned(), "::1".to_owned())];
    let options = PostgresOptions { tcp: true, settings, ..PostgresOptions::default() };
    let server = Postgres::start(&options).unwrap();
    let port = server.tcp_port().unwrap();
    for url in [
        format!("postgres://postgres@[::1]:{port}/postgres"),
        format!("postgres:///postgres?user=postgres&host=[::1]&port={port}"),
        format!("postgres:///postgres?user=postgres&host=::1&port={port}"),
        format!("postgres:///postgres?user=postgres&hostaddr=::1&port={port}"),
        format!("postgres://postgres@127.0.0.1:1,[::1]:{port}/postgres"),
    ] {
        let database = connect(&url).await;
        assert!(database.server().ends_with(&format!("[::1]:{port}/postgres")), "{url}");
        assert_eq!(column(&database, PORT).await.unwrap(), [port.to_string()], "{url}");
    }
}

#[tokio::test]
async fn failures_of_tls_name_what_to_set_in_the_url() {
    let certificates = Certificates::new();
    let options = PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        access: vec!["hostnossl all all 127.0.0.1/32 reject".to_owned()],
        ..PostgresOptions::default()
    };
    let server = Postgres::start(&options).unwrap();
    let port = server.tcp_port().unwrap();
    let ca = certificates.ca();
    let ca = format!("sslrootcert={}", ca.display());
    let at = |host: &str, rest: &str| format!("postgres://postgres@{host}:{port}/postgres?{rest}");

    for rest in [
        format!("sslmode=require&{ca}"),
        "sslmode=no-verify".to_owned(),
        "sslmode=allow".to_owned(),
        "sslaccept=accept_invalid_certs".to_owned(),
        format!("{ca}&ssl=true"),
        // preheat raises this to `verify-full`, and the certificate has this name.
        format!("sslmode=verify-ca&channel_binding=require&{ca}"),
    ] {
        connect(&at("localhost", &rest)).await;
    }
    for (host, rest, part) in [
        ("localhost", "sslmode=verify-full".to_owned(), "`sslrootcert` in the URL"),
        (
            "localhost",
            "sslmode=require&channel_binding=require".to_owned(),
            "`sslrootcert` in the URL",
        ),
        ("localhost", "sslrootcert=system".to_owned(), "`sslrootcert` in the URL"),
        ("localhost", "ssl=true".to_owned(), "`sslrootcert` in the URL"),
        ("127.0.0.1", format!("sslmode=verify-full&{ca}"), "`sslmode=verify-ca` does not compare"),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&channel_binding=require&{ca}"),
            "`sslmode=verify-ca` does not compare",
        ),
        ("127.0.0.1", "sslmode=disable".to_owned(), "write `sslmode=require`"),
    ] {
        let error = refused(&at(host, &rest)).await;
        assert!(error.contains("; hint: ") && error.contains(part), "{rest}: {error}");
    }
    // As in libpq: a root certificate with `require` is checked, but not the name.
    let other = Certificates::new();
    let other = format!("sslmode=require&sslrootcert={}", other.ca().display());
    assert!(refused(&at("localhost", &other)).await.contains("certificate"));
    connect(&at("127.0.0.1", &format!("sslmode=require&{ca}"))).await;

    let error = Database::connect(settings(&at("h", "sslmode=verify-ca&sslrootcert=/none/hush")));
    let error = error.await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Settings);
    assert!(error.message.contains("the file that `sslrootcert` names"), "{error}");
    assert!(!error.message.contains("hush"), "{error}");

    let plain = support::database().await.tcp_url() + "?sslmode=require";
    let error = refused(&plain).await;
    assert!(error.contains("hint: the server has no TLS: write `sslmode=prefer`"), "{error}");
    // A server behind a Unix socket is on the same machine.
    connect(&(support::database().await.url() + "&sslmode=verify-full")).await;
}

#[tokio::test]
async fn an_application_name_in_the_url_is_that_of_the_connections() {
    let server = support::database().await;
    let sql = "select current_setting('application_name')";
    for (parameter, expected) in [
        ("", "preheat"),
        ("&application_name=warmer", "warmer"),
        ("&fallback_application_name=other", "other"),
        ("&ApplicationName=a&fallback_application_name=other", "a"),
    ] {
        let database = connect(&format!("{}{parameter}", server.url())).await;
        assert_eq!(column(&database, sql).await.unwrap(), [expected]);
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_honoured_is_refused_by_the_adapter_too() {
    let error = Database::lazy(settings("postgres://u:hush@db/x?mystery=hush&keepalives=hush"));
    let error = error.err().unwrap();
    assert_eq!(error.kind, ConnectErrorKind::Settings);
    assert!(error.message.contains("`mystery` is unknown"), "{error}");
    assert!(error.message.contains("`keepalives` is not supported"), "{error}");
    assert!(!error.message.contains("hush"), "{error}");
    let bounded = DatabaseSettings { statement_timeout: Duration::from_secs(1), ..settings("x") };
    assert_eq!(Database::lazy(bounded).err().unwrap().kind, ConnectErrorKind::Settings);
}
