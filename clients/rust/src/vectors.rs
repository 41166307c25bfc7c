//! What the clients of all languages must agree on: `clients/vectors.json`.

use std::time::Duration;

use serde_json::Value;

use crate::counts::field;
use crate::key::Fence;
use crate::names::{BRIEF, FENCE_TTL, LEASE, Names, READS_TTL};
use crate::protocol::lease_waits;
use crate::scripts::{BEGIN, FILL};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../vectors.json")).unwrap()
}

fn cases(path: &str) -> Vec<Value> {
    vectors().pointer(path).unwrap().as_array().unwrap().clone()
}

fn text<'c>(case: &'c Value, member: &str) -> &'c str {
    case[member].as_str().unwrap()
}

fn names(case: &Value) -> Names {
    Names::new(text(case, "prefix").to_owned())
}

#[test]
fn scripts_are_the_same_bytes() {
    for (script, name) in [(BEGIN, "begin"), (FILL, "fill")] {
        let expected = &vectors()["scripts"][name];
        assert_eq!(script.text, text(expected, "text"));
        assert_eq!(script.sha1, text(expected, "sha1"));
    }
}

#[test]
fn names_are_the_same() {
    for case in cases("/fences") {
        let tenant = case["tenant"].as_str();
        let fence = tenant.map_or(Fence::Global, |tenant| Fence::Tenant(tenant.to_owned()));
        assert_eq!(names(&case).fence(&fence).as_deref(), case["fence"].as_str(), "{case}");
    }
    for case in cases("/leases") {
        let key = names(&case).key(text(&case, "key"));
        assert_eq!(names(&case).lease(&key), text(&case, "lease"), "{case}");
    }
    for case in cases("/reads/names") {
        assert_eq!(names(&case).reads(), text(&case, "name"));
    }
    for case in cases("/reads/fields") {
        let expected = text(&case, "field");
        assert_eq!(field(text(&case, "family"), text(&case, "result")), expected);
    }
}

#[test]
fn limits_are_the_same() {
    let limits = &vectors()["limits"];
    let limit = |name: &str| limits[name].as_u64().unwrap();
    assert_eq!(Duration::from_secs(limit("fence_ttl_s")), FENCE_TTL);
    assert_eq!(Duration::from_secs(limit("reads_ttl_s")), READS_TTL);
    assert_eq!(Duration::from_millis(limit("lease_ms")), LEASE);
    assert_eq!(Duration::from_millis(limit("brief_ms")), BRIEF);
    let waits: Vec<u64> = limits["lease_wait_ms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wait| wait.as_u64().unwrap())
        .collect();
    let ours: Vec<_> = lease_waits().collect();
    let expected: Vec<_> = waits.into_iter().map(Duration::from_millis).collect();
    assert_eq!(ours[..expected.len()], expected);
    let total: Duration = ours.iter().sum();
    let most = Duration::from_millis(limit("lease_wait_total_ms"));
    assert!(total <= most && total + ours[ours.len() - 1] > most, "{total:?}");
}

#[test]
fn values_are_the_same_json() {
    for case in cases("/json/cases") {
        assert_eq!(serde_json::to_string(&case["value"]).unwrap(), text(&case, "text"));
    }
}
