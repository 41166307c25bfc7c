//! A stream of bytes to a server and back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::domain::server_url::Endpoint;

use super::tls::TlsServer;

/// TCP keepalive: an idle connection is probed after this time, and again at this interval. So a
/// peer that vanished is noticed, and routers on the way keep the connection open.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A stream of bytes to a server and back.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a server listens.
#[derive(Clone)]
pub(super) enum Place {
    /// At a TCP port.
    Tcp(Endpoint),
    /// At a TCP port, with TLS.
    Tls(Endpoint, TlsServer),
    /// At a Unix socket.
    Socket(PathBuf),
}

impl Place {
    /// Connects. On Linux a TCP connection ends when the server has not confirmed what was sent for `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(endpoint) => Box::new(tcp(endpoint, patience).await?),
            Self::Tls(endpoint, server) => {
                Box::new(server.connect(tcp(endpoint, patience).await?).await?)
            }
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// Whether the connection is encrypted.
    pub(super) fn has_tls(&self) -> bool {
        matches!(self, Self::Tls(..))
    }
}

async fn tcp(endpoint: &Endpoint, patience: Duration) -> io::Result<TcpStream> {
    let Endpoint { host, port } = endpoint;
    let stream = TcpStream::connect((host.as_str(), *port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(patience))?;
    #[cfg(not(target_os = "linux"))]
    let _ = patience;
    Ok(stream)
}
