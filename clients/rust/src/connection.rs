//! The connection to Redis: one that the application has, or one of our own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, Cmd, IntoConnectionInfo, Pipeline, RedisError, RedisResult, Value};

/// How long a connection may take to come about, and a command to be answered on it, before it counts as
/// broken. Commands have a shorter deadline of their own.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// How long written bytes may stay unacknowledged before the system gives a TCP connection up.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// A connection to Redis or to a server that speaks its protocol.
///
/// Hand over what the application has: anything that can be cloned, is shared by its clones and reconnects by
/// itself, such as [`ConnectionManager`] or redis' cluster connection. Or let [`Connection::open`] make one.
pub struct Connection {
    source: Source,
}

enum Source {
    Given(Box<dyn Link>),
    Opened { client: Box<Client>, current: Mutex<ConnectionManager> },
}

impl Connection {
    /// A connection that is made when it is first needed, in a Tokio runtime: an application starts even if
    /// Redis is down. It is replaced when Redis no longer answers on it.
    ///
    /// The URL is `redis://`, `rediss://` or `redis+unix://`; for `rediss://` enable TLS in the crate `redis`.
    pub fn open(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |source| InvalidUrl { source };
        let info = url.into_connection_info().map_err(invalid)?;
        let tcp = TcpSettings::default().set_nodelay(true);
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(ACKNOWLEDGED_WITHIN);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(invalid)?;
        let current = Mutex::new(manager(&client).map_err(invalid)?);
        Ok(Self { source: Source::Opened { client: Box::new(client), current } })
    }

    pub(crate) fn send(&self, command: Cmd) -> Reply {
        match &self.source {
            Source::Given(link) => link.send(command),
            Source::Opened { current, .. } => held(current).send(command),
        }
    }

    pub(crate) fn send_all(&self, commands: Pipeline) -> Reply {
        match &self.source {
            Source::Given(link) => link.send_all(commands),
            Source::Opened { current, .. } => held(current).send_all(commands),
        }
    }

    /// Replaces a connection on which nothing is answered any more. A connection that was handed over stays.
    pub(crate) fn renew(&self) {
        if let Source::Opened { client, current } = &self.source
            && let Ok(new) = manager(client)
        {
            *current.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }
}

fn held(current: &Mutex<ConnectionManager>) -> ConnectionManager {
    current.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// It tries to connect once: who asks again, and when, is decided by the breaker.
fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_response_timeout(Some(CONNECT_WITHIN));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> From<C> for Connection {
    fn from(connection: C) -> Self {
        Self { source: Source::Given(Box::new(connection)) }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.source {
            Source::Given(_) => "Connection(given)",
            Source::Opened { .. } => "Connection(opened)",
        })
    }
}

/// A URL that is not one of a Redis server.
#[derive(Debug)]
pub struct InvalidUrl {
    source: RedisError,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot use the URL of Redis")
    }
}

impl std::error::Error for InvalidUrl {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

type Reply = Pin<Box<dyn Future<Output = RedisResult<Value>> + Send>>;

/// What is needed of a connection, without its type.
trait Link: Send + Sync {
    fn send(&self, command: Cmd) -> Reply;
    fn send_all(&self, commands: Pipeline) -> Reply;
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Link for C {
    fn send(&self, command: Cmd) -> Reply {
        let mut connection = self.clone();
        Box::pin(async move { command.query_async(&mut connection).await })
    }

    fn send_all(&self, commands: Pipeline) -> Reply {
        let mut connection = self.clone();
        Box::pin(async move { commands.query_async(&mut connection).await })
    }
}
