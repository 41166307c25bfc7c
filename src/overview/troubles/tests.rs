use super::*;
use crate::domain::job::{Job, JobName};
use crate::domain::pause::{Note, Pause};
use crate::domain::report::{Failure, FailureKind};
use crate::domain::run::{RunFailure, RunId};
use crate::domain::share::Shares;
use crate::domain::who::Who;
use crate::engine::schedule::status::{RejectedFor, Rejection};
use crate::observe::figures::{Audited, Share};
use crate::overview::testing::{at, change, facts, name, noon, not_warm};
use std::sync::Arc;
use std::time::Duration;

fn said(facts: &Facts) -> (Level, String) {
    let troubles = find(facts);
    let Verdict { level, sentence } = verdict(facts, &troubles);
    (level, sentence)
}

/// The only trouble, as a page shows it.
fn shown(facts: &Facts) -> String {
    let troubles = find(facts);
    assert_eq!(troubles.len(), 1, "{:?}", troubles.iter().map(|f| &f.trouble).collect::<Vec<_>>());
    let Trouble { level, kind: _, sentence, reason, since, link, next_step } = &troubles[0].trouble;
    let reason = reason.as_deref().unwrap_or("-");
    let since = since.map_or_else(|| "-".to_owned(), |since| since.0.format("%H:%M").to_string());
    let link = format!("{:?} {}", link.kind, link.name.as_deref().unwrap_or("-"));
    format!("{level:?} | {sentence} | {reason} | since {since} | {link} | {next_step}")
}

#[expect(clippy::unnecessary_wraps, reason = "it is the value of a field")]
fn down() -> Option<Since> {
    Some(Since { at: at("11:58"), message: "connection refused".to_owned() })
}

fn pause(facts: &mut Facts, job: &str) {
    change(facts, job, |status| {
        status.next_due_at = None;
        status.pause = Some(Pause {
            note: Note::parse("migration").unwrap(),
            by: Who::named("Ann").unwrap(),
            since: at("11:30"),
            until: Some(at("13:00")),
        });
    });
}

fn reject(facts: &mut Facts, job: &str, older_in_use: bool) {
    let problem = RejectedFor {
        file: "jobs/a.toml".to_owned(),
        line: Some(3),
        message: "no column `x`".to_owned(),
        hint: Some("name a column that is there".to_owned()),
    };
    let rejection = Rejection { problems: vec![problem], older_in_use };
    let status = Arc::get_mut(&mut facts.status).unwrap();
    status.rejections.insert(name(job), rejection);
    let of_job = status.jobs.get_mut(&name(job)).unwrap();
    of_job.job = Arc::new(Job { enabled: older_in_use, ..(*of_job.job).clone() });
}

fn fail(facts: &mut Facts, job: &str, outcome: Outcome) {
    let failure = Failure::new(FailureKind::Tenants, None, "relation is gone".to_owned());
    let recent = facts.recent.get_mut(&name(job)).unwrap();
    recent.failure = Some(RunFailure {
        run: RunId(uuid::Uuid::nil()),
        finished_at: at("11:59"),
        outcome,
        failure: Some(failure),
    });
}

fn late(facts: &mut Facts, job: &str) {
    let recent = facts.recent.get_mut(&name(job)).unwrap();
    recent.last_success_at = Some(at("11:00"));
}

fn audited(equal: u64) -> Audited {
    let equal = Share { part: equal, whole: 10_000 };
    Audited { at: noon(), tenants: 20, equal, findings: equal.whole - equal.part }
}

#[test]
fn all_is_well_in_one_sentence() {
    let mut facts = facts(&["a", "b"]);
    assert_eq!(said(&facts), (Level::Ok, "All 5,000 tenants are warm.".to_owned()));
    Arc::get_mut(&mut facts.status).unwrap().shares = Some(Shares::from_bits(0b11));
    assert_eq!(said(&facts).1, "All 5,000 tenants of this worker's part are warm.");
    facts.active = Some(1);
    assert_eq!(said(&facts).1, "The only tenant is warm.");
    facts.active = Some(0);
    assert_eq!(said(&facts), (Level::Info, "There are no active tenants.".to_owned()));
    facts.active = None;
    assert_eq!(said(&facts).1, "Everything is warm, as far as is known.");
    let none = crate::overview::testing::facts(&[]);
    assert_eq!(said(&none), (Level::Info, "No job is enabled.".to_owned()));
}

type Mend = fn(&mut Facts);

/// From the worst to the most harmless.
const ALL: [(TroubleKind, Mend); 20] = [
    (TroubleKind::Draining, |facts| {
        Arc::get_mut(&mut facts.status).unwrap().phase = Phase::Draining;
    }),
    (TroubleKind::SchedulerSilent, |facts| {
        facts.health.scheduler.silent_for = Duration::from_mins(2);
    }),
    (TroubleKind::DatabaseDown, |facts| facts.database_down = down()),
    (TroubleKind::CacheDown, |facts| facts.cache_down = down()),
    (TroubleKind::CacheRefusesWrites, |facts| facts.writes_refused = true),
    (TroubleKind::SharesVacant, |facts| facts.vacant = Shares::from_bits(0b1111_0000)),
    (TroubleKind::JobHeld, |facts| reject(facts, "a", false)),
    (TroubleKind::JobLate, |facts| late(facts, "a")),
    (TroubleKind::KeysExpire, |facts| {
        facts.recent.get_mut(&name("a")).unwrap().last_full.as_mut().unwrap().started_at =
            at("11:35");
    }),
    (TroubleKind::RunFailed, |facts| fail(facts, "a", Outcome::Failed)),
    (TroubleKind::NotWarm, |facts| not_warm(facts, "a", 19)),
    (TroubleKind::CoverageLow, |facts| {
        facts.coverage.insert(name("a"), Share { part: 150, whole: 200 });
    }),
    (TroubleKind::Inconsistent, |facts| {
        facts.audits.insert(name("a"), audited(9_985));
    }),
    (TroubleKind::FeedDown, |facts| {
        facts.feed.listens = Some(false);
        facts.feed.reason = Some("no route to host".to_owned());
        facts.feed.since = Some(at("11:50"));
    }),
    (TroubleKind::FileRejected, |facts| reject(facts, "b", true)),
    (TroubleKind::FilesUnreadable, |facts| {
        let problem = |line, message: &str| RejectedFor {
            file: "jobs/b.toml".to_owned(),
            line,
            message: message.to_owned(),
            hint: None,
        };
        facts.unreadable =
            vec![problem(Some(4), "`every banana` is no schedule"), problem(None, "no")];
    }),
    (TroubleKind::Evicting, |facts| facts.usage.evicted_last_hour = 1_234),
    (TroubleKind::HistoryLosing, |facts| facts.history_away = down()),
    (TroubleKind::Paused, |facts| pause(facts, "b")),
    (TroubleKind::NeverRan, |facts| {
        facts.recent.get_mut(&name("a")).unwrap().runs.clear();
    }),
];

#[test]
fn each_trouble_has_its_sentence_its_reason_its_link_and_a_next_step() {
    let mut lines = Vec::new();
    for (kind, mend) in ALL {
        let mut facts = facts(&["a", "b"]);
        mend(&mut facts);
        let troubles = find(&facts);
        assert_eq!(troubles[0].trouble.kind, kind);
        lines.push(shown(&facts));
        let expected = if kind == TroubleKind::NotWarm {
            "19 tenants are not warm.".to_owned()
        } else {
            troubles[0].trouble.sentence.clone()
        };
        assert_eq!(said(&facts), (kind.level(), expected));
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_worst_trouble_is_the_verdict() {
    for (place, (kind, mend)) in ALL.iter().enumerate() {
        // On jobs of their own, so that one trouble does not hide another.
        let mut facts = facts(&["a", "b"]);
        for (_, milder) in ALL.iter().skip(place + 1).rev() {
            milder(&mut facts);
        }
        mend(&mut facts);
        let found: Vec<TroubleKind> = find(&facts).iter().map(|one| one.trouble.kind).collect();
        assert_eq!(found[0], *kind, "{found:?}");
        assert!(found.is_sorted(), "{found:?}");
    }
}

#[test]
fn several_jobs_in_the_same_trouble_are_counted() {
    let two = |mend: fn(&mut Facts, &str)| {
        let mut facts = facts(&["a", "b", "c"]);
        mend(&mut facts, "a");
        mend(&mut facts, "b");
        said(&facts).1
    };
    assert_eq!(two(late), "2 jobs are late.");
    assert_eq!(two(pause), "2 jobs are paused.");
    assert_eq!(two(|facts, job| reject(facts, job, false)), "2 jobs are held and do not run.");
    let failed = two(|facts, job| fail(facts, job, Outcome::Timeout));
    assert_eq!(failed, "The last runs of 2 jobs failed.");
    let same = two(|facts, job| not_warm(facts, job, 7));
    assert_eq!(same, "7 tenants are not warm.", "the same seven in both jobs");
}

#[test]
fn a_database_that_is_down_comes_with_how_long_the_keys_live() {
    let mut facts = facts(&["a"]);
    facts.database_down = down();
    assert_eq!(said(&facts).1, "Database down for 2 min; keys live until 12:25 UTC.");
    facts.now = at("12:26");
    late(&mut facts, "a");
    assert_eq!(said(&facts).1, "Database down for 28 min; keys expire since 12:25 UTC.");
    facts.recent.clear();
    assert_eq!(said(&facts).1, "Database down for 28 min.");
}

#[test]
fn one_tenant_is_one_and_unverified_ones_have_their_reason() {
    let mut facts = facts(&["a"]);
    not_warm(&mut facts, "a", 1);
    let of_job = facts.not_warm.get_mut(&name("a")).unwrap();
    of_job.next_try_at = None;
    of_job.summary.as_mut().unwrap().reason = Reason::Unverified;
    assert_eq!(said(&facts).1, "1 tenant is not warm.");
    let trouble = &find(&facts)[0].trouble;
    assert_eq!(trouble.sentence, "1 tenant of job `a` is not warm.");
    assert_eq!(trouble.reason.as_deref(), Some("division by zero"));
    assert_eq!(trouble.next_step, "Tried 3 times. It runs next at 12:10 UTC.");
}

#[test]
fn nothing_is_late_or_expires_that_nobody_wants() {
    let mut facts = facts(&["a"]);
    late(&mut facts, "a");
    pause(&mut facts, "a");
    let kinds: Vec<_> = find(&facts).iter().map(|found| found.trouble.kind).collect();
    assert_eq!(kinds, [TroubleKind::Paused]);
    let job: JobName = name("a");
    let status = &facts.status.jobs[&job];
    assert_eq!(facts.deadlines(status).late_after, None);
    assert_eq!(facts.deadlines(status).ttl_margin, None);
    assert_eq!(facts.deadlines(status).expires_at, Some(at("12:25")), "that is a fact");
    assert_eq!(level(&find(&facts), &job), Level::Info);
    assert_eq!(level(&find(&facts), &name("b")), Level::Ok);
}
