//! The verifier of a worker: audits some tenants of every job, again and again. In a fleet, each member audits its own.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::{AuditOrder, Auditor, Pace};
use crate::domain::audit::Keep;
use crate::domain::job::Job;
use crate::engine::run::{Runner, Stops};
use crate::observe::event;

/// Audits a random sample of the tenants of every enabled job, at a gentle pace.
pub struct Verifier {
    auditor: Auditor,
    /// From the start of one audit to that of the next.
    interval: Duration,
    /// How many tenants of a job one audit reads.
    sample: NonZeroUsize,
}

impl Verifier {
    /// A verifier within the runner's bounds.
    pub fn new(runner: Arc<Runner>, interval: Duration, sample: NonZeroUsize) -> Self {
        Self { auditor: Auditor::new(runner, Pace::Gentle), interval, sample }
    }

    /// Works until the worker stops; an audit under way is dropped then.
    pub async fn run(&self, stops: Stops) {
        let clock = Arc::clone(&self.auditor.runner.clock);
        // Not on all replicas at once, and not before the startup runs have ended.
        let mut pause = self.interval.mul_f64(0.5 + clock.random() / 2.0);
        loop {
            tokio::select! {
                biased;
                () = stops.requested() => return,
                () = clock.sleep(pause) => {}
            }
            let began = clock.monotonic();
            tokio::select! {
                biased;
                () = stops.requested() => return,
                () = self.verify() => {}
            }
            pause = (began + self.interval).saturating_sub(clock.monotonic());
        }
    }

    async fn verify(&self) {
        let runner = &self.auditor.runner;
        let shares = runner.ownership.noticed();
        let is_own = |job: &&Arc<Job>| job.enabled && !shares.of_job(job).is_empty();
        let jobs: Vec<Arc<Job>> = runner.jobs.get().values().filter(is_own).cloned().collect();
        if jobs.is_empty() {
            return;
        }
        let order = AuditOrder {
            jobs: jobs.clone(),
            sample: Some(self.sample),
            shares,
            rechecks: true,
            orphans: false,
            values: Keep::Beginnings,
        };
        let audits = match self.auditor.audit(&order).await {
            Ok(audits) => audits,
            Err(error) => {
                let message = error.to_string();
                return event::AuditFailed { message: &message }.emit(&runner.metrics);
            }
        };
        let (now, at) = (runner.jobs.get(), runner.clock.now());
        for (job, audit) in jobs.iter().zip(&audits) {
            // If the job was removed or changed meanwhile, the findings say nothing about it.
            if now.get(&job.name).is_some_and(|still| still == job) {
                event::AuditFinished { audit, at }.emit(&runner.metrics);
            }
        }
    }
}
