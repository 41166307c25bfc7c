//! The shares that the worker has taken and not started for, and the task that moves their fences.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::{JoinError, JoinSet};

use crate::domain::share::Shares;
use crate::engine::run::Runner;
use crate::engine::run::fences::Fences;
use crate::observe::event;

/// The longest that one attempt to move the fences may take. Every call of it has a shorter limit of its own.
const LONGEST_TRY: Duration = Duration::from_mins(1);
/// The wait after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The shares that the worker has taken and not started for.
#[derive(Default)]
pub(super) struct TakenShares {
    /// Their fences are to be moved once those that are being moved are done.
    waiting: Shares,
    /// Their fences are being moved, by this task.
    moving: Shares,
    task: JoinSet<()>,
}

impl TakenShares {
    /// The shares that the worker has taken and not started for.
    pub(super) fn shares(&self) -> Shares {
        self.waiting | self.moving
    }

    /// Ends when fences were moved; `None` if none are being moved. The task does not panic, and nothing aborts it.
    pub(super) async fn moved(&mut self) -> Option<Result<(), JoinError>> {
        self.task.join_next().await
    }

    /// Moves the fences of the shares that wait, unless others are being moved.
    pub(super) fn move_next(&mut self, runner: &Arc<Runner>) {
        if self.waiting.is_empty() || !self.task.is_empty() {
            return;
        }
        self.moving = std::mem::take(&mut self.waiting);
        self.task.spawn(move_fences(Arc::clone(runner), self.moving));
    }

    /// The shares whose fences were moved.
    pub(super) fn take_moved(&mut self) -> Shares {
        std::mem::take(&mut self.moving)
    }

    /// Adds shares that were taken; whatever was done for those that `changed` is void.
    pub(super) fn note(&mut self, changed: Shares, taken: Shares) {
        self.moving = self.moving - changed;
        self.waiting = (self.waiting - changed) | taken;
    }
}

/// Moves the fences of these shares, however often that fails.
async fn move_fences(runner: Arc<Runner>, shares: Shares) {
    loop {
        let fences = Fences::Of(shares);
        let moving = AssertUnwindSafe(runner.move_all(&fences)).catch_unwind();
        tokio::select! {
            biased;
            moved = moving => match moved {
                Ok(()) => return,
                Err(_panic) => {
                    event::TaskPanicked { task: "takeover", pause: AFTER_PANIC }.emit(&runner.metrics);
                    runner.clock.sleep(AFTER_PANIC).await;
                }
            },
            () = runner.clock.sleep(LONGEST_TRY) => {}
        }
    }
}
