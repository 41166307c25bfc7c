//! `preheat warm`.

use std::collections::BTreeSet;

use preheat_sandbox::{Postgres, PostgresOptions};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{GLOBAL, PETS, SERVICES, SLOW, Servers, servers, steady, values};
use crate::support::program::Preheat;
use crate::support::{self, LONG, eventually, preheat};

/// Divides by a number that is zero for some tenants.
const FRAGILE: &str = r#"
schedule = "every 15m"
ttl = "1h"
[query]
sql = "select tenant_id, name, 60 / duration_minutes as an_hour from services where tenant_id = any($1)"
[[keys]]
key = "fragile:{tenant_id}"
"#;

fn warm_services(servers: &Servers) -> Preheat {
    servers.preheat(["warm"]).job("services", SERVICES)
}

#[tokio::test]
async fn all_jobs_are_warmed_and_each_has_its_line() {
    let servers = servers().await;
    let output =
        servers.preheat(["warm"]).job("services", SERVICES).job("fleet", GLOBAL).run().await;
    let output = output.expect_code(0);
    assert_eq!(output.stderr, "", "without a terminal there are no bars");
    insta::assert_snapshot!(steady(&output.stdout), @r"
    fleet: ok: 1 of 1 tenant, 1 key, 14 B in [time]
    services: ok: 21 of 21 tenants, 21 keys, 9.49 kB in [time]
    ");
    let active = servers.active().await;
    let mut expected: BTreeSet<String> = active.iter().map(|id| format!("services:{id}")).collect();
    expected.insert("fleet".to_owned());
    let values = servers.values().await;
    assert_eq!(values.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(values["fleet"], r#"{"clinics":24}"#);
}

#[tokio::test]
async fn named_jobs_are_warmed_once_and_no_others() {
    let servers = servers().await;
    let jobs = |preheat: Preheat| preheat.job("services", SERVICES).job("fleet", GLOBAL);
    let output = jobs(servers.preheat(["warm", "fleet", "fleet"])).run().await.expect_code(0);
    assert_eq!(output.stdout.lines().count(), 1, "{}", output.stdout);
    assert_eq!(servers.values().await.into_keys().collect::<Vec<_>>(), ["fleet"]);
}

#[tokio::test]
async fn a_job_that_is_not_there_or_disabled_is_bad_usage() {
    let servers = servers().await;
    let disabled = SERVICES.replacen("ttl", "enabled = false\nttl", 1).replace("services:", "old:");
    let run = async |name: &str| {
        let preheat =
            servers.preheat(["warm", name]).job("services", SERVICES).job("fleet", GLOBAL);
        preheat.job("retired", &disabled).run().await.expect_code(2).stderr
    };
    insta::assert_snapshot!(run("servces").await, @r"
    error: there is no job `servces` in `jobs`
      hint: did you mean `services`?
    ");
    insta::assert_snapshot!(run("menu").await, @r"
    error: there is no job `menu` in `jobs`
      hint: the jobs are `fleet`, `retired` and `services`
    ");
    insta::assert_snapshot!(run("retired").await, @r"
    error: job `retired` is disabled: its file says `enabled = false`
    ");
    assert!(servers.values().await.is_empty());

    let all = servers.preheat(["warm"]).job("services", SERVICES).job("retired", &disabled);
    all.run().await.expect_code(0);
    assert!(servers.values().await.keys().all(|key| key.starts_with("services:")));
}

#[tokio::test]
async fn tenants_narrow_a_pass() {
    let servers = servers().await;
    let active = servers.active().await;
    let warm = |arguments: &[&str]| {
        let preheat = servers.preheat(arguments.iter().copied());
        preheat.job("services", SERVICES).job("fleet", GLOBAL).run()
    };
    warm(&["warm", "--tenant", &active[3]]).await.expect_code(0);
    let keys: Vec<_> = servers.values().await.into_keys().collect();
    assert_eq!(keys, [format!("services:{}", active[3])], "and no job of all tenants together");

    warm(&["warm", "services", "--tenant", &active[5], "--tenant", &active[1]])
        .await
        .expect_code(0);
    let keys: BTreeSet<_> = servers.values().await.into_keys().collect();
    let expected = [1, 3, 5].map(|index: usize| format!("services:{}", active[index]));
    assert_eq!(keys, expected.into());

    let suspended =
        servers.texts("select id::text from tenants where status <> 'active' limit 1").await;
    for id in [suspended[0].as_str(), "6f1e0f5e-0000-4000-8000-000000000000", "no uuid: *"] {
        let output = warm(&["warm", "--tenant", &active[0], "--tenant", id]).await.expect_code(1);
        let said = format!("tenant `{id}` is not among the active tenants");
        assert!(output.stdout.contains(&said), "{}", output.stdout);
    }
    assert_eq!(servers.values().await.len(), 4, "the tenant beside it was warmed");

    let output = warm(&["warm", "fleet", "--tenant", &active[0]]).await.expect_code(2);
    insta::assert_snapshot!(output.stderr, @r"
    error: job `fleet` warms all tenants together: it takes no `--tenant`
    ");
}

#[tokio::test]
async fn a_report_is_one_json_document_and_logs_go_elsewhere() {
    let servers = servers().await;
    let preheat = servers.preheat(["-v", "warm", "--json", "--log-format", "json"]);
    let output = preheat.job("services", SERVICES).job("fleet", GLOBAL).run().await.expect_code(0);
    insta::assert_json_snapshot!(output.json(), {
        ".jobs[].id" => "[id]",
        ".jobs[].duration_ms" => "[ms]",
        ".jobs[].report.database_ms" => "[ms]",
        ".jobs[].report.time" => "[times]",
    });
    let lines: Vec<Value> =
        output.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["job"] == "fleet"), "{}", output.stderr);
}

#[tokio::test]
async fn a_terminal_has_a_bar_a_job_and_the_lines_afterwards() {
    let servers = servers().await;
    let Some(on_terminal) = warm_services(&servers).job("slow", SLOW).on_terminal(100) else {
        return support::skipped("no `script` makes a terminal");
    };
    let output = on_terminal.run().await.expect_code(0);
    let screen = &output.stdout;
    assert!(!screen.contains("services [") && screen.contains("slow     [==="), "{screen:?}");
    assert!(screen.contains("tenants, ") && screen.contains("keys/s"), "{screen:?}");
    let last = screen.rfind("keys/s").unwrap();
    let end = screen.rfind("slow: ok: ").expect("the line of the job");
    assert!(end > last, "nothing is left of the bars: {screen:?}");
    assert!(!screen.contains("INFO") && !screen.contains("DEBUG"), "{screen:?}");
    assert!(!screen.contains("0/0 tenants"), "{screen:?}");
}

#[tokio::test]
async fn without_a_terminal_there_are_neither_bars_nor_colours() {
    let servers = servers().await;
    let preheat = warm_services(&servers).job("broken", "ttl = 1").env("CLICOLOR", "1");
    let problems = preheat.run().await.expect_code(2).stderr;
    let output = warm_services(&servers).run().await.expect_code(0);
    let fragile = servers.preheat(["warm", "-v"]).job("services", SERVICES).run().await;
    for text in [problems, output.stdout, output.stderr, fragile.expect_code(0).stderr] {
        assert!(
            !text.contains('\u{1b}') && !text.contains("[=") && !text.contains('\r'),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn hazard_27_one_tenants_failure_is_partial_and_costs_no_other_its_keys() {
    let servers = servers().await;
    let active = servers.active().await;
    let sql = "select tenant_id::text from services s join tenants t on t.id = tenant_id \
               where t.status = 'active' group by 1 order by 1 limit 1";
    let bad = servers.texts(sql).await.remove(0);
    let spoil = format!("update services set duration_minutes = 0 where tenant_id = '{bad}'");
    servers.database.execute(&spoil).await;
    let old = format!("fragile:{bad}");
    let () = servers.cache().await.set(&old, "[\"old\"]").await.unwrap();

    let output = servers.preheat(["warm"]).job("fragile", FRAGILE).job("services", SERVICES);
    let output = output.run().await.expect_code(1);
    assert!(output.stdout.contains("services: ok: "), "{}", output.stdout);
    let expected = format!("fragile: partial: {} of {} tenants", active.len() - 1, active.len());
    assert!(output.stdout.contains(&expected), "{}", output.stdout);
    let failure = format!("query, 1 in all, the first of tenant `{bad}`: ");
    assert!(output.stdout.contains(&failure), "{}", output.stdout);
    assert!(output.stdout.contains("division by zero (22012)"), "{}", output.stdout);

    let values = servers.values().await;
    assert_eq!(values[&old], "[\"old\"]", "what cannot be read keeps its old value");
    assert_eq!(values.len(), 2 * active.len());
    let report = servers.preheat(["warm", "fragile", "--json"]).job("fragile", FRAGILE);
    let report = report.run().await.expect_code(1).json();
    assert_eq!(report["outcome"], "partial");
    let failure = &report["jobs"][0]["report"]["failures"][0];
    assert_eq!((&failure["tenant"], &failure["kind"]), (&json!(bad), &json!("query")));

    servers.database.execute("update services set duration_minutes = 0").await;
    let report = servers.preheat(["warm", "--json"]).job("fragile", FRAGILE);
    let report = report.run().await.expect_code(1).json();
    assert_eq!(report["jobs"][0]["outcome"], "partial", "tenants without services are warm");
}

#[tokio::test]
async fn every_tenant_that_failed_is_in_the_report_the_log_and_the_file() {
    let servers = servers().await;
    let sql = "select tenant_id::text from services s join tenants t on t.id = tenant_id \
               where t.status = 'active' group by 1 order by 1 limit 3";
    let bad: BTreeSet<String> = servers.texts(sql).await.into_iter().collect();
    for id in &bad {
        let spoil = format!("update services set duration_minutes = 0 where tenant_id = '{id}'");
        servers.database.execute(&spoil).await;
    }
    let broken = GLOBAL.replace("count(*)", "count(*) / 0").replace("\"fleet\"", "\"broken\"");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("failed.jsonl");
    let path = path.to_str().unwrap();
    let warm = servers.preheat(["-v", "warm", "--json", "--failed-tenants", path]);
    let warm = warm.job("fragile", FRAGILE).job("services", SERVICES).job("broken", &broken);
    let output = warm.run().await.expect_code(1);

    let report = output.json();
    let fragile = report["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "fragile");
    let named = &fragile.unwrap()["report"]["failed_tenants"][0];
    assert_eq!((&named["kind"], &named["more"]), (&json!("query"), &json!(0)));
    let ids: BTreeSet<String> = serde_json::from_value(named["tenants"].clone()).unwrap();
    assert_eq!(ids, bad);

    let lines = std::fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |job: &'static str| lines.iter().filter(move |line| line["job"] == job);
    let tenants: BTreeSet<String> =
        of("fragile").map(|line| line["tenant"].as_str().unwrap().to_owned()).collect();
    assert_eq!((tenants, of("fragile").count()), (bad.clone(), 3));
    let is_told = |line: &Value| {
        let message = line["message"].as_str().unwrap();
        line["kind"] == "query" && message.contains("division by zero (22012)")
    };
    assert!(lines.iter().all(is_told), "{lines:?}");
    let whole = of("broken").next().unwrap();
    assert_eq!((&whole["tenant"], of("broken").count()), (&Value::Null, 1));
    assert_eq!(of("services").count(), 0);
    for id in &bad {
        let said = format!("tenant `{id}` of job `fragile` failed (query): ");
        assert!(output.stderr.contains(&said), "{}", output.stderr);
    }

    servers.database.execute("delete from services").await;
    let warm = servers.preheat(["warm", "fragile", "--failed-tenants", path]);
    warm.job("fragile", FRAGILE).run().await.expect_code(0);
    assert_eq!(std::fs::read_to_string(path).unwrap(), "", "where none failed it is empty");
}

#[tokio::test]
async fn bad_settings_files_and_usage_are_told_all_at_once() {
    let servers = servers().await;
    let settings = "[database]\nmax_connection = 3\n[runner]\nbatch = 0\n";
    let warm = warm_services(&servers).settings(settings).job("empty", "schedule = \"every 1h\"\n");
    let output = warm.run().await.expect_code(2);
    insta::assert_snapshot!(output.stderr, @r#"
    error: preheat.toml:2: unknown setting `database.max_connection`
      hint: did you mean `database.max_connections`?
    error: preheat.toml:4: setting `runner.batch`: found `0`; allowed: a whole number from 1 to 10000

    error: missing field `keys`
    --> jobs/empty.toml
     = hint: add `[[keys]]` with `key = "…:{tenant_id}"`

    error: missing field `query`
    --> jobs/empty.toml
     = hint: add `[query]` with `sql = "…"`

    error: missing field `ttl`
    --> jobs/empty.toml
     = hint: add `ttl = "30m"`
    "#);
    let broken = "schedule = \"every 1h\"\nttl = \"10m\"\n[query]\nsql = \"select 1\"\n";
    let output = warm_services(&servers).job("broken", broken).run().await.expect_code(2);
    insta::assert_snapshot!(output.stderr, @r#"
    error: missing field `keys`
    --> jobs/broken.toml
     = hint: add `[[keys]]` with `key = "…:{tenant_id}"`

    error: keys may expire between two runs: ttl 10m less 10% jitter is 9m; the schedule leaves up to 1h and the run may take 5m
     --> jobs/broken.toml:2:7
      |
    1 | schedule = "every 1h"
      |            ---------- leaves up to 1h
    2 | ttl = "10m"
      |       ^^^^^ 9m at worst
      |
      = hint: raise `ttl` to 1h13m, or let `schedule` leave at most 4m, or 2m with room for one failed run

    error: the query of a job with tenants does not use `$1`
     --> jobs/broken.toml:4:1
      |
    4 | sql = "select 1"
      | ^^^
      |
      = hint: `$1` is the array of the batch's tenant ids: `where tenant_id = any($1)`; a query for all tenants together has `tenants = false`
    "#);
    let output = preheat(["warm"]).job("services", SERVICES).run().await.expect_code(2);
    insta::assert_snapshot!(output.stderr, @r"
    error: setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    error: setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`
    ");
    for arguments in [&["warm", "--no-such"][..], &["wram"], &["warm", "--deadline", "soon"], &[]] {
        let output = preheat(arguments.iter().copied()).run().await.expect_code(2);
        assert!(output.stderr.contains("--help") || output.stderr.contains("Usage"), "{output:?}");
        assert_eq!(output.stdout, "");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let servers = servers().await;
    let nobody = "127.0.0.1:1";
    let database = format!("postgres://app:hush-hush@{nobody}/shop");
    let output = warm_services(&servers).database(&database).run().await.expect_code(3);
    insta::assert_snapshot!(output.stderr, @r"
    error: could not connect to database `127.0.0.1:1/shop`: Connection refused (os error 111)
    ");
    let cache = format!("redis://app:hush-hush@{nobody}/0");
    let output = warm_services(&servers).cache(&cache).run().await.expect_code(3);
    insta::assert_snapshot!(output.stderr, @r"
    error: could not connect to cache `127.0.0.1:1`: Connection refused (os error 111)
    ");
    let output = warm_services(&servers).database(&database).cache(&cache).run().await;
    insta::assert_snapshot!(output.expect_code(3).stderr, @r"
    error: could not connect to database `127.0.0.1:1/shop`: Connection refused (os error 111)
    error: could not connect to cache `127.0.0.1:1`: Connection refused (os error 111)
    ");
}

#[tokio::test]
async fn hazard_32_a_wrong_password_is_refused_and_not_repeated() {
    let servers = servers().await;
    let postgres = Postgres::start(&PostgresOptions {
        tcp: true,
        access: vec!["host all app 127.0.0.1/32 scram-sha-256".to_owned()],
        ..PostgresOptions::default()
    });
    let postgres = postgres.unwrap();
    postgres.execute("postgres", "create role app login password 'right'").await.unwrap();
    let port = postgres.tcp_port().unwrap();
    let url = format!("postgres://app:hush-hush@127.0.0.1:{port}/postgres");
    let output = warm_services(&servers).database(url).run().await.expect_code(3);
    let said = output.stderr.replace(&port.to_string(), "[port]");
    insta::assert_snapshot!(said, @r#"
    error: could not connect to database `127.0.0.1:[port]/postgres`: password authentication failed for user "app" (28P01)
    "#);

    let redis = support::redis_with(&[("user", "app on >right ~* +@all")]);
    let port = redis.tcp_port().unwrap();
    let url = format!("redis://app:hush-hush@127.0.0.1:{port}/0");
    let output = warm_services(&servers).cache(url).run().await.expect_code(3);
    let said = output.stderr.replace(&port.to_string(), "[port]");
    insta::assert_snapshot!(said, @r"
    error: could not log in to cache `127.0.0.1:[port]`: the user or the password is wrong, or the user is off; hint: both stand in the URL, as in `redis://user:password@host`, and a user who is not named is `default`
    ");
}

#[tokio::test]
async fn a_deadline_lets_the_batches_in_flight_end() {
    let servers = servers().await;
    let preheat = servers.preheat(["warm", "--json", "--deadline", "1s"]).job("slow", SLOW);
    let output = preheat.run().await.expect_code(4);
    assert_eq!(output.stderr, "the deadline of 1s passed: batches in flight are finished\n");
    let report = output.json();
    assert_eq!((&report["outcome"], &report["deadline_passed"]), (&json!("timeout"), &json!(true)));
    let job = &report["jobs"][0]["report"];
    let written = job["keys"]["written"].as_u64().unwrap();
    assert_eq!(job["queries"], written, "each query that began was written");
    assert_eq!(job["tenants"]["ok"], written);
    assert!(written < servers.active().await.len() as u64, "{report}");
    whole(&servers, written).await;
}

/// Keeps moving the fence of a tenant, as if its data never stopped changing, until `rests` returns true.
async fn keeps_changing(
    servers: &Servers,
    tenant: &str,
    rests: impl AsyncFn(&mut MultiplexedConnection) -> bool,
) {
    let mut cache = servers.cache().await;
    while !rests(&mut cache).await {
        let _: i64 = cache.incr(format!("preheat:fence:{tenant}"), 1).await.unwrap();
    }
}

async fn life_of(cache: &mut MultiplexedConnection, tenant: &str) -> i64 {
    cache.pttl(format!("services:{tenant}")).await.unwrap()
}

#[tokio::test]
async fn hazard_01_a_tenant_that_never_stops_writing_is_fenced_and_no_failure() {
    let servers = servers().await;
    let busy = servers.active().await.remove(0);
    // Five follow-ups, a second apart, take longer than this: the deadline ends them, but does not count as
    // missed.
    let arguments = ["warm", "--json", "--deadline", "4s"];
    // Each read lasts long enough for a change to come, even on a busy machine.
    let sleeps = "with slept as materialized (select pg_sleep(0.3)) select tenant_id,";
    let slow = SERVICES
        .replace("select tenant_id,", sleeps)
        .replace("from services where", "from services, slept where");
    let pass = servers.preheat(arguments).job("services", &slow);
    let output = tokio::select! {
        output = pass.run() => output.expect_code(0),
        () = keeps_changing(&servers, &busy, async |_| false) => unreachable!(),
    };
    let report = output.json();
    assert_eq!(report["deadline_passed"], json!(false));
    let counted = &report["jobs"][0]["report"];
    let tenants = json!({"total": 21, "ok": 20, "failed": 0, "fenced": 1});
    assert_eq!((&report["outcome"], &counted["tenants"]), (&json!("ok"), &tenants));
    assert_eq!((&counted["keys"]["written"], &counted["keys"]["fenced"]), (&json!(20), &json!(1)));
    let life = life_of(&mut servers.cache().await, &busy).await;
    assert!((1..=10_000).contains(&life), "an unverified value lives for {life} ms");
}

#[tokio::test]
async fn a_tenant_that_stops_writing_meanwhile_is_warm_in_the_end() {
    let servers = servers().await;
    let busy = servers.active().await.remove(0);
    // Until its key exists, unverified.
    let rests = async |cache: &mut MultiplexedConnection| life_of(cache, &busy).await > 0;
    let pass = servers.preheat(["warm", "--json"]).job("services", SERVICES);
    let until_it_rests = async {
        keeps_changing(&servers, &busy, rests).await;
        std::future::pending::<()>().await;
    };
    let output = tokio::select! {
        output = pass.run() => output.expect_code(0),
        () = until_it_rests => unreachable!(),
    };
    let report = output.json();
    let tenants = json!({"total": 21, "ok": 21, "failed": 0, "fenced": 0});
    assert_eq!(report["jobs"][0]["report"]["tenants"], tenants);
    let life = life_of(&mut servers.cache().await, &busy).await;
    assert!(life > 10_000, "it is verified, and lives for {life} ms");
}

#[tokio::test]
async fn a_batch_that_outlasts_the_drain_is_stopped_and_leaves_nothing_half() {
    let servers = servers().await;
    let sleeps = SLOW.replace("pg_sleep(0.2)", "pg_sleep(3000)");
    let preheat = servers.preheat(["warm", "--deadline", "100ms"]).job("slow", &sleeps);
    let preheat = preheat.env("PREHEAT_RUNNER__DRAIN", "100ms");
    let preheat = preheat.env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "1h");
    let output = preheat.run().await.expect_code(4);
    assert!(output.stdout.starts_with("slow: cancelled: 0 of "), "{}", output.stdout);
    whole(&servers, 0).await;
    nobody_sleeps(&servers).await;
}

#[tokio::test]
async fn hazard_30_one_ctrl_c_drains() {
    let servers = servers().await;
    let mut running = servers.preheat(["warm"]).job("slow", SLOW).start();
    let mut cache = servers.cache().await;
    eventually("a key is there", LONG, async || !values(&mut cache).await.is_empty()).await;
    running.signal(Signal::INT);
    running.says("stopping: ").await;
    let output = running.ended().await.expect_code(1);
    assert!(output.stdout.starts_with("slow: cancelled: "), "{}", output.stdout);
    assert!(output.stdout.contains("the run was stopped: "), "{}", output.stdout);
    let keys = servers.values().await.len();
    assert!(keys < servers.active().await.len(), "{keys}");
    whole(&servers, keys as u64).await;
}

#[tokio::test]
async fn hazard_30_the_second_ctrl_c_stops_at_once() {
    let servers = servers().await;
    let sleeps = SLOW.replace("pg_sleep(0.2)", "pg_sleep(3000)");
    let preheat = servers.preheat(["warm", "--json"]).job("slow", &sleeps);
    let mut running = preheat.env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "1h").start();
    eventually("the query runs", LONG, async || sleepers(&servers).await > 0).await;
    running.signal(Signal::INT);
    running.says("stopping: ").await;
    running.signal(Signal::INT);
    let output = running.ended().await.expect_code(1);
    assert_eq!(output.json()["outcome"], "cancelled");
    whole(&servers, 0).await;
    nobody_sleeps(&servers).await;
}

#[tokio::test]
async fn hazard_08_no_tenants_are_no_failure_but_a_warning() {
    let servers = servers().await;
    servers.database.execute("delete from tenants").await;
    let output = warm_services(&servers).run().await.expect_code(0);
    assert!(output.stdout.starts_with("services: ok: 0 of 0 tenants, 0 keys"), "{}", output.stdout);
    let warning = "WARN job `services` has nothing to warm: the tenant query returned no tenant";
    assert!(output.stderr.contains(warning), "{}", output.stderr);
}

#[tokio::test]
async fn jobs_come_from_another_folder_where_one_is_named() {
    let servers = servers().await;
    let preheat = servers.preheat(["warm", "--jobs", "elsewhere", "services"]);
    std::fs::create_dir(preheat.folder().join("elsewhere")).unwrap();
    let output = preheat.file("elsewhere/services.toml", SERVICES).run().await.expect_code(0);
    assert!(output.stdout.starts_with("services: ok: "), "{}", output.stdout);
}

#[tokio::test]
async fn a_pass_over_all_tenants_opens_its_connections_while_it_reads_them() {
    let servers = servers().await;
    let settings = "[database]\nmax_connections = 3\n[tenants]\n\
                    sql = \"select id, timezone from tenants, pg_sleep(3000)\"\n";
    let running = servers.preheat(["warm"]).settings(settings).job("services", SERVICES).start();
    let open = "select application_name from pg_stat_activity \
                where application_name = 'preheat' and datname = current_database()";
    eventually("three connections are open while one reads the tenants", LONG, async || {
        servers.texts(open).await.len() == 3 && sleepers(&servers).await == 1
    })
    .await;
    drop(running);
    nobody_sleeps(&servers).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_pass_is_batch_work_for_the_systems_scheduler() {
    // See `sched(7)` and `proc_pid_stat(5)`: the policy is field 41, and field 3 is the first one after the name.
    const BATCH: &str = "3";
    const POLICY: usize = 41 - 3;
    let servers = servers().await;
    let sleeps = SLOW.replace("pg_sleep(0.2)", "pg_sleep(3000)");
    let running = servers.preheat(["warm"]).job("slow", &sleeps).start();
    eventually("the query runs", LONG, async || sleepers(&servers).await > 0).await;
    let threads = std::fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    let policies: Vec<String> = threads
        .map(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            let (_name, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(POLICY).unwrap().to_owned()
        })
        .collect();
    assert!(policies.len() > 1, "{policies:?}");
    assert!(policies.iter().all(|policy| policy == BATCH), "{policies:?}");
    drop(running);
    nobody_sleeps(&servers).await;
}

/// Checks that this many keys exist, each with a whole value.
async fn whole(servers: &Servers, keys: u64) {
    let values = servers.values().await;
    assert_eq!(values.len() as u64, keys, "{values:?}");
    for value in values.values() {
        let rows: Value = serde_json::from_str(value).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    }
}

async fn sleepers(servers: &Servers) -> usize {
    let sql = "select query from pg_stat_activity where state = 'active' \
               and datname = current_database() and query like '%pg_sleep(3000%' \
               and pid <> pg_backend_pid()";
    servers.texts(sql).await.len()
}

/// Checks that the database has stopped the queries for which no client waits any more.
async fn nobody_sleeps(servers: &Servers) {
    eventually("the query has ended", LONG, async || sleepers(servers).await == 0).await;
}

#[tokio::test]
async fn hazard_07_a_key_that_was_removed_from_its_new_owner_is_there_when_the_pass_ends() {
    let servers = servers().await;
    let warm =
        |arguments: &[&str]| servers.preheat(arguments.iter().copied()).job("pets", PETS).run();
    warm(&["warm"]).await.expect_code(0);
    let owners = "select tenant_id::text from pets where tenant_id in \
        (select id from tenants where status = 'active') group by 1 order by 1 limit 2";
    let owners = servers.texts(owners).await;
    let (former, new) = (owners[0].as_str(), owners[1].as_str());
    let sell = format!(
        "update pets set tenant_id = '{new}' where tenant_id = '{former}' returning id::text"
    );
    let sold: BTreeSet<String> =
        servers.texts(&sell).await.into_iter().map(|id| format!("pet:{id}")).collect();
    assert!(!sold.is_empty());
    warm(&["warm", "--tenant", new]).await.expect_code(0);
    let output = warm(&["warm", "--tenant", former]).await.expect_code(0);
    let values = servers.values().await;
    let missing: Vec<_> = sold.iter().filter(|key| !values.contains_key(*key)).collect();
    assert!(missing.is_empty(), "{missing:?}\n{}", output.stdout);
    assert!(sold.iter().all(|key| values[key].contains(new)));
}
