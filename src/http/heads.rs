//! Tracks the connections that wait for a request's head, and since when. A new connection may take
//! the place of one of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A connection keeps its place for at least this long while it waits for a head. So a client that
/// sends its request at once gets its answer, however many other clients connect.
const CHANCE: Duration = Duration::from_millis(50);

/// The connections that wait for a head and may lose their place.
#[derive(Debug, Default)]
pub(super) struct Heads {
    awaited: Mutex<Awaited>,
    /// Signals that one more connection waits for its head.
    one_more: Notify,
}

#[derive(Debug, Default)]
struct Awaited {
    /// The next number to hand out: the connection with the lowest number has waited longest.
    next: u64,
    /// The waiting connections by number, each with the token that closes it.
    closers: BTreeMap<u64, CancellationToken>,
}

impl Heads {
    /// Whether any connection waits for its head.
    pub(super) fn are_awaited(&self) -> bool {
        !self.awaited().closers.is_empty()
    }

    /// Waits until one more connection waits for its head.
    pub(super) async fn one_more(&self) {
        self.one_more.notified().await;
    }

    /// Closes the connection that has waited longest.
    pub(super) fn close_oldest(&self) {
        if let Some((_number, closer)) = self.awaited().closers.pop_first() {
            closer.cancel();
        }
    }

    /// Closes all waiting connections.
    pub(super) fn close_all(&self) {
        let closers = std::mem::take(&mut self.awaited().closers);
        for closer in closers.into_values() {
            closer.cancel();
        }
    }

    fn wait(&self, closer: &CancellationToken) -> u64 {
        let mut awaited = self.awaited();
        let number = awaited.next;
        awaited.next += 1;
        awaited.closers.insert(number, closer.clone());
        drop(awaited);
        self.one_more.notify_one();
        number
    }

    fn waits_no_longer(&self, number: u64) {
        self.awaited().closers.remove(&number);
    }

    fn awaited(&self) -> MutexGuard<'_, Awaited> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    heads: Arc<Heads>,
    closer: CancellationToken,
    state: Mutex<State>,
    /// Signals that the state has changed.
    turned: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The connection keeps its place for a moment: its next head, or its last answer, may be on
    /// the way.
    Awaits,
    /// Another connection may take its place. The number is its key in [`Awaited::closers`].
    MakesRoom(u64),
    /// Its request is being answered. It cannot lose its place.
    HasRequest,
}

impl Place {
    /// The place of a new connection, which waits for its first head.
    pub(super) fn new(heads: Arc<Heads>) -> Self {
        let (closer, state) = (CancellationToken::new(), Mutex::new(State::Awaits));
        Self { heads, closer, state, turned: Notify::new() }
    }

    /// The head has arrived.
    pub(super) fn has_request(&self) {
        self.turn(State::HasRequest);
    }

    /// The answer is ready; the client may send another request, or may never read the answer.
    pub(super) fn awaits_head(&self) {
        self.turn(State::Awaits);
    }

    /// Ends when another connection takes this place. That cannot happen before it is polled.
    pub(super) async fn makes_room(&self) {
        loop {
            let awaits = *self.state() == State::Awaits;
            tokio::select! {
                biased;
                () = self.closer.cancelled() => return,
                () = self.turned.notified() => {}
                () = tokio::time::sleep(CHANCE), if awaits => self.had_its_chance(),
            }
        }
    }

    fn had_its_chance(&self) {
        let mut state = self.state();
        if *state == State::Awaits {
            *state = State::MakesRoom(self.heads.wait(&self.closer));
        }
    }

    fn turn(&self, into: State) {
        let before = std::mem::replace(&mut *self.state(), into);
        if let State::MakesRoom(number) = before {
            self.heads.waits_no_longer(number);
        }
        self.turned.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.has_request();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closed(place: &Place) -> bool {
        place.closer.is_cancelled()
    }

    #[test]
    fn the_connection_that_awaits_a_head_longest_makes_room() {
        let heads = Arc::new(Heads::default());
        let [busy, answered, old, new] = [(); 4].map(|()| Place::new(Arc::clone(&heads)));
        busy.has_request();
        answered.has_request();
        answered.awaits_head();
        heads.close_oldest();
        for place in [&busy, &old, &new, &answered] {
            assert!(!is_closed(place), "each has its chance");
            place.had_its_chance();
        }
        for place in [&old, &new, &answered] {
            assert!(!is_closed(place));
            heads.close_oldest();
            assert!(is_closed(place));
        }
        assert!(!heads.are_awaited());
        heads.close_oldest();
        heads.close_all();
        assert!(!is_closed(&busy));
        busy.awaits_head();
        busy.had_its_chance();
        heads.close_all();
        assert!(is_closed(&busy));
    }

    #[test]
    fn a_connection_that_has_ended_is_not_closed_in_place_of_another() {
        let heads = Arc::new(Heads::default());
        let ended = Place::new(Arc::clone(&heads));
        let lives = Place::new(Arc::clone(&heads));
        ended.had_its_chance();
        lives.had_its_chance();
        drop(ended);
        heads.close_oldest();
        assert!(is_closed(&lives));
        assert!(!heads.are_awaited());
    }
}
