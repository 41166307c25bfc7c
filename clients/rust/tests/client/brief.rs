//! Servers on which scripts cannot be used: fills are brief.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat_client::{Cache, Connection, Problem};
use preheat_sandbox::Redis;
use redis::Client;
use redis::cluster::ClusterClient;

use crate::support::{
    Eye, Loader, PATIENT, builder, cache, eventually, eye, list, redis_with, services, services_of,
};

const FENCE: &str = "preheat:fence:42";
const LEASE: &str = "preheat:lease:{services:42}services:42";
const BRIEF: Duration = Duration::from_secs(10);

/// A server whose user must not run scripts, and one that is a cluster.
async fn servers() -> [Redis; 2] {
    let mute = redis_with(&[("user", "default on nopass ~* &* +@all -@scripting")]);
    [mute, cluster().await]
}

/// A cluster of one node, which has all slots and yet refuses commands over several.
async fn cluster() -> Redis {
    let redis = redis_with(&[("cluster-enabled", "yes")]);
    let mut eye = eye(&redis).await;
    eye.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let is_ok =
        async || eye.clone().ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok");
    eventually("the cluster is ready", is_ok).await;
    redis
}

async fn one_fill(cache: &Cache, mut eye: Eye) {
    let loader = Loader::new();
    for _ in 0..2 {
        assert_eq!(loader.read(cache, services(), &["X-ray"]).await, ["X-ray"]);
    }
    assert_eq!(loader.calls(), 1);
    assert!(eye.ttl("services:42").await <= BRIEF);
    assert_eq!(eye.get(LEASE).await, None);
    let fence: u64 = eye.get(FENCE).await.unwrap().parse().unwrap();
    assert!(fence >= 1 << 40, "a missing fence was started");
}

#[tokio::test]
async fn a_value_is_filled_for_ten_seconds_and_that_is_told_once() {
    for redis in servers().await {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let cache = builder(&redis).await;
        let cache = cache.on_problem(move |problem, _| list.lock().unwrap().push(problem)).build();
        one_fill(&cache, eye(&redis).await).await;
        Loader::new().read(&cache, services_of("43"), &["X-ray"]).await;
        assert_eq!(*told.lock().unwrap(), [Problem::Scripts]);
    }
}

#[tokio::test]
async fn a_cluster_connection_works_as_well() {
    let redis = cluster().await;
    let client = ClusterClient::new([redis.tcp_url().unwrap()]).unwrap();
    let connection = client.get_async_connection().await.unwrap();
    let cache = Cache::builder(connection).deadline(PATIENT).build();
    one_fill(&cache, eye(&redis).await).await;
    cache.flush().await;
    let hits: u64 = eye(&redis).await.ask(&["HGET", "preheat:reads", "services:hit"]).await;
    assert_eq!(hits, 1);
    invalidates(&cache, eye(&redis).await).await;
    many(&cache).await;
}

#[tokio::test]
async fn a_fill_goes_when_the_fence_moved_during_the_load() {
    for redis in servers().await {
        let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
        let loader = Loader::waiting();
        let read = loader.spawn_read(&cache, services(), &["old"]);
        loader.has_begun(1).await;
        eye.ask::<u64>(&["INCR", FENCE]).await;
        loader.go();
        assert_eq!(read.await.unwrap(), ["old"]);
        assert_eq!(eye.keys().await, [FENCE]);
        assert_eq!(cache.stats().reads["services"].refused, 1);
    }
}

#[tokio::test]
async fn a_fill_leaves_a_value_that_is_there() {
    for redis in servers().await {
        let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
        let loader = Loader::waiting();
        let read = loader.spawn_read(&cache, services(), &["the reader's"]);
        loader.has_begun(1).await;
        eye.ask::<()>(&["SET", "services:42", r#"["the worker's"]"#, "EX", "7200"]).await;
        eye.ask::<u64>(&["INCR", FENCE]).await;
        loader.go();
        read.await.unwrap();
        assert_eq!(eye.get("services:42").await.unwrap(), r#"["the worker's"]"#);
        assert!(eye.ttl("services:42").await > BRIEF);
    }
}

#[tokio::test]
async fn over_processes_one_loads() {
    for redis in servers().await {
        let (one, two) = (cache(&redis).await, cache(&redis).await);
        let loader = Loader::waiting();
        let first = loader.spawn_read(&one, services(), &["X-ray"]);
        loader.has_begun(1).await;
        let second = loader.spawn_read(&two, services(), &["other"]);
        // It has found the lease taken.
        let looked = async || {
            let keys: Vec<String> = eye(&redis).await.keys().await;
            keys.contains(&LEASE.to_owned()) && eye(&redis).await.calls("set").await >= 3
        };
        eventually("the second waits", looked).await;
        loader.go();
        assert_eq!(first.await.unwrap(), ["X-ray"]);
        assert_eq!(second.await.unwrap(), ["X-ray"]);
        assert_eq!(loader.calls(), 1);
    }
}

async fn invalidates(cache: &Cache, mut eye: Eye) {
    let loader = Loader::new();
    loader.read(cache, services(), &["old"]).await;
    let before: u64 = eye.get(FENCE).await.unwrap().parse().unwrap();
    cache.invalidate([services(), services_of("43")]).await.unwrap();
    assert_eq!(eye.get(FENCE).await.unwrap(), (before + 1).to_string());
    assert_eq!(eye.get("services:42").await, None);
    assert!(eye.get("preheat:fence:43").await.is_some());
    assert_eq!(loader.read(cache, services(), &["new"]).await, ["new"]);
}

#[tokio::test]
async fn an_invalidation_moves_the_fence_before_the_keys_go() {
    for redis in servers().await {
        invalidates(&cache(&redis).await, eye(&redis).await).await;
    }
}

async fn many(cache: &Cache) {
    let loader = Loader::new();
    for _ in 0..2 {
        let keys = ["51", "52", "53"].map(|tenant| (tenant, services_of(tenant)));
        let loader = loader.clone();
        let load = move |tenants: Vec<&'static str>| {
            loader.clone().load(tenants.into_iter().map(|tenant| list(&[tenant])).collect())
        };
        let values = cache.many(keys, load).await.unwrap();
        assert_eq!(values, [list(&["51"]), list(&["52"]), list(&["53"])]);
    }
    assert_eq!(loader.calls(), 1);
}

#[tokio::test]
async fn many_keys_are_read_one_by_one_where_they_must() {
    for redis in servers().await {
        many(&cache(&redis).await).await;
    }
}

#[tokio::test]
async fn a_user_that_may_not_touch_the_fence_reads_and_fills_nothing() {
    let redis = redis_with(&[("user", "app on >secret ~services:* &* +@all")]);
    let url = redis.url() + "?user=app&pass=secret";
    let connection = redis::aio::ConnectionManager::new(Client::open(url).unwrap()).await.unwrap();
    let cache = Cache::builder(connection).deadline(PATIENT).build();
    assert_eq!(Loader::new().read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
    assert_eq!(eye(&redis).await.keys().await, [""; 0]);
    assert!(!cache.stats().breaker_open);
}

/// The rights that the README names.
#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let readme = include_str!("../../README.md");
    let rights = readme.split("`+get").nth(1).unwrap().split('`').next().unwrap();
    let user = format!("app on >secret ~services:* ~preheat:* resetchannels -@all +get{rights}");
    let redis = redis_with(&[("user", &user)]);
    let url = redis.url() + "?user=app&pass=secret";
    let cache = Cache::builder(Connection::open(&url).unwrap()).deadline(PATIENT).build();
    let loader = Loader::new();
    for _ in 0..2 {
        loader.read(&cache, services(), &["X-ray"]).await;
        let keys = [("X-ray", services_of("43"))];
        let load = |names: Vec<&'static str>| async move {
            Ok::<_, std::convert::Infallible>(vec![list(&names)])
        };
        cache.many(keys, load).await.unwrap();
    }
    cache.invalidate([services()]).await.unwrap();
    cache.flush().await;
    let stats = cache.stats();
    assert!(stats.problems.is_empty() && !stats.breaker_open, "{stats:?}");
    assert_eq!((stats.fills, stats.reads["services"].hit), (2, 2));
    assert!(eye(&redis).await.ttl("preheat:reads").await > BRIEF);
}
