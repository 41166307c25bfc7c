//! Who looks at a page or asks for something, and what they may do.
//!
//! A person signs in with a token, and gets a cookie that says until when they are signed in, with
//! which rights and under which name, and that only this token's owner can have made. The worker keeps
//! nothing, so a sign-in works on every replica and survives a restart, and a new token ends all.

use std::convert::Infallible;
use std::fmt::Write;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::{hkdf, hmac};
use secrecy::ExposeSecret;

use super::AppState;
use super::access::{Access, Client, Rights, bearer};
use super::answer::ApiError;
use super::answer::wants_html;
use super::pages::links::Links;
use crate::domain::who::Who;

/// The cookie's name.
pub(super) const COOKIE: &str = "preheat";
/// How long a sign-in lasts.
const LIFETIME: TimeDelta = TimeDelta::hours(12);
/// The most cookies of this name that are looked at: other paths of the host may set their own.
const MAX_COOKIES: usize = 4;

/// Who sent a request. Routes that show something take it to know which levers to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Viewer {
    /// What they may do.
    pub(super) rights: Rights,
    /// Who they are, if they signed in, carried the token, or came through a proxy that says so.
    pub(super) who: Option<Who>,
    /// Whether they signed in, and so can sign out.
    pub(super) is_signed_in: bool,
}

/// A person's sign-in, as the cookie has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) rights: Rights,
    pub(super) who: Who,
    expires_at: i64,
}

impl Session {
    /// A sign-in that begins now.
    pub(super) fn new(rights: Rights, who: Who, now: DateTime<Utc>) -> Self {
        Self { rights, who, expires_at: (now + LIFETIME).timestamp() }
    }

    /// The cookie's value; `None` if there is no token for these rights.
    pub(super) fn sealed(&self, access: &Access) -> Option<String> {
        let Self { rights, who, expires_at } = self;
        let name = utf8_percent_encode(who.as_str(), NON_ALPHANUMERIC);
        let content = format!("{}.{expires_at}.{name}", rights.as_str());
        let seal = hmac::sign(&key(*rights, access)?, content.as_bytes());
        Some(format!("{content}.{}", hex(seal.as_ref())))
    }

    /// The sign-in that a cookie's value stands for, if it is one of this worker's and not over.
    fn open(value: &str, access: &Access, now: DateTime<Utc>) -> Option<Self> {
        let (content, seal) = value.rsplit_once('.')?;
        let mut parts = content.splitn(3, '.');
        let (rights, expires_at, name) = (parts.next()?, parts.next()?, parts.next()?);
        let all = [Rights::Read, Rights::Write];
        let rights = all.into_iter().find(|known| known.as_str() == rights)?;
        hmac::verify(&key(rights, access)?, content.as_bytes(), &unhex(seal)?).ok()?;
        let expires_at = expires_at.parse().ok().filter(|at| *at > now.timestamp())?;
        let name = percent_decode_str(name).decode_utf8().ok()?;
        Some(Self { rights, who: Who::named(&name)?, expires_at })
    }

    /// The sign-in of a request with cookies.
    pub(super) fn of(headers: &HeaderMap, access: &Access, now: DateTime<Utc>) -> Option<Self> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
        let ours = pairs.filter(|(name, _)| name.trim() == COOKIE).take(MAX_COOKIES);
        ours.filter_map(|(_, value)| Self::open(value.trim(), access, now))
            .max_by_key(|session| session.rights)
    }
}

/// The key of sign-ins with these rights, made from the token, which itself signs nothing.
fn key(rights: Rights, access: &Access) -> Option<hmac::Key> {
    let token = rights.token(access)?.expose_secret().as_bytes();
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"preheat dashboard");
    let info = ["session ".as_bytes(), rights.as_str().as_bytes()];
    let secret = salt.extract(token);
    Some(secret.expand(&info, hmac::HMAC_SHA256).ok()?.into())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _a_string_takes_all = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// Lets a request through to what it may see, and notes where it comes from and who sent it. Probes
/// and metrics are open; so is what one needs to sign in.
pub(super) async fn admit(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = &state.control.access;
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return next.run(request).await;
    }
    let client = access.client(request.headers(), request.extensions());
    if let Err(refused) = access.check_host(&client) {
        return refused.into_response();
    }
    let is_for_signing_in = matches!(path, "/login" | "/logout") || path.starts_with("/assets/");
    let viewer = viewer(request.headers(), access, &client, state.control.handle.now());
    match &viewer {
        Some(viewer) => drop(request.extensions_mut().insert(viewer.clone())),
        None if is_for_signing_in => {}
        None => return sign_in_first(&request),
    }
    request.extensions_mut().insert(client);
    let mut answer = next.run(request).await;
    if let Some(viewer) = viewer {
        // The page of a refusal shows who is signed in.
        answer.extensions_mut().insert(viewer);
    }
    answer
}

fn viewer(
    headers: &HeaderMap,
    access: &Access,
    client: &Client,
    now: DateTime<Utc>,
) -> Option<Viewer> {
    let carried = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    if let Some(rights) = carried.and_then(|token| access.rights_of(token)) {
        let who = Some(client.user.clone().unwrap_or_else(Who::token));
        return Some(Viewer { rights, who, is_signed_in: false });
    }
    if let Some(Session { rights, who, .. }) = Session::of(headers, access, now) {
        let who = Some(client.user.clone().unwrap_or(who));
        return Some(Viewer { rights, who, is_signed_in: true });
    }
    let anybody = Viewer { rights: Rights::Read, who: client.user.clone(), is_signed_in: false };
    access.read_token.is_none().then_some(anybody)
}

/// Leads a person to the sign-in and back; tells a program what it lacks.
fn sign_in_first(request: &Request) -> Response {
    let (method, uri) = (request.method(), request.uri());
    let path = uri.path();
    if *method != Method::GET || !wants_html(request.headers()) || path.starts_with("/api/") {
        let message = "this worker shows its state only with `Authorization: Bearer TOKEN`, where \
                       TOKEN is its token or its `read_token`";
        return ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .with_header(header::WWW_AUTHENTICATE, "Bearer realm=\"preheat\"")
            .into_response();
    }
    let wanted = uri.path_and_query().map_or(path, |whole| whole.as_str());
    let links = Links::from(path);
    let location = links.login_for(wanted.trim_start_matches('/'));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = Infallible;

    /// Somebody who is not admitted sees only the sign-in, and may do nothing there.
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        let nobody = || Self { rights: Rights::Read, who: None, is_signed_in: false };
        Ok(parts.extensions.get().cloned().unwrap_or_else(nobody))
    }
}

impl FromRequestParts<AppState> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppState,
    ) -> Result<Self, Self::Rejection> {
        let known = parts.extensions.get().cloned();
        let access = &state.control.access;
        Ok(known.unwrap_or_else(|| access.client(&parts.headers, &parts.extensions)))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn access(token: &str, read_token: &str) -> Access {
        let (token, read_token) = (Some(token.into()), Some(read_token.into()));
        Access { token, read_token, ..Access::default() }
    }

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn cookies(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn a_sign_in_is_known_until_it_is_over_or_the_token_is_another() {
        let own = access("secret", "look");
        let ann = Session::new(Rights::Write, Who::named("Ann Ö.; x=1").unwrap(), at(0));
        let sealed = ann.sealed(&own).unwrap();
        assert!(sealed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"%.".contains(&byte)));
        let headers = cookies(&format!("other=1; preheat=junk; preheat={sealed}"));
        assert_eq!(Session::of(&headers, &own, at(43_199)), Some(ann));
        assert_eq!(Session::of(&headers, &own, at(43_200)), None);
        assert_eq!(Session::of(&headers, &access("secret2", "look"), at(0)), None);
        assert_eq!(Session::of(&headers, &Access::default(), at(0)), None);
    }

    #[test]
    fn nobody_can_make_or_change_a_sign_in() {
        let own = access("secret", "look");
        let reader = Session::new(Rights::Read, Who::token(), at(0));
        let sealed = reader.sealed(&own).unwrap();
        let opened = |value: &str| Session::open(value, &own, at(1));
        assert_eq!(opened(&sealed), Some(reader));
        let (content, seal) = sealed.rsplit_once('.').unwrap();
        for forged in [
            sealed.replace("read", "write"),
            sealed.replace("token", "Ann"),
            sealed.replace("43200", "99999"),
            content.to_owned(),
            format!("{content}."),
            format!("{content}.{}", seal.split_at(2).1),
            format!("{content}.{}", "0".repeat(64)),
            format!("{content}.é{seal}"),
            String::new(),
            "...".to_owned(),
        ] {
            assert_eq!(opened(&forged), None, "{forged}");
        }
        // The reading token is enough to make a cookie for reading, but not one for writing.
        let with_read_key = Access { token: own.read_token.clone(), ..Access::default() };
        let made = Session::new(Rights::Write, Who::token(), at(0)).sealed(&with_read_key).unwrap();
        assert_eq!(opened(&made), None);
    }
}
