//! A clinic's static content.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, ContentRow};
use crate::tenant::Tenant;

pub(crate) fn routes() -> Router<Service> {
    Router::new()
        .route("/pages", get(list))
        .route("/pages/{slug}", get(one))
        .route("/pages/{slug}/published", put(publish))
}

async fn list(
    State(service): State<Service>,
    tenant: Tenant,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let key = keys::content(tenant.id)?;
    Ok(service.cache.respond(&headers, key, move || load(service.db, tenant.id)).await?)
}

async fn one(
    State(service): State<Service>,
    tenant: Tenant,
    Path(slug): Path<String>,
) -> Answer<ContentRow> {
    let key = keys::content(tenant.id)?;
    let list = service.cache.get_or_load(key, move || load(service.db, tenant.id)).await?;
    list.into_iter().find(|page| page.slug == slug).map(Json).ok_or(Error::NotFound)
}

#[derive(Deserialize)]
struct Published {
    published: bool,
}

async fn publish(
    State(service): State<Service>,
    tenant: Tenant,
    Path(slug): Path<String>,
    Json(Published { published }): Json<Published>,
) -> Result<StatusCode, Error> {
    let changed = sqlx::query(
        "update pages set published = $3, updated_at = now() where tenant_id = $1 and slug = $2",
    )
    .bind(tenant.id)
    .bind(slug)
    .bind(published)
    .execute(&service.db)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(Error::NotFound);
    }
    service.cache.changed([keys::content(tenant.id)]).await;
    Ok(StatusCode::NO_CONTENT)
}

/// As job `content` does it.
pub(crate) async fn load(db: PgPool, tenant: Uuid) -> sqlx::Result<Vec<ContentRow>> {
    sqlx::query(
        "select slug, title, body, updated_at
         from pages where tenant_id = $1 and published
         order by slug",
    )
    .bind(tenant)
    .try_map(|row| read(&row))
    .fetch_all(&db)
    .await
}

fn read(row: &PgRow) -> sqlx::Result<ContentRow> {
    Ok(ContentRow {
        slug: row.try_get("slug")?,
        title: row.try_get("title")?,
        body: row.try_get("body")?,
        updated_at: moment(row.try_get("updated_at")?),
    })
}
