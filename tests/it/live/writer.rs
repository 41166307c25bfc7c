//! The application: it writes as fast as it can, in transactions of all kinds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{Days, Utc};
use redis::aio::MultiplexedConnection;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::support::dice::Dice;

/// Statements for some tenants (`$1`), each of which changes about this many rows (`$2`).
const CHANGES: [&str; 19] = [
    "update services set price = 10 + random() * 90, active = random() < 0.9, updated_at = clock_timestamp() \
     where id in (select id from services where tenant_id = any($1) order by random() limit $2)",
    "insert into services (id, tenant_id, name, duration_minutes, price) \
     select gen_random_uuid(), tenant, 'Service ' || n, 30, random() * 90 \
     from unnest($1::uuid[]) tenant, generate_series(1, least($2, 2)) n",
    "delete from services \
     where id in (select id from services where tenant_id = any($1) order by random() limit $2)",
    "update products set price = 10 + random() * 90, stock = random() * 99, active = random() < 0.9, \
       updated_at = clock_timestamp() \
     where id in (select id from products where tenant_id = any($1) order by random() limit $2)",
    // Categories appear and disappear.
    "update products set category = 'category ' || floor(random() * 9) \
     where id in (select id from products where tenant_id = any($1) order by random() limit $2)",
    "insert into products (id, tenant_id, category, sku, name, price, stock) \
     select gen_random_uuid(), tenant, 'category ' || floor(random() * 9), 'sku', 'Product ' || n, 5, 5 \
     from unnest($1::uuid[]) tenant, generate_series(1, least($2, 2)) n",
    "delete from products \
     where id in (select id from products where tenant_id = any($1) order by random() limit $2)",
    "update staff set name = 'Dr. ' || random(), working_hours = jsonb_build_object('mon', random()), \
       active = random() < 0.9, updated_at = clock_timestamp() \
     where id in (select id from staff where tenant_id = any($1) order by random() limit $2)",
    "insert into staff (id, tenant_id, name, role, email) \
     select gen_random_uuid(), tenant, 'Somebody “new” ' || n, 'nurse', 'new@clinic.example' \
     from unnest($1::uuid[]) tenant, generate_series(1, least($2, 2)) n",
    "delete from staff \
     where id in (select id from staff where tenant_id = any($1) order by random() limit $2)",
    "update slots set status = case status when 'open' then 'booked' else 'open' end, \
       starts_at = starts_at + (random() - 0.5) * interval '1 day' \
     where id in (select id from slots where tenant_id = any($1) order by random() limit $2)",
    "insert into slots (id, tenant_id, staff_id, starts_at, ends_at, status) \
     select gen_random_uuid(), tenant, gen_random_uuid(), starts_at, starts_at, 'open' \
     from unnest($1::uuid[]) tenant, generate_series(1, least($2, 2)) n, \
       lateral (select now() + (random() + 0 * n) * interval '8 days' as starts_at) times",
    "delete from slots \
     where id in (select id from slots where tenant_id = any($1) order by random() limit $2)",
    "update pets set notes = 'note ' || random(), updated_at = clock_timestamp() \
     where id in (select id from pets where tenant_id = any($1) order by random() limit $2)",
    "insert into pets (id, tenant_id, owner_name, name, species) \
     select gen_random_uuid(), tenant, 'Owner ' || n, 'Luna 🌙', 'cat' \
     from unnest($1::uuid[]) tenant, generate_series(1, least($2, 2)) n",
    "delete from pets \
     where id in (select id from pets where tenant_id = any($1) order by random() limit $2)",
    "update pages set body = repeat('page ', (random() * 99)::int), published = random() < 0.9, \
       updated_at = clock_timestamp() \
     where id in (select id from pages where tenant_id = any($1) order by random() limit $2)",
    "insert into pages (id, tenant_id, slug, title, body) \
     select gen_random_uuid(), tenant, 'page-' || gen_random_uuid(), 'New', 'Text' \
     from unnest($1::uuid[]) tenant where $2 > 0",
    "delete from pages \
     where id in (select id from pages where tenant_id = any($1) order by random() limit $2)",
];

/// Moves pets of some tenants to another one (`$3`), which may be inactive.
const MOVE: &str = "update pets set tenant_id = $3, updated_at = clock_timestamp() \
     where id in (select id from pets where tenant_id = any($1) order by random() limit $2) \
     returning id";

const SWITCH: &str = "update tenants \
    set status = case status when 'active' then 'suspended' else 'active' end \
    where id = any($1) and $2 = 0";

/// One tenant in this many is switched on and off: fewer than may be missing from a list.
const SWITCHED_EVERY: usize = 5;
/// Nearly all changes of a period concern this many tenants. Later periods have other tenants and never these
/// again. So most tenants' last change is long before the end, and nothing corrects what it left wrong.
const HOT: usize = 20;

/// What a writer does after a commit.
pub(super) enum Manners {
    /// It moves the fences and deletes keys.
    FollowsTheFence { redis: String },
    /// Nothing.
    KnowsNothing,
}

/// What a writer wrote.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) transactions: u64,
    pub(super) rows: u64,
    pub(super) rolled_back: u64,
    pub(super) deadlocks: u64,
    /// Pets that went from one tenant to another.
    pub(super) moved: u64,
}

impl Written {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { transactions, rows, rolled_back, deadlocks, moved } = *other;
        self.transactions += transactions;
        self.rows += rows;
        self.rolled_back += rolled_back;
        self.deadlocks += deadlocks;
        self.moved += moved;
    }
}

enum Statement {
    Change { sql: &'static str, tenants: Vec<Uuid>, most: i64 },
    Move { from: Vec<Uuid>, to: Uuid, most: i64 },
}

/// What a transaction changed.
#[derive(Debug, Default)]
struct Touched {
    tenants: BTreeSet<Uuid>,
    /// Pets that went to another tenant.
    moved: Vec<Uuid>,
    rows: u64,
}

impl Touched {
    fn add(&mut self, other: Self) {
        let Self { tenants, moved, rows } = other;
        self.tenants.extend(tenants);
        self.moved.extend(moved);
        self.rows += rows;
    }
}

impl Statement {
    /// Executes the statement; returns which tenants it touched, unless that is known already.
    async fn execute(self, connection: &mut PgConnection) -> sqlx::Result<Touched> {
        match self {
            Self::Change { sql, tenants, most } => {
                let done = sqlx::query(sql).bind(tenants).bind(most).execute(connection).await?;
                Ok(Touched { rows: done.rows_affected(), ..Touched::default() })
            }
            Self::Move { from, to, most } => {
                let moved = sqlx::query_scalar(MOVE).bind(from).bind(most).bind(to);
                let moved: Vec<Uuid> = moved.fetch_all(connection).await?;
                let rows = moved.len() as u64;
                Ok(Touched { tenants: BTreeSet::from([to]), moved, rows })
            }
        }
    }
}

/// One process of the application.
pub(super) struct Writer {
    dice: Dice,
    connection: PgConnection,
    tenants: Arc<[Uuid]>,
    manners: Manners,
    cache: Option<MultiplexedConnection>,
    began: Instant,
    lasts: Duration,
    written: Written,
}

impl Writer {
    pub(super) fn new(
        number: u64,
        connection: PgConnection,
        tenants: Arc<[Uuid]>,
        manners: Manners,
    ) -> Self {
        let (dice, began) = (Dice::new(number), Instant::now());
        Self {
            dice,
            connection,
            tenants,
            manners,
            cache: None,
            began,
            lasts: Duration::ZERO,
            written: Written::default(),
        }
    }

    pub(super) async fn write_for(mut self, lasts: Duration) -> Written {
        (self.began, self.lasts) = (Instant::now(), lasts);
        // Transactions that lock in opposite orders need not wait a second for each other.
        sqlx::raw_sql("set deadlock_timeout = '10ms'").execute(&mut self.connection).await.unwrap();
        while self.done() < 1.0 {
            if let Some(touched) = self.transaction().await {
                self.invalidate(&touched).await;
            }
        }
        self.written
    }

    /// The share of its time that has passed.
    fn done(&self) -> f64 {
        self.began.elapsed().as_secs_f64() / self.lasts.as_secs_f64()
    }

    /// Does one transaction; returns what it touched if it was committed.
    async fn transaction(&mut self) -> Option<Touched> {
        let all_at_once = self.done() < 0.5 && self.dice.one_in(100);
        let (tenants, most) =
            if all_at_once { (self.tenants.to_vec(), 400) } else { (self.some_tenants(), 5) };
        let statements = self.statements(&tenants, most);
        let mut transaction = self.connection.begin().await.unwrap();
        let mut touched = Touched { tenants: tenants.into_iter().collect(), ..Touched::default() };
        for statement in statements {
            match statement.execute(&mut transaction).await {
                Ok(more) => touched.add(more),
                Err(error) => {
                    assert!(is_deadlock(&error), "{error}");
                    self.written.deadlocks += 1;
                    return None;
                }
            }
        }
        if self.dice.one_in(8) {
            transaction.rollback().await.unwrap();
            self.written.rolled_back += 1;
            return None;
        }
        transaction.commit().await.unwrap();
        self.written.transactions += 1;
        self.written.rows += touched.rows;
        self.written.moved += touched.moved.len() as u64;
        Some(touched)
    }

    /// One to four changes, and now and then moved pets, and tenants that come or go.
    fn statements(&mut self, tenants: &[Uuid], most: usize) -> Vec<Statement> {
        let dice = &mut self.dice;
        let mut statements: Vec<Statement> = (0..=dice.below(4))
            .map(|_| Statement::Change {
                sql: CHANGES[dice.below(CHANGES.len())],
                tenants: tenants.to_vec(),
                most: i64::try_from(1 + dice.below(most)).unwrap(),
            })
            .collect();
        if dice.one_in(4) {
            let to = self.tenants[dice.below(self.tenants.len())];
            let most = i64::try_from(1 + dice.below(most)).unwrap();
            statements.push(Statement::Move { from: tenants.to_vec(), to, most });
        }
        if dice.one_in(20) {
            let switchable = self.tenants.iter().step_by(SWITCHED_EVERY);
            let switched = switchable.filter(|tenant| tenants.contains(tenant) && dice.one_in(2));
            let switched: Vec<Uuid> = switched.copied().collect();
            statements.push(Statement::Change { sql: SWITCH, tenants: switched, most: 0 });
        }
        statements
    }

    /// One to three tenants, mostly of the hot ones.
    fn some_tenants(&mut self) -> Vec<Uuid> {
        let all = self.tenants.len();
        let passed = self.began.elapsed().as_millis() * all as u128 / self.lasts.as_millis();
        let first = usize::try_from(passed).unwrap();
        let dice = &mut self.dice;
        let mut some: Vec<Uuid> = (0..=dice.below(3))
            .map(|_| {
                let hot = (first + dice.below(HOT)) % all;
                self.tenants[if dice.one_in(50) { dice.below(all) } else { hot }]
            })
            .collect();
        some.sort_unstable();
        some.dedup();
        some
    }

    /// What an application that follows the contract does after its commit. Its cache may be away while it
    /// restarts; then only the change feed reports the change.
    async fn invalidate(&mut self, touched: &Touched) {
        let Manners::FollowsTheFence { redis } = &self.manners else { return };
        let mut pipeline = redis::pipe();
        for tenant in &touched.tenants {
            pipeline.incr(format!("preheat:fence:{tenant}"), 1).ignore();
        }
        for tenant in &touched.tenants {
            pipeline.del(keys(*tenant)).ignore();
        }
        // Only while runs for all tenants follow, which bring back a key that is deleted after its warmer has
        // ended.
        if self.done() < 0.5 {
            for pet in &touched.moved {
                pipeline.del(format!("pet:{pet}")).ignore();
            }
        }
        if self.cache.is_none() {
            let client = redis::Client::open(redis.as_str()).unwrap();
            self.cache = client.get_multiplexed_async_connection().await.ok();
        }
        let Some(cache) = &mut self.cache else { return };
        let done: redis::RedisResult<()> = pipeline.query_async(cache).await;
        if done.is_err() {
            self.cache = None;
        }
    }
}

/// The keys that the application knows: those of the jobs that are due every second. If a key is deleted
/// after its warmer has ended, it is missing until its job is due.
fn keys(tenant: Uuid) -> Vec<String> {
    let mut keys: Vec<String> = ["content", "staff"].map(|job| format!("{job}:{tenant}")).to_vec();
    keys.push(format!("products:{tenant}:all"));
    keys.extend((0..9).map(|n| format!("products:{tenant}:category {n}")));
    let today = Utc::now().date_naive();
    keys.extend((0..7).map(|day| format!("slots:{tenant}:{}", today + Days::new(day))));
    keys
}

fn is_deadlock(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("40P01"))
}
