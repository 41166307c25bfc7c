//! `preheat plan`.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use serde_json::{Value, json};

use super::{FLEET, SERVICES, Servers, servers};
use crate::support::program::Preheat;
use crate::support::{self, preheat};

const NIGHTLY: &str = r#"
description = "Rests at night."
schedule = "*/10 8-17 * * 1-5"
timezone = "Europe/Berlin"
ttl = "4d"
ttl_jitter = "0%"
overlap = "queue"
on_start = false
required = true
retries = 1
[query]
sql = "select tenant_id, category, name from products where tenant_id = any($1)"
[[keys]]
key = "nightly:{tenant_id}:{category}"
[encode]
profile = "node-postgres"
case = "camel"
omit = ["tenant_id"]
columns = { name = "string" }
max_bytes = "1MB"
"#;

fn shipped(servers: &Servers, arguments: &[&str]) -> Preheat {
    servers.preheat(arguments.iter().copied()).shipped_jobs()
}

#[tokio::test]
async fn what_would_happen_is_shown_and_nothing_happens() {
    let servers = servers().await;
    let plan = servers.preheat(["plan"]).job("services", SERVICES).job("fleet", FLEET);
    let disabled = SERVICES.replacen("ttl", "enabled = false\nttl", 1).replace("services:", "old:");
    let plan = plan.job("nightly", NIGHTLY).job("retired", &disabled);
    let output = plan.run().await.expect_code(0);
    assert_eq!(output.stderr, "");
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[due]");
    settings.add_filter(r"\d+ runs: .*", "[a day]");
    settings.bind(|| insta::assert_snapshot!(output.stdout));

    assert!(servers.values().await.is_empty(), "nothing was written to the cache");
    let schemas = servers.texts("select nspname::text from pg_namespace where nspname = 'preheat'");
    assert!(schemas.await.is_empty(), "nothing was written to the database");
}

#[tokio::test]
async fn the_numbers_are_those_of_the_pass_that_follows() {
    let servers = servers().await;
    let plan = shipped(&servers, &["plan", "--json"]).run().await.expect_code(0).json();
    let pass = shipped(&servers, &["warm", "--json"]).run().await.expect_code(0).json();
    let values = servers.values().await;
    let jobs: BTreeMap<&str, &Value> = pass["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| (job["job"].as_str().unwrap(), &job["report"]))
        .collect();
    let planned = plan["jobs"].as_array().unwrap();
    assert_eq!(planned.len(), jobs.len());
    for planned in planned {
        let name = planned["job"]["name"].as_str().unwrap();
        let report = jobs[name];
        assert_eq!(planned["tenants"], report["tenants"]["ok"], "{name}");
        assert_eq!(planned["tenants"], planned["sampled_tenants"], "{name}");
        assert_eq!(planned["run"]["queries"], report["queries"], "{name}");
        assert_eq!(planned["run"]["keys"], report["keys"]["written"], "{name}");
        assert_eq!(planned["run"]["cache_commands"], report["keys"]["written"], "{name}");
        let prefix = if name == "pets" { "pet:".to_owned() } else { format!("{name}:") };
        let written = values.iter().filter(|(key, _)| key.starts_with(&prefix));
        let bytes: usize = written.map(|(key, value)| key.len() + value.len()).sum();
        assert_eq!(planned["run"]["bytes"], bytes, "{name}");
        let (run, day) = (&planned["run"]["keys"], &planned["day"]["keys"]);
        let runs = planned["runs_a_day"].as_u64().unwrap();
        assert_eq!(day.as_u64().unwrap(), runs * run.as_u64().unwrap(), "{name}");
    }
    assert_eq!(plan["total"]["keys"], values.len());
    assert_eq!(plan["maxmemory"], Value::Null);
}

#[tokio::test]
async fn due_times_are_the_next_five_and_a_five_field_cron_is_to_the_minute() {
    let servers = servers().await;
    let before = Utc::now();
    let plan =
        servers.preheat(["plan", "--json"]).job("services", SERVICES).job("nightly", NIGHTLY);
    let plan = plan.run().await.expect_code(0).json();
    let due = |job: usize| -> Vec<DateTime<Utc>> {
        serde_json::from_value(plan["jobs"][job]["next_due"].clone()).unwrap()
    };
    let (nightly, services) = (due(0), due(1));
    assert_eq!((nightly.len(), services.len()), (5, 5));
    assert!(nightly.iter().all(|at| at.second() == 0 && at.minute() % 10 == 0), "{nightly:?}");
    assert!(nightly.windows(2).all(|pair| pair[0] < pair[1]), "{nightly:?}");
    assert!(services[0] > before && services[0] <= Utc::now() + TimeDelta::minutes(15));
    assert!(services.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(15)));
    assert_eq!(
        plan["jobs"][0]["job"]["schedule"],
        "*/10 8-17 * * 1-5 in Europe/Berlin, to the minute"
    );
    assert_eq!(plan["jobs"][1]["runs_a_day"], 96);
    let encode = json!({
        "profile": "node-postgres", "case": "camel", "omit": ["tenant_id"],
        "columns": { "name": "string" }, "max_bytes": 1_000_000,
    });
    assert_eq!(plan["jobs"][0]["job"]["encode"], encode);
}

#[tokio::test]
async fn hazard_21_the_share_of_maxmemory_is_told() {
    let mut servers = servers().await;
    servers.redis = support::redis_with(&[("maxmemory", "10mb")]);
    let plan = shipped(&servers, &["plan", "--json"]).run().await.expect_code(0).json();
    let most = 10 * 1024 * 1024;
    assert_eq!(plan["maxmemory"], most);
    let (keys, bytes) = (&plan["total"]["keys"], &plan["total"]["bytes"]);
    let memory = bytes.as_f64().unwrap() + keys.as_f64().unwrap() * 120.0;
    let share = plan["share_of_maxmemory"].as_f64().unwrap();
    assert!((share - memory / f64::from(most)).abs() < 1e-9, "{share}");
    let text = shipped(&servers, &["plan"]).run().await.expect_code(0).stdout;
    let said = format!("share of the cache's maxmemory: {:.1}% of 10.49 MB\n", share * 100.0);
    assert!(text.ends_with(&said), "{text}");
}

#[tokio::test]
async fn a_plan_that_cannot_be_made_says_why() {
    let servers = servers().await;
    let plan = servers.preheat(["plan", "menu"]).job("services", SERVICES);
    plan.run().await.expect_code(2);
    let broken = SERVICES.replace("id, name", "id, nam");
    let plan = servers.preheat(["plan"]).job("services", &broken).run().await.expect_code(2);
    insta::assert_snapshot!(plan.stderr, @r#"
    error: could not read the rows of job `services`: column "nam" does not exist (42703) at character 23 of the query; hint: Perhaps you meant to reference the column "services.name".
    "#);
    let plan = preheat(["plan"]).job("services", SERVICES);
    let plan = plan.cache(servers.redis.url()).database("postgres://127.0.0.1:1/shop");
    plan.run().await.expect_code(3);
}
