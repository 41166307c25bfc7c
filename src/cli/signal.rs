//! Signals: the first asks for an orderly end, the second for an immediate one.

use std::convert::Infallible;
use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::engine::run::Stops;

/// SIGINT and SIGTERM.
pub(super) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From now on the two signals no longer end the process by themselves.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Turns the first signal into draining, which `say` tells, and the second into stopping at
    /// once; never ends.
    pub(super) async fn stop(mut self, stops: &Stops, say: impl Fn()) -> Infallible {
        self.next().await;
        say();
        stops.drain.cancel();
        self.next().await;
        stops.abort.cancel();
        pending().await
    }
}
