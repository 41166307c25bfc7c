//! How the primary is found: at the first connection, and when another server has become the primary.

use std::sync::Arc;

use preheat::adapter::redis::{CacheSettings, RedisCache};
use preheat::adapter::{ConnectError, ConnectErrorKind};
use preheat::engine::ports::{Cache, CacheErrorKind};
use preheat_sandbox::{Redis, RedisOptions};

use crate::conformance::Values;
use crate::conformance::redis::settings;
use crate::support::program::SECRET;
use crate::support::proxy::{Mode, Proxy};
use crate::support::sentinels::{SERVICE, Watched, sentinel, tell};
use crate::support::{self, LONG, eventually, tls};

async fn connect(url: &str) -> RedisCache {
    RedisCache::connect(settings(url)).await.unwrap()
}

/// The URL of one Sentinel.
fn url(sentinel: &Redis) -> String {
    format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", sentinel.tcp_port().unwrap())
}

/// Why no connection can be made at this URL.
async fn refused(url: &str) -> (ConnectErrorKind, String) {
    let error = RedisCache::connect(settings(url)).await.unwrap_err();
    assert!(!error.message.contains(SECRET), "{error}");
    (error.kind, error.message)
}

/// Writes one key.
async fn write(cache: &RedisCache) -> Result<(), CacheErrorKind> {
    let values = Values::new([("key", "1")]);
    let written = cache.write(&values.entries()).await.and_then(|mut keys| keys.pop().unwrap());
    written.map_err(|error| error.kind)
}

async fn has_key(server: &Redis) -> bool {
    tell(server, redis::cmd("EXISTS").arg("key")).await
}

fn address(server: &Redis) -> String {
    format!("127.0.0.1:{}", server.tcp_port().unwrap())
}

async fn primary(cache: &RedisCache) -> Option<Arc<str>> {
    cache.look(&["key".to_owned()]).await.unwrap();
    cache.primary()
}

#[tokio::test]
async fn the_primary_is_found_through_any_sentinel_that_answers() {
    let server = support::redis();
    let [gone, silent, third] = [(); 3].map(|()| sentinel(&server, &[]));
    let silence = Proxy::redis(&silent).await;
    silence.set(Mode::Stall);
    let ports = [gone.tcp_port().unwrap(), silence.address().port(), third.tcp_port().unwrap()];
    gone.kill();
    let hosts = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    let cache = connect(&format!("redis+sentinel://{hosts}/{SERVICE}?db=2")).await;
    assert_eq!(write(&cache).await, Ok(()));
    assert_eq!(cache.primary().as_deref(), Some(address(&server).as_str()));
    assert_eq!(cache.server(), format!("{hosts}/{SERVICE}"));
    let mut past = support::redis_connection(&server).await;
    let () = redis::cmd("SELECT").arg(2).query_async(&mut past).await.unwrap();
    let there: bool = redis::cmd("EXISTS").arg("key").query_async(&mut past).await.unwrap();
    assert!(there, "the number of the database is that of the primary");
}

#[tokio::test]
async fn the_login_before_the_hosts_is_for_the_primary_and_that_of_the_sentinels_has_parameters() {
    let user = format!("app on >{SECRET} ~* +@all");
    let server = support::redis_with(&[("user", &user)]);
    let open = sentinel(&server, &[]);
    let with_login = |sentinel: &Redis, login: &str, parameters: &str| {
        url(sentinel).replace("//", &format!("//{login}")) + parameters
    };
    let app = format!("app:{SECRET}@");
    assert_eq!(write(&connect(&with_login(&open, &app, "")).await).await, Ok(()));
    let (kind, message) = refused(&with_login(&open, "app:wrong@", "")).await;
    assert_eq!(kind, ConnectErrorKind::Refused);
    let begin =
        format!("could not log in to cache `{}`: the user or the password", address(&server));
    assert!(message.starts_with(&begin), "{message}");

    let guarded = sentinel(&server, &[("user", &format!("watch on >{SECRET} +@all"))]);
    tell_as(&guarded, &["ACL", "SETUSER", "default", "off"]).await;
    let (kind, message) = refused(&with_login(&guarded, &app, "")).await;
    assert_eq!(kind, ConnectErrorKind::Refused);
    assert!(message.contains("`sentinel_user` and `sentinel_pass`"), "{message}");
    let (_, message) =
        refused(&with_login(&guarded, &app, "?sentinel_user=watch&sentinel_pass=wrong")).await;
    let begin = format!("could not log in to Sentinel `{}`: ", address(&guarded));
    assert!(message.contains(&begin), "{message}");
    let both = format!("?sentinel_user=watch&sentinel_pass={SECRET}");
    assert_eq!(write(&connect(&with_login(&guarded, &app, &both)).await).await, Ok(()));
}

/// Sends one command of words.
async fn tell_as(server: &Redis, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    let () = tell(server, command.arg(&words[1..])).await;
}

#[tokio::test]
async fn what_keeps_the_primary_from_being_found_is_said_with_what_to_do() {
    let server = support::redis();
    let watching = sentinel(&server, &[]);

    let (kind, message) = refused(&url(&watching).replace(SERVICE, "stop")).await;
    assert_eq!(kind, ConnectErrorKind::Unreachable);
    insta::assert_snapshot!(masked(&message, &[&watching, &server]));

    let error = connect(&format!("redis://{}", address(&watching))).await.has_keys().await;
    let ConnectError { kind, message } = error.unwrap_err();
    assert_eq!(kind, ConnectErrorKind::Settings);
    assert!(message.contains("if this is a Sentinel, write `redis+sentinel://"), "{message}");

    let (_, message) = refused(&url(&server)).await;
    insta::assert_snapshot!(masked(&message, &[&watching, &server]));

    let replica_of = format!("127.0.0.1 {}", server.tcp_port().unwrap());
    let replica = support::redis_with(&[("replicaof", &replica_of)]);
    let misled =
        sentinel(&replica, &[("sentinel", &format!("down-after-milliseconds {SERVICE} 60000"))]);
    let (kind, message) = refused(&url(&misled)).await;
    assert_eq!(kind, ConnectErrorKind::Unreachable);
    insta::assert_snapshot!(masked(&message, &[&misled, &replica]));

    server.kill();
    let (_, message) = refused(&url(&watching)).await;
    insta::assert_snapshot!(masked(&message, &[&watching, &server]));

    watching.kill();
    let both = url(&watching).replace("/shop", ",sentinel.invalid/shop");
    let (kind, message) = refused(&both).await;
    assert_eq!(kind, ConnectErrorKind::Unreachable);
    assert!(message.starts_with("no Sentinel of `shop` answered: "), "{message}");
    assert!(message.contains("`sentinel.invalid:26379`"), "{message}");
    assert!(
        message.ends_with(
            "hint: the URL names Sentinels, usually at port 26379, as in \
        `redis+sentinel://h1,h2,h3/shop`"
        ),
        "{message}"
    );
}

/// A message without ports, which differ from run to run.
fn masked(message: &str, [sentinel, server]: &[&Redis; 2]) -> String {
    let message = message.replace(&address(sentinel), "SENTINEL");
    message.replace(&address(server), "SERVER")
}

#[tokio::test]
async fn with_tls_the_sentinels_and_the_primary_are_spoken_to_with_it() {
    let Some(certificates) = tls::certificates() else { return };
    let Some(server) = certificates.redis() else { return };
    let port = server.tls_port().unwrap();
    let watch = format!("monitor {SERVICE} 127.0.0.1 {port} 1");
    let settings = vec![("sentinel".to_owned(), watch), ("tls-replication".into(), "yes".into())];
    let options = RedisOptions {
        sentinel: true,
        tls: Some(certificates.server()),
        settings,
        ..RedisOptions::default()
    };
    let sentinel = Redis::start(&options).unwrap();
    let url = format!("rediss+sentinel://127.0.0.1:{}/{SERVICE}", sentinel.tls_port().unwrap());
    let ca_file = Some(certificates.authority());
    let settings = CacheSettings { ca_file, ..crate::conformance::redis::settings(&url) };
    let cache = RedisCache::connect(settings).await.unwrap();
    assert_eq!(write(&cache).await, Ok(()));
    let (_, message) = refused(&url).await;
    assert!(message.contains("`[cache] ca`"), "{message}");
}

#[tokio::test]
async fn a_primary_that_was_replaced_while_it_is_well_is_left_for_the_new_one() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let cache = connect(&watched.url()).await;
    let before = cache.stats().await.unwrap();
    assert_eq!(cache.stats().await.unwrap().process, before.process);
    assert_eq!(primary(&cache).await.as_deref(), Some(address(old).as_str()));

    // The old primary takes writes for some ten seconds more, and will lose them.
    watched.fail_over().await;
    watched.name(new).await;
    let after = cache.stats().await.unwrap();
    assert_ne!(after.process, before.process);
    assert_eq!(write(&cache).await, Ok(()));
    assert!(has_key(new).await, "values go where the stats come from");
    assert_eq!(cache.primary().as_deref(), Some(address(new).as_str()));

    // The first one again, whose process never ended: it may lack what was written in between.
    watched.is_in_step(old).await;
    watched.fail_over_to(old).await;
    let again = cache.stats().await.unwrap();
    assert!(again.process != before.process && again.process != after.process);
}

#[tokio::test]
async fn a_demoted_primary_is_noticed_while_its_connection_stands() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let cache = connect(&watched.url()).await;
    assert_eq!(primary(&cache).await.as_deref(), Some(address(old).as_str()));
    // By hand: Sentinels would close the connections.
    watched.watch_instead(new).await;
    tell_as(new, &["REPLICAOF", "NO", "ONE"]).await;
    tell_as(old, &["REPLICAOF", "127.0.0.1", &new.tcp_port().unwrap().to_string()]).await;
    eventually("it is noticed without a write", LONG, async || {
        primary(&cache).await.as_deref() == Some(address(new).as_str())
    })
    .await;
    assert_eq!(write(&cache).await, Ok(()));
    assert!(has_key(new).await);
}

#[tokio::test]
async fn a_write_that_a_demoted_primary_refuses_may_be_tried_again_and_goes_to_the_new_one() {
    let watched = Watched::start().await;
    let [old, new] = &watched.servers;
    let cache = connect(&watched.url()).await;
    assert_eq!(write(&cache).await, Ok(()));
    watched.watch_instead(new).await;
    tell_as(new, &["REPLICAOF", "NO", "ONE"]).await;
    tell_as(old, &["REPLICAOF", "127.0.0.1", &new.tcp_port().unwrap().to_string()]).await;
    tell_as(new, &["DEL", "key"]).await;
    assert_eq!(write(&cache).await, Err(CacheErrorKind::Transient));
    assert_eq!(write(&cache).await, Ok(()));
    assert!(has_key(new).await);
}
