//! One reader and a Redis that answers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat_client::{Error, Fill, Key, Problem, Reads};
use serde::{Deserialize, Serialize};

use crate::support::{HOUR, Loader, builder, cache, eventually, eye, list, pet, redis, services};

#[tokio::test]
async fn a_miss_is_loaded_and_filled_and_the_next_read_is_a_hit() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    for _ in 0..2 {
        assert_eq!(loader.read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
    }
    assert_eq!(loader.calls(), 1);
    assert_eq!(eye.get("services:42").await.unwrap(), r#"["X-ray"]"#);
    let ttl = eye.ttl("services:42").await;
    assert!(ttl <= HOUR && ttl > HOUR / 2, "{ttl:?}");
    assert_eq!(eye.keys().await, ["preheat:fence:42", "services:42"], "no lease is left");
    let stats = cache.stats();
    assert_eq!(stats.reads["services"], Reads { hit: 1, miss: 1, ..Reads::default() });
    assert_eq!((stats.loads, stats.fills), (1, 1));
}

#[tokio::test]
async fn a_value_that_the_worker_wrote_is_a_hit_and_costs_one_command() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    eye.ask::<()>(&["SET", "services:42", r#"["X-ray"]"#]).await;
    eye.ask::<()>(&["CONFIG", "RESETSTAT"]).await;
    let loader = Loader::new();
    for _ in 0..20 {
        assert_eq!(loader.read(&cache, services(), &["old"]).await, ["X-ray"]);
    }
    assert_eq!(loader.calls(), 0);
    assert_eq!(eye.calls("get").await, 20);
    for other in ["evalsha", "eval", "mget", "set", "pttl", "hincrby"] {
        assert_eq!(eye.calls(other).await, 0, "{other}");
    }
}

#[tokio::test]
async fn raw_text_goes_through_as_it_is() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let text = r#"[ "not as serde writes it" ]"#;
    eye.ask::<()>(&["SET", "services:42", text]).await;
    let load = || async { Ok::<_, Infallible>(list(&[])) };
    assert_eq!(cache.raw_or_load(services(), load).await.unwrap(), text);
}

#[tokio::test]
async fn keys_live_as_long_as_their_kind_of_fill_says() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let load = || async { Ok::<_, Infallible>(7) };
    let key = |name: &str, fill| Key::new(name, Some("42".to_owned()), HOUR, "numbers", fill);
    let keys = [
        key("full", Fill::Full),
        key("brief", Fill::Brief),
        key("never", Fill::Never),
        Key::new("fleet", None, HOUR, "numbers", Fill::Full),
        Key::plain("plain", HOUR),
        Key::plain("of tenant", HOUR).of_tenant("42"),
    ];
    for key in keys {
        assert_eq!(cache.get_or_load(key, load).await.unwrap(), 7);
    }
    let brief = Duration::from_secs(10);
    for name in ["full", "fleet", "of tenant"] {
        assert!(eye.ttl(name).await > brief, "{name}");
    }
    for name in ["brief", "plain"] {
        assert!(eye.ttl(name).await <= brief, "{name}");
    }
    assert_eq!(eye.get("never").await, None);
    assert!(eye.get("preheat:fence").await.is_some(), "the fence of jobs without tenants");
}

#[tokio::test]
async fn names_have_the_prefix() {
    let redis = redis();
    let cache = builder(&redis).await.prefix("v2:").build();
    let mut eye = eye(&redis).await;
    Loader::new().read(&cache, services(), &["X-ray"]).await;
    cache.flush().await;
    let expected = ["v2:preheat:fence:42", "v2:preheat:reads", "v2:services:42"];
    assert_eq!(eye.keys().await, expected);
    cache.invalidate([services()]).await.unwrap();
    assert_eq!(eye.get("v2:services:42").await, None);
}

#[tokio::test]
async fn a_miss_gives_the_same_value_as_a_hit() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        name: String,
        #[serde(skip)]
        rank: u32,
    }
    let redis = redis();
    let cache = cache(&redis).await;
    let key = || Key::plain("row", HOUR).of_tenant("42");
    let load = || async { Ok::<_, Infallible>(Row { name: "X-ray".into(), rank: 7 }) };
    let miss = cache.get_or_load(key(), load).await.unwrap();
    let hit = cache.get_or_load(key(), load).await.unwrap();
    assert_eq!(miss, Row { name: "X-ray".into(), rank: 0 });
    assert_eq!(miss, hit);
}

#[tokio::test]
async fn a_row_that_is_not_there_is_remembered_in_the_process_only() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    let find = |found: Option<&str>| {
        let (loader, found) = (loader.clone(), found.map(str::to_owned));
        cache.find_or_load(pet(7), || loader.load(found))
    };
    assert_eq!(find(None).await.unwrap(), None);
    assert_eq!(find(Some("Rex")).await.unwrap(), None, "remembered for a second");
    assert_eq!(loader.calls(), 1);
    assert_eq!(eye.get("pet:7").await, None);
    assert_eq!(eye.get("preheat:lease:{pet:7}pet:7").await, None);

    cache.invalidate([pet(7)]).await.unwrap();
    assert_eq!(find(Some("Rex")).await.unwrap().unwrap(), "Rex", "the invalidation forgets it");
    assert_eq!(find(None).await.unwrap().unwrap(), "Rex");
    assert_eq!(eye.get("pet:7").await.unwrap(), r#""Rex""#);
}

#[tokio::test]
async fn null_is_served_and_not_cached() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    for _ in 0..2 {
        let (key, loader) = (Key::plain("null", HOUR).of_tenant("42"), loader.clone());
        let read = cache.get_or_load(key, || loader.load(None::<u32>));
        assert_eq!(read.await.unwrap(), None);
    }
    assert_eq!(loader.calls(), 2);
    assert_eq!(eye.get("null").await, None);
}

#[tokio::test]
async fn zero_false_and_empty_values_are_cached() {
    let redis = redis();
    let cache = cache(&redis).await;
    let loader = Loader::new();
    for _ in 0..2 {
        let key = |name: &str| Key::<serde_json::Value>::plain(name, HOUR).of_tenant("42");
        for (name, value) in [("zero", "0"), ("false", "false"), ("text", "\"\""), ("list", "[]")] {
            let value: serde_json::Value = value.parse().unwrap();
            let (loader, expected) = (loader.clone(), value.clone());
            let read = cache.get_or_load(key(name), || loader.load(value)).await;
            assert_eq!(read.unwrap(), expected);
        }
    }
    assert_eq!(loader.calls(), 4);
}

#[tokio::test]
async fn a_value_that_is_too_large_is_served_and_not_cached_and_told() {
    let redis = redis();
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&told);
    let listener = move |problem, error: &(dyn std::error::Error + 'static)| {
        list.lock().unwrap().push((problem, error.to_string()));
    };
    let cache = builder(&redis).await.max_bytes(10).on_problem(listener).build();
    let loader = Loader::new();
    for _ in 0..2 {
        let names = ["longer than ten"];
        assert_eq!(loader.read(&cache, services(), &names).await, names);
    }
    assert_eq!(loader.calls(), 2);
    let message = "a value of `services` has 19 bytes and is not cached".to_owned();
    assert_eq!(*told.lock().unwrap(), [(Problem::TooLarge, message)], "told once");
    assert_eq!(cache.stats().problems[&Problem::TooLarge], 2, "and counted always");
}

#[tokio::test]
async fn a_value_of_another_type_is_loaded_anew_and_left_to_the_worker() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let older = r#"{"an older release":"wrote this"}"#;
    eye.ask::<()>(&["SET", "services:42", older]).await;
    assert_eq!(Loader::new().read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
    assert_eq!(eye.get("services:42").await.unwrap(), older);
    let stats = cache.stats();
    assert_eq!(stats.problems[&Problem::Unreadable], 1);
    assert_eq!(stats.reads["services"].miss, 1);
}

#[tokio::test]
async fn a_value_that_is_no_json_is_an_error_of_the_read() {
    let redis = redis();
    let (cache, eye) = (cache(&redis).await, eye(&redis).await);
    let map = std::collections::BTreeMap::from([(vec![1], 2)]);
    let load = || async { Ok::<_, Infallible>(map) };
    let read = cache.get_or_load(Key::plain("map", HOUR).of_tenant("42"), load).await;
    assert!(matches!(read, Err(Error::Value(_))), "{read:?}");
    let free = async || eye.clone().keys().await == ["preheat:fence:42"];
    eventually("nothing but the fence is left", free).await;
}

#[tokio::test]
async fn an_error_of_the_loader_is_returned_and_not_cached_and_gives_the_lease_back() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let fail = || async { Err(std::io::Error::other("no database")) };
    let read = cache.get_or_load(services(), fail).await;
    let Err(Error::Load(error)) = read else { panic!("{read:?}") };
    assert_eq!(error.to_string(), "no database");
    let lease = "preheat:lease:{services:42}services:42";
    let free = async || eye.clone().get(lease).await.is_none();
    eventually("the lease is free", free).await;
    assert_eq!(eye.get("services:42").await, None);
    assert_eq!(cache.stats().failed_loads, 1);
}

#[tokio::test]
async fn counts_reach_redis_as_growth_and_with_an_end() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::new();
    for _ in 0..3 {
        loader.read(&cache, services(), &["X-ray"]).await;
    }
    cache.flush().await;
    cache.flush().await;
    let count = async |eye: &mut crate::support::Eye, field| -> Option<u64> {
        eye.ask(&["HGET", "preheat:reads", field]).await
    };
    assert_eq!(count(&mut eye, "services:hit").await, Some(2));
    assert_eq!(count(&mut eye, "services:miss").await, Some(1));
    assert_eq!(count(&mut eye, "services:joined").await, None);
    loader.read(&cache, services(), &["X-ray"]).await;
    cache.flush().await;
    assert_eq!(count(&mut eye, "services:hit").await, Some(3));
    let ttl = eye.ttl("preheat:reads").await;
    assert!(ttl > Duration::from_secs(86_000) && ttl <= Duration::from_secs(86_400), "{ttl:?}");
}

#[tokio::test]
async fn counts_reach_redis_by_themselves() {
    let redis = redis();
    let (cache, eye) = (cache(&redis).await, eye(&redis).await);
    Loader::new().read(&cache, services(), &["X-ray"]).await;
    let told = async || {
        let count: Option<u64> = eye.clone().ask(&["HGET", "preheat:reads", "services:miss"]).await;
        count == Some(1)
    };
    eventually("the worker is told", told).await;
}

#[tokio::test]
async fn the_background_task_ends_with_the_cache() {
    let redis = redis();
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let cache = cache(&redis).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(alive() > before);
    drop(cache);
    eventually("its tasks have ended", async || alive() <= before).await;
}

#[tokio::test]
async fn without_the_cache_each_read_loads_and_nothing_is_sent() {
    let redis = redis();
    let cache = builder(&redis).await.enabled(false).build();
    let mut eye = eye(&redis).await;
    eye.ask::<()>(&["SET", "services:42", r#"["old"]"#]).await;
    let loader = Loader::new();
    for _ in 0..2 {
        assert_eq!(loader.read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
    }
    let keys = [("X-ray", services())];
    let load = {
        let loader = loader.clone();
        move |names: Vec<&'static str>| loader.clone().load(vec![list(&names)])
    };
    assert_eq!(cache.many(keys, load).await.unwrap(), [["X-ray"]]);
    let raw = {
        let loader = loader.clone();
        cache.raw_or_load(services(), || loader.load(list(&["X-ray"]))).await.unwrap()
    };
    assert_eq!(raw, r#"["X-ray"]"#);
    cache.invalidate([services()]).await.unwrap();
    cache.flush().await;
    assert_eq!(loader.calls(), 4);
    assert_eq!(eye.keys().await, ["services:42"]);
    assert_eq!(cache.stats().reads["services"].bypass, 4);
}
