//! Who looks at a page or asks for something, and what they may do.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::AppState;
use super::answer::ApiError;
use crate::domain::who::Who;

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rights {
    /// Look at everything, and change nothing.
    Read,
    /// Change things too.
    Write,
}

/// Who sent a request. Routes that show something take it to know which levers to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Viewer {
    /// What they may do.
    pub(super) rights: Rights,
    /// Who they are, if they signed in, carried the token, or came through a proxy that says so.
    pub(super) who: Option<Who>,
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        Ok(Self { rights: Rights::Read, who: None })
    }
}
