//! Server-sent events: `/api/v1/events` tells programs what happens, and `/live` tells open pages
//! what has changed.
//!
//! A stream ends when the worker stops, and never holds that up. Its connection may lose its place
//! to a new one, as any connection that waits for its next request: probes and scrapes come first.
//! The server closes the connection of a client that reads too slowly (see [`server`](super::server));
//! the worker never waits for such a client.

mod live;
mod public;
mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub(super) use self::live::changes;
pub(super) use self::public::routes;
use super::answer::ApiError;
use super::server;

/// Streams that may be open at once, if there are enough connections: far more than a team has
/// pages open.
const MAX_STREAMS: usize = 128;
/// A stream without news sends a comment this often, so that proxies do not take it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// The comment.
const COMMENT: &str = ":\n\n";

/// The places for streams.
#[derive(Debug)]
pub(super) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    /// At most half of the connections are streams.
    fn default() -> Self {
        let places = MAX_STREAMS.min(server::most_connections() / 2);
        Self(Arc::new(Semaphore::new(places)))
    }
}

impl Streams {
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.0).try_acquire_owned();
        place.map_err(|_full| ApiError::too_many_streams())
    }
}

/// Where the events of a stream come from.
trait Source: Send + Sized + 'static {
    /// The next part of the stream; `None` at its end. It can be dropped at any time, and loses
    /// nothing by that.
    fn next(&mut self) -> impl Future<Output = Option<String>> + Send;
}

/// An answer that goes on until its source or the worker ends. Its first part is a comment: some proxies pass the
/// head of an answer on only together with a part of its body.
fn stream(
    place: OwnedSemaphorePermit,
    source: impl Source,
    shutdown: CancellationToken,
) -> Response {
    let parts = futures::stream::unfold(
        (place, source, shutdown),
        |(place, mut source, shutdown)| async move {
            let part = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                part = source.next() => part,
                () = tokio::time::sleep(SIGN_OF_LIFE) => Some(COMMENT.to_owned()),
            }?;
            Some((Ok::<_, Infallible>(Bytes::from(part)), (place, source, shutdown)))
        },
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        // Asks proxies to pass each event on at once.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let first = futures::stream::iter([Ok(Bytes::from(COMMENT))]);
    (headers, Body::from_stream(first.chain(parts))).into_response()
}

/// An event as it is sent. The data is JSON, which has no line breaks.
fn event(id: Option<&str>, name: &str, data: &impl serde::Serialize) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    // Our own types have text keys alone, so that they can always be written as JSON.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_data_whatever_is_in_it() {
        let sent = event(Some("a-1"), "x", &"two\nlines\r\n\n");
        assert_eq!(sent, "id: a-1\nevent: x\ndata: \"two\\nlines\\r\\n\\n\"\n\n");
        assert_eq!(event(None, "x", &1), "event: x\ndata: 1\n\n");
    }

    #[tokio::test]
    async fn a_stream_gives_its_place_back() {
        struct Ends;
        impl Source for Ends {
            async fn next(&mut self) -> Option<String> {
                None
            }
        }
        let streams = Streams(Arc::new(Semaphore::new(1)));
        let answer = stream(streams.place().unwrap(), Ends, CancellationToken::new());
        assert!(streams.place().is_err(), "the only place is taken");
        let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
        assert_eq!(body, COMMENT);
        assert!(streams.place().is_ok());
    }
}
