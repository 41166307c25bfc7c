//! Schedules with the real clock.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::program::Running;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually, skipped};

/// The lines of a job with this schedule.
fn due(schedule: &str) -> String {
    format!("schedule = \"{schedule}\"\nttl = \"1m\"\ntimeout = \"10s\"\non_start = false")
}

fn moment(run: &Value, field: &str) -> DateTime<Utc> {
    run[field].as_str().unwrap().parse().unwrap()
}

/// The due times, after that moment, of the job's scheduled runs, newest first.
async fn due_after(worker: &Running, job: &str, after: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let runs = worker.runs(job).await;
    let due = runs.iter().filter(|run| run["trigger"] == "schedule");
    due.map(|run| moment(run, "due_at")).filter(|due| *due > after).collect()
}

#[tokio::test]
async fn jobs_run_when_they_are_due() {
    let shop = Shop::open(3).await;
    let worker = shop
        .serve()
        .job("items", &items(&due("every 1s")))
        .job("cron", &items(&due("*/2 * * * * *")).replace("items:", "cron:"))
        .job("hourly", &items("on_start = false").replace("items:", "hourly:"))
        .start();
    worker.works().await;
    for (job, seconds) in [("items", 1), ("cron", 2)] {
        eventually("it ran three times", LONG, async || worker.runs(job).await.len() >= 3).await;
        let runs = worker.runs(job).await;
        assert!(runs.iter().all(|run| run["outcome"] == "ok"), "{runs:?}");
        let due: Vec<_> = runs.iter().map(|run| moment(run, "due_at")).collect();
        assert!(due.iter().all(|due| due.timestamp_subsec_nanos() == 0), "{due:?}");
        assert!(due.iter().all(|due| due.timestamp() % seconds == 0), "{due:?}");
        assert!(due.is_sorted_by(|newer, older| newer > older), "each only once: {due:?}");
        let lags = format!("preheat_fire_lag_seconds_count{{job_name=\"{job}\"}}");
        assert!(worker.metric(&lags).await >= Some(3.0));
    }
    assert!(worker.runs("hourly").await.is_empty());
    let next =
        worker.metric("preheat_next_run_timestamp_seconds{job_name=\"hourly\"}").await.unwrap();
    assert!(next % 3600.0 < f64::EPSILON && next > 1.7e9, "{next}");
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_24_a_due_time_while_a_run_goes_on_is_counted_and_nothing_piles_up() {
    let shop = Shop::open(3).await;
    let holder = shop.hold().await;
    let mut worker = shop.serve().job("items", &items(&due("every 1s"))).start();
    worker.works().await;
    shop.held(1).await;
    let skipped = "preheat_runs_skipped_total{job_name=\"items\",reason=\"overlap\"}";
    worker.metric_becomes(skipped, |count| count >= 2.0).await;
    worker.says("a run of job `items` is skipped: its last run is still going").await;
    let job = worker.get("/api/v1/jobs/items").await.json();
    assert_eq!((&job["state"], &job["queued"]), (&json!("running"), &json!([])));
    drop(holder);
    eventually("it goes on", LONG, async || worker.runs("items").await.len() >= 3).await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_22_more_jobs_at_once_than_the_scheduler_was_made_for_all_run() {
    let shop = Shop::open(1).await;
    let mut worker = shop.serve();
    let names: Vec<_> = (0..220).map(|number| format!("job_{number}")).collect();
    for name in &names {
        let schedule = due("every 4s").replace("on_start = false", "on_start = false\nbatch = 1");
        worker = worker.job(name, &items(&schedule).replace("items:", &format!("{name}:")));
    }
    let worker = worker.start();
    worker.works().await;
    eventually("each ran twice", LONG, async || {
        let page = worker.get("/metrics").await.body;
        let count = |name: &String| {
            let labels = format!("job_name=\"{name}\",trigger=\"schedule\",outcome=\"ok\"");
            let series = format!("preheat_runs_total{{{labels}}} ");
            let value = page.lines().find_map(|line| line.strip_prefix(&series));
            value.is_some_and(|value| value.parse::<u64>().unwrap() >= 2)
        };
        names.iter().all(count)
    })
    .await;
}

/// Longer than every interval, than the five seconds after which jobs of the scheduler's crate stop
/// for good, and than a scheduler may be silent.
const STOPPED: Duration = Duration::from_secs(11);

#[tokio::test]
async fn hazard_22_and_23_after_the_process_was_stopped_every_job_goes_on_after_one_run() {
    let shop = Shop::open(3).await;
    let jobs = [("items", "every 1s"), ("two", "every 2s"), ("cron", "*/3 * * * * *")];
    let mut worker = shop.serve();
    for (job, schedule) in jobs {
        worker = worker.job(job, &items(&due(schedule)).replace("items:", &format!("{job}:")));
    }
    let worker = worker.start();
    worker.works().await;
    for (job, _) in jobs {
        eventually("it runs", LONG, async || !worker.runs(job).await.is_empty()).await;
    }
    worker.signal(Signal::STOP);
    let stopped_at = Utc::now();
    tokio::time::sleep(STOPPED).await;
    shop.change().await;
    let continued_at = Utc::now();
    worker.signal(Signal::CONT);
    worker.works().await;
    for (job, _) in jobs {
        eventually("it goes on", LONG, async || {
            due_after(&worker, job, continued_at).await.len() >= 2
        })
        .await;
        let mut missed = due_after(&worker, job, stopped_at).await;
        missed.retain(|due| *due < continued_at);
        assert!(missed.len() <= 1, "{job} caught up more than once: {missed:?}");
        // There is no catch-up run if the stop came during a run: the run's tick covers it.
        if missed.is_empty() {
            let skipped = "preheat_runs_skipped_total";
            let skipped = format!("{skipped}{{job_name=\"{job}\",reason=\"overlap\"}}");
            assert!(worker.metric(&skipped).await >= Some(1.0), "{job}: a tick is lost");
            continue;
        }
        let late = format!("preheat_fire_lag_seconds_bucket{{le=\"5.0\",job_name=\"{job}\"}}");
        let all = format!("preheat_fire_lag_seconds_count{{job_name=\"{job}\"}}");
        assert!(worker.metric(&late).await < worker.metric(&all).await, "{job}: the lag shows");
    }
    shop.assert_warm().await;
    assert_eq!(worker.get("/healthz").await.status, 200);
    assert_eq!(worker.metric("preheat_scheduler_silent").await, Some(0.0));
    assert!(!worker.stderr().contains("has not rung"), "{}", worker.stderr());
}

/// Sets a program's clock back by three hours once a file exists.
const CLOCK: &str = r#"
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && access(getenv("SET_BACK"), F_OK) == 0) now->tv_sec -= 3 * 3600;
    return result;
}
"#;

#[tokio::test]
async fn hazard_22_a_clock_that_is_set_back_silences_the_scheduler_for_seconds_only() {
    let shop = Shop::open(3).await;
    let serve = shop.serve().file("clock.c", CLOCK);
    let path = |name: &str| serve.folder().join(name).display().to_string();
    let (library, set_back) = (path("clock.so"), path("set_back"));
    let compile = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o", &library, &path("clock.c")])
        .output();
    if !compile.is_ok_and(|compiled| compiled.status.success()) {
        skipped("no C compiler makes a clock that can be set back");
        return;
    }
    let serve = serve.env("LD_PRELOAD", &library).env("SET_BACK", &set_back);
    let mut worker = serve.job("items", &items(&due("every 1s"))).start();
    let runs = "preheat_runs_total{job_name=\"items\",trigger=\"schedule\",outcome=\"ok\"}";
    worker.works().await;
    worker.metric_becomes(runs, |count| count >= 2.0).await;
    worker.write("set_back", "");
    worker.says("and is started anew").await;
    let count = worker.metric(runs).await.unwrap();
    // Longer than a scheduler may be silent.
    for _ in 0..12 {
        assert_eq!(worker.get("/healthz").await.status, 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(worker.metric(runs).await > Some(count + 5.0), "jobs go on");
    assert!(!worker.stderr().contains("has not rung"), "{}", worker.stderr());
    assert_eq!(worker.stderr().matches("is started anew").count(), 1, "{}", worker.stderr());
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
}
