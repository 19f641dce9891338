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

impl AsRef<[f32]> for Buffer {
    fn as_ref(&self) -> &[f32] {
        self.as_slice()
    }
}

/// Memory that nobody uses, of at most so many floats. Large pieces would otherwise come from the operating system anew each
/// time, page by page: a fifth of a training step, a tenth of a forward pass.
pub(crate) struct Spares<T> {
    kept: Mutex<VecDeque<T>>,
    floats: usize,
}

/// How many pieces are kept at most.
const MOST_SPARES: usize = 64;

impl<T: AsRef<[f32]>> Spares<T> {
    pub(crate) fn new(floats: usize) -> Self {
        Spares { kept: Mutex::default(), floats }
    }

    /// One of just this length.
    pub(crate) fn find(&self, len: usize) -> Option<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().rposition(|spare| spare.as_ref().len() == len)?;
        kept.remove(place)
    }

    /// Keeps a piece for later; the oldest ones go where there would be too many. One that is too large is not kept.
    pub(crate) fn give(&self, spare: T) {
        if spare.as_ref().len() > self.floats {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(spare);
        let floats = |kept: &VecDeque<T>| kept.iter().map(|spare| spare.as_ref().len()).sum::<usize>();
        while kept.len() > MOST_SPARES || floats(&kept) > self.floats {
            kept.pop_front();
        }
    }
}

impl Spares<Buffer> {
    /// A buffer of zeros.
    pub(crate) fn zeros(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        match self.find(checked_len(op, sizes)?) {
            Some(mut buffer) => {
                buffer.as_mut_slice().fill(0.0);
                Ok(buffer)
            }
            None => Buffer::zeros(op, sizes),
        }
    }

    /// A buffer with anything in it.
    pub(crate) fn take(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        self.find(checked_len(op, sizes)?).map_or_else(|| Buffer::zeros(op, sizes), Ok)
    }
}
