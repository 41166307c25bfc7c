//! A cache user with only the rights that preheat needs.

use std::collections::{BTreeSet, HashMap};

use preheat::adapter::redis::{CLUSTER_RIGHTS, FLEET_RIGHTS, RELAY_RIGHTS, RIGHTS};
use redis::aio::MultiplexedConnection;
use rustix::process::Signal;

use super::{PETS, SERVICES, Servers, servers};
use crate::support::program::SECRET;
use crate::support::{self};

/// A server with this user besides the default user, which may do everything.
async fn with_user(rights: &str) -> (Servers, String) {
    let mut servers = servers().await;
    servers.redis = support::redis_with(&[("user", &format!("warmer on >{SECRET} {rights}"))]);
    let port = servers.redis.tcp_port().unwrap();
    (servers, format!("redis://warmer:{SECRET}@127.0.0.1:{port}"))
}

/// The commands that the server refused to the user, except the client's name, which a server may
/// refuse.
async fn refusals(cache: &mut MultiplexedConnection) -> Vec<String> {
    let entries: Vec<HashMap<String, redis::Value>> =
        redis::cmd("ACL").arg("LOG").query_async(cache).await.unwrap();
    let object = |entry: &HashMap<String, redis::Value>| {
        redis::from_redis_value_ref::<String>(&entry["object"]).unwrap()
    };
    entries.iter().map(object).filter(|object| !object.starts_with("client")).collect()
}

#[tokio::test]
async fn a_user_with_the_least_rights_warms_serves_audits_and_invalidates() {
    let (servers, url) = with_user(&format!("{RIGHTS} ~services:* ~pet:*")).await;
    let as_user = |arguments: &[&str]| {
        let preheat = servers.preheat(arguments.iter().copied()).cache(&url);
        preheat.job("services", SERVICES).job("pets", PETS)
    };
    for arguments in [
        &["check"][..],
        &["plan"],
        &["warm"],
        &["audit"],
        &["invalidate", "--job", "services", "--rewarm"],
        &["invalidate", "--tenant", "none", "--rewarm"],
        &["audit"],
    ] {
        as_user(arguments).run().await.expect_code(0);
    }
    let serve = as_user(&["serve"]).env("PREHEAT_HTTP__TOKEN", SECRET);
    let serve = serve.env("PREHEAT_AUDIT__INTERVAL", "1s").start();
    serve.answers("/readyz", 200).await;
    let looked = "preheat_last_audit_timestamp_seconds{job_name=\"services\"}";
    serve.metric_becomes(looked, |at| at > 0.0).await;
    serve.signal(Signal::TERM);
    let said = serve.ended().await.expect_code(0).stderr;
    assert!(!said.contains("NOPERM") && !said.contains("WARN"), "{said}");
    assert_eq!(refusals(&mut servers.cache().await).await, Vec::<String>::new());
    // The server's log does name refused commands.
    let wants = redis::cmd("KEYS").arg("*").to_owned();
    let user = redis::Client::open(url).unwrap();
    let mut user = user.get_multiplexed_async_connection().await.unwrap();
    wants.query_async::<Vec<String>>(&mut user).await.unwrap_err();
    assert_eq!(refusals(&mut servers.cache().await).await, ["keys"]);
}

#[tokio::test]
async fn a_user_who_lacks_rights_is_told_which_are_needed() {
    for rights in [RIGHTS, "~* -@all +select"] {
        let (servers, url) = with_user(rights).await;
        let run = servers.preheat(["warm"]).cache(&url).job("services", SERVICES).run().await;
        let said = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(run.code(), Some(1), "{said}");
        assert!(
            said.contains("NOPERM") && said.contains(&format!("the user needs `{RIGHTS}`")),
            "{said}"
        );
    }
    let (servers, url) = with_user(RIGHTS).await;
    let wrong = servers.preheat(["warm"]).cache(url.replace(SECRET, "other"));
    let wrong = wrong.job("services", SERVICES).run().await;
    assert!(wrong.stderr.contains("the user or the password is wrong"), "{}", wrong.stderr);
    let none = support::redis_with(&[("requirepass", SECRET)]);
    let wrong = servers.preheat(["warm"]).cache(none.url()).job("services", SERVICES).run().await;
    let said = format!("{}{}", wrong.stdout, wrong.stderr);
    assert!(said.contains("the server wants a password"), "{said}");
}

/// Whatever the tests above happen to send.
#[test]
fn the_rights_name_every_command_of_the_adapter() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/adapter/redis");
    let files = |folder: &str| {
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    let files = files(folder).into_iter().chain(files(&format!("{folder}/cluster")));
    let sources: String = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let sent = sources.split_inclusive(['(']).zip(sources.split('(').skip(1));
    let commands: BTreeSet<&str> = sent
        .filter(|(call, _)| ["cmd(", "on("].iter().any(|end| call.ends_with(end)))
        .filter_map(|(_, rest)| rest.strip_prefix('"')?.split('"').next())
        .collect();
    assert!(commands.len() > 15, "{commands:?}");
    // A Sentinel is asked as the user of the Sentinel, not as that of the cache.
    let all = [RIGHTS, CLUSTER_RIGHTS, FLEET_RIGHTS, RELAY_RIGHTS, "+sentinel"].join(" ");
    let rights: BTreeSet<&str> =
        all.split_whitespace().map(|right| right.split('|').next().unwrap()).collect();
    let lacks = |command: &&&str| !rights.contains(format!("+{}", command.to_lowercase()).as_str());
    assert_eq!(commands.iter().filter(lacks).collect::<Vec<_>>(), Vec::<&&str>::new());
}
