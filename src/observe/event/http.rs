//! The control plane's connections and requests.

use chrono::TimeDelta;
use tracing::{debug, error, info, warn};

event! {
    /// A request was answered.
    RequestAnswered<'a> { method: &'a str, path: &'a str, status: u16, took: TimeDelta }
    log {
        let took_ms = took.num_milliseconds();
        if status == 500 {
            error!(%method, path, status, took_ms, "{method} {path} answered {status}");
        } else {
            debug!(%method, path, status, took_ms, "{method} {path} answered {status}");
        }
    };
}

event! {
    /// A scrape stopped waiting for the figures of the database or the cache.
    ScrapeOutdated;
    log debug!("a scrape shows older figures of the servers: one did not answer");
}

event! {
    /// A connection ended in the middle of a request or an answer.
    ConnectionBroken<'a> { message: &'a str }
    log debug!("a connection ended early: {message}");
}

event! {
    /// Connections cannot be accepted; emitted once an outage.
    AcceptFailed<'a> { message: &'a str }
    log warn!(
        "could not accept a connection, and connections without a request are closed: {message}; \
         this is not said again until it works"
    );
}

event! {
    /// Connections can be accepted again.
    AcceptBack;
    log info!("connections can be accepted again");
}

#[cfg(test)]
mod tests {
    use super::super::testing::logged;
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn an_answer_that_is_our_fault_is_an_error() {
        let answered = |status| {
            let took = TimeDelta::milliseconds(12);
            let event = RequestAnswered { method: "GET", path: "/readyz", status, took };
            logged(|| event.emit(&Metrics::new()))
        };
        insta::assert_snapshot!(answered(500), @r#"
        ERROR GET /readyz answered 500 method=GET path="/readyz" status=500 took_ms=12
        "#);
        assert!(answered(503).trim_start().starts_with("DEBUG GET /readyz answered 503"));
    }
}
