//! URLs of servers: preheat understands each part of a URL or refuses it, and ignores nothing.
//!
//! A problem never quotes a value, because any part of a URL may be a secret.

mod cache;
mod database;
mod parameter;

use std::fmt;

use percent_encoding::percent_decode_str;

use super::spelling::nearest;

pub use cache::{CacheAddress, CacheUrl, Endpoint};
pub use database::{DatabaseUrl, Roots, Tls};
pub use parameter::{ParameterNote, ServerRole, TlsMode, parameters};

/// One of the servers that a URL names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// A name, an IP address without brackets, or the folder of a socket; empty if the URL names
    /// none.
    pub name: String,
    /// The port; `None` if the URL gives none.
    pub port: Option<u16>,
}

impl Host {
    /// Whether the name is the folder of a Unix socket.
    pub fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// One problem of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlProblem {
    /// The text is not a URL.
    Unreadable {
        /// How to mend it.
        hint: String,
    },
    /// The scheme is that of another kind of server.
    Scheme {
        /// The text before `://`.
        found: String,
        /// How to mend it, if that is not obvious.
        hint: Option<String>,
    },
    /// preheat cannot do what a part of the URL says.
    Part {
        /// The part, and what is wrong with it.
        message: String,
        /// How to mend it.
        hint: String,
    },
}

impl UrlProblem {
    fn unreadable(hint: &str) -> Self {
        Self::Unreadable { hint: hint.to_owned() }
    }

    fn part(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Part { message: message.into(), hint: hint.into() }
    }

    fn unsupported(name: &str, instead: &str) -> Self {
        Self::part(format!("parameter `{name}` is not supported"), instead)
    }

    fn unknown(name: &str, known: impl IntoIterator<Item = &'static str>) -> Self {
        let hint = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "leave it out: preheat does not know what it means".to_owned(),
        };
        Self::part(format!("{} is unknown", quoted(name)), hint)
    }
}

/// The parts of a URL after its scheme, not yet decoded.
struct Parts<'u> {
    user: Option<&'u str>,
    password: Option<&'u str>,
    /// The hosts, with their ports.
    hosts: &'u str,
    /// The path, without the slash at its beginning.
    path: &'u str,
    query: &'u str,
    fragment: Option<&'u str>,
}

impl<'u> Parts<'u> {
    fn of(after_scheme: &'u str) -> Self {
        let (rest, fragment) = split(after_scheme, '#');
        let (rest, query) = split(rest, '?');
        let (authority, path) = split(rest, '/');
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| split(login, ':')) {
            Some((user, password)) => (Some(user).filter(|user| !user.is_empty()), password),
            None => (None, None),
        };
        let (path, query) = (path.unwrap_or_default(), query.unwrap_or_default());
        Self { user, password, hosts, path, query, fragment }
    }
}

/// The texts before and after `://`.
fn scheme(text: &str) -> Result<(&str, &str), UrlProblem> {
    let is_scheme = |scheme: &str| {
        // Any other text with a colon may be a user and a password.
        let word = scheme.strip_prefix("jdbc:").unwrap_or(scheme);
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte);
        !word.is_empty() && word.bytes().all(is_letter)
    };
    let split = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme));
    split.ok_or_else(|| UrlProblem::unreadable("a URL begins with its scheme and `://`"))
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

const ESCAPES: &str = "characters such as `@`, `:`, `/`, `?` and `#` in a user or password are \
                       written with per cent signs, as in `%40`";

/// Resolves per cent escapes such as `%40`. A `+` stays a `+`, as in libpq.
fn decoded(text: &str) -> Result<String, UrlProblem> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_not_utf8| UrlProblem::unreadable("a URL is UTF-8"))?;
    if decoded.contains('\0') {
        return Err(UrlProblem::unreadable("a URL holds no zero byte"));
    }
    Ok(decoded.into_owned())
}

/// One of the hosts before the path, with its port.
fn host(text: &str) -> Result<Host, UrlProblem> {
    let (name, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((name, rest)) => (name, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
        None => text.rsplit_once(':').map_or((text, Some("")), |(name, port)| (name, Some(port))),
    };
    let name = decoded(name)?;
    let is_open_ipv6 = name.contains(':') && !text.starts_with('[') && !name.starts_with('/');
    if is_open_ipv6 {
        let hint = "an IPv6 address stands in brackets, as in `[::1]:5432`";
        return Err(UrlProblem::Unreadable { hint: format!("{hint}; {ESCAPES}") });
    }
    if name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err(UrlProblem::Unreadable { hint: format!("a host has no blanks; {ESCAPES}") });
    }
    let port = match port {
        Some("") => None,
        Some(port) => Some(self::port(port)?),
        None => return Err(UrlProblem::Unreadable { hint: ESCAPES.to_owned() }),
    };
    Ok(Host { name, port })
}

fn port(text: &str) -> Result<u16, UrlProblem> {
    let port = text.trim().parse().ok().filter(|&port| port > 0);
    port.ok_or_else(|| UrlProblem::Unreadable {
        hint: format!("a port is a number from 1 to 65535; {ESCAPES}"),
    })
}

/// The decoded parameters, and the problems of the others. A parameter without `=` may be the rest of a
/// value, so its problem does not quote it.
fn pairs(query: &str) -> (Vec<(String, String)>, Vec<UrlProblem>) {
    let mut pairs = Vec::new();
    let mut problems = Vec::new();
    for word in query.split('&').filter(|word| !word.is_empty()) {
        let Some((name, value)) = word.split_once('=') else {
            let hint = "write it as `name=value`, and a `&` within a value as `%26`";
            problems.push(UrlProblem::part("a parameter has no value", hint));
            continue;
        };
        match (decoded(name), decoded(value)) {
            (Ok(name), Ok(value)) => pairs.push((name, value)),
            (Err(problem), _) | (_, Err(problem)) => problems.push(problem),
        }
    }
    (pairs, problems)
}

/// A parameter's name for a message; the name is left out if it may not be a name.
fn quoted(name: &str) -> String {
    const LONGEST: usize = 40;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte);
    if name.len() <= LONGEST && name.bytes().all(is_name) {
        format!("parameter `{name}`")
    } else {
        "a parameter".to_owned()
    }
}

impl fmt::Display for UrlProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { hint } => write!(f, "it cannot be read; hint: {hint}"),
            Self::Scheme { found, hint: None } => write!(f, "found `{found}://…`"),
            Self::Scheme { found, hint: Some(hint) } => {
                write!(f, "found `{found}://…`; hint: {hint}")
            }
            Self::Part { message, hint } => write!(f, "{message}; hint: {hint}"),
        }
    }
}
