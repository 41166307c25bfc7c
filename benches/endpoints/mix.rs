//! What the visitors of a chain of booking sites ask for.

use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, NaiveDate, Utc};
use chrono_tz::Tz;
use sqlx::PgPool;

use crate::load::{self, Arrival, Random, Zipf};

/// Requests that write, in a thousand.
const WRITES: usize = 50;
/// The order of the clinics by how often they are asked for; the same in every run.
const ORDER: u64 = 12;

/// An endpoint, and what of a hundred reads or writes goes to it.
pub(crate) struct Endpoint {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    weight: f64,
    ask: fn(&mut Clinic, &mut Random) -> Ask,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It reads keys that preheat keeps warm.
    Warm,
    /// It reads what preheat does not keep warm.
    Outside,
    Write,
}

/// A request: method, path, body, expected status.
type Ask = (&'static str, String, String, u16);

fn get(path: String) -> Ask {
    ("GET", path, String::new(), 200)
}

const fn read(
    name: &'static str,
    weight: f64,
    ask: fn(&mut Clinic, &mut Random) -> Ask,
) -> Endpoint {
    Endpoint { name, kind: Kind::Warm, weight, ask }
}

const fn outside(
    name: &'static str,
    weight: f64,
    ask: fn(&mut Clinic, &mut Random) -> Ask,
) -> Endpoint {
    Endpoint { name, kind: Kind::Outside, weight, ask }
}

const fn write(
    name: &'static str,
    weight: f64,
    ask: fn(&mut Clinic, &mut Random) -> Ask,
) -> Endpoint {
    Endpoint { name, kind: Kind::Write, weight, ask }
}

/// The sixteen reads (two of them also outside the warmed set), and the writes.
pub(crate) static ENDPOINTS: [Endpoint; 24] = [
    read("GET /services", 14.0, |_, _| get("/services".to_owned())),
    read("GET /services/{id}", 8.0, |c, r| get(format!("/services/{}", pick(&c.services, r)))),
    read("GET /products", 6.0, |_, _| get("/products".to_owned())),
    read("GET /products?category=", 9.0, |c, r| {
        get(format!("/products?category={}", pick(&c.categories, r)))
    }),
    read("GET /products/{id}", 8.0, |c, r| get(format!("/products/{}", pick(&c.products, r)))),
    read("GET /categories", 3.0, |_, _| get("/categories".to_owned())),
    read("GET /staff", 7.0, |_, _| get("/staff".to_owned())),
    read("GET /staff/{id}", 4.0, |c, r| get(format!("/staff/{}", pick(&c.staff, r)))),
    read("GET /slots?date=", 15.0, |c, r| get(format!("/slots?date={}", c.day(near(r))))),
    read("GET /slots/week", 6.0, |_, _| get("/slots/week".to_owned())),
    read("GET /slots/next", 4.0, |_, _| get("/slots/next".to_owned())),
    read("GET /staff/{id}/slots?date=", 4.0, |c, r| {
        get(format!("/staff/{}/slots?date={}", pick(&c.staff, r), c.day(near(r))))
    }),
    read("GET /pets/{id}", 4.0, |c, r| get(format!("/pets/{}", pick(&c.pets, r)))),
    read("GET /pages", 2.0, |_, _| get("/pages".to_owned())),
    read("GET /pages/{slug}", 3.5, |c, r| get(format!("/pages/{}", pick(&c.pages, r)))),
    read("GET /summary", 2.0, |_, _| get("/summary".to_owned())),
    outside("GET /slots?date= (an eighth day)", 0.25, |c, _| {
        get(format!("/slots?date={}", c.day(7)))
    }),
    outside("GET /pets/{id} (unknown)", 0.25, |_, r| {
        (
            "GET",
            format!("/pets/{}", uuid::Uuid::from_u64_pair(r.next(), r.next())),
            String::new(),
            404,
        )
    }),
    write("book or cancel a slot", 60.0, |c, r| {
        let (id, is_open) = pick_mut(&mut c.slots, r);
        let method = if *is_open { "POST" } else { "DELETE" };
        *is_open = !*is_open;
        (method, format!("/slots/{id}/booking"), String::new(), 204)
    }),
    write("change a product's stock", 20.0, |c, r| {
        let body = format!(r#"{{"stock": {}}}"#, r.below(250));
        ("PATCH", format!("/products/{}", pick(&c.products, r)), body, 204)
    }),
    write("rename a pet", 8.0, |c, r| {
        let body = format!(r#"{{"name": "Rex {}"}}"#, r.below(100));
        ("PUT", format!("/pets/{}/name", pick(&c.pets, r)), body, 204)
    }),
    write("change a service's price", 6.0, |c, r| {
        let body = format!(r#"{{"price": "{}.50"}}"#, 20 + r.below(100));
        ("PATCH", format!("/services/{}", pick(&c.services, r)), body, 204)
    }),
    write("publish a page", 4.0, |c, r| {
        let body = r#"{"published": true}"#.to_owned();
        ("PUT", format!("/pages/{}/published", pick(&c.pages, r)), body, 204)
    }),
    write("create a service", 2.0, |_, r| {
        let body = format!(
            r#"{{"name": "Walk {}", "duration_minutes": 30, "price": "12.50"}}"#,
            r.below(1000)
        );
        ("POST", "/services".to_owned(), body, 201)
    }),
];

fn pick<'a, T>(from: &'a [T], random: &mut Random) -> &'a T {
    &from[random.below(from.len())]
}

fn pick_mut<'a, T>(from: &'a mut [T], random: &mut Random) -> &'a mut T {
    let place = random.below(from.len());
    &mut from[place]
}

/// Days from today: the nearest most often.
fn near(random: &mut Random) -> u64 {
    [0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6][random.below(12)]
}

/// A tenant: what its visitors know of it.
#[derive(Clone, Debug)]
pub(crate) struct Clinic {
    pub(crate) id: Arc<str>,
    zone: Tz,
    today: NaiveDate,
    services: Vec<String>,
    products: Vec<String>,
    categories: Vec<String>,
    staff: Vec<String>,
    pets: Vec<String>,
    pages: Vec<String>,
    /// And whether each is open.
    slots: Vec<(String, bool)>,
}

impl Clinic {
    fn day(&self, days: u64) -> NaiveDate {
        self.today + Days::new(days)
    }
}

/// What requests are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// As visitors come.
    All,
    /// Reads of warm keys alone.
    WarmReads,
}

/// The active clinics, those that are asked for most first.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) clinics: Vec<Clinic>,
    zipf: Zipf,
}

const CLINICS: &str = "
    select t.id::text, t.timezone,
      array(select id::text from services where tenant_id = t.id and active order by id),
      array(select id::text from products where tenant_id = t.id and active order by id),
      array(select distinct category from products where tenant_id = t.id and active order by 1),
      array(select id::text from staff where tenant_id = t.id and active order by id),
      array(select id::text from pets where tenant_id = t.id order by id),
      array(select slug from pages where tenant_id = t.id and published order by slug),
      array(select id::text from slots where tenant_id = t.id and status = 'open' order by id),
      array(select id::text from slots where tenant_id = t.id and status = 'booked' order by id)
    from tenants t where t.status = 'active' order by t.created_at, t.id";

type Row = (
    String,
    String,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
);

impl Site {
    pub(crate) async fn of(database: &PgPool) -> Self {
        let rows: Vec<Row> = sqlx::query_as(CLINICS).fetch_all(database).await.unwrap();
        let mut clinics: Vec<_> = rows.into_iter().map(clinic).collect();
        let mut random = Random::new(ORDER);
        for place in (1..clinics.len()).rev() {
            clinics.swap(place, random.below(place + 1));
        }
        Self { zipf: Zipf::new(clinics.len()), clinics }
    }

    /// The requests of a phase. The same seed gives the same requests at the same moments, but for the dates.
    pub(crate) fn plan(
        &mut self,
        seed: u64,
        (rate, length): (f64, Duration),
        mix: Mix,
    ) -> Vec<Arrival> {
        // If midnight comes during the phase, it has come already: the service refuses days that are over.
        let end = Utc::now() + length;
        for clinic in &mut self.clinics {
            clinic.today = end.with_timezone(&clinic.zone).date_naive();
        }
        let mut random = Random::new(seed);
        let moments = load::arrivals(&mut random, rate, length);
        moments.into_iter().map(|at| self.arrival(at, &mut random, mix)).collect()
    }

    fn arrival(&mut self, at: Duration, random: &mut Random, mix: Mix) -> Arrival {
        let place = self.zipf.draw(random);
        let clinic = &mut self.clinics[place];
        let is_write = mix == Mix::All && random.below(1000) < WRITES;
        let is_drawn = |endpoint: &Endpoint| match endpoint.kind {
            Kind::Warm => !is_write,
            Kind::Outside => !is_write && mix == Mix::All,
            Kind::Write => is_write,
        };
        let all: f64 = ENDPOINTS.iter().filter(|one| is_drawn(one)).map(|one| one.weight).sum();
        let mut left = random.uniform() * all;
        let mut drawn = ENDPOINTS.iter().enumerate().filter(|(_, one)| is_drawn(one));
        let found = drawn.clone().find(|(_, one)| {
            left -= one.weight;
            left < 0.0
        });
        let (endpoint, one) = found.or_else(|| drawn.next()).expect("an endpoint");
        let (method, path, body, expects) = (one.ask)(clinic, random);
        Arrival { at, endpoint, method, path, tenant: Arc::clone(&clinic.id), body, expects }
    }
}

/// Of all reads, the share outside the warmed set.
pub(crate) fn share_outside() -> f64 {
    let weight = |kind| -> f64 {
        ENDPOINTS.iter().filter(|one| one.kind == kind).map(|one| one.weight).sum()
    };
    weight(Kind::Outside) / (weight(Kind::Outside) + weight(Kind::Warm))
}

fn clinic(row: Row) -> Clinic {
    let (id, zone, services, products, categories, staff, pets, pages, open, booked) = row;
    let open = open.into_iter().map(|id| (id, true));
    let slots = open.chain(booked.into_iter().map(|id| (id, false))).collect();
    Clinic {
        id: id.into(),
        zone: zone.parse().expect("a time zone"),
        today: NaiveDate::default(),
        services,
        products,
        categories,
        staff,
        pets,
        pages,
        slots,
    }
}

pub(crate) fn is_read(endpoint: usize) -> bool {
    ENDPOINTS[endpoint].kind != Kind::Write
}
