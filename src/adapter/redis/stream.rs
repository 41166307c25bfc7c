//! Where servers listen, and how to connect there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::select_ok;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::adapter::Stream;
use crate::domain::server_url::Endpoint;

use super::tls::TlsServer;

/// TCP keepalive: an idle connection is probed after this time, and again at this interval. So a
/// peer that vanished is noticed, and routers on the way keep the connection open.
const KEEPALIVE: Duration = Duration::from_secs(15);

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
    let stream = race(lookup_host((host.as_str(), *port)).await?).await?;
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

/// Connects to all of these addresses, and keeps the first connection: a host may have addresses from which
/// no answer comes.
async fn race(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let attempts: Vec<_> = addresses.map(|one| Box::pin(TcpStream::connect(one))).collect();
    if attempts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    }
    select_ok(attempts).await.map(|(stream, _others)| stream)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use redis::io::tcp::socket2::{Domain, Socket, Type};

    use tokio::time::timeout;

    use super::*;

    /// Far less than the system tries an address that does not answer.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A server that accepts nothing and whose queue is full, so that no further client hears from it.
    fn silent() -> (SocketAddr, Vec<Socket>) {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let server = socket();
        server.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        server.listen(0).unwrap();
        let address = server.local_addr().unwrap();
        let mut sockets = vec![server];
        for _ in 0..8 {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _under_way = client.connect(&address);
            sockets.push(client);
        }
        (address.as_socket().unwrap(), sockets)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_does_not_keep_from_one_that_does() {
        let (silent, _queue) = silent();
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        let connected = timeout(PATIENCE, race([silent, address].into_iter())).await;
        let stream = connected.expect("the other address is tried as well").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(race([].into_iter()).await.is_err());
    }
}
