//! The conformance suite of ledgers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use preheat::domain::fence::{FENCE_TTL, FLEET, Fence, fence_key};
use preheat::domain::job::JobName;
use preheat::domain::manifest::manifest_key;
use preheat::engine::ports::{BOOK_TTL, Book, Cache, CacheErrorKind, Ledger, Listing};

use super::cache::{ODD, Past, in_memory, on_redis, scan, strings};
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
    assert_eq!(at(cache, &["a", FLEET]).await, [Missing, Missing], "looking makes none");

    // A missing fence is created, and expires after longer than any run.
    assert_eq!(start(cache, &[("a", Missing), (FLEET, Missing)]).await, [At(START), At(START)]);
    Past::lives(past.ttl("a").await, FENCE_TTL);
    // An application moves it, and its TTL stays.
    assert_eq!(past.incr("a").await, START + 1);
    Past::lives(past.ttl("a").await, FENCE_TTL);
    assert_eq!(at(cache, &["b", "a", FLEET]).await, [Missing, At(START + 1), At(START)]);

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
    let hash = Listing { manifest: "broken".to_owned(), keys: strings(["a"]) };
    start(cache, &[("whole", Missing)]).await;
    for broken in BROKEN.map(Some).into_iter().chain([None]) {
        let name = broken.map(String::from_utf8_lossy);
        let mut plant = async || {
            past.evict("broken").await;
            if let Some(value) = broken {
                past.set("broken", value).await;
            } else {
                cache.enlist(std::slice::from_ref(&hash), at_minute(0), HOUR).await.unwrap();
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
fn listing<'k>(manifest: &str, keys: impl IntoIterator<Item = &'k str>) -> Listing {
    Listing { manifest: manifest.to_owned(), keys: strings(keys) }
}

/// A fixed moment, plus this many minutes.
fn at_minute(minutes: u64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-03-01T00:00:00.123Z".parse().unwrap();
    start + Duration::from_mins(minutes)
}

async fn named(cache: &impl Ledger, manifest: &str) -> BTreeMap<String, DateTime<Utc>> {
    let manifests = cache.manifests(&strings([manifest])).await.unwrap();
    assert_eq!(manifests.len(), 1);
    let names = manifests[0].len();
    let all = manifests.into_iter().flatten();
    let map: BTreeMap<_, _> = all.map(|named| (named.key, named.named_at)).collect();
    assert_eq!(map.len(), names, "a name came twice");
    map
}

async fn keeps_manifests(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let job = JobName::parse("products").unwrap();
    let [seven, fleet] = [manifest_key(&job, Some("7")), manifest_key(&job, None)];
    let (first, later) = (at_minute(0), at_minute(1));
    assert_eq!(cache.manifests(&[]).await, Ok(Vec::new()));
    cache.enlist(&[], first, HOUR).await.unwrap();
    cache.delist(&[], later).await.unwrap();
    let set = |keys: &[(&str, DateTime<Utc>)]| {
        keys.iter().map(|(key, at)| ((*key).to_owned(), *at)).collect::<BTreeMap<_, _>>()
    };

    // An empty manifest is not created. Keys are added to existing manifests, and existing entries
    // are renewed.
    cache.enlist(&[listing(&seven, [])], first, HOUR).await.unwrap();
    assert!(scan(cache, "preheat:manifest:*").await.0.is_empty());
    let both = [listing(&seven, ["a", "b", "a"]), listing(&fleet, ODD.into_iter().chain([""]))];
    cache.enlist(&both, first, HOUR).await.unwrap();
    cache.enlist(&[listing(&seven, ["b", "c"])], later, HOUR).await.unwrap();
    assert_eq!(named(cache, &seven).await, set(&[("a", first), ("b", later), ("c", later)]));
    let manifests = cache.manifests(&[fleet.clone(), "none".to_owned(), seven.clone()]).await;
    let manifests = manifests.unwrap();
    assert_eq!((manifests[0].len(), manifests[1].len(), manifests[2].len()), (10, 0, 3));
    let odd: Vec<_> = ODD.into_iter().chain([""]).map(|key| (key, first)).collect();
    assert_eq!(named(cache, &fleet).await, set(&odd));

    // Every call renews its TTL, with or without new keys; nothing else does.
    cache.enlist(&[listing(&seven, [])], later, 2 * HOUR).await.unwrap();
    Past::lives(past.ttl(&seven).await, 2 * HOUR);
    Past::lives(past.ttl(&fleet).await, HOUR);
    let all = [seven.clone(), "none".to_owned(), fleet.clone()];
    cache.delist(&all, first).await.unwrap();
    assert_eq!(named(cache, &seven).await.len(), 3, "only what was named before that moment");
    cache.delist(&all, later).await.unwrap();
    Past::lives(past.ttl(&seven).await, 2 * HOUR);
    assert_eq!(named(cache, &seven).await, set(&[("b", later), ("c", later)]));

    // A manifest that is empty or expired is gone, and renewing does not bring it back.
    cache.delist(&all, later + Duration::from_millis(1)).await.unwrap();
    cache.enlist(&[listing(&seven, [])], later, HOUR).await.unwrap();
    let moment = Duration::from_millis(1);
    cache.enlist(&[listing(&fleet, ["x"])], later, moment).await.unwrap();
    let gone = async || named(cache, &fleet).await.is_empty();
    support::eventually("the manifest expired", support::LONG, gone).await;
    cache.enlist(&[listing(&fleet, [])], later, HOUR).await.unwrap();
    assert!(scan(cache, "preheat:manifest:*").await.0.is_empty());
    cache.enlist(&[listing(&fleet, ["y"])], later, HOUR).await.unwrap();
    assert_eq!(named(cache, &fleet).await, set(&[("y", later)]));
    Past::lives(past.ttl(&fleet).await, HOUR);

    for key in ODD.map(|tenant| manifest_key(&job, Some(tenant))) {
        cache.enlist(&[listing(&key, [key.as_str()])], first, HOUR).await.unwrap();
        assert_eq!(named(cache, &key).await, set(&[(&key, first)]), "{key}");
    }
}

async fn takes_large_manifests(cache: &impl Ledger) {
    let keys: Vec<String> = (0..5_000).map(|key| format!("pet:{key:0>100}")).collect();
    let large = Listing { manifest: "large".to_owned(), keys: keys.clone() };
    let small = (0..1_200).map(|number| listing(&format!("small-{number}"), ["a", "b"]));
    let all: Vec<Listing> = [large].into_iter().chain(small).collect();
    cache.enlist(&all, at_minute(0), HOUR).await.unwrap();
    let found = named(cache, "large").await;
    assert!(found.keys().eq(&keys) && found.values().all(|at| *at == at_minute(0)));
    let names: Vec<String> = all.iter().map(|listing| listing.manifest.clone()).collect();
    let found = cache.manifests(&names).await.unwrap();
    assert!(found[1..].iter().all(|keys| keys.len() == 2));
    let one = Listing { manifest: "large".to_owned(), keys: keys[..1].to_vec() };
    cache.enlist(&[one], at_minute(1), HOUR).await.unwrap();
    cache.delist(&names, at_minute(1)).await.unwrap();
    assert!(named(cache, "large").await.keys().eq(&keys[..1]));
}

async fn notes(cache: &impl Ledger, book: Book) -> BTreeMap<String, String> {
    let notes = cache.notes(book).await.unwrap();
    let count = notes.len();
    let notes: BTreeMap<_, _> = notes.into_iter().collect();
    assert_eq!(notes.len(), count, "a note came twice");
    notes
}

async fn keeps_books(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let tenants = Book::Tenants;
    let pair = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    assert_eq!(notes(cache, tenants).await, BTreeMap::new());
    cache.note(tenants, &[]).await.unwrap();
    cache.strike(tenants, &[]).await.unwrap();
    assert_eq!(scan(cache, tenants.key()).await.0, BTreeSet::new(), "an empty one is not made");

    let large = "x".repeat(400_000);
    let some = ODD.map(|odd| pair((odd, odd))).into_iter();
    let some: Vec<_> =
        some.chain([("", "empty"), ("empty", ""), ("l", &large)].map(pair)).collect();
    cache.note(tenants, &some).await.unwrap();
    assert_eq!(notes(cache, tenants).await, some.iter().cloned().collect());
    Past::lives(past.ttl(tenants.key()).await, BOOK_TTL);

    // A later note replaces an earlier one, and any note renews the book's TTL.
    cache.expire(&[(tenants.key().to_owned(), HOUR)]).await.unwrap();
    cache.note(tenants, &[pair(("", "first")), pair(("", "second"))]).await.unwrap();
    assert_eq!(notes(cache, tenants).await[""], "second");
    Past::lives(past.ttl(tenants.key()).await, BOOK_TTL);
    cache.expire(&[(tenants.key().to_owned(), HOUR)]).await.unwrap();
    cache.note(tenants, &[]).await.unwrap();
    Past::lives(past.ttl(tenants.key()).await, BOOK_TTL);

    let names: Vec<String> = some.iter().map(|(name, _)| name.clone()).collect();
    cache.strike(tenants, &strings(["no such note"])).await.unwrap();
    cache.strike(tenants, &names[1..]).await.unwrap();
    assert_eq!(notes(cache, tenants).await, some[..1].iter().cloned().collect());
    cache.strike(tenants, &names).await.unwrap();
    assert_eq!(notes(cache, tenants).await, BTreeMap::new());
    assert_eq!(scan(cache, tenants.key()).await.0, BTreeSet::new(), "an empty one is gone");
}

async fn takes_thick_books(cache: &impl Ledger) {
    let many: Vec<_> =
        (0..5_000).map(|n| (format!("tenant {n}"), format!("{{\"n\":{n}}}"))).collect();
    cache.note(Book::Tenants, &many).await.unwrap();
    assert_eq!(notes(cache, Book::Tenants).await, many.iter().cloned().collect());
    let names: Vec<String> = many[2..].iter().map(|(name, _)| name.clone()).collect();
    cache.strike(Book::Tenants, &names).await.unwrap();
    assert_eq!(notes(cache, Book::Tenants).await, many[..2].iter().cloned().collect());
}

async fn refuses_what_is_of_another_type(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    let manifests = [listing("text", ["a"])];
    let note = [("a".to_owned(), "b".to_owned())];
    past.set("text", b"1").await;
    past.evict(Book::Tenants.key()).await;
    past.set(Book::Tenants.key(), b"1").await;
    let errors = [
        cache.manifests(&strings(["none", "text"])).await.map(drop),
        cache.enlist(&manifests, at_minute(0), HOUR).await,
        cache.delist(&strings(["text"]), at_minute(0)).await,
        cache.notes(Book::Tenants).await.map(drop),
        cache.note(Book::Tenants, &note).await,
        cache.strike(Book::Tenants, &strings(["a"])).await,
    ];
    for error in errors {
        assert_eq!(error.unwrap_err().kind, CacheErrorKind::WrongType);
    }
}

async fn conforms(cache: &(impl Ledger + Cache), past: &mut Past<'_>) {
    keeps_fences(cache, past).await;
    mends_fences(cache, past).await;
    takes_thousands_of_fences(cache).await;
    keeps_manifests(cache, past).await;
    takes_large_manifests(cache).await;
    keeps_books(cache, past).await;
    takes_thick_books(cache).await;
    refuses_what_is_of_another_type(cache, past).await;
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
    conforms(&cache, &mut Past::Redis(past)).await;

    // Keys with another prefix or in another database are untouched.
    let mut past = support::redis_connection(&server).await;
    let there: usize = redis::cmd("DBSIZE").query_async(&mut past).await.unwrap();
    let mut pipe = redis::pipe();
    pipe.cmd("SELECT").arg(3).ignore().cmd("MGET").arg("a").arg("rel!8?:a");
    let (values,): (Vec<String>,) = pipe.query_async(&mut past).await.unwrap();
    assert_eq!((there, values), (1, vec!["not ours".to_owned(); 2]));
}
