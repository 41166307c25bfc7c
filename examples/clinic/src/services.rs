//! What a clinic offers: the list on its booking page.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, ServicesRow};
use crate::tenant::Tenant;

pub(crate) fn routes() -> Router<Service> {
    Router::new()
        .route("/services", get(list).post(create))
        .route("/services/{id}", get(one).patch(change))
}

/// The list as it is in Redis: nothing is parsed.
async fn list(
    State(service): State<Service>,
    tenant: Tenant,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let key = keys::services(tenant.id)?;
    Ok(service.cache.respond(&headers, key, move || load(service.db, tenant.id)).await?)
}

/// One of the list: a key of its own would be one that nobody warms.
async fn one(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
) -> Answer<ServicesRow> {
    let key = keys::services(tenant.id)?;
    let list = service.cache.get_or_load(key, move || load(service.db, tenant.id)).await?;
    let id = id.to_string();
    list.into_iter().find(|row| row.id == id).map(Json).ok_or(Error::NotFound)
}

/// A service to be offered.
#[derive(Deserialize)]
struct New {
    name: String,
    description: Option<String>,
    duration_minutes: i32,
    /// Text, so that no cent is lost.
    price: String,
}

async fn create(
    State(service): State<Service>,
    tenant: Tenant,
    Json(new): Json<New>,
) -> Result<(StatusCode, Json<Uuid>), Error> {
    let id = Uuid::new_v4();
    sqlx::query(
        "insert into services (id, tenant_id, name, description, duration_minutes, price)
         values ($1, $2, $3, $4, $5, $6::text::numeric)",
    )
    .bind(id)
    .bind(tenant.id)
    .bind(new.name)
    .bind(new.description)
    .bind(new.duration_minutes)
    .bind(new.price)
    .execute(&service.db)
    .await?;
    service.cache.changed([keys::services(tenant.id)]).await;
    Ok((StatusCode::CREATED, Json(id)))
}

/// What is to be another; what is missing stays.
#[derive(Deserialize)]
struct Change {
    name: Option<String>,
    price: Option<String>,
    active: Option<bool>,
}

async fn change(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
    Json(change): Json<Change>,
) -> Result<StatusCode, Error> {
    let changed = sqlx::query(
        "update services
         set name = coalesce($3, name), price = coalesce($4::text::numeric, price),
             active = coalesce($5, active), updated_at = now()
         where id = $1 and tenant_id = $2",
    )
    .bind(id)
    .bind(tenant.id)
    .bind(change.name)
    .bind(change.price)
    .bind(change.active)
    .execute(&service.db)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(Error::NotFound);
    }
    service.cache.changed([keys::services(tenant.id)]).await;
    Ok(StatusCode::NO_CONTENT)
}

/// As job `services` does it.
pub(crate) async fn load(db: PgPool, tenant: Uuid) -> sqlx::Result<Vec<ServicesRow>> {
    sqlx::query(
        "select id, name, description, duration_minutes, price::text, updated_at
         from services where tenant_id = $1 and active
         order by name, id",
    )
    .bind(tenant)
    .try_map(|row| read(&row))
    .fetch_all(&db)
    .await
}

fn read(row: &PgRow) -> sqlx::Result<ServicesRow> {
    Ok(ServicesRow {
        id: row.try_get::<Uuid, _>("id")?.to_string(),
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        duration_minutes: row.try_get("duration_minutes")?,
        price: row.try_get("price")?,
        updated_at: moment(row.try_get("updated_at")?),
    })
}
