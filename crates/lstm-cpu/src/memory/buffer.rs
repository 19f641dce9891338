//! Float buffers that start at a cache line, so that no vector of a packed panel spans two cache lines.

use lstm_core::{Error, Result, shape::checked_len};

/// Number of floats in a cache line.
pub(crate) const CACHE_LINE_FLOATS: usize = 16;

/// One cache line of floats.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct CacheLine([f32; CACHE_LINE_FLOATS]);

/// A buffer of `len` floats, aligned to 64 bytes.
#[derive(Default)]
pub(crate) struct Buffer {
    cache_lines: Vec<CacheLine>,
    len: usize,
}

impl Buffer {
    /// Allocates as many zeros as the product of `sizes`. An error names `op`.
    pub(crate) fn zeros(op: &'static str, sizes: &[usize]) -> Result<Self> {
        let len = checked_len(op, sizes)?;
        let mut cache_lines = Vec::new();
        cache_lines
            .try_reserve_exact(len.div_ceil(CACHE_LINE_FLOATS))
            .map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
        cache_lines.resize(len.div_ceil(CACHE_LINE_FLOATS), CacheLine([0.0; CACHE_LINE_FLOATS]));
        Ok(Buffer { cache_lines, len })
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.cache_lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.cache_lines)[..self.len]
    }

    /// Copies row `from_row` of another buffer to row `row`. Both have rows of `len` floats.
    pub(crate) fn copy_row(&mut self, row: usize, from: &Buffer, from_row: usize, len: usize) {
        self.as_mut_slice()[row * len..][..len].copy_from_slice(&from.as_slice()[from_row * len..][..len]);
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.as_slice().as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.as_mut_slice().as_mut_ptr()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} floats)", self.len)
    }
}

impl AsRef<[f32]> for Buffer {
    fn as_ref(&self) -> &[f32] {
        self.as_slice()
    }
}
