//! The tiles in which kernels compute products, and their selection by the size of the problem and of the device.

use bytemuck::Pod;
use lstm_core::Result;

use crate::driver::{Driver, Launch};

/// A kernel variant's tile: the part of a result that one block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tile {
    /// Index of the variant in an operation's list of kernels: 0 is small, 1 is medium, and 2 is narrow on tensor
    /// cores. For steps, 3 is the kernel that adds the products of the gates. For [`gemm`](super::gemm), 3 is large,
    /// and 4 is wide on tensor cores.
    variant: usize,
    /// Threads per block.
    threads: u32,
    rows: usize,
    cols: usize,
    /// Floats of shared memory per block: the buffers of both operands, with padding.
    shared_floats: usize,
}

const SMALL: Tile = Tile::exact(0, 64, 16, 64);
const MEDIUM: Tile = Tile::exact(1, 256, 64, 32);
/// Tile of the kernels that add the products of the gates, which a previous kernel has computed.
const GATE_SUM: Tile = Tile { variant: 3, threads: 256, rows: 8, cols: 32, shared_floats: 0 };
const TF32_NARROW: Tile = Tile::tf32(2, 64, 32, 64);
pub(super) const LARGE: Tile = Tile::exact(3, 256, 128, 16);
pub(super) const TF32_WIDE: Tile = Tile::tf32(4, 128, 128, 32);

/// The rows, columns and depth of one tensor core instruction.
const TENSOR_CORE_INSTRUCTION_SHAPE: [usize; 3] = [16, 8, 8];

impl Tile {
    /// A square tile computed by fma, with a double buffer for `depth` elements of the inner dimension.
    const fn exact(variant: usize, threads: u32, side: usize, depth: usize) -> Self {
        Tile { variant, threads, rows: side, cols: side, shared_floats: 2 * depth * 2 * (side + 4) }
    }

    /// A tile computed on tensor cores, with a buffer for `depth` elements of the inner dimension.
    const fn tf32(variant: usize, rows: usize, cols: usize, depth: usize) -> Self {
        Tile { variant, threads: 256, rows, cols, shared_floats: (rows + cols) * (depth + 8) }
    }

    /// Number of tiles that cover a result with the given numbers of rows and columns.
    fn count(self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }

    /// Whether the tiles of this many matrices of the given shape occupy at least two fifths of the multiprocessors,
    /// and on average at least half of a tile lies inside the matrix.
    fn occupies_device(self, driver: &impl Driver, shape: [usize; 2], matrices: usize) -> bool {
        matrices * self.count(shape) * 5 >= driver.multiprocessors() * 2 && self.is_at_least_half_used(shape)
    }

    /// Whether a matrix of the given shape has at least one tile per multiprocessor, and on average at least half of a
    /// tile lies inside the matrix.
    pub(super) fn fills_device(self, driver: &impl Driver, shape: [usize; 2]) -> bool {
        self.count(shape) >= driver.multiprocessors() && self.is_at_least_half_used(shape)
    }

    /// Whether on average at least half of a tile lies inside a matrix of the given shape.
    fn is_at_least_half_used(self, shape: [usize; 2]) -> bool {
        self.count(shape) * self.rows * self.cols <= 2 * shape[0] * shape[1]
    }

    /// Returns the launch of the kernel for this tile, which computes a matrix of the given shape. `kernels` lists one
    /// kernel per variant.
    pub(crate) fn launch<A: Pod>(
        self,
        op: &'static str,
        kernels: &[&'static str],
        shape: [usize; 2],
        args: A,
    ) -> Result<Launch> {
        self.launch_blocks(op, kernels[self.variant], self.count(shape), args)
    }

    /// Returns the launch of a kernel that computes four matrix products with results of the given shape, one per gate.
    pub(crate) fn launch_per_gate<A: Pod>(
        self,
        op: &'static str,
        kernel: &'static str,
        shape: [usize; 2],
        args: A,
    ) -> Result<Launch> {
        self.launch_blocks(op, kernel, 4 * self.count(shape), args)
    }

    fn launch_blocks<A: Pod>(self, op: &'static str, kernel: &'static str, blocks: usize, args: A) -> Result<Launch> {
        let launch = Launch::new(op, kernel, blocks, self.threads, args)?;
        Ok(Launch { shared_bytes: (4 * self.shared_floats) as u32, ..launch })
    }
}

/// Whether a product, given by its rows, columns and depth, runs on tensor cores: TF32 is allowed, and the product is
/// at least as large as one instruction.
pub(super) fn uses_tensor_cores(driver: &impl Driver, product_shape: [usize; 3]) -> bool {
    driver.allows_tf32() && product_shape.iter().zip(TENSOR_CORE_INSTRUCTION_SHAPE).all(|(&size, least)| size >= least)
}

/// The tile for a product of some rows, columns and depth: the narrow tensor core tile if the product runs on tensor
/// cores; the medium tile if it [occupies the device](Tile::occupies_device); else the small tile.
pub(crate) fn step_tile(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> Tile {
    if uses_tensor_cores(driver, [rows, cols, depth]) {
        TF32_NARROW
    } else if MEDIUM.occupies_device(driver, [rows, cols], 1) {
        MEDIUM
    } else {
        SMALL
    }
}

/// The tiles for the recurrent product of a backward step, which is a sum of one product per gate. If medium tiles
/// occupy the device only when each block computes the product of a single gate, two kernels are used: the first tile
/// is for the kernel that computes the products of the gates, the second for the kernel that adds them. Otherwise the
/// first is `None`, and one kernel computes the whole sum in the second tile.
pub(crate) fn backward_tiles(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> (Option<Tile>, Tile) {
    let tile = step_tile(driver, [rows, cols, depth]);
    let splits_gates = tile == SMALL && MEDIUM.occupies_device(driver, [rows, cols], 4);
    if splits_gates { (Some(MEDIUM), GATE_SUM) } else { (None, tile) }
}
