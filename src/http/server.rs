//! Connections: how many, how slow, and how they end.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// More wait in the listener's queue. A worker has few clients: probes, a scraper, people.
const MAX_CONNECTIONS: usize = 256;
/// Whoever takes longer to send a request's head, or sends nothing more, is hung up on.
const MAX_HEAD_TIME: Duration = Duration::from_secs(15);
/// How long answers that are on their way may take once the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// What a failed accept waits for: something, such as a file handle, to become free.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is told to stop; then requests under way are answered, within a few seconds.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
            stream = accept(&listener), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(connection(stream, router.clone(), shutdown.clone()));
            }
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::warn!("could not accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The connection was gone before it was taken: nobody's concern.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended early: {error}");
    }
}
