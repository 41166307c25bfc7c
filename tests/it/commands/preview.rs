//! `preheat preview`.

use serde_json::Value;

use super::{GLOBAL, PETS, SERVICES, servers};
use crate::support::preheat;

/// Two keys a tenant, one of them a data key.
const PRODUCTS: &str = r#"
schedule = "every 15m"
ttl = "1h"
[query]
sql = "select tenant_id, category, name, price from products where tenant_id = any($1) order by name, id"
[[keys]]
key = "products:{tenant_id}:all"
[[keys]]
key = "products:{tenant_id}:{category}"
[encode]
omit = ["tenant_id"]
"#;

#[tokio::test]
async fn a_preview_shows_what_a_client_reads_after_a_run_and_writes_nothing() {
    let servers = servers().await;
    let run = |arguments: &[&'static str]| {
        let program = servers.preheat(arguments.iter().copied());
        let program = program.settings("[cache]\nprefix = \"r1:\"\n").job("products", PRODUCTS);
        program.job("services", SERVICES).job("pets", PETS).job("fleet", GLOBAL)
    };
    let mut previews = Vec::new();
    for job in ["products", "services", "pets", "fleet"] {
        // It needs no cache at all.
        let preview = run(&["preview", "--json", "--limit", "1000", job]).cache("");
        previews.push(preview.run().await.expect_code(0).json());
    }
    assert!(servers.values().await.is_empty());
    run(&["warm"]).run().await.expect_code(0);
    let warm = servers.values().await;
    for preview in &previews {
        let keys = preview["keys"].as_array().unwrap();
        assert!(!keys.is_empty(), "{preview}");
        assert_eq!(preview["key_count"], keys.len());
        for key in keys {
            let name = key["key"].as_str().unwrap();
            let text = warm.get(name).unwrap_or_else(|| panic!("{name} in {warm:?}"));
            assert_eq!(key["value"], serde_json::from_str::<Value>(text).unwrap(), "{name}");
            assert_eq!(key["bytes"], text.len(), "{name}");
            let ttl = key["ttl_seconds"].as_f64().unwrap();
            let longest = if name == "r1:fleet" { 3.0 * 3600.0 } else { 3600.0 };
            assert!(ttl <= longest && ttl >= longest * 0.9, "{name}: {ttl}");
        }
    }
    assert_eq!(previews[3]["tenant"], Value::Null);
    assert_eq!(previews[2]["keys"][0]["kind"], "shared");

    let text = run(&["preview", "products", "--limit", "1"]).run().await.expect_code(0).stdout;
    let first = &previews[0]["keys"][0];
    let value = warm[first["key"].as_str().unwrap()].as_str();
    assert!(text.contains("(the first one)") && text.contains("nothing is written"), "{text}");
    assert!(text.contains(first["key"].as_str().unwrap()) && text.contains(value), "{text}");
    assert!(text.contains("static key, lives ") && text.contains("` shows all"), "{text}");
}

#[tokio::test]
async fn a_preview_is_of_the_tenant_that_is_named_and_only_of_an_active_one() {
    let servers = servers().await;
    let mut connection = servers.database.connect().await;
    let sql =
        "select id::text from tenants where status = 'active' order by created_at, id offset 1";
    let second: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let sql = "select id::text from tenants where status <> 'active'";
    let passive: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let run = async |arguments: &[&str], code| {
        let program = servers.preheat(["preview"].into_iter().chain(arguments.iter().copied()));
        let program = program.job("services", SERVICES).job("fleet", GLOBAL);
        program.run().await.expect_code(code)
    };
    let named = run(&["services", "--tenant", &second], 0).await.stdout;
    assert!(named.contains(&format!("\nservices:{second}\n")), "{named}");
    let refusals: [(&[&str], &str); 5] = [
        (&["service"], "there is no job `service` in `jobs`\n  hint: did you mean `services`?"),
        (&["services", "--tenant", &passive], "the tenant query does not return the tenant `"),
        (&["services", "--tenant", "no uuid"], "does not return the tenant `no uuid`\n  hint: "),
        (&["fleet", "--tenant", &second], "job `fleet` has no tenants"),
        (&["services", "--limit", "0"], "'--limit <N>'"),
    ];
    for (arguments, message) in refusals {
        let output = run(arguments, 2).await;
        assert_eq!(output.stdout, "");
        assert!(output.stderr.contains(message), "{arguments:?}: {}", output.stderr);
    }
    preheat(["preview", "services"])
        .job("services", SERVICES)
        .database("postgres://127.0.0.1:1/shop")
        .run()
        .await
        .expect_code(3);
}

#[tokio::test]
async fn a_preview_lets_no_query_write_and_names_what_a_run_could_not() {
    let servers = servers().await;
    let job = SERVICES.replace(
        "select tenant_id, id, name, price from services where tenant_id = any($1) order by name, id",
        "delete from services where tenant_id = any($1) returning tenant_id, name",
    );
    let preview = servers.preheat(["preview", "services"]).job("services", &job);
    let output = preview.env("PREHEAT_DATABASE__READ_ONLY", "false").run().await.expect_code(2);
    assert!(output.stderr.contains("(25006)"), "{}", output.stderr);

    let small = format!("{SERVICES}max_bytes = 2\n");
    let preview = servers.preheat(["preview", "services"]).job("services", &small);
    let output = preview.run().await.expect_code(1);
    assert!(output.stdout.contains("cannot be written: "), "{}", output.stdout);
    servers.database.execute("update tenants set status = 'suspended'").await;
    let preview = servers.preheat(["preview", "services"]).job("services", SERVICES);
    let output = preview.run().await.expect_code(2);
    assert!(output.stderr.contains("the tenant query returns no tenant"), "{}", output.stderr);
}
