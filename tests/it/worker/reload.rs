//! The worker reads the job files again: after SIGHUP, and when they have changed.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::program::Running;
use crate::support::shop::{QUERY, Shop, failure_kinds, items};
use crate::support::{LONG, eventually};

/// A job with the same items under its own keys.
fn job(name: &str, lines: &str) -> String {
    items(lines).replace("items:", &format!("{name}:"))
}

const EVERY_SECOND: &str = "schedule = \"every 1s\"\nttl = \"1m\"\ntimeout = \"10s\"";

async fn names(worker: &Running) -> Vec<String> {
    let jobs = worker.get("/api/v1/jobs").await.json();
    let names = jobs["jobs"].as_array().unwrap().iter();
    names.map(|job| job["name"].as_str().unwrap().to_owned()).collect()
}

async fn ask(worker: &Running, job: &str, body: Value) -> String {
    let answer = worker.post(&format!("/api/v1/jobs/{job}/runs"), &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn run(worker: &Running, id: &str) -> Value {
    let answer = worker.get(&format!("/api/v1/runs/{id}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn remove(worker: &Running, job: &str) {
    std::fs::remove_file(worker.folder().join(format!("jobs/{job}.toml"))).unwrap();
}

#[tokio::test]
async fn jobs_that_stay_go_on_and_those_that_are_new_or_changed_begin() {
    let shop = Shop::open(3).await;
    let lines = "required = true";
    let mut worker = shop
        .serve()
        // More than the runs that are held, so that their records can be read meanwhile.
        .env("PREHEAT_DATABASE__MAX_CONNECTIONS", "8")
        .job("stays", &job("stays", lines))
        .job("changes", &job("changes", lines))
        .job("goes", &job("goes", lines))
        .start();
    worker.answers("/readyz", 200).await;
    let holder = shop.hold().await;
    let staying = ask(&worker, "stays", json!({})).await;
    let going = ask(&worker, "goes", json!({})).await;
    shop.held(2).await;
    let waiting = ask(&worker, "goes", json!({"tenants": ["2"]})).await;

    remove(&worker, "goes");
    worker.write("jobs/changes.toml", &job("changes", EVERY_SECOND));
    worker.write("jobs/new.toml", &job("new", ""));
    worker.write("jobs/quiet.toml", &job("quiet", "on_start = false"));
    worker.signal(Signal::HUP);
    worker.says("the job files were read again: 4 jobs").await;
    assert_eq!(names(&worker).await, ["changes", "new", "quiet", "stays"]);
    assert_eq!(worker.post("/api/v1/jobs/goes/runs", &json!({})).await.status, 404);
    let waiting = run(&worker, &waiting).await;
    assert_eq!(waiting["outcome"], "cancelled");
    let message = waiting["report"]["failures"][0]["message"].as_str();
    assert_eq!(message, Some("the job's file was gone before the run began"));
    for id in [&staying, &going] {
        assert_eq!(run(&worker, id).await["state"], "running");
    }
    let success = "preheat_last_success_timestamp_seconds{job_name=\"goes\"}";
    assert!(worker.metric(success).await > Some(0.0));

    drop(holder);
    for id in [&staying, &going] {
        eventually("it has ended", LONG, async || run(&worker, id).await["outcome"] == "ok").await;
    }
    eventually("the changed job is due", LONG, async || {
        let runs = worker.runs("changes").await;
        runs.iter().filter(|run| run["trigger"] == "schedule").count() >= 2
    })
    .await;
    let triggers = async |job: &str| -> Vec<String> {
        let runs = worker.runs(job).await.into_iter();
        runs.map(|run| run["trigger"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(triggers("stays").await, ["request", "startup"]);
    assert_eq!(triggers("new").await, ["startup"]);
    assert!(triggers("quiet").await.is_empty());
    assert_eq!(triggers("changes").await.iter().filter(|from| *from == "startup").count(), 2);
    assert_eq!(worker.metric(success).await, None, "the alert on it would never end");
    let ok = "preheat_runs_total{job_name=\"goes\",trigger=\"request\",outcome=\"ok\"}";
    assert_eq!(worker.metric(ok).await, Some(1.0));
    assert_eq!(worker.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn files_with_problems_change_nothing_and_are_shown_until_they_are_mended() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &items(EVERY_SECOND)).start();
    worker.answers("/readyz", 200).await;
    let rejected = "preheat_jobs_rejected";
    assert_eq!(worker.metric(rejected).await, Some(0.0));
    worker.write("jobs/new.toml", &job("new", "retries = 21\nshedule = \"every 1h\""));
    worker.signal(Signal::HUP);
    worker.metric_becomes(rejected, |count| count > 0.5).await;
    worker.says("the job files have problems, the last good ones stay in use").await;
    for part in ["jobs/new.toml", "retries", "shedule"] {
        worker.says(part).await;
    }
    assert_eq!(names(&worker).await, ["items"]);
    let before = worker.runs("items").await.len();
    eventually("it goes on", LONG, async || worker.runs("items").await.len() > before + 1).await;
    assert_eq!(worker.get("/healthz").await.status, 200);

    worker.write("jobs/new.toml", &job("new", "retries = 20"));
    worker.signal(Signal::HUP);
    worker.metric_becomes(rejected, |count| count < 0.5).await;
    assert_eq!(names(&worker).await, ["items", "new"]);

    for file in ["items", "new"] {
        remove(&worker, file);
    }
    worker.signal(Signal::HUP);
    worker.metric_becomes(rejected, |count| count > 0.5).await;
    worker.says("the jobs folder has no job file").await;
    assert_eq!(names(&worker).await, ["items", "new"], "an empty folder is the wrong folder");
}

#[tokio::test]
async fn a_job_that_is_disabled_ends_its_run_and_cancels_those_that_wait() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &items("on_start = false")).start();
    worker.answers("/readyz", 200).await;
    let holder = shop.hold().await;
    let running = ask(&worker, "items", json!({})).await;
    shop.held(1).await;
    let waiting = ask(&worker, "items", json!({"tenants": ["2"]})).await;
    worker.write("jobs/items.toml", &items("enabled = false"));
    worker.signal(Signal::HUP);
    worker.says("the job files were read again").await;
    let waiting = run(&worker, &waiting).await;
    assert_eq!(failure_kinds(&waiting), ["cancelled"]);
    assert_eq!(worker.post("/api/v1/jobs/items/runs", &json!({})).await.status, 409);
    assert_eq!(worker.get("/api/v1/jobs/items").await.json()["next_due_at"], Value::Null);
    drop(holder);
    eventually("the run has ended", LONG, async || run(&worker, &running).await["outcome"] == "ok")
        .await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_job_whose_file_comes_back_while_its_run_goes_on_does_not_run_twice_at_once() {
    let shop = Shop::open(3).await;
    let worker = shop.serve().job("items", &items("")).job("other", &job("other", "")).start();
    worker.answers("/readyz", 200).await;
    eventually("both ran", LONG, async || shop.is_warm().await).await;
    let holder = shop.hold().await;
    let first = ask(&worker, "items", json!({})).await;
    shop.held(1).await;
    remove(&worker, "items");
    worker.signal(Signal::HUP);
    eventually("the job is gone", LONG, async || names(&worker).await == ["other"]).await;
    worker.write("jobs/items.toml", &items(""));
    worker.signal(Signal::HUP);
    eventually("it is back", LONG, async || names(&worker).await.len() == 2).await;
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!(job["running"]["id"], first);
    assert_eq!(job["queued"].as_array().map(Vec::len), Some(1));
    drop(holder);
    eventually("both runs have ended", LONG, async || worker.runs("items").await.len() == 3).await;
    let runs = worker.runs("items").await;
    assert!(runs.iter().all(|run| run["outcome"] == "ok"), "{runs:?}");
    assert!(runs[1]["finished_at"].as_str() <= runs[0]["started_at"].as_str(), "{runs:?}");
}

/// Points `..data` to the files of another version, as the kubelet does.
fn publish(jobs: &Path, version: &str, text: &str) {
    std::fs::create_dir(jobs.join(version)).unwrap();
    std::fs::write(jobs.join(version).join("items.toml"), text).unwrap();
    symlink(version, jobs.join("..data_tmp")).unwrap();
    std::fs::rename(jobs.join("..data_tmp"), jobs.join("..data")).unwrap();
}

#[tokio::test]
async fn a_mounted_config_map_is_a_jobs_folder_and_can_be_published_anew() {
    let shop = Shop::open(3).await;
    let worker = shop.serve();
    let jobs = worker.folder().join("jobs");
    publish(&jobs, "..2026_01", &items("required = true"));
    symlink("..data/items.toml", jobs.join("items.toml")).unwrap();
    let mut worker = worker.start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    publish(&jobs, "..2026_02", &items("description = \"of February\""));
    worker.signal(Signal::HUP);
    worker.says("the job files were read again: 1 job").await;
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!(job["description"], "of February");
}

#[tokio::test]
async fn signals_in_a_row_end_with_the_files_as_they_are() {
    let shop = Shop::open(3).await;
    let worker = shop.serve().job("items", &items(EVERY_SECOND)).start();
    worker.answers("/readyz", 200).await;
    for number in 0..20 {
        worker.write("jobs/other.toml", &job("other", &format!("retries = {number}")));
        worker.signal(Signal::HUP);
        worker.get("/healthz").await;
    }
    worker.write("jobs/last.toml", &job("last", ""));
    worker.signal(Signal::HUP);
    eventually("the last file counts", LONG, async || {
        names(&worker).await == ["items", "last", "other"]
    })
    .await;
    let before = worker.runs("items").await.len();
    eventually("jobs go on", LONG, async || worker.runs("items").await.len() > before + 1).await;
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
}

const READ_AGAIN: &str = "the job files were read again";

#[tokio::test]
async fn files_that_change_are_noticed_without_a_signal() {
    let shop = Shop::open(3).await;
    let worker = shop.serve();
    let jobs = worker.folder().join("jobs");
    publish(&jobs, "..2026_01", &items("required = true"));
    symlink("..data/items.toml", jobs.join("items.toml")).unwrap();
    let mut worker = worker.start();
    worker.answers("/readyz", 200).await;
    publish(&jobs, "..2026_02", &items("description = \"of February\""));
    worker.says(&format!("{READ_AGAIN}: 1 job")).await;
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!(job["description"], "of February");

    let by_file = items("").replace(&format!("sql = '''{QUERY}'''"), "file = \"items.sql\"");
    worker.write("jobs/items.sql", QUERY);
    worker.write("jobs/other.toml", &by_file.replace("items:", "other:"));
    worker.says(&format!("{READ_AGAIN}: 2 jobs")).await;
    worker.write("jobs/items.sql", "select tenant_id, id from items where tenant_id = any($1)");
    eventually("its SQL was read again", LONG, async || {
        worker.stderr().matches(READ_AGAIN).count() == 3
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_being_written_and_a_folder_that_is_gone_take_no_job_away() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    let whole = job("other", "");
    worker.write("jobs/other.toml", &whole[..whole.len() / 2]);
    worker.write("jobs/other.toml", &whole);
    worker.says(&format!("{READ_AGAIN}: 2 jobs")).await;
    assert!(!worker.stderr().contains("have problems"), "{}", worker.stderr());

    // This one is never completed.
    worker.write("jobs/third.toml", &whole[..whole.len() / 2]);
    worker.metric_becomes("preheat_jobs_rejected", |count| count > 0.5).await;
    assert_eq!(names(&worker).await, ["items", "other"]);
    remove(&worker, "third");
    worker.metric_becomes("preheat_jobs_rejected", |count| count < 0.5).await;

    let jobs = worker.folder().join("jobs");
    let away = worker.folder().join("away");
    std::fs::rename(&jobs, &away).unwrap();
    worker.says("could not read the jobs folder").await;
    assert_eq!(names(&worker).await, ["items", "other"]);
    std::fs::rename(&away, &jobs).unwrap();
    worker.metric_becomes("preheat_jobs_rejected", |count| count < 0.5).await;
    let rejections = worker.stderr().matches("the job files have problems").count();
    assert_eq!(rejections, 2, "each is told once:\n{}", worker.stderr());
    assert_eq!(names(&worker).await, ["items", "other"]);
}

#[tokio::test]
async fn a_worker_that_is_not_to_watch_waits_for_the_signal() {
    let shop = Shop::open(3).await;
    let worker = shop.serve().env("PREHEAT_RUNNER__WATCH_JOBS", "false");
    let mut worker = worker.job("items", &items(EVERY_SECOND)).start();
    worker.answers("/readyz", 200).await;
    worker.write("jobs/other.toml", &job("other", ""));
    let before = worker.runs("items").await.len();
    // The watch would have looked three times.
    eventually("time has passed", LONG, async || worker.runs("items").await.len() > before + 7)
        .await;
    assert_eq!(names(&worker).await, ["items"]);
    worker.signal(Signal::HUP);
    worker.says(&format!("{READ_AGAIN}: 2 jobs")).await;
}

#[tokio::test]
async fn a_job_says_where_each_value_comes_from_after_a_reload_too() {
    let shop = Shop::open(3).await;
    let worker = shop
        .serve()
        .settings("[runner]\nconcurrency = 3\n")
        .env("PREHEAT_RUNNER__BATCH", "7")
        .job("items", &items(""))
        .start();
    worker.answers("/readyz", 200).await;
    let defined = async || {
        let job = worker.get("/api/v1/jobs/items/overview").await.json();
        let fields = job["definition"].as_array().unwrap().iter();
        let pair = |one: &Value| {
            let text = |name: &str| one[name].as_str().unwrap_or("unknown").to_owned();
            (text("field"), (text("value"), text("origin")))
        };
        fields.map(pair).collect::<BTreeMap<_, _>>()
    };
    let line_of = |text: &str, field: &str| {
        text.lines().position(|line| line.starts_with(field)).unwrap() + 1
    };
    let first = defined().await;
    let origin = |of: &BTreeMap<String, (String, String)>, field: &str| of[field].1.clone();
    assert_eq!(
        first["batch"],
        ("7".into(), "variable `PREHEAT_RUNNER__BATCH` (`runner.batch`)".into())
    );
    assert!(origin(&first, "concurrency").ends_with("preheat.toml:2 (`runner.concurrency`)"));
    assert_eq!(first["retries"].1, "default");
    let ttl = format!("items.toml:{}", line_of(&items(""), "ttl"));
    assert!(origin(&first, "ttl").ends_with(&ttl), "{first:?}");
    assert!(origin(&first, "keys.0.key").contains("items.toml:"), "{first:?}");

    worker.write("jobs/items.toml", &format!("# a line more\nbatch = 5\n{}", items("")));
    worker.signal(Signal::HUP);
    eventually("the file is read again", LONG, async || defined().await["batch"].0 == "5").await;
    eventually("so are its lines", LONG, async || {
        origin(&defined().await, "batch").ends_with("items.toml:2")
    })
    .await;

    // The file is rejected, and the older version stays in use.
    let rejected = items("").replace("from items", "from nowhere");
    worker.write("jobs/items.toml", &rejected);
    worker.signal(Signal::HUP);
    eventually("the places are not known", LONG, async || {
        let now = defined().await;
        now["batch"] == ("5".to_owned(), "unknown".to_owned())
    })
    .await;
    let page = worker.get("/jobs/items").await.body;
    assert!(page.contains("the places are not known"), "{page}");
}

#[tokio::test]
async fn files_that_cannot_be_read_show_wherever_an_operator_looks() {
    let shop = Shop::open(3).await;
    let mut worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    worker.write("jobs/other.toml", &job("other", "schedule = \"every banana\""));
    worker.signal(Signal::HUP);
    worker.says("the job files have problems").await;
    let ready = worker.get("/readyz").await;
    assert_eq!(ready.status, 200, "the last good files stay in use");
    let problem = ready.json()["unreadable"][0].take();
    assert!(problem["file"].as_str().unwrap().ends_with("other.toml"), "{problem}");
    assert!(problem["line"].as_u64() > Some(0), "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("a duration is"), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("every 10m"), "{problem}");
    assert_eq!(worker.get("/api/v1/settings").await.json()["unreadable"], json!([problem]));
    assert!(worker.get("/settings").await.body.contains("Files with problems"));
    let overview = worker.get("/api/v1/overview").await.json();
    let trouble = &overview["troubles"][0];
    assert_eq!(trouble["kind"], "files_unreadable", "{overview}");
    assert!(trouble["reason"].as_str().unwrap().contains("other.toml:"), "{trouble}");

    remove(&worker, "other");
    worker.signal(Signal::HUP);
    eventually("the files are in use", LONG, async || {
        worker.get("/readyz").await.json()["unreadable"] == json!([])
    })
    .await;
    assert_eq!(worker.get("/api/v1/overview").await.json()["troubles"], json!([]));
}
