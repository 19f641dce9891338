//! Matrices in memory.

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lstm_core::{
    Error, MatrixShape, Result,
    arithmetic::{MAGNITUDE_BITS, SNAP_BITS},
    shape::checked_len,
};

use crate::{
    pool::{Pool, Shared},
    sequence::share,
};

/// A row-major matrix. Cloning shares the memory; who changes it in place copies it first if it is shared.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: MatrixShape,
    data: Arc<Memory>,
    /// Whether it is known that `snap` would change nothing.
    snapped: bool,
}

/// Floats, and where they go when nobody uses them any more.
#[derive(Clone)]
struct Memory {
    values: Vec<f32>,
    home: Option<Arc<Pool>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.tensors.give(std::mem::take(&mut self.values));
        }
    }
}

/// Floats from which on memory goes back: the allocator keeps less itself.
const LARGE: usize = 1 << 14;

/// Floats from which on several threads copy them: waking the threads takes some microseconds.
const PARALLEL_COPY: usize = 1 << 17;

/// Floats that are copied before they are looked at.
const PIECE: usize = 1 << 12;

/// Memory for floats that are yet to be written. To fill it with zeros before would be one thread's work.
pub(crate) struct Room {
    values: Vec<f32>,
    len: usize,
}

impl Room {
    /// For as many floats as the product of `sizes`, in memory that was used before or not; all zeros if `blank`.
    pub(crate) fn new(op: &'static str, pool: &Pool, sizes: &[usize], blank: bool) -> Result<Self> {
        let len = checked_len(op, sizes)?;
        let mut values = pool.tensors.find(len).unwrap_or_default();
        values.clear();
        values.try_reserve_exact(len).map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
        if blank {
            values.resize(len, 0.0);
        }
        Ok(Room { values, len })
    }

    /// Where they go.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut [f32] {
        ptr::slice_from_raw_parts_mut(self.values.as_mut_ptr(), self.len)
    }

    /// The floats.
    ///
    /// # Safety
    /// All of them were written, or it was blank.
    pub(crate) unsafe fn filled(mut self) -> Vec<f32> {
        // SAFETY: there is memory for so many; the caller's promise.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}

impl Tensor {
    pub(crate) fn new(shape: MatrixShape, values: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        Tensor { shape, data: Arc::new(Memory { values, home: None }), snapped: false }
    }

    /// One that gives its memory back to `pool`, if it is large.
    pub(crate) fn lent(shape: MatrixShape, values: Vec<f32>, pool: &Arc<Pool>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        let home = (values.len() >= LARGE).then(|| pool.clone());
        Tensor { shape, data: Arc::new(Memory { values, home }), snapped: false }
    }

    /// A copy of `data`, which has as many elements as the shape.
    pub(crate) fn copy(op: &'static str, pool: &Arc<Pool>, shape: MatrixShape, data: &[f32]) -> Result<Self> {
        assert_eq!(shape.len(), data.len());
        let mut room = Room::new(op, pool, &[shape.rows, shape.cols], false)?;
        let to = Shared(room.as_mut_ptr().cast::<f32>());
        let snapped = AtomicBool::new(true);
        let threads = if data.len() < PARALLEL_COPY { 1 } else { pool.threads() };
        pool.run(threads, &|member| {
            let part = share(data.len(), member);
            for (n, piece) in data[part.clone()].chunks(PIECE).enumerate() {
                // SAFETY: members' parts are apart from one another; there is room for all of `data`.
                unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), to.get().add(part.start + n * PIECE), piece.len()) };
                // Looked at while it is in the cache.
                if !is_snapped(piece) {
                    snapped.store(false, Ordering::Relaxed);
                }
            }
        });
        // SAFETY: the members' parts are the whole.
        let values = unsafe { room.filled() };
        Ok(Tensor::lent(shape, values, pool).known(snapped.into_inner()))
    }

    /// The same, if `snapped` known to be of values that `snap` does not change.
    pub(crate) fn known(self, snapped: bool) -> Self {
        Tensor { snapped, ..self }
    }

    /// Whether `snap` would change nothing.
    pub(crate) fn is_snapped(&self) -> bool {
        self.snapped || is_snapped(self.as_slice())
    }

    /// The elements, row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data.values
    }

    /// The elements, to be changed in place; a copy of them where they are shared.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        self.snapped = false;
        &mut Arc::make_mut(&mut self.data).values
    }

    /// The elements; a copy of them where they are shared.
    pub(crate) fn into_vec(self) -> Vec<f32> {
        match Arc::try_unwrap(self.data) {
            Ok(mut memory) => {
                memory.home = None;
                std::mem::take(&mut memory.values)
            }
            Err(shared) => shared.values.clone(),
        }
    }

    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.as_slice()[rows.start * self.shape.cols..rows.end * self.shape.cols]
    }
}

/// Whether `snap` would change nothing.
pub(crate) fn is_snapped(x: &[f32]) -> bool {
    !x.iter().fold(false, |small, v| small | (v.to_bits() & MAGNITUDE_BITS < SNAP_BITS && v.to_bits() != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Ops};

    #[test]
    fn whoever_copies_a_part_sees_what_snap_would_change() {
        let len = PARALLEL_COPY + 5;
        for threads in 1..=3 {
            let cpu = Cpu::builder().threads(threads).build().unwrap();
            for (at, value, snapped) in
                [(0, 0.0, true), (0, 1e-20, false), (len / 2, f32::NAN, true), (len - 1, -0.0, false)]
            {
                let mut data: Vec<f32> = (0..len).map(|k| (k % 1000) as f32).collect();
                data[at] = value;
                let x = cpu.upload(MatrixShape::new(1, len), &data).unwrap();
                assert!(x.as_slice().iter().zip(&data).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads");
                assert_eq!((x.snapped, is_snapped(&data)), (snapped, snapped), "{threads} threads, {value} at {at}");
            }
        }
    }

    #[test]
    fn what_was_changed_is_not_known_to_be_snapped() {
        let cpu = Cpu::builder().threads(1).build().unwrap();
        let x = cpu.snap(cpu.upload(MatrixShape::new(1, 3), &[1e-20, 2.0, -0.0]).unwrap()).unwrap();
        assert!(x.snapped && x.is_snapped() && x.as_slice() == [0.0, 2.0, 0.0]);
        for changed in [cpu.tanh(x.clone()), cpu.clip(x.clone(), 1e-20), cpu.sigmoid(x.clone())] {
            assert!(!changed.unwrap().snapped);
        }
        assert!(!cpu.clip(x.clone(), 1e-20).unwrap().is_snapped());
        assert!(x.snapped && x.as_slice() == [0.0, 2.0, 0.0]);
    }
}
