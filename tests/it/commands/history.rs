//! Commands that use run records or ask a worker: `migrate`, `health`, and `warm` and `serve` without the
//! right to write records.

use rustix::process::Signal;

use super::{SERVICES, Servers, servers};
use crate::support::preheat;

/// The URL of a role that may only read the clinic.
async fn reader(servers: &Servers) -> String {
    let role = format!("reader_of_{}", servers.database.name());
    let make = format!(
        "drop role if exists {role}; create role {role} login; \
         grant usage on schema public to {role}; grant select on all tables in schema public to {role}"
    );
    servers.database.execute(&make).await;
    servers.database.url_as(&role)
}

fn without_names(text: &str, servers: &Servers) -> String {
    let name = servers.database.name();
    let server = servers.database.url();
    let host = server.split("host=").nth(1).unwrap().split('&').next().unwrap();
    let port = server.split("port=").nth(1).unwrap().split('&').next().unwrap();
    text.replace(host, "[socket]").replace(port, "[port]").replace(name, "[database]")
}

#[tokio::test]
async fn migrations_are_applied_once() {
    let servers = servers().await;
    let migrate = || servers.preheat(["migrate"]).run();
    let output = migrate().await.expect_code(0);
    assert_eq!(output.stdout, "applied 5 migrations to schema `preheat`\n");
    let output = migrate().await.expect_code(0);
    assert_eq!(output.stdout, "schema `preheat` is up to date\n");

    let warm = servers.preheat(["warm"]).job("services", SERVICES).run().await;
    warm.expect_code(0);
    let kept =
        servers.texts("select job || ' ' || trigger || ' ' || outcome from preheat.runs").await;
    assert_eq!(kept, ["services request ok"], "a pass keeps its records too");
}

#[tokio::test]
async fn who_may_not_migrate_is_given_the_sql_that_an_administrator_runs() {
    let servers = servers().await;
    let url = reader(&servers).await;
    let output = servers.preheat(["migrate"]).database(&url).run().await.expect_code(2);
    let (message, sql) = output.stderr.split_once("\n\n").unwrap();
    insta::assert_snapshot!(without_names(message, &servers), @r"
    error: cannot keep run records in `[socket]:[port]/[database]`: permission denied for database [database] (42501)
      hint: let an administrator run
    ");
    servers.database.execute(sql).await;
    let output = servers.preheat(["migrate"]).database(&url).run().await.expect_code(0);
    assert_eq!(output.stdout, "schema `preheat` is up to date\n");
    let warm = servers.preheat(["warm"]).database(&url).job("services", SERVICES);
    warm.run().await.expect_code(0);
    assert_eq!(servers.texts("select job from preheat.runs").await, ["services"]);
}

#[tokio::test]
async fn migrations_that_cannot_be_are_told_apart() {
    preheat(["migrate"]).run().await.expect_code(2);
    let gone = preheat(["migrate"]).database("postgres://127.0.0.1:1/shop").run().await;
    let said = gone.expect_code(3).stderr;
    assert!(said.starts_with("error: could not connect to database `127.0.0.1:1/shop`"), "{said}");
}

#[tokio::test]
async fn a_worker_that_may_only_read_works_and_warns_once() {
    let servers = servers().await;
    let url = reader(&servers).await;
    let serve = servers.preheat(["serve"]).database(&url).job("services", SERVICES);
    let running = serve.start();
    running.answers("/readyz", 200).await;
    running.signal(Signal::TERM);
    let output = running.ended().await.expect_code(0);
    let warnings: Vec<_> = output.stderr.lines().filter(|line| line.contains(" WARN ")).collect();
    let [warning] = warnings.as_slice() else { panic!("{}", output.stderr) };
    assert!(warning.contains("runs are kept in memory only: cannot keep run records"), "{warning}");
    assert!(warning.contains("create schema if not exists preheat"), "{warning}");
    assert_eq!(servers.values().await.len(), servers.active().await.len());
}

#[tokio::test]
async fn a_worker_that_has_to_keep_records_refuses_to_start_without() {
    let servers = servers().await;
    let url = reader(&servers).await;
    let serve = servers.preheat(["serve"]).database(&url).job("services", SERVICES);
    let output = serve.env("PREHEAT_HISTORY__ENABLED", "true").run().await.expect_code(2);
    assert!(output.stderr.contains("create schema if not exists preheat"), "{}", output.stderr);
}

#[tokio::test]
async fn health_is_that_of_a_running_worker() {
    let servers = servers().await;
    let running = servers.preheat(["serve"]).job("services", SERVICES).start();
    running.works().await;
    let ask = |address: &str| preheat(["health"]).env("PREHEAT_HTTP__LISTEN", address).run();
    let address = running.address().to_string();
    let output = ask(&address).await.expect_code(0);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    running.signal(Signal::INT);
    running.ended().await.expect_code(0);
    let said = ask(&address).await.expect_code(1).stderr.replace(&address, "[address]");
    insta::assert_snapshot!(said, @r"
    error: could not ask the worker at [address]
      caused by: Connection refused (os error 111)
    ");

    // A server that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let said = ask(&address).await.expect_code(1).stderr.replace(&address, "[address]");
    insta::assert_snapshot!(said, @r"
    error: could not ask the worker at [address]
      caused by: timed out
    ");
}

#[tokio::test]
async fn a_worker_whose_port_is_taken_says_so_once() {
    let servers = servers().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let serve = servers.preheat(["serve"]).job("services", SERVICES);
    let output = serve.env("PREHEAT_HTTP__LISTEN", &address).run().await.expect_code(1);
    insta::assert_snapshot!(output.stderr.replace(&address, "[address]"), @r"
    error: could not listen on `[address]`
      caused by: Address already in use (os error 98)
    ");
}
