//! How a session begins: over which way, with which TLS, and as whom.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fallible_iterator::FallibleIterator;
use percent_encoding::percent_decode_str;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{Refused, Reply, Session, unexpected};
use crate::adapter::tls::{self, Names, Trust};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Purpose {
    /// Queries.
    Queries,
    /// Streaming the write-ahead log, besides simple queries.
    Replication,
}

/// What a login needs, as sqlx has found it in the URL, the environment and the password file.
struct Login {
    user: String,
    password: Option<String>,
    database: String,
    application_name: Option<String>,
}

/// The files, or their contents, for TLS.
#[derive(Default)]
struct Certificates {
    roots: Option<String>,
    client: Option<String>,
    key: Option<String>,
}

impl Session {
    /// Connects to one server and logs in, as sqlx would.
    pub(in super::super) async fn connect(
        options: &PgConnectOptions,
        purpose: Purpose,
    ) -> Result<Self, sqlx::Error> {
        let (login, certificates) = read(options);
        let mut session = match socket(options) {
            Some(path) => Self::over(Box::new(UnixStream::connect(path).await?)),
            None => over_tcp(options, &certificates).await?,
        };
        session.log_in(&login, purpose).await?;
        Ok(session)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the messages are the protocol's, not ours")]
    async fn log_in(&mut self, login: &Login, purpose: Purpose) -> Result<(), sqlx::Error> {
        let mut parameters = vec![
            ("user", login.user.as_str()),
            ("database", login.database.as_str()),
            ("client_encoding", "UTF8"),
        ];
        match purpose {
            // As sqlx, so that a query computes the same on either client.
            Purpose::Queries => parameters.extend([("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")]),
            Purpose::Replication => parameters.push(("replication", "database")),
        }
        if let Some(name) = &login.application_name {
            parameters.push(("application_name", name.as_str()));
        }
        frontend::startup_message(parameters, &mut self.output)?;
        self.due += 1;
        let mut scram = None;
        loop {
            let Reply::Message(message) = self.reply().await? else {
                return Err(unexpected());
            };
            match message {
                Message::ErrorResponse(error) => return Err(Refused::error(&error)),
                Message::ReadyForQuery(_) => return Ok(()),
                message => self.authenticate(&message, login, &mut scram)?,
            }
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the messages are the protocol's, not ours")]
    fn authenticate(
        &mut self,
        message: &Message,
        login: &Login,
        scram: &mut Option<ScramSha256>,
    ) -> Result<(), sqlx::Error> {
        let password = login.password.as_deref().unwrap_or_default().as_bytes();
        match message {
            Message::AuthenticationCleartextPassword => {
                frontend::password_message(password, &mut self.output)?;
            }
            Message::AuthenticationMd5Password(asked) => {
                let hash = md5_hash(login.user.as_bytes(), password, asked.salt());
                frontend::password_message(hash.as_bytes(), &mut self.output)?;
            }
            Message::AuthenticationSasl(asked) => {
                if !asked.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256))? {
                    return Err(unknown_login());
                }
                // As sqlx: `verify-full` rules out a man in the middle as well.
                let begun = ScramSha256::new(password, ChannelBinding::unsupported());
                let first = begun.message();
                frontend::sasl_initial_response(SCRAM_SHA_256, first, &mut self.output)?;
                *scram = Some(begun);
            }
            Message::AuthenticationSaslContinue(asked) => {
                let scram = scram.as_mut().ok_or_else(unexpected)?;
                scram.update(asked.data())?;
                frontend::sasl_response(scram.message(), &mut self.output)?;
            }
            Message::AuthenticationSaslFinal(proof) => {
                scram.as_mut().ok_or_else(unexpected)?.finish(proof.data())?;
            }
            Message::AuthenticationGss
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi => return Err(unknown_login()),
            // The login succeeded, or a parameter of the session.
            _ => {}
        }
        Ok(())
    }
}

fn unknown_login() -> sqlx::Error {
    let reason = "the server wants a kind of login that preheat does not have";
    sqlx::Error::Protocol(reason.to_owned())
}

/// The driver shows the password and the certificates only in its URL, which it can build only of names
/// that a URL may contain.
fn read(options: &PgConnectOptions) -> (Login, Certificates) {
    let plain = options.clone().username("user").host("host").database("database");
    let url = plain.to_url_lossy();
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = options.get_username().to_owned();
    let login = Login {
        password: url.password().map(decoded),
        database: options.get_database().map_or_else(|| user.clone(), ToOwned::to_owned),
        application_name: options.get_application_name().map(ToOwned::to_owned),
        user,
    };
    let mut certificates = Certificates::default();
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "sslrootcert" => certificates.roots = Some(value.into_owned()),
            "sslcert" => certificates.client = Some(value.into_owned()),
            "sslkey" => certificates.key = Some(value.into_owned()),
            _ => {}
        }
    }
    (login, certificates)
}

/// The Unix socket, if the options lead to one.
fn socket(options: &PgConnectOptions) -> Option<PathBuf> {
    let host = Path::new(options.get_host());
    let folder = options.get_socket().map(PathBuf::as_path);
    let folder = folder.or_else(|| host.is_absolute().then_some(host))?;
    Some(folder.join(format!(".s.PGSQL.{}", options.get_port())))
}

async fn over_tcp(
    options: &PgConnectOptions,
    certificates: &Certificates,
) -> Result<Session, sqlx::Error> {
    let host = options.get_host();
    let mut stream = TcpStream::connect((host, options.get_port())).await?;
    stream.set_nodelay(true)?;
    let is_wanted = match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow => return Ok(Session::over(Box::new(stream))),
        PgSslMode::Prefer => false,
        PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => true,
    };
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    match (stream.read_u8().await?, is_wanted) {
        (b'S', _) => {}
        (b'N', false) => return Ok(Session::over(Box::new(stream))),
        (b'N', true) => return Err(sqlx::Error::Tls("server does not support TLS".into())),
        (_, _) => return Err(unexpected()),
    }
    let connector = connector(options.get_ssl_mode(), certificates);
    let connector = connector.map_err(|error| sqlx::Error::Tls(error.into()))?;
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| sqlx::Error::Tls(error.into()))?;
    Ok(Session::over(Box::new(connector.connect(name, stream).await?)))
}

fn connector(mode: PgSslMode, certificates: &Certificates) -> Result<TlsConnector, String> {
    let names = match mode {
        PgSslMode::VerifyFull => Some(Names::Checked),
        PgSslMode::VerifyCa => Some(Names::Ignored),
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer | PgSslMode::Require => None,
    };
    let trust = match names {
        None => Trust::Anyone,
        Some(names) => Trust::Known { own: Vec::new(), roots: roots(certificates)?, names },
    };
    let config = tls::config(&trust)?;
    let config = match (&certificates.client, &certificates.key) {
        (Some(client), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(&contents(key)?);
            let key = key.map_err(|error| format!("cannot use the key of `sslkey`: {error}"))?;
            let own = config.with_client_auth_cert(parsed("sslcert", client)?, key);
            own.map_err(|error| format!("cannot use the certificate of `sslcert`: {error}"))?
        }
        (None, _) | (_, None) => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(certificates: &Certificates) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let own = certificates.roots.as_deref().map(|file| parsed("sslrootcert", file)).transpose()?;
    for certificate in own.into_iter().flatten() {
        let added = roots.add(certificate);
        added.map_err(|error| format!("cannot use a certificate of `sslrootcert`: {error}"))?;
    }
    Ok(roots)
}

fn parsed(parameter: &str, value: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = contents(value)?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    all.map_err(|error| format!("cannot read the certificates of `{parameter}`: {error}"))
}

/// The driver shows a file as `file: NAME`, and other values as they are.
fn contents(value: &str) -> Result<Vec<u8>, String> {
    match value.strip_prefix("file: ") {
        Some(file) => {
            let read = std::fs::read(file);
            read.map_err(|error: io::Error| format!("cannot read a file of the URL: {error}"))
        }
        None => Ok(value.as_bytes().to_vec()),
    }
}
