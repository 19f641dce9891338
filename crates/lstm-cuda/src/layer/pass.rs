//! The direction of a pass over the steps of a sequence.

use lstm_core::arithmetic::BLOCK;

/// The forward or the backward pass. As an index (`as usize`) it is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub(crate) const BOTH: [Pass; 2] = [Pass::Forward, Pass::Backward];

    /// How many blocks of the depth a unit's four gates sum over, for an operand of `depth` elements. In the backward
    /// pass each gate has an operand of its own.
    pub(crate) fn depth_blocks(self, depth: usize) -> usize {
        match self {
            Pass::Forward => depth.div_ceil(BLOCK),
            Pass::Backward => 4 * depth.div_ceil(BLOCK),
        }
    }

    /// How many quads (groups of four sums, of which a thread computes one) a block of the depth has for `units` units.
    /// In the forward pass a quad is the four gates of a unit, in the backward pass one gate of four units.
    pub(crate) fn quads(self, units: usize) -> usize {
        match self {
            Pass::Forward => units,
            Pass::Backward => units.div_ceil(4),
        }
    }
}
