//! `/api/v1/runs`: starts runs and shows them.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::access::Client;
use super::answer::{ApiError, moment};
use super::auth::Authorized;
use super::body::{Segment, WrittenId};
use super::idempotency::{KEY_HEADER, RunsAsked};
use super::openapi::{Api, Operation};
use super::tenants::{check_job, given};
use super::{AppState, body, idempotency, levers, limited};
use crate::domain::job::JobName;
use crate::domain::report::{Report, TenantCounts};
use crate::domain::run::{Outcome, RunFilter, RunId, RunPart, RunPlace, RunRecord, Trigger};
use crate::domain::tenant::TenantId;
use crate::domain::trace::TraceParent;
use crate::domain::who::Who;
use crate::domain::whole;
use crate::engine::schedule::handle::{self, Asker, Handle, JobSelection, RunRequest};
use crate::engine::schedule::status::{ActiveRun, ProgressNow};
use crate::overview::{Comparison, Neighbors};

/// How many tenants one request may list: a request is for tenants that changed, not for all.
const MAX_TENANTS: usize = 1_000;
/// How many runs one answer lists by default.
const DEFAULT_LIMIT: usize = 50;
/// How many runs one answer lists at most.
const MAX_LIMIT: usize = 500;

/// A run as the API shows it, queued, running or finished. What is not known yet is null.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Run")]
pub(super) struct RunView {
    id: RunId,
    job: String,
    trigger: Trigger,
    /// Who asked for it, if that is known.
    requested_by: Option<Who>,
    state: RunState,
    outcome: Option<Outcome>,
    due_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    duration_ms: Option<u128>,
    progress: Progress,
    report: Option<Report>,
    /// The worker that ran it; in a fleet, the workers.
    replica: Option<String>,
    version: Option<String>,
    /// For which of the 64 shares of the tenants it was, as ranges: `0-20, 40`. Null without a fleet.
    shares: Option<String>,
    /// The shares for which no worker of the fleet has ended it: nobody held them, or their part goes on. Null if there
    /// are none.
    missing_shares: Option<String>,
    /// What each worker of the fleet did of it; empty without a fleet.
    parts: Vec<PartView>,
    /// The fleet's run of which this record is a part; null if it is none.
    part_of: Option<RunId>,
}

/// Whether a run waits, goes on or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RunState {
    Queued,
    Running,
    Finished,
}

/// How far a run is.
#[derive(Debug, Serialize, JsonSchema)]
struct Progress {
    tenants_total: u64,
    tenants_done: u64,
    keys: u64,
    bytes: u64,
}

/// What one worker of a fleet did of a run.
#[derive(Debug, Serialize, JsonSchema)]
struct PartView {
    /// The id of its own record.
    id: RunId,
    /// For which shares of the tenants it was, as ranges: `0-20, 40`.
    shares: String,
    outcome: Outcome,
    started_at: String,
    finished_at: String,
    tenants: TenantCounts,
    /// Keys that it wrote.
    keys: u64,
    replica: String,
    version: String,
}

impl PartView {
    fn of(part: &RunPart) -> Self {
        let RunPart { id, shares, outcome, started_at, finished_at, tenants, keys, .. } = part;
        Self {
            id: *id,
            shares: shares.to_string(),
            outcome: *outcome,
            started_at: moment(*started_at),
            finished_at: moment(*finished_at),
            tenants: *tenants,
            keys: *keys,
            replica: part.replica.clone(),
            version: part.version.clone(),
        }
    }
}

/// One page of runs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RunPage {
    runs: Vec<RunView>,
    /// The `cursor` of the next page; null if this is the last.
    next: Option<String>,
    /// Why older runs are missing here: the history is away. The list then has what the worker knows, the runs that
    /// are not written yet and the last one of each job. Null while the history answers.
    history_away: Option<String>,
}

/// A run beside others of its job.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RunDetail {
    #[serde(flatten)]
    run: RunView,
    /// The runs of the same job before and after it; null for a run that has not ended.
    neighbors: Option<Neighbors>,
    /// The run compared with the last `ok` run of its job before it; null where there is none.
    compared: Option<Comparison>,
}

/// Several runs.
#[derive(Debug, Serialize, JsonSchema)]
struct Runs {
    runs: Vec<RunView>,
}

impl RunView {
    pub(super) fn active(run: &ActiveRun) -> Self {
        let ActiveRun { id, job, trigger, requested_by, due_at, started_at, progress } = run;
        let ProgressNow { tenants_total, tenants_done, keys, bytes } = progress.now();
        Self {
            id: *id,
            job: job.to_string(),
            trigger: *trigger,
            requested_by: requested_by.clone(),
            state: if started_at.is_some() { RunState::Running } else { RunState::Queued },
            outcome: None,
            due_at: moment(*due_at),
            started_at: started_at.map(moment),
            finished_at: None,
            duration_ms: None,
            progress: Progress { tenants_total, tenants_done, keys, bytes },
            report: None,
            replica: None,
            version: None,
            shares: None,
            missing_shares: None,
            parts: Vec::new(),
            part_of: None,
        }
    }

    pub(super) fn finished(record: &RunRecord) -> Self {
        let tenants = record.report.tenants;
        let missing = whole::missing(record);
        Self {
            id: record.id,
            job: record.job.to_string(),
            trigger: record.trigger,
            requested_by: record.requested_by.clone(),
            state: RunState::Finished,
            outcome: Some(record.outcome),
            due_at: moment(record.due_at),
            started_at: Some(moment(record.started_at)),
            finished_at: Some(moment(record.finished_at)),
            duration_ms: Some(record.duration().as_millis()),
            progress: Progress {
                tenants_total: tenants.total,
                tenants_done: tenants.done(),
                keys: record.report.keys.written,
                bytes: record.report.bytes,
            },
            report: Some(record.report.clone()),
            replica: Some(record.replica.clone()),
            version: Some(record.version.clone()),
            shares: record.shares.map(|shares| shares.to_string()),
            missing_shares: (!missing.is_empty()).then(|| missing.to_string()),
            parts: record.parts.iter().map(PartView::of).collect(),
            part_of: record.part_of().map(|(run, _)| run).filter(|run| *run != record.id),
        }
    }

    /// The present state of a run; `None` if the history no longer has it.
    pub(super) async fn now(handle: &Handle, id: RunId) -> Result<Option<Self>, ApiError> {
        Ok(limited(handle.run(id)).await??.map(|run| match run {
            handle::RunView::Active(run) => Self::active(&run),
            handle::RunView::Finished(record) => Self::finished(&record),
        }))
    }

    /// The present state of several runs, without those that the history no longer has.
    pub(super) async fn all_now(handle: &Handle, ids: &[RunId]) -> Result<Vec<Self>, ApiError> {
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            runs.extend(Self::now(handle, *id).await?);
        }
        Ok(runs)
    }
}

pub(super) fn routes(api: Api) -> Api {
    let list = Operation::new("listRuns", "Finished runs, newest first")
        .query::<ListQuery>()
        .answers::<RunPage>(200, "the runs")
        .refuses(404, "`unknown_job`: there is no such job, and no run of it");
    let show = Operation::new("showRun", "One run: queued, running or finished")
        .answers::<RunDetail>(200, "the run")
        .refuses(404, "`unknown_run`");
    let start_all = starting(Operation::new("startRuns", "Warms all enabled jobs now"))
        .answers::<Runs>(200, "the runs, which have ended: the request waited")
        .answers::<Runs>(202, "the runs, which go on");
    let start_one = starting(Operation::new("startRun", "Warms one job now"))
        .answers::<RunView>(200, "the run, which has ended: the request waited")
        .answers::<RunView>(202, "the run, which goes on")
        .refuses(404, "`unknown_job`")
        .refuses(409, "`job_disabled` or `job_rejected`");
    api.get("/api/v1/runs", self::list, list)
        .get("/api/v1/runs/{id}", self::show, show)
        .post("/api/v1/runs", self::start_all, start_all)
        .post("/api/v1/jobs/{job}/runs", self::start_one, start_one)
}

fn starting(operation: Operation) -> Operation {
    let slow = "`timeout`: the answer took too long; the runs go on";
    operation.needs_token().body::<WrittenBody>().headers(KEY_HEADER).refuses(504, slow)
}

/// `GET /api/v1/runs/{id}`
async fn show(
    State(state): State<AppState>,
    Segment(id): Segment,
) -> Result<Json<RunDetail>, ApiError> {
    detail(&state, &id).await.map(Json)
}

/// A run: an active one, of this worker or of its fleet, or one of the history.
pub(super) async fn find(state: &AppState, id: RunId) -> Result<Option<handle::RunView>, ApiError> {
    let found = limited(state.control.handle.run(id)).await??;
    let under_way = || state.control.board.run_under_way(id).map(handle::RunView::Active);
    Ok(found.or_else(under_way))
}

/// A run beside others of its job. It asks the history twice at most.
pub(super) async fn detail(state: &AppState, id: &str) -> Result<RunDetail, ApiError> {
    let uuid = Uuid::try_parse(id).map_err(|_no_id| ApiError::no_such_run(id))?;
    let found = find(state, RunId(uuid)).await?;
    match found.ok_or_else(|| ApiError::no_such_run(id))? {
        handle::RunView::Active(run) => {
            Ok(RunDetail { run: RunView::active(&run), neighbors: None, compared: None })
        }
        handle::RunView::Finished(record) => {
            // A run that the worker still knows is shown while the history is away.
            let beside = limited(state.control.board.beside(&record)).await?;
            let (neighbors, compared) = beside.map_or((None, None), |(n, c)| (Some(n), c));
            Ok(RunDetail { run: RunView::finished(&record), neighbors, compared })
        }
    }
}

/// What narrows a list of runs; all of it together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// The runs of this job alone.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{0,64}$"))]
    pub(super) job: Option<String>,
    /// The runs with this outcome alone.
    #[schemars(with = "Option<Outcome>")]
    pub(super) outcome: Option<String>,
    /// The runs with this trigger alone.
    #[schemars(with = "Option<Trigger>")]
    pub(super) trigger: Option<String>,
    /// The runs that started at this moment or later.
    pub(super) since: Option<String>,
    /// The runs that started before this moment.
    pub(super) until: Option<String>,
    /// The page that begins after this place: `next` of the page before.
    pub(super) cursor: Option<String>,
    /// How many runs are listed.
    #[schemars(range(min = 1, max = MAX_LIMIT))]
    pub(super) limit: Option<usize>,
}

impl ListQuery {
    /// The runs that the query asks for.
    pub(super) fn filter(self) -> Result<RunFilter, ApiError> {
        let Self { job, outcome, trigger, since, until, cursor, limit } = self;
        let job = given(job).map(|job| JobName::parse(&job)).transpose();
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::bad_request(format!("`limit` is from 1 to {MAX_LIMIT}")));
        }
        Ok(RunFilter {
            job: job.map_err(|error| ApiError::bad_request(error.to_string()))?,
            outcome: one_of("outcome", given(outcome), &Outcome::ALL, Outcome::as_str)?,
            trigger: one_of("trigger", given(trigger), &Trigger::ALL, Trigger::as_str)?,
            since: read_moment("since", given(since))?,
            until: read_moment("until", given(until))?,
            after: given(cursor).map(|cursor| read_place(&cursor)).transpose()?,
            limit,
        })
    }
}

/// A value by its name.
fn one_of<T: Copy>(
    parameter: &str,
    text: Option<String>,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let found = all.iter().copied().find(|one| name(*one) == text);
    found.map(Some).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        ApiError::bad_request(format!("`{parameter}` is one of {}", names.join(", ")))
    })
}

fn read_moment(parameter: &str, text: Option<String>) -> Result<Option<DateTime<Utc>>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let moment = DateTime::parse_from_rfc3339(&text).map_err(|_no_moment| {
        let message = format!("`{parameter}` is a moment such as `2026-03-01T12:00:00Z`");
        ApiError::bad_request(message)
    })?;
    let moment = moment.with_timezone(&Utc);
    // The database's calendar ends earlier than ours.
    let fits = (0..=9_999).contains(&moment.year());
    let message = || ApiError::bad_request(format!("`{parameter}` is out of the calendar"));
    fits.then_some(Some(moment)).ok_or_else(message)
}

/// A run's place in the list, as the next page's request has it: its start in microseconds, which is what the
/// database keeps, and its id.
fn write_place(place: RunPlace) -> String {
    format!("{}.{}", place.started_at.timestamp_micros(), place.id)
}

fn read_place(text: &str) -> Result<RunPlace, ApiError> {
    let place = text.split_once('.').and_then(|(micros, id)| {
        let started_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
        (0..=9_999).contains(&started_at.year()).then_some(())?;
        Some(RunPlace { started_at, id: RunId(Uuid::try_parse(id).ok()?) })
    });
    place.ok_or_else(|| ApiError::bad_request("`cursor` is not one of ours"))
}

/// One page of runs, newest first.
pub(super) struct FoundRuns {
    pub(super) records: Vec<RunRecord>,
    /// The next page's cursor.
    pub(super) next: Option<String>,
    /// Why older runs are missing, if the history is away.
    pub(super) history_away: Option<String>,
}

/// One page of the runs that the query asks for. It asks the history once. While the history is away, the first page has
/// the runs that the worker knows.
pub(super) async fn page(state: &AppState, query: ListQuery) -> Result<FoundRuns, ApiError> {
    let filter = query.filter()?;
    let handle = &state.control.handle;
    match handle.runs(&filter).await {
        Ok(handle::RunPage { runs, next }) => {
            Ok(FoundRuns { records: runs, next: next.map(write_place), history_away: None })
        }
        Err(error) if filter.after.is_none() => {
            let (records, away) = (handle.known_runs(&filter), error.to_string());
            Ok(FoundRuns { records, next: None, history_away: Some(away) })
        }
        Err(error) => Err(error.into()),
    }
}

/// `GET /api/v1/runs?job=&outcome=&trigger=&since=&until=&cursor=&limit=`: finished runs, newest first.
async fn list(
    State(state): State<AppState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<RunPage>, ApiError> {
    let Query(query) = query.map_err(|_rejected| {
        ApiError::bad_request(format!(
            "the parameters are `job`, `outcome`, `trigger`, `since`, `until`, `cursor`, and `limit`, a \
             number from 1 to {MAX_LIMIT}"
        ))
    })?;
    let job = query.job.clone();
    let FoundRuns { records, next, history_away } = page(&state, query).await?;
    // Runs of a job that is gone stay in the history.
    if records.is_empty() {
        check_job(&state, job.as_deref())?;
    }
    let runs = records.iter().map(RunView::finished).collect();
    Ok(Json(RunPage { runs, next, history_away }))
}

/// `POST /api/v1/runs`
async fn start_all(
    authorized: Authorized,
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = start(&state, authorized, JobSelection::All, request).await?;
    Ok((started.status(), Json(Runs { runs: started.runs })).into_response())
}

/// `POST /api/v1/jobs/{job}/runs`
async fn start_one(
    authorized: Authorized,
    State(state): State<AppState>,
    Segment(job): Segment,
    client: Client,
    request: Request,
) -> Result<Response, ApiError> {
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    let mut started = start(&state, authorized, JobSelection::One(name), request).await?;
    let status = started.status();
    let run = started.runs.pop().ok_or_else(|| ApiError::no_such_job(&job))?;
    let location = HeaderValue::try_from(format!("{}/api/v1/runs/{}", client.base_path, run.id));
    let location = location.map(|value| [(header::LOCATION, value)]).ok();
    Ok((status, location, Json(run)).into_response())
}

struct Started {
    runs: Vec<RunView>,
    waited: bool,
}

impl Started {
    fn status(&self) -> StatusCode {
        if self.waited { StatusCode::OK } else { StatusCode::ACCEPTED }
    }
}

async fn start(
    state: &AppState,
    Authorized { by }: Authorized,
    jobs: JobSelection,
    request: Request,
) -> Result<Started, ApiError> {
    let (headers, body) = body::read(request).await?;
    let StartBody { tenants, wait } = StartBody::read(&headers, &body)?;
    let key = idempotency::key(&headers)?;
    // Acquired before the runs start, so that no run is on its way if there is no place.
    let place = wait.then(|| state.waiting.try_acquire()).transpose();
    let place = place.map_err(|_full| ApiError::too_many_waiting())?;
    let handle = &state.control.handle;
    let request = RunRequest { jobs, tenants };
    levers::tell_run(state, &by, &request);
    let asker = Asker { parent: trace_parent(&headers), ..by.into() };
    let ids = state.requests.runs(handle, key, RunsAsked { request, wait, asker }).await?;
    let runs = match place {
        None => RunView::all_now(handle, &ids).await?,
        Some(_place) => ended(state, &ids).await?,
    };
    Ok(Started { runs, waited: wait })
}

/// The trace that a request belongs to.
pub(super) fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get("traceparent")?.to_str().ok().and_then(TraceParent::parse)
}

/// The runs, once all have finished. If the client disconnects, the runs go on.
async fn ended(state: &AppState, ids: &[RunId]) -> Result<Vec<RunView>, ApiError> {
    let handle = &state.control.handle;
    let mut changes = handle.run_changes();
    let all = async {
        loop {
            let runs = RunView::all_now(handle, ids).await?;
            if runs.iter().all(|run| run.state == RunState::Finished) {
                return Ok(runs);
            }
            // Without a change, the engine has stopped.
            changes.changed().await.ok_or_else(ApiError::stopped)?;
        }
    };
    // When the worker stops, its last runs may finish at the same moment. They count first.
    tokio::select! {
        biased;
        runs = all => runs,
        () = state.control.shutdown.cancelled() => Err(ApiError::stopped()),
    }
}

/// The runs that a client asks for.
#[derive(Debug, PartialEq, Eq)]
struct StartBody {
    tenants: Option<Vec<TenantId>>,
    wait: bool,
}

/// The same as JSON.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an object with `tenants` and `wait`, both optional")]
struct WrittenBody {
    /// The tenants to warm, 1 to 1,000; without them, all active ones.
    #[schemars(length(min = 1, max = MAX_TENANTS))]
    tenants: Option<Vec<WrittenId>>,
    /// Whether to answer only when the runs have ended.
    wait: Option<bool>,
}

impl StartBody {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        if body.trim_ascii().is_empty() {
            return Ok(Self { tenants: None, wait: false });
        }
        let WrittenBody { tenants, wait } = body::parse(headers, body)?;
        let tenants = tenants.as_deref().map(tenant_ids).transpose()?;
        Ok(Self { tenants, wait: wait.unwrap_or(false) })
    }
}

fn tenant_ids(written: &[WrittenId]) -> Result<Vec<TenantId>, ApiError> {
    let refuse = |message: String| Err(ApiError::unprocessable("invalid_tenants", message));
    if written.is_empty() {
        return refuse("`tenants` is empty: leave it out to warm all".to_owned());
    }
    if written.len() > MAX_TENANTS {
        return refuse(format!("`tenants` has more than {MAX_TENANTS}: leave it out to warm all"));
    }
    if written.iter().any(|WrittenId(id)| id.is_empty()) {
        return refuse("`tenants` has an empty id".to_owned());
    }
    let mut ids: Vec<TenantId> = Vec::with_capacity(written.len());
    let mut seen = std::collections::HashSet::new();
    for WrittenId(id) in written {
        if seen.insert(id) {
            ids.push(TenantId::new(id));
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, body: &str) -> Result<StartBody, (u16, String)> {
        let mut headers = HeaderMap::new();
        if !kind.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        }
        StartBody::read(&headers, body.as_bytes()).map_err(|error| {
            let shown = format!("{error:?}");
            (error.into_response().status().as_u16(), shown)
        })
    }

    fn status(body: &str) -> u16 {
        read("application/json", body).unwrap_err().0
    }

    #[test]
    fn a_body_is_optional_and_so_is_everything_in_it() {
        let nothing = StartBody { tenants: None, wait: false };
        for (kind, body) in [
            ("", ""),
            ("application/x-www-form-urlencoded", ""),
            ("application/json", " \n"),
            ("application/json; charset=utf-8", "{}"),
            ("application/vnd.api+json", r#"{"tenants":null,"wait":null}"#),
        ] {
            assert_eq!(read(kind, body).unwrap(), nothing, "{kind} {body}");
        }
        let tenants = Some(vec![TenantId::new("b"), TenantId::new("a:*{}\n")]);
        let body = r#"{"wait": true, "tenants": ["b", "a:*{}\n", "b"]}"#;
        assert_eq!(read("application/json", body).unwrap(), StartBody { tenants, wait: true });
    }

    #[test]
    fn a_tenants_id_may_be_the_number_that_it_is() {
        let tenants = Some(["1", "-2", "18446744073709551615"].map(TenantId::new).into());
        let body = r#"{"tenants": [1, -2, "1", 18446744073709551615]}"#;
        assert_eq!(read("application/json", body).unwrap(), StartBody { tenants, wait: false });
    }

    #[test]
    fn what_is_no_json_is_told_from_what_means_nothing() {
        for body in ["{", "nonsense", "{\"wait\": true,}", "{} {}"] {
            assert_eq!(status(body), 400, "{body}");
        }
        for body in [
            "[]",
            "true",
            r#"{"tenant": ["a"]}"#,
            r#"{"tenants": "a"}"#,
            r#"{"tenants": [1.5]}"#,
            r#"{"tenants": [true]}"#,
            r#"{"tenants": []}"#,
            r#"{"tenants": [""]}"#,
            r#"{"wait": "yes"}"#,
        ] {
            assert_eq!(status(body), 422, "{body}");
        }
        let many: Vec<_> = (0..=MAX_TENANTS).map(|number| number.to_string()).collect();
        assert_eq!(status(&serde_json::json!({ "tenants": many }).to_string()), 422);
        assert_eq!(read("text/plain", "{}").unwrap_err().0, 415);
        assert_eq!(read("", "{}").unwrap_err().0, 415);
    }

    #[test]
    fn an_unknown_field_is_named_with_those_there_are() {
        let (_, message) = read("application/json", r#"{"tenant": ["a"]}"#).unwrap_err();
        assert!(
            message.contains("unknown field `tenant`, expected `tenants` or `wait`"),
            "{message}"
        );
    }
}
