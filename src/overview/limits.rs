//! The bounds that a worker keeps to, and how much of them is in use; the circuit breakers of its servers.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;
use super::facts::moment;
use crate::domain::job::JobName;
use crate::domain::retry::BreakerState;
use crate::domain::server::Server;
use crate::engine::run::Runner;
use crate::engine::run::limits_now::LimitsNow;

/// The bounds and the breakers at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Limits {
    /// When they were looked at.
    pub as_of: Moment,
    /// The circuit breaker of each server.
    pub breakers: Vec<ServerBreaker>,
    /// Connections to the database.
    pub connections: Connections,
    /// Permits: each batch in flight holds one.
    pub permits: Permits,
    /// Memory for rows.
    pub memory: RowMemory,
}

/// The circuit breaker of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServerBreaker {
    /// The server: `database` or `cache`.
    pub server: String,
    /// What the breaker does.
    pub state: BreakerState,
    /// Since when the server counts as up (`closed`) or as down: the worker's start, if that has not changed since.
    pub since: Moment,
    /// How many questions in a row did not reach the server.
    pub failures: u32,
    /// Why the server counts as down.
    pub reason: Option<String>,
    /// When the server is asked again; null if it may be asked now.
    pub next_try_at: Option<Moment>,
    /// How often the breaker opened since the worker started.
    pub times_open: u64,
}

/// Connections to the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Connections {
    /// The most there may be: `database.max_connections`.
    pub most: u32,
    /// In use.
    pub in_use: u32,
    /// Open and not in use.
    pub idle: u32,
}

/// Permits for batches in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Permits {
    /// How many there are: `runner.concurrency`, if there are as many connections.
    pub most: u32,
    /// How many of them only batches for changes get.
    pub for_changes: u32,
    /// How many are held, by any batch.
    pub in_use: u32,
    /// How many of these by batches for changes.
    pub in_use_for_changes: u32,
    /// How many batches wait for one.
    pub waiting: u64,
    /// The jobs that hold permits.
    pub jobs: Vec<PermitsOfJob>,
}

/// The permits that a job holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PermitsOfJob {
    /// The job.
    pub job: String,
    /// How many it holds.
    pub permits: u32,
}

/// How many bytes rows may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RowMemory {
    /// Those of one batch; a batch that has more is split.
    pub batch_bytes: u64,
    /// Those of one tenant: `runner.max_tenant_bytes`.
    pub tenant_bytes: u64,
    /// Those of all batches together.
    pub all_bytes: u64,
}

impl Limits {
    pub(super) fn of(runner: &Runner, started_at: DateTime<Utc>, connections: Connections) -> Self {
        let limits = runner.limits.now();
        let memory = RowMemory {
            batch_bytes: limits.batch_bytes as u64,
            tenant_bytes: limits.tenant_bytes as u64,
            all_bytes: limits.all_bytes as u64,
        };
        let breakers = [Server::Database, Server::Cache];
        Self {
            as_of: Moment(runner.clock.now()),
            breakers: breakers.map(|server| ServerBreaker::of(runner, server, started_at)).into(),
            connections,
            permits: Permits::of(limits),
            memory,
        }
    }
}

impl ServerBreaker {
    fn of(runner: &Runner, server: Server, started_at: DateTime<Utc>) -> Self {
        let (now, figures) = (runner.clock.monotonic(), runner.metrics.figures());
        let breaker = runner.breaker(server);
        let (state, failures) = breaker.state(now);
        let in_that_time = |left: Duration| {
            runner.clock.now() + TimeDelta::from_std(left).unwrap_or(TimeDelta::MAX)
        };
        let turned = figures.turned(server);
        Self {
            server: server.as_str().to_owned(),
            state,
            since: Moment(turned.map_or(started_at, |turned| turned.at)),
            failures,
            reason: figures.down(server).map(|down| down.message),
            next_try_at: moment(breaker.pause_left(now).map(in_that_time)),
            times_open: turned.map_or(0, |turned| turned.times_down),
        }
    }
}

impl Permits {
    fn of(now: LimitsNow) -> Self {
        let LimitsNow { permits, for_changes, held: (regular, urgent), waiting, jobs, .. } = now;
        let of_job =
            |(job, permits): (JobName, u32)| PermitsOfJob { job: job.to_string(), permits };
        Self {
            most: permits,
            for_changes,
            in_use: regular + urgent,
            in_use_for_changes: urgent,
            waiting: (waiting.0 + waiting.1) as u64,
            jobs: jobs.into_iter().map(of_job).collect(),
        }
    }
}
