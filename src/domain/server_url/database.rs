//! The URL of a database.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::parameter::{self, Draft, ServerRole, TlsMode};
use super::{Host, Parts, UrlProblem, decoded, host, pairs, scheme};

/// Where the database is, how to connect to it, and which settings each transaction gets.
pub struct DatabaseUrl {
    /// The hosts, in the order in which preheat tries them; at least one.
    pub hosts: Vec<Host>,
    /// The role that a server must have.
    pub wanted: ServerRole,
    /// The role to log in as.
    pub user: Option<String>,
    /// The role's password.
    pub password: Option<SecretString>,
    /// The database's name.
    pub database: Option<String>,
    /// How the connection is protected.
    pub tls: Tls,
    /// The name of the connection in `pg_stat_activity`.
    pub application_name: Option<String>,
    /// The longest wait for a connection to one host.
    pub connect_timeout: Option<Duration>,
    /// The most connections that preheat may open.
    pub connection_limit: Option<NonZeroU32>,
    /// The schemas in which the server looks up names without a schema; empty if the URL says nothing.
    pub search_path: Vec<String>,
    /// Other settings of each transaction, by name.
    pub settings: Vec<(String, String)>,
}

/// How a connection is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `None` if the URL says nothing.
    pub mode: Option<TlsMode>,
    /// The authorities whose signatures preheat trusts.
    pub roots: Roots,
    /// The files with the client's own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The authorities whose signatures preheat trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// The public authorities that are built into preheat.
    #[default]
    Bundled,
    /// The public authorities, and those that this machine trusts.
    System,
    /// The public authorities, and those in this file.
    File(PathBuf),
}

impl DatabaseUrl {
    /// Parses the URL of a database, or returns all its problems.
    pub fn parse(text: &str) -> Result<Self, Vec<UrlProblem>> {
        let rest = after_scheme(text.trim()).map_err(|problem| vec![problem])?;
        let parts = Parts::of(rest);
        let draft = Draft::of(&parts).map_err(|problem| vec![problem])?;
        let (pairs, mut problems) = pairs(parts.query);
        let draft = parameter::apply(draft, pairs, &mut problems);
        match Self::finish(draft) {
            Ok(url) if problems.is_empty() => Ok(url),
            Ok(_) => Err(problems),
            Err(problem) => {
                problems.push(problem);
                Err(problems)
            }
        }
    }

    fn finish(draft: Draft) -> Result<Self, UrlProblem> {
        let tls = tls(&draft)?;
        let hosts = hosts(&draft, &tls)?;
        check_endpoint(&draft, &hosts)?;
        Ok(Self {
            hosts,
            wanted: draft.wanted,
            user: draft.user,
            password: draft.password.map(SecretString::from),
            database: draft.database,
            tls,
            application_name: draft.application_name.or(draft.fallback_application_name),
            connect_timeout: draft.connect_timeout,
            connection_limit: draft.connection_limit,
            search_path: draft.search_path,
            settings: draft.settings,
        })
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseUrl").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Draft {
    /// The parts of the URL before its parameters.
    fn of(url: &Parts<'_>) -> Result<Self, UrlProblem> {
        if url.fragment.is_some() {
            return Err(UrlProblem::unreadable("a `#` is written `%23`"));
        }
        let some =
            |text: &str| decoded(text).map(|text| Some(text).filter(|text| !text.is_empty()));
        let hosts = url.hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        let (names, ports) = hosts.into_iter().map(|host| (host.name, host.port)).unzip();
        Ok(Self {
            names,
            ports,
            user: url.user.map_or(Ok(None), some)?,
            password: url.password.map_or(Ok(None), some)?,
            database: some(url.path)?,
            ..Self::default()
        })
    }
}

/// The text after the scheme. `SQLAlchemy` adds its driver to the scheme, and JDBC adds `jdbc:`.
fn after_scheme(text: &str) -> Result<&str, UrlProblem> {
    let (scheme, rest) = scheme(text)?;
    let lower = scheme.to_ascii_lowercase();
    let plain = lower.strip_prefix("jdbc:").unwrap_or(&lower);
    let plain = plain.split_once('+').map_or(plain, |(plain, _driver)| plain);
    match plain {
        "postgres" | "postgresql" => Ok(rest),
        "prisma" => {
            let hint = "that is an address of Prisma's proxy; take the one of the database itself";
            Err(UrlProblem::Scheme { found: scheme.to_owned(), hint: Some(hint.to_owned()) })
        }
        "postgis" | "psql" | "pgsql" | "ecto" => {
            let hint = "write the same with `postgres://`".to_owned();
            Err(UrlProblem::Scheme { found: scheme.to_owned(), hint: Some(hint) })
        }
        _ => Err(UrlProblem::Scheme { found: scheme.to_owned(), hint: None }),
    }
}

/// Combines names and ports; a single port is for all hosts.
fn hosts(draft: &Draft, tls: &Tls) -> Result<Vec<Host>, UrlProblem> {
    let Draft { names, ports, addresses, .. } = draft;
    let is_host_said = names.iter().any(|name| !name.is_empty());
    if is_host_said && !addresses.is_empty() && tls.mode == Some(TlsMode::VerifyFull) {
        let hint = "the certificate is compared with the host that is connected to; leave \
                    `hostaddr` out, and let the host's name lead there";
        return Err(UrlProblem::part("parameter `hostaddr` beside `sslmode=verify-full`", hint));
    }
    let names = if addresses.is_empty() { names } else { addresses };
    if ports.len() > 1 && ports.len() != names.len() {
        let hint = "write one port for each host, or one for all";
        return Err(UrlProblem::part("there are more or fewer ports than hosts", hint));
    }
    let all = ports.first().copied().flatten();
    let port = |index: usize| if ports.len() > 1 { ports.get(index).copied()? } else { all };
    let host = |(index, name): (usize, &String)| Host { name: name.clone(), port: port(index) };
    Ok(names.iter().enumerate().map(host).collect())
}

fn tls(draft: &Draft) -> Result<Tls, UrlProblem> {
    let Draft { ssl_mode, ssl, root_cert, binds_channel, client_cert, client_key, .. } = draft;
    let mode = match (ssl_mode.or(*ssl), root_cert.as_deref()) {
        // As in libpq: if authorities are given, `require` verifies the certificate.
        (Some(TlsMode::Require), Some(file)) if file != SYSTEM => Some(TlsMode::VerifyCa),
        // As in libpq: anybody can get a certificate of the system's authorities, so the host's name
        // must be checked.
        (None, Some(SYSTEM)) => Some(TlsMode::VerifyFull),
        (mode, _) => mode,
    };
    let verifies = mode >= Some(TlsMode::VerifyCa);
    match root_cert.as_deref() {
        Some(SYSTEM) if mode != Some(TlsMode::VerifyFull) => {
            let hint = "write `sslmode=verify-full` beside it, or leave `sslmode` out";
            return Err(UrlProblem::part(
                "parameter `sslrootcert=system` needs `sslmode=verify-full`",
                hint,
            ));
        }
        Some(_) if !verifies => {
            let hint = "write `sslmode=verify-full` or `sslmode=verify-ca` beside it; otherwise no \
                        certificate is compared with it";
            return Err(UrlProblem::part("parameter `sslrootcert` has no effect", hint));
        }
        Some(_) | None => {}
    }
    if *binds_channel && mode == Some(TlsMode::Disable) {
        let hint = "it needs TLS: leave one of the two out";
        let message = "parameter `channel_binding=require` beside `sslmode=disable`";
        return Err(UrlProblem::part(message, hint));
    }
    let client = match (client_cert, client_key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            let hint = "`sslcert` is our own certificate and needs its `sslkey`; the authority that \
                        signs for the server, which is Prisma's `sslcert`, is `sslrootcert`";
            return Err(UrlProblem::part("parameter `sslcert` without `sslkey`", hint));
        }
        (None, Some(_)) => {
            let hint = "write the certificate of that key as `sslcert`";
            return Err(UrlProblem::part("parameter `sslkey` without `sslcert`", hint));
        }
    };
    let roots = match root_cert.as_deref() {
        None => Roots::Bundled,
        Some(SYSTEM) => Roots::System,
        Some(file) => Roots::File(file.into()),
    };
    // Channel binding and `verify-full` both rule out a man in the middle; the driver supports
    // `verify-full`.
    let mode = if *binds_channel { mode.max(Some(TlsMode::VerifyFull)) } else { mode };
    Ok(Tls { mode, roots, client })
}

/// libpq's word for the authorities that this machine trusts.
const SYSTEM: &str = "system";

/// Neon finds its endpoint by the host's name, which every driver with SNI sends.
fn check_endpoint(draft: &Draft, hosts: &[Host]) -> Result<(), UrlProblem> {
    let bare = |name: &str| name.trim_end_matches("-pooler").to_owned();
    let first_label = |host: &Host| bare(host.name.split('.').next().unwrap_or_default());
    match &draft.endpoint {
        Some(endpoint) if !hosts.iter().all(|host| first_label(host) == bare(endpoint)) => {
            let hint = "the endpoint is the first part of the host's name, which is sent with TLS: \
                        leave `options` out, and connect to that host";
            Err(UrlProblem::part("parameter `options` names another endpoint than the host", hint))
        }
        Some(_) | None => Ok(()),
    }
}
