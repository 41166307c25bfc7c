//! A connection, and how it is made anew.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    TlsCertificates,
};
use secrecy::{ExposeSecret, SecretString};

use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::engine::port::{CacheError, CacheErrorKind};

use super::reply;

/// An idle connection is probed after this time, and again in such steps, so that a peer that
/// vanished is noticed and routers on the way keep the connection.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// One connection to one server.
///
/// `redis::aio::ConnectionManager` is not used since it keeps a connection on which nobody answers:
/// only a break makes it connect anew, and a black-holed server never breaks the connection.
pub(super) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    timeout: Duration,
    server: String,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Tells a connection from the one after it, so that a late complaint about the old one does
    /// not cost the new one.
    generation: u64,
    connecting: Option<Connecting>,
}

/// One try for all who wait for it; afterwards, its connection.
type Connecting = Shared<BoxFuture<'static, Result<MultiplexedConnection, RedisError>>>;

/// The connection, and which one it is.
pub(super) struct Lent {
    /// Where to send.
    pub(super) connection: MultiplexedConnection,
    generation: u64,
}

impl Link {
    /// Reads the settings; nothing is connected yet.
    pub(super) fn new(
        url: &SecretString,
        timeout: Duration,
        ca_file: Option<&Path>,
    ) -> Result<Self, ConnectError> {
        // The error of a URL may quote parts of it, so that it is not passed on.
        let info = redis::parse_redis_url(url.expose_secret())
            .and_then(|url| url.into_connection_info().ok())
            .ok_or_else(|| settings_error("the cache's URL is no URL of a Redis server"))?;
        let server = info.addr().to_string();
        let info = info.set_tcp_settings(tcp_settings(timeout));
        let client = client(info, ca_file)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        Ok(Self { client, config, timeout, server, current: Mutex::default() })
    }

    /// Another connection to the same server.
    pub(super) fn another(&self) -> Self {
        let Self { client, config, timeout, server, current: _ } = self;
        Self {
            client: client.clone(),
            config: config.clone(),
            timeout: *timeout,
            server: server.clone(),
            current: Mutex::default(),
        }
    }

    /// The server, without user and password.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Connects, to see whether that works.
    pub(super) async fn check(&self) -> Result<(), ConnectError> {
        self.connection().await.map(drop).map_err(|error| {
            let kind = match error.kind {
                CacheErrorKind::Unavailable | CacheErrorKind::Transient => {
                    ConnectErrorKind::Unreachable
                }
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

    /// The connection, which is made if there is none; those who ask meanwhile wait for the same.
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
        let (client, config) = (self.client.clone(), self.config.clone());
        let connect =
            async move { client.get_multiplexed_async_connection_with_config(&config).await };
        let connecting = connect.boxed().shared();
        current.generation += 1;
        current.connecting = Some(connecting.clone());
        (current.generation, connecting)
    }

    /// This connection is of no use any more: the next one to ask makes a new one.
    pub(super) fn forget(&self, lent: &Lent) {
        self.forget_generation(lent.generation);
    }

    /// Whatever connection there is, the next one to ask makes a new one.
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

    /// Why there is no connection.
    fn not_connected(&self, error: &RedisError) -> CacheError {
        let server = &self.server;
        let is_refusal = matches!(
            error.kind(),
            ErrorKind::Server(_) | ErrorKind::AuthenticationFailed | ErrorKind::Extension
        );
        if is_refusal {
            let refused = reply::refused(error);
            let message = format!("could not log in to cache `{server}`: {}", refused.message);
            return CacheError { kind: refused.kind, message };
        }
        let message = if error.is_timeout() {
            format!("could not connect to cache `{server}` within {:?}", self.timeout)
        } else {
            format!("could not connect to cache `{server}`: {error}")
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }

    /// A connection that was there is of no use.
    pub(super) fn lost(&self, error: &RedisError) -> CacheError {
        let server = &self.server;
        let message = if error.is_timeout() {
            format!("cache `{server}` did not answer within {:?}", self.timeout)
        } else {
            format!("the connection to cache `{server}` was lost: {error}")
        };
        CacheError { kind: CacheErrorKind::Unavailable, message }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}

fn tcp_settings(timeout: Duration) -> TcpSettings {
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(timeout);
    settings
}

fn client(info: ConnectionInfo, ca_file: Option<&Path>) -> Result<Client, ConnectError> {
    // A second installation does nothing; `redis` takes the process' provider and panics without.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let Some(ca_file) = ca_file else {
        return Client::open(info).map_err(|error| settings_error(&error.to_string()));
    };
    let path = ca_file.display();
    let root_cert = std::fs::read(ca_file).map_err(|error| {
        settings_error(&format!("cannot read the cache's CA file `{path}`: {error}"))
    })?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
    Client::build_with_tls(info, certificates).map_err(|error| {
        settings_error(&format!("cannot use the CA file `{path}` for the cache: {error}"))
    })
}

fn settings_error(message: &str) -> ConnectError {
    ConnectError { kind: ConnectErrorKind::Settings, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(url: &str) -> Result<Link, ConnectError> {
        Link::new(&SecretString::from(url), Duration::from_secs(1), None)
    }

    #[test]
    fn urls_are_read_and_their_secrets_never_shown() {
        let cases = [
            ("redis://user:p%40ss%2Fword@cache.local:6380/3", "cache.local:6380", 3, "p@ss/word"),
            ("rediss://:hush@[::1]/", "::1:6379", 0, "hush"),
            ("redis+unix:///run/redis.sock?db=2&user=u&pass=hush", "/run/redis.sock", 2, "hush"),
        ];
        for (url, server, db, password) in cases {
            let link = link(url).unwrap();
            assert_eq!(link.server(), server);
            let info = link.client.get_connection_info();
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
