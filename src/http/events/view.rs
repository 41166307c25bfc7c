//! The events of `/api/v1/events`: their names and their data.

use serde_json::{Value, json};

use crate::domain::audit::{JobAudit, Kind};
use crate::domain::pause::Pause;
use crate::http::answer::moment;
use crate::http::runs::RunView;
use crate::observe::news::News;

/// The names of all events about what happens.
pub(super) const NAMES: [&str; 14] = [
    "run_started",
    "run_finished",
    "run_skipped",
    "job_paused",
    "job_resumed",
    "jobs_reloaded",
    "jobs_rejected",
    "audit_finished",
    "feed_connected",
    "feed_lost",
    "server_changed",
    "cache_lost",
    "keys_removed",
    "draining",
];

/// The name of an event.
pub(super) fn name(news: &News) -> &'static str {
    match news {
        News::RunStarted { .. } => "run_started",
        News::RunFinished(_) => "run_finished",
        News::RunSkipped { .. } => "run_skipped",
        News::JobPaused { .. } => "job_paused",
        News::JobResumed { .. } => "job_resumed",
        News::JobsReloaded { .. } => "jobs_reloaded",
        News::JobsRejected { .. } => "jobs_rejected",
        News::AuditFinished { .. } => "audit_finished",
        News::FeedConnected => "feed_connected",
        News::FeedLost { .. } => "feed_lost",
        News::ServerChanged { .. } => "server_changed",
        News::CacheLost => "cache_lost",
        News::KeysRemoved { .. } => "keys_removed",
        News::Draining => "draining",
    }
}

/// The data of an event.
pub(super) fn data(news: &News, at: &str) -> Value {
    match news {
        News::RunStarted { run, job, trigger } => {
            json!({ "at": at, "run": run, "job": job.as_str(), "trigger": trigger })
        }
        News::RunFinished(record) => json!({ "at": at, "run": RunView::finished(record) }),
        News::RunSkipped { job, reason } => {
            json!({ "at": at, "job": job.as_str(), "reason": reason.as_str() })
        }
        News::JobPaused { job, pause: Pause { note, by, since, until } } => json!({
            "at": at,
            "job": job.as_str(),
            "note": note,
            "by": by,
            "since": moment(*since),
            "until": until.map(moment),
        }),
        News::JobResumed { job, by } => json!({ "at": at, "job": job.as_str(), "by": by }),
        News::JobsReloaded { jobs, rejected } => {
            json!({ "at": at, "jobs": jobs, "rejected": rejected })
        }
        News::JobsRejected { problems } => json!({ "at": at, "problems": problems }),
        News::AuditFinished { audit, at: _ } => audit_data(audit, at),
        News::FeedConnected | News::CacheLost | News::Draining => json!({ "at": at }),
        News::FeedLost { message } => json!({ "at": at, "message": message }),
        News::ServerChanged { server, is_down, message } => {
            json!({ "at": at, "server": server.as_str(), "down": is_down, "message": message })
        }
        News::KeysRemoved { removed, failed, by_job } => {
            let by_job: Value = by_job
                .iter()
                .map(|(job, removed)| (job.to_string(), Value::from(*removed)))
                .collect();
            json!({ "at": at, "removed": removed, "failed": failed, "by_job": by_job })
        }
    }
}

fn audit_data(audit: &JobAudit, at: &str) -> Value {
    let JobAudit { job, tenants, tenants_failed, counts, .. } = audit;
    let [stale, missing, orphaned, wrong_ttl] = Kind::ALL.map(|kind| counts.of_kind(kind));
    json!({
        "at": at,
        "job": job.as_str(),
        "tenants": tenants,
        "tenants_failed": tenants_failed,
        "expected": counts.expected(),
        "consistency": counts.consistency(),
        "stale": stale,
        "missing": missing,
        "orphaned": orphaned,
        "wrong_ttl": wrong_ttl,
    })
}
