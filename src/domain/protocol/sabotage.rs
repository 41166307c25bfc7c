//! Ways to break the protocol.

/// A switch that breaks one rule of the protocol. The model of interleavings must then find harm, which
/// shows why the rule is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The warmer does not read fences after the writes.
    NoLookAfter,
    /// The warmer reads fences between the query and the writes, not before the query.
    FencesAfterQuery,
    /// The warmer does not start fences: a missing fence stays missing, and an `INCR` makes it 1.
    BareFences,
    /// The warmer forgets refused commands: a key that the cache refused to write or remove counts as
    /// done.
    RefusalsForgotten,
    /// Each round forgets which commands of earlier rounds may still be in flight.
    LossesForgotten,
    /// A verified round forgets the values of unverified rounds, even if the cache refused one of its
    /// keys.
    EarlierRoundsForgotten,
    /// The warmer never renews manifest entries, so that an entry can be pruned before its key expires.
    OnlyNewNamed,
    /// The warmer adds manifest entries after it has written the keys.
    NamesAfterKeys,
    /// The warmer treats shared keys like others: it writes them with the provisional TTL while the
    /// data is known to be changing, and extends them once their tenant is verified.
    SharedExtended,
    /// In the last round, a tenant counts as verified even if its fence moved.
    LastRoundCounts,
}
