//! A pause over restarts, reloads and replicas, with a history and without; and the commands that steer
//! a worker.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::program::{Output, Preheat, Running};
use crate::support::shop::{Shop, TOKEN, items};
use crate::support::{LONG, eventually, preheat};

const EAGER: &str = "schedule = \"every 1s\"";

async fn pause_of(worker: &Running, job: &str) -> Value {
    worker.get(&format!("/api/v1/jobs/{job}")).await.json()["pause"].clone()
}

/// Runs a command against the worker.
async fn ask(worker: &Running, words: &[&str]) -> Output {
    let url = format!("http://{}", worker.address());
    let words = words.iter().copied().chain(["--url", &url]);
    preheat(words).env("PREHEAT_HTTP__TOKEN", TOKEN).run().await
}

/// A pause outlives the worker and a changed job file, and another worker follows it.
async fn a_pause_outlives_the_worker(shop: &Shop, serve: impl Fn() -> Preheat, kept_in: &str) {
    let job = || items(EAGER);
    let worker = serve().job("items", &job()).start();
    worker.answers("/readyz", 200).await;
    let body = json!({ "note": "vet migration" });
    let answer = worker.post("/api/v1/jobs/items/pause", &body).await.json();
    assert_eq!((&answer["kept"], &answer["kept_in"]), (&json!(true), &json!(kept_in)), "{answer}");
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);

    let mut cache = shop.cache().await;
    let () = redis::cmd("DEL").arg("items:2").query_async(&mut cache).await.unwrap();
    let worker = serve().job("items", &format!("{}\n", job())).start();
    worker.works().await;
    assert_eq!(pause_of(&worker, "items").await["note"], "vet migration");
    let skipped = "preheat_runs_skipped_total{job_name=\"items\",reason=\"paused\"}";
    worker.metric_becomes(skipped, |skipped| skipped >= 2.0).await;
    assert_eq!(shop.value("items:2").await, None, "neither its start nor its schedule runs it");
    let other = serve().job("items", &job()).start();
    other.works().await;
    let resumed = other.post("/api/v1/jobs/items/resume", &json!({})).await.json();
    assert_eq!(resumed["jobs"][0]["pause"], Value::Null);
    eventually("the first worker follows", LONG, async || {
        pause_of(&worker, "items").await.is_null()
    })
    .await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
    for worker in [worker, other] {
        worker.signal(Signal::TERM);
        worker.ended().await.expect_code(0);
    }
}

#[tokio::test]
async fn a_pause_in_the_history_outlives_the_worker() {
    let shop = Shop::open(3).await;
    a_pause_outlives_the_worker(&shop, || shop.serve(), "database").await;
    assert_eq!(shop.number("select count(*) from preheat.pauses").await, 0);
}

#[tokio::test]
async fn a_pause_in_the_cache_outlives_the_worker_without_history() {
    let shop = Shop::open(3).await;
    let serve = || shop.serve().env("PREHEAT_HISTORY__ENABLED", "false");
    a_pause_outlives_the_worker(&shop, serve, "cache").await;
}

#[tokio::test]
async fn a_worker_is_asked_and_steered_by_commands() {
    let shop = Shop::open(4).await;
    let job = items("on_start = false");
    let worker =
        shop.serve().job("items", &job).job("more", &job.replace("items:", "more:")).start();
    worker.works().await;
    let run = ask(&worker, &["run", "items", "--wait"]).await.expect_code(0);
    assert!(run.stdout.contains("items") && run.stdout.contains(" ok"), "{}", run.stdout);
    let some = ask(&worker, &["run", "--tenant", "2", "--json", "--wait"]).await.expect_code(0);
    assert_eq!(some.json()["runs"].as_array().unwrap().len(), 2);
    assert_eq!(some.json()["runs"][0]["report"]["tenants"]["ok"], 1);

    let paused = ask(&worker, &["pause", "items", "--note", "look", "--for", "20m"]).await;
    let paused = paused.expect_code(0).stdout;
    assert!(paused.starts_with("job `items` is paused until 20"), "{paused}");
    assert!(paused.ends_with(" by token: look\n"), "{paused}");
    let status = ask(&worker, &["status"]).await;
    assert!(status.stdout.contains("paused"), "{}", status.stdout);
    assert!(status.stdout.lines().all(|line| line.chars().count() <= 80), "{}", status.stdout);
    let pause = "Job `items` is paused (token: look).";
    assert_eq!(status.stdout.matches(pause).count(), 1, "{}", status.stdout);
    assert!(status.stdout.contains("\n    next   The pause ends at "), "{}", status.stdout);
    assert!(status.stdout.contains("\n    since  "), "{}", status.stdout);
    assert!(ask(&worker, &["status", "--json"]).await.json()["verdict"]["sentence"].is_string());
    let all = ask(&worker, &["pause", "--all", "--note", "x", "--json"]).await.expect_code(0);
    assert_eq!(all.json()["jobs"][0]["pause"]["note"], "look", "{}", all.stdout);
    let resumed = ask(&worker, &["resume", "--all"]).await.expect_code(0);
    assert_eq!(resumed.stdout, "job `items` is resumed\njob `more` is resumed\n");
    let resumed = ask(&worker, &["resume", "items"]).await.expect_code(0);
    assert_eq!(resumed.stdout, "job `items` was not paused\n");

    eventually("the runs are listed", LONG, async || {
        let runs =
            ask(&worker, &["runs", "--job", "items", "--outcome", "ok", "--since", "1h"]).await;
        runs.expect_code(0).stdout.matches("request").count() == 2
    })
    .await;
    let none = ask(&worker, &["runs", "--outcome", "failed"]).await.expect_code(0);
    assert_eq!(none.stdout, "no runs\n");
    let tenants = ask(&worker, &["tenants", "--not-warm"]).await.expect_code(0);
    assert_eq!(tenants.stdout, "no tenant of 4 is known to be cold\n");
    shop.execute("alter table items add check (version < 3)").await;
    shop.execute("alter table items rename to gone").await;
    let failed = ask(&worker, &["run", "items", "--wait"]).await.expect_code(1);
    let why =
        "query: could not read the rows of job `items`: relation \"items\" does not exist (42P01)";
    assert!(failed.stdout.contains(why), "{}", failed.stdout);
    let runs = ask(&worker, &["runs", "--outcome", "failed"]).await.expect_code(0).stdout;
    let line = runs.lines().find(|line| line.contains(why)).unwrap_or_else(|| panic!("{runs}"));
    let ids = line.split(' ').filter(|word| word.len() == 36 && word.split('-').count() == 5);
    let [id] = ids.collect::<Vec<_>>()[..] else { panic!("{line}") };
    let run = worker.get(&format!("/api/v1/runs/{id}")).await.json();
    assert_eq!(run["outcome"], "failed", "{run}");
    for (text, page) in [(&id[..20], format!("runs/{id}")), ("none", "tenants/none".to_owned())] {
        let found = worker.get(&format!("/find?q={text}")).await;
        let location = found.header("location").unwrap_or_default();
        assert!(location.ends_with(&page), "{text} leads to {location}");
    }
    let tenants = ask(&worker, &["tenants", "--job", "items"]).await.expect_code(1);
    assert!(tenants.stdout.starts_with("4 not warm of 4"), "{}", tenants.stdout);
    assert_eq!(tenants.stdout.matches("does not exist (42P01)").count(), 4, "{}", tenants.stdout);
    let status = ask(&worker, &["status"]).await.expect_code(1).stdout;
    assert!(status.contains(&format!("\n    reason {why}")), "{status}");
}

#[tokio::test]
async fn a_name_of_no_job_is_refused() {
    let shop = Shop::open(2).await;
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.works().await;
    for words in [["runs", "--job", "nope"], ["tenants", "--job", "nope"]] {
        let refused = ask(&worker, &words).await.expect_code(2);
        assert_eq!(refused.stderr, "error: there is no job `nope`\n");
    }
    assert_eq!(ask(&worker, &["runs", "--job", "items"]).await.expect_code(0).stdout, "no runs\n");
    for path in ["/api/v1/events?job=nope", "/api/v1/runs?job=nope", "/api/v1/tenants?job=nope"] {
        let answer = worker.get(path).await;
        assert_eq!(answer.json()["error"]["code"], "unknown_job", "{path}");
    }
    let since = ask(&worker, &["runs", "--since", "yesterday"]).await.expect_code(2);
    assert!(since.stderr.contains("a duration such as `2h`"), "{}", since.stderr);
}

#[tokio::test]
async fn a_command_says_why_a_worker_does_not_obey() {
    let shop = Shop::open(2).await;
    let worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.works().await;
    let unknown = ask(&worker, &["pause", "itms", "--note", "x"]).await.expect_code(2);
    assert_eq!(unknown.stderr, "error: there is no job `itms`\n");
    let both = ask(&worker, &["pause", "items", "--all", "--note", "x"]).await.expect_code(2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
    let url = format!("http://{}", worker.address());
    let wrong = preheat(["resume", "items", "--url", &url]).env("PREHEAT_HTTP__TOKEN", "guess");
    let wrong = wrong.run().await.expect_code(2).stderr;
    assert!(wrong.contains("hint: the settings here have another token"), "{wrong}");
    let none = preheat(["run", "--url", &url]).run().await.expect_code(2).stderr;
    assert!(none.contains("hint: set `PREHEAT_HTTP__TOKEN`"), "{none}");
    let elsewhere = preheat(["status", "--url", &format!("{url}/preheat")]).run().await;
    assert_eq!(elsewhere.code(), Some(2), "{}", elsewhere.stderr);

    let address = worker.address();
    worker.signal(Signal::TERM);
    worker.ended_within(Duration::from_secs(30)).await.expect_code(0);
    let url = format!("http://{address}");
    let away = preheat(["status", "--url", &url]).run().await.expect_code(3).stderr;
    assert!(away.contains("hint: is `preheat serve` running?"), "{away}");
    let no_url = preheat(["status", "--url", "localhost:9464"]).run().await.expect_code(2).stderr;
    assert!(no_url.contains("a worker's address is a URL"), "{no_url}");
}
