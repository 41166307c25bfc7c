//! Tenants whose ids or values contain the text that separates the parts of their keys.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::program::Preheat;
use crate::support::shop::{Shop, TOKEN, failure_kinds};

/// Each shop has a list of all its products, and one for each category.
const PRODUCTS: &str = r#"
schedule = "every 1h"
ttl = "3h"
timeout = "1m"
batch = 1
on_start = false
[query]
sql = "select tenant_id, category, name from products where tenant_id = any($1) order by name"
[[keys]]
key = "items:{tenant_id}:all"
[[keys]]
key = "items:{tenant_id}:{category}"
[encode]
omit = ["category"]
"#;

/// Tenants `a`, `a:b` and `c`. The category `b:x` of `a` and the category `x` of `a:b` have the same key. So
/// have all products of `a:b` and the category `b:all` of `a`.
async fn shop() -> Shop {
    let shop = Shop::open(1).await;
    shop.execute(
        "drop table items; delete from tenants; alter table tenants alter id type text;
         insert into tenants (id) values ('a'), ('a:b'), ('c');
         create table products (tenant_id text not null, category text not null, name text not null);
         insert into products values ('a', 'x', 'a1'), ('a', 'b:x', 'a2'), ('a', 'b:all', 'a3'),
           ('a:b', 'x', 'b1'), ('a:b', 'y', 'b2'), ('c', 'x', 'c1')",
    )
    .await;
    shop
}

fn tool(shop: &Shop, arguments: &[&str]) -> Preheat {
    crate::support::program::preheat(arguments.iter().copied())
        .database(shop.url())
        .cache(shop.redis.url())
        .env("PREHEAT_HTTP__TOKEN", TOKEN)
        .job("products", PRODUCTS)
}

/// Fails the test if a key holds rows of two tenants, or of a tenant that does not own it.
async fn assert_own_rows(shop: &Shop, owners: &[(&str, &str)]) {
    let cached = shop.cached().await;
    let owner = |value: &Value| -> Vec<String> {
        let rows = value.as_array().unwrap().iter();
        rows.map(|row| row["tenant_id"].as_str().unwrap().to_owned()).collect()
    };
    let found: BTreeMap<&str, Vec<String>> =
        cached.iter().map(|(key, value)| (key.as_str(), owner(value))).collect();
    let keys: Vec<&str> = found.keys().copied().collect();
    let mut expected: Vec<&str> = owners.iter().map(|(key, _)| *key).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected, "{found:?}");
    for (key, tenant) in owners {
        assert!(found[key].iter().all(|owner| owner == tenant), "`{key}`: {found:?}");
    }
}

/// The unambiguous keys. `items:a:b:x` belongs to `a`, since an id ends as early as it can; `items:a:b:all`
/// could be either tenant's, and belongs to none.
const OF_A: [(&str, &str); 3] = [("items:a:all", "a"), ("items:a:x", "a"), ("items:a:b:x", "a")];
const OF_C: [(&str, &str); 2] = [("items:c:all", "c"), ("items:c:x", "c")];

#[tokio::test]
async fn hazard_37_a_key_never_holds_another_tenants_rows_in_any_batch_or_run() {
    let shop = shop().await;
    let worker = shop.serve().job("products", PRODUCTS).start();
    worker.answers("/readyz", 200).await;
    for _ in 0..2 {
        let run = worker.warm("products").await;
        assert_eq!(run["outcome"], "partial", "{run}");
        assert_eq!(
            run["report"]["tenants"],
            json!({"total": 3, "ok": 1, "failed": 2, "fenced": 0})
        );
        assert_eq!(failure_kinds(&run), ["ambiguous_key"]);
        assert_own_rows(&shop, &[&OF_A[..], &OF_C[..]].concat()).await;
        // Each alone and in the other order: each is a run of its own.
        for tenant in ["a:b", "a", "a:b"] {
            let request = json!({"tenants": [tenant], "wait": true});
            let run = worker.post("/api/v1/jobs/products/runs", &request).await.json();
            assert_eq!(run["report"]["failures"][0]["tenant"], tenant, "{run}");
            assert_own_rows(&shop, &[&OF_A[..], &OF_C[..]].concat()).await;
        }
    }
    shop.execute("delete from products where category = 'b:all'").await;
    let run = worker.warm("products").await;
    assert_eq!(run["report"]["tenants"], json!({"total": 3, "ok": 2, "failed": 1, "fenced": 0}));
    assert_eq!(run["report"]["failures"][0]["tenant"], "a:b", "{run}");
}

#[tokio::test]
async fn hazard_37_a_tenants_keys_are_removed_without_those_of_another() {
    let shop = shop().await;
    tool(&shop, &["warm"]).run().await.expect_code(1);
    assert_own_rows(&shop, &[&OF_A[..], &OF_C[..]].concat()).await;
    // The tenant has no key that is only its own.
    tool(&shop, &["invalidate", "--tenant", "a:b"]).run().await.expect_code(0);
    assert_own_rows(&shop, &[&OF_A[..], &OF_C[..]].concat()).await;
    let audit = tool(&shop, &["audit", "--quick", "--json"]).run().await.json();
    assert_eq!(audit["jobs"][0]["orphaned"], 0, "{audit}");

    // The sweep of a departed tenant.
    shop.execute("update tenants set status = 'gone' where id = 'a:b'").await;
    let sweep = tool(&shop, &["warm"]).env("PREHEAT_TENANTS__MAX_SHRINK", "100%");
    sweep.run().await.expect_code(1);
    assert_own_rows(&shop, &[&OF_A[..], &OF_C[..]].concat()).await;
    tool(&shop, &["invalidate", "--tenant", "a"]).run().await.expect_code(0);
    assert_own_rows(&shop, &OF_C).await;
}

#[tokio::test]
async fn hazard_37_what_stands_in_a_place_of_two_tenants_is_touched_by_neither() {
    let shop = shop().await;
    // The state that an earlier version left: the other tenant's manifest names the key.
    let mut cache = shop.cache().await;
    let theirs = "[{\"tenant_id\":\"a\",\"name\":\"a2\"}]";
    let () = redis::cmd("SET")
        .arg(&["items:a:b:x", theirs, "EX", "3600"])
        .query_async(&mut cache)
        .await
        .unwrap();
    let now = shop.number("select (extract(epoch from now()) * 1000)::int8").await.to_string();
    let () = redis::cmd("ZADD")
        .arg(&["preheat:manifest:products:a:b", &now, "items:a:b:x"])
        .query_async(&mut cache)
        .await
        .unwrap();
    shop.execute("delete from products where tenant_id = 'a:b'").await;
    let warm = ["warm", "--tenant", "a:b"];
    tool(&shop, &warm).run().await.expect_code(1);
    assert_eq!(shop.value("items:a:b:x").await.as_deref(), Some(theirs));
    tool(&shop, &["invalidate", "--tenant", "a:b"]).run().await.expect_code(0);
    assert_eq!(shop.value("items:a:b:x").await.as_deref(), Some(theirs));
}
