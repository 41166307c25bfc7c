//! `[fleet]`: several replicas that share the tenants.

use super::reader::Reader;
use crate::domain::fleet::LEAST_CONNECTIONS;
use crate::domain::share::Shares;

/// How replicas share the tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Which tenants are this worker's.
    pub shares: FleetShares,
    /// The bound on the connections to the database of all replicas together, if they lease their shares.
    pub database_connections: Option<u32>,
}

/// Which tenants are a worker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetShares {
    /// All.
    All,
    /// Those of these shares.
    Fixed(Shares),
    /// Those of the shares that it leases in the cache.
    Leased,
}

impl Fleet {
    pub(super) fn read(read: &mut Reader<'_>, own_connections: u32) -> Self {
        let is_enabled = read.flag(
            "fleet.enabled",
            false,
            "Whether several replicas share the tenants: each leases its part in the cache, and takes over \
             the tenants of a replica that is gone. All replicas have the same settings",
        );
        let part = read.part(
            "fleet.share",
            "This replica's fixed part of the tenants, without any lease: its number, from 0 on, and how \
             many replicas there are. No other replica takes over its tenants",
        );
        let database_connections = read.optional_number(
            "fleet.database_connections",
            2..=10_000,
            "The most connections to the database of all replicas together, divided among those that are \
             alive; each has `database.max_connections` at most. Without it, each has that many",
        );
        if is_enabled && part.is_some() {
            read.refuse(
                "fleet.share",
                "a replica has a fixed part of the tenants, or leases one",
                "remove `share`, or `enabled = true`",
            );
        }
        if !is_enabled && database_connections.is_some() {
            read.refuse(
                "fleet.database_connections",
                "only replicas that lease their parts can share connections",
                "set `enabled = true`, or set `database.max_connections` of each replica",
            );
        }
        if database_connections.is_some() && own_connections < LEAST_CONNECTIONS {
            read.refuse(
                "fleet.database_connections",
                "a member of a fleet with a bound needs two connections at least, and \
                 `database.max_connections` allows one",
                "raise `database.max_connections`",
            );
        }
        let shares = match (is_enabled, part) {
            (true, _) => FleetShares::Leased,
            (false, Some(part)) => FleetShares::Fixed(part),
            (false, None) => FleetShares::All,
        };
        Self { shares, database_connections: database_connections.filter(|_| is_enabled) }
    }
}
