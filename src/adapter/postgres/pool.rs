//! The connections to one database: a bound on all that are open, and those of them that are idle.
//!
//! Two clients share the bound, and neither can use the other's connections. Where a new connection would be
//! one too many, an idle one of the other client is closed first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// An idle connection is closed after this time.
const LONGEST_IDLE: Duration = Duration::from_mins(10);
/// A connection is not used any more after this time, so that the server can free what it has cached.
const LONGEST_LIFE: Duration = Duration::from_mins(30);

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// sqlx's.
    Sqlx,
    /// Our own client's.
    Own,
}

/// A connection of one of the clients.
pub(super) trait Pooled {
    fn kind(&self) -> Kind;
}

/// The connections: at any moment those in use and those idle are together at most as many as allowed.
pub(super) struct Pool<L> {
    /// One for each connection that may be in use, or being made.
    permits: Arc<Semaphore>,
    state: Mutex<State<L>>,
    /// Notified when idle connections are to be closed.
    shrunk: Notify,
}

struct State<L> {
    /// How many connections are allowed.
    most: u32,
    /// How many places must not be used again, since fewer connections are allowed than were.
    surplus: u32,
    /// How many places are taken, those among them that were given away.
    in_use: u32,
    /// How many places were given away.
    given_away: u32,
    /// The one that was used last comes last.
    idle: Vec<Idle<L>>,
    is_closed: bool,
}

struct Idle<L> {
    link: L,
    made_at: Instant,
    since: Instant,
}

/// The right to have one connection open. It ends when the place is dropped; by then the connection is closed or
/// was given back.
pub(super) struct Place<L> {
    pool: Arc<Pool<L>>,
    made_at: Instant,
    /// `None` once the place is no longer the holder's.
    permit: Option<OwnedSemaphorePermit>,
}

/// How to get a connection for a place.
pub(super) enum Found<L> {
    /// This one was idle.
    Idle(L),
    /// A new one may be made, after this one was closed.
    Room(Option<L>),
}

impl<L: Pooled> Pool<L> {
    pub(super) fn new(most: u32) -> Self {
        let permits = Semaphore::new(whole(most));
        let (idle, permits) = (Vec::new(), Arc::new(permits));
        let state = State { most, surplus: 0, in_use: 0, given_away: 0, idle, is_closed: false };
        Self { permits, state: Mutex::new(state), shrunk: Notify::new() }
    }

    /// From now on at most this many connections are allowed. Those in use are closed when their users give them back.
    pub(super) fn set_most(&self, most: u32) {
        let mut state = self.state();
        let (more, fewer) = (most.saturating_sub(state.most), state.most.saturating_sub(most));
        state.most = most;
        let kept = state.surplus.min(more);
        state.surplus -= kept;
        self.permits.add_permits(whole(more - kept));
        let unused = self.permits.forget_permits(whole(fewer));
        state.surplus += fewer - u32::try_from(unused).unwrap_or(u32::MAX).min(fewer);
        drop(state);
        self.shrunk.notify_one();
    }

    /// How many connections are allowed.
    pub(super) fn most(&self) -> u32 {
        self.state().most
    }

    /// Ends after the limit was lowered.
    pub(super) async fn shrunk(&self) {
        self.shrunk.notified().await;
    }

    /// Waits for a place; `None` once the pool is closed.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Place<L>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        self.state().in_use += 1;
        Some(Place { pool: Arc::clone(self), made_at: now(), permit: Some(permit) })
    }

    /// Takes back a place that was given away.
    pub(super) fn take_back(&self) {
        let mut state = self.state();
        state.given_away -= 1;
        state.in_use -= 1;
        if !state.is_surplus() {
            self.permits.add_permits(1);
        }
    }

    /// Takes out the connections that have been idle or open for too long, and those that are too many.
    pub(super) fn expired(&self, now: Instant) -> Vec<L> {
        let mut state = self.state();
        let too_many = state.open().saturating_sub(u64::from(state.most));
        let too_many = usize::try_from(too_many).unwrap_or(usize::MAX).min(state.idle.len());
        let mut expired: Vec<L> = state.idle.drain(..too_many).map(|idle| idle.link).collect();
        let is_old = |idle: &mut Idle<L>| {
            now - idle.since >= LONGEST_IDLE || now - idle.made_at >= LONGEST_LIFE
        };
        expired.extend(state.idle.extract_if(.., is_old).map(|idle| idle.link));
        expired
    }

    /// Gives out no more places, waits until those in use are given back, but not longer than `patience`, and
    /// takes out the idle connections. A connection that comes back later is closed.
    pub(super) async fn close(&self, patience: Duration) -> Vec<L> {
        let given_out = {
            let state = self.state();
            state.most.saturating_sub(state.given_away)
        };
        drop(timeout(patience, self.permits.acquire_many(given_out)).await);
        self.permits.close();
        let mut state = self.state();
        state.is_closed = true;
        state.idle.drain(..).map(|idle| idle.link).collect()
    }

    /// How many are idle, and how many are in use.
    pub(super) fn counts(&self) -> (u32, u32) {
        let state = self.state();
        (u32::try_from(state.idle.len()).unwrap_or(u32::MAX), state.in_use)
    }

    fn state(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L> State<L> {
    /// How many connections are open, or being made.
    fn open(&self) -> u64 {
        u64::from(self.in_use) + self.idle.len() as u64
    }

    /// Whether the place that is left just now must not be used again.
    fn is_surplus(&mut self) -> bool {
        let is_surplus = self.surplus > 0;
        self.surplus -= u32::from(is_surplus);
        is_surplus
    }
}

impl<L: Pooled> Place<L> {
    /// The connection of this kind that was used last, or room for a new one.
    pub(super) fn find(&mut self, kind: Kind) -> Found<L> {
        let mut state = self.pool.state();
        if let Some(last) = state.idle.iter().rposition(|idle| idle.link.kind() == kind) {
            let Idle { link, made_at, .. } = state.idle.remove(last);
            self.made_at = made_at;
            return Found::Idle(link);
        }
        drop(state);
        Found::Room(self.room())
    }

    /// Makes room for a new connection, whether or not others are idle. If this returns one, the caller closes it before
    /// it opens the new one.
    pub(super) fn room(&mut self) -> Option<L> {
        self.made_at = now();
        let mut state = self.pool.state();
        let is_full = state.open() > u64::from(state.most) && !state.idle.is_empty();
        is_full.then(|| state.idle.remove(0).link)
    }

    /// Keeps a connection for the next user; returns it if the pool has closed, or if the connection is one too many.
    pub(super) fn give_back(mut self, link: L) -> Option<L> {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.state();
        if state.is_closed || state.surplus > 0 {
            return Some(link);
        }
        // Both at once, so that the connection is never counted twice.
        state.in_use -= 1;
        state.idle.push(Idle { link, made_at: self.made_at, since: now() });
        drop(state);
        self.permit = None;
        None
    }

    /// Leaves the place to a connection outside of the pool, until [`Pool::take_back`].
    pub(super) fn give_away(mut self) {
        self.pool.state().given_away += 1;
        if let Some(permit) = self.permit.take() {
            permit.forget();
        }
    }
}

impl<L> Drop for Place<L> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_use -= 1;
        if state.is_surplus() {
            permit.forget();
        }
    }
}

fn whole(places: u32) -> usize {
    usize::try_from(places).unwrap_or(usize::MAX)
}

#[expect(clippy::disallowed_methods, reason = "only compared with another such moment")]
pub(super) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Link(Kind, u32);

    impl Pooled for Link {
        fn kind(&self) -> Kind {
            self.0
        }
    }

    fn room(found: Found<Link>) -> Option<Link> {
        match found {
            Found::Room(first) => first,
            Found::Idle(link) => panic!("{link:?}"),
        }
    }

    fn idle(found: Found<Link>) -> Link {
        match found {
            Found::Idle(link) => link,
            Found::Room(first) => panic!("{first:?}"),
        }
    }

    #[tokio::test]
    async fn one_place_goes_to_and_fro_between_the_clients() {
        let pool = Arc::new(Pool::new(1));
        let mut place = pool.place().await.unwrap();
        assert_eq!(room(place.find(Kind::Own)), None);
        assert_eq!(place.give_back(Link(Kind::Own, 1)), None);
        let mut place = pool.place().await.unwrap();
        assert_eq!(room(place.find(Kind::Sqlx)), Some(Link(Kind::Own, 1)));
        assert!(timeout(Duration::from_millis(5), pool.place()).await.is_err());
        assert_eq!(place.give_back(Link(Kind::Sqlx, 2)), None);
        let mut place = pool.place().await.unwrap();
        assert_eq!(idle(place.find(Kind::Sqlx)), Link(Kind::Sqlx, 2));
        drop(place);
        assert_eq!(pool.counts(), (0, 0));
    }

    #[tokio::test]
    async fn the_oldest_idle_connection_is_closed_and_the_newest_one_is_used() {
        let pool = Arc::new(Pool::new(3));
        let mut places = Vec::new();
        for number in 0..3 {
            let mut place = pool.place().await.unwrap();
            assert_eq!(room(place.find(Kind::Own)), None);
            places.push((place, number));
        }
        for (place, number) in places {
            place.give_back(Link(Kind::Own, number));
        }
        let mut newest = pool.place().await.unwrap();
        assert_eq!(idle(newest.find(Kind::Own)), Link(Kind::Own, 2));
        let mut other = pool.place().await.unwrap();
        assert_eq!(room(other.find(Kind::Sqlx)), Some(Link(Kind::Own, 0)));
        let mut last = pool.place().await.unwrap();
        assert_eq!(idle(last.find(Kind::Own)), Link(Kind::Own, 1));
        assert_eq!(pool.counts(), (0, 3));
    }

    #[tokio::test]
    async fn a_place_that_is_given_away_counts_until_it_is_taken_back() {
        let pool = Arc::new(Pool::<Link>::new(2));
        pool.place().await.unwrap().give_away();
        let mut place = pool.place().await.unwrap();
        assert_eq!(room(place.find(Kind::Own)), None);
        place.give_back(Link(Kind::Own, 1));
        let mut place = pool.place().await.unwrap();
        assert_eq!(room(place.find(Kind::Sqlx)), Some(Link(Kind::Own, 1)));
        pool.take_back();
        let mut other = pool.place().await.unwrap();
        assert_eq!(room(other.find(Kind::Own)), None);
        assert_eq!(pool.counts(), (0, 2));
    }

    #[tokio::test]
    async fn a_connection_is_closed_when_it_was_idle_or_open_for_too_long() {
        const MOMENT: Duration = Duration::from_secs(1);
        let pool = Arc::new(Pool::new(2));
        let mut place = pool.place().await.unwrap();
        room(place.find(Kind::Own));
        place.give_back(Link(Kind::Own, 1));
        assert_eq!(pool.expired(now() + LONGEST_IDLE / 2), []);
        assert_eq!(pool.expired(now() + LONGEST_IDLE), [Link(Kind::Own, 1)]);
        assert_eq!(pool.counts(), (0, 0));

        let mut place = pool.place().await.unwrap();
        room(place.find(Kind::Own));
        place.made_at = now().checked_sub(LONGEST_LIFE).unwrap() + MOMENT;
        place.give_back(Link(Kind::Own, 2));
        // Its use changes nothing.
        let mut place = pool.place().await.unwrap();
        let link = idle(place.find(Kind::Own));
        place.give_back(link);
        assert_eq!(pool.expired(now()), []);
        assert_eq!(pool.expired(now() + MOMENT), [Link(Kind::Own, 2)]);
    }

    #[tokio::test]
    async fn a_closed_pool_gives_out_nothing_and_keeps_nothing() {
        let pool = Arc::new(Pool::new(2));
        let mut used = pool.place().await.unwrap();
        let mut place = pool.place().await.unwrap();
        room(place.find(Kind::Own));
        room(used.find(Kind::Sqlx));
        place.give_back(Link(Kind::Own, 1));
        assert_eq!(pool.close(Duration::from_millis(5)).await, [Link(Kind::Own, 1)]);
        assert!(pool.place().await.is_none());
        assert_eq!(used.give_back(Link(Kind::Sqlx, 2)), Some(Link(Kind::Sqlx, 2)));
        assert_eq!(pool.counts(), (0, 0));
    }

    #[tokio::test]
    async fn a_lower_limit_closes_what_is_idle_at_once_and_the_rest_when_it_is_given_back() {
        let pool = Arc::new(Pool::new(4));
        let mut places = Vec::new();
        for number in 0..4 {
            let mut place = pool.place().await.unwrap();
            room(place.find(Kind::Own));
            places.push((place, Link(Kind::Own, number)));
        }
        let (place, link) = places.pop().unwrap();
        assert_eq!(place.give_back(link), None);
        pool.set_most(1);
        assert_eq!(pool.expired(now()), [Link(Kind::Own, 3)]);
        let (place, link) = places.pop().unwrap();
        assert_eq!(place.give_back(link), Some(Link(Kind::Own, 2)));
        pool.set_most(2);
        let (place, link) = places.pop().unwrap();
        assert_eq!(place.give_back(link), None);
        assert_eq!(pool.counts(), (1, 1));
        let second = pool.place().await.unwrap();
        assert!(timeout(Duration::from_millis(5), pool.place()).await.is_err());
        drop(second);

        pool.set_most(0);
        assert_eq!(pool.expired(now()), [Link(Kind::Own, 1)]);
        drop(places);
        assert_eq!(pool.counts(), (0, 0));
        assert!(timeout(Duration::from_millis(5), pool.place()).await.is_err());
        pool.set_most(1);
        drop(pool.place().await.unwrap());
        assert!(pool.place().await.is_some(), "a place that was left can be used again");
    }

    /// Whatever the clients do, the connections that are open are never more than allowed.
    #[tokio::test]
    async fn the_bound_holds_whatever_is_done() {
        const MOST: u32 = 3;
        let pool = Arc::new(Pool::new(MOST));
        let mut held: Vec<(Place<Link>, Link)> = Vec::new();
        let (mut number, mut seed) = (0, 7_u64);
        let mut given_away = 0;
        for _ in 0..20_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let dice = (seed >> 33) as usize;
            let kind = if dice & 64 == 0 { Kind::Own } else { Kind::Sqlx };
            match dice % 8 {
                0..4 if held.len() + given_away < MOST as usize => {
                    let mut place = pool.place().await.unwrap();
                    let found = match dice % 8 {
                        // Opened ahead.
                        0 => Found::Room(place.room()),
                        _ => place.find(kind),
                    };
                    let link = match found {
                        Found::Idle(link) => link,
                        Found::Room(_closed) => {
                            number += 1;
                            Link(kind, number)
                        }
                    };
                    assert_eq!(link.kind(), kind);
                    held.push((place, link));
                }
                4 | 5 if !held.is_empty() => {
                    let (place, link) = held.swap_remove(dice / 8 % held.len());
                    assert_eq!(place.give_back(link), None);
                }
                6 if !held.is_empty() => drop(held.swap_remove(dice / 8 % held.len())),
                7 if given_away > 0 => {
                    pool.take_back();
                    given_away -= 1;
                }
                7 if held.len() > 1 => {
                    held.swap_remove(0).0.give_away();
                    given_away += 1;
                }
                _ => {}
            }
            let (idle, in_use) = pool.counts();
            assert_eq!(in_use as usize, held.len() + given_away);
            assert!(idle + in_use <= MOST, "{idle} idle, {in_use} in use");
        }
        assert!(number > 100);
    }
}
