//! A matrix in memory with strides.

use lstm_core::arithmetic::DOT_BLOCK;

/// A matrix in memory whose columns may be split into blocks. One of `row_stride` and `col_stride` is 1. The offset of
/// element (r, c) from `ptr`, in floats, is the sum of `r * row_stride`, `c / DOT_BLOCK * block_stride` and
/// `c % DOT_BLOCK * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct StridedMatrix {
    /// Element (0, 0).
    pub(crate) ptr: *const f32,
    /// Floats between rows.
    pub(crate) row_stride: usize,
    /// Floats between columns of one block.
    pub(crate) col_stride: usize,
    /// Floats between blocks of `DOT_BLOCK` columns.
    pub(crate) block_stride: usize,
}

impl StridedMatrix {
    /// A row-major matrix with rows `row_stride` floats apart.
    pub(crate) fn row_major(ptr: *const f32, row_stride: usize) -> Self {
        StridedMatrix { ptr, row_stride, col_stride: 1, block_stride: DOT_BLOCK }
    }

    /// The transposed view of a row-major matrix.
    pub(crate) fn transposed(self) -> Self {
        debug_assert_eq!(self.block_stride, DOT_BLOCK * self.col_stride);
        StridedMatrix {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            block_stride: DOT_BLOCK * self.row_stride,
            ..self
        }
    }

    /// The submatrix that starts at row `row` and column `block * DOT_BLOCK`.
    ///
    /// # Safety
    /// The first element of the submatrix exists, or its address is one past the end of the allocation.
    #[inline(always)]
    pub(crate) unsafe fn offset(self, row: usize, block: usize) -> Self {
        // SAFETY: guaranteed by the caller.
        StridedMatrix { ptr: unsafe { self.ptr.add(row * self.row_stride + block * self.block_stride) }, ..self }
    }
}
