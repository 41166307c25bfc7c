//! Accepts connections, and limits their number, their slowness and their lifetime.

use std::io;
use std::net::SocketAddr;
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
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::access::Peer;
use super::heads::{Heads, Place};
use super::stall::Watched;
use crate::observe::event;

/// A worker has few clients: probes, a scraper, people.
const MAX_CONNECTIONS: usize = 256;
/// A server accepts this many connections, however few files the process may open.
const MIN_CONNECTIONS: usize = 8;
/// This many connections may wait to be accepted. More, and the system ignores the handshakes of new
/// ones: a probe among them would try again after one, three and seven seconds.
const MAX_QUEUE: u32 = 1024;
/// The time limit for the head of the next request. After it, the server closes the connection.
const MAX_HEAD_TIME: Duration = Duration::from_secs(5);
/// A client that takes nothing of its answer for this long loses its connection.
const MAX_STALL: Duration = Duration::from_secs(20);
/// The same once the server stops: such a client does not hold that up.
const MAX_STALL_AT_END: Duration = Duration::from_millis(500);
/// How long requests under way may take once the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// The wait after a failed accept, for something, such as a file descriptor, to become free.
const PAUSE: Duration = Duration::from_millis(100);
/// Accepting counts as working again after this time without a failure. So a server that fails now
/// and then does not write a line to the log for each change.
const SETTLED: Duration = Duration::from_secs(10);

/// The routes of a server. They can be replaced while it serves: the next request on any connection
/// gets the new routes.
#[derive(Clone, Debug)]
pub struct Routes(watch::Sender<Router>);

impl Routes {
    /// Serves these routes from now on.
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

/// Listens on the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart does not wait until the system has forgotten the connections of the last process.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(MAX_QUEUE)
}

/// Serves until `shutdown`, and then gives requests under way a few seconds to finish.
///
/// If the number of connections is at its limit, a new connection takes the place of the one that
/// has waited longest for its next request. So clients that send half a head keep nobody out, and
/// neither do streams of events: their answers have no end, and they wait for a request, too.
pub async fn serve(listener: TcpListener, routes: impl Into<Routes>, shutdown: CancellationToken) {
    let (routes, heads, most) = (routes.into(), Arc::new(Heads::default()), most_connections());
    let mut acceptor = Acceptor { listener, settles: None };
    let mut connections = JoinSet::new();
    loop {
        // One more than the limit may be open: the connection that just lost its place.
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

/// At most half of the files that the process may open: the other half is for its connections to
/// Postgres and Redis.
pub(super) fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let half = usize::try_from(files / 2).unwrap_or(usize::MAX);
    half.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// Accepts connections from the listener's queue.
struct Acceptor {
    listener: TcpListener,
    /// Set after a failure that was logged; elapses when the failure counts as over.
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

/// The client went away before its connection was accepted. This needs no attention.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(stream: TcpStream, routes: Routes, place: Place, shutdown: CancellationToken) {
    let place = Arc::new(place);
    let shared = Arc::clone(&place);
    let peer = stream.peer_addr().ok().map(Peer);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let (current, place) = (routes.current(), Arc::clone(&shared));
        async move {
            place.has_request();
            let answer = TowerToHyperService::new(current).call(request).await;
            place.awaits_head();
            answer
        }
    });
    let (stream, sending) = Watched::new(stream);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        // A head that has arrived counts, although the connection's chance is over.
        biased;
        ended = connection.as_mut() => ended,
        () = place.makes_room() => return,
        () = sending.stalls(MAX_STALL) => return,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = connection => ended,
                () = sending.stalls(MAX_STALL_AT_END) => return,
            }
        }
    };
    if let Err(error) = ended {
        event::ConnectionBroken { message: &error.to_string() }.log();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::future::try_join_all;

    use super::*;

    /// More than the system's default, which is 128.
    #[tokio::test]
    async fn hundreds_of_connections_may_wait_to_be_accepted() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = try_join_all((0..300).map(|_| TcpStream::connect(address)));
        let connected = tokio::time::timeout(Duration::from_secs(20), connections).await;
        assert_eq!(connected.unwrap().unwrap().len(), 300);
    }
}
