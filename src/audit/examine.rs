//! Compares the keys of a batch: the values that the database's rows make with the cache's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};

use crate::domain::audit::{Finding, Held, Keep, Measure, Wrong, judge};
use crate::domain::date::{self, first_dates};
use crate::domain::entry::{Entries, Value, entries};
use crate::domain::job::{Dates, Job, Scope};
use crate::domain::layout::{Checks, Layout};
use crate::domain::manifest::manifest_key;
use crate::domain::report::{Failure, FailureKind};
use crate::domain::tenant::{Batch, Tenant, Tenants};
use crate::engine::ports::{Clock, Found};
use crate::engine::run::Runner;
use crate::engine::run::retry::{Patience, Refusal};
use crate::invalidate::job_reader::JobReader;

use super::AuditError;

/// How many bytes of values one call reads from the cache, by the sizes of the expected values.
const SLICE_BYTES: usize = 1024 * 1024;
/// The most keys that one call reads.
const SLICE_KEYS: usize = 500;
/// The size that an unexpected value is assumed to have.
const UNEXPECTED_BYTES: usize = 64 * 1024;
/// Which keys of a batch to look at.
#[derive(Clone, Copy)]
pub(super) enum KeyFilter<'a> {
    /// All.
    All,
    /// Only these.
    Only(&'a HashSet<String>),
}

impl KeyFilter<'_> {
    fn has(self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(key),
        }
    }
}

/// The look at one key that should be in the cache, or is there, and what is wrong with it.
pub(super) struct Look<'a> {
    pub(super) key: &'a str,
    pub(super) tenant: Option<Tenant<'a>>,
    pub(super) wrong: Option<Wrong>,
}

impl Look<'_> {
    pub(super) fn tenant_id(&self) -> Option<String> {
        self.tenant.map(|tenant| tenant.id().to_owned())
    }

    pub(super) fn finding(self) -> Option<Finding> {
        let (key, tenant) = (self.key.to_owned(), self.tenant_id());
        self.wrong.map(|wrong| Finding { key, tenant, wrong })
    }
}

/// Receives the look at each key.
pub(super) type See<'a> = dyn FnMut(Look<'_>) + Send + 'a;

/// Compares the keys of one job, batch by batch.
pub(super) struct Examiner {
    reader: JobReader,
    checks: Checks,
    /// How many differences of a key are described.
    differences: usize,
    /// Whether findings keep the beginnings of both values.
    values: Keep,
    /// The same for the present look: suspects keep no values, as there may be very many.
    values_now: Keep,
    /// Keys that cannot be compared.
    failures: Vec<Failure>,
}

impl Examiner {
    pub(super) fn new(layout: Layout, job: &Arc<Job>, differences: usize, values: Keep) -> Self {
        Self {
            reader: JobReader::new(Arc::clone(job)),
            checks: Checks::new(layout, job),
            differences,
            values,
            values_now: Keep::Nothing,
            failures: Vec::new(),
        }
    }

    pub(super) fn job(&self) -> &Arc<Job> {
        self.reader.job()
    }

    /// Says whether what is wrong at the next looks is a finding, and no longer only a suspect.
    pub(super) fn decides(&mut self, is_last_look: bool) {
        self.values_now = if is_last_look { self.values } else { Keep::Nothing };
    }

    /// The batches of these tenants of a list.
    pub(super) fn batches(
        &mut self,
        list: &Arc<Tenants>,
        positions: Vec<u32>,
        clock: &dyn Clock,
    ) -> Vec<Batch> {
        self.reader.batches(list, positions, clock)
    }

    /// The failures since the last call, and how many tenants could not be read at all.
    pub(super) fn take_failures(&mut self) -> (Vec<Failure>, u64) {
        let (mut failures, tenants) = self.reader.take_failures();
        failures.append(&mut self.failures);
        (failures, tenants)
    }

    /// How long it waited for permits since the last call.
    pub(super) fn take_waited(&mut self) -> Duration {
        self.reader.take_waited()
    }

    /// Looks at the keys of a batch, split until all readable tenants are read.
    pub(super) async fn go(
        &mut self,
        runner: &Runner,
        batch: Batch,
        filter: KeyFilter<'_>,
        see: &mut See<'_>,
    ) -> Result<(), AuditError> {
        let mut left = vec![batch];
        while let Some(part) = self.reader.next(&mut left) {
            let looked = self.part(runner, &part, filter, see).await;
            self.reader.ended(part, looked, &mut left)?;
        }
        Ok(())
    }

    /// Reads some tenants and looks at their keys. If the database refuses, no key was looked at.
    async fn part(
        &mut self,
        runner: &Runner,
        part: &Batch,
        filter: KeyFilter<'_>,
        see: &mut See<'_>,
    ) -> Result<(), Refusal> {
        let now = runner.clock.now();
        let job = Arc::clone(self.job());
        let first_dates = first_dates(&job, part, now);
        // Before the query: a key that a run adds to a manifest in between is then expected.
        let mut named = self.named(runner, part).await?;
        let permit = self.reader.read(runner, part, &first_dates).await?;
        let found = entries(&job, &self.checks, part, &first_dates, permit.rows());
        let layout = self.checks.layout();
        for (slot, names) in named.iter_mut().enumerate() {
            let tenant = part.tenant(slot).map(|tenant| tenant.id());
            names.retain(|name| !layout.is_anothers(&job, tenant, name));
        }
        let midnights = Midnight::of_batch(&job, part, &first_dates, now);
        let keys = Keys::new(found, named, filter, &midnights, &mut self.failures);
        let (ttl, differences, values) = (job.ttl, self.differences, self.values_now);
        let measure = Measure { ttl, differences, values };
        for slice in keys.slices() {
            let (keys, expected) = keys.get(slice);
            let seen = look(runner, job.retries, keys).await?;
            for ((key, expected), seen) in keys.iter().zip(expected).zip(&seen) {
                let wrong = judge(expected.value.as_ref(), seen.held(), measure);
                let is_there = expected.value.is_some() || wrong.is_some();
                let is_new = || midnights.get(expected.slot).is_some_and(|night| night.begins(key));
                if is_there && !(matches!(seen, Seen::Nothing) && is_new()) {
                    see(Look { key, tenant: part.tenant(expected.slot), wrong });
                }
            }
        }
        Ok(())
    }

    /// The keys that the manifests of a part name, by slot; nothing for a job without manifests.
    async fn named(&self, runner: &Runner, part: &Batch) -> Result<Vec<Vec<String>>, Refusal> {
        if !self.job().has_manifests() {
            return Ok(Vec::new());
        }
        let job = self.job();
        let manifests: Vec<String> = match job.scope {
            Scope::Global => vec![manifest_key(&job.name, None)],
            Scope::Tenants => {
                part.tenants().map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
            }
        };
        let mut patience = Patience::new(job.retries);
        loop {
            let read = runner.ledger.manifest_keys(&manifests).await.map_err(Refusal::from);
            let Err(refusal) = read else { return read };
            if !patience.again(runner, &refusal).await {
                return Err(refusal);
            }
        }
    }
}

/// The keys of a part, with what is expected of each.
struct Keys<'r> {
    keys: Vec<String>,
    expected: Vec<Expected<'r>>,
}

/// What the database's rows say of a key.
struct Expected<'r> {
    slot: usize,
    /// `None` where the key should not exist.
    value: Option<Value<'r>>,
}

impl<'r> Keys<'r> {
    fn new(
        found: Entries<'r>,
        named: Vec<Vec<String>>,
        filter: KeyFilter<'_>,
        midnights: &[Midnight],
        failures: &mut Vec<Failure>,
    ) -> Self {
        let mut known: HashSet<String> = found.failed_keys().map(str::to_owned).collect();
        let Entries { writes, removals, failures: failed } = found;
        let mut all = Self { keys: Vec::new(), expected: Vec::new() };
        if let KeyFilter::All = filter {
            failures.extend(failed.into_iter().map(|(_, failure)| failure));
        }
        for entry in writes {
            if !named.is_empty() {
                known.insert(entry.key.clone());
            }
            all.push(entry.key, Expected { slot: entry.slot, value: Some(entry.value) }, filter);
        }
        // The old value of a key whose new value must not be written.
        for removal in removals {
            all.push(removal.key, Expected { slot: removal.slot, value: None }, filter);
        }
        for (slot, keys) in named.into_iter().enumerate() {
            let ends = |key: &str| midnights.get(slot).is_some_and(|night| night.ends(key));
            for key in keys.into_iter().filter(|key| !known.contains(key) && !ends(key)) {
                all.push(key, Expected { slot, value: None }, filter);
            }
        }
        all
    }

    fn push(&mut self, key: String, expected: Expected<'r>, filter: KeyFilter<'_>) {
        if filter.has(&key) {
            self.keys.push(key);
            self.expected.push(expected);
        }
    }

    /// Ranges of keys that are read with one call.
    fn slices(&self) -> Vec<std::ops::Range<usize>> {
        let mut slices = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, expected) in self.expected.iter().enumerate() {
            let more = expected.value.as_ref().map_or(UNEXPECTED_BYTES, Value::len);
            if index > start && (bytes + more > SLICE_BYTES || index - start >= SLICE_KEYS) {
                slices.push(start..index);
                (start, bytes) = (index, 0);
            }
            bytes += more;
        }
        if start < self.keys.len() {
            slices.push(start..self.keys.len());
        }
        slices
    }

    fn get(&self, slice: std::ops::Range<usize>) -> (&[String], &[Expected<'r>]) {
        let keys = self.keys.get(slice.clone()).unwrap_or_default();
        (keys, self.expected.get(slice).unwrap_or_default())
    }
}

/// Dates whose keys are no findings just after a tenant's midnight: dates that no run has warmed yet, and
/// dates whose keys no run has removed yet. A key is matched by the date's text in it.
#[derive(Default)]
struct Midnight {
    begun: Vec<String>,
    ended: Vec<String>,
}

impl Midnight {
    /// One for each slot; none if the job has no dates.
    fn of_batch(
        job: &Job,
        part: &Batch,
        first_dates: &[NaiveDate],
        now: DateTime<Utc>,
    ) -> Vec<Self> {
        let Some(dates) = &job.dates else { return Vec::new() };
        let between_runs = job.schedule.longest_gap().map(|gap| gap + job.timeout);
        let before = now - between_runs.unwrap_or(job.ttl).min(job.ttl);
        let of_slot = |(slot, first): (usize, &NaiveDate)| {
            let earlier = date::today(dates, part.tenant(slot), before);
            earlier.map_or_else(|_no_zone| Self::default(), |at| Self::between(dates, at, *first))
        };
        first_dates.iter().enumerate().map(of_slot).collect()
    }

    fn between(dates: &Dates, earlier: NaiveDate, first: NaiveDate) -> Self {
        let texts = |from: NaiveDate, to: NaiveDate| {
            from.iter_days().take_while(|date| *date < to).map(|date| date.to_string()).collect()
        };
        let after = |first| date::last(first, dates.days).succ_opt().unwrap_or(NaiveDate::MAX);
        Self { begun: texts(after(earlier), after(first)), ended: texts(earlier, first) }
    }

    /// Whether the key's date has just become one that has keys.
    fn begins(&self, key: &str) -> bool {
        self.begun.iter().any(|date| key.contains(date))
    }

    /// Whether the key's date has just stopped having keys.
    fn ends(&self, key: &str) -> bool {
        self.ended.iter().any(|date| key.contains(date))
    }
}

/// What the cache holds under a key.
enum Seen {
    Nothing,
    Found(Found),
    OtherType,
}

impl Seen {
    fn held(&self) -> Held<'_> {
        match self {
            Self::Nothing => Held::Nothing,
            Self::Found(Found { value, ttl }) => Held::Value(value, *ttl),
            Self::OtherType => Held::OtherType,
        }
    }
}

impl From<Option<Found>> for Seen {
    fn from(found: Option<Found>) -> Self {
        found.map_or(Self::Nothing, Self::Found)
    }
}

/// What the cache holds under some keys, in their order. If a key holds no string, the whole call fails; then
/// each key is read by itself.
async fn look(runner: &Runner, retries: u32, keys: &[String]) -> Result<Vec<Seen>, Refusal> {
    match look_once(runner, retries, keys).await {
        Err(refusal) if refusal.kind == FailureKind::CacheWrongType => {}
        found => return Ok(found?.into_iter().map(Seen::from).collect()),
    }
    let mut seen = Vec::with_capacity(keys.len());
    for key in keys.chunks(1) {
        match look_once(runner, retries, key).await {
            Err(refusal) if refusal.kind == FailureKind::CacheWrongType => {
                seen.push(Seen::OtherType);
            }
            found => seen.extend(found?.into_iter().map(Seen::from)),
        }
    }
    Ok(seen)
}

async fn look_once(
    runner: &Runner,
    retries: u32,
    keys: &[String],
) -> Result<Vec<Option<Found>>, Refusal> {
    let mut patience = Patience::new(retries);
    loop {
        let found = runner.cache.look(keys).await.map_err(Refusal::from);
        let Err(refusal) = found else { return found };
        if !patience.again(runner, &refusal).await {
            return Err(refusal);
        }
    }
}

/// Looks at keys that no job should have: each that exists is wrong.
pub(super) async fn unexpected(
    runner: &Runner,
    keys: &[String],
) -> Result<Vec<Option<Wrong>>, AuditError> {
    const RETRIES: u32 = 3;
    let seen = look(runner, RETRIES, keys).await?;
    let measure = Measure { ttl: Duration::ZERO, differences: 0, values: Keep::Nothing };
    Ok(seen.iter().map(|seen| judge(None, seen.held(), measure)).collect())
}
