//! The verifier, which compares the cache with the database.

use chrono::{DateTime, Utc};
use std::sync::Arc;

use tracing::{debug, warn};

use crate::domain::audit::{JobAudit, Kind};
use crate::domain::job::JobName;
use crate::observe::Metrics;
use crate::observe::metric::{OfFindings, PerJob, unix_seconds};
use crate::observe::news::News;

event! {
    /// The verifier has compared some tenants of a job.
    AuditFinished<'a> { audit: &'a JobAudit, at: DateTime<Utc> }
    metrics |metrics| {
        count_audit(metrics, audit, at);
        // News are for everybody who may look, and many are kept.
        metrics.news.tell(|| News::AuditFinished { audit: Arc::new(audit.without_findings()), at });
    };
    log log_audit(audit);
}

event! {
    /// The worker has no tenants of a job any more, so that what the verifier found says nothing of its keys.
    AuditForgotten<'a> { job: &'a JobName }
    metrics |metrics| {
        metrics.consistency.forget(job);
        metrics.figures().forget_audit(job);
    };
}

/// If no key was compared, the share stays as it was.
fn count_audit(metrics: &Metrics, audit: &JobAudit, at: DateTime<Utc>) {
    let JobAudit { job, counts, .. } = audit;
    metrics.figures().note_audit(audit, at);
    metrics.last_audit.of(job).set(unix_seconds(at));
    for kind in Kind::ALL {
        let count = i64::try_from(counts.of_kind(kind)).unwrap_or(i64::MAX);
        metrics
            .audit_findings
            .get_or_create(&OfFindings { job_name: job.clone(), kind })
            .set(count);
    }
    if let Some(consistency) = counts.consistency() {
        metrics.consistency.of(job).set(consistency);
    }
}

/// Names a finding by its key alone, since values are private data.
fn log_audit(audit: &JobAudit) {
    let JobAudit { job, tenants, counts, .. } = audit;
    let (expected, findings) = (counts.expected(), counts.findings());
    if let Some(failure) = audit.failures.first() {
        let (kind, message) = (failure.kind.as_str(), failure.message.as_str());
        warn!(
            %job, failure = kind, tenants_failed = audit.tenants_failed,
            "not all of job `{job}` could be compared with the database ({kind}): {message}"
        );
    }
    let Some(first) = audit.findings.first() else {
        debug!(%job, tenants, expected, "job `{job}` is as in the database: {audit}");
        return;
    };
    let [stale, missing, orphaned, wrong_ttl] = Kind::ALL.map(|kind| counts.of_kind(kind));
    let (key, kind) = (first.key.escape_debug(), first.wrong.kind.as_str());
    warn!(
        %job, tenants, expected, stale, missing, orphaned, wrong_ttl,
        "keys of job `{job}` are not as in the database, {findings} in all: {audit}; the first is \
         `{key}` ({kind})"
    );
}

event! {
    /// The verifier could not compare anything. Its last measurements stay and become outdated.
    AuditFailed<'a> { message: &'a str }
    log warn!("could not compare the cache with the database: {message}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{job, logged};
    use super::*;

    #[test]
    fn a_finding_of_the_verifier_is_named_by_its_key_and_no_value_is_told() {
        use crate::domain::audit::{Differences, Finding, Held, Keep, Measure, judge};
        let rows = crate::domain::row::Rows::default();
        let shape = crate::domain::job::Shape::List;
        let expected = crate::domain::entry::Value::new(&rows, Vec::new(), shape);
        let measure =
            Measure { ttl: Duration::from_mins(30), differences: 3, values: Keep::Beginnings };
        let wrong = judge(Some(&expected), Held::Value(b"[\"secret\"]", None), measure).unwrap();
        assert_ne!(wrong.differences, Differences::default());
        let mut audit = JobAudit::new(job(), true);
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let metrics = Metrics::new();
        let line = logged(|| AuditFinished { audit: &audit, at }.emit(&metrics));
        assert!(line.trim_start().starts_with("DEBUG"), "all is well: {line}");
        let finding = Finding { key: "services:a\nb".to_owned(), tenant: None, wrong };
        audit.find(finding, Duration::ZERO);
        metrics.news.start(|| DateTime::UNIX_EPOCH);
        let line = logged(|| AuditFinished { audit: &audit, at }.emit(&metrics));
        let news = metrics.news.after(0, 1).unwrap();
        assert!(!format!("{news:?}").contains("secret"), "{news:?}");
        insta::assert_snapshot!(line, @r"
         WARN keys of job `services` are not as in the database, 1 in all: 0 % consistent within 60s; the first is `services:a\nb` (stale) job=services tenants=0 expected=1 stale=1 missing=0 orphaned=0 wrong_ttl=0
        ");
        let series = "preheat_audit_findings{job_name=\"services\",kind=\"stale\"} 1\n";
        assert!(metrics.encode().contains(series), "{}", metrics.encode());
        let line = logged(|| AuditFailed { message: "no connection" }.emit(&metrics));
        assert_eq!(
            line.trim(),
            "WARN could not compare the cache with the database: no connection"
        );
    }
}
