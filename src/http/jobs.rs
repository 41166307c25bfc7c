//! `/api/v1/jobs`: what there is, when it is due, how it went.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::AppState;
use super::answer::{ApiError, moment};
use super::runs::RunView;
use crate::domain::duration;
use crate::domain::job::{Job, JobName, Scope};
use crate::domain::schedule::Schedule;
use crate::engine::status::JobStatus;

/// A job as it is shown.
#[derive(Debug, Serialize)]
struct JobView {
    name: String,
    description: String,
    enabled: bool,
    required: bool,
    /// Whether it can be run for some tenants.
    tenants: bool,
    /// As in the job file: `every 10m`, or a cron expression.
    schedule: String,
    /// Of a cron expression.
    timezone: Option<String>,
    ttl: String,
    timeout: String,
    keys: Vec<String>,
    state: JobState,
    next_due_at: Option<String>,
    last_success_at: Option<String>,
    running: Option<RunView>,
    queued: Vec<RunView>,
    last_run: Option<RunView>,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum JobState {
    Disabled,
    Idle,
    Running,
}

#[derive(Debug, Serialize)]
pub(super) struct Jobs {
    jobs: Vec<JobView>,
}

pub(super) async fn list(State(state): State<AppState>) -> Json<Jobs> {
    let status = state.control.handle.status();
    Json(Jobs { jobs: status.jobs.values().map(JobView::new).collect() })
}

pub(super) async fn show(
    State(state): State<AppState>,
    Path(job): Path<String>,
) -> Result<Json<impl Serialize>, ApiError> {
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    let status = state.control.handle.status();
    let job_status = status.jobs.get(&name).ok_or_else(|| ApiError::no_such_job(&job))?;
    Ok(Json(JobView::new(job_status)))
}

impl JobView {
    fn new(status: &JobStatus) -> Self {
        let JobStatus { job, next_due_at, running, queued, last_run, last_success_at } = status;
        let Job { name, description, enabled, required, scope, schedule, ttl, timeout, .. } =
            job.as_ref();
        let (schedule, timezone) = match schedule {
            Schedule::Every(_) => (schedule.to_string(), None),
            Schedule::Cron(cron) => (cron.expression().to_owned(), Some(cron.zone().to_string())),
        };
        let state = match (enabled, running) {
            (_, Some(_)) => JobState::Running,
            (true, None) => JobState::Idle,
            (false, None) => JobState::Disabled,
        };
        Self {
            name: name.to_string(),
            description: description.clone(),
            enabled: *enabled,
            required: *required,
            tenants: *scope == Scope::Tenants,
            schedule,
            timezone,
            ttl: duration::text(*ttl),
            timeout: duration::text(*timeout),
            keys: job.keys.iter().map(|key| key.template.to_string()).collect(),
            state,
            next_due_at: next_due_at.map(moment),
            last_success_at: last_success_at.map(moment),
            running: running.as_ref().map(RunView::active),
            queued: queued.iter().map(RunView::active).collect(),
            last_run: last_run.as_deref().map(RunView::finished),
        }
    }
}
