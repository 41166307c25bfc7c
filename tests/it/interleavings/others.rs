//! Who else is there: the change feed, writers and readers of the application.

use std::collections::VecDeque;

use preheat::domain::fence::{Fence, Life};

use super::schedule::{Sabotage, Situation, World};
use super::warmer::{Call, Kind, Run};
use super::world::{CATEGORIES, Change, Command, NEVER, Place, Reply, Some8, TENANTS};

/// A worker, or another replica: what it remembers is gone when it crashes.
#[derive(Clone, Default)]
pub(super) struct Process {
    pub(super) is_up: bool,
    pub(super) feed: Feed,
    /// A run over all tenants has to be done.
    pub(super) full_due: bool,
    /// Tenants that the feed found changed: to warm again.
    pub(super) changed: Some8,
    /// Tenants whose keys were written and are not proven: to warm again.
    pub(super) unsettled: Some8,
    pub(super) search: Search,
}

impl Process {
    pub(super) fn crash(&mut self) {
        *self = Self::default();
    }

    /// It is started; where there is a change feed, that begins with a run of its own.
    pub(super) fn start(&mut self, has_feed: bool) {
        self.is_up = true;
        self.full_due = !has_feed;
    }

    /// A run ended, came to its deadline or failed.
    pub(super) fn note(&mut self, run: &Run, sabotage: Option<Sabotage>) {
        self.unsettled.add(run.doubt);
        self.unsettled.add(run.found);
        match run.kind {
            Kind::Scheduled => {}
            Kind::Full | Kind::Change => self.unsettled.add(run.left),
        }
        if sabotage != Some(Sabotage::NoSearch) {
            self.search.want(run.missed(sabotage));
        }
    }
}

/// Keys that move which a run took away from whoever has them now: everybody else whose manifest
/// names one of them is warmed again.
#[derive(Clone, Default)]
pub(super) struct Search {
    /// By the tenant whose run it was, since it is of no use to ask that one's manifest.
    due: [Some8; TENANTS],
    under_way: [Some8; TENANTS],
    call: Call,
}

impl Search {
    fn want(&mut self, missed: [Some8; TENANTS]) {
        for (due, more) in self.due.iter_mut().zip(missed) {
            due.add(more);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.iter().any(|some| !some.is_empty())
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.iter().any(|some| !some.is_empty())
    }

    /// What is searched for in a tenant's manifest.
    fn wanted_of(&self, tenant: usize) -> Some8 {
        let mut wanted = Some8::NONE;
        for other in (0..TENANTS).filter(|other| *other != tenant) {
            wanted.add(self.under_way[other]);
        }
        wanted
    }

    /// One thing; answers the tenants to warm again.
    pub(super) fn step(&mut self, name: usize, world: &mut World) -> Some8 {
        if !self.is_under_way() {
            self.under_way = std::mem::take(&mut self.due);
            let tenants = (0..TENANTS).filter(|tenant| !self.wanted_of(*tenant).is_empty());
            let manifests: Vec<_> = tenants.map(Command::Manifest).collect();
            self.call.set(manifests, world);
        }
        let mut found = Some8::NONE;
        if let Some(command) = self.call.next() {
            let reply = world.execute(command);
            world.say(name, || format!("searches for keys that were taken away: {command}{reply}"));
            if let (Command::Manifest(tenant), Reply::Manifest(manifest)) = (command, reply)
                && !manifest.names().and(self.wanted_of(tenant)).is_empty()
            {
                world.meet(Situation::Searched);
                found = Some8::one(tenant);
            }
        }
        match self.call.ended() {
            Some(Ok(())) => self.under_way = [Some8::NONE; TENANTS],
            Some(Err(_)) => {
                world.say(name, || "the search fails".to_owned());
                let again = std::mem::take(&mut self.under_way);
                self.want(again);
            }
            None => {}
        }
        found
    }
}

/// The worker's connection to the notifications of the database.
#[derive(Clone, Default)]
pub(super) struct Feed {
    pub(super) link: Link,
    /// What was notified and not taken yet, in the order of the commits.
    queue: VecDeque<Some8>,
    /// Whose fences it moves.
    moving: Some8,
    call: Call,
}

/// Where the feed's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Down,
    /// It listens, and moves all fences: what it missed may be anything.
    CatchingUp,
    Listening,
}

impl Feed {
    pub(super) fn notify(&mut self, tenants: Some8) {
        if self.link != Link::Down {
            self.queue.push_back(tenants);
        }
    }

    pub(super) fn lose(&mut self) {
        *self = Self::default();
    }

    pub(super) fn has_work(&self) -> bool {
        self.link != Link::Listening || !self.queue.is_empty() || !self.moving.is_empty()
    }

    /// One thing; answers the tenants to warm again.
    pub(super) fn step(&mut self, name: usize, world: &mut World) -> Outcome {
        if self.link == Link::Down {
            world.say(name, || "the feed listens".to_owned());
            self.link = Link::CatchingUp;
            self.move_fences(Some8::TENANTS, world);
            return Outcome::Nothing;
        }
        if self.moving.is_empty() {
            // What came within a few milliseconds is taken together.
            let count = 1 + world.dice.below(self.queue.len());
            let mut tenants = Some8::NONE;
            for notified in self.queue.drain(..count) {
                tenants.add(notified);
            }
            world.say(name, || format!("the feed takes notifications of tenants {tenants:?}"));
            self.move_fences(tenants, world);
            return self.go_on();
        }
        if let Some(command) = self.call.next() {
            world.execute(command);
            world.say(name, || format!("the feed: {command}"));
        }
        if self.call.ended().is_some_and(|result| result.is_err()) {
            world.say(name, || "the feed: the connection to the cache is lost; again".to_owned());
            world.leave(self.call.rest());
            let tenants = self.moving;
            self.move_fences(tenants, world);
        }
        self.go_on()
    }

    fn move_fences(&mut self, tenants: Some8, world: &mut World) {
        self.moving = tenants;
        let number = world.start_number();
        let sabotage = world.sabotage;
        let moves = tenants.iter().flat_map(|one| {
            let make = Command::MakeFence(one, number);
            let make = (sabotage != Some(Sabotage::BareFences)).then_some(make);
            make.into_iter().chain([Command::MoveFence(one)])
        });
        let is_skipped = sabotage == Some(Sabotage::FeedWithoutFence);
        self.call.set(moves.filter(|_| !is_skipped), world);
    }

    /// Only when the fences are moved are tenants warmed again: whoever read before the move will
    /// see that it did.
    fn go_on(&mut self) -> Outcome {
        if self.call.ended() != Some(Ok(())) {
            return Outcome::Nothing;
        }
        let tenants = std::mem::take(&mut self.moving);
        match std::mem::replace(&mut self.link, Link::Listening) {
            Link::CatchingUp => Outcome::Everything,
            Link::Listening | Link::Down => Outcome::Changed(tenants),
        }
    }
}

/// What the feed wants warmed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Nothing,
    Changed(Some8),
    Everything,
}

/// A writer of the application: it commits, and where it follows the contract it moves the fences of
/// the tenants that it touched and then deletes the keys that it changed.
#[derive(Clone)]
pub(super) struct Writer {
    /// Whether it knows of fences.
    pub(super) is_fenced: bool,
    pub(super) commits_left: usize,
    plan: VecDeque<Command>,
}

impl Writer {
    pub(super) fn new(is_fenced: bool, commits: usize) -> Self {
        Self { is_fenced, commits_left: commits, plan: VecDeque::new() }
    }

    pub(super) fn has_work(&self) -> bool {
        self.commits_left > 0 || !self.plan.is_empty()
    }

    pub(super) fn step(&mut self, name: usize, world: &mut World) {
        if let Some(command) = self.plan.pop_front() {
            world.execute(command);
            world.say(name, || command.to_string());
            return;
        }
        self.commits_left -= 1;
        let (tenants, changed) = match world.hands_over() {
            Some(moving) => Self::hand_over(moving, name, world),
            None => Self::change(name, world),
        };
        for process in &mut world.processes {
            process.feed.notify(tenants);
        }
        if !self.is_fenced {
            return;
        }
        let moves = tenants.iter().map(Command::MoveFence);
        let deletes = changed.iter().map(Command::Delete);
        if world.sabotage == Some(Sabotage::DeletesBeforeMoving) {
            self.plan.extend(deletes.chain(moves));
        } else {
            self.plan.extend(moves.chain(deletes));
        }
    }

    /// Commits something; answers the tenants that it touched and the keys that it changed.
    fn change(name: usize, world: &mut World) -> (Some8, Some8) {
        let tenants = match world.dice.below(5) {
            0 => Some8::TENANTS,
            some => Some8::one(some % TENANTS),
        };
        let mut changed = Some8::NONE;
        for tenant in tenants {
            let category = world.dice.below(CATEGORIES);
            let change = match world.dice.below(5) {
                0 => Change::Other,
                1 | 2 => Change::Put(category),
                _ => Change::Remove(category),
            };
            changed.add(world.database.commit(tenant, change));
            world.say(name, || format!("commits for tenant {tenant}: {change:?}"));
        }
        (tenants, changed)
    }

    /// The same of the data of a key that moves: it is another tenant's now, or new, or gone.
    fn hand_over(moving: usize, name: usize, world: &mut World) -> (Some8, Some8) {
        let to = world.dice.below(TENANTS + 1);
        let to = (to < TENANTS).then_some(to);
        let (tenants, changed) = world.database.hand_over(moving, to);
        let (is_move, is_meanwhile) = (tenants == Some8::TENANTS, world.is_run_under_way());
        if is_move && is_meanwhile {
            world.meet(Situation::ChangedHands);
        }
        world.say(name, || format!("commits key {moving} that moves, from {tenants:?} to {to:?}"));
        (tenants, changed)
    }
}

/// A reader of the application that fills a known key which it misses. It follows the fence as well:
/// it writes on probation, looks whether the fence stood still, and only then lets the value live; a
/// fence that may come back to the same number is none to rely on, so that it writes nothing. It may
/// go away at any moment but one: from its write it comes to the look, and to the `DEL` where the
/// fence moved. Meanwhile a warmer that has proven its own value may give what is there its full
/// life, and nobody would come back for it.
///
/// Keys with data columns it must not fill, since it does not name them in a manifest; and one that
/// fills without looking at the fence may well leave an old value: that is what fences are for.
#[derive(Clone, Default)]
pub(super) struct Reader {
    reads_left: usize,
    at: At,
    /// Whose known key it reads.
    tenant: usize,
    fence: Fence,
    version: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum At {
    #[default]
    Idle,
    Missed,
    Fenced,
    Read,
    Written,
    Proven,
    Moved,
}

impl Reader {
    pub(super) fn new(reads_left: usize) -> Self {
        Self { reads_left, ..Self::default() }
    }

    pub(super) fn has_work(&self) -> bool {
        self.reads_left > 0 || self.at != At::Idle
    }

    pub(super) fn is_about_to_prove(&self, place: Place) -> bool {
        matches!(self.at, At::Written | At::Proven) && self.place() == place
    }

    pub(super) fn step(&mut self, name: usize, world: &mut World) {
        if !matches!(self.at, At::Idle | At::Written | At::Moved) && world.goes_wrong() {
            world.say(name, || "the reader goes away".to_owned());
            self.at = At::Idle;
            return;
        }
        self.at = match self.at {
            At::Idle => {
                self.reads_left -= 1;
                self.tenant = world.dice.below(TENANTS);
                let is_missing = world.cache.values[self.place().key()].is_none();
                if is_missing { At::Missed } else { At::Idle }
            }
            At::Missed => {
                self.fence = self.look(name, world);
                if self.fence.needs_start() { At::Idle } else { At::Fenced }
            }
            At::Fenced => {
                self.version = self.place().version(&world.database.rows);
                world.say(name, || "reads the database".to_owned());
                At::Read
            }
            At::Read => {
                execute(Command::Fill(self.place().key(), self.version), name, world);
                At::Written
            }
            At::Written if self.look(name, world) == self.fence => At::Proven,
            At::Written => At::Moved,
            At::Proven => {
                execute(Command::Expire(self.place(), Life::Full, NEVER), name, world);
                world.meet(Situation::Filled);
                At::Idle
            }
            At::Moved => {
                execute(Command::Delete(self.place().key()), name, world);
                At::Idle
            }
        };
    }

    fn place(&self) -> Place {
        Place::known(self.tenant)
    }

    fn look(&self, name: usize, world: &mut World) -> Fence {
        let Reply::Fences(fences) = execute(Command::Fences(Some8::one(self.tenant)), name, world)
        else {
            unreachable!("fences were asked for")
        };
        fences[self.tenant]
    }
}

fn execute(command: Command, name: usize, world: &mut World) -> Reply {
    let reply = world.execute(command);
    world.say(name, || format!("{command}{reply}"));
    reply
}
