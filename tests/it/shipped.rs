//! The shipped jobs on the sample clinic: every key in the cache equals the result of plain SQL for its
//! tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use preheat_sandbox::Redis;
use redis::AsyncCommands;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::program::Preheat;
use crate::support::{self, Database, LONG, eventually, preheat};

/// How a value looks when `drizzle-orm` has read it: `numeric` and `date` as text, moments as JavaScript
/// writes them.
const MOMENT: &str = "to_char(date_trunc('milliseconds', {column}) at time zone 'UTC', \
     'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as {column}";

fn moment(column: &str) -> String {
    MOMENT.replace("{column}", column)
}

struct Clinic {
    database: Database,
    redis: Redis,
    connection: PgConnection,
}

/// A tenant of the list, with its time zone.
#[derive(Debug, sqlx::FromRow)]
struct Tenant {
    id: String,
    timezone: String,
}

impl Clinic {
    async fn new() -> Self {
        let database = support::clinic().await;
        let connection = database.connect().await;
        Self { database, redis: support::redis(), connection }
    }

    fn preheat<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
        let preheat = preheat(arguments).database(self.database.url()).cache(self.redis.url());
        preheat.shipped_jobs()
    }

    async fn texts(&mut self, sql: String) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await.unwrap()
    }

    async fn active(&mut self) -> Vec<Tenant> {
        let sql = "select id::text, timezone from tenants where status = 'active' order by id";
        sqlx::query_as(sql).fetch_all(&mut self.connection).await.unwrap()
    }

    /// A tenant's rows as a list.
    async fn list(&mut self, query: &str) -> String {
        let rows = self.texts(format!("select row_to_json(r)::text from ({query}) r")).await;
        compact(&format!("[{}]", rows.join(",")))
    }

    /// The seven dates from today on in a time zone.
    async fn dates(&mut self, zone: &str) -> Vec<String> {
        let sql = format!(
            "select ((now() at time zone '{zone}')::date + day)::text from generate_series(0, 6) day"
        );
        self.texts(sql).await
    }

    async fn all_dates(&mut self) -> Vec<Vec<String>> {
        let mut dates = Vec::new();
        for tenant in self.active().await {
            dates.push(self.dates(&tenant.timezone).await);
        }
        dates
    }

    /// Every key that should exist, with its value.
    async fn expected(&mut self) -> BTreeMap<String, String> {
        let mut keys = BTreeMap::new();
        for tenant in self.active().await {
            keys.extend(self.expected_of(&tenant).await);
        }
        keys
    }

    /// The keys of one tenant, as if it were active.
    async fn expected_of(&mut self, tenant: &Tenant) -> BTreeMap<String, String> {
        let mut keys = BTreeMap::new();
        self.lists(&tenant.id, &mut keys).await;
        self.products(&tenant.id, &mut keys).await;
        self.slots(tenant, &mut keys).await;
        self.pets(&tenant.id, &mut keys).await;
        keys
    }

    async fn lists(&mut self, id: &str, keys: &mut BTreeMap<String, String>) {
        let updated_at = moment("updated_at");
        let services = format!(
            "select id, name, description, duration_minutes, price::text as price, {updated_at} \
             from services where tenant_id = '{id}' and active order by name, id"
        );
        let staff = format!(
            "select id, name, role, email, bio, working_hours, {updated_at} \
             from staff where tenant_id = '{id}' and active order by name, id"
        );
        let content = format!(
            "select slug, title, body, {updated_at} \
             from pages where tenant_id = '{id}' and published order by slug"
        );
        for (name, query) in [("services", services), ("staff", staff), ("content", content)] {
            keys.insert(format!("{name}:{id}"), self.list(&query).await);
        }
    }

    async fn products(&mut self, id: &str, keys: &mut BTreeMap<String, String>) {
        let updated_at = moment("updated_at");
        let products = |which: &str| {
            format!(
                "select id, category, sku, name, description, price::text as price, stock, \
                 {updated_at} from products where tenant_id = '{id}' and active and {which} \
                 order by name, id"
            )
        };
        keys.insert(format!("products:{id}:all"), self.list(&products("true")).await);
        let categories =
            format!("select distinct category from products where tenant_id = '{id}' and active");
        for category in self.texts(categories).await {
            let value = self.list(&products(&format!("category = '{category}'"))).await;
            keys.insert(format!("products:{id}:{category}"), value);
        }
    }

    async fn slots(
        &mut self,
        Tenant { id, timezone }: &Tenant,
        keys: &mut BTreeMap<String, String>,
    ) {
        let (starts_at, ends_at) = (moment("starts_at"), moment("ends_at"));
        for date in self.dates(timezone).await {
            // The moment itself decides the order, not its text.
            let slots = format!(
                "select id, staff_id, {starts_at}, {ends_at} from slots where tenant_id = '{id}' \
                 and status = 'open' and (slots.starts_at at time zone '{timezone}')::date = '{date}' \
                 order by slots.starts_at, id"
            );
            keys.insert(format!("slots:{id}:{date}"), self.list(&slots).await);
        }
    }

    async fn pets(&mut self, id: &str, keys: &mut BTreeMap<String, String>) {
        let updated_at = moment("updated_at");
        let pets = self.texts(format!("select id::text from pets where tenant_id = '{id}'")).await;
        for pet in pets {
            let query = format!(
                "select row_to_json(r)::text from (select id, tenant_id, owner_name, name, species, \
                 breed, birth_date::text as birth_date, notes, {updated_at} \
                 from pets where id = '{pet}') r"
            );
            let object = self.texts(query).await.remove(0);
            keys.insert(format!("pet:{pet}"), compact(&object));
        }
    }

    /// Every key of the cache with its value and remaining TTL, except preheat's own.
    async fn cached(&self) -> BTreeMap<String, (String, Duration)> {
        let mut cache = support::redis_connection(&self.redis).await;
        let mut keys: Vec<String> = cache.keys("*").await.unwrap();
        keys.retain(|key| !key.starts_with("preheat:"));
        let mut cached = BTreeMap::new();
        for key in keys {
            let found = redis::pipe().atomic().get(&key).pttl(&key).query_async(&mut cache).await;
            // A key that was removed meanwhile has no value.
            let (Some(value), left): (Option<String>, i64) = found.unwrap() else { continue };
            let left = Duration::from_millis(left.try_into().expect("every key has a TTL"));
            cached.insert(key, (value, left));
        }
        cached
    }
}

/// JSON without the spaces that Postgres writes between the members of `jsonb`.
fn compact(json: &str) -> String {
    let mut compact = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for char in json.chars() {
        match char {
            '"' if !escaped => in_string = !in_string,
            ' ' if !in_string => continue,
            _ => {}
        }
        escaped = char == '\\' && !escaped;
        compact.push(char);
    }
    compact
}

/// A key's TTL and jitter, by the contract.
fn ttl(key: &str) -> Duration {
    let minutes = match key.split(':').next().unwrap() {
        "services" | "staff" => 60,
        "products" => 30,
        "slots" => 5,
        "pet" => 15,
        "content" => 24 * 60,
        other => panic!("no job writes `{other}`"),
    };
    Duration::from_mins(minutes)
}

/// How many tenants one query of a job reads: by its file, or else by the settings of the test.
fn batch(job: &str) -> u64 {
    match job {
        "products" | "slots" => 50,
        _ => 8,
    }
}

#[tokio::test]
async fn every_key_is_what_plain_sql_says() {
    let mut clinic = Clinic::new().await;
    let mut dates = clinic.all_dates().await;
    let (report, started) = loop {
        let started = std::time::Instant::now();
        let warm = clinic.preheat(["warm", "--json"]).env("PREHEAT_RUNNER__BATCH", "8");
        let report = warm.run().await.expect_code(0).json();
        // If midnight has passed in some time zone, its tenants have one more date: the test starts again
        // with an empty cache.
        let dates_after = clinic.all_dates().await;
        if dates_after == dates {
            break (report, started);
        }
        dates = dates_after;
        clinic.redis = support::redis();
    };
    let expected = clinic.expected().await;
    let cached = clinic.cached().await;
    let elapsed = started.elapsed();

    let keys = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(keys(cached.keys().collect()), keys(expected.keys().collect()));
    for (key, (value, left)) in &cached {
        assert_eq!(compact(value), expected[key], "{key}");
        let ttl = ttl(key);
        assert!(*left <= ttl, "{key} lives {left:?}");
        assert!(*left + elapsed >= ttl.mul_f64(0.9), "{key} lives {left:?}");
    }
    let jittered =
        |(key, (_, left)): (&String, &(String, Duration))| *left + elapsed < ttl(key).mul_f64(0.95);
    assert!(cached.iter().any(jittered), "hazard 15: keys do not expire in step");

    let active = clinic.active().await.len() as u64;
    for job in report["jobs"].as_array().unwrap() {
        let batch = batch(job["job"].as_str().unwrap());
        assert_eq!(job["report"]["queries"], active.div_ceil(batch), "{}", job["job"]);
        assert_eq!(job["report"]["tenants"]["ok"], active, "{}", job["job"]);
    }
}

#[tokio::test]
async fn hazard_12_today_is_the_tenants_own() {
    let mut clinic = Clinic::new().await;
    let tenants = clinic.active().await;
    let in_zone = |zone: &str| tenants.iter().find(|tenant| tenant.timezone == zone).unwrap();
    let (east, west) = (in_zone("Pacific/Kiritimati"), in_zone("Pacific/Pago_Pago"));
    let firsts = loop {
        let today = [clinic.dates(&east.timezone).await, clinic.dates(&west.timezone).await];
        clinic.preheat(["warm", "slots"]).run().await.expect_code(0);
        let after = [clinic.dates(&east.timezone).await, clinic.dates(&west.timezone).await];
        if today == after {
            break today.map(|dates| dates[0].clone());
        }
        clinic.redis = support::redis();
    };
    assert!(firsts[0] > firsts[1], "the two are 25 hours apart: {firsts:?}");
    let cached = clinic.cached().await;
    for (tenant, first) in [east, west].into_iter().zip(firsts) {
        let mut dates =
            cached.keys().filter_map(|key| key.strip_prefix(&format!("slots:{}:", tenant.id)));
        assert_eq!(dates.next(), Some(first.as_str()));
        assert_eq!(dates.count(), 6);
        // From nine in the morning, by the clock of the place.
        let (value, _) = &cached[&format!("slots:{}:{first}", tenant.id)];
        let rows: Vec<Value> = serde_json::from_str(value).unwrap();
        for row in rows {
            let starts_at = row["starts_at"].as_str().unwrap();
            let sql = format!(
                "select ('{starts_at}'::timestamptz at time zone '{}')::text",
                tenant.timezone
            );
            let local = clinic.texts(sql).await.remove(0);
            assert!(local.starts_with(&first) && &local[11..] >= "09:00:00", "{local}");
        }
    }
}

/// An inactive tenant with data of every kind.
const OFF: &str = "select id::text, timezone from tenants t where status = 'suspended' \
    and exists (select from pets where tenant_id = t.id) \
    and exists (select from products where tenant_id = t.id and active) order by id limit 1";

#[tokio::test]
async fn a_tenant_that_is_switched_on_has_all_its_keys_at_once() {
    let mut clinic = Clinic::new().await;
    let tenant: Tenant = sqlx::query_as(OFF).fetch_one(&mut clinic.connection).await.unwrap();
    clinic.preheat(["changes", "install"]).run().await.expect_code(0);
    let worker = clinic.preheat(["serve"]).start();
    worker.answers("/readyz", 200).await;
    worker.metric_becomes("preheat_change_feed_connected", |value| value > 0.0).await;
    eventually("the first runs have ended", LONG, async || {
        let jobs = worker.get("/api/v1/jobs").await.json();
        let mut jobs = jobs["jobs"].as_array().unwrap().iter();
        jobs.all(|job| job["state"] == "idle" && job["last_run"]["outcome"] == "ok")
    })
    .await;
    for (status, is_on) in [("active", true), ("suspended", false), ("active", true)] {
        let switch = format!("update tenants set status = '{status}' where id = '{}'", tenant.id);
        clinic.database.execute(&switch).await;
        eventually(&format!("the cache knows that it is {status}"), LONG, async || {
            let cached = clinic.cached().await;
            // Midnight may pass in its time zone meanwhile.
            let mut expected = clinic.expected_of(&tenant).await.into_iter();
            expected.all(|(key, value)| match cached.get(&key) {
                // A shared key ends by its TTL.
                Some((cached, _)) => (is_on || key.starts_with("pet:")) && compact(cached) == value,
                None => !is_on,
            })
        })
        .await;
    }
}

#[tokio::test]
async fn hazard_06_a_tenant_without_rows_has_its_empty_lists() {
    let mut clinic = Clinic::new().await;
    let sql = "select id::text from tenants t where status = 'active' \
               and not exists (select from products p where p.tenant_id = t.id) limit 1";
    let empty = clinic.texts(sql.to_owned()).await.remove(0);
    clinic.preheat(["warm", "--tenant", &empty]).run().await.expect_code(0);
    let cached = clinic.cached().await;
    assert_eq!(cached.len(), 4 + 7, "{:?}", cached.keys());
    assert!(cached.keys().all(|key| key.contains(&empty)));
    assert!(cached.values().all(|(value, _)| value == "[]"), "{cached:?}");
}
