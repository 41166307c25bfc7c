//! `/api/v1/jobs`: the jobs, when they are due, and how their last runs went.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::answer::{ApiError, moment};
use super::body::Segment;
use super::levers::PauseView;
use super::openapi::{Api, Operation};
use super::probes::ProblemView;
use super::runs::RunView;
use super::{AppState, Control};
use crate::domain::duration;
use crate::domain::job::{Job, JobName, Scope};
use crate::domain::schedule::Schedule;
use crate::engine::schedule::status::{JobStatus, Status};
use crate::overview::BatchOfJob;

/// A job as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
struct JobView {
    name: String,
    description: String,
    enabled: bool,
    required: bool,
    /// Whether the job can run for some tenants only.
    tenants: bool,
    /// As in the job file: `every 10m`, or a cron expression.
    schedule: String,
    /// The time zone of a cron expression.
    timezone: Option<String>,
    ttl: String,
    timeout: String,
    keys: Vec<String>,
    /// How many tenants one query is for; none where the job has no tenants.
    batch: Option<BatchOfJob>,
    state: JobState,
    next_due_at: Option<String>,
    /// When the last `ok` run over all tenants ended; in a fleet, of the share whose last one is the oldest.
    last_success_at: Option<String>,
    /// The run under way; in a fleet, this worker's part of it.
    running: Option<RunView>,
    /// The runs that wait; in a fleet, this worker's parts of them.
    queued: Vec<RunView>,
    /// The last run that ended; in a fleet, the last one of which this worker did a part, with the parts of the others.
    last_run: Option<RunView>,
    /// Why the job is paused, if it is.
    pause: Option<PauseView>,
    /// Why the job's file is rejected. The job is then `held`, or continues with an older version
    /// of the file.
    rejected_for: Vec<ProblemView>,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum JobState {
    Disabled,
    Held,
    Idle,
    Paused,
    Running,
}

/// All jobs.
#[derive(Debug, Serialize, JsonSchema)]
struct Jobs {
    jobs: Vec<JobView>,
}

pub(super) fn routes(api: Api) -> Api {
    let list = Operation::new("listJobs", "All jobs, by name").answers::<Jobs>(200, "the jobs");
    let show =
        Operation::new("showJob", "One job: its schedule, state, runs under way and last run")
            .answers::<JobView>(200, "the job")
            .refuses(404, "`unknown_job`");
    api.get("/api/v1/jobs", self::list, list).get("/api/v1/jobs/{job}", self::show, show)
}

async fn list(State(state): State<AppState>) -> Json<Jobs> {
    let status = state.control.handle.status();
    Json(Jobs { jobs: views(&state, &status, status.jobs.values()).await })
}

async fn show(
    State(state): State<AppState>,
    Segment(job): Segment,
) -> Result<Json<impl Serialize>, ApiError> {
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    let status = state.control.handle.status();
    let views = views(&state, &status, status.jobs.get(&name).into_iter()).await;
    views.into_iter().next().map(Json).ok_or_else(|| ApiError::no_such_job(&job))
}

/// The jobs; in a fleet, as they stand on all members together.
async fn views<'s>(
    state: &AppState,
    status: &Status,
    jobs: impl Iterator<Item = &'s JobStatus> + Clone,
) -> Vec<JobView> {
    let mut views: Vec<JobView> = jobs.clone().map(|job| JobView::new(job, status)).collect();
    let Control { board, handle, .. } = &state.control;
    if !board.is_in_fleet() {
        return views;
    }
    let running = board.running_elsewhere();
    let last: Vec<_> = jobs.clone().filter_map(|job| job.last_run.clone()).collect();
    let last = handle.whole_runs(last).await;
    for (view, job) in views.iter_mut().zip(jobs) {
        let name = &job.job.name;
        if running.contains(name) {
            view.state = JobState::Running;
        }
        view.last_success_at = handle.recent().of(name).last_success_at.map(moment);
        view.last_run = last.iter().find(|run| run.job == *name).map(|run| RunView::finished(run));
    }
    views
}

impl JobView {
    fn new(job_status: &JobStatus, status: &Status) -> Self {
        let JobStatus {
            job,
            next_due_at,
            running,
            queued,
            last_run,
            last_success_at,
            unwarmed: _,
            batch: _,
            pause,
        } = job_status;
        let Job { name, description, enabled, required, scope, schedule, ttl, timeout, .. } =
            job.as_ref();
        let (schedule, timezone) = match schedule {
            Schedule::Every(_) => (schedule.to_string(), None),
            Schedule::Cron(cron) => (cron.expression().to_owned(), Some(cron.zone().to_string())),
        };
        let is_held = status.is_held(name);
        let state = match (enabled, running) {
            (_, Some(_)) => JobState::Running,
            (true, None) if pause.is_some() => JobState::Paused,
            (true, None) => JobState::Idle,
            (false, None) if is_held => JobState::Held,
            (false, None) => JobState::Disabled,
        };
        let rejected_for = status.rejections.get(name).map(|rejection| &rejection.problems);
        Self {
            name: name.to_string(),
            description: description.clone(),
            // Nothing runs a held job, but its file says that it should run.
            enabled: *enabled || is_held,
            required: *required,
            tenants: *scope == Scope::Tenants,
            schedule,
            timezone,
            ttl: duration::text(*ttl),
            timeout: duration::text(*timeout),
            keys: job.keys.iter().map(|key| key.template.to_string()).collect(),
            batch: BatchOfJob::of(job_status),
            state,
            next_due_at: next_due_at.map(moment),
            last_success_at: last_success_at.map(moment),
            running: running.as_ref().map(RunView::active),
            queued: queued.iter().map(RunView::active).collect(),
            last_run: last_run.as_deref().map(RunView::finished),
            pause: pause.as_ref().map(PauseView::new),
            rejected_for: rejected_for.into_iter().flatten().map(ProblemView::new).collect(),
        }
    }
}
