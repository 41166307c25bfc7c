//! Who may do what, and what a connection and its headers say about where a request comes from.
//!
//! Headers that a proxy sets count only if the connection comes from a trusted proxy: everybody else
//! could write the same.

use std::net::{IpAddr, SocketAddr};

use axum::http::{Extensions, HeaderMap, HeaderName, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::answer::ApiError;
use crate::domain::network::{Network, is_base_path};
use crate::domain::who::Who;

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The token that a request must carry to change something. Without it, no request can.
    pub token: Option<SecretString>,
    /// With it, routes that show something need it, or `token`.
    pub read_token: Option<SecretString>,
    /// The proxies whose headers count.
    pub trusted_proxies: Vec<Network>,
    /// The header in which a trusted proxy names the user.
    pub user_header: String,
    /// Where the dashboard is below its host, such as `/preheat`; empty at its root.
    pub base_path: String,
    /// Whether the worker listens on a loopback address, so that only this machine can ask it.
    pub only_local: bool,
}

/// The other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Where a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Client {
    /// Its address, as far as it is known.
    pub(super) address: Option<IpAddr>,
    /// Whether it came through a trusted proxy.
    pub(super) is_by_proxy: bool,
    /// Whether it used HTTPS.
    pub(super) is_https: bool,
    /// The host that it asked for, with the port where it gave one.
    pub(super) host: Option<String>,
    /// Where the dashboard is below that host, as the client sees it.
    pub(super) base_path: String,
    /// The user's name, as a trusted proxy gave it.
    pub(super) user: Option<Who>,
}

impl Access {
    /// Whether anybody can sign in.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some() || self.read_token.is_some()
    }

    /// What a token allows.
    pub(super) fn rights_of(&self, token: &[u8]) -> Option<Rights> {
        let is = |known: Option<&SecretString>| {
            known.is_some_and(|known| bool::from(token.ct_eq(known.expose_secret().as_bytes())))
        };
        // Both are compared, so that the time tells nothing.
        match (is(self.token.as_ref()), is(self.read_token.as_ref())) {
            (true, _) => Some(Rights::Write),
            (false, true) => Some(Rights::Read),
            (false, false) => None,
        }
    }

    /// What the request's connection and headers say.
    pub(super) fn client(&self, headers: &HeaderMap, extensions: &Extensions) -> Client {
        let peer = extensions.get::<Peer>().map(|Peer(peer)| peer.ip());
        let own_host = text(headers, header::HOST).map(str::to_owned);
        if !peer.is_some_and(|peer| self.trusts(peer)) {
            return Client {
                address: peer,
                host: own_host,
                base_path: self.base_path.clone(),
                ..Client::default()
            };
        }
        let from_proxy = |name| text(headers, HeaderName::from_static(name)).and_then(last);
        let prefix = from_proxy("x-forwarded-prefix").map(|prefix| prefix.trim_end_matches('/'));
        let prefix = prefix.filter(|prefix| is_base_path(prefix));
        let user = headers.get(&self.user_header).and_then(|user| user.to_str().ok());
        Client {
            address: self.forwarded_for(headers).or(peer),
            is_by_proxy: true,
            is_https: from_proxy("x-forwarded-proto")
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: from_proxy("x-forwarded-host").map(str::to_owned).or(own_host),
            base_path: prefix.unwrap_or(&self.base_path).to_owned(),
            user: user.and_then(Who::named),
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// The last address that no trusted proxy has: what stands before it, anybody may have written.
    fn forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let addresses = lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.rsplit(','))
            .map_while(|address| address_in(address.trim()));
        addresses.into_iter().find(|address| !self.trusts(*address))
    }

    /// Refuses a request for another host's name at a worker that listens for this machine alone. It
    /// may come from a web site that made its own name lead to this machine, so that a browser lets the
    /// site read the answers.
    pub(super) fn check_host(&self, client: &Client) -> Result<(), ApiError> {
        let Some(host) = &client.host else { return Ok(()) };
        if !self.only_local || client.is_by_proxy || is_local(host) {
            return Ok(());
        }
        let host = host.escape_debug();
        let message = format!(
            "this worker listens on a loopback address and answers to `localhost` alone, not to \
             `{host}`: if that is a proxy's name, set `[http] trusted_proxies`"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "unknown_host", message))
    }
}

impl Client {
    /// Refuses a request that a page of another site may have sent with this browser's cookie.
    pub(super) fn check_same_site(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let site = text(headers, HeaderName::from_static("sec-fetch-site"));
        let origin = text(headers, header::ORIGIN);
        let is_same = match (site, origin) {
            (Some(site), _) => site == "same-origin",
            (None, Some(origin)) => self.is_origin(origin),
            (None, None) => false,
        };
        if is_same {
            return Ok(());
        }
        let said = site.or(origin).map_or("neither is there".to_owned(), |said| {
            format!("here it says `{}`", said.escape_debug())
        });
        let message = format!(
            "a request with a cookie has to come from the dashboard itself, as `Sec-Fetch-Site` or \
             `Origin` tells; {said}. Programs send `Authorization: Bearer TOKEN`"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "cross_site", message))
    }

    /// Whether an `Origin` is this worker, as the client sees it.
    fn is_origin(&self, origin: &str) -> bool {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_some() && host == self.host.as_deref()
    }
}

/// Whether a host, which may have a port, is this machine.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') =>
        {
            name
        }
        Some(_) | None => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// An address in `X-Forwarded-For`, which may have a port.
fn address_in(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The last value of a list: the one that the nearest proxy added.
fn last(list: &str) -> Option<&str> {
    list.rsplit(',').next().map(str::trim).filter(|value| !value.is_empty())
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rights {
    /// Look at everything, and change nothing.
    Read,
    /// Change things too.
    Write,
}

impl Rights {
    /// How the cookie has it. Each has a key of its own.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    pub(super) fn token(self, access: &Access) -> Option<&SecretString> {
        match self {
            Self::Read => access.read_token.as_ref(),
            Self::Write => access.token.as_ref(),
        }
    }
}

/// The token of an `Authorization` header (RFC 6750). The case of the scheme does not matter (RFC
/// 9110).
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn client(peer: &str, pairs: &[(&'static str, &str)]) -> Client {
        let access = Access {
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            user_header: "X-Forwarded-User".to_owned(),
            base_path: "/own".to_owned(),
            ..Access::default()
        };
        let mut extensions = Extensions::new();
        extensions.insert(Peer(SocketAddr::new(peer.parse().unwrap(), 4000)));
        access.client(&headers(pairs), &extensions)
    }

    #[test]
    fn only_a_trusted_proxy_says_whom_it_speaks_for() {
        let said = [
            ("host", "worker:9464"),
            ("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "ops.example.org"),
            ("x-forwarded-prefix", "/tools/preheat/"),
            ("x-forwarded-user", "Ann"),
        ];
        let through_proxy = Client {
            address: Some("192.0.2.7".parse().unwrap()),
            is_by_proxy: true,
            is_https: true,
            host: Some("ops.example.org".to_owned()),
            base_path: "/tools/preheat".to_owned(),
            user: Who::named("Ann"),
        };
        assert_eq!(client("10.2.3.4", &said), through_proxy);
        let direct = Client {
            address: Some("192.0.2.9".parse().unwrap()),
            host: Some("worker:9464".to_owned()),
            base_path: "/own".to_owned(),
            ..Client::default()
        };
        assert_eq!(client("192.0.2.9", &said), direct);
        let odd = [("x-forwarded-prefix", "/a//b"), ("x-forwarded-for", "unknown")];
        let Client { base_path, address, .. } = client("10.2.3.4", &odd);
        assert_eq!((base_path.as_str(), address), ("/own", Some("10.2.3.4".parse().unwrap())));
    }

    #[test]
    fn a_worker_for_this_machine_answers_to_its_names_alone() {
        let local = Access { only_local: true, ..Access::default() };
        let allows = |access: &Access, host: Option<&str>| {
            let client = Client { host: host.map(str::to_owned), ..Client::default() };
            access.check_host(&client).is_ok()
        };
        for host in
            ["localhost", "LocalHost:9464", "127.0.0.1:9464", "[::1]:9464", "::1", "a.localhost."]
        {
            assert!(allows(&local, Some(host)), "{host}");
        }
        for host in ["evil.example", "evil.example:9464", "localhost.evil.example", "10.0.0.1", ""]
        {
            assert!(!allows(&local, Some(host)), "{host}");
            assert!(allows(&Access::default(), Some(host)), "{host}");
        }
        assert!(allows(&local, None));
    }

    #[test]
    fn a_cookie_counts_only_for_requests_of_the_dashboard_itself() {
        let client = Client { host: Some("worker:9464".to_owned()), ..Client::default() };
        let allows = |pairs: &[_]| client.check_same_site(&headers(pairs)).is_ok();
        assert!(allows(&[("sec-fetch-site", "same-origin")]));
        assert!(allows(&[("origin", "http://worker:9464")]));
        for other in [
            &[("sec-fetch-site", "cross-site")] as &[_],
            &[("sec-fetch-site", "same-site"), ("origin", "http://worker:9464")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://worker:9465")],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[],
        ] {
            assert!(!allows(other), "{other:?}");
        }
    }

    #[test]
    fn each_token_has_its_rights() {
        let access = Access {
            token: Some("secret".into()),
            read_token: Some("look".into()),
            ..Access::default()
        };
        assert_eq!(access.rights_of(b"secret"), Some(Rights::Write));
        assert_eq!(access.rights_of(b"look"), Some(Rights::Read));
        for wrong in [b"Secret" as &[u8], b"", b"secret2", b"loo"] {
            assert_eq!(access.rights_of(wrong), None);
        }
        assert_eq!(Access::default().rights_of(b""), None);
    }
}
