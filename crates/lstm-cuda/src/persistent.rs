//! How a layer's units are shared out among blocks that are all there at once, and launches of those kernels.

use bytemuck::Pod;
use lstm_core::{CellKind, LayerSpec, Result, arithmetic::BLOCK};

use crate::driver::{Driver, Launch, size};

/// Threads that a block may have: more would have too few registers for their weights.
pub(crate) const MAX_THREADS: usize = 256;

/// Between blocks of the depth in shared memory.
pub(crate) const PITCH: usize = BLOCK + 4;

/// Rows of a batch that a block takes at a time, at most.
pub(crate) const MAX_ROWS: usize = 8;

/// Units a block has and how many blocks there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Geometry {
    hidden: usize,
    pub(crate) units: usize,
    blocks: usize,
    threads: u32,
    max_shared: u32,
}

impl Geometry {
    /// As many blocks as can be there at once, or none where the weights do not fit, or for cells whose steps exchange
    /// more than h.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec) -> Result<Option<Self>> {
        if spec.proj_size.is_some() || spec.cell == CellKind::PeepholeDense {
            return Ok(None);
        }
        let (hidden, depth) = (spec.hidden_size, spec.hidden_size.div_ceil(BLOCK));
        let max_shared = driver.max_shared();
        for units in 1..=MAX_THREADS / depth.min(MAX_THREADS + 1) {
            let threads = (units * depth).next_multiple_of(32) as u32;
            let geometry = Geometry { hidden, units, blocks: hidden.div_ceil(units), threads, max_shared };
            // The backward pass's need is the larger one.
            let shared = geometry.shared(4, 1, 1);
            if shared > max_shared {
                break;
            }
            let resident = ["persistent", "persistent_back"]
                .into_iter()
                .map(|kernel| driver.resident_blocks("load", kernel, threads, max_shared))
                .collect::<Result<Vec<_>>>()?;
            if resident.into_iter().all(|n| n >= geometry.blocks) {
                return Ok(Some(geometry));
            }
        }
        Ok(None)
    }

    /// Bytes of shared memory, with so many vectors of `hidden` exchanged.
    fn shared(&self, vectors: usize, rows: usize, batch: usize) -> u32 {
        let depth = self.hidden.div_ceil(BLOCK);
        let floats = rows * (vectors * depth * PITCH + 4 * depth * self.units) + 2 * batch * self.units;
        (floats * 4).try_into().unwrap_or(u32::MAX)
    }

    /// How many rows of a batch a block takes at a time; `None` if the batch is too large.
    pub(crate) fn rows(&self, vectors: usize, batch: usize) -> Option<usize> {
        (1..=batch.min(MAX_ROWS)).rev().find(|&rows| self.shared(vectors, rows, batch) <= self.max_shared)
    }

    /// Starts a kernel whose steps exchange so many vectors of `hidden`, that many rows at a time.
    pub(crate) fn launch<A: Pod>(
        &self,
        op: &'static str,
        kernel: &'static str,
        (vectors, rows, batch): (usize, usize, usize),
        args: A,
    ) -> Result<Launch> {
        size(op, batch * self.units)?;
        let launch = Launch::new(op, kernel, self.blocks, self.threads, args)?;
        Ok(Launch { shared: self.shared(vectors, rows, batch), resident: true, ..launch })
    }
}
