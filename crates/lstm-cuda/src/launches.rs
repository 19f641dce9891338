//! Launches of the kernels that several parts use: products, copies, sums.

use lstm_core::{Error, Result, arithmetic::BLOCK};

use crate::{
    args::{Address, CopyArgs, GemmArgs, MapArgs, SumArgs},
    driver::{Driver, Launch, size},
};

/// What `map` does.
#[derive(Clone, Copy)]
pub(crate) enum Map {
    Snap = 0,
    Sigmoid = 1,
    Tanh = 2,
    Clip = 3,
    /// Fills with the sentinel of data that carry their own validity.
    Sentinel = 4,
}

/// `op` of `len` values, to the same place or another.
pub(crate) fn map(op: &'static str, map: Map, x: Address, out: Address, len: usize, bound: f32) -> Result<Launch> {
    Launch::over(op, "map", len, MapArgs { x, out, len: len as u64, op: map as u32, bound })
}

/// Rows from one place to another; distances between rows are given.
pub(crate) fn copy(
    op: &'static str,
    (from, from_stride): (Address, usize),
    (to, to_stride): (Address, usize),
    [rows, cols]: [usize; 2],
    snapped: bool,
) -> Result<Launch> {
    let args = CopyArgs {
        from,
        to,
        rows: rows as u64,
        cols: size(op, cols)?,
        from_stride: size(op, from_stride)?,
        to_stride: size(op, to_stride)?,
        snapped: snapped.into(),
    };
    Launch::over(op, "copy", rows * cols, args)
}

/// The part of an address space that starts `at` values later.
pub(crate) fn at(address: Address, at: usize) -> Address {
    address + 4 * at as Address
}

/// An operand of a product: the left one's lines are its rows, the right one's its columns.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) address: Address,
    /// Between lines.
    pub(crate) line: usize,
    /// Between elements of a line.
    pub(crate) step: usize,
    /// Between parts.
    pub(crate) part: isize,
    /// Whether its elements count as snapped.
    pub(crate) snapped: bool,
}

impl Operand {
    /// Lines that lie one after another.
    pub(crate) fn lines(address: Address, len: usize) -> Self {
        Operand { address, line: len, step: 1, part: 0, snapped: false }
    }

    /// Lines that lie side by side.
    pub(crate) fn beside(address: Address, lines: usize) -> Self {
        Operand { address, line: 1, step: lines, part: 0, snapped: false }
    }
}

/// The part of a result that a block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tile {
    /// Its kernel's place among those for all tiles, in the order below.
    kernel: usize,
    threads: u32,
    rows: usize,
    cols: usize,
    /// Values of both operands' parts that are in shared memory, with what lies between lines.
    shared: usize,
}

const SMALL: Tile = Tile::exact(0, 64, 16, 64);
const MEDIUM: Tile = Tile::exact(1, 256, 64, 32);
/// Of steps' kernels, the ones that join what another computed.
const JOINED: Tile = Tile { kernel: 3, threads: 256, rows: 8, cols: 32, shared: 0 };
const NARROW: Tile = Tile::fast(2, 64, 32, 64);
const LARGE: Tile = Tile::exact(3, 256, 128, 16);
const WIDE: Tile = Tile::fast(4, 128, 128, 32);

/// What one instruction of tensor cores takes: rows, columns, depth.
const INSTRUCTION: [usize; 3] = [16, 8, 8];

impl Tile {
    /// A block takes `depth` of it at a time, and has the next part beside the one that it sums.
    const fn exact(kernel: usize, threads: u32, side: usize, depth: usize) -> Self {
        Tile { kernel, threads, rows: side, cols: side, shared: 2 * depth * 2 * (side + 4) }
    }

    /// On tensor cores; a block takes `depth` of it at a time.
    const fn fast(kernel: usize, rows: usize, cols: usize, depth: usize) -> Self {
        Tile { kernel, threads: 256, rows, cols, shared: (rows + cols) * (depth + 8) }
    }

    fn count(self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }

    /// Whether some results of a shape have tiles for two fifths of the device, and fill at least half of them.
    fn is_for(self, driver: &impl Driver, shape: [usize; 2], results: usize) -> bool {
        results * self.count(shape) * 5 >= driver.multiprocessors() * 2 && self.is_half_full(shape)
    }

    /// Whether a result has tiles for all of the device, and fills at least half of them.
    fn is_busy(self, driver: &impl Driver, shape: [usize; 2]) -> bool {
        self.count(shape) >= driver.multiprocessors() && self.is_half_full(shape)
    }

    fn is_half_full(self, shape: [usize; 2]) -> bool {
        self.count(shape) * self.rows * self.cols <= 2 * shape[0] * shape[1]
    }

    /// Starts enough blocks of the tile's kernel for a result of some rows and columns.
    pub(crate) fn launch<A: bytemuck::Pod>(
        self,
        op: &'static str,
        kernels: &[&'static str],
        shape: [usize; 2],
        args: A,
    ) -> Result<Launch> {
        self.start(op, kernels[self.kernel], self.count(shape), args)
    }

    /// Starts a kernel that makes four products of the same shape.
    pub(crate) fn launch_four<A: bytemuck::Pod>(
        self,
        op: &'static str,
        kernel: &'static str,
        shape: [usize; 2],
        args: A,
    ) -> Result<Launch> {
        self.start(op, kernel, 4 * self.count(shape), args)
    }

    fn start<A: bytemuck::Pod>(self, op: &'static str, kernel: &'static str, blocks: usize, args: A) -> Result<Launch> {
        let launch = Launch::new(op, kernel, blocks, self.threads, args)?;
        Ok(Launch { shared: (4 * self.shared) as u32, ..launch })
    }
}

/// In the fast mode, whether a product goes to tensor cores: it does unless even one instruction would be mostly empty.
fn on_tensor_cores(driver: &impl Driver, product: [usize; 3]) -> bool {
    driver.fast() && product.iter().zip(INSTRUCTION).all(|(&size, least)| size >= least)
}

/// For a result of some rows and columns that sums over a depth: medium tiles where there are enough of them to keep the
/// device busy and no more than half of what they sum lies outside, else small ones; or in the fast mode those of tensor
/// cores.
pub(crate) fn step_tile(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> Tile {
    if on_tensor_cores(driver, [rows, cols, depth]) {
        NARROW
    } else if MEDIUM.is_for(driver, [rows, cols], 1) {
        MEDIUM
    } else {
        SMALL
    }
}

/// For a step back, whose sum has a part for each of the four gates. Where too few tiles for the device would sum them all
/// but four times as many would not be, each part is a tile's own: that of the first kernel, with what the second one joins.
pub(crate) fn back_tiles(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> (Option<Tile>, Tile) {
    let tile = step_tile(driver, [rows, cols, depth]);
    let shape = [rows, cols];
    let apart = tile == SMALL && MEDIUM.is_for(driver, shape, 4);
    if apart { (Some(MEDIUM), JOINED) } else { (None, tile) }
}

/// A distance as kernels take it.
pub(crate) fn signed(op: &'static str, n: isize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::TooLarge { op, sizes: vec![n.unsigned_abs()] })
}

/// Whether products of several parts are better made one after another. Large tiles have no registers for a part's sums
/// beside those of all; with a long depth, reading and writing the result each time costs less than smaller tiles do.
pub(crate) fn parts_in_turns(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> bool {
    depth >= 8 * BLOCK && LARGE.is_busy(driver, [rows, cols]) && !on_tensor_cores(driver, [rows, cols, depth])
}

/// `acc + a . b` of `[rows, cols]` over `depth`, for each part of the operands, one after another; `acc` with the distance
/// of its rows.
pub(crate) fn gemm(
    driver: &impl Driver,
    op: &'static str,
    [rows, cols, depth]: [usize; 3],
    parts: usize,
    (a, b): (Operand, Operand),
    acc: Option<(Address, usize)>,
    out: Address,
) -> Result<Launch> {
    let (acc, acc_row) = acc.unwrap_or((0, 0));
    let args = GemmArgs {
        a: a.address,
        b: b.address,
        acc,
        out,
        rows: size(op, rows)?,
        cols: size(op, cols)?,
        depth: size(op, depth)?,
        parts: size(op, parts)?,
        a_row: size(op, a.line)?,
        a_depth: size(op, a.step)?,
        a_part: signed(op, a.part)?,
        b_col: size(op, b.line)?,
        b_depth: size(op, b.step)?,
        b_part: signed(op, b.part)?,
        acc_row: size(op, acc_row)?,
        snapped: u32::from(a.snapped) | u32::from(b.snapped) << 1,
    };
    let shape = [rows, cols];
    let tile = match on_tensor_cores(driver, [rows, cols, depth]) {
        true if WIDE.is_busy(driver, shape) => WIDE,
        false if LARGE.is_busy(driver, shape) && parts == 1 => LARGE,
        _ => step_tile(driver, [rows, cols, depth]),
    };
    let kernels = ["gemm_small", "gemm_medium", "fast_gemm_narrow", "gemm_large", "fast_gemm_wide"];
    tile.launch(op, &kernels, shape, args)
}

/// The columns' sums of `[rows, cols]`, rows `stride` apart, as a product with ones, onto `acc`.
pub(crate) fn sum(
    op: &'static str,
    (d, stride): (Address, usize),
    [rows, cols]: [usize; 2],
    acc: Option<Address>,
    out: Address,
) -> Result<SumArgs> {
    Ok(SumArgs {
        d,
        by: 0,
        acc: acc.unwrap_or(0),
        out,
        active: 0,
        rows: size(op, rows)?,
        cols: size(op, cols)?,
        d_stride: size(op, stride)?,
        batch: 1,
        parts: 1,
        part: 0,
    })
}

/// Starts the kernel of [`sum`]: a warp for each block of the rows, up to eight at a time.
pub(crate) fn sum_launch(op: &'static str, args: SumArgs) -> Result<Launch> {
    let threads = 32 * (args.rows as usize).div_ceil(BLOCK).clamp(1, 8) as u32;
    let launch = Launch::new(op, "sum", (args.cols as usize).div_ceil(32), threads, args)?;
    Ok(Launch { shared: 4 * threads, ..launch })
}
