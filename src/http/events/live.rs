//! `GET /live`: tells an open page which of its parts have changed. The page then asks for itself
//! anew. So what it shows is right whatever the stream missed, and a stream needs no ids.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio::sync::watch;

use super::{Source, event, stream};
use crate::domain::run::{RunId, Trigger};
use crate::engine::schedule::status::{ActiveRun, JobStatus, Status};
use crate::http::AppState;
use crate::http::answer::ApiError;
use crate::http::session::Viewer;
use crate::observe::Metrics;
use crate::observe::news::News;

/// How long a stream collects changes before it sends them in one event.
const GATHER: Duration = Duration::from_millis(150);
/// The shortest time between two events of one stream.
const REST: Duration = Duration::from_secs(1);
/// How often a page shows how far a run is.
const PROGRESS: Duration = Duration::from_secs(2);
/// How often figures are shown anew that change all the time, such as the hit rate.
const FIGURES: Duration = Duration::from_secs(10);
/// How many news one event covers; further ones come with the next.
const AT_ONCE: usize = 1_000;

/// `GET /live`
pub(in crate::http) async fn changes(
    _: Viewer,
    State(state): State<AppState>,
) -> Result<Response, ApiError> {
    let place = state.streams.place()?;
    let control = &state.control;
    let mut status = control.handle.subscribe();
    let seen = Arc::clone(&status.borrow_and_update());
    let metrics = Arc::clone(&control.metrics);
    let (news, read) = (metrics.news.subscribe(), metrics.news.latest());
    let changes = Changes { status, seen, metrics, news, read, wake: Wake::Wait };
    Ok(stream(place, changes, control.shutdown.clone()))
}

/// What has changed since the last event.
struct Changes {
    status: watch::Receiver<Arc<Status>>,
    seen: Arc<Status>,
    metrics: Arc<Metrics>,
    news: watch::Receiver<u64>,
    /// The number of the newest item of the news that this stream has read.
    read: u64,
    wake: Wake,
}

/// How far the source is on the way to its next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// It has just sent one.
    Rest,
    /// It waits for something to change.
    Wait,
    /// Something changed, or it is time for this.
    Tell { figures: bool, progress: bool },
}

/// The data of an event: the names of the parts to draw anew.
#[derive(Debug, Serialize)]
struct Changed<'a> {
    parts: &'a BTreeSet<String>,
}

impl Source for Changes {
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.wake {
                Wake::Rest => {
                    tokio::time::sleep(REST).await;
                    self.wake = Wake::Wait;
                }
                Wake::Wait => self.wake = self.wait().await?,
                Wake::Tell { figures, progress } => {
                    tokio::time::sleep(GATHER).await;
                    let parts = self.parts(figures, progress);
                    self.wake = Wake::Wait;
                    if !parts.is_empty() {
                        self.wake = Wake::Rest;
                        return Some(event(None, "changed", &Changed { parts: &parts }));
                    }
                }
            }
        }
    }
}

impl Changes {
    /// Waits for a change; `None` if the engine has ended.
    async fn wait(&mut self) -> Option<Wake> {
        let runs = active(&self.seen).any(|run| run.started_at.is_some());
        tokio::select! {
            biased;
            changed = self.status.changed() => changed.ok()?,
            changed = self.news.changed() => changed.ok()?,
            () = tokio::time::sleep(PROGRESS), if runs => {
                return Some(Wake::Tell { figures: false, progress: true });
            }
            () = tokio::time::sleep(FIGURES) => {
                return Some(Wake::Tell { figures: true, progress: false });
            }
        }
        Some(Wake::Tell { figures: false, progress: false })
    }

    /// The parts that have changed since the last call.
    fn parts(&mut self, figures: bool, progress: bool) -> BTreeSet<String> {
        let mut parts = Parts::default();
        let now = Arc::clone(&self.status.borrow_and_update());
        parts.of_status(&self.seen, &now);
        if progress {
            for run in active(&now).filter(|run| run.started_at.is_some()) {
                parts.add(format!("job:{}", run.job));
                parts.add(format!("run:{}", run.id));
            }
        }
        self.seen = now;
        if figures {
            for part in ["head", "changes", "limits", "fleet"] {
                parts.add(part);
            }
        }
        self.news.borrow_and_update();
        match self.metrics.news.after(self.read, AT_ONCE) {
            Ok(items) => {
                for item in &items {
                    self.read = item.number;
                    parts.of_news(&item.news);
                }
            }
            Err(_lost) => {
                self.read = self.metrics.news.latest();
                for part in [
                    "head", "jobs", "runs", "tenants", "audit", "changes", "settings", "limits",
                    "fleet",
                ] {
                    parts.add(part);
                }
            }
        }
        parts.0
    }
}

/// All runs that have not ended.
fn active(status: &Status) -> impl Iterator<Item = &ActiveRun> {
    let of_jobs = status.jobs.values().flat_map(|job| job.running.iter().chain(&job.queued));
    of_jobs.chain(&status.leaving)
}

/// Names of parts, as pages have them in `data-live`.
#[derive(Debug, Default)]
struct Parts(BTreeSet<String>);

impl Parts {
    fn add(&mut self, part: impl Into<String>) {
        self.0.insert(part.into());
    }

    fn of_status(&mut self, before: &Status, now: &Status) {
        let ids = |status: &Status| -> BTreeSet<(RunId, bool)> {
            active(status).map(|run| (run.id, run.started_at.is_some())).collect()
        };
        for (run, _) in ids(before).symmetric_difference(&ids(now)) {
            self.add(format!("run:{run}"));
            self.add("runs");
            self.add("tenants");
        }
        let names: BTreeSet<_> = before.jobs.keys().chain(now.jobs.keys()).collect();
        for name in names {
            let is_same = match (before.jobs.get(name), now.jobs.get(name)) {
                (Some(before), Some(now)) => same_job(before, now),
                (None, _) | (_, None) => false,
            };
            if !is_same || before.rejections.get(name) != now.rejections.get(name) {
                self.add(format!("job:{name}"));
                self.add("jobs");
                self.add("head");
            }
        }
        if before.phase != now.phase {
            self.add("head");
        }
    }

    fn of_news(&mut self, news: &News) {
        match news {
            // A change of the status reports it, once a page can show it.
            News::RunStarted { .. } | News::JobPaused { .. } | News::JobResumed { .. } => {}
            News::RunFinished(record) => {
                if record.trigger == Trigger::Change {
                    self.add("changes");
                }
                self.add("head");
            }
            News::RunSkipped { job, .. } => self.add(format!("job:{job}")),
            News::JobsReloaded { .. } | News::JobsRejected { .. } => {
                self.add("head");
                self.add("jobs");
                self.add("settings");
            }
            News::AuditFinished { audit, .. } => {
                self.add("audit");
                self.add("head");
                self.add(format!("job:{}", audit.job));
            }
            News::FeedConnected | News::FeedLost { .. } => {
                self.add("changes");
                self.add("head");
            }
            News::ServerChanged { .. } => {
                self.add("head");
                self.add("limits");
            }
            News::CacheLost => {
                self.add("changes");
                self.add("head");
                self.add("tenants");
            }
            News::KeysRemoved { .. } => {
                self.add("head");
                self.add("tenants");
            }
            News::Draining => self.add("head"),
        }
    }
}

/// Whether a job shows nothing new.
fn same_job(before: &JobStatus, now: &JobStatus) -> bool {
    let JobStatus {
        job,
        next_due_at,
        running,
        queued,
        last_run,
        last_success_at,
        unwarmed,
        batch,
        pause,
    } = before;
    let ids = |runs: &[ActiveRun]| -> Vec<RunId> { runs.iter().map(|run| run.id).collect() };
    let id = |run: &Option<ActiveRun>| run.as_ref().map(|run| (run.id, run.started_at));
    let last = |run: &Option<Arc<_>>| run.as_ref().map(Arc::as_ptr);
    Arc::ptr_eq(job, &now.job)
        && *next_due_at == now.next_due_at
        && id(running) == id(&now.running)
        && ids(queued) == ids(&now.queued)
        && last(last_run) == last(&now.last_run)
        && *last_success_at == now.last_success_at
        && *unwarmed == now.unwarmed
        && *pause == now.pause
        && Arc::ptr_eq(batch, &now.batch)
}
