//! `preheat audit`: the cache against the database.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::MultiProgress;
use serde::Serialize;

use super::{Exit, Failure, Global, bars, complete, output};
use crate::app::App;
use crate::audit::{AuditError, AuditOrder, Auditor, KeyAnswer, KeyState, Pace};
use crate::domain::audit::{
    AuditCounts, Difference, Finding, JobAudit, Keep, Kind, WINDOWS, Wrong, nines, percent,
};
use crate::domain::duration;
use crate::domain::job::{Job, JobName, KeyKind, Share};
use crate::domain::report;
use crate::domain::share::Shares;
use crate::domain::spelling;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all enabled ones if none is named
    #[arg(value_name = "JOB", add = complete::jobs())]
    names: Vec<String>,
    /// Only so many tenants of each job, chosen by chance
    #[arg(long, value_name = "N")]
    sample: Option<NonZeroUsize>,
    /// Only this key: whose it is, and all that differs
    #[arg(long, value_name = "KEY", conflicts_with = "sample")]
    key: Option<String>,
    /// Exit with 1 where a job has more findings than this leaves of its expected keys
    #[arg(long, value_name = "SHARE", default_value = "99.9%")]
    threshold: Share,
    /// Look once: what is being written at the moment is a finding too
    #[arg(long)]
    quick: bool,
    /// Print one JSON document to stdout
    #[arg(long)]
    json: bool,
}

/// The fraction as a person would write it: 99.9 % is 0.9990000000000001 in binary.
fn decimal(share: Share) -> f64 {
    const DIGITS: f64 = 1e12;
    (share.fraction() * DIGITS).round() / DIGITS
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let jobs = loaded.select(&options.names)?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let auditor = Auditor::new(Arc::clone(&app.runner), Pace::Steady);
    match &options.key {
        Some(key) => explain(&auditor, &jobs, key, &options).await,
        None => audit(&auditor, jobs, &options).await,
    }
}

async fn audit(auditor: &Auditor, jobs: Vec<Arc<Job>>, options: &Options) -> Result<Exit, Failure> {
    // Only with all jobs and tenants: otherwise it would be unclear what the orphans are a part of.
    let orphans = options.names.is_empty() && options.sample.is_none();
    let (sample, rechecks) = (options.sample, !options.quick);
    let values = Keep::Nothing;
    let order =
        AuditOrder { jobs: jobs.clone(), sample, shares: Shares::ALL, rechecks, orphans, values };
    let audits = auditor.audit(&order).await?;
    let is_within = audits.iter().all(|audit| audit.is_within(options.threshold));
    if options.json {
        output::json(&Document::of(&audits, &jobs, options, is_within))?;
    } else {
        output::result(&text(&audits, &jobs, options))?;
    }
    Ok(if is_within { Exit::Ok } else { Exit::Failed })
}

async fn explain(
    auditor: &Auditor,
    jobs: &[Arc<Job>],
    key: &str,
    options: &Options,
) -> Result<Exit, Failure> {
    let answer = auditor.explain(jobs, key, !options.quick).await?;
    if options.json {
        output::json(&KeyDocument::of(key, &answer))?;
    } else {
        output::result(&key_text(key, &answer))?;
    }
    let is_well = match answer.state {
        KeyState::Equal => true,
        KeyState::Nowhere => answer.failures.is_empty(),
        KeyState::Wrong(_) | KeyState::Changing => false,
    };
    Ok(if is_well { Exit::Ok } else { Exit::Failed })
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Tenants(error) => error.into(),
            AuditError::Unreachable(_) => Self::unreachable(error),
        }
    }
}

/// What `--json` prints: `docs/audit.md` says what each member means.
#[derive(Serialize)]
struct Document<'a> {
    within_threshold: bool,
    threshold: f64,
    /// Seconds after the first look; empty with `--quick`.
    rechecked_after: Vec<u64>,
    sample: Option<usize>,
    jobs: Vec<JobDocument<'a>>,
}

#[derive(Serialize)]
struct JobDocument<'a> {
    job: &'a str,
    within_threshold: bool,
    summary: String,
    tenants: u64,
    tenants_failed: u64,
    expected: u64,
    present: u64,
    equal: u64,
    stale: u64,
    missing: u64,
    orphaned: u64,
    wrong_ttl: u64,
    /// The templates of its shared keys: orphans of these are not looked for.
    orphans_not_looked_for: Vec<&'a str>,
    changing: u64,
    unchecked: u64,
    coverage: Option<f64>,
    consistency: Option<f64>,
    nines: Option<u32>,
    /// How many of the equal keys were equal at the first look, and how many within each window.
    equal_within: Vec<EqualWithin>,
    behind_seconds: Option<f64>,
    findings: Vec<FindingDocument<'a>>,
    failures: &'a [report::Failure],
}

#[derive(Serialize)]
struct EqualWithin {
    seconds: u64,
    keys: u64,
}

#[derive(Serialize)]
struct FindingDocument<'a> {
    key: &'a str,
    tenant: Option<&'a str>,
    kind: Kind,
    differences: &'a [Difference],
    more_differences: bool,
    behind_seconds: Option<f64>,
    ttl: Option<TtlDocument>,
}

#[derive(Serialize)]
struct TtlDocument {
    /// `None` if it never expires.
    seconds: Option<f64>,
    most_seconds: f64,
}

/// What `--key KEY --json` prints.
#[derive(Serialize)]
struct KeyDocument<'a> {
    key: &'a str,
    state: &'static str,
    job: Option<&'a str>,
    tenant: Option<&'a str>,
    after_seconds: f64,
    finding: Option<FindingDocument<'a>>,
    failures: &'a [report::Failure],
}

impl<'a> Document<'a> {
    fn of(
        audits: &'a [JobAudit],
        jobs: &'a [Arc<Job>],
        options: &Options,
        within_threshold: bool,
    ) -> Self {
        let windows = WINDOWS.iter().filter(|_| !options.quick);
        Self {
            within_threshold,
            threshold: decimal(options.threshold),
            rechecked_after: windows.map(Duration::as_secs).collect(),
            sample: options.sample.map(NonZeroUsize::get),
            jobs: audits
                .iter()
                .map(|audit| JobDocument::of(audit, jobs, options.threshold))
                .collect(),
        }
    }
}

impl<'a> JobDocument<'a> {
    fn of(audit: &'a JobAudit, jobs: &'a [Arc<Job>], threshold: Share) -> Self {
        let JobAudit { job, tenants, tenants_failed, counts, most_behind, .. } = audit;
        let AuditCounts { equal_within, stale, missing, orphaned, wrong_ttl, .. } = *counts;
        let seconds = [0].into_iter().chain(WINDOWS.iter().map(Duration::as_secs));
        let windows = if audit.rechecked { equal_within.len() } else { 1 };
        let within = seconds.zip(equal_within).take(windows);
        Self {
            job: job.as_str(),
            within_threshold: audit.is_within(threshold),
            summary: audit.to_string(),
            tenants: *tenants,
            tenants_failed: *tenants_failed,
            expected: counts.expected(),
            present: counts.present(),
            equal: counts.all_equal(),
            stale,
            missing,
            orphaned,
            wrong_ttl,
            orphans_not_looked_for: shared_templates(jobs, job),
            changing: counts.changing,
            unchecked: counts.unchecked,
            coverage: counts.coverage(),
            consistency: counts.consistency(),
            nines: nines(counts.all_equal(), counts.expected()),
            equal_within: within.map(|(seconds, keys)| EqualWithin { seconds, keys }).collect(),
            behind_seconds: most_behind.map(|behind| behind.as_secs_f64()),
            findings: audit.findings.iter().map(FindingDocument::of).collect(),
            failures: &audit.failures,
        }
    }
}

impl<'a> FindingDocument<'a> {
    fn of(finding: &'a Finding) -> Self {
        let Finding { key, tenant, wrong } = finding;
        let Wrong { kind, differences, behind, ttl, .. } = wrong;
        Self {
            key,
            tenant: tenant.as_deref(),
            kind: *kind,
            differences: &differences.first,
            more_differences: differences.more,
            behind_seconds: behind.map(|behind| behind.as_secs_f64()),
            ttl: ttl.map(|ttl| TtlDocument {
                seconds: ttl.left.map(|left| left.as_secs_f64()),
                most_seconds: ttl.most.as_secs_f64(),
            }),
        }
    }
}

impl<'a> KeyDocument<'a> {
    fn of(key: &'a str, answer: &'a KeyAnswer) -> Self {
        let (job, tenant) = match &answer.owner {
            Some((job, tenant)) => (Some(job.as_str()), tenant.as_deref()),
            None => (None, None),
        };
        let (state, finding) = match &answer.state {
            KeyState::Equal => ("equal", None),
            KeyState::Wrong(finding) => {
                (finding.wrong.kind.as_str(), Some(FindingDocument::of(finding)))
            }
            KeyState::Changing => ("changing", None),
            KeyState::Nowhere => ("nowhere", None),
        };
        let after_seconds = answer.after.as_secs_f64();
        Self { key, state, job, tenant, after_seconds, finding, failures: &answer.failures }
    }
}

/// The templates of a job's shared keys.
fn shared_templates<'a>(jobs: &'a [Arc<Job>], name: &JobName) -> Vec<&'a str> {
    let keys = jobs
        .iter()
        .filter(|job| job.name == *name)
        .flat_map(|job| job.keys.iter().filter(|key| job.kind(key) == KeyKind::Shared));
    keys.map(|key| key.template.as_str()).collect()
}

/// The report for people: a table, then what was found.
fn text(audits: &[JobAudit], jobs: &[Arc<Job>], options: &Options) -> String {
    let mut lines = vec![table(audits).to_string(), String::new()];
    for audit in audits {
        lines.push(format!("{}: {}{audit}{}", audit.job, coverage(audit), remarks(audit)));
        lines.extend(audit.findings.iter().flat_map(finding_lines));
        let left = audit.counts.findings().saturating_sub(audit.findings.len() as u64);
        if left > 0 {
            lines.push(format!("  and {} more", output::count(left)));
        }
        lines.extend(audit.failures.iter().map(failure_line));
        lines.extend(shared_templates(jobs, &audit.job).into_iter().map(|template| {
            format!("  orphans of `{template}` are not looked for: such a key ends by its TTL")
        }));
    }
    lines.push(verdict(audits, options.threshold));
    lines.join("\n") + "\n"
}

/// Whether the threshold is met, and which jobs could not be compared completely.
fn verdict(audits: &[JobAudit], threshold: Share) -> String {
    if audits.iter().all(|audit| audit.is_within(threshold)) {
        return format!("within the threshold of {threshold}");
    }
    let beyond = audits.iter().any(|audit| !audit.counts.is_within(threshold));
    let failed = audits.iter().filter(|audit| !audit.failures.is_empty());
    let failed: Vec<&str> = failed.map(|audit| audit.job.as_str()).collect();
    let names = spelling::listed(failed.iter().copied(), "and");
    match (beyond, failed.is_empty()) {
        (true, true) => format!("beyond the threshold of {threshold}"),
        (true, false) => {
            format!("beyond the threshold of {threshold}, and not all of {names} could be compared")
        }
        (false, _) => format!(
            "what was compared is within the threshold of {threshold}, but not all of {names} could \
             be compared"
        ),
    }
}

/// It fits into 80 columns; the shares are in the lines below the table.
fn table(audits: &[JobAudit]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let names = ["tenants", "expected", "present", "equal", "stale", "missing", "orphaned"];
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let mut header = vec![Cell::new("job")];
    header.extend(names.map(|name| right(name.to_owned())));
    header.push(right("wrong ttl".to_owned()));
    table.set_header(header);
    for audit in audits {
        let counts = &audit.counts;
        let AuditCounts { stale, missing, orphaned, wrong_ttl, .. } = *counts;
        let (expected, present, equal) = (counts.expected(), counts.present(), counts.all_equal());
        let numbers =
            [audit.tenants, expected, present, equal, stale, missing, orphaned, wrong_ttl];
        let mut row = vec![Cell::new(&audit.job)];
        row.extend(numbers.map(|number| right(output::count(number))));
        table.add_row(row);
    }
    output::fit(&mut table);
    table
}

/// How many of the expected keys exist.
fn coverage(audit: &JobAudit) -> String {
    match audit.counts.expected() {
        0 => String::new(),
        expected => format!("coverage {}, ", percent(audit.counts.present(), expected)),
    }
}

/// What else a reader must know about a job's figures.
fn remarks(audit: &JobAudit) -> String {
    let AuditCounts { changing, unchecked, .. } = audit.counts;
    let behind = audit.most_behind.map(|behind| format!(", {}", behind_text(behind)));
    let changing = (changing > 0).then(|| {
        let keys = output::counted(changing, "key changes", "keys change");
        format!("; {keys} too often to be judged")
    });
    let unchecked = (unchecked > 0).then(|| {
        let findings = output::counted(unchecked, "finding was", "findings were");
        format!("; {findings} not looked at again, as there are so many")
    });
    [behind, changing, unchecked].into_iter().flatten().collect()
}

fn behind_text(behind: Duration) -> String {
    format!("up to {} behind", output::seconds(behind))
}

fn finding_lines(finding: &Finding) -> Vec<String> {
    let Finding { key, tenant: _, wrong } = finding;
    let (what, key) = (wrong.kind.as_str().replace('_', " "), output::shown(key));
    let mut lines = vec![format!("  {what}: `{key}`")];
    lines.extend(details(wrong).into_iter().map(|detail| format!("    {detail}")));
    lines
}

/// The differences of a key, line by line: the database on the left, the cache on the right.
fn details(wrong: &Wrong) -> Vec<String> {
    let Wrong { kind: _, differences, behind, ttl, marks: _, values: _ } = wrong;
    let mut lines: Vec<String> = differences.first.iter().map(ToString::to_string).collect();
    lines.extend(differences.more.then(|| "and more".to_owned()));
    lines.extend(behind.map(behind_text));
    lines.extend(ttl.map(|ttl| ttl.to_string()));
    lines
}

fn failure_line(failure: &report::Failure) -> String {
    format!("  not compared: {}", bars::failed(failure))
}

/// The answer for one key. Differences have the database on the left.
fn key_text(key: &str, answer: &KeyAnswer) -> String {
    let shown = output::shown(key);
    let mut lines = Vec::new();
    match &answer.owner {
        None => lines.push(format!("no job makes the key `{shown}` of the present data")),
        Some((job, None)) => lines.push(format!("the key `{shown}` is of job `{job}`")),
        Some((job, Some(tenant))) => {
            let tenant = output::shown(tenant);
            lines.push(format!("the key `{shown}` is of job `{job}` and tenant `{tenant}`"));
        }
    }
    let after = match answer.after.as_secs() {
        0 => String::new(),
        seconds => {
            format!(", {} after the first look", duration::text(Duration::from_secs(seconds)))
        }
    };
    match &answer.state {
        KeyState::Equal => lines.push(format!("it equals the database{after}")),
        KeyState::Changing => lines.push(
            "its data changes too often to be judged: it was another at each look".to_owned(),
        ),
        KeyState::Nowhere => lines.push("it is not in the cache either".to_owned()),
        KeyState::Wrong(finding) => {
            lines.push(format!("{}{after}", sentence(finding.wrong.kind)));
            lines.extend(details(&finding.wrong).into_iter().map(|detail| format!("  {detail}")));
        }
    }
    lines.extend(answer.failures.iter().map(failure_line));
    lines.join("\n") + "\n"
}

fn sentence(kind: Kind) -> &'static str {
    match kind {
        Kind::Stale => "it is stale, database ≠ cache",
        Kind::Missing => "it is missing in the cache",
        Kind::Orphaned => "it is orphaned: it is in the cache, and its data is gone",
        Kind::WrongTtl => "it equals the database, and its TTL is wrong",
    }
}
