//! How the members of a fleet share the tenants.
//!
//! Each member tells the cache server every two seconds that it lives: a **beat**. The beat renews the member's leases
//! and answers with a [`View`]: all members and all leases, timed by the server. From the view, every member computes
//! the same [`moves()`], and does those that are its own: it takes shares that are free, and hands over shares of
//! which it has too many, after its batches for them have ended. Nobody leads. [`Membership`] is what one member
//! remembers from beat to beat.
//!
//! A lease ends for the server ten seconds after the beat that renewed it arrived, and for its holder nine seconds after
//! the holder *sent* that beat. So the holder stops first, however long the answer took.

mod membership;
mod moves;

use std::time::Duration;

pub use self::membership::{Membership, Orders};
pub use self::moves::moves;
use super::member::MemberId;
use super::share::{SHARES, Share, Shares};

/// How long a lease lasts after its last renewal, by the server's clock. A member that was silent for this long is gone.
pub const LEASE: Duration = Duration::from_secs(10);

/// How often a member beats.
pub const BEAT: Duration = Duration::from_secs(2);

/// A holder counts its leases as over this much earlier than the server does: a machine's clock may be slow by some per
/// cent, and what the holder has begun takes a moment to stop.
pub const MARGIN: Duration = Duration::from_secs(1);

/// The longest wait for the answer to a beat: several beats fit into a lease.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The pause after a beat that failed.
pub const RETRY: Duration = Duration::from_millis(500);

/// A member takes nothing when it is younger than this: it would take the shares of members that start with it, or that
/// register again with a server that lost its data.
const NEWCOMER: Duration = Duration::from_millis(2_500);

/// The others hand shares over to a member only when it is at least this old. In a rolling deploy an old member leaves before
/// that, the new one takes the leaver's shares, and each share moves once. A member that keeps crashing gets none.
const SETTLED: Duration = Duration::from_secs(20);

/// A member that was silent for longer than this has missed a beat: nothing is left for it to take.
const AWAKE: Duration = Duration::from_secs(3);

/// How long a free share is left to the member that is to take it. After that, members that were silent since the share
/// became free do not count.
const LEFT_FOR: Duration = Duration::from_secs(1);

/// With fewer connections a member does not work: one connection listens for changes, one reads.
pub const LEAST_CONNECTIONS: u32 = 2;

/// What a member does at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It takes no shares: it starts, or stands by.
    #[default]
    Waits,
    /// It works for its shares.
    Works,
    /// It finishes what it has begun, and takes no more.
    Leaves,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Waits, Self::Works, Self::Leaves];

    /// Its name in the cache.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::Works => "works",
            Self::Leaves => "leaves",
        }
    }

    /// The standing with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|standing| standing.as_str() == name)
    }
}

/// What a member tells the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Who tells it.
    pub id: MemberId,
    /// The sequence number of this member's beats. A beat that arrives after a later one changes nothing.
    pub number: u64,
    /// What the member does.
    pub standing: Standing,
    /// The shares to lease if nobody else has them. The leases that the member has are renewed in any case.
    pub claims: Shares,
    /// How many connections to the database it wants; `None` if the fleet's connections have no bound.
    pub connections: Option<Wanted>,
}

/// How many connections to the database a member wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// So many. It gets fewer if the others leave less; it keeps what it has unless it wants less.
    pub connections: u32,
    /// The bound on the connections of all members together.
    pub of: u32,
}

/// Bounds on connections to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Of all members together.
    pub fleet: u32,
    /// Of one member.
    pub own: u32,
}

/// Leases that a member ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Who ends them.
    pub id: MemberId,
    /// The number of its last beat. If the server knows another one, it changes nothing: the member has leased
    /// again what it meant to end.
    pub number: u64,
    /// The shares, each with the member that gets the lease next. Without one, or if that member is gone, the share is free.
    pub shares: Vec<(Share, Option<MemberId>)>,
    /// Whether the member leaves the fleet.
    pub leaves: bool,
}

/// The fleet, as the server answers a beat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The members that are alive, in no order.
    pub members: Vec<Member>,
    /// The leases of all shares, by the shares' numbers. A share without an entry has never been leased.
    pub leases: Vec<Lease>,
}

/// A member, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// What it does.
    pub standing: Standing,
    /// How long it has been a member.
    pub age: Duration,
    /// How long ago its last beat was.
    pub silent_for: Duration,
    /// How many connections to the database it may have open.
    pub connections: u32,
}

/// Who has a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody, for that long.
    Free(Duration),
    /// A member.
    Held {
        /// The member.
        by: MemberId,
        /// How much longer, if the member does not renew it.
        left: Duration,
    },
}

impl View {
    /// A view in which no share is leased.
    pub fn of(members: Vec<Member>) -> Self {
        Self { members, leases: vec![Lease::Free(Duration::ZERO); usize::from(SHARES)] }
    }

    /// The member with this id.
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// The leases, each with its share.
    pub fn leases(&self) -> impl Iterator<Item = (Share, &Lease)> {
        Shares::ALL.iter().zip(&self.leases)
    }

    /// The shares that a member has leased.
    pub fn held_by(&self, id: &MemberId) -> Shares {
        let of_member = self.leases().filter(|(_, lease)| lease.holder() == Some(id));
        of_member.map(|(share, _)| share).collect()
    }

    /// The same fleet, where a member has another standing.
    fn with(&self, id: &MemberId, standing: Standing) -> Self {
        let mut view = self.clone();
        for member in view.members.iter_mut().filter(|member| member.id == *id) {
            member.standing = standing;
        }
        view
    }

    /// The members with this and other standings, the oldest first.
    fn by_age(&self, standings: &[Standing]) -> Vec<&Member> {
        let is_one = |member: &&Member| standings.contains(&member.standing);
        let mut members: Vec<_> = self.members.iter().filter(is_one).collect();
        members.sort_by(|one, other| other.age.cmp(&one.age).then_with(|| one.id.cmp(&other.id)));
        members
    }

    /// How many of the fleet's connections to the database a member is to have, by its place among those that stay: each has an
    /// even part, and at least [`LEAST_CONNECTIONS`]. Where that does not go round, the youngest members have none.
    fn connections_for(&self, id: &MemberId, bounds: ConnectionBounds) -> u32 {
        let of = bounds.fleet;
        let members = self.by_age(&[Standing::Waits, Standing::Works]);
        let Some(place) = members.iter().position(|member| member.id == *id) else { return 0 };
        let most = (of / LEAST_CONNECTIONS).max(1);
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX).clamp(1, most);
        match u32::try_from(place) {
            Ok(place) if place < count => {
                (of / count + u32::from(place < of % count)).min(bounds.own)
            }
            Ok(_) | Err(_) => 0,
        }
    }
}

impl Member {
    fn is_awake(&self) -> bool {
        self.silent_for <= AWAKE
    }
}

impl Lease {
    /// The member that has the share.
    pub fn holder(&self) -> Option<&MemberId> {
        match self {
            Self::Free(_) => None,
            Self::Held { by, .. } => Some(by),
        }
    }
}
