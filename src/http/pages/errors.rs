//! Refused requests as pages, for people. Programs get the same as JSON (see
//! [`answer`](crate::http::answer)).

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::layout::{self, Shell};
use super::links::Links;
use crate::http::answer::{Refusal, wants_html};
use crate::http::session::Viewer;

/// Turns a refusal into a page, if a browser asked for a page.
pub(in crate::http) async fn as_pages(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let wants_page = wants_html(request.headers()) && !path.starts_with("/api/");
    let mut answer = next.run(request).await;
    let Some(refusal) = answer.extensions_mut().remove::<Refusal>().filter(|_| wants_page) else {
        return answer;
    };
    let viewer = answer.extensions_mut().remove::<Viewer>();
    let (parts, _json) = answer.into_parts();
    let shell = Shell::at(&path).signed_in(viewer);
    let title = title(parts.status);
    let mut page = layout::page(title, &shell, body(title, parts.status, &refusal, &shell.links));
    *page.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            page.headers_mut().insert(name, value.clone());
        }
    }
    page.into_response()
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::UNAUTHORIZED => "Sign in first",
        StatusCode::FORBIDDEN => "Not allowed",
        status => status.canonical_reason().unwrap_or("It did not work"),
    }
}

fn body(title: &str, status: StatusCode, refusal: &Refusal, links: &Links) -> Markup {
    html! {
        section.narrow {
            p.muted { (status.as_u16()) " " code { (refusal.code) } }
            h1 { (title) }
            p { (sentence(&refusal.message)) }
            p.actions {
                @if status == StatusCode::UNAUTHORIZED {
                    a.button.primary href=(links.login()) { "Sign in" }
                }
                a.button href=(links.overview()) { "Overview" }
            }
        }
    }
}

/// A message of the API as a sentence: those begin with a small letter and have no full stop.
fn sentence(message: &str) -> String {
    let mut rest = message.chars();
    let first = rest.next().map(|first| first.to_uppercase().collect::<String>());
    format!("{}{}.", first.unwrap_or_default(), rest.as_str())
}
