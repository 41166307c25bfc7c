//! The protocol by which a warmer writes the tenants of a batch, as a machine without I/O.
//!
//! The order of the steps *is* the protocol, and only this module knows it: [`Warm::next`] takes the
//! reply to the last step and returns the next step. The engine does the steps on the real servers
//! (`engine/run/warm.rs`). The model of interleavings does the same steps in a simulated world
//! (`tests/it/interleavings`), a million times, with everything that can go wrong in between. Each
//! [`Sabotage`] is a switch that breaks this machine, and the model must notice it.
//!
//! ```text
//!  round   ┌▶ fences ─ start ─ manifests ─ query ─ add names ─ write ─ remove ─ prune ─ fences ─ set TTLs ─┐
//!          └──────────────── the tenants whose fence moved, at most ROUNDS times ◀──────────────────────────┘
//! ```
//!
//! A tenant is *verified* if its fence stood still from before the query until after the writes: then
//! nobody changed its data meanwhile, and the written values equal the database's. If the fence moved,
//! or the warmer could not find out whether it moved, the tenant is *unverified*: its values live only
//! for [`PROVISIONAL_TTL`], and a follow-up run must warm it again ([`Warm::unverified`]).
//!
//! This is the lease of the memcache paper (Nishtala et al., "Scaling Memcache at Facebook", 2013,
//! section 3.2.1) without a script in the server, so that it works on a cluster and over HTTP too.
//!
//! [`PROVISIONAL_TTL`]: super::fence::PROVISIONAL_TTL

mod sabotage;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

pub use self::sabotage::Sabotage;
use super::fence::Fence;
use super::manifest::vanished;

/// How many rounds a tenant gets in one run before it stays unverified.
pub const ROUNDS: u32 = 3;

/// How long the values of a round may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The job's TTL.
    Full,
    /// The provisional TTL: the data is known to be changing.
    Provisional,
}

/// What to do next. A *place* is a position in [`Warm::open`]; all lists are in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<K> {
    /// Read the fences of all open places. Reply: [`Reply::Fences`].
    ReadFences,
    /// Start the fences of these places, which had these states: they are missing, or may reach again a
    /// number that they had before. Reply: [`Reply::Fences`], one for each of these places.
    StartFences(Vec<(usize, Fence)>),
    /// Read the entries of the manifests of all open places. Reply: [`Reply::Manifests`].
    ReadManifests,
    /// Read the rows of all open places with one statement. Reply: [`Reply::Rows`].
    Query,
    /// Add entries for these keys to the manifests, or renew them. Reply: [`Reply::Done`].
    AddNames(Vec<(usize, Vec<K>)>),
    /// Write the values of all open places. Reply: [`Reply::Sent`].
    Write {
        /// The life of all keys that are not shared.
        own: Life,
        /// The life of shared keys. It is full in every round: a shared key with the provisional TTL
        /// would have to be extended later, and an older run of another tenant may have written over it
        /// by then.
        shared: Life,
    },
    /// Remove keys. Reply: [`Reply::Sent`].
    Remove(Vec<(usize, K)>),
    /// Prune the manifests of these places: remove the entries whose keys cannot exist any more. Reply:
    /// [`Reply::Done`], whether it worked or not.
    Prune(Vec<usize>),
    /// Set the TTLs of the keys that this round wrote. Reply: [`Reply::Done`].
    SetTtls {
        /// Verified places: keys written with the provisional TTL get the job's TTL.
        extend: Vec<usize>,
        /// Unverified places: keys written with the job's TTL get the provisional TTL.
        shorten: Vec<usize>,
    },
    /// A round is over: count its places by these verdicts. Reply: [`Reply::Done`].
    Count(Vec<Verdict>),
    /// Nothing is left to do.
    Done,
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<K> {
    /// The present states of fences.
    Fences(Vec<Fence>),
    /// The keys that the manifest of each open place names.
    Manifests(Vec<Vec<K>>),
    /// What the rows of each open place make.
    Rows(Vec<Found<K>>),
    /// Keys were written or removed, all or in part.
    Sent {
        /// The places for which the cache refused a command or did not answer it.
        refused: Vec<usize>,
        /// Whether a command may still be in flight: a server that did not answer may execute it later.
        in_flight: bool,
    },
    /// The step was done.
    Done,
    /// The step was not done and should be tried once more, from a point where that is safe. A step
    /// that reads repeats the round from its first step. A write repeats the adding of manifest entries
    /// first, because the cache may have lost them meanwhile.
    Again,
    /// The step was not done and will not be tried again.
    Failed,
}

/// What the rows of one place make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<K> {
    /// The data keys that the rows make, which its manifest must name.
    pub present: Vec<K>,
    /// Data keys that the rows make but that cannot be written this time: their data is not gone.
    pub unwritable: Vec<K>,
    /// Keys to remove whatever the manifest says, because their old value must not stay.
    pub outdated: Vec<K>,
    /// Whether the manifest entries of all present keys are so young that they need no renewal.
    pub is_renewed: bool,
    /// Whether the manifest has entries whose keys cannot exist any more.
    pub is_prunable: bool,
}

impl<K> Default for Found<K> {
    /// No rows.
    fn default() -> Self {
        let none = Vec::new;
        let (present, unwritable, outdated) = (none(), none(), none());
        Self { present, unwritable, outdated, is_renewed: true, is_prunable: false }
    }
}

/// The result of a round for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its fence stood still.
    Verified,
    /// Its fence moved, and it gets another round.
    Again,
    /// Its fence moved, and its rounds are used up.
    Fenced,
    /// Its fence could not be read after the writes.
    Unknown,
}

/// Warms the tenants of a batch, or the one slot of a job without tenants.
#[derive(Clone, Debug)]
pub struct Warm<K> {
    stage: Stage,
    round: u32,
    life: Life,
    has_manifests: bool,
    open: Vec<Open<K>>,
    /// Slots that were written and not yet verified.
    unverified: BTreeSet<usize>,
    /// Slots for which a command of any round may still be in flight.
    in_flight: BTreeSet<usize>,
    /// The data keys that unverified rounds wrote. The cache may have lost their manifest entries since.
    written: BTreeMap<usize, Vec<K>>,
    verdicts: Vec<Verdict>,
    sabotage: Option<Sabotage>,
}

/// The point that a round has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    FencesBefore,
    StartFences,
    Manifests,
    Query,
    AddNames,
    Write,
    /// Before the warmer repeats a write.
    AddNamesAgain,
    Remove,
    /// Only [`Sabotage::NamesAfterKeys`] gets here.
    AddNamesLate,
    Prune,
    FencesAfter,
    SetTtls,
    Count,
    Done,
}

/// A slot in a round.
#[derive(Clone, Debug)]
struct Open<K> {
    slot: usize,
    /// The fence's state before the query.
    fence: Fence,
    named: Vec<K>,
    found: Option<Found<K>>,
    /// Data keys that an earlier round wrote, and that the manifest does not name any more.
    unnamed: Vec<K>,
    /// Whether the slot was unverified when the round began.
    was_unverified: bool,
    is_refused: bool,
}

impl<K: Clone + Ord + Hash> Warm<K> {
    /// Begins to warm this many slots. `life` is the life of the values that the first round writes. A
    /// job has manifests only if it has data keys that are not shared. The first step is
    /// [`Step::ReadFences`].
    pub fn begin(slots: usize, life: Life, has_manifests: bool) -> (Self, Step<K>) {
        let mut warm = Self {
            stage: Stage::FencesBefore,
            round: 1,
            life,
            has_manifests,
            open: (0..slots).map(Open::new).collect(),
            unverified: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            written: BTreeMap::new(),
            verdicts: Vec::new(),
            sabotage: None,
        };
        let step = warm.begin_round();
        (warm, step)
    }

    /// The same, but with the protocol broken in this way.
    pub fn sabotaged(
        slots: usize,
        life: Life,
        has_manifests: bool,
        sabotage: Option<Sabotage>,
    ) -> (Self, Step<K>) {
        let (mut warm, _) = Self::begin(slots, life, has_manifests);
        warm.sabotage = sabotage;
        let step = warm.begin_round();
        (warm, step)
    }

    /// The slots of this round, in order.
    pub fn open(&self) -> impl ExactSizeIterator<Item = usize> {
        self.open.iter().map(|open| open.slot)
    }

    /// The slots that were written and not verified. Whatever ends the work, a follow-up run must warm
    /// them.
    pub fn unverified(&self) -> &BTreeSet<usize> {
        &self.unverified
    }

    /// The number of the present round; the first is 1.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Takes the reply to the last step and returns the next step. A reply that does not fit the last
    /// step counts as [`Reply::Failed`].
    pub fn next(&mut self, reply: Reply<K>) -> Step<K> {
        match (self.stage, reply) {
            (Stage::FencesBefore, Reply::Fences(fences)) => self.note_fences(fences),
            (Stage::StartFences, Reply::Fences(fences)) => self.note_started(fences),
            (Stage::Manifests, Reply::Manifests(manifests)) => self.note_manifests(manifests),
            (Stage::Query, Reply::Rows(found)) => self.note_rows(found),
            (Stage::AddNames | Stage::AddNamesAgain, Reply::Done) => self.write(),
            (Stage::Write, Reply::Sent { refused, in_flight }) => {
                self.note_sent(&refused, in_flight);
                self.remove()
            }
            (Stage::Write, Reply::Again) => self.add_names_again(),
            (Stage::Write | Stage::AddNamesAgain, _) => {
                let all: Vec<usize> = (0..self.open.len()).collect();
                self.note_sent(&all, true);
                self.remove()
            }
            (Stage::Remove, Reply::Sent { refused, in_flight }) => {
                self.note_sent(&refused, in_flight);
                self.add_names_late()
            }
            (Stage::AddNamesLate, _) => self.prune(),
            (Stage::Prune, _) => self.read_fences_after(),
            (Stage::FencesAfter, Reply::Fences(fences)) => self.judge(&fences),
            (Stage::FencesAfter, _) => self.count(|_| Verdict::Unknown),
            (Stage::SetTtls, Reply::Done) => self.record_verdicts(),
            (Stage::SetTtls, _) => {
                // The server may execute the command later, and change the TTL of a later value.
                self.in_flight.extend(self.open.iter().map(|open| open.slot));
                self.record_verdicts()
            }
            (Stage::Count, Reply::Done) => self.end_round(),
            (
                Stage::FencesBefore | Stage::StartFences | Stage::Manifests | Stage::Query,
                Reply::Again,
            ) => self.begin_round(),
            (_, _) => {
                self.stage = Stage::Done;
                Step::Done
            }
        }
    }

    fn at(&mut self, stage: Stage, step: Step<K>) -> Step<K> {
        self.stage = stage;
        step
    }

    fn is_broken(&self, by: Sabotage) -> bool {
        self.sabotage == Some(by)
    }

    fn begin_round(&mut self) -> Step<K> {
        for open in &mut self.open {
            *open = Open {
                was_unverified: self.unverified.contains(&open.slot),
                ..Open::new(open.slot)
            };
        }
        if self.is_broken(Sabotage::LossesForgotten) {
            self.in_flight.clear();
        }
        if self.is_broken(Sabotage::FencesAfterQuery) {
            return self.read_manifests();
        }
        self.at(Stage::FencesBefore, Step::ReadFences)
    }

    fn note_fences(&mut self, fences: Vec<Fence>) -> Step<K> {
        for (open, fence) in self.open.iter_mut().zip(fences) {
            open.fence = fence;
        }
        let places = self.open.iter().enumerate().filter(|(_, open)| open.fence.needs_start());
        let unsafe_places: Vec<_> = places.map(|(place, open)| (place, open.fence)).collect();
        if unsafe_places.is_empty() || self.is_broken(Sabotage::BareFences) {
            return self.after_fences();
        }
        self.at(Stage::StartFences, Step::StartFences(unsafe_places))
    }

    fn note_started(&mut self, fences: Vec<Fence>) -> Step<K> {
        let started = self.open.iter_mut().filter(|open| open.fence.needs_start());
        for (open, fence) in started.zip(fences) {
            open.fence = fence;
        }
        self.after_fences()
    }

    fn after_fences(&mut self) -> Step<K> {
        if self.is_broken(Sabotage::FencesAfterQuery) {
            return self.add_names(|open| !open.is_renewed());
        }
        self.read_manifests()
    }

    fn read_manifests(&mut self) -> Step<K> {
        if self.has_manifests {
            return self.at(Stage::Manifests, Step::ReadManifests);
        }
        self.at(Stage::Query, Step::Query)
    }

    fn note_manifests(&mut self, manifests: Vec<Vec<K>>) -> Step<K> {
        for (open, named) in self.open.iter_mut().zip(manifests) {
            let unnamed = self.written.get(&open.slot).into_iter().flatten();
            open.unnamed = vanished(unnamed.cloned(), &named);
            open.named = named;
        }
        self.at(Stage::Query, Step::Query)
    }

    fn note_rows(&mut self, found: Vec<Found<K>>) -> Step<K> {
        for (open, found) in self.open.iter_mut().zip(found) {
            open.found = Some(found);
        }
        if self.is_broken(Sabotage::FencesAfterQuery) {
            return self.at(Stage::FencesBefore, Step::ReadFences);
        }
        self.add_names(|open| !open.is_renewed())
    }

    /// A data key is never in the cache without its manifest entry, so entries are added before keys are
    /// written.
    fn add_names(&mut self, of: impl Fn(&Open<K>) -> bool) -> Step<K> {
        let only_new = self.is_broken(Sabotage::OnlyNewNamed);
        let names = self.names(|open| of(open), |open| open.names_to_add(only_new));
        if names.is_empty() || self.is_broken(Sabotage::NamesAfterKeys) {
            return self.write();
        }
        self.at(Stage::AddNames, Step::AddNames(names))
    }

    /// Before a write is repeated: the cache may have lost the entries together with the keys, for
    /// example in a restart.
    fn add_names_again(&mut self) -> Step<K> {
        let names = self.names(|_| true, |open| open.names_to_add(false));
        if names.is_empty() {
            return self.write();
        }
        self.at(Stage::AddNamesAgain, Step::AddNames(names))
    }

    fn names(
        &self,
        of: impl Fn(&Open<K>) -> bool,
        names: impl Fn(&Open<K>) -> Vec<K>,
    ) -> Vec<(usize, Vec<K>)> {
        let all = self.open.iter().enumerate().filter(|(_, open)| self.has_manifests && of(open));
        let all = all.map(|(place, open)| (place, names(open)));
        all.filter(|(_, names)| !names.is_empty()).collect()
    }

    /// From this step on, the slots are unverified.
    fn write(&mut self) -> Step<K> {
        self.unverified.extend(self.open.iter().map(|open| open.slot));
        let (own, shared) = (self.life, self.life_of_shared());
        self.at(Stage::Write, Step::Write { own, shared })
    }

    fn life_of_shared(&self) -> Life {
        if self.is_broken(Sabotage::SharedExtended) { self.life } else { Life::Full }
    }

    fn note_sent(&mut self, refused: &[usize], in_flight: bool) {
        if in_flight {
            self.in_flight.extend(self.open.iter().map(|open| open.slot));
        }
        if self.is_broken(Sabotage::RefusalsForgotten) {
            return;
        }
        for place in refused {
            if let Some(open) = self.open.get_mut(*place) {
                open.is_refused = true;
            }
        }
    }

    fn remove(&mut self) -> Step<K> {
        let mut gone = Vec::new();
        for (place, open) in self.open.iter().enumerate() {
            gone.extend(open.gone().into_iter().map(|key| (place, key)));
        }
        if gone.is_empty() {
            return self.add_names_late();
        }
        self.at(Stage::Remove, Step::Remove(gone))
    }

    fn add_names_late(&mut self) -> Step<K> {
        if !self.is_broken(Sabotage::NamesAfterKeys) {
            return self.prune();
        }
        let names = self.names(|_| true, |open| open.names_to_add(true));
        self.at(Stage::AddNamesLate, Step::AddNames(names))
    }

    /// A place with a refused command is not pruned, because the key of a pruned entry may still be
    /// there.
    fn prune(&mut self) -> Step<K> {
        let is_prunable =
            |open: &Open<K>| open.found.as_ref().is_some_and(|found| found.is_prunable);
        let places = self.places(|open| is_prunable(open) && !open.is_refused);
        if places.is_empty() {
            return self.read_fences_after();
        }
        self.at(Stage::Prune, Step::Prune(places))
    }

    fn read_fences_after(&mut self) -> Step<K> {
        if self.is_broken(Sabotage::NoLookAfter) {
            let fences: Vec<Fence> = self.open.iter().map(|open| open.fence).collect();
            return self.judge(&fences);
        }
        self.at(Stage::FencesAfter, Step::ReadFences)
    }

    /// A fence that stood still proves that nobody changed the data. But a fence that still needed a
    /// start before the query proves nothing, because it may have reached the same number again.
    fn judge(&mut self, fences: &[Fence]) -> Step<K> {
        let is_last = self.round >= ROUNDS;
        let moved = match (is_last, self.is_broken(Sabotage::LastRoundCounts)) {
            (true, true) => Verdict::Verified,
            (true, false) => Verdict::Fenced,
            (false, _) => Verdict::Again,
        };
        let now = fences.iter().copied().map(Some).chain(std::iter::repeat(None));
        let judge = |(open, now): (&Open<K>, Option<Fence>)| {
            let stood_still = now == Some(open.fence) && !open.fence.needs_start();
            if stood_still { Verdict::Verified } else { moved }
        };
        self.verdicts = self.open.iter().zip(now).map(judge).collect();
        let places = 0..self.verdicts.len();
        let is_verified = |place: &usize| self.verdicts.get(*place) == Some(&Verdict::Verified);
        let (mut extend, shorten): (Vec<_>, Vec<_>) = places.partition(is_verified);
        if self.life == Life::Full {
            extend.clear();
        }
        if extend.is_empty() && shorten.is_empty() {
            return self.record_verdicts();
        }
        self.at(Stage::SetTtls, Step::SetTtls { extend, shorten })
    }

    /// Records which slots are verified, and for the others which data keys the round wrote.
    fn record_verdicts(&mut self) -> Step<K> {
        for (open, verdict) in self.open.iter().zip(&self.verdicts) {
            let Open { slot, is_refused, was_unverified, .. } = *open;
            // If the cache refused a key in this round, the key may hold an earlier round's unverified
            // value.
            let is_mended = !was_unverified
                || !is_refused
                || self.sabotage == Some(Sabotage::EarlierRoundsForgotten);
            if *verdict != Verdict::Verified {
                self.written.entry(slot).or_default().extend(open.names_to_add(false));
            } else if is_mended && !self.in_flight.contains(&slot) {
                self.unverified.remove(&slot);
                self.written.remove(&slot);
            }
        }
        let verdicts = std::mem::take(&mut self.verdicts);
        self.count(|place| verdicts.get(place).copied().unwrap_or(Verdict::Unknown))
    }

    fn count(&mut self, verdict: impl Fn(usize) -> Verdict) -> Step<K> {
        let verdicts: Vec<Verdict> = (0..self.open.len()).map(verdict).collect();
        self.verdicts.clone_from(&verdicts);
        self.at(Stage::Count, Step::Count(verdicts))
    }

    fn end_round(&mut self) -> Step<K> {
        let mut verdicts = self.verdicts.iter();
        self.open.retain(|_| verdicts.next() == Some(&Verdict::Again));
        if self.open.is_empty() {
            return self.at(Stage::Done, Step::Done);
        }
        self.round += 1;
        self.life = Life::Provisional;
        self.begin_round()
    }

    fn places(&self, which: impl Fn(&Open<K>) -> bool) -> Vec<usize> {
        let places = self.open.iter().enumerate().filter(|(_, open)| which(open));
        places.map(|(place, _)| place).collect()
    }
}

impl<K: Clone + Ord + Hash> Open<K> {
    fn new(slot: usize) -> Self {
        Self {
            slot,
            fence: Fence::Missing,
            named: Vec::new(),
            found: None,
            unnamed: Vec::new(),
            was_unverified: false,
            is_refused: false,
        }
    }

    fn present(&self) -> &[K] {
        self.found.as_ref().map_or(&[], |found| &found.present)
    }

    /// Whether the manifest names all present keys, with entries that are young enough.
    fn is_renewed(&self) -> bool {
        self.unnamed.is_empty() && self.found.as_ref().is_some_and(|found| found.is_renewed)
    }

    fn names_to_add(&self, only_new: bool) -> Vec<K> {
        if only_new {
            return vanished(self.present().iter().cloned(), &self.named);
        }
        self.present().iter().chain(&self.unnamed).cloned().collect()
    }

    /// The keys to remove: those whose data is gone, and outdated ones.
    fn gone(&self) -> Vec<K> {
        let Some(Found { present, unwritable, outdated, .. }) = &self.found else {
            return Vec::new();
        };
        let named = self.named.iter().chain(&self.unnamed).cloned();
        let mut gone = vanished(named, present.iter().chain(unwritable));
        gone.extend(outdated.iter().cloned());
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fence::start_number;

    /// A fence whose number is this far above its start.
    fn at(number: i64) -> Fence {
        Fence::At(start_number(0.0) + number)
    }

    fn found(present: &[&'static str], is_renewed: bool) -> Found<&'static str> {
        Found { present: present.to_vec(), is_renewed, ..Found::default() }
    }

    fn sent() -> Reply<&'static str> {
        Reply::Sent { refused: Vec::new(), in_flight: false }
    }

    /// One slot whose rows have one category, warmed up to its write.
    fn written() -> Warm<&'static str> {
        let (mut warm, step) = Warm::begin(1, Life::Full, true);
        assert_eq!(step, Step::ReadFences);
        assert_eq!(warm.next(Reply::Fences(vec![at(1)])), Step::ReadManifests);
        assert_eq!(warm.next(Reply::Manifests(vec![vec!["a", "gone"]])), Step::Query);
        let names = Step::AddNames(vec![(0, vec!["a"])]);
        assert_eq!(warm.next(Reply::Rows(vec![found(&["a"], false)])), names);
        let write = Step::Write { own: Life::Full, shared: Life::Full };
        assert_eq!(warm.next(Reply::Done), write);
        warm
    }

    #[test]
    fn a_tenant_whose_fence_stands_still_is_verified_in_one_round() {
        let mut warm = written();
        assert_eq!(warm.unverified().len(), 1, "from its write on");
        assert_eq!(warm.next(sent()), Step::Remove(vec![(0, "gone")]));
        assert_eq!(warm.next(sent()), Step::ReadFences);
        let verified = Step::Count(vec![Verdict::Verified]);
        assert_eq!(warm.next(Reply::Fences(vec![at(1)])), verified);
        assert!(warm.unverified().is_empty());
        assert_eq!(warm.next(Reply::Done), Step::Done);
    }

    #[test]
    fn a_tenant_whose_fence_moves_gets_further_rounds_and_is_fenced_then() {
        use Verdict::{Again, Fenced, Verified};

        let (mut warm, _) = Warm::<&str>::begin(2, Life::Full, false);
        let mut verdicts = Vec::new();
        for round in 1..=i64::from(ROUNDS) {
            let open = warm.open().len();
            let fences = |number| Reply::Fences(vec![at(number); open]);
            assert_eq!(warm.next(fences(round)), Step::Query, "{round}");
            let rows = Reply::Rows(vec![Found::default(); open]);
            let own = if round == 1 { Life::Full } else { Life::Provisional };
            assert_eq!(warm.next(rows), Step::Write { own, shared: Life::Full });
            assert_eq!(warm.next(sent()), Step::ReadFences);
            // The first slot's fence stands still in the second round.
            let after = if round == 2 { vec![at(2), at(9)] } else { vec![at(9); open] };
            let Step::SetTtls { extend, shorten } = warm.next(Reply::Fences(after)) else {
                panic!("some TTL has to be set in round {round}")
            };
            let expected =
                if round == 2 { (vec![0], vec![1]) } else { (vec![], (0..open).collect()) };
            assert_eq!((extend, shorten), expected, "round {round}");
            let Step::Count(counted) = warm.next(Reply::Done) else { panic!("round {round}") };
            verdicts.push(counted);
            warm.next(Reply::Done);
        }
        assert_eq!(verdicts, [vec![Again, Again], vec![Verified, Again], vec![Fenced]]);
        assert_eq!(warm.unverified().iter().collect::<Vec<_>>(), [&1]);
    }

    #[test]
    fn a_fence_that_is_missing_or_has_no_start_is_given_one_and_proves_nothing_without() {
        for bare in [Fence::Missing, Fence::At(1)] {
            let (mut warm, _) = Warm::<&str>::begin(2, Life::Full, false);
            let started = Step::StartFences(vec![(1, bare)]);
            assert_eq!(warm.next(Reply::Fences(vec![at(1), bare])), started);
            assert_eq!(warm.next(Reply::Fences(vec![bare])), Step::Query);
            warm.next(Reply::Rows(vec![Found::default(); 2]));
            warm.next(sent());
            let step = warm.next(Reply::Fences(vec![at(1), bare]));
            assert_eq!(step, Step::SetTtls { extend: vec![], shorten: vec![1] });
        }
    }

    #[test]
    fn a_repeated_write_adds_all_names_again_and_what_was_lost_keeps_the_tenant_unverified() {
        let mut warm = written();
        assert_eq!(warm.next(Reply::Again), Step::AddNames(vec![(0, vec!["a"])]));
        assert_eq!(warm.next(Reply::Done), Step::Write { own: Life::Full, shared: Life::Full });
        let lost = Reply::Sent { refused: Vec::new(), in_flight: true };
        assert_eq!(warm.next(lost), Step::Remove(vec![(0, "gone")]));
        warm.next(sent());
        let step = warm.next(Reply::Fences(vec![at(1)]));
        assert_eq!(step, Step::Count(vec![Verdict::Verified]), "its fence stood still");
        assert_eq!(warm.unverified().len(), 1, "it may arrive later");
    }

    #[test]
    fn reading_is_tried_again_from_its_first_step_and_a_failure_writes_nothing() {
        let (mut warm, _) = Warm::<&str>::begin(1, Life::Full, true);
        warm.next(Reply::Fences(vec![at(1)]));
        assert_eq!(warm.next(Reply::Again), Step::ReadFences);
        warm.next(Reply::Fences(vec![at(1)]));
        assert_eq!(warm.next(Reply::Failed), Step::Done);
        assert!(warm.unverified().is_empty());
    }

    #[test]
    fn fences_that_cannot_be_read_after_the_writes_leave_the_tenant_unverified() {
        let mut warm = written();
        warm.next(sent());
        warm.next(sent());
        assert_eq!(warm.next(Reply::Failed), Step::Count(vec![Verdict::Unknown]));
        assert_eq!(warm.next(Reply::Done), Step::Done);
        assert_eq!(warm.unverified().len(), 1);
    }

    #[test]
    fn hazard_07_a_manifest_is_pruned_unless_its_own_tenant_was_refused_something() {
        let (mut warm, _) = Warm::<&str>::begin(2, Life::Full, true);
        warm.next(Reply::Fences(vec![at(1); 2]));
        warm.next(Reply::Manifests(vec![Vec::new(); 2]));
        let prunable = Found { is_prunable: true, ..Found::default() };
        warm.next(Reply::Rows(vec![prunable.clone(), prunable]));
        let refused = Reply::Sent { refused: vec![0], in_flight: false };
        assert_eq!(warm.next(refused), Step::Prune(vec![1]));
        assert_eq!(warm.next(Reply::Failed), Step::ReadFences, "names too many do no harm");
    }

    #[test]
    fn a_key_that_cannot_be_written_has_not_vanished_and_its_old_value_goes() {
        let (mut warm, _) = Warm::<&str>::begin(1, Life::Full, true);
        warm.next(Reply::Fences(vec![at(1)]));
        warm.next(Reply::Manifests(vec![vec!["large", "odd"]]));
        let found =
            Found { unwritable: vec!["large", "odd"], outdated: vec!["large"], ..Found::default() };
        warm.next(Reply::Rows(vec![found]));
        assert_eq!(warm.next(sent()), Step::Remove(vec![(0, "large")]));
    }

    #[test]
    fn names_that_the_cache_lost_after_an_unverified_round_are_added_again() {
        let mut warm = written();
        warm.next(sent());
        warm.next(sent());
        warm.next(Reply::Fences(vec![at(2)]));
        warm.next(Reply::Done);
        assert_eq!(warm.next(Reply::Done), Step::ReadFences, "another round");
        warm.next(Reply::Fences(vec![at(2)]));
        warm.next(Reply::Manifests(vec![Vec::new()]));
        let names = Step::AddNames(vec![(0, vec!["b", "a"])]);
        assert_eq!(warm.next(Reply::Rows(vec![found(&["b"], true)])), names);
        warm.next(Reply::Done);
        assert_eq!(warm.next(sent()), Step::Remove(vec![(0, "a")]));
    }
}
