//! Job files whose queries the database refuses.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::proxy::Mode;
use crate::support::shop::{Shop, items, items_by};
use crate::support::{LONG, Proxy, Running, eventually};

const ORDERS: &str = "select tenant_id, id from orders where tenant_id = any($1)";
const MAKE_ORDERS: &str =
    "create table orders (tenant_id int, id int); insert into orders values (2, 7)";
const REJECTED: &str = "preheat_jobs_rejected";

/// A job of orders, for which the database has no table until [`MAKE_ORDERS`].
fn orders() -> String {
    items_by("", ORDERS).replace("items:", "orders:")
}

async fn job(worker: &Running, name: &str) -> Value {
    worker.get(&format!("/api/v1/jobs/{name}")).await.json()
}

/// What `/readyz` reports about rejected files.
async fn rejected(worker: &Running) -> Value {
    worker.get("/readyz").await.json()["rejected"].take()
}

#[tokio::test]
async fn a_job_is_held_from_the_start_until_the_database_is_migrated() {
    let shop = Shop::open(3).await;
    let mut worker = shop
        .serve()
        .env("PREHEAT_HTTP__READY_WITHIN", "1s")
        .job("items", &items("required = true"))
        .job("orders", &orders())
        .start();
    worker.works().await;
    eventually("the others go on", LONG, async || shop.is_warm().await).await;
    // However long the test waits.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = worker.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("rejected")));
    let rejected = rejected(&worker).await;
    assert_eq!(rejected[0]["job"], "orders");
    assert_eq!(rejected[0]["older_in_use"], false);
    let problem = &rejected[0]["problems"][0];
    assert!(problem["message"].as_str().unwrap().contains("relation \"orders\" does not exist"));
    assert!(problem["file"].as_str().unwrap().ends_with("orders.toml"), "{problem}");
    assert!(problem["line"].as_u64() > Some(1), "{problem}");
    assert_eq!(worker.get("/healthz").await.status, 200);
    assert_eq!(worker.metric(REJECTED).await, Some(1.0));
    let held = job(&worker, "orders").await;
    assert_eq!((&held["state"], &held["enabled"]), (&json!("held"), &json!(true)));
    assert_eq!(&held["rejected_for"][0], problem);
    assert_eq!(job(&worker, "items").await["rejected_for"], json!([]));
    let asked = worker.post("/api/v1/jobs/orders/runs", &json!({})).await;
    assert_eq!((asked.status, &asked.json()["error"]["code"]), (409, &json!("job_rejected")));
    assert!(worker.runs("orders").await.is_empty());
    worker.says("the database refuses queries of job files: 1 job is held").await;
    worker.says("orders.toml:").await;

    shop.execute(MAKE_ORDERS).await;
    worker.says("the query of job `orders` works").await;
    worker.answers("/readyz", 200).await;
    eventually("it has run", LONG, async || !worker.runs("orders").await.is_empty()).await;
    assert!(shop.value("orders:2").await.is_some());
    worker.metric_becomes(REJECTED, |value| value < 0.5).await;
    assert_eq!(worker.runs("orders").await[0]["trigger"], "startup");
    assert_eq!(worker.stderr().matches("the database refuses").count(), 1, "{}", worker.stderr());
}

#[tokio::test]
async fn a_reload_keeps_the_last_good_version_of_a_rejected_file_and_takes_the_others() {
    let shop = Shop::open(3).await;
    let other = |lines: &str| items(lines).replace("items:", "other:");
    let mut worker = shop
        .serve()
        .job("items", &items("required = true"))
        .job("other", &other("description = \"before\""))
        .start();
    worker.answers("/readyz", 200).await;
    worker.write("jobs/items.toml", &items_by("required = true", ORDERS));
    worker.write("jobs/other.toml", &other("description = \"after\""));
    worker.signal(Signal::HUP);
    worker.says("the database refuses queries of job files: 0 jobs are held, 1 job goes on").await;
    worker.says("items.toml:").await;
    assert_eq!(worker.metric(REJECTED).await, Some(1.0));
    assert_eq!(job(&worker, "other").await["description"], "after");
    let ready = worker.get("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(ready.json()["rejected"][0]["older_in_use"], true);
    let problems = job(&worker, "items").await["rejected_for"].take();
    assert!(problems[0]["message"].as_str().unwrap().contains("\"orders\""), "{problems}");
    shop.change().await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    shop.assert_warm().await;

    worker.write("jobs/items.toml", &items("description = \"mended\""));
    worker.signal(Signal::HUP);
    eventually("it is in use", LONG, async || {
        job(&worker, "items").await["description"] == "mended"
    })
    .await;
    worker.metric_becomes(REJECTED, |value| value < 0.5).await;
    assert_eq!(rejected(&worker).await, json!([]));

    // A new file has no older version.
    worker.write("jobs/orders.toml", &orders());
    worker.signal(Signal::HUP);
    worker.answers("/readyz", 503).await;
    assert_eq!(job(&worker, "orders").await["state"], "held");
    std::fs::remove_file(worker.folder().join("jobs/orders.toml")).unwrap();
    worker.signal(Signal::HUP);
    worker.answers("/readyz", 200).await;
    worker.metric_becomes(REJECTED, |value| value < 0.5).await;
}

#[tokio::test]
async fn an_older_version_is_not_kept_where_another_file_has_its_keys_now() {
    let shop = Shop::open(3).await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    worker.write("jobs/items.toml", &orders());
    worker.write("jobs/heir.toml", &items(""));
    worker.signal(Signal::HUP);
    eventually("it is held", LONG, async || job(&worker, "items").await["state"] == "held").await;
    assert_eq!(worker.get("/readyz").await.status, 503);
    shop.change().await;
    assert_eq!(worker.warm("heir").await["outcome"], "ok");
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_asked_rejects_nothing() {
    let shop = Shop::open(3).await;
    let proxy = Proxy::postgres(crate::support::postgres()).await;
    let serve = shop.serve().database(shop.url_through(&proxy));
    let mut worker = serve.job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    proxy.set(Mode::Refuse);
    worker.write("jobs/items.toml", &items("description = \"new\"\nrequired = true"));
    worker.write("jobs/orders.toml", &orders());
    worker.signal(Signal::HUP);
    worker.says("the job files were read again: 2 jobs").await;
    worker.says("2 queries could not be checked before use").await;
    assert_eq!(job(&worker, "items").await["description"], "new");
    assert_eq!(rejected(&worker).await, json!([]));
    assert_eq!(worker.metric(REJECTED).await, Some(0.0));
    proxy.set(Mode::Pass);
    // It is checked once that is possible.
    worker.metric_becomes(REJECTED, |value| value > 0.5).await;
    assert_eq!(rejected(&worker).await[0]["job"], "orders");
    assert_eq!(job(&worker, "items").await["rejected_for"], json!([]));
}

#[tokio::test]
async fn a_table_that_a_migration_holds_delays_the_start_by_seconds_and_rejects_nothing() {
    let shop = Shop::open(3).await;
    let holder = shop.hold().await;
    let start = Instant::now();
    let mut worker = shop.serve().job("items", &items("required = true")).start();
    worker.says("preheat 0.1.0 is running").await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    worker.works().await;
    assert_eq!(rejected(&worker).await, json!([]));
    drop(holder);
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_tenant_query_that_the_database_refuses_holds_the_jobs_of_tenants() {
    let shop = Shop::open(3).await;
    shop.execute("alter table tenants rename to later").await;
    let fleet = "schedule = \"every 1h\"\nttl = \"3h\"\ntenants = false\n[query]\n\
                 sql = \"select count(*)::int as items from items\"\n[[keys]]\nkey = \"fleet\"\n";
    let mut worker = shop
        .serve()
        .job("items", &items(""))
        .job("second", &items("").replace("items:", "second:"))
        .job("fleet", fleet)
        .start();
    worker.works().await;
    eventually("the job without tenants goes on", LONG, async || {
        shop.value("fleet").await.is_some()
    })
    .await;
    assert_eq!(worker.get("/readyz").await.status, 503);
    let rejected = rejected(&worker).await;
    assert_eq!((&rejected[0]["job"], &rejected[1]["job"]), (&json!("items"), &json!("second")));
    assert_eq!(rejected[0]["problems"][0]["file"], "setting `tenants.sql`");
    worker.says("2 jobs are held").await;
    assert_eq!(worker.stderr().matches("\"tenants\" does not exist").count(), 1, "said once");
    shop.execute("alter table later rename to tenants").await;
    worker.answers("/readyz", 200).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn what_needs_no_database_still_refuses_the_start() {
    let shop = Shop::open(1).await;
    let serve = shop.serve().job("items", &items("retries = 21"));
    let said = serve.run().await.expect_code(2).stderr;
    assert!(said.contains("retries"), "{said}");
}
