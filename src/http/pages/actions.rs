//! What the dashboard's buttons post: run, pause, resume, invalidate. They are plain forms. A form whose
//! effect is hard to undo is answered with a page that says what it would do, and asks.

use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::response::Response;
use axum::routing::post;
use axum::{Form, Router};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Shell, page};
use super::links::Links;
use super::words::counted;
use crate::domain::job::JobName;
use crate::domain::pause::MAX_NOTE;
use crate::domain::run::RunId;
use crate::domain::tenant::TenantId;
use crate::engine::schedule::handle::{JobSelection, RunRequest};
use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::auth::Authorized;
use crate::http::body::Segment;
use crate::http::levers::{self, WrittenPause};
use crate::http::sign_in::{see_other, sign_in, sign_out, unread};
use crate::invalidate::{InvalidateReport, InvalidateRequest};

/// How long counting the keys of a removal may take before a page asks without their number.
const MAX_COUNTING: Duration = Duration::from_secs(5);

/// All routes of forms.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/login", post(sign_in))
        .route("/logout", post(sign_out))
        .route("/jobs/{job}/run", post(run))
        .route("/jobs/{job}/pause", post(pause))
        .route("/jobs/{job}/resume", post(resume))
        .route("/jobs/{job}/invalidate", post(invalidate))
        .route("/tenants/{id}/warm", post(warm))
        .route("/pause-all", post(pause_all))
        .route("/resume-all", post(resume_all))
}

type Posted<T> = Result<Form<T>, FormRejection>;

fn read<T>(form: Posted<T>) -> Result<T, ApiError> {
    form.map(|Form(form)| form).map_err(|rejected| unread(&rejected))
}

/// A run's form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunForm {
    /// The tenants' ids, one a line; all tenants if there is none.
    tenants: String,
}

/// `POST /jobs/{job}/run`: leads to the run's page.
async fn run(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    Segment(job): Segment,
    form: Posted<RunForm>,
) -> Result<Response, ApiError> {
    let RunForm { tenants } = read(form)?;
    let ids = tenants.lines().map(str::trim).filter(|line| !line.is_empty()).map(TenantId::new);
    let ids: Vec<TenantId> = ids.collect();
    let tenants = (!ids.is_empty()).then_some(ids);
    let request = RunRequest { jobs: levers::one(&job)?, tenants };
    levers::tell_run(&state, &by, &request);
    let tickets = state.control.handle.request_by(request, by.into()).await?;
    let location = match tickets.first() {
        Some(ticket) => shell.links.run(ticket.run.id),
        None => shell.links.job(&job),
    };
    Ok(see_other(location))
}

/// `POST /tenants/{id}/warm`: all jobs, for one tenant.
async fn warm(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let tenants = Some(vec![TenantId::new(&id)]);
    let request = RunRequest { jobs: JobSelection::All, tenants };
    levers::tell_run(&state, &by, &request);
    state.control.handle.request_by(request, by.into()).await?;
    Ok(see_other(shell.links.tenant(&id)))
}

/// A pause's form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PauseForm {
    note: String,
    /// Such as `20m`; empty for a pause that somebody has to end.
    r#for: String,
}

impl PauseForm {
    fn written(self) -> WrittenPause {
        WrittenPause { note: self.note, until: None, r#for: Some(self.r#for) }
    }
}

/// `POST /jobs/{job}/pause`: asks for the note if there is none.
async fn pause(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    Segment(job): Segment,
    form: Posted<PauseForm>,
) -> Result<Response, ApiError> {
    let form = read(form)?;
    let selection = levers::one(&job)?;
    if form.note.trim().is_empty() {
        let action = shell.links.job_action(&job, "pause");
        let body = ask_to_pause(&format!("Pause job {job}?"), &action, &shell.links.job(&job));
        return Ok(page("Pause", &shell, body));
    }
    let pause = form.written().begin(by, state.control.handle.now())?;
    state.control.pauses.pause(selection, pause).await?;
    Ok(see_other(shell.links.job(&job)))
}

/// `POST /pause-all`: asks for the note if there is none.
async fn pause_all(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    form: Posted<PauseForm>,
) -> Result<Response, ApiError> {
    let form = read(form)?;
    if form.note.trim().is_empty() {
        let jobs = state.control.handle.status().jobs.len();
        let title = format!("Pause {}?", counted(jobs as u64, "job"));
        let body = ask_to_pause(&title, &shell.links.action("pause-all"), &shell.links.overview());
        return Ok(page("Pause all jobs", &shell, body));
    }
    let pause = form.written().begin(by, state.control.handle.now())?;
    state.control.pauses.pause(JobSelection::All, pause).await?;
    Ok(see_other(shell.links.overview()))
}

/// `POST /jobs/{job}/resume`
async fn resume(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    Segment(job): Segment,
) -> Result<Response, ApiError> {
    state.control.pauses.resume(levers::one(&job)?, by).await?;
    Ok(see_other(shell.links.job(&job)))
}

/// A form whose effect has to be confirmed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfirmedForm {
    /// `yes` once the person has seen what it would do.
    confirmed: String,
    /// The tenant to whose keys a removal is limited; empty for all tenants.
    tenant: String,
    /// `yes` to warm again what is removed.
    rewarm: String,
}

/// `POST /resume-all`: asks first, since it ends the pauses of other people too.
async fn resume_all(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    form: Posted<ConfirmedForm>,
) -> Result<Response, ApiError> {
    if read(form)?.confirmed == "yes" {
        state.control.pauses.resume(JobSelection::All, by).await?;
        return Ok(see_other(shell.links.overview()));
    }
    let status = state.control.handle.status();
    let paused = status.jobs.iter().filter_map(|(job, of)| Some((job, of.pause.as_ref()?)));
    let paused: Vec<_> = paused.collect();
    let body = html! {
        h1 { "Resume " (counted(paused.len() as u64, "paused job")) "?" }
        ul {
            @for (job, pause) in &paused {
                li { (job.as_str()) ": paused by " (pause.by.as_str()) ": " (pause.note.as_str()) }
            }
        }
        (confirm(&shell.links.action("resume-all"), "Resume all", &shell.links.overview(), &html! {}))
    };
    Ok(page("Resume all jobs", &shell, body))
}

/// `POST /jobs/{job}/invalidate`: says how many keys it would remove, and asks.
async fn invalidate(
    Authorized { by }: Authorized,
    shell: Shell,
    State(state): State<AppState>,
    Segment(job): Segment,
    form: Posted<ConfirmedForm>,
) -> Result<Response, ApiError> {
    let ConfirmedForm { confirmed, tenant, rewarm } = read(form)?;
    let name = JobName::parse(&job).map_err(|_no_name| ApiError::no_such_job(&job))?;
    if !state.control.handle.status().jobs.contains_key(&name) {
        return Err(ApiError::no_such_job(&job));
    }
    let tenant = tenant.trim();
    let dry_run = confirmed != "yes";
    let request = InvalidateRequest {
        jobs: vec![job.clone()],
        tenants: if tenant.is_empty() { Vec::new() } else { vec![TenantId::new(tenant)] },
        rewarm: !dry_run && rewarm == "yes",
        dry_run,
        ..InvalidateRequest::default()
    };
    levers::tell_invalidation(&state, &by, &request);
    let asked = state.control.invalidations.invalidate_by(request, by.into());
    if !dry_run {
        let done = asked.await?;
        let body =
            removed(&done.report, done.runs.iter().map(|ticket| ticket.run.id), &shell.links, &job);
        return Ok(page("Keys removed", &shell, body));
    }
    let counted = tokio::time::timeout(MAX_COUNTING, asked).await;
    let report = counted.ok().transpose()?.map(|counted| counted.report);
    let body = ask_to_invalidate(&shell, &job, tenant, report.as_ref());
    Ok(page("Remove keys", &shell, body))
}

fn ask_to_pause(title: &str, action: &str, back: &str) -> Markup {
    let fields = html! {
        p {
            label for="note" { "Why, for others" }
            input #note type="text" name="note" required maxlength=(MAX_NOTE);
        }
        p {
            label for="for" { "For how long" }
            input #for type="text" name="for" placeholder="20m" aria-describedby="for-help";
            small #for-help { "Such as 20m or 2h. Leave it empty to resume by hand." }
        }
    };
    html! {
        h1 { (title) }
        p {
            "Until it is resumed, only people start its runs. Its keys stay until they expire, and \
             changes of its data wait."
        }
        (confirm(action, "Pause", back, &fields))
    }
}

fn ask_to_invalidate(
    shell: &Shell,
    job: &str,
    tenant: &str,
    report: Option<&InvalidateReport>,
) -> Markup {
    let action = shell.links.job_action(job, "invalidate");
    let whose = if tenant.is_empty() { String::new() } else { format!(" of tenant {tenant}") };
    let fields = html! {
        input type="hidden" name="tenant" value=(tenant);
        p {
            input #rewarm type="checkbox" name="rewarm" value="yes" checked;
            label for="rewarm" { "Warm them again at once" }
        }
    };
    html! {
        h1 { "Remove the keys of job " (job) (whose) "?" }
        @match report {
            Some(report) => p {
                (counted(report.removed, "key")) " of "
                (counted(report.fences, "tenant")) " would be removed. Until they are \
                 warm again, reads miss."
                @if !report.complete { " They could not all be counted." }
            },
            None => p { "Counting the keys took too long: there are many." },
        }
        (confirm(&action, "Remove the keys", &shell.links.job(job), &fields))
    }
}

fn removed(
    report: &InvalidateReport,
    runs: impl Iterator<Item = RunId>,
    links: &Links,
    job: &str,
) -> Markup {
    html! {
        h1 { (counted(report.removed, "key")) " removed" }
        @for failure in &report.failures {
            p role="alert" { (failure.message) }
        }
        @for run in runs {
            p { "They are warmed again by run " a href=(links.run(run)) { (run) } "." }
        }
        p { a href=(links.job(job)) { "Back to the job" } }
    }
}

/// A form with its button, and a way back.
fn confirm(action: &str, button: &str, back: &str, fields: &Markup) -> Markup {
    html! {
        form method="post" action=(action) {
            input type="hidden" name="confirmed" value="yes";
            (fields)
            button type="submit" { (button) }
            " " a href=(back) { "Cancel" }
        }
    }
}
