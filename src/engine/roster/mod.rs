//! Which tenants may have keys: a tenant that is no longer active loses its own, and a tenant list
//! that shrank too much is not trusted.
//!
//! Every complete tenant list is compared with a book in the cache that names the tenants that may
//! have keys. Who is missing is marked with the moment and swept: all its keys are removed, and
//! again with each list until no run can be under way that still has an older one. Then its note is
//! struck out. The book outlives restarts; where the cache lost it, it is written anew, with those
//! that the worker remembers.
//!
//! Too many missing at once look like a wrong database or a bad deploy. Nothing is marked or removed
//! then, and no run goes by that list.

mod note;
mod sweep;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Mutex;

pub use self::note::Noted;
use self::note::{Changes, Leaving, Remembered};
use self::sweep::{Sweep, Swept};
use super::port::{Book, CacheError, Ledger};
use super::run::Runner;
use crate::domain::fence::{fence_key, start_number};
use crate::domain::job::{Jobs, Share};
use crate::domain::tenant::Tenants;
use crate::observe::event;

/// After this long the book is looked at even if nobody came or went: it may have been evicted, the
/// cache may be another one, or another worker may have changed it.
pub(super) const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// Tenants whose keys are in memory at once.
const SLICE: usize = 200;

/// After a sweep, tenants that were swept once rest for so many times as long as it took: sweeping
/// again is for the rare run with an older list and may not become the cache's main occupation.
const REST: u32 = 9;

/// How much longer than the longest run a tenant is swept: a last write may still be on its way, and
/// another worker's clock may differ.
const MARGIN: TimeDelta = TimeDelta::minutes(1);

/// Compares tenant lists with the tenants that may have keys.
pub struct Roster {
    max_shrink: Share,
    /// Lists take turns: held over awaits, since one list is compared and swept after the other.
    memory: Mutex<Memory>,
}

/// What is known of the last list, so that one that is the same asks nothing of the cache.
#[derive(Default)]
struct Memory {
    /// The newest list that had its turn.
    newest: u64,
    /// The last look at the book; none where it failed or was cut off.
    seen: Option<Seen>,
    /// Until when, on the monotonic clock, tenants that were swept once are left alone.
    rests_until: Duration,
    /// What stands in the book, for when the cache loses it.
    remembered: Remembered,
    /// That the last list shrank, which was told: each run by the same list fails for it in short.
    told: Option<Shrank>,
}

#[derive(Clone, Copy)]
struct Seen {
    digest: u64,
    at: Duration,
    /// How often the cache server had been restarted by then.
    restarts: u64,
    /// Whether tenants are gone whose grace has not passed.
    leaving: bool,
}

/// The tenant list lacks more of the known tenants than it may.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{gone} of {known} tenants are missing from the tenant list, which has {listed}: more than \
     `tenants.max_shrink` ({max_shrink}) allows; nothing is warmed and nothing removed, as it may be \
     the wrong database or a bad deploy; hint: if the list is right, run `preheat warm` once with \
     `PREHEAT_TENANTS__MAX_SHRINK=100%`"
)]
pub(crate) struct Shrank {
    gone: usize,
    known: usize,
    listed: usize,
    max_shrink: Share,
}

impl Shrank {
    /// The same in short, for each of the runs that could not go by the list.
    pub(super) fn in_short(&self) -> String {
        let Self { gone, known, listed: _, max_shrink } = self;
        format!(
            "{gone} of {known} tenants are missing from the tenant list, more than \
             `tenants.max_shrink` ({max_shrink}) allows: nothing is warmed and nothing removed"
        )
    }
}

/// Why no run may go by a tenant list.
#[derive(Clone, Debug)]
pub(super) enum Distrust {
    /// It lacks too many.
    Shrank(Shrank),
    /// Who came could not be noted: keys that are written now would be found by nobody once their
    /// tenant is gone.
    Unnoted(CacheError),
}

/// What a look found and did.
struct Looked {
    /// Whether tenants are gone whose grace has not passed.
    leaving: bool,
    /// How long it swept; none where there was nobody to sweep.
    swept_for: Option<Duration>,
    /// The first removal that was refused, where one was.
    refused: Option<CacheError>,
}

impl Roster {
    /// One that trusts a list which lacks up to this share of the known tenants.
    pub fn new(max_shrink: Share) -> Self {
        Self { max_shrink, memory: Mutex::default() }
    }

    /// All tenants that may have keys, with their columns.
    pub async fn known(&self, ledger: &dyn Ledger) -> Result<Noted, CacheError> {
        Ok(Noted::read(ledger.notes(Book::Tenants).await?))
    }

    /// The notes of all tenants of a list, as they are written where the cache has none yet.
    pub(super) fn first_notes(list: &Tenants) -> Vec<(String, String)> {
        Changes::between(HashMap::new(), list).notes
    }

    /// Whether a list may say that `gone` of the `known` tenants are so.
    pub(crate) fn trust(&self, gone: usize, known: usize, listed: usize) -> Result<(), Shrank> {
        let max_shrink = self.max_shrink;
        if max_shrink.covers(gone, known) {
            return Ok(());
        }
        Err(Shrank { gone, known, listed, max_shrink })
    }

    /// Takes a complete tenant list. `number` says in which order lists were begun: one that was
    /// begun before another that had its turn already says nothing new about who is gone.
    ///
    /// Removals that fail are no reason to refuse a list; they are told, and made with the next one.
    pub(super) async fn take(
        &self,
        runner: &Runner,
        list: &Arc<Tenants>,
        number: u64,
    ) -> Result<(), Distrust> {
        let mut memory = self.memory.lock().await;
        if number < memory.newest {
            return Ok(());
        }
        memory.newest = number;
        let jobs = runner.jobs.get();
        let (digest, now) = (digest(list), runner.clock.monotonic());
        let restarts = runner.cache_process.restarts();
        let rested = now >= memory.rests_until;
        let may_be_there = memory.seen.filter(|seen| seen.restarts == restarts);
        if may_be_there.is_some_and(|seen| seen.is_enough(digest, now, rested)) {
            return Ok(());
        }
        memory.seen = None;
        let looked = self.look(runner, list, &jobs, &mut memory).await;
        let shrank = if let Err(Distrust::Shrank(shrank)) = &looked { Some(shrank) } else { None };
        if let Some(shrank) = shrank
            && memory.told.as_ref() != Some(shrank)
        {
            event::TenantsShrank { message: &shrank.to_string() }.emit(&runner.metrics);
        }
        memory.told = shrank.cloned();
        let Looked { leaving, swept_for, refused } = looked?;
        if let Some(swept_for) = swept_for {
            memory.rests_until = runner.clock.monotonic() + swept_for * REST;
        }
        match refused {
            Some(CacheError { message, kind: _ }) => {
                event::RosterUnavailable { message: &message }.emit(&runner.metrics);
            }
            None => memory.seen = Some(Seen { digest, at: now, restarts, leaving }),
        }
        Ok(())
    }

    /// Compares a list with the book, brings the book up to date, and sweeps who is gone.
    async fn look(
        &self,
        runner: &Runner,
        list: &Arc<Tenants>,
        jobs: &Jobs,
        memory: &mut Memory,
    ) -> Result<Looked, Distrust> {
        let ledger = runner.ledger.as_ref();
        let unnoted = Distrust::Unnoted;
        let book = ledger.notes(Book::Tenants).await.map_err(unnoted)?;
        let mut book: HashMap<String, String> = book.into_iter().collect();
        let now = runner.clock.now();
        let forgotten = memory.remembered.lacking(&book, now - grace(jobs));
        if !forgotten.is_empty() {
            ledger.note(Book::Tenants, &forgotten).await.map_err(unnoted)?;
            book.extend(forgotten);
        }
        let Changes { known, mut notes, back, gone, leaving } = Changes::between(book, list);
        self.trust(gone.len(), known, list.len()).map_err(Distrust::Shrank)?;
        // Whoever sweeps it elsewhere at this moment may remove what is written of it from here on.
        let fences: Vec<String> = back.iter().map(|id| fence_key(id)).collect();
        if !fences.is_empty() {
            let number = start_number(runner.clock.random());
            ledger.move_fences(&fences, number).await.map_err(unnoted)?;
        }
        // Marked before it is swept: what is cut off now goes on with the next list.
        notes.extend(gone.iter().map(|tenant| tenant.mark(now)));
        ledger.note(Book::Tenants, &notes).await.map_err(unnoted)?;
        drop(notes);
        let gone_now = gone.iter().map(|tenant| tenant.since(now));
        memory.remembered = Remembered {
            active: Arc::clone(list),
            leaving: gone_now.chain(leaving.iter().cloned()).collect(),
        };

        let (newly, left) = (gone.len(), leaving.len());
        let mut due = gone;
        let began = runner.clock.monotonic();
        if began >= memory.rests_until {
            due.extend(leaving);
        }
        if due.is_empty() {
            return Ok(Looked { leaving: left > 0, swept_for: None, refused: None });
        }
        let mut swept = Swept::default();
        let sweep = Sweep { runner, jobs, active: list, now };
        let done = sweep_all(&sweep, &due, &mut swept).await;
        let removed = &swept.removed;
        event::TenantsSwept { newly, again: due.len() - newly, removed }.emit(&runner.metrics);
        Ok(Looked {
            leaving: newly + left > swept.struck,
            swept_for: Some(runner.clock.monotonic().saturating_sub(began)),
            refused: done.err().or(swept.refused),
        })
    }
}

/// Sweeps tenants slice by slice, and strikes out those that nobody can write for any more.
async fn sweep_all(
    sweep: &Sweep<'_>,
    due: &[Leaving],
    swept: &mut Swept,
) -> Result<(), CacheError> {
    let grace = grace(sweep.jobs);
    for some in due.chunks(SLICE) {
        let complete = sweep.slice(some, swept).await?;
        let over = |tenant: &&Leaving| tenant.gone_at.is_some_and(|at| at + grace <= sweep.now);
        let over: Vec<String> = some.iter().filter(over).map(|tenant| tenant.id.clone()).collect();
        if complete && !over.is_empty() {
            sweep.runner.ledger.strike(Book::Tenants, &over).await?;
            swept.struck += over.len();
        }
    }
    Ok(())
}

/// How long after its tenant was gone a run with an older list may still write.
fn grace(jobs: &Jobs) -> TimeDelta {
    let longest = jobs.values().map(|job| job.timeout).max().unwrap_or_default();
    TimeDelta::from_std(longest).unwrap_or(TimeDelta::MAX / 2) + MARGIN
}

impl Seen {
    /// Whether a list with this digest needs no look at the book.
    fn is_enough(self, digest: u64, now: Duration, rested: bool) -> bool {
        let fresh = now.saturating_sub(self.at) < LOOK_AGAIN;
        let nobody_to_sweep = !self.leaving || !rested;
        self.digest == digest && fresh && nobody_to_sweep
    }
}

/// A number that two lists hardly have in common. The order of the tenants does not count: a query may
/// leave it open.
fn digest(list: &Tenants) -> u64 {
    let names: Vec<&str> = list.column_names().collect();
    let of_one = |hash: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        hash(&mut hasher);
        hasher.finish()
    };
    let tenants = list.iter().map(|tenant| {
        of_one(&|hasher| {
            tenant.id().hash(hasher);
            for name in &names {
                tenant.column(name).hash(hasher);
            }
        })
    });
    let sum = tenants.fold(0, u64::wrapping_add);
    of_one(&|hasher| (sum, list.len(), &names).hash(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tenants: &[(&str, Option<&str>)]) -> Tenants {
        let mut list = Tenants::with_columns(["plan"]);
        for (id, plan) in tenants {
            list.push(id, [*plan]);
        }
        list
    }

    #[test]
    fn a_lists_digest_depends_on_all_of_it_but_its_order() {
        let of = |tenants: &[_]| digest(&list(tenants));
        let one = of(&[("a", Some("free")), ("b", None)]);
        assert_eq!(one, of(&[("b", None), ("a", Some("free"))]));
        for other in [
            of(&[("a", Some("free"))]),
            of(&[("a", Some("paid")), ("b", None)]),
            of(&[("a", None), ("b", Some("free"))]),
            of(&[("a", Some("free")), ("b", None), ("b", None)]),
            of(&[("ab", Some("free")), ("", None)]),
            of(&[]),
        ] {
            assert_ne!(one, other);
        }
    }
}
