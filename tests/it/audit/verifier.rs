//! The verifier of a worker.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::audit::Verifier;
use preheat::domain::audit::{Kind, MAX_FINDINGS, MAX_VALUE};
use preheat::domain::job::Job;
use preheat::engine::ports::{Clock, SourceErrorKind};

use super::{Lab, quiet, rows_of};
use crate::engine::{Count, MINUTE, SECOND, many, refused};

/// Starts a verifier beside the lab's world.
fn verify(lab: &Lab, interval: Duration, sample: usize) {
    let verifier = Verifier::new(Arc::clone(&lab.runner), interval, many(sample));
    let stops = lab.world.stops.clone();
    tokio::spawn(async move { verifier.run(stops).await });
}

#[tokio::test]
async fn the_verifier_measures_and_shows_what_it_found() {
    let lab = Lab::warm(
        [quiet("list"), quiet("other")],
        &[("list", rows_of(4, "1")), ("other", rows_of(4, "1"))],
    )
    .await;
    let metric = |line: &str| lab.world.shows(line);
    lab.world.cache.evict("list:t0");
    lab.put("list:t1", "[7]", 30 * MINUTE).await;
    verify(&lab, 10 * MINUTE, 20);
    lab.world.clock.advance(4 * MINUTE).await;
    assert!(!lab.world.metrics.encode().contains("consistency"), "not at once");
    lab.world.clock.advance(8 * MINUTE).await;
    for line in [
        "preheat_consistency_ratio{job_name=\"list\"} 0.3333333333333333",
        "preheat_consistency_ratio{job_name=\"other\"} 1.0",
        "preheat_audit_findings{job_name=\"list\",kind=\"stale\"} 1",
        "preheat_audit_findings{job_name=\"list\",kind=\"missing\"} 1",
        "preheat_audit_findings{job_name=\"list\",kind=\"orphaned\"} 0",
        "preheat_audit_findings{job_name=\"list\",kind=\"wrong_ttl\"} 0",
    ] {
        assert!(metric(line), "{line} in\n{}", lab.world.metrics.encode());
    }
    // After a run all is in order again, at the next measurement.
    lab.world.warm("list").await;
    lab.world.clock.advance(11 * MINUTE).await;
    assert!(metric("preheat_audit_findings{job_name=\"list\",kind=\"missing\"} 0"));
    assert!(metric("preheat_audit_findings{job_name=\"list\",kind=\"stale\"} 0"));
}

#[tokio::test]
async fn the_verifier_is_at_work_a_tenth_of_the_time_at_most() {
    let list = Job { batch: many(1), ..quiet("list") };
    let lab = Lab::warm_for([list], &[("list", rows_of(20, "1"))], 20).await;
    lab.world.cache.evict("list:t3");
    let (at_work, clock) = (Arc::new(Mutex::new(Vec::new())), lab.world.clock.clone());
    let began = Arc::clone(&at_work);
    lab.world.source.before_read(move |_| {
        began.lock().unwrap().push(clock.monotonic());
        let asleep = clock.sleep(SECOND);
        Box::pin(async move {
            asleep.await;
            Ok(())
        })
    });
    verify(&lab, MINUTE, 20);
    lab.world.clock.advance(20 * MINUTE).await;
    let began = at_work.lock().unwrap();
    assert!(began.len() > 30, "{began:?}");
    let rests = began.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    assert!(rests.min().unwrap() >= 10 * SECOND, "{began:?}");
}

#[tokio::test]
async fn the_verifier_follows_the_jobs_there_are_and_stops_with_the_worker() {
    let mut off = quiet("off");
    let lab = Lab::warm([quiet("list"), off.clone()], &[("list", rows_of(3, "1"))]).await;
    off.enabled = false;
    let set = |jobs: Vec<Job>| {
        let jobs = jobs.into_iter().map(|job| (job.name.clone(), Arc::new(job)));
        lab.runner.jobs.set(jobs.collect());
    };
    set(vec![quiet("list"), off.clone()]);
    let measured = |job: &str| {
        let series = format!("preheat_last_audit_timestamp_seconds{{job_name=\"{job}\"}}");
        lab.world.metrics.encode().contains(&series)
    };
    verify(&lab, 10 * MINUTE, 20);
    lab.world.clock.advance(11 * MINUTE).await;
    assert!(measured("list") && !measured("off"), "a disabled job is left alone");
    set(vec![off, quiet("new")]);
    lab.world.clock.advance(10 * MINUTE).await;
    // Its keys were never written; the verifier needs a minute to be sure of that.
    assert!(measured("new"));

    let read = lab.reads();
    lab.world.stops.drain.cancel();
    lab.world.clock.advance(Duration::from_hours(1)).await;
    assert_eq!(lab.reads(), read);
}

#[tokio::test]
async fn a_verifier_that_cannot_measure_changes_no_figure_and_goes_on() {
    let lab = Lab::warm([quiet("list")], &[("list", rows_of(3, "1"))]).await;
    let lists = Count::default();
    lab.world.source.before_tenants(move || {
        let broken = lists.up() == 0;
        Box::pin(
            async move { if broken { Err(refused(SourceErrorKind::Definition)) } else { Ok(()) } },
        )
    });
    verify(&lab, 10 * MINUTE, 20);
    lab.world.clock.advance(11 * MINUTE).await;
    assert!(!lab.world.metrics.encode().contains("preheat_consistency_ratio{"));
    lab.world.clock.advance(10 * MINUTE).await;
    assert!(lab.world.shows("preheat_consistency_ratio{job_name=\"list\"} 1.0"));
}

#[tokio::test]
async fn the_keys_that_differ_are_kept_with_both_values_until_the_next_look() {
    let lab = Lab::warm_for([quiet("list")], &[("list", rows_of(40, "1"))], 40).await;
    let long = format!("[\"{}\"]", "x".repeat(3 * MAX_VALUE));
    lab.put("list:t1", &long, 30 * MINUTE).await;
    for tenant in 2..30 {
        lab.world.cache.evict(&format!("list:t{tenant}"));
    }
    verify(&lab, 10 * MINUTE, 100);
    lab.world.clock.advance(12 * MINUTE).await;
    let found = || lab.world.metrics.figures().findings().remove(&lab.jobs[0].name).unwrap();
    let first = found();
    assert_eq!((first.all, first.keys, first.first.len()), (29, 40, MAX_FINDINGS));
    let stale = first.first.iter().find(|found| found.key == "list:t1").unwrap();
    assert_eq!(stale.tenant.as_deref(), Some("t1"));
    let values = stale.wrong.values.as_deref().unwrap();
    assert_eq!(values.database.as_ref().unwrap().text, "[1]");
    let cache = values.cache.as_ref().unwrap();
    assert_eq!((cache.text.as_str(), cache.bytes), (&long[..MAX_VALUE], long.len()));
    let missing = first.first.iter().filter(|found| found.wrong.kind == Kind::Missing);
    let values = missing.map(|found| found.wrong.values.as_deref().unwrap());
    assert!(values.into_iter().all(|values| values.cache.is_none() && values.database.is_some()));
    lab.world.warm("list").await;
    lab.world.clock.advance(11 * MINUTE).await;
    let second = found();
    assert_eq!((second.all, second.first.len()), (0, 0));
    assert!(second.at > first.at);
}
