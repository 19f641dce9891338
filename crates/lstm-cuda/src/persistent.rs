//! How a layer's units are shared out among blocks that are all there at once, and launches of those kernels.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::BLOCK};

use crate::driver::{Driver, Launch, size};

/// Threads that a block may have: more would have too few registers for their weights.
pub(crate) const MAX_THREADS: usize = 256;

/// Between blocks of the depth in shared memory.
pub(crate) const PITCH: usize = BLOCK + 4;

/// Rows of a batch whose sums a block joins together, at most.
pub(crate) const MAX_ROWS: usize = 8;

/// From how many fours of sums in all rows on a batch is worth two parts. A multiprocessor starts the multiply-adds of about one
/// of them a cycle, and another part costs a barrier more. An estimate.
const WORTH_PARTS: usize = 512;

/// Fours of words that a thread has on their way at a time.
const INCOMING: usize = 8;

/// Which way a pass over the steps goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    Forward,
    Back,
}

impl Way {
    /// Blocks of the depth that a unit's four gates sum over: on the way back each of them has an operand of its own.
    pub(crate) fn blocks(self, depth: usize) -> usize {
        match self {
            Way::Forward => depth.div_ceil(BLOCK),
            Way::Back => 4 * depth.div_ceil(BLOCK),
        }
    }

    /// Fours of sums in each block of the depth of so many units.
    pub(crate) fn fours(self, units: usize) -> usize {
        match self {
            Way::Forward => units,
            Way::Back => units.div_ceil(4),
        }
    }
}

/// Units a block has and how many blocks there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Geometry {
    hidden: usize,
    pub(crate) units: usize,
    /// Elements of h that a block has: with a projection fewer than units.
    pub(crate) features: usize,
    projects: bool,
    /// By [`Way`]: fours of sums over a block of the depth that a block has, each of which is a thread's; with a projection as
    /// many as for the product that has more.
    shares: [usize; 2],
    blocks: usize,
    max_shared: u32,
}

impl Geometry {
    /// As many blocks as can be there at once, or none where the weights do not fit.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec) -> Result<Option<Self>> {
        for units in 1..=spec.hidden_size {
            let geometry = Geometry::of(spec, units, driver.max_shared());
            let Geometry { shares, max_shared, .. } = geometry;
            // The backward pass's need is the larger one.
            if shares.into_iter().any(|n| n > MAX_THREADS) || geometry.shared(Way::Back, 1, 1) > max_shared {
                break;
            }
            let resident = [Way::Forward, Way::Back]
                .into_iter()
                .map(|way| driver.resident_blocks("load", geometry.kernel(way), MAX_THREADS as u32, max_shared))
                .collect::<Result<Vec<_>>>()?;
            if resident.into_iter().all(|n| n >= geometry.blocks) {
                return Ok(Some(geometry));
            }
        }
        Ok(None)
    }

    /// With so many units a block.
    fn of(spec: &LayerSpec, units: usize, max_shared: u32) -> Self {
        let (hidden, state, projects) = (spec.hidden_size, spec.state_size(), spec.proj_size.is_some());
        let blocks = hidden.div_ceil(units);
        let features = if projects { state.div_ceil(blocks) } else { units };
        // Forward, U times the state gives units' gates, and the projection features; back it is the other way round.
        let shares = [(Way::Forward, state, units, hidden, features), (Way::Back, hidden, features, state, units)].map(
            |(way, depth, through_u, other_depth, projected)| {
                let projection = if projects { projected * other_depth.div_ceil(BLOCK) } else { 0 };
                projection.max(way.fours(through_u) * way.blocks(depth))
            },
        );
        Geometry { hidden, units, features, projects, shares, blocks, max_shared }
    }

    fn kernel(&self, way: Way) -> &'static str {
        match (self.projects, way) {
            (false, Way::Forward) => "persistent",
            (false, Way::Back) => "persistent_back",
            (true, Way::Forward) => "projected",
            (true, Way::Back) => "projected_back",
        }
    }

    /// Threads of a block: as many groups as have rows, and enough to bring all of these at once and to compute their cells.
    fn threads(&self, way: Way, rows: usize) -> usize {
        let (shares, blocks) = (self.shares[way as usize], way.blocks(self.hidden));
        let groups = (MAX_THREADS / shares).min(rows);
        let bring = (rows * blocks * BLOCK / 4).div_ceil(INCOMING);
        bring.max(rows * self.units).clamp(groups * shares, MAX_THREADS).next_multiple_of(32)
    }

    /// How many rows are brought and summed together: those that threads bring at once.
    pub(crate) fn part(&self, way: Way, rows: usize) -> usize {
        let fours = way.blocks(self.hidden) * BLOCK / 4;
        if self.projects { rows } else { (self.threads(way, rows) * INCOMING / fours).clamp(1, rows) }
    }

    /// Bytes of shared memory: kernels without a projection have two places for rows and for sums.
    fn shared(&self, way: Way, rows: usize, batch: usize) -> u32 {
        let of_rows = self.part(way, rows) * way.blocks(self.hidden) * PITCH + rows * 4 * self.shares[way as usize];
        let floats = if self.projects { 1 } else { 2 } * of_rows + batch * (self.units + self.features);
        (floats * 4).try_into().unwrap_or(u32::MAX)
    }

    /// How many rows of a batch a block joins together; `None` if the batch is too large. Of a batch that is worth it at least
    /// two parts, so that one is summed while cells of the other are computed and on their way.
    pub(crate) fn rows(&self, way: Way, batch: usize) -> Option<usize> {
        let most = if batch * self.shares[way as usize] >= WORTH_PARTS { batch.div_ceil(2) } else { batch };
        let fits = |rows: &usize| self.shared(way, *rows, batch) <= self.max_shared;
        let rows = (1..=most.min(MAX_ROWS)).rev().find(fits)?;
        // As many in each part.
        Some(batch.div_ceil(batch.div_ceil(rows)))
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
        let launch = Launch::new(op, self.kernel(way), self.blocks, self.threads(way, rows) as u32, args)?;
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
                    let [forward, back] = g.shares;
                    assert!(g.units * u.div_ceil(BLOCK) <= forward && g.features * p.div_ceil(BLOCK) <= forward);
                    assert!(g.features.div_ceil(4) * 4 * hidden.div_ceil(BLOCK) <= back);
                    for rows in [1, 3, 8] {
                        for way in [Way::Forward, Way::Back] {
                            let (shares, threads) = (g.shares[way as usize], g.threads(way, rows));
                            assert!(shares > MAX_THREADS || threads >= shares && threads <= MAX_THREADS);
                            assert!((1..=rows).contains(&g.part(way, rows)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn shared_memory_as_kernels_lay_it_out() {
        // Rows of h, sums of blocks of four gates, both in two places, then the block's own h and c; the last block has fewer
        // units.
        let g = of(37, None, 9);
        assert_eq!((g.features, g.shares, g.blocks), (9, [18, 3 * 8], 5));
        assert_eq!(g.shared(Way::Forward, 3, 5), 4 * (2 * 3 * (2 * 36 + 4 * 18) + 5 * 18));
        assert_eq!(g.shared(Way::Back, 3, 5), 4 * (2 * 3 * (4 * 2 * 36 + 4 * 24) + 5 * 18));
        // A projection's operand is longer than h; a place for either.
        let g = of(37, Some(20), 9);
        assert_eq!((g.features, g.shares, g.blocks), (4, [9, 9], 5));
        assert_eq!(g.shared(Way::Back, 3, 5), 4 * (3 * (4 * 2 * 36 + 4 * 9) + 5 * 13));
    }

    #[test]
    fn parts_of_large_layers_and_batches() {
        // 128 blocks of a large device.
        let config = LstmConfig::new(1, 1024);
        let g = Geometry::of(&config.layer_specs()[0], 8, 227 << 10);
        assert_eq!((g.shares, g.blocks), ([256, 256], 128));
        for (batch, rows) in [(1, 1), (2, 1), (9, 5), (16, 8), (64, 8), (65, 8)] {
            assert_eq!([Way::Forward, Way::Back].map(|way| g.rows(way, batch)), [Some(rows); 2], "{batch}");
        }
        // All of a turn's words are on their way at once.
        assert_eq!((g.part(Way::Forward, 8), g.part(Way::Back, 8)), (8, 2));
        // Groups share out the rows.
        let config = LstmConfig::new(1, 512);
        let g = Geometry::of(&config.layer_specs()[0], 4, 227 << 10);
        assert_eq!((g.shares, g.threads(Way::Forward, 1), g.threads(Way::Forward, 8)), ([64, 64], 64, 256));
        assert_eq!((g.rows(Way::Forward, 7), g.rows(Way::Forward, 8)), (Some(7), Some(4)));
    }
}
