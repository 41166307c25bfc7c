//! Retries what failed for a reason that may pass.
//!
//! While a server counts as down, only one caller at a time asks it, and all others wait for the result.
//! Waiting uses up none of a caller's tries, but the failed questions of others count: each caller gives up
//! after as many failed questions, by itself or by others while it waited, as it would have asked alone.

use std::time::Duration;

use super::RunSpec;
use crate::domain::report::{FailureKind, Report};
use crate::domain::retry::backoff;
use crate::engine::ports::Ports;
use crate::engine::ports::{CacheError, CacheErrorKind, SourceError, SourceErrorKind};
use crate::observe::event::{self, Server};

/// Something of a run could not be done.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    pub(crate) remedy: Remedy,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Try again later: this server could not be reached, or was busy.
    Wait(Server),
    /// Try again later: a table is locked by others, as by a migration.
    AwaitLock,
    /// Wait for the result of the next question to this server, which counts as down and was not asked.
    StandBy(Server),
    /// Try with fewer tenants.
    Split,
    /// Fail these tenants.
    Fail,
    /// Fail the rest of the run: no batch can work.
    GiveUp,
}

impl From<SourceError> for Refusal {
    fn from(error: SourceError) -> Self {
        let remedy = match error.kind {
            SourceErrorKind::LeftAlone => Remedy::StandBy(Server::Database),
            SourceErrorKind::Unavailable | SourceErrorKind::Transient => {
                Remedy::Wait(Server::Database)
            }
            SourceErrorKind::Locked => Remedy::AwaitLock,
            SourceErrorKind::Timeout
            | SourceErrorKind::Data
            | SourceErrorKind::Encoding
            | SourceErrorKind::TooLarge => Remedy::Split,
            SourceErrorKind::Foreign => Remedy::Fail,
            SourceErrorKind::Definition => Remedy::GiveUp,
        };
        Self { kind: error.kind.failure_kind(), message: error.message, remedy }
    }
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        let remedy = match error.kind {
            CacheErrorKind::LeftAlone => Remedy::StandBy(Server::Cache),
            CacheErrorKind::Unavailable | CacheErrorKind::Transient => Remedy::Wait(Server::Cache),
            CacheErrorKind::Full | CacheErrorKind::ReadOnly | CacheErrorKind::Moved => {
                Remedy::GiveUp
            }
            // One tenant's manifest has another type: the other tenants go on without it.
            CacheErrorKind::WrongType => Remedy::Split,
            CacheErrorKind::Permission | CacheErrorKind::Refused => Remedy::Fail,
        };
        Self { kind: error.kind.failure_kind(), message: error.message, remedy }
    }
}

/// How many tries one operation has, and how long it waits for a server that counts as down.
pub(crate) struct Patience {
    retries: u32,
    /// Its own failed tries.
    own: u32,
    /// Failed questions of other callers to the server that is down, while this one waited.
    of_others: u64,
    /// How many questions had failed at each server at the last refusal.
    seen: Option<InVain>,
    locks: Locks,
    /// Tries that met a lock.
    locked: u32,
}

/// How long an operation waits for a lock.
#[derive(Clone, Copy)]
enum Locks {
    /// For as many tries as for any other reason.
    Retries,
    /// Until the run's deadline: giving up earlier would only fail the run.
    Deadline,
}

/// How many questions to each server failed while it counted as down.
#[derive(Clone, Copy)]
struct InVain {
    database: u64,
    cache: u64,
}

/// What to do after a refusal.
enum Next {
    /// Try again, but only after that time.
    Retry(Server, Duration),
    StandBy(Server),
    GiveUp,
}

impl Patience {
    /// A budget for an operation that may be repeated this often.
    pub(crate) fn new(retries: u32) -> Self {
        let locks = Locks::Retries;
        Self { retries, own: 0, of_others: 0, seen: None, locks, locked: 0 }
    }

    /// Waits until another try is due; says whether there is one.
    pub(crate) async fn again(&mut self, ports: &Ports, refusal: &Refusal) -> bool {
        let next = self.next(ports, refusal);
        ports.wait(&next).await
    }

    fn next(&mut self, ports: &Ports, refusal: &Refusal) -> Next {
        let now = ports.in_vain();
        let seen = self.seen.replace(now).unwrap_or(now);
        let (server, next) = match refusal.remedy {
            Remedy::Wait(server) => {
                let wait = backoff(self.own, ports.clock.random());
                self.own += 1;
                (server, Next::Retry(server, wait))
            }
            Remedy::StandBy(server) => {
                self.of_others += now.of(server).saturating_sub(seen.of(server));
                (server, Next::StandBy(server))
            }
            Remedy::AwaitLock => return self.await_lock(ports),
            Remedy::Split | Remedy::Fail | Remedy::GiveUp => return Next::GiveUp,
        };
        if !ports.breaker(server).is_open() {
            // The server has answered since.
            self.of_others = 0;
        }
        let in_vain = u64::from(self.own) + self.of_others;
        if in_vain > u64::from(self.retries) { Next::GiveUp } else { next }
    }

    /// A locked table says nothing about the server.
    fn await_lock(&mut self, ports: &Ports) -> Next {
        let wait = backoff(self.locked, ports.clock.random());
        self.locked += 1;
        match self.locks {
            Locks::Retries if self.locked > self.retries => Next::GiveUp,
            Locks::Retries | Locks::Deadline => Next::Retry(Server::Database, wait),
        }
    }
}

impl InVain {
    fn of(self, server: Server) -> u64 {
        match server {
            Server::Database => self.database,
            Server::Cache => self.cache,
        }
    }
}

/// The tries of one operation of a run, as many as its job allows.
pub(crate) struct Tries<'a> {
    ports: &'a Ports,
    spec: &'a RunSpec,
    tenants: usize,
    patience: Patience,
}

impl<'a> Tries<'a> {
    /// The tries of an operation that concerns this many tenants.
    pub(crate) fn new(ports: &'a Ports, spec: &'a RunSpec, tenants: usize) -> Self {
        let patience = Patience { locks: Locks::Deadline, ..Patience::new(spec.job.retries) };
        Self { ports, spec, tenants, patience }
    }

    /// Waits until another try is due; says whether there is one.
    ///
    /// If the server counts as down, that is when callers may ask it again. So a run survives a restart of
    /// its servers, and asks a server that stays away only a few times.
    pub(crate) async fn again(&mut self, refusal: &Refusal, report: &mut Report) -> bool {
        let Self { ports, spec, tenants, ref mut patience } = *self;
        let next = patience.next(ports, refusal);
        if let Next::Retry(server, wait) = next {
            report.retries += 1;
            // A server that counts as down is left alone for longer than the backoff.
            let left = ports.breaker(server).pause_left(ports.clock.monotonic());
            let wait = wait.max(left.unwrap_or_default());
            let (job, run) = (&spec.job.name, spec.id);
            let retry = patience.own + patience.locked;
            let (kind, message) = (refusal.kind, refusal.message.as_str());
            event::BatchRetried { job, run, tenants, retry, wait, kind, message }
                .emit(&ports.metrics);
        }
        let waits_at = ports.clock.monotonic();
        let is_another = ports.wait(&next).await;
        if is_another {
            report.time.retry += ports.clock.monotonic().saturating_sub(waits_at);
        }
        is_another
    }
}

impl Ports {
    /// Waits as long as `next` says; says whether there is another try.
    async fn wait(&self, next: &Next) -> bool {
        let (server, least) = match *next {
            Next::Retry(server, least) => (server, least),
            Next::StandBy(server) => (server, Duration::ZERO),
            Next::GiveUp => return false,
        };
        self.pause(server, least).await;
        true
    }

    fn in_vain(&self) -> InVain {
        let [database, cache] =
            [Server::Database, Server::Cache].map(|server| self.breaker(server).in_vain());
        InVain { database, cache }
    }
}
