//! The client of `/healthz`: the program asks a worker how it is, for containers that have no
//! `curl`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest wait for the worker's answer.
const MAX_TIME: Duration = Duration::from_secs(5);
/// The size limit of the answer: far more than `/healthz` sends.
const MAX_ANSWER: u64 = 64 * 1024;

/// The worker is unhealthy, or cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nobody answered.
    #[error("could not ask the worker at {address}")]
    Unreachable {
        /// The worker's address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The worker answered that it is unhealthy.
    #[error("the worker at {address} is not well: {answer}")]
    Unwell {
        /// The worker's address.
        address: SocketAddr,
        /// Its answer.
        answer: String,
    },
}

/// Asks the worker that listens at this address how it is.
pub async fn health(listen: SocketAddr) -> Result<(), HealthError> {
    let address = reachable(listen);
    let answer = match tokio::time::timeout(MAX_TIME, ask(address)).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(elapsed.into()),
    };
    let answer = answer.map_err(|source| HealthError::Unreachable { address, source })?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_head, body)| body);
    Err(HealthError::Unwell { address, answer: body.trim().to_owned() })
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A worker that listens on all addresses is asked on the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let here = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(here, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        for (listen, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
