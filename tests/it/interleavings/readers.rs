//! Readers of the application that fill keys which they miss, as the clients do. A reader may end at any step:
//! its process dies, or is frozen and goes on much later.

use preheat::domain::fence::Fence;
use preheat::domain::protocol::Life;

use super::problem::{Harm, Situation};
use super::schedule::World;
use super::world::{Command, Place, Reply, Some8, TENANTS};

/// How a reader fills a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By scripts: one reads the fence before the load; the other writes the value only if the fence has not
    /// moved and the key is still missing. A static key gets its full TTL. A data key or a shared one lives
    /// for seconds, since the reader adds nothing to a manifest.
    Script,
    /// Where a script cannot reach the fence and the key: the reader writes the missing key with the
    /// provisional TTL, reads the fence again, and deletes the key if the fence has moved. It never sets a
    /// longer TTL.
    Brief,
}

/// A reader.
#[derive(Clone)]
pub(super) struct Reader {
    form: Form,
    reads_left: usize,
    at: At,
    place: Place,
    fence: Fence,
    version: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Idle,
    Missed,
    Fenced,
    /// Loaded before it read the fence, which only a sabotage does.
    LoadedEarly,
    Loaded,
    Written,
    Moved,
}

impl Reader {
    pub(super) fn new(form: Form, reads_left: usize) -> Self {
        let (place, fence) = (Place::fixed(0), Fence::Missing);
        Self { form, reads_left, at: At::Idle, place, fence, version: 0 }
    }

    pub(super) fn has_work(&self) -> bool {
        self.reads_left > 0 || self.at != At::Idle
    }

    pub(super) fn step(&mut self, name: usize, world: &mut World) {
        if self.at != At::Idle && world.goes_wrong() {
            self.end_early(name, world);
            return;
        }
        let reads_fence_late = world.harm == Some(Harm::FenceReadAfterLoad);
        self.at = match self.at {
            At::Idle => {
                self.reads_left -= 1;
                let places: Vec<_> = Place::all(world.dice.below(TENANTS)).collect();
                self.place = places[world.dice.below(places.len())];
                let is_missing = world.cache.values[self.place.key()].is_none();
                if is_missing { At::Missed } else { At::Idle }
            }
            At::Missed if reads_fence_late => self.load(name, world, At::LoadedEarly),
            At::Missed => self.begin(name, world, At::Fenced),
            At::Fenced => self.load(name, world, At::Loaded),
            At::LoadedEarly => self.begin(name, world, At::Loaded),
            At::Loaded => self.fill(name, world),
            At::Written => self.look_again(name, world),
            At::Moved => {
                execute(Command::Delete(self.place.key()), name, world);
                At::Idle
            }
        };
    }

    /// The reader dies, or its connection does: then what it sent last may still arrive.
    fn end_early(&mut self, name: usize, world: &mut World) {
        world.say(name, || "the reader goes away".to_owned());
        if self.at == At::Loaded {
            world.leave(&[self.fill_command(world)]);
        }
        self.at = At::Idle;
    }

    fn begin(&mut self, name: usize, world: &mut World, next: At) -> At {
        match self.form {
            Form::Script => {
                let begin = Command::Begin(self.place, world.start_number());
                let Reply::Begun(fence) = execute(begin, name, world) else {
                    unreachable!("a fence was asked for")
                };
                self.fence = fence.unwrap_or_default();
                if fence.is_some() { next } else { At::Idle }
            }
            Form::Brief => {
                self.fence = self.look(name, world);
                if self.fence == Fence::Missing { At::Idle } else { next }
            }
        }
    }

    /// Reads the database. If there is no row, there is nothing to write.
    fn load(&mut self, name: usize, world: &mut World, next: At) -> At {
        self.version = self.place.version(&world.database.rows);
        world.say(name, || format!("reads v{} from the database", self.version));
        if self.version == 0 { At::Idle } else { next }
    }

    fn fill(&mut self, name: usize, world: &mut World) -> At {
        let reply = execute(self.fill_command(world), name, world);
        match (self.form, reply) {
            (Form::Script, Reply::Filled(true)) => world.meet(Situation::Filled),
            (Form::Script, _) => world.meet(Situation::FillRefused),
            (Form::Brief, Reply::Filled(true)) => return At::Written,
            // Another actor was faster; what it wrote is its own affair. Only the sabotage looks again.
            (Form::Brief, _) if world.harm == Some(Harm::BriefFillExtended) => return At::Written,
            (Form::Brief, _) => {}
        }
        At::Idle
    }

    fn fill_command(&self, world: &World) -> Command {
        let is_static = self.place == Place::fixed(self.place.tenant);
        let is_full = is_static || world.harm == Some(Harm::DataKeysFilledForLong);
        let life = if is_full { Life::Full } else { Life::Provisional };
        let is_compared = world.harm != Some(Harm::FillNotCompared);
        match self.form {
            Form::Script if is_compared => {
                Command::Fill(self.place, self.version, life, Some(self.fence))
            }
            Form::Script => Command::Fill(self.place, self.version, life, None),
            Form::Brief => Command::Fill(self.place, self.version, Life::Provisional, None),
        }
    }

    fn look_again(&self, name: usize, world: &mut World) -> At {
        if self.look(name, world) != self.fence {
            return At::Moved;
        }
        world.meet(Situation::FilledBriefly);
        if world.harm == Some(Harm::BriefFillExtended) {
            execute(Command::Expire(self.place, Life::Full), name, world);
        }
        At::Idle
    }

    fn look(&self, name: usize, world: &mut World) -> Fence {
        let tenant = self.place.tenant;
        let Reply::Fences(fences) = execute(Command::Fences(Some8::one(tenant)), name, world)
        else {
            unreachable!("fences were asked for")
        };
        fences[tenant]
    }
}

fn execute(command: Command, name: usize, world: &mut World) -> Reply {
    let reply = world.execute(command);
    world.say(name, || format!("{command}{reply}"));
    reply
}
