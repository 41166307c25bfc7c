//! Warms some tenants of a batch, from their fences to verified values. The protocol decides the next step
//! ([`Warm`]); this file does each step on the servers.

use std::collections::HashSet;
use std::time::Duration;

use chrono::NaiveDate;
use rapidhash::fast::RandomState;

use super::Unverified;
use super::batch::{Work, fail_all};
use super::limit::{BatchPermit, Priority, Room};
use super::retry::{Refusal, Remedy, Tries};
use crate::domain::date::first_dates;
use crate::domain::entry::{Entries, Entry, entries};
use crate::domain::fence::{Fence, GLOBAL, PROVISIONAL_TTL, fence_key};
use crate::domain::job::{KeyKind, Scope};
use crate::domain::manifest::{ManifestEntry, entry_life, is_young, manifest_key};
use crate::domain::protocol::{Found, Life, Reply, Step, Verdict, Warm};
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::tenant::{Batch, TenantId};
use crate::domain::trace::BatchTrace;
use crate::engine::ports::{
    CacheError, CacheErrorKind, KeyResult, ManifestEntries, Read, SourceErrorKind,
};

/// How much later than the run's deadline a server cancels a query: the deadline itself is to end the run,
/// and not a query that failed a moment before.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// Some tenants on their way through the protocol. However that ends, the unverified tenants are handed over
/// for a follow-up.
struct Warming<'w> {
    work: &'w Work,
    part: &'w Batch,
    warm: Warm<String>,
    /// When its first round got its permit.
    began_at: Option<Duration>,
    /// How long its rounds have held their permits.
    took: Duration,
    /// How much of that they spent until their rows were read.
    read: Duration,
    /// Whether the time of the next query says how many tenants fit into a batch.
    teaches: bool,
}

/// What a round has read before it writes.
struct RoundRows {
    /// Holds the rows.
    permit: BatchPermit,
    /// When the round got its permit.
    began_at: Duration,
    first_dates: Vec<NaiveDate>,
    /// What each manifest names.
    named: Vec<Vec<ManifestEntry>>,
}

/// A round from its rows on.
struct Round<'r> {
    work: &'r Work,
    open: &'r Batch,
    fences: &'r [String],
    writes: Vec<Entry<'r>>,
    /// Each entry's TTL once its tenant is verified.
    full: Vec<Duration>,
    results: Vec<KeyResult>,
    /// The result of each slot.
    tallies: Vec<Report>,
    /// Slots for which the last step was refused something.
    refused: Vec<usize>,
    /// Whether a sent command may still arrive.
    in_flight: bool,
    /// The tries of the write, once a try has failed.
    sent: Option<Tries<'r>>,
    /// Why the fences could not be read after the writes.
    unread: Option<Refusal>,
}

/// The places that a round is for.
#[derive(Clone, Copy)]
struct Opened<'o> {
    batch: &'o Batch,
    /// The key of each place's fence.
    fences: &'o [String],
}

impl Work {
    /// Warms some tenants, until they are verified or their rounds are used up. A refusal means that nothing
    /// of these tenants was written. `teaches` says whether the time of the first query tells how many tenants
    /// fit into a batch.
    pub(crate) async fn part(
        &self,
        part: &Batch,
        teaches: bool,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let life = match self.spec.priority {
            Priority::Regular => Life::Full,
            Priority::Urgent => Life::Provisional,
        };
        let has_manifests = self.spec.job.has_manifests();
        let (warm, mut step) = Warm::begin(part.len().max(1), life, has_manifests);
        let mut warming = Warming::new(self, part, warm, teaches);
        while step != Step::Done {
            let open = part.some(warming.warm.open());
            match warming.round(&open, step, report).await {
                Ok(next) => step = next,
                Err(refusal) if warming.warm.round() == 1 => {
                    report.batches.add(warming.trace(Some(refusal.kind)));
                    return Err(refusal);
                }
                Err(refusal) => {
                    report.batches.add(warming.trace(Some(refusal.kind)));
                    fail_all(&open, refusal.kind, &refusal.message, report);
                    self.give_up_after(refusal);
                    return Ok(());
                }
            }
        }
        report.batches.add(warming.trace(None));
        report.unverified.add(warming.unverified());
        Ok(())
    }
}

impl<'w> Warming<'w> {
    fn new(work: &'w Work, part: &'w Batch, warm: Warm<String>, teaches: bool) -> Self {
        let (took, read) = (Duration::ZERO, Duration::ZERO);
        Self { work, part, warm, began_at: None, took, read, teaches }
    }

    fn trace(&self, failed: Option<FailureKind>) -> BatchTrace {
        let now = || self.work.runner.clock.monotonic();
        let Self { began_at, took, read, .. } = *self;
        let began_at = began_at.unwrap_or_else(now);
        // A round that was refused has not counted its time.
        let took = if failed.is_some() { now().saturating_sub(began_at) } else { took };
        let failed = failed.map(FailureKind::as_str);
        BatchTrace { began_at, took, read, tenants: self.part.len().max(1), failed }
    }

    /// One round; returns the first step of the next one. A refusal comes only before anything is written.
    async fn round(
        &mut self,
        open: &Batch,
        first: Step<String>,
        report: &mut Report,
    ) -> Result<Step<String>, Refusal> {
        let work = self.work;
        let fences = work.fence_keys(open);
        let opened = Opened { batch: open, fences: &fences };
        let reading = self.reading(opened, first, report).await?;
        let read_at = work.runner.clock.monotonic();
        self.read += read_at.saturating_sub(reading.began_at);
        let (job, checks) = (&work.spec.job, &work.checks);
        let found = entries(job, checks, open, &reading.first_dates, reading.permit.rows());
        let rows = Reply::Rows(work.found(open, &reading.named, &found));
        let (encoded_at, retried) = (work.runner.clock.monotonic(), report.time.retry);
        report.time.encode += encoded_at.saturating_sub(read_at);
        let mut round = Round::new(work, opened, found);
        let mut step = self.warm.next(rows);
        loop {
            let reply = match step {
                Step::AddNames(names) => round.add_names(names, report).await?,
                Step::Write { own, shared } => round.write(own, shared, report).await,
                Step::Remove(gone) => round.remove(gone, report).await,
                Step::Prune(places) => round.prune(&places).await,
                Step::ReadFences => round.read_fences(report).await,
                Step::SetTtls { extend, shorten } => round.set_ttls(&extend, &shorten).await,
                Step::Count(verdicts) => {
                    round.count(&verdicts, report);
                    let now = work.runner.clock.monotonic();
                    self.took += now.saturating_sub(reading.began_at);
                    let retried = report.time.retry.saturating_sub(retried);
                    report.time.cache += now.saturating_sub(encoded_at).saturating_sub(retried);
                    return Ok(self.warm.next(Reply::Done));
                }
                Step::StartFences(_) | Step::ReadManifests | Step::Query | Step::Done => {
                    Reply::Failed
                }
            };
            step = self.warm.next(reply);
        }
    }

    /// Reads until it succeeds or has no tries left. It holds no permit while it waits, so that other jobs go
    /// on.
    async fn reading(
        &mut self,
        opened: Opened<'_>,
        mut first: Step<String>,
        report: &mut Report,
    ) -> Result<RoundRows, Refusal> {
        let mut room = Room::Batch;
        let tenants = opened.batch.len();
        let mut tries = Tries::new(&self.work.runner, &self.work.spec, tenants);
        loop {
            let refusal = match self.read_once(opened, first, room, report).await {
                Ok(reading) => break Ok(reading),
                Err(refusal) => refusal,
            };
            if refusal.remedy == Remedy::AwaitLock {
                *self.work.locked() = Some(refusal.message.clone());
            }
            let is_giant = refusal.kind == FailureKind::TooManyRows && tenants <= 1;
            match room {
                // A batch can be split; one tenant cannot, so it gets the memory of all batches.
                Room::Batch if is_giant => room = Room::Giant,
                Room::Batch | Room::Giant => {
                    if !tries.again(&refusal, report).await {
                        break Err(refusal);
                    }
                }
            }
            first = self.warm.next(Reply::Again);
        }
    }

    /// The steps of a round up to its query. Fences and manifests are read before the query: if that fails,
    /// no rows are read that could not be written.
    async fn read_once(
        &mut self,
        opened: Opened<'_>,
        mut step: Step<String>,
        room: Room,
        report: &mut Report,
    ) -> Result<RoundRows, Refusal> {
        let (work, Opened { batch: open, fences }) = (self.work, opened);
        // The values of an earlier round may be old, so a later round goes before other batches.
        let priority = if self.warm.round() > 1 { Priority::Urgent } else { work.spec.priority };
        let limits = &work.runner.limits;
        let waits_at = work.runner.clock.monotonic();
        let mut permit = limits.room_of(&work.spec.job, priority, room).await;
        let began_at = work.runner.clock.monotonic();
        report.time.permit += began_at.saturating_sub(waits_at);
        self.began_at.get_or_insert(began_at);
        let mut named = Vec::new();
        loop {
            let reply = match step {
                Step::ReadFences => Reply::Fences(work.fences(fences).await?),
                Step::StartFences(places) => {
                    Reply::Fences(work.start_fences(&places, fences).await?)
                }
                Step::ReadManifests => {
                    named = work.manifests(open).await?;
                    let keys = |named: &Vec<ManifestEntry>| {
                        named.iter().map(|one| one.key.clone()).collect()
                    };
                    Reply::Manifests(named.iter().map(keys).collect())
                }
                Step::Query => break,
                Step::AddNames(_)
                | Step::Write { .. }
                | Step::Remove(_)
                | Step::Prune(_)
                | Step::SetTtls { .. }
                | Step::Count(_)
                | Step::Done => Reply::Failed,
            };
            step = self.warm.next(reply);
        }
        let asked_at = work.runner.clock.monotonic();
        report.time.cache += asked_at.saturating_sub(began_at);
        let result = work.query(open, &mut permit, report).await;
        // Further tries and rounds are of tenants that are special.
        if std::mem::take(&mut self.teaches) {
            let took = work.runner.clock.monotonic().saturating_sub(asked_at);
            work.observe(open.len(), took, result.as_ref().err().map(|refusal| refusal.kind));
        }
        let first_dates = result?;
        Ok(RoundRows { permit, began_at, first_dates, named })
    }
}

impl Warming<'_> {
    fn unverified(&self) -> Unverified {
        let mut unverified = Unverified::default();
        for slot in self.warm.unverified() {
            match self.part.tenant(*slot) {
                Some(tenant) => {
                    unverified.tenants.insert(TenantId::new(tenant.id()));
                }
                None => unverified.global = true,
            }
        }
        unverified
    }
}

impl Drop for Warming<'_> {
    fn drop(&mut self) {
        let spec = &self.work.spec;
        spec.handover.put(spec, self.unverified());
    }
}

/// The steps before a round writes.
impl Work {
    fn fence_keys(&self, part: &Batch) -> Vec<String> {
        match self.spec.job.scope {
            Scope::Tenants => part.tenants().map(|tenant| fence_key(tenant.id())).collect(),
            Scope::Global => vec![GLOBAL.to_owned()],
        }
    }

    fn manifest_keys(&self, part: &Batch) -> Vec<String> {
        let job = &self.spec.job;
        match job.scope {
            Scope::Tenants => {
                part.tenants().map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
            }
            Scope::Global => vec![manifest_key(&job.name, None)],
        }
    }

    async fn fences(&self, keys: &[String]) -> Result<Vec<Fence>, Refusal> {
        Ok(self.runner.ledger.fences(keys).await?)
    }

    async fn start_fences(
        &self,
        places: &[(usize, Fence)],
        keys: &[String],
    ) -> Result<Vec<Fence>, Refusal> {
        let stood = |(place, fence): &(usize, Fence)| Some((keys.get(*place)?.clone(), *fence));
        let keys: Vec<(String, Fence)> = places.iter().filter_map(stood).collect();
        Ok(self.runner.start_fences(&keys).await?)
    }

    async fn manifests(&self, open: &Batch) -> Result<Vec<Vec<ManifestEntry>>, Refusal> {
        Ok(self.runner.ledger.manifests(&self.manifest_keys(open)).await?)
    }

    async fn query(
        &self,
        open: &Batch,
        permit: &mut BatchPermit,
        report: &mut Report,
    ) -> Result<Vec<NaiveDate>, Refusal> {
        let runner = &self.runner;
        let left = self.deadline_at.saturating_sub(runner.clock.monotonic());
        let first_dates = first_dates(&self.spec.job, open, self.started_at);
        let read = Read { batch: open, first_dates: &first_dates, timeout: left + DEADLINE_GRACE };
        let rows = permit.empty_rows(self.key_columns);
        let asked_at = runner.clock.monotonic();
        let result = runner.source.read(&self.spec.job, read, rows).await;
        let took = runner.clock.monotonic().saturating_sub(asked_at);
        report.database += took;
        let is_asked =
            result.as_ref().err().map(|error| error.kind) != Some(SourceErrorKind::LeftAlone);
        report.queries += u64::from(is_asked);
        result?;
        self.it_worked();
        if let (Some(tenant), 1) = (open.tenant(0), open.len()) {
            runner.broken.works(&self.spec.job.name, tenant.id());
        }
        Ok(first_dates)
    }

    /// What the rows yield, beside the keys that the manifests name.
    fn found(
        &self,
        open: &Batch,
        named: &[Vec<ManifestEntry>],
        found: &Entries<'_>,
    ) -> Vec<Found<String>> {
        let (job, now) = (&self.spec.job, self.runner.clock.now());
        let mut all: Vec<Found<String>> =
            (0..open.len().max(1)).map(|_| Found::default()).collect();
        for entry in found.writes.iter().filter(|entry| entry.kind == KeyKind::Data) {
            if let Some(place) = all.get_mut(entry.slot) {
                place.present.push(entry.key.clone());
            }
        }
        for removal in &found.removals {
            if let Some(place) = all.get_mut(removal.slot) {
                place.outdated.push(removal.key.clone());
            }
        }
        let failed: Vec<&str> = found.failed_keys().collect();
        let layout = self.checks.layout();
        let prunable = now - entry_life(job);
        for (slot, (place, named)) in all.iter_mut().zip(named).enumerate() {
            let tenant = open.tenant(slot).map(|tenant| tenant.id());
            let present: HashSet<&str, RandomState> =
                place.present.iter().map(String::as_str).collect();
            // To read a key costs much more than to look it up, and most entries are of present keys.
            let absent = named.iter().filter(|one| !present.contains(one.key.as_str()));
            let others = absent.filter(|one| layout.is_anothers(job, tenant, &one.key));
            let kept = others.map(|one| one.key.as_str()).chain(failed.iter().copied());
            place.unwritable = kept.map(str::to_owned).collect();
            let young = named.iter().filter(|one| is_young(job, one.renewed_at, now));
            let young: HashSet<&str, RandomState> = young.map(|one| one.key.as_str()).collect();
            place.is_renewed = place.present.iter().all(|key| young.contains(key.as_str()));
            place.is_prunable = named.iter().any(|one| one.renewed_at < prunable);
        }
        all
    }
}

/// The steps of a round from its writes on.
impl<'r> Round<'r> {
    fn new(work: &'r Work, opened: Opened<'r>, found: Entries<'r>) -> Self {
        let Opened { batch: open, fences } = opened;
        let Entries { writes, removals: _, failures } = found;
        let mut tallies = vec![Report::default(); open.len().max(1)];
        for (slot, failure) in failures {
            fail_key(&mut tallies, slot, failure);
        }
        let full = writes.iter().map(|entry| entry.ttl).collect();
        Self {
            work,
            open,
            fences,
            writes,
            full,
            results: Vec::new(),
            tallies,
            refused: Vec::new(),
            in_flight: false,
            sent: None,
            unread: None,
        }
    }

    fn tries(&self) -> Tries<'r> {
        Tries::new(&self.work.runner, &self.work.spec, self.open.len())
    }

    /// Before the first write, a refusal means that nothing was written. Before a repeated write, which
    /// shares its tries with this step, the keys stay unwritten.
    async fn add_names(
        &mut self,
        names: Vec<(usize, Vec<String>)>,
        report: &mut Report,
    ) -> Result<Reply<String>, Refusal> {
        let manifests = self.work.manifest_keys(self.open);
        let entries = |(place, keys): (usize, Vec<String>)| {
            Some(ManifestEntries { manifest: manifests.get(place)?.clone(), keys })
        };
        let entries: Vec<ManifestEntries> = names.into_iter().filter_map(entries).collect();
        let mut tries = self.sent.take().unwrap_or_else(|| self.tries());
        let is_repeated = !self.results.is_empty();
        loop {
            let runner = &self.work.runner;
            let life = entry_life(&self.work.spec.job);
            let added = runner.ledger.add_entries(&entries, runner.clock.now(), life).await;
            let refusal = match added {
                Ok(()) => break,
                Err(error) => Refusal::from(error),
            };
            if tries.again(&refusal, report).await {
                continue;
            }
            if is_repeated {
                self.work.give_up_after(refusal);
                return Ok(Reply::Failed);
            }
            return Err(refusal);
        }
        self.sent = is_repeated.then_some(tries);
        Ok(Reply::Done)
    }

    /// Writes the entries. Repeating a write is harmless.
    async fn write(&mut self, own: Life, shared: Life, report: &mut Report) -> Reply<String> {
        for (entry, full) in self.writes.iter_mut().zip(&self.full) {
            let life = match entry.kind {
                KeyKind::Static | KeyKind::Data => own,
                KeyKind::Shared => shared,
            };
            entry.ttl = match life {
                Life::Full => *full,
                Life::Provisional => (*full).min(PROVISIONAL_TTL),
            };
        }
        self.work.leased().await;
        if !self.writes.is_empty() {
            let all = |error: CacheError| self.writes.iter().map(|_| Err(error.clone())).collect();
            let results = self.work.runner.cache.write(&self.writes).await;
            self.results = results.unwrap_or_else(all);
        }
        let error = self.results.iter().find_map(transient).cloned();
        if let Some(error) = error {
            self.in_flight |= self.results.iter().any(may_arrive);
            let refusal = Refusal::from(error);
            let mut tries = self.sent.take().unwrap_or_else(|| self.tries());
            if tries.again(&refusal, report).await {
                self.sent = Some(tries);
                return Reply::Again;
            }
            self.work.give_up_after(refusal);
        } else if let Some(error) = self.refused_all() {
            self.work.give_up_after(Refusal::from(error.clone()));
        } else if self.results.iter().any(Result::is_ok) {
            self.work.runner.cache_writes.note_accepted();
        }
        self.tally_writes();
        self.sent_reply()
    }

    /// The error with which the cache refused every write, if the next batch would be refused too.
    fn refused_all(&self) -> Option<&CacheError> {
        let refusals = self.results.iter().map(|result| result.as_ref().err());
        let refusals: Option<Vec<&CacheError>> =
            refusals.map(|error| error.filter(|error| error.kind.is_of_all_writes())).collect();
        refusals?.first().copied()
    }

    fn tally_writes(&mut self) {
        for (entry, result) in self.writes.iter().zip(&self.results) {
            let Some(tally) = self.tallies.get_mut(entry.slot) else { continue };
            match result {
                Ok(()) => {
                    tally.keys.written += 1;
                    tally.bytes += entry.value.len() as u64;
                }
                Err(error) => {
                    self.refused.push(entry.slot);
                    let failure = refused(self.open, entry.slot, &entry.key, error);
                    tally.keys.failed += 1;
                    tally.fail(failure);
                }
            }
        }
    }

    fn sent_reply(&mut self) -> Reply<String> {
        let refused = std::mem::take(&mut self.refused);
        Reply::Sent { refused, in_flight: self.in_flight }
    }

    async fn remove(&mut self, gone: Vec<(usize, String)>, report: &mut Report) -> Reply<String> {
        let (places, keys): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
        let results = match self.work.runner.cache.remove(&keys).await {
            Ok(results) => results,
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        };
        for ((place, key), result) in places.into_iter().zip(keys).zip(results) {
            match (result, self.tallies.get_mut(place)) {
                (Ok(existed), _) => report.keys.removed += u64::from(existed),
                (Err(error), Some(tally)) => {
                    self.in_flight |= error.kind == CacheErrorKind::Unavailable;
                    self.refused.push(place);
                    tally.fail(refused(self.open, place, &key, &error));
                }
                (Err(_), None) => {}
            }
        }
        self.sent_reply()
    }

    /// Comes after the removals: if the job's `ttl` was shortened, keys whose manifest entries are pruned
    /// here may still exist.
    async fn prune(&self, places: &[usize]) -> Reply<String> {
        let Work { runner, spec, .. } = self.work;
        let manifests = self.work.manifest_keys(self.open);
        let manifests = places.iter().filter_map(|place| manifests.get(*place).cloned());
        let manifests: Vec<String> = manifests.collect();
        let before = runner.clock.now() - entry_life(&spec.job);
        match runner.ledger.prune(&manifests, before).await {
            Ok(()) => Reply::Done,
            // Entries that are too many do no harm, and the next run prunes again.
            Err(_) => Reply::Failed,
        }
    }

    async fn read_fences(&mut self, report: &mut Report) -> Reply<String> {
        let mut tries = self.tries();
        loop {
            let refusal = match self.work.fences(self.fences).await {
                Ok(fences) => return Reply::Fences(fences),
                Err(refusal) => refusal,
            };
            if !tries.again(&refusal, report).await {
                self.work.give_up_after(refusal.clone());
                self.unread = Some(refusal);
                return Reply::Failed;
            }
        }
    }

    /// Sets the TTLs of what was written as the tenants' verdicts ask for.
    async fn set_ttls(&mut self, extend: &[usize], shorten: &[usize]) -> Reply<String> {
        let mut lives: Vec<(String, Duration)> = Vec::new();
        let entries = self.writes.iter().zip(&self.full).zip(&self.results);
        for ((entry, full), _) in entries.filter(|(_, result)| result.is_ok()) {
            let is_of = |places: &[usize]| places.binary_search(&entry.slot).is_ok();
            if entry.ttl < *full && is_of(extend) {
                lives.push((entry.key.clone(), *full));
            } else if entry.ttl > PROVISIONAL_TTL && is_of(shorten) {
                lives.push((entry.key.clone(), PROVISIONAL_TTL));
            }
        }
        if lives.is_empty() {
            return Reply::Done;
        }
        let Err(error) = self.work.runner.cache.expire(&lives).await else { return Reply::Done };
        // The values are verified, but they expire after the provisional TTL all the same.
        let refusal = Refusal::from(error);
        for place in extend {
            if let Some(tally) = self.tallies.get_mut(*place) {
                tally.fail(failure_of(self.open, *place, &refusal));
            }
        }
        Reply::Failed
    }

    /// Adds the results of the tenants whose rounds are over to the run's report.
    fn count(&mut self, verdicts: &[Verdict], report: &mut Report) {
        let tallies = std::mem::take(&mut self.tallies);
        for (place, (mut tally, verdict)) in tallies.into_iter().zip(verdicts).enumerate() {
            match (verdict, &self.unread) {
                (Verdict::Again, _) => continue,
                (Verdict::Unknown, Some(refusal)) => {
                    tally.fail(failure_of(self.open, place, refusal));
                }
                (Verdict::Fenced, _) => {
                    tally.keys.fenced = std::mem::take(&mut tally.keys.written);
                }
                (Verdict::Verified | Verdict::Unknown, _) => {}
            }
            match verdict {
                _ if !tally.failures.is_empty() => fail_tally(&mut tally),
                Verdict::Fenced => tally.tenants.fenced = 1,
                Verdict::Verified | Verdict::Again | Verdict::Unknown => tally.tenants.ok = 1,
            }
            report.add(tally);
        }
    }
}

/// Fails a tenant with its first failure.
fn fail_tally(tally: &mut Report) {
    let Some(Failure { kind, tenant, message, .. }) = tally.failures.first().cloned() else {
        return;
    };
    tally.fail_tenant(tenant.as_deref(), kind, &message.into());
}

/// Whether a write that failed may still be done.
fn may_arrive(result: &KeyResult) -> bool {
    result.as_ref().is_err_and(|error| error.kind == CacheErrorKind::Unavailable)
}

fn transient(result: &KeyResult) -> Option<&CacheError> {
    result.as_ref().err().filter(|error| error.kind.is_transient())
}

fn fail_key(tallies: &mut [Report], slot: usize, failure: Failure) {
    if let Some(tally) = tallies.get_mut(slot) {
        tally.keys.failed += 1;
        tally.fail(failure);
    }
}

/// The failure of a key that the cache refused.
fn refused(open: &Batch, slot: usize, key: &str, error: &CacheError) -> Failure {
    let kind = error.kind.failure_kind();
    Failure {
        kind,
        tenant: id(open, slot),
        key: Some(key.to_owned()),
        message: error.message.clone(),
        count: 1,
    }
}

/// The failure of a whole tenant that could not be verified.
fn failure_of(open: &Batch, slot: usize, refusal: &Refusal) -> Failure {
    Failure::new(refusal.kind, id(open, slot), refusal.message.clone())
}

fn id(open: &Batch, slot: usize) -> Option<String> {
    open.tenant(slot).map(|tenant| tenant.id().to_owned())
}
