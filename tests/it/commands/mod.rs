//! Every command as people and programs see it: the real program with real servers, its exit codes and its
//! output.

mod audit;
mod changes;
mod check;
mod database;
mod demo;
mod documents;
mod env_file;
mod history;
mod init;
mod invalidate;
mod keys;
mod memory;
mod plan;
mod preview;
mod rights;
mod secrets;
mod settings;
mod terminal;
mod warm;

use std::collections::BTreeMap;

use preheat_sandbox::Redis;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use sqlx::AssertSqlSafe;

use crate::support::program::Preheat;
use crate::support::{self, Database, preheat};

/// A job with one key for each tenant.
const SERVICES: &str = r#"
description = "What a clinic offers."
schedule = "every 15m"
ttl = "1h"
required = true
[query]
sql = "select tenant_id, id, name, price from services where tenant_id = any($1) order by name, id"
[[keys]]
key = "services:{tenant_id}"
[encode]
omit = ["tenant_id"]
"#;

/// Each pet's key has only its id, so it goes to another tenant together with the pet.
const PETS: &str = r#"
schedule = "every 15m"
ttl = "1h"
[query]
sql = "select tenant_id, id, name from pets where tenant_id = any($1)"
[[keys]]
key = "pet:{id}"
shape = "object"
unique = "id"
"#;

/// A job of all tenants together.
const GLOBAL: &str = r#"
description = "How many clinics there are."
schedule = "every 1h"
ttl = "3h"
tenants = false
[query]
sql = "select count(*)::int as clinics from tenants"
[[keys]]
key = "fleet"
shape = "object"
"#;

/// A job that takes a fifth of a second for each tenant, one after another.
const SLOW: &str = r#"
description = "Takes its time."
schedule = "every 15m"
ttl = "1h"
batch = 1
concurrency = 1
[query]
sql = "select t.id as tenant_id, t.name, pg_sleep(0.2)::text as slept from tenants t where t.id = any($1)"
[[keys]]
key = "slow:{tenant_id}"
"#;

/// A sample clinic and a cache for one test.
struct Servers {
    database: Database,
    redis: Redis,
}

async fn servers() -> Servers {
    Servers { database: support::clinic().await, redis: support::redis() }
}

impl Servers {
    /// The program with both servers, without a job yet.
    fn preheat<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
        preheat(arguments).database(self.database.url()).cache(self.redis.url())
    }

    async fn cache(&self) -> MultiplexedConnection {
        support::redis_connection(&self.redis).await
    }

    /// All keys with their values.
    async fn values(&self) -> BTreeMap<String, String> {
        values(&mut self.cache().await).await
    }

    /// The ids of the active tenants, in their order.
    async fn active(&self) -> Vec<String> {
        let sql = "select id::text from tenants where status = 'active' order by created_at, id";
        self.texts(sql).await
    }

    /// The values of a query's only column.
    async fn texts(&self, sql: &str) -> Vec<String> {
        let mut connection = self.database.connect().await;
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap()
    }
}

/// All keys of a cache with their values, except preheat's own keys.
async fn values(cache: &mut MultiplexedConnection) -> BTreeMap<String, String> {
    let mut keys: Vec<String> = cache.keys("*").await.unwrap();
    keys.retain(|key| !key.contains("preheat:"));
    let mut values = BTreeMap::new();
    for key in keys {
        let value: String = cache.get(&key).await.unwrap();
        values.insert(key, value);
    }
    values
}

/// The output, without what differs from run to run.
fn steady(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if let Some((before, _time)) = line.rsplit_once(" in ") {
            *line = format!("{before} in [time]");
        }
    }
    lines.sort();
    lines.join("\n")
}
