//! Reads request bodies: JSON of a limited size.

use std::borrow::Cow;
use std::fmt;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

use super::answer::ApiError;
use super::{AppState, MAX_BODY, limited};

/// The one part of a path that varies: a job's name, an id.
pub(super) struct Segment(pub(super) String);

impl FromRequestParts<AppState> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        let Path(segment) = segment.map_err(|_rejected| {
            ApiError::bad_request("the path is not valid: its %-escapes are no UTF-8")
        })?;
        Ok(Self(segment))
    }
}

/// A request's headers and its whole body.
pub(super) async fn read(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let headers = request.headers().clone();
    let body = limited(Bytes::from_request(request, &())).await?;
    Ok((headers, body.map_err(|rejection| unread(&rejection))?))
}

/// Parses a JSON body.
pub(super) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, ApiError> {
    if !is_json(headers) {
        let message = "a body is JSON: send `Content-Type: application/json`";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "unsupported_media_type", message));
    }
    serde_json::from_slice(body).map_err(|error| refused(&error))
}

/// A tenant's id as clients write it: a string, or the number that the id is in their database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WrittenId(pub(super) String);

impl JsonSchema for WrittenId {
    fn schema_name() -> Cow<'static, str> {
        "TenantId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description = "a tenant's id, text or a whole number";
        json_schema!({ "type": ["string", "integer"], "minLength": 1, "description": description })
    }
}

impl<'de> Deserialize<'de> for WrittenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyForm;

        impl Visitor<'_> for AnyForm {
            type Value = WrittenId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tenant's id, text or a whole number")
            }

            fn visit_str<E>(self, text: &str) -> Result<WrittenId, E> {
                Ok(WrittenId(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<WrittenId, E> {
                Ok(WrittenId(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<WrittenId, E> {
                Ok(WrittenId(number.to_string()))
            }
        }

        deserializer.deserialize_any(AnyForm)
    }
}

fn unread(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("a body has at most {MAX_BODY} bytes");
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
    }
    ApiError::bad_request("the body could not be read to its end")
}

fn refused(error: &serde_json::Error) -> ApiError {
    use serde_json::error::Category;
    match error.classify() {
        Category::Data => ApiError::unprocessable("invalid_body", error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => {
            ApiError::bad_request(format!("the body is no JSON: {error}"))
        }
    }
}

/// Whether the content type is `application/json`, or another type with the suffix `+json`;
/// parameters do not matter.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
