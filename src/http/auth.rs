//! Authorization: a request that changes something has to carry the token.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::AppState;
use super::answer::ApiError;

/// Proof that the request carried the token. A route that changes something takes it as its first
/// argument.
#[derive(Debug)]
pub(super) struct Authorized;

impl FromRequestParts<AppState> for Authorized {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        authorize(&parts.headers, state.control.token.as_ref())
    }
}

fn authorize(headers: &HeaderMap, token: Option<&SecretString>) -> Result<Authorized, ApiError> {
    let Some(token) = token else {
        let message = "this worker has no token, so nothing can be changed over HTTP: set \
                       `PREHEAT_HTTP__TOKEN` or `[http] token`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "no_token_configured", message));
    };
    let Some(carried) = headers.get(header::AUTHORIZATION) else {
        let message = "this needs `Authorization: Bearer TOKEN`";
        return Err(unauthorized(message, "Bearer realm=\"preheat\""));
    };
    let wrong = || {
        let challenge = "Bearer realm=\"preheat\", error=\"invalid_token\"";
        unauthorized("the token is not this worker's", challenge)
    };
    let carried = bearer(carried.as_bytes()).ok_or_else(wrong)?;
    let same = carried.ct_eq(token.expose_secret().as_bytes());
    if bool::from(same) { Ok(Authorized) } else { Err(wrong()) }
}

/// The token of an `Authorization` header (RFC 6750). The case of the scheme does not matter (RFC
/// 9110).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn unauthorized(message: &str, challenge: &'static str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
        .with_header(header::WWW_AUTHENTICATE, challenge)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::response::IntoResponse;

    use super::*;

    fn status(carried: Option<&str>, token: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(carried) = carried {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(carried).unwrap());
        }
        let token = token.map(SecretString::from);
        match authorize(&headers, token.as_ref()) {
            Ok(Authorized) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_the_token_opens() {
        for open in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert_eq!(status(Some(open), Some("secret")), 200, "{open}");
        }
        for closed in
            ["Bearer", "Bearer ", "Bearer Secret", "Bearer secret2", "Basic secret", "secret", ""]
        {
            assert_eq!(status(Some(closed), Some("secret")), 401, "{closed}");
        }
        assert_eq!(status(None, Some("secret")), 401);
    }

    #[test]
    fn without_a_token_nothing_opens() {
        assert_eq!(status(None, None), 403);
        assert_eq!(status(Some("Bearer "), None), 403);
    }
}
