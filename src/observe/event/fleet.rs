//! The fleet: which shares of the tenants this worker holds.

use tracing::{error, info, warn};

use crate::domain::member::MemberId;
use crate::domain::share::Shares;

event! {
    /// The worker is a member of a fleet.
    FleetJoined<'a> {
        id: &'a MemberId,
        /// How many members the fleet has, with this one.
        members: usize,
    }
    log info!(member = %id, members, "joined the fleet as member {id}: {members} in all");
}

event! {
    /// The fleet has another number of members.
    FleetSize { members: usize }
    metrics |metrics| metrics.fleet_members.know(i64::try_from(members).unwrap_or(i64::MAX));
}

event! {
    /// The worker holds other shares than before.
    SharesHeld { held: Shares }
    metrics |metrics| metrics.fleet_shares.know(held.len().into());
}

event! {
    /// The worker took shares.
    SharesTaken { shares: Shares, held: Shares }
    log info!(
        shares = %shares,
        held = held.len(),
        "took the shares {shares} of the tenants, and warms them: {} held now", held.len()
    );
}

event! {
    /// The worker gives shares back.
    SharesGivenBack { shares: Shares, held: Shares }
    log info!(
        shares = %shares,
        held = held.len(),
        "gives back the shares {shares} of the tenants: {} held now", held.len()
    );
}

event! {
    /// Other members hold shares that this worker held.
    SharesGone { shares: Shares, held: Shares }
    log warn!(
        shares = %shares,
        held = held.len(),
        "other members of the fleet hold the shares {shares} of the tenants now: was the cache emptied, or its clock set?"
    );
}

event! {
    /// The worker could not renew its leases in time.
    SharesLost { shares: Shares }
    log error!(
        shares = %shares,
        "could not renew the leases of the shares {shares} of the tenants in time, and works for no tenant any more: \
         other members of the fleet take over"
    );
}

event! {
    /// A member left the fleet, or was silent for as long as a lease.
    MemberGone<'a> { id: &'a MemberId }
    log info!(%id, "member {id} is gone from the fleet: its shares are free for the others");
}

event! {
    /// A beat failed; the worker goes on trying.
    FleetUnreachable<'a> { message: &'a str }
    log warn!("could not renew the leases of the fleet's shares, and tries again: {message}");
}

event! {
    /// The leases are renewed again.
    FleetReached;
    log info!("the leases of the fleet's shares are renewed again");
}

event! {
    /// The connections to the database do not suffice for one more member.
    ConnectionsAwaited { connections: u32 }
    log info!(
        connections,
        "waits for database connections: the fleet's {connections} are divided among older members"
    );
}

event! {
    /// Batches for shares that were given back have not ended in time.
    SharesHandedOverBusy { shares: Shares }
    log warn!(
        shares = %shares,
        "hands over the shares {shares} of the tenants, although batches for them are still in flight"
    );
}

event! {
    /// The worker has left the fleet.
    FleetLeft;
    log info!("left the fleet: its shares are free for the other members");
}

#[cfg(test)]
mod tests {
    use super::super::testing::logged;
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn the_shares_are_named_and_counted() {
        let metrics = Metrics::new();
        let (shares, held) = (Shares::from_bits(0b1011), Shares::from_bits(0b111_1011));
        let id = MemberId::random(0.5);
        let lines = logged(|| {
            FleetJoined { id: &id, members: 3 }.emit(&metrics);
            FleetSize { members: 3 }.emit(&metrics);
            SharesTaken { shares, held }.emit(&metrics);
            SharesHeld { held }.emit(&metrics);
            SharesLost { shares: held }.emit(&metrics);
        });
        for said in [
            "joined the fleet as member 10000000000000: 3 in all",
            "took the shares 0-1, 3 of the tenants, and warms them: 6 held now",
            "could not renew the leases of the shares 0-1, 3-6 of the tenants in time",
        ] {
            assert!(lines.contains(said), "{said} in {lines}");
        }
        let page = metrics.encode();
        assert!(page.contains("preheat_fleet_shares 6\n"), "{page}");
        assert!(page.contains("preheat_fleet_members 3\n"), "{page}");
    }
}
