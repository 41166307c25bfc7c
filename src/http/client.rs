//! The client of a worker's routes, for commands: one request, one connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::domain::network::is_base_path;

/// Where a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerUrl {
    is_https: bool,
    /// A name or an address, without brackets.
    host: String,
    port: u16,
    /// The path below which a proxy serves it; empty at the root.
    base_path: String,
}

/// A text is no worker's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker's address is a URL such as `http://127.0.0.1:9464` or `https://host/preheat`")]
pub struct NoWorkerUrl;

impl From<SocketAddr> for WorkerUrl {
    fn from(address: SocketAddr) -> Self {
        let (host, port) = (address.ip().to_string(), address.port());
        Self { is_https: false, host, port, base_path: String::new() }
    }
}

impl FromStr for WorkerUrl {
    type Err = NoWorkerUrl;

    fn from_str(text: &str) -> Result<Self, NoWorkerUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(NoWorkerUrl)?;
        let is_https = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(NoWorkerUrl),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let base_path = match path.trim_end_matches('/') {
            "" => String::new(),
            path => format!("/{path}"),
        };
        let default_port = if is_https { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_no_port| NoWorkerUrl)?)
            }
            Some(_) | None => (authority, default_port),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_host = |char: char| char.is_ascii_alphanumeric() || "-._:".contains(char);
        if host.is_empty() || !host.chars().all(is_host) || !is_base_path(&base_path) {
            return Err(NoWorkerUrl);
        }
        Ok(Self { is_https, host: host.to_owned(), port, base_path })
    }
}

impl WorkerUrl {
    /// The host as a URL and the header `Host` have it.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let default_port = if self.is_https { 443 } else { 80 };
        if *port == default_port { host } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base_path)
    }
}

/// A question to a worker.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// The path and the query, below the worker's address.
    pub path: &'a str,
    /// The token, if one is known.
    pub token: Option<&'a str>,
    /// The JSON of a `POST`.
    pub body: &'a str,
    /// The longest wait for the answer.
    pub max_time: Duration,
    /// The size limit of the answer, in bytes: far more than the worker sends.
    pub max_answer: u64,
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Question<'_> {
    fn head(&self, worker: &WorkerUrl) -> String {
        let Self { method, path, token, body, .. } = self;
        let (base_path, host, length) = (&worker.base_path, worker.authority(), body.len());
        let mut head = format!("{method} {base_path}{path} HTTP/1.1\r\nHost: {host}\r\n");
        head.push_str("Connection: close\r\nAccept: application/json, text/plain\r\n");
        if let Some(token) = token {
            head.push_str("Authorization: Bearer ");
            head.push_str(token);
            head.push_str("\r\n");
        }
        if *method == "POST" {
            head.push_str("Content-Type: application/json\r\n");
            head.push_str("Content-Length: ");
            head.push_str(&length.to_string());
            head.push_str("\r\n");
        }
        head + "\r\n"
    }
}

/// Asks a worker.
pub async fn ask(worker: &WorkerUrl, question: Question<'_>) -> io::Result<Answer> {
    let asked = async {
        let stream = TcpStream::connect((worker.host.as_str(), worker.port)).await?;
        if !worker.is_https {
            return exchange(stream, worker, question).await;
        }
        let name = ServerName::try_from(worker.host.clone()).map_err(io::Error::other)?;
        let stream = tls().connect(name, stream).await?;
        exchange(stream, worker, question).await
    };
    let answer = tokio::time::timeout(question.max_time, asked).await??;
    parse(&answer).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn tls() -> TlsConnector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    worker: &WorkerUrl,
    question: Question<'_>,
) -> io::Result<Vec<u8>> {
    let request = question.head(worker) + question.body;
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    match stream.take(question.max_answer).read_to_end(&mut answer).await {
        // Some servers close a TLS connection without saying so.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head.lines().filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding")
            && value.trim().eq_ignore_ascii_case("chunked")
    });
    let body = answer.get(end + 4..)?;
    let body = if is_chunked { joined(body)? } else { body.to_vec() };
    Some(Answer { status, body: String::from_utf8(body).ok()? })
}

/// A body that came in chunks, as some proxies send it.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = chunks.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(chunks.get(..line)?).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        let begin = line + 2;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunks.get(begin..begin.checked_add(size)?)?);
        chunks = chunks.get(begin + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_address_is_a_url() {
        for (text, shown) in [
            ("http://127.0.0.1:9464", "http://127.0.0.1:9464"),
            ("http://localhost", "http://localhost"),
            ("https://ops.example.org/tools/preheat/", "https://ops.example.org/tools/preheat"),
            ("http://[::1]:9464/", "http://[::1]:9464"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(text.parse::<WorkerUrl>().unwrap().to_string(), shown);
        }
        let listen: SocketAddr = "[::1]:9464".parse().unwrap();
        assert_eq!(WorkerUrl::from(listen).to_string(), "http://[::1]:9464");
        for wrong in [
            "",
            "localhost:9464",
            "ftp://localhost",
            "http://",
            "http://a:b@host",
            "http://host:99999",
            "http://host/a b",
            "http://host\r\nX: y",
        ] {
            assert_eq!(wrong.parse::<WorkerUrl>(), Err(NoWorkerUrl), "{wrong}");
        }
    }

    #[test]
    fn an_answer_may_come_in_chunks() {
        let answer = |text: &str| parse(text.as_bytes()).map(|answer| (answer.status, answer.body));
        let plain = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(answer(plain), Some((200, "{}".to_owned())));
        let head = "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = format!("{head}5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
        assert_eq!(answer(&chunked), Some((404, "hello world".to_owned())));
        for broken in ["", "SSH-2.0", "HTTP/1.1 200 OK\r\n", &format!("{head}ff\r\nx")] {
            assert_eq!(answer(broken), None, "{broken}");
        }
    }
}
