//! The worker's change feed, from a commit to the cache.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::proxy::Mode;
use crate::support::shop::{Shop, items, items_by};
use crate::support::{LONG, Output, Proxy, Running, eventually, postgres, preheat};

/// A job whose schedule is not due during a test.
fn watching() -> String {
    items("on_start = false\ntables = [\"items\"]")
}

/// Waits until the worker listens.
async fn listens(worker: &Running) {
    worker.works().await;
    worker.metric_becomes(CONNECTED, |value| value > 0.0).await;
}

async fn install(shop: &Shop) {
    install_with(shop, &[]).await;
}

/// Installs the triggers with these flags; returns what it prints.
async fn install_with(shop: &Shop, flags: &[&'static str]) -> Output {
    let install = preheat(["changes", "install"].iter().chain(flags).copied());
    let install = install.database(shop.url()).job("items", &watching());
    install.run().await.expect_code(0)
}

/// A watched shop whose triggers speak on this way: by `NOTIFY`, or through the write-ahead log.
async fn watched(tenants: u32, via: &'static str) -> Shop {
    let shop =
        if via == "wal" { Shop::open_logical(tenants).await } else { Shop::open(tenants).await };
    install_with(&shop, &["--via", via]).await;
    shop
}

/// Ends the session that listens.
fn end_of_listener(via: &str) -> &'static str {
    if via == "wal" {
        "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender' \
         and datname = current_database()"
    } else {
        "select pg_terminate_backend(pid) from pg_stat_activity where query ilike '%listen%' \
         and datname = current_database() and pid <> pg_backend_pid()"
    }
}

const CONNECTED: &str = "preheat_change_feed_connected";
const LACKING: &str = "preheat_change_feed_tables_without_triggers";

#[tokio::test]
async fn hazard_03_what_is_committed_without_a_fence_is_in_the_cache_at_once() {
    committed_is_cached(&watched(5, "notify").await).await;
}

#[tokio::test]
async fn hazard_38_what_is_committed_is_in_the_cache_at_once_through_the_write_ahead_log_too() {
    let shop = watched(5, "wal").await;
    committed_is_cached(&shop).await;
    // No transaction has notified: that would serialize the commits of the whole cluster.
    let notifies = "select count(*) from pg_proc where pronamespace = to_regnamespace('preheat') \
                    and prosrc like '%pg_notify%'";
    assert_eq!(shop.number(notifies).await, 0);
    // The worker is gone, and the server keeps nothing for it.
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    eventually("the slot is gone", LONG, async || shop.number(slots).await == 0).await;
}

async fn committed_is_cached(shop: &Shop) {
    let worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    // Anything may have changed while the feed was disconnected.
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    for _ in 0..3 {
        shop.change().await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        shop.execute("delete from items where id = 1; insert into items values (1, 99, 'new')")
            .await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        shop.execute("delete from items where id = 99").await;
    }
    let changes = worker.get("/api/v1/changes").await.json();
    let [table] = changes["tables"].as_array().unwrap().as_slice() else { panic!("{changes}") };
    assert_eq!((&table["table"], &table["jobs"]), (&json!("items"), &json!(["items"])));
    assert!(table["notifications"].as_u64() >= Some(9), "{changes}");
    assert!(table["last_at"].is_string(), "{changes}");
    let resync = &changes["last_resync"];
    assert_eq!((&resync["cause"], &resync["jobs"]), (&json!("feed_connected"), &json!(["items"])));
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
}

#[tokio::test]
async fn triggers_that_come_later_are_found_and_said_to_lack_once() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &watching()).start();
    worker.says("there is no change feed").await;
    assert_eq!(worker.metric(CONNECTED).await, None, "nobody installed one");
    worker.answers("/readyz", 200).await;
    assert!(shop.cached().await.is_empty());
    for _ in 0..2 {
        worker.signal(Signal::HUP);
        worker.says("jobs").await;
    }
    install(&shop).await;
    worker.signal(Signal::HUP);
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    assert_eq!(worker.stderr().matches("there is no change feed").count(), 1);
    assert!(worker.stderr().contains("hint: `preheat changes install`"), "{}", worker.stderr());

    // A table that is created again has lost its triggers; a table that no job names needs none.
    shop.execute("alter table items rename to old; create table items (like old)").await;
    worker.signal(Signal::HUP);
    worker.says("the change feed does not hear of any table").await;
    worker.write("jobs/items.toml", &items("on_start = false"));
    worker.signal(Signal::HUP);
    worker.says("no enabled job has `tables`").await;
    let absent = async || worker.metric(CONNECTED).await.is_none();
    eventually("no feed is wanted", LONG, absent).await;
    let listening = "select count(*) from pg_stat_activity where query ilike 'unlisten%' \
                     or query ilike 'listen%'";
    eventually("nobody listens", LONG, async || shop.number(listening).await == 0).await;
}

#[tokio::test]
async fn a_lost_connection_loses_no_change() {
    loses_no_change("notify").await;
}

#[tokio::test]
async fn a_lost_reader_of_the_log_loses_no_change() {
    loses_no_change("wal").await;
}

async fn loses_no_change(via: &'static str) {
    let shop = watched(4, via).await;
    let mut worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    for _ in 0..3 {
        // The listener's session ends, and the change comes before there can be a new one.
        let end = end_of_listener(via);
        shop.execute(&format!("{end}; update items set version = version + 1")).await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
    }
    worker.says("the change feed is away").await;
}

#[tokio::test]
async fn a_worker_follows_triggers_that_are_switched() {
    let shop = Shop::open_logical(4).await;
    let installed = install_with(&shop, &[]).await;
    assert!(
        installed.stderr.contains("`preheat changes install --via wal`"),
        "{}",
        installed.stderr
    );
    let mut worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    let reading = "select count(*) from pg_replication_slots where database = current_database()";
    for (via, slots) in [("wal", 1), ("notify", 0), ("wal", 1)] {
        let installed = install_with(&shop, &["--via", via]).await;
        let is_said = installed.stdout.contains("through the write-ahead log");
        assert_eq!(is_said, via == "wal", "{}", installed.stdout);
        assert!(installed.stdout.starts_with("switched `items`: "), "{}", installed.stdout);
        shop.change().await;
        eventually("the worker has followed", LONG, async || shop.number(reading).await == slots)
            .await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        listens(&worker).await;
        shop.change().await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
    }
    worker.says("the triggers were switched, and now speak through the write-ahead log").await;
}

#[tokio::test]
async fn a_worker_goes_on_and_names_the_transaction_that_holds_up_its_slot() {
    let shop = watched(3, "wal").await;
    let mut holder = shop.connect().await;
    let hold = "set application_name = 'a report'; begin; create temporary table held (n int)";
    sqlx::raw_sql(hold).execute(&mut holder).await.unwrap();
    let mut worker = shop.serve().job("items", &items("tables = [\"items\"]")).start();
    worker.answers("/readyz", 200).await;
    eventually("the schedule warms", LONG, async || shop.is_warm().await).await;
    worker.says("of application `a report`").await;
    assert_eq!(worker.metric(CONNECTED).await, Some(0.0));
    shop.change().await;
    drop(holder);
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn a_worker_says_what_keeps_its_feed_away_also_if_that_changes() {
    let shop = watched(3, "wal").await;
    let mut worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    shop.execute("drop publication preheat_changes").await;
    shop.execute(end_of_listener("wal")).await;
    worker.says("lost the connection that listens").await;
    worker
        .says("the publication `preheat_changes` is missing; hint: run `preheat changes install`")
        .await;
    let installed = install_with(&shop, &[]).await.stdout;
    assert!(installed.starts_with("mended `items`: "), "{installed}");
    assert!(
        installed.contains("the write-ahead log, whose publication was missing"),
        "{installed}"
    );
    listens(&worker).await;
    shop.change().await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn a_worker_that_has_to_listen_refuses_to_start_without() {
    let shop = Shop::open(2).await;
    let strict = || shop.serve().env("PREHEAT_CHANGES__ENABLED", "true").job("items", &watching());
    let said = strict().run().await.expect_code(2).stderr;
    assert!(said.contains("the change feed cannot work"), "{said}");
    assert!(said.contains("`preheat changes install`"), "{said}");
    install(&shop).await;
    let one = strict().env("PREHEAT_DATABASE__MAX_CONNECTIONS", "1");
    let said = one.run().await.expect_code(2).stderr;
    assert!(said.contains("`database.max_connections` is 1"), "{said}");
    listens(&strict().start()).await;

    let never = shop.serve().env("PREHEAT_CHANGES__ENABLED", "false").job("items", &watching());
    let never = never.start();
    never.answers("/readyz", 200).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(never.metric(CONNECTED).await, None);
    assert!(!never.stderr().contains("change feed"), "{}", never.stderr());
}

#[tokio::test]
async fn tables_with_triggers_are_heard_while_others_lack_them() {
    let shop = Shop::open(2).await;
    shop.execute("create table prices (tenant_id int)").await;
    install(&shop).await;
    let both = items("on_start = false\ntables = [\"items\", \"prices\", \"nowhere\"]");
    let mut worker = shop.serve().job("items", &both).start();
    worker.answers("/healthz", 200).await;
    worker.metric_becomes(LACKING, |value| (value - 2.0).abs() < 0.1).await;
    worker.says("the change feed does not hear of changes of `nowhere` and `prices`").await;
    worker.says("there is no table `nowhere`").await;
    assert_eq!(worker.metric(CONNECTED).await, Some(0.0));
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    shop.change().await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn hazard_39_a_table_that_was_swapped_is_said_to_lack_triggers_and_warmed_when_they_are_back()
{
    let shop = Shop::open(4).await;
    install(&shop).await;
    let mut worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;

    shop.execute(
        "create table fresh (like items including all); \
         insert into fresh select tenant_id, id, name, version + 1 from items; \
         alter table items rename to stale; alter table fresh rename to items",
    )
    .await;
    // Another table has the name: its data are warmed, although its changes are not reported.
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    worker.metric_becomes(LACKING, |value| value > 0.0).await;
    assert_eq!(worker.metric(CONNECTED).await, Some(0.0));
    worker.says("the change feed does not hear of any table").await;
    shop.change().await;
    install(&shop).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    worker.metric_becomes(LACKING, |value| value < 1.0).await;
    listens(&worker).await;
    worker.says("changes of `items` may have been missed").await;
    shop.change().await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn hazard_39_what_was_loaded_while_triggers_were_off_is_warmed() {
    let shop = Shop::open(4).await;
    install(&shop).await;
    let worker = shop.serve().job("items", &watching()).start();
    listens(&worker).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    shop.execute(
        "alter table items disable trigger all; update items set version = version + 1; \
         alter table items enable trigger all",
    )
    .await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn neither_the_jobs_nor_the_feed_wait_for_a_table_that_a_migration_has_locked() {
    let shop = Shop::open(3).await;
    shop.execute("create table prices (tenant_id int)").await;
    let watched = items("on_start = true\ntables = [\"items\"]");
    let prices = items_by(
        "on_start = true\ntables = [\"prices\"]",
        "select tenant_id, 1 as price from prices where tenant_id = any($1)",
    );
    let prices = prices.replace("items:", "prices:");
    let install = preheat(["changes", "install"]).database(shop.url());
    install.job("items", &watched).job("prices", &prices).run().await.expect_code(0);
    let holder = shop.hold().await;
    let worker = shop.serve().job("items", &watched).job("prices", &prices);
    let worker = worker.env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "10m").start();
    eventually("the other job's keys are there", LONG, async || {
        shop.value("prices:1").await.is_some()
    })
    .await;
    listens(&worker).await;
    shop.execute("insert into prices values (2)").await;
    eventually("the feed is heard", LONG, async || {
        shop.value("prices:2").await.is_some_and(|value| value.contains("price"))
    })
    .await;
    drop(holder);
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

/// Pets, whose keys are shared.
const PETS: &str = "schedule = \"every 1h\"\nttl = \"3h\"\ntimeout = \"1m\"\non_start = false\n\
    tables = [{ name = \"pets\", key = \"number\" }]\n[query]\nsql = \"select tenant_id, number as id, name \
    from pets where tenant_id = any($1)\"\n[[keys]]\nkey = \"pet:{id}\"\nshape = \"object\"\nunique = \"id\"\n";

#[tokio::test]
async fn hazard_07_a_pet_that_is_deleted_or_moved_leaves_no_key() {
    let shop = Shop::open(3).await;
    shop.execute(
        "update tenants set status = 'suspended' where id = 3; \
         create table pets (number text primary key, tenant_id int, name text); \
         insert into pets select n, 1, 'pet ' || n from generate_series(1, 9) n; \
         insert into pets values ('a b:{%41}', 1, 'odd')",
    )
    .await;
    let install = preheat(["changes", "install"]).database(shop.url()).job("pets", PETS);
    let installed = install.run().await.expect_code(0).stdout;
    assert!(installed.contains("tenants by `tenant_id`, keys by `number`"), "{installed}");
    let worker = shop.serve().job("pets", PETS).start();
    listens(&worker).await;
    let becomes = async |key: &str, is_so: &dyn Fn(Option<&str>) -> bool| {
        eventually(&format!("`{key}` is as it should be"), LONG, async || {
            is_so(shop.value(key).await.as_deref())
        })
        .await;
    };
    becomes("pet:9", &|value| value.is_some()).await;
    becomes("pet:a b:{%41}", &|value| value.is_some()).await;

    shop.execute("delete from pets where number = '1'").await;
    becomes("pet:1", &|value| value.is_none()).await;
    shop.execute("delete from pets where number like 'a%'").await;
    becomes("pet:a b:{%41}", &|value| value.is_none()).await;
    // The other tenant is not active, so no run writes the key.
    shop.execute("update pets set tenant_id = 3 where number = '2'").await;
    becomes("pet:2", &|value| value.is_none()).await;
    shop.execute("update pets set tenant_id = 2, name = 'moved' where number = '3'").await;
    becomes("pet:3", &|value| value.is_some_and(|value| value.contains("moved"))).await;
    shop.execute("update pets set number = '40' where number = '4'").await;
    becomes("pet:4", &|value| value.is_none()).await;
    becomes("pet:40", &|value| value.is_some()).await;
    shop.execute("begin; delete from pets where number = '5'; insert into pets values ('5', 1, 'again'); commit")
        .await;
    becomes("pet:5", &|value| value.is_some_and(|value| value.contains("again"))).await;
    for kept in ["pet:3", "pet:5", "pet:6", "pet:9", "pet:40"] {
        assert!(shop.value(kept).await.is_some(), "{kept}");
    }
}

#[tokio::test]
async fn triggers_of_before_keys_are_said_to_name_none() {
    let shop = Shop::open(2).await;
    shop.execute("create table pets (number int, tenant_id int, name text)").await;
    let before = PETS.replace(", key = \"number\"", "");
    let install = preheat(["changes", "install"]).database(shop.url());
    install.job("pets", &before).run().await.expect_code(0);
    let strict = shop.serve().env("PREHEAT_CHANGES__ENABLED", "true").job("pets", PETS);
    let mut worker = strict.start();
    listens(&worker).await;
    worker.says("does not hear of shared keys that are gone from `pets`").await;
}

/// A job that reads a table without triggers.
fn prices() -> String {
    let query = "select tenant_id, 1 as price from prices where tenant_id = any($1)";
    items_by("on_start = true", query).replace("items:", "prices:")
}

/// Waits until a job's keys exist; the worker is healthy all the time.
async fn works_meanwhile(shop: &Shop, worker: &Running) {
    eventually("the other job's keys are there", LONG, async || {
        worker.answers("/healthz", 200).await;
        assert_eq!(worker.get("/healthz").await.status, 200);
        shop.value("prices:1").await.is_some()
    })
    .await;
}

/// A shop with triggers, and a worker that requires the feed.
async fn strict() -> (Shop, crate::support::program::Preheat) {
    let shop = Shop::open(3).await;
    shop.execute("create table prices (tenant_id int)").await;
    install(&shop).await;
    let worker = shop.serve().env("PREHEAT_CHANGES__ENABLED", "true");
    let worker = worker.env("PREHEAT_HISTORY__ENABLED", "false");
    let worker = worker.job("items", &watching()).job("prices", &prices());
    (shop, worker)
}

#[tokio::test]
async fn a_worker_that_has_to_listen_works_while_a_migration_holds_locks_and_listens_afterwards() {
    for locks in ["lock table items in access exclusive mode", "lock table pg_catalog.pg_trigger"] {
        let (shop, worker) = strict().await;
        let mut holder = shop.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin; {locks}")))
            .execute(&mut holder)
            .await
            .unwrap();
        let worker = worker.start();
        works_meanwhile(&shop, &worker).await;
        drop(holder);
        listens(&worker).await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
        shop.change().await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
    }
}

#[tokio::test]
async fn a_worker_that_has_to_listen_works_while_the_way_to_listen_stalls() {
    let (shop, worker) = strict().await;
    let proxy = Proxy::postgres(postgres()).await;
    proxy.set(Mode::Stall);
    let mut worker = worker.env("PREHEAT_CHANGES__URL", shop.url_through(&proxy)).start();
    works_meanwhile(&shop, &worker).await;
    worker.says("keep the cache fresh: could not connect to database").await;
    assert_eq!(worker.get("/healthz").await.status, 200);
    proxy.set(Mode::Pass);
    proxy.cut();
    listens(&worker).await;
    shop.change().await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn a_fleet_reads_the_log_once_and_each_member_hears_of_its_changes_also_when_the_reader_dies()
{
    const SLOTS: &str =
        "select count(*) from pg_replication_slots where database = current_database()";
    let shop = watched(60, "wal").await;
    let start = || {
        let worker = shop.serve().settings("[fleet]\nenabled = true\n");
        worker.job("items", &watching()).start()
    };
    let mut workers = vec![start(), start(), start()];
    for worker in &workers {
        listens(worker).await;
        worker
            .metric_becomes("preheat_fleet_shares", |shares| (21.0..=22.0).contains(&shares))
            .await;
    }
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    assert_eq!(shop.number(SLOTS).await, 1, "one member reads for all");
    for _ in 0..3 {
        shop.change().await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
    }
    for worker in &workers {
        let heard = worker.metric("preheat_change_notifications_total").await;
        assert!(heard >= Some(1.0), "{heard:?}: each member warms its own");
    }

    // The session of the reader ends, and the change comes before there can be a new one.
    let end = end_of_listener("wal");
    shop.execute(&format!("{end}; update items set version = version + 1")).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;

    // The reader dies, and another member reads. The one that reads has the figures of the cache.
    let mut reader = None;
    for (place, worker) in workers.iter().enumerate() {
        if worker.metric("preheat_cache_hits_total").await.is_some() {
            reader = Some(place);
        }
    }
    let reader = workers.remove(reader.unwrap());
    reader.signal(Signal::KILL);
    for _ in 0..3 {
        shop.change().await;
        eventually("all is warm", LONG, async || shop.is_warm().await).await;
    }
    eventually("another member reads", LONG, async || shop.number(SLOTS).await == 1).await;
    for worker in &workers {
        listens(worker).await;
    }
    shop.change().await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}
