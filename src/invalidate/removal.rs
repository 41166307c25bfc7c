//! One request under way: which keys it means, their fences, and their removal slice by slice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::census::Census;
use super::job_reader::JobReader;
use super::report::{InvalidateReport, Invalidated};
use super::request::{CheckedRequest, JobsAndTenants};
use crate::domain::date::first_dates;
use crate::domain::entry::shared_keys;
use crate::domain::fence::{GLOBAL, fence_key};
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::key::is_own;
use crate::domain::layout::{Checks, Layout, Owner};
use crate::domain::manifest::manifest_key;
use crate::domain::owned::{possible_dates, static_keys};
use crate::domain::report::{Failure, FailureKind};
use crate::domain::tenant::{Batch, Tenant};
use crate::engine::ports::{CacheError, CacheErrorKind};
use crate::engine::run::retry::Refusal;
use crate::engine::run::{Runner, Stops};

/// How many keys are removed, or fences moved, at once: other clients wait for the server meanwhile.
const SLICE: usize = 500;
/// How many tenants' keys are computed at once.
const TENANTS_AT_ONCE: usize = 100;
/// The shortest rest between two slices. A rest is as long as the slice before it took, so that a request
/// takes at most half of the server's time.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// What a request is checked against.
#[derive(Clone, Copy)]
pub(super) struct Present<'a> {
    pub(super) jobs: &'a Jobs,
    pub(super) census: &'a Census,
    pub(super) layout: &'a Layout,
}

/// One request under way.
pub(super) struct Removal<'a> {
    runner: &'a Runner,
    stops: &'a Stops,
    present: Present<'a>,
    /// Whether it only counts what it would remove.
    is_dry: bool,
    /// The fences that were moved.
    moved: HashSet<String>,
    /// When the rest before this slice ended.
    rested_at: Duration,
    done: Invalidated,
}

/// Why the rest of a request is not done.
enum Interrupted {
    Stopped,
    Cache(CacheError),
    /// The shared keys of a job could not be found out.
    Unreadable(Failure),
}

impl From<CacheError> for Interrupted {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl Interrupted {
    fn failure(self) -> Failure {
        match self {
            Self::Stopped => {
                let message = "it was stopped: the rest is left".to_owned();
                Failure::new(FailureKind::Cancelled, None, message)
            }
            Self::Cache(error) => Failure::new(error.kind.failure_kind(), None, error.message),
            Self::Unreadable(failure) => failure,
        }
    }
}

/// A key to remove, and its job if known.
struct KeyToRemove {
    key: String,
    job: Option<JobName>,
}

/// The fences that have to move before some keys are removed.
#[derive(Default)]
struct FencesToMove {
    some: BTreeSet<String>,
    /// Whether the fences of all tenants have to move as well.
    all: bool,
}

/// The tenants that a key may belong to, by the templates of one job.
enum KeyOwners {
    Global,
    Tenants(BTreeSet<String>),
    Everyone,
}

impl<'a> Removal<'a> {
    /// A removal that has done nothing yet, with an empty report.
    pub(super) fn new(
        runner: &'a Runner,
        stops: &'a Stops,
        present: Present<'a>,
        report: InvalidateReport,
    ) -> Self {
        let rested_at = runner.clock.monotonic();
        let is_dry = report.dry_run;
        let done = Invalidated { report, ..Invalidated::default() };
        Self { runner, stops, present, is_dry, moved: HashSet::new(), rested_at, done }
    }

    /// Does the whole request, or as much of it as it can; the report says how much.
    pub(super) async fn all(mut self, request: CheckedRequest) -> Invalidated {
        if let Err(interrupted) = self.each_part(request).await {
            self.done.report.fail(interrupted.failure());
        }
        self.done
    }

    async fn each_part(&mut self, request: CheckedRequest) -> Result<(), Interrupted> {
        let CheckedRequest { keys, patterns, jobs_and_tenants } = request;
        let ended = self.keys(&keys).await;
        self.done.report.keys.removed = self.done.report.removed;
        ended?;
        if let Some(named) = jobs_and_tenants {
            let before = self.done.report.removed;
            let ended = self.jobs_and_tenants(&named).await;
            self.done.report.jobs_and_tenants.removed = self.done.report.removed - before;
            ended?;
        }
        let before = self.done.report.removed;
        let ended = self.patterns(&patterns).await;
        self.done.report.patterns.removed = self.done.report.removed - before;
        ended
    }

    async fn keys(&mut self, keys: &[String]) -> Result<(), Interrupted> {
        for (index, some) in keys.chunks(SLICE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            self.remove_found(some.to_vec()).await?;
        }
        Ok(())
    }

    /// Removes the keys of jobs and tenants.
    async fn jobs_and_tenants(&mut self, named: &JobsAndTenants) -> Result<(), Interrupted> {
        let (of_tenants, of_global): (Vec<_>, Vec<_>) =
            named.jobs.iter().partition(|job| job.scope == Scope::Tenants);
        for job in of_global {
            self.done.touch_all(&job.name);
            self.move_fences([GLOBAL.to_owned()]).await?;
            let keys = self.keys_of(job, &[None]).await?;
            self.remove(keys).await?;
        }
        if of_tenants.is_empty() {
            return Ok(());
        }
        let census = self.present.census;
        let tenants: Vec<Tenant<'a>> = match &named.tenants {
            Some(ids) => ids.iter().filter_map(|id| census.get(id.as_str())).collect(),
            None => census.iter().collect(),
        };
        let has_shared_keys = |job: &&&Arc<Job>| job.has_shared_keys();
        let readers =
            of_tenants.iter().filter(has_shared_keys).map(|job| JobReader::new(Arc::clone(job)));
        let mut readers: Vec<JobReader> = readers.collect();
        for (index, some) in tenants.chunks(TENANTS_AT_ONCE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            self.move_fences(some.iter().map(|tenant| fence_key(tenant.id()))).await?;
            let slots: Vec<_> = some.iter().copied().map(Some).collect();
            for job in &of_tenants {
                self.touch(job, named.tenants.is_none(), some);
                let keys = self.keys_of(job, &slots).await?;
                self.remove(keys).await?;
            }
            for reader in &mut readers {
                self.shared_keys(reader, some).await?;
            }
        }
        Ok(())
    }

    fn touch(&mut self, job: &Job, all: bool, tenants: &[Tenant<'_>]) {
        if all {
            return self.done.touch_all(&job.name);
        }
        for tenant in tenants.iter().filter(|tenant| self.present.census.is_active(tenant.id())) {
            self.done.touch(&job.name, tenant.id());
        }
    }

    /// The keys of a job for some tenants that need no query: the static keys, and those that manifests name.
    async fn keys_of(
        &self,
        job: &Job,
        tenants: &[Option<Tenant<'_>>],
    ) -> Result<Vec<KeyToRemove>, CacheError> {
        let dates = possible_dates(job, self.runner.clock.now());
        let of_tenant = |tenant: &Option<Tenant<'_>>| {
            let keys = static_keys(job, *tenant, &dates).into_iter();
            let own = keys.filter(|key| self.present.layout.may_write(job, *tenant, key));
            own.filter(|key| !self.has_moved(job, *tenant, key)).collect::<Vec<_>>()
        };
        let mut keys: Vec<String> = tenants.iter().flat_map(of_tenant).collect();
        if job.has_manifests() {
            let manifest =
                |tenant: &Option<Tenant<'_>>| manifest_key(&job.name, tenant.map(|t| t.id()));
            let manifests: Vec<String> = tenants.iter().map(manifest).collect();
            let named = self.runner.ledger.manifest_keys(&manifests).await?;
            for (tenant, names) in tenants.iter().zip(named) {
                let tenant = tenant.map(|tenant| tenant.id());
                let own = |name: &String| !self.present.layout.is_anothers(job, tenant, name);
                keys.extend(names.into_iter().filter(own));
            }
        }
        let of_job = |key| KeyToRemove { key, job: Some(job.name.clone()) };
        Ok(keys.into_iter().map(of_job).collect())
    }

    /// Whether a static key of a departed tenant belongs to an active one by now: both have had the same text
    /// in the column that the key names, such as a web address.
    fn has_moved(&self, job: &Job, tenant: Option<Tenant<'_>>, key: &str) -> bool {
        if tenant.is_none_or(|tenant| self.present.census.is_active(tenant.id())) {
            return false;
        }
        (0..job.keys.len()).any(|index| match self.present.layout.owner(job, index, key) {
            Owner::WithColumn(column, text) => {
                let mut tenants = self.present.census.with_column(column, text);
                tenants.any(|tenant| self.present.census.is_active(tenant.id()))
            }
            Owner::Nobody | Owner::Tenant(_) | Owner::Anyone => false,
        })
    }

    /// Removes the shared keys of some tenants, as their present rows make them. Only the rows of one batch
    /// are in memory at a time. If the rows of a tenant cannot be read, its shared keys stay, and the report
    /// says so.
    async fn shared_keys(
        &mut self,
        reader: &mut JobReader,
        tenants: &[Tenant<'_>],
    ) -> Result<(), Interrupted> {
        let job = Arc::clone(reader.job());
        let checks = Checks::new(self.present.layout.clone(), &job);
        // The query accepts no text that cannot be an id; such a tenant has no rows.
        let ids = self.runner.source.id_class();
        let list =
            Arc::new(self.present.census.list(tenants.iter().filter(|one| ids.fits(one.id()))));
        let all = list.iter().zip(0..).map(|(_, position)| position).collect();
        let mut left = reader.batches(&list, all, self.runner.clock.as_ref());
        let (mut without_zone, _) = reader.take_failures();
        // For a tenant that was never registered, neither a time zone nor any key is known.
        without_zone.retain(|failure| self.is_of_active(failure));
        self.fail_shared_keys(&job, without_zone);
        while let Some(part) = reader.next(&mut left) {
            let read = tokio::select! {
                biased;
                () = self.stops.requested() => return Err(Interrupted::Stopped),
                read = self.read_shared_keys(reader, &checks, &part) => read,
            };
            let read = match read {
                Ok(keys) => {
                    let of_job = |key| KeyToRemove { key, job: Some(job.name.clone()) };
                    self.remove(keys.into_iter().map(of_job).collect()).await?;
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            };
            if let Err(Refusal { kind, message, remedy: _ }) = reader.ended(part, read, &mut left) {
                let failure = Failure::new(kind, None, message);
                return Err(Interrupted::Unreadable(not_removed(&job, failure)));
            }
            self.rest().await?;
        }
        let (failures, _) = reader.take_failures();
        self.fail_shared_keys(&job, failures);
        Ok(())
    }

    fn is_of_active(&self, failure: &Failure) -> bool {
        failure.tenant.as_deref().is_some_and(|id| self.present.census.is_active(id))
    }

    fn fail_shared_keys(&mut self, job: &Job, failures: Vec<Failure>) {
        for failure in failures {
            self.done.report.fail(not_removed(job, failure));
        }
    }

    /// The shared keys of a part, by its present rows.
    async fn read_shared_keys(
        &self,
        reader: &mut JobReader,
        checks: &Checks,
        part: &Batch,
    ) -> Result<BTreeSet<String>, Refusal> {
        let job = Arc::clone(reader.job());
        let first_dates = first_dates(&job, part, self.runner.clock.now());
        let permit = reader.read(self.runner, part, &first_dates).await?;
        Ok(shared_keys(&job, checks, part, &first_dates, permit.rows()))
    }

    /// Removes all keys that match, slice by slice.
    async fn patterns(&mut self, patterns: &[String]) -> Result<(), Interrupted> {
        for pattern in patterns {
            let mut cursor = 0;
            loop {
                let slice = self.runner.cache.scan(pattern, cursor).await?;
                self.done.report.patterns.slices += 1;
                let all = slice.keys.into_iter();
                let (own, keys): (Vec<_>, Vec<_>) = all.partition(|key| is_own(key));
                self.done.report.patterns.kept += own.len() as u64;
                self.remove_found(keys).await?;
                self.rest().await?;
                cursor = slice.next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Removes keys whose owners follow from the keys' texts alone.
    async fn remove_found(&mut self, keys: Vec<String>) -> Result<(), Interrupted> {
        let mut fences = FencesToMove::default();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let job = self.writer(&key, &mut fences);
            found.push(KeyToRemove { key, job });
        }
        self.move_fences(fences.some).await?;
        if fences.all {
            let census = self.present.census;
            self.move_fences(census.iter().map(|tenant| fence_key(tenant.id()))).await?;
        }
        self.remove(found).await
    }

    /// The job that writes a key; adds the fences of the tenants that the key may belong to.
    fn writer(&mut self, key: &str, fences: &mut FencesToMove) -> Option<JobName> {
        let (jobs, census) = (self.present.jobs, self.present.census);
        let mut writer = None;
        for job in jobs.values() {
            let Some(owners) = self.owners(job, key) else { continue };
            writer.get_or_insert_with(|| job.name.clone());
            match owners {
                KeyOwners::Global => {
                    fences.some.insert(GLOBAL.to_owned());
                    self.done.touch_all(&job.name);
                }
                KeyOwners::Tenants(ids) => {
                    for id in ids {
                        if census.is_active(&id) {
                            self.done.touch(&job.name, &id);
                        }
                        fences.some.insert(fence_key(&id));
                    }
                }
                KeyOwners::Everyone => {
                    self.done.touch_all(&job.name);
                    fences.all = true;
                }
            }
        }
        writer
    }

    fn owners(&self, job: &Job, key: &str) -> Option<KeyOwners> {
        let (mut known, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for index in 0..job.keys.len() {
            match (self.present.layout.owner(job, index, key), job.scope) {
                (Owner::Nobody, _) => {}
                (_, Scope::Global) => return Some(KeyOwners::Global),
                (Owner::Tenant(id), Scope::Tenants) => {
                    let is_known = self.present.census.get(id).is_some();
                    (if is_known { &mut known } else { &mut unknown }).insert(id.to_owned());
                }
                (Owner::WithColumn(column, text), Scope::Tenants) => {
                    let before = known.len();
                    let some = self.present.census.with_column(column, text);
                    known.extend(some.map(|tenant| tenant.id().to_owned()));
                    // The column may have had another value when the key was written.
                    if known.len() == before {
                        return Some(KeyOwners::Everyone);
                    }
                }
                (Owner::Anyone, Scope::Tenants) => return Some(KeyOwners::Everyone),
            }
        }
        // A tenant may have become active just now, or be missing in the registry: moving one fence too many
        // does no harm.
        let ids = if known.is_empty() { unknown } else { known };
        (!ids.is_empty()).then_some(KeyOwners::Tenants(ids))
    }

    /// The cache tries once: it cannot tell whether it moved the fences before a connection broke.
    /// Here one move too many does no harm.
    async fn try_twice_to_move(&self, fences: &[String]) -> Result<(), CacheError> {
        match self.runner.move_fences(fences).await {
            Err(error) if error.kind == CacheErrorKind::Unavailable => {
                self.runner.move_fences(fences).await
            }
            moved => moved,
        }
    }

    /// Moves the fences that have not been moved yet.
    async fn move_fences(
        &mut self,
        fences: impl IntoIterator<Item = String>,
    ) -> Result<(), Interrupted> {
        let fences = fences.into_iter().filter(|fence| !self.moved.contains(fence));
        let fences: Vec<String> = fences.collect();
        for (index, some) in fences.chunks(SLICE).enumerate() {
            if index > 0 {
                self.rest().await?;
            }
            if !self.is_dry {
                self.try_twice_to_move(some).await?;
            }
            self.done.report.fences += some.len() as u64;
        }
        self.moved.extend(fences);
        Ok(())
    }

    /// Removes keys whose fences have moved.
    async fn remove(&mut self, keys: Vec<KeyToRemove>) -> Result<(), Interrupted> {
        let mut left = keys.into_iter().peekable();
        while left.peek().is_some() {
            let (keys, jobs): (Vec<_>, Vec<_>) =
                left.by_ref().take(SLICE).map(|one| (one.key, one.job)).unzip();
            if self.is_dry {
                self.count(keys, jobs).await?;
                if left.peek().is_some() {
                    self.rest().await?;
                }
                continue;
            }
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

    /// Counts the keys that exist, in place of their removal.
    async fn count(
        &mut self,
        keys: Vec<String>,
        jobs: Vec<Option<JobName>>,
    ) -> Result<(), Interrupted> {
        let mut by_job: BTreeMap<Option<JobName>, Vec<String>> = BTreeMap::new();
        for (key, job) in keys.into_iter().zip(jobs) {
            by_job.entry(job).or_default().push(key);
        }
        for (job, keys) in by_job {
            let exist = self.runner.cache.exist(&keys).await?;
            self.done.report.removed += exist;
            if let Some(job) = job.filter(|_| exist > 0) {
                *self.done.report.by_job.entry(job).or_default() += exist;
            }
        }
        Ok(())
    }

    fn refuse(&mut self, key: String, error: CacheError) {
        let (kind, message) = (error.kind.failure_kind(), error.message);
        self.done.report.failed += 1;
        self.done.report.fail(Failure { key: Some(key), ..Failure::new(kind, None, message) });
    }

    /// Rests between two slices; a stop takes effect here.
    async fn rest(&mut self) -> Result<(), Interrupted> {
        let clock = &self.runner.clock;
        let took = clock.monotonic().saturating_sub(self.rested_at);
        tokio::select! {
            biased;
            () = self.stops.requested() => return Err(Interrupted::Stopped),
            () = clock.sleep(took.max(LEAST_PAUSE)) => {}
        }
        self.rested_at = clock.monotonic();
        Ok(())
    }
}

/// A failure to read a tenant's rows, worded for an invalidation.
fn not_removed(job: &Job, failure: Failure) -> Failure {
    let message = format!(
        "the shared keys of job `{}` could not be told and were not removed: {}",
        job.name, failure.message
    );
    Failure { message, ..failure }
}
