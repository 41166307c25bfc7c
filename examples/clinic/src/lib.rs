//! A booking site for vet clinics, each of them a tenant: how a service reads through the keys that preheat keeps
//! warm.
//!
//! Each module is one topic, with its reads, its writes and its SQL. A read names its key and what to do on a miss;
//! a write commits, then names the keys that it made old. `keys` is made from the job files.

mod error;
mod json;
mod keys;
mod pages;
mod pets;
mod products;
mod services;
mod settings;
mod slots;
mod staff;
mod summary;
mod tenant;

use std::error::Error as StdError;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use preheat_client::{Cache, Connection};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use settings::{Settings, WrongSetting};

/// Connections to the database: as many as the cache lets load at a time.
const DATABASE_CONNECTIONS: u32 = 16;
const STATEMENT_TIMEOUT: &str = "5s";
const ACQUIRED_WITHIN: Duration = Duration::from_secs(5);

/// What all requests share.
#[derive(Clone, Debug)]
pub struct Service {
    db: PgPool,
    cache: Cache,
    tenants: tenant::Tenants,
}

impl Service {
    /// Connects when the first request needs it: the service starts without database and cache.
    pub fn new(settings: &Settings) -> Result<Self, Box<dyn StdError>> {
        // All callers of a key wait for its load, so the server ends one that takes too long.
        let options: PgConnectOptions = settings.database_url.parse()?;
        let options = options.options([("statement_timeout", STATEMENT_TIMEOUT)]);
        let db = PgPoolOptions::new()
            .max_connections(DATABASE_CONNECTIONS)
            .acquire_timeout(ACQUIRED_WITHIN)
            .connect_lazy_with(options);
        let cache = Cache::builder(Connection::open(&settings.redis_url)?)
            .enabled(settings.has_cache)
            .deadline(settings.cache_deadline)
            .on_problem(|problem, error| tracing::warn!(problem = problem.name(), error, "cache"))
            .build();
        Ok(Self { db, cache, tenants: tenant::Tenants::default() })
    }

    /// The routes. Each request is authenticated before its handler runs.
    pub fn router(&self) -> Router {
        let routes = [
            services::routes(),
            products::routes(),
            staff::routes(),
            slots::routes(),
            pets::routes(),
            pages::routes(),
            summary::routes(),
        ];
        routes
            .into_iter()
            .fold(Router::new(), Router::merge)
            .route_layer(from_fn_with_state(self.clone(), tenant::authenticate))
            .with_state(self.clone())
    }

    /// The cache, for its counts.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Tells preheat the last counts, and closes the connections to the database.
    pub async fn close(&self) {
        self.cache.flush().await;
        self.db.close().await;
    }
}
