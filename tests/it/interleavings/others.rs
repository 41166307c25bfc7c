//! The other actors: the change feed and writers of the application.

use std::collections::VecDeque;

use preheat::domain::protocol::Sabotage;

use super::problem::{Harm, Situation};
use super::schedule::World;
use super::warmer::{Call, Kind, Run};
use super::world::{CATEGORIES, Change, Command, Some8, TENANTS, is_shared};

/// A worker, or another replica; it loses its memory when it crashes.
#[derive(Clone, Default)]
pub(super) struct Process {
    pub(super) is_up: bool,
    pub(super) feed: Feed,
    /// Whether a run over all tenants is to be done.
    pub(super) full_due: bool,
    /// Tenants that the feed reported as changed and that are to be warmed again.
    pub(super) changed: Some8,
    /// Unverified tenants that this process warms again, even if another process holds them.
    pub(super) unverified: Some8,
    /// The tenants that it believes to hold. Without a fleet, every process holds all.
    pub(super) held: Some8,
    /// Those of them that others may have taken by now, since it was away for longer than its lease.
    pub(super) lost: Some8,
    pub(super) takeover: Takeover,
}

/// Tenants that a process has taken.
#[derive(Clone, Default)]
pub(super) struct Takeover {
    /// Their fences are being moved.
    moving: Some8,
    call: Call,
    /// Their fences have moved: they get a run.
    pub(super) due: Some8,
    /// A process that crashed held them: its last commands may still arrive. Nobody takes them before its lease ends.
    pub(super) crashed: Some8,
}

impl Process {
    pub(super) fn crash(&mut self) {
        *self = Self::default();
    }

    /// Starts the process with these tenants; with a change feed, the feed begins with a run of its own.
    pub(super) fn start(&mut self, has_feed: bool, held: Some8) {
        self.is_up = true;
        self.full_due = !has_feed;
        self.held = held;
    }

    /// Records that a run ended, reached its deadline or failed.
    pub(super) fn note(&mut self, run: &Run) {
        self.unverified.add(run.unverified());
        match run.kind {
            Kind::Scheduled => {}
            Kind::Full | Kind::Change => {
                let mut own = self.held;
                own.add(run.follow_up);
                self.unverified.add(run.left.and(own));
            }
        }
    }

    /// The tenants that nobody else can have taken.
    pub(super) fn leased(&self) -> Some8 {
        self.held.without(self.lost)
    }

    /// Notices which tenants it does not hold any more, and forgets what it was to do for them.
    pub(super) fn let_go(&mut self) -> Some8 {
        let lost = std::mem::take(&mut self.lost);
        let Self { held, changed, takeover, feed, .. } = self;
        for some in [held, changed, &mut takeover.due, &mut feed.held] {
            some.remove(lost);
        }
        lost
    }

    /// Takes tenants. Their fences move before anything is read.
    pub(super) fn take(&mut self, tenants: Some8, world: &mut World) {
        self.held.add(tenants);
        self.takeover.moving.add(tenants);
        self.takeover.move_fences(world);
    }
}

impl Takeover {
    pub(super) fn is_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    fn move_fences(&mut self, world: &mut World) {
        let harm = world.harm;
        let commands = moves(self.moving, world);
        self.call.set(commands.filter(|_| harm != Some(Harm::TakenWithoutFences)), world);
    }

    /// Does one step; the run is due once all fences have moved.
    pub(super) fn step(&mut self, name: usize, world: &mut World) {
        if let Some(command) = self.call.next() {
            world.execute(command);
            world.say(name, || format!("the takeover: {command}"));
        }
        match self.call.ended() {
            None => {}
            Some(Ok(())) => {
                let moved = std::mem::take(&mut self.moving);
                if world.harm != Some(Harm::TakenWithoutRun) {
                    self.due.add(moved);
                }
            }
            Some(Err(_lost)) => {
                world.say(name, || "the takeover: the connection is lost; again".to_owned());
                world.leave(self.call.rest());
                self.move_fences(world);
            }
        }
    }
}

/// The commands that move these tenants' fences.
fn moves(tenants: Some8, world: &mut World) -> impl Iterator<Item = Command> + use<> {
    let (number, harm) = (world.start_number(), world.harm);
    tenants.into_iter().flat_map(move |one| {
        let make = Command::MakeFence(one, number);
        let make = (harm != Some(Harm::Protocol(Sabotage::BareFences))).then_some(make);
        make.into_iter().chain([Command::MoveFence(one)])
    })
}

/// The worker's connection to the notifications of the database.
#[derive(Clone, Default)]
pub(super) struct Feed {
    pub(super) link: Link,
    /// Notifications that were not taken yet, in the order of the commits.
    queue: VecDeque<Notice>,
    /// The notification that it is handing on.
    current: Option<Notice>,
    /// The tenants that its process held when it took the notification, and has not let go since.
    held: Some8,
    call: Call,
}

/// The state of the feed's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Down,
    /// It listens, and moves all fences, since it may have missed any change.
    CatchingUp,
    Listening,
}

impl Feed {
    pub(super) fn notify(&mut self, notice: Notice) {
        if self.link != Link::Down {
            self.queue.push_back(notice);
        }
    }

    pub(super) fn lose(&mut self) {
        *self = Self::default();
    }

    pub(super) fn has_work(&self) -> bool {
        self.link != Link::Listening || !self.queue.is_empty() || self.current.is_some()
    }

    /// Does one step for a process that believes to hold these tenants, and holds `leased`; returns the tenants to warm
    /// again.
    pub(super) fn step(
        &mut self,
        (held, leased): (Some8, Some8),
        name: usize,
        world: &mut World,
    ) -> Outcome {
        if self.link == Link::Down {
            world.say(name, || "the feed listens".to_owned());
            self.link = Link::CatchingUp;
            self.held = held;
            self.tell(Notice { tenants: held, gone: Some8::NONE }, world);
            return Outcome::Nothing;
        }
        let Some(current) = self.current else {
            // Notifications that come within a few milliseconds are taken together.
            let count = 1 + world.dice.below(self.queue.len());
            let mut all = Notice::default();
            for Notice { tenants, gone } in self.queue.drain(..count) {
                all.tenants.add(tenants);
                all.gone.add(gone);
            }
            world.say(name, || format!("the feed takes notifications: {all:?}"));
            // It keeps what is its own.
            self.held = held;
            all.tenants = all.tenants.and(held);
            if held.is_empty() {
                all.gone = Some8::NONE;
            }
            self.tell(all, world);
            return self.go_on();
        };
        if let Some(command) = self.call.next() {
            world.execute(command);
            world.say(name, || format!("the feed: {command}"));
            if let Command::Drop(key) = command {
                world.note_drop(key, self.held.and(leased));
            }
        }
        if self.call.ended().is_some_and(|result| result.is_err()) {
            world.say(name, || "the feed: the connection to the cache is lost; again".to_owned());
            world.leave(self.call.rest());
            self.tell(current, world);
        }
        self.go_on()
    }

    /// Moves the fences first: a run that reads before that and writes after the removal is then unverified.
    fn tell(&mut self, notice: Notice, world: &mut World) {
        self.current = Some(notice);
        let harm = world.harm;
        let moves = moves(notice.tenants, world);
        let moves = moves.filter(|_| harm != Some(Harm::FeedWithoutFence));
        let drops = notice.gone.iter().map(Command::Drop);
        let drops = drops.filter(|_| harm != Some(Harm::GoneKeysStay));
        if harm == Some(Harm::DropsBeforeMoving) {
            self.call.set(drops.chain(moves), world);
        } else {
            self.call.set(moves.chain(drops), world);
        }
    }

    /// Tenants are warmed again only after the fences have moved: a run that read before the move will notice
    /// it.
    fn go_on(&mut self) -> Outcome {
        if self.call.ended() != Some(Ok(())) {
            return Outcome::Nothing;
        }
        let Notice { tenants, gone: _ } = self.current.take().unwrap_or_default();
        match std::mem::replace(&mut self.link, Link::Listening) {
            Link::CatchingUp => Outcome::Everything,
            Link::Listening | Link::Down => Outcome::Changed(tenants),
        }
    }
}

/// What the triggers report about a commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notice {
    /// The tenants that it touched.
    pub(super) tenants: Some8,
    /// The shared keys that are gone from a tenant: deleted, or another tenant's now.
    pub(super) gone: Some8,
}

/// What the feed asks to warm.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Nothing,
    Changed(Some8),
    Everything,
}

/// A writer of the application. It commits; if it follows the contract, it then moves the fences of the
/// tenants that it touched and deletes the keys that it changed.
#[derive(Clone)]
pub(super) struct Writer {
    /// Whether it knows of fences.
    pub(super) is_fenced: bool,
    /// Whether it starts a missing fence before it moves it, as the clients do.
    starts_fences: bool,
    pub(super) commits_left: usize,
    plan: VecDeque<Command>,
}

impl Writer {
    pub(super) fn new(is_fenced: bool, starts_fences: bool, commits: usize) -> Self {
        Self { is_fenced, starts_fences, commits_left: commits, plan: VecDeque::new() }
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
        let (tenants, changed, gone) = if let Some(shared) = world.hands_over() {
            Self::hand_over(shared, name, world)
        } else {
            let (tenants, changed) = Self::change(name, world);
            (tenants, changed, Some8::NONE)
        };
        // A member of a fleet that holds nothing hears of nothing that it would remove.
        let hears = |process: &Process| process.feed.link != Link::Down && !process.held.is_empty();
        let is_heard = world.processes.iter().any(hears);
        // A shared key whose end was not reported expires by its TTL.
        world.is_troubled |= !gone.is_empty() && !is_heard && !self.is_fenced;
        for process in &mut world.processes {
            process.feed.notify(Notice { tenants, gone });
        }
        if !self.is_fenced {
            return;
        }
        let number = world.start_number();
        let moves = tenants.iter().flat_map(|tenant| {
            let start = self.starts_fences.then_some(Command::MakeFence(tenant, number));
            start.into_iter().chain([Command::MoveFence(tenant)])
        });
        let deletes = changed.iter().map(Command::Delete);
        if world.harm == Some(Harm::DeletesBeforeMoving) {
            self.plan.extend(deletes.chain(moves));
        } else {
            self.plan.extend(moves.chain(deletes));
        }
    }

    /// Commits a change; returns the tenants that it touched and the keys that it changed.
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

    /// The same for a shared key: its data go to another tenant, or are new, or deleted. Also returns the
    /// keys that are gone from a tenant.
    fn hand_over(shared: usize, name: usize, world: &mut World) -> (Some8, Some8, Some8) {
        let to = world.dice.below(TENANTS + 1);
        let to = (to < TENANTS).then_some(to);
        let (tenants, changed) = world.database.hand_over(shared, to);
        let (is_move, is_meanwhile) = (tenants == Some8::TENANTS, world.is_run_under_way());
        if is_move && is_meanwhile {
            world.meet(Situation::ChangedHands);
        }
        world.say(name, || format!("commits shared key {shared}, from {tenants:?} to {to:?}"));
        let is_gone = tenants.iter().any(|tenant| Some(tenant) != to);
        let gone = changed.iter().filter(|key| is_shared(*key) && is_gone);
        let mut keys = Some8::NONE;
        for key in gone {
            keys.add(Some8::one(key));
        }
        (tenants, changed, keys)
    }
}
