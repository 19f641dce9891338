//! Matrices in memory.

use std::sync::Arc;

use lstm_core::{
    Result, Shape,
    shape::{checked_len, zeros},
};

use crate::pool::Pool;

/// A row-major matrix. Cloning shares the memory; who changes it in place copies it first if it is shared.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: Shape,
    data: Arc<Memory>,
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

/// As many floats as the product of `sizes`, used before or zeros; all of them zeros if `blank`.
pub(crate) fn floats(op: &'static str, pool: &Pool, sizes: &[usize], blank: bool) -> Result<Vec<f32>> {
    match pool.tensors.find(checked_len(op, sizes)?) {
        Some(mut values) => {
            if blank {
                values.fill(0.0);
            }
            Ok(values)
        }
        None => zeros(op, sizes),
    }
}

impl Tensor {
    pub(crate) fn new(shape: Shape, values: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        Tensor { shape, data: Arc::new(Memory { values, home: None }) }
    }

    /// One that gives its memory back to `pool`, if it is large.
    pub(crate) fn lent(shape: Shape, values: Vec<f32>, pool: &Arc<Pool>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        let home = (values.len() >= LARGE).then(|| pool.clone());
        Tensor { shape, data: Arc::new(Memory { values, home }) }
    }

    /// The elements, row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data.values
    }

    /// The elements, to be changed in place; a copy of them where they are shared.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
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
