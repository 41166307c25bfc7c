//! How the protocol is broken on purpose, which situations schedules meet, and what comes of them.

use std::fmt;

use preheat::domain::protocol::Sabotage;

use super::world::{Gone, KeyName};

/// A way to break the protocol or its surroundings, so that something must go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// A switch of the warmer's machine.
    Protocol(Sabotage),
    /// The warmer relies on a fence although it could not be started, because another actor created it
    /// meanwhile.
    BareFencesRelied,
    /// The feed has tenants warmed again, but moves no fence.
    FeedWithoutFence,
    /// The feed removes the keys that are gone before it moves the fences.
    DropsBeforeMoving,
    /// The feed does not remove the shared keys that are gone.
    GoneKeysStay,
    /// The application deletes its keys before it moves the fence.
    DeletesBeforeMoving,
    /// Unverified tenants are not warmed again.
    NoFollowUps,
    /// A verified run that removed keys takes them out of the manifest at once, although another run may
    /// still be about to write them, or may have written them again.
    PrunedAtOnce,
    /// The manifest entries are removed before the keys.
    DelistedBeforeRemoval,
    /// Fences expire sooner than a run ends.
    ShortFences,
    /// A run is repeated at once although commands of a lost connection may still be executed.
    NoPauseAfterLoss,
    /// A crashed worker restarts without a run over all tenants.
    NoRunAfterCrash,
    /// The feed reconnects without asking for a run over all tenants.
    NoRunAfterLoss,
    /// A reader's script writes without comparing the fence.
    FillNotCompared,
    /// A reader reads the fence only after its load.
    FenceReadAfterLoad,
    /// A reader that wrote without a script gives the key its full TTL if it finds the fence unmoved.
    BriefFillExtended,
    /// A reader gives data keys and shared keys their full TTL.
    DataKeysFilledForLong,
    /// A process that takes tenants runs for them, but moves no fence.
    TakenWithoutFences,
    /// A process that takes tenants moves their fences, but does not run for them.
    TakenWithoutRun,
    /// A process that lost tenants does not come back for what it left unverified.
    LostNotFollowedUp,
}

impl Harm {
    /// The switch of the warmer's machine, if it is one.
    pub(super) fn of_protocol(self) -> Option<Sabotage> {
        match self {
            Self::Protocol(sabotage) => Some(sabotage),
            _ => None,
        }
    }
}

/// Situations that schedules must reach; otherwise their number means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Situation {
    /// Two runs of the same tenant go on at once.
    Overlap,
    /// A fence moved between the query and the read after the writes.
    Moved,
    /// A tenant was still unverified after the last round.
    Fenced,
    /// A round after the first one verified a tenant.
    VerifiedLater,
    /// A tenant was warmed again because it was unverified.
    FollowedUp,
    /// A key was removed because its data were gone.
    Vanished,
    /// A manifest entry was pruned by its age.
    Delisted,
    /// A fence was missing, or created by a bare `INCR`, after it had been started.
    StartLost,
    /// The server executed commands of a lost connection late.
    Late,
    /// At rest, a key was left whose manifest entry was lost when the manifest was evicted.
    Orphaned,
    /// A process crashed in the middle of its writes.
    CrashedWriting,
    /// A reader's script filled a key.
    Filled,
    /// A reader's script filled nothing: the fence had moved, or the key was there.
    FillRefused,
    /// A reader without a script filled a key for seconds.
    FilledBriefly,
    /// The data of a key went from one tenant to another while a run was under way.
    ChangedHands,
    /// A run wrote over the value of a shared key's new owner.
    WrittenOver,
    /// The feed removed a shared key that was gone from a tenant.
    Dropped,
    /// At rest, a shared key was left whose data are gone; its TTL will end it.
    LeftToTtl,
    /// A process took a tenant while the run of a process that had lost it went on.
    TwoHolders,
    /// A process came back for a tenant that it had lost and left unverified.
    FollowedUpForOthers,
}

impl Situation {
    /// All situations.
    pub(super) const ALL: [Self; 20] = [
        Self::Overlap,
        Self::Moved,
        Self::Fenced,
        Self::VerifiedLater,
        Self::FollowedUp,
        Self::Vanished,
        Self::Delisted,
        Self::StartLost,
        Self::Late,
        Self::Orphaned,
        Self::CrashedWriting,
        Self::Filled,
        Self::FillRefused,
        Self::FilledBriefly,
        Self::ChangedHands,
        Self::WrittenOver,
        Self::Dropped,
        Self::LeftToTtl,
        Self::TwoHolders,
        Self::FollowedUpForOthers,
    ];
}

/// An invariant that does not hold at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A key holds an old version, or its data is gone.
    Stale { key: usize, found: u16, expected: u16 },
    /// A key with a data column is in no manifest, so no run would remove it.
    Unnamed { key: usize },
    /// A key is missing, and it was not removed in a permitted way.
    Missing { key: usize, gone: Gone },
    /// A key's TTL was renewed by an actor that had seen that its data are gone.
    Renewed { key: usize },
    /// The schedule does not come to rest.
    Restless,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Stale { key, found, expected } => {
                write!(f, "{} holds v{found} and not v{expected}", KeyName(key))
            }
            Self::Unnamed { key } => write!(f, "{} is there and in no manifest", KeyName(key)),
            Self::Missing { key, gone } => write!(f, "{} is not there: {gone:?}", KeyName(key)),
            Self::Renewed { key } => write!(f, "{} is renewed, its data is gone", KeyName(key)),
            Self::Restless => write!(f, "it does not come to rest"),
        }
    }
}

/// The figures of a schedule that ended well.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Course {
    /// How many steps it took.
    pub(super) steps: u32,
    /// The situations that it met, a bit each.
    pub(super) met: u32,
}

/// The figures of many schedules.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub(super) schedules: u64,
    pub(super) steps: u64,
    /// How many schedules reached each situation.
    pub(super) met: [u64; Situation::ALL.len()],
}

impl Sum {
    pub(super) fn add(&mut self, course: Course) {
        self.schedules += 1;
        self.steps += u64::from(course.steps);
        for (count, situation) in self.met.iter_mut().zip(Situation::ALL) {
            *count += u64::from(course.met >> situation as u32 & 1);
        }
    }

    pub(super) fn join(mut self, other: Self) -> Self {
        self.schedules += other.schedules;
        self.steps += other.steps;
        for (count, more) in self.met.iter_mut().zip(other.met) {
            *count += more;
        }
        self
    }
}
