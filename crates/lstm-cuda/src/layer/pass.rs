//! The two passes over the steps of a sequence, forward and backward, and how their sums are divided among threads.

use lstm_core::arithmetic::DOT_BLOCK;

/// The forward or the backward pass. Cast to `usize`, the value is an index: 0 for forward, 1 for backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub(crate) const ALL: [Pass; 2] = [Pass::Forward, Pass::Backward];

    /// Number of blocks of `DOT_BLOCK` elements into which the dot products of a unit are divided, for vectors of
    /// `depth` elements. In the forward pass all four gates multiply the same vector (h, or c with dense peepholes). In
    /// the backward pass there are four vectors, the gradients of the four gates.
    pub(crate) fn depth_blocks(self, depth: usize) -> usize {
        match self {
            Pass::Forward => depth.div_ceil(DOT_BLOCK),
            Pass::Backward => 4 * depth.div_ceil(DOT_BLOCK),
        }
    }

    /// Number of quads that compute `units` units, for one block of the inner dimension. A quad is a group of four sums
    /// that one thread computes: in the forward pass the four gates of one unit, in the backward pass one gate of four
    /// units.
    pub(crate) fn sum_quads(self, units: usize) -> usize {
        match self {
            Pass::Forward => units,
            Pass::Backward => units.div_ceil(4),
        }
    }
}
