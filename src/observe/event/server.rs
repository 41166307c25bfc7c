//! The servers: away, there, and what is special about them.

use tracing::{error, info, warn};

use crate::domain::server::Server;

event! {
    /// A server counts as down, or as up again.
    BreakerChanged<'a> {
        server: Server,
        /// Whether it counts as down.
        open: bool,
        message: &'a str,
    }
    metrics |metrics| metrics.set_breaker(server, open);
    log {
        let server = server.as_str();
        if open {
            error!(server, "the {server} counts as down and is left alone for a while: {message}");
        } else {
            info!(server, "the {server} is back: {message}");
        }
    };
}

event! {
    /// A server is away at the worker's start, or away for another reason than before.
    ServerAwaited<'a> {
        /// What it is for.
        role: &'a str,
        /// Which of the two servers of runs it is, where it is one of them.
        server: Option<Server>,
        message: &'a str,
    }
    metrics |metrics| if let Some(server) = server {
        metrics.set_breaker(server, true);
    };
    log warn!(
        server = role,
        "the worker waits for the {role} and tries again until it is there: {message}"
    );
}

event! {
    /// A server that was away at the worker's start is there.
    ServerReached<'a> {
        /// What it is for.
        role: &'a str,
        /// Which of the two servers of runs it is, where it is one of them.
        server: Option<Server>,
        address: &'a str,
    }
    metrics |metrics| if let Some(server) = server {
        metrics.set_breaker(server, false);
    };
    log info!(server = role, "the {role} `{address}` is there");
}

event! {
    /// The database is a replica of another.
    DatabaseIsReplica<'a> {
        /// The server and database.
        server: &'a str,
    }
    log warn!(
        server,
        "database `{server}` is a replica: what it has not received yet is warmed as it was \
         before, even right after a change; hint: let `database.url` lead to the primary"
    );
}

event! {
    /// A setting is there that has no effect any more.
    PgbouncerIsSet;
    log info!(
        "`database.pgbouncer` has no effect any more and can be left out: queries are right \
         behind every pooler in transaction or session mode"
    );
}
