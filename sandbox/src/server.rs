//! A server in a folder of its own, which can be stopped, killed, suspended and restarted.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::SandboxError;
use super::process::{Process, log_tail, wait_until};

/// What Postgres and Redis have in common: both are handles that lead here.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    /// The signal that ends it when it is dropped.
    end_signal: Signal,
    process: Mutex<Option<Process>>,
    folder: TempDir, // after the process: it goes when the server has ended
}

impl Server {
    /// A server that does not run yet.
    pub(super) fn new(name: &'static str, end_signal: Signal, folder: TempDir) -> Self {
        Self { name, end_signal, process: Mutex::new(None), folder }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, and calls `is_ready` with its process id until that returns true.
    pub(super) fn start(
        &self,
        command: Command,
        within: Duration,
        mut is_ready: impl FnMut(u32) -> bool,
    ) -> Result<(), SandboxError> {
        let log = self.folder().join("log");
        let mut process = Process::start(command, self.folder(), &log, self.end_signal)?;
        let mut ended = false;
        let ready = wait_until(within, || {
            ended = process.ended().is_some();
            ended || is_ready(process.id())
        });
        if ended || !ready {
            let what = if ended { "ended at its start" } else { "was not ready in time" };
            return Err(SandboxError::NotReady { server: self.name, what, log: self.log_tail() });
        }
        *self.process() = Some(process);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::id)
    }

    pub(super) fn stop(&self, signal: Signal) {
        if let Some(mut process) = self.process().take() {
            process.end(signal);
        }
    }

    /// Kills its processes at once, as a crash would.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// Suspends every process of the server (`SIGSTOP`): connections stay open, and nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes a suspended server.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process().as_ref() {
            process.signal(signal);
        }
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.folder().join("log"))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
