//! Removing keys so that nothing old comes back: the fences move first, then the keys go.
//!
//! A run that read before the fences moved sees that they did and reads again; what it had written
//! before is removed. So it is enough to move each fence once a request: whoever asks has committed.
//! Manifests of jobs that there are keep the names of what is removed: a run that reads its manifest
//! now and writes later must find every name in it that it will not add.

pub(crate) mod census;
mod report;
mod request;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use self::census::{Known, KnownError};
use self::request::{Named, Wanted};
use crate::audit::orphans::{Orphans, OrphansError};
use crate::domain::fence::{FLEET, fence_key, start_number};
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::key::is_own;
use crate::domain::layout::{Layout, Owner};
use crate::domain::manifest::manifest_key;
use crate::domain::owned::{known_keys, possible_dates};
use crate::domain::report::{Failure, FailureKind};
use crate::domain::tenant::{Tenant, TenantId};
use crate::engine::port::{CacheError, SourceError};
use crate::engine::run::{Runner, Stops};
use crate::observe::event;
use crate::observe::metric::Metrics;

pub use self::report::{Counted, InvalidateReport, Invalidated, OfJobs, Scanned, Touched};
pub use self::request::{
    InvalidateError, InvalidateRequest, MAX_NAMED, MAX_PATTERNS, MAX_TEXT_BYTES,
};

/// Keys that are removed, or fences that are moved, at once: others wait for the server meanwhile.
const SLICE: usize = 500;
/// Tenants whose keys are put together at once.
const TENANTS_AT_ONCE: usize = 100;
/// The rest between two slices, at least; it is as long as the slice before took, so that at most half
/// of the server's time goes into it.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// Removes keys on request.
pub struct Invalidator {
    runner: Arc<Runner>,
}

impl Invalidator {
    /// One with the runner's servers and jobs.
    pub fn new(runner: Arc<Runner>) -> Self {
        Self { runner }
    }

    /// Moves the fences and removes the keys. An error means that nothing was done; what failed later
    /// is in the report.
    pub async fn invalidate(
        &self,
        request: &InvalidateRequest,
        stops: &Stops,
    ) -> Result<Invalidated, InvalidateError> {
        let runner = &self.runner;
        let jobs = runner.jobs.get();
        let wanted = request.check(&jobs)?;
        let known = Arc::new(known(runner, &jobs, &wanted).await?);
        // The tenants were read: what their ids may be is known.
        let layout = runner.layout();
        let orphans =
            if wanted.orphans { Some(Orphans::of(runner, &jobs, &known).await?) } else { None };
        let mut work = Work {
            runner,
            jobs: &jobs,
            known: &known,
            layout: &layout,
            stops,
            moved: HashSet::new(),
            rested_at: runner.clock.monotonic(),
            done: Invalidated { report: InvalidateReport::of(request), ..Invalidated::default() },
        };
        if let Err(cut) = work.all(wanted, orphans).await {
            work.done.report.fail(cut.failure());
        }
        let mut done = work.done;
        done.touched.retain(|name, _| jobs.get(name).is_some_and(|job| job.enabled));
        tell(&done.report, &runner.metrics);
        Ok(done)
    }
}

fn tell(report: &InvalidateReport, metrics: &Metrics) {
    let InvalidateReport { removed, failed, fences, .. } = *report;
    let (by_job, failure) = (&report.by_job, report.failures.first());
    event::Invalidated { removed, failed, fences, by_job, failure }.emit(metrics);
}

/// The tenants that a request is about; those of keys are found by the templates.
async fn known(
    runner: &Arc<Runner>,
    jobs: &Jobs,
    wanted: &Wanted,
) -> Result<Known, InvalidateError> {
    let Wanted { keys, patterns, named, orphans } = wanted;
    let named_tenants = named.as_ref().and_then(|named| named.tenants.as_ref());
    let all_of_jobs = named.as_ref().is_some_and(|named| named.tenants.is_none());
    let ids: BTreeSet<TenantId> = named_tenants.into_iter().flatten().cloned().collect();
    let of_keys = owners_of_all(jobs, &runner.layout(), keys);
    let noted_columns = named.as_ref().is_some_and(|named| named.jobs.iter().any(has_columns));
    let mut known = match of_keys {
        Some(owners) if !all_of_jobs && patterns.is_empty() && !orphans => {
            let mut all = ids.clone();
            all.extend(owners);
            Known::some(runner, &all, noted_columns).await?
        }
        Some(_) | None => Known::all(runner).await?,
    };
    known.add(&ids);
    Ok(known)
}

/// The ids of tenants that keys may belong to; `None` where they may be anyone's.
fn owners_of_all(jobs: &Jobs, layout: &Layout, keys: &[String]) -> Option<BTreeSet<TenantId>> {
    let mut ids = BTreeSet::new();
    for job in jobs.values().filter(|job| job.scope == Scope::Tenants) {
        for (index, key) in
            (0..job.keys.len()).flat_map(|index| keys.iter().map(move |key| (index, key)))
        {
            match layout.owner(job, index, key) {
                Owner::Nobody => {}
                Owner::Tenant(id) => drop(ids.insert(TenantId::new(id))),
                Owner::WithColumn(..) | Owner::Anyone => return None,
            }
        }
    }
    Some(ids)
}

fn has_columns(job: &Arc<Job>) -> bool {
    job.keys.iter().any(|key| key.template.has_tenant_column())
}

impl From<OrphansError> for InvalidateError {
    fn from(error: OrphansError) -> Self {
        match error {
            OrphansError::Source(error) => Self::Tenants(error),
            OrphansError::Cache(error) => Self::Notes(error),
            OrphansError::Shrank(message) => Self::Shrank(message),
        }
    }
}

impl From<KnownError> for InvalidateError {
    fn from(error: KnownError) -> Self {
        match error {
            KnownError::Tenants(error) => Self::Tenants(error),
            KnownError::Notes(error) => Self::Notes(error),
        }
    }
}

/// One request on its way.
struct Work<'a> {
    runner: &'a Arc<Runner>,
    jobs: &'a Jobs,
    known: &'a Known,
    layout: &'a Layout,
    stops: &'a Stops,
    /// The fences that were moved.
    moved: HashSet<String>,
    /// When the rest before this slice ended.
    rested_at: Duration,
    done: Invalidated,
}

/// Why the rest is left.
enum Cut {
    Stopped,
    Cache(CacheError),
    Source(SourceError),
    Shrank(String),
}

impl From<CacheError> for Cut {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<OrphansError> for Cut {
    fn from(error: OrphansError) -> Self {
        match error {
            OrphansError::Cache(error) => Self::Cache(error),
            OrphansError::Source(error) => Self::Source(error),
            OrphansError::Shrank(message) => Self::Shrank(message),
        }
    }
}

impl Cut {
    fn failure(self) -> Failure {
        let (kind, message) = match self {
            Self::Stopped => {
                (FailureKind::Cancelled, "it was stopped: the rest is left".to_owned())
            }
            Self::Cache(error) => (error.kind.failure_kind(), error.message),
            Self::Source(error) => (error.kind.failure_kind(), error.message),
            Self::Shrank(message) => (FailureKind::TenantsShrank, message),
        };
        Failure::new(kind, None, message)
    }
}

/// A key to remove, and its job where that is known.
struct Doomed {
    key: String,
    job: Option<JobName>,
}

/// The fences of some keys.
#[derive(Default)]
struct Fences {
    some: BTreeSet<String>,
    /// Those of all tenants as well.
    all: bool,
}

/// Whose a key is by the templates of one job.
enum Whose {
    Fleet,
    Tenants(BTreeSet<String>),
    Everyone,
}

impl<'a> Work<'a> {
    async fn all(&mut self, wanted: Wanted, orphans: Option<Orphans>) -> Result<(), Cut> {
        let Wanted { keys, patterns, named, orphans: _ } = wanted;
        let ended = self.keys(&keys).await;
        self.done.report.keys.removed = self.done.report.removed;
        ended?;
        if let Some(named) = named {
            let before = self.done.report.removed;
            let ended = self.named(&named).await;
            self.done.report.jobs_and_tenants.removed = self.done.report.removed - before;
            ended?;
        }
        let before = self.done.report.removed;
        let ended = self.patterns(&patterns).await;
        self.done.report.patterns.removed = self.done.report.removed - before;
        ended?;
        let Some(orphans) = orphans else { return Ok(()) };
        let before = self.done.report.removed;
        let ended = self.orphans(orphans).await;
        self.done.report.orphans.removed = self.done.report.removed - before;
        ended
    }

    async fn keys(&mut self, keys: &[String]) -> Result<(), Cut> {
        for (index, some) in keys.chunks(SLICE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            self.found(some.to_vec()).await?;
        }
        Ok(())
    }

    /// The keys of jobs and tenants.
    async fn named(&mut self, named: &Named) -> Result<(), Cut> {
        let (of_tenants, of_fleet): (Vec<_>, Vec<_>) =
            named.jobs.iter().partition(|job| job.scope == Scope::Tenants);
        for job in of_fleet {
            self.done.touch_all(&job.name);
            self.move_fences([FLEET.to_owned()]).await?;
            let doomed = self.keys_of(job, &[None]).await?;
            self.remove(doomed).await?;
        }
        if of_tenants.is_empty() {
            return Ok(());
        }
        let known = self.known;
        let tenants: Vec<Tenant<'a>> = match &named.tenants {
            Some(ids) => ids.iter().filter_map(|id| known.get(id.as_str())).collect(),
            None => known.iter().collect(),
        };
        for (index, some) in tenants.chunks(TENANTS_AT_ONCE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            self.move_fences(some.iter().map(|tenant| fence_key(tenant.id()))).await?;
            let some: Vec<_> = some.iter().copied().map(Some).collect();
            for job in &of_tenants {
                self.touch(job, named.tenants.is_none(), &some);
                let doomed = self.keys_of(job, &some).await?;
                self.remove(doomed).await?;
            }
        }
        Ok(())
    }

    fn touch(&mut self, job: &Job, all: bool, tenants: &[Option<Tenant<'_>>]) {
        if all {
            return self.done.touch_all(&job.name);
        }
        for tenant in tenants.iter().flatten().filter(|tenant| self.known.is_active(tenant.id())) {
            self.done.touch(&job.name, tenant.id());
        }
    }

    /// The keys of a job for some tenants: those that are known, and those that are listed.
    async fn keys_of(
        &self,
        job: &Job,
        tenants: &[Option<Tenant<'_>>],
    ) -> Result<Vec<Doomed>, CacheError> {
        let dates = possible_dates(job, self.runner.clock.now());
        let known = tenants.iter().flat_map(|tenant| {
            let keys = known_keys(job, *tenant, &dates).into_iter();
            keys.filter(|key| self.layout.may_write(job, *tenant, key))
        });
        let mut keys: Vec<String> = known.collect();
        if job.has_manifests() {
            let manifest =
                |tenant: &Option<Tenant<'_>>| manifest_key(&job.name, tenant.map(|t| t.id()));
            let manifests: Vec<String> = tenants.iter().map(manifest).collect();
            let named = self.runner.ledger.names(&manifests).await?;
            for (tenant, names) in tenants.iter().zip(named) {
                let tenant = tenant.map(|tenant| tenant.id());
                let own = |name: &String| !self.layout.is_anothers(job, tenant, name);
                keys.extend(names.into_iter().filter(own));
            }
        }
        let doomed = |key| Doomed { key, job: Some(job.name.clone()) };
        Ok(keys.into_iter().map(doomed).collect())
    }

    /// Whatever matches, slice by slice.
    async fn patterns(&mut self, patterns: &[String]) -> Result<(), Cut> {
        for pattern in patterns {
            let mut cursor = 0;
            loop {
                let slice = self.runner.cache.scan(pattern, cursor).await?;
                self.done.report.patterns.slices += 1;
                let all = slice.keys.into_iter();
                let (own, keys): (Vec<_>, Vec<_>) = all.partition(|key| is_own(key));
                self.done.report.patterns.kept += own.len() as u64;
                self.found(keys).await?;
                self.rest().await?;
                cursor = slice.next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What no job writes any more.
    async fn orphans(&mut self, mut orphans: Orphans) -> Result<(), Cut> {
        while let Some(keys) = orphans.next().await? {
            self.done.report.orphans.asked += keys.len() as u64;
            let tenants = keys.iter().filter_map(|orphan| orphan.tenant.as_ref());
            let fences = tenants.map(|tenant| fence_key(tenant.as_str())).collect::<BTreeSet<_>>();
            self.move_fences(fences).await?;
            let doomed = keys.into_iter().map(|orphan| {
                let job = orphan.job.filter(|job| self.jobs.contains_key(job));
                Doomed { key: orphan.key, job }
            });
            self.remove(doomed.collect()).await?;
            self.rest().await?;
        }
        Ok(())
    }

    /// Removes keys whose owners only their texts tell.
    async fn found(&mut self, keys: Vec<String>) -> Result<(), Cut> {
        let mut fences = Fences::default();
        let mut doomed = Vec::with_capacity(keys.len());
        for key in keys {
            let job = self.owner(&key, &mut fences);
            doomed.push(Doomed { key, job });
        }
        self.move_fences(fences.some).await?;
        if fences.all {
            let known = self.known;
            self.move_fences(known.iter().map(|tenant| fence_key(tenant.id()))).await?;
        }
        self.remove(doomed).await
    }

    /// The job that writes a key, and the fences of those whose it may be.
    fn owner(&mut self, key: &str, fences: &mut Fences) -> Option<JobName> {
        let (jobs, known) = (self.jobs, self.known);
        let mut writer = None;
        for job in jobs.values() {
            let Some(whose) = self.whose(job, key) else { continue };
            writer.get_or_insert_with(|| job.name.clone());
            match whose {
                Whose::Fleet => {
                    fences.some.insert(FLEET.to_owned());
                    self.done.touch_all(&job.name);
                }
                Whose::Tenants(ids) => {
                    for id in ids {
                        if known.is_active(&id) {
                            self.done.touch(&job.name, &id);
                        }
                        fences.some.insert(fence_key(&id));
                    }
                }
                Whose::Everyone => {
                    self.done.touch_all(&job.name);
                    fences.all = true;
                }
            }
        }
        writer
    }

    fn whose(&self, job: &Job, key: &str) -> Option<Whose> {
        let (mut known, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for index in 0..job.keys.len() {
            match (self.layout.owner(job, index, key), job.scope) {
                (Owner::Nobody, _) => {}
                (_, Scope::Fleet) => return Some(Whose::Fleet),
                (Owner::Tenant(id), Scope::Tenants) => {
                    let is_known = self.known.get(id).is_some();
                    (if is_known { &mut known } else { &mut unknown }).insert(id.to_owned());
                }
                (Owner::WithColumn(column, text), Scope::Tenants) => {
                    let before = known.len();
                    let some = self.known.with_column(column, text);
                    known.extend(some.map(|tenant| tenant.id().to_owned()));
                    // The column may have had another value when the key was written.
                    if known.len() == before {
                        return Some(Whose::Everyone);
                    }
                }
                (Owner::Anyone, Scope::Tenants) => return Some(Whose::Everyone),
            }
        }
        // One that became active just now, or of whom no note is left: a fence too many does no harm.
        let ids = if known.is_empty() { unknown } else { known };
        (!ids.is_empty()).then_some(Whose::Tenants(ids))
    }

    /// Moves those fences that did not move yet.
    async fn move_fences(&mut self, fences: impl IntoIterator<Item = String>) -> Result<(), Cut> {
        let fences = fences.into_iter().filter(|fence| !self.moved.contains(fence));
        let fences: Vec<String> = fences.collect();
        for (index, some) in fences.chunks(SLICE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            let number = start_number(self.runner.clock.random());
            self.runner.ledger.move_fences(some, number).await?;
            self.done.report.fences += some.len() as u64;
        }
        self.moved.extend(fences);
        Ok(())
    }

    /// Removes keys whose fences moved.
    async fn remove(&mut self, doomed: Vec<Doomed>) -> Result<(), Cut> {
        let mut left = doomed.into_iter().peekable();
        while left.peek().is_some() {
            let (keys, jobs): (Vec<_>, Vec<_>) =
                left.by_ref().take(SLICE).map(|doomed| (doomed.key, doomed.job)).unzip();
            let results = self.runner.cache.remove(&keys).await?;
            for ((key, job), result) in keys.into_iter().zip(jobs).zip(results) {
                match result {
                    Ok(false) => {}
                    Ok(true) => {
                        self.done.report.removed += 1;
                        if let Some(job) = job {
                            *self.done.report.by_job.entry(job).or_default() += 1;
                        }
                    }
                    Err(error) => self.refuse(key, error),
                }
            }
            if left.peek().is_some() {
                self.rest().await?;
            }
        }
        Ok(())
    }

    fn refuse(&mut self, key: String, error: CacheError) {
        let (kind, message) = (error.kind.failure_kind(), error.message);
        self.done.report.failed += 1;
        self.done.report.fail(Failure { key: Some(key), ..Failure::new(kind, None, message) });
    }

    /// The rest between two slices; it is the place where the work stops.
    async fn rest(&mut self) -> Result<(), Cut> {
        let clock = &self.runner.clock;
        let took = clock.monotonic().saturating_sub(self.rested_at);
        tokio::select! {
            biased;
            () = self.stops.requested() => return Err(Cut::Stopped),
            () = clock.sleep(took.max(LEAST_PAUSE)) => {}
        }
        self.rested_at = clock.monotonic();
        Ok(())
    }
}
