//! What is wrong, worst first, and the one sentence that says so.

use chrono::{DateTime, Utc};

use super::facts::{Facts, NotWarmOfJob};
use super::text::{moment, percent, span};
use super::{Level, Link, LinkKind, Moment, Trouble, TroubleKind, Verdict};
use crate::domain::count::{count, counted};
use crate::domain::job::JobName;
use crate::domain::run::Outcome;
use crate::engine::run::not_warm::Reason;
use crate::engine::schedule::status::{JobStatus, Phase, RejectedFor};
use crate::observe::figures::Since;

/// Below this share of the expected keys, the coverage is a trouble.
const LOW_COVERAGE: f64 = 0.99;
/// Below this share of equal values, the consistency is a trouble.
const LOW_CONSISTENCY: f64 = 0.999;

/// What to do about a file without a hint.
const MEND: &str = "Mend the file; it is read again.";

/// A trouble, and the job that it is about.
pub(super) struct Found {
    pub(super) job: Option<JobName>,
    pub(super) trouble: Trouble,
}

/// All troubles, worst first: by their kinds, and by their jobs.
pub(super) fn find(facts: &Facts) -> Vec<Found> {
    let mut found = of_the_worker(facts);
    for status in facts.jobs() {
        let job = &status.job.name;
        let troubles = of_file(facts, status).into_iter().chain(of_job(facts, status));
        found.extend(troubles.map(|trouble| Found { job: Some(job.clone()), trouble }));
    }
    found.sort_by_key(|found| found.trouble.kind);
    found
}

impl TroubleKind {
    fn level(self) -> Level {
        match self {
            Self::SchedulerSilent
            | Self::DatabaseDown
            | Self::CacheDown
            | Self::CacheRefusesWrites
            | Self::JobHeld
            | Self::JobLate
            | Self::KeysExpire => Level::Critical,
            Self::Draining
            | Self::SharesVacant
            | Self::RunFailed
            | Self::NotWarm
            | Self::CoverageLow
            | Self::Inconsistent
            | Self::FeedDown
            | Self::FileRejected
            | Self::FilesUnreadable
            | Self::Evicting
            | Self::HistoryLosing => Level::Warning,
            Self::Paused | Self::NeverRan => Level::Info,
        }
    }
}

/// What a trouble says besides its kind.
#[derive(Default)]
struct Says {
    sentence: String,
    reason: Option<String>,
    since: Option<DateTime<Utc>>,
    next_step: String,
}

fn trouble(kind: TroubleKind, link: (LinkKind, Option<&str>), says: Says) -> Trouble {
    let Says { sentence, reason, since, next_step } = says;
    let link = Link { kind: link.0, name: link.1.map(str::to_owned) };
    Trouble {
        level: kind.level(),
        kind,
        sentence,
        reason,
        since: since.map(Moment),
        link,
        next_step,
    }
}

fn of_the_worker(facts: &Facts) -> Vec<Found> {
    let troubles = [
        draining(facts),
        silent(facts),
        database_down(facts),
        cache_down(facts),
        writes_refused(facts),
        shares_vacant(facts),
        feed_down(facts),
        files_unreadable(facts),
        evicting(facts),
        history_losing(facts),
    ];
    troubles.into_iter().flatten().map(|trouble| Found { job: None, trouble }).collect()
}

fn draining(facts: &Facts) -> Option<Trouble> {
    let says = Says {
        sentence: "The worker is draining.".to_owned(),
        reason: Some("it was asked to stop".to_owned()),
        next_step: "The runs in flight end, and no more start.".to_owned(),
        ..Says::default()
    };
    (facts.status.phase == Phase::Draining)
        .then(|| trouble(TroubleKind::Draining, (LinkKind::Settings, None), says))
}

fn silent(facts: &Facts) -> Option<Trouble> {
    let (scheduler, engine) = (facts.health.scheduler, facts.health.engine);
    let (who, beat) = match (engine.is_alive(), scheduler.is_alive()) {
        (true, true) => return None,
        (false, _) => ("the engine's loop", engine),
        (true, false) => ("the scheduler", scheduler),
    };
    let silent_for = chrono::TimeDelta::from_std(beat.silent_for).unwrap_or_default();
    let says = Says {
        sentence: "Nothing is being scheduled.".to_owned(),
        reason: Some(format!("{who} has been silent for {}", span(silent_for))),
        since: Some(facts.now - silent_for),
        next_step: "Restart the worker, and look at its log.".to_owned(),
    };
    Some(trouble(TroubleKind::SchedulerSilent, (LinkKind::Settings, None), says))
}

fn database_down(facts: &Facts) -> Option<Trouble> {
    let Since { at, message } = facts.database_down.clone()?;
    let expiries = facts.jobs().filter_map(|status| facts.deadlines(status).expires_at);
    let keys = match expiries.min() {
        Some(expiry) if expiry > facts.now => {
            format!("; keys live until {}", moment(expiry, facts.now))
        }
        Some(expiry) => format!("; keys expire since {}", moment(expiry, facts.now)),
        None => String::new(),
    };
    let says = Says {
        sentence: format!("Database down for {}{keys}.", span(facts.now - at)),
        reason: Some(message),
        since: Some(at),
        next_step: "The worker tries again every few seconds. Look at the database.".to_owned(),
    };
    Some(trouble(TroubleKind::DatabaseDown, (LinkKind::Settings, None), says))
}

fn cache_down(facts: &Facts) -> Option<Trouble> {
    let Since { at, message } = facts.cache_down.clone()?;
    let says = Says {
        sentence: format!("Cache down for {}; no key is being written.", span(facts.now - at)),
        reason: Some(message),
        since: Some(at),
        next_step: "The worker tries again every few seconds. Look at the cache.".to_owned(),
    };
    Some(trouble(TroubleKind::CacheDown, (LinkKind::Settings, None), says))
}

fn writes_refused(facts: &Facts) -> Option<Trouble> {
    let says = Says {
        sentence: "The cache refuses all writes.".to_owned(),
        reason: Some("it is full, a replica, or the wrong node of a cluster".to_owned()),
        next_step: "Give the cache room, or `cache.url` the address of the primary.".to_owned(),
        ..Says::default()
    };
    facts
        .writes_refused
        .then(|| trouble(TroubleKind::CacheRefusesWrites, (LinkKind::Settings, None), says))
}

fn feed_down(facts: &Facts) -> Option<Trouble> {
    let feed = &facts.feed;
    let (sentence, next_step) = match (feed.listens?, feed.lacking) {
        (true, 0) => return None,
        (true, tables) => (
            format!(
                "The change feed does not hear of {}.",
                counted(tables as u64, "table", "tables")
            ),
            "Run `preheat changes install`.",
        ),
        (false, _) => (
            "The change feed is away; changes wait for the schedules.".to_owned(),
            "The worker tries again. When it is back, each job with `tables` runs once.",
        ),
    };
    let says = Says {
        sentence,
        reason: feed.reason.clone(),
        since: feed.since.filter(|_| feed.listens == Some(false)),
        next_step: next_step.to_owned(),
    };
    Some(trouble(TroubleKind::FeedDown, (LinkKind::Changes, None), says))
}

/// While the cache is away, members cannot say what they hold.
fn shares_vacant(facts: &Facts) -> Option<Trouble> {
    let shares = u64::from(facts.vacant.len());
    let says = Says {
        sentence: format!(
            "No replica warms the tenants of {}.",
            counted(shares, "share", "shares")
        ),
        reason: Some(format!("no member of the fleet holds {}", facts.vacant)),
        next_step: "Members take free shares within seconds; if this lasts, see that replicas run."
            .to_owned(),
        ..Says::default()
    };
    (shares > 0 && facts.cache_down.is_none())
        .then(|| trouble(TroubleKind::SharesVacant, (LinkKind::Settings, None), says))
}

fn files_unreadable(facts: &Facts) -> Option<Trouble> {
    let first = facts.unreadable.first()?;
    let problems = counted(facts.unreadable.len() as u64, "problem", "problems");
    let says = Says {
        sentence: format!("The job files have {problems}; the last good ones stay in use."),
        reason: Some(format!("{}: {}", place(first), first.message)),
        since: None,
        next_step: first.hint.clone().unwrap_or_else(|| MEND.to_owned()),
    };
    Some(trouble(TroubleKind::FilesUnreadable, (LinkKind::Settings, None), says))
}

/// A problem's file and line.
fn place(problem: &RejectedFor) -> String {
    match problem.line {
        Some(line) => format!("{}:{line}", problem.file),
        None => problem.file.clone(),
    }
}

fn evicting(facts: &Facts) -> Option<Trouble> {
    let evicted = facts.usage.evicted_last_hour;
    let says = Says {
        sentence: format!(
            "The cache evicted {} within the last hour.",
            counted(evicted, "key", "keys")
        ),
        reason: Some("its memory is full".to_owned()),
        next_step: "Raise its `maxmemory`, or shorten the jobs' `ttl`.".to_owned(),
        ..Says::default()
    };
    (evicted > 0).then(|| trouble(TroubleKind::Evicting, (LinkKind::Settings, None), says))
}

fn history_losing(facts: &Facts) -> Option<Trouble> {
    let Since { at, message } = facts.history_away.clone()?;
    let says = Says {
        sentence: "The run history cannot be written.".to_owned(),
        reason: Some(message),
        since: Some(at),
        next_step: "Runs go on, and 1,000 records wait in memory at most.".to_owned(),
    };
    Some(trouble(TroubleKind::HistoryLosing, (LinkKind::Settings, None), says))
}

/// A rejected file.
fn of_file(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let rejection = facts.status.rejections.get(job)?;
    let first = rejection.problems.first();
    let next_step = first.and_then(|problem| problem.hint.clone());
    let (kind, sentence) = if rejection.older_in_use {
        let sentence = format!("Job `{job}` runs with an older version of its file.");
        (TroubleKind::FileRejected, sentence)
    } else {
        (TroubleKind::JobHeld, format!("Job `{job}` is held and does not run."))
    };
    let says = Says {
        sentence,
        reason: first.map(|problem| format!("{}: {}", place(problem), problem.message)),
        since: None,
        next_step: next_step.unwrap_or_else(|| MEND.to_owned()),
    };
    Some(trouble(kind, (LinkKind::Job, Some(job.as_str())), says))
}

fn of_job(facts: &Facts, status: &JobStatus) -> Vec<Trouble> {
    if !status.job.enabled {
        return Vec::new();
    }
    let troubles = [
        late(facts, status),
        keys_expire(facts, status),
        run_failed(facts, status),
        not_warm(facts, status),
        coverage_low(facts, status),
        inconsistent(facts, status),
        paused(facts, status),
        never_ran(facts, status),
    ];
    troubles.into_iter().flatten().collect()
}

/// When a job runs next, in a sentence.
fn next_run(facts: &Facts, status: &JobStatus) -> String {
    match (&status.running, status.next_due_at) {
        (Some(_), _) => "A run is under way.".to_owned(),
        (None, Some(at)) => format!("It runs next at {}.", moment(at, facts.now)),
        (None, None) => "It is not due: run it now.".to_owned(),
    }
}

/// Why the last run failed, in a few words.
fn open_failure(facts: &Facts, job: &JobName) -> Option<String> {
    let failed = facts.recent(job)?.open_failure()?;
    let failure = failed.failure.as_ref()?;
    Some(format!("{}: {}", failure.kind.as_str(), failure.message))
}

fn late(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let late_after = facts.deadlines(status).late_after.filter(|at| facts.now > *at)?;
    let last = facts.recent(job).and_then(|recent| recent.last_success_at);
    let sentence = match last {
        Some(at) => format!("Job `{job}` is late: it last succeeded {} ago.", span(facts.now - at)),
        None => format!("Job `{job}` is late: it has not succeeded yet."),
    };
    let says = Says {
        sentence,
        reason: open_failure(facts, job),
        since: Some(late_after),
        next_step: next_run(facts, status),
    };
    Some(trouble(TroubleKind::JobLate, (LinkKind::Job, Some(job.as_str())), says))
}

fn keys_expire(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let deadlines = facts.deadlines(status);
    let expires_at = deadlines.expires_at?;
    deadlines.ttl_margin.filter(|margin| *margin < chrono::TimeDelta::zero())?;
    let says = Says {
        sentence: format!(
            "Keys of job `{job}` expire from {} on, before its next run has ended.",
            moment(expires_at, facts.now)
        ),
        reason: Some(
            "its `ttl` is too short for its schedule and the time that a run takes".into(),
        ),
        since: None,
        next_step: next_run(facts, status),
    };
    Some(trouble(TroubleKind::KeysExpire, (LinkKind::Job, Some(job.as_str())), says))
}

fn run_failed(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let failed = facts.recent(job)?.open_failure()?;
    let how = match failed.outcome {
        Outcome::Failed => "failed",
        Outcome::Timeout => "ran out of time",
        // Partial runs show in the tenants that are not warm; nothing is wrong with cancelled ones.
        Outcome::Ok | Outcome::Partial | Outcome::Cancelled => return None,
    };
    let id = failed.run.to_string();
    let says = Says {
        sentence: format!("The last run of job `{job}` {how}."),
        reason: open_failure(facts, job),
        since: Some(failed.finished_at),
        next_step: next_run(facts, status),
    };
    Some(trouble(TroubleKind::RunFailed, (LinkKind::Run, Some(id.as_str())), says))
}

fn not_warm(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let NotWarmOfJob { tenants, summary, next_try_at } = facts.not_warm.get(job)?;
    if *tenants == 0 {
        return None;
    }
    let (is, them) = if *tenants == 1 { ("is", "it") } else { ("are", "they") };
    let tenants = counted(*tenants, "tenant", "tenants");
    let reason = summary.as_ref().map(|entry| match entry.reason {
        Reason::Failed(kind) => format!("{}: {}", kind.as_str(), entry.message),
        Reason::Unverified => entry.message.to_string(),
    });
    let tried = summary.as_ref().map(|entry| entry.tries).unwrap_or_default();
    let next_step = match next_try_at {
        Some(at) => format!(
            "Tried {}; {them} {is} tried again at {}.",
            counted(tried, "time", "times"),
            moment(*at, facts.now)
        ),
        None => format!("Tried {}. {}", counted(tried, "time", "times"), next_run(facts, status)),
    };
    let says = Says {
        sentence: format!("{tenants} of job `{job}` {is} not warm."),
        reason,
        since: summary.as_ref().map(|entry| entry.since),
        next_step,
    };
    Some(trouble(TroubleKind::NotWarm, (LinkKind::Tenants, Some(job.as_str())), says))
}

fn coverage_low(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let share = facts.coverage.get(job)?;
    let ratio = share.ratio().filter(|ratio| *ratio < LOW_COVERAGE)?;
    let says = Says {
        sentence: format!("Only {} of the keys of job `{job}` are in the cache.", percent(ratio)),
        reason: Some(format!(
            "{} of {} keys of a sample were there",
            count(share.part),
            count(share.whole)
        )),
        since: None,
        next_step: next_run(facts, status),
    };
    Some(trouble(TroubleKind::CoverageLow, (LinkKind::Job, Some(job.as_str())), says))
}

fn inconsistent(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let audited = facts.audits.get(job)?;
    let ratio = audited.equal.ratio().filter(|ratio| *ratio < LOW_CONSISTENCY)?;
    let says = Says {
        sentence: format!(
            "Only {} of the values of job `{job}` are the database's.",
            percent(ratio)
        ),
        reason: Some(format!(
            "{} of {} compared keys differed",
            count(audited.equal.whole - audited.equal.part),
            count(audited.equal.whole)
        )),
        since: None,
        next_step: format!("Run `preheat audit --job {job}` to see what differs."),
    };
    Some(trouble(TroubleKind::Inconsistent, (LinkKind::Audit, Some(job.as_str())), says))
}

fn paused(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    let pause = status.pause.as_ref()?;
    let next_step = match pause.until {
        Some(until) => format!("The pause ends at {}.", moment(until, facts.now)),
        None => "Somebody has to resume it.".to_owned(),
    };
    let says = Says {
        sentence: format!("Job `{job}` is paused ({}: {}).", pause.by, pause.note),
        reason: None,
        since: Some(pause.since),
        next_step,
    };
    Some(trouble(TroubleKind::Paused, (LinkKind::Job, Some(job.as_str())), says))
}

fn never_ran(facts: &Facts, status: &JobStatus) -> Option<Trouble> {
    let job = &status.job.name;
    if !facts.never_ran(job) {
        return None;
    }
    let says = Says {
        sentence: format!("Job `{job}` has not run yet."),
        next_step: next_run(facts, status),
        ..Says::default()
    };
    Some(trouble(TroubleKind::NeverRan, (LinkKind::Job, Some(job.as_str())), says))
}

/// The verdict: what the worst kind of trouble comes to, or that all is well.
pub(super) fn verdict(facts: &Facts, troubles: &[Found]) -> Verdict {
    let Some(worst) = troubles.first() else { return all_is_well(facts) };
    let kind = worst.trouble.kind;
    let count = troubles.iter().filter(|found| found.trouble.kind == kind).count() as u64;
    let sentence = if kind == TroubleKind::NotWarm {
        let tenants = facts.tenants_not_warm.max(1);
        let be = if tenants == 1 { "is" } else { "are" };
        format!("{} {be} not warm.", counted(tenants, "tenant", "tenants"))
    } else {
        let together = (count > 1).then(|| several(kind, count)).flatten();
        together.unwrap_or_else(|| worst.trouble.sentence.clone())
    };
    Verdict { level: worst.trouble.level, sentence }
}

/// What several troubles of one kind come to; `None` for kinds of which there is one at most.
fn several(kind: TroubleKind, jobs: u64) -> Option<String> {
    let jobs = count(jobs);
    Some(match kind {
        TroubleKind::JobHeld => format!("{jobs} jobs are held and do not run."),
        TroubleKind::JobLate => format!("{jobs} jobs are late."),
        TroubleKind::KeysExpire => format!("Keys of {jobs} jobs expire before the next runs."),
        TroubleKind::RunFailed => format!("The last runs of {jobs} jobs failed."),
        TroubleKind::CoverageLow => format!("Keys of {jobs} jobs are missing in the cache."),
        TroubleKind::Inconsistent => format!("Values of {jobs} jobs differ from the database."),
        TroubleKind::FileRejected => format!("{jobs} jobs run with older versions of their files."),
        TroubleKind::Paused => format!("{jobs} jobs are paused."),
        TroubleKind::NeverRan => format!("{jobs} jobs have not run yet."),
        TroubleKind::Draining
        | TroubleKind::SchedulerSilent
        | TroubleKind::DatabaseDown
        | TroubleKind::CacheDown
        | TroubleKind::CacheRefusesWrites
        | TroubleKind::SharesVacant
        | TroubleKind::NotWarm
        | TroubleKind::FeedDown
        | TroubleKind::FilesUnreadable
        | TroubleKind::Evicting
        | TroubleKind::HistoryLosing => return None,
    })
}

fn all_is_well(facts: &Facts) -> Verdict {
    let any = facts.jobs().any(|status| status.job.enabled);
    let (level, sentence) = match (any, facts.active) {
        (false, _) => (Level::Info, "No job is enabled.".to_owned()),
        // Only jobs without tenants, or those of a worker that has just started.
        (true, None) => (Level::Ok, "Everything is warm, as far as is known.".to_owned()),
        (true, Some(0)) => (Level::Info, "There are no active tenants.".to_owned()),
        (true, Some(1)) => (Level::Ok, "The only tenant is warm.".to_owned()),
        (true, Some(tenants)) => {
            let of_part = if facts.has_part() { " of this worker's part" } else { "" };
            (Level::Ok, format!("All {} tenants{of_part} are warm.", count(tenants)))
        }
    };
    Verdict { level, sentence }
}

/// The level of a job: that of its worst trouble.
pub(super) fn level(troubles: &[Found], job: &JobName) -> Level {
    let of_job = troubles.iter().filter(|found| found.job.as_ref() == Some(job));
    of_job.map(|found| found.trouble.level).max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests;
