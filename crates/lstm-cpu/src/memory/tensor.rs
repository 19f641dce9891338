//! Matrices in host memory.

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lstm_core::{
    MatrixShape, Result,
    arithmetic::{MAGNITUDE_BITS, SNAP_THRESHOLD_BITS},
    shape::memory,
};

use crate::{
    memory::uninit::UninitBuffer,
    pool::{SyncPtr, ThreadPool},
};

/// A row-major matrix. A clone shares the memory, which is copied before one of several owners changes it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: MatrixShape,
    storage: Arc<Storage>,
    /// Whether all values are known to be [snapped](lstm_core::arithmetic::snap): magnitudes below 2^-40 are +0.
    snapped: bool,
}

/// The values of a tensor, and the pool to which their memory returns.
struct Storage {
    values: Vec<f32>,
    /// The pool that receives the memory when the tensor is dropped; `None` if the memory is freed.
    pool: Option<Arc<ThreadPool>>,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.free_tensors.put(std::mem::take(&mut self.values));
        }
    }
}

/// Minimum number of floats for memory to return to the pool. The system's allocator caches smaller allocations itself.
const MIN_POOLED_LEN: usize = 1 << 14;

/// Minimum number of floats for which a copy is divided among several threads. Waking the threads takes some
/// microseconds.
const MIN_PARALLEL_COPY_LEN: usize = 1 << 17;

/// Number of floats that are copied at once. Whether they are snapped is checked directly after, while they are still
/// in the cache.
const COPY_CHUNK_LEN: usize = 1 << 12;

impl Tensor {
    /// A tensor whose memory is freed when it is dropped.
    pub(crate) fn new(shape: MatrixShape, values: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        Tensor { shape, storage: Arc::new(Storage { values, pool: None }), snapped: false }
    }

    /// A tensor whose memory returns to `pool` when it is dropped, unless it is small.
    pub(crate) fn from_pool(shape: MatrixShape, values: Vec<f32>, pool: &Arc<ThreadPool>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        let pool = (values.len() >= MIN_POOLED_LEN).then(|| pool.clone());
        Tensor { shape, storage: Arc::new(Storage { values, pool }), snapped: false }
    }

    /// Copies `data` and detects whether it is snapped. `data` must have as many elements as `shape`. An error names
    /// `op`.
    pub(crate) fn copy_from(
        op: &'static str,
        pool: &Arc<ThreadPool>,
        shape: MatrixShape,
        data: &[f32],
    ) -> Result<Self> {
        assert_eq!(shape.len(), data.len());
        let mut buffer = UninitBuffer::new(op, pool, &[shape.rows, shape.cols], false)?;
        let to = SyncPtr(buffer.as_mut_ptr().cast::<f32>());
        let snapped = AtomicBool::new(true);
        let threads = if data.len() < MIN_PARALLEL_COPY_LEN { 1 } else { pool.threads() };
        pool.run(threads, &|member| {
            let range = member.partition(data.len());
            for (n, chunk) in data[range.clone()].chunks(COPY_CHUNK_LEN).enumerate() {
                let offset = range.start + n * COPY_CHUNK_LEN;
                // SAFETY: the threads' parts are disjoint, and the buffer is as long as `data`.
                unsafe { ptr::copy_nonoverlapping(chunk.as_ptr(), to.get().add(offset), chunk.len()) };
                if !is_snapped(chunk) {
                    snapped.store(false, Ordering::Relaxed);
                }
            }
        });
        // SAFETY: together, the threads' parts cover the whole buffer.
        let values = unsafe { buffer.assume_init() };
        Ok(Tensor::from_pool(shape, values, pool).assume_snapped(snapped.into_inner()))
    }

    /// Sets whether all values are known to be snapped. The caller guarantees that `snapped` is correct.
    pub(crate) fn assume_snapped(self, snapped: bool) -> Self {
        Tensor { snapped, ..self }
    }

    /// Whether all values are snapped. Checks the values if this is not known.
    pub(crate) fn is_snapped(&self) -> bool {
        self.snapped || is_snapped(self.as_slice())
    }

    /// Shape of the matrix.
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// The elements in row-major order.
    pub fn as_slice(&self) -> &[f32] {
        &self.storage.values
    }

    /// The elements, to be changed in place. Copies them first if they are shared. An error names `op`.
    pub(crate) fn as_mut_slice(&mut self, op: &'static str) -> Result<&mut [f32]> {
        if Arc::get_mut(&mut self.storage).is_none() {
            let values = memory::copy(op, self.as_slice())?;
            self.storage = Arc::new(Storage { values, pool: self.storage.pool.clone() });
        }
        self.snapped = false;
        let storage = Arc::get_mut(&mut self.storage).expect("the tensor is the only owner");
        Ok(&mut storage.values)
    }

    /// The elements. Copies them if they are shared.
    pub(crate) fn into_vec(self) -> Result<Vec<f32>> {
        match Arc::try_unwrap(self.storage) {
            Ok(mut storage) => {
                storage.pool = None;
                Ok(std::mem::take(&mut storage.values))
            }
            Err(shared) => memory::copy("download", &shared.values),
        }
    }

    /// The elements of a range of rows.
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.as_slice()[rows.start * self.shape.cols..rows.end * self.shape.cols]
    }
}

/// Whether all values are snapped: `snap` would change none of them.
pub(crate) fn is_snapped(x: &[f32]) -> bool {
    !x.iter().fold(false, |small, v| small | (v.to_bits() & MAGNITUDE_BITS < SNAP_THRESHOLD_BITS && v.to_bits() != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Ops};

    #[test]
    fn upload_detects_unsnapped_values_on_every_thread() {
        let len = MIN_PARALLEL_COPY_LEN + 5;
        for threads in 1..=3 {
            let cpu = Cpu::builder().threads(threads).always_all_threads().build().unwrap();
            for (index, value, snapped) in
                [(0, 0.0, true), (0, 1e-20, false), (len / 2, f32::NAN, true), (len - 1, -0.0, false)]
            {
                let mut data: Vec<f32> = (0..len).map(|k| (k % 1000) as f32).collect();
                data[index] = value;
                let x = cpu.upload(MatrixShape::new(1, len), &data).unwrap();
                assert!(x.as_slice().iter().zip(&data).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads");
                assert_eq!((x.snapped, is_snapped(&data)), (snapped, snapped), "{threads} threads, {value} at {index}");
            }
        }
    }

    #[test]
    fn in_place_changes_clear_the_snapped_flag() {
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
