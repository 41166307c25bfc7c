//! Keys that two tenants could both have, in batches, runs and jobs.

use std::collections::BTreeMap;

use preheat::domain::job::Job;
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunRecord};
use preheat::domain::tenant::{IdClass, Tenants};

use super::{Setup, World, job, key, many};
use crate::support::memory::MemoryRow;

/// A job with these keys that reads one tenant at a time.
fn job_with(name: &str, templates: &[&str]) -> Job {
    let keys = templates.iter().map(|template| key(template)).collect();
    Job { batch: many(1), keys, ..job(name) }
}

fn list(ids: &[&str]) -> Tenants {
    let mut list = Tenants::with_columns(["timezone"]);
    for id in ids {
        list.push(id, [Some("UTC")]);
    }
    list
}

/// A row of a tenant whose JSON is the tenant's id.
fn row(tenant: &str, kind: &str) -> MemoryRow {
    MemoryRow::new(tenant, &format!("{tenant:?}"), [("kind", kind)])
}

impl World {
    /// Each key of the jobs with its value.
    fn values(&self) -> BTreeMap<String, String> {
        let keys = self.cache.keys().into_iter().filter(|key| !key.starts_with("preheat:"));
        keys.map(|key| (key.clone(), self.value(&key).unwrap())).collect()
    }
}

fn values(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A failure of a run: its kind, the first tenant, and its count.
type Failed<'r> = (FailureKind, Option<&'r str>, u64);

/// A run's outcome and failures.
fn ended(record: &RunRecord) -> (Outcome, Vec<Failed<'_>>) {
    let failures = record.report.failures.iter();
    let failures = failures.map(|one| (one.kind, one.tenant.as_deref(), one.count));
    (record.outcome, failures.collect())
}

#[tokio::test]
async fn hazard_37_of_two_jobs_each_key_is_the_same_tenants_whichever_runs_last() {
    let all = job_with("all", &["p:{tenant_id}"]);
    let new = job_with("new", &["p:{tenant_id}:new"]);
    let world = Setup::new([all, new], list(&["a", "a:new"])).start();
    for name in ["all", "new"] {
        world.set_rows(name, vec![row("a", "x"), row("a:new", "x")]);
    }
    let expected =
        values(&[("p:a", "[\"a\"]"), ("p:a:new", "[\"a\"]"), ("p:a:new:new", "[\"a:new\"]")]);
    for _ in 0..2 {
        let record = world.warm("all").await;
        let failure = (FailureKind::AmbiguousKey, Some("a:new"), 1);
        assert_eq!(ended(&record), (Outcome::Partial, vec![failure]));
        assert_eq!(world.warm("new").await.outcome, Outcome::Ok);
        assert_eq!(world.values(), expected);
    }
    world.warm_some("new", &["a"]).await;
    world.warm_some("all", &["a:new"]).await;
    assert_eq!(world.values(), expected);
}

#[tokio::test]
async fn hazard_37_a_category_that_has_vanished_takes_no_other_tenants_key_with_it() {
    let lists = job_with("lists", &["p:{tenant_id}:all", "p:{tenant_id}:{kind}"]);
    let world = Setup::new([lists], list(&["a", "a:b"])).start();
    world.set_rows("lists", vec![row("a", "b:x"), row("a", "all"), row("a:b", "x")]);
    let record = world.warm("lists").await;
    let failures =
        vec![(FailureKind::KeyConflict, Some("a"), 1), (FailureKind::AmbiguousKey, Some("a:b"), 2)];
    assert_eq!(ended(&record), (Outcome::Partial, failures));
    let expected = values(&[("p:a:all", "[\"a\",\"a\"]"), ("p:a:b:x", "[\"a\"]")]);
    assert_eq!(world.values(), expected);
    // What the other tenant has under the same text disappears and comes back.
    world.set_rows("lists", vec![row("a", "b:x"), row("a", "all")]);
    world.warm_some("lists", &["a:b"]).await;
    assert_eq!(world.values(), expected);
    // The category `all` disappears; the list of all products is not its key.
    world.set_rows("lists", vec![row("a", "b:x")]);
    world.warm_some("lists", &["a"]).await;
    assert_eq!(world.values(), values(&[("p:a:all", "[\"a\"]"), ("p:a:b:x", "[\"a\"]")]));
    world.set_rows("lists", vec![row("a:b", "x")]);
    world.warm("lists").await;
    assert_eq!(world.values(), values(&[("p:a:all", "[]")]));
}

#[tokio::test]
async fn hazard_37_ids_that_cannot_hold_the_text_between_them_clash_with_nothing() {
    let all = job_with("all", &["{tenant_id}:p", "{tenant_id}:p:{kind}"]);
    let new = job_with("new", &["{tenant_id}:new", "{tenant_id}:new:p"]);
    let world = Setup::new([all, new], list(&["7", "-8"])).start();
    world.source.set_id_class(IdClass::Integer);
    for name in ["all", "new"] {
        let odd = [":", "8:p:x", "7:new", "", "all"];
        let rows = odd.iter().flat_map(|kind| [row("7", kind), row("-8", kind)]);
        world.set_rows(name, rows.collect());
    }
    for name in ["all", "new", "all"] {
        let record = world.warm(name).await;
        assert_eq!(record.outcome, Outcome::Ok, "{:?}", record.report.failures);
    }
    let found = world.values();
    assert_eq!(found.len(), 2 * (1 + 5 + 2), "{found:?}");
    for (key, value) in found {
        let tenant = key.split_once(':').unwrap().0;
        assert!(value.contains(&format!("{tenant:?}")), "{key}: {value}");
    }
}
