//! A warmer: one run after another, each of them the protocol of `engine/rounds.rs`, one command at a
//! time. What is decided is decided by the same code: [`Rounds`] and [`vanished`].

use std::sync::OnceLock;

use chrono::DateTime;
use preheat::domain::fence::{Fence, Life, Rounds};
use preheat::domain::manifest::{Named, vanished};

use super::schedule::{Sabotage, Situation, World};
use super::world::{
    Command, LISTED, Manifest, NEVER, OF_TENANT, Place, Reply, Row, Some8, TENANTS, Value,
};

/// Why a run is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its schedule: nobody misses it if it fails before it has written anything.
    Scheduled,
    /// The worker started, or the feed is back after it missed something: it has to come to an end.
    Full,
    /// Tenants whose data changed, or whose keys are not proven yet.
    Change,
}

/// Where a run is; each has one pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    FencesBefore,
    StartFences,
    ReplaceFences,
    Manifests,
    Query,
    Enlist,
    Write,
    /// Keys that move are named once more before a write is repeated.
    EnlistAgain,
    /// At keys that may have moved, before they are removed.
    LookAround,
    Remove,
    Delist,
    FencesAfter,
    Lives,
    /// Only a sabotage comes here.
    TakeOut,
}

/// Commands that go out together; others' come in between.
#[derive(Clone, Default)]
pub(super) struct Call {
    commands: Vec<Command>,
    done: usize,
    /// The connection is lost after so many commands were done.
    lost_after: Option<usize>,
}

impl Call {
    /// A pipeline; the dice say whether it comes through.
    pub(super) fn set(&mut self, commands: impl IntoIterator<Item = Command>, world: &mut World) {
        self.commands.clear();
        self.commands.extend(commands);
        self.done = 0;
        let count = self.commands.len();
        self.lost_after = (count > 0 && world.goes_wrong()).then(|| world.dice.below(count + 1));
    }

    /// The next command, where there is one and the connection holds.
    pub(super) fn next(&mut self) -> Option<Command> {
        if self.lost_after == Some(self.done) {
            return None;
        }
        let command = self.commands.get(self.done).copied()?;
        self.done += 1;
        Some(command)
    }

    /// Whether it has ended, and how; what was not done yet may be on its way to the server.
    pub(super) fn ended(&self) -> Option<Result<(), Lost>> {
        if self.lost_after == Some(self.done) {
            return Some(Err(Lost));
        }
        (self.done == self.commands.len()).then_some(Ok(()))
    }

    /// What was sent and is not done yet.
    pub(super) fn rest(&self) -> &[Command] {
        &self.commands[self.done..]
    }
}

/// A pipeline was not answered: it was done, or not, or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A run in flight.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) kind: Kind,
    /// The step at which it began.
    pub(super) began: u32,
    /// The tenants of each slot.
    batch: Vec<usize>,
    rounds: Option<Rounds>,
    round: u32,
    stage: Stage,
    call: Call,
    /// The tenants of this round.
    open: Some8,
    /// How their fences stood before the query.
    fences: [Fence; TENANTS],
    /// What their manifests name, since when.
    manifests: [Manifest; TENANTS],
    /// What the query found.
    rows: [Row; TENANTS],
    new: [Some8; TENANTS],
    vanished: [Some8; TENANTS],
    /// When this round named what it writes; [`NEVER`] what it did not name.
    named_at: [[u32; LISTED]; TENANTS],
    /// What was named before this step cannot exist any more; 0 where nothing is so old.
    outdated: u32,
    /// Tenants whose manifests name all that is present, and will for long enough.
    fresh: Some8,
    /// Tenants of this round for which something was refused or lost.
    failed: Some8,
    /// Keys that move which it removed, or set out to, for each tenant.
    removed: [Some8; TENANTS],
    /// Those that it wrote for each tenant and did not prove since: it may have written over what
    /// another tenant had there.
    unproven: [Some8; TENANTS],
    /// Keys that are not known to be written: nobody gives them another life.
    unwritten: Some8,
    /// Tenants of which something that was sent may still be on its way.
    uncertain: Some8,
    settled: Some8,
    retried: bool,
    /// Tenants whose keys may be written and are not proven: whatever ends the run, they are warmed
    /// again.
    pub(super) doubt: Some8,
    /// Tenants that have a key which was about to be removed: only a sabotage looks for them then.
    pub(super) found: Some8,
    /// Tenants that it has not come to an end with.
    pub(super) left: Some8,
}

impl Run {
    pub(super) fn begin(kind: Kind, tenants: Some8, world: &mut World) -> Self {
        let mut run = Self {
            kind,
            began: world.step,
            batch: tenants.iter().collect(),
            rounds: None,
            round: 1,
            stage: Stage::FencesBefore,
            call: Call::default(),
            open: tenants,
            fences: [Fence::Missing; TENANTS],
            manifests: [Manifest::default(); TENANTS],
            rows: [[0; OF_TENANT]; TENANTS],
            new: [Some8::NONE; TENANTS],
            vanished: [Some8::NONE; TENANTS],
            named_at: [[NEVER; LISTED]; TENANTS],
            removed: [Some8::NONE; TENANTS],
            unproven: [Some8::NONE; TENANTS],
            outdated: 0,
            fresh: Some8::NONE,
            failed: Some8::NONE,
            unwritten: Some8::NONE,
            uncertain: Some8::NONE,
            settled: Some8::NONE,
            retried: false,
            doubt: Some8::NONE,
            found: Some8::NONE,
            left: tenants,
        };
        run.begin_round(world);
        run
    }

    /// Does one thing; answers whether the run goes on.
    pub(super) fn step(&mut self, name: usize, world: &mut World) -> bool {
        if self.stage == Stage::Query {
            return self.query(name, world);
        }
        if let Some(command) = self.call.next() {
            if world.refuses(command) {
                world.say(name, || format!("{}: {command}: refused", self.title()));
                self.note_refusal(command, world);
            } else {
                self.check_renewal(command, world);
                let reply = world.execute(command);
                world.say(name, || format!("{}: {command}{reply}", self.title()));
                self.take(command, reply, world);
            }
        }
        let Some(result) = self.call.ended() else { return true };
        if result.is_err() {
            world.say(name, || format!("{}: the connection is lost", self.title()));
            world.leave(self.call.rest());
            if matches!(self.stage, Stage::Write | Stage::Remove | Stage::Lives) {
                // It may come later: even if the fences stand still, nothing is proven.
                self.uncertain.add(self.open);
            }
            let is_removal = self.stage == Stage::Remove;
            if is_removal && world.sabotage == Some(Sabotage::LostRemovalNotSearched) {
                self.removed = [Some8::NONE; TENANTS];
            }
        }
        self.advance(result, world)
    }

    fn title(&self) -> String {
        format!("{:?} run since {}, round {}", self.kind, self.began, self.round)
    }

    fn take(&mut self, command: Command, reply: Reply, world: &mut World) {
        if let (Command::Fences(tenants), Reply::Fences(fences)) = (command, reply) {
            for tenant in tenants {
                self.fences[tenant] = fences[tenant];
            }
        }
        if let (Command::Manifest(tenant), Reply::Manifest(manifest)) = (command, reply) {
            if self.stage == Stage::Remove {
                let others = self.open.without(Some8::one(tenant));
                let names = manifest.names().and(Some8::MOVING);
                let is_named = |other: usize| !self.vanished[other].and(names).is_empty();
                if others.iter().any(is_named) {
                    self.found.add(Some8::one(tenant));
                }
            } else {
                self.manifests[tenant] = manifest;
            }
        }
        if let Command::Enlist(tenant, names) = command {
            for name in names {
                self.named_at[tenant][name] = world.step;
            }
        }
        if let (Command::Look(place), Reply::Value(value)) = (command, reply) {
            self.take_look(place, value, world);
        }
        if let Command::Unlink(place) = command {
            world.meet(Situation::Vanished);
            if place.moves() && world.database.place(place.key()).is_some() {
                world.meet(Situation::TakenAway);
            }
        }
        if let (Command::Delist(..), Reply::Names(out)) = (command, reply)
            && !out.is_empty()
        {
            world.meet(Situation::Delisted);
        }
    }

    fn note_refusal(&mut self, command: Command, world: &mut World) {
        let (Command::Set(place, ..) | Command::Unlink(place)) = command else { return };
        self.unwritten.add(Some8::one(place.key()));
        if self.kind == Kind::Scheduled {
            world.cache.refused.add(Some8::one(place.key()));
        }
        if world.sabotage != Some(Sabotage::RefusalsForgotten) {
            self.failed.add(Some8::one(place.tenant));
        }
    }

    /// Nobody may renew a key whose data was gone when he read.
    fn check_renewal(&self, command: Command, world: &mut World) {
        let (Command::Set(place, ..) | Command::Expire(place, ..)) = command else { return };
        if place.version(&self.rows) == 0 {
            world.renewed_without_data = Some(place.key());
        }
    }

    fn begin_round(&mut self, world: &mut World) {
        self.failed = Some8::NONE;
        self.unwritten = Some8::NONE;
        if world.sabotage == Some(Sabotage::LossesForgotten) {
            self.uncertain = Some8::NONE;
        }
        if world.sabotage == Some(Sabotage::LookAfterTheQuery) {
            return self.read_manifests(world);
        }
        self.read_fences(world);
    }

    fn read_fences(&mut self, world: &mut World) {
        self.stage = Stage::FencesBefore;
        self.call.set([Command::Fences(self.open)], world);
    }

    fn read_manifests(&mut self, world: &mut World) {
        self.stage = Stage::Manifests;
        self.call.set(self.open.iter().map(Command::Manifest), world);
    }

    /// A pipeline has ended: decides what comes next.
    fn advance(&mut self, result: Result<(), Lost>, world: &mut World) -> bool {
        match (self.stage, result) {
            (Stage::FencesBefore, Ok(())) => self.start_fences(world),
            (Stage::StartFences, Ok(())) => self.replace_fences(world),
            (Stage::ReplaceFences, Ok(())) => self.stand(world),
            (Stage::Manifests, Ok(())) => {
                self.stage = Stage::Query;
                true
            }
            (Stage::Query, _) => unreachable!("a query is no pipeline"),
            (Stage::Enlist, Ok(())) => self.write(world),
            (Stage::EnlistAgain, Ok(())) => self.send_writes(world),
            (Stage::Write, Ok(())) => self.look_around(world),
            (Stage::LookAround, Ok(())) => self.remove(world),
            (Stage::LookAround, Err(Lost)) => self.remove_unseen(world),
            (Stage::Remove, Ok(())) => self.delist(world),
            // Whatever was lost of it: the tenants stay in doubt.
            (Stage::Remove, Err(Lost)) | (Stage::Delist, _) => self.look_after(world),
            (Stage::FencesAfter, Ok(())) => self.look(world),
            (Stage::Lives, _) => self.take_out(world),
            (Stage::TakeOut, _) => self.end_round(world),
            (Stage::Enlist | Stage::FencesAfter, Err(Lost)) if !self.retried => {
                self.again(world);
                true
            }
            (Stage::Write, Err(Lost)) if !self.retried => self.name_again(world),
            (Stage::Write | Stage::EnlistAgain, Err(Lost)) => {
                for place in self.open.iter().flat_map(Place::all) {
                    self.unwritten.add(Some8::one(place.key()));
                }
                self.look_around(world)
            }
            // What was written in this round and in those before it stays in doubt.
            (
                Stage::FencesBefore
                | Stage::StartFences
                | Stage::ReplaceFences
                | Stage::Manifests
                | Stage::Enlist
                | Stage::FencesAfter,
                Err(Lost),
            ) => false,
        }
    }

    /// Sends the same pipeline again.
    fn again(&mut self, world: &mut World) {
        self.retried = true;
        let commands = std::mem::take(&mut self.call.commands);
        self.call.set(commands, world);
    }

    fn life(&self) -> Life {
        match (&self.rounds, self.kind) {
            (Some(rounds), _) => rounds.life(),
            (None, Kind::Change) => Life::Probation,
            (None, Kind::Scheduled | Kind::Full) => Life::Full,
        }
    }

    fn with_vanished(&self) -> Some8 {
        let mut tenants = Some8::NONE;
        for tenant in self.open {
            if !self.vanished[tenant].is_empty() {
                tenants.add(Some8::one(tenant));
            }
        }
        tenants
    }

    /// Fences that cannot be relied on are given a start before the query.
    fn start_fences(&mut self, world: &mut World) -> bool {
        let fences = self.fences;
        let unreliable = self.open_with(Fence::needs_start);
        if unreliable.is_empty() || world.sabotage == Some(Sabotage::BareFences) {
            return self.stand(world);
        }
        if self.round > 1 {
            world.meet(Situation::StartLost);
        }
        let number = world.start_number();
        let start = unreliable.iter().map(|tenant| match fences[tenant] {
            Fence::Missing => Command::MakeFence(tenant, number),
            Fence::At(_) => Command::RaiseFence(tenant, number),
        });
        self.stage = Stage::StartFences;
        self.call.set(start.chain([Command::Fences(unreliable)]), world);
        true
    }

    /// One that is missing all the same holds something else, with which nobody can count.
    fn replace_fences(&mut self, world: &mut World) -> bool {
        let missing = self.open_with(|fence| fence == Fence::Missing);
        if missing.is_empty() {
            return self.stand(world);
        }
        let number = world.start_number();
        let replace = missing.iter().map(|tenant| Command::ReplaceFence(tenant, number));
        self.stage = Stage::ReplaceFences;
        self.call.set(replace.chain([Command::Fences(missing)]), world);
        true
    }

    fn open_with(&self, is_such: impl Fn(Fence) -> bool) -> Some8 {
        let mut tenants = Some8::NONE;
        for tenant in self.open {
            if is_such(self.fences[tenant]) {
                tenants.add(Some8::one(tenant));
            }
        }
        tenants
    }

    /// The fences before the query are known.
    fn stand(&mut self, world: &mut World) -> bool {
        let fences = self.fences.map(|fence| world.taken_for(fence));
        match &mut self.rounds {
            None => {
                let life = self.life();
                let of_slots = self.batch.iter().map(|&tenant| fences[tenant]);
                self.rounds = Some(Rounds::begin(of_slots, life));
            }
            Some(rounds) => {
                let slots = rounds.slots().map(|slot| fences[self.batch[slot]]);
                let slots: Vec<Fence> = slots.collect();
                rounds.stand(&slots);
            }
        }
        if world.sabotage == Some(Sabotage::LookAfterTheQuery) {
            return self.enlist(world);
        }
        self.read_manifests(world);
        true
    }

    /// One statement for the whole batch: it sees one state of the database. Where it fails, nothing is
    /// written and nothing removed.
    fn query(&mut self, name: usize, world: &mut World) -> bool {
        if world.goes_wrong() {
            world.say(name, || format!("{}: the query fails", self.title()));
            return false;
        }
        self.rows = world.database.rows;
        world.say(name, || format!("{} reads the database", self.title()));
        self.outdated = if world.has_time_passed() { world.oldest_run() } else { 0 };
        self.fresh = Some8::NONE;
        for tenant in self.open {
            let (named, present) = (self.manifests[tenant].names(), present(self.rows[tenant]));
            (self.new[tenant], self.vanished[tenant]) = difference(named, present);
            let own = present.and(Some8::CATEGORIES);
            if own.without(named).is_empty() && world.finds_fresh(tenant, own) {
                self.fresh.add(Some8::one(tenant));
            }
        }
        if world.sabotage == Some(Sabotage::LookAfterTheQuery) {
            self.read_fences(world);
            return true;
        }
        self.enlist(world)
    }

    fn enlist(&mut self, world: &mut World) -> bool {
        if world.sabotage == Some(Sabotage::NamesAfterKeys) {
            return self.write(world);
        }
        self.stage = Stage::Enlist;
        self.retried = false;
        self.named_at = [[NEVER; LISTED]; TENANTS];
        self.set_names(world);
        self.go_on(world)
    }

    fn set_names(&mut self, world: &mut World) {
        let mut listings = [(0, Some8::NONE); TENANTS];
        for (tenant, listing) in self.open.iter().zip(&mut listings) {
            let mut names = present(self.rows[tenant]);
            if self.fresh.has(tenant) {
                names.remove(Some8::CATEGORIES);
            }
            match world.sabotage {
                Some(Sabotage::OnlyNewNamed) => {
                    names.remove(Some8::CATEGORIES.without(self.new[tenant]));
                }
                Some(Sabotage::MovingNotNamedAnew) => {
                    names.remove(self.manifests[tenant].names().and(Some8::MOVING));
                }
                _ => {}
            }
            *listing = (tenant, names);
        }
        let listings = listings.into_iter().filter(|(_, names)| !names.is_empty());
        self.call.set(listings.map(|(tenant, names)| Command::Enlist(tenant, names)), world);
    }

    /// From here on the tenants are in doubt.
    fn write(&mut self, world: &mut World) -> bool {
        self.doubt.add(self.open);
        for tenant in self.open {
            self.unproven[tenant].add(present(self.rows[tenant]).and(Some8::MOVING));
        }
        self.retried = false;
        self.send_writes(world)
    }

    fn send_writes(&mut self, world: &mut World) -> bool {
        self.stage = Stage::Write;
        let (life, rows, named_at) = (self.life(), self.rows, self.named_at);
        let places = self.open.iter().flat_map(Place::all);
        let sets = places
            .filter(|place| place.version(&rows) != 0)
            .map(|place| Command::Set(place, place.version(&rows), life, naming(&named_at, place)));
        self.call.set(sets, world);
        true
    }

    /// Much time may have passed since the keys were named.
    fn name_again(&mut self, world: &mut World) -> bool {
        self.retried = true;
        self.named_at = [[NEVER; LISTED]; TENANTS];
        if world.sabotage == Some(Sabotage::MovingNotNamedAgain) {
            return self.send_writes(world);
        }
        self.stage = Stage::EnlistAgain;
        let rows = self.rows;
        let listings = self
            .open
            .iter()
            .map(|tenant| Command::Enlist(tenant, present(rows[tenant]).and(Some8::MOVING)));
        let is_any = |command: &Command| !matches!(command, Command::Enlist(_, Some8::NONE));
        self.call.set(listings.filter(is_any), world);
        self.go_on(world)
    }

    /// Looks at keys that have vanished and may have gone to another tenant. Those that were written
    /// in this batch have; but for one that the cache refused, or did not say it wrote.
    fn look_around(&mut self, world: &mut World) -> bool {
        self.stage = Stage::LookAround;
        let mut written = Some8::NONE;
        for tenant in self.open {
            written.add(present(self.rows[tenant]).and(Some8::MOVING));
        }
        let mut looks = [None; TENANTS * LISTED];
        let mut free = looks.iter_mut();
        for tenant in self.open {
            for name in self.vanished[tenant].and(Some8::MOVING) {
                let place = Place::listed(tenant, name);
                let is_written = written.has(name) && !self.unwritten.has(place.key());
                if is_written {
                    self.vanished[tenant].remove(Some8::one(name));
                } else if let Some(look) = free.next() {
                    *look = Some(Command::Look(place));
                }
            }
        }
        self.call.set(looks.into_iter().flatten(), world);
        self.go_on(world)
    }

    /// What was written long after the tenant named it is another's, and stays. A run does not know
    /// whether the tenant named it anew since it read the manifest.
    fn take_look(&mut self, place: Place, value: Option<Value>, world: &mut World) {
        let Some(name) = place.name() else { return };
        let named_at = self.manifests[place.tenant].0[name];
        let stays = match value {
            None => true,
            Some(value) if value.is_left_behind(place.tenant, named_at) => false,
            Some(_) => world.leaves_alone(),
        };
        if stays {
            self.vanished[place.tenant].remove(Some8::one(name));
        }
    }

    /// The run could not look, so that it removes nothing.
    fn remove_unseen(&mut self, world: &mut World) -> bool {
        for tenant in self.open {
            if !self.vanished[tenant].and(Some8::MOVING).is_empty() {
                self.vanished[tenant].remove(Some8::MOVING);
                self.failed.add(Some8::one(tenant));
            }
        }
        self.remove(world)
    }

    fn remove(&mut self, world: &mut World) -> bool {
        self.stage = Stage::Remove;
        let vanished = self.vanished;
        let unlinks = self.open.iter().flat_map(|tenant| {
            let names = vanished[tenant].iter();
            names.map(move |name| Command::Unlink(Place::listed(tenant, name)))
        });
        let mut commands: Vec<_> = unlinks.collect();
        let mut looked_up = Some8::NONE;
        for tenant in self.open {
            let taken_away = vanished[tenant].and(Some8::MOVING);
            if world.sabotage != Some(Sabotage::SearchBeforeRemoval) {
                self.removed[tenant].add(taken_away);
            } else if !taken_away.is_empty() {
                looked_up.add(Some8::TENANTS.without(Some8::one(tenant)));
            }
        }
        commands.splice(0..0, looked_up.iter().map(Command::Manifest));
        if world.sabotage == Some(Sabotage::NamesAfterKeys) {
            let named = self.open.iter().map(|tenant| Command::Enlist(tenant, self.new[tenant]));
            commands.extend(named.filter(|one| !matches!(one, Command::Enlist(_, Some8::NONE))));
        }
        if world.sabotage == Some(Sabotage::DelistedBeforeRemoval) {
            let out = self.with_vanished();
            commands.splice(0..0, out.iter().map(|one| Command::TakeOut(one, vanished[one])));
        }
        self.call.set(commands, world);
        self.go_on(world)
    }

    /// Names end by age, where nothing was refused that might be there under one of them.
    fn delist(&mut self, world: &mut World) -> bool {
        self.stage = Stage::Delist;
        let outdated = self.outdated;
        let who = if self.failed.is_empty() && outdated > 0 { self.open } else { Some8::NONE };
        self.call.set(who.iter().map(|tenant| Command::Delist(tenant, outdated)), world);
        self.go_on(world)
    }

    /// A pipeline of nothing has ended already.
    fn go_on(&mut self, world: &mut World) -> bool {
        match self.call.ended() {
            Some(Ok(())) => self.advance(Ok(()), world),
            Some(Err(Lost)) | None => true,
        }
    }

    fn look_after(&mut self, world: &mut World) -> bool {
        if world.sabotage == Some(Sabotage::NoLookAfter) {
            return self.look(world);
        }
        if world.sabotage == Some(Sabotage::ShortFences) {
            for tenant in self.open {
                world.cache.fences[tenant] = None;
            }
        }
        self.stage = Stage::FencesAfter;
        self.retried = false;
        self.call.set([Command::Fences(self.open)], world);
        true
    }

    /// The fences after the writes are known: who is proven?
    fn look(&mut self, world: &mut World) -> bool {
        let Some(rounds) = &mut self.rounds else { unreachable!("it has begun") };
        let written_for = rounds.life();
        let fences = rounds.slots().map(|slot| world.taken_for(self.fences[self.batch[slot]]));
        let fences: Vec<Fence> = fences.collect();
        let verdict = rounds.look(&fences);
        let tenants = |slots: &[usize]| {
            let mut tenants = Some8::NONE;
            for slot in slots {
                tenants.add(Some8::one(self.batch[*slot]));
            }
            tenants
        };
        self.settled = tenants(&verdict.settled);
        let mut moved = tenants(&verdict.moved);
        if !moved.is_empty() {
            world.meet(if rounds.goes_on() { Situation::Moved } else { Situation::Fenced });
        }
        if self.round > 1 && !self.settled.is_empty() {
            world.meet(Situation::ProvenLater);
        }
        if world.sabotage == Some(Sabotage::LastRoundCounts) && !rounds.goes_on() {
            self.settled.add(moved);
            moved = Some8::NONE;
        }
        let (who, life) = match written_for {
            Life::Full => (moved, Life::Probation),
            Life::Probation => (self.settled, Life::Full),
        };
        self.stage = Stage::Lives;
        let (rows, unwritten, named_at) = (self.rows, self.unwritten, self.named_at);
        let written = who
            .iter()
            .flat_map(Place::all)
            .filter(|place| place.version(&rows) != 0 && !unwritten.has(place.key()));
        let expiries = written.map(|place| Command::Expire(place, life, naming(&named_at, place)));
        self.call.set(expiries, world);
        self.go_on(world)
    }

    fn take_out(&mut self, world: &mut World) -> bool {
        if world.sabotage != Some(Sabotage::DelistedAtOnce) {
            return self.end_round(world);
        }
        self.stage = Stage::TakeOut;
        let vanished = self.vanished;
        let out = self.proven().without(self.failed).and(self.with_vanished());
        self.call.set(out.iter().map(|tenant| Command::TakeOut(tenant, vanished[tenant])), world);
        self.go_on(world)
    }

    fn proven(&self) -> Some8 {
        self.settled.without(self.uncertain)
    }

    /// Where the cache refused something, it depends on why the run is done whether the tenant is
    /// warmed again for it; but it is where a round before may have left what this one did not mend.
    fn end_round(&mut self, world: &mut World) -> bool {
        let proven = self.proven();
        let mended = proven.without(self.failed);
        let is_forgotten = world.sabotage == Some(Sabotage::RoundsBeforeForgotten);
        self.doubt.remove(if self.round == 1 || is_forgotten { proven } else { mended });
        self.left.remove(mended);
        for tenant in proven {
            for name in present(self.rows[tenant]).and(Some8::MOVING) {
                if !self.unwritten.has(Place::listed(tenant, name).key()) {
                    self.unproven[tenant].remove(Some8::one(name));
                }
            }
        }
        let Some(rounds) = &self.rounds else { return false };
        if !rounds.goes_on() {
            return false;
        }
        self.open = Some8::NONE;
        for slot in rounds.slots() {
            self.open.add(Some8::one(self.batch[slot]));
        }
        self.round += 1;
        self.begin_round(world);
        true
    }

    /// What was sent and is not done yet.
    pub(super) fn rest(&self) -> &[Command] {
        self.call.rest()
    }

    /// Whether it has written a key of a tenant and is about to say how long it lives.
    pub(super) fn is_about_to_prove(&self, place: Place) -> bool {
        self.doubt.has(place.tenant)
    }

    /// Whether others may miss a key that it removed.
    pub(super) fn has_taken_away(&self) -> bool {
        self.removed.iter().any(|some| !some.is_empty())
    }

    /// Keys that move which others may miss, since a run for a tenant removed or overwrote them.
    pub(super) fn missed(&self, sabotage: Option<Sabotage>) -> [Some8; TENANTS] {
        let mut missed = self.removed;
        if sabotage != Some(Sabotage::DoubtNotSearched) {
            for (some, unproven) in missed.iter_mut().zip(self.unproven) {
                some.add(unproven);
            }
        }
        missed
    }
}

/// What a row has of what a manifest names.
fn present(row: Row) -> Some8 {
    let mut present = Some8::NONE;
    for name in 0..LISTED {
        if row[1 + name] != 0 {
            present.add(Some8::one(name));
        }
    }
    present
}

/// When a round named a key; known keys are not named.
fn naming(named_at: &[[u32; LISTED]; TENANTS], place: Place) -> u32 {
    place.name().map_or(NEVER, |name| named_at[place.tenant][name])
}

/// What is new, and what [`vanished`] says, looked up: it works on text, and there are few cases.
fn difference(named: Some8, present: Some8) -> (Some8, Some8) {
    const SETS: usize = 1 << LISTED;
    static TABLE: OnceLock<[[Some8; SETS]; SETS]> = OnceLock::new();
    let text = |some: Some8| some.iter().map(|one| one.to_string()).collect::<Vec<_>>();
    let set = |bits: usize| Some8(u8::try_from(bits).unwrap());
    let name = |key: String| Named { key, named_at: DateTime::UNIX_EPOCH };
    let table = TABLE.get_or_init(|| {
        std::array::from_fn(|named| {
            std::array::from_fn(|present| {
                let (named, present) = (text(set(named)), text(set(present)));
                let gone =
                    vanished(named.into_iter().map(name), present.iter().map(String::as_str));
                let mut some = Some8::NONE;
                for Named { key, .. } in gone {
                    some.add(Some8::one(key.parse().unwrap()));
                }
                some
            })
        })
    });
    (present.without(named), table[usize::from(named.0)][usize::from(present.0)])
}
