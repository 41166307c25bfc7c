//! A small shop: tenants with items, its own cache, and the worker that keeps the cache warm.
//!
//! The values themselves show whether they are whole: one statement changes the version of all items of a
//! tenant, and the number of items is constant.

use std::collections::BTreeMap;

use preheat_sandbox::{Postgres, Redis};
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::http::{self, Answer};
use super::program::{Preheat, Running, preheat};
use super::{Database, LONG, Proxy, eventually};

/// The token of requests that change something.
pub(crate) const TOKEN: &str = "open-sesame";

/// Items of each tenant except the first, which has none.
const ITEMS: usize = 20;

/// Reads all items of a tenant.
pub(crate) const QUERY: &str =
    "select tenant_id, id, name, version from items where tenant_id = any($1) order by id";

/// A job file with these additional lines before `[query]`. It is due once an hour unless the lines say
/// otherwise.
pub(crate) fn items(lines: &str) -> String {
    items_by(lines, QUERY)
}

/// The same with another query.
pub(crate) fn items_by(lines: &str, query: &str) -> String {
    let usual = [("schedule", "every 1h"), ("ttl", "3h"), ("ttl_jitter", "0%"), ("timeout", "1m")]
        .iter()
        .filter(|(field, _)| !lines.contains(&format!("{field} =")))
        .map(|(field, value)| format!("{field} = {value:?}\n"));
    let usual: String = usual.collect();
    format!(
        "{usual}{lines}\n[query]\nsql = '''{query}'''\n[[keys]]\nkey = \"items:{{tenant_id}}\"\n\
         [encode]\nomit = [\"tenant_id\"]\n"
    )
}

/// A database with tenants and items, and an empty cache.
pub(crate) struct Shop {
    url: String,
    name: String,
    pub(crate) redis: Redis,
    _database: Option<Database>,
}

impl Shop {
    /// A shop with this many tenants, in the Postgres that all tests share.
    pub(crate) async fn open(tenants: u32) -> Self {
        Self::open_at(super::database().await, tenants).await
    }

    /// The same in the Postgres whose write-ahead log can be decoded.
    pub(crate) async fn open_logical(tenants: u32) -> Self {
        Self::open_at(super::logical_database().await, tenants).await
    }

    async fn open_at(database: Database, tenants: u32) -> Self {
        let (url, name) = (database.url(), database.name().to_owned());
        let shop = Self { url, name, redis: super::redis(), _database: Some(database) };
        shop.fill(tenants).await;
        shop
    }

    /// A shop in a Postgres of the test's own.
    pub(crate) async fn open_in(postgres: &Postgres, tenants: u32) -> Self {
        let name = "shop".to_owned();
        postgres.create_database(&name, None).await.unwrap();
        let (url, redis) = (postgres.url(&name), super::redis());
        let shop = Self { url, name, redis, _database: None };
        shop.fill(tenants).await;
        shop
    }

    /// The same shop with another cache.
    pub(crate) fn with_redis(self, redis: Redis) -> Self {
        Self { redis, ..self }
    }

    async fn fill(&self, tenants: u32) {
        self.execute(&format!(
            "create table tenants (id int primary key, status text not null default 'active',
               timezone text not null default 'UTC', created_at timestamptz not null default now());
             create table items (tenant_id int not null, id int not null, name text not null,
               version int not null default 1);
             create index on items (tenant_id);
             insert into tenants (id) select n from generate_series(1, {tenants}) n;
             insert into items select n, i, 'item “' || i || '” of ' || n
               from generate_series(2, {tenants}) n, generate_series(1, {ITEMS}) i;"
        ))
        .await;
    }

    /// Its database's URL without a proxy.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its database's URL through a proxy.
    pub(crate) fn url_through(&self, proxy: &Proxy) -> String {
        format!("postgres://postgres@{}/{}?sslmode=disable", proxy.address(), self.name)
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// The first column of a query's only row, as a number.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.connect().await;
        let number = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        connection.close().await.unwrap();
        number.unwrap()
    }

    /// Changes all items.
    pub(crate) async fn change(&self) {
        self.execute("update items set version = version + 1").await;
    }

    /// Keeps all other sessions from reading items until the connection is dropped.
    pub(crate) async fn hold(&self) -> PgConnection {
        let mut holder = self.connect().await;
        let lock = "begin; lock table items in access exclusive mode";
        sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
        holder
    }

    /// Waits until this many queries of the worker wait for [`Self::hold`].
    pub(crate) async fn held(&self, queries: i64) {
        let sql = "select count(*) from pg_stat_activity where application_name = 'preheat' \
                   and datname = current_database() and wait_event_type = 'Lock'";
        eventually("queries of the worker wait", LONG, async || self.number(sql).await == queries)
            .await;
    }

    /// How many queries of the worker the database is running.
    pub(crate) async fn active_queries(&self) -> i64 {
        self.number(
            "select count(*) from pg_stat_activity where application_name = 'preheat' \
             and datname = current_database() and state <> 'idle'",
        )
        .await
    }

    pub(crate) async fn cache(&self) -> redis::aio::MultiplexedConnection {
        super::redis_connection(&self.redis).await
    }

    /// The value of a key.
    pub(crate) async fn value(&self, key: &str) -> Option<String> {
        self.cache().await.get(key).await.unwrap()
    }

    /// Every key of items with its value: see [`cached_in`].
    pub(crate) async fn cached(&self) -> BTreeMap<String, Value> {
        cached_in(&self.redis).await
    }

    /// Every key with its value, as the database's data require.
    pub(crate) async fn expected(&self) -> BTreeMap<String, Value> {
        let sql = "select 'items:' || t.id, coalesce(
               (select json_agg(json_build_object('id', i.id, 'name', i.name, 'version', i.version)
                  order by i.id) from items i where i.tenant_id = t.id), '[]')::text
             from tenants t where t.status = 'active'";
        let mut connection = self.connect().await;
        let rows: Vec<(String, String)> =
            sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        rows.into_iter().map(|(key, value)| (key, serde_json::from_str(&value).unwrap())).collect()
    }

    /// Whether the cache equals the database.
    pub(crate) async fn is_warm(&self) -> bool {
        self.cached().await == self.expected().await
    }

    /// Fails the test and names the keys if the cache does not equal the database.
    pub(crate) async fn assert_warm(&self) {
        let (cached, expected) = (self.cached().await, self.expected().await);
        let mut wrong: Vec<_> = expected.keys().chain(cached.keys()).collect();
        wrong.retain(|key| cached.get(*key) != expected.get(*key));
        assert!(wrong.is_empty(), "not as in the database: {wrong:?}");
    }

    /// Starts to read all values again and again, whatever happens to the cache.
    pub(crate) fn reader(&self) -> Reader {
        let stop = CancellationToken::new();
        let task = tokio::spawn(read_on(self.redis.url(), stop.clone()));
        Reader { stop, task }
    }

    /// Its worker, without a job yet.
    pub(crate) fn serve(&self) -> Preheat {
        preheat(["serve"])
            .database(&self.url)
            .cache(self.redis.url())
            .env("PREHEAT_HTTP__TOKEN", TOKEN)
    }
}

/// Every key of items in a cache, with its value. A value that is not JSON, or a key that never expires, fails
/// the test.
pub(crate) async fn cached_in(redis: &Redis) -> BTreeMap<String, Value> {
    let mut cache = super::redis_connection(redis).await;
    let keys: Vec<String> = cache.keys("items:*").await.unwrap();
    let mut cached = BTreeMap::new();
    for key in keys {
        let value: Option<String> = cache.get(&key).await.unwrap();
        let ttl: i64 = cache.pttl(&key).await.unwrap();
        let Some(value) = value else { continue };
        assert!(ttl > 0, "`{key}` lives for {ttl} ms");
        let value = serde_json::from_str(&value)
            .unwrap_or_else(|error| panic!("`{key}` is not whole: {error} in {value:?}"));
        cached.insert(key, value);
    }
    cached
}

/// Reads values until it is stopped.
pub(crate) struct Reader {
    stop: CancellationToken,
    task: JoinHandle<u64>,
}

impl Reader {
    /// Stops. Fails the test if it has seen a value that was not whole, or no value at all.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let seen = self.task.await.unwrap_or_else(|error| panic!("a reader saw: {error}"));
        assert!(seen > 0, "the reader saw no value");
    }
}

async fn read_on(url: String, stop: CancellationToken) -> u64 {
    let client = redis::Client::open(url).unwrap();
    let mut seen = 0;
    let mut connection = None;
    while !stop.is_cancelled() {
        if connection.is_none() {
            connection = client.get_multiplexed_async_connection().await.ok();
        }
        let read = match &mut connection {
            Some(connection) => read_all(connection).await,
            None => Ok(0),
        };
        match read {
            Ok(values) => seen += values,
            Err(_away) => connection = None,
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    seen
}

async fn read_all(connection: &mut redis::aio::MultiplexedConnection) -> redis::RedisResult<u64> {
    let keys: Vec<String> = connection.keys("items:*").await?;
    let mut seen = 0;
    for key in keys {
        let value: Option<String> = connection.get(&key).await?;
        if let Some(value) = value {
            check_whole(&key, &value);
            seen += 1;
        }
    }
    Ok(seen)
}

/// Checks that a value has all items of the tenant, in one version.
fn check_whole(key: &str, value: &str) {
    let items: Vec<Value> = serde_json::from_str(value)
        .unwrap_or_else(|error| panic!("`{key}` is not whole: {error} in {value:?}"));
    let expected = if key == "items:1" { 0 } else { ITEMS };
    assert_eq!(items.len(), expected, "`{key}` has items too few: {value}");
    let same = items.windows(2).all(|pair| pair[0]["version"] == pair[1]["version"]);
    assert!(same, "`{key}` is of two versions: {value}");
}

/// The worker's HTTP interface.
impl Running {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        http::get(self.address(), path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.stderr()))
    }

    /// A `POST` with the token.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let token = format!("Bearer {TOKEN}");
        let headers = [("authorization", token.as_str())];
        http::post(self.address(), path, &headers, &body.to_string())
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.stderr()))
    }

    /// Requests a run of a job and waits for its end.
    pub(crate) async fn warm(&self, job: &str) -> Value {
        let answer = self.post(&format!("/api/v1/jobs/{job}/runs"), &json!({"wait": true})).await;
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.stderr());
        answer.json()
    }

    /// The job's ended runs, newest first.
    pub(crate) async fn runs(&self, job: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/runs?job={job}&limit=500")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut answer = answer.json();
        serde_json::from_value(answer["runs"].take()).unwrap()
    }

    /// The value of a series: the name with its labels, as on the page.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let page = self.get("/metrics").await.body;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// Waits until the value of a series satisfies `is_so`.
    pub(crate) async fn metric_becomes(&self, series: &str, is_so: impl Fn(f64) -> bool) {
        eventually(&format!("`{series}` is as it should be"), LONG, async || {
            self.metric(series).await.is_some_and(&is_so)
        })
        .await;
    }
}

/// Files in the folder of a running program.
impl Running {
    pub(crate) fn write(&self, path: &str, text: &str) {
        std::fs::write(self.folder().join(path), text).unwrap();
    }
}

/// The kinds of a report's failures.
pub(crate) fn failure_kinds(run: &Value) -> Vec<&str> {
    let failures = run["report"]["failures"].as_array().unwrap();
    failures.iter().map(|failure| failure["kind"].as_str().unwrap()).collect()
}
