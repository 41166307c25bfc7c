//! `/api/v1/overview`, the overview of one job, and the data of the other pages of the dashboard.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Rights;
use super::answer::ApiError;
use super::body::Segment;
use super::openapi::{Api, Operation};
use super::probes::{ProblemView, RejectedView};
use super::session::Viewer;
use super::{AppState, SettingInUse};
use crate::domain::job::JobName;
use crate::overview::{Audit, Changes, FleetView, JobDetail, Limits, Overview, Privacy};

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
    let audit = Operation::new(
        "showAudit",
        "The keys that differed from the database at the verifier's last look; with both values for a request \
         that has the token",
    )
    .answers::<Audit>(200, "what the verifier found");
    let changes = Operation::new(
        "showChanges",
        "The change feed: the changes that it heard of by table, and when jobs last had to run for all tenants",
    )
    .answers::<Changes>(200, "the change feed");
    let settings = Operation::new(
        "showSettings",
        "Each setting in use and its origin, rejected job files, the bounds in force, and the circuit breakers",
    )
    .answers::<Settings>(200, "the settings");
    let fleet = Operation::new(
        "showFleet",
        "The members of the fleet: their versions, and the shares of the tenants that each holds",
    )
    .answers::<FleetView>(200, "the members; without a fleet, this worker alone");
    api.get("/api/v1/overview", self::show, all)
        .get("/api/v1/fleet", self::show_fleet, fleet)
        .get("/api/v1/jobs/{job}/overview", self::show_job, job)
        .get("/api/v1/audit", self::show_audit, audit)
        .get("/api/v1/changes", self::show_changes, changes)
        .get("/api/v1/settings", self::show_settings, settings)
}

/// The settings in use, and what follows from them at this moment.
#[derive(Debug, Serialize, JsonSchema)]
struct Settings {
    /// All settings. Secrets are never shown.
    settings: Vec<SettingInUse>,
    /// The jobs whose queries the database refuses.
    rejected: Vec<RejectedView>,
    /// What is wrong with the job files that were read last, if the last good ones stay in use because of it.
    unreadable: Vec<ProblemView>,
    /// The bounds in force, and the circuit breakers.
    limits: Limits,
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

/// `GET /api/v1/fleet`
async fn show_fleet(State(state): State<AppState>) -> Json<FleetView> {
    Json(state.control.board.fleet().await)
}

/// `GET /api/v1/changes`
async fn show_changes(State(state): State<AppState>) -> Json<Changes> {
    Json(state.control.board.changes().await)
}

/// `GET /api/v1/audit`
async fn show_audit(viewer: Viewer, State(state): State<AppState>) -> Json<Audit> {
    Json(state.control.board.audit(privacy(&viewer)).await)
}

/// Values are only for those who may change something.
pub(super) fn privacy(viewer: &Viewer) -> Privacy {
    match viewer.rights {
        Rights::Write => Privacy::WithValues,
        Rights::Read => Privacy::WithoutValues,
    }
}

/// `GET /api/v1/settings`
async fn show_settings(State(state): State<AppState>) -> Json<Settings> {
    let settings = state.control.settings.to_vec();
    let rejected = RejectedView::all(&state.control.handle.status().rejections);
    let unreadable = ProblemView::all(&state.control.board.unreadable());
    Json(Settings { settings, rejected, unreadable, limits: limits(&state) })
}

/// The bounds in force at this moment.
pub(super) fn limits(state: &AppState) -> Limits {
    state.control.board.limits((state.control.connections)())
}
