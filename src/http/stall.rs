//! Notices a client that takes nothing of what it is sent. Such a client would hold its connection, and
//! its place, for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// A connection that knows whether its client takes what it is sent.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    sending: Arc<Sending>,
}

/// How the sending of one connection goes.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Bytes that the system has taken.
    sent: AtomicU64,
    /// Whether the system takes no more, because the client has not taken what it has.
    is_blocked: AtomicBool,
    /// Signals that it is blocked.
    blocked: Notify,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S) -> (Self, Arc<Sending>) {
        let sending = Arc::new(Sending::default());
        (Self { stream, sending: Arc::clone(&sending) }, sending)
    }
}

impl Sending {
    /// Ends when the client has taken nothing for this long, though there was something to take.
    pub(super) async fn stalls(&self, limit: Duration) {
        self.stalls_during(|| tokio::time::sleep(limit)).await;
    }

    /// The same, with something else to wait for in place of a time.
    async fn stalls_during<W: Future>(&self, mut wait: impl FnMut() -> W) {
        loop {
            if !self.is_blocked.load(Ordering::Relaxed) {
                self.blocked.notified().await;
            }
            let before = self.sent.load(Ordering::Relaxed);
            wait().await;
            let same = self.sent.load(Ordering::Relaxed) == before;
            if same && self.is_blocked.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let is_blocked = written.is_pending();
        if let Poll::Ready(Ok(bytes)) = &written {
            self.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        if is_blocked && !self.is_blocked.swap(true, Ordering::Relaxed) {
            self.blocked.notify_one();
        } else if !is_blocked {
            self.is_blocked.store(false, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sending.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.sending.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{Either, select};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::Mutex;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_noticed() {
        let (stream, _client) = duplex(8);
        let (mut watched, sending) = Watched::new(stream);
        let send = watched.write_all(b"more than fits into it");
        let ended = select(Box::pin(send), Box::pin(sending.stalls_during(yield_now))).await;
        assert!(matches!(ended, Either::Right(_)), "it has stalled");
    }

    #[tokio::test]
    async fn a_client_that_takes_a_little_at_a_time_is_waited_for() {
        let (stream, client) = duplex(8);
        let (mut watched, sending) = Watched::new(stream);
        let client = Mutex::new(client);
        let takes_a_little = || async {
            client.lock().await.read_exact(&mut [0; 4]).await.unwrap();
            // Now there is room to send more.
            yield_now().await;
        };
        tokio::select! {
            biased;
            sent = watched.write_all(&[0; 64]) => sent.unwrap(),
            () = sending.stalls_during(takes_a_little) => panic!("it takes something all the time"),
        }
        assert!(sending.stalls_during(yield_now).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_client_that_is_sent_nothing_has_not_stalled() {
        let (stream, _client) = duplex(8);
        let (_watched, sending) = Watched::new(stream);
        assert!(sending.stalls_during(yield_now).now_or_never().is_none());
    }
}
