//! TLS to a cache, and which certificates it accepts.
//!
//! The client's own TLS cannot pin a server's self-signed certificate: it takes that for an
//! authority's certificate, and refuses it as a server's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The address of a server with TLS, and the certificates that are accepted for it.
#[derive(Clone)]
pub(super) struct TlsServer {
    host: String,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl TlsServer {
    /// Reads the file of certificates, if there is one. The error says what is wrong with it.
    pub(super) fn new(
        host: &str,
        port: u16,
        ca_file: Option<&Path>,
        verify: bool,
    ) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_no_name| format!("`{host}` is no name that TLS can ask for"))?;
        let provider = Arc::new(ring::default_provider());
        let trust = Trust::new(ca_file, verify, Arc::clone(&provider))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust))
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { host: host.to_owned(), port, name, connector })
    }

    /// Connects and does the TLS handshake.
    pub(super) async fn connect(
        &self,
        keepalive: TcpKeepalive,
        patience: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(patience))?;
        self.connector.connect(self.name.clone(), stream).await
    }
}

/// Explains a failed handshake, and what to do about it.
pub(super) fn hint(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    let is_certificate = matches!(error, Some(Error::InvalidCertificate(_)));
    if is_certificate {
        return Some(
            "`[cache] ca` names a file with the certificates to trust: an authority's, or the \
             server's own; `[cache] verify = false` takes any",
        );
    }
    matches!(error, Some(Error::InvalidMessage(_)))
        .then_some("the server speaks no TLS there: write `redis://` in place of `rediss://`")
}

/// Which certificates are accepted.
#[derive(Debug)]
struct Trust {
    who: Who,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Who {
    /// Any certificate.
    Anyone,
    /// A certificate from `own`, or one that an authority signed for the server's name.
    Known { own: Vec<CertificateDer<'static>>, authorities: Option<Arc<WebPkiServerVerifier>> },
}

impl Trust {
    fn new(
        ca_file: Option<&Path>,
        verify: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let own = ca_file.map(certificates).transpose()?;
        if !verify {
            return Ok(Self { who: Who::Anyone, provider });
        }
        let mut roots = RootCertStore::empty();
        match &own {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            // A certificate that cannot be an authority's is not an error: it may be the server's
            // own.
            Some(own) => drop(roots.add_parsable_certificates(own.iter().cloned())),
        }
        let authorities = if roots.is_empty() {
            None
        } else {
            let builder =
                WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
            Some(builder.build().map_err(|error| error.to_string())?)
        };
        let who = Who::Known { own: own.unwrap_or_default(), authorities };
        Ok(Self { who, provider })
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let path = file.display();
    let text = std::fs::read(file);
    let text = text.map_err(|error| format!("cannot read the CA file `{path}`: {error}"))?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| format!("the CA file `{path}` cannot be used: {error}"))?;
    if read.is_empty() {
        return Err(format!("the CA file `{path}` holds no certificate in PEM"));
    }
    Ok(read)
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.who {
            Who::Anyone => Ok(ServerCertVerified::assertion()),
            Who::Known { own, .. } if own.iter().any(|own| own.as_ref() == end_entity.as_ref()) => {
                Ok(ServerCertVerified::assertion())
            }
            Who::Known { authorities: None, .. } => {
                Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
            }
            Who::Known { authorities: Some(authorities), .. } => authorities.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
