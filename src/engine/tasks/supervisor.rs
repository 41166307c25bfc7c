//! Starts a background task again after a panic.
//!
//! A panic is a defect of preheat. Without a supervisor it would end the task for good, and nobody would
//! notice: the worker would go on without its sweeps or its change feed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::domain::retry::backoff;
use crate::engine::ports::{Clock, Ports};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// After this time without a panic, the next one counts as the first.
const STEADY_FOR: Duration = Duration::from_mins(1);

/// Keeps background tasks running until the worker stops.
#[derive(Clone)]
pub struct Supervisor {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Supervisor {
    /// A supervisor that starts no task again once `stop` is cancelled.
    pub fn new(ports: &Ports, stop: CancellationToken) -> Self {
        Self::with(Arc::clone(&ports.clock), Arc::clone(&ports.metrics), stop)
    }

    /// The same, before there are ports.
    pub fn with(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        Self { clock, metrics, stop }
    }

    /// Cancelled when the worker stops, or this task's part of it.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs a task until it ends. After each panic it logs an error, waits (longer from panic to panic, ten
    /// seconds at most) and starts the task again, with its state as the panic left it.
    pub async fn keep_running<S>(
        self,
        task: &'static str,
        mut state: S,
        start: impl Fn(&mut S) -> BoxFuture<'_, ()>,
    ) {
        let mut panics = 0;
        loop {
            let began = self.clock.monotonic();
            if AssertUnwindSafe(start(&mut state)).catch_unwind().await.is_ok() {
                return;
            }
            if self.clock.monotonic().saturating_sub(began) > STEADY_FOR {
                panics = 0;
            }
            let pause = backoff(panics, 1.0);
            panics = panics.saturating_add(1);
            event::TaskPanicked { task, pause }.emit(&self.metrics);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.clock.sleep(pause) => {}
            }
        }
    }
}
