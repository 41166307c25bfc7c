//! `/api/v1/overview` and the overview of one job: what the dashboard shows.

use axum::Json;
use axum::extract::State;

use super::AppState;
use super::answer::ApiError;
use super::body::Segment;
use super::openapi::{Api, Operation};
use crate::domain::job::JobName;
use crate::overview::{JobDetail, Overview};

pub(super) fn routes(api: Api) -> Api {
    let all =
        Operation::new("showOverview", "Whether the cache is warm, what is wrong, and all jobs")
            .answers::<Overview>(200, "the overview");
    let job = Operation::new(
        "showJobOverview",
        "One job: its deadlines, its last runs, the tenants that are not warm, the last 24 hours",
    )
    .answers::<JobDetail>(200, "the job")
    .refuses(404, "`unknown_job`");
    api.get("/api/v1/overview", self::show, all).get(
        "/api/v1/jobs/{job}/overview",
        self::show_job,
        job,
    )
}

/// `GET /api/v1/overview`
async fn show(State(state): State<AppState>) -> Json<Overview> {
    Json(state.control.board.overview().await)
}

/// `GET /api/v1/jobs/{job}/overview`
async fn show_job(
    State(state): State<AppState>,
    Segment(job): Segment,
) -> Result<Json<JobDetail>, ApiError> {
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    let detail = state.control.board.job(&name).await;
    detail.map(Json).ok_or_else(|| ApiError::no_such_job(&job))
}
