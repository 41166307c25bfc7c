//! Signals. The first SIGINT or SIGTERM asks for an orderly stop, the second for an immediate one.
//! SIGHUP asks a worker to read its job files again.

use std::convert::Infallible;
use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

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

    /// At the first signal, calls `say` and begins to drain; at the second, stops at once. Never
    /// returns.
    pub(super) async fn stop(mut self, stops: &Stops, say: impl Fn()) -> Infallible {
        self.next().await;
        say();
        stops.drain.cancel();
        self.next().await;
        stops.abort.cancel();
        pending().await
    }
}

/// SIGHUP.
pub(super) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// From now on the signal no longer ends the process.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Passes each signal on. Never returns.
    pub(super) async fn pass_on(mut self, reload: &Notify) -> Infallible {
        while self.0.recv().await.is_some() {
            reload.notify_one();
        }
        pending().await
    }
}
