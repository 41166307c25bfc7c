//! A Redis with a replica, and the Sentinels that watch them.

use std::collections::BTreeMap;

use preheat_sandbox::{Redis, RedisOptions};
use redis::FromRedisValue;

use super::{LONG, eventually, redis_with};

/// The name under which the Sentinels watch the servers.
pub(crate) const SERVICE: &str = "shop";

/// How many Sentinels there are, and how many of them must agree.
const SENTINELS: usize = 3;
const QUORUM: usize = 2;

/// Two servers, of which the first is the primary at the start, and three Sentinels.
pub(crate) struct Watched {
    pub(crate) servers: [Redis; 2],
    pub(crate) sentinels: Vec<Redis>,
}

impl Watched {
    /// Starts them, and waits until each Sentinel knows all the others and the replica is in step: then a
    /// failover works.
    pub(crate) async fn start() -> Self {
        let prompt = ("repl-diskless-sync-delay", "0");
        let primary = redis_with(&[prompt]);
        let replica_of = format!("127.0.0.1 {}", primary.tcp_port().unwrap());
        let replica = redis_with(&[prompt, ("replicaof", &replica_of)]);
        let sentinels = (0..SENTINELS).map(|_| sentinel(&primary, &[])).collect();
        let watched = Self { servers: [primary, replica], sentinels };
        watched.are_ready().await;
        watched
    }

    async fn are_ready(&self) {
        for sentinel in &self.sentinels {
            eventually("a Sentinel knows the others and the replica", LONG, async || {
                let about = about(sentinel).await;
                let others = (SENTINELS - 1).to_string();
                about.get("num-slaves").is_some_and(|count| count == "1")
                    && about.get("num-other-sentinels") == Some(&others)
            })
            .await;
        }
        self.is_in_step(&self.servers[1]).await;
    }

    /// Waits until this server is a replica with all data of its primary.
    pub(crate) async fn is_in_step(&self, replica: &Redis) {
        let asked = redis::cmd("INFO").arg("replication").to_owned();
        eventually("the replica is in step", LONG, async || {
            // The Sentinels close the connections of a server of which they make a replica.
            let client = redis::Client::open(replica.url()).unwrap();
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else {
                return false;
            };
            let info: redis::RedisResult<String> = asked.query_async(&mut connection).await;
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        })
        .await;
    }

    /// The URL that names all Sentinels.
    pub(crate) fn url(&self) -> String {
        let ports = self.sentinels.iter().map(|sentinel| sentinel.tcp_port().unwrap());
        let hosts: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Has the replica take over, though the primary is well.
    pub(crate) async fn fail_over(&self) {
        let mut ask = redis::cmd("SENTINEL");
        let () = tell(&self.sentinels[0], ask.arg("FAILOVER").arg(SERVICE)).await;
    }

    /// Has this replica take over, and waits until it did. A Sentinel refuses while it does not know the replica
    /// well enough, or while the last failover goes on.
    pub(crate) async fn fail_over_to(&self, replica: &Redis) {
        eventually("the Sentinels fail over again", LONG, async || {
            let mut connection = super::redis_connection(&self.sentinels[0]).await;
            let mut ask = redis::cmd("SENTINEL");
            let asked = ask.arg("FAILOVER").arg(SERVICE).query_async::<()>(&mut connection).await;
            asked.is_ok()
        })
        .await;
        self.name(replica).await;
    }

    /// Has all Sentinels watch this server from now on. They neither promote nor demote anything for it, and
    /// close no connection.
    pub(crate) async fn watch_instead(&self, server: &Redis) {
        let port = server.tcp_port().unwrap();
        for sentinel in &self.sentinels {
            let () = tell(sentinel, redis::cmd("SENTINEL").arg("REMOVE").arg(SERVICE)).await;
            let mut watch = redis::cmd("SENTINEL");
            watch.arg("MONITOR").arg(SERVICE).arg("127.0.0.1").arg(port).arg(QUORUM);
            let () = tell(sentinel, &watch).await;
        }
    }

    /// Waits until every Sentinel that runs names this server as the primary.
    pub(crate) async fn name(&self, server: &Redis) {
        let port = server.tcp_port().unwrap().to_string();
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.pid().is_some()) {
            eventually("a Sentinel names the new primary", LONG, async || {
                let mut ask = redis::cmd("SENTINEL");
                let named: Vec<String> =
                    tell(sentinel, ask.arg("get-master-addr-by-name").arg(SERVICE)).await;
                named.get(1) == Some(&port)
            })
            .await;
        }
    }
}

/// A Sentinel that watches this server, with these lines of `sentinel.conf` besides.
pub(crate) fn sentinel(primary: &Redis, settings: &[(&str, &str)]) -> Redis {
    let port = primary.tcp_port().unwrap();
    let usual = [
        format!("monitor {SERVICE} 127.0.0.1 {port} {QUORUM}"),
        format!("down-after-milliseconds {SERVICE} 500"),
        format!("failover-timeout {SERVICE} 5000"),
    ];
    let usual = usual.map(|line| ("sentinel".to_owned(), line));
    let more = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let settings = usual.into_iter().chain(more).collect();
    let options = RedisOptions { tcp: true, sentinel: true, settings, ..RedisOptions::default() };
    Redis::start(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// Sends one command to a server or a Sentinel.
pub(crate) async fn tell<T: FromRedisValue>(server: &Redis, command: &redis::Cmd) -> T {
    let mut connection = super::redis_connection(server).await;
    command.query_async(&mut connection).await.unwrap()
}

/// What a Sentinel knows of the primary.
async fn about(sentinel: &Redis) -> BTreeMap<String, String> {
    tell(sentinel, redis::cmd("SENTINEL").arg("MASTER").arg(SERVICE)).await
}
