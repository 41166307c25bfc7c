//! `/api/v1/tenants`: the tenants that are not warm, and everything about one tenant.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use super::AppState;
use super::answer::ApiError;
use super::body::Segment;
use super::openapi::{Api, Operation};
use crate::domain::job::JobName;
use crate::domain::tenant::TenantId;
use crate::overview::{NotWarmTenants, TenantDetail, Wanted, read_cursor};

/// How many tenants one answer lists by default.
const DEFAULT_LIMIT: usize = 100;
/// How many tenants one answer lists at most.
const MAX_LIMIT: usize = 1_000;

/// What narrows the list of tenants.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantsQuery {
    /// Only `false`: the worker remembers the tenants that are not warm, and no others.
    #[schemars(extend("const" = false))]
    pub(super) warm: Option<bool>,
    /// The tenants of this job alone.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{0,64}$"))]
    pub(super) job: Option<String>,
    /// The tenants that are not warm for this reason alone: a kind of failure, or `fenced`.
    pub(super) kind: Option<String>,
    /// The page that begins after this place: `next` of the page before.
    pub(super) cursor: Option<String>,
    /// How many tenants are listed.
    #[schemars(range(min = 1, max = MAX_LIMIT))]
    pub(super) limit: Option<usize>,
}

pub(super) fn routes(api: Api) -> Api {
    let list = Operation::new("listTenants", "The tenants that are not warm, by job and id")
        .query::<TenantsQuery>()
        .answers::<NotWarmTenants>(200, "the tenants")
        .refuses(404, "`unknown_job`");
    let show = Operation::new(
        "showTenant",
        "One tenant: its fence, its last change, and its state and keys in each job",
    )
    .answers::<TenantDetail>(200, "the tenant")
    .refuses(404, "`unknown_tenant`");
    api.get("/api/v1/tenants", self::list, list).get("/api/v1/tenants/{id}", self::show, show)
}

impl TenantsQuery {
    /// The tenants that the query asks for.
    pub(super) fn wanted(self) -> Result<Wanted, ApiError> {
        let Self { warm, job, kind, cursor, limit } = self;
        if warm == Some(true) {
            let message =
                "`warm` can only be `false`: the worker remembers the tenants that are not warm";
            return Err(ApiError::bad_request(message));
        }
        let job = given(job).map(|job| JobName::parse(&job)).transpose();
        let after = given(cursor).map(|cursor| {
            read_cursor(&cursor).ok_or_else(|| ApiError::bad_request("`cursor` is not one of ours"))
        });
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::bad_request(format!("`limit` is from 1 to {MAX_LIMIT}")));
        }
        Ok(Wanted {
            job: job.map_err(|error| ApiError::bad_request(error.to_string()))?,
            reason: given(kind),
            after: after.transpose()?,
            limit,
        })
    }
}

/// A parameter that is given and not empty: forms send empty ones.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Refuses the name of a job that there is not.
pub(super) fn check_job(state: &AppState, job: Option<&str>) -> Result<(), ApiError> {
    let Some(job) = job.filter(|job| !job.is_empty()) else { return Ok(()) };
    let is_known = state.control.handle.status().jobs.keys().any(|known| known.as_str() == job);
    if is_known { Ok(()) } else { Err(ApiError::no_such_job(job)) }
}

/// `GET /api/v1/tenants?warm=false&job=&kind=&cursor=&limit=`
async fn list(
    State(state): State<AppState>,
    query: Result<Query<TenantsQuery>, QueryRejection>,
) -> Result<Json<NotWarmTenants>, ApiError> {
    let Query(query) = query.map_err(|_rejected| {
        ApiError::bad_request(format!(
            "the parameters are `warm=false`, `job`, `kind`, `cursor`, and `limit`, a number from 1 to \
             {MAX_LIMIT}"
        ))
    })?;
    let job = query.job.clone();
    let wanted = query.wanted()?;
    check_job(&state, job.as_deref())?;
    Ok(Json(state.control.board.not_warm(&wanted).await))
}

/// `GET /api/v1/tenants/{id}`
async fn show(
    State(state): State<AppState>,
    Segment(id): Segment,
) -> Result<Json<TenantDetail>, ApiError> {
    let tenant = state.control.board.tenant(&TenantId::new(&id)).await;
    tenant.map(Json).ok_or_else(|| no_such_tenant(&id))
}

/// The tenant is not active, and the cache has nothing of it.
pub(super) fn no_such_tenant(id: &str) -> ApiError {
    let message = format!("there is no tenant `{}`", id.escape_debug());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_tenant", message)
}
