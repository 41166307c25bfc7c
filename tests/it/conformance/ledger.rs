//! The conformance suite of ledgers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use preheat::domain::fence::{FENCE_TTL, Fence, GLOBAL, fence_key};
use preheat::domain::job::JobName;
use preheat::domain::manifest::manifest_key;
use preheat::domain::reads::READS_KEY;
use preheat::engine::ports::{
    Cache, CacheErrorKind, Ledger, ManifestEntries, REGISTRY_KEY, REGISTRY_TTL,
};

use super::cache::{ODD, PREFIX, Past, in_memory, on_redis, scan, strings};
use crate::support;

/// The number with which fences are started.
const START: i64 = 1 << 41;

const HOUR: Duration = Duration::from_hours(1);

/// Values that an application may leave under a fence's key; `INCR` refuses all of them.
const BROKEN: [&[u8]; 9] =
    [b"now", b"", b" 7", b"+7", b"007", b"-0", b"7.0", b"9223372036854775808", b"\xff\x00"];

async fn at(cache: &impl Ledger, keys: &[&str]) -> Vec<Fence> {
    cache.fences(&strings(keys.iter().copied())).await.unwrap()
}

async fn start(cache: &impl Ledger, seen: &[(&str, Fence)]) -> Vec<Fence> {
    let seen: Vec<_> = seen.iter().map(|(key, fence)| ((*key).to_owned(), *fence)).collect();
    cache.start_fences(&seen, START).await.unwrap()
}

async fn step(cache: &impl Ledger, keys: &[&str]) {
    cache.move_fences(&strings(keys.iter().copied()), START).await.unwrap();
}

async fn keeps_fences(cache: &impl Ledger, past: &mut Past<'_>) {
    use Fence::{At, Missing};
    assert_eq!(at(cache, &[]).await, []);
    assert_eq!(start(cache, &[]).await, []);
    step(cache, &[]).await;
    assert_eq!(at(cache, &["a", GLOBAL]).await, [Missing, Missing], "looking makes none");

    // A missing fence is created, and expires after longer than any run.
    assert_eq!(start(cache, &[("a", Missing), (GLOBAL, Missing)]).await, [At(START), At(START)]);
    Past::lives(past.ttl("a").await, FENCE_TTL);
    // An application moves it, and its TTL stays.
    assert_eq!(past.incr("a").await, START + 1);
    Past::lives(past.ttl("a").await, FENCE_TTL);
    assert_eq!(at(cache, &["b", "a", GLOBAL]).await, [Missing, At(START + 1), At(START)]);

    // A bare `INCR` created one: its number is raised, and its expiry does not matter.
    assert_eq!(past.incr("b").await, 1);
    assert_eq!(past.ttl("b").await, None);
    assert_eq!(past.incr("b").await, 2);
    assert_eq!(start(cache, &[("b", At(1))]).await, [At(START + 2)]);
    Past::lives(past.ttl("b").await, FENCE_TTL);
    assert_eq!(start(cache, &[("b", At(1))]).await, [At(2 * START + 2)], "by another warmer");

    // Between the read and the start an application created a fence, or the fence was evicted.
    assert_eq!(past.incr("c").await, 1);
    past.evict("a").await;
    let seen = [("c", Missing), ("a", At(7)), ("d", Missing), ("d", Missing)];
    assert_eq!(start(cache, &seen).await, [At(1), At(START), At(START), At(START)]);
    Past::lives(past.ttl("a").await, FENCE_TTL);

    // Moving creates what is missing, and keeps the TTL.
    step(cache, &["a", "c", "e", "e"]).await;
    assert_eq!(at(cache, &["a", "c", "e"]).await, [At(START + 1), At(2), At(START + 2)]);
    Past::lives(past.ttl("e").await, FENCE_TTL);
    assert_eq!(past.ttl("c").await, None);

    for key in ODD.map(fence_key) {
        assert_eq!(start(cache, &[(&key, Missing)]).await, [At(START)], "{key}");
        step(cache, &[&key]).await;
        assert_eq!(at(cache, &[&key]).await, [At(START + 1)], "{key}");
    }
}

async fn mends_fences(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    use Fence::{At, Missing};
    let hash = ManifestEntries { manifest: "broken".to_owned(), keys: strings(["a"]) };
    start(cache, &[("whole", Missing)]).await;
    for broken in BROKEN.map(Some).into_iter().chain([None]) {
        let name = broken.map(String::from_utf8_lossy);
        let mut plant = async || {
            past.evict("broken").await;
            if let Some(value) = broken {
                past.set("broken", value).await;
            } else {
                cache.add_entries(std::slice::from_ref(&hash), at_minute(0), HOUR).await.unwrap();
            }
        };
        plant().await;
        assert_eq!(at(cache, &["broken", "whole"]).await, [Missing, At(START)], "{name:?}");
        let started = start(cache, &[("broken", Missing), ("whole", Missing)]).await;
        assert_eq!(started, [At(START), At(START)], "{name:?}");
        plant().await;
        // It was a number when it was read.
        assert_eq!(start(cache, &[("broken", At(3))]).await, [At(START)], "{name:?}");
        plant().await;
        past.evict("whole").await;
        step(cache, &["broken", "whole"]).await;
        let moved = [At(START + 1), At(START + 1)];
        assert_eq!(at(cache, &["broken", "whole"]).await, moved, "{name:?}");
        assert_eq!(past.incr("broken").await, START + 2, "an application can move it again");
        Past::lives(past.ttl("broken").await, FENCE_TTL);
        past.evict("whole").await;
        start(cache, &[("whole", Missing)]).await;
    }
    // A number that cannot be raised any further.
    past.set("broken", i64::MAX.to_string().as_bytes()).await;
    assert_eq!(at(cache, &["broken"]).await, [At(i64::MAX)]);
    step(cache, &["broken"]).await;
    assert_eq!(at(cache, &["broken"]).await, [At(START + 1)]);
}

async fn takes_thousands_of_fences(cache: &impl Ledger) {
    let keys: Vec<String> = (0..5_000).map(|tenant| fence_key(&format!("many-{tenant}"))).collect();
    let seen: Vec<_> = keys.iter().map(|key| (key.clone(), Fence::Missing)).collect();
    assert_eq!(cache.fences(&keys).await, Ok(vec![Fence::Missing; keys.len()]));
    assert_eq!(cache.start_fences(&seen, START).await, Ok(vec![Fence::At(START); keys.len()]));
    cache.move_fences(&keys[1..], START).await.unwrap();
    let fences = cache.fences(&keys).await.unwrap();
    assert_eq!(fences[0], Fence::At(START));
    assert!(fences[1..].iter().all(|fence| *fence == Fence::At(START + 1)));
}

/// A manifest with these keys, as a call adds them.
fn entries_of<'k>(manifest: &str, keys: impl IntoIterator<Item = &'k str>) -> ManifestEntries {
    ManifestEntries { manifest: manifest.to_owned(), keys: strings(keys) }
}

/// A fixed moment, plus this many minutes.
fn at_minute(minutes: u64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-03-01T00:00:00.123Z".parse().unwrap();
    start + Duration::from_mins(minutes)
}

async fn renewals(cache: &impl Ledger, manifest: &str) -> BTreeMap<String, DateTime<Utc>> {
    let manifests = cache.manifests(&strings([manifest])).await.unwrap();
    assert_eq!(manifests.len(), 1);
    let entries = manifests[0].len();
    let all = manifests.into_iter().flatten();
    let map: BTreeMap<_, _> = all.map(|entry| (entry.key, entry.renewed_at)).collect();
    assert_eq!(map.len(), entries, "an entry came twice");
    map
}

async fn keeps_manifests(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let job = JobName::parse("products").unwrap();
    let [seven, fleet] = [manifest_key(&job, Some("7")), manifest_key(&job, None)];
    let (first, later) = (at_minute(0), at_minute(1));
    assert_eq!(cache.manifests(&[]).await, Ok(Vec::new()));
    cache.add_entries(&[], first, HOUR).await.unwrap();
    cache.prune(&[], later).await.unwrap();
    let set = |keys: &[(&str, DateTime<Utc>)]| {
        keys.iter().map(|(key, at)| ((*key).to_owned(), *at)).collect::<BTreeMap<_, _>>()
    };

    // An empty manifest is not created. Keys are added to existing manifests, and existing entries
    // are renewed.
    cache.add_entries(&[entries_of(&seven, [])], first, HOUR).await.unwrap();
    assert!(scan(cache, "preheat:manifest:*").await.0.is_empty());
    let both =
        [entries_of(&seven, ["a", "b", "a"]), entries_of(&fleet, ODD.into_iter().chain([""]))];
    cache.add_entries(&both, first, HOUR).await.unwrap();
    cache.add_entries(&[entries_of(&seven, ["b", "c"])], later, HOUR).await.unwrap();
    assert_eq!(renewals(cache, &seven).await, set(&[("a", first), ("b", later), ("c", later)]));
    let manifests = cache.manifests(&[fleet.clone(), "none".to_owned(), seven.clone()]).await;
    let manifests = manifests.unwrap();
    assert_eq!((manifests[0].len(), manifests[1].len(), manifests[2].len()), (10, 0, 3));
    let odd: Vec<_> = ODD.into_iter().chain([""]).map(|key| (key, first)).collect();
    assert_eq!(renewals(cache, &fleet).await, set(&odd));

    // Every call renews its TTL, with or without new keys; nothing else does.
    cache.add_entries(&[entries_of(&seven, [])], later, 2 * HOUR).await.unwrap();
    Past::lives(past.ttl(&seven).await, 2 * HOUR);
    Past::lives(past.ttl(&fleet).await, HOUR);
    let all = [seven.clone(), "none".to_owned(), fleet.clone()];
    cache.prune(&all, first).await.unwrap();
    assert_eq!(
        renewals(cache, &seven).await.len(),
        3,
        "only what was last renewed before that moment"
    );
    cache.prune(&all, later).await.unwrap();
    Past::lives(past.ttl(&seven).await, 2 * HOUR);
    assert_eq!(renewals(cache, &seven).await, set(&[("b", later), ("c", later)]));

    // A manifest that is empty or expired is gone, and renewing does not bring it back.
    cache.prune(&all, later + Duration::from_millis(1)).await.unwrap();
    cache.add_entries(&[entries_of(&seven, [])], later, HOUR).await.unwrap();
    let moment = Duration::from_millis(1);
    cache.add_entries(&[entries_of(&fleet, ["x"])], later, moment).await.unwrap();
    let gone = async || renewals(cache, &fleet).await.is_empty();
    support::eventually("the manifest expired", support::LONG, gone).await;
    cache.add_entries(&[entries_of(&fleet, [])], later, HOUR).await.unwrap();
    assert!(scan(cache, "preheat:manifest:*").await.0.is_empty());
    cache.add_entries(&[entries_of(&fleet, ["y"])], later, HOUR).await.unwrap();
    assert_eq!(renewals(cache, &fleet).await, set(&[("y", later)]));
    Past::lives(past.ttl(&fleet).await, HOUR);

    for key in ODD.map(|tenant| manifest_key(&job, Some(tenant))) {
        cache.add_entries(&[entries_of(&key, [key.as_str()])], first, HOUR).await.unwrap();
        assert_eq!(renewals(cache, &key).await, set(&[(&key, first)]), "{key}");
    }
}

async fn takes_large_manifests(cache: &impl Ledger) {
    let keys: Vec<String> = (0..5_000).map(|key| format!("pet:{key:0>100}")).collect();
    let large = ManifestEntries { manifest: "large".to_owned(), keys: keys.clone() };
    let small = (0..1_200).map(|number| entries_of(&format!("small-{number}"), ["a", "b"]));
    let all: Vec<ManifestEntries> = [large].into_iter().chain(small).collect();
    cache.add_entries(&all, at_minute(0), HOUR).await.unwrap();
    let found = renewals(cache, "large").await;
    assert!(found.keys().eq(&keys) && found.values().all(|at| *at == at_minute(0)));
    let names: Vec<String> = all.iter().map(|entries| entries.manifest.clone()).collect();
    let found = cache.manifests(&names).await.unwrap();
    assert!(found[1..].iter().all(|keys| keys.len() == 2));
    let one = ManifestEntries { manifest: "large".to_owned(), keys: keys[..1].to_vec() };
    cache.add_entries(&[one], at_minute(1), HOUR).await.unwrap();
    cache.prune(&names, at_minute(1)).await.unwrap();
    assert!(renewals(cache, "large").await.keys().eq(&keys[..1]));
}

async fn registry(cache: &impl Ledger) -> BTreeMap<String, String> {
    let entries = cache.registry().await.unwrap();
    let count = entries.len();
    let entries: BTreeMap<_, _> = entries.into_iter().collect();
    assert_eq!(entries.len(), count, "an entry came twice");
    entries
}

async fn keeps_the_registry(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let pair = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    assert_eq!(registry(cache).await, BTreeMap::new());
    cache.register(&[]).await.unwrap();
    cache.deregister(&[]).await.unwrap();
    assert_eq!(scan(cache, REGISTRY_KEY).await.0, BTreeSet::new(), "an empty one is not made");

    let large = "x".repeat(400_000);
    let some = ODD.map(|odd| pair((odd, odd))).into_iter();
    let some: Vec<_> =
        some.chain([("", "empty"), ("empty", ""), ("l", &large)].map(pair)).collect();
    cache.register(&some).await.unwrap();
    assert_eq!(registry(cache).await, some.iter().cloned().collect());
    Past::lives(past.ttl(REGISTRY_KEY).await, REGISTRY_TTL);

    // A later entry replaces an earlier one of the same tenant, and each call renews the registry's TTL.
    cache.expire(&[(REGISTRY_KEY.to_owned(), HOUR)]).await.unwrap();
    cache.register(&[pair(("", "first")), pair(("", "second"))]).await.unwrap();
    assert_eq!(registry(cache).await[""], "second");
    Past::lives(past.ttl(REGISTRY_KEY).await, REGISTRY_TTL);
    cache.expire(&[(REGISTRY_KEY.to_owned(), HOUR)]).await.unwrap();
    cache.register(&[]).await.unwrap();
    Past::lives(past.ttl(REGISTRY_KEY).await, REGISTRY_TTL);

    let ids: Vec<String> = some.iter().map(|(id, _)| id.clone()).collect();
    cache.deregister(&strings(["no such tenant"])).await.unwrap();
    cache.deregister(&ids[1..]).await.unwrap();
    assert_eq!(registry(cache).await, some[..1].iter().cloned().collect());
    cache.deregister(&ids).await.unwrap();
    assert_eq!(registry(cache).await, BTreeMap::new());
    assert_eq!(scan(cache, REGISTRY_KEY).await.0, BTreeSet::new(), "an empty one is gone");
}

async fn takes_a_large_registry(cache: &impl Ledger) {
    let many: Vec<_> =
        (0..5_000).map(|n| (format!("tenant {n}"), format!("{{\"n\":{n}}}"))).collect();
    cache.register(&many).await.unwrap();
    assert_eq!(registry(cache).await, many.iter().cloned().collect());
    let ids: Vec<String> = many[2..].iter().map(|(id, _)| id.clone()).collect();
    cache.deregister(&ids).await.unwrap();
    assert_eq!(registry(cache).await, many[..2].iter().cloned().collect());
}

async fn refuses_what_is_of_another_type(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let manifests = [entries_of("text", ["a"])];
    let entry = [("a".to_owned(), "b".to_owned())];
    past.set("text", b"1").await;
    past.evict(REGISTRY_KEY).await;
    past.set(REGISTRY_KEY, b"1").await;
    let errors = [
        cache.manifests(&strings(["none", "text"])).await.map(drop),
        cache.add_entries(&manifests, at_minute(0), HOUR).await,
        cache.prune(&strings(["text"]), at_minute(0)).await,
        cache.registry().await.map(drop),
        cache.register(&entry).await,
        cache.deregister(&strings(["a"])).await,
    ];
    for error in errors {
        assert_eq!(error.unwrap_err().kind, CacheErrorKind::WrongType);
    }
}

pub(crate) async fn conforms(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    keeps_fences(cache, past).await;
    mends_fences(cache, past).await;
    takes_thousands_of_fences(cache).await;
    keeps_manifests(cache, past).await;
    takes_large_manifests(cache).await;
    keeps_the_registry(cache, past).await;
    takes_a_large_registry(cache).await;
    refuses_what_is_of_another_type(cache, past).await;
}

/// What clients count, in the fields that are asked for; what is no count reads as 0.
#[tokio::test]
async fn reads_on_redis_are_the_clients_counts() {
    let server = support::redis();
    let (cache, mut past) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    let fields = strings(["services:hit", "services:miss", "slots:hit", "slots:miss"]);
    assert_eq!(cache.reads(&fields).await.unwrap(), [0; 4]);
    assert_eq!(cache.reads(&[]).await.unwrap(), Vec::<u64>::new());
    let mut count = redis::cmd("HSET");
    count.arg(format!("{PREFIX}{READS_KEY}")).arg(&[("services:hit", "12"), ("slots:miss", "x")]);
    count.exec_async(&mut past).await.unwrap();
    assert_eq!(cache.reads(&fields).await.unwrap(), [12, 0, 0, 0]);
}

#[tokio::test]
async fn the_ledger_in_memory_conforms() {
    let cache = in_memory();
    conforms(&cache, &mut Past::Memory(&cache)).await;
}

#[tokio::test]
async fn the_ledger_on_redis_conforms_with_a_prefix_and_a_database_number() {
    let server = support::redis();
    let (cache, past) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    conforms(&cache, &mut Past::Redis(vec![past])).await;

    // Keys with another prefix or in another database are untouched.
    let mut past = support::redis_connection(&server).await;
    let there: usize = redis::cmd("DBSIZE").query_async(&mut past).await.unwrap();
    let mut pipe = redis::pipe();
    pipe.cmd("SELECT").arg(3).ignore().cmd("MGET").arg("a").arg("rel!8?:a");
    let (values,): (Vec<String>,) = pipe.query_async(&mut past).await.unwrap();
    assert_eq!((there, values), (1, vec!["not ours".to_owned(); 2]));
}
