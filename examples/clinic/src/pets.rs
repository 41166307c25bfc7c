//! A pet's profile. Its key has no tenant in it, so each read checks whose it is.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, put};
use axum::{Json, Router};
use chrono::NaiveDate;
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::moment;
use crate::keys::{self, PetsRow};
use crate::tenant::Tenant;

pub(crate) fn routes() -> Router<Service> {
    Router::new().route("/pets/{id}", get(one)).route("/pets/{id}/name", put(rename))
}

/// The loader finds the caller's pets alone: the fill is watched by the caller's fence, which does not move when
/// another clinic's pet changes. The value may be another clinic's nevertheless, because that one asked for it or
/// because preheat wrote it.
async fn one(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let key = keys::pets(tenant.id, id)?;
    let load = move || load(service.db, tenant.id, id);
    let is_own = move |pet: &PetsRow| pet.tenant_id == tenant.id.to_string();
    Ok(service.cache.respond_found(&headers, key, load, is_own).await?)
}

#[derive(Deserialize)]
struct Renamed {
    name: String,
}

async fn rename(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
    Json(Renamed { name }): Json<Renamed>,
) -> Result<StatusCode, Error> {
    let renamed = sqlx::query(
        "update pets set name = $3, updated_at = now() where id = $1 and tenant_id = $2",
    )
    .bind(id)
    .bind(tenant.id)
    .bind(name)
    .execute(&service.db)
    .await?;
    if renamed.rows_affected() == 0 {
        return Err(Error::NotFound);
    }
    service.cache.changed([keys::pets(tenant.id, id)]).await;
    Ok(StatusCode::NO_CONTENT)
}

/// As job `pets` does it.
async fn load(db: PgPool, tenant: Uuid, id: Uuid) -> sqlx::Result<Option<PetsRow>> {
    sqlx::query(
        "select id, tenant_id, owner_name, name, species, breed, birth_date, notes, updated_at
         from pets where tenant_id = $1 and id = $2",
    )
    .bind(tenant)
    .bind(id)
    .try_map(|row| read(&row))
    .fetch_optional(&db)
    .await
}

fn read(row: &PgRow) -> sqlx::Result<PetsRow> {
    let birth_date: Option<NaiveDate> = row.try_get("birth_date")?;
    Ok(PetsRow {
        id: row.try_get::<Uuid, _>("id")?.to_string(),
        tenant_id: row.try_get::<Uuid, _>("tenant_id")?.to_string(),
        owner_name: row.try_get("owner_name")?,
        name: row.try_get("name")?,
        species: row.try_get("species")?,
        breed: row.try_get("breed")?,
        birth_date: birth_date.map(|date| date.to_string()),
        notes: row.try_get("notes")?,
        updated_at: moment(row.try_get("updated_at")?),
    })
}
