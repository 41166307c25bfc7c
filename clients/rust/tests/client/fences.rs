//! Data that change while they are loaded, and invalidation.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat_client::{Key, Problem};

use crate::support::{HOUR, Loader, builder, cache, eventually, eye, redis, services, services_of};

const FENCE: &str = "preheat:fence:42";
const LOWEST_START: u64 = 1 << 40;

#[tokio::test]
async fn a_fill_is_refused_when_the_fence_moved_during_the_load() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let read = loader.spawn_read(&cache, services(), &["old"]);
    loader.has_begun(1).await;
    eye.ask::<u64>(&["INCR", FENCE]).await; // another process changed something
    loader.go();
    assert_eq!(read.await.unwrap(), ["old"], "it is served");
    assert_eq!(eye.keys().await, [FENCE], "but not cached, and the lease is back");
    let reads = cache.stats().reads["services"];
    assert_eq!((reads.miss, reads.refused), (1, 1));
}

#[tokio::test]
async fn a_fill_is_refused_when_the_fence_is_gone() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let read = loader.spawn_read(&cache, services(), &["old"]);
    loader.has_begun(1).await;
    eye.ask::<u64>(&["DEL", FENCE]).await; // an eviction; who knows what moved since
    loader.go();
    read.await.unwrap();
    assert_eq!(eye.keys().await, [""; 0]);
}

#[tokio::test]
async fn a_fence_that_is_missing_or_made_by_a_bare_incr_is_started() {
    for before in [None, Some("1"), Some("not a number")] {
        let redis = redis();
        let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
        if let Some(before) = before {
            eye.ask::<()>(&["SET", FENCE, before]).await;
        }
        Loader::new().read(&cache, services(), &["X-ray"]).await;
        let fence: u64 = eye.get(FENCE).await.unwrap().parse().unwrap();
        assert!(fence >= LOWEST_START, "{before:?}: {fence}");
        assert!(eye.ttl(FENCE).await > Duration::from_secs(600_000));
        assert!(eye.get("services:42").await.is_some());
    }
}

#[tokio::test]
async fn a_fence_that_has_a_start_stays() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let fence = LOWEST_START.to_string();
    eye.ask::<()>(&["SET", FENCE, &fence]).await;
    Loader::new().read(&cache, services(), &["X-ray"]).await;
    assert_eq!(eye.get(FENCE).await.unwrap(), fence);
}

#[tokio::test]
async fn a_fill_leaves_a_value_that_the_worker_wrote_meanwhile() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let read = loader.spawn_read(&cache, services(), &["the reader's"]);
    loader.has_begun(1).await;
    let warmed = r#"["the worker's"]"#;
    eye.ask::<()>(&["SET", "services:42", warmed, "EX", "7200"]).await;
    loader.go();
    assert_eq!(read.await.unwrap(), ["the reader's"]);
    assert_eq!(eye.get("services:42").await.unwrap(), warmed);
    assert!(eye.ttl("services:42").await > HOUR, "nor does it shorten its life");
    assert_eq!((cache.stats().fills, cache.stats().reads["services"].refused), (0, 0));
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_gets_them_again() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let read = loader.spawn_read(&cache, services(), &["X-ray"]);
    loader.has_begun(1).await;
    eye.ask::<()>(&["SCRIPT", "FLUSH"]).await;
    loader.go();
    read.await.unwrap();
    assert_eq!(eye.get("services:42").await.unwrap(), r#"["X-ray"]"#);
    assert!(cache.stats().problems.is_empty(), "{:?}", cache.stats().problems);
}

/// A text that makes no key.
#[derive(Debug)]
struct BadKey;

impl std::fmt::Display for BadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`category` is empty")
    }
}

impl std::error::Error for BadKey {}

#[tokio::test]
async fn a_change_removes_all_keys_but_those_that_are_none_and_never_fails() {
    let redis = redis();
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&told);
    let listener = move |problem, error: &(dyn std::error::Error + 'static)| {
        list.lock().unwrap().push((problem, error.to_string()));
    };
    let cache = builder(&redis).await.on_problem(listener).build();
    let mut eye = eye(&redis).await;
    let loader = Loader::new();
    for tenant in ["41", "42", "43"] {
        loader.read(&cache, services_of(tenant), &["old"]).await;
    }
    assert!(cache.changed([services_of("43")]).await);
    assert!(told.lock().unwrap().is_empty());
    let built = [Ok(services_of("41")), Err(BadKey), Ok(services_of("42"))];
    assert!(!cache.changed(built).await, "something may be old");
    for tenant in ["41", "42", "43"] {
        assert_eq!(eye.get(&format!("services:{tenant}")).await, None);
    }
    assert_eq!(*told.lock().unwrap(), [(Problem::Key, BadKey.to_string())]);
    assert_eq!(cache.stats().problems[&Problem::Key], 1);
    assert!(cache.changed(Vec::<Key<String>>::new()).await);

    let off = builder(&redis).await.enabled(false).build();
    redis.kill();
    assert!(!cache.changed([services()]).await);
    assert_ne!(cache.stats().problems.get(&Problem::Connection), None);
    assert!(off.changed([services()]).await);
}

#[tokio::test]
async fn an_invalidation_moves_the_fence_and_removes_the_keys() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    for tenant in ["41", "42", "43"] {
        loader.read(&cache, services_of(tenant), &["old"]).await;
    }
    let fence = async |eye: &mut crate::support::Eye, tenant: &str| -> u64 {
        eye.get(&format!("preheat:fence:{tenant}")).await.unwrap().parse().unwrap()
    };
    let (one, two, three) =
        (fence(&mut eye, "41").await, fence(&mut eye, "42").await, fence(&mut eye, "43").await);
    cache.invalidate([services_of("41"), services_of("42")]).await.unwrap();
    assert_eq!(fence(&mut eye, "41").await, one + 1);
    assert_eq!(fence(&mut eye, "42").await, two + 1);
    assert_eq!(fence(&mut eye, "43").await, three);
    assert_eq!(eye.get("services:41").await, None);
    assert_eq!(eye.get("services:42").await, None);
    assert!(eye.get("services:43").await.is_some());
    assert_eq!(loader.read(&cache, services(), &["new"]).await, ["new"]);
}

#[tokio::test]
async fn an_invalidation_starts_a_missing_fence_and_takes_keys_of_all_kinds() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    eye.ask::<()>(&["MSET", "services:42", "[]", "plain", "1", "fleet", "2"]).await;
    let fleet = Key::new("fleet", None, HOUR, "numbers", preheat_client::Fill::Full);
    let keys = [services().any(), Key::<u32>::plain("plain", HOUR).any(), fleet];
    cache.invalidate(keys).await.unwrap();
    assert_eq!(eye.keys().await, ["preheat:fence", FENCE]);
    for fence in ["preheat:fence", FENCE] {
        let number: u64 = eye.get(fence).await.unwrap().parse().unwrap();
        assert!(number > LOWEST_START, "{fence}");
        assert!(eye.ttl(fence).await > Duration::from_secs(600_000));
    }
    cache.invalidate::<u32>([]).await.unwrap();
}

#[tokio::test]
async fn the_fence_of_a_tenant_moves_alone() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    loader.read(&cache, services(), &["X-ray"]).await;
    let before: u64 = eye.get(FENCE).await.unwrap().parse().unwrap();
    cache.invalidate_tenant("42").await.unwrap();
    assert_eq!(eye.get(FENCE).await.unwrap(), (before + 1).to_string());
    assert!(eye.get("services:42").await.is_some());
}

/// A load that began before a write answers those who waited, and nobody who comes after the write.
#[tokio::test]
async fn who_reads_after_an_invalidation_does_not_join_a_load_from_before_it() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    for by_tenant in [false, true] {
        let (before, after) = (Loader::waiting(), Loader::new());
        let older = before.spawn_read(&cache, services(), &["old"]);
        before.has_begun(1).await;
        if by_tenant {
            cache.invalidate_tenant("42").await.unwrap();
        } else {
            cache.invalidate([services()]).await.unwrap();
        }
        // The older load has the lease, which is no reason to answer with an old value.
        assert_eq!(after.read(&cache, services(), &["new"]).await, ["new"]);
        before.go();
        assert_eq!(older.await.unwrap(), ["old"]);
        assert_eq!(eye.get("services:42").await.unwrap(), r#"["new"]"#);
        assert_eq!((before.calls(), after.calls()), (1, 1));
        let free =
            async || eye.clone().get("preheat:lease:{services:42}services:42").await.is_none();
        eventually("the lease is free", free).await;
        eye.ask::<()>(&["DEL", "services:42"]).await;
    }
    let stats = cache.stats();
    assert_eq!(stats.reads["services"].refused, 2);
    assert_eq!(stats.lease_timeouts, 0, "the older load gave its lease back");
}

#[tokio::test]
async fn a_load_from_before_an_invalidation_does_not_fill_a_key_without_a_fence() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let key = || Key::plain("plain", HOUR);
    let loader = Loader::waiting();
    let read = loader.spawn_read(&cache, key(), &["old"]);
    loader.has_begun(1).await;
    cache.invalidate([key()]).await.unwrap();
    loader.go();
    assert_eq!(read.await.unwrap(), ["old"]);
    assert_eq!(eye.get("plain").await, None);
}
