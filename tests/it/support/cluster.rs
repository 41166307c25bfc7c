//! A Redis Cluster for a test, and its nodes as an operator sees them.

use std::ops::Deref;
use std::time::Duration;

use preheat_sandbox::{Redis, RedisCluster, RedisOptions};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError};

use super::{LONG, eventually};

/// A cluster of three primaries, and of one replica of each, if it is to have replicas.
pub(crate) async fn cluster(has_replicas: bool) -> Cluster {
    cluster_with(has_replicas, RedisOptions::default()).await
}

/// The same, with these options of each node.
pub(crate) async fn cluster_with(has_replicas: bool, options: RedisOptions) -> Cluster {
    let start = move || RedisCluster::start(3, has_replicas, &options);
    let started = tokio::task::spawn_blocking(start).await.unwrap();
    Cluster(started.unwrap_or_else(|error| panic!("{error}")))
}

/// A running cluster.
pub(crate) struct Cluster(RedisCluster);

impl Deref for Cluster {
    type Target = RedisCluster;

    fn deref(&self) -> &RedisCluster {
        &self.0
    }
}

/// A command from its words.
pub(crate) fn command(line: &str) -> Cmd {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command
}

impl Cluster {
    /// Connections to all nodes.
    pub(crate) async fn connections(&self) -> Vec<MultiplexedConnection> {
        let mut all = Vec::new();
        for node in self.nodes() {
            all.push(super::redis_connection(node).await);
        }
        all
    }

    /// Sends a command to one node.
    pub(crate) async fn ask<T: FromRedisValue>(&self, node: usize, line: &str) -> T {
        let mut connection = super::redis_connection(&self.nodes()[node]).await;
        command(line).query_async(&mut connection).await.unwrap_or_else(|error: RedisError| {
            panic!("`{line}`: {error}");
        })
    }

    /// The position of the node that serves a slot, by that node's own word.
    pub(crate) async fn owner(&self, slot: u16) -> usize {
        for (index, node) in self.nodes().iter().enumerate() {
            if node.pid().is_none() {
                continue;
            }
            let text: String = self.ask(index, "CLUSTER NODES").await;
            let own = text.lines().find(|line| line.contains("myself")).unwrap();
            let ranges = own.split(' ').skip(8).filter(|word| !word.starts_with('['));
            let has = |range: &str| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
            };
            if own.contains("master") && ranges.into_iter().any(has) {
                return index;
            }
        }
        panic!("nobody serves slot {slot}");
    }

    /// The slot of a key.
    pub(crate) async fn slot(&self, key: &str) -> u16 {
        let node = self.nodes().iter().position(|node| node.pid().is_some()).unwrap();
        let mut connection = super::redis_connection(&self.nodes()[node]).await;
        let mut command = redis::cmd("CLUSTER");
        command.arg("KEYSLOT").arg(key).query_async(&mut connection).await.unwrap()
    }

    /// Begins to move a slot: from here on, the target takes what the owner has no more.
    pub(crate) async fn begin_to_move(&self, slot: u16, target: usize) {
        let owner = self.owner(slot).await;
        let ids: [String; 2] =
            [self.ask(owner, "CLUSTER MYID").await, self.ask(target, "CLUSTER MYID").await];
        let [owner_id, target_id] = ids;
        let () = self.ask(target, &format!("CLUSTER SETSLOT {slot} IMPORTING {owner_id}")).await;
        let () = self.ask(owner, &format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}")).await;
    }

    /// Moves some of a slot's keys to the target; answers how many.
    pub(crate) async fn move_keys(&self, slot: u16, target: usize, count: usize) -> usize {
        let owner = self.owner(slot).await;
        let mut connection = super::redis_connection(&self.nodes()[owner]).await;
        let keys: Vec<Vec<u8>> = command(&format!("CLUSTER GETKEYSINSLOT {slot} {count}"))
            .query_async(&mut connection)
            .await
            .unwrap();
        if keys.is_empty() {
            return 0;
        }
        let port = self.nodes()[target].tcp_port().unwrap();
        let mut migrate = command(&format!("MIGRATE 127.0.0.1 {port}"));
        migrate.arg("").arg(0).arg(20_000).arg("KEYS").arg(&keys);
        let () = migrate.query_async(&mut connection).await.unwrap();
        keys.len()
    }

    /// Ends a move: the slot is the target's.
    pub(crate) async fn end_move(&self, slot: u16, target: usize) {
        let owner = self.owner(slot).await;
        let id: String = self.ask(target, "CLUSTER MYID").await;
        for node in [target, owner] {
            let () = self.ask(node, &format!("CLUSTER SETSLOT {slot} NODE {id}")).await;
        }
    }

    /// Moves a slot with all its keys.
    pub(crate) async fn move_slot(&self, slot: u16, target: usize) {
        self.begin_to_move(slot, target).await;
        while self.move_keys(slot, target, 100).await > 0 {}
        self.end_move(slot, target).await;
    }

    /// How often the nodes have answered with this error.
    pub(crate) async fn errors(&self, code: &str) -> u64 {
        let mut sum = 0;
        for node in 0..self.nodes().len() {
            let text: String = self.ask(node, "INFO errorstats").await;
            let start = format!("errorstat_{code}:count=");
            let counts = text.lines().filter_map(|line| line.strip_prefix(&start));
            sum += counts.map(|count| count.trim().parse::<u64>().unwrap()).sum::<u64>();
        }
        sum
    }

    /// Kills a node and waits until the others have replaced it by its replica.
    pub(crate) async fn fail_over(&self, node: usize) {
        let slot = 16_384 / 3 * u16::try_from(node).unwrap() + 10;
        assert_eq!(self.owner(slot).await, node);
        self.nodes()[node].kill();
        let replica = node + 3;
        let role = async || -> String {
            let text: String = self.ask(replica, "INFO replication").await;
            text.lines().find(|line| line.starts_with("role:")).unwrap().to_owned()
        };
        eventually("the replica is the primary", 2 * LONG, async || role().await == "role:master")
            .await;
        let ok = async || {
            let mut nodes = self.nodes().iter().enumerate();
            let alive = nodes.by_ref().filter(|(_, node)| node.pid().is_some());
            for (index, _) in alive.collect::<Vec<_>>() {
                let text: String = self.ask(index, "CLUSTER INFO").await;
                if !text.contains("cluster_state:ok") {
                    return false;
                }
            }
            true
        };
        eventually("all nodes agree", 2 * LONG, ok).await;
    }

    /// A node, as a server of its own.
    pub(crate) fn node(&self, node: usize) -> &Redis {
        &self.nodes()[node]
    }
}

/// How long a whole cluster may take for what one server does at once.
pub(crate) const LONGER: Duration = Duration::from_mins(3);
