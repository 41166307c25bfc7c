//! Ways to break the protocol.

/// A switch that breaks the protocol, so that the model of interleavings must find harm. Each names what
/// the unbroken protocol does for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Fences are not read after the writes.
    NoLookAfter,
    /// Fences are read between the query and the writes, not before the query.
    FencesAfterQuery,
    /// Fences are given no start: a missing one stays so, and an `INCR` makes it 1.
    BareFences,
    /// What was refused is forgotten: a key that was not written or removed counts as done.
    RefusalsForgotten,
    /// What may still arrive from one round is forgotten in the next one.
    LossesForgotten,
    /// What one round wrote is forgotten though the next one, which is verified, was refused a key.
    EarlierRoundsForgotten,
    /// Names that are in the manifest are never renewed, so that one may end before its key does.
    OnlyNewNamed,
    /// Keys are named in the manifest after they are written.
    NamesAfterKeys,
    /// Shared keys are written like others: provisionally where the data is known to be changing, and extended
    /// once their tenant is verified.
    SharedExtended,
    /// In the last round it does not matter that the fence moved.
    LastRoundCounts,
}
