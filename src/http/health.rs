//! Asks a worker how it is and what it has counted: containers have no `curl`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::client::{Answer, Question, WorkerUrl, ask};

const HEALTHZ: Question<'_> = Question {
    method: "GET",
    path: "/healthz",
    token: None,
    body: "",
    max_time: Duration::from_secs(5),
    max_answer: 64 * 1024,
};
/// A scrape may wait two seconds for fresh figures of the servers. A job has about a hundred lines.
const METRICS: Question<'_> = Question {
    path: "/metrics",
    max_time: Duration::from_secs(3),
    max_answer: 16 * 1024 * 1024,
    ..HEALTHZ
};

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
    answer(reachable(listen), HEALTHZ).await.map(drop)
}

/// What the worker that listens at this address has counted, in the Prometheus text format.
pub async fn metrics(listen: SocketAddr) -> Result<String, HealthError> {
    answer(reachable(listen), METRICS).await
}

/// The body of the worker's answer.
async fn answer(address: SocketAddr, question: Question<'_>) -> Result<String, HealthError> {
    let answer = ask(&WorkerUrl::from(address), question).await;
    let Answer { status, body } =
        answer.map_err(|source| HealthError::Unreachable { address, source })?;
    if status == 200 {
        return Ok(body);
    }
    Err(HealthError::Unwell { address, answer: body.trim().to_owned() })
}

/// A worker that listens on all addresses is asked on the loopback address.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
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
