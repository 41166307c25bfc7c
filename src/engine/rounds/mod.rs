//! Some tenants of a batch, from their fences to values that are proven: look, read, write, look
//! again, and all of it once more for those whose data changed meanwhile. What to do is decided by
//! [`Rounds`]; here it is done.

mod doubt;
mod manifests;

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};

use self::doubt::Doubt;
use self::manifests::List;
use super::batch::{Work, fail_all};
use super::limit::{BatchPermit, Lane, Room};
use super::port::{CacheError, CacheErrorKind, KeyResult, Read};
use super::taken::Taken;
use super::tries::{Refusal, Remedy, Tries};
use crate::domain::date::first_dates;
use crate::domain::entry::{Entries, Entry, Removal, entries};
use crate::domain::fence::{FLEET, Fence, Life, PROBATION, Rounds, fence_key, start_number};
use crate::domain::job::Scope;
use crate::domain::manifest::Named;
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::tenant::{Batch, TenantId};
use crate::observe::event::Server;

/// How much later than the run's deadline a server gives a query up: the deadline itself is to end
/// the run, and not a query that failed a moment before.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// What was read of some tenants before anything of theirs is written.
struct Reading {
    /// When it began, on the monotonic clock.
    began: Duration,
    /// Holds their rows.
    permit: BatchPermit,
    first_dates: Vec<NaiveDate>,
    /// The key of each slot's fence.
    fence_keys: Vec<String>,
    /// How it stood before the query.
    fences: Vec<Fence>,
    /// The keys that each slot's manifest names; none where the job has no listed keys.
    named: Vec<Vec<Named>>,
}

/// What a round wrote, while nobody knows yet whether the data changed meanwhile.
struct Draft<'r> {
    life: Life,
    entries: Vec<Entry<'r>>,
    /// How long each entry lives once it is proven.
    full: Vec<Duration>,
    results: Vec<KeyResult>,
    /// What became of each slot.
    tallies: Vec<Report>,
    /// Whether nothing that was sent can still be on its way.
    is_certain: bool,
    /// When the keys were last named.
    named_at: DateTime<Utc>,
}

/// What became of writes.
struct Written {
    results: Vec<KeyResult>,
    /// Whether nothing of it can come later.
    is_certain: bool,
    /// When the keys were last named.
    named_at: DateTime<Utc>,
}

/// What a tenant comes to at the end of its rounds.
#[derive(Clone, Copy)]
enum Fate {
    Settled,
    Fenced,
}

impl Work {
    /// Warms some tenants, until what was written is proven or their rounds are used up. A refusal
    /// means that nothing of theirs was written.
    pub(super) async fn part(&self, part: &Batch, report: &mut Report) -> Result<(), Refusal> {
        let life = match self.order.lane {
            Lane::Regular => Life::Full,
            Lane::Urgent => Life::Probation,
        };
        let mut doubt = Doubt::new(self, part);
        let reading = self.reading(part, self.order.lane, report).await?;
        let mut rounds = Rounds::begin(reading.fences.iter().copied(), life);
        let mut left = self.round(part, reading, (&mut rounds, &mut doubt), report).await?;
        while rounds.goes_on() {
            let open = part.some(rounds.slots());
            match self.next_round(&open, (&mut rounds, &mut doubt), report).await {
                Ok(after) => left = after,
                Err(refusal) => {
                    fail_all(&open, refusal.kind, &refusal.message, report);
                    self.give_up_after(refusal);
                    return Ok(());
                }
            }
        }
        for tally in left {
            count(tally, Fate::Fenced, report);
        }
        Ok(())
    }

    async fn next_round(
        &self,
        open: &Batch,
        (rounds, doubt): (&mut Rounds, &mut Doubt<'_>),
        report: &mut Report,
    ) -> Result<Vec<Report>, Refusal> {
        // What may be old is in the cache at this moment: it goes before others.
        let reading = self.reading(open, Lane::Urgent, report).await?;
        rounds.stand(&reading.fences);
        self.round(open, reading, (rounds, doubt), report).await
    }

    /// Reads, until it works or may not be tried again. No permit is held while it waits: other jobs
    /// go on.
    async fn reading(
        &self,
        part: &Batch,
        lane: Lane,
        report: &mut Report,
    ) -> Result<Reading, Refusal> {
        let mut room = Room::Batch;
        let mut tries = Tries::new(&self.runner, &self.order, part.len());
        loop {
            let refusal = match self.read_once(part, (lane, room), report).await {
                Ok(reading) => break Ok(reading),
                Err(refusal) => refusal,
            };
            if refusal.remedy == Remedy::AwaitLock {
                *self.locked() = Some(refusal.message.clone());
            }
            let is_giant = refusal.kind == FailureKind::TooManyRows && part.len() <= 1;
            match room {
                // A batch can be split; one tenant cannot, so it gets the room of all batches.
                Room::Batch if is_giant => room = Room::Giant,
                Room::Batch | Room::Giant => {
                    if !tries.again(&refusal, report).await {
                        break Err(refusal);
                    }
                }
            }
        }
    }

    async fn read_once(
        &self,
        part: &Batch,
        (lane, room): (Lane, Room),
        report: &mut Report,
    ) -> Result<Reading, Refusal> {
        let runner = &self.runner;
        let mut permit = runner.limits.room_of(&self.order.job, lane, room).await;
        // Before the query, and so is the manifest: rows that cannot be written afterwards would be
        // read for nothing.
        let began = runner.clock.monotonic();
        let fence_keys = self.fence_keys(part);
        let fences = self.fences_before(&fence_keys).await?;
        let named = self.named(part).await?;
        runner.may_ask(Server::Database)?;
        report.queries += 1;
        let left = self.deadline_at.saturating_sub(runner.clock.monotonic());
        let first_dates = first_dates(&self.order.job, part, self.started_at);
        let read = Read { batch: part, first_dates: &first_dates, timeout: left + DEADLINE_GRACE };
        let rows = permit.empty_rows(self.key_columns);
        let result = runner.source.read(&self.order.job, read, rows).await;
        runner.note_query(result.as_ref().err());
        result?;
        self.it_worked();
        if let (Some(tenant), 1) = (part.tenant(0), part.len()) {
            runner.broken.works(&self.order.job.name, tenant.id());
        }
        Ok(Reading { began, permit, first_dates, fence_keys, fences, named })
    }

    /// One round; answers what became of those whose data changed meanwhile.
    async fn round(
        &self,
        open: &Batch,
        reading: Reading,
        (rounds, doubt): (&mut Rounds, &mut Doubt<'_>),
        report: &mut Report,
    ) -> Result<Vec<Report>, Refusal> {
        let Reading { began, permit, first_dates, fence_keys, fences: _, named } = reading;
        let (job, checks) = (&self.order.job, &self.checks);
        let found = entries(job, checks, open, &first_dates, permit.rows());
        let slots: Vec<usize> = rounds.slots().collect();
        let lists = self.lists(open, doubt.recall(&slots, named), &found);
        let named_at = self.enlist(open, &lists, report).await?;

        let is_first = doubt.begin(&slots, &lists, named_at);
        let draft = self.write(open, (found, &lists, named_at), rounds.life(), report).await;
        if !draft.is_certain {
            doubt.lost.extend(&slots);
        }
        let fences = match self.fences_after(open, &fence_keys, report).await {
            Ok(fences) => fences,
            Err(refusal) => {
                rounds.abandon();
                self.name_late(&lists, draft.named_at).await;
                fail_each(open, draft.tallies, &refusal, report);
                return Ok(Vec::new());
            }
        };
        let verdict = rounds.look(&fences);
        let is_settled = |slot: &usize| verdict.settled.binary_search(slot).is_ok();
        let settled: Vec<bool> = slots.iter().map(is_settled).collect();
        let lives = self.set_lives(&draft, &settled).await;
        if lives.is_err() {
            // What was sent may come late, and shorten or prolong the life of what is there then.
            doubt.lost.extend(&slots);
        }
        if self.name_late(&lists, draft.named_at).await {
            doubt.lost.extend(&slots);
        }
        let unsettled = slots.iter().zip(&lists).filter(|(slot, _)| !is_settled(slot));
        unsettled.for_each(|(slot, list)| doubt.remember(*slot, list, draft.named_at));
        let mut moved = Vec::new();
        for (place, (mut tally, slot)) in draft.tallies.into_iter().zip(slots).enumerate() {
            if !is_settled(&slot) {
                moved.push(tally);
                continue;
            }
            // A round before may have left under a key what this one could not write over: others
            // may prolong it, who take it for theirs.
            if is_first || tally.failures.is_empty() {
                doubt.settle(slot, lists.get(place), began);
            }
            match &lives {
                // They are proven, and gone in some seconds all the same.
                Err(refusal) if draft.life == Life::Probation => {
                    tally.fail(failure_of(open, place, refusal));
                }
                Ok(()) | Err(_) => {}
            }
            count(tally, Fate::Settled, report);
        }
        Ok(moved)
    }

    /// Writes what was found, and removes what is gone.
    async fn write<'r>(
        &self,
        open: &Batch,
        (found, lists, named_at): (Entries<'r>, &[List], DateTime<Utc>),
        life: Life,
        report: &mut Report,
    ) -> Draft<'r> {
        let Entries { writes: mut entries, removals, failures } = found;
        let mut tallies = vec![Report::default(); open.len().max(1)];
        for (slot, failure) in failures {
            fail_key(&mut tallies, slot, failure);
        }
        let full = entries.iter().map(|entry| entry.ttl).collect();
        for entry in &mut entries {
            entry.ttl = match life {
                Life::Full => entry.ttl,
                Life::Probation => entry.ttl.min(PROBATION),
            };
        }
        let written = self.write_entries(open, (&entries, lists, named_at), report).await;
        let Written { results, is_certain, named_at } = written;
        for (entry, result) in entries.iter().zip(&results) {
            match (result, tallies.get_mut(entry.slot)) {
                (Ok(()), Some(tally)) => {
                    tally.keys.written += 1;
                    tally.bytes += entry.value.len() as u64;
                }
                (Err(error), _) => {
                    let failure = refused(open, entry.slot, &entry.key, error);
                    fail_key(&mut tallies, entry.slot, failure);
                }
                (Ok(()), None) => {}
            }
        }
        let written = entries.iter().zip(&results).filter(|(_, result)| result.is_ok());
        let written: HashSet<&str> = written.map(|(entry, _)| entry.key.as_str()).collect();
        let vanished = self.vanished(open, (lists, &written), &mut tallies).await;
        let removals: Vec<_> = removals.into_iter().chain(vanished).collect();
        let all_answered = self.remove(open, removals, &mut tallies, report).await;
        let is_certain = is_certain && all_answered;
        if tallies.iter().all(|tally| tally.failures.is_empty()) {
            self.delist(lists).await;
        }
        Draft { life, entries, full, results, tallies, is_certain, named_at }
    }

    /// Writes the entries, again where that may help: a repeated write is harmless, and names its keys
    /// anew, as the cache may have been restarted. Says also whether nothing of it can come later: what
    /// was sent to a server that then did not answer may.
    async fn write_entries(
        &self,
        part: &Batch,
        (writes, lists, mut named_at): (&[Entry<'_>], &[List], DateTime<Utc>),
        report: &mut Report,
    ) -> Written {
        if writes.is_empty() {
            return Written { results: Vec::new(), is_certain: true, named_at };
        }
        let mut tries = Tries::new(&self.runner, &self.order, part.len());
        let (mut is_certain, mut named) = (true, Ok(named_at));
        loop {
            let (results, left_alone) = self.write_once(writes, named.as_ref().err()).await;
            let error = results.iter().find_map(transient).cloned();
            let Some(error) = error else { return Written { results, is_certain, named_at } };
            is_certain &= error.kind != CacheErrorKind::Unavailable;
            let refusal = left_alone.unwrap_or_else(|| Refusal::from(error));
            if !tries.again(&refusal, report).await {
                self.give_up_after(refusal);
                return Written { results, is_certain, named_at };
            }
            named = self.give_all_names(lists).await;
            named_at = *named.as_ref().unwrap_or(&named_at);
        }
    }

    /// `unnamed` is why the keys could not be named, without which they are not written. Says also
    /// whether that is since the cache was left alone.
    async fn write_once(
        &self,
        writes: &[Entry<'_>],
        unnamed: Option<&CacheError>,
    ) -> (Vec<KeyResult>, Option<Refusal>) {
        let all = |error: CacheError| writes.iter().map(|_| Err(error.clone())).collect();
        if let Some(error) = unnamed {
            return (all(error.clone()), None);
        }
        if let Err(refusal) = self.runner.may_ask(Server::Cache) {
            let (kind, message) = (CacheErrorKind::Unavailable, refusal.message.clone());
            return (all(CacheError { kind, message }), Some(refusal));
        }
        let results = self.runner.cache.write(writes).await.unwrap_or_else(all);
        // One answer that is no such error shows that the server is there.
        let unreachable = results.iter().all(|result| transient(result).is_some());
        let error = results.first().and_then(transient).filter(|_| unreachable);
        self.runner.note(Server::Cache, error.map(|error| error.message.as_str()));
        (results, None)
    }

    /// Removes keys; says whether the cache answered, so that nothing of it can come later.
    async fn remove(
        &self,
        open: &Batch,
        removals: Vec<Removal>,
        tallies: &mut [Report],
        report: &mut Report,
    ) -> bool {
        if removals.is_empty() {
            return true;
        }
        let (slots, keys): (Vec<_>, Vec<_>) =
            removals.into_iter().map(|removal| (removal.slot, removal.key)).unzip();
        let results = match self.runner.cache.remove(&keys).await {
            Ok(results) => results,
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        };
        self.note_taken(open, slots.iter().zip(&keys).zip(&results));
        let mut all_answered = true;
        for ((slot, key), result) in slots.into_iter().zip(keys).zip(results) {
            match (result, tallies.get_mut(slot)) {
                (Ok(existed), _) => report.keys.removed += u64::from(existed),
                (Err(error), Some(tally)) => {
                    all_answered &= error.kind != CacheErrorKind::Unavailable;
                    tally.fail(refused(open, slot, &key, &error));
                }
                (Err(_), None) => {}
            }
        }
        all_answered
    }

    /// Takes note of keys that are gone, or may go, and may be other tenants' (see `taken.rs`).
    fn note_taken<'a>(
        &self,
        open: &Batch,
        removed: impl Iterator<Item = ((&'a usize, &'a String), &'a Result<bool, CacheError>)>,
    ) {
        let job = &self.order.job;
        if !job.has_keys_that_move() {
            return;
        }
        let mut answered = Vec::new();
        for ((slot, key), result) in removed {
            let Some(tenant) = open.tenant(*slot) else { continue };
            let taken = Taken { key: key.clone(), from: TenantId::new(tenant.id()) };
            match result {
                Ok(true) => answered.push(taken),
                Err(error) if error.kind.is_transient() => self.uncertain().unanswered.push(taken),
                Ok(false) | Err(_) => {}
            }
        }
        self.runner.taken.add(&job.name, answered, self.runner.clock.monotonic());
    }
}

/// The fences.
impl Work {
    fn fence_keys(&self, part: &Batch) -> Vec<String> {
        match self.order.job.scope {
            Scope::Tenants => part.tenants().map(|tenant| fence_key(tenant.id())).collect(),
            Scope::Fleet => vec![FLEET.to_owned()],
        }
    }

    /// How the fences stand before a query, each of them one to rely on.
    async fn fences_before(&self, keys: &[String]) -> Result<Vec<Fence>, Refusal> {
        let mut fences = self.fences(keys).await?;
        let unsafe_ones = fences.iter().zip(keys).filter(|(fence, _)| fence.needs_start());
        let unsafe_ones: Vec<_> = unsafe_ones.map(|(fence, key)| (key.clone(), *fence)).collect();
        if unsafe_ones.is_empty() {
            return Ok(fences);
        }
        let number = start_number(self.runner.clock.random());
        let started = self.runner.ledger.start_fences(&unsafe_ones, number).await?;
        let mut started = started.into_iter();
        for fence in fences.iter_mut().filter(|fence| fence.needs_start()) {
            *fence = started.next().unwrap_or(*fence);
        }
        Ok(fences)
    }

    /// How the fences stand after the writes.
    async fn fences_after(
        &self,
        part: &Batch,
        keys: &[String],
        report: &mut Report,
    ) -> Result<Vec<Fence>, Refusal> {
        let mut tries = Tries::new(&self.runner, &self.order, part.len());
        loop {
            let refusal = match self.fences(keys).await {
                Ok(fences) => return Ok(fences),
                Err(refusal) => refusal,
            };
            if !tries.again(&refusal, report).await {
                self.give_up_after(refusal.clone());
                return Err(refusal);
            }
        }
    }

    async fn fences(&self, keys: &[String]) -> Result<Vec<Fence>, Refusal> {
        self.runner.may_ask(Server::Cache)?;
        let fences = self.runner.ledger.fences(keys).await;
        self.runner.note_cache(fences.as_ref().err());
        Ok(fences?)
    }

    /// Gives what a round wrote the life that it has earned.
    async fn set_lives(&self, draft: &Draft<'_>, settled: &[bool]) -> Result<(), Refusal> {
        let is_settled = |slot: usize| settled.get(slot).copied().unwrap_or(false);
        let entries = draft.entries.iter().zip(&draft.full).zip(&draft.results);
        let written = entries.filter(|(_, result)| result.is_ok()).map(|(entry, _)| entry);
        let lives =
            written.filter_map(|(entry, full)| match (draft.life, is_settled(entry.slot)) {
                (Life::Full, true) | (Life::Probation, false) => None,
                (Life::Full, false) => Some((entry.key.clone(), full.min(&PROBATION).to_owned())),
                (Life::Probation, true) => Some((entry.key.clone(), *full)),
            });
        let lives: Vec<_> = lives.collect();
        if lives.is_empty() {
            return Ok(());
        }
        Ok(self.runner.cache.expire(&lives).await?)
    }
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

/// A key that the cache refused.
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

/// A whole tenant that could not be proven.
fn failure_of(open: &Batch, slot: usize, refusal: &Refusal) -> Failure {
    Failure::new(refusal.kind, id(open, slot), refusal.message.clone())
}

fn id(open: &Batch, slot: usize) -> Option<String> {
    open.tenant(slot).map(|tenant| tenant.id().to_owned())
}

/// Tenants that were written, and of which nobody knows whether their data changed meanwhile.
fn fail_each(open: &Batch, tallies: Vec<Report>, refusal: &Refusal, report: &mut Report) {
    for (place, mut tally) in tallies.into_iter().enumerate() {
        tally.fail(failure_of(open, place, refusal));
        count(tally, Fate::Settled, report);
    }
}

/// A tenant of which something failed, named by its first failure.
fn fail_tally(tally: &mut Report) {
    let Some(Failure { kind, tenant, message, .. }) = tally.failures.first().cloned() else {
        return;
    };
    tally.fail_tenant(tenant.as_deref(), kind, &message.into());
}

/// Adds what became of a tenant to its run's report.
fn count(mut tally: Report, fate: Fate, report: &mut Report) {
    match fate {
        _ if !tally.failures.is_empty() => fail_tally(&mut tally),
        Fate::Settled => tally.tenants.ok = 1,
        Fate::Fenced => tally.tenants.fenced = 1,
    }
    if let Fate::Fenced = fate {
        tally.keys.fenced = std::mem::take(&mut tally.keys.written);
    }
    report.add(tally);
}
