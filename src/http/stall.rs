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
        loop {
            if !self.is_blocked.load(Ordering::Relaxed) {
                self.blocked.notified().await;
            }
            let before = self.sent.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_noticed() {
        let (stream, _client) = duplex(8);
        let (mut watched, sending) = Watched::new(stream);
        let send = watched.write_all(b"more than fits into it");
        let ended = futures::future::select(Box::pin(send), Box::pin(sending.stalls(LIMIT))).await;
        assert!(matches!(ended, futures::future::Either::Right(_)), "it has stalled");
    }

    #[tokio::test]
    async fn a_client_that_takes_a_little_at_a_time_is_waited_for() {
        let (stream, mut client) = duplex(8);
        let (mut watched, sending) = Watched::new(stream);
        let read = async {
            let mut taken = [0; 4];
            for _ in 0..8 {
                tokio::time::sleep(LIMIT / 3).await;
                client.read_exact(&mut taken).await.unwrap();
            }
        };
        let work = async { tokio::join!(read, watched.write_all(&[0; 32])) };
        tokio::select! {
            biased;
            ((), sent) = work => sent.unwrap(),
            () = sending.stalls(LIMIT) => panic!("it takes something all the time"),
        }
        assert!(sending.stalls(LIMIT).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_client_that_is_sent_nothing_has_not_stalled() {
        let (stream, _client) = duplex(8);
        let (_watched, sending) = Watched::new(stream);
        let stalls = tokio::time::timeout(LIMIT * 3, sending.stalls(LIMIT)).await;
        assert!(stalls.is_err());
    }
}
