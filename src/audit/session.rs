//! One audit under way: the first look at each key, and later looks at the suspects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::examine::{Examiner, KeyFilter, Look};
use super::{AuditError, KeyAnswer, KeyState, Pace};
use crate::domain::audit::{Finding, JobAudit, Kind, MAX_FINDINGS, WINDOWS, Wrong};
use crate::domain::job::{Job, Scope};
use crate::domain::tenant::{Batch, TenantId, Tenants};
use crate::engine::ports::Clock;
use crate::engine::run::Runner;
use crate::engine::run::retry::{Patience, Refusal};

/// How many suspects of one job are looked at again; further ones are only counted. At a few hundred bytes
/// each they take less memory than a batch.
pub const MAX_SUSPECTS: usize = 1_000;
/// How often the tenant list is read again after a failure that may pass.
const TENANTS_RETRIES: u32 = 3;

/// An audit under way.
pub(super) struct Session<'a> {
    runner: &'a Runner,
    pace: Pace,
    pub(super) jobs: Vec<JobUnderAudit>,
    /// The suspects to look at again, by the moment of that look and then in the order of their discovery.
    waiting: BTreeMap<(Duration, u64), Recheck>,
    recheck_count: u64,
    rests_until: Duration,
}

/// A job that is audited, and its figures so far.
pub(super) struct JobUnderAudit {
    pub(super) audit: JobAudit,
    examiner: Examiner,
}

/// Which of the waiting suspects to look at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Those whose next look is due.
    Now,
    /// All of them, each when it is due.
    All,
}

/// The tenant that a key belongs to; `None` for a key of a global job.
pub(super) struct KeyOwner(pub(super) Option<String>);

/// Suspects of one batch.
struct Recheck {
    /// The position of their job in the session.
    index: usize,
    suspects: Vec<Suspect>,
    /// When the first look was.
    seen_at: Duration,
    /// The number of its next window.
    round: usize,
}

/// A key that was wrong at every look so far.
struct Suspect {
    finding: Finding,
    /// Whether both the database's and the cache's value changed between two looks.
    moved: bool,
    /// For a suspect with only a wrong TTL: how long after the first look its value was equal.
    equal_after: Option<Duration>,
}

impl Suspect {
    fn new(finding: Finding) -> Self {
        let equal_after = (finding.wrong.kind == Kind::WrongTtl).then_some(Duration::ZERO);
        Self { finding, moved: false, equal_after }
    }

    /// Records that it is still wrong, in the same way or another.
    fn still(&mut self, wrong: Wrong, after: Duration) {
        let before = &self.finding.wrong;
        let is_life = |wrong: &Wrong| wrong.kind == Kind::WrongTtl;
        // A wrong TTL stays a finding whatever the value is.
        let is_same = is_life(before) && is_life(&wrong);
        self.moved |= !is_same && wrong.marks.both_moved(before.marks);
        self.equal_after = is_life(&wrong).then(|| self.equal_after.unwrap_or(after));
        self.finding.wrong = wrong;
    }
}

impl JobUnderAudit {
    pub(super) fn new(examiner: Examiner, rechecks: bool) -> Self {
        Self { audit: JobAudit::new(examiner.job().name.clone(), rechecks), examiner }
    }

    fn conclude(&mut self, suspect: Suspect) {
        let Suspect { finding, moved, equal_after } = suspect;
        if moved {
            self.audit.counts.changing += 1;
        } else {
            self.audit.find(finding, equal_after.unwrap_or_default());
        }
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(runner: &'a Runner, pace: Pace) -> Self {
        Self {
            runner,
            pace,
            jobs: Vec::new(),
            waiting: BTreeMap::new(),
            recheck_count: 0,
            rests_until: Duration::ZERO,
        }
    }

    /// The active tenants, if one of the jobs has tenants.
    pub(super) async fn tenants(&mut self, jobs: &[Arc<Job>]) -> Result<Arc<Tenants>, AuditError> {
        if jobs.iter().all(|job| job.scope == Scope::Global) {
            return Ok(Arc::default());
        }
        Ok(Arc::new(self.read_tenants(None).await?))
    }

    /// The active tenants: all, or those among `ids`.
    async fn read_tenants(&self, ids: Option<&[TenantId]>) -> Result<Tenants, AuditError> {
        let runner = self.runner;
        let mut patience = Patience::new(TENANTS_RETRIES);
        loop {
            let read = match ids {
                Some(ids) => runner.reader.tenants_among(ids).await,
                None => runner.reader.tenants().await,
            };
            let Err(error) = read else { return Ok(read?) };
            if !patience.again(runner, &Refusal::from(error.clone())).await {
                return Err(error.into());
            }
        }
    }

    /// The batches of a job: of all its tenants, or of a random sample. A tenant without a time zone, if the
    /// job needs one, is recorded as failed.
    pub(super) fn batches(
        &self,
        list: &Arc<Tenants>,
        sample: Option<NonZeroUsize>,
        job: &mut JobUnderAudit,
    ) -> Vec<Batch> {
        let JobUnderAudit { audit, examiner } = job;
        let clock = self.runner.clock.as_ref();
        if examiner.job().scope == Scope::Global {
            audit.tenants = 1;
            return examiner.batches(list, Vec::new(), clock);
        }
        // A tenant query with a join may name a tenant twice.
        let mut seen = HashSet::with_capacity(list.len());
        let first = list.iter().zip(0..).filter(|(tenant, _)| seen.insert(tenant.id()));
        let mut positions: Vec<u32> = first.map(|(_, position)| position).collect();
        if let Some(sample) = sample {
            choose(&mut positions, sample.get(), clock);
        }
        audit.tenants = positions.len() as u64;
        let batches = examiner.batches(list, positions, clock);
        let (failures, failed) = examiner.take_failures();
        audit.tenants_failed += failed;
        audit.fail(failures);
        batches
    }

    /// Looks at the keys of a batch. If only some keys are looked at, answers the owner of the first one that
    /// is found.
    pub(super) async fn first_look(
        &mut self,
        index: usize,
        batch: Batch,
        filter: KeyFilter<'_>,
    ) -> Result<Option<KeyOwner>, AuditError> {
        let waiting = self.waiting.values().filter(|recheck| recheck.index == index);
        let waiting: usize = waiting.map(|recheck| recheck.suspects.len()).sum();
        let room = MAX_SUSPECTS.saturating_sub(waiting);
        let work_began = self.begin().await;
        let Some(JobUnderAudit { audit, examiner }) = self.jobs.get_mut(index) else {
            return Ok(None);
        };
        examiner.decides(!audit.rechecked);
        let (mut suspects, mut owner) = (Vec::new(), None);
        let mut see = |look: Look<'_>| {
            if let KeyFilter::Only(_) = filter {
                owner.get_or_insert_with(|| KeyOwner(look.tenant_id()));
            }
            match look.wrong {
                None => audit.counts.equal(Duration::ZERO),
                Some(_) if audit.rechecked && suspects.len() >= room => {
                    audit.counts.unchecked += 1;
                    look.finding().into_iter().for_each(|one| audit.find(one, Duration::ZERO));
                }
                Some(_) => suspects.extend(look.finding().map(Suspect::new)),
            }
        };
        examiner.go(self.runner, batch, filter, &mut see).await?;
        let (failures, failed) = examiner.take_failures();
        audit.tenants_failed += failed;
        audit.fail(failures);
        self.end(work_began, index);
        let seen_at = self.runner.clock.monotonic();
        self.wait_or_conclude(Recheck { index, suspects, seen_at, round: 0 });
        Ok(owner)
    }

    /// Looks at suspects again until none is due.
    pub(super) async fn look_again(&mut self, due: Due) -> Result<(), AuditError> {
        while let Some((&(at, _), _)) = self.waiting.first_key_value() {
            let left = at.saturating_sub(self.runner.clock.monotonic());
            if !left.is_zero() && due == Due::Now {
                return Ok(());
            }
            self.runner.clock.sleep(left).await;
            if let Some((_, recheck)) = self.waiting.pop_first() {
                self.recheck(recheck).await?;
            }
        }
        Ok(())
    }

    async fn recheck(&mut self, recheck: Recheck) -> Result<(), AuditError> {
        let work_began = self.begin().await;
        let Recheck { index, suspects, seen_at, round } = recheck;
        let after = self.runner.clock.monotonic().saturating_sub(seen_at);
        let batches = self.batches_of(index, &suspects).await?;
        let keys: HashSet<String> =
            suspects.iter().map(|suspect| suspect.finding.key.clone()).collect();
        let mut left: HashMap<String, Suspect> =
            suspects.into_iter().map(|suspect| (suspect.finding.key.clone(), suspect)).collect();
        let Some(JobUnderAudit { audit, examiner }) = self.jobs.get_mut(index) else {
            return Ok(());
        };
        examiner.decides(round + 1 == WINDOWS.len());
        let mut still = Vec::new();
        let mut see = |look: Look<'_>| {
            let Some(mut suspect) = left.remove(look.key) else { return };
            match look.wrong {
                None => audit.counts.equal(suspect.equal_after.unwrap_or(after)),
                Some(mut wrong) => {
                    if still.len() >= MAX_FINDINGS {
                        // It will only be counted.
                        wrong.values = None;
                    }
                    suspect.still(wrong, after);
                    still.push(suspect);
                }
            }
        };
        for batch in batches {
            examiner.go(self.runner, batch, KeyFilter::Only(&keys), &mut see).await?;
        }
        let (failures, failed) = examiner.take_failures();
        audit.fail(failures);
        // A key that is neither expected nor in the cache is in order: a date has passed, or a tenant was
        // switched off. If a tenant could not be read, nothing is known.
        if failed > 0 {
            still.extend(left.into_values());
        }
        self.end(work_began, index);
        self.wait_or_conclude(Recheck { index, suspects: still, seen_at, round: round + 1 });
        Ok(())
    }

    /// The batches of those suspects' tenants that are still active.
    async fn batches_of(
        &mut self,
        index: usize,
        suspects: &[Suspect],
    ) -> Result<Vec<Batch>, AuditError> {
        let mut seen = HashSet::new();
        let tenants = suspects.iter().filter_map(|suspect| suspect.finding.tenant.as_deref());
        let ids: Vec<TenantId> = tenants.filter(|id| seen.insert(*id)).map(TenantId::new).collect();
        // The suspects of a job without tenants have no tenant.
        let list =
            if ids.is_empty() { Tenants::default() } else { self.read_tenants(Some(&ids)).await? };
        let positions: Vec<u32> = list.iter().zip(0..).map(|(_, position)| position).collect();
        let Some(JobUnderAudit { examiner, .. }) = self.jobs.get_mut(index) else {
            return Ok(Vec::new());
        };
        let batches = examiner.batches(&Arc::new(list), positions, self.runner.clock.as_ref());
        // Tenants without a time zone were recorded at the first look, or have lost their time zone since.
        drop(examiner.take_failures());
        Ok(batches)
    }

    fn wait_or_conclude(&mut self, recheck: Recheck) {
        let Some(job) = self.jobs.get_mut(recheck.index) else { return };
        let window = WINDOWS.get(recheck.round).filter(|_| job.audit.rechecked);
        match window {
            None => recheck.suspects.into_iter().for_each(|suspect| job.conclude(suspect)),
            Some(_) if recheck.suspects.is_empty() => {}
            Some(window) => {
                self.recheck_count += 1;
                self.waiting.insert((recheck.seen_at + *window, self.recheck_count), recheck);
            }
        }
    }

    /// The answer about the one key that was looked at.
    pub(super) async fn answer(
        mut self,
        index: usize,
        tenant: Option<String>,
    ) -> Result<KeyAnswer, AuditError> {
        let began = self.runner.clock.monotonic();
        self.look_again(Due::All).await?;
        let after = self.runner.clock.monotonic().saturating_sub(began);
        let failures = self.jobs.iter().flat_map(|job| job.audit.failures.clone()).collect();
        let Some(JobAudit { job, counts, findings, .. }) =
            self.jobs.into_iter().nth(index).map(|job| job.audit)
        else {
            let (owner, state) = (None, KeyState::Nowhere);
            return Ok(KeyAnswer { owner, state, after, failures });
        };
        let state = match findings.into_iter().next() {
            Some(finding) => KeyState::Wrong(finding),
            None if counts.changing > 0 => KeyState::Changing,
            None if counts.all_equal() > 0 => KeyState::Equal,
            None => KeyState::Nowhere,
        };
        Ok(KeyAnswer { owner: Some((job, tenant)), state, after, failures })
    }

    /// Waits as long as the pace asks for.
    pub(super) async fn rest(&self) {
        let rest = self.rests_until.saturating_sub(self.runner.clock.monotonic());
        self.runner.clock.sleep(rest).await;
    }

    async fn begin(&self) -> Duration {
        self.rest().await;
        self.runner.clock.monotonic()
    }

    /// Plans the rest for the work done since `began`. Waiting for a permit does not count as work.
    fn end(&mut self, began: Duration, index: usize) {
        let now = self.runner.clock.monotonic();
        let waited = self.jobs.get_mut(index).map(|job| job.examiner.take_waited());
        let busy = now.saturating_sub(began).saturating_sub(waited.unwrap_or_default());
        self.rests_until = now + self.pace.rest_after(busy);
    }
}

/// Keeps `count` random positions, in their order: the first steps of a shuffle (Durstenfeld, "Algorithm
/// 235: Random permutation", 1964).
fn choose(positions: &mut Vec<u32>, count: usize, clock: &dyn Clock) {
    let all = positions.len();
    for index in 0..count.min(all) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a random share of a number of tenants"
        )]
        let step = (clock.random() * (all - index) as f64) as usize;
        positions.swap(index, (index + step).min(all - 1));
    }
    positions.truncate(count);
    positions.sort_unstable();
}
