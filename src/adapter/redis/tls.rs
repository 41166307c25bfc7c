//! TLS to a cache, and which certificates it accepts.
//!
//! The client's own TLS cannot pin a server's self-signed certificate: it takes that for an
//! authority's certificate, and refuses it as a server's.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{Error, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::adapter::tls::{Names, Trust, config};

/// Which certificates are accepted: the same for all servers of one cache.
#[derive(Clone)]
pub(super) struct Connector(TlsConnector);

/// The name of a server with TLS, and the certificates that are accepted for it.
#[derive(Clone)]
pub(super) struct TlsServer {
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Connector {
    /// Reads the file of certificates, if there is one. The error says what is wrong with it.
    pub(super) fn new(ca_file: Option<&Path>, verify: bool) -> Result<Self, String> {
        let config = config(&trust(ca_file, verify)?)?.with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// A server of this name; the error says why the name cannot be used.
    pub(super) fn to(&self, host: &str) -> Result<TlsServer, String> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_no_name| format!("`{host}` is no name that TLS can ask for"))?;
        Ok(TlsServer { name, connector: self.0.clone() })
    }
}

impl TlsServer {
    /// Does the TLS handshake.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
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
fn trust(ca_file: Option<&Path>, verify: bool) -> Result<Trust, String> {
    let own = ca_file.map(certificates).transpose()?;
    if !verify {
        return Ok(Trust::Anyone);
    }
    let mut roots = RootCertStore::empty();
    match &own {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        // A certificate that cannot be an authority's is not an error: it may be the server's own.
        Some(own) => drop(roots.add_parsable_certificates(own.iter().cloned())),
    }
    Ok(Trust::Known { own: own.unwrap_or_default(), roots, names: Names::Checked })
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
