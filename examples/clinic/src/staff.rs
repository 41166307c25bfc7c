//! Who works at a clinic.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, StaffRow};
use crate::tenant::Tenant;

pub(crate) fn routes() -> Router<Service> {
    Router::new().route("/staff", get(list)).route("/staff/{id}", get(one))
}

async fn list(
    State(service): State<Service>,
    tenant: Tenant,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let key = keys::staff(tenant.id)?;
    Ok(service.cache.respond(&headers, key, move || load(service.db, tenant.id)).await?)
}

async fn one(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
) -> Answer<StaffRow> {
    let key = keys::staff(tenant.id)?;
    let list = service.cache.get_or_load(key, move || load(service.db, tenant.id)).await?;
    let id = id.to_string();
    list.into_iter().find(|row| row.id == id).map(Json).ok_or(Error::NotFound)
}

/// As job `staff` does it.
pub(crate) async fn load(db: PgPool, tenant: Uuid) -> sqlx::Result<Vec<StaffRow>> {
    sqlx::query(
        "select id, name, role, email, bio, working_hours::text, updated_at
         from staff where tenant_id = $1 and active
         order by name, id",
    )
    .bind(tenant)
    .try_map(|row| read(&row))
    .fetch_all(&db)
    .await
}

fn read(row: &PgRow) -> sqlx::Result<StaffRow> {
    let working_hours: String = row.try_get("working_hours")?;
    let working_hours = serde_json::from_str(&working_hours);
    Ok(StaffRow {
        id: row.try_get::<Uuid, _>("id")?.to_string(),
        name: row.try_get("name")?,
        role: row.try_get("role")?,
        email: row.try_get("email")?,
        bio: row.try_get("bio")?,
        working_hours: working_hours.map_err(|error| sqlx::Error::Decode(error.into()))?,
        updated_at: moment(row.try_get("updated_at")?),
    })
}
