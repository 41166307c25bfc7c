//! The URL of a cache.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

use super::{Host, Parts, UrlProblem, decoded, host, pairs, scheme, split};

/// Where the cache is, and how to connect to it.
pub struct CacheUrl {
    /// Where the server is.
    pub address: CacheAddress,
    /// The user to log in as.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// The user to log in to the Sentinels as.
    pub sentinel_user: Option<String>,
    /// The password of that user.
    pub sentinel_password: Option<SecretString>,
    /// The number of the database.
    pub database: u32,
    /// Whether the connection uses RESP3 instead of RESP2.
    pub is_resp3: bool,
}

/// Where the cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheAddress {
    /// One server, at a TCP port.
    Tcp {
        /// The server.
        endpoint: Endpoint,
        /// Whether the connection uses TLS.
        tls: bool,
    },
    /// One server, at this Unix socket.
    Socket(PathBuf),
    /// A Redis Cluster.
    Cluster {
        /// Some of its nodes, at least one. Any of them can name the others.
        nodes: Vec<Endpoint>,
        /// Whether the connections to the nodes use TLS.
        tls: bool,
    },
    /// The primary that Sentinels watch.
    Sentinel {
        /// The Sentinels, at least one.
        sentinels: Vec<Endpoint>,
        /// The name under which they watch it.
        service: String,
        /// Whether the connections to the Sentinels and to the primary use TLS.
        tls: bool,
    },
}

/// A TCP port of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The host's name or IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// The port of a Redis server whose URL gives none.
    const SERVER_PORT: u16 = 6379;
    /// The port of a Sentinel whose URL gives none.
    const SENTINEL_PORT: u16 = 26379;
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Display for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |endpoints: &[Endpoint]| {
            endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        match self {
            Self::Tcp { endpoint, .. } => endpoint.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
            Self::Cluster { nodes, .. } => f.write_str(&list(nodes)),
            Self::Sentinel { sentinels, service, .. } => {
                write!(f, "{}/{service}", list(sentinels))
            }
        }
    }
}

/// Parameters of other clients, each with the text that says what to write instead.
const REFUSED: [(&[&str], &str); 10] = [
    (&["sentinel_user", "sentinel_pass"], "leave it out: it is for a URL with `redis+sentinel://`"),
    (
        &["sentinel_username", "sentinel_password", "sentinelUsername", "sentinelPassword"],
        "write `sentinel_user` and `sentinel_pass`",
    ),
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
    /// What the URL may begin with.
    pub const SCHEMES: [&str; 8] = [
        "redis",
        "rediss",
        "redis+unix",
        "unix",
        "redis+cluster",
        "rediss+cluster",
        "redis+sentinel",
        "rediss+sentinel",
    ];

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
            "redis+cluster" => cluster(&parts, false)?,
            "rediss+cluster" => cluster(&parts, true)?,
            "redis+sentinel" => sentinel(&parts, false)?,
            "rediss+sentinel" => sentinel(&parts, true)?,
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
        let path = parts.path.trim_matches('/');
        let path = match &address {
            CacheAddress::Tcp { .. } | CacheAddress::Cluster { .. } => path,
            CacheAddress::Socket(_) => "",
            CacheAddress::Sentinel { .. } => split(path, '/').1.unwrap_or_default(),
        };
        let password = some(parts.password)?.map(SecretString::from);
        let database = number(path, "the database is a number, as in `redis://host:6379/2`")?;
        let mut url = Self {
            address,
            user: some(parts.user)?,
            password,
            sentinel_user: None,
            sentinel_password: None,
            database,
            is_resp3: false,
        };
        let (pairs, problems) = pairs(parts.query);
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        for (name, value) in pairs {
            url.apply(&name, value)?;
        }
        if matches!(url.address, CacheAddress::Cluster { .. }) && url.database != 0 {
            let hint = "leave the number out: a Redis Cluster has only database 0";
            return Err(UrlProblem::part("the database cannot be chosen", hint));
        }
        Ok(url)
    }

    fn apply(&mut self, name: &str, value: String) -> Result<(), UrlProblem> {
        let known = ["db", "user", "pass", "protocol", "sentinel_user", "sentinel_pass"];
        let is_sentinel = matches!(self.address, CacheAddress::Sentinel { .. });
        match name {
            "db" => self.database = number(&value, "the database is a number: `?db=2`")?,
            "user" => self.user = Some(value),
            "pass" => self.password = Some(SecretString::from(value)),
            "sentinel_user" if is_sentinel => self.sentinel_user = Some(value),
            "sentinel_pass" if is_sentinel => {
                self.sentinel_password = Some(SecretString::from(value));
            }
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
    let mut endpoints = endpoints(parts.hosts, Endpoint::SERVER_PORT)?;
    let one = endpoints.pop().filter(|_| endpoints.is_empty());
    let Some(endpoint) = one else {
        let hint = "several hosts are the nodes of a Redis Cluster, `redis+cluster://h1,h2,h3`, or \
                    Sentinels, `redis+sentinel://h1,h2,h3/service`";
        return Err(UrlProblem::unreadable(hint));
    };
    Ok(CacheAddress::Tcp { endpoint, tls })
}

fn cluster(parts: &Parts<'_>, tls: bool) -> Result<CacheAddress, UrlProblem> {
    Ok(CacheAddress::Cluster { nodes: endpoints(parts.hosts, Endpoint::SERVER_PORT)?, tls })
}

fn sentinel(parts: &Parts<'_>, tls: bool) -> Result<CacheAddress, UrlProblem> {
    let sentinels = endpoints(parts.hosts, Endpoint::SENTINEL_PORT)?;
    let service = decoded(split(parts.path.trim_start_matches('/'), '/').0)?;
    if service.is_empty() {
        let hint = "name the service that the Sentinels watch, as in \
                    `redis+sentinel://h1,h2,h3/service`";
        return Err(UrlProblem::unreadable(hint));
    }
    Ok(CacheAddress::Sentinel { sentinels, service, tls })
}

/// The hosts of a URL, separated by commas.
fn endpoints(hosts: &str, default_port: u16) -> Result<Vec<Endpoint>, UrlProblem> {
    let endpoint = |text: &str| {
        let Host { name: host, port } = host(text)?;
        if host.is_empty() {
            return Err(UrlProblem::unreadable("name the host, as in `redis://host:6379`"));
        }
        Ok(Endpoint { host, port: port.unwrap_or(default_port) })
    };
    hosts.split(',').map(endpoint).collect()
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
