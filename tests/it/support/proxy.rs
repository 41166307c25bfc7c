//! A proxy in front of a server, which cuts, stalls and slows connections on request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat_sandbox::{Postgres, Redis};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It passes them on.
    Pass,
    /// It closes all connections, including new ones.
    Refuse,
    /// Connections stay open and no byte passes: a black hole.
    Stall,
    /// It delays each chunk by this long.
    Slow(Duration),
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// Listens on a free port of 127.0.0.1 until dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    server: Mutex<PathBuf>,
    state: watch::Sender<State>,
    accepted: AtomicUsize,
    to_server: AtomicI64,
    to_client: AtomicI64,
    /// What happens once those bytes have passed: connections stall if true, and are cut otherwise.
    stalls: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    mode: Mode,
    /// Connections of an older generation are closed.
    generation: u64,
}

impl Proxy {
    /// A proxy in front of that server.
    pub(crate) async fn postgres(server: &Postgres) -> Self {
        Self::start(server.socket()).await
    }

    /// A proxy in front of that server.
    pub(crate) async fn redis(server: &Redis) -> Self {
        Self::start(server.socket()).await
    }

    async fn start(server: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            state: watch::Sender::new(State { mode: Mode::Pass, generation: 0 }),
            accepted: AtomicUsize::new(0),
            to_server: AtomicI64::new(i64::MAX),
            to_client: AtomicI64::new(i64::MAX),
            stalls: AtomicBool::new(false),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self { address, shared, accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sets the mode of old and new connections.
    pub(crate) fn set(&self, mode: Mode) {
        self.shared.state.send_modify(|state| state.mode = mode);
    }

    /// Closes all connections; new ones go to that server.
    pub(crate) fn lead_to(&self, server: &Redis) {
        *self.shared.server.lock().unwrap() = server.socket();
        self.cut();
    }

    /// Closes all connections; new ones are accepted.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts all connections once, after that many more bytes have passed in that direction.
    pub(crate) fn cut_after(&self, direction: Direction, bytes: u32) {
        self.shared.stalls.store(false, Ordering::SeqCst);
        self.shared.left(direction).store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Stalls after that many more bytes have passed in that direction.
    pub(crate) fn stall_after(&self, direction: Direction, bytes: u32) {
        self.shared.stalls.store(true, Ordering::SeqCst);
        self.shared.left(direction).store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Passes everything on from now on, whatever was set before.
    pub(crate) fn heal(&self) {
        for direction in [Direction::ToServer, Direction::ToClient] {
            self.shared.left(direction).store(i64::MAX, Ordering::SeqCst);
        }
        self.set(Mode::Pass);
    }

    /// How many connections it has accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    fn left(&self, direction: Direction) -> &AtomicI64 {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new(); // aborted together with this task
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(connection(client, Arc::clone(&shared)));
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let state = *shared.state.borrow();
    if state.mode == Mode::Refuse {
        return;
    }
    let server = shared.server.lock().unwrap().clone();
    let Ok(server) = UnixStream::connect(server).await else { return };
    client.set_nodelay(true).unwrap();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let generation = state.generation;
    let closed = async {
        let closes = |now: &State| now.mode == Mode::Refuse || now.generation != generation;
        shared.state.subscribe().wait_for(closes).await.map(|_| ()).ok();
    };
    tokio::select! {
        () = closed => {}
        () = pump(client_read, server_write, Direction::ToServer, &shared) => {}
        () = pump(server_read, client_write, Direction::ToClient, &shared) => {}
    }
}

/// Ends when either direction ends: neither server can use a half-closed connection.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    shared: &Shared,
) {
    let mut state = shared.state.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        let slow = match state.wait_for(|now| now.mode != Mode::Stall).await {
            Ok(now) => now.mode,
            Err(_) => return,
        };
        if let Mode::Slow(delay) = slow {
            tokio::time::sleep(delay).await;
        }
        let bytes = i64::try_from(length).unwrap();
        let left = shared.left(direction).fetch_sub(bytes, Ordering::SeqCst);
        let passed = usize::try_from(left.clamp(0, bytes)).unwrap();
        if to.write_all(&buffer[..passed]).await.is_err() {
            return;
        }
        if left < bytes {
            shared.left(direction).store(i64::MAX, Ordering::SeqCst);
            if !shared.stalls.load(Ordering::SeqCst) {
                shared.cut();
                return;
            }
            shared.state.send_modify(|state| state.mode = Mode::Stall);
            let healed = state.wait_for(|now| now.mode != Mode::Stall).await.is_ok();
            if !healed || to.write_all(&buffer[passed..length]).await.is_err() {
                return;
            }
        }
    }
}
