//! `POST /login` and `POST /logout`: a person signs in with the token, and out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use super::AppState;
use super::access::Client;
use super::answer::ApiError;
use super::answer::wants_html;
use super::pages::links::Links;
use super::session::{COOKIE, Session, Viewer};
use crate::domain::who::Who;
use crate::observe::event;

/// How often one address may try a wrong token within [`WINDOW`].
const MAX_TRIES: u32 = 5;
/// After this time an address may try again.
const WINDOW: TimeDelta = TimeDelta::minutes(1);
/// How many addresses are remembered; further ones share their tries.
const MAX_ADDRESSES: usize = 1_000;

/// The form of the page `/login`.
#[derive(Debug, Deserialize)]
pub(super) struct SignIn {
    token: String,
    /// Under which name changes are logged.
    #[serde(default)]
    name: String,
    /// The path to go on to, relative to the dashboard's first page.
    #[serde(default)]
    next: String,
}

/// The tries to sign in with a wrong token, by address.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<HashMap<Option<IpAddr>, Window>>);

#[derive(Clone, Copy, Debug)]
struct Window {
    began_at: DateTime<Utc>,
    tries: u32,
}

impl Tries {
    /// Counts a try; answers whether it may be made.
    fn begin(&self, address: Option<IpAddr>, now: DateTime<Utc>) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut address = address.map(network_of);
        if !windows.contains_key(&address) && windows.len() >= MAX_ADDRESSES {
            windows.retain(|_, window| now - window.began_at < WINDOW);
            if windows.len() >= MAX_ADDRESSES {
                address = None;
            }
        }
        let window = windows.entry(address).or_insert(Window { began_at: now, tries: 0 });
        if now - window.began_at >= WINDOW {
            *window = Window { began_at: now, tries: 0 };
        }
        window.tries = window.tries.saturating_add(1);
        window.tries <= MAX_TRIES
    }

    /// The try was right: it does not count.
    fn succeeded(&self, address: Option<IpAddr>) {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.remove(&address.map(network_of));
    }
}

/// The network that counts as one client: a client with an IPv6 address usually has the whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// `POST /login`
pub(super) async fn sign_in(
    State(state): State<AppState>,
    client: Client,
    uri: Uri,
    headers: HeaderMap,
    form: Result<Form<SignIn>, FormRejection>,
) -> Result<Response, ApiError> {
    let Form(SignIn { token, name, next }) = form.map_err(|rejected| unread(&rejected))?;
    let is_of_a_browser = headers.contains_key("sec-fetch-site") || headers.contains_key("origin");
    if is_of_a_browser {
        client.check_same_site(&headers)?;
    }
    let access = &state.control.access;
    if !access.has_token() {
        let message = "this worker has no token: set `PREHEAT_HTTP__TOKEN` or `[http] token`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "no_token_configured", message));
    }
    let (now, address) = (state.control.handle.now(), client.address);
    let links = Links::from(uri.path());
    let refuse = |why: &str, refused: ApiError| {
        event::SignInRefused { address, why }.emit(&state.control.metrics);
        let location = links.login_failed(why, next.trim_start_matches('/'));
        if wants_html(&headers) { Ok(see_other(location)) } else { Err(refused) }
    };
    if !state.tries.begin(address, now) {
        return refuse("wait", ApiError::too_many_tries());
    }
    let Some(rights) = access.rights_of(token.trim().as_bytes()) else {
        let message = "the token is not this worker's";
        return refuse("token", ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message));
    };
    state.tries.succeeded(address);
    let who = client.user.clone().or_else(|| Who::named(&name)).unwrap_or_else(Who::token);
    event::SignedIn { who: &who, address }.emit(&state.control.metrics);
    let value = Session::new(rights, who, now).sealed(access).unwrap_or_default();
    let mut answer = see_other(links.next(&next));
    set_cookie(&mut answer, &format!("{COOKIE}={value}"), &client);
    Ok(answer)
}

/// `POST /logout`
pub(super) async fn sign_out(
    viewer: Viewer,
    client: Client,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if viewer.is_signed_in {
        client.check_same_site(&headers)?;
    }
    let mut answer = see_other(Links::from(uri.path()).overview());
    set_cookie(&mut answer, &format!("{COOKIE}=; Max-Age=0"), &client);
    Ok(answer)
}

/// Leads a browser on after a form was posted.
pub(super) fn see_other(location: String) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// Without `Max-Age`, a browser forgets the cookie when it is closed.
fn set_cookie(answer: &mut Response, cookie: &str, client: &Client) {
    let path = if client.base_path.is_empty() { "/" } else { &client.base_path };
    let secure = if client.is_https { "; Secure" } else { "" };
    let cookie = format!("{cookie}; Path={path}; HttpOnly; SameSite=Strict{secure}");
    if let Ok(cookie) = cookie.try_into() {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
}

/// A form could not be read.
pub(super) fn unread(rejection: &FormRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the form is too large")
        }
        _ => ApiError::bad_request(format!("the form is not valid: {}", rejection.body_text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    #[test]
    fn an_address_may_try_a_wrong_token_a_few_times_a_minute() {
        let tries = Tries::default();
        let address = |text: &str| Some(text.parse().unwrap());
        for second in 0..5 {
            assert!(tries.begin(address("192.0.2.1"), at(second)));
        }
        assert!(!tries.begin(address("192.0.2.1"), at(5)));
        assert!(!tries.begin(address("::ffff:192.0.2.1"), at(5)), "the same address");
        assert!(tries.begin(address("192.0.2.2"), at(5)));
        assert!(tries.begin(address("192.0.2.1"), at(60)));
        for _ in 0..10 {
            assert!(tries.begin(address("2001:db8::1"), at(60)));
            tries.succeeded(address("2001:db8::1"));
        }
        for host in 0..5 {
            assert!(tries.begin(address(&format!("2001:db8::{host}")), at(60)));
        }
        assert!(!tries.begin(address("2001:db8::ffff"), at(60)), "the same network");
    }

    #[test]
    fn many_addresses_take_little_and_share_their_tries() {
        let tries = Tries::default();
        let address = |number: u32| Some(IpAddr::from(number.to_be_bytes()));
        for number in 0..1_000 {
            assert!(tries.begin(address(number), at(0)));
        }
        let allowed = (1_000..2_000).filter(|number| tries.begin(address(*number), at(1))).count();
        assert_eq!(allowed, MAX_TRIES as usize);
        assert!(tries.0.lock().unwrap().len() <= MAX_ADDRESSES + 1);
        assert!(tries.begin(address(5_000), at(61)));
        assert!(tries.0.lock().unwrap().len() <= 2);
    }
}
