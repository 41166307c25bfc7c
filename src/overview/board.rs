//! Answers what an operator asks: gathers the facts and computes.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::day::{Day, JobSample, STEP, Sample};
use super::definition::fields;
use super::facts::{Deadlines, Facts, NotWarmOfJob, moment, told_since};
use super::fleet::{self, Fleet, FleetMember};
use super::job::next_due;
use super::text::millis;
use super::troubles::{Found, find, level, verdict};
use super::{
    Audit, BatchOfJob, CacheMemory, Changes, Comparison, Connections, DefinedField, Feed, Figures,
    JobDetail, JobLine, JobOfTenant, KeyOfTenant, Limits, Moment, Neighbors, NextHour,
    NotWarmTenant, NotWarmTenants, Origins, Overview, Privacy, Skip, TenantDetail, WarmState,
};
use crate::domain::deadline::percentile;
use crate::domain::fence::{Fence, fence_key};
use crate::domain::job::{DateZone, Dates, Job, JobName, Scope};
use crate::domain::run::{RunId, RunRecord};
use crate::domain::server::Server;
use crate::domain::share::Shares;
use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::engine::run::cache_usage::WINDOW;
use crate::engine::run::not_warm::{Listed, NotWarm, Owner, Wanted};
use crate::engine::run::{Runner, Stops};
use crate::engine::schedule::handle::{Handle, HistoryError, Pending};
use crate::engine::schedule::status::{JobStatus, RejectedFor};
use crate::observe::figures::{Audited, Share};

/// How many tenants that are not warm a job's page lists.
const NOT_WARM_OF_A_JOB: usize = 20;
/// How many keys of a tenant are looked at in one job, and how many of them are listed.
const MOST_LOOKED: usize = 1_000;
const MOST_LISTED: usize = 100;
/// How long the engine's loop may take to say what is pending: it answers within microseconds, or is stuck.
const PENDING_WITHIN: Duration = Duration::from_secs(1);

/// Answers what an operator asks.
pub struct Board {
    pub(super) runner: Arc<Runner>,
    pub(super) handle: Handle,
    day: Day,
    /// Where the values of the jobs come from; a job is missing if that is not known.
    origins: Mutex<BTreeMap<JobName, Origins>>,
    /// What is wrong with the job files that were read last, if the worker could not take them over.
    unreadable: Mutex<Vec<RejectedFor>>,
    /// The fleet, if the worker is a member of one.
    pub(super) fleet: Option<Fleet>,
}

impl Board {
    /// The board of a worker alone.
    pub fn new(runner: Arc<Runner>, handle: Handle) -> Arc<Self> {
        Self::of_member(runner, handle, None)
    }

    /// The board of a worker that is a member of a fleet, if it is.
    pub fn of_member(
        runner: Arc<Runner>,
        handle: Handle,
        member: Option<FleetMember>,
    ) -> Arc<Self> {
        let (origins, unreadable) = (Mutex::default(), Mutex::default());
        let fleet = member.map(Fleet::new);
        if fleet.is_some() {
            // The other members are told of the runs that end here.
            let clock = Arc::clone(&runner.clock);
            runner.metrics.news.start(move || clock.now());
        }
        Arc::new(Self { runner, handle, day: Day::default(), origins, unreadable, fleet })
    }

    /// Says where the values of the jobs in use come from.
    pub fn set_origins(&self, origins: BTreeMap<JobName, Origins>) {
        *self.origins.lock().unwrap_or_else(PoisonError::into_inner) = origins;
    }

    /// Says what is wrong with the job files that were read last; empty once they are taken over.
    pub fn set_unreadable(&self, problems: Vec<RejectedFor>) {
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }

    /// What is wrong with the job files that were read last. While there is something, the last good files stay in
    /// use, all of them.
    pub fn unreadable(&self) -> Vec<RejectedFor> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn definition(&self, job: &Job) -> Vec<DefinedField> {
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        fields(job, origins.get(&job.name), self.runner.limits.shares())
    }

    /// The whole worker at one glance.
    pub async fn overview(&self) -> Overview {
        let facts = self.facts().await;
        let troubles = find(&facts);
        let mut jobs = lines(&facts, &troubles);
        jobs.sort_by(|one, other| other.level.cmp(&one.level).then(one.name.cmp(&other.name)));
        Overview {
            as_of: Moment(facts.now),
            started_at: Moment(facts.status.started_at),
            replica: facts.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            verdict: verdict(&facts, &troubles),
            troubles: troubles.into_iter().map(|found| found.trouble).collect(),
            figures: Figures::of(&facts, &self.day),
            jobs,
            next_hour: NextHour::of(&facts),
            cache: CacheMemory::of(&facts, &self.day),
            feed: Feed::of(&facts),
        }
    }

    /// One job; `None` if there is none of that name.
    pub async fn job(&self, name: &JobName) -> Option<JobDetail> {
        let facts = self.facts().await;
        let status = facts.status.jobs.get(name)?;
        let troubles = find(&facts);
        let wanted =
            Wanted { job: Some(name.clone()), limit: NOT_WARM_OF_A_JOB, ..Wanted::default() };
        let recent = facts.recent(name).cloned().unwrap_or_default();
        let skip = |(at, reason): &(DateTime<Utc>, crate::domain::run::SkipReason)| Skip {
            at: Moment(*at),
            reason: reason.as_str().to_owned(),
        };
        Some(JobDetail {
            line: JobLine::of(&facts, status, level(&troubles, name)),
            next_due: next_due(status),
            skipped: recent.skips.iter().rev().map(skip).collect(),
            day: self.day.of_job(name),
            not_warm: self.not_warm(&wanted).await.tenants,
            batch: BatchOfJob::of(status),
            definition: self.definition(&status.job),
        })
    }

    /// What the verifier found at its last look at each job.
    pub async fn audit(&self, privacy: Privacy) -> Audit {
        let figures = self.runner.metrics.figures();
        // The findings are those of the last look, whenever that was; the page says when.
        let facts = Facts { audits: figures.audits(), ..self.facts().await };
        Audit::of(&facts, &figures.findings(), privacy)
    }

    /// What the change feed heard.
    pub async fn changes(&self) -> Changes {
        let (facts, figures) = (self.facts().await, self.runner.metrics.figures());
        Changes::of(&facts, &self.day, &figures.tables(), figures.last_resync())
    }

    /// The bounds that the worker keeps to, and the breakers of its servers.
    pub fn limits(&self, connections: Connections) -> Limits {
        Limits::of(&self.runner, self.handle.status().started_at, connections)
    }

    /// One page of the tenants that are not warm, those of all members of the fleet.
    pub async fn not_warm(&self, wanted: &Wanted) -> NotWarmTenants {
        let mut page = self.own_not_warm(wanted).await;
        let others = self.others();
        if !others.is_empty() {
            fleet::add_page(&mut page, &others, wanted);
        }
        page
    }

    pub(super) async fn own_not_warm(&self, wanted: &Wanted) -> NotWarmTenants {
        let page = self.runner.not_warm.page(wanted);
        let owners = page.tenants.iter().map(|one| (one.job.clone(), one.owner.clone()));
        let next_tries = self.pending(owners.collect()).await.map(|pending| pending.next_tries);
        let next_tries = next_tries.unwrap_or_default().into_iter().chain(std::iter::repeat(None));
        let unnamed = match wanted.reason {
            Some(_) => 0,
            None => self.runner.not_warm.unnamed(wanted.job.as_ref()),
        };
        let tenants = page.tenants.into_iter().zip(next_tries);
        let tenants: Vec<_> = tenants.map(|(one, next)| NotWarmTenant::new(one, next)).collect();
        NotWarmTenants {
            next: tenants.last().filter(|_| page.has_more).map(NotWarmTenant::cursor),
            tenants,
            total: page.total,
            more: unnamed,
            active: self.active(),
        }
    }

    /// The run beside others of its job.
    pub async fn beside(
        &self,
        run: &RunRecord,
    ) -> Result<(Neighbors, Option<Comparison>), HistoryError> {
        let beside = self.handle.beside(run).await?;
        let compared = beside.last_ok.as_ref().map(|before| Comparison::of(run, before));
        Ok((Neighbors { earlier: beside.earlier, later: beside.later }, compared))
    }

    /// Sets the metrics that follow from time and the last runs.
    pub fn show(&self) {
        let (status, recent) = (self.handle.status(), self.handle.recent().all());
        for (name, job) in &status.jobs {
            let told_since = told_since(self.fleet.is_some(), &status, &job.job);
            let deadlines = Deadlines::of(job, recent.get(name), told_since);
            self.runner.metrics.set_late_after(name, deadlines.late_after);
            self.runner.metrics.set_ttl_margin(name, deadlines.ttl_margin);
        }
    }

    /// Adds a value to each line of the day every five minutes, until the worker stops.
    pub async fn watch(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                let now = self.runner.clock.now();
                let step = TimeDelta::from_std(STEP).unwrap_or(TimeDelta::MAX);
                let left = i64::try_from(STEP.as_millis()).unwrap_or(i64::MAX);
                let left = left - now.timestamp_millis().rem_euclid(left);
                let pause = TimeDelta::milliseconds(left).min(step).to_std().unwrap_or(STEP);
                self.runner.clock.sleep(pause).await;
                self.sample();
            }
        };
        stops.until(for_ever).await;
    }

    fn sample(&self) {
        let (clock, figures) = (&self.runner.clock, self.runner.metrics.figures());
        let now = clock.now();
        let usage = self.runner.cache_process.usage.at(clock.monotonic());
        let lags = figures.lags_since(now - STEP);
        let (coverage, audits) = self.samples();
        let (status, recent) = (self.handle.status(), self.handle.recent().all());
        let of_job = |(name, job): (&JobName, &JobStatus)| {
            let told_since = told_since(self.fleet.is_some(), &status, &job.job);
            let deadlines = Deadlines::of(job, recent.get(name), told_since);
            let sample = JobSample {
                coverage: coverage.get(name).and_then(|share| share.ratio()),
                consistency: audits.get(name).and_then(|audited| audited.equal.ratio()),
                p95: deadlines.p95,
            };
            (name.clone(), sample)
        };
        let sample = Sample {
            counts: usage.total,
            memory: usage.last.map(|(_, stats)| stats.used_memory),
            p99: percentile(lags, 99),
            jobs: status.jobs.iter().map(of_job).collect(),
        };
        self.day.push(now, sample);
    }

    /// The coverage and what the verifier found. While a server is away, nobody knows what a sample would find now.
    pub(super) fn samples(&self) -> (BTreeMap<JobName, Share>, BTreeMap<JobName, Audited>) {
        let figures = self.runner.metrics.figures();
        let is_up = |server| figures.down(server).is_none();
        let coverage = is_up(Server::Cache).then(|| figures.coverage());
        let audits = (is_up(Server::Cache) && is_up(Server::Database)).then(|| figures.audits());
        (coverage.unwrap_or_default(), audits.unwrap_or_default())
    }

    /// The active tenants, or those of the worker's fixed part of them.
    fn active(&self) -> Option<u64> {
        let list = self.runner.list.last()?;
        let Some(part) = self.runner.ownership.fixed() else { return Some(list.len() as u64) };
        Some(list.iter().filter(|tenant| part.has_tenant(tenant.id())).count() as u64)
    }

    /// The shares that no member of the fleet holds; none if the worker is not a member, or has not heard of the others yet.
    fn vacant(&self) -> Shares {
        let others = self.fleet.as_ref().and_then(Fleet::others);
        others.map_or(Shares::NONE, |others| fleet::vacant(self.runner.ownership.held(), &others))
    }

    async fn pending(&self, of: Vec<(JobName, Owner)>) -> Option<Pending> {
        let answer = self.handle.pending(of);
        tokio::time::timeout(PENDING_WITHIN, answer).await.ok().flatten()
    }

    async fn facts(&self) -> Facts {
        let runner = &self.runner;
        let (now, figures) = (runner.clock.now(), runner.metrics.figures());
        let (coverage, audits) = self.samples();
        let counts = runner.not_warm.counts();
        let first: Vec<(JobName, Owner)> = counts
            .keys()
            .filter_map(|job| Some((job.clone(), first(&runner.not_warm, job)?)))
            .collect();
        let pending = self.pending(first.clone()).await;
        let next_tries: BTreeMap<JobName, Option<DateTime<Utc>>> = match &pending {
            Some(pending) => {
                let jobs = first.into_iter().map(|(job, _)| job);
                jobs.zip(pending.next_tries.iter().copied()).collect()
            }
            None => BTreeMap::new(),
        };
        let of_job = |(job, tenants): (JobName, u64)| {
            let summary = runner.not_warm.summary(&job);
            let next_try_at = next_tries.get(&job).copied().flatten();
            (job, NotWarmOfJob { tenants, summary, next_try_at })
        };
        let mut facts = Facts {
            now,
            replica: runner.replica.clone(),
            status: self.handle.status(),
            unreadable: self.unreadable(),
            health: self.handle.health(),
            recent: self.handle.recent().all(),
            not_warm: counts.into_iter().map(of_job).collect(),
            tenants_not_warm: runner.not_warm.tenants(),
            active: self.active(),
            vacant: self.vacant(),
            coverage,
            audits,
            usage: runner.cache_process.usage.at(runner.clock.monotonic()),
            reads: figures.reads(now),
            lags: figures.lags_since(now - WINDOW),
            feed: figures.feed(now),
            pending,
            database_down: figures.down(Server::Database),
            cache_down: figures.down(Server::Cache),
            history_away: figures.history_away(),
            writes_refused: runner.cache_writes.are_refused(),
            fleet: self.fleet_name().map(str::to_owned),
            elsewhere: BTreeMap::new(),
        };
        fleet::add(&mut facts, &self.others());
        facts
    }
}

/// What begins with the text that somebody looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    /// One of the last runs.
    Run(RunId),
    /// An active tenant.
    Tenant(TenantId),
}

impl Board {
    /// The tenant of this id; else the only active tenant, or the only one of the last runs, whose id begins with this
    /// text.
    pub fn beginning_with(&self, text: &str) -> Option<Sought> {
        if let Some(list) = self.runner.list.last() {
            let ids = || list.iter().map(|tenant| tenant.id()).filter(|id| id.starts_with(text));
            let found = ids().find(|id| *id == text).or_else(|| only(ids()));
            if let Some(id) = found {
                return Some(Sought::Tenant(TenantId::new(id)));
            }
        }
        let recent = self.handle.recent().all();
        let runs = recent.values().flat_map(|recent| recent.runs.iter().map(|run| run.id));
        only(runs.filter(|run| run.to_string().starts_with(text))).map(Sought::Run)
    }
}

/// The only item; `None` if there are several.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

fn lines(facts: &Facts, troubles: &[Found]) -> Vec<JobLine> {
    let line = |status: &JobStatus| JobLine::of(facts, status, level(troubles, &status.job.name));
    facts.jobs().map(line).collect()
}

/// The first tenant of a job that is not warm.
fn first(table: &NotWarm, job: &JobName) -> Option<Owner> {
    let wanted = Wanted { job: Some(job.clone()), limit: 1, ..Wanted::default() };
    table.page(&wanted).tenants.pop().map(|one| one.owner)
}

/// Reads a cursor; `None` if it is none.
pub fn read_cursor(text: &str) -> Option<(JobName, Owner)> {
    let (job, owner) = match text.split_once(':') {
        Some((job, tenant)) => (job, Some(TenantId::new(tenant))),
        None => (text, None),
    };
    Some((JobName::parse(job).ok()?, owner))
}

/// One tenant.
impl Board {
    /// Everything about one tenant; `None` if nobody knows it: it is neither active nor has it a fence or a key.
    pub async fn tenant(&self, id: &TenantId) -> Option<TenantDetail> {
        let list = self.runner.list.last();
        let known =
            list.as_deref().and_then(|list| list.iter().find(|one| one.id() == id.as_str()));
        let active = list.as_ref().map(|_| known.is_some());
        let fence = self.fence(id).await;
        // A departed tenant has no columns, but its keys may still be there.
        let alone = alone(id);
        let tenant = known.or_else(|| alone.get(0))?;
        let status = self.handle.status();
        let mut not_warm = self.not_warm_in(id).await;
        let mut jobs = Vec::new();
        for job in status.jobs.values().filter(|status| status.job.scope == Scope::Tenants) {
            let not_warm = not_warm.remove(&job.job.name);
            jobs.push(self.job_of_tenant(job, tenant, (active, not_warm)).await);
        }
        let is_known = known.is_some() || fence.is_some();
        let has_keys = jobs.iter().any(|job| job.keys_present > 0 || job.problem.is_some());
        if !is_known && !has_keys {
            return None;
        }
        let mut zones = status.jobs.values().filter_map(|status| match &status.job.dates {
            Some(Dates { zone: DateZone::TenantColumn(column), .. }) => Some(column.as_str()),
            Some(Dates { zone: DateZone::Fixed(_), .. }) | None => None,
        });
        let timezone = zones.find_map(|column| tenant.column(column));
        Some(TenantDetail {
            id: id.to_string(),
            active,
            timezone: timezone.map(str::to_owned),
            fence,
            last_change_at: moment(self.runner.last_changes.of(id)),
            jobs,
        })
    }

    async fn fence(&self, id: &TenantId) -> Option<i64> {
        let fences = self.runner.ledger.fences(&[fence_key(id.as_str())]).await.ok()?;
        match fences.first()? {
            Fence::At(number) => Some(*number),
            Fence::Missing => None,
        }
    }

    /// The jobs in which a tenant is not warm.
    async fn not_warm_in(&self, id: &TenantId) -> BTreeMap<JobName, NotWarmTenant> {
        let owner: Owner = Some(id.clone());
        let entries = self.runner.not_warm.of_tenant(&owner);
        if entries.is_empty() {
            return fleet::not_warm_in(&self.others(), id);
        }
        let of = entries.keys().map(|job| (job.clone(), owner.clone())).collect();
        let next_tries = self.pending(of).await.map(|pending| pending.next_tries);
        let next_tries = next_tries.unwrap_or_default().into_iter().chain(std::iter::repeat(None));
        let listed = entries.into_iter().zip(next_tries).map(|((job, entry), next)| {
            let listed = Listed { job: job.clone(), owner: owner.clone(), entry };
            (job, NotWarmTenant::new(listed, next))
        });
        listed.collect()
    }

    async fn job_of_tenant(
        &self,
        status: &JobStatus,
        tenant: Tenant<'_>,
        (active, not_warm): (Option<bool>, Option<NotWarmTenant>),
    ) -> JobOfTenant {
        let state = match (status.job.enabled, active, &not_warm) {
            (false, _, _) => WarmState::Off,
            (true, Some(false), _) => WarmState::NotActive,
            (true, _, Some(_)) => WarmState::NotWarm,
            (true, Some(true), None) if self.has_run(status) => WarmState::Warm,
            (true, Some(true) | None, None) => WarmState::Unknown,
        };
        let mut job = JobOfTenant {
            job: status.job.name.to_string(),
            state,
            not_warm,
            problem: None,
            keys_expected: 0,
            keys_present: 0,
            shortest_ttl_ms: None,
            keys: Vec::new(),
            more_keys: 0,
        };
        if let Err(problem) = self.look_at_keys(status, tenant, &mut job).await {
            job.problem = Some(problem);
            if job.state == WarmState::Warm {
                job.state = WarmState::Unknown;
            }
        }
        job
    }

    /// Whether a run of this worker has come to every tenant of the job.
    fn has_run(&self, status: &JobStatus) -> bool {
        let full = self.handle.recent().of(&status.job.name).last_full;
        full.is_some_and(|full| full.started_at >= self.handle.status().started_at)
    }

    async fn look_at_keys(
        &self,
        status: &JobStatus,
        tenant: Tenant<'_>,
        job: &mut JobOfTenant,
    ) -> Result<(), String> {
        let keys = self.runner.expected_keys(&status.job, tenant).await;
        let keys = keys.map_err(|error| error.message)?;
        // Two templates may give one key.
        let mut seen = HashSet::new();
        let keys: Vec<String> = keys.into_iter().filter(|key| seen.insert(key.clone())).collect();
        job.keys_expected = keys.len() as u64;
        let looked: Vec<String> = keys.iter().take(MOST_LOOKED).cloned().collect();
        let sizes = self.runner.cache.sizes(&looked).await.map_err(|error| error.message)?;
        let found = || sizes.iter().flatten();
        job.keys_present = found().count() as u64;
        job.shortest_ttl_ms = found().filter_map(|size| size.ttl).min().map(millis);
        let listed = looked.into_iter().zip(&sizes).take(MOST_LISTED);
        job.keys = listed
            .map(|(key, size)| KeyOfTenant {
                key,
                present: size.is_some(),
                ttl_ms: size.and_then(|size| size.ttl).map(millis),
                bytes: size.map(|size| size.bytes),
            })
            .collect();
        job.more_keys = job.keys_expected - job.keys.len() as u64;
        Ok(())
    }
}

fn alone(id: &TenantId) -> Tenants {
    let mut list = Tenants::with_columns([] as [&str; 0]);
    list.push(id.as_str(), []);
    list
}
