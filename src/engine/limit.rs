//! One bound over everything: batches in flight, and with them connections and bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::port::Clock;
use crate::domain::job::{Job, JobName};
use crate::domain::retry::Breaker;
use crate::domain::row::Rows;

/// What the rows of one batch may take. A hundred tenants with a hundred products each take about
/// half of it; what takes more is split.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Memory that a batch's rows leave for the next batch's: what most batches take. The rest goes back.
const SPARE_BYTES: usize = BATCH_BYTES / 2;

/// What the rows of one tenant alone may take. Such a tenant waits until no other batch is in
/// flight, so this is the bound on all rows together while it is read.
pub const GIANT_BYTES: usize = 256 * 1024 * 1024;

/// Failures in a row, of all batches, after which a server is not asked any more for a while. Fewer
/// than a batch's tries with the default `retries`, so that its last try comes after the pause.
const FAILURES_TO_OPEN: u32 = 3;
/// How long it is left alone.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

/// Who gets a permit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lane {
    /// In the order of asking.
    #[default]
    Regular,
    /// Before all that are regular: data changed, and somebody may be reading what was.
    Urgent,
}

/// So many urgent batches in a row go before the first regular one: a regular run gets on whatever
/// changes, with at least every seventeenth permit.
const MAX_OVERTAKES: u32 = 16;

/// The batches in flight over all jobs.
///
/// A batch holds its permit from before its query until after its last write, so `concurrency`
/// bounds the connections that are used, the pipelines that are open and, times [`BATCH_BYTES`],
/// the memory that rows take.
#[derive(Debug)]
pub struct Limits {
    queue: Mutex<Queue>,
    concurrency: u32,
    /// Memory of batches that ended, for the next ones.
    spare: Mutex<Vec<Rows>>,
}

/// Permits, and those who wait for some.
#[derive(Debug)]
struct Queue {
    free: u32,
    urgent: VecDeque<Waiter>,
    regular: VecDeque<Waiter>,
    /// The batches in flight of each job.
    in_flight: BTreeMap<JobName, usize>,
    /// How many urgent ones went before the first regular one that waits.
    overtakes: u32,
}

/// Somebody who waits, until the other end is dropped.
#[derive(Debug)]
struct Waiter {
    permits: u32,
    job: Option<JobShare>,
    grant: oneshot::Sender<Permits>,
}

/// The part of the permits that a job may have.
#[derive(Clone, Debug)]
struct JobShare {
    name: JobName,
    most: usize,
}

/// Somebody waits no more, whether it got what it waited for or not.
struct Left<'a>(&'a Arc<Limits>);

/// Some permits. They go back when they are dropped, even on their way to whom they were meant for.
#[derive(Debug)]
struct Permits {
    limits: Arc<Limits>,
    count: u32,
    job: Option<JobShare>,
}

/// The right to have one batch in flight, and memory for its rows. Both go back when it is dropped.
#[derive(Debug)]
pub struct BatchPermit {
    rows: Rows,
    bytes: usize,
    permits: Permits,
}

impl Limits {
    /// At most so many batches in flight.
    pub fn new(concurrency: u32) -> Arc<Self> {
        let concurrency = concurrency.max(1);
        let queue = Queue {
            free: concurrency,
            urgent: VecDeque::new(),
            regular: VecDeque::new(),
            in_flight: BTreeMap::new(),
            overtakes: 0,
        };
        Arc::new(Self { queue: Mutex::new(queue), concurrency, spare: Mutex::default() })
    }

    /// Waits for the right to have a batch in flight. Whoever asked first in a lane gets it first,
    /// whatever its job; the urgent lane goes before the regular one.
    pub async fn batch(self: &Arc<Self>, lane: Lane) -> BatchPermit {
        self.acquire(lane, (1, BATCH_BYTES), None).await
    }

    /// Waits until nothing else is in flight, for one tenant that is too large for a batch.
    pub async fn giant(self: &Arc<Self>, lane: Lane) -> BatchPermit {
        self.acquire(lane, (self.concurrency, GIANT_BYTES), None).await
    }

    /// The same as [`Self::batch`] for a job, which never has more batches in flight than it may,
    /// its runs of both lanes taken together.
    pub async fn batch_of(self: &Arc<Self>, job: &Job, lane: Lane) -> BatchPermit {
        self.acquire(lane, (1, BATCH_BYTES), Some(JobShare::of(job))).await
    }

    /// The same as [`Self::giant`] for a job.
    pub async fn giant_of(self: &Arc<Self>, job: &Job, lane: Lane) -> BatchPermit {
        self.acquire(lane, (self.concurrency, GIANT_BYTES), Some(JobShare::of(job))).await
    }

    async fn acquire(
        self: &Arc<Self>,
        lane: Lane,
        (permits, bytes): (u32, usize),
        job: Option<JobShare>,
    ) -> BatchPermit {
        // Dropped last: by then whoever gives up does not stand in the way of those behind it.
        let _left = Left(self);
        let (grant, granted) = oneshot::channel();
        self.queue().lane(lane).push_back(Waiter { permits, job, grant });
        self.hand_out();
        let Ok(permits) = granted.await else { unreachable!("the queue keeps whoever waits") };
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        BatchPermit { rows: spare.unwrap_or_default(), bytes, permits }
    }

    /// Gives free permits to those whose turn it is.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let next = self.queue().next();
            let Some(Waiter { permits: count, job, grant }) = next else { return };
            // Whoever went away just now gives them back by this.
            drop(grant.send(Permits { limits: Arc::clone(self), count, job }));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Waiter> {
        match lane {
            Lane::Regular => &mut self.regular,
            Lane::Urgent => &mut self.urgent,
        }
    }

    /// Takes out who is next, if there are enough permits. One that waits for many holds up those
    /// behind it: it would never get them otherwise.
    fn next(&mut self) -> Option<Waiter> {
        let [urgent, regular] = [Lane::Urgent, Lane::Regular].map(|lane| self.first_of(lane));
        let overtakes = urgent.is_some() && regular.is_some();
        let is_urgent = urgent.is_some() && !(overtakes && self.overtakes >= MAX_OVERTAKES);
        let (lane, place) =
            if is_urgent { (Lane::Urgent, urgent?) } else { (Lane::Regular, regular?) };
        let free = self.free;
        let waiting = self.lane(lane);
        if waiting.get(place)?.permits > free {
            return None;
        }
        let next = waiting.remove(place)?;
        self.free -= next.permits;
        self.overtakes = if is_urgent && overtakes { self.overtakes + 1 } else { 0 };
        if let Some(job) = &next.job {
            *self.in_flight.entry(job.name.clone()).or_default() += 1;
        }
        Some(next)
    }

    /// Where the first of a lane is whose job may have one more batch in flight.
    fn first_of(&mut self, lane: Lane) -> Option<usize> {
        self.lane(lane).retain(|waiter| !waiter.grant.is_closed());
        let in_flight = &self.in_flight;
        let may_go = |waiter: &Waiter| {
            let job = waiter.job.as_ref();
            job.is_none_or(|job| in_flight.get(&job.name).is_none_or(|now| *now < job.most))
        };
        match lane {
            Lane::Regular => self.regular.iter().position(may_go),
            Lane::Urgent => self.urgent.iter().position(may_go),
        }
    }

    fn give_back(&mut self, permits: u32, job: Option<&JobShare>) {
        self.free += permits;
        if let Some(JobShare { name, .. }) = job
            && let Some(count) = self.in_flight.get_mut(name)
        {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(name);
            }
        }
    }
}

impl JobShare {
    fn of(job: &Job) -> Self {
        Self { name: job.name.clone(), most: job.concurrency.get() }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.hand_out();
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.limits.queue().give_back(self.count, self.job.as_ref());
        self.limits.hand_out();
    }
}

impl BatchPermit {
    /// The memory for the batch's rows, empty for rows with so many key columns, and bounded.
    pub fn empty_rows(&mut self, key_columns: usize) -> &mut Rows {
        self.rows.reset(key_columns, self.bytes);
        &mut self.rows
    }

    /// The batch's rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }
}

impl Drop for BatchPermit {
    fn drop(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.shrink(SPARE_BYTES);
        let limits = &self.permits.limits;
        let mut spare = limits.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < limits.concurrency as usize {
            spare.push(rows);
        }
    }
}

/// The breaker of one server, shared by all batches.
#[derive(Debug)]
pub struct SharedBreaker {
    breaker: Mutex<Breaker>,
    closed: Notify,
}

/// A breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// The server is not asked any more for a while.
    Opened,
    /// It answers again.
    Closed,
}

impl Default for SharedBreaker {
    fn default() -> Self {
        let breaker = Mutex::new(Breaker::new(FAILURES_TO_OPEN, BREAKER_PAUSE));
        Self { breaker, closed: Notify::new() }
    }
}

impl SharedBreaker {
    /// Whether the server may be asked at the monotonic moment `now`; what comes of it must be
    /// told to [`Self::note`].
    pub fn try_start(&self, now: Duration) -> bool {
        self.lock().try_start(now)
    }

    /// Takes note of whether the server could be reached; says if that changed the breaker.
    pub fn note(&self, reached: bool, now: Duration) -> Option<BreakerChange> {
        let mut breaker = self.lock();
        let before = breaker.is_open();
        if reached {
            breaker.succeeded();
        } else {
            breaker.failed(now);
        }
        match (before, breaker.is_open()) {
            (false, true) => Some(BreakerChange::Opened),
            (true, false) => {
                self.closed.notify_waiters();
                Some(BreakerChange::Closed)
            }
            (true, true) | (false, false) => None,
        }
    }

    /// How long the server may not be asked, at the monotonic moment `now`; `None` where it may.
    pub fn pause_left(&self, now: Duration) -> Option<Duration> {
        self.lock().pause_left(now)
    }

    /// How often the server was asked in vain while it counted as down, since ever.
    pub fn in_vain(&self) -> u64 {
        self.lock().in_vain()
    }

    /// Whether the server counts as down.
    pub fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    /// Ends when the server may be asked again, but not before `least` has passed while nobody found
    /// it up.
    pub async fn pause(&self, least: Duration, clock: &dyn Clock) {
        // Made before the look at the breaker, so that its closing in between is not missed.
        let closed = self.closed.notified();
        let left = self.lock().pause_left(clock.monotonic());
        tokio::select! {
            biased;
            () = closed, if left.is_some() => {}
            () = clock.sleep(least.max(left.unwrap_or_default())) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::BoxFuture;

    /// Asks for a permit and waits in the queue, if there is none at once.
    fn ask(limits: &Arc<Limits>, lane: Lane) -> BoxFuture<'static, BatchPermit> {
        let limits = Arc::clone(limits);
        let mut asked = async move { limits.batch(lane).await }.boxed();
        assert!(asked.as_mut().now_or_never().is_none(), "all permits are taken");
        asked
    }

    fn at_once(limits: &Arc<Limits>) -> Option<BatchPermit> {
        limits.batch(Lane::Regular).now_or_never()
    }

    #[tokio::test]
    async fn a_giant_waits_until_nothing_else_is_in_flight_and_then_has_everything() {
        let limits = Limits::new(2);
        let first = limits.batch(Lane::Regular).await;
        let giant = limits.giant(Lane::Regular);
        tokio::pin!(giant);
        assert!(giant.as_mut().now_or_never().is_none());
        assert!(at_once(&limits).is_none(), "a batch queues behind the giant");
        drop(first);
        let giant = giant.await;
        assert_eq!(giant.bytes, GIANT_BYTES);
        assert!(at_once(&limits).is_none());
        drop(giant);
        assert!(at_once(&limits).is_some());
    }

    #[tokio::test]
    async fn an_urgent_batch_goes_before_all_regular_ones_that_wait() {
        let limits = Limits::new(1);
        let held = limits.batch(Lane::Regular).await;
        let mut regular = ask(&limits, Lane::Regular);
        let giant = limits.giant(Lane::Regular);
        tokio::pin!(giant);
        assert!(giant.as_mut().now_or_never().is_none());
        let urgent = ask(&limits, Lane::Urgent);
        drop(held);
        let urgent = urgent.now_or_never().unwrap();
        assert!(regular.as_mut().now_or_never().is_none());
        drop(urgent);
        drop(regular.now_or_never().unwrap());
        assert!(giant.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_regular_batch_never_starves() {
        let limits = Limits::new(1);
        let mut held = Some(limits.batch(Lane::Urgent).await);
        let mut regular = ask(&limits, Lane::Regular);
        let mut overtakes = 0;
        loop {
            let urgent = ask(&limits, Lane::Urgent);
            drop(held.take());
            if regular.as_mut().now_or_never().is_some() {
                break;
            }
            held = Some(urgent.now_or_never().unwrap());
            overtakes += 1;
        }
        assert_eq!(overtakes, MAX_OVERTAKES);
    }

    #[tokio::test]
    async fn a_job_has_no_more_in_flight_than_it_may_whatever_the_lane() {
        let limits = Limits::new(4);
        let share = |name: &str| {
            let name = JobName::parse(name).unwrap();
            Some(JobShare { name, most: 2 })
        };
        let of = |name: &str, lane| limits.acquire(lane, (1, BATCH_BYTES), share(name));
        let regular = of("a", Lane::Regular).await;
        let urgent = of("a", Lane::Urgent).await;
        let mut waits = Box::pin(of("a", Lane::Urgent));
        assert!(waits.as_mut().now_or_never().is_none());
        let other = of("b", Lane::Regular).now_or_never();
        assert!(other.is_some(), "another job does not wait for it");
        drop(regular);
        assert!(waits.now_or_never().is_some());
        drop((urgent, other));
        assert!(limits.queue().in_flight.is_empty());
        assert_eq!(limits.queue().free, 4);
    }

    #[tokio::test]
    async fn whoever_goes_away_while_waiting_or_just_when_its_turn_comes_loses_no_permit() {
        let limits = Limits::new(2);
        let held = [limits.batch(Lane::Regular).await, limits.batch(Lane::Regular).await];
        let gone_while_waiting = ask(&limits, Lane::Urgent);
        let gone_with_its_permit = ask(&limits, Lane::Urgent);
        let gone_at_last = ask(&limits, Lane::Regular);
        drop(gone_while_waiting);
        drop(held);
        drop(gone_with_its_permit);
        drop(gone_at_last);
        let both = (at_once(&limits), at_once(&limits));
        assert!(both.0.is_some() && both.1.is_some());
        assert!(at_once(&limits).is_none());

        drop(both.0);
        let mut giant = Box::pin(limits.giant(Lane::Regular));
        assert!(giant.as_mut().now_or_never().is_none());
        let behind = ask(&limits, Lane::Regular);
        drop(giant);
        assert!(behind.now_or_never().is_some(), "nobody stands in the way any more");
    }
}
