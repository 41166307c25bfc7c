//! Trying again what failed for a reason that may pass.

use super::limit::SharedBreaker;
use super::port::{CacheError, SourceError, SourceErrorKind};
use super::run::{Order, Runner};
use crate::domain::report::{FailureKind, Report};
use crate::domain::retry::backoff;
use crate::observe::event::{self, Server};

/// Something of a run could not be done.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    pub(super) remedy: Remedy,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Try again later: this server could not be reached, or was busy.
    Wait(Server),
    /// Try with fewer tenants.
    Split,
    /// Fail these tenants.
    Fail,
    /// Fail the rest of the run: no batch can work.
    GiveUp,
}

impl Refusal {
    /// A server that counts as down was not asked.
    pub(super) fn left_alone(server: Server) -> Self {
        let kind = match server {
            Server::Database => FailureKind::DatabaseUnavailable,
            Server::Cache => FailureKind::CacheUnavailable,
        };
        let message =
            format!("the {} counts as down and is left alone for some seconds", server.as_str());
        Self { kind, message, remedy: Remedy::Wait(server) }
    }
}

impl From<SourceError> for Refusal {
    fn from(error: SourceError) -> Self {
        let remedy = match error.kind {
            SourceErrorKind::Unavailable | SourceErrorKind::Transient => {
                Remedy::Wait(Server::Database)
            }
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
        let remedy =
            if error.kind.is_transient() { Remedy::Wait(Server::Cache) } else { Remedy::Fail };
        Self { kind: error.kind.failure_kind(), message: error.message, remedy }
    }
}

/// The tries of one thing, as many as its job allows.
pub(super) struct Tries<'a> {
    runner: &'a Runner,
    order: &'a Order,
    tenants: usize,
    retries: u32,
}

impl<'a> Tries<'a> {
    /// For something that concerns so many tenants.
    pub(super) fn new(runner: &'a Runner, order: &'a Order, tenants: usize) -> Self {
        Self { runner, order, tenants, retries: 0 }
    }

    /// Waits until it is time for another try; says whether there is one.
    ///
    /// Where the server counts as down, that is when it may be asked again: a run outlives a restart
    /// of its servers, and asks one that stays away only a few times.
    pub(super) async fn again(&mut self, refusal: &Refusal, report: &mut Report) -> bool {
        let Remedy::Wait(server) = refusal.remedy else { return false };
        if self.retries >= self.order.job.retries {
            return false;
        }
        let Self { runner, order, tenants, .. } = *self;
        let wait = backoff(self.retries, runner.clock.random());
        self.retries += 1;
        report.retries += 1;
        let (job, run, retry) = (&order.job.name, order.id, self.retries);
        let (kind, message) = (refusal.kind, refusal.message.as_str());
        event::BatchRetried { job, run, tenants, retry, wait, kind, message }.emit(&runner.metrics);
        runner.breaker(server).pause(wait, runner.clock.as_ref()).await;
        true
    }
}

impl Runner {
    /// Whether a server may be asked; what comes of it must be told to [`Self::note`].
    pub(super) fn may_ask(&self, server: Server) -> Result<(), Refusal> {
        let allowed = self.breaker(server).try_start(self.clock.monotonic());
        allowed.then_some(()).ok_or_else(|| Refusal::left_alone(server))
    }

    /// Takes note of what came of a query.
    pub(super) fn note_query(&self, error: Option<&SourceError>) {
        let unreachable = error.filter(|error| error.kind == SourceErrorKind::Unavailable);
        self.note(Server::Database, unreachable.map(|error| error.message.as_str()));
    }

    /// Takes note of what came of a question to the cache.
    pub(super) fn note_cache(&self, error: Option<&CacheError>) {
        let unreachable = error.filter(|error| error.kind.is_transient());
        self.note(Server::Cache, unreachable.map(|error| error.message.as_str()));
    }

    /// Takes note of whether a server could be reached; `unreachable` says how it could not.
    pub(super) fn note(&self, server: Server, unreachable: Option<&str>) {
        let change = self.breaker(server).note(unreachable.is_none(), self.clock.monotonic());
        if let Some(change) = change {
            let message = unreachable.unwrap_or("it answers again");
            let open = change == super::limit::BreakerChange::Opened;
            event::BreakerChanged { server, open, message }.emit(&self.metrics);
        }
    }

    pub(super) fn breaker(&self, server: Server) -> &SharedBreaker {
        match server {
            Server::Database => &self.breakers.database,
            Server::Cache => &self.breakers.cache,
        }
    }
}
