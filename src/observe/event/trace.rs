//! Traces of runs on their way to a collector.

use tracing::{info, warn};

event! {
    /// The collector cannot be reached, or refuses traces; emitted once an outage.
    CollectorAway<'a> { message: &'a str }
    log warn!("could not send traces to the collector; those of meanwhile are lost: {message}");
}

event! {
    /// The collector takes traces again.
    CollectorBack;
    log info!("the collector takes traces again");
}

event! {
    /// Traces are wanted, but there are none.
    NoTraces<'a> { message: &'a str }
    log warn!("there are no traces: {message}");
}
