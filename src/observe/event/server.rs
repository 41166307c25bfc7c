//! The servers: whether they can be reached, and what an operator must know about them.

use chrono::{DateTime, Utc};
use tracing::{error, info, warn};

use crate::domain::server::Server;
use crate::observe::figures::Since;
use crate::observe::news::News;

event! {
    /// A server counts as down, or as up again.
    BreakerChanged<'a> {
        server: Server,
        /// Whether it counts as down.
        open: bool,
        message: &'a str,
        at: DateTime<Utc>,
    }
    metrics |metrics| {
        metrics.set_breaker(server, open);
        let since = open.then(|| Since { at, message: message.to_owned() });
        metrics.figures().note_server(server, since, at);
        metrics.news.tell(|| News::ServerChanged { server, is_down: open, message: message.to_owned() });
    };
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
    /// At its start the worker cannot reach a server; emitted once a reason.
    ServerAwaited<'a> {
        /// What the worker calls it: `database`, `cache` or `history`.
        role: &'a str,
        /// The same server, if runs need it.
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
    /// The worker has reached a server for which it waited at its start.
    ServerReached<'a> {
        /// What the worker calls it: `database`, `cache` or `history`.
        role: &'a str,
        /// The same server, if runs need it.
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
        "database `{server}` is a replica: a run right after a change may still read the old data \
         and write it; hint: let `database.url` name the primary"
    );
}

event! {
    /// The settings contain one that no longer has an effect.
    PgbouncerIsSet;
    log info!(
        "`database.pgbouncer` has no effect any more and can be left out: queries are right \
         behind every pooler in transaction or session mode"
    );
}
