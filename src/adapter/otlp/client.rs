//! The HTTP client of the exporter: one connection a request, with the TLS that the rest of preheat uses.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::adapter::tls::{self, Names, Trust};

/// The largest answer that is read. A collector's answers have some bytes.
const LARGEST_ANSWER: usize = 64 << 10;
/// How long a request may take.
const LONGEST: Duration = Duration::from_secs(10);

/// What became of the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectorState<'m> {
    /// It could not be reached, or refused the traces.
    Away {
        /// Why.
        message: &'m str,
    },
    /// It takes traces again.
    Back,
}

type Said = Box<dyn Fn(CollectorState<'_>) + Send + Sync>;

/// The way to a collector. The exporter calls it on a thread without a runtime.
pub struct Collector {
    runtime: Handle,
    tls: TlsConnector,
    said: Said,
    is_away: AtomicBool,
}

impl Collector {
    pub(super) fn new(runtime: Handle, said: Said) -> Result<Self, String> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let trust = Trust::Known { own: Vec::new(), roots, names: Names::Checked };
        let tls = TlsConnector::from(Arc::new(tls::config(&trust)?.with_no_client_auth()));
        Ok(Self { runtime, tls, said, is_away: AtomicBool::new(false) })
    }

    /// Reports a change alone: a collector that stays away costs one line.
    fn note(&self, problem: Option<&str>) {
        let was_away = self.is_away.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(message) if !was_away => (self.said)(CollectorState::Away { message }),
            None if was_away => (self.said)(CollectorState::Back),
            Some(_) | None => {}
        }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl HttpClient for Collector {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        let (reply, answer) = oneshot::channel();
        let tls = self.tls.clone();
        let _exporting = self.runtime.spawn(async move {
            let sent = tokio::time::timeout(LONGEST, send(tls, request)).await;
            // The exporter is gone when the process ends.
            drop(reply.send(sent.unwrap_or_else(|_late| Err("it did not answer in time".into()))));
        });
        Box::pin(async move {
            let answer = answer.await.unwrap_or_else(|_gone| Err("the worker has ended".into()));
            match &answer {
                Err(error) => self.note(Some(&error.to_string())),
                Ok(answer) if answer.status().is_success() => self.note(None),
                Ok(answer) => self.note(Some(&format!("it answered {}", answer.status()))),
            }
            answer
        })
    }
}

async fn send(tls: TlsConnector, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let uri = request.uri().clone();
    let host = uri.host().ok_or("its URL names no host")?.to_owned();
    let is_https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    // Brackets are for URLs alone.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, port)).await?;
    stream.set_nodelay(true)?;
    let request = in_origin_form(request, &uri)?;
    if is_https {
        let name = ServerName::try_from(name.to_owned())?;
        exchange(TokioIo::new(tls.connect(name, stream).await?), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    }
}

/// The path in the first line, and the server in the header `Host`, as a server expects them.
fn in_origin_form(mut request: Request<Bytes>, uri: &Uri) -> Result<Request<Bytes>, HttpError> {
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    request.headers_mut().insert(HOST, HeaderValue::from_str(host)?);
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    Ok(request)
}

async fn exchange(
    stream: impl Read + Write + Send + Unpin + 'static,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(stream).await?;
    let answer = async {
        let answer = sender.send_request(request.map(Full::new)).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LARGEST_ANSWER).collect().await?.to_bytes();
        Ok::<_, HttpError>(Response::from_parts(head, body))
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        ended = connection => {
            ended?;
            Err("it closed the connection".into())
        }
    }
}
