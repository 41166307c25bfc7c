//! The cache on a real Redis Cluster: what a single server does, and slots that move, nodes that die.

mod moving;
mod worker;

use std::time::Duration;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::redis::{CLUSTER_RIGHTS, CacheSettings, RIGHTS, RedisCache};
use preheat::domain::fence::Fence;
use preheat::domain::fleet::{Beat, Standing};
use preheat::domain::member::MemberId;
use preheat::domain::reads::READS_KEY;
use preheat::domain::share::Shares;
use preheat::engine::ports::{Cache, CacheErrorKind, Leases, Ledger};
use preheat_sandbox::{Redis, RedisOptions};

use crate::conformance::cache::{PREFIX, Past, scan};
use crate::conformance::certificates::Certificates;
use crate::conformance::redis::settings;
use crate::conformance::{Values, cache, ledger, pauses, relay, sheets};
use crate::support::cluster::{Cluster, LONGER, cluster, cluster_with};
use crate::support::{self, eventually};

async fn connect(cluster: &Cluster) -> RedisCache {
    RedisCache::connect(settings(&cluster.url())).await.unwrap()
}

/// Keys of many slots.
fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("k:{number}")).collect()
}

async fn write(cache: &RedisCache, keys: &[String], json: &str) {
    let values = Values::new(keys.iter().map(|key| (key.as_str(), json)));
    let results = cache.write(&values.entries()).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// The values of keys.
async fn values(cache: &RedisCache, keys: &[String]) -> Vec<Option<String>> {
    let found = cache.look(keys).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    found.into_iter().map(|found| found.map(|found| text(found.value))).collect()
}

#[tokio::test]
async fn the_cache_and_the_ledger_on_a_cluster_conform() {
    let cluster = cluster(false).await;
    let settings = CacheSettings { prefix: PREFIX.to_owned(), ..settings(&cluster.url()) };
    let on_cluster = RedisCache::connect(settings).await.unwrap();
    let mut past = Past::Redis(cluster.connections().await);
    cache::conforms(&on_cluster, &mut past).await;
    ledger::conforms(&on_cluster, &mut past).await;
    pauses::conforms(&on_cluster).await;
    let mut count = redis::cmd("HSET");
    count.arg(format!("{PREFIX}{READS_KEY}")).arg(&[("services:hit", "12")]);
    for mut node in cluster.connections().await {
        let _moved = count.exec_async(&mut node).await;
    }
    let fields = ["services:hit", "services:miss"].map(str::to_owned);
    assert_eq!(on_cluster.reads(&fields).await.unwrap(), [12, 0]);
}

#[tokio::test]
async fn what_a_fleet_keeps_is_kept_on_a_cluster_too() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    relay::conforms(&cache).await;
    sheets::conforms(&cache).await;
    cache.can_lease().await.unwrap();
    let id = MemberId::parse("a").unwrap();
    let beat = Beat {
        id: id.clone(),
        number: 1,
        standing: Standing::Works,
        claims: Shares::ALL,
        connections: None,
    };
    assert_eq!(cache.beat(&beat).await.unwrap().held_by(&id), Shares::ALL);
    assert_eq!(cluster.errors("CROSSSLOT").await, 0);
}

#[tokio::test]
async fn answers_come_in_the_callers_order_and_every_node_has_its_part() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let keys = keys(3_000);
    let texts: Vec<String> = (0..keys.len()).map(|index| index.to_string()).collect();
    let pairs = keys.iter().zip(&texts).map(|(key, text)| (key.as_str(), text.as_str()));
    let written = Values::new(pairs);
    let results = cache.write(&written.entries()).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
    let found = values(&cache, &keys).await;
    assert!(found.iter().zip(&texts).all(|(found, text)| found.as_ref() == Some(text)));

    let (found, pages) = scan(&cache, "k:*").await;
    assert_eq!(found, keys.iter().cloned().collect());
    assert!(pages >= 6, "{pages} pages");
    let stats = cache.stats().await.unwrap();
    assert_eq!(stats.keys, Some(3_000));
    let mut of_nodes = Vec::new();
    for node in 0..3 {
        of_nodes.push(cluster.ask::<u64>(node, "DBSIZE").await);
    }
    assert!(of_nodes.iter().all(|count| *count > 500), "{of_nodes:?}");
    assert_eq!(of_nodes.iter().sum::<u64>(), 3_000);
    assert_eq!(cache.exist(&keys).await, Ok(3_000));
    let servers = cache.servers(&keys);
    for (node, count) in of_nodes.iter().enumerate() {
        let there = servers.iter().filter(|server| **server == node).count();
        assert_eq!(there as u64, *count, "node {node}");
    }

    let mut some = keys[..4].to_vec();
    some.insert(2, "no such key".to_owned());
    let removed = cache.remove(&some).await.unwrap();
    assert_eq!(removed, [Ok(true), Ok(true), Ok(false), Ok(true), Ok(true)]);
    assert_eq!(cluster.errors("MOVED").await, 0, "the slots were known");
    assert_eq!(cluster.errors("CROSSSLOT").await, 0);
}

#[tokio::test]
async fn a_server_and_a_url_that_do_not_fit_each_other_are_told_with_the_url_to_write() {
    let cluster = cluster(false).await;
    let url = cluster.node(0).tcp_url().unwrap();
    let cache = RedisCache::connect(settings(&url)).await.unwrap();
    let keys = keys(100);
    let values = Values::new(keys.iter().map(|key| (key.as_str(), "1")));
    let results = cache.write(&values.entries()).await.unwrap();
    let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(errors.len() > 30, "{}", errors.len());
    for error in errors {
        assert_eq!(error.kind, CacheErrorKind::Moved);
        assert!(error.message.contains("write `redis+cluster://` in place"), "{error}");
    }

    let single = support::redis();
    let url = single.tcp_url().unwrap().replace("redis://", "redis+cluster://");
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Refused, "{error}");
    assert!(error.message.contains("write `redis://` in place of"), "{error}");

    let error = RedisCache::connect(settings("redis+cluster://127.0.0.1:1,127.0.0.1:2"));
    let error = error.await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Unreachable, "{error}");
    assert!(error.message.contains("could not connect to cache `127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn one_node_that_answers_is_enough_to_find_the_others() {
    let cluster = cluster(false).await;
    let port = cluster.node(1).tcp_port().unwrap();
    let url = format!("redis+cluster://127.0.0.1:1,127.0.0.1:{port}");
    let cache = RedisCache::connect(settings(&url)).await.unwrap();
    let keys = keys(300);
    write(&cache, &keys, "1").await;
    assert!(values(&cache, &keys).await.iter().all(Option::is_some));
    assert_eq!(cache.server(), format!("127.0.0.1:1,127.0.0.1:{port}"));
}

#[tokio::test]
async fn tls_user_and_password_are_those_of_every_node() {
    let certificates = Certificates::new();
    let own = certificates.server();
    let settings_of_nodes = [
        ("tls-ca-cert-file", certificates.ca().display().to_string()),
        ("cluster-announce-hostname", "localhost".to_owned()),
        ("cluster-preferred-endpoint-type", "hostname".to_owned()),
        ("user", "app on >hush ~* +@all".to_owned()),
    ];
    let options = RedisOptions {
        tls: Some(own),
        settings: settings_of_nodes.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..RedisOptions::default()
    };
    let cluster = cluster_with(false, options).await;
    let url = cluster.tls_url().replace("//", "//app:hush@");
    let mut settings = settings(&url);
    let error = RedisCache::connect(settings.clone()).await.unwrap_err();
    assert!(error.message.contains("certificate"), "{error}");
    settings.ca_file = Some(certificates.ca());
    let cache = RedisCache::connect(settings.clone()).await.unwrap();
    let keys = keys(300);
    write(&cache, &keys, "1").await;
    assert!(values(&cache, &keys).await.iter().all(Option::is_some));

    settings.url = cluster.tls_url().replace("//", "//app:wrong@").into();
    let error = RedisCache::connect(settings).await.unwrap_err();
    assert!(error.message.contains("the user or the password is wrong"), "{error}");
}

#[tokio::test]
async fn the_documented_rights_are_enough_on_a_cluster() {
    let cluster = cluster(false).await;
    for node in 0..3 {
        let rights = format!("ACL SETUSER app on >hush {RIGHTS} {CLUSTER_RIGHTS} ~k:*");
        let () = cluster.ask(node, &rights).await;
    }
    let url = cluster.url().replace("//", "//app:hush@");
    let cache = RedisCache::connect(settings(&url)).await.unwrap();
    let keys = keys(100);
    write(&cache, &keys, "1").await;
    let fences: Vec<String> = (0..50).map(|tenant| format!("preheat:fence:{tenant}")).collect();
    cache.move_fences(&fences, 1 << 41).await.unwrap();
    assert_eq!(cache.fences(&fences).await.unwrap(), vec![Fence::At((1 << 41) + 1); 50]);
    assert_eq!(scan(&cache, "k:*").await.0.len(), 100);
    cache.stats().await.unwrap();

    for node in 0..3 {
        let () = cluster.ask(node, "ACL SETUSER app -cluster|slots").await;
    }
    let error = RedisCache::connect(settings(&url)).await.unwrap_err();
    assert!(error.message.contains(CLUSTER_RIGHTS), "{error}");
}

/// Valkey speaks Redis' protocol; where it is installed beside Redis, both are tested.
#[tokio::test]
async fn valkey_conforms() {
    let found = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
        .into_iter()
        .find(|folder| std::path::Path::new(folder).join("valkey-server").exists());
    let Some(folder) = found else {
        support::skipped("valkey-server is not installed");
        return;
    };
    // The sandbox prefers `redis-server` in the same folder.
    let own = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        std::path::Path::new(folder).join("valkey-server"),
        own.path().join("valkey-server"),
    )
    .unwrap();
    let options =
        RedisOptions { folders: vec![own.path().to_owned()], tcp: true, ..RedisOptions::default() };
    let server = Redis::start(&options).unwrap();
    let (on_valkey, past) = cache::on_redis(&server, &format!("{}?db=3", server.url())).await;
    let mut past = Past::Redis(vec![past]);
    cache::conforms(&on_valkey, &mut past).await;
    ledger::conforms(&on_valkey, &mut past).await;
    let cluster = cluster_with(false, options).await;
    let settings = CacheSettings { prefix: PREFIX.to_owned(), ..settings(&cluster.url()) };
    let on_cluster = RedisCache::connect(settings).await.unwrap();
    let mut past = Past::Redis(cluster.connections().await);
    cache::conforms(&on_cluster, &mut past).await;
    ledger::conforms(&on_cluster, &mut past).await;
}
