//! A connection to the server, and how it is replaced when it fails.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use redis::{ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::domain::server_url::{CacheAddress, CacheUrl, Endpoint};
use crate::engine::ports::{CacheError, CacheErrorKind};

use super::connection::Connection;
use super::stream::Place;
use super::tls::{self, Connector};
use super::{CacheSettings, reply};

/// How often a caller finds the primary in vain because Sentinels name one server after another.
const TRIES: usize = 3;

/// What to do about a Sentinel that refuses the login.
pub(super) const SENTINEL_LOGIN: &str = "\
    the user or the password is wrong or missing; hint: those of the Sentinels are parameters of \
    the URL, `sentinel_user` and `sentinel_pass`";

/// One connection to one server.
///
/// It does not use `redis::aio::ConnectionManager`, which keeps a connection on which the server no
/// longer answers: it reconnects only when the connection breaks, and a black-holed server never
/// breaks it.
pub(super) struct Link {
    way: Way,
    /// The address of the server, or the addresses of the Sentinels with their service.
    server: String,
    timeout: Duration,
    current: Mutex<Current>,
    tasks: Tasks,
}

/// The tasks of a link's connections: those that drive connections, and those that watch over
/// primaries. Each ends with its connection.
pub(super) type Tasks = Arc<Mutex<JoinSet<()>>>;

/// How to log in: the same for all servers of one cache.
#[derive(Clone)]
pub(super) struct Access {
    login: RedisConnectionInfo,
    tls: Option<Connector>,
    timeout: Duration,
    to: Kind,
}

/// What kind of server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cache,
    Sentinel,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Sentinel => "Sentinel",
        }
    }
}

/// How to reach the server.
#[derive(Clone)]
enum Way {
    /// It is always the same server.
    One(Box<Door>),
    /// It is the server that others name.
    Named(Arc<dyn Primary>),
}

/// Who names a server that others may replace: Sentinels.
pub(super) trait Primary: Send + Sync {
    /// Finds the primary and connects to it.
    fn connect(self: Arc<Self>, tasks: Tasks) -> BoxFuture<'static, Result<Made, CacheError>>;

    /// The address of the primary that was found last. Links compare it with their connection's.
    fn found(&self) -> Option<Arc<str>>;

    /// Discards this primary, unless another one was found since. All links then find the primary
    /// again.
    fn forget(&self, primary: &str);

    /// Asks whether a connection still leads to the primary, and discards the primary if it does
    /// not. The error says that the connection does not work any more.
    fn confirm<'a>(
        &'a self,
        connection: &'a Connection,
        primary: &'a str,
    ) -> BoxFuture<'a, Result<(), RedisError>>;
}

/// How to reach one server.
#[derive(Clone)]
pub(super) struct Door {
    kind: Kind,
    server: String,
    place: Place,
    login: RedisConnectionInfo,
    timeout: Duration,
}

/// Why there is no connection.
enum Failure {
    /// The server did not answer in time.
    Timeout,
    /// The login failed.
    Login(RedisError),
    /// The error of the network or of TLS.
    Stream(io::Error),
}

#[derive(Default)]
struct Current {
    /// Tells a connection from the one that replaced it, so that a late error of the old connection
    /// does not discard the new one.
    generation: u64,
    connecting: Option<Connecting>,
}

/// One attempt to connect, shared by all callers that wait for it; afterwards, its connection.
type Connecting = Shared<BoxFuture<'static, Result<Made, CacheError>>>;

/// A connection that was made.
#[derive(Clone)]
pub(super) struct Made {
    /// The connection.
    pub(super) connection: Connection,
    /// The address of the primary, if Sentinels named it.
    pub(super) primary: Option<Arc<str>>,
}

/// A connection, and which one it is.
pub(super) struct Lent {
    /// The connection to send on.
    pub(super) connection: Connection,
    primary: Option<Arc<str>>,
    generation: u64,
}

impl Access {
    /// Reads the files that the settings name.
    pub(super) fn new(url: &CacheUrl, settings: &CacheSettings) -> Result<Self, ConnectError> {
        let is_tls = match &url.address {
            CacheAddress::Tcp { tls, .. }
            | CacheAddress::Cluster { tls, .. }
            | CacheAddress::Sentinel { tls, .. } => *tls,
            CacheAddress::Socket(_) => false,
        };
        let connector = || Connector::new(settings.ca_file.as_deref(), settings.verify);
        let tls = is_tls.then(connector).transpose().map_err(no_tls)?;
        Ok(Self { login: login(url), tls, timeout: settings.timeout, to: Kind::Cache })
    }

    /// How to log in to the Sentinels: with a login of their own, and within `patience` at most.
    pub(super) fn to_sentinels(&self, url: &CacheUrl, patience: Duration) -> Self {
        let login = with_login(url.sentinel_user.as_ref(), url.sentinel_password.as_ref());
        let timeout = self.timeout.min(patience);
        Self { login, tls: self.tls.clone(), timeout, to: Kind::Sentinel }
    }
}

impl Link {
    /// A link to a server at a TCP port; it does not connect yet.
    pub(super) fn to(access: &Access, endpoint: &Endpoint) -> Result<Self, ConnectError> {
        Ok(Self::through(Door::to(access, endpoint)?))
    }

    /// A link to a server at a Unix socket; it does not connect yet.
    pub(super) fn to_socket(access: &Access, socket: &Path) -> Self {
        let place = Place::Socket(socket.to_owned());
        Self::through(Door::at(access, place, socket.display().to_string()))
    }

    /// A link to a primary that may be replaced; it does not connect yet. `server` is what messages
    /// call it.
    pub(super) fn to_primary(access: &Access, primary: Arc<dyn Primary>, server: String) -> Self {
        Self::on(Way::Named(primary), server, access.timeout)
    }

    fn through(door: Door) -> Self {
        let (server, timeout) = (door.server.clone(), door.timeout);
        Self::on(Way::One(Box::new(door)), server, timeout)
    }

    /// Another connection to the same server.
    pub(super) fn another(&self) -> Self {
        Self::on(self.way.clone(), self.server.clone(), self.timeout)
    }

    fn on(way: Way, server: String, timeout: Duration) -> Self {
        Self { way, server, timeout, current: Mutex::default(), tasks: Arc::default() }
    }

    /// The address of the primary that Sentinels named last.
    pub(super) fn primary(&self) -> Option<Arc<str>> {
        match &self.way {
            Way::One(_) => None,
            Way::Named(named) => named.found(),
        }
    }

    /// Whether Sentinels name the server.
    pub(super) fn is_named(&self) -> bool {
        matches!(self.way, Way::Named(_))
    }

    /// The server's address, without user and password.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Connects, to see whether that works.
    pub(super) async fn check(&self) -> Result<(), ConnectError> {
        self.connection().await.map(drop).map_err(ConnectError::from)
    }

    /// The connection. If there is none, it is made; all callers that ask meanwhile wait for the
    /// same attempt.
    pub(super) async fn connection(&self) -> Result<Lent, CacheError> {
        for _ in 0..TRIES {
            let lent = self.lend().await?;
            // Another link to the same primary may have found that it is another server now.
            if lent.primary == self.primary() {
                return Ok(lent);
            }
            self.forget(&lent);
        }
        let message =
            format!("the Sentinels of cache `{}` do not agree on the primary", self.server);
        Err(CacheError { kind: CacheErrorKind::Unavailable, message })
    }

    async fn lend(&self) -> Result<Lent, CacheError> {
        let (generation, connecting) = self.connecting();
        match connecting.await {
            Ok(Made { connection, primary }) => Ok(Lent { connection, primary, generation }),
            Err(error) => {
                self.forget_generation(generation);
                Err(error)
            }
        }
    }

    /// Asks the Sentinels and the server whether it is still the primary. If it is not, the next caller of any
    /// link to this primary finds the new one.
    pub(super) async fn confirm(&self) -> Result<(), CacheError> {
        let Way::Named(named) = &self.way else { return Ok(()) };
        let lent = self.connection().await?;
        if let Some(primary) = lent.primary.clone()
            && named.confirm(&lent.connection, &primary).await.is_err()
        {
            self.forget(&lent);
        }
        Ok(())
    }

    /// The error for a server that says that it is a replica, if Sentinels named it as the primary: a failover
    /// is under way, and the next caller finds the new primary.
    pub(super) fn demoted(&self, lent: &Lent) -> Option<CacheError> {
        let Way::Named(named) = &self.way else { return None };
        let primary = lent.primary.as_deref()?;
        named.forget(primary);
        let server = &self.server;
        let message = format!("`{primary}`, the primary of cache `{server}`, became a replica");
        Some(CacheError { kind: CacheErrorKind::Transient, message })
    }

    fn connecting(&self) -> (u64, Connecting) {
        let mut current = self.current();
        if let Some(connecting) = &current.connecting {
            return (current.generation, connecting.clone());
        }
        let (way, tasks) = (self.way.clone(), Arc::clone(&self.tasks));
        let connecting = async move { way.connect(&tasks).await }.boxed().shared();
        current.generation += 1;
        current.connecting = Some(connecting.clone());
        (current.generation, connecting)
    }

    /// Discards this connection, if it is still the current one. The next caller makes a new one.
    pub(super) fn forget(&self, lent: &Lent) {
        self.forget_generation(lent.generation);
    }

    /// Discards the current connection, whichever it is. The next caller makes a new one.
    pub(super) fn forget_current(&self) {
        self.current().connecting = None;
    }

    fn forget_generation(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation {
            current.connecting = None;
        }
    }

    fn kind(&self) -> Kind {
        match &self.way {
            Way::One(door) => door.kind,
            Way::Named(_) => Kind::Cache,
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for a connection that failed while it was used.
    pub(super) fn lost(&self, error: &RedisError) -> CacheError {
        let (kind, server) = (self.kind().as_str(), &self.server);
        let message = if error.is_timeout() {
            format!("{kind} `{server}` did not answer within {:?}", self.timeout)
        } else {
            format!("the connection to {kind} `{server}` was lost: {error}")
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }
}

impl From<CacheError> for ConnectError {
    fn from(error: CacheError) -> Self {
        let kind = match error.kind {
            CacheErrorKind::LeftAlone | CacheErrorKind::Unavailable | CacheErrorKind::Transient => {
                ConnectErrorKind::Unreachable
            }
            CacheErrorKind::Full
            | CacheErrorKind::ReadOnly
            | CacheErrorKind::Moved
            | CacheErrorKind::WrongType
            | CacheErrorKind::Permission
            | CacheErrorKind::Refused => ConnectErrorKind::Refused,
        };
        Self { kind, message: error.message }
    }
}

impl Way {
    async fn connect(self, tasks: &Tasks) -> Result<Made, CacheError> {
        match self {
            Self::One(door) => {
                let connection = door.connect(tasks).await?;
                Ok(Made { connection, primary: None })
            }
            Self::Named(named) => named.connect(Arc::clone(tasks)).await,
        }
    }
}

impl Door {
    /// A server at a TCP port.
    pub(super) fn to(access: &Access, endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let place = match &access.tls {
            None => Place::Tcp(endpoint.clone()),
            Some(tls) => Place::Tls(endpoint.clone(), tls.to(&endpoint.host).map_err(no_tls)?),
        };
        Ok(Self::at(access, place, endpoint.to_string()))
    }

    fn at(access: &Access, place: Place, server: String) -> Self {
        let Access { login, timeout, to: kind, tls: _ } = access.clone();
        Self { kind, server, place, login, timeout }
    }

    /// Connects and logs in.
    pub(super) async fn connect(&self, tasks: &Tasks) -> Result<Connection, CacheError> {
        let opened = timeout(self.timeout, self.open()).await;
        let opened = opened.unwrap_or(Err(Failure::Timeout));
        let (connection, driver) = opened.map_err(|failure| self.not_connected(&failure))?;
        spawn(tasks, driver);
        Ok(connection)
    }

    async fn open(&self) -> Result<(Connection, impl Future<Output = ()> + use<>), Failure> {
        let stream = self.place.connect(self.timeout).await.map_err(Failure::Stream)?;
        let logged_in = Connection::log_in(stream, &self.login, self.timeout).await;
        logged_in.map_err(Failure::Login)
    }

    /// The error for a connection that could not be made.
    fn not_connected(&self, failure: &Failure) -> CacheError {
        let (kind, server) = (self.kind.as_str(), &self.server);
        let message = match failure {
            Failure::Login(error) if is_refusal(error) => {
                let refused = reply::refused(error);
                let why = match self.kind {
                    Kind::Cache => refused.message.as_str(),
                    Kind::Sentinel => SENTINEL_LOGIN,
                };
                let message = format!("could not log in to {kind} `{server}`: {why}");
                return CacheError { kind: refused.kind, message };
            }
            Failure::Login(error) => {
                let hint = if is_answered(error) { self.hint() } else { "" };
                format!("could not connect to {kind} `{server}`: {error}{hint}")
            }
            Failure::Stream(error) => {
                let hint = tls::hint(error).map(|hint| format!("; hint: {hint}"));
                let hint = hint.unwrap_or_default();
                format!("could not connect to {kind} `{server}`: {error}{hint}")
            }
            Failure::Timeout => {
                let timeout = self.timeout;
                let hint = if self.place.has_tls() { self.hint() } else { "" };
                format!("could not connect to {kind} `{server}` within {timeout:?}{hint}")
            }
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }

    /// The hint for a server that does not answer as expected: perhaps only one of the two ends
    /// speaks TLS.
    fn hint(&self) -> &'static str {
        if self.place.has_tls() {
            "; hint: if it speaks no TLS there, write `redis://` in place of `rediss://`"
        } else {
            "; hint: if it speaks TLS there, write `rediss://` in place of `redis://`"
        }
    }
}

/// Spawns a task among others, and removes those that have ended.
pub(super) fn spawn(tasks: &Tasks, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
    while tasks.try_join_next().is_some() {}
    tasks.spawn(task);
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}

fn no_tls(message: impl Display) -> ConnectError {
    ConnectError::settings(format!("the cache's TLS: {message}"))
}

fn login(url: &CacheUrl) -> RedisConnectionInfo {
    let login = with_login(url.user.as_ref(), url.password.as_ref());
    let login = login.set_db(i64::from(url.database));
    if url.is_resp3 { login.set_protocol(ProtocolVersion::RESP3) } else { login }
}

fn with_login(user: Option<&String>, password: Option<&SecretString>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default();
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose_secret());
    }
    login
}

/// Whether the other end accepted the connection, and then closed it or sent something that is not
/// Redis' protocol.
fn is_answered(error: &RedisError) -> bool {
    let is_closed = error.is_connection_dropped() && !error.is_connection_refusal();
    error.kind() == ErrorKind::Parse || is_closed
}

/// Whether the error is the server's own reply.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(_) | ErrorKind::AuthenticationFailed | ErrorKind::Extension
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(url: &str) -> Link {
        let url = CacheUrl::parse(url).unwrap();
        let timeout = Duration::from_secs(1);
        let access = Access { login: login(&url), tls: None, timeout, to: Kind::Cache };
        match &url.address {
            CacheAddress::Tcp { endpoint, .. } => Link::to(&access, endpoint).unwrap(),
            CacheAddress::Socket(path) => Link::to_socket(&access, path),
            CacheAddress::Cluster { nodes, .. } => Link::to(&access, &nodes[0]).unwrap(),
            CacheAddress::Sentinel { sentinels, .. } => Link::to(&access, &sentinels[0]).unwrap(),
        }
    }

    #[test]
    fn urls_are_read_and_their_secrets_never_shown() {
        let cases = [
            ("redis://user:p%40ss%2Fword@cache.local:6380/3", "cache.local:6380", 3, "p@ss/word"),
            ("rediss://:hush@[::1]/", "[::1]:6379", 0, "hush"),
            ("redis+unix:///run/redis.sock?db=2&user=u&pass=hush", "/run/redis.sock", 2, "hush"),
            ("redis+cluster://u:hush@a,b:7001", "a:6379", 0, "hush"),
        ];
        for (url, server, db, password) in cases {
            let link = link(url);
            assert_eq!(link.server(), server);
            let Way::One(door) = &link.way else { panic!("{url}") };
            assert_eq!(door.login.db(), db);
            assert_eq!(door.login.password(), Some(password));
            assert!(!format!("{link:?}").contains(password));
        }
    }
}
