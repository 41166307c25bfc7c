//! The results of an audit, which compares the cache with the database key by key. Pure.
//!
//! A key that differs is at first a suspect. The audit reads database and cache again after each of the
//! [`WINDOWS`], and the suspect becomes a finding only if it still differs, so that a write in flight
//! is not a finding. The method comes from Polaris, which watches the caches of Meta ("Cache made
//! consistent", Engineering at Meta, 2022), and so does the form of the result: N nines of consistency
//! within M seconds.

mod json;
mod judge;

use std::fmt;
use std::time::Duration;

pub use json::{Difference, Differences};
pub use judge::{
    Beginning, Held, Keep, Kind, MAX_VALUE, Marks, Measure, Values, Wrong, WrongTtl, judge,
};

use super::duration;
use super::job::{JobName, Share};
use super::report::{Failure, merge};

/// The times after the first look at which the audit looks at a suspect again.
pub const WINDOWS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_mins(1)];

/// The index of the last window in `equal_within`, in which all later times count too.
const LAST: usize = WINDOWS.len();

/// How many findings of a job are described; the others are only counted.
pub const MAX_FINDINGS: usize = 20;

/// The result of an audit for one job.
#[derive(Clone, Debug)]
pub struct JobAudit {
    /// The job.
    pub job: JobName,
    /// How many tenants the audit should read; a job without tenants counts as one.
    pub tenants: u64,
    /// How many of these tenants it could not read.
    pub tenants_failed: u64,
    /// Keys, counted by result.
    pub counts: AuditCounts,
    /// The largest time by which the newest row of a stale value is older than the database's; `None`
    /// if no stale value has such a time.
    pub most_behind: Option<Duration>,
    /// Whether the audit looked at suspects again.
    pub rechecked: bool,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// Why some keys could not be compared.
    pub failures: Vec<Failure>,
}

/// Keys, counted by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Expected keys whose value equals the database's: first those that were equal at the first look,
    /// then one number for each window, of the keys that became equal within it.
    pub equal_within: [u64; 1 + LAST],
    /// Keys whose value differs from the database's.
    pub stale: u64,
    /// Keys that should be there, but are not.
    pub missing: u64,
    /// Keys that are there, but should not be.
    pub orphaned: u64,
    /// How many of the equal keys live too long.
    pub wrong_ttl: u64,
    /// Keys that differed at each look, with other values on both sides each time. Their data changes
    /// too often to be judged, and no other count includes them.
    pub changing: u64,
    /// Findings that the audit did not look at again, because there were too many suspects.
    pub unchecked: u64,
    /// How long after the first look the last key was found to be equal, if that was later than the last
    /// window.
    pub latest: Duration,
}

/// A key that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key, without the cache's prefix.
    pub key: String,
    /// The key's tenant; `None` for a job without tenants.
    pub tenant: Option<String>,
    /// What is wrong with it.
    pub wrong: Wrong,
}

impl AuditCounts {
    /// Counts a key that was found to be equal this long after the first look; zero is the first look.
    pub fn equal(&mut self, after: Duration) {
        // A look starts a little late: up to a tenth of the window later still counts.
        let late = |window: Duration| after > window + window / 10;
        let window = WINDOWS.iter().take_while(|window| late(**window)).count() + 1;
        let window = if after.is_zero() { 0 } else { window.min(LAST) };
        if let Some(count) = self.equal_within.get_mut(window) {
            *count += 1;
        }
        if WINDOWS.iter().all(|window| late(*window)) {
            self.latest = self.latest.max(after);
        }
    }

    /// Counts a wrong key. A key with a wrong TTL still has an equal value, and was found to be equal
    /// `equal_after` the first look.
    pub fn wrong(&mut self, kind: Kind, equal_after: Duration) {
        match kind {
            Kind::Stale => self.stale += 1,
            Kind::Missing => self.missing += 1,
            Kind::Orphaned => self.orphaned += 1,
            Kind::WrongTtl => {
                self.wrong_ttl += 1;
                self.equal(equal_after);
            }
        }
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        let Self { equal_within, stale, missing, orphaned, wrong_ttl, changing, unchecked, latest } =
            other;
        for (sum, count) in self.equal_within.iter_mut().zip(equal_within) {
            *sum += count;
        }
        self.stale += stale;
        self.missing += missing;
        self.orphaned += orphaned;
        self.wrong_ttl += wrong_ttl;
        self.changing += changing;
        self.unchecked += unchecked;
        self.latest = self.latest.max(*latest);
    }

    /// Keys that should be there and could be judged.
    pub fn expected(&self) -> u64 {
        self.present() + self.missing
    }

    /// Expected keys that are there.
    pub fn present(&self) -> u64 {
        self.all_equal() + self.stale
    }

    /// Expected keys whose value equals the database's.
    pub fn all_equal(&self) -> u64 {
        self.equal_within.iter().sum()
    }

    /// All keys that are wrong.
    pub fn findings(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.of_kind(*kind)).sum()
    }

    /// Keys that are wrong in this way.
    pub fn of_kind(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Stale => self.stale,
            Kind::Missing => self.missing,
            Kind::Orphaned => self.orphaned,
            Kind::WrongTtl => self.wrong_ttl,
        }
    }

    /// The share of the expected keys that are there; `None` if no key is expected.
    pub fn coverage(&self) -> Option<f64> {
        ratio(self.present(), self.expected())
    }

    /// The share of the expected keys whose value equals the database's; `None` if no key is expected.
    pub fn consistency(&self) -> Option<f64> {
        ratio(self.all_equal(), self.expected())
    }

    /// Whether the findings are few enough for a threshold, which is the share of the expected keys
    /// that must be right. If no key is expected, one orphan is too many.
    pub fn is_within(&self, threshold: Share) -> bool {
        // A share such as 99.9 % has no exact binary fraction, so a millionth of a key does not count.
        const ROUNDING: f64 = 1e-6;
        let left = (1.0 - threshold.fraction()) * float(self.expected());
        float(self.findings()) <= left + ROUNDING
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of keys are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| float(part) / float(whole))
}

impl JobAudit {
    /// The empty result for a job, before the first look.
    pub fn new(job: JobName, rechecked: bool) -> Self {
        Self {
            job,
            tenants: 0,
            tenants_failed: 0,
            counts: AuditCounts::default(),
            most_behind: None,
            rechecked,
            findings: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The same without its findings, which hold pieces of values.
    #[must_use]
    pub fn without_findings(&self) -> Self {
        let Self { job, failures, .. } = self;
        let (job, failures) = (job.clone(), failures.clone());
        Self { job, failures, findings: Vec::new(), ..*self }
    }

    /// Adds a wrong key: see [`AuditCounts::wrong`].
    pub fn find(&mut self, finding: Finding, equal_after: Duration) {
        self.counts.wrong(finding.wrong.kind, equal_after);
        self.most_behind = self.most_behind.max(finding.wrong.behind);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// Adds reasons why some keys could not be compared.
    pub fn fail(&mut self, failures: impl IntoIterator<Item = Failure>) {
        for failure in failures {
            merge(&mut self.failures, failure);
        }
    }

    /// Whether all keys could be compared, and enough of them are right.
    pub fn is_within(&self, threshold: Share) -> bool {
        self.failures.is_empty() && self.counts.is_within(threshold)
    }

    /// The time within which the equal keys became equal; `None` if there was only one look.
    pub fn within(&self) -> Option<Duration> {
        let last = WINDOWS.last().copied().unwrap_or_default();
        self.rechecked.then(|| last.max(self.counts.latest))
    }
}

/// How consistent a job is, in nines: `99.99 % (4 nines) consistent within 60s`.
impl fmt::Display for JobAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (equal, expected) = (self.counts.all_equal(), self.counts.expected());
        if expected == 0 {
            return f.write_str("no key was expected");
        }
        f.write_str(&percent(equal, expected))?;
        match nines(equal, expected) {
            None | Some(0) => {}
            Some(1) => f.write_str(" (1 nine)")?,
            Some(nines) => write!(f, " ({nines} nines)")?,
        }
        match self.within() {
            Some(within) => write!(f, " consistent within {}s", within.as_secs_f64().ceil()),
            None => f.write_str(" consistent at the first look"),
        }
    }
}

/// How many nines a share has: 4 for 0.9999. `None` if the part is the whole.
pub fn nines(part: u64, whole: u64) -> Option<u32> {
    let rest = u128::from(whole.checked_sub(part).filter(|rest| *rest > 0)?);
    Some((u128::from(whole) / rest).checked_ilog10().unwrap_or(0))
}

/// A share in per cent, never rounded up, so that only a complete share is shown as `100 %`.
pub fn percent(part: u64, whole: u64) -> String {
    const HUNDRED: usize = 2;
    let digits = nines(part, whole).map_or(0, |nines| nines as usize).max(HUNDRED + 2);
    let scale = 10_u128.pow(u32::try_from(digits).unwrap_or(u32::MAX).min(30));
    let scaled = u128::from(part) * scale / u128::from(whole.max(1));
    let text = format!("{scaled:0width$}", width = digits - HUNDRED + 1);
    let (before, after) =
        text.split_at_checked(text.len() - (digits - HUNDRED)).unwrap_or_default();
    let after = after.trim_end_matches('0');
    if after.is_empty() { format!("{before} %") } else { format!("{before}.{after} %") }
}

impl fmt::Display for WrongTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = duration::text(self.most);
        match self.left {
            None => write!(f, "it never expires: its job gives at most {most}"),
            Some(left) => {
                write!(f, "it lives for {}: its job gives at most {most}", duration::text(left))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn audit() -> JobAudit {
        JobAudit::new(JobName::parse("products").unwrap(), true)
    }

    fn share(percent: f64) -> Share {
        Share::from_percent(percent).unwrap()
    }

    #[test]
    fn counts_add_up() {
        let mut counts = AuditCounts::default();
        counts.equal(Duration::ZERO);
        counts.equal(SECOND);
        counts.equal(10 * SECOND);
        counts.wrong(Kind::Stale, SECOND);
        counts.wrong(Kind::Missing, SECOND);
        counts.wrong(Kind::Orphaned, SECOND);
        counts.wrong(Kind::WrongTtl, 60 * SECOND);
        assert_eq!(counts.equal_within, [1, 1, 1, 1]);
        assert_eq!((counts.expected(), counts.present(), counts.all_equal()), (6, 5, 4));
        assert_eq!(counts.findings(), 4);
        let mut both = counts;
        both.add(&counts);
        assert_eq!((both.expected(), both.findings(), both.orphaned), (12, 8, 2));
        assert!((both.coverage().unwrap() - 5.0 / 6.0).abs() < 1e-9);
        assert!((both.consistency().unwrap() - 4.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn what_came_to_be_equal_counts_in_its_window_and_later_says_when() {
        let mut counts = AuditCounts::default();
        for seconds in [1.05, 3.0, 10.9, 59.0, 65.0, 300.5] {
            counts.equal(Duration::from_secs_f64(seconds));
        }
        assert_eq!(counts.equal_within, [0, 1, 2, 3]);
        let audit = JobAudit { counts, ..audit() };
        assert_eq!(audit.to_string(), "100 % consistent within 301s");
    }

    #[test]
    fn nines_are_counted_and_never_rounded_up() {
        for (equal, expected, text) in [
            (10_000, 10_000, "100 %"),
            (9_999, 10_000, "99.99 % (4 nines)"),
            (99_985, 100_000, "99.98 % (3 nines)"),
            (9_999_999, 10_000_000, "99.99999 % (7 nines)"),
            (999, 1_000, "99.9 % (3 nines)"),
            (9, 10, "90 % (1 nine)"),
            (2, 3, "66.66 %"),
            (1, 20_000, "0 %"),
            (1, 200, "0.5 %"),
            (0, 7, "0 %"),
            (u64::MAX - 1, u64::MAX, "99.99999999999999999 % (19 nines)"),
        ] {
            let mut audit = audit();
            audit.counts.equal_within[0] = equal;
            audit.counts.stale = expected - equal;
            assert_eq!(audit.to_string(), format!("{text} consistent within 60s"));
        }
        let quick = JobAudit { rechecked: false, ..audit() };
        assert_eq!(quick.to_string(), "no key was expected");
        let mut quick = quick;
        quick.counts.equal(Duration::ZERO);
        assert_eq!(quick.to_string(), "100 % consistent at the first look");
    }

    #[test]
    fn the_threshold_is_a_share_of_the_expected_keys() {
        let mut counts = AuditCounts { stale: 1, ..AuditCounts::default() };
        counts.equal_within[0] = 999;
        assert!(counts.is_within(share(99.9)));
        assert!(!counts.is_within(share(99.91)));
        counts.orphaned = 1;
        assert!(!counts.is_within(share(99.9)), "an orphan is a finding too");
        let orphan = AuditCounts { orphaned: 1, ..AuditCounts::default() };
        assert!(!orphan.is_within(Share::NONE), "of nothing, even one is too many");
        assert!(AuditCounts::default().is_within(share(100.0)));
    }

    #[test]
    fn what_could_not_be_compared_is_never_within_a_threshold() {
        use crate::domain::report::FailureKind;
        let mut audit = audit();
        assert!(audit.is_within(share(100.0)));
        audit.fail([Failure::new(FailureKind::Query, None, "division by zero".to_owned())]);
        assert!(!audit.is_within(Share::NONE));
    }

    #[test]
    fn a_wrong_life_is_said_in_words() {
        let most = Duration::from_mins(30);
        let text = |left| WrongTtl { left, most }.to_string();
        assert_eq!(text(None), "it never expires: its job gives at most 30m");
        assert_eq!(text(Some(most * 2)), "it lives for 1h: its job gives at most 30m");
    }
}
