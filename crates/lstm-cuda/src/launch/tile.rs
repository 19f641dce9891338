//! The tiles in which kernels compute products, and their selection by the size of the problem and of the device.

use bytemuck::Pod;
use lstm_core::Result;

use crate::driver::{Driver, Launch};

/// A kernel variant's tile: the part of a result that one block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tile {
    /// Index of the kernel in an operation's list of kernels, which use different tiles: 0 for small tiles, 1 for
    /// medium tiles, 2 for narrow tiles on tensor cores. In the lists for the steps of a layer, 3 is the kernel that
    /// adds the products of the four gates. In the list for [`gemm`](super::gemm), 3 is for large tiles and 4 for wide
    /// tiles on tensor cores.
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
/// Tile of the kernels that add the matrix products of the four gates, after another kernel has computed the products.
const GATE_SUM_TILE: Tile = Tile { variant: 3, threads: 256, rows: 8, cols: 32, shared_floats: 0 };
const TF32_NARROW: Tile = Tile::tf32(2, 64, 32, 64);
pub(super) const LARGE: Tile = Tile::exact(3, 256, 128, 16);
pub(super) const TF32_WIDE: Tile = Tile::tf32(4, 128, 128, 32);

/// The rows, columns and depth of one tensor core instruction.
const TENSOR_CORE_INSTRUCTION_SHAPE: [usize; 3] = [16, 8, 8];

impl Tile {
    /// Returns a square tile that is computed exactly, by fused multiply-adds, with a double buffer for `depth`
    /// elements of the inner dimension.
    const fn exact(variant: usize, threads: u32, side: usize, depth: usize) -> Self {
        Tile { variant, threads, rows: side, cols: side, shared_floats: 2 * depth * 2 * (side + 4) }
    }

    /// Returns a tile that is computed on tensor cores, with a buffer for `depth` elements of the inner dimension.
    const fn tf32(variant: usize, rows: usize, cols: usize, depth: usize) -> Self {
        Tile { variant, threads: 256, rows, cols, shared_floats: (rows + cols) * (depth + 8) }
    }

    /// Number of tiles that cover a result with the given numbers of rows and columns.
    fn count(self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }

    /// Whether `matrices` matrices of the given shape have tiles for at least two fifths of the multiprocessors, and on
    /// average at least half of a tile lies inside its matrix.
    fn uses_two_fifths_of_device(self, driver: &impl Driver, shape: [usize; 2], matrices: usize) -> bool {
        matrices * self.count(shape) * 5 >= driver.multiprocessors() * 2 && self.is_at_least_half_used(shape)
    }

    /// Whether a matrix of the given shape has at least one tile per multiprocessor, and on average at least half of a
    /// tile lies inside the matrix.
    pub(super) fn uses_whole_device(self, driver: &impl Driver, shape: [usize; 2]) -> bool {
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

/// Whether a matrix product with the given numbers of rows, columns and inner elements runs on tensor cores: TF32 is
/// allowed, and no number is less than that of one tensor core instruction.
pub(super) fn uses_tensor_cores(driver: &impl Driver, product_shape: [usize; 3]) -> bool {
    driver.allows_tf32() && product_shape.iter().zip(TENSOR_CORE_INSTRUCTION_SHAPE).all(|(&size, least)| size >= least)
}

/// Returns the tile for a matrix product of `rows` rows, `cols` columns and inner dimension `depth`: the narrow tensor
/// core tile if the product runs on tensor cores; the medium tile if there are [enough such tiles for the
/// device](Tile::uses_two_fifths_of_device); else the small tile.
pub(crate) fn step_tile(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> Tile {
    if uses_tensor_cores(driver, [rows, cols, depth]) {
        TF32_NARROW
    } else if MEDIUM.uses_two_fifths_of_device(driver, [rows, cols], 1) {
        MEDIUM
    } else {
        SMALL
    }
}

/// Returns the tiles for the recurrent term of a backward step, which is the sum of four matrix products, one per gate,
/// each with `rows` rows, `cols` columns and inner dimension `depth`. Usually one kernel computes the sum: the first
/// tile is `None`, and the second is this kernel's. If a single product has too few medium tiles for the device but
/// four products have enough, two kernels are used: one with the first tile computes the four products, and one with
/// the second tile adds them.
pub(crate) fn backward_tiles(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> (Option<Tile>, Tile) {
    let tile = step_tile(driver, [rows, cols, depth]);
    let uses_two_kernels = tile == SMALL && MEDIUM.uses_two_fifths_of_device(driver, [rows, cols], 4);
    if uses_two_kernels { (Some(MEDIUM), GATE_SUM_TILE) } else { (None, tile) }
}
