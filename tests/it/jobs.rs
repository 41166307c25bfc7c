//! The shipped jobs, and the reference beside them.

use std::fs;
use std::path::Path;

use preheat::definition::{self, Defaults, JobFiles};
use preheat::domain::job::Job;

fn shipped() -> JobFiles {
    let defaults = Defaults {
        batch: 100.try_into().unwrap(),
        concurrency: 4.try_into().unwrap(),
        tenant_column: "tenant_id".to_owned(),
        has_settings_file: true,
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    definition::load(&folder, &defaults).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_shipped_jobs_are_right() {
    let files = shipped();
    let names: Vec<_> = files.jobs().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["content", "pets", "products", "services", "slots", "staff"]);
    let jobs: Vec<_> = files.jobs().values().map(|job| summary(job)).collect();
    insta::assert_snapshot!(jobs.join("\n"));
}

/// Everything that a job file decides, without the SQL.
fn summary(job: &Job) -> String {
    let keys = job.keys.iter().map(|key| {
        let unique = key.unique.as_ref().map(|unique| format!(" unique {unique}"));
        format!("  {} {:?}{}\n", key.template, key.shape, unique.unwrap_or_default())
    });
    format!(
        "{}: {}\n  {}, ttl {:?} less {}, timeout {:?}, {:?}, {} retries, {} in a batch, {} at once\n  \
         on start {}, required {}, enabled {}, {:?}, dates {:?}\n  tables {:?}\n  {:?}\n{}",
        job.name,
        job.description,
        job.schedule,
        job.ttl,
        job.ttl_jitter,
        job.timeout,
        job.overlap,
        job.retries,
        job.batch,
        job.concurrency.map_or("all but one".to_owned(), |most| most.to_string()),
        job.on_start,
        job.required,
        job.enabled,
        job.scope,
        job.dates,
        job.tables,
        job.encoding,
        keys.collect::<String>(),
    )
}

#[test]
fn a_tenants_id_is_in_the_value_of_pets_alone() {
    for job in shipped().jobs().values() {
        let omits = job.encoding.omit.iter().any(|column| column == "tenant_id");
        assert_eq!(omits, job.name.as_str() != "pets", "{}", job.name);
    }
}

#[test]
fn the_shipped_jobs_are_as_rare_as_their_ttls_allow_with_room_for_one_failed_run() {
    for job in shipped().jobs().values() {
        let least = job.ttl.saturating_sub(job.ttl_jitter.of(job.ttl));
        let gap = job.schedule.longest_gap().unwrap();
        assert!(2 * gap + job.timeout <= least, "{}: a failed run lets keys expire", job.name);
        let rarer = gap * 5 / 4;
        assert!(2 * rarer + job.timeout > least, "{} may be due more rarely", job.name);
    }
}

#[test]
fn the_reference_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/README.md");
    let expected = definition::reference();
    if std::env::var_os("PREHEAT_BLESS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "jobs/README.md is out of date; `PREHEAT_BLESS=1 cargo test --test it reference` mends it"
    );
}
