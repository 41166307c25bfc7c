//! One schedule (longer than most: its actors share one state). A seed creates a world and decides which actor does
//! the next step, until no actor has a step left; then the invariants must hold.

use std::collections::VecDeque;

use preheat::domain::fence::{Fence, start_number};
use preheat::domain::protocol::{Life, Sabotage};

use super::others::{Link, Outcome, Process, Takeover, Writer};
use super::problem::{Course, Harm, Problem, Situation};
use super::readers::{Form, Reader};
use super::warmer::{Kind, Run};
use super::world::{
    CATEGORIES, Cache, Command, Database, Gone, KEYS, KeyName, OF_TENANT, Place, Reply, Row,
    SHARED, STARTS, Some8, TENANTS, Value, is_shared,
};
use crate::support::dice::Dice;

/// Warmers; each is a process, or both are part of one.
const WARMERS: usize = 2;
/// A schedule with more steps does not come to rest.
const MOST_STEPS: u32 = 5_000;

/// For how many steps an actor sleeps.
fn steps(dice: &mut Dice, most: usize) -> u32 {
    u32::try_from(dice.below(most)).unwrap()
}

fn one_of(dice: &mut Dice, some: Some8) -> Option<usize> {
    let count = some.0.count_ones() as usize;
    (count > 0).then(|| dice.below(count)).and_then(|nth| some.iter().nth(nth))
}

/// How many more faults of each kind may happen.
#[derive(Clone, Copy, Default)]
struct Troubles {
    /// Lost connections, failed queries, readers that stop.
    losses: usize,
    /// Commands that the cache refuses.
    refusals: usize,
    evictions: usize,
    crashes: usize,
    feed_losses: usize,
    deadlines: usize,
    /// Values whose provisional TTL ends before all is at rest.
    expiries: usize,
    /// Leases of tenants that end.
    leases: usize,
}

/// The state that all actors share.
pub(super) struct World {
    pub(super) step: u32,
    pub(super) dice: Dice,
    pub(super) database: Database,
    pub(super) cache: Cache,
    pub(super) processes: [Process; WARMERS],
    pub(super) harm: Option<Harm>,
    pub(super) renewed_without_data: Option<usize>,
    troubles: Troubles,
    /// Whether something was lost or interrupted: then a run may not have shortened the TTL of what it wrote.
    pub(super) is_troubled: bool,
    /// All commits concern one shared key.
    is_about_one_key: bool,
    /// Commands of lost connections that the server will still execute.
    late: VecDeque<Command>,
    /// Tenants that nobody holds.
    vacant: Some8,
    /// Those of them whose holder crashed.
    crashed: Some8,
    /// Tenants that a process had lost and left unverified when it crashed: its old values may stay until the tenant's
    /// next run. It was away for longer than its lease, came back to write what it had read before, and died within the
    /// second before its follow-up.
    abandoned: Some8,
    starts: u32,
    /// The steps at which the runs in flight began.
    began: [u32; WARMERS],
    met: u32,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn say(&mut self, name: usize, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:4} {:<8} {}", self.step, NAMES[name], text()));
        }
    }

    pub(super) fn execute(&mut self, command: Command) -> Reply {
        if let Command::Drop(key) = command
            && self.cache.values[key].is_some()
        {
            self.meet(Situation::Dropped);
        }
        if let Some(key) = replaced(command) {
            return self.take_away(key, |cache, step| cache.execute(command, step));
        }
        self.cache.execute(command, self.step)
    }

    /// A member of a fleet may be late to remove a shared key: if it does not hold the new owner, or has not held it all the
    /// time, the new owner may have been warmed by now.
    pub(super) fn note_drop(&mut self, key: usize, held: Some8) {
        let is_others = self.database.place(key).is_some_and(|(place, _)| !held.has(place.tenant));
        if is_others && self.cache.gone[key] == (Gone::Feed { late: false }) {
            self.cache.gone[key] = Gone::Feed { late: true };
        }
    }

    /// Executes a command of a lost connection.
    fn execute_late(&mut self, command: Command) {
        if let Some(key) = replaced(command) {
            return self.take_away(key, |cache, step| cache.execute_late(command, step));
        }
        self.cache.execute_late(command, self.step);
    }

    /// Removes or overwrites a value. If the value was wrong before, its loss is not recorded: the true value
    /// was missing already.
    fn take_away<T>(&mut self, key: usize, act: impl FnOnce(&mut Cache, u32) -> T) -> T {
        if !is_shared(key) {
            return act(&mut self.cache, self.step);
        }
        let gone = self.cache.gone[key];
        let is_right = |world: &Self| {
            let version = world.cache.values[key].map(|value| value.version);
            version == world.database.place(key).map(|(_, version)| version)
        };
        let was_right = is_right(self);
        let answer = act(&mut self.cache, self.step);
        if !was_right {
            self.cache.gone[key] = gone;
        } else if self.cache.values[key].is_some() && !is_right(self) {
            self.cache.gone[key] = Gone::WrittenOver;
            self.meet(Situation::WrittenOver);
        }
        answer
    }

    pub(super) fn goes_wrong(&mut self) -> bool {
        let wrong = self.troubles.losses > 0 && self.dice.one_in(12);
        self.troubles.losses -= usize::from(wrong);
        self.is_troubled |= wrong;
        wrong
    }

    pub(super) fn refuses(&mut self, command: Command) -> bool {
        let refused = matches!(command, Command::Set(..) | Command::Unlink(_))
            && self.troubles.refusals > 0
            && self.dice.one_in(12);
        self.troubles.refusals -= usize::from(refused);
        refused
    }

    /// The rest of a pipeline whose connection was lost: the server never receives it, or executes it later.
    pub(super) fn leave(&mut self, rest: &[Command]) {
        if self.is_about_one_key || self.dice.one_in(2) {
            self.late.extend(rest);
        }
    }

    pub(super) fn start_number(&mut self) -> i64 {
        self.starts += 1;
        start_number(f64::from(self.starts) / STARTS)
    }

    /// Whether a failed operation is tried once more.
    pub(super) fn tries_again(&mut self) -> bool {
        self.dice.one_in(2)
    }

    /// The value of a fence, as the warmer's machine gets it.
    pub(super) fn as_told(&self, fence: Fence) -> Fence {
        const RELIABLE: i64 = 1 << 51;
        let is_relied_on = matches!(
            self.harm,
            Some(Harm::Protocol(Sabotage::BareFences) | Harm::BareFencesRelied)
        );
        match fence {
            Fence::Missing if is_relied_on => Fence::At(RELIABLE),
            Fence::At(number) if is_relied_on && fence.needs_start() => {
                Fence::At(RELIABLE + number)
            }
            Fence::Missing | Fence::At(_) => fence,
        }
    }

    /// Records that this schedule reached a situation.
    pub(super) fn meet(&mut self, situation: Situation) {
        self.met |= 1 << situation as u32;
    }

    /// Whether enough time has passed that all runs of an earlier moment have ended.
    pub(super) fn has_time_passed(&mut self) -> bool {
        self.dice.one_in(4)
    }

    /// Whether these manifest entries are fresh enough that a run need not renew them.
    pub(super) fn finds_fresh(&mut self, tenant: usize, names: Some8) -> bool {
        !names.is_empty()
            && self.dice.one_in(2)
            && self.harm != Some(Harm::Protocol(Sabotage::OnlyNewNamed))
            && self.cache.rely_on(tenant, names, self.step)
    }

    pub(super) fn is_run_under_way(&self) -> bool {
        self.began.iter().any(|began| *began != u32::MAX)
    }

    /// The shared key that a writer hands over, if it does.
    pub(super) fn hands_over(&mut self) -> Option<usize> {
        if self.is_about_one_key {
            return Some(0);
        }
        (self.dice.one_in(3)).then(|| self.dice.below(SHARED))
    }

    /// The step at which the oldest run began that may still write. If an entry is older than that and its
    /// key does not exist, the key cannot be written any more, and the entry may be of any age.
    pub(super) fn oldest_run(&self) -> u32 {
        if !self.late.is_empty() {
            return 0;
        }
        self.began.iter().copied().fold(self.step, u32::min)
    }
}

/// The key whose value a command replaces or removes.
fn replaced(command: Command) -> Option<usize> {
    match command {
        Command::Set(place, ..) | Command::Unlink(place) => Some(place.key()),
        Command::Drop(key) => Some(key),
        _ => None,
    }
}

const NAMES: [&str; ACTORS] = [
    "warmer 0", "warmer 1", "feed 0", "feed 1", "writer 0", "writer 1", "reader 0", "reader 1",
    "server", "chaos",
];
const ACTORS: usize = 10;
const FEEDS: usize = 2;
const WRITERS: usize = 4;
const READERS: usize = 6;
const SERVER: usize = 8;
const CHAOS: usize = 9;

/// The faults that may happen at a step.
#[derive(Clone, Copy)]
enum Trouble {
    EvictValue(usize),
    EvictFence(usize),
    EvictManifest(usize),
    Crash(usize),
    LoseFeed(usize),
    Deadline(usize),
    Expiry(usize),
    Lease(usize),
}

/// A schedule under way.
pub(super) struct Schedule {
    world: World,
    runs: [Option<Run>; WARMERS],
    /// The process of each warmer.
    process_of: [usize; WARMERS],
    processes: usize,
    /// Whether the processes share the tenants.
    is_fleet: bool,
    has_feed: bool,
    /// How many scheduled runs are still to come.
    scheduled: usize,
    writers: [Writer; 2],
    readers: [Reader; 2],
    sleeps_until: [u32; ACTORS],
    /// The probability that another actor has the next step: one in this many.
    switch: usize,
    last: usize,
}

impl Schedule {
    pub(super) fn new(seed: u64, harm: Option<Harm>, traced: bool) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let has_feed = !dice.one_in(4);
        let processes = 1 + dice.below(2);
        let is_fleet = processes == WARMERS && !dice.one_in(3);
        let mut troubles = troubles(&mut dice);
        troubles.leases = if is_fleet { dice.below(4) } else { 0 };
        let is_about_one_key = dice.one_in(4);
        // Clients start fences; without them, more schedules meet a fence that an `INCR` made.
        let has_clients = dice.one_in(2);
        let reads = usize::from(has_clients);
        let writers = std::array::from_fn(|_| {
            let commits = usize::from(is_about_one_key) + dice.below(3);
            Writer::new(!has_feed || dice.one_in(3), has_clients && dice.one_in(2), commits)
        });
        let readers =
            [Form::Script, Form::Brief].map(|form| Reader::new(form, reads * dice.below(3)));
        let mut rows: [Row; TENANTS] = std::array::from_fn(|_| {
            std::array::from_fn(|nth| u16::from(nth == 0 || dice.one_in(2)))
        });
        // No value belongs to two tenants.
        for shared in 1..=SHARED {
            rows[dice.below(TENANTS)][OF_TENANT - shared] = 0;
        }
        if is_about_one_key {
            for row in &mut rows {
                row[1..OF_TENANT - SHARED].fill(0);
                row[OF_TENANT - 1] = 0;
            }
        }
        let scheduled = dice.below(3);
        let switch = 1 << dice.below(4);
        let is_cold = dice.one_in(4);
        let world = World {
            step: 1,
            dice,
            database: Database::new(rows),
            cache: Cache::new(),
            processes: Default::default(),
            harm,
            renewed_without_data: None,
            troubles,
            is_troubled: false,
            is_about_one_key,
            late: VecDeque::new(),
            vacant: Some8::NONE,
            crashed: Some8::NONE,
            abandoned: Some8::NONE,
            starts: 0,
            began: [u32::MAX; WARMERS],
            met: 0,
            trace: traced.then(Vec::new),
        };
        let mut schedule = Self {
            world,
            runs: [None, None],
            process_of: std::array::from_fn(|warmer| warmer % processes),
            processes,
            is_fleet,
            has_feed,
            scheduled,
            writers,
            readers,
            sleeps_until: [0; ACTORS],
            switch,
            last: 0,
        };
        schedule.set_out(is_cold);
        schedule
    }

    /// The start: either the workers have just started and the cache is empty, or everything has been at rest
    /// for a while.
    fn set_out(&mut self, is_cold: bool) {
        let world = &mut self.world;
        let rows = world.database.rows;
        let firsts = Some8(u8::try_from(world.dice.below(1 << TENANTS)).unwrap());
        let of_fleet = [firsts, Some8::TENANTS.without(firsts)];
        let held = if self.is_fleet { of_fleet } else { [Some8::TENANTS; WARMERS] };
        for (process, held) in world.processes[..self.processes].iter_mut().zip(held) {
            process.start(self.has_feed, held);
            if !is_cold {
                process.full_due = false;
                process.feed.link = Link::Listening;
            }
        }
        if !is_cold {
            for tenant in 0..TENANTS {
                if !world.dice.one_in(4) {
                    world.cache.fences[tenant] = Some(start_number(0.0));
                }
                for place in Place::all(tenant) {
                    let version = place.version(&rows);
                    let was_there = world.dice.one_in(4);
                    if let Some(name) = place.name()
                        && (version != 0 || was_there)
                    {
                        world.execute(Command::AddEntries(tenant, Some8::one(name)));
                    }
                    if version != 0 {
                        world.execute(Command::Set(place, version, Life::Full));
                    }
                }
            }
        }
        for actor in 0..ACTORS {
            self.sleeps_until[actor] = steps(&mut self.world.dice, 40);
        }
        let text = format!(
            "feed {}, {} process(es), holding {held:?}, rows {rows:?}, cold {is_cold}",
            self.has_feed, self.processes
        );
        self.world.say(CHAOS, || text);
    }

    /// Continues until everything is at rest.
    pub(super) fn run(&mut self) -> Result<Course, Problem> {
        while let Some(actor) = self.choose() {
            self.world.step += 1;
            if self.world.step > MOST_STEPS {
                return Err(Problem::Restless);
            }
            self.act(actor);
            if let Some(key) = self.world.renewed_without_data {
                return Err(Problem::Renewed { key });
            }
        }
        self.check()?;
        Ok(Course { steps: self.world.step, met: self.world.met })
    }

    pub(super) fn trace(&self) -> String {
        self.world.trace.as_ref().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// The actor with the next step; `None` if all is at rest.
    fn choose(&mut self) -> Option<usize> {
        let mut able = 0_u16;
        for actor in 0..CHAOS {
            able |= u16::from(self.is_able(actor)) << actor;
        }
        if able == 0 {
            return None;
        }
        able |= u16::from(self.world.troubles.any()) << CHAOS;
        let mut awake = able;
        for actor in 0..ACTORS {
            if self.sleeps_until[actor] > self.world.step {
                awake &= !(1 << actor);
            }
        }
        let choice = if awake == 0 { able & !(1 << CHAOS) } else { awake };
        let stays = choice >> self.last & 1 == 1 && !self.world.dice.one_in(self.switch);
        if !stays {
            let nth = self.world.dice.below(choice.count_ones() as usize);
            self.last = (0..ACTORS).filter(|actor| choice >> actor & 1 == 1).nth(nth)?;
        }
        // An actor that pauses in the middle of its work for long meets the changes of other actors.
        if self.world.dice.one_in(if self.last == CHAOS { 1 } else { 12 }) {
            self.sleeps_until[self.last] = self.world.step + steps(&mut self.world.dice, 60);
        }
        Some(self.last)
    }

    fn is_able(&self, actor: usize) -> bool {
        match actor {
            0..FEEDS => {
                let process = &self.world.processes[self.process_of[actor]];
                let is_quiet = self.is_quiet(Harm::NoPauseAfterLoss);
                let follows = process.full_due || !process.unverified.is_empty();
                process.is_up
                    && (self.runs[actor].is_some()
                        || !process.changed.is_empty()
                        || !self.taken(process).is_empty()
                        || self.scheduled > 0 && !process.held.is_empty()
                        || follows && is_quiet)
            }
            FEEDS..WRITERS => {
                let process = actor - FEEDS;
                let state = &self.world.processes[process];
                // A process that is down is restarted from outside.
                process < self.processes
                    && (!state.is_up
                        || self.has_feed && state.feed.has_work()
                        || self.leases(process))
            }
            WRITERS..READERS => self.writers[actor - WRITERS].has_work(),
            READERS..SERVER => self.readers[actor - READERS].has_work(),
            SERVER => !self.world.late.is_empty(),
            _ => false,
        }
    }

    /// Whether a process has something to do about the tenants that it holds.
    fn leases(&self, process: usize) -> bool {
        let state = &self.world.processes[process];
        let can_take = self.world.vacant.without(state.held);
        !state.lost.is_empty() || state.takeover.is_moving() || !can_take.is_empty()
    }

    /// The tenants that a process has taken, and that it can start for. The lease of a process that crashed ends only
    /// after its last commands have arrived.
    fn taken(&self, process: &Process) -> Some8 {
        let Takeover { due, crashed, .. } = process.takeover;
        if self.world.late.is_empty() { due } else { due.without(crashed) }
    }

    /// Whether no command that was sent and not answered can still arrive. An actor that must wait for that
    /// does so, except under a sabotage.
    fn is_quiet(&self, unless: Harm) -> bool {
        self.world.late.is_empty() || self.world.harm == Some(unless)
    }

    fn act(&mut self, actor: usize) {
        let was_quiet = self.world.late.is_empty();
        self.step(actor);
        if was_quiet && !self.world.late.is_empty() && self.world.is_about_one_key {
            self.sleeps_until[SERVER] = self.world.step + steps(&mut self.world.dice, 60);
        }
    }

    fn step(&mut self, actor: usize) {
        match actor {
            0..FEEDS => self.warm(actor),
            FEEDS..WRITERS => self.feed(actor - FEEDS),
            WRITERS..READERS => self.writers[actor - WRITERS].step(actor, &mut self.world),
            READERS..SERVER => self.readers[actor - READERS].step(actor, &mut self.world),
            SERVER => {
                let Some(command) = self.world.late.pop_front() else { return };
                self.world.execute_late(command);
                self.world.meet(Situation::Late);
                self.world.say(SERVER, || format!("does what was left: {command}"));
            }
            _ => self.trouble(),
        }
    }

    fn warm(&mut self, warmer: usize) {
        let process = self.process_of[warmer];
        let Some(run) = &mut self.runs[warmer] else { return self.begin(warmer) };
        if !run.step(warmer, &mut self.world) {
            self.end(warmer, process, "ends");
        }
    }

    fn begin(&mut self, warmer: usize) {
        let is_quiet = self.is_quiet(Harm::NoPauseAfterLoss);
        let taken = self.taken(&self.world.processes[self.process_of[warmer]]);
        let process = &mut self.world.processes[self.process_of[warmer]];
        let held = process.held;
        let follow_up = if is_quiet { process.unverified } else { Some8::NONE };
        let mut tenants = process.changed;
        tenants.add(follow_up);
        let is_scheduled = self.scheduled > 0 && !held.is_empty();
        let (kind, tenants) = if process.full_due && is_quiet {
            process.full_due = false;
            if held.is_empty() {
                return;
            }
            (Kind::Full, held)
        } else if !taken.is_empty() {
            process.takeover.due.remove(taken);
            process.takeover.crashed.remove(taken);
            (Kind::Full, taken)
        } else if tenants.is_empty() || is_scheduled && self.world.dice.one_in(4) {
            if !is_scheduled {
                return;
            }
            self.scheduled -= 1;
            (Kind::Scheduled, held)
        } else {
            process.changed.remove(tenants);
            process.unverified.remove(follow_up);
            (Kind::Change, tenants)
        };
        if kind == Kind::Change && !follow_up.is_empty() {
            self.world.meet(Situation::FollowedUp);
            if !follow_up.without(held).is_empty() {
                self.world.meet(Situation::FollowedUpForOthers);
            }
        }
        if self.runs.iter().flatten().any(|run| !run.left.and(tenants).is_empty()) {
            self.world.meet(Situation::Overlap);
        }
        let mut run = Run::begin(kind, tenants, &mut self.world);
        if kind == Kind::Change {
            run.follow_up = follow_up;
        }
        self.world.say(warmer, || format!("begins a {kind:?} run of tenants {tenants:?}"));
        self.world.began[warmer] = run.began;
        self.runs[warmer] = Some(run);
    }

    /// Records that a run ended, by itself or otherwise.
    fn end(&mut self, warmer: usize, process: usize, how: &str) {
        self.world.began[warmer] = u32::MAX;
        let Some(run) = self.runs[warmer].take() else { return };
        let unverified = run.unverified();
        self.world.say(warmer, || format!("its run {how}; unverified are tenants {unverified:?}"));
        if self.world.harm != Some(Harm::NoFollowUps) {
            self.world.processes[process].note(&run);
        }
    }

    fn feed(&mut self, process: usize) {
        let name = FEEDS + process;
        if !self.world.processes[process].is_up {
            let held = if self.is_fleet { Some8::NONE } else { Some8::TENANTS };
            self.world.processes[process].start(self.has_feed, held);
            if self.world.harm == Some(Harm::NoRunAfterCrash) {
                self.world.processes[process].full_due = false;
            }
            self.world.say(name, || "the worker is started".to_owned());
            return;
        }
        let has_news = self.has_feed && self.world.processes[process].feed.has_work();
        if self.leases(process) && (!has_news || self.world.dice.one_in(2)) {
            return self.lease(process, name);
        }
        let mut feed = std::mem::take(&mut self.world.processes[process].feed);
        let state = &self.world.processes[process];
        let shares = (state.held, state.leased());
        let outcome = feed.step(shares, name, &mut self.world);
        let state = &mut self.world.processes[process];
        state.feed = feed;
        match outcome {
            Outcome::Nothing => {}
            Outcome::Changed(tenants) => state.changed.add(tenants),
            Outcome::Everything => {
                state.full_due =
                    !matches!(self.world.harm, Some(Harm::NoRunAfterLoss | Harm::NoRunAfterCrash));
            }
        }
    }

    /// A process goes on with a takeover, notices what it has lost, or takes what nobody holds.
    fn lease(&mut self, process: usize, name: usize) {
        let world = &mut self.world;
        let mut state = std::mem::take(&mut world.processes[process]);
        let can_take = world.vacant.without(state.held);
        if !state.lost.is_empty() && (!state.takeover.is_moving() || world.dice.one_in(2)) {
            let lost = state.let_go();
            world.say(name, || format!("notices that it has lost tenants {lost:?}"));
            world.processes[process] = state;
            return self.stop_runs_of(process, lost);
        }
        if state.takeover.is_moving() {
            state.takeover.step(name, world);
        } else if let Some(tenant) = one_of(&mut world.dice, can_take) {
            let one = Some8::one(tenant);
            if self.runs.iter().flatten().any(|run| !run.left.and(one).is_empty()) {
                world.meet(Situation::TwoHolders);
            }
            world.say(name, || format!("takes tenant {tenant}"));
            state.takeover.crashed.add(world.crashed.and(one));
            world.vacant.remove(one);
            world.crashed.remove(one);
            state.take(one, world);
        }
        world.processes[process] = state;
    }

    /// Stops a process' runs that have lost tenants. It comes back for those that they left unverified.
    fn stop_runs_of(&mut self, process: usize, lost: Some8) {
        for warmer in 0..WARMERS {
            let is_of = self.process_of[warmer] == process;
            if is_of && self.runs[warmer].as_ref().is_some_and(|run| !run.left.and(lost).is_empty())
            {
                self.leave_rest(warmer);
                self.end(warmer, process, "is stopped");
            }
        }
        if self.world.harm == Some(Harm::LostNotFollowedUp) {
            self.world.processes[process].unverified.remove(lost);
        }
    }

    /// A process is away for longer than the lease of a tenant.
    fn end_lease(&mut self, process: usize) {
        let leased = self.world.processes[process].leased();
        let Some(tenant) = one_of(&mut self.world.dice, leased) else { return };
        let lost = Some8::one(tenant);
        self.world.processes[process].lost.add(lost);
        self.world.vacant.add(lost);
        self.world.say(CHAOS, || format!("the lease of tenant {tenant} of process {process} ends"));
    }

    fn trouble(&mut self) {
        let Some(trouble) = self.choose_trouble() else { return };
        let troubles = &mut self.world.troubles;
        match trouble {
            Trouble::EvictValue(key) => {
                troubles.evictions -= 1;
                self.world.take_away(key, |cache, _| cache.evict_value(key));
                self.world.say(CHAOS, || format!("{} is evicted", KeyName(key)));
            }
            Trouble::EvictFence(tenant) => {
                troubles.evictions -= 1;
                self.world.cache.fences[tenant] = None;
                self.world.say(CHAOS, || format!("fence {tenant} is evicted"));
            }
            Trouble::EvictManifest(tenant) => {
                troubles.evictions -= 1;
                self.world.cache.evict_manifest(tenant);
                self.world.say(CHAOS, || format!("manifest {tenant} is evicted"));
            }
            Trouble::Crash(process) => {
                self.world.is_troubled = true;
                troubles.crashes -= 1;
                self.crash(process);
            }
            Trouble::LoseFeed(process) => {
                self.world.is_troubled = true;
                troubles.feed_losses -= 1;
                self.world.processes[process].feed.lose();
                self.world.say(CHAOS, || format!("the feed's connection {process} is lost"));
            }
            Trouble::Deadline(warmer) => {
                self.world.is_troubled = true;
                troubles.deadlines -= 1;
                self.leave_rest(warmer);
                self.end(warmer, self.process_of[warmer], "comes to its deadline");
            }
            Trouble::Expiry(key) => {
                troubles.expiries -= 1;
                self.expire(key);
            }
            Trouble::Lease(process) => {
                self.world.is_troubled = true;
                troubles.leases -= 1;
                self.end_lease(process);
            }
        }
    }

    fn choose_trouble(&mut self) -> Option<Trouble> {
        let Troubles { evictions, crashes, feed_losses, deadlines, expiries, leases, .. } =
            self.world.troubles;
        let dice = &mut self.world.dice;
        let mut choices = [None; 6];
        if evictions > 0 {
            choices[0] = Some(match dice.below(4) {
                0 => Trouble::EvictValue(dice.below(KEYS)),
                1 => Trouble::EvictManifest(dice.below(TENANTS)),
                _ => Trouble::EvictFence(dice.below(TENANTS)),
            });
        }
        let process = dice.below(self.processes);
        if crashes > 0 && self.world.processes[process].is_up {
            choices[1] = Some(Trouble::Crash(process));
        }
        if feed_losses > 0 && self.world.processes[process].feed.link != Link::Down {
            choices[2] = Some(Trouble::LoseFeed(process));
        }
        let warmer = dice.below(WARMERS);
        if deadlines > 0 && self.runs[warmer].is_some() {
            choices[3] = Some(Trouble::Deadline(warmer));
        }
        if expiries > 0 {
            choices[4] = one_of(dice, self.world.cache.provisional()).map(Trouble::Expiry);
        }
        if leases > 0 && !self.world.processes[process].leased().is_empty() {
            choices[5] = Some(Trouble::Lease(process));
        }
        let count = choices.iter().flatten().count();
        (count > 0)
            .then(|| dice.below(count))
            .and_then(|nth| choices.into_iter().flatten().nth(nth))
    }

    /// A process loses all its memory.
    fn crash(&mut self, process: usize) {
        self.world.say(CHAOS, || format!("process {process} crashes"));
        if self.is_fleet {
            self.leave_leases(process);
        }
        for warmer in 0..WARMERS {
            if self.process_of[warmer] == process {
                self.leave_rest(warmer);
                if self.runs[warmer].as_ref().is_some_and(|run| !run.unverified().is_empty()) {
                    self.world.meet(Situation::CrashedWriting);
                }
                self.runs[warmer] = None;
                self.world.began[warmer] = u32::MAX;
            }
        }
        self.world.processes[process].crash();
    }

    /// The leases of a process that crashes end later.
    fn leave_leases(&mut self, process: usize) {
        let state = &self.world.processes[process];
        let (leased, mut left) = (state.leased(), state.unverified);
        let runs = self.runs.iter().zip(self.process_of).filter(|(_, of)| *of == process);
        for run in runs.filter_map(|(run, _)| run.as_ref()) {
            left.add(run.unverified());
            left.add(run.follow_up.and(run.left));
        }
        self.world.abandoned.add(left.without(leased));
        self.world.vacant.add(leased);
        self.world.crashed.add(leased);
    }

    fn leave_rest(&mut self, warmer: usize) {
        if let Some(run) = &self.runs[warmer] {
            self.world.leave(run.rest());
        }
    }

    fn expire(&mut self, key: usize) {
        let mut early = Some8::NONE;
        for place in Place::of(key) {
            let mut runs = self.runs.iter().flatten();
            let is_others =
                self.world.cache.values[key].is_some_and(|value| value.is_of_others(place));
            if runs.any(|run| run.is_about_to_verify(place)) || is_others {
                early.add(Some8::one(place.tenant));
            }
        }
        self.world.take_away(key, |cache, _| cache.expire_now(key, early));
        self.world.say(CHAOS, || format!("the provisional TTL of {} ends", KeyName(key)));
    }

    /// Checks the invariants at rest.
    fn check(&mut self) -> Result<(), Problem> {
        for key in self.world.cache.provisional() {
            self.expire(key);
        }
        let World { database, cache, met, is_troubled, abandoned, .. } = &mut self.world;
        for key in 0..KEYS {
            if Place::of(key).any(|place| abandoned.has(place.tenant)) {
                continue;
            }
            let place = database.place(key);
            let expected = place.map_or(0, |(_, version)| version);
            match (cache.values[key], place) {
                // A shared key that no run renews expires by its TTL. If nothing was lost, it is gone at
                // once, or has the provisional TTL.
                (Some(Value { version: found, .. }), _)
                    if found != expected && is_shared(key) && *is_troubled =>
                {
                    *met |= 1 << Situation::LeftToTtl as u32;
                }
                (Some(Value { version: found, .. }), _) if found != expected => {
                    // The only exception: the key had an entry, its manifest was evicted, and its data went
                    // before the next run could add the entry again. No run renews the key.
                    if expected != 0 || !cache.is_orphan(key) {
                        return Err(Problem::Stale { key, found, expected });
                    }
                    *met |= 1 << Situation::Orphaned as u32;
                }
                (Some(_), _) if cache.is_named(key) || cache.is_orphan(key) => {}
                (Some(_), _) => return Err(Problem::Unnamed { key }),
                (None, None) => {}
                (None, Some((place, _))) => {
                    let gone = cache.gone[key];
                    let is_fair = gone.is_fair(place.tenant) || cache.refused.has(key);
                    if !is_fair {
                        return Err(Problem::Missing { key, gone });
                    }
                }
            }
        }
        Ok(())
    }
}

impl Troubles {
    fn any(self) -> bool {
        let Self { evictions, crashes, feed_losses, deadlines, expiries, leases, .. } = self;
        evictions + crashes + feed_losses + deadlines + expiries + leases > 0
    }
}

/// Most schedules have some of them: with all of them at once, nothing would ever be written.
fn troubles(dice: &mut Dice) -> Troubles {
    let mut some = |of: usize, most: usize| {
        if dice.one_in(of) { 1 + dice.below(most) } else { 0 }
    };
    Troubles {
        losses: some(2, 2),
        refusals: some(3, 3),
        evictions: some(2, 4),
        crashes: some(4, 2),
        feed_losses: some(4, 2),
        deadlines: some(4, 1),
        expiries: some(3, 2),
        leases: 0,
    }
}

// The letters of categories and the sets of keys are as long as they have to be.
const _: () = assert!(KEYS <= 8 && CATEGORIES + SHARED <= 4);
