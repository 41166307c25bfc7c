//! `examples/clinic` beside the worker: it reads what preheat warmed, and its writes are seen at once.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use clinic::{Service, Settings};
use preheat_sandbox::Redis;
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::net::TcpListener;

use crate::support::http::{self, Answer};
use crate::support::program::Preheat;
use crate::support::{self, Database, LONG, eventually, preheat};

/// The sample database, an empty cache, and the service on both.
struct Site {
    database: Database,
    redis: Redis,
    connection: PgConnection,
    service: Service,
    address: SocketAddr,
}

/// An active tenant with data of every kind.
const TENANTS: &str = "select t.id::text from tenants t where status = 'active' \
    and exists (select from services s where s.tenant_id = t.id and active) \
    and exists (select from pets where tenant_id = t.id) \
    and (select count(distinct category) from products where tenant_id = t.id and active) > 1 \
    order by t.id";

impl Site {
    async fn new() -> Self {
        let database = support::clinic().await;
        let connection = database.connect().await;
        let redis = support::redis();
        let (service, address) = open(&database, &redis, true).await;
        Self { database, redis, connection, service, address }
    }

    /// The same with every key of the shipped jobs in the cache.
    async fn warm() -> Self {
        let mut site = Self::new().await;
        // If midnight passes in some time zone meanwhile, its last day is missing: once more.
        loop {
            let before = site.texts(TODAYS).await;
            site.preheat(["warm"]).run().await.expect_code(0);
            if site.texts(TODAYS).await == before {
                return site;
            }
        }
    }

    fn preheat<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
        let preheat = preheat(arguments).database(self.database.url()).cache(self.redis.url());
        preheat.shipped_jobs()
    }

    async fn texts(&mut self, sql: &str) -> Vec<String> {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_all(&mut self.connection).await.unwrap()
    }

    async fn text(&mut self, sql: &str) -> String {
        self.texts(sql).await.remove(0)
    }

    async fn tenants(&mut self) -> Vec<String> {
        self.texts(TENANTS).await
    }

    async fn tenant(&mut self) -> String {
        self.text(TENANTS).await
    }

    async fn send(&self, tenant: &str, method: &str, path: &str, body: &Value) -> Answer {
        send(self.address, tenant, method, path, body).await
    }

    async fn get(&self, tenant: &str, path: &str) -> Answer {
        self.send(tenant, "GET", path, &Value::Null).await
    }

    async fn read(&self, tenant: &str, path: &str) -> Value {
        let answer = self.get(tenant, path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// A write that succeeds.
    async fn write(&self, tenant: &str, method: &str, path: &str, body: Value) -> Answer {
        let answer = self.send(tenant, method, path, &body).await;
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
        answer
    }

    /// The paths of all sixteen reads, with ids of the tenant's own.
    async fn paths(&mut self, tenant: &str) -> Vec<String> {
        let of = |table: &str| format!("select id::text from {table} where tenant_id = '{tenant}'");
        let service = self.text(&(of("services") + " and active limit 1")).await;
        let product = self.text(&(of("products") + " and active limit 1")).await;
        let person = self.text(&(of("staff") + " and active limit 1")).await;
        let pet = self.text(&(of("pets") + " limit 1")).await;
        let category = self.text(&first_category(tenant)).await;
        let today = self.day(tenant, 0).await;
        [
            "/services",
            &format!("/services/{service}"),
            "/products",
            &format!("/products?category={category}"),
            &format!("/products/{product}"),
            "/categories",
            "/staff",
            &format!("/staff/{person}"),
            &format!("/slots?date={today}"),
            "/slots/week",
            "/slots/next",
            &format!("/staff/{person}/slots?date={today}"),
            &format!("/pets/{pet}"),
            "/pages",
            "/pages/home",
            "/summary",
        ]
        .map(str::to_owned)
        .into()
    }

    /// A date of the tenant's own, so many days from its today.
    async fn day(&mut self, tenant: &str, days: u32) -> String {
        let sql = format!(
            "select ((now() at time zone timezone)::date + {days})::text from tenants where id = '{tenant}'"
        );
        self.text(&sql).await
    }

    /// An appointment on such a date that has that status.
    async fn slot(&mut self, tenant: &str, day: &str, status: &str) -> String {
        let sql = format!(
            "select s.id::text from slots s join tenants t on t.id = tenant_id \
             where tenant_id = '{tenant}' and s.status = '{status}' \
             and (starts_at at time zone timezone)::date = '{day}' order by starts_at limit 1"
        );
        self.text(&sql).await
    }

    /// Whether a day's list has the appointment.
    async fn has_slot(&self, tenant: &str, day: &str, slot: &str) -> bool {
        let list = self.read(tenant, &format!("/slots?date={day}")).await;
        list.as_array().unwrap().iter().any(|found| found["id"] == slot)
    }

    async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            support::redis_connection(&self.redis).await.keys("*").await.unwrap();
        keys.retain(|key| !key.starts_with("preheat:"));
        keys.sort();
        keys
    }

    /// Reads that were not answered by Redis.
    fn misses(&self) -> u64 {
        let reads = self.service.cache().stats().reads;
        reads.values().map(|reads| reads.miss + reads.bypass + reads.joined).sum()
    }
}

/// The date in each time zone of the tenants.
const TODAYS: &str =
    "select distinct (now() at time zone timezone)::date::text from tenants order by 1";

fn first_category(tenant: &str) -> String {
    format!("select min(category) from products where tenant_id = '{tenant}' and active")
}

/// Starts the service; it ends with the test's runtime.
/// On a machine that is busy with other tests, Redis may answer late; that is no fault of the service.
const PATIENT: Duration = Duration::from_secs(2);

async fn open(database: &Database, redis: &Redis, has_cache: bool) -> (Service, SocketAddr) {
    let listen = "127.0.0.1:0".to_owned();
    let settings = Settings {
        database_url: database.url(),
        redis_url: redis.url(),
        listen,
        has_cache,
        cache_deadline: PATIENT,
    };
    let service = Service::new(&settings).unwrap();
    let listener = TcpListener::bind(&settings.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router: Router = service.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (service, address)
}

async fn send(address: SocketAddr, tenant: &str, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    http::request(address, method, path, &[("x-tenant", tenant)], &body).await.unwrap()
}

#[tokio::test]
async fn every_read_finds_what_preheat_warmed_and_it_is_what_the_database_says() {
    let mut site = Site::warm().await;
    let (_, uncached) = open(&site.database, &site.redis, false).await;
    let tenants = site.tenants().await;
    assert!(tenants.len() >= 3, "{tenants:?}");
    for tenant in &tenants {
        for path in site.paths(tenant).await {
            let (answer, direct) = (
                site.get(tenant, &path).await,
                send(uncached, tenant, "GET", &path, &Value::Null).await,
            );
            assert_eq!(answer.status, direct.status, "{path}: {answer:?}");
            assert!(answer.status == 200 || path == "/slots/next", "{path}: {answer:?}");
            if answer.status == 200 {
                assert_eq!(answer.json(), direct.json(), "{path}");
            }
            let status = answer.header("cache-status");
            assert!(status.is_none_or(|status| status == "preheat; hit"), "{path}: {status:?}");
        }
    }
    let reads = site.service.cache().stats().reads;
    assert_eq!(site.misses(), 0, "{reads:?}");
    let families: Vec<_> = reads.keys().copied().collect();
    assert_eq!(families, ["content", "pets", "products", "services", "slots", "staff"]);
}

#[tokio::test]
async fn what_the_service_fills_is_what_preheat_would_have_written() {
    let mut site = Site::new().await;
    for tenant in site.tenants().await {
        for path in site.paths(&tenant).await {
            site.get(&tenant, &path).await;
        }
    }
    assert!(site.misses() > 0 && site.keys().await.len() > 20);
    let mut filled = support::redis_connection(&site.redis).await;
    let keys = site.keys().await;
    // Another cache with what preheat writes.
    let _first = std::mem::replace(&mut site.redis, support::redis());
    site.preheat(["warm"]).run().await.expect_code(0);
    let mut warmed = support::redis_connection(&site.redis).await;
    for key in keys {
        let (own, expected): (Option<String>, Option<String>) =
            (filled.get(&key).await.unwrap(), warmed.get(&key).await.unwrap());
        // Brief fills may have ended, and midnight may have passed.
        let (Some(own), Some(expected)) = (own, expected) else { continue };
        if key.starts_with("staff:") {
            // Postgres writes spaces and an order of its own into `jsonb`.
            let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(parsed(&own), parsed(&expected), "{key}");
        } else {
            assert_eq!(own, expected, "{key}");
        }
    }
}

#[tokio::test]
async fn services_that_are_created_and_changed_are_seen_at_once() {
    let mut site = Site::warm().await;
    let tenant = site.tenant().await;
    site.read(&tenant, "/services").await;
    let new = json!({ "name": "Acupuncture", "duration_minutes": 30, "price": "12.50" });
    let id = site.write(&tenant, "POST", "/services", new).await.json();
    let path = format!("/services/{}", id.as_str().unwrap());
    let created = site.read(&tenant, &path).await;
    assert_eq!((&created["name"], &created["price"]), (&json!("Acupuncture"), &json!("12.50")));
    site.write(&tenant, "PATCH", &path, json!({ "price": "99" })).await;
    assert_eq!(site.read(&tenant, &path).await["price"], "99.00");
    site.write(&tenant, "PATCH", &path, json!({ "active": false })).await;
    assert_eq!(site.get(&tenant, &path).await.status, 404);
    let wrong = site.send(&tenant, "PATCH", &path, &json!({ "price": "a lot" })).await;
    assert_eq!(wrong.status, 400);
    let other = site.tenants().await.remove(1);
    let change = site.send(&other, "PATCH", &path, &json!({ "price": "0" })).await;
    assert_eq!(change.status, 404, "another clinic's service");
}

#[tokio::test]
async fn a_product_that_changes_its_category_leaves_one_list_and_is_in_the_other() {
    let mut site = Site::warm().await;
    let tenant = site.tenant().await;
    let list = site.read(&tenant, "/products").await;
    let categories = site.read(&tenant, "/categories").await;
    let (from, to) = (&categories[0], &categories[1]);
    let is_of = |category: &Value| {
        let category = category.as_str().unwrap().to_owned();
        move |product: &&Value| product["category"] == category
    };
    let product = list.as_array().unwrap().iter().find(is_of(from)).unwrap();
    let id = product["id"].as_str().unwrap();
    let in_list = async |category: &Value| -> Option<Value> {
        let path = format!("/products?category={}", category.as_str().unwrap());
        let list = site.read(&tenant, &path).await;
        list.as_array().unwrap().iter().find(|product| product["id"] == id).cloned()
    };
    assert!(in_list(from).await.is_some() && in_list(to).await.is_none());
    let path = format!("/products/{id}");
    site.write(&tenant, "PATCH", &path, json!({ "category": to, "stock": 4711 })).await;
    assert_eq!(in_list(from).await, None);
    assert_eq!(in_list(to).await.unwrap()["stock"], 4711);
    assert_eq!(site.read(&tenant, &path).await["stock"], 4711);

    site.write(&tenant, "PATCH", &path, json!({ "category": "all" })).await;
    assert_eq!(in_list(to).await, None);
    let all = in_list(&json!("all")).await.unwrap();
    assert_eq!(all["category"], "all", "the category is not the whole list");
    let whole = site.read(&tenant, "/products").await;
    assert_eq!(whole.as_array().unwrap().len(), list.as_array().unwrap().len());
}

#[tokio::test]
async fn an_appointment_that_is_booked_cancelled_and_postponed_is_seen_on_both_days() {
    let mut site = Site::warm().await;
    let tenant = site.tenant().await;
    let (today, later) = (site.day(&tenant, 1).await, site.day(&tenant, 3).await);
    let slot = site.slot(&tenant, &today, "open").await;
    let to = site.slot(&tenant, &later, "open").await;
    let booking = format!("/slots/{slot}/booking");
    assert!(site.has_slot(&tenant, &today, &slot).await);
    assert!(site.has_slot(&tenant, &later, &to).await);

    site.write(&tenant, "POST", &booking, Value::Null).await;
    assert!(!site.has_slot(&tenant, &today, &slot).await);
    assert_eq!(site.send(&tenant, "POST", &booking, &Value::Null).await.status, 409, "taken");

    site.write(&tenant, "PUT", &booking, json!({ "to": to })).await;
    assert!(site.has_slot(&tenant, &today, &slot).await, "free again");
    assert!(!site.has_slot(&tenant, &later, &to).await);

    site.write(&tenant, "DELETE", &format!("/slots/{to}/booking"), Value::Null).await;
    assert!(site.has_slot(&tenant, &later, &to).await);
    let week = site.read(&tenant, "/slots/week").await;
    assert_eq!(week.as_object().unwrap().len(), 7);
    assert_eq!(week[&later], site.read(&tenant, &format!("/slots?date={later}")).await);
}

#[tokio::test]
async fn a_pet_that_is_renamed_and_a_page_that_is_taken_down_are_seen_at_once() {
    let mut site = Site::warm().await;
    let tenant = site.tenant().await;
    let pet = site.text(&format!("select id::text from pets where tenant_id = '{tenant}'")).await;
    let path = format!("/pets/{pet}");
    site.read(&tenant, &path).await;
    site.write(&tenant, "PUT", &format!("{path}/name"), json!({ "name": "Rex II" })).await;
    assert_eq!(site.read(&tenant, &path).await["name"], "Rex II");

    site.read(&tenant, "/pages/home").await;
    site.write(&tenant, "PUT", "/pages/home/published", json!({ "published": false })).await;
    assert_eq!(site.get(&tenant, "/pages/home").await.status, 404);
    site.write(&tenant, "PUT", "/pages/home/published", json!({ "published": true })).await;
    site.read(&tenant, "/pages/home").await;
}

#[tokio::test]
async fn another_clinics_pet_is_not_found_warm_or_cold() {
    for is_warm in [false, true] {
        let mut site = if is_warm { Site::warm().await } else { Site::new().await };
        let tenants = site.tenants().await;
        let (owner, other) = (&tenants[0], &tenants[1]);
        let pet =
            site.text(&format!("select id::text from pets where tenant_id = '{owner}'")).await;
        let (path, key) = (format!("/pets/{pet}"), format!("pet:{pet}"));
        assert_eq!(site.get(other, &path).await.status, 404);
        assert_eq!(site.keys().await.contains(&key), is_warm, "a stranger fills nothing");
        assert_eq!(site.read(owner, &path).await["tenant_id"], *owner);
        assert_eq!(site.get(other, &path).await.status, 404);
        let renamed =
            site.send(other, "PUT", &format!("{path}/name"), &json!({ "name": "X" })).await;
        assert_eq!(renamed.status, 404);
    }
}

#[tokio::test]
async fn with_redis_stopped_everything_works() {
    let mut site = Site::warm().await;
    let (_, uncached) = open(&site.database, &site.redis, false).await;
    let tenant = site.tenant().await;
    let paths = site.paths(&tenant).await;
    for is_killed in [false, true] {
        if is_killed {
            site.redis.kill();
        } else {
            site.redis.freeze();
        }
        for path in &paths {
            let answer = site.get(&tenant, path).await;
            let direct = send(uncached, &tenant, "GET", path, &Value::Null).await;
            assert_eq!((answer.status, &answer.body), (direct.status, &direct.body), "{path}");
        }
        let (pet, name) = (&paths[12], if is_killed { "Killed" } else { "Frozen" });
        site.write(&tenant, "PUT", &format!("{pet}/name"), json!({ "name": name })).await;
        assert_eq!(site.read(&tenant, pet).await["name"], name);
        site.redis.thaw();
    }
    site.redis.restart().unwrap();
    let is_hit = async || {
        site.get(&tenant, "/services").await.header("cache-status") == Some("preheat; hit")
    };
    eventually("Redis is used again", LONG, is_hit).await;
}

#[tokio::test]
async fn nobody_reads_without_a_clinic_that_is_active() {
    let mut site = Site::new().await;
    let off = site.text("select id::text from tenants where status = 'suspended' limit 1").await;
    for tenant in [off.as_str(), "00000000-0000-4000-8000-000000000000", "no id", ""] {
        assert_eq!(site.get(tenant, "/services").await.status, 401, "{tenant}");
    }
    assert_eq!(http::get(site.address, "/services").await.unwrap().status, 401);
    assert_eq!(site.keys().await, [""; 0]);
}

#[tokio::test]
async fn callers_cannot_fill_the_cache_with_keys_of_their_own_making() {
    let mut site = Site::new().await;
    let tenant = site.tenant().await;
    assert_eq!(site.read(&tenant, "/products?category=made-up").await, json!([]));
    assert_eq!(site.read(&tenant, "/products?category=").await, json!([]));
    for date in ["1999-12-31", "2999-12-31", "2026-02-30", "today"] {
        assert_eq!(site.get(&tenant, &format!("/slots?date={date}")).await.status, 400, "{date}");
    }
    let unknown = "/pets/00000000-0000-4000-8000-000000000000";
    assert_eq!(site.get(&tenant, unknown).await.status, 404);
    assert_eq!(site.keys().await, [""; 0]);
}

#[tokio::test]
async fn a_browser_that_has_the_list_gets_no_body() {
    let mut site = Site::warm().await;
    let tenant = site.tenant().await;
    let first = site.get(&tenant, "/services").await;
    let tag = first.header("etag").unwrap();
    let headers = [("x-tenant", tenant.as_str()), ("if-none-match", tag)];
    let again = http::request(site.address, "GET", "/services", &headers, "").await.unwrap();
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(again.header("cache-status"), Some("preheat; hit"));
}
