//! The URL of a cache.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

use super::{Host, Parts, UrlProblem, decoded, host, pairs, scheme};

/// Where the cache is, and how to connect to it.
pub struct CacheUrl {
    /// Where the server is.
    pub address: CacheAddress,
    /// The user to log in as.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// The number of the database.
    pub database: u32,
    /// Whether the connection uses RESP3 instead of RESP2.
    pub is_resp3: bool,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheAddress {
    /// At a TCP port.
    Tcp {
        /// The host's name or IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// Whether the connection uses TLS.
        tls: bool,
    },
    /// At this Unix socket.
    Socket(PathBuf),
}

impl CacheAddress {
    const PORT: u16 = 6379;
}

impl fmt::Display for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Parameters of other clients, each with the text that says what to write instead.
const REFUSED: [(&[&str], &str); 8] = [
    (
        &["ssl_cert_reqs"],
        "leave it out; `[cache] verify = false` is for a server whose certificate cannot be verified",
    ),
    (&["ssl_ca_certs", "ssl_ca_path", "cacert"], "leave it out, and set `[cache] ca`"),
    (
        &["ssl_certfile", "ssl_keyfile", "ssl_check_hostname"],
        "leave it out: a user logs in by password",
    ),
    (&["ssl", "tls"], "leave it out, and write `rediss://` for TLS"),
    (
        &["timeout", "socket_timeout", "socket_connect_timeout", "connect_timeout"],
        "leave it out, and set `[cache] timeout`",
    ),
    (&["password", "username"], "write `user` and `pass`, or both before the host"),
    (&["family"], "leave it out: all addresses of a host are tried"),
    (
        &["max_connections", "pool_size", "retry_on_timeout"],
        "leave it out: there are two connections",
    ),
];

impl CacheUrl {
    /// Parses the URL of a cache, or returns its problems.
    pub fn parse(text: &str) -> Result<Self, Vec<UrlProblem>> {
        Self::read(text.trim()).map_err(|problem| vec![problem])
    }

    fn read(text: &str) -> Result<Self, UrlProblem> {
        let (scheme, rest) = scheme(text)?;
        let parts = Parts::of(rest);
        let address = match scheme.to_ascii_lowercase().as_str() {
            "redis" => tcp(&parts, false)?,
            "rediss" => tcp(&parts, true)?,
            "redis+unix" | "unix" => socket(&parts)?,
            "http" | "https" => return Err(rest_address(scheme, &parts)),
            _ => return Err(UrlProblem::Scheme { found: scheme.to_owned(), hint: None }),
        };
        match parts.fragment {
            None => {}
            Some("insecure") => {
                let hint = "leave it out, and set `[cache] verify = false`";
                return Err(UrlProblem::part("`#insecure` is not supported", hint));
            }
            Some(_) => return Err(UrlProblem::unreadable("a `#` is written `%23`")),
        }
        let some = |text: Option<&str>| {
            let text = text.map_or(Ok(String::new()), decoded)?;
            Ok(Some(text).filter(|text| !text.is_empty()))
        };
        let is_socket = matches!(address, CacheAddress::Socket(_));
        let password = some(parts.password)?.map(SecretString::from);
        let path = if is_socket { "" } else { parts.path.trim_matches('/') };
        let database = number(path, "the database is a number, as in `redis://host:6379/2`")?;
        let mut url =
            Self { address, user: some(parts.user)?, password, database, is_resp3: false };
        let (pairs, problems) = pairs(parts.query);
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        for (name, value) in pairs {
            url.apply(&name, value)?;
        }
        Ok(url)
    }

    fn apply(&mut self, name: &str, value: String) -> Result<(), UrlProblem> {
        let known = ["db", "user", "pass", "protocol"];
        match name {
            "db" => self.database = number(&value, "the database is a number: `?db=2`")?,
            "user" => self.user = Some(value),
            "pass" => self.password = Some(SecretString::from(value)),
            "protocol" => {
                self.is_resp3 = match value.as_str() {
                    "2" | "resp2" => false,
                    "3" | "resp3" => true,
                    _ => {
                        let message = "parameter `protocol` cannot be honoured";
                        return Err(UrlProblem::part(message, "it is `resp2` or `resp3`"));
                    }
                }
            }
            // The defaults of redis-py (`ssl_cert_reqs`) and of ioredis (`family`), which preheat follows too.
            "ssl_cert_reqs" if matches!(value.as_str(), "required" | "CERT_REQUIRED") => {}
            "family" if value == "0" => {}
            _ => {
                let refused = REFUSED.iter().find(|(names, _)| names.contains(&name));
                return Err(match refused {
                    Some((_, instead)) => UrlProblem::unsupported(name, instead),
                    None => UrlProblem::unknown(name, known),
                });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheUrl").field("address", &self.address).finish_non_exhaustive()
    }
}

fn tcp(parts: &Parts<'_>, tls: bool) -> Result<CacheAddress, UrlProblem> {
    let Host { name: host, port } = host(parts.hosts)?;
    if host.is_empty() {
        return Err(UrlProblem::unreadable("name the host, as in `redis://host:6379`"));
    }
    Ok(CacheAddress::Tcp { host, port: port.unwrap_or(CacheAddress::PORT), tls })
}

fn socket(parts: &Parts<'_>) -> Result<CacheAddress, UrlProblem> {
    if !parts.hosts.is_empty() || parts.path.trim_matches('/').is_empty() {
        let hint = "name the socket, as in `redis+unix:///run/redis.sock`";
        return Err(UrlProblem::unreadable(hint));
    }
    Ok(CacheAddress::Socket(format!("/{}", decoded(parts.path)?).into()))
}

/// Upstash servers also have an HTTP address, and a project's settings often hold that one.
fn rest_address(scheme: &str, parts: &Parts<'_>) -> UrlProblem {
    let host = host(parts.hosts).map(|host| host.name).unwrap_or_default();
    let host = if host.is_empty() { "HOST" } else { &host };
    let hint = format!(
        "that is the address of a REST API; the same server speaks Redis' protocol at \
         `rediss://default:TOKEN@{host}:6379`, with the token as the password"
    );
    UrlProblem::Scheme { found: scheme.to_owned(), hint: Some(hint) }
}

fn number(text: &str, hint: &str) -> Result<u32, UrlProblem> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_no_number| UrlProblem::unreadable(hint))
}
