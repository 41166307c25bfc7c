//! The throw-away servers and the sample clinic.

use std::path::Path;
use std::time::Duration;

use preheat_sandbox::{
    Clinic, Options, PostgresOptions, Redis, RedisOptions, Sandbox, SandboxError,
};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use crate::support::{self, LONG, Proxy, eventually, proxy};

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn both_servers_answer_over_their_sockets_and_leave_nothing_behind() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let mut connection = PgConnection::connect(&sandbox.postgres().url("postgres")).await.unwrap();
    assert_eq!(count(&mut connection, "select 1::int8").await, 1);
    let mut cache = support::redis_connection(sandbox.redis()).await;
    let pong: String = redis::cmd("PING").query_async(&mut cache).await.unwrap();
    assert_eq!(pong, "PONG");
    assert_eq!(sandbox.postgres().tcp_url("postgres"), None);
    assert_eq!(sandbox.redis().tcp_url(), None);

    let sockets = [sandbox.postgres().socket(), sandbox.redis().socket()];
    assert!(sockets.iter().all(|socket| socket.exists()));
    drop(sandbox);
    assert!(sockets.iter().all(|socket| !socket.parent().unwrap().exists()));
}

#[tokio::test]
async fn postgres_keeps_its_data_over_a_stop_and_a_kill() {
    let postgres = support::own_postgres();
    postgres.execute("postgres", "create table t as select 1::int8 as n").await.unwrap();
    for end in [preheat_sandbox::Postgres::stop, |server: &preheat_sandbox::Postgres| server.kill()]
    {
        end(&postgres);
        assert_eq!(postgres.pid(), None);
        PgConnection::connect(&postgres.url("postgres")).await.unwrap_err();
        postgres.restart().unwrap();
        let url = postgres.tcp_url("postgres").unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        assert_eq!(count(&mut connection, "select n from t").await, 1);
    }
}

#[tokio::test]
async fn a_frozen_server_does_not_answer_until_it_is_thawed() {
    let postgres = support::own_postgres();
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    postgres.freeze();
    let mut query = Box::pin(count(&mut connection, "select 7::int8"));
    tokio::time::timeout(Duration::from_millis(200), &mut query).await.unwrap_err();
    postgres.thaw();
    assert_eq!(tokio::time::timeout(LONG, query).await.unwrap(), 7);
}

#[tokio::test]
async fn redis_takes_settings_users_and_a_primary() {
    let primary =
        support::redis_with(&[("maxmemory", "10mb"), ("user", "app on >secret ~* +@all")]);
    let port = primary.tcp_port().unwrap();
    let replica = support::redis_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);

    let client = redis::Client::open(format!("redis://app:secret@127.0.0.1:{port}")).unwrap();
    let mut app = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("SET").arg("key").arg("value").query_async(&mut app).await.unwrap();
    let limit: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory").query_async(&mut app).await.unwrap();
    assert_eq!(limit[1], (10 * 1024 * 1024).to_string());

    let mut reader = support::redis_connection(&replica).await;
    eventually("the replica has the key", LONG, async || {
        let value: Option<String> =
            redis::cmd("GET").arg("key").query_async(&mut reader).await.unwrap_or_default();
        value.as_deref() == Some("value")
    })
    .await;
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let settings = vec![("no-such-setting".to_owned(), "1".to_owned())];
    let error = Redis::start(&RedisOptions { settings, ..RedisOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("no-such-setting"), "{error}");

    let settings = vec![("no_such_setting".to_owned(), "1".to_owned())];
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let error = preheat_sandbox::Postgres::start(&options).unwrap_err();
    assert!(matches!(error, SandboxError::NotReady { server: "postgres", .. }), "{error}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn every_test_has_its_own_copy_of_the_small_clinic() {
    let (first, second) = (support::clinic().await, support::clinic().await);
    first.execute("delete from tenants").await;
    let mut connection = second.connect().await;
    assert_eq!(count(&mut connection, "select count(*) from tenants").await, 24);
    for table in ["services", "products", "staff", "slots", "pets", "pages"] {
        let foreign = format!(
            "select count(*) from {table} left join tenants on tenants.id = tenant_id
             where tenants.id is null"
        );
        let foreign: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(foreign))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(foreign, 0, "{table}");
    }
    let empty = "select count(*) from tenants where not exists (
        select from products where tenant_id = tenants.id)";
    assert!(count(&mut connection, empty).await > 0);
    let statuses = "select count(distinct status) from tenants";
    assert_eq!(count(&mut connection, statuses).await, 3);
}

#[tokio::test]
async fn the_same_parameters_make_the_same_clinic() {
    let digest = "select hashtextextended(string_agg(p::text, ',' order by id), 0) from (
        select id, tenant_id, category, name, price, stock from products) p";
    let mut digests = Vec::new();
    for _ in 0..2 {
        let database = support::database().await;
        Clinic { tenants: 5, ..Clinic::small() }.load(&database.url()).await.unwrap();
        digests.push(count(&mut database.connect().await, digest).await);
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test]
async fn the_parameters_of_the_demo_are_the_defaults_of_its_sql() {
    let database = support::database().await;
    let sql = ["demo/schema.sql", "demo/data.sql"]
        .map(|path| std::fs::read_to_string(path).unwrap())
        .concat();
    let same = support::database().await;
    database.execute(&sql).await;
    Clinic::demo(200).load(&same.url()).await.unwrap();
    for table in ["tenants", "services", "products", "staff", "slots", "pets", "pages"] {
        let mut counts = Vec::new();
        for database in [&database, &same] {
            let sql = format!("select count(*) from {table}");
            let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .fetch_one(&mut database.connect().await)
                .await
                .unwrap();
            counts.push(count);
        }
        assert_eq!(counts[0], counts[1], "{table}");
    }
}

#[tokio::test]
async fn the_proxy_passes_cuts_stalls_and_refuses() {
    let server = support::redis();
    let proxy = Proxy::redis(&server).await;
    let client = redis::Client::open(proxy.redis_url()).unwrap();
    let ping = async || -> redis::RedisResult<String> {
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_millis(200)))
            .set_connection_timeout(Some(Duration::from_millis(200)));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").query_async(&mut connection).await
    };
    ping().await.unwrap();
    proxy.set(proxy::Mode::Stall);
    assert!(ping().await.unwrap_err().is_timeout());
    proxy.set(proxy::Mode::Refuse);
    assert!(!ping().await.unwrap_err().is_timeout());
    proxy.set(proxy::Mode::Slow(Duration::from_millis(1)));
    ping().await.unwrap();
    proxy.set(proxy::Mode::Pass);

    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("PING").query_async(&mut connection).await.unwrap();
    proxy.cut();
    redis::cmd("PING").query_async::<()>(&mut connection).await.unwrap_err();

    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    proxy.cut_after(proxy::Direction::ToServer, 100);
    let value = "x".repeat(200);
    let set = redis::cmd("SET").arg("key").arg(value).query_async::<()>(&mut connection).await;
    set.unwrap_err();
    ping().await.unwrap();
    assert!(proxy.accepted() >= 6, "{}", proxy.accepted());
}

#[tokio::test]
async fn both_servers_offer_tls_where_their_builds_have_it() {
    let Some(certificates) = support::tls::certificates() else { return };
    let authority = certificates.authority();
    if let Some(postgres) = certificates.postgres() {
        let port = postgres.tcp_port().unwrap();
        let url = format!(
            "postgres://postgres@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}",
            authority.display()
        );
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let sql = "select count(*) from pg_stat_ssl where ssl and pid = pg_backend_pid()";
        assert_eq!(count(&mut connection, sql).await, 1);
    }
    if let Some(server) = certificates.redis() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let root_cert = Some(std::fs::read(&authority).unwrap());
        let trust = redis::TlsCertificates { client_tls: None, root_cert };
        let client = redis::Client::build_with_tls(server.tls_url().unwrap(), trust).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let pong: String = redis::cmd("PING").query_async(&mut connection).await.unwrap();
        assert_eq!(pong, "PONG");
    }
}

#[tokio::test]
async fn a_demo_that_is_interrupted_or_killed_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let demo = support::preheat(["demo", "--tenants", "3"]).start();
        demo.works().await;
        let said = demo.stdout();
        let socket = said.split("redis-cli -s ").nth(1).and_then(|rest| rest.lines().next());
        let folder = Path::new(socket.unwrap()).parent().unwrap();
        let servers = children(demo.id());
        assert!(folder.exists() && servers.len() >= 2, "{said}");

        demo.signal(signal);
        let output = demo.ended().await;
        assert_eq!(output.code(), (signal != Signal::KILL).then_some(0), "{output:?}");
        eventually("the servers and their folders are gone", LONG, async || {
            !folder.exists() && servers.iter().all(|server| !runs(*server))
        })
        .await;
    }
}

/// The processes that any thread of that process has started.
fn children(id: u32) -> Vec<u32> {
    std::fs::read_dir(format!("/proc/{id}/task"))
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .flat_map(|ids| ids.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// Whether the process exists and is not a zombie.
fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}
