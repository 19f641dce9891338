//! How a layer's units are shared out among blocks that are all there at once, and launches of those kernels.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::BLOCK};

use crate::driver::{Driver, Launch, size};

/// Threads that a block may have: more would have too few registers for their weights.
pub(crate) const MAX_THREADS: usize = 256;

/// Between blocks of the depth in shared memory.
pub(crate) const PITCH: usize = BLOCK + 4;

/// Rows of a batch that a block takes at a time, at most.
pub(crate) const MAX_ROWS: usize = 8;

/// Which way a pass over the steps goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    Forward,
    Back,
}

impl Way {
    /// Vectors of `hidden` that steps pass on.
    pub(crate) fn vectors(self) -> usize {
        match self {
            Way::Forward => 1,
            Way::Back => 4,
        }
    }
}

/// Units a block has and how many blocks there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Geometry {
    /// Blocks of the depth of a product over the hidden units.
    depth: usize,
    pub(crate) units: usize,
    /// Elements of h that a block has: with a projection fewer than units.
    pub(crate) features: usize,
    /// Blocks of the depth of all units or features that a block has, of the product that has more of them.
    shares: usize,
    blocks: usize,
    threads: u32,
    max_shared: u32,
    /// By [`Way`].
    kernels: [&'static str; 2],
}

impl Geometry {
    /// As many blocks as can be there at once, or none where the weights do not fit.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec) -> Result<Option<Self>> {
        for units in 1..=spec.hidden_size {
            let geometry = Geometry::of(spec, units, driver.max_shared());
            // The backward pass's need is the larger one.
            if geometry.shares > MAX_THREADS || geometry.shared(Way::Back, 1, 1) > geometry.max_shared {
                break;
            }
            let Geometry { threads, max_shared, kernels, .. } = geometry;
            let resident = kernels
                .into_iter()
                .map(|kernel| driver.resident_blocks("load", kernel, threads, max_shared))
                .collect::<Result<Vec<_>>>()?;
            if resident.into_iter().all(|n| n >= geometry.blocks) {
                return Ok(Some(geometry));
            }
        }
        Ok(None)
    }

    /// With so many units a block.
    fn of(spec: &LayerSpec, units: usize, max_shared: u32) -> Self {
        let (hidden, state) = (spec.hidden_size, spec.state_size());
        let blocks = hidden.div_ceil(units);
        let depth = hidden.div_ceil(BLOCK);
        let (features, shares, kernels) = match spec.proj_size {
            Some(_) => {
                let features = state.div_ceil(blocks);
                let shares = (units * state.div_ceil(BLOCK)).max(features * depth);
                (features, shares, ["projected", "projected_back"])
            }
            None => (units, units * depth, ["persistent", "persistent_back"]),
        };
        let threads = shares.next_multiple_of(32) as u32;
        Geometry { depth, units, features, shares, blocks, threads, max_shared, kernels }
    }

    /// Bytes of shared memory.
    fn shared(&self, way: Way, rows: usize, batch: usize) -> u32 {
        let floats =
            rows * (way.vectors() * self.depth * PITCH + 4 * self.shares) + batch * (self.units + self.features);
        (floats * 4).try_into().unwrap_or(u32::MAX)
    }

    /// How many rows of a batch a block takes at a time; `None` if the batch is too large.
    pub(crate) fn rows(&self, way: Way, batch: usize) -> Option<usize> {
        (1..=batch.min(MAX_ROWS)).rev().find(|&rows| self.shared(way, rows, batch) <= self.max_shared)
    }

    /// Starts the kernel of all steps, that many rows at a time.
    pub(crate) fn launch<A: Pod>(
        &self,
        op: &'static str,
        way: Way,
        (rows, batch): (usize, usize),
        args: A,
    ) -> Result<Launch> {
        size(op, batch * self.units)?;
        let launch = Launch::new(op, self.kernels[way as usize], self.blocks, self.threads, args)?;
        Ok(Launch { shared: self.shared(way, rows, batch), resident: true, ..launch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::LstmConfig;

    fn of(hidden: usize, proj: Option<usize>, units: usize) -> Geometry {
        let config = LstmConfig::new(1, hidden);
        let config = proj.into_iter().fold(config, LstmConfig::proj_size);
        Geometry::of(&config.layer_specs()[0], units, 48 << 10)
    }

    #[test]
    fn every_unit_and_feature_has_a_thread() {
        for hidden in 1..=200 {
            for proj in
                [None, Some(1), Some(hidden / 2), Some(hidden - 1)].into_iter().filter(|p| p.is_none_or(|p| p > 0))
            {
                for units in 1..=hidden {
                    let (g, state) = (of(hidden, proj, units), proj.unwrap_or(hidden));
                    assert!(g.blocks * g.units >= hidden && (g.blocks - 1) * g.units < hidden);
                    assert!(g.blocks * g.features >= state && g.features <= g.units);
                    let (u, p) = if proj.is_some() { (state, hidden) } else { (hidden, 0) };
                    assert!(g.units * u.div_ceil(BLOCK) <= g.shares && g.features * p.div_ceil(BLOCK) <= g.shares);
                    assert!(g.threads as usize >= g.shares);
                }
            }
        }
    }

    #[test]
    fn shared_memory_as_kernels_lay_it_out() {
        // Rows of h, sums of blocks of four gates, then the block's own h and c; the last block has fewer units.
        let g = of(37, None, 9);
        assert_eq!((g.features, g.shares, g.blocks), (9, 18, 5));
        assert_eq!(g.shared(Way::Forward, 3, 5), 4 * (3 * (2 * 36 + 4 * 18) + 5 * 18));
        // A projection's operand is longer than h.
        let g = of(37, Some(20), 9);
        assert_eq!((g.features, g.shares, g.blocks), (4, 9, 5));
        assert_eq!(g.shared(Way::Back, 3, 5), 4 * (3 * (4 * 2 * 36 + 4 * 9) + 5 * 13));
    }
}
