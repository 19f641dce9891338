//! The two passes over the steps of a sequence, forward and backward, and how their sums are divided among threads.

use lstm_core::arithmetic::BLOCK;

/// The forward or the backward pass. As an index (`as usize`) it is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub(crate) const BOTH: [Pass; 2] = [Pass::Forward, Pass::Backward];

    /// Number of blocks of `BLOCK` elements into which the sums of a unit are divided, for vectors of `depth` elements.
    /// In the forward pass all four gates multiply the same vector (h, or c with dense peepholes). In the backward pass
    /// there are four vectors, the gradients of the four gates.
    pub(crate) fn depth_blocks(self, depth: usize) -> usize {
        match self {
            Pass::Forward => depth.div_ceil(BLOCK),
            Pass::Backward => 4 * depth.div_ceil(BLOCK),
        }
    }

    /// Number of quads for `units` units in one block of the inner dimension. A quad is a group of four sums that one
    /// thread computes: in the forward pass the four gates of one unit, in the backward pass one gate of four units.
    pub(crate) fn quads(self, units: usize) -> usize {
        match self {
            Pass::Forward => units,
            Pass::Backward => units.div_ceil(4),
        }
    }
}
