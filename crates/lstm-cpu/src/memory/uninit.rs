//! Memory for outputs, allocated without filling it first.

use std::ptr;

use lstm_core::{Error, Result, shape::checked_len};

use crate::pool::ThreadPool;

/// Uninitialized memory for an output that a pass writes completely, so filling it with zeros first would waste
/// time.
pub(crate) struct UninitBuffer {
    values: Vec<f32>,
    len: usize,
}

impl UninitBuffer {
    /// Memory for as many floats as the product of `sizes`, from the free list of `pool` or newly allocated. All floats
    /// are zero if `zeroed`. An error names `op`.
    pub(crate) fn new(op: &'static str, pool: &ThreadPool, sizes: &[usize], zeroed: bool) -> Result<Self> {
        let len = checked_len(op, sizes)?;
        let mut values = pool.free_tensors.take_exact(len).unwrap_or_default();
        values.clear();
        values.try_reserve_exact(len).map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
        if zeroed {
            values.resize(len, 0.0);
        }
        Ok(UninitBuffer { values, len })
    }

    /// A pointer through which the caller writes the floats.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut [f32] {
        ptr::slice_from_raw_parts_mut(self.values.as_mut_ptr(), self.len)
    }

    /// Returns the floats that the caller has written.
    ///
    /// # Safety
    /// All floats have been written, or the buffer was created with `zeroed`.
    pub(crate) unsafe fn assume_init(mut self) -> Vec<f32> {
        // SAFETY: the capacity is at least `len`; that the floats are initialized is guaranteed by the caller.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}
