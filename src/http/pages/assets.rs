//! The three static files of the pages. Each has a hash of its contents in its name, so that a
//! browser may keep it for ever, and asks for another name once the contents change.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::http::answer;

/// How long a browser may keep a file: for ever, as far as HTTP can say that.
const KEEP: &str = "public, max-age=31536000, immutable";

/// A static file.
#[derive(Debug)]
pub(super) struct Asset {
    /// Its name, with the hash.
    pub(super) name: String,
    kind: &'static str,
    text: &'static str,
}

/// How all pages look.
pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new(
        "style",
        "css",
        "text/css; charset=utf-8",
        concat!(include_str!("assets/style.css"), include_str!("assets/pages.css")),
    )
});
/// Keeps a page up to date, and does what HTML alone cannot do.
pub(super) static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("live", "js", "text/javascript; charset=utf-8", include_str!("assets/live.js"))
});
/// The sign in the browser's tab.
pub(super) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("assets/icon.svg")));

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, text: &'static str) -> Self {
        let name = format!("{stem}.{:016x}.{extension}", hash(text.as_bytes()));
        Self { name, kind, text }
    }
}

/// `GET /assets/{name}`
pub(super) async fn serve(Path(name): Path<String>, uri: axum::http::Uri) -> Response {
    match [&*STYLE, &*SCRIPT, &*ICON].into_iter().find(|asset| asset.name == name) {
        Some(Asset { kind, text, .. }) => {
            let headers = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, KEEP)];
            (StatusCode::OK, headers, *text).into_response()
        }
        None => answer::no_such_route(uri).await.into_response(),
    }
}

/// FNV-1a. Different versions of a file get different hashes. It is no protection against forgery.
fn hash(bytes: &[u8]) -> u64 {
    const START: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(START, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_changes_with_its_contents() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(STYLE.name, format!("style.{:016x}.css", hash(STYLE.text.as_bytes())));
    }
}
