//! Pausing and resuming jobs, and what the other levers have in common: each is logged with who used
//! it.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::{ApiError, moment};
use super::auth::Authorized;
use super::body::Segment;
use super::openapi::{Api, Operation};
use super::{AppState, body};
use crate::domain::duration;
use crate::domain::job::JobName;
use crate::domain::pause::{MAX_NOTE, Note, Pause};
use crate::domain::who::Who;
use crate::engine::schedule::handle::{JobSelection, RunRequest};
use crate::engine::schedule::pauses::PauseAnswer;
use crate::invalidate::InvalidateRequest;
use crate::observe::event;

/// Why a job is paused, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Pause")]
pub(super) struct PauseView {
    note: String,
    by: String,
    since: String,
    /// When the pause ends by itself; null if somebody has to resume the job.
    until: Option<String>,
}

impl PauseView {
    pub(super) fn new(pause: &Pause) -> Self {
        let Pause { note, by, since, until } = pause;
        Self {
            note: note.to_string(),
            by: by.to_string(),
            since: moment(*since),
            until: until.map(moment),
        }
    }
}

/// The jobs that a request was about.
#[derive(Debug, Serialize, JsonSchema)]
struct Pauses {
    jobs: Vec<JobPause>,
    /// Whether the change is kept already. If not, it is in effect on this worker, which goes on trying
    /// to keep it.
    kept: bool,
    /// Which server keeps it: `database` or `cache`.
    kept_in: &'static str,
}

/// A job and its pause now.
#[derive(Debug, Serialize, JsonSchema)]
struct JobPause {
    job: String,
    /// Null if the job is not paused.
    pause: Option<PauseView>,
    /// Whether it was paused before this request.
    was_paused: bool,
}

impl From<PauseAnswer> for Pauses {
    fn from(PauseAnswer { jobs, paused_before, is_kept, kept_by }: PauseAnswer) -> Self {
        let job = |(job, pause): (JobName, Option<Pause>)| JobPause {
            job: job.to_string(),
            pause: pause.as_ref().map(PauseView::new),
            was_paused: paused_before.contains(&job),
        };
        let jobs = jobs.into_iter().map(job).collect();
        Self { jobs, kept: is_kept, kept_in: kept_by.as_str() }
    }
}

/// Why and for how long to pause.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object with `note`, and `until` or `for` if the pause ends by itself"
)]
pub(super) struct WrittenPause {
    /// Why, for others.
    #[schemars(length(min = 1, max = MAX_NOTE))]
    pub(super) note: String,
    /// When the pause ends by itself, as in RFC 3339.
    pub(super) until: Option<String>,
    /// How long the pause lasts, such as `20m`.
    pub(super) r#for: Option<String>,
}

impl WrittenPause {
    /// The pause that begins now.
    pub(super) fn begin(&self, by: Who, now: DateTime<Utc>) -> Result<Pause, ApiError> {
        let refuse = |code, message| Err(ApiError::unprocessable(code, message));
        let note = match Note::parse(&self.note) {
            Ok(note) => note,
            Err(error) => return refuse("invalid_note", error.to_string()),
        };
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let until = match (given(&self.until), given(&self.r#for)) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                return refuse("invalid_until", "give `until` or `for`, not both".to_owned());
            }
            (Some(until), None) => match DateTime::parse_from_rfc3339(until.trim()) {
                Ok(until) => Some(until.to_utc()),
                Err(_no_time) => {
                    let message = "`until` is a time with its zone, such as `2026-03-01T14:00:00Z`";
                    return refuse("invalid_until", message.to_owned());
                }
            },
            (None, Some(text)) => match duration::parse(&text) {
                Ok(duration) => Some(now + duration),
                Err(error) => return refuse("invalid_until", format!("`for`: {error}")),
            },
        };
        Ok(Pause { note, by, since: now, until })
    }
}

/// A body without fields.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "an empty object, or nothing")]
struct Nothing {}

pub(super) fn routes(api: Api) -> Api {
    let summary = "Pauses one job: only requests start its runs until the pause ends";
    let pause_one = changing(Operation::new("pauseJob", summary)).body::<WrittenPause>();
    let resume_one = changing(Operation::new("resumeJob", "Resumes one job")).body::<Nothing>();
    let summary = "Pauses all jobs; those that are paused already keep their pauses";
    let pause_all = changing(Operation::new("pauseJobs", summary)).body::<WrittenPause>();
    let resume_all = changing(Operation::new("resumeJobs", "Resumes all jobs")).body::<Nothing>();
    let unknown = "`unknown_job`";
    api.post("/api/v1/jobs/{job}/pause", self::pause_one, pause_one.refuses(404, unknown))
        .post("/api/v1/jobs/{job}/resume", self::resume_one, resume_one.refuses(404, unknown))
        .post("/api/v1/pause", self::pause_all, pause_all)
        .post("/api/v1/resume", self::resume_all, resume_all)
}

fn changing(operation: Operation) -> Operation {
    let slow = "`timeout`: the answer took too long";
    operation.needs_token().answers::<Pauses>(200, "the jobs and their pauses").refuses(504, slow)
}

/// `POST /api/v1/jobs/{job}/pause`
async fn pause_one(
    authorized: Authorized,
    State(state): State<AppState>,
    Segment(job): Segment,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    pause(&state, authorized, one(&job)?, request).await
}

/// `POST /api/v1/pause`
async fn pause_all(
    authorized: Authorized,
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    pause(&state, authorized, JobSelection::All, request).await
}

/// `POST /api/v1/jobs/{job}/resume`
async fn resume_one(
    authorized: Authorized,
    State(state): State<AppState>,
    Segment(job): Segment,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    resume(&state, authorized, one(&job)?, request).await
}

/// `POST /api/v1/resume`
async fn resume_all(
    authorized: Authorized,
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    resume(&state, authorized, JobSelection::All, request).await
}

async fn pause(
    state: &AppState,
    Authorized { by }: Authorized,
    jobs: JobSelection,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    let (headers, body) = body::read(request).await?;
    let written: WrittenPause = parsed_or_empty(&headers, &body)?;
    let pause = written.begin(by, state.control.handle.now())?;
    Ok(Json(state.control.pauses.pause(jobs, pause).await?.into()))
}

async fn resume(
    state: &AppState,
    Authorized { by }: Authorized,
    jobs: JobSelection,
    request: Request,
) -> Result<Json<Pauses>, ApiError> {
    let (headers, body) = body::read(request).await?;
    let Nothing {} = parsed_or_empty(&headers, &body)?;
    Ok(Json(state.control.pauses.resume(jobs, by).await?.into()))
}

fn parsed_or_empty<T: serde::de::DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() { Ok(T::default()) } else { body::parse(headers, body) }
}

/// The one job of a path.
pub(super) fn one(job: &str) -> Result<JobSelection, ApiError> {
    let name = JobName::parse(job).map_err(|_no_name| ApiError::no_such_job(job))?;
    Ok(JobSelection::One(name))
}

/// Logs who asks for runs.
pub(super) fn tell_run(state: &AppState, by: &Who, request: &RunRequest) {
    let RunRequest { jobs, tenants } = request;
    let jobs = match jobs {
        JobSelection::All => "a run of all jobs".to_owned(),
        JobSelection::One(job) => format!("a run of job `{job}`"),
    };
    let what = match tenants.as_deref() {
        None => jobs,
        Some([tenant]) => format!("{jobs} for tenant `{}`", tenant.as_str().escape_debug()),
        Some(tenants) => format!("{jobs} for {} tenants", tenants.len()),
    };
    event::ChangeRequested { by, what: &what }.emit(&state.control.metrics);
}

/// Logs who asks for the removal of keys.
pub(super) fn tell_invalidation(state: &AppState, by: &Who, request: &InvalidateRequest) {
    let InvalidateRequest { keys, tenants, jobs, patterns, all: _, rewarm: _, dry_run } = request;
    if *dry_run {
        return;
    }
    let counts = [
        (keys.len(), "key", "keys"),
        (tenants.len(), "tenant", "tenants"),
        (jobs.len(), "job", "jobs"),
        (patterns.len(), "pattern", "patterns"),
    ];
    let named = counts.into_iter().filter(|(count, ..)| *count > 0);
    let named: Vec<_> = named
        .map(|(count, one, several)| format!("{count} {}", if count == 1 { one } else { several }))
        .collect();
    let what = format!("the removal of keys: {}", named.join(", "));
    event::ChangeRequested { by, what: &what }.emit(&state.control.metrics);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(note: &str, until: Option<&str>, r#for: Option<&str>) -> Option<Pause> {
        let [until, r#for] = [until, r#for].map(|text| text.map(str::to_owned));
        let written = WrittenPause { note: note.to_owned(), until, r#for };
        written.begin(Who::token(), DateTime::from_timestamp(0, 0).unwrap()).ok()
    }

    #[test]
    fn a_pause_has_a_note_and_one_end_at_most() {
        let at = |second| DateTime::from_timestamp(second, 0);
        assert_eq!(begin("vet migration", None, None).unwrap().until, None);
        assert_eq!(begin("x", None, Some("20m")).unwrap().until, at(1_200));
        assert_eq!(begin("x", Some("1970-01-01T02:00:00+01:00"), None).unwrap().until, at(3_600));
        assert_eq!(begin("x", Some(""), Some(" ")).unwrap().until, None);
        for (note, until, r#for) in [
            ("", None, None),
            ("x", Some("tomorrow"), None),
            ("x", Some("1970-01-01T02:00:00"), None),
            ("x", None, Some("20")),
            ("x", None, Some("400d")),
            ("x", Some("1970-01-01T02:00:00Z"), Some("20m")),
        ] {
            assert_eq!(begin(note, until, r#for), None, "{note} {until:?} {for:?}");
        }
    }
}
