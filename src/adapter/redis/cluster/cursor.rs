//! The cursor of a scan over all nodes.

/// Which node is being scanned, how far, and by which map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Which map the scan began with.
    pub(super) version: u8,
    /// The position of the node among the primaries.
    pub(super) node: u16,
    /// The node's own cursor.
    pub(super) own: u64,
}

impl Cursor {
    /// The bits of a node's own cursor: a table of 2^30 keys in each of 2^14 slots has 44.
    const OWN_BITS: u32 = 44;
    /// There are no more nodes than that in a cluster: 1,000 are recommended at most.
    const NODE_BITS: u32 = 12;

    /// The cursor that a number stands for.
    pub(super) fn of(number: u64) -> Self {
        let bits = |from: u32, count: u32| (number >> from) & ((1 << count) - 1);
        let node = u16::try_from(bits(Self::OWN_BITS, Self::NODE_BITS)).unwrap_or_default();
        let version = bits(Self::OWN_BITS + Self::NODE_BITS, u8::BITS);
        let version = u8::try_from(version).unwrap_or_default();
        Self { version, node, own: bits(0, Self::OWN_BITS) }
    }

    /// The cursor as one number; `None` if it does not fit.
    pub(super) fn number(self) -> Option<u64> {
        let Self { version, node, own } = self;
        let fits = own >> Self::OWN_BITS == 0 && node >> Self::NODE_BITS == 0;
        let (node, version) = (u64::from(node), u64::from(version));
        let number = version << (Self::OWN_BITS + Self::NODE_BITS) | node << Self::OWN_BITS | own;
        fits.then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_holds_the_node_and_how_far_it_was_scanned() {
        for (version, node, own) in [(0, 0, 1), (0, 1, 0), (255, 4_095, (1 << 44) - 1), (7, 2, 9)] {
            let cursor = Cursor { version, node, own };
            assert_eq!(Cursor::of(cursor.number().unwrap()), cursor);
        }
        assert_eq!(Cursor { version: 0, node: 0, own: 1 << 44 }.number(), None);
        assert_eq!(Cursor { version: 0, node: 4_096, own: 0 }.number(), None);
    }
}
