//! The source on real Postgres servers that refuse, fail, hang and recover.

mod connections;
mod moments;
mod order;
mod rows;
mod sessions;
mod tenants;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{
    Database, DatabaseSettings, PostgresSource, RowSecurity, TenantsSettings,
};
use preheat::domain::tenant::TenantId;
use preheat::engine::ports::Source;
use secrecy::SecretString;
use sqlx::PgConnection;

use crate::support::{self, LONG, eventually};

pub(crate) fn settings(url: &str) -> DatabaseSettings {
    DatabaseSettings {
        url: SecretString::from(url),
        max_connections: NonZeroU32::new(4).unwrap(),
        statement_timeout: Duration::from_secs(30),
        read_only: true,
        row_security: RowSecurity::Refuse,
        time_zone: None,
    }
}

pub(crate) async fn connect(settings: DatabaseSettings, tenants: &str) -> PostgresSource {
    let database = Arc::new(Database::connect(settings).await.unwrap());
    source(database, tenants)
}

pub(crate) fn source(database: Arc<Database>, tenants: &str) -> PostgresSource {
    let tenants = TenantsSettings { sql: tenants.into(), column: "tenant_id".to_owned() };
    PostgresSource::new(database, tenants)
}

/// Tenants whose ids are the numbers from 1.
async fn numbered(server: &support::Database) -> PostgresSource {
    connect(settings(&server.url()), NUMBERS).await
}

const NUMBERS: &str = "select n from generate_series(1, 9) n";

/// One row for each tenant, without any table.
const ONE_EACH: &str = "select id as tenant_id, 1 as one from unnest($1) id";

fn tenant_ids(ids: &[&str]) -> Vec<TenantId> {
    ids.iter().map(TenantId::new).collect()
}

/// Which of these tenants are active.
pub(crate) async fn among(source: &PostgresSource, ids: &[&str]) -> Vec<String> {
    let tenants = source.tenants_among(&tenant_ids(ids)).await.unwrap();
    tenants.iter().map(|tenant| tenant.id().to_owned()).collect()
}

/// How many of our queries the server is running.
async fn active(past: &mut PgConnection) -> i64 {
    let sql = "select count(*) from pg_stat_activity where application_name = 'preheat' \
               and state = 'active' and datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(past).await.unwrap()
}

/// Waits until the server runs none of them.
async fn ended(past: &mut PgConnection) {
    eventually("the server is not at it any more", LONG, async || active(past).await == 0).await;
}
