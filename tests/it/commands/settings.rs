//! Settings as the program reads them: layers, prefixes, users, databases, TLS, poolers, secrets.

use preheat_sandbox::Clinic;
use redis::AsyncCommands;
use rustix::process::Signal;

use super::{GLOBAL, SERVICES, servers, values};
use crate::conformance::pgbouncer::Bouncer;
use crate::support::program::SECRET;
use crate::support::{self, http, preheat, tls};

#[tokio::test]
async fn a_variable_goes_over_the_file_and_the_file_over_the_default() {
    let servers = servers().await;
    let file = "[cache]\nprefix = \"file:\"\n";
    let layers: [(&str, Option<&str>, &str); 3] =
        [("", None, "fleet"), (file, None, "file:fleet"), (file, Some("env:"), "env:fleet")];
    for (file, variable, key) in layers {
        let mut warm = servers.preheat(["warm"]).settings(file).job("fleet", GLOBAL);
        if let Some(prefix) = variable {
            warm = warm.env("PREHEAT_CACHE__PREFIX", prefix);
        }
        warm.run().await.expect_code(0);
        let values = servers.values().await;
        assert!(values.contains_key(key), "{key}: {values:?}");
    }
    assert_eq!(servers.values().await.len(), 3);

    // The variable with preheat's own name overrides the conventional one, and a file overrides
    // neither.
    let nobody = "postgres://127.0.0.1:1/shop";
    let warm = servers.preheat(["warm"]).job("fleet", GLOBAL);
    let warm = warm.settings(&format!("[database]\nurl = \"{nobody}\"\n"));
    warm.run().await.expect_code(0);
    let warm = servers.preheat(["warm"]).job("fleet", GLOBAL);
    warm.env("PREHEAT_DATABASE__URL", nobody).run().await.expect_code(3);

    // A flag overrides everything.
    let warm = servers.preheat(["warm", "--config", "other.toml"]).job("fleet", GLOBAL);
    let warm = warm.env("PREHEAT_CONFIG", "no-such.toml");
    warm.file("other.toml", "[cache]\nprefix = \"flag:\"\n").run().await.expect_code(0);
    assert!(servers.values().await.contains_key("flag:fleet"));
}

#[tokio::test]
async fn a_user_of_the_cache_and_a_database_number_are_used() {
    let mut servers = servers().await;
    let user = format!("app on >{SECRET} ~mine:* +@all");
    servers.redis = support::redis_with(&[("user", &user)]);
    let port = servers.redis.tcp_port().unwrap();
    let url = format!("redis://app:{SECRET}@127.0.0.1:{port}/3");
    let warm = servers.preheat(["warm"]).job("fleet", GLOBAL).cache(&url);
    warm.env("PREHEAT_CACHE__PREFIX", "mine:").run().await.expect_code(0);
    assert!(servers.values().await.is_empty(), "database 0 stays empty");
    let mut cache = servers.cache().await;
    let () = redis::cmd("SELECT").arg(3).query_async(&mut cache).await.unwrap();
    assert_eq!(values(&mut cache).await.into_keys().collect::<Vec<_>>(), ["mine:fleet"]);

    // A key that the user may not write is a failure that names the key.
    let warm = servers.preheat(["warm"]).job("fleet", GLOBAL).cache(&url).run().await;
    let said = warm.expect_code(1).stdout;
    assert!(said.contains("cache_permission, 1 in all: "), "{said}");
}

/// Every program that any test runs is searched for the secret when it has ended: see [`SECRET`].
/// Here every command gets it, with the most detailed output, both when it works and when it fails.
#[tokio::test]
async fn hazard_32_no_command_ever_says_a_secret() {
    let mut servers = servers().await;
    servers.redis = support::redis_with(&[("user", &format!("app on >{SECRET} ~* +@all"))]);
    let port = servers.redis.tcp_port().unwrap();
    let cache = format!("redis://app:{SECRET}@127.0.0.1:{port}");
    let host = support::postgres().tcp_port().unwrap();
    let name = servers.database.name();
    // A server that asks for no password accepts any.
    let database = format!("postgres://postgres:{SECRET}@127.0.0.1:{host}/{name}");
    let gone = format!("postgres://app:{SECRET}@127.0.0.1:1/shop?password={SECRET}");
    let unreadable = format!("postgres//app:{SECRET}@127.0.0.1/shop");
    for database in [&database, &gone, &unreadable] {
        for cache in [&cache, &format!("redis://:{SECRET}@127.0.0.1:1"), &format!("redis:{SECRET}")]
        {
            for arguments in [
                &["-vv", "warm", "--json"][..],
                &["-vv", "check"],
                &["-vv", "plan"],
                &["-vv", "migrate"],
            ] {
                let preheat = preheat(arguments.iter().copied()).database(database).cache(cache);
                let preheat = preheat.job("services", SERVICES).job("fleet", GLOBAL);
                preheat.env("PREHEAT_HTTP__TOKEN", SECRET).run().await;
            }
        }
    }
    let serve = preheat(["-vv", "serve"]).database(&database).cache(&cache);
    let serve = serve.env("PREHEAT_HTTP__TOKEN", SECRET).job("services", SERVICES).start();
    serve.answers("/readyz", 200).await;
    for path in ["/", "/healthz", "/readyz", "/metrics", "/api/v1/jobs", "/api/v1/runs"] {
        let answer = http::get(serve.address(), path).await.unwrap();
        assert!(!answer.body.contains(SECRET), "{path}: {}", answer.body);
    }
    let token = format!("Bearer {SECRET}");
    let run = [("authorization", token.as_str())];
    let answer =
        http::post(serve.address(), "/api/v1/runs", &run, "{\"wait\": true}").await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    serve.signal(Signal::TERM);
    serve.ended().await.expect_code(0);
}

#[tokio::test]
async fn both_servers_are_reached_with_tls_and_their_certificates_are_checked() {
    let Some(certificates) = tls::certificates() else { return };
    let Some((postgres, redis)) = certificates.postgres().zip(certificates.redis()) else { return };
    postgres.create_database("clinic", None).await.unwrap();
    let small = Clinic { tenants: 5, ..Clinic::small() };
    small.load(&postgres.url("clinic")).await.unwrap();
    let authority = certificates.authority().display().to_string();
    let port = postgres.tcp_port().unwrap();
    let database = |trust: &str| {
        format!("postgres://postgres@localhost:{port}/clinic?sslmode=verify-full{trust}")
    };
    let trusted = database(&format!("&sslrootcert={authority}"));
    let warm = |database: &str| {
        let warm = preheat(["warm"]).job("services", SERVICES).database(database);
        warm.cache(redis.tls_url().unwrap())
    };
    warm(&trusted).env("PREHEAT_CACHE__CA", &authority).run().await.expect_code(0);
    let mut cache = support::redis_connection(&redis).await;
    let keys: Vec<String> = cache.keys("services:*").await.unwrap();
    assert!(!keys.is_empty());

    let untrusted = warm(&trusted).run().await.expect_code(3).stderr;
    assert!(
        untrusted.contains("could not connect to cache") && untrusted.contains("certificate"),
        "{untrusted}"
    );
    let untrusted = warm(&database("")).env("PREHEAT_CACHE__CA", &authority).run().await;
    let untrusted = untrusted.expect_code(3).stderr;
    assert!(
        untrusted.contains("could not connect to database") && untrusted.contains("certificate"),
        "{untrusted}"
    );
    let no_file = warm(&trusted).env("PREHEAT_CACHE__CA", "no-such.pem").run().await;
    let no_file = no_file.expect_code(2).stderr;
    assert!(no_file.contains("no-such.pem"), "{no_file}");
}

#[tokio::test]
async fn everything_works_behind_a_pooler_in_transaction_mode() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let servers = servers().await;
    let behind = |arguments: &[&str]| {
        let preheat = servers.preheat(arguments.iter().copied()).shipped_jobs();
        preheat.database(bouncer.url(servers.database.name()))
    };
    behind(&["migrate"]).run().await.expect_code(0);
    behind(&["check"]).run().await.expect_code(0);
    behind(&["plan"]).run().await.expect_code(0);
    behind(&["warm"]).env("PREHEAT_RUNNER__BATCH", "5").run().await.expect_code(0);
    let through = servers.values().await;
    assert_eq!(servers.texts("select outcome from preheat.runs").await, ["ok"; 6]);
    servers.preheat(["warm"]).shipped_jobs().run().await.expect_code(0);
    assert!(through == servers.values().await, "the same values as without it");

    // The former setting is accepted, and the log says that it has no effect any more.
    let set = behind(&["warm"]).env("PREHEAT_DATABASE__PGBOUNCER", "true").run().await;
    let said = set.expect_code(0).stderr;
    assert_eq!(said.matches("`database.pgbouncer` has no effect any more").count(), 1, "{said}");
}
