//! Reads a job's rows batch by batch, for the tools that compare or look up values and write none. It keeps
//! the bounds of runs: permits, memory, retries and breakers. It splits batches until the failing tenants are
//! alone.

use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;

use crate::domain::date;
use crate::domain::job::{Job, Scope};
use crate::domain::report::{Failure, FailureKind};
use crate::domain::tenant::{Batch, Tenants, batches};
use crate::engine::ports::{Clock, Read};
use crate::engine::run::limit::{BatchPermit, Priority, Room};
use crate::engine::run::retry::{Patience, Refusal, Remedy};
use crate::engine::run::{LONE_FAILURES_TO_GIVE_UP, Runner};

/// Reads the rows of one job.
pub(crate) struct JobReader {
    job: Arc<Job>,
    /// Why no further batch can be read.
    given_up: Option<Refusal>,
    worked: bool,
    lone_failures: u32,
    failures: Vec<Failure>,
    tenants_failed: u64,
    waited: Duration,
}

impl JobReader {
    /// A reader that has read nothing yet.
    pub(crate) fn new(job: Arc<Job>) -> Self {
        Self {
            job,
            given_up: None,
            worked: false,
            lone_failures: 0,
            failures: Vec::new(),
            tenants_failed: 0,
            waited: Duration::ZERO,
        }
    }

    /// The job.
    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// The batches of these tenants of a list. A tenant without a valid time zone, where the job has dates,
    /// is in no batch and counts as failed.
    pub(crate) fn batches(
        &mut self,
        list: &Arc<Tenants>,
        mut positions: Vec<u32>,
        clock: &dyn Clock,
    ) -> Vec<Batch> {
        if self.job.scope == Scope::Global {
            return vec![Batch::global()];
        }
        date::keep_with_zone(&self.job, list, &mut positions, clock.now(), |tenant, error| {
            let id = tenant.map(str::to_owned);
            self.failures.push(Failure::new(FailureKind::TimeZone, id, error.to_string()));
            self.tenants_failed += 1;
        });
        batches(list, &positions, self.job.batch.get())
    }

    /// The next part to read of the batches in `left`. If nothing can be read any more, all of them fail.
    pub(crate) fn next(&mut self, left: &mut Vec<Batch>) -> Option<Batch> {
        while let Some(part) = left.pop() {
            let Some(cause) = self.given_up.clone() else { return Some(part) };
            self.fail(&part, &cause);
        }
        None
    }

    /// Records the result of reading a part: a refused part is split, or its tenants fail. If a server could
    /// not be reached although all tries are used up, that is an error.
    pub(crate) fn ended(
        &mut self,
        part: Batch,
        result: Result<(), Refusal>,
        left: &mut Vec<Batch>,
    ) -> Result<(), Refusal> {
        let Err(refusal) = result else {
            (self.worked, self.lone_failures) = (true, 0);
            return Ok(());
        };
        match refusal.remedy {
            Remedy::Wait(_) | Remedy::StandBy(_) => return Err(refusal),
            Remedy::Fail => self.fail(&part, &refusal),
            // The whole job reads that table: its other batches would wait for the lock as well.
            Remedy::AwaitLock | Remedy::GiveUp => {
                self.fail(&part, &refusal);
                self.given_up = Some(refusal);
            }
            Remedy::Split => match part.split() {
                Ok((first, second)) => left.extend([second, first]),
                Err(alone) => self.fail_alone(&alone, refusal),
            },
        }
        Ok(())
    }

    fn fail_alone(&mut self, alone: &Batch, refusal: Refusal) {
        self.fail(alone, &refusal);
        self.lone_failures += 1;
        if self.lone_failures >= LONE_FAILURES_TO_GIVE_UP && !self.worked {
            self.given_up = Some(refusal);
        }
    }

    fn fail(&mut self, part: &Batch, refusal: &Refusal) {
        let tenants = part.len().max(1) as u64;
        let first = part.tenant(0).map(|tenant| tenant.id().to_owned());
        let failure = Failure::new(refusal.kind, first, refusal.message.clone());
        self.failures.push(Failure { count: tenants, ..failure });
        self.tenants_failed += tenants;
    }

    /// The failures since the last call, and how many tenants could not be read at all.
    pub(crate) fn take_failures(&mut self) -> (Vec<Failure>, u64) {
        (std::mem::take(&mut self.failures), std::mem::take(&mut self.tenants_failed))
    }

    /// How long it has waited for permits since the last call.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Reads the rows of a part, and returns them with the permit that bounds them. It holds no permit while
    /// it waits for another try.
    pub(crate) async fn read(
        &mut self,
        runner: &Runner,
        part: &Batch,
        first_dates: &[NaiveDate],
    ) -> Result<BatchPermit, Refusal> {
        let mut patience = Patience::new(self.job.retries);
        let mut room = Room::Batch;
        loop {
            let refusal = match self.read_once(runner, part, first_dates, room).await {
                Ok(permit) => return Ok(permit),
                Err(refusal) => refusal,
            };
            // A batch can be split; one tenant cannot, so it gets the memory of all batches.
            let too_large = refusal.kind == FailureKind::TooManyRows && part.len() <= 1;
            if too_large && room == Room::Batch {
                room = Room::Giant;
            } else if !patience.again(runner, &refusal).await {
                return Err(refusal);
            }
        }
    }

    async fn read_once(
        &mut self,
        runner: &Runner,
        part: &Batch,
        first_dates: &[NaiveDate],
        room: Room,
    ) -> Result<BatchPermit, Refusal> {
        let asked_at = runner.clock.monotonic();
        let mut permit = runner.limits.room_of(&self.job, Priority::Regular, room).await;
        self.waited += runner.clock.monotonic().saturating_sub(asked_at);
        // Without the cache the rows would be read to no purpose.
        runner.cache_answers()?;
        let read = Read { batch: part, first_dates, timeout: self.job.timeout };
        let rows = permit.empty_rows(self.job.key_columns().len());
        runner.reader.read(&self.job, read, rows).await?;
        Ok(permit)
    }
}
