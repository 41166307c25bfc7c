//! Whose request it is. A real service takes it from a session; this one believes the header `x-tenant`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use chrono::{Days, NaiveDate, Utc};
use chrono_tz::Tz;
use uuid::Uuid;

use crate::Service;
use crate::error::Error;

/// Today and the six days after it: preheat keeps their slots warm.
pub(crate) const DAYS: u64 = 7;

/// An active clinic, as a session would know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    pub(crate) id: Uuid,
    pub(crate) zone: Tz,
}

impl Tenant {
    /// The date at the clinic, which is not the server's.
    pub(crate) fn today(&self) -> NaiveDate {
        Utc::now().with_timezone(&self.zone).date_naive()
    }

    pub(crate) fn week(&self) -> impl Iterator<Item = NaiveDate> {
        let today = self.today();
        (0..DAYS).filter_map(move |days| today.checked_add_days(Days::new(days)))
    }
}

/// The clinics that have asked already. They are kept for ever, which is a shortcut: a session ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenants {
    known: Arc<Mutex<HashMap<Uuid, Tenant>>>,
}

impl Tenants {
    async fn find(&self, service: &Service, id: Uuid) -> Result<Tenant, Error> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known().get(&id) {
            return Ok(*tenant);
        }
        let zone: Option<String> =
            sqlx::query_scalar("select timezone from tenants where id = $1 and status = 'active'")
                .bind(id)
                .fetch_optional(&service.db)
                .await?;
        let zone = zone.and_then(|zone| zone.parse().ok()).ok_or(Error::Unauthenticated)?;
        let tenant = Tenant { id, zone };
        known().insert(id, tenant);
        Ok(tenant)
    }
}

/// Lets a request in that says whose it is.
pub(crate) async fn authenticate(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let id = request.headers().get("x-tenant").and_then(|id| id.to_str().ok()?.parse().ok());
    let tenant = service.tenants.find(&service, id.ok_or(Error::Unauthenticated)?).await?;
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}

/// A handler that takes a [`Tenant`] cannot run without one.
impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        parts.extensions.get().copied().ok_or(Error::Unauthenticated)
    }
}
