//! The sample clinic: `demo/schema.sql` and `demo/data.sql`, with its parameters.

use super::SandboxError;
use super::postgres::execute;

const SCHEMA: &str = include_str!("../../demo/schema.sql");
const DATA: &str = include_str!("../../demo/data.sql");

/// The size of the sample clinic's data: the parameters of `demo/data.sql`.
#[derive(Clone, Debug, PartialEq)]
pub struct Clinic {
    /// How many tenants.
    pub tenants: u32,
    /// The share of active tenants, 0 to 1; the others are on trial or suspended.
    pub active: f64,
    /// Services of a tenant whose size is 1.
    pub services: u32,
    /// Products of a tenant whose size is 1.
    pub products: u32,
    /// Categories of products: 1 to 8.
    pub categories: u32,
    /// Staff members of a tenant whose size is 1.
    pub staff: u32,
    /// How many of the staff have bookable slots.
    pub rostered: u32,
    /// Slots of one person on one day; about half of them are free.
    pub slots: u32,
    /// The first day with slots; 0 is the tenant's today.
    pub first_day: i32,
    /// How many days have slots.
    pub days: u32,
    /// Pets of a tenant whose size is 1.
    pub pets: u32,
    /// Pages of a tenant.
    pub pages: u32,
    /// One tenant in this many is a giant; 0 for none.
    pub giant_every: u32,
    /// A giant's size.
    pub giant_factor: f64,
    /// Whether sizes range from 0 (a tenant without data) to 3; otherwise every size is 1.
    pub skewed: bool,
}

impl Clinic {
    /// A clinic chain to look at: tenants have different sizes, and some have no data yet.
    pub fn demo(tenants: u32) -> Self {
        Self {
            tenants,
            active: 0.85,
            services: 12,
            products: 60,
            categories: 5,
            staff: 6,
            rostered: 3,
            slots: 16,
            first_day: -1, // whoever leaves the demo running over midnight still sees full days
            days: 15,
            pets: 10,
            pages: 3,
            giant_every: 100,
            giant_factor: 20.0,
            skewed: true,
        }
    }

    /// A small one of the same kind, for tests: 24 tenants, some without data, one a giant.
    pub fn small() -> Self {
        Self {
            services: 3,
            products: 8,
            categories: 3,
            staff: 2,
            rostered: 1,
            slots: 4,
            days: 10,
            pets: 2,
            giant_every: 20,
            ..Self::demo(24)
        }
    }

    /// The data of the benchmark: about 440 rows and 85 kB of JSON a tenant, and one tenant in 500
    /// fifty times as large.
    pub fn bench(tenants: u32) -> Self {
        Self {
            tenants,
            active: 0.85,
            services: 20,
            products: 100,
            categories: 5,
            staff: 8,
            rostered: 3,
            slots: 16,
            first_day: 0,
            days: 7,
            pets: 1,
            pages: 1,
            giant_every: 500,
            giant_factor: 50.0,
            skewed: false,
        }
    }

    /// Creates the tables and their rows in an empty database. Afterwards it is like a database
    /// that has been running for a while: analysed and vacuumed.
    pub async fn load(&self, url: &str) -> Result<(), SandboxError> {
        // One transaction: rows of a table that was created in it need no write-ahead log.
        let load = format!("{}{SCHEMA}{DATA}", self.parameters());
        execute(url, &load).await?;
        execute(url, "vacuum").await
    }

    fn parameters(&self) -> String {
        let Self { tenants, active, services, products, categories, staff, rostered, .. } = self;
        let Self { slots, first_day, days, pets, pages, giant_every, giant_factor, skewed, .. } =
            self;
        [
            ("tenants", tenants.to_string()),
            ("active", active.to_string()),
            ("services", services.to_string()),
            ("products", products.to_string()),
            ("categories", categories.to_string()),
            ("staff", staff.to_string()),
            ("rostered", rostered.to_string()),
            ("slots", slots.to_string()),
            ("first_day", first_day.to_string()),
            ("days", days.to_string()),
            ("pets", pets.to_string()),
            ("pages", pages.to_string()),
            ("giant_every", giant_every.to_string()),
            ("giant_factor", giant_factor.to_string()),
            ("skewed", skewed.to_string()),
        ]
        .map(|(name, value)| format!("set clinic.{name} = '{value}';\n"))
        .concat()
    }
}
