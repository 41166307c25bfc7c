//! Where commands go: to one server, or to the nodes of a cluster.

use std::sync::Arc;

use redis::Cmd;

use super::CacheSettings;
use super::cluster::Cluster;
use super::link::{Access, Link};
use super::reply::{self, Failed, Reply};
use super::sentinel::Sentinels;
use super::server::{Commands, OnBreak, Role, Server, whole};
use crate::adapter::ConnectError;
use crate::domain::server_url::{CacheAddress, CacheUrl};
use crate::domain::slots::Extent;
use crate::engine::ports::{CacheError, CacheStats, STATS_COMMANDS, Slice};

/// The sections of `INFO` that hold the figures we show.
const INFO: [&str; STATS_COMMANDS] = ["server", "memory", "stats", "keyspace"];

/// The servers of a cache.
#[derive(Debug)]
pub(super) enum Route {
    /// One server has all keys.
    Server(Box<Server>),
    /// Each slot of the keys has its node.
    Cluster(Box<Cluster>),
}

impl Route {
    /// The servers at a URL; it does not connect yet.
    pub(super) fn new(url: &CacheUrl, settings: &CacheSettings) -> Result<Self, ConnectError> {
        let access = Access::new(url, settings)?;
        let link = match &url.address {
            CacheAddress::Tcp { endpoint, .. } => Link::to(&access, endpoint)?,
            CacheAddress::Socket(path) => Link::to_socket(&access, path),
            CacheAddress::Cluster { nodes, .. } => {
                let cluster = Cluster::new(access, nodes, url.address.to_string())?;
                return Ok(Self::Cluster(Box::new(cluster)));
            }
            CacheAddress::Sentinel { sentinels, service, .. } => {
                let sentinels = Sentinels::new(&access, url, sentinels, service)?;
                Link::to_primary(&access, Arc::new(sentinels), url.address.to_string())
            }
        };
        Ok(Self::Server(Box::new(Server::new(link))))
    }

    /// The address for messages: without user and password.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Server(server) => server.name(),
            Self::Cluster(cluster) => cluster.name(),
        }
    }

    /// The address of the primary, if Sentinels have named it.
    pub(super) fn primary(&self) -> Option<Arc<str>> {
        match self {
            Self::Server(server) => server.primary(),
            Self::Cluster(_) => None,
        }
    }

    /// Connects, to see whether the servers are ready.
    pub(super) async fn reach(&self) -> Result<(), ConnectError> {
        match self {
            Self::Server(server) => server.reach().await,
            Self::Cluster(cluster) => cluster.reach().await,
        }
    }

    /// Sends commands in pipelines and reads all replies, which come in the order of the commands.
    /// It is an error if no server answered.
    pub(super) async fn each(
        &self,
        role: Role,
        on_break: OnBreak,
        commands: &dyn Commands,
    ) -> Result<Vec<Reply>, CacheError> {
        let replies = match self {
            Self::Server(server) => server.each(role, on_break, commands, &whole(commands)).await,
            Self::Cluster(cluster) => cluster.each(role, on_break, commands).await,
        };
        let lost = replies.iter().map(|reply| match reply {
            Err(Failed::Lost(error)) => Some(error),
            Ok(_) | Err(Failed::Refused(_)) => None,
        });
        let lost: Option<Vec<&CacheError>> = lost.collect();
        match lost.unwrap_or_default().first() {
            Some(error) => Err(CacheError::clone(error)),
            None => Ok(replies),
        }
    }

    /// How many keys one command may name: on a cluster they would have to be of one slot.
    pub(super) fn keys_a_command(&self, most: usize) -> usize {
        match self {
            Self::Server(_) => most,
            Self::Cluster(_) => 1,
        }
    }

    /// Which server has a key: keys with equal numbers are on the same server.
    pub(super) fn server_of(&self, key: &[u8]) -> usize {
        match self {
            Self::Server(_) => 0,
            Self::Cluster(cluster) => cluster.server_of(key),
        }
    }

    /// What was lost between two processes of [`CacheStats::process`].
    pub(super) fn lost_between(&self, before: u64, now: u64) -> Extent {
        match self {
            Self::Server(_) => Extent::All,
            Self::Cluster(cluster) => cluster.lost_between(before, now),
        }
    }

    /// A number that grows when a key turns out to be on another server than before.
    pub(super) fn redirections(&self) -> u64 {
        match self {
            Self::Server(_) => 0,
            Self::Cluster(cluster) => cluster.redirections(),
        }
    }

    /// One page of a scan; `command` makes the `SCAN` from a server's own cursor.
    pub(super) async fn scan(
        &self,
        cursor: u64,
        command: impl FnOnce(u64) -> Cmd,
    ) -> Result<Slice, CacheError> {
        let server = match self {
            Self::Server(server) => server,
            Self::Cluster(cluster) => return cluster.scan(cursor, command).await,
        };
        let mut slice = Slice::default();
        for reply in server.each_of(&vec![command(cursor)]).await {
            slice = reply::page(reply?)?;
        }
        Ok(slice)
    }

    /// The servers' figures.
    pub(super) async fn stats(&self) -> Result<CacheStats, CacheError> {
        match self {
            Self::Server(server) => server.stats(&INFO).await,
            Self::Cluster(cluster) => cluster.stats(&INFO).await,
        }
    }
}
