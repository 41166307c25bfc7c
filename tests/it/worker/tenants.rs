//! Tenants that are switched off, and a tenant list that is wrong.

use redis::AsyncCommands;
use serde_json::Value;

use crate::support::program::Preheat;
use crate::support::shop::{QUERY, Shop, failure_kinds};
use crate::support::{LONG, eventually, preheat};

/// The items of a tenant, all together and one by one.
fn items() -> String {
    format!(
        "schedule = \"every 1h\"\nttl = \"3h\"\n[query]\nsql = '''{QUERY}'''\n\
         [[keys]]\nkey = \"items:{{tenant_id}}\"\n[[keys]]\nkey = \"item:{{tenant_id}}:{{id}}\"\n\
         [encode]\nomit = [\"tenant_id\"]\n"
    )
}

/// All keys of a tenant in the cache, except its fence.
async fn keys_of(shop: &Shop, tenant: u32) -> Vec<String> {
    let all: Vec<String> = shop.cache().await.keys("*").await.unwrap();
    let (whole, each) = (format!("items:{tenant}"), format!("item:{tenant}:"));
    all.into_iter().filter(|key| *key == whole || key.starts_with(&each)).collect()
}

fn pass(shop: &Shop) -> Preheat {
    preheat(["warm"]).database(shop.url()).cache(shop.redis.url()).job("items", &items())
}

#[tokio::test]
async fn hazard_09_a_tenant_that_is_switched_off_loses_its_keys_at_the_next_run() {
    let shop = Shop::open(6).await;
    let mut worker = shop.serve().job("items", &items()).start();
    worker.answers("/readyz", 200).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    assert_eq!(keys_of(&shop, 4).await.len(), 1 + 20);
    shop.execute("update tenants set status = 'suspended' where id = 4").await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    eventually("its keys are gone", LONG, async || keys_of(&shop, 4).await.is_empty()).await;
    assert_eq!(keys_of(&shop, 5).await.len(), 21);
    let removed = "preheat_keys_total{job_name=\"items\",outcome=\"removed\"}";
    worker.metric_becomes(removed, |keys| keys >= 21.0).await;
    assert_eq!(worker.metric(removed).await, Some(21.0));
    worker.says("not active any more since the last list: 1; 21 keys").await;

    shop.execute("update tenants set status = 'active' where id = 4").await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    assert_eq!(keys_of(&shop, 4).await.len(), 21);
    shop.execute("update tenants set status = 'suspended' where id = 4").await;
    pass(&shop).run().await.expect_code(0);
    assert_eq!(keys_of(&shop, 4).await, [""; 0], "a single pass does the same");
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_08_a_list_that_shrank_fails_runs_and_removes_nothing_until_somebody_says_it_is_right()
 {
    let shop = Shop::open(10).await;
    let worker = shop.serve().job("items", &items()).start();
    worker.answers("/readyz", 200).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    let before = shop.cached().await;
    for wrong in ["id > 3", "true"] {
        shop.execute(&format!("update tenants set status = 'suspended' where {wrong}")).await;
        shop.change().await;
        let run = worker.warm("items").await;
        assert_eq!(
            (&run["outcome"], failure_kinds(&run)),
            (&"failed".into(), vec!["tenants_shrank"])
        );
        assert_eq!(shop.cached().await, before, "{wrong}");
        let output = pass(&shop).run().await.expect_code(1);
        let said = "`preheat warm` once with `PREHEAT_TENANTS__MAX_SHRINK=100%`";
        assert!(output.stderr.contains(said), "{}", output.stderr);
        assert_eq!(shop.cached().await, before, "{wrong}");
    }
    let ended = &worker.runs("items").await[0];
    let message: &Value = &ended["report"]["failures"][0]["message"];
    let numbers = "10 of 10 tenants are missing from the tenant list, more than";
    assert!(message.as_str().is_some_and(|message| message.starts_with(numbers)), "{message}");

    shop.execute("update tenants set status = 'active' where id <= 3").await;
    pass(&shop).env("PREHEAT_TENANTS__MAX_SHRINK", "100%").run().await.expect_code(0);
    shop.assert_warm().await;
    assert_eq!(shop.cached().await.len(), 3);
    assert_eq!(keys_of(&shop, 7).await, [""; 0]);
    assert_eq!(worker.warm("items").await["outcome"], "ok", "and the worker goes on");
}
