//! Applications that change data while warmers work: the contract of `docs/invalidation.md` with its own
//! helpers, real clients and real servers.

use preheat::domain::fence::{FENCE_TTL, Fence};
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::node::Node;
use crate::support::program::Running;
use crate::support::shop::{Shop, items_by};
use crate::support::{LONG, eventually};

/// Reads all items as they were when the query began, and delays the answer while the gate is locked.
const GATED: &str = "select i.tenant_id, i.id, i.name, i.version \
     from pg_advisory_xact_lock_shared(42) gate cross join items i \
     where i.tenant_id = any($1) order by i.id";

/// The TypeScript code in the docs that imports from that package.
fn helper(package: &str) -> String {
    let page = include_str!("../../../docs/invalidation.md");
    let blocks = page.split("```ts\n").skip(1).filter_map(|rest| rest.split("```").next());
    let from = format!("from \"{package}\"");
    let found: Vec<_> = blocks.filter(|block| block.contains(&from)).collect();
    assert_eq!(found.len(), 1, "{package}");
    let lines = found[0].lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 12, "a helper of a dozen lines has {lines}");
    found[0].to_owned()
}

/// Calls the helper for a package with the package's real client.
fn call(node: &Node, package: &str, shop: &Shop, calls: &Value) {
    let redis = json!({ "host": "127.0.0.1", "port": shop.redis.tcp_port().unwrap() });
    let code = helper(package);
    let input = json!({ "package": package, "code": code, "redis": redis, "calls": calls });
    let said = node.run("invalidate.mjs", &input);
    assert_eq!(said, [json!({ "calls": calls.as_array().unwrap().len() })]);
}

/// A worker whose run has read all tenants' items and has not written them yet.
struct AtWork {
    shop: Shop,
    worker: Running,
    gate: PgConnection,
    run: String,
}

impl AtWork {
    async fn begin() -> Self {
        let shop = Shop::open(3).await;
        let worker = shop.serve().job("items", &items_by("", GATED)).start();
        worker.works().await;
        worker.warm("items").await;
        shop.assert_warm().await;
        let mut gate = shop.connect().await;
        sqlx::query("select pg_advisory_lock(42)").execute(&mut gate).await.unwrap();
        let answer = worker.post("/api/v1/jobs/items/runs", &json!({})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let run = answer.json()["id"].as_str().unwrap().to_owned();
        shop.held(1).await;
        Self { shop, worker, gate, run }
    }

    /// Lets the run continue to its end.
    async fn go_on(self) -> (Shop, Running) {
        let Self { shop, worker, gate, run } = self;
        gate.close().await.unwrap();
        let path = format!("/api/v1/runs/{run}");
        eventually("the run has ended", LONG, async || {
            worker.get(&path).await.json()["state"] == "finished"
        })
        .await;
        (shop, worker)
    }
}

#[tokio::test]
async fn hazard_01_nothing_old_survives_the_documented_helpers() {
    let Some(node) = Node::find() else { return };
    for package in ["ioredis", "@upstash/redis"] {
        let at_work = AtWork::begin().await;
        at_work.shop.execute("update items set version = 2 where tenant_id = 2").await;
        let calls = json!([{ "tenant": "2", "keys": ["items:2"] }]);
        call(&node, package, &at_work.shop, &calls);
        assert_eq!(at_work.shop.value("items:2").await, None, "{package}");
        let (shop, worker) = at_work.go_on().await;
        shop.assert_warm().await;
        let value = shop.value("items:2").await.unwrap();
        assert!(value.contains("\"version\":2") && !value.contains("\"version\":1"), "{value}");
        assert_eq!(worker.runs("items").await[0]["outcome"], "ok");
    }
}

#[tokio::test]
async fn hazard_03_a_deletion_without_the_fence_is_what_the_docs_warn_of() {
    let at_work = AtWork::begin().await;
    at_work.shop.execute("update items set version = 2 where tenant_id = 2").await;
    let _: () = at_work.shop.cache().await.del("items:2").await.unwrap();
    let (shop, worker) = at_work.go_on().await;
    assert!(shop.value("items:2").await.unwrap().contains("\"version\":1"), "it came back old");
    worker.warm("items").await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_01_nothing_old_survives_an_invalidation_over_http() {
    for request in [
        json!({ "keys": ["items:2"] }),
        json!({ "tenants": ["2"] }),
        json!({ "jobs": ["items"] }),
        json!({ "patterns": ["items:*"] }),
    ] {
        let at_work = AtWork::begin().await;
        at_work.shop.execute("update items set version = 2 where tenant_id = 2").await;
        let answer = at_work.worker.post("/api/v1/invalidations", &request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.json()["removed"].as_u64().unwrap() > 0, "{answer:?}");
        let (shop, _worker) = at_work.go_on().await;
        shop.assert_warm().await;
    }
}

#[tokio::test]
async fn the_helpers_remove_any_number_of_keys_of_a_tenant_or_of_the_fleet() {
    let Some(node) = Node::find() else { return };
    for package in ["ioredis", "@upstash/redis"] {
        let shop = Shop::open(1).await;
        let mut cache = shop.cache().await;
        for key in ["a", "b", "c"] {
            let _: () = cache.set(key, "1").await.unwrap();
        }
        let calls = json!([
            { "tenant": "a:*", "keys": ["a", "b"] },
            { "tenant": "a:*", "keys": [] },
            { "tenant": null, "keys": ["c", "none"] },
        ]);
        call(&node, package, &shop, &calls);
        let left: u32 = cache.exists(&["a", "b", "c"]).await.unwrap();
        assert_eq!(left, 0, "{package}");
        for (fence, tenant) in [("preheat:fence:a:*", Some("a:*")), ("preheat:fence", None)] {
            let before: i64 = cache.get(fence).await.unwrap();
            assert!(!Fence::At(before).needs_start(), "{package}: {before}");
            let ttl: u64 = cache.ttl(fence).await.unwrap();
            assert!((FENCE_TTL.as_secs() - 60..=FENCE_TTL.as_secs()).contains(&ttl), "{ttl}");
            call(&node, package, &shop, &json!([{ "tenant": tenant, "keys": ["none"] }]));
            assert_eq!(cache.get::<_, i64>(fence).await.unwrap(), before + 1, "{package}");
        }
    }
}
