//! `preheat audit`, and the verifier of the worker.

use std::collections::BTreeSet;

use redis::AsyncCommands;
use serde_json::{Value, json};

use super::{GLOBAL, PETS, SERVICES, Servers, servers};
use crate::support::program::{Output, Preheat};
use crate::support::shop::{Shop, items};
use crate::support::{self, preheat};

/// The sample clinic with the shipped jobs, warm.
async fn warm_clinic() -> Servers {
    let servers = servers().await;
    servers.preheat(["warm"]).shipped_jobs().run().await.expect_code(0);
    servers
}

/// Audits with `--quick`.
async fn quick(servers: &Servers, arguments: &[&str]) -> Output {
    let all = ["audit", "--quick"].iter().chain(arguments).copied();
    servers.preheat(all).shipped_jobs().run().await
}

/// The key of a kind that is not empty, and its tenant.
async fn some_key(servers: &Servers, prefix: &str) -> (String, String) {
    let keys: Vec<String> = servers.cache().await.keys(format!("{prefix}:*")).await.unwrap();
    for key in keys {
        let value: String = servers.cache().await.get(&key).await.unwrap();
        let tenant = key.split(':').nth(1).unwrap().to_owned();
        if value != "[]" {
            return (key, tenant);
        }
    }
    panic!("no `{prefix}` has a row")
}

/// Kind and key of each finding.
fn findings(report: &Value) -> BTreeSet<(String, String)> {
    let jobs = report["jobs"].as_array().unwrap().iter();
    let findings = jobs.flat_map(|job| job["findings"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings.map(|finding| (text(&finding["kind"]), text(&finding["key"]))).collect()
}

fn sum(report: &Value, count: &str) -> u64 {
    report["jobs"].as_array().unwrap().iter().map(|job| job[count].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn a_warm_clinic_is_all_equal_and_each_kind_of_damage_is_found() {
    let servers = warm_clinic().await;
    // Not `--quick`: without differences there is nothing to wait for.
    let report = servers.preheat(["audit", "--json"]).shipped_jobs().run().await;
    let report = report.expect_code(0).json();
    assert_eq!(findings(&report), BTreeSet::new());
    assert_eq!(sum(&report, "expected"), sum(&report, "equal"));
    let keys: Vec<String> = servers.cache().await.keys("*").await.unwrap();
    let own = keys.iter().filter(|key| key.starts_with("preheat:")).count();
    assert_eq!(sum(&report, "expected"), (keys.len() - own) as u64);
    assert_eq!(report["jobs"].as_array().unwrap().len(), 6);

    let mut cache = servers.cache().await;
    let (gone, _) = some_key(&servers, "staff").await;
    let () = cache.del(&gone).await.unwrap();
    let (stale, _) = some_key(&servers, "products").await;
    let old: String = cache.get(&stale).await.unwrap();
    let old = old
        .replacen("\"stock\":", "\"stock\":1", 1)
        .replace("\"updated_at\":\"20", "\"updated_at\":\"19");
    let () = cache.set_ex(&stale, &old, 1800).await.unwrap();
    let (endless, _) = some_key(&servers, "content").await;
    let () = cache.persist(&endless).await.unwrap();
    let (long, tenant) = some_key(&servers, "services").await;
    let () = cache.expire(&long, 7200).await.unwrap();
    let orphaned = format!("products:{tenant}:no such category");
    let manifest = format!("preheat:manifest:products:{tenant}");
    let () = cache.zadd(&manifest, &orphaned, 1).await.unwrap();
    let () = cache.set_ex(&orphaned, "[]", 1800).await.unwrap();
    // An application caches the same rows as different JSON.
    let (spaced, _) = some_key(&servers, "slots").await;
    let same: String = cache.get(&spaced).await.unwrap();
    let same = same.replace(',', " , ").replace("\":", "\" : ");
    let () = cache.set_ex(&spaced, &same, 300).await.unwrap();

    let report = quick(&servers, &["--json", "--threshold", "100%"]).await.expect_code(1).json();
    let expected = [
        ("missing", &gone),
        ("stale", &stale),
        ("wrong_ttl", &endless),
        ("wrong_ttl", &long),
        ("orphaned", &orphaned),
    ];
    let expected = expected.map(|(kind, key)| (kind.to_owned(), key.clone()));
    assert_eq!(findings(&report), BTreeSet::from(expected));
    let products = &report["jobs"][2];
    assert_eq!((&products["job"], &products["stale"]), (&json!("products"), &json!(1)));
    // A century, less a few leap days.
    assert!(products["behind_seconds"].as_f64().unwrap() > 3e9, "{products}");

    let explained = async |key: &str| {
        let output = quick(&servers, &["--json", "--key", key]).await;
        (output.code(), output.json()["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(explained(&stale).await, (Some(1), "stale".to_owned()));
    assert_eq!(explained(&gone).await, (Some(1), "missing".to_owned()));
    assert_eq!(explained(&orphaned).await, (Some(1), "orphaned".to_owned()));
    assert_eq!(explained(&endless).await, (Some(1), "wrong_ttl".to_owned()));
    assert_eq!(explained(&spaced).await, (Some(0), "equal".to_owned()));
    assert_eq!(explained("no such key").await, (Some(0), "nowhere".to_owned()));

    // A run corrects all keys that it knows. A key that another program added to a manifest counts
    // as vanished data.
    servers.preheat(["warm"]).shipped_jobs().run().await.expect_code(0);
    quick(&servers, &["--threshold", "100%"]).await.expect_code(0);
}

#[tokio::test]
async fn an_audit_says_that_it_does_not_look_for_orphans_of_shared_keys() {
    let servers = servers().await;
    let program = |arguments: &[&'static str]| {
        servers.preheat(arguments.iter().copied()).job("pets", PETS).job("services", SERVICES)
    };
    program(&["warm"]).run().await.expect_code(0);
    // The pets' rows are gone, and their keys expire by their TTL.
    servers.database.execute("delete from pets").await;
    let said = program(&["audit", "--quick"]).run().await.expect_code(0).stdout;
    let told = "  orphans of `pet:{id}` are not looked for: such a key ends by its TTL\n";
    assert_eq!(said.matches(told).count(), 1, "{said}");
    let report = program(&["audit", "--quick", "--json"]).run().await.expect_code(0).json();
    let of = |job: usize| &report["jobs"][job]["orphans_not_looked_for"];
    assert_eq!((of(0), of(1)), (&json!(["pet:{id}"]), &json!([])));
}

/// A job with one key for each tenant and a job with one key for the fleet, both warm, with two
/// damaged keys.
async fn damaged() -> (Servers, Vec<String>) {
    let servers = servers().await;
    jobs(servers.preheat(["warm"])).run().await.expect_code(0);
    let (key, tenant) = some_key(&servers, "services").await;
    let mut cache = servers.cache().await;
    let first = json!([{"id": 7, "name": "Überprüfung", "price": "9.90"}]).to_string();
    let () = cache.set_ex(&key, first, 3600).await.unwrap();
    let tenants = servers.active().await;
    let other = tenants.iter().find(|other| **other != tenant).unwrap().clone();
    let () = cache.del(format!("services:{other}")).await.unwrap();
    let sql = format!("delete from services where tenant_id = '{tenant}'");
    servers.database.execute(&sql).await;
    (servers, vec![tenant, other])
}

fn jobs(preheat: Preheat) -> Preheat {
    preheat.job("services", SERVICES).job("fleet", GLOBAL)
}

/// Replaces the tenants' ids by names.
fn named(text: &str, tenants: &[String]) -> String {
    tenants
        .iter()
        .zip(["[one]", "[other]"])
        .fold(text.to_owned(), |text, (id, name)| text.replace(id, name))
}

#[tokio::test]
async fn the_report_is_a_table_and_what_was_found() {
    let (servers, tenants) = damaged().await;
    let output = jobs(servers.preheat(["audit", "--quick"])).run().await.expect_code(1);
    assert_eq!(output.stderr, "");
    // Their positions in the list decide which of the two comes first.
    let mut lines: Vec<String> =
        named(&output.stdout, &tenants).lines().map(str::to_owned).collect();
    for line in &mut lines {
        *line = line.trim_end().to_owned();
    }
    lines.sort();
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test]
async fn json_is_one_document_whose_members_stay() {
    let (servers, tenants) = damaged().await;
    let preheat = servers.preheat(["audit", "services", "--quick", "--json"]);
    let output = jobs(preheat).run().await.expect_code(1);
    let mut report: Value = serde_json::from_str(&named(&output.stdout, &tenants)).unwrap();
    let findings = report["jobs"][0]["findings"].as_array_mut().unwrap();
    findings.sort_by_key(|finding| finding["kind"].to_string());
    insta::assert_json_snapshot!(report);
}

#[tokio::test]
async fn one_key_is_told_of_in_sentences() {
    let (servers, tenants) = damaged().await;
    let tell = async |key: &str| {
        let output = jobs(servers.preheat(["audit", "--quick", "--key", key])).run().await;
        format!("{}{:?}", named(&output.stdout, &tenants), output.code())
    };
    let texts = [
        tell(&format!("services:{}", tenants[0])).await,
        tell(&format!("services:{}", tenants[1])).await,
        tell("fleet").await,
        tell("nobody's\u{1b}[31m").await,
    ];
    insta::assert_snapshot!(texts.join("\n\n"));
}

#[tokio::test]
async fn the_threshold_decides_the_exit_code() {
    let (servers, _) = damaged().await;
    let audit = |threshold: &'static str| {
        let arguments = ["audit", "--quick", "--threshold", threshold];
        jobs(servers.preheat(arguments)).run()
    };
    // Two of 21 keys are wrong.
    audit("90%").await.expect_code(0);
    audit("91 %").await.expect_code(1);
    let sign = "a share needs its `%`";
    let range = "a share is from `0%` to `100%`";
    for (bad, problem) in [("101%", range), ("most", range), ("-1%", range), ("99.9", sign)] {
        let output = jobs(servers.preheat(
            ["audit".to_owned(), format!("--threshold={bad}")].iter().map(String::as_str),
        ));
        let output = output.run().await.expect_code(2);
        assert!(output.stderr.contains(problem), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_sample_and_names_narrow_an_audit_and_bad_usage_is_told() {
    let servers = warm_clinic().await;
    let report = quick(&servers, &["slots", "staff", "--sample", "3", "--json"]).await;
    let report = report.expect_code(0).json();
    let jobs = report["jobs"].as_array().unwrap();
    let read: Vec<_> = jobs.iter().map(|job| (&job["job"], &job["tenants"])).collect();
    assert_eq!(read, [(&json!("slots"), &json!(3)), (&json!("staff"), &json!(3))]);
    assert_eq!((&report["sample"], &jobs[0]["expected"]), (&json!(3), &json!(21)));
    quick(&servers, &["--sample", "0"]).await.expect_code(2);
    quick(&servers, &["--sample", "3", "--key", "x"]).await.expect_code(2);
    let output = quick(&servers, &["slot"]).await.expect_code(2);
    assert!(output.stderr.contains("did you mean `slots`?"), "{}", output.stderr);
}

#[tokio::test]
async fn what_was_written_meanwhile_is_in_order_a_second_later() {
    let servers = warm_clinic().await;
    let (key, _) = some_key(&servers, "services").await;
    let mut cache = servers.cache().await;
    let value: String = cache.get(&key).await.unwrap();
    let () = cache.set_ex(&key, "[]", 3600).await.unwrap();
    let audit = servers.preheat(["audit", "services", "--json"]).shipped_jobs();
    let audit = audit.start();
    // The audit's look is the first read of that key from here on.
    support::eventually("the audit looks", support::LONG, async || {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query_async(&mut cache).await.unwrap();
        let pttl = stats.lines().find(|line| line.starts_with("cmdstat_pttl:calls="));
        pttl.is_some()
    })
    .await;
    let () = cache.set_ex(&key, &value, 3600).await.unwrap();
    let report = audit.ended().await.expect_code(0).json();
    let job = &report["jobs"][0];
    assert_eq!((&job["stale"], &job["expected"]), (&json!(0), &json!(21)), "{job}");
    let within = job["equal_within"].as_array().unwrap();
    let keys: Vec<u64> = within.iter().map(|one| one["keys"].as_u64().unwrap()).collect();
    assert_eq!((keys[0], keys[1..].iter().sum()), (20, 1), "on a slow machine within ten seconds");
}

#[tokio::test]
async fn without_a_server_the_exit_code_is_3() {
    let servers = servers().await;
    let nobody = "postgres://postgres@127.0.0.1:1/none";
    let audit = |database: &str, cache: String| {
        jobs(preheat(["audit"]).database(database).cache(cache)).run()
    };
    audit(nobody, servers.redis.url()).await.expect_code(3);
    audit(&servers.database.url(), "redis://127.0.0.1:1".to_owned()).await.expect_code(3);
    let settings = "[tenants]\nsql = \"select id from nowhere\"\n";
    let output = jobs(servers.preheat(["audit"])).settings(settings).run().await.expect_code(2);
    assert!(output.stderr.contains("nowhere"), "{}", output.stderr);
}

#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_named_and_fails_the_audit() {
    let servers = servers().await;
    let fragile = SERVICES.replace("price from", "60 / duration_minutes as n from");
    servers.preheat(["warm"]).job("services", &fragile).run().await.expect_code(0);
    let (_, tenant) = some_key(&servers, "services").await;
    let sql = format!("update services set duration_minutes = 0 where tenant_id = '{tenant}'");
    servers.database.execute(&sql).await;
    let output = servers.preheat(["audit", "--quick"]).job("services", &fragile).run().await;
    let output = output.expect_code(1);
    let said = format!("  not compared: query, 1 in all, the first of tenant `{tenant}`: ");
    assert!(output.stdout.contains(&said), "{}", output.stdout);
    let json =
        servers.preheat(["audit", "--quick", "--json"]).job("services", &fragile).run().await;
    assert!(json.stdout.contains("\"threshold\": 0.999,"), "{}", json.stdout);
    let verdict = "\nwhat was compared is within the threshold of 99.9%, but not all of `services` \
                   could be compared\n";
    assert!(output.stdout.ends_with(verdict), "{}", output.stdout);
    assert!(output.stdout.contains("division by zero"), "{}", output.stdout);
}

#[tokio::test]
async fn the_table_fits_a_terminal_of_eighty_columns_whatever_the_jobs_name() {
    let servers = servers().await;
    let long = "the-services-of-each-clinic-with-their-prices-as-of-this-morning";
    let audit = servers.preheat(["audit", "--quick"]).job(long, SERVICES);
    let Some(audit) = audit.on_terminal(80) else {
        return support::skipped("no `script` makes a terminal");
    };
    let output = audit.run().await.expect_code(1);
    let table: Vec<_> = output.stdout.lines().take_while(|line| !line.trim().is_empty()).collect();
    assert!(table.len() > 2, "{}", output.stdout);
    assert!(table.iter().all(|line| line.trim_end().chars().count() <= 80), "{}", output.stdout);
    assert!(table[0].trim_end().ends_with("orphaned wrong ttl"), "{}", output.stdout);
}

#[tokio::test]
async fn a_worker_measures_how_consistent_its_cache_is() {
    let shop = Shop::open(8).await;
    let settings = "[audit]\ninterval = \"1s\"\nsample = 4\n";
    let worker = shop.serve().settings(settings).job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    worker
        .metric_becomes("preheat_consistency_ratio{job_name=\"items\"}", |share| share > 0.999)
        .await;
    worker
        .metric_becomes("preheat_coverage_ratio{job_name=\"items\"}", |share| share > 0.999)
        .await;
    let now = worker.metric("preheat_last_audit_timestamp_seconds{job_name=\"items\"}").await;
    let series = "preheat_last_audit_timestamp_seconds{job_name=\"items\"}";
    worker.metric_becomes(series, |at| Some(at) > now).await;
    worker.signal(rustix::process::Signal::TERM);
    let output = worker.ended().await.expect_code(0);
    assert!(!output.stderr.contains("WARN"), "{}", output.stderr);

    let worker = shop.serve().settings("[audit]\ninterval = \"off\"\n").job("items", &items(""));
    let worker = worker.start();
    worker.works().await;
    assert_eq!(worker.metric(series).await, None);
}
