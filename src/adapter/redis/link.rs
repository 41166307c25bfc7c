//! A connection to the server, and how it is replaced when it fails.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError,
};
use secrecy::ExposeSecret;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::domain::server_url::{CacheAddress, CacheUrl};
use crate::engine::ports::{CacheError, CacheErrorKind};

use super::tls::{self, TlsServer};
use super::{CacheSettings, reply};

/// TCP keepalive: an idle connection is probed after this time, and again at this interval. So a
/// peer that vanished is noticed, and routers on the way keep the connection open.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// One connection to one server.
///
/// It does not use `redis::aio::ConnectionManager`, which keeps a connection on which the server no
/// longer answers: it reconnects only when the connection breaks, and a black-holed server never
/// breaks it.
pub(super) struct Link {
    way: Way,
    server: String,
    current: Mutex<Current>,
    /// The tasks that drive the connections with TLS. Each ends with its connection.
    drivers: Arc<Mutex<JoinSet<()>>>,
}

/// How to reach the server.
#[derive(Clone)]
struct Way {
    client: Client,
    /// Used instead of the client's own TLS.
    tls: Option<TlsServer>,
    config: AsyncConnectionConfig,
    timeout: Duration,
}

/// Why there is no connection.
#[derive(Clone)]
enum Failure {
    /// The server did not answer in time.
    Timeout,
    /// The client's error.
    Client(RedisError),
    /// The error of the network or of TLS, as a message for people.
    Stream(String),
}

#[derive(Default)]
struct Current {
    /// Tells a connection from the one that replaced it, so that a late error of the old connection
    /// does not discard the new one.
    generation: u64,
    connecting: Option<Connecting>,
}

/// One attempt to connect, shared by all callers that wait for it; afterwards, its connection.
type Connecting = Shared<BoxFuture<'static, Result<MultiplexedConnection, Failure>>>;

/// A connection, and which one it is.
pub(super) struct Lent {
    /// The connection to send on.
    pub(super) connection: MultiplexedConnection,
    generation: u64,
}

impl Link {
    /// Reads the settings; it does not connect yet.
    pub(super) fn new(settings: &CacheSettings) -> Result<Self, ConnectError> {
        let url = CacheUrl::parse(settings.url.expose_secret()).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            ConnectError::settings(format!("the cache's URL: {}", problems.join("; ")))
        })?;
        let server = url.address.to_string();
        let tls = match &url.address {
            CacheAddress::Tcp { host, port, tls: true } => {
                let tls = TlsServer::new(host, *port, settings.ca_file.as_deref(), settings.verify);
                Some(tls.map_err(|message| {
                    ConnectError::settings(format!("the cache's TLS: {message}"))
                })?)
            }
            CacheAddress::Tcp { tls: false, .. } | CacheAddress::Socket(_) => None,
        };
        let timeout = settings.timeout;
        let client = Client::open(connection_info(&url, timeout)?);
        let client = client.map_err(|error| ConnectError::settings(error.to_string()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        Ok(Self::on(Way { client, tls, config, timeout }, server))
    }

    /// Another connection to the same server.
    pub(super) fn another(&self) -> Self {
        Self::on(self.way.clone(), self.server.clone())
    }

    fn on(way: Way, server: String) -> Self {
        Self { way, server, current: Mutex::default(), drivers: Arc::default() }
    }

    /// The server's address, without user and password.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Connects, to see whether that works.
    pub(super) async fn check(&self) -> Result<(), ConnectError> {
        self.connection().await.map(drop).map_err(|error| {
            let kind = match error.kind {
                CacheErrorKind::LeftAlone
                | CacheErrorKind::Unavailable
                | CacheErrorKind::Transient => ConnectErrorKind::Unreachable,
                CacheErrorKind::Full
                | CacheErrorKind::ReadOnly
                | CacheErrorKind::Moved
                | CacheErrorKind::WrongType
                | CacheErrorKind::Permission
                | CacheErrorKind::Refused => ConnectErrorKind::Refused,
            };
            ConnectError { kind, message: error.message }
        })
    }

    /// The connection. If there is none, it is made; all callers that ask meanwhile wait for the
    /// same attempt.
    pub(super) async fn connection(&self) -> Result<Lent, CacheError> {
        let (generation, connecting) = self.connecting();
        match connecting.await {
            Ok(connection) => Ok(Lent { connection, generation }),
            Err(error) => {
                self.forget_generation(generation);
                Err(self.not_connected(&error))
            }
        }
    }

    fn connecting(&self) -> (u64, Connecting) {
        let mut current = self.current();
        if let Some(connecting) = &current.connecting {
            return (current.generation, connecting.clone());
        }
        let (way, drivers) = (self.way.clone(), Arc::clone(&self.drivers));
        let connecting = async move { way.connect(&drivers).await }.boxed().shared();
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

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for a connection that could not be made.
    fn not_connected(&self, failure: &Failure) -> CacheError {
        let server = &self.server;
        let message = match failure {
            Failure::Client(error) if is_refusal(error) => {
                let refused = reply::refused(error);
                let message = format!("could not log in to cache `{server}`: {}", refused.message);
                return CacheError { kind: refused.kind, message };
            }
            Failure::Client(error) => {
                let hint = if is_answered(error) { self.way.hint() } else { "" };
                format!("could not connect to cache `{server}`: {error}{hint}")
            }
            Failure::Stream(text) => format!("could not connect to cache `{server}`: {text}"),
            Failure::Timeout => {
                let timeout = self.way.timeout;
                let hint = if self.way.tls.is_some() { self.way.hint() } else { "" };
                format!("could not connect to cache `{server}` within {timeout:?}{hint}")
            }
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }

    /// The error for a connection that failed while it was used.
    pub(super) fn lost(&self, error: &RedisError) -> CacheError {
        let server = &self.server;
        let message = if error.is_timeout() {
            format!("cache `{server}` did not answer within {:?}", self.way.timeout)
        } else {
            format!("the connection to cache `{server}` was lost: {error}")
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }
}

impl Way {
    async fn connect(self, drivers: &Mutex<JoinSet<()>>) -> Result<MultiplexedConnection, Failure> {
        let Self { client, tls, config, timeout: patience } = self;
        let Some(tls) = tls else {
            let made = client.get_multiplexed_async_connection_with_config(&config).await;
            return made.map_err(|error| {
                if error.is_timeout() { Failure::Timeout } else { Failure::Client(error) }
            });
        };
        let connect = async {
            let stream = tls.connect(keepalive(), patience).await.map_err(|error| {
                let hint = tls::hint(&error).map(|hint| format!("; hint: {hint}"));
                Failure::Stream(format!("{error}{}", hint.unwrap_or_default()))
            })?;
            let login = client.get_connection_info().redis_settings();
            let made = MultiplexedConnection::new_with_config(login, stream, config);
            made.await.map_err(Failure::Client)
        };
        let (connection, driver) =
            timeout(patience, connect).await.map_err(|_elapsed| Failure::Timeout)??;
        let mut drivers = drivers.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes the finished drivers of earlier connections.
        while drivers.try_join_next().is_some() {}
        drivers.spawn(driver);
        Ok(connection)
    }

    /// The hint for a server that does not answer as expected: perhaps only one of the two ends
    /// speaks TLS.
    fn hint(&self) -> &'static str {
        if self.tls.is_some() {
            "; hint: if it speaks no TLS there, write `redis://` in place of `rediss://`"
        } else {
            "; hint: if it speaks TLS there, write `rediss://` in place of `redis://`"
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

fn tcp_settings(timeout: Duration) -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(timeout);
    settings
}

fn connection_info(url: &CacheUrl, timeout: Duration) -> Result<ConnectionInfo, ConnectError> {
    let address = match &url.address {
        CacheAddress::Tcp { host, port, .. } => ConnectionAddr::Tcp(host.clone(), *port),
        CacheAddress::Socket(path) => ConnectionAddr::Unix(path.clone()),
    };
    let mut login = RedisConnectionInfo::default().set_db(i64::from(url.database));
    if let Some(user) = &url.user {
        login = login.set_username(user);
    }
    if let Some(password) = &url.password {
        login = login.set_password(password.expose_secret());
    }
    if url.is_resp3 {
        login = login.set_protocol(ProtocolVersion::RESP3);
    }
    let info = address.into_connection_info();
    let info = info.map_err(|error| ConnectError::settings(error.to_string()))?;
    Ok(info.set_redis_settings(login).set_tcp_settings(tcp_settings(timeout)))
}

/// Whether the other end accepted the connection, and then closed it or sent something that is not
/// Redis' protocol.
fn is_answered(error: &RedisError) -> bool {
    let is_closed = error.is_connection_dropped() && !error.is_connection_refusal();
    error.kind() == ErrorKind::Parse || is_closed
}

/// Whether the error is the server's own reply.
fn is_refusal(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(_) | ErrorKind::AuthenticationFailed | ErrorKind::Extension
    )
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn link(url: &str) -> Result<Link, ConnectError> {
        Link::new(&CacheSettings {
            url: SecretString::from(url),
            prefix: String::new(),
            timeout: Duration::from_secs(1),
            ca_file: None,
            verify: true,
        })
    }

    #[test]
    fn urls_are_read_and_their_secrets_never_shown() {
        let cases = [
            ("redis://user:p%40ss%2Fword@cache.local:6380/3", "cache.local:6380", 3, "p@ss/word"),
            ("rediss://:hush@[::1]/", "[::1]:6379", 0, "hush"),
            ("redis+unix:///run/redis.sock?db=2&user=u&pass=hush", "/run/redis.sock", 2, "hush"),
        ];
        for (url, server, db, password) in cases {
            let link = link(url).unwrap();
            assert_eq!(link.server(), server);
            let info = link.way.client.get_connection_info();
            assert_eq!(info.redis_settings().db(), db);
            assert_eq!(info.redis_settings().password(), Some(password));
            assert!(!format!("{link:?}").contains(password));
        }
    }

    #[test]
    fn a_url_that_is_none_is_an_error_that_does_not_quote_it() {
        for url in ["http://x:hush@y", "redis://x:hush@", "hush", "redis://x:hush@y/nine"] {
            let error = link(url).unwrap_err();
            assert_eq!(error.kind, ConnectErrorKind::Settings);
            assert!(!error.message.contains("hush"), "{}", error.message);
        }
    }
}
