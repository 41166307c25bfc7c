//! The whole worker on a cluster: nodes die, slots move and keys are lost in the middle of its runs.

use serde_json::{Value, json};

use super::*;
use crate::support::program::{Preheat, Running, preheat};
use crate::support::shop::{Shop, items};

/// A shop whose cache is a cluster.
struct ClusterShop {
    shop: Shop,
    cluster: Cluster,
    cache: RedisCache,
}

impl ClusterShop {
    async fn open(tenants: u32, has_replicas: bool) -> Self {
        let cluster = cluster(has_replicas).await;
        let cache = connect(&cluster).await;
        Self { shop: Shop::open(tenants).await, cluster, cache }
    }

    fn program<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
        preheat(arguments).database(self.shop.url()).cache(self.cluster.url())
    }

    fn serve(&self, lines: &str) -> Running {
        let worker = self.shop.serve().cache(self.cluster.url());
        worker.env("PREHEAT_CACHE__TIMEOUT", "2s").job("items", &items(lines)).start()
    }

    /// The keys that are not as in the database; all of them if they cannot be read.
    async fn wrong(&self) -> Vec<String> {
        let expected = self.shop.expected().await;
        let keys: Vec<String> = expected.keys().cloned().collect();
        let Ok(found) = self.cache.look(&keys).await else { return keys };
        let right = expected.into_iter().zip(found).filter_map(|((key, expected), found)| {
            let found: Option<Value> =
                found.map(|found| serde_json::from_slice(&found.value).unwrap());
            (found != Some(expected)).then_some(key)
        });
        right.collect()
    }

    async fn becomes_warm(&self, what: &str) {
        eventually(what, LONGER, async || self.wrong().await.is_empty()).await;
    }
}

/// Requests runs until one is `ok`.
async fn a_run_is_ok(worker: &Running) {
    eventually("a run is ok", LONGER, async || worker.warm("items").await["outcome"] == "ok").await;
}

#[tokio::test]
async fn a_run_in_the_middle_of_which_a_primary_is_killed_goes_on_and_every_key_is_right() {
    let world = ClusterShop::open(60, true).await;
    let worker = world.serve("batch = 10\nconcurrency = 2\nretries = 10\ntimeout = \"2m\"");
    worker.answers("/readyz", 200).await;
    world.becomes_warm("the cache is warm").await;
    world.shop.change().await;
    let holder = world.shop.hold().await;
    let killed = async {
        world.shop.held(2).await;
        world.cluster.node(0).kill();
        drop(holder);
    };
    let (run, ()) = tokio::join!(worker.warm("items"), killed);
    // It waited for the replica. Writes that the primary had answered may be lost with it, so the run says that
    // the cache was replaced, unless it wrote none before.
    let outcome = run["outcome"].as_str().unwrap();
    assert!(outcome == "ok" || outcome == "partial", "{run:#}");
    if outcome == "partial" {
        let kinds = crate::support::shop::failure_kinds(&run);
        assert_eq!(kinds, ["cache_restarted"], "{run:#}");
    }
    world.becomes_warm("every key is right").await;
    a_run_is_ok(&worker).await;
    assert_eq!(world.wrong().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_run_in_the_middle_of_which_slots_move_is_ok() {
    let world = ClusterShop::open(60, false).await;
    let worker = world.serve("batch = 5\nconcurrency = 2");
    worker.answers("/readyz", 200).await;
    world.becomes_warm("the cache is warm").await;
    for round in 0..3 {
        world.shop.change().await;
        let holder = world.shop.hold().await;
        let moved = async {
            world.shop.held(2).await;
            let mut slots = Vec::new();
            for tenant in 1..=12 {
                slots.push(world.cluster.slot(&format!("items:{tenant}")).await);
                slots.push(world.cluster.slot(&format!("preheat:fence:{tenant}")).await);
            }
            slots.sort_unstable();
            slots.dedup();
            // Some have moved, the others are moving while the run writes.
            let (some, others) = slots.split_at(slots.len() / 2);
            let target = async |slot: u16| (world.cluster.owner(slot).await + 1) % 3;
            for slot in some {
                world.cluster.move_slot(*slot, target(*slot).await).await;
            }
            let mut moving = Vec::new();
            for slot in others {
                let target = target(*slot).await;
                world.cluster.begin_to_move(*slot, target).await;
                moving.push((*slot, target));
            }
            drop(holder);
            for (slot, target) in moving {
                while world.cluster.move_keys(slot, target, 1).await > 0 {}
                world.cluster.end_move(slot, target).await;
            }
        };
        let (run, ()) = tokio::join!(worker.warm("items"), moved);
        assert_eq!(run["outcome"], "ok", "round {round}: {run:#}\n{}", worker.stderr());
        assert_eq!(world.wrong().await, Vec::<String>::new(), "round {round}");
    }
    assert!(world.cluster.errors("MOVED").await > 0);
    let said = worker.stderr();
    assert!(!said.contains("is another process than before"), "{said}");
}

#[tokio::test]
async fn one_primary_that_is_emptied_or_restarted_is_noticed_and_its_keys_come_back() {
    let world = ClusterShop::open(60, false).await;
    let mut worker = world.serve("batch = 10");
    worker.answers("/readyz", 200).await;
    world.becomes_warm("the cache is warm").await;
    // The markers are there after the first look.
    eventually("every node has markers", LONGER, async || {
        let mut all = true;
        for node in 0..3 {
            let keys: Vec<String> = world.cluster.ask(node, "KEYS preheat:marker:*").await;
            all &= keys.len() >= 8;
        }
        all
    })
    .await;
    let () = world.cluster.ask(1, "FLUSHALL").await;
    worker.says("the cache was emptied").await;
    world.becomes_warm("the emptied node has its keys").await;
    eventually("the resync has ended", LONGER, async || {
        let runs = worker.runs("items").await;
        runs.iter().any(|run| run["trigger"] == "change" && run["outcome"] == "ok")
    })
    .await;
    let resynced = async |worker: &Running| {
        let runs = worker.runs("items").await.into_iter();
        let ok = runs.filter(|run| run["trigger"] == "change" && run["outcome"] == "ok");
        ok.map(|run| run["report"]["tenants"]["total"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(resynced(&worker).await, [60]);
    let mut concerned = 0;
    for tenant in 1..=60 {
        let slots = [format!("items:{tenant}"), format!("preheat:fence:{tenant}")];
        let [key, fence] = slots.each_ref().map(|key| world.cluster.slot(key));
        let (key, fence) =
            (world.cluster.owner(key.await).await, world.cluster.owner(fence.await).await);
        concerned += u64::from(key == 2 || fence == 2);
    }
    world.cluster.node(2).restart().unwrap();
    worker.says("is another process than before").await;
    world.becomes_warm("the restarted node has its keys").await;
    eventually("the node's tenants were warmed", LONGER, async || {
        resynced(&worker).await.len() > 1
    })
    .await;
    assert_eq!(resynced(&worker).await, [concerned, 60], "newest first");
    assert!(concerned < 60);
    a_run_is_ok(&worker).await;
}

#[tokio::test]
async fn changes_invalidations_and_audits_work_on_a_cluster() {
    let world = ClusterShop::open(40, false).await;
    let job = items("tables = [\"items\"]\nbatch = 10");
    let program = |arguments: &[&'static str]| {
        let program = world.program(arguments.iter().copied()).job("items", &job);
        program.env("PREHEAT_CHANGES__ENABLED", "true")
    };
    program(&["check"]).run().await.expect_code(0);
    program(&["changes", "install"]).run().await.expect_code(0);
    program(&["warm"]).run().await.expect_code(0);
    assert_eq!(world.wrong().await, Vec::<String>::new());

    let worker =
        program(&["serve"]).env("PREHEAT_HTTP__TOKEN", crate::support::shop::TOKEN).start();
    worker.answers("/readyz", 200).await;
    worker.metric_becomes("preheat_change_feed_connected", |value| value > 0.0).await;
    world.shop.execute("update items set version = version + 1 where tenant_id < 20").await;
    world.becomes_warm("changed tenants are warmed").await;

    let request = json!({"patterns": ["items:*"], "rewarm": true});
    let answer = worker.post("/api/v1/invalidations", &request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["removed"], 40, "{answer:?}");
    world.becomes_warm("what was removed comes back").await;
    let audit = program(&["audit", "--json"]).run().await;
    let report = audit.json();
    assert_eq!(audit.code(), Some(0), "{report:#}\n{}", audit.stderr);
}
