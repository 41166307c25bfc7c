//! Authorization: a request that changes something has to carry the token, or come from a person who
//! signed in with it.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use super::AppState;
use super::access::{Client, Rights, bearer};
use super::answer::ApiError;
use super::session::Session;
use crate::domain::who::Who;

/// Proof that the request may change something, and who sent it. A route that changes something takes
/// it as its first argument.
#[derive(Debug)]
pub(super) struct Authorized {
    /// Who sent it.
    pub(super) by: Who,
}

impl FromRequestParts<AppState> for Authorized {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let Ok(client) = Client::from_request_parts(parts, state).await;
        let access = &state.control.access;
        if access.token.is_none() {
            let message = "this worker has no token, so nothing can be changed over HTTP: set \
                           `PREHEAT_HTTP__TOKEN` or `[http] token`";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "no_token_configured", message));
        }
        let (rights, by) = if let Some(carried) = parts.headers.get(header::AUTHORIZATION) {
            let rights = bearer(carried.as_bytes()).and_then(|token| access.rights_of(token));
            (rights.ok_or_else(wrong_token)?, Who::token())
        } else {
            let now = state.control.handle.now();
            let session = Session::of(&parts.headers, access, now).ok_or_else(no_token)?;
            client.check_same_site(&parts.headers)?;
            (session.rights, session.who)
        };
        match rights {
            Rights::Write => Ok(Self { by: client.user.unwrap_or(by) }),
            Rights::Read => {
                let message = "the `read_token` lets nobody change anything: this needs the token";
                Err(ApiError::new(StatusCode::FORBIDDEN, "read_only", message))
            }
        }
    }
}

fn no_token() -> ApiError {
    let message = "this needs `Authorization: Bearer TOKEN`, or a sign-in at the dashboard";
    unauthorized(message, "Bearer realm=\"preheat\"")
}

fn wrong_token() -> ApiError {
    let challenge = "Bearer realm=\"preheat\", error=\"invalid_token\"";
    unauthorized("the token is not this worker's", challenge)
}

fn unauthorized(message: &str, challenge: &'static str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
        .with_header(header::WWW_AUTHENTICATE, challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_stands_after_bearer() {
        for header in ["Bearer secret", "bearer secret", "BEARER  secret "] {
            assert_eq!(bearer(header.as_bytes()), Some(b"secret" as &[u8]), "{header}");
        }
        for other in ["Bearer", "Basic secret", "secret", ""] {
            assert_eq!(bearer(other.as_bytes()), None, "{other}");
        }
        assert_eq!(bearer(b"Bearer "), Some(b"" as &[u8]));
    }
}
