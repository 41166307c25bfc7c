//! `preheat plan`.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use preheat::engine::ports::STATS_COMMANDS;
use preheat_sandbox::Clinic;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{GLOBAL, SERVICES, Servers, servers};
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
order = ["name collate c asc", "category DESC nulls last"]
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
    let plan = servers.preheat(["plan"]).job("services", SERVICES).job("fleet", GLOBAL);
    let disabled = SERVICES.replacen("ttl", "enabled = false\nttl", 1).replace("services:", "old:");
    // On every day, and without summer time: it is due 60 times in any 24 hours.
    let daily = NIGHTLY.replace("1-5", "*").replace("Europe/Berlin", "Africa/Johannesburg");
    let plan = plan.job("nightly", &daily).job("retired", &disabled);
    let output = plan.run().await.expect_code(0);
    assert_eq!(output.stderr, "");
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[due]");
    settings.add_filter(r"127\.0\.0\.1:\d+", "[address]");
    // The server gives memory of idle connections back.
    settings.add_filter(r"[\d.]+ MiB in use (.*)\([\d.]+ MiB now\)", "[warm] in use $1([now] now)");
    settings.add_filter(r"pages   .* rows? in ", "pages        [pages] in ");
    settings.add_filter(r"(?m)^  scattered .*\n", "");
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

/// A clinic that is large enough for its bytes to matter, and an empty cache.
async fn large_clinic(settings: &[(&str, &str)]) -> Servers {
    let database = support::database().await;
    Clinic::demo(200).load(&database.url()).await.unwrap();
    Servers { database, redis: support::redis_with(settings) }
}

/// A number from the server's `INFO`.
pub(super) async fn info(cache: &mut MultiplexedConnection, name: &str) -> u64 {
    let text: String = redis::cmd("INFO").query_async(cache).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().trim().parse().unwrap()
}

/// How often the server has run each command since the last call, without the commands of connecting.
async fn commands(servers: &Servers) -> BTreeMap<String, u64> {
    let mut cache = servers.cache().await;
    let mut calls = support::commands(&mut cache).await;
    support::forget_commands(&mut cache).await;
    let connecting = |name: &str| ["client", "hello", "config", "select", "ping"].contains(&name);
    calls.retain(|name, _| !connecting(name.split('|').next().unwrap()));
    calls
}

#[tokio::test]
async fn hazard_21_the_bytes_are_those_that_the_cache_takes() {
    let servers = large_clinic(&[]).await;
    let plan = shipped(&servers, &["plan", "--json"]).run().await.expect_code(0).json();
    let before = info(&mut servers.cache().await, "used_memory").await;
    shipped(&servers, &["warm"]).run().await.expect_code(0);
    let taken = info(&mut servers.cache().await, "used_memory").await - before;
    let memory = &plan["memory"];
    assert_eq!(memory["present"], 0);
    let planned = memory["keys"].as_u64().unwrap() + memory["upkeep"].as_u64().unwrap();
    assert!(planned.abs_diff(taken) * 10 < taken, "planned {planned}, taken {taken}: {plan:#}");
    let jobs: u64 =
        plan["jobs"].as_array().unwrap().iter().map(|job| job["memory"].as_u64().unwrap()).sum();
    assert_eq!(memory["keys"], jobs);

    // Warming again overwrites the existing keys.
    let again = shipped(&servers, &["plan", "--json"]).run().await.expect_code(0).json();
    let present = again["memory"]["present"].as_u64().unwrap();
    assert!(present.abs_diff(planned) * 20 < planned, "{present} of {planned}: {again:#}");
    let (used, warm) = (&again["memory"]["used"], &again["memory"]["used_when_warm"]);
    let (used, warm) = (used.as_u64().unwrap(), warm.as_u64().unwrap());
    assert!(used.abs_diff(warm) * 20 < used, "{again:#}");
}

#[tokio::test]
async fn hazard_21_the_commands_are_those_that_are_sent() {
    /// Commands of a program that warms once: it reads the registry, reads the server's stats and the markers
    /// before and after, and renews the markers' TTL.
    const LOOK_AT_REGISTRY: u64 = 2;
    const LOOKS_AT_CACHE: u64 = 2 * (STATS_COMMANDS as u64 + 1) + 8;
    let servers = servers().await;
    commands(&servers).await;
    let plan = shipped(&servers, &["plan", "--json"]).run().await.expect_code(0).json();
    let written: Vec<_> = commands(&servers).await.into_keys().collect();
    assert_eq!(written, ["get", "hscan", "info", "mget", "pttl"], "a plan only reads");

    let jobs = plan["jobs"].as_array().unwrap();
    let mut first_pass = 0;
    for job in jobs {
        let name = job["job"]["name"].as_str().unwrap();
        shipped(&servers, &["warm", name]).run().await.expect_code(0);
        first_pass += commands(&servers).await.values().sum::<u64>();
    }
    let programs = jobs.len() as u64;
    let expected = plan["first_pass_cache_commands"].as_u64().unwrap();
    assert_eq!(
        first_pass,
        expected + (programs - 1) * LOOK_AT_REGISTRY + programs * LOOKS_AT_CACHE
    );

    for job in jobs {
        let name = job["job"]["name"].as_str().unwrap();
        shipped(&servers, &["warm", name]).run().await.expect_code(0);
        let sent = commands(&servers).await;
        let planned = job["run"]["cache_commands"].as_u64().unwrap();
        let total: u64 = sent.values().sum();
        assert_eq!(total, planned + LOOK_AT_REGISTRY + LOOKS_AT_CACHE, "{name}: {sent:?}");
    }
}

#[tokio::test]
async fn hazard_21_what_does_not_fit_is_said_and_what_is_in_the_cache_counts() {
    let servers = large_clinic(&[("maxmemory", "64mb"), ("maxmemory-policy", "allkeys-lru")]).await;
    let plan = async |arguments: &[&str]| shipped(&servers, arguments).run().await;
    let json = plan(&["plan", "--json"]).await.expect_code(0).json();
    assert_eq!((&json["maxmemory"], &json["fits"]), (&json!(64 << 20), &json!(true)));
    let text = plan(&["plan"]).await.expect_code(0).stdout;
    assert!(text.contains("% of 64.00 MiB\n") && !text.contains("fit:"), "{text}");

    let mut cache = servers.cache().await;
    let bound = async |bytes: u64| {
        let mut cache = servers.cache().await;
        let set = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).to_owned();
        let () = set.query_async(&mut cache).await.unwrap();
    };
    let warm = json["memory"]["used_when_warm"].as_u64().unwrap();
    bound(warm * 10 / 9).await;
    let text = plan(&["plan"]).await.expect_code(0).stdout;
    assert!(text.contains("; it is tight: "), "{text}");
    bound(warm * 9 / 10).await;
    let text = plan(&["plan"]).await.expect_code(1).stdout;
    assert!(text.contains("; it does not fit: "), "{text}");
    let json = plan(&["plan", "--json"]).await.expect_code(1).json();
    assert_eq!(json["fits"], false);
    assert!(json["share_of_maxmemory"].as_f64().unwrap() > 1.0, "{json:#}");

    // Keys of another application take up memory.
    bound(warm * 10 / 9).await;
    let () = cache.set("sessions", vec![b'x'; usize::try_from(warm / 5).unwrap()]).await.unwrap();
    plan(&["plan"]).await.expect_code(1);
}

#[tokio::test]
async fn a_plan_goes_on_past_tenants_that_cannot_be_read_and_names_them() {
    let servers = servers().await;
    servers.database.execute("alter table services add column note text").await;
    let active = servers.active().await;
    let with_services = servers.texts("select distinct tenant_id::text from services").await;
    let broken = active.iter().filter(|id| with_services.contains(id)).skip(2).take(2);
    let broken: Vec<&String> = broken.collect();
    let ids = format!("('{}', '{}')", broken[0], broken[1]);
    let sql = format!("update services set note = 'none' where tenant_id in {ids}");
    servers.database.execute(&sql).await;
    let job = SERVICES.replace("name, price", "name, price, note::int");
    let output = servers.preheat(["plan"]).job("services", &job).run().await.expect_code(0);
    let [first, second] = [&broken[0], &broken[1]];
    let said = format!(
        "  will fail    query, 2 in the sample, tenants `{first}`, `{second}`: could not read the rows \
         of job `services`: invalid input syntax for type integer: \"none\" (22P02)\n"
    );
    assert!(output.stdout.contains(&said), "{}", output.stdout);
    let plan = servers.preheat(["plan", "--json"]).job("services", &job);
    let plan = plan.run().await.expect_code(0).json();
    let planned = &plan["jobs"][0];
    assert_eq!(planned["troubles"][0]["tenants"], json!(broken));
    assert_eq!(planned["tenants"], active.len());
    assert_eq!(planned["sampled_tenants"], active.len() - 2);
    assert_eq!(planned["unread_tenants"], 0);
}

#[tokio::test]
async fn a_plan_gives_up_on_finding_every_one_of_many_broken_tenants() {
    let servers = servers().await;
    let sql = "insert into tenants (id, name, timezone, status)
      select gen_random_uuid(), 'n' || n, 'UTC', 'active' from generate_series(1, 270) n";
    servers.database.execute(sql).await;
    // The query fails for every second tenant.
    let job = SERVICES.replace(
        "select tenant_id, id, name, price from services where tenant_id = any($1) order by name, id",
        "select id as tenant_id, 1 / (('x' || substr(md5(id::text), 1, 2))::bit(8)::int % 2) as n \
         from tenants where id = any($1)",
    );
    let plan = servers.preheat(["plan", "--json"]).job("services", &job);
    let plan = plan.run().await.expect_code(0).json();
    let planned = &plan["jobs"][0];
    let trouble = &planned["troubles"][0];
    assert_eq!(trouble["tenants"].as_array().unwrap().len(), 10);
    assert!(trouble["count"].as_u64().unwrap() > 10, "{trouble}");
    assert!(planned["unread_tenants"].as_u64().unwrap() > 100, "{planned:#}");
    assert!(planned["run"]["keys"].as_u64().unwrap() > 0, "{planned:#}");
}

#[tokio::test]
async fn a_plan_fits_a_terminal_of_eighty_columns() {
    let servers = servers().await;
    let Some(plan) = shipped(&servers, &["plan"]).on_terminal(80) else {
        return support::skipped("there is no `script` of util-linux");
    };
    let output = plan.run().await.expect_code(0);
    for line in output.stdout.lines() {
        assert!(line.trim_end().chars().count() <= 80, "{line}");
    }
    assert!(output.stdout.contains("next due"), "{}", output.stdout);
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

#[tokio::test]
async fn hazard_41_a_plan_writes_nothing_even_where_runs_may() {
    let servers = servers().await;
    let writes = SERVICES.replace("select tenant_id, id, name, price from", "delete from");
    let writes = writes.replace(" order by name, id", " returning tenant_id, id, name, price");
    let before = servers.texts("select id::text from services order by id").await;
    let plan = servers.preheat(["plan"]).env("PREHEAT_DATABASE__READ_ONLY", "false");
    let output = plan.job("services", &writes).run().await.expect_code(2);
    assert!(output.stderr.contains("read-only transaction"), "{}", output.stderr);
    assert_eq!(servers.texts("select id::text from services order by id").await, before);
}

/// A job with what the change feed needs to hear of every change.
fn watched() -> String {
    format!("tables = [\"services\", {{ name = \"tenants\", tenant = \"id\" }}]\n{SERVICES}")
}

async fn install(servers: &Servers) {
    let install = servers.preheat(["changes", "install"]).job("services", &watched());
    install.run().await.expect_code(0);
}

/// The lines of a plan with one of these names.
fn lines<'o>(output: &'o str, names: &[&str]) -> Vec<&'o str> {
    let is_named = |line: &&str| names.iter().any(|name| line.starts_with(&format!("  {name} ")));
    output.lines().filter(is_named).collect()
}

#[tokio::test]
async fn a_plan_shows_what_changes_cost_a_worker_and_what_a_rarer_schedule_would_save() {
    let servers = servers().await;
    install(&servers).await;
    let worker = servers.preheat(["serve"]).job("services", &watched()).start();
    worker.works().await;
    worker.metric_becomes("preheat_change_feed_connected", |value| value > 0.0).await;
    servers.database.execute("update services set price = price + 1").await;
    let changes = "preheat_queries_total{job_name=\"services\",trigger=\"change\"}";
    worker.metric_becomes(changes, |value| value > 0.0).await;

    let plan = |arguments: &[&str]| {
        let plan = servers.preheat(arguments.iter().copied()).job("services", &watched());
        plan.env("PREHEAT_HTTP__LISTEN", worker.address().to_string())
    };
    let json = plan(&["plan", "--json"]).run().await.expect_code(0).json();
    let job = &json["jobs"][0];
    assert!(job["changes"]["queries"].as_u64().unwrap() > 0, "{job:#}");
    assert!(job["changes"]["bytes"].as_u64().unwrap() > 0, "{job:#}");
    assert_eq!(job["changes"]["day"], Value::Null, "a worker of seconds shows no rate");
    assert_eq!(job["feed"], json!({ "hears_all": true, "reason": null }));
    assert_eq!(job["rarer"]["runs_a_day"], 3);
    let saved = job["rarer"]["saves"]["queries"].as_u64().unwrap();
    let day = job["day"]["queries"].as_u64().unwrap();
    assert_eq!(saved * 96, day * 93, "{job:#}");
    let started: DateTime<Utc> =
        serde_json::from_value(json["worker"]["counting_since"].clone()).unwrap();
    assert!((Utc::now() - started) < TimeDelta::minutes(5), "{started}");

    let text = plan(&["plan"]).run().await.expect_code(0).stdout;
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"127\.0\.0\.1:\d+", "[address]");
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[time]");
    settings.add_filter(r"\d[\d,.]* (quer(?:y|ies)|k?B|MB|keys|cache commands)", "[n] $1");
    settings.add_filter(r"query, (.*) within \w+", "queries, $1 within [a time]");
    settings.add_filter(r"within \w+", "within [a time]");
    let said = lines(&text, &["changes", "feed", "rarer", "worker"]).join("\n");
    settings.bind(|| insta::assert_snapshot!(said, @r#"
      changes      [n] queries, [n] kB within [a time], too short a time for a rate
      feed         hears of every change to what the job reads
      rarer        `ttl = "1d"` with `schedule = "every 8h"`, which leaves room for one failed run, makes 3 runs instead of 96 and saves [n] queries, [n] keys, [n] kB, [n] cache commands a day, if the values do not depend on the time; see "Rarer runs" in docs/changes.md
      worker       at [address], counting since [time]
    "#));

    // What the worker does not hear of, a rarer schedule would leave old.
    servers.database.execute("alter table services disable trigger user").await;
    worker.metric_becomes("preheat_change_feed_connected", |value| value < 1.0).await;
    let json = plan(&["plan", "--json"]).run().await.expect_code(0).json();
    assert_eq!(json["jobs"][0]["rarer"], Value::Null);
}

#[tokio::test]
async fn a_plan_without_a_worker_says_so_and_what_the_change_feed_does_not_hear() {
    let servers = servers().await;
    let plan = async |job: &str, name: &str, value: &str| {
        let plan = servers.preheat(["plan"]).job("services", job).env(name, value);
        let output = plan.run().await.expect_code(0).stdout;
        lines(&output, &["changes", "feed", "rarer", "worker"]).join("\n")
    };
    let on = ("PREHEAT_CHANGES__ENABLED", "auto");
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"127\.0\.0\.1:\d+", "[address]");
    let _bound = settings.bind_to_scope();
    insta::assert_snapshot!(plan(SERVICES, on.0, on.1).await, @r#"
      feed         hears nothing of the job, which has no `tables`
      worker       no worker answers at [address], so what changes cost is unknown
    "#);
    insta::assert_snapshot!(plan(&watched(), on.0, on.1).await, @r#"
      feed         `services` lacks triggers: `preheat changes install`
      worker       no worker answers at [address], so what changes cost is unknown
    "#);
    install(&servers).await;
    insta::assert_snapshot!(plan(&watched(), on.0, "false").await, @r#"
      feed         off: `changes.enabled` is false
      worker       no worker answers at [address], so what changes cost is unknown
    "#);
    let saved = plan(&watched(), on.0, on.1).await;
    assert!(saved.contains("makes 3 runs instead of 96 and saves"), "{saved}");
    let narrow = watched().replace(", { name = \"tenants\", tenant = \"id\" }", "");
    insta::assert_snapshot!(plan(&narrow, on.0, on.1).await, @r#"
      feed         `tables` does not list `tenants`, which the tenant query reads
      worker       no worker answers at [address], so what changes cost is unknown
    "#);
    let joined = watched()
        .replace("from services where", "from services join staff using (tenant_id) where");
    let joined = joined
        .replace("tenant_id, id, name, price", "tenant_id, services.id, services.name, price");
    let joined = joined.replace("order by name, id", "order by services.name, services.id");
    insta::assert_snapshot!(plan(&joined, on.0, on.1).await, @r#"
      feed         `tables` does not list `staff`, which the query reads
      worker       no worker answers at [address], so what changes cost is unknown
    "#);

    // It may be as rare already, and a failed run must not let keys expire.
    for (ttl, schedule) in [("2d", "every 12h"), ("1h\"\nttl_jitter = \"40%", "every 15m")] {
        let other = watched().replace("1h", ttl).replace("every 15m", schedule);
        let said = plan(&other, on.0, on.1).await;
        assert!(said.contains("hears of every change") && !said.contains("rarer"), "{said}");
    }

    // At midnight the last day of a job with dates is new, and nothing has changed.
    let dated = watched()
        .replace("tenant_id, id", "tenant_id, ($2::date[])[1] as date, id")
        .replace("services:{tenant_id}", "services:{tenant_id}:{date}")
        .replace("[[keys]]", "[dates]\ndays = 1\ntimezone = \"UTC\"\n[[keys]]");
    let dated = plan(&dated, on.0, on.1).await;
    assert!(dated.contains("hears of every change") && !dated.contains("rarer"), "{dated}");
}

#[tokio::test]
async fn a_plan_asks_no_other_program_for_what_a_worker_counts() {
    let servers = servers().await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (mut stream, _) = other.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await.unwrap();
    });
    let plan = servers.preheat(["plan"]).job("services", SERVICES);
    let plan = plan.env("PREHEAT_HTTP__LISTEN", address.to_string());
    let output = plan.run().await.expect_code(0).stdout;
    answering.await.unwrap();
    let said = format!("what answers at {address} is no worker that counts its queries");
    assert!(output.contains(&said), "{output}");
}

/// A job of notes, of which each tenant has a hundred.
const NOTES: &str = r#"
schedule = "every 15m"
ttl = "1h"
[query]
sql = """
select batch.tenant_id, notes.n, notes.body from unnest($1::uuid[]) as batch (tenant_id)
cross join lateral (select n, body from notes where tenant_id = batch.tenant_id offset 0) notes
"""
[[keys]]
key = "notes:{tenant_id}"
"#;

#[tokio::test]
async fn a_plan_shows_the_pages_that_rows_take_and_says_where_they_lie_scattered() {
    let servers = servers().await;
    // Eighteen rows fill a page, and many other tenants have rows as well.
    let fill = |order: &str| {
        format!(
            "drop table if exists notes; create table notes (tenant_id uuid, n int, body text); \
             insert into notes select id, n, repeat('x', 400) \
               from (select id from tenants union all select gen_random_uuid() from generate_series(1, 200)) t (id), \
                 generate_series(1, 100) n \
               order by {order}; \
             create index on notes (tenant_id); analyze notes"
        )
    };
    let plan = async |order: &str| {
        servers.database.execute(&fill(order)).await;
        let json = servers.preheat(["plan", "--json"]).job("notes", NOTES);
        let text = servers.preheat(["plan"]).job("notes", NOTES).run().await.expect_code(0).stdout;
        (json.run().await.expect_code(0).json()["jobs"][0]["pages"].clone(), text)
    };
    let (together, text) = plan("id, n").await;
    assert_eq!(together["is_scattered"], false, "{together:#}");
    assert!(together["a_thousand_rows"].as_u64().unwrap() < 150, "{together:#}");
    assert!(text.contains(" for a thousand rows (") && !text.contains("  scattered"), "{text}");
    let (apart, text) = plan("n, id").await;
    assert_eq!(apart["is_scattered"], true, "{apart:#}");
    assert_eq!(apart["rows"], together["rows"]);
    assert!(apart["a_thousand_rows"].as_u64().unwrap() > 900, "{apart:#}");
    assert!(
        text.contains("  scattered    the rows do not lie on disk as the query reads them")
            && text.contains(" pages instead of "),
        "{text}"
    );
    let fresh =
        "create table fresh as select * from notes; alter table fresh rename to \"New notes\"";
    servers.database.execute(fresh).await;
    let unknown = NOTES.replace("from notes", "from \\\"New notes\\\" as notes");
    let plan = servers.preheat(["plan"]).job("notes", &unknown).run().await.expect_code(0);
    let expected = "  scattered    not known: run `analyze \"New notes\"`\n";
    assert!(plan.stdout.contains(expected), "{}", plan.stdout);
}

#[tokio::test]
async fn a_server_that_explains_nothing_costs_the_plan_only_the_pages() {
    let servers = servers().await;
    let refuses = "create function is_run() returns bool language plpgsql as $$ begin \
          if current_query() ilike 'explain%' then raise 'nothing is explained here'; end if; \
          return true; end $$";
    servers.database.execute(refuses).await;
    let job = SERVICES.replace("where tenant_id", "where is_run() and tenant_id");
    let plan =
        |arguments: &[&str]| servers.preheat(arguments.iter().copied()).job("services", &job);
    let json = plan(&["plan", "--json"]).run().await.expect_code(0).json();
    let job = &json["jobs"][0];
    assert_eq!(job["pages"], Value::Null);
    assert!(job["run"]["keys"].as_u64().unwrap() > 0, "{job:#}");
    let text = plan(&["plan"]).run().await.expect_code(0).stdout;
    let said = "  pages        could not explain the query of job `services`: nothing is explained here \
                (P0001)";
    assert_eq!(lines(&text, &["pages"]), [said]);
}
