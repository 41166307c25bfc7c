//! A clinic at a glance: four kinds of values with one `MGET`.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use chrono::{NaiveDate, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, SlotsRow};
use crate::tenant::Tenant;
use crate::{products, services, slots, staff};

pub(crate) fn routes() -> Router<Service> {
    Router::new().route("/summary", get(summary))
}

#[derive(Serialize)]
struct Summary {
    services: usize,
    products: usize,
    staff: usize,
    open_today: usize,
    next: Option<SlotsRow>,
}

/// Which value.
#[derive(Clone, Copy)]
enum Part {
    Services,
    Products,
    Staff,
    Slots(NaiveDate),
}

async fn summary(State(service): State<Service>, tenant: Tenant) -> Answer<Summary> {
    let today = tenant.today();
    let keys = [
        (Part::Services, keys::services(tenant.id)?.any()),
        (Part::Products, keys::products_all(tenant.id)?.any()),
        (Part::Staff, keys::staff(tenant.id)?.any()),
        (Part::Slots(today), keys::slots(tenant.id, today)?.any()),
    ];
    let cache = service.cache.clone();
    let load = move |parts| load(service.clone(), tenant, parts);
    let values = cache.many(keys, load).await?;
    let [services, products, staff, slots] =
        <[Value; 4]>::try_from(values).map_err(|_other_number| Error::NotFound)?;
    let slots: Vec<SlotsRow> = typed(slots).unwrap_or_default();
    let now = moment(Utc::now());
    Ok(Json(Summary {
        services: count(&services),
        products: count(&products),
        staff: count(&staff),
        open_today: slots.len(),
        next: slots.into_iter().find(|slot| slot.starts_at > now),
    }))
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

fn typed<T: DeserializeOwned>(value: Value) -> Option<T> {
    serde_json::from_value(value).ok()
}

async fn load(service: Service, tenant: Tenant, parts: Vec<Part>) -> sqlx::Result<Vec<Value>> {
    let mut values = Vec::with_capacity(parts.len());
    for part in parts {
        let db = service.db.clone();
        values.push(match part {
            Part::Services => value(&services::load(db, tenant.id).await?),
            Part::Products => value(&products::load(db, tenant.id).await?),
            Part::Staff => value(&staff::load(db, tenant.id).await?),
            Part::Slots(date) => value(&slots::load_day(db, tenant, date).await?),
        }?);
    }
    Ok(values)
}

fn value(rows: &impl Serialize) -> sqlx::Result<Value> {
    serde_json::to_value(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}
