//! How to reach a database: one host or several, and which of them is acceptable.

use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::timeout;

use super::CONNECT_TIMEOUT;
use super::client::Client;
use super::not_connected::NotConnected;
use super::replication::Session;
use super::session::Local;
use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::domain::server_url::{DatabaseUrl, Host, Roots, ServerRole, Tls, TlsMode};

/// Where machines keep the certificates of the authorities that they trust: Debian and Alpine,
/// Fedora, SUSE, others.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How to reach one database, as its URL says.
pub(super) struct Route {
    /// In the order in which we try them; at least one.
    hosts: Vec<PgConnectOptions>,
    /// The host that was reached last, which is tried first: as long as it is acceptable, all connections
    /// lead to it.
    reached: AtomicUsize,
    wanted: ServerRole,
    server: String,
    /// The longest wait for one host.
    pub(super) patience: Duration,
    /// The parameters of the URL that each transaction sets.
    pub(super) locals: Vec<Local>,
}

/// What a server says about itself.
#[derive(Clone, Copy)]
struct Standing {
    is_standby: bool,
    is_read_only: bool,
}

impl Route {
    /// Reads the URL, and the files that it names.
    pub(super) fn new(url: &SecretString) -> Result<Self, ConnectError> {
        let url = DatabaseUrl::parse(url.expose_secret()).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            ConnectError::settings(format!("the database's URL: {}", problems.join("; ")))
        })?;
        let tls = |options, host: &Host| with_tls(options, &url.tls, host.is_socket());
        let options = |host| base(&url, host).and_then(|options| tls(options, host));
        let hosts = url.hosts.iter().map(options).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            server: server(&hosts),
            hosts,
            reached: AtomicUsize::new(usize::MAX),
            wanted: url.wanted,
            patience: url.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            locals: locals(&url),
        })
    }

    /// The options of the first host.
    pub(super) fn first(&self) -> PgConnectOptions {
        self.hosts.first().cloned().unwrap_or_default()
    }

    /// The hosts and the database for messages: without user and password.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Whether the URL has one host and accepts it in any role.
    pub(super) fn is_plain(&self) -> bool {
        self.hosts.len() == 1 && self.wanted == ServerRole::Any
    }

    /// The options of the host that was reached last.
    pub(super) fn reached(&self) -> PgConnectOptions {
        let reached = self.hosts.get(self.reached.load(Ordering::Relaxed));
        reached.cloned().unwrap_or_else(|| self.first())
    }

    /// Connects to the host that was reached last, if it is acceptable still, or to the first acceptable one.
    pub(super) async fn connect<C: Client>(&self) -> Result<C, NotConnected> {
        let reached = self.hosts.get(self.reached.load(Ordering::Relaxed));
        if let Some(options) = reached.filter(|_| !self.is_plain())
            && let Ok(client) = self.try_host(options, self.wanted).await
        {
            return Ok(client);
        }
        let wanted: &[ServerRole] = match self.wanted {
            ServerRole::PreferStandby => &[ServerRole::Standby, ServerRole::Any],
            ServerRole::Any
            | ServerRole::ReadWrite
            | ServerRole::ReadOnly
            | ServerRole::Primary
            | ServerRole::Standby => std::slice::from_ref(&self.wanted),
        };
        let mut failed = Vec::new();
        for &wanted in wanted {
            failed.clear();
            for (index, options) in self.hosts.iter().enumerate() {
                match self.try_host(options, wanted).await {
                    Ok(client) => {
                        self.reached.store(index, Ordering::Relaxed);
                        return Ok(client);
                    }
                    Err(reason) => failed.push((options, reason)),
                }
            }
        }
        Err(self.none_will_do(&failed))
    }

    /// Whether an open connection still leads to an acceptable server.
    pub(super) async fn suits<C: Client>(&self, client: &mut C) -> bool {
        let standing = timeout(self.patience, standing(client)).await;
        matches!(standing, Ok(Ok(standing)) if standing.lacks(self.wanted).is_none())
    }

    async fn try_host<C: Client>(
        &self,
        options: &PgConnectOptions,
        wanted: ServerRole,
    ) -> Result<C, NotConnected> {
        let server = &self.server;
        let connect = async {
            let mut client = C::connect(options).await?;
            let lacks = if wanted == ServerRole::Any {
                None
            } else {
                standing(&mut client).await?.lacks(wanted)
            };
            Ok::<_, sqlx::Error>((client, lacks))
        };
        match timeout(self.patience, connect).await {
            Ok(Ok((client, None))) => Ok(client),
            Ok(Ok((client, Some(lacks)))) => {
                drop(timeout(self.patience, client.close()).await);
                let wanted = wanted.as_str();
                let reason = format!("{lacks}, and `target_session_attrs` is `{wanted}`");
                Err(NotConnected::because(server, ConnectErrorKind::Unreachable, &reason))
            }
            Ok(Err(error)) => Err(NotConnected::new(server, &error)),
            Err(_elapsed) => Err(NotConnected::in_time(server, self.patience)),
        }
    }

    /// Opens a session that can stream the write-ahead log, on the first host that is a primary: on a standby
    /// no trigger fires.
    pub(super) async fn replicate(&self) -> Result<Session, NotConnected> {
        let mut failed = Vec::new();
        for options in &self.hosts {
            match self.try_to_replicate(options).await {
                Ok(session) => return Ok(session),
                Err(reason) => failed.push((options, reason)),
            }
        }
        Err(self.none_will_do(&failed))
    }

    async fn try_to_replicate(&self, options: &PgConnectOptions) -> Result<Session, NotConnected> {
        let server = &self.server;
        let connect = async {
            let mut session = Session::connect(options).await?;
            let rows = session.query("select pg_is_in_recovery()").await?;
            let is_standby = rows.concat().contains(&Some("t".to_owned()));
            Ok((session, is_standby))
        };
        match timeout(self.patience, connect).await {
            Ok(Ok((session, false))) => Ok(session),
            Ok(Ok((_, true))) => {
                let reason = "it is a standby, where no trigger fires; hint: set `[changes] url` \
                              to the address of the primary";
                Err(NotConnected::because(server, ConnectErrorKind::Unreachable, reason))
            }
            Ok(Err(error)) => Err(NotConnected::replicating(server, &error)),
            Err(_elapsed) => Err(NotConnected::in_time(server, self.patience)),
        }
    }

    /// What was wrong with each host. The error is final only if no host may become reachable
    /// later.
    fn none_will_do(&self, failed: &[(&PgConnectOptions, NotConnected)]) -> NotConnected {
        let unreachable = ConnectErrorKind::Unreachable;
        let may_come = failed.iter().find(|(_, reason)| reason.kind == unreachable);
        let kind = may_come.map_or(ConnectErrorKind::Refused, |_| unreachable);
        let mut reasons = String::new();
        for (options, NotConnected { reason, .. }) in failed {
            let separator = if reasons.is_empty() { "" } else { "; " };
            let _a_string_takes_all = if self.hosts.len() == 1 {
                write!(reasons, "{separator}{reason}")
            } else {
                write!(reasons, "{separator}`{}`: {reason}", place(options))
            };
        }
        let may_pass = failed.iter().any(|(_, reason)| reason.may_pass);
        NotConnected { may_pass, ..NotConnected::because(&self.server, kind, &reasons) }
    }
}

impl Standing {
    /// Why the server is not acceptable; `None` if it is.
    fn lacks(self, wanted: ServerRole) -> Option<&'static str> {
        let Self { is_standby, is_read_only } = self;
        match wanted {
            ServerRole::Primary | ServerRole::ReadWrite if is_standby => Some("it is a standby"),
            ServerRole::ReadWrite if is_read_only => Some("its sessions are read-only"),
            ServerRole::Standby if !is_standby => Some("it is no standby"),
            ServerRole::ReadOnly if !is_read_only => Some("its sessions may write"),
            ServerRole::Any
            | ServerRole::PreferStandby
            | ServerRole::Primary
            | ServerRole::ReadWrite
            | ServerRole::Standby
            | ServerRole::ReadOnly => None,
        }
    }
}

/// Asked outside of a transaction, so the answer is the session's default for writing.
async fn standing<C: Client>(client: &mut C) -> Result<Standing, sqlx::Error> {
    const SQL: &str = "select pg_is_in_recovery(), \
                       pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool";
    let answer = client.ask(SQL).await?.concat();
    let is = |index| answer.get(index).and_then(Option::as_deref) == Some("t");
    Ok(Standing { is_standby: is(0), is_read_only: is(1) })
}

/// One host with its login. The driver only gets parameters that it knows, because it writes all
/// others to the log, with their values. It reads a password from `~/.pgpass` only when it parses a
/// URL.
fn base(url: &DatabaseUrl, host: &Host) -> Result<PgConnectOptions, ConnectError> {
    let port = host.port.map(|port| port.to_string());
    let name = Some(host.name.clone()).filter(|name| !name.is_empty());
    let password = url.password.as_ref().map(|password| password.expose_secret().to_owned());
    let parts = [
        ("host", name),
        ("port", port),
        ("user", url.user.clone()),
        ("password", password),
        ("dbname", url.database.clone()),
    ];
    let mut text = "postgres:///?".to_owned();
    for (parameter, value) in parts {
        if let Some(value) = value {
            let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
            let _a_string_takes_all = write!(text, "{parameter}={value}&");
        }
    }
    let options = text.trim_end_matches(['&', '?']).parse::<PgConnectOptions>();
    // The error may quote parts of the URL, so we do not show it.
    let options =
        options.map_err(|_quotes| ConnectError::settings("the database's URL cannot be used"))?;
    let name = url.application_name.as_deref().unwrap_or("preheat");
    // Connecting sends no setting that a pooler may refuse or drop.
    let options = options.application_name(name).extra_float_digits(None);
    Ok(options.statement_cache_capacity(0).disable_statement_logging())
}

fn with_tls(
    mut options: PgConnectOptions,
    tls: &Tls,
    is_socket: bool,
) -> Result<PgConnectOptions, ConnectError> {
    // As libpq does: the server of a Unix socket is on this machine and needs no TLS.
    let mode = if is_socket { Some(TlsMode::Disable) } else { tls.mode };
    if let Some(mode) = mode {
        options = options.ssl_mode(match mode {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        });
    }
    match &tls.roots {
        Roots::Bundled => {}
        Roots::System => {
            if let Some(roots) = system_roots() {
                options = options.ssl_root_cert_from_pem(roots);
            }
        }
        Roots::File(file) => {
            readable("sslrootcert", file)?;
            options = options.ssl_root_cert(file);
        }
    }
    if let Some((certificate, key)) = &tls.client {
        readable("sslcert", certificate)?;
        readable("sslkey", key)?;
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(options)
}

/// The authorities that this machine trusts, in PEM, without the certificates that the driver
/// cannot parse; `None` if the machine has no such file.
fn system_roots() -> Option<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let text = SYSTEM_ROOTS.iter().find_map(|file| std::fs::read_to_string(file).ok())?;
    let is_usable = |pem: &str| {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        certificate.is_ok_and(|certificate| RootCertStore::empty().add(certificate).is_ok())
    };
    let certificates = text.split(BEGIN).skip(1).map(|rest| format!("{BEGIN}{rest}"));
    Some(certificates.filter(|pem| is_usable(pem)).collect::<String>().into_bytes())
}

/// The path is a value of the URL, so the message does not show it.
fn readable(parameter: &str, file: &Path) -> Result<(), ConnectError> {
    std::fs::File::open(file).map(drop).map_err(|error| {
        ConnectError::settings(format!("cannot read the file that `{parameter}` names: {error}"))
    })
}

/// The parameters of the URL that each transaction sets.
fn locals(url: &DatabaseUrl) -> Vec<Local> {
    let quoted = |schema: &String| format!("\"{}\"", schema.replace('"', "\"\""));
    let path: Vec<_> = url.search_path.iter().map(quoted).collect();
    let path = (!path.is_empty()).then(|| Local::new("search_path", &path.join(", ")));
    let others = url.settings.iter().map(|(name, value)| Local::new(name, value));
    path.into_iter().chain(others).collect()
}

fn server(hosts: &[PgConnectOptions]) -> String {
    let places: Vec<_> = hosts.iter().map(place).collect();
    let database = hosts
        .first()
        .map_or("", |options| options.get_database().unwrap_or_else(|| options.get_username()));
    format!("{}/{database}", places.join(","))
}

fn place(options: &PgConnectOptions) -> String {
    let port = options.get_port();
    match options.get_socket() {
        Some(socket) => format!("{}:{port}", socket.display()),
        None if options.get_host().contains(':') => format!("[{}]:{port}", options.get_host()),
        None => format!("{}:{port}", options.get_host()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(url: &str) -> Result<Route, ConnectError> {
        Route::new(&SecretString::from(url))
    }

    #[test]
    fn the_server_is_named_without_user_and_password() {
        let cases = [
            ("postgres://u:hush@db.local/shop", "db.local:5432/shop"),
            ("postgres:///shop?host=/run/pg&port=6000&user=u&password=hush", "/run/pg:6000/shop"),
            ("postgres://u:hush@db.local", "db.local:5432/u"),
            ("postgres://u:hush@[::1]:6000/shop", "[::1]:6000/shop"),
            ("postgres://u:hush@a:1,b,[::1]/shop", "a:1,b:5432,[::1]:5432/shop"),
        ];
        for (url, named) in cases {
            assert_eq!(route(url).unwrap().server(), named);
        }
        let error = route("postgres//u:hush@db").err().unwrap();
        let expected = "the database's URL: it cannot be read; hint: a URL begins with its scheme \
                        and `://`";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_a_url_sets_is_set_by_transactions_and_not_at_the_start_of_a_connection() {
        let cases: [(&str, &[(&str, &str)]); 4] = [
            ("schema=It's", &[("search_path", "\"It's\"")]),
            (
                "search_path=App,%22Mixed%20%22%22Case%22,$user",
                &[("search_path", "\"app\", \"Mixed \"\"Case\", \"$user\"")],
            ),
            (
                "options=-c%20work_mem%3D8MB+--search-path%3Da,%5C%20b&port=1&options[a.b]=c",
                &[("search_path", "\"a\", \"b\""), ("work_mem", "8MB"), ("a.b", "c")],
            ),
            ("options=-c%20a.b%3Dc%5C%5Cd", &[("a.b", "c\\d")]),
        ];
        for (parameters, expected) in cases {
            let route = route(&format!("postgres://db/shop?{parameters}")).unwrap();
            assert_eq!(route.first().get_options(), None);
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| Local::new(name, value)).collect();
            assert_eq!(route.locals, expected, "{parameters}");
        }
    }
}
