//! `preheat invalidate`.

use std::collections::BTreeMap;

use redis::AsyncCommands;
use serde_json::{Value, json};

use super::{GLOBAL, PETS, SERVICES, Servers, servers};
use crate::support::program::{Output, Preheat};
use crate::support::{self, preheat};

fn with_jobs(program: Preheat) -> Preheat {
    program.job("services", SERVICES).job("fleet", GLOBAL).job("pets", PETS)
}

impl Servers {
    async fn warm(&self) -> BTreeMap<String, String> {
        with_jobs(self.preheat(["warm"])).run().await.expect_code(0);
        self.values().await
    }

    async fn invalidate(&self, arguments: &[&str]) -> Output {
        let all = ["invalidate"].into_iter().chain(arguments.iter().copied());
        with_jobs(self.preheat(all)).run().await
    }
}

#[tokio::test]
async fn what_is_named_is_removed_and_told() {
    let servers = servers().await;
    let before = servers.warm().await;
    let active = servers.active().await;
    let (first, second) = (format!("services:{}", active[0]), format!("services:{}", active[1]));

    let said = servers.invalidate(&["--key", &first, "--key", "fleet", "--key", "none"]).await;
    assert_eq!(
        said.expect_code(0).stdout,
        "2 keys removed, 2 fences moved before\n  3 keys named: 2 keys removed\n  \
         of job `fleet`: 1 key\n  of job `services`: 1 key\n"
    );
    let said = servers.invalidate(&["--job", "services", "--tenant", &active[1]]).await;
    let said = said.expect_code(0).stdout;
    assert!(said.contains("  1 job of 1 tenant: 1 key removed\n"), "{said}");
    let none = servers.invalidate(&["--tenant", "nosuch", "--dry-run"]).await.expect_code(0);
    assert!(
        none.stderr.contains("warning: there is no active tenant `nosuch`\n"),
        "{}",
        none.stderr
    );
    assert!(!said.contains("warning"), "{said}");
    let mut left = before;
    for key in [first.as_str(), second.as_str(), "fleet"] {
        left.remove(key).unwrap();
    }
    assert_eq!(servers.values().await, left);
    let fence: i64 =
        servers.cache().await.get(format!("preheat:fence:{}", active[0])).await.unwrap();
    assert!(fence > 1 << 40, "{fence}");
}

#[tokio::test]
async fn a_report_is_one_json_document_with_the_runs_that_warmed_again() {
    let servers = servers().await;
    let before = servers.warm().await;
    let active = servers.active().await;
    let arguments = ["--tenant", &active[0], "--job", "fleet", "--rewarm", "--json"];
    let usage = servers.invalidate(&arguments).await.expect_code(2);
    assert!(usage.stderr.contains("job `fleet` warms all tenants together"), "{}", usage.stderr);

    let arguments = ["--tenant", &active[0], "--key", "fleet", "--rewarm", "--json"];
    let report = servers.invalidate(&arguments).await.expect_code(0).json();
    assert_eq!((&report["complete"], &report["failed"]), (&json!(true), &json!(0)));
    assert_eq!(report["keys"], json!({ "asked": 1, "removed": 1 }));
    assert_eq!(report["jobs_and_tenants"]["tenants"], 1);
    assert_eq!(report["by_job"]["services"], 1);
    assert_eq!(report["removed"].as_u64(), report["by_job"].as_object().map(sum));
    let runs: Vec<_> = report["runs"].as_array().unwrap().iter().collect();
    let jobs: Vec<_> = runs.iter().map(|run| run["job"].as_str().unwrap()).collect();
    assert_eq!(jobs, ["fleet", "pets", "services"]);
    for run in runs {
        assert_eq!(
            (&run["outcome"], &run["report"]["tenants"]["total"]),
            (&json!("ok"), &json!(1))
        );
    }
    assert_eq!(servers.values().await, before);
}

fn sum(counts: &serde_json::Map<String, Value>) -> u64 {
    counts.values().filter_map(Value::as_u64).sum()
}

#[tokio::test]
async fn usage_that_means_nothing_touches_no_server() {
    let cases: [(&[&str], &str); 6] = [
        (&[], "nothing is named to remove"),
        (&["--all"], "nothing is named to remove"),
        (&["--pattern", "*"], "pattern `*` matches every key: if that is meant, say `--all`"),
        (&["--job", "servces"], "there is no job `servces`: did you mean `services`?"),
        (&["--key", "preheat:fence:1"], "`preheat:fence:1` is preheat's own"),
        (&["--key", ""], "a key has 1 to 1024 bytes"),
    ];
    for (arguments, expected) in cases {
        let all = ["invalidate"].into_iter().chain(arguments.iter().copied());
        let nowhere =
            preheat(all).database("postgres://localhost:1/x").cache("redis://localhost:1");
        let said = with_jobs(nowhere).run().await.expect_code(2).stderr;
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let all = ["invalidate", "--key", "a"];
    let nowhere = preheat(all).database("postgres://localhost:1/x").cache("redis://localhost:1");
    with_jobs(nowhere).run().await.expect_code(3);
}

#[tokio::test]
async fn a_cache_that_refuses_is_a_failure_that_names_it() {
    let servers = servers().await;
    let before = servers.warm().await;
    let mut cache = servers.cache().await;
    let user = ["SETUSER", "reader", "on", ">hush-hush", "~*", "+@all", "-unlink", "-del"];
    let _: () = redis::cmd("ACL").arg(&user).query_async(&mut cache).await.unwrap();
    let url = servers.redis.url().replace('?', "?user=reader&pass=hush-hush&");
    let url = if url.contains("user=") { url } else { format!("{url}?user=reader&pass=hush-hush") };
    let program = servers.preheat(["invalidate", "--key", "fleet", "--json"]).cache(url);
    let said = with_jobs(program).run().await.expect_code(1);
    let report = said.json();
    assert_eq!((&report["complete"], &report["failed"]), (&json!(false), &json!(1)));
    assert_eq!(report["failures"][0]["kind"], "cache_permission");
    assert!(said.stderr.contains("error: "), "{}", said.stderr);
    assert_eq!(servers.values().await, before);
}

#[tokio::test]
async fn hazard_17_two_hundred_thousand_keys_go_in_slices_and_nothing_else() {
    const KEYS: u64 = 200_000;
    let servers = servers().await;
    let mut cache = servers.cache().await;
    let script = "for n = ARGV[1], ARGV[1] + 1999 do redis.call('set', 'app:junk:' .. n, n) end";
    for first in (0..KEYS).step_by(2_000) {
        let mut fill = redis::cmd("EVAL");
        let _: () = fill.arg(script).arg(0).arg(first).query_async(&mut cache).await.unwrap();
    }
    let others = ["junk:1", "app:other", "other:junk:1", "app:preheat:junk:1", "ap", "App:junk:1"];
    for key in others {
        let _: () = cache.set(key, "1").await.unwrap();
    }
    support::forget_commands(&mut cache).await;
    let program = servers.preheat(["invalidate", "--pattern", "*junk:*", "--json"]);
    let program = with_jobs(program).env("PREHEAT_CACHE__PREFIX", "app:");
    let report = program.run().await.expect_code(0).json();
    assert_eq!(report["removed"], KEYS);
    let patterns = &report["patterns"];
    assert_eq!((&patterns["asked"], &patterns["kept"]), (&json!(1), &json!(1)));
    let slices = patterns["slices"].as_u64().unwrap();
    let called = support::commands(&mut cache).await;
    assert_eq!(called.get("scan"), Some(&slices));
    assert!(slices >= KEYS / 1_000, "{slices} slices");
    assert_eq!(called.get("unlink"), Some(&KEYS));
    for never in ["keys", "del", "flushdb", "flushall", "eval"] {
        assert_eq!(called.get(never), None, "{never}");
    }
    let mut left: Vec<String> = cache.keys("*").await.unwrap();
    left.sort_unstable();
    assert_eq!(
        left,
        ["App:junk:1", "ap", "app:other", "app:preheat:junk:1", "junk:1", "other:junk:1"]
    );
}

#[tokio::test]
async fn hazard_33_a_pattern_may_take_characters_of_globs_as_they_are() {
    let servers = servers().await;
    let mut cache = servers.cache().await;
    let odd = ["x:*", "x:?", "x:[a]", "x:\\", "x:a", "x:ab"];
    for key in odd {
        let _: () = cache.set(key, "1").await.unwrap();
    }
    let left = async || servers.values().await.into_keys().collect::<Vec<_>>().join(" ");
    for (pattern, expected) in [
        ("x:\\*", "x:? x:[a] x:\\ x:a x:ab"),
        ("x:\\[a\\]", "x:? x:\\ x:a x:ab"),
        ("x:\\\\", "x:? x:a x:ab"),
        ("x:[ab]", "x:? x:ab"),
        ("x:?", "x:ab"),
        ("x:*", ""),
    ] {
        servers.invalidate(&["--pattern", pattern]).await.expect_code(0);
        assert_eq!(left().await, expected, "{pattern}");
    }
}

#[tokio::test]
async fn hazard_09_a_pet_that_moved_keeps_its_key_when_its_former_clinic_is_invalidated() {
    let servers = servers().await;
    servers.warm().await;
    let owners = "select tenant_id::text from pets where tenant_id in \
        (select id from tenants where status = 'active') group by 1 having count(*) > 1 order by 1";
    let owners = servers.texts(owners).await;
    let (former, new) = (owners[0].as_str(), owners[1].as_str());
    let pets = async |tenant: &str| {
        let sql = format!("select 'pet:' || id from pets where tenant_id = '{tenant}' order by id");
        servers.texts(&sql).await
    };
    let moved = pets(former).await.remove(0);
    let id = moved.trim_start_matches("pet:");
    let sql = format!("update pets set tenant_id = '{new}' where id = '{id}'");
    servers.database.execute(&sql).await;
    with_jobs(servers.preheat(["warm", "pets", "--tenant", new])).run().await.expect_code(0);
    let left = pets(former).await;
    assert!(!left.is_empty());

    let said = servers.invalidate(&["--tenant", former]).await.expect_code(0).stdout;
    assert!(said.contains(&format!("  of job `pets`: {} key", left.len())), "{said}");
    let keys = servers.values().await;
    assert!(keys.contains_key(&moved) && !left.iter().any(|pet| keys.contains_key(pet)));
    servers.invalidate(&["--job", "pets", "--tenant", new]).await.expect_code(0);
    assert!(!servers.values().await.contains_key(&moved), "it is the new clinic's to lose");
    // Texts that cannot be ids, and tenants that never existed, have no rows.
    let never = "00000000-0000-4000-8000-000000000000";
    servers.invalidate(&["--tenant", "seven", "--tenant", never]).await.expect_code(0);
}

#[tokio::test]
async fn a_query_that_fails_is_named_with_what_it_left() {
    let servers = servers().await;
    servers.warm().await;
    let tenant = servers.active().await.remove(0);
    servers.database.execute("alter table pets rename column name to called").await;
    let said = servers.invalidate(&["--tenant", &tenant, "--json"]).await.expect_code(1);
    let report = said.json();
    assert_eq!((&report["complete"], &report["removed"]), (&json!(false), &json!(1)));
    let told = "error: the shared keys of job `pets` could not be told and were not removed: ";
    assert!(said.stderr.contains(told), "{}", said.stderr);
    let keys = servers.values().await;
    assert!(!keys.contains_key(&format!("services:{tenant}")));
    assert!(keys.keys().any(|key| key.starts_with("pet:")));
}

#[tokio::test]
async fn hazard_13_warming_never_clears_before_it_loads() {
    let servers = servers().await;
    let warm = async || {
        servers.preheat(["warm"]).shipped_jobs().run().await.expect_code(0);
        let mut keys = servers.values().await.into_keys().collect::<Vec<_>>();
        keys.sort_unstable();
        keys
    };
    let before = warm().await;
    let mut cache = servers.cache().await;
    support::forget_commands(&mut cache).await;
    assert_eq!(warm().await, before);
    let called = support::commands(&mut cache).await;
    assert!(called["set"] >= before.len() as u64);
    for never in ["unlink", "del", "getdel", "rename", "flushdb", "flushall", "scan", "keys"] {
        let called = called.get(never);
        // This test itself runs `KEYS` once.
        let own = if never == "keys" { Some(&1) } else { None };
        assert_eq!(called, own, "{never}");
    }
}
