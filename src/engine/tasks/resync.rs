//! Notices, also between runs, that the cache was replaced or emptied; the scheduler then runs every job
//! once.

use std::sync::Arc;

use crate::engine::run::cache_process::LOOK_EVERY;
use crate::engine::run::{Runner, Stops};
use crate::observe::event::Server;

impl Runner {
    /// Looks at the cache every [`LOOK_EVERY`], and as soon as it can be reached again, until the worker
    /// stops.
    pub async fn watch_cache(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                self.cache_process.look(&self.ports).await;
                self.pause(Server::Cache, LOOK_EVERY).await;
            }
        };
        stops.until(for_ever).await;
    }
}
