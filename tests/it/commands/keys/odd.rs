// Made from the job files by `preheat keys --lang rust`; do not edit.
// To make it anew: preheat keys --lang rust --output <this file>
#![allow(dead_code, unreachable_pub, clippy::pedantic, reason = "generated")]

use std::fmt;
use std::time::Duration;

use preheat_client::{Fill, Key};
use serde::{Deserialize, Serialize};

/// A row of job `2fa_Things`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job2faThingsRow {
    /// `int4`
    pub id: i32,
    /// `int8`
    pub club_id: String,
    /// `text`
    pub kind: String,
    /// `uuid`
    pub code: String,
    /// `text`
    pub r#type: String,
    #[serde(rename = "updatedAt")]
    /// `timestamptz`
    pub updated_at: String,
    #[serde(rename = "updated_at")]
    /// `timestamptz`
    pub updated_at_2: Option<String>,
    #[serde(rename = "class name")]
    /// `text`
    pub class_name: Option<String>,
    /// `bool`
    pub flag: bool,
    /// `int2`
    pub small: i16,
    /// `int8`
    pub big: String,
    /// `float8`
    pub ratio: f64,
    /// `numeric`
    pub price: String,
    /// `date`
    pub born: String,
    /// `text[]`
    pub tags: Vec<Option<String>>,
    /// `int4[]`
    pub grid: Option<Vec<Vec<Option<i32>>>>,
    /// `jsonb`
    pub data: serde_json::Value,
    /// `bytea`
    pub raw: serde_json::Value,
    /// `point`
    pub spot: serde_json::Value,
    /// `interval`
    pub lasts: serde_json::Value,
}

/// `odd:{club_id}:{{$`*/\"\\}}:{tenant.plan}`
pub fn job_2fa_things_by_plan(
    tenant: impl Into<i64>,
    plan: impl fmt::Display,
) -> Result<Key<Vec<Job2faThingsRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let plan = as_text("plan", plan)?;
    let key = format!("odd:{tenant}:{{$`*/\"\\}}:{plan}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "2fa_Things", Fill::Full))
}

/// `odd:{club_id}:of:{kind}:{type}`
pub fn job_2fa_things_of_by_kind_and_type(
    tenant: impl Into<i64>,
    kind: impl fmt::Display,
    type_: impl fmt::Display,
) -> Result<Key<Vec<Job2faThingsRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let kind = as_text("kind", kind)?;
    ended_by("kind", &kind, ":")?;
    let type_ = as_text("type_", type_)?;
    let key = format!("odd:{tenant}:of:{kind}:{type_}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "2fa_Things", Fill::Brief))
}

/// A row of job `a-job-with-a-name-that-is-as-long-as-the-patience-of-its-readers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AJobWithANameThatIsAsLongAsThePatienceOfItsReadersRow {
    /// `int8`
    pub club_id: i64,
    /// `int4`
    pub id: i32,
    /// `text`
    pub the_kind_of_a_thing_as_its_seller_describes_it: String,
    /// `uuid`
    pub the_code_under_which_it_is_sold: String,
}

/// `a-text-before-the-tenant:{club_id}:{the_kind_of_a_thing_as_its_seller_describes_it}:and-then:{the_code_under_which_it_is_sold}`
pub fn a_job_with_a_name_that_is_as_long_as_the_patience_of_its_readers_by_the_kind_of_a_thing_as_its_seller_describes_it_and_then(
    tenant: impl Into<i64>,
    the_kind_of_a_thing_as_its_seller_describes_it: impl fmt::Display,
    the_code_under_which_it_is_sold: impl fmt::Display,
) -> Result<Key<Vec<AJobWithANameThatIsAsLongAsThePatienceOfItsReadersRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let the_kind_of_a_thing_as_its_seller_describes_it = as_text(
        "the_kind_of_a_thing_as_its_seller_describes_it",
        the_kind_of_a_thing_as_its_seller_describes_it,
    )?;
    ended_by(
        "the_kind_of_a_thing_as_its_seller_describes_it",
        &the_kind_of_a_thing_as_its_seller_describes_it,
        ":and-then:",
    )?;
    let the_code_under_which_it_is_sold = as_uuid(
        "the_code_under_which_it_is_sold",
        the_code_under_which_it_is_sold,
    )?;
    let key = format!(
        "a-text-before-the-tenant:{tenant}:{the_kind_of_a_thing_as_its_seller_describes_it}:and-then:{the_code_under_which_it_is_sold}",
    );
    not_of(
        &key,
        &["a-text-before-the-tenant:", "integer", ":b:c:", "text", ""],
    )?;
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(
        key,
        Some(tenant),
        ttl,
        "a-job-with-a-name-that-is-as-long-as-the-patience-of-its-readers",
        Fill::Brief,
    ))
}

/// `a-text-before-the-tenant:{club_id}:b:c:{the_code_under_which_it_is_sold}`
pub fn a_job_with_a_name_that_is_as_long_as_the_patience_of_its_readers_b_c(
    tenant: impl Into<i64>,
    the_code_under_which_it_is_sold: impl fmt::Display,
) -> Result<Key<Vec<AJobWithANameThatIsAsLongAsThePatienceOfItsReadersRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let the_code_under_which_it_is_sold = as_uuid(
        "the_code_under_which_it_is_sold",
        the_code_under_which_it_is_sold,
    )?;
    let key = format!("a-text-before-the-tenant:{tenant}:b:c:{the_code_under_which_it_is_sold}");
    not_of(
        &key,
        &[
            "a-text-before-the-tenant:",
            "integer",
            ":",
            "text",
            ":and-then:",
            "text",
            "",
        ],
    )?;
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(
        key,
        Some(tenant),
        ttl,
        "a-job-with-a-name-that-is-as-long-as-the-patience-of-its-readers",
        Fill::Brief,
    ))
}

/// A row of job `fleet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetRow {
    /// `int8`
    pub things: Option<i64>,
}

/// `fleet`
pub fn fleet() -> Key<Option<FleetRow>> {
    let key = "fleet";
    let ttl = Duration::from_millis(3_600_000);
    Key::new(key, None, ttl, "fleet", Fill::Full)
}

/// A row of job `price-list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PriceListRow {
    /// `int4`
    pub id: i32,
    /// `text`
    pub kind: String,
    /// `numeric`
    pub price: f64,
    /// `int8`
    pub big: String,
    /// `point`
    pub spot: [f64; 2],
    /// `text[]`
    pub tags: Vec<Option<String>>,
    /// `int2[]`
    pub smalls: Option<Vec<serde_json::Value>>,
    #[serde(rename = "updatedAt")]
    /// `timestamptz`
    pub updated_at: Option<String>,
}

/// `price:{club_id}`
pub fn price_list(tenant: impl Into<i64>) -> Result<Key<Vec<PriceListRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let key = format!("price:{tenant}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "price-list", Fill::Full))
}

/// `price:{club_id}:{kind}`
pub fn price_list_by_kind(
    tenant: impl Into<i64>,
    kind: impl fmt::Display,
) -> Result<Key<Vec<PriceListRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let kind = as_text("kind", kind)?;
    let key = format!("price:{tenant}:{kind}");
    not_of(&key, &["price:", "integer", ":", "text", ":new"])?;
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "price-list", Fill::Brief))
}

/// `price:{club_id}:{kind}:new`
pub fn price_list_by_kind_new(
    tenant: impl Into<i64>,
    kind: impl fmt::Display,
) -> Result<Key<Vec<PriceListRow>>, BadKey> {
    let tenant = as_integer(tenant);
    let kind = as_text("kind", kind)?;
    let key = format!("price:{tenant}:{kind}:new");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, Some(tenant), ttl, "price-list", Fill::Brief))
}

/// A row of job `rates`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatesRow {
    /// `uuid`
    pub code: String,
    /// `int4`
    pub id: i32,
    /// `numeric`
    pub price: String,
}

/// `rate:{code}`
pub fn rates(code: impl fmt::Display) -> Result<Key<RatesRow>, BadKey> {
    let code = as_uuid("code", code)?;
    let key = format!("rate:{code}");
    let ttl = Duration::from_millis(3_600_000);
    Ok(Key::new(key, None, ttl, "rates", Fill::Brief))
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

/// An integer as Postgres writes it.
fn as_integer(value: impl Into<i64>) -> String {
    let number: i64 = value.into();
    number.to_string()
}

/// Checks that a text does not contain the text by which it ends in the key.
fn ended_by(name: &str, text: &str, end: &str) -> Result<(), BadKey> {
    if format!("{text}{end}").find(end) < Some(text.len()) {
        return Err(BadKey(format!("`{name}` contains `{end}`")));
    }
    Ok(())
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
