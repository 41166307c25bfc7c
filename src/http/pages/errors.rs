//! Refused requests as pages, for people. Programs get the same as JSON (see
//! [`answer`](crate::http::answer)).

use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::layout::{self, Shell};
use super::wants_html;
use crate::http::answer::Refusal;

/// Turns a refusal into a page, if a browser asked for a page.
pub(in crate::http) async fn as_pages(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let wants_page = wants_html(request.headers()) && !path.starts_with("/api/");
    let mut answer = next.run(request).await;
    let Some(refusal) = answer.extensions_mut().remove::<Refusal>().filter(|_| wants_page) else {
        return answer;
    };
    let (parts, _json) = answer.into_parts();
    let title = parts.status.canonical_reason().unwrap_or("Error");
    let mut page = layout::page(title, &Shell::at(&path), body(title, &refusal));
    *page.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            page.headers_mut().insert(name, value.clone());
        }
    }
    page.into_response()
}

fn body(title: &str, refusal: &Refusal) -> Markup {
    html! {
        h1 { (title) }
        p { (refusal.message) }
    }
}
