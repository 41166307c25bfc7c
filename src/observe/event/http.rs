//! The control plane's connections and requests.

use std::net::IpAddr;

use chrono::TimeDelta;
use tracing::{debug, error, info, warn};

use crate::domain::who::Who;

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
    /// A person signed in at the dashboard.
    SignedIn<'a> { who: &'a Who, address: Option<IpAddr> }
    log info!(%who, address = address.map(tracing::field::display), "{who} signed in");
}

event! {
    /// A sign-in was refused.
    SignInRefused<'a> {
        address: Option<IpAddr>,
        /// `token` for a wrong one, `wait` after too many tries.
        why: &'a str,
    }
    log warn!(
        address = address.map(tracing::field::display), why,
        "a sign-in was refused: {}",
        if why == "token" { "wrong token" } else { "too many tries" }
    );
}

event! {
    /// Somebody asked for a change over HTTP. Pauses have events of their own.
    ChangeRequested<'a> {
        by: &'a Who,
        /// In words, such as `a run of job x`.
        what: &'a str,
    }
    log info!(%by, "{by} requested {what}");
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
