//! The database and the cache, as small as possible: their contents, and the effect of one command.

use std::fmt;

use preheat::domain::fence::{Fence, start_number};
use preheat::domain::protocol::Life;

/// Tenants.
pub(super) const TENANTS: usize = 2;
/// Categories that a tenant may have: each is a key with a data column.
pub(super) const CATEGORIES: usize = 2;
/// Shared keys: the data of each belong to one tenant, or do not exist.
pub(super) const SHARED: usize = 2;
/// Keys that a tenant may have: the static one first, then its categories, then the shared ones.
pub(super) const OF_TENANT: usize = 1 + CATEGORIES + SHARED;
/// How many of them no other tenant can have.
const OWN: usize = 1 + CATEGORIES;
/// All keys: each tenant's own, then the shared ones.
pub(super) const KEYS: usize = TENANTS * OWN + SHARED;

/// The distance between the numbers with which fences are started.
pub(super) const STARTS: f64 = 4096.0;

/// A small set of tenants, categories or keys.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Some8(pub(super) u8);

impl Some8 {
    pub(super) const NONE: Self = Self(0);
    pub(super) const TENANTS: Self = Self((1 << TENANTS) - 1);

    pub(super) fn one(index: usize) -> Self {
        Self(1 << index)
    }

    pub(super) fn iter(self) -> Members {
        self.into_iter()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl IntoIterator for Some8 {
    type Item = usize;
    type IntoIter = Members;

    fn into_iter(self) -> Members {
        Members(self.0)
    }
}

/// The members of a [`Some8`], in order.
pub(super) struct Members(u8);

impl Iterator for Members {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let index = self.0.trailing_zeros() as usize;
        self.0 &= self.0.checked_sub(1)?;
        Some(index)
    }
}

impl fmt::Debug for Some8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(*self).finish()
    }
}

/// A tenant's key: the tenant, and the key's position among the tenant's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: usize,
    nth: usize,
}

impl Place {
    /// A tenant's static key.
    pub(super) fn fixed(tenant: usize) -> Self {
        Self { tenant, nth: 0 }
    }

    /// The key of a tenant's category, which its manifest names.
    pub(super) fn category(tenant: usize, name: usize) -> Self {
        Self { tenant, nth: 1 + name }
    }

    /// All keys that a tenant may have.
    pub(super) fn all(tenant: usize) -> impl Iterator<Item = Self> {
        (0..OF_TENANT).map(move |nth| Self { tenant, nth })
    }

    /// The places of a key: one, or one for each tenant if the key is shared.
    pub(super) fn of(key: usize) -> impl Iterator<Item = Self> {
        let (tenants, nth) = match key.checked_sub(TENANTS * OWN) {
            Some(shared) => (0..TENANTS, OWN + shared),
            None => (key / OWN..key / OWN + 1, key % OWN),
        };
        tenants.map(move |tenant| Self { tenant, nth })
    }

    /// The key; a shared one is the same for all tenants.
    pub(super) fn key(self) -> usize {
        match self.nth.checked_sub(OWN) {
            Some(shared) => TENANTS * OWN + shared,
            None => self.tenant * OWN + self.nth,
        }
    }

    /// The key's name in the tenant's manifest, if it has one.
    pub(super) fn name(self) -> Option<usize> {
        self.nth.checked_sub(1).filter(|name| *name < CATEGORIES)
    }

    /// Its version in the rows.
    pub(super) fn version(self, rows: &[Row; TENANTS]) -> u16 {
        rows[self.tenant][self.nth]
    }

    /// Whether other tenants may have it.
    pub(super) fn is_shared(self) -> bool {
        self.nth >= OWN
    }
}

/// Whether a key is shared.
pub(super) fn is_shared(key: usize) -> bool {
    key >= TENANTS * OWN
}

fn letter(name: usize) -> char {
    ['a', 'b', 'm', 'n'][name]
}

/// A key in readable form.
pub(super) struct KeyName(pub(super) usize);

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = Place::of(self.0).next() else { return Err(fmt::Error) };
        match place.name() {
            Some(name) => write!(f, "{}:{}", place.tenant, letter(name)),
            None if place.is_shared() => write!(f, "{}", letter(place.nth - 1)),
            None => write!(f, "{}:all", place.tenant),
        }
    }
}

/// The versions of a tenant's data; 0 if the tenant has no such data.
pub(super) type Row = [u16; OF_TENANT];

/// The true values of all keys. A transaction is one assignment; a query reads one state.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) rows: [Row; TENANTS],
    /// Every change has its own number, so a version also shows its owner.
    newest: u16,
}

/// What a transaction does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// It changes a row of the tenant's static key only.
    Other,
    /// It creates a category, or changes one of its rows.
    Put(usize),
    /// It deletes a category's last row.
    Remove(usize),
}

impl Database {
    pub(super) fn new(rows: [Row; TENANTS]) -> Self {
        Self { rows, newest: 1 }
    }

    /// Commits; returns the keys whose value has changed.
    pub(super) fn commit(&mut self, tenant: usize, change: Change) -> Some8 {
        self.newest += 1;
        let row = &mut self.rows[tenant];
        row[0] = self.newest;
        let mut changed = Some8::one(Place::fixed(tenant).key());
        match change {
            Change::Other => {}
            Change::Put(category) => {
                row[1 + category] = self.newest;
                changed.add(Some8::one(Place::category(tenant, category).key()));
            }
            Change::Remove(category) => {
                row[1 + category] = 0;
                changed.add(Some8::one(Place::category(tenant, category).key()));
            }
        }
        changed
    }

    /// Commits that the data of a shared key belong to this tenant from now on, or are deleted. Returns the
    /// tenants that it touched, and the keys whose value has changed.
    pub(super) fn hand_over(&mut self, shared: usize, to: Option<usize>) -> (Some8, Some8) {
        self.newest += 1;
        let (mut touched, mut changed) = (Some8::NONE, Some8::NONE);
        for tenant in 0..TENANTS {
            let row = &mut self.rows[tenant];
            let is_owner = to == Some(tenant);
            if row[OWN + shared] == 0 && !is_owner {
                continue;
            }
            row[0] = self.newest;
            row[OWN + shared] = if is_owner { self.newest } else { 0 };
            touched.add(Some8::one(tenant));
            changed.add(Some8::one(Place::fixed(tenant).key()));
            changed.add(Some8::one(TENANTS * OWN + shared));
        }
        (touched, changed)
    }

    /// The value that a key must hold, and its owner; `None` if the key must not exist.
    pub(super) fn place(&self, key: usize) -> Option<(Place, u16)> {
        let versions = Place::of(key).map(|place| (place, place.version(&self.rows)));
        versions.into_iter().find(|(_, version)| *version != 0)
    }
}

/// One command, as atomic as in Redis; a pipeline is several commands, with commands of others in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `MGET` of the fences of some tenants.
    Fences(Some8),
    /// `SET … NX` of a fence.
    MakeFence(usize, i64),
    /// `SET` of a fence, whatever its key holds.
    ReplaceFence(usize, i64),
    /// `INCRBY` of a fence.
    RaiseFence(usize, i64),
    /// `INCR` of a fence.
    MoveFence(usize),
    /// `ZRANGE` of a tenant's manifest.
    Manifest(usize),
    /// `ZADD` of entries in a tenant's manifest, as of now.
    AddEntries(usize, Some8),
    /// `ZREMRANGEBYSCORE` of a tenant's manifest, up to that step: prunes the entries that are so old that
    /// their keys cannot exist any more. Steps do not measure a key's TTL, so the entry of an existing key
    /// that the tenant wrote stays.
    Prune(usize, u32),
    /// `ZREM` of entries, which only a sabotage does.
    TakeOut(usize, Some8),
    /// `SET … PX` of a key.
    Set(Place, u16, Life),
    /// A reader's script before its load: it answers the fence, with a start if it needs one, or that the key
    /// exists meanwhile.
    Begin(Place, i64),
    /// `SET … NX PX` of a key by a reader; with a fence, by the script that compares it.
    Fill(Place, u16, Life, Option<Fence>),
    /// `UNLINK` of a key by a warmer.
    Unlink(Place),
    /// `UNLINK` of a shared key by the change feed, after a report that it is gone from a tenant.
    Drop(usize),
    /// `DEL` of a key by the application.
    Delete(usize),
    /// `PEXPIRE` of a key.
    Expire(Place, Life),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = |life: Life| match life {
            Life::Full => "for its full TTL",
            Life::Provisional => "provisionally",
        };
        match *self {
            Self::Fences(tenants) => write!(f, "MGET the fences of tenants {tenants:?}"),
            Self::MakeFence(tenant, start) => {
                write!(f, "SET NX fence {tenant} = {}", Number(start))
            }
            Self::ReplaceFence(tenant, start) => {
                write!(f, "SET fence {tenant} = {}", Number(start))
            }
            Self::RaiseFence(tenant, by) => write!(f, "INCRBY fence {tenant} {}", Number(by)),
            Self::MoveFence(tenant) => write!(f, "INCR fence {tenant}"),
            Self::Manifest(tenant) => write!(f, "ZRANGE manifest {tenant}"),
            Self::AddEntries(tenant, names) => {
                write!(f, "names {} in manifest {tenant}", Letters(names))
            }
            Self::Prune(tenant, before) => {
                write!(f, "takes out of manifest {tenant} what was named before {before}")
            }
            Self::TakeOut(tenant, names) => {
                write!(f, "takes {} out of manifest {tenant}", Letters(names))
            }
            Self::Set(place, version, l) => {
                write!(f, "SET {} = v{version} {}", KeyName(place.key()), life(l))
            }
            Self::Begin(place, start) => {
                write!(f, "begins to fill {}, start {}", KeyName(place.key()), Number(start))
            }
            Self::Fill(place, version, l, fence) => {
                let compared = if fence.is_some() { "if the fence still stands" } else { "" };
                write!(f, "SET NX {} = v{version} {} {compared}", KeyName(place.key()), life(l))
            }
            Self::Unlink(place) => {
                write!(f, "UNLINK {} for tenant {}", KeyName(place.key()), place.tenant)
            }
            Self::Drop(key) => write!(f, "UNLINK {}", KeyName(key)),
            Self::Delete(key) => write!(f, "DEL {}", KeyName(key)),
            Self::Expire(place, l) => write!(f, "PEXPIRE {} {}", KeyName(place.key()), life(l)),
        }
    }
}

/// What a command answers; for most commands the answer does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Fences([Fence; TENANTS]),
    Names(Some8),
    Manifest(Manifest),
    /// The fence, or nothing if the key exists.
    Begun(Option<Fence>),
    /// Whether the value was written.
    Filled(bool),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => Ok(()),
            Self::Fences(fences) => {
                let [first, second] = fences.map(shown);
                write!(f, " → {first}, {second}")
            }
            Self::Names(names) => write!(f, " → {}", Letters(*names)),
            Self::Manifest(manifest) => write!(f, " → {}", Letters(manifest.names())),
            Self::Begun(Some(fence)) => write!(f, " → {}", shown(*fence)),
            Self::Begun(None) => write!(f, " → the key is there"),
            Self::Filled(true) => write!(f, " → written"),
            Self::Filled(false) => write!(f, " → not written"),
        }
    }
}

fn shown(fence: Fence) -> String {
    match fence {
        Fence::Missing => "none".to_owned(),
        Fence::At(number) => Number(number).to_string(),
    }
}

/// A fence's number: the number that it was started with, and how often it has moved since.
struct Number(i64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apart = start_number(1.0 / STARTS) - start_number(0.0);
        match (self.0 - start_number(0.0)).checked_div_euclid(apart) {
            Some(start @ 0..) => {
                let moves = (self.0 - start_number(0.0)) % apart;
                write!(f, "start {start} + {moves}")
            }
            Some(_) | None => write!(f, "{}", self.0),
        }
    }
}

/// Names in readable form.
struct Letters(Some8);

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some8::NONE => write!(f, "nothing"),
            some => some.iter().try_for_each(|one| write!(f, "{}", letter(one))),
        }
    }
}

/// The entries of a manifest, and when each was last added or renewed; 0 if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Manifest(pub(super) [u32; CATEGORIES]);

impl Manifest {
    pub(super) fn names(self) -> Some8 {
        let mut names = Some8::NONE;
        for (name, at) in self.0.iter().enumerate() {
            if *at != 0 {
                names.add(Some8::one(name));
            }
        }
        names
    }
}

/// A value in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) version: u16,
    pub(super) life: Life,
    /// Whether a reader wrote it.
    is_filled: bool,
    /// Tenants whose runs wrote it, or set its TTL.
    by: Some8,
}

impl Value {
    /// Whether a run of another tenant wrote a shared key, or set its TTL.
    pub(super) fn is_of_others(self, place: Place) -> bool {
        place.is_shared() && !self.by.without(Some8::one(place.tenant)).is_empty()
    }
}

/// What removed a key that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The key never existed.
    Never,
    /// The application's `DEL`.
    Application,
    /// The server, for lack of memory.
    Evicted,
    /// A warmer that found that its data are gone.
    Warmer,
    /// The change feed, after a report that the key is gone from a tenant; `late` if the command of a lost
    /// connection was executed later, or if the feed belongs to a process that does not hold the new owner.
    Feed { late: bool },
    /// A run of another tenant wrote over it.
    WrittenOver,
    /// Its provisional TTL ended. For the tenants in `early` it ended too soon: while their runs
    /// were still about to verify it (a pause of [`preheat::domain::fence::PROVISIONAL_TTL`] between
    /// two commands), or after another tenant's run had set the TTL.
    Provisional { early: Some8 },
}

impl Gone {
    /// Whether a tenant's key may stay missing after such a removal: every other removal is repaired by the
    /// actor that caused it, or by the next run.
    pub(super) fn is_fair(self, tenant: usize) -> bool {
        match self {
            Self::Application | Self::Evicted | Self::WrittenOver | Self::Feed { late: true } => {
                true
            }
            Self::Provisional { early } => early.has(tenant),
            Self::Never | Self::Warmer | Self::Feed { late: false } => false,
        }
    }
}

/// The content of the cache.
#[derive(Clone)]
pub(super) struct Cache {
    pub(super) values: [Option<Value>; KEYS],
    pub(super) gone: [Gone; KEYS],
    pub(super) fences: [Option<i64>; TENANTS],
    manifests: [Manifest; TENANTS],
    /// Names that each tenant lost when its manifest was evicted, and that no run has added again.
    orphans: [Some8; TENANTS],
    /// Keys whose last write by a scheduled run was refused: such a run is not repeated for that.
    pub(super) refused: Some8,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            values: [None; KEYS],
            gone: [Gone::Never; KEYS],
            fences: [None; TENANTS],
            manifests: [Manifest::default(); TENANTS],
            orphans: [Some8::NONE; TENANTS],
            refused: Some8::NONE,
        }
    }

    /// If a run relies on entries without renewing them, they end only after the values that the run writes
    /// have expired, as if the run had renewed them at this step. Returns whether the run can rely on them: a
    /// missing entry was evicted, since it was too fresh to be pruned.
    pub(super) fn rely_on(&mut self, tenant: usize, names: Some8, step: u32) -> bool {
        let there = self.manifests[tenant].names();
        let can = names.without(there).without(self.orphans[tenant]).is_empty();
        for name in names.and(there) {
            if can {
                self.manifests[tenant].0[name] = step;
            }
        }
        can
    }

    /// Whether a manifest names a key, if one must.
    pub(super) fn is_named(&self, key: usize) -> bool {
        let mut places = Place::of(key);
        places
            .any(|place| place.name().is_none_or(|name| self.manifests[place.tenant].0[name] != 0))
    }

    /// Whether the key's entry was lost when its manifest was evicted.
    pub(super) fn is_orphan(&self, key: usize) -> bool {
        let lost = |place: Place| place.name().map(|name| self.orphans[place.tenant].has(name));
        Place::of(key).filter_map(lost).any(|is_lost| is_lost)
    }

    fn begin(&mut self, place: Place, start: i64) -> Option<Fence> {
        if self.values[place.key()].is_some() {
            return None;
        }
        if self.fence(place.tenant).needs_start() {
            self.fences[place.tenant] = Some(start);
        }
        Some(self.fence(place.tenant))
    }

    fn fence(&self, tenant: usize) -> Fence {
        self.fences[tenant].map_or(Fence::Missing, Fence::At)
    }

    /// Executes a command at a step.
    pub(super) fn execute(&mut self, command: Command, step: u32) -> Reply {
        match command {
            Command::Fences(tenants) => {
                let mut fences = [Fence::Missing; TENANTS];
                for tenant in tenants {
                    fences[tenant] = self.fence(tenant);
                }
                return Reply::Fences(fences);
            }
            Command::Manifest(tenant) => return Reply::Manifest(self.manifests[tenant]),
            Command::MakeFence(tenant, start) => {
                self.fences[tenant].get_or_insert(start);
            }
            Command::ReplaceFence(tenant, start) => self.fences[tenant] = Some(start),
            Command::RaiseFence(tenant, by) => *self.fences[tenant].get_or_insert(0) += by,
            Command::MoveFence(tenant) => *self.fences[tenant].get_or_insert(0) += 1,
            Command::AddEntries(tenant, names) => {
                for name in names {
                    self.manifests[tenant].0[name] = step;
                }
                self.orphans[tenant].remove(names);
            }
            Command::Prune(tenant, before) => return Reply::Names(self.prune(tenant, before)),
            Command::TakeOut(tenant, names) => {
                for name in names {
                    self.manifests[tenant].0[name] = 0;
                }
            }
            Command::Set(place, version, life) => {
                let by = Some8::one(place.tenant);
                self.values[place.key()] = Some(Value { version, life, is_filled: false, by });
                self.refused.remove(Some8::one(place.key()));
            }
            Command::Begin(place, start) => return Reply::Begun(self.begin(place, start)),
            Command::Fill(place, version, life, fence) => {
                let is_free = self.values[place.key()].is_none();
                let is_filled =
                    is_free && fence.is_none_or(|seen| seen == self.fence(place.tenant));
                if is_filled {
                    let by = Some8::NONE;
                    self.values[place.key()] = Some(Value { version, life, is_filled, by });
                }
                return Reply::Filled(is_filled);
            }
            Command::Unlink(place) => self.remove(place.key(), Gone::Warmer),
            Command::Drop(key) => self.remove(key, Gone::Feed { late: false }),
            // The application deletes a key whether or not it exists: an actor that writes it afterwards has
            // no promise that it stays.
            Command::Delete(key) => {
                self.values[key] = None;
                self.gone[key] = Gone::Application;
            }
            Command::Expire(place, life) => {
                if let Some(value) = &mut self.values[place.key()] {
                    value.life = life;
                    value.by.add(Some8::one(place.tenant));
                }
            }
        }
        Reply::Done
    }

    /// Executes a command of a lost connection. Its sender does not know that, so an entry that it restores
    /// is only found by the next run.
    pub(super) fn execute_late(&mut self, command: Command, step: u32) {
        let orphans = self.orphans;
        match command {
            Command::Drop(key) => self.remove(key, Gone::Feed { late: true }),
            command => drop(self.execute(command, step)),
        }
        for (now, before) in self.orphans.iter_mut().zip(orphans) {
            now.add(before);
        }
    }

    fn prune(&mut self, tenant: usize, before: u32) -> Some8 {
        let mut out = Some8::NONE;
        for name in self.manifests[tenant].names() {
            let is_there = self.values[Place::category(tenant, name).key()].is_some();
            let renewed_at = &mut self.manifests[tenant].0[name];
            if *renewed_at < before && !is_there {
                *renewed_at = 0;
                out.add(Some8::one(name));
            }
        }
        out
    }

    fn remove(&mut self, key: usize, gone: Gone) {
        if self.values[key].take().is_some() {
            self.gone[key] = gone;
        }
    }

    /// The server evicts a value.
    pub(super) fn evict_value(&mut self, key: usize) {
        self.remove(key, Gone::Evicted);
    }

    /// The server evicts a manifest.
    pub(super) fn evict_manifest(&mut self, tenant: usize) {
        let names = std::mem::take(&mut self.manifests[tenant]).names();
        self.orphans[tenant].add(names);
    }

    /// A value's provisional TTL ends. A reader's value stood for a missing key, which is missing again, for
    /// the same reason as before.
    pub(super) fn expire_now(&mut self, key: usize, early: Some8) {
        let is_filled = self.values[key].is_some_and(|value| value.is_filled);
        let gone = if is_filled { self.gone[key] } else { Gone::Provisional { early } };
        self.remove(key, gone);
    }

    /// The keys with a provisional TTL.
    pub(super) fn provisional(&self) -> Some8 {
        let mut keys = Some8::NONE;
        for (key, value) in self.values.iter().enumerate() {
            if value.is_some_and(|value| value.life == Life::Provisional) {
                keys.add(Some8::one(key));
            }
        }
        keys
    }
}
