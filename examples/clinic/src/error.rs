//! What goes wrong, and how it is answered.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::keys::BadKey;

/// The answer to a request that failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// There is no such thing, or it is not the caller's.
    NotFound,
    /// It cannot be done as things are.
    Conflict,
    /// The request makes no sense.
    BadRequest,
    /// Nobody said who asks.
    Unauthenticated,
    /// The database failed.
    Database(sqlx::Error),
    /// A read failed: its load, or too many wait.
    Read(preheat_client::Error<sqlx::Error>),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // SQLSTATE class 22: a value that the column cannot have.
        let is_wrong_value = code.is_some_and(|code| code.starts_with("22"));
        if is_wrong_value { Self::BadRequest } else { Self::Database(error) }
    }
}

impl From<preheat_client::Error<sqlx::Error>> for Error {
    fn from(error: preheat_client::Error<sqlx::Error>) -> Self {
        Self::Read(error)
    }
}

/// A text that makes no key makes no row either.
impl From<BadKey> for Error {
    fn from(_: BadKey) -> Self {
        Self::NotFound
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND.into_response(),
            Self::Conflict => StatusCode::CONFLICT.into_response(),
            Self::BadRequest => StatusCode::BAD_REQUEST.into_response(),
            Self::Unauthenticated => StatusCode::UNAUTHORIZED.into_response(),
            Self::Database(error) => {
                tracing::error!(%error, "the database failed");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
            Self::Read(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
                error.into_response()
            }
        }
    }
}
