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

/// Units a block has and how many blocks there are, one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Geometry {
    way: Way,
    projects: bool,
    /// Blocks of the depth of what is brought, with a projection of the longer of both products' operands.
    depth: usize,
    pub(crate) units: usize,
    /// Elements of h that a block has: with a projection fewer than units.
    pub(crate) features: usize,
    /// Fours of sums over a block of the depth that a block has, each of which is a thread's; with a projection as many as for
    /// the product that has more.
    shares: usize,
    blocks: usize,
    max_shared: u32,
}

impl Geometry {
    /// As many blocks as can be there at once, or none where the weights do not fit.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec, way: Way) -> Result<Option<Self>> {
        let (threads, max_shared) = (MAX_THREADS as u32, driver.max_shared());
        let resident = driver.resident_blocks("load", kernel(spec.proj_size.is_some(), way), threads, max_shared)?;
        if resident == 0 {
            return Ok(None);
        }
        let geometry = Geometry::of(spec, way, resident, max_shared);
        let fits = geometry.shares <= MAX_THREADS && geometry.shared(1, 1) <= max_shared;
        Ok(fits.then_some(geometry))
    }

    /// With at most so many blocks. On the way back a thread has four sums of one gate: another four units cost no more than
    /// one.
    fn of(spec: &LayerSpec, way: Way, resident: usize, max_shared: u32) -> Self {
        let (hidden, state, projects) = (spec.hidden_size, spec.state_size(), spec.proj_size.is_some());
        let (mut units, mut features) = (hidden.div_ceil(resident), state.div_ceil(resident));
        if way == Way::Back {
            features = features.next_multiple_of(4);
        }
        if !projects {
            units = features;
        }
        let blocks = hidden.div_ceil(units).max(state.div_ceil(features));
        // Forward, U times the state gives units' gates, and the projection features; back it is the other way round.
        let (depth, through_u, other_depth, projected) = match way {
            Way::Forward => (state, units, hidden, features),
            Way::Back => (hidden, features, state, units),
        };
        let projection = if projects { projected * other_depth.div_ceil(BLOCK) } else { 0 };
        let shares = projection.max(way.fours(through_u) * way.blocks(depth));
        Geometry { way, projects, depth: way.blocks(hidden), units, features, shares, blocks, max_shared }
    }

    /// Threads of a block: as many groups as have rows, and enough to bring all of these at once and to compute their cells.
    fn threads(&self, rows: usize) -> usize {
        let groups = (MAX_THREADS / self.shares).min(rows);
        let bring = (rows * self.depth * BLOCK / 4).div_ceil(INCOMING);
        bring.max(rows * self.units).clamp(groups * self.shares, MAX_THREADS).next_multiple_of(32)
    }

    /// How many rows are brought and summed together: those that threads bring at once.
    pub(crate) fn part(&self, rows: usize) -> usize {
        let fours = self.depth * BLOCK / 4;
        if self.projects { rows } else { (self.threads(rows) * INCOMING / fours).clamp(1, rows) }
    }

    /// Bytes of shared memory: kernels without a projection have two places for rows and for sums.
    fn shared(&self, rows: usize, batch: usize) -> u32 {
        let of_rows = self.part(rows) * self.depth * PITCH + rows * 4 * self.shares;
        let floats = if self.projects { 1 } else { 2 } * of_rows + batch * (self.units + self.features);
        (floats * 4).try_into().unwrap_or(u32::MAX)
    }

    /// How many rows of a batch a block joins together; `None` if the batch is too large. Of a batch that is worth it at least
    /// two parts, so that one is summed while cells of the other are computed and on their way.
    pub(crate) fn rows(&self, batch: usize) -> Option<usize> {
        let most = if batch * self.shares >= WORTH_PARTS { batch.div_ceil(2) } else { batch };
        let fits = |rows: &usize| self.shared(*rows, batch) <= self.max_shared;
        let rows = (1..=most.min(MAX_ROWS)).rev().find(fits)?;
        // As many in each part.
        Some(batch.div_ceil(batch.div_ceil(rows)))
    }

    /// Starts the kernel of all steps, that many rows at a time.
    pub(crate) fn launch(&self, op: &'static str, rows: usize, batch: usize, args: impl Pod) -> Result<Launch> {
        size(op, batch * self.units)?;
        let kernel = kernel(self.projects, self.way);
        let launch = Launch::new(op, kernel, self.blocks, self.threads(rows) as u32, args)?;
        Ok(Launch { shared: self.shared(rows, batch), resident: true, ..launch })
    }
}

fn kernel(projects: bool, way: Way) -> &'static str {
    match (projects, way) {
        (false, Way::Forward) => "persistent",
        (false, Way::Back) => "persistent_back",
        (true, Way::Forward) => "projected",
        (true, Way::Back) => "projected_back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::LstmConfig;

    /// Both ways.
    fn of(hidden: usize, proj: Option<usize>, resident: usize, max_shared: u32) -> [Geometry; 2] {
        let config = LstmConfig::new(1, hidden);
        let spec = proj.into_iter().fold(config, LstmConfig::proj_size).layer_specs()[0];
        [Way::Forward, Way::Back].map(|way| Geometry::of(&spec, way, resident, max_shared))
    }

    #[test]
    fn every_unit_and_feature_has_a_thread() {
        for hidden in 1..=200 {
            for proj in
                [None, Some(1), Some(hidden / 2), Some(hidden - 1)].into_iter().filter(|p| p.is_none_or(|p| p > 0))
            {
                for resident in 1..=hidden + 1 {
                    let state = proj.unwrap_or(hidden);
                    for g in of(hidden, proj, resident, 48 << 10) {
                        assert!(g.blocks <= resident && g.blocks * g.units >= hidden && g.blocks * g.features >= state);
                        let (u, fours) = match g.way {
                            Way::Forward => (state, g.units),
                            Way::Back => (4 * hidden.div_ceil(BLOCK) * BLOCK, g.features / 4),
                        };
                        assert!(fours * u.div_ceil(BLOCK) <= g.shares);
                        let (line, lines) = if g.way == Way::Forward { (hidden, g.features) } else { (state, g.units) };
                        assert!(proj.is_none() || lines * line.div_ceil(BLOCK) <= g.shares);
                        for rows in [1, 3, 8] {
                            let threads = g.threads(rows);
                            assert!(g.shares > MAX_THREADS || threads >= g.shares && threads <= MAX_THREADS);
                            assert!((1..=rows).contains(&g.part(rows)));
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
        let [forward, back] = of(37, None, 5, 48 << 10);
        assert_eq!((forward.units, forward.features, forward.shares, forward.blocks), (8, 8, 16, 5));
        assert_eq!(forward.shared(3, 5), 4 * (2 * 3 * (2 * 36 + 4 * 16) + 5 * 16));
        assert_eq!((back.units, back.features, back.shares, back.blocks), (8, 8, 2 * 8, 5));
        assert_eq!(back.shared(3, 5), 4 * (2 * 3 * (4 * 2 * 36 + 4 * 16) + 5 * 16));
        // A projection's operand is longer than h; a place for either.
        let [forward, back] = of(37, Some(20), 5, 48 << 10);
        assert_eq!((forward.units, forward.features, forward.shares), (8, 4, 8));
        assert_eq!((back.units, back.features, back.shares), (8, 4, 8));
        assert_eq!(back.shared(3, 5), 4 * (3 * (4 * 2 * 36 + 4 * 8) + 5 * 12));
    }

    #[test]
    fn parts_of_large_layers_and_batches() {
        // 132 blocks of a large device.
        let both = of(1024, None, 132, 227 << 10);
        assert_eq!(both.map(|g| (g.units, g.shares, g.blocks)), [(8, 256, 128); 2]);
        for (batch, rows) in [(1, 1), (2, 1), (9, 5), (16, 8), (64, 8), (65, 8)] {
            assert_eq!(both.map(|g| g.rows(batch)), [Some(rows); 2], "{batch}");
        }
        // All of a turn's words are on their way at once.
        assert_eq!(both.map(|g| g.part(8)), [8, 2]);
        // Groups share out the rows.
        let [forward, back] = of(512, None, 132, 227 << 10);
        assert_eq!((forward.shares, forward.threads(1), forward.threads(8)), (64, 64, 256));
        assert_eq!((forward.rows(7), forward.rows(8)), (Some(7), Some(4)));
        assert_eq!((back.units, back.blocks, back.shares), (4, 128, 64));
        // On the way back four units are as much for a thread as one.
        assert_eq!(of(256, None, 132, 227 << 10).map(|g| (g.units, g.blocks)), [(2, 128), (4, 64)]);
    }

    #[test]
    fn which_layers_fit() {
        // How many blocks are there at once, and how large both ways are at most.
        for (resident, most) in [(80, [800, 672]), (108, [896, 864]), (132, [1024, 1024])] {
            let fits = |hidden, way: Way| of(hidden, None, resident, 96 << 10)[way as usize].shares <= MAX_THREADS;
            let largest = [Way::Forward, Way::Back].map(|way| (1..2000).filter(|&hidden| fits(hidden, way)).max());
            assert_eq!(largest, most.map(Some), "{resident}");
        }
        let shares = |hidden, proj| of(hidden, Some(proj), 132, 227 << 10).map(|g| g.shares);
        assert_eq!(shares(1024, 512), [128, 128]);
        assert_eq!(shares(1600, 512), [208, 208]);
        assert_eq!(shares(2048, 512), [256, 256]);
        assert_eq!(shares(1280, 640), [200, 320]);
    }
}
