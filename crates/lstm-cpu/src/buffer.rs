//! Float buffers that start on a cache line, so that no vector of a packed panel straddles two.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use lstm_core::{Error, Result, shape::checked_len};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// `len` floats, zero at first, 64-byte aligned.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// As many zeros as the product of `sizes`, or the error that says what they were for.
    pub(crate) fn zeros(op: &'static str, sizes: &[usize]) -> Result<Self> {
        let len = checked_len(op, sizes)?;
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16)).map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
        Ok(Buffer { lines, len })
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.as_slice().as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.as_mut_slice().as_mut_ptr()
    }
}

/// Buffers that nobody uses: a training step would otherwise get most of its memory from the operating system anew, page
/// by page, which takes a fifth of its time.
#[derive(Default)]
pub(crate) struct Spares(Mutex<VecDeque<Buffer>>);

/// How many buffers are kept at most, and floats in them: 256 MiB.
const MOST_SPARES: (usize, usize) = (64, 1 << 26);

impl Spares {
    /// A buffer of zeros.
    pub(crate) fn zeros(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        match self.find(op, sizes)? {
            Some(mut buffer) => {
                buffer.as_mut_slice().fill(0.0);
                Ok(buffer)
            }
            None => Buffer::zeros(op, sizes),
        }
    }

    /// A buffer with anything in it.
    pub(crate) fn take(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        self.find(op, sizes)?.map_or_else(|| Buffer::zeros(op, sizes), Ok)
    }

    fn find(&self, op: &'static str, sizes: &[usize]) -> Result<Option<Buffer>> {
        let len = checked_len(op, sizes)?;
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = spares.iter().rposition(|spare| spare.len == len);
        Ok(place.and_then(|place| spares.remove(place)))
    }

    /// Keeps a buffer for later; the oldest ones go where there would be too many.
    pub(crate) fn give(&self, buffer: Buffer) {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spares.push_back(buffer);
        let (count, floats) = MOST_SPARES;
        while spares.len() > count || spares.iter().map(|spare| spare.len).sum::<usize>() > floats {
            spares.pop_front();
        }
    }
}
