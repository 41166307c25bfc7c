//! One bound over all batches in flight, and with them over connections and bytes.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::limits_now::LimitsNow;
use crate::domain::job::{Job, JobName};
use crate::domain::row::{Limit, Rows};

/// How many bytes the rows of one batch may take. A hundred tenants with a hundred products each take about
/// half of it; a batch that needs more is split.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How much memory a batch's rows keep allocated for the next batch: what most batches take. The rest is
/// freed.
const SPARE_BYTES: usize = BATCH_BYTES / 2;

/// How many bytes the rows of one tenant alone may take, unless a setting says otherwise. Such a tenant waits
/// until no other batch is in flight except one for changes, so while it is read all rows together take at
/// most this and [`BATCH_BYTES`]. A value made of all these rows is copied three more times on its way to the
/// cache. With this number the worker stays below the 128 MiB that `docs/load.md` promises.
pub const MAX_TENANT_BYTES: usize = 16 * 1024 * 1024;

/// A job that holds all the permits it may hold, and has returned none for this long, is reported.
const HELD_TOO_LONG: Duration = Duration::from_secs(10);

/// Which batches get a permit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Priority {
    /// In the order in which they ask.
    #[default]
    Regular,
    /// Before all regular batches: data changed, and readers may still get the old values.
    Urgent,
}

/// How many urgent batches in a row may overtake the first regular one: whatever changes, regular runs get at
/// least every seventeenth permit.
const MAX_OVERTAKES: u32 = 16;

/// With at least this many permits a worker keeps one of them for changes. With two permits, every other job
/// would have to wait for the single one left.
const PERMITS_TO_KEEP_ONE: u32 = 3;

/// How many permits there are, and how many of them one job may hold: never the last one, so that a slow or
/// locked table holds up only the jobs that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    all: u32,
    /// Only urgent batches get these.
    changes: u32,
}

/// How many batches of one job may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Most {
    /// Of regular priority.
    regular: usize,
    /// Of both priorities together.
    all: usize,
}

impl Shares {
    /// The shares of a command, which does the runs that it was started for and has no change feed.
    pub fn of_command(permits: u32) -> Self {
        Self { all: permits.max(1), changes: 0 }
    }

    /// The shares of a worker.
    pub fn of_worker(permits: u32) -> Self {
        Self { changes: u32::from(permits >= PERMITS_TO_KEEP_ONE), ..Self::of_command(permits) }
    }

    /// How many permits there are.
    pub fn all(self) -> u32 {
        self.all
    }

    /// How many batches of a job may be in flight at once with this priority. The job's file may ask for all
    /// permits except the one for changes.
    pub fn of_job(self, job: &Job, priority: Priority) -> usize {
        let most = self.most(job.concurrency);
        match priority {
            Priority::Regular => most.regular,
            Priority::Urgent => most.all,
        }
    }

    /// The same, from the number in the job's file.
    fn most(self, said: Option<NonZeroUsize>) -> Most {
        let all_but_one = |permits: u32| permits.saturating_sub(1).max(1) as usize;
        match said {
            Some(said) => {
                let most = said.get().min(self.regular() as usize);
                Most { regular: most, all: most }
            }
            None => Most { regular: all_but_one(self.regular()), all: all_but_one(self.all) },
        }
    }

    /// How many permits regular batches may hold. A giant takes all of these, so that changes go on beside
    /// it.
    fn regular(self) -> u32 {
        self.all - self.changes
    }
}

/// The batches in flight over all jobs.
///
/// A batch holds its permit from before its query until after its last write. So the number of permits bounds
/// the connections in use, the open pipelines and, times [`BATCH_BYTES`], the memory that rows take.
#[derive(Debug)]
pub struct Limits {
    queue: Mutex<Queue>,
    /// Memory of batches that have ended, for the next batches.
    spare: Mutex<Vec<Rows>>,
    /// How many bytes the rows of one tenant may take.
    max_tenant_bytes: usize,
}

/// The permits, and the callers that wait for them.
#[derive(Debug)]
struct Queue {
    shares: Shares,
    /// How many permits are held, by priority.
    held_regular: u32,
    held_urgent: u32,
    urgent: VecDeque<Waiter>,
    regular: VecDeque<Waiter>,
    /// What each job has in flight.
    jobs: BTreeMap<JobName, InFlight>,
    /// How many urgent batches have overtaken the first regular one that waits.
    overtakes: u32,
}

/// A caller that waits, until it drops the other end.
#[derive(Debug)]
struct Waiter {
    ask: Ask,
    grant: oneshot::Sender<Permits>,
}

/// What a caller asks for.
#[derive(Clone, Debug)]
struct Ask {
    priority: Priority,
    room: Room,
    job: Option<JobShare>,
}

/// How much of the memory for rows a batch gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The memory of one batch.
    Batch,
    /// The memory of all batches, for one tenant that is too large for a batch. Nothing else is in flight
    /// except changes on their own permit.
    Giant,
}

/// How many of the permits a job may hold.
#[derive(Clone, Debug)]
struct JobShare {
    name: JobName,
    most: Most,
}

/// What a job has in flight.
#[derive(Debug)]
struct InFlight {
    most: Most,
    regular: usize,
    urgent: usize,
    permits: u32,
    hold: Hold,
}

/// How long a job has held all the permits it may hold, and returned none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// It does not hold all of them, or no look has found that yet.
    New,
    /// It did at that look, by the monotonic clock.
    Since(Duration),
    /// It was reported.
    Told,
}

/// A job that has held all the permits it may hold for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldLong {
    pub(crate) job: JobName,
    pub(crate) permits: u32,
    /// How many permits are left for other jobs.
    pub(crate) left: u32,
    pub(crate) held_for: Duration,
}

/// On drop, hands free permits out again: a caller has stopped waiting, with or without a permit.
struct Left<'a>(&'a Arc<Limits>);

/// Some permits. They are returned on drop, even if the caller that they were sent to has gone.
#[derive(Debug)]
struct Permits {
    limits: Arc<Limits>,
    count: u32,
    ask: Ask,
}

/// The right to have one batch in flight, and memory for its rows. Both are returned on drop.
#[derive(Debug)]
pub struct BatchPermit {
    rows: Rows,
    permits: Permits,
}

impl Limits {
    /// The bounds of a command: at most this many batches in flight.
    pub fn new(permits: u32) -> Arc<Self> {
        Self::with_tenants_of(MAX_TENANT_BYTES, permits)
    }

    /// The same, where the rows of one tenant may take this many bytes.
    pub fn with_tenants_of(max_tenant_bytes: usize, permits: u32) -> Arc<Self> {
        let queue = Queue {
            shares: Shares::of_command(permits),
            held_regular: 0,
            held_urgent: 0,
            urgent: VecDeque::new(),
            regular: VecDeque::new(),
            jobs: BTreeMap::new(),
            overtakes: 0,
        };
        Arc::new(Self { queue: Mutex::new(queue), spare: Mutex::default(), max_tenant_bytes })
    }

    /// Applies other shares from now on; batches in flight stay.
    pub fn set(self: &Arc<Self>, shares: Shares) {
        self.queue().shares = shares;
        self.hand_out();
    }

    /// How many permits there are, and how many each caller may hold.
    pub fn shares(&self) -> Shares {
        self.queue().shares
    }

    /// Waits for the right to have a batch in flight. Within a priority, permits go in the order of asking,
    /// whatever the job; urgent batches go before regular ones.
    pub async fn batch(self: &Arc<Self>, priority: Priority) -> BatchPermit {
        self.acquire(Ask { priority, room: Room::Batch, job: None }).await
    }

    /// Waits until nothing else is in flight except changes on their own permit, for one tenant that is too
    /// large for a batch.
    pub async fn giant(self: &Arc<Self>, priority: Priority) -> BatchPermit {
        self.acquire(Ask { priority, room: Room::Giant, job: None }).await
    }

    /// Waits for this much room for a job, which never has more batches in flight than it may.
    pub(crate) async fn room_of(
        self: &Arc<Self>,
        job: &Job,
        priority: Priority,
        room: Room,
    ) -> BatchPermit {
        self.acquire(Ask { priority, room, job: Some(self.share(job)) }).await
    }

    /// The permits that each job holds; a job that holds none is not among them.
    pub fn held(&self) -> BTreeMap<JobName, u32> {
        let queue = self.queue();
        queue.jobs.iter().map(|(job, in_flight)| (job.clone(), in_flight.permits)).collect()
    }

    /// The permits at this moment.
    pub fn now(&self) -> LimitsNow {
        let queue = self.queue();
        let waiting = |waiters: &VecDeque<Waiter>| {
            waiters.iter().filter(|waiter| !waiter.grant.is_closed()).count()
        };
        let jobs = queue.jobs.iter().map(|(job, in_flight)| (job.clone(), in_flight.permits));
        let (Shares { all, changes }, tenant_bytes) = (queue.shares, self.max_tenant_bytes);
        let [batches, beside_giant] = [all, changes].map(|permits| permits as usize * BATCH_BYTES);
        LimitsNow {
            permits: all,
            for_changes: changes,
            held: (queue.held_regular, queue.held_urgent),
            waiting: (waiting(&queue.regular), waiting(&queue.urgent)),
            jobs: jobs.collect(),
            batch_bytes: BATCH_BYTES,
            tenant_bytes,
            all_bytes: batches.max(tenant_bytes + beside_giant),
        }
    }

    /// Looks, about once a second, for jobs that hold all the permits they may hold. Answers those that have
    /// done so for too long, each once until it returns a permit.
    pub(crate) fn look(&self, now: Duration) -> Vec<HeldLong> {
        let mut queue = self.queue();
        let all = queue.shares.all;
        let long = queue.jobs.iter_mut().filter_map(|(job, in_flight)| {
            let held_for = in_flight.look(now)?;
            let (job, permits) = (job.clone(), in_flight.permits);
            Some(HeldLong { job, permits, left: all.saturating_sub(permits), held_for })
        });
        long.collect()
    }

    /// Takes the place of a look while batches may wait for a server that is down: that time says nothing about
    /// their jobs.
    pub(crate) fn look_away(&self) {
        for in_flight in self.queue().jobs.values_mut() {
            if let Hold::Since(_) = in_flight.hold {
                in_flight.hold = Hold::New;
            }
        }
    }

    fn share(&self, job: &Job) -> JobShare {
        JobShare { name: job.name.clone(), most: self.shares().most(job.concurrency) }
    }

    async fn acquire(self: &Arc<Self>, ask: Ask) -> BatchPermit {
        // Dropped last, so that a caller that gives up no longer blocks those behind it.
        let _left = Left(self);
        let (grant, granted) = oneshot::channel();
        self.queue().waiters(ask.priority).push_back(Waiter { ask, grant });
        self.hand_out();
        let Ok(permits) = granted.await else { unreachable!("the queue keeps whoever waits") };
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        BatchPermit { rows: spare.unwrap_or_default(), permits }
    }

    /// Hands free permits to the callers whose turn it is.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let next = self.queue().next();
            let Some((count, Waiter { ask, grant })) = next else { return };
            // If the caller has just gone, dropping the permits returns them.
            drop(grant.send(Permits { limits: Arc::clone(self), count, ask }));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn waiters(&mut self, priority: Priority) -> &mut VecDeque<Waiter> {
        match priority {
            Priority::Regular => &mut self.regular,
            Priority::Urgent => &mut self.urgent,
        }
    }

    /// Takes the next caller out of the queue, with the number of permits that it gets, if enough are free. A
    /// caller that waits for many permits blocks those behind it, as it would never get them otherwise. A
    /// batch on the permit for changes takes nothing from it and may pass.
    fn next(&mut self) -> Option<(u32, Waiter)> {
        for priority in [Priority::Urgent, Priority::Regular] {
            self.waiters(priority).retain(|waiter| !waiter.grant.is_closed());
        }
        if self.held_urgent < self.shares.changes && self.free() > 0 {
            let small = |waiter: &Waiter| waiter.ask.room == Room::Batch;
            if let Some(place) = self.urgent.iter().position(|w| small(w) && self.may_go(w)) {
                return self.take(Priority::Urgent, place);
            }
        }
        let [urgent, regular] = [&self.urgent, &self.regular]
            .map(|waiters| waiters.iter().position(|w| self.may_go(w)));
        let overtakes = urgent.is_some() && regular.is_some();
        let is_urgent = urgent.is_some() && !(overtakes && self.overtakes >= MAX_OVERTAKES);
        let (priority, place) =
            if is_urgent { (Priority::Urgent, urgent?) } else { (Priority::Regular, regular?) };
        let room = self.waiters(priority).get(place)?.ask.room;
        let count = self.cost(room);
        let fits = match priority {
            Priority::Urgent => true,
            Priority::Regular => self.held_regular + count <= self.shares.regular(),
        };
        if !fits || count > self.free() {
            return None;
        }
        self.overtakes = if is_urgent && overtakes { self.overtakes + 1 } else { 0 };
        self.take(priority, place)
    }

    fn take(&mut self, priority: Priority, place: usize) -> Option<(u32, Waiter)> {
        let next = self.waiters(priority).remove(place)?;
        let count = self.cost(next.ask.room);
        match priority {
            Priority::Regular => self.held_regular += count,
            Priority::Urgent => self.held_urgent += count,
        }
        if let Some(JobShare { name, most }) = &next.ask.job {
            self.jobs
                .entry(name.clone())
                .or_insert_with(|| InFlight::new(*most))
                .take(priority, count);
        }
        Some((count, next))
    }

    fn free(&self) -> u32 {
        self.shares.all.saturating_sub(self.held_regular + self.held_urgent)
    }

    fn cost(&self, room: Room) -> u32 {
        match room {
            Room::Batch => 1,
            Room::Giant => self.shares.regular(),
        }
    }

    /// Whether the caller's job may have one more batch in flight.
    fn may_go(&self, Waiter { ask: Ask { priority, job, .. }, .. }: &Waiter) -> bool {
        let Some(JobShare { name, most }) = job else { return true };
        let Some(InFlight { regular, urgent, .. }) = self.jobs.get(name) else { return true };
        regular + urgent < most.all && (*priority == Priority::Urgent || *regular < most.regular)
    }

    fn give_back(&mut self, count: u32, Ask { priority, job, room: _ }: &Ask) {
        match priority {
            Priority::Regular => self.held_regular -= count,
            Priority::Urgent => self.held_urgent -= count,
        }
        let Some(JobShare { name, .. }) = job else { return };
        let Some(in_flight) = self.jobs.get_mut(name) else { return };
        in_flight.give_back(*priority, count);
        if in_flight.permits == 0 {
            self.jobs.remove(name);
        }
    }
}

impl InFlight {
    fn new(most: Most) -> Self {
        Self { most, regular: 0, urgent: 0, permits: 0, hold: Hold::New }
    }

    fn take(&mut self, priority: Priority, permits: u32) {
        *self.of(priority) += 1;
        self.permits += permits;
    }

    fn give_back(&mut self, priority: Priority, permits: u32) {
        *self.of(priority) -= 1;
        self.permits -= permits;
        self.hold = Hold::New;
    }

    fn of(&mut self, priority: Priority) -> &mut usize {
        match priority {
            Priority::Regular => &mut self.regular,
            Priority::Urgent => &mut self.urgent,
        }
    }

    /// How long it has held all the permits it may hold, once that is to be reported.
    fn look(&mut self, now: Duration) -> Option<Duration> {
        let holds_all =
            self.regular >= self.most.regular || self.regular + self.urgent >= self.most.all;
        match self.hold {
            Hold::New if holds_all => self.hold = Hold::Since(now),
            Hold::Since(at) if now.saturating_sub(at) >= HELD_TOO_LONG => {
                self.hold = Hold::Told;
                return Some(now.saturating_sub(at));
            }
            Hold::New | Hold::Since(_) | Hold::Told => {}
        }
        None
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.hand_out();
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.limits.queue().give_back(self.count, &self.ask);
        self.limits.hand_out();
    }
}

impl BatchPermit {
    /// Memory for the batch's rows, bounded and empty, for rows with this many key columns.
    pub fn empty_rows(&mut self, key_columns: usize) -> &mut Rows {
        let limit = self.limit();
        self.rows.reset(key_columns, limit);
        &mut self.rows
    }

    fn limit(&self) -> Limit {
        match self.permits.ask.room {
            Room::Batch => Limit::Batch(BATCH_BYTES),
            Room::Giant => Limit::Tenant(self.permits.limits.max_tenant_bytes),
        }
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
        let most = limits.shares().all as usize;
        let mut spare = limits.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < most {
            spare.push(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::BoxFuture;

    /// Asks for a permit, and waits in the queue if none is free.
    fn ask(limits: &Arc<Limits>, priority: Priority) -> BoxFuture<'static, BatchPermit> {
        let limits = Arc::clone(limits);
        let mut asked = async move { limits.batch(priority).await }.boxed();
        assert!(asked.as_mut().now_or_never().is_none(), "all permits are taken");
        asked
    }

    fn at_once(limits: &Arc<Limits>) -> Option<BatchPermit> {
        limits.batch(Priority::Regular).now_or_never()
    }

    #[tokio::test]
    async fn the_permits_can_be_looked_at() {
        let limits = Limits::with_tenants_of(3 * BATCH_BYTES, 2);
        let _held = (limits.batch(Priority::Regular).await, limits.batch(Priority::Urgent).await);
        let waits = ask(&limits, Priority::Regular);
        let gone = ask(&limits, Priority::Urgent);
        drop(gone);
        let now = limits.now();
        assert_eq!((now.held, now.waiting), ((1, 1), (1, 0)));
        assert_eq!(now.all_bytes, 3 * BATCH_BYTES);
        assert_eq!(Limits::with_tenants_of(1, 4).now().all_bytes, 4 * BATCH_BYTES);
        drop(waits);
    }

    #[tokio::test]
    async fn a_giant_waits_until_nothing_else_is_in_flight_and_then_has_everything() {
        let limits = Limits::new(2);
        let first = limits.batch(Priority::Regular).await;
        let giant = limits.giant(Priority::Regular);
        tokio::pin!(giant);
        assert!(giant.as_mut().now_or_never().is_none());
        assert!(at_once(&limits).is_none(), "a batch queues behind the giant");
        drop(first);
        let giant = giant.await;
        assert_eq!(giant.limit(), Limit::Tenant(MAX_TENANT_BYTES));
        assert!(at_once(&limits).is_none());
        drop(giant);
        assert!(at_once(&limits).is_some());
    }

    #[tokio::test]
    async fn an_urgent_batch_goes_before_all_regular_ones_that_wait() {
        let limits = Limits::new(1);
        let held = limits.batch(Priority::Regular).await;
        let mut regular = ask(&limits, Priority::Regular);
        let giant = limits.giant(Priority::Regular);
        tokio::pin!(giant);
        assert!(giant.as_mut().now_or_never().is_none());
        let urgent = ask(&limits, Priority::Urgent);
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
        let mut held = Some(limits.batch(Priority::Urgent).await);
        let mut regular = ask(&limits, Priority::Regular);
        let mut overtakes = 0;
        loop {
            let urgent = ask(&limits, Priority::Urgent);
            drop(held.take());
            if regular.as_mut().now_or_never().is_some() {
                break;
            }
            held = Some(urgent.now_or_never().unwrap());
            overtakes += 1;
        }
        assert_eq!(overtakes, MAX_OVERTAKES);
    }

    /// Asks for a batch of a job that may have this many in flight.
    fn of(
        limits: &Arc<Limits>,
        name: &str,
        most: Most,
        priority: Priority,
    ) -> BoxFuture<'static, BatchPermit> {
        let job = Some(JobShare { name: JobName::parse(name).unwrap(), most });
        let limits = Arc::clone(limits);
        let mut asked =
            async move { limits.acquire(Ask { priority, room: Room::Batch, job }).await }.boxed();
        match asked.as_mut().now_or_never() {
            Some(permit) => async move { permit }.boxed(),
            None => asked,
        }
    }

    #[tokio::test]
    async fn a_job_has_no_more_in_flight_than_it_may_whatever_the_priority() {
        let limits = Limits::new(4);
        let of = |name, priority| of(&limits, name, Most { regular: 2, all: 2 }, priority);
        let regular = of("a", Priority::Regular).await;
        let urgent = of("a", Priority::Urgent).await;
        let mut waits = of("a", Priority::Urgent);
        assert!(waits.as_mut().now_or_never().is_none());
        let other = of("b", Priority::Regular).now_or_never();
        assert!(other.is_some(), "another job does not wait for it");
        drop(regular);
        assert!(waits.now_or_never().is_some());
        drop((urgent, other));
        assert!(limits.queue().jobs.is_empty());
        assert_eq!(limits.queue().free(), 4);
    }

    #[tokio::test]
    async fn hazard_40_the_permit_of_changes_is_kept_from_regular_batches_and_giants() {
        let limits = Limits::new(3);
        limits.set(Shares::of_worker(3));
        let held = [limits.batch(Priority::Regular).await, limits.batch(Priority::Regular).await];
        assert!(at_once(&limits).is_none(), "one permit is for changes");
        let mut giant = Box::pin(limits.giant(Priority::Urgent));
        assert!(giant.as_mut().now_or_never().is_none());
        for _ in 0..=MAX_OVERTAKES {
            let change = limits.batch(Priority::Urgent).now_or_never();
            assert!(change.is_some(), "a change passes a giant that waits");
        }
        drop(held);
        let giant = giant.now_or_never().unwrap();
        let change = limits.batch(Priority::Urgent).now_or_never();
        assert!(change.is_some(), "and goes on beside it");
        assert!(at_once(&limits).is_none());
        drop((giant, change));
        assert_eq!(limits.queue().free(), 3);
    }

    #[tokio::test]
    async fn a_giant_gets_its_permits_while_changes_go_on_without_end() {
        let limits = Limits::new(4);
        limits.set(Shares::of_worker(4));
        let mut in_flight =
            vec![limits.batch(Priority::Urgent).await, limits.batch(Priority::Urgent).await];
        let mut giant = Box::pin(limits.giant(Priority::Regular));
        assert!(giant.as_mut().now_or_never().is_none());
        for _ in 0..=MAX_OVERTAKES + 2 {
            let mut next = Box::pin(limits.batch(Priority::Urgent));
            let at_once = next.as_mut().now_or_never();
            in_flight.remove(0);
            in_flight.extend(at_once.or_else(|| next.now_or_never()));
            if giant.as_mut().now_or_never().is_some() {
                assert_eq!(in_flight.len(), 1, "the permit of changes stays theirs");
                return;
            }
        }
        panic!("the giant starves");
    }

    #[test]
    fn hazard_40_no_job_holds_the_last_permit_unless_its_file_says_so() {
        let shares = |shares: Shares, said: Option<usize>| {
            let most = shares.most(said.map(|said| said.try_into().unwrap()));
            (shares.changes, most.regular, most.all)
        };
        let worker: Vec<_> = (1..=6).map(|n| shares(Shares::of_worker(n), None)).collect();
        let expected = [(0, 1, 1), (0, 1, 1), (1, 1, 2), (1, 2, 3), (1, 3, 4), (1, 4, 5)];
        assert_eq!(worker, expected);
        let command: Vec<_> = (1..=4).map(|n| shares(Shares::of_command(n), None)).collect();
        assert_eq!(command, [(0, 1, 1), (0, 1, 1), (0, 2, 2), (0, 3, 3)]);
        let said: Vec<_> = (1..=4).map(|n| shares(Shares::of_worker(n), Some(100))).collect();
        assert_eq!(said, [(0, 1, 1), (0, 2, 2), (1, 2, 2), (1, 3, 3)]);
        assert_eq!(shares(Shares::of_worker(4), Some(1)), (1, 1, 1));
    }

    #[tokio::test]
    async fn a_job_that_holds_all_it_may_is_told_once_until_it_lets_go() {
        let limits = Limits::new(4);
        let ask = || of(&limits, "a", Most { regular: 1, all: 3 }, Priority::Regular);
        let told = |seconds| limits.look(Duration::from_secs(seconds)).len();
        let held = ask().await;
        assert_eq!([told(0), told(9), told(10), told(11), told(99)], [0, 0, 1, 0, 0]);
        drop(held);
        assert_eq!(told(100), 0);
        let held = ask().await;
        assert_eq!([told(101), told(110), told(111), told(112)], [0, 0, 1, 0]);
        drop(held);
        let held = ask().await;
        assert_eq!(told(120), 0);
        limits.look_away();
        assert_eq!([told(131), told(140), told(141)], [0, 0, 1], "a server was down meanwhile");
        let job = JobName::parse("a").unwrap();
        assert_eq!(limits.held(), BTreeMap::from([(job, 1)]));
        drop(held);
    }

    #[tokio::test]
    async fn whoever_goes_away_while_waiting_or_just_when_its_turn_comes_loses_no_permit() {
        let limits = Limits::new(2);
        let held = [limits.batch(Priority::Regular).await, limits.batch(Priority::Regular).await];
        let gone_while_waiting = ask(&limits, Priority::Urgent);
        let gone_with_its_permit = ask(&limits, Priority::Urgent);
        let gone_at_last = ask(&limits, Priority::Regular);
        drop(gone_while_waiting);
        drop(held);
        drop(gone_with_its_permit);
        drop(gone_at_last);
        let both = (at_once(&limits), at_once(&limits));
        assert!(both.0.is_some() && both.1.is_some());
        assert!(at_once(&limits).is_none());

        drop(both.0);
        let mut giant = Box::pin(limits.giant(Priority::Regular));
        assert!(giant.as_mut().now_or_never().is_none());
        let behind = ask(&limits, Priority::Regular);
        drop(giant);
        assert!(behind.now_or_never().is_some(), "nobody stands in the way any more");
    }
}
