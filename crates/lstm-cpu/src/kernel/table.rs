//! The table of kernels of one instruction set, and the macros that build it.

use crate::kernel::{
    cell::CellArgs, cell_backward::CellBackwardArgs, elementwise::ColumnSumArgs, single_row::SingleRowKernel,
    tile::TileKernel,
};

/// Number of vectors in a panel row. In gate weights, each of the four vectors belongs to one gate. The recurrent
/// weights of the dense peephole cell are an exception; see `PackedLayer`.
pub(crate) const PANEL_VECTORS: usize = 4;
/// Number of floats in a panel row of the widest vectors.
pub(crate) const MAX_PANEL_WIDTH: usize = PANEL_VECTORS * 16;

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// Number of floats in a vector.
    pub(crate) lanes: usize,
    /// The kernels that multiply rows by a panel. `tile_kernels[r - 1]` multiplies `r` rows.
    pub(crate) tile_kernels: &'static [TileKernel],
    /// Computes the gates and the new state from the matrix products `W x` and `U h`.
    pub(crate) cell_forward: unsafe fn(&CellArgs),
    /// The kernels that compute a whole time step of one row. `single_row_kernels[p - 1]` computes `p` panels. The
    /// largest `p` is the number of panels whose sums fit in registers.
    pub(crate) single_row_kernels: &'static [SingleRowKernel],
    /// Computes the gradients of the gates and of the cell state in one time step.
    pub(crate) cell_backward: unsafe fn(&CellBackwardArgs),
    /// Computes the sums of `LANES` columns of a matrix.
    pub(crate) column_sums: unsafe fn(&ColumnSumArgs),
    /// Prefetches one vector of each of `rows` rows that are `stride` floats apart. The addresses need not be valid.
    pub(crate) prefetch_rows: unsafe fn(*const f32, rows: usize, stride: usize),
    /// Computes the dot product of `n` values, which are [snapped](lstm_core::arithmetic::snap) first (magnitudes below
    /// 2^-40 become +0), and `n` weights.
    pub(crate) dot_snapped: unsafe fn(x: *const f32, w: *const f32, n: usize) -> f32,
    /// Computes `snap` of `n` values in place.
    pub(crate) snap: unsafe fn(*mut f32, n: usize),
    /// Computes `sigmoid` of `n` values in place.
    pub(crate) sigmoid: unsafe fn(*mut f32, n: usize),
    /// Computes `tanh` of `n` values in place.
    pub(crate) tanh: unsafe fn(*mut f32, n: usize),
    /// Computes `clip` of `n` values in place.
    pub(crate) clip: unsafe fn(*mut f32, n: usize, bound: f32),
    /// Computes `out = fma(alpha * a, b, c)` of `n` elements. `b` or `c` may be null, as in `Ops::mul_add`.
    pub(crate) mul_add: unsafe fn(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, n: usize),
}

impl Kernels {
    /// Number of floats in a panel row.
    pub(crate) fn panel_width(&self) -> usize {
        PANEL_VECTORS * self.lanes
    }
}

/// Compiles all kernels for one vector type and its target features, and puts them into a static `KERNELS`.
/// `tiles: rows x blocks, ...` lists the tile kernels for 1, 2, 3, ... rows, each with the number of blocks that it
/// sums at once. `single_row: panels, ...` lists the single-row kernels for 1, 2, 3, ... panels.
macro_rules! define_kernels {
    (
        $simd:ty $(, $features:literal)?;
        tiles: $($rows:literal x $blocks:literal),+;
        single_row: $($panels:literal),*
    ) => {
        // SAFETY of the functions below: the processor must support the target features, and the arguments must satisfy
        // the generic kernel of the same name.
        $(#[target_feature(enable = $features)])?
        unsafe fn cell_forward(args: &$crate::kernel::cell::CellArgs) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::cell::cell_forward::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn cell_backward(args: &$crate::kernel::cell_backward::CellBackwardArgs) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::cell_backward::cell_backward::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn column_sums(args: &$crate::kernel::elementwise::ColumnSumArgs) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::column_sums::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn prefetch_rows(p: *const f32, rows: usize, stride: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::prefetch_rows::<$simd>(p, rows, stride) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn dot_snapped(x: *const f32, w: *const f32, n: usize) -> f32 {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::dot::dot_snapped(x, w, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn snap(p: *mut f32, n: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::map_snap::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn sigmoid(p: *mut f32, n: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::map_sigmoid::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn tanh(p: *mut f32, n: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::map_tanh::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn clip(p: *mut f32, n: usize, bound: f32) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::map_clip::<$simd>(p, n, bound) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn mul_add(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, n: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::elementwise::mul_add::<$simd>(alpha, a, b, c, out, n) }
        }
        pub(crate) static KERNELS: $crate::kernel::table::Kernels = $crate::kernel::table::Kernels {
            lanes: <$simd as $crate::kernel::simd::Simd>::LANES,
            tile_kernels: $crate::kernel::table::kernel_table!(
                tile($crate::kernel::tile::TileArgs), $simd $(, $features)?; $([$rows, $blocks]),+
            ),
            single_row_kernels: $crate::kernel::table::kernel_table!(
                single_row($crate::kernel::single_row::SingleRowArgs), $simd $(, $features)?; $([$panels]),*
            ),
            cell_forward,
            cell_backward,
            column_sums,
            prefetch_rows,
            dot_snapped,
            snap,
            sigmoid,
            tanh,
            clip,
            mul_add,
        };
    };
}
pub(crate) use define_kernels;

/// Builds an array of kernels for [`define_kernels!`]: it instantiates a generic kernel once for each list of
/// constants.
macro_rules! kernel_table {
    ($kernel:ident($args:ty), $simd:ty; $([$($n:literal),+]),*) => {
        &[$({
            /// Calls the generic kernel with the generic constants of this entry of the table.
            ///
            /// # Safety
            /// As for the generic kernel.
            unsafe fn kernel(args: &$args) {
                // SAFETY: guaranteed by the caller.
                unsafe { $crate::kernel::$kernel::<$simd, $($n),+>(args) }
            }
            kernel
        }),*]
    };
    ($kernel:ident($args:ty), $simd:ty, $features:literal; $([$($n:literal),+]),*) => {
        &[$({
            /// Calls the generic kernel with the generic constants of this entry of the table.
            ///
            /// # Safety
            /// The processor supports the target features; otherwise as for the generic kernel.
            #[target_feature(enable = $features)]
            unsafe fn kernel(args: &$args) {
                // SAFETY: guaranteed by the caller.
                unsafe { $crate::kernel::$kernel::<$simd, $($n),+>(args) }
            }
            kernel
        }),*]
    };
}
pub(crate) use kernel_table;
