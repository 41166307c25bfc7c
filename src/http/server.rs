//! Connections: how many, how slow, and how they end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use futures::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::heads::{Heads, Place};
use crate::observe::event;

/// A worker has few clients: probes, a scraper, people.
const MAX_CONNECTIONS: usize = 256;
/// So many a server takes, however few files the process may open.
const MIN_CONNECTIONS: usize = 8;
/// A client that takes longer to send a request's head, or sends nothing more, is hung up on.
const MAX_HEAD_TIME: Duration = Duration::from_secs(5);
/// How long answers that are on their way may take once the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// What a failed accept waits for: something, such as a file descriptor, to become free.
const PAUSE: Duration = Duration::from_millis(100);
/// Accepting works again once it has not failed for so long: a line in the log for each change is
/// only few lines if changes are rare.
const SETTLED: Duration = Duration::from_secs(10);

/// The routes of a server. They may be replaced while it serves: the next request, on whichever
/// connection, meets the new ones.
#[derive(Clone, Debug)]
pub struct Routes(watch::Sender<Router>);

impl Routes {
    /// These from now on.
    pub fn replace(&self, router: Router) {
        drop(self.0.send_replace(router));
    }

    fn current(&self) -> Router {
        self.0.borrow().clone()
    }
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        Self(watch::Sender::new(router))
    }
}

/// Serves until it is told to stop; then requests under way are answered, within a few seconds.
///
/// Where as many clients are connected as may be, a new one takes the place of the one whose next
/// request has been awaited longest: clients that send half a head keep nobody out.
pub async fn serve(listener: TcpListener, routes: impl Into<Routes>, shutdown: CancellationToken) {
    let (routes, heads, most) = (routes.into(), Arc::new(Heads::default()), most_connections());
    let mut acceptor = Acceptor { listener, settles: None };
    let mut connections = JoinSet::new();
    loop {
        // One may be on its way out.
        let (is_full, has_room) = (connections.len() >= most, connections.len() <= most);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
            () = heads.one_more(), if is_full => {}
            stream = acceptor.accept(&heads), if has_room && (!is_full || heads.are_awaited()) => {
                if is_full {
                    heads.close_oldest();
                }
                let place = Place::new(Arc::clone(&heads));
                connections.spawn(connection(stream, routes.clone(), place, shutdown.clone()));
            }
        }
    }
    drop(acceptor);
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        connections.shutdown().await;
    }
}

/// Half of the files that the process may open at most: the other half is for its servers.
fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let half = usize::try_from(files / 2).unwrap_or(usize::MAX);
    half.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// Takes connections from the listener's queue.
struct Acceptor {
    listener: TcpListener,
    /// Since a failure that was told: elapses once it counts as over.
    settles: Option<Pin<Box<Sleep>>>,
}

impl Acceptor {
    async fn accept(&mut self, heads: &Heads) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _peer)) => {
                    self.worked();
                    return stream;
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    self.failed(&error);
                    heads.close_all();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if self.settles.replace(Box::pin(tokio::time::sleep(SETTLED))).is_none() {
            event::AcceptFailed { message: &error.to_string() }.log();
        }
    }

    fn worked(&mut self) {
        if self.settles.take_if(|settles| settles.now_or_never().is_some()).is_some() {
            event::AcceptBack.log();
        }
    }
}

/// The connection was gone before it was taken: nobody's concern.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(stream: TcpStream, routes: Routes, place: Place, shutdown: CancellationToken) {
    let place = Arc::new(place);
    let shared = Arc::clone(&place);
    let service = service_fn(move |request: Request<Incoming>| {
        let (current, place) = (routes.current(), Arc::clone(&shared));
        async move {
            place.has_request();
            let answer = TowerToHyperService::new(current).call(request).await;
            place.awaits_head();
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        () = place.makes_room() => return,
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        event::ConnectionBroken { message: &error.to_string() }.log();
    }
}
