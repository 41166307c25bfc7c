//! Which connections await a request's head, and since when: those make room for others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The connections that await a head.
#[derive(Debug, Default)]
pub(super) struct Heads {
    awaited: Mutex<Awaited>,
    /// Another connection awaits its head.
    one_more: Notify,
}

#[derive(Debug, Default)]
struct Awaited {
    /// The number of the next to wait: the lowest has waited longest.
    next: u64,
    /// Those that wait, with what closes them.
    closers: BTreeMap<u64, CancellationToken>,
}

impl Heads {
    /// Whether any connection awaits its head.
    pub(super) fn are_awaited(&self) -> bool {
        !self.awaited().closers.is_empty()
    }

    /// Waits until one more connection does.
    pub(super) async fn one_more(&self) {
        self.one_more.notified().await;
    }

    /// Closes the connection that has waited longest.
    pub(super) fn close_oldest(&self) {
        if let Some((_number, closer)) = self.awaited().closers.pop_first() {
            closer.cancel();
        }
    }

    /// Closes all that wait.
    pub(super) fn close_all(&self) {
        let closers = std::mem::take(&mut self.awaited().closers);
        closers.into_values().for_each(|closer| closer.cancel());
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

/// The place of one connection; it is given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    heads: Arc<Heads>,
    closer: CancellationToken,
    /// Its number while it awaits a head.
    number: Mutex<Option<u64>>,
}

impl Place {
    /// The place of a new connection, which awaits its first head.
    pub(super) fn new(heads: Arc<Heads>) -> Self {
        let place =
            Self { heads, closer: CancellationToken::new(), number: Mutex::new(None) };
        place.awaits_head();
        place
    }

    /// The connection's request is being answered: nobody takes its place.
    pub(super) fn has_request(&self) {
        if let Some(number) = self.number().take() {
            self.heads.waits_no_longer(number);
        }
    }

    /// The answer is made; its client may send another request, or read the answer never.
    pub(super) fn awaits_head(&self) {
        *self.number() = Some(self.heads.wait(&self.closer));
    }

    /// Ends when another connection takes the place.
    pub(super) async fn closed(&self) {
        self.closer.cancelled().await;
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
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
        heads.close_all();
        assert!(is_closed(&busy));
    }

    #[test]
    fn a_connection_that_has_ended_is_not_closed_in_place_of_another() {
        let heads = Arc::new(Heads::default());
        let ended = Place::new(Arc::clone(&heads));
        let lives = Place::new(Arc::clone(&heads));
        drop(ended);
        heads.close_oldest();
        assert!(is_closed(&lives));
        assert!(!heads.are_awaited());
    }
}
