//! A warmer does one run after another. The machine that decides in the worker decides here too ([`Warm`]).
//! Each step is a few commands, done one at a time, with the commands of other actors in between.

use preheat::domain::fence::Fence;
use preheat::domain::protocol::{Found, Life, Reply, Sabotage, Step, Verdict, Warm};

use super::problem::{Harm, Situation};
use super::schedule::World;
use super::world::{self, CATEGORIES, Command, Manifest, OF_TENANT, Place, Row, Some8, TENANTS};

/// Why a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its schedule: if it fails before it has written anything, it is not repeated.
    Scheduled,
    /// The worker started, or the feed is back after it missed something: this run must succeed in the end.
    Full,
    /// Tenants whose data changed, or that are unverified.
    Change,
}

/// Commands that are sent together; commands of other actors come in between.
#[derive(Clone, Default)]
pub(super) struct Call {
    commands: Vec<Command>,
    done: usize,
    /// The connection is lost after this many commands.
    lost_after: Option<usize>,
}

impl Call {
    /// Sends a pipeline; the dice decide whether it gets through.
    pub(super) fn set(&mut self, commands: impl IntoIterator<Item = Command>, world: &mut World) {
        self.commands.clear();
        self.commands.extend(commands);
        self.done = 0;
        let count = self.commands.len();
        self.lost_after = (count > 0 && world.goes_wrong()).then(|| world.dice.below(count + 1));
    }

    /// The next command, if there is one and the connection holds.
    pub(super) fn next(&mut self) -> Option<Command> {
        if self.lost_after == Some(self.done) {
            return None;
        }
        let command = self.commands.get(self.done).copied()?;
        self.done += 1;
        Some(command)
    }

    /// Whether and how it has ended; commands that were not executed may still be on their way to the server.
    pub(super) fn ended(&self) -> Option<Result<(), Lost>> {
        if self.lost_after == Some(self.done) {
            return Some(Err(Lost));
        }
        (self.done == self.commands.len()).then_some(Ok(()))
    }

    /// The commands that were sent and not executed.
    pub(super) fn rest(&self) -> &[Command] {
        &self.commands[self.done..]
    }
}

/// A pipeline was not answered: it was executed, or not, or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A run in flight.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "what happened to it, each by itself")]
pub(super) struct Run {
    pub(super) kind: Kind,
    /// The step at which it began.
    pub(super) began: u32,
    /// The tenants of each slot.
    batch: Vec<usize>,
    warm: Warm<u8>,
    step: Step<u8>,
    call: Call,
    /// The values of the fences that the step read.
    fences: [Fence; TENANTS],
    /// Whether fences that could not be started are being replaced.
    is_replacing: bool,
    manifests: [Manifest; TENANTS],
    /// What the query returned.
    rows: [Row; TENANTS],
    /// Entries up to this step cannot belong to existing keys; 0 if no entry is that old.
    outdated: u32,
    /// The TTLs with which own keys and shared keys were written.
    lives: (Life, Life),
    /// Keys that may not have been written.
    unwritten: Some8,
    /// Tenants of this round for which a command was refused or lost.
    refused: Some8,
    /// Whether something that this round sent may still arrive.
    in_flight: bool,
    has_written: bool,
    /// Whether the write of this round is repeated.
    is_repeated: bool,
    /// Whether the commands of this step were sent before.
    is_resent: bool,
    /// Tenants that the run has not finished.
    pub(super) left: Some8,
    /// Tenants that an earlier run left unverified.
    pub(super) follow_up: Some8,
}

impl Run {
    pub(super) fn begin(kind: Kind, tenants: Some8, world: &mut World) -> Self {
        let batch: Vec<usize> = tenants.iter().collect();
        let life = match kind {
            Kind::Scheduled | Kind::Full => Life::Full,
            Kind::Change => Life::Provisional,
        };
        let broken = world.harm.and_then(Harm::of_protocol);
        let (warm, step) = Warm::sabotaged(batch.len(), life, true, broken);
        let mut run = Self {
            kind,
            began: world.step,
            batch,
            warm,
            step,
            call: Call::default(),
            fences: [Fence::Missing; TENANTS],
            is_replacing: false,
            manifests: [Manifest::default(); TENANTS],
            rows: [[0; OF_TENANT]; TENANTS],
            outdated: 0,
            lives: (life, life),
            unwritten: Some8::NONE,
            refused: Some8::NONE,
            in_flight: false,
            has_written: false,
            is_repeated: false,
            is_resent: false,
            left: tenants,
            follow_up: Some8::NONE,
        };
        run.start(world);
        run
    }

    /// Does one step; returns whether the run goes on.
    pub(super) fn step(&mut self, name: usize, world: &mut World) -> bool {
        if self.step == Step::Query {
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
        match self.call.ended() {
            None => true,
            Some(Ok(())) if self.has_to_replace(world) => true,
            Some(Ok(())) => {
                let reply = self.reply(world);
                self.advance(reply, world)
            }
            Some(Err(Lost)) => {
                world.say(name, || format!("{}: the connection is lost", self.title()));
                world.leave(self.call.rest());
                let Some(reply) = self.reply_of_lost(world) else {
                    self.is_resent = true;
                    self.start(world);
                    return true;
                };
                self.advance(reply, world)
            }
        }
    }

    fn title(&self) -> String {
        format!("{:?} run since {}, round {}", self.kind, self.began, self.warm.round())
    }

    /// The tenants of this round, by slot.
    fn open(&self) -> Vec<usize> {
        self.warm.open().map(|slot| self.batch[slot]).collect()
    }

    /// If a fence is missing although it was started, its key holds something else, which no `INCR` can count
    /// up: the fence is replaced.
    fn has_to_replace(&mut self, world: &mut World) -> bool {
        let Step::StartFences(places) = &self.step else { return false };
        let open = self.open();
        let tenants = places.iter().map(|(place, _)| open[*place]);
        let missing = some(tenants.filter(|tenant| self.fences[*tenant] == Fence::Missing));
        if missing.is_empty() || self.is_replacing {
            return false;
        }
        self.is_replacing = true;
        let number = world.start_number();
        let replace = missing.iter().map(|tenant| Command::ReplaceFence(tenant, number));
        self.call.set(replace.chain([Command::Fences(missing)]), world);
        true
    }

    fn take(&mut self, command: Command, reply: world::Reply, world: &mut World) {
        match (command, reply) {
            (Command::Fences(tenants), world::Reply::Fences(fences)) => {
                for tenant in tenants {
                    self.fences[tenant] = fences[tenant];
                }
            }
            (Command::Manifest(tenant), world::Reply::Manifest(manifest)) => {
                self.manifests[tenant] = manifest;
            }
            (Command::Unlink(_), _) => world.meet(Situation::Vanished),
            (Command::Prune(..), world::Reply::Names(out)) if !out.is_empty() => {
                world.meet(Situation::Delisted);
            }
            _ => {}
        }
    }

    fn note_refusal(&mut self, command: Command, world: &mut World) {
        let (Command::Set(place, ..) | Command::Unlink(place)) = command else { return };
        self.unwritten.add(Some8::one(place.key()));
        if self.kind == Kind::Scheduled {
            world.cache.refused.add(Some8::one(place.key()));
        }
        if world.harm != Some(Harm::Protocol(Sabotage::RefusalsForgotten)) {
            self.refused.add(Some8::one(place.tenant));
        }
    }

    /// No actor may renew a key whose data were gone when it read.
    fn check_renewal(&self, command: Command, world: &mut World) {
        let (Command::Set(place, ..) | Command::Expire(place, ..)) = command else { return };
        if place.version(&self.rows) == 0 {
            world.renewed_without_data = Some(place.key());
        }
    }

    /// The commands of the step.
    fn start(&mut self, world: &mut World) {
        let open = self.open();
        let commands: Vec<Command> = match self.step.clone() {
            Step::ReadFences => {
                if self.has_written && world.harm == Some(Harm::ShortFences) {
                    for tenant in &open {
                        world.cache.fences[*tenant] = None;
                    }
                }
                if !self.has_written {
                    self.begin_round();
                }
                vec![Command::Fences(some(open))]
            }
            Step::StartFences(places) => {
                if self.warm.round() > 1 {
                    world.meet(Situation::StartLost);
                }
                let number = world.start_number();
                let tenants = places.iter().map(|(place, _)| open[*place]);
                let start = places.iter().map(|(place, fence)| match fence {
                    Fence::Missing => Command::MakeFence(open[*place], number),
                    Fence::At(_) => Command::RaiseFence(open[*place], number),
                });
                start.chain([Command::Fences(some(tenants))]).collect()
            }
            Step::ReadManifests => {
                if !self.has_written {
                    self.begin_round();
                }
                open.into_iter().map(Command::Manifest).collect()
            }
            Step::AddNames(names) => {
                let of_place = |(place, names): (usize, Vec<u8>)| {
                    Command::AddEntries(open[place], some(names.into_iter().map(usize::from)))
                };
                names.into_iter().map(of_place).collect()
            }
            Step::Write { own, shared } => {
                (self.lives, self.has_written) = ((own, shared), true);
                let places = open.into_iter().flat_map(Place::all);
                let written = places.filter(|place| place.version(&self.rows) != 0);
                let set =
                    |place: Place| Command::Set(place, place.version(&self.rows), self.life(place));
                written.map(set).collect()
            }
            Step::Remove(gone) => {
                let unlink = |(place, name): &(usize, u8)| {
                    Command::Unlink(Place::category(open[*place], usize::from(*name)))
                };
                let unlinks = gone.iter().map(unlink);
                let out = gone.iter().map(|(place, name)| {
                    Command::TakeOut(open[*place], Some8::one(usize::from(*name)))
                });
                let is_early = world.harm == Some(Harm::DelistedBeforeRemoval);
                out.filter(|_| is_early).chain(unlinks).collect()
            }
            Step::Prune(places) => {
                let prune = |place: usize| Command::Prune(open[place], self.outdated);
                places.into_iter().map(prune).collect()
            }
            Step::SetTtls { extend, shorten } => {
                let mut commands = self.expiries(&extend, &open, Life::Full);
                commands.extend(self.expiries(&shorten, &open, Life::Provisional));
                commands
            }
            Step::Count(verdicts) => self.take_out(&verdicts, &open, world),
            Step::Query | Step::Done => Vec::new(),
        };
        self.call.set(commands, world);
    }

    fn begin_round(&mut self) {
        self.refused = Some8::NONE;
        self.unwritten = Some8::NONE;
        (self.in_flight, self.is_repeated, self.is_replacing) = (false, false, false);
    }

    fn life(&self, place: Place) -> Life {
        if place.is_shared() { self.lives.1 } else { self.lives.0 }
    }

    fn expiries(&self, places: &[usize], open: &[usize], life: Life) -> Vec<Command> {
        let places = places.iter().flat_map(|place| Place::all(open[*place]));
        let written = places.filter(|place| {
            place.version(&self.rows) != 0
                && !self.unwritten.has(place.key())
                && self.life(*place) != life
        });
        written.map(|place| Command::Expire(place, life)).collect()
    }

    /// A sabotage at the end of a round: it takes the keys that it removed out of the manifest.
    fn take_out(&self, verdicts: &[Verdict], open: &[usize], world: &World) -> Vec<Command> {
        if world.harm != Some(Harm::PrunedAtOnce) || self.in_flight {
            return Vec::new();
        }
        let verified = open.iter().zip(verdicts).filter(|(tenant, verdict)| {
            **verdict == Verdict::Verified && !self.refused.has(**tenant)
        });
        let gone = verified.map(|(tenant, _)| {
            (*tenant, self.manifests[*tenant].names().without(present(self.rows[*tenant])))
        });
        let out = gone.filter(|(_, gone)| !gone.is_empty());
        out.map(|(tenant, gone)| Command::TakeOut(tenant, gone)).collect()
    }

    /// The reply to a step whose commands were all answered.
    fn reply(&mut self, world: &mut World) -> Reply<u8> {
        let open = self.open();
        match &self.step {
            Step::ReadFences => {
                let is_bare = world.harm == Some(Harm::BareFencesRelied) && !self.has_written;
                let fence = |tenant: &usize| match self.fences[*tenant] {
                    fence if is_bare => fence,
                    fence => world.as_told(fence),
                };
                Reply::Fences(open.iter().map(fence).collect())
            }
            Step::StartFences(places) => {
                let fence = |(place, _): &(usize, Fence)| world.as_told(self.fences[open[*place]]);
                Reply::Fences(places.iter().map(fence).collect())
            }
            Step::ReadManifests => {
                let names = |tenant: &usize| bytes(self.manifests[*tenant].names());
                Reply::Manifests(open.iter().map(names).collect())
            }
            Step::Write { .. } | Step::Remove(_) => {
                let places = open.iter().enumerate();
                let refused = places.filter(|(_, tenant)| self.refused.has(**tenant));
                let refused = refused.map(|(place, _)| place).collect();
                Reply::Sent { refused, in_flight: self.in_flight }
            }
            Step::Count(verdicts) => {
                let verdicts = verdicts.clone();
                self.count(&verdicts, &open, world);
                Reply::Done
            }
            Step::AddNames(_) | Step::Prune(_) | Step::SetTtls { .. } => Reply::Done,
            Step::Query | Step::Done => Reply::Failed,
        }
    }

    /// The reply to a step whose connection was lost, unless the step is simply sent again.
    fn reply_of_lost(&mut self, world: &mut World) -> Option<Reply<u8>> {
        let open = self.open();
        match &self.step {
            Step::Write { .. } => {
                // The commands may arrive later: even if the fences stand still, nothing is verified.
                self.in_flight = true;
                let is_last = std::mem::replace(&mut self.is_repeated, true);
                Some(if is_last { Reply::Failed } else { Reply::Again })
            }
            Step::Remove(gone) => {
                self.in_flight = true;
                self.refused.add(some(gone.iter().map(|(place, _)| open[*place])));
                Some(self.reply(world))
            }
            Step::AddNames(_) if !self.is_resent => None,
            Step::ReadFences if self.has_written && !self.is_resent => None,
            Step::ReadFences | Step::StartFences(_) | Step::ReadManifests
                if !self.has_written && world.tries_again() =>
            {
                Some(Reply::Again)
            }
            _ => Some(Reply::Failed),
        }
    }

    /// If the cache refused a command, the reason of the run decides whether its tenant is warmed again for
    /// that.
    fn count(&mut self, verdicts: &[Verdict], open: &[usize], world: &mut World) {
        for (tenant, verdict) in open.iter().zip(verdicts) {
            match verdict {
                Verdict::Verified => {
                    if self.warm.round() > 1 {
                        world.meet(Situation::VerifiedLater);
                    }
                    if !self.refused.has(*tenant) {
                        self.left.remove(Some8::one(*tenant));
                    }
                }
                Verdict::Again => world.meet(Situation::Moved),
                Verdict::Fenced => world.meet(Situation::Fenced),
                Verdict::Unknown => {}
            }
        }
        self.has_written = false;
    }

    /// One statement for the whole batch, which reads one state of the database. If it fails, nothing is
    /// written and nothing is removed.
    fn query(&mut self, name: usize, world: &mut World) -> bool {
        if world.goes_wrong() {
            world.say(name, || format!("{}: the query fails", self.title()));
            let reply = if world.tries_again() { Reply::Again } else { Reply::Failed };
            return self.advance(reply, world);
        }
        self.rows = world.database.rows;
        world.say(name, || format!("{} reads the database", self.title()));
        self.outdated = if world.has_time_passed() { world.oldest_run() } else { 0 };
        let open = self.open();
        let found = open.into_iter().map(|tenant| {
            let (named, own) = (self.manifests[tenant].names(), present(self.rows[tenant]));
            let is_renewed = own.without(named).is_empty() && world.finds_fresh(tenant, own);
            Found {
                present: bytes(own),
                is_renewed,
                is_prunable: self.outdated > 0,
                ..Found::default()
            }
        });
        let found: Vec<Found<u8>> = found.collect();
        self.advance(Reply::Rows(found), world)
    }

    /// Goes on to the next step; returns whether there is one.
    fn advance(&mut self, mut reply: Reply<u8>, world: &mut World) -> bool {
        loop {
            self.step = self.warm.next(reply);
            self.is_resent = false;
            self.start(world);
            match self.step {
                Step::Done => return false,
                Step::Query => return true,
                _ => {}
            }
            // An empty pipeline has ended already.
            if self.call.ended() != Some(Ok(())) {
                return true;
            }
            reply = self.reply(world);
        }
    }

    /// The commands that were sent and not executed.
    pub(super) fn rest(&self) -> &[Command] {
        self.call.rest()
    }

    /// The tenants whose keys may be written and are not verified: whatever ends the run, they are warmed
    /// again.
    pub(super) fn unverified(&self) -> Some8 {
        some(self.warm.unverified().iter().map(|slot| self.batch[*slot]))
    }

    /// Whether it has written a key of a tenant and is about to set the key's TTL.
    pub(super) fn is_about_to_verify(&self, place: Place) -> bool {
        self.unverified().has(place.tenant)
    }
}

fn some(all: impl IntoIterator<Item = usize>) -> Some8 {
    let mut some = Some8::NONE;
    for one in all {
        some.add(Some8::one(one));
    }
    some
}

fn bytes(some: Some8) -> Vec<u8> {
    some.iter().map(|one| u8::try_from(one).unwrap()).collect()
}

/// The categories in a row.
fn present(row: Row) -> Some8 {
    some((0..CATEGORIES).filter(|name| row[1 + name] != 0))
}
