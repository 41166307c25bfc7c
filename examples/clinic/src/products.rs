//! A clinic's shop.

use std::collections::BTreeSet;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::Service;
use crate::error::Error;
use crate::json::{Answer, moment};
use crate::keys::{self, ProductsRow};
use crate::tenant::Tenant;

pub(crate) fn routes() -> Router<Service> {
    Router::new()
        .route("/products", get(list))
        .route("/products/{id}", get(one).patch(change))
        .route("/categories", get(categories))
}

#[derive(Deserialize)]
struct Filter {
    category: Option<String>,
}

async fn list(
    State(service): State<Service>,
    tenant: Tenant,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Service { db, cache, .. } = service;
    let Some(category) = filter.category else {
        let key = keys::products_all(tenant.id)?;
        return Ok(cache.respond(&headers, key, move || load(db, tenant.id)).await?);
    };
    // A category without products has no key, so that nobody can fill the cache with made-up ones. `all` has
    // none either: its key would be that of the whole list.
    let Ok(key) = keys::products_by_category(tenant.id, &category) else {
        return Ok(Json(load_category(db, tenant.id, category).await?).into_response());
    };
    let load = move || async move {
        let products = load_category(db, tenant.id, category).await?;
        Ok((!products.is_empty()).then_some(products))
    };
    let products = cache.find_or_load(key, load).await?;
    Ok(Json(products.unwrap_or_default()).into_response())
}

async fn one(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
) -> Answer<ProductsRow> {
    let id = id.to_string();
    let product = all(service, tenant).await?.into_iter().find(|row| row.id == id);
    product.map(Json).ok_or(Error::NotFound)
}

async fn categories(State(service): State<Service>, tenant: Tenant) -> Answer<BTreeSet<String>> {
    let all = all(service, tenant).await?;
    Ok(Json(all.into_iter().map(|product| product.category).collect()))
}

async fn all(service: Service, tenant: Tenant) -> Result<Vec<ProductsRow>, Error> {
    let key = keys::products_all(tenant.id)?;
    Ok(service.cache.get_or_load(key, move || load(service.db, tenant.id)).await?)
}

/// What is to be another; what is missing stays.
#[derive(Deserialize)]
struct Change {
    stock: Option<i32>,
    category: Option<String>,
}

async fn change(
    State(service): State<Service>,
    tenant: Tenant,
    Path(id): Path<Uuid>,
    Json(change): Json<Change>,
) -> Result<StatusCode, Error> {
    let mut transaction = service.db.begin().await?;
    let before: Option<String> = sqlx::query_scalar(
        "select category from products where id = $1 and tenant_id = $2 for update",
    )
    .bind(id)
    .bind(tenant.id)
    .fetch_optional(&mut *transaction)
    .await?;
    let before = before.ok_or(Error::NotFound)?;
    let after: String = sqlx::query_scalar(
        "update products
         set stock = coalesce($2, stock), category = coalesce($3, category), updated_at = now()
         where id = $1
         returning category",
    )
    .bind(id)
    .bind(change.stock)
    .bind(change.category)
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    // The whole list, and the categories that it left and that it is in now.
    let categories = BTreeSet::from([before, after]);
    let lists = categories.iter().filter_map(|category| {
        keys::products_by_category(tenant.id, category).ok() // one that has no key needs nothing
    });
    let all = [keys::products_all(tenant.id)].into_iter();
    service.cache.changed(all.chain(lists.map(Ok))).await;
    Ok(StatusCode::NO_CONTENT)
}

/// As job `products` does it.
pub(crate) async fn load(db: PgPool, tenant: Uuid) -> sqlx::Result<Vec<ProductsRow>> {
    sqlx::query(
        "select id, category, sku, name, description, price::text, stock, updated_at
         from products where tenant_id = $1 and active
         order by name, id",
    )
    .bind(tenant)
    .try_map(|row| read(&row))
    .fetch_all(&db)
    .await
}

async fn load_category(
    db: PgPool,
    tenant: Uuid,
    category: String,
) -> sqlx::Result<Vec<ProductsRow>> {
    sqlx::query(
        "select id, category, sku, name, description, price::text, stock, updated_at
         from products where tenant_id = $1 and category = $2 and active
         order by name, id",
    )
    .bind(tenant)
    .bind(category)
    .try_map(|row| read(&row))
    .fetch_all(&db)
    .await
}

fn read(row: &PgRow) -> sqlx::Result<ProductsRow> {
    Ok(ProductsRow {
        id: row.try_get::<Uuid, _>("id")?.to_string(),
        category: row.try_get("category")?,
        sku: row.try_get("sku")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        price: row.try_get("price")?,
        stock: row.try_get("stock")?,
        updated_at: moment(row.try_get("updated_at")?),
    })
}
