//! The database and the cache, as small as they can be: what is in them, and what one command does.

use std::fmt;

use preheat::domain::fence::{Fence, Life, start_number};

/// Tenants.
pub(super) const TENANTS: usize = 2;
/// Categories that a tenant may have: each is a key with a data column.
pub(super) const CATEGORIES: usize = 2;
/// Keys of a tenant: the known one first, then one a category.
pub(super) const OF_TENANT: usize = 1 + CATEGORIES;
/// All keys.
pub(super) const KEYS: usize = TENANTS * OF_TENANT;

/// Fences are given starts so far apart.
pub(super) const STARTS: f64 = 4096.0;

/// Some of few: of tenants, of categories, of keys.
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

/// What is in a [`Some8`], in order.
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

/// A key; `place` 0 is the tenant's known key, the others are its categories'.
pub(super) fn key(tenant: usize, place: usize) -> usize {
    tenant * OF_TENANT + place
}

pub(super) fn tenant_of(key: usize) -> usize {
    key / OF_TENANT
}

pub(super) fn category_of(key: usize) -> Option<usize> {
    (key % OF_TENANT).checked_sub(1)
}

fn letter(category: usize) -> char {
    ['a', 'b'][category]
}

/// A key as a person reads it.
pub(super) struct Named(pub(super) usize);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = tenant_of(self.0);
        match category_of(self.0) {
            None => write!(f, "{tenant}:all"),
            Some(category) => write!(f, "{tenant}:{}", letter(category)),
        }
    }
}

/// The versions of some tenant's keys; 0 where there is no such category.
pub(super) type Row = [u16; OF_TENANT];

/// What every key has to hold. A transaction is one assignment; a query reads one of its states.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) rows: [Row; TENANTS],
    /// Every change has its own number.
    newest: u16,
}

/// What a transaction does to a tenant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A row of the tenant's known key alone.
    Other,
    /// A category is made, or one of its rows changed.
    Put(usize),
    /// A category's last row is gone.
    Remove(usize),
}

impl Database {
    pub(super) fn new(rows: [Row; TENANTS]) -> Self {
        Self { rows, newest: 1 }
    }

    /// Commits; answers the keys whose value is another one now.
    pub(super) fn commit(&mut self, tenant: usize, change: Change) -> Some8 {
        self.newest += 1;
        let row = &mut self.rows[tenant];
        row[0] = self.newest;
        let mut changed = Some8::one(key(tenant, 0));
        match change {
            Change::Other => {}
            Change::Put(category) => {
                row[1 + category] = self.newest;
                changed.add(Some8::one(key(tenant, 1 + category)));
            }
            Change::Remove(category) => {
                row[1 + category] = 0;
                changed.add(Some8::one(key(tenant, 1 + category)));
            }
        }
        changed
    }

    /// What a key has to hold; 0 where there must be none.
    pub(super) fn version(&self, key: usize) -> u16 {
        self.rows[tenant_of(key)][key % OF_TENANT]
    }
}

/// One command, as atomic as Redis does it; a pipeline is several of them, with those of others in
/// between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `MGET` of the fences of some tenants.
    Fences(Some8),
    /// `SET … NX` of a fence.
    MakeFence(usize, i64),
    /// `SET` of a fence, whatever is there.
    ReplaceFence(usize, i64),
    /// `INCRBY` of a fence.
    RaiseFence(usize, i64),
    /// `INCR` of a fence.
    MoveFence(usize),
    /// `ZRANGE` of a tenant's manifest.
    Manifest(usize),
    /// `ZADD` of categories in a tenant's manifest, as of now.
    Enlist(usize, Some8),
    /// `ZREMRANGEBYSCORE` of a tenant's manifest, up to that step: takes out what was named so long
    /// ago that its key cannot exist any more. Steps do not tell for how long a key lives; so a key
    /// that is there was not written long enough ago, and its name stays.
    Delist(usize, u32),
    /// `ZREM` of categories, which nothing but a sabotage does.
    TakeOut(usize, Some8),
    /// `SET … PX` of a key.
    Set(usize, u16, Life),
    /// `SET … PX` of a key by the application, on probation.
    Fill(usize, u16),
    /// `UNLINK` of a key by a warmer.
    Unlink(usize),
    /// `DEL` of a key by the application.
    Delete(usize),
    /// `PEXPIRE` of a key.
    Expire(usize, Life),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = |life: Life| match life {
            Life::Full => "for its whole life",
            Life::Probation => "on probation",
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
            Self::Enlist(tenant, names) => {
                write!(f, "names {} in manifest {tenant}", Letters(names))
            }
            Self::Delist(tenant, before) => {
                write!(f, "takes out of manifest {tenant} what was named before {before}")
            }
            Self::TakeOut(tenant, names) => {
                write!(f, "takes {} out of manifest {tenant}", Letters(names))
            }
            Self::Set(key, version, l) => write!(f, "SET {} = v{version} {}", Named(key), life(l)),
            Self::Fill(key, version) => write!(f, "SET {} = v{version} on probation", Named(key)),
            Self::Unlink(key) => write!(f, "UNLINK {}", Named(key)),
            Self::Delete(key) => write!(f, "DEL {}", Named(key)),
            Self::Expire(key, l) => write!(f, "PEXPIRE {} {}", Named(key), life(l)),
        }
    }
}

/// What a command answers; most say nothing that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Fences([Fence; TENANTS]),
    Names(Some8),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => Ok(()),
            Self::Fences(fences) => {
                let [first, second] = fences.map(|fence| match fence {
                    Fence::Missing => "none".to_owned(),
                    Fence::At(number) => Number(number).to_string(),
                });
                write!(f, " → {first}, {second}")
            }
            Self::Names(names) => write!(f, " → {}", Letters(*names)),
        }
    }
}

/// A fence's number: the start that it was given, and how often it was moved since.
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

/// Categories as a person reads them.
struct Letters(Some8);

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some8::NONE => write!(f, "nothing"),
            some => some.iter().try_for_each(|one| write!(f, "{}", letter(one))),
        }
    }
}

/// A value in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) version: u16,
    pub(super) life: Life,
    /// The application put it there.
    is_filled: bool,
}

/// Who took a key away that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// Nobody: it was never there.
    Never,
    /// The application's `DEL`.
    Application,
    /// The server, for want of memory.
    Evicted,
    /// A warmer that found its data gone.
    Warmer,
    /// Its probation ended; `early` while somebody was still about to prove it: a pause of
    /// [`preheat::domain::fence::PROBATION`] between two commands.
    Probation { early: bool },
}

impl Gone {
    /// Whether a key may stay away that was taken away like this: everything else is made good by
    /// whoever did it, or by the run after it.
    pub(super) fn is_fair(self) -> bool {
        match self {
            Self::Application | Self::Evicted | Self::Probation { early: true } => true,
            Self::Never | Self::Warmer | Self::Probation { early: false } => false,
        }
    }
}

/// What is in the cache.
#[derive(Clone)]
pub(super) struct Cache {
    pub(super) values: [Option<Value>; KEYS],
    pub(super) gone: [Gone; KEYS],
    pub(super) fences: [Option<i64>; TENANTS],
    /// When each category was named last; 0 where it is not.
    manifests: [[u32; CATEGORIES]; TENANTS],
    /// Keys whose names were lost by the eviction of a manifest, and that no run has named since.
    pub(super) orphans: Some8,
    /// Keys whose last write by a scheduled run was refused: such a run is not repeated for that.
    pub(super) refused: Some8,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            values: [None; KEYS],
            gone: [Gone::Never; KEYS],
            fences: [None; TENANTS],
            manifests: [[0; CATEGORIES]; TENANTS],
            orphans: Some8::NONE,
            refused: Some8::NONE,
        }
    }

    /// The names in a manifest.
    pub(super) fn names(&self, tenant: usize) -> Some8 {
        let mut names = Some8::NONE;
        for (category, at) in self.manifests[tenant].iter().enumerate() {
            if *at != 0 {
                names.add(Some8::one(category));
            }
        }
        names
    }

    /// Names that a run relies on without giving them again end so late that what it writes has
    /// expired then: as if it had given them at this step. Says whether it can rely on them: whatever
    /// is not there any more was evicted, for it was too young to end.
    pub(super) fn rely_on(&mut self, tenant: usize, names: Some8, step: u32) -> bool {
        let ended = names.without(self.names(tenant));
        let can = ended.iter().all(|category| self.orphans.has(key(tenant, 1 + category)));
        for category in names.and(self.names(tenant)) {
            if can {
                self.manifests[tenant][category] = step;
            }
        }
        can
    }

    pub(super) fn is_named(&self, key: usize) -> bool {
        category_of(key).is_none_or(|category| self.manifests[tenant_of(key)][category] != 0)
    }

    fn fence(&self, tenant: usize) -> Fence {
        self.fences[tenant].map_or(Fence::Missing, Fence::At)
    }

    /// Does a command at a step.
    pub(super) fn execute(&mut self, command: Command, step: u32) -> Reply {
        match command {
            Command::Fences(tenants) => {
                let mut fences = [Fence::Missing; TENANTS];
                for tenant in tenants {
                    fences[tenant] = self.fence(tenant);
                }
                return Reply::Fences(fences);
            }
            Command::Manifest(tenant) => return Reply::Names(self.names(tenant)),
            Command::MakeFence(tenant, start) => {
                self.fences[tenant].get_or_insert(start);
            }
            Command::ReplaceFence(tenant, start) => self.fences[tenant] = Some(start),
            Command::RaiseFence(tenant, by) => *self.fences[tenant].get_or_insert(0) += by,
            Command::MoveFence(tenant) => *self.fences[tenant].get_or_insert(0) += 1,
            Command::Enlist(tenant, names) => {
                for category in names {
                    self.manifests[tenant][category] = step;
                    self.orphans.remove(Some8::one(key(tenant, 1 + category)));
                }
            }
            Command::Delist(tenant, before) => {
                let mut out = Some8::NONE;
                for category in self.names(tenant) {
                    let is_there = self.values[key(tenant, 1 + category)].is_some();
                    if self.manifests[tenant][category] < before && !is_there {
                        self.manifests[tenant][category] = 0;
                        out.add(Some8::one(category));
                    }
                }
                return Reply::Names(out);
            }
            Command::TakeOut(tenant, names) => {
                for category in names {
                    self.manifests[tenant][category] = 0;
                }
            }
            Command::Set(key, version, life) => {
                self.values[key] = Some(Value { version, life, is_filled: false });
                self.refused.remove(Some8::one(key));
            }
            Command::Fill(key, version) => {
                let life = Life::Probation;
                self.values[key] = Some(Value { version, life, is_filled: true });
            }
            Command::Unlink(key) => self.remove(key, Gone::Warmer),
            // The application takes a key away whether it is there or not: whoever writes it
            // afterwards does so without a promise.
            Command::Delete(key) => {
                self.values[key] = None;
                self.gone[key] = Gone::Application;
            }
            Command::Expire(key, life) => {
                if let Some(value) = &mut self.values[key] {
                    value.life = life;
                }
            }
        }
        Reply::Done
    }

    /// Does a command of a lost connection: whoever sent it knows nothing of what it does now, so that
    /// a name that it brings back is found by the next run only.
    pub(super) fn execute_late(&mut self, command: Command, step: u32) {
        let orphans = self.orphans;
        self.execute(command, step);
        self.orphans.add(orphans);
    }

    fn remove(&mut self, key: usize, gone: Gone) {
        if self.values[key].take().is_some() {
            self.gone[key] = gone;
        }
    }

    /// The server pushes a value out.
    pub(super) fn evict_value(&mut self, key: usize) {
        self.remove(key, Gone::Evicted);
    }

    /// The server pushes a manifest out.
    pub(super) fn evict_manifest(&mut self, tenant: usize) {
        for category in self.names(tenant) {
            self.orphans.add(Some8::one(key(tenant, 1 + category)));
        }
        self.manifests[tenant] = [0; CATEGORIES];
    }

    /// A value's probation ends.
    pub(super) fn expire_now(&mut self, key: usize, early: bool) {
        let is_filled = self.values[key].is_some_and(|value| value.is_filled);
        let gone = if is_filled { Gone::Application } else { Gone::Probation { early } };
        self.remove(key, gone);
    }

    /// The keys on probation.
    pub(super) fn on_probation(&self) -> Some8 {
        let mut keys = Some8::NONE;
        for (key, value) in self.values.iter().enumerate() {
            if value.is_some_and(|value| value.life == Life::Probation) {
                keys.add(Some8::one(key));
            }
        }
        keys
    }
}
