//! A clinic's open appointments: a key a day of the clinic's own time zone.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::{DateTime, Days, NaiveDate, Utc};
use preheat_client::Key;
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, BadKey, SlotsRow};
use crate::tenant::Tenant;

/// How far ahead one may look. Later days than [`crate::tenant::DAYS`] are not warm; without a limit, callers
/// could fill the cache with days without end.
const FURTHEST: Days = Days::new(60);

pub(crate) fn routes() -> Router<Service> {
    Router::new()
        .route("/slots", get(day))
        .route("/slots/week", get(week))
        .route("/slots/next", get(next))
        .route("/staff/{id}/slots", get(of_person))
        .route("/slots/{id}/booking", post(book).delete(cancel).put(postpone))
}

#[derive(Deserialize)]
struct Day {
    date: NaiveDate,
}

impl Day {
    fn of(&self, tenant: &Tenant) -> Result<NaiveDate, Error> {
        let today = tenant.today();
        let is_near = self.date >= today && self.date <= today + FURTHEST;
        is_near.then_some(self.date).ok_or(Error::BadRequest)
    }
}

async fn day(
    State(service): State<Service>,
    tenant: Tenant,
    Query(day): Query<Day>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let date = day.of(&tenant)?;
    let key = keys::slots(tenant.id, date)?;
    Ok(service.cache.respond(&headers, key, move || load_day(service.db, tenant, date)).await?)
}

async fn week(
    State(service): State<Service>,
    tenant: Tenant,
) -> Answer<BTreeMap<NaiveDate, Vec<SlotsRow>>> {
    Ok(Json(days(service, tenant).await?.collect()))
}

/// The first appointment that is still to come.
async fn next(State(service): State<Service>, tenant: Tenant) -> Answer<SlotsRow> {
    let now = moment(Utc::now());
    let mut slots = days(service, tenant).await?.flat_map(|(_date, slots)| slots);
    slots.find(|slot| slot.starts_at > now).map(Json).ok_or(Error::NotFound)
}

async fn of_person(
    State(service): State<Service>,
    tenant: Tenant,
    Path(person): Path<Uuid>,
    Query(day): Query<Day>,
) -> Answer<Vec<SlotsRow>> {
    let (date, person) = (day.of(&tenant)?, person.to_string());
    let key = keys::slots(tenant.id, date)?;
    let load = move || load_day(service.db, tenant, date);
    let mut slots = service.cache.get_or_load(key, load).await?;
    slots.retain(|slot| slot.staff_id == person);
    Ok(Json(slots))
}

/// The week with one `MGET`; the days that are missing, with one query.
async fn days(
    service: Service,
    tenant: Tenant,
) -> Result<impl Iterator<Item = (NaiveDate, Vec<SlotsRow>)>, Error> {
    let dates: Vec<NaiveDate> = tenant.week().collect();
    let keys: Result<Vec<_>, BadKey> =
        dates.iter().map(|date| Ok((*date, keys::slots(tenant.id, date)?))).collect();
    let load = move |dates| load(service.db.clone(), tenant, dates);
    let lists = service.cache.many(keys?, load).await?;
    Ok(dates.into_iter().zip(lists))
}

async fn book(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Error> {
    let mut connection = service.db.acquire().await?;
    let starts_at = set(&mut connection, tenant, id, Status::Booked).await?;
    drop(connection);
    service.cache.changed([key(tenant, starts_at)]).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn cancel(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Error> {
    let mut connection = service.db.acquire().await?;
    let starts_at = set(&mut connection, tenant, id, Status::Open).await?;
    drop(connection);
    service.cache.changed([key(tenant, starts_at)]).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The slot to which an appointment goes.
#[derive(Deserialize)]
struct Postponed {
    to: Uuid,
}

/// One transaction, and perhaps two days.
async fn postpone(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
    Json(Postponed { to }): Json<Postponed>,
) -> Result<StatusCode, Error> {
    let mut transaction = service.db.begin().await?;
    let before = set(&mut transaction, tenant, id, Status::Open).await?;
    let after = set(&mut transaction, tenant, to, Status::Booked).await?;
    transaction.commit().await?;
    let dates = [before, after].map(|starts_at| date(tenant, starts_at));
    let keys = BTreeSet::from(dates).into_iter().map(|date| keys::slots(tenant.id, date));
    service.cache.changed(keys).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The day on which a slot is, at the clinic.
fn date(tenant: Tenant, starts_at: DateTime<Utc>) -> NaiveDate {
    starts_at.with_timezone(&tenant.zone).date_naive()
}

fn key(tenant: Tenant, starts_at: DateTime<Utc>) -> Result<Key<Vec<SlotsRow>>, BadKey> {
    keys::slots(tenant.id, date(tenant, starts_at))
}

#[derive(Clone, Copy)]
enum Status {
    Open,
    Booked,
}

/// Changes a slot that is not so yet, and says when it begins.
async fn set(
    connection: &mut PgConnection,
    tenant: Tenant,
    id: Uuid,
    status: Status,
) -> Result<DateTime<Utc>, Error> {
    let (before, after) = match status {
        Status::Open => ("booked", "open"),
        Status::Booked => ("open", "booked"),
    };
    let starts_at = sqlx::query_scalar(
        "update slots set status = $4, updated_at = now()
         where id = $1 and tenant_id = $2 and status = $3
         returning starts_at",
    )
    .bind(id)
    .bind(tenant.id)
    .bind(before)
    .bind(after)
    .fetch_optional(connection)
    .await?;
    starts_at.ok_or(Error::Conflict)
}

pub(crate) async fn load_day(
    db: PgPool,
    tenant: Tenant,
    date: NaiveDate,
) -> sqlx::Result<Vec<SlotsRow>> {
    let mut days = load(db, tenant, vec![date]).await?;
    Ok(days.pop().unwrap_or_default())
}

/// The open slots of each date, as job `slots` does it.
async fn load(
    db: PgPool,
    tenant: Tenant,
    dates: Vec<NaiveDate>,
) -> sqlx::Result<Vec<Vec<SlotsRow>>> {
    let rows = sqlx::query(
        "select id, staff_id, starts_at, ends_at from slots
         where tenant_id = $1 and status = 'open'
           and starts_at >= ($2::date)::timestamp at time zone $4
           and starts_at < ($3::date + 1)::timestamp at time zone $4
         order by starts_at, id",
    )
    .bind(tenant.id)
    .bind(dates.iter().min())
    .bind(dates.iter().max())
    .bind(tenant.zone.name())
    .try_map(|row: PgRow| Ok((date(tenant, row.try_get("starts_at")?), read(&row)?)))
    .fetch_all(&db)
    .await?;
    let mut days: BTreeMap<NaiveDate, Vec<SlotsRow>> = BTreeMap::new();
    for (date, slot) in rows {
        days.entry(date).or_default().push(slot);
    }
    Ok(dates.iter().map(|date| days.remove(date).unwrap_or_default()).collect())
}

fn read(row: &PgRow) -> sqlx::Result<SlotsRow> {
    Ok(SlotsRow {
        id: row.try_get::<Uuid, _>("id")?.to_string(),
        staff_id: row.try_get::<Uuid, _>("staff_id")?.to_string(),
        starts_at: moment(row.try_get("starts_at")?),
        ends_at: moment(row.try_get("ends_at")?),
    })
}
