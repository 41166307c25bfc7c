//! Connections are cut, stalled and slowed at any point of a run.

use std::time::Duration;

use serde_json::Value;

use super::cache::recovers;
use crate::support::postgres;
use crate::support::program::Running;
use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::shop::{Shop, failure_kinds, items};

/// A shop whose worker reaches each server through a proxy.
struct Apart {
    shop: Shop,
    database: Proxy,
    cache: Proxy,
    worker: Running,
}

impl Apart {
    async fn start(lines: &str) -> Self {
        let shop = Shop::open(30).await;
        let database = Proxy::postgres(postgres()).await;
        let cache = Proxy::redis(&shop.redis).await;
        let lines = format!("batch = 10\nconcurrency = 2\nrequired = true\n{lines}");
        let worker = shop
            .serve()
            .database(shop.url_through(&database))
            .cache(cache.redis_url())
            .env("PREHEAT_CACHE__TIMEOUT", "300ms")
            .env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "1s")
            .job("items", &items(&lines))
            .start();
        worker.answers("/readyz", 200).await;
        Self { shop, database, cache, worker }
    }

    fn proxies(&self) -> [(&'static str, &Proxy); 2] {
        [("database", &self.database), ("cache", &self.cache)]
    }

    /// Checks that the report is true: after an `ok` run the cache equals the database; any other run names a
    /// connection.
    async fn check(&self, run: &Value, fault: &str) {
        if run["outcome"] == "ok" {
            self.shop.assert_warm().await;
            return;
        }
        let expected = [
            "tenants",
            "database_unavailable",
            "statement_timeout",
            "cache_unavailable",
            "deadline",
        ];
        let kinds = failure_kinds(run);
        assert!(
            !kinds.is_empty() && kinds.iter().all(|kind| expected.contains(kind)),
            "{fault}: {run}"
        );
    }
}

/// After how many bytes of a run a fault comes: in the first answer, in the middle of a value, near the end
/// of what a run sends or receives. Some offsets are beyond the end of a direction.
const OFFSETS: [u32; 8] = [0, 1, 60, 700, 2_500, 9_000, 25_000, 40_000];

#[tokio::test]
async fn hazard_29_a_connection_that_is_cut_anywhere_costs_a_run_at_most() {
    let apart = Apart::start("").await;
    let reader = apart.shop.reader();
    for (name, proxy) in apart.proxies() {
        for direction in [Direction::ToServer, Direction::ToClient] {
            for bytes in OFFSETS {
                let fault = format!("{name} {direction:?} cut after {bytes}");
                apart.shop.change().await;
                proxy.cut_after(direction, bytes);
                let run = apart.worker.warm("items").await;
                apart.check(&run, &fault).await;
                proxy.heal();
                let next = apart.worker.warm("items").await;
                assert_eq!(next["outcome"], "ok", "{fault}: {next}");
                apart.shop.assert_warm().await;
            }
        }
    }
    reader.stop().await;
}

#[tokio::test]
async fn hazard_29_a_connection_that_stalls_anywhere_costs_a_run_at_most() {
    let apart = Apart::start("timeout = \"3s\"\nretries = 1").await;
    let reader = apart.shop.reader();
    for (name, proxy) in apart.proxies() {
        for (direction, bytes) in [
            (Direction::ToServer, 0),
            (Direction::ToServer, 2_500),
            (Direction::ToClient, 60),
            (Direction::ToClient, 9_000),
        ] {
            let fault = format!("{name} {direction:?} stalled after {bytes}");
            apart.shop.change().await;
            proxy.stall_after(direction, bytes);
            let run = apart.worker.warm("items").await;
            proxy.heal();
            apart.check(&run, &fault).await;
            recovers(&apart.worker, &apart.shop).await;
        }
    }
    reader.stop().await;
}

#[tokio::test]
async fn slow_connections_are_only_slow() {
    let apart = Apart::start("").await;
    for (_, proxy) in apart.proxies() {
        proxy.set(Mode::Slow(Duration::from_millis(3)));
    }
    apart.shop.change().await;
    let run = apart.worker.warm("items").await;
    assert_eq!(run["outcome"], "ok", "{run}");
    apart.shop.assert_warm().await;
}
