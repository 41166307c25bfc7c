// Made from the job files by `preheat keys --lang rust`; do not edit.
// To make it anew: preheat keys --lang rust --output <this file>
#![allow(dead_code, unreachable_pub, clippy::pedantic, reason = "generated")]

use std::fmt;
use std::time::Duration;

use preheat_client::{Fill, Key};
use serde::{Deserialize, Serialize};

/// A row of job `content`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContentRow {
    /// `text`
    pub slug: String,
    /// `text`
    pub title: String,
    /// `text`
    pub body: String,
    /// `timestamptz`
    pub updated_at: String,
}

/// `content:{tenant_id}`
pub fn content(tenant: impl fmt::Display) -> Result<Key<Vec<ContentRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let key = format!("content:{tenant}");
    let ttl = Duration::from_millis(86_400_000);
    Ok(Key::new(key, Some(tenant), ttl, "content", Fill::Full))
}

/// A row of job `pets`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PetsRow {
    /// `uuid`
    pub id: String,
    /// `uuid`
    pub tenant_id: String,
    /// `text`
    pub owner_name: String,
    /// `text`
    pub name: String,
    /// `text`
    pub species: String,
    /// `text`
    pub breed: Option<String>,
    /// `date`
    pub birth_date: Option<String>,
    /// `text`
    pub notes: Option<String>,
    /// `timestamptz`
    pub updated_at: String,
}

/// `pet:{id}`
pub fn pets(tenant: impl fmt::Display, id: impl fmt::Display) -> Result<Key<PetsRow>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let id = as_uuid("id", id)?;
    let key = format!("pet:{id}");
    let ttl = Duration::from_millis(900_000);
    Ok(Key::shared(key, Some(tenant), ttl, "pets", Fill::Brief))
}

/// A row of job `products`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductsRow {
    /// `uuid`
    pub id: String,
    /// `text`
    pub category: String,
    /// `text`
    pub sku: String,
    /// `text`
    pub name: String,
    /// `text`
    pub description: Option<String>,
    /// `numeric`
    pub price: String,
    /// `int4`
    pub stock: i32,
    /// `timestamptz`
    pub updated_at: String,
}

/// `products:{tenant_id}:all`
pub fn products_all(tenant: impl fmt::Display) -> Result<Key<Vec<ProductsRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let key = format!("products:{tenant}:all");
    let ttl = Duration::from_millis(1_800_000);
    Ok(Key::new(key, Some(tenant), ttl, "products", Fill::Full))
}

/// `products:{tenant_id}:{category}`
pub fn products_by_category(
    tenant: impl fmt::Display,
    category: impl fmt::Display,
) -> Result<Key<Vec<ProductsRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let category = as_text("category", category)?;
    let key = format!("products:{tenant}:{category}");
    not_of(&key, &["products:", "uuid", ":all"])?;
    let ttl = Duration::from_millis(1_800_000);
    Ok(Key::new(key, Some(tenant), ttl, "products", Fill::Brief))
}

/// A row of job `services`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServicesRow {
    /// `uuid`
    pub id: String,
    /// `text`
    pub name: String,
    /// `text`
    pub description: Option<String>,
    /// `int4`
    pub duration_minutes: i32,
    /// `numeric`
    pub price: String,
    /// `timestamptz`
    pub updated_at: String,
}

/// `services:{tenant_id}`
pub fn services(tenant: impl fmt::Display) -> Result<Key<Vec<ServicesRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let key = format!("services:{tenant}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "services", Fill::Full))
}

/// A row of job `slots`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotsRow {
    /// `uuid`
    pub id: String,
    /// `uuid`
    pub staff_id: String,
    /// `timestamptz`
    pub starts_at: String,
    /// `timestamptz`
    pub ends_at: String,
}

/// `slots:{tenant_id}:{date}`
pub fn slots(
    tenant: impl fmt::Display,
    date: impl fmt::Display,
) -> Result<Key<Vec<SlotsRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let date = as_date("date", date)?;
    let key = format!("slots:{tenant}:{date}");
    let ttl = Duration::from_millis(300_000);
    Ok(Key::new(key, Some(tenant), ttl, "slots", Fill::Full))
}

/// A row of job `staff`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StaffRow {
    /// `uuid`
    pub id: String,
    /// `text`
    pub name: String,
    /// `text`
    pub role: String,
    /// `text`
    pub email: String,
    /// `text`
    pub bio: Option<String>,
    /// `jsonb`
    pub working_hours: serde_json::Value,
    /// `timestamptz`
    pub updated_at: String,
}

/// `staff:{tenant_id}`
pub fn staff(tenant: impl fmt::Display) -> Result<Key<Vec<StaffRow>>, BadKey> {
    let tenant = as_uuid("tenant", tenant)?;
    let key = format!("staff:{tenant}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "staff", Fill::Full))
}

/// A text that makes no cache key, or one of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey(String);

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no cache key: {}", self.0)
    }
}

impl std::error::Error for BadKey {}

/// A text in a key.
fn as_text(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if text.is_empty() {
        return Err(BadKey(format!("`{name}` is empty")));
    }
    Ok(text)
}

/// A UUID as Postgres writes it.
fn as_uuid(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if !is_uuid(&text) {
        return Err(BadKey(format!("`{name}` is no UUID in lower case")));
    }
    Ok(text)
}

/// A date, `YYYY-MM-DD`.
fn as_date(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if !is_date(&text) {
        return Err(BadKey(format!("`{name}` is no date YYYY-MM-DD")));
    }
    Ok(text)
}

/// Checks that a key is none of another template.
fn not_of(key: &str, other: &[&str]) -> Result<(), BadKey> {
    if readings(key, other) > 0 {
        return Err(BadKey("it could be the key of something else".to_owned()));
    }
    Ok(())
}

/// In how many ways a template reads a key. It is a list of texts, with the class of a value between two texts.
fn readings(key: &str, template: &[&str]) -> usize {
    let text = template.first().copied().unwrap_or_default();
    match (template, key.strip_prefix(text)) {
        ([_], Some(key)) => usize::from(key.is_empty()),
        ([_, class, template @ ..], Some(key)) => {
            let splits = (0..=key.len()).filter_map(|end| key.split_at_checked(end));
            let values = splits.filter(|(value, _)| is_value(class, value));
            values.map(|(_, rest)| readings(rest, template)).sum()
        }
        _ => 0,
    }
}

fn is_value(class: &str, text: &str) -> bool {
    match class {
        "uuid" => is_uuid(text),
        "integer" => text.parse::<i64>().is_ok_and(|it| it.to_string() == text),
        "date" => is_date(text),
        _ => true,
    }
}

fn is_uuid(text: &str) -> bool {
    let fits = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-').map(str::parse::<u16>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_real = (1..=12).contains(&month) && (1..=days).contains(&day);
    is_real && text == format!("{year:04}-{month:02}-{day:02}")
}
