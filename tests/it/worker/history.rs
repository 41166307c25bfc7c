//! Run records, and a worker that cannot write them.

use std::time::{Duration, Instant};

use futures::future::join_all;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::support::http::Answer;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually, preheat};

const OLD: &str = "insert into preheat.runs
  (id, job, trigger, outcome, due_at, started_at, finished_at, replica, version, report)
  select gen_random_uuid(), 'items', 'schedule', 'ok', at, at, at, 'old', '0', '{}'
  from (values (now() - interval '31 days'), (now() - interval '29 days')) of (at)";

async fn kept(shop: &Shop) -> i64 {
    shop.number("select count(*) from preheat.runs").await
}

#[tokio::test]
async fn a_run_is_kept_whole_and_outlives_the_worker() {
    let shop = Shop::open(5).await;
    shop.execute("alter table items add check (version < 3)").await;
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    eventually("the run is kept", LONG, async || kept(&shop).await == 1).await;

    let mut connection = shop.connect().await;
    let row: Value = sqlx::query_scalar("select to_jsonb(r) from preheat.runs r")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    for field in ["id", "job", "trigger", "outcome", "replica", "version", "report"] {
        assert_eq!(row[field], run[field], "{field}");
    }
    for (column, pointer) in [
        ("tenants_total", "/tenants/total"),
        ("tenants_ok", "/tenants/ok"),
        ("tenants_failed", "/tenants/failed"),
        ("keys_written", "/keys/written"),
        ("keys_removed", "/keys/removed"),
        ("keys_failed", "/keys/failed"),
        ("bytes", "/bytes"),
    ] {
        assert_eq!(Some(&row[column]), run["report"].pointer(pointer), "{column}");
    }
    assert_eq!(row["first_error"], Value::Null);
    assert_eq!(row["version"], env!("CARGO_PKG_VERSION"));
    assert!(!row["replica"].as_str().unwrap().is_empty());
    let moments = ["due_at", "started_at", "finished_at"]
        .map(|at| chrono::DateTime::parse_from_rfc3339(row[at].as_str().unwrap()).unwrap());
    assert!(moments.is_sorted(), "{moments:?}");
    connection.close().await.unwrap();

    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
    shop.execute(OLD).await;
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    eventually("what is too old is gone", LONG, async || kept(&shop).await == 2).await;
    let runs = worker.runs("items").await;
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0], run);
    assert_eq!(runs[1]["replica"], "old");
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    let mut shown = worker.get(&path).await.json();
    let shown = shown.as_object_mut().unwrap();
    let compared = shown.remove("compared").unwrap();
    assert_eq!(compared["keys"]["before"], 0, "the run before it is the old one: {compared}");
    assert!(shown.remove("neighbors").is_some());
    assert_eq!(shown, run.as_object().unwrap());
}

#[tokio::test]
async fn a_role_that_may_only_read_is_enough_and_is_told_once_what_it_lacks() {
    let shop = Shop::open(5).await;
    let role = "only_reads";
    shop.execute(&format!(
        "create role {role} login; grant select on all tables in schema public to {role}"
    ))
    .await;
    let url = shop.url().replace("user=postgres", &format!("user={role}"));
    assert_ne!(url, shop.url());
    let worker = shop.serve().database(&url).job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    for _ in 0..3 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    shop.assert_warm().await;
    assert_eq!(worker.runs("items").await.len(), 4);
    assert_eq!(worker.stderr().matches("runs are kept in memory only").count(), 1);
    assert!(worker.stderr().contains("grant usage on schema preheat"), "{}", worker.stderr());
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);

    let strict = shop.serve().database(&url).env("PREHEAT_HISTORY__ENABLED", "true");
    let output = strict.job("items", &items("")).run().await.expect_code(2);
    assert!(output.stderr.contains("cannot keep"), "{}", output.stderr);
    shop.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_history_that_is_gone_fails_no_run_and_is_used_again_when_it_is_back() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    shop.execute("drop schema preheat cascade").await;
    for _ in 0..3 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    worker.says("could not write the history").await;
    let answer = worker.get("/api/v1/runs").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let page = answer.json();
    assert_eq!(page["runs"].as_array().unwrap().len(), 3, "{page}");
    assert!(page["history_away"].is_string(), "{page}");
    assert_eq!(worker.get("/healthz").await.status, 200);

    preheat(["migrate"]).database(shop.url()).run().await.expect_code(0);
    worker.says("the history can be written again").await;
    eventually("all three are kept", LONG, async || kept(&shop).await == 3).await;
    assert_eq!(worker.runs("items").await.len(), 3);
    assert_eq!(worker.stderr().matches("could not write the history").count(), 1);
}

#[tokio::test]
async fn however_many_look_at_a_locked_history_runs_have_their_connections() {
    for connections in ["1", "2"] {
        let shop = Shop::open(3).await;
        let worker = shop
            .serve()
            .env("PREHEAT_DATABASE__MAX_CONNECTIONS", connections)
            .job("items", &items("on_start = false"))
            .start();
        worker.answers("/readyz", 200).await;
        let _lock = lock(&shop).await;
        let looks = join_all((0..10).map(|_| worker.get("/api/v1/runs")));
        let runs = async {
            let start = Instant::now();
            for _ in 0..3 {
                assert_eq!(worker.warm("items").await["outcome"], "ok");
            }
            start.elapsed()
        };
        let (looks, took) = tokio::join!(looks, runs);
        let is_told = |look: &Answer| look.status >= 500 || look.json()["history_away"].is_string();
        assert!(looks.iter().all(is_told), "{looks:?}");
        assert!(took < Duration::from_secs(20), "{connections} connections: {took:?}");
    }
}

#[tokio::test]
async fn records_that_cannot_be_written_do_not_hold_up_the_end_and_are_said_to_be_lost() {
    let shop = Shop::open(3).await;
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    let _lock = lock(&shop).await;
    for _ in 0..2 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    worker.signal(Signal::TERM);
    let output = worker.ended().await.expect_code(0);
    assert!(output.stderr.contains("2 run records are lost"), "{}", output.stderr);
}

/// Locks the history until the connection is dropped.
async fn lock(shop: &Shop) -> PgConnection {
    let mut lock = shop.connect().await;
    let sql = "begin; lock table preheat.runs in access exclusive mode";
    sqlx::raw_sql(sql).execute(&mut lock).await.unwrap();
    lock
}

#[tokio::test]
async fn a_history_that_is_locked_holds_no_run_up() {
    let shop = Shop::open(3).await;
    let mut worker = shop
        .serve()
        .env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "500ms")
        .job("items", &items("on_start = false"))
        .start();
    worker.answers("/readyz", 200).await;
    let lock = lock(&shop).await;
    for _ in 0..3 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    worker.says("could not write the history").await;
    drop(lock);
    worker.says("the history can be written again").await;
    eventually("all three are kept", LONG, async || kept(&shop).await == 3).await;
}
