//! Conversion between four gate matrices and one packed matrix. Elements are copied bit for bit.

use ndarray::{Array2, ArrayView2, Ix2, s};

use crate::{
    error::{Error, Result},
    memory,
};

/// Stacks the matrices of the gates i, f, g, o, each of shape `[hidden, n]`, to one matrix of shape `[4 * hidden, n]`.
///
/// # Errors
/// [`Error::Shape`] if the four shapes differ; [`Error::TooLarge`] if the result does not fit in memory.
pub fn pack(gates: [ArrayView2<'_, f32>; 4]) -> Result<Array2<f32>> {
    if let Some(mismatched) = gates.iter().find(|g| g.shape() != gates[0].shape()) {
        let (expected, got) = (format!("{:?}", gates[0].shape()), format!("{:?}", mismatched.shape()));
        return Err(Error::shape("pack", expected, got));
    }
    let (hidden, cols) = gates[0].dim();
    let mut packed = memory::zero_array("pack", Ix2(4 * hidden, cols))?;
    for (k, gate) in gates.iter().enumerate() {
        packed.slice_mut(s![k * hidden..(k + 1) * hidden, ..]).assign(gate);
    }
    Ok(packed)
}

/// Splits a matrix of shape `[4 * hidden, n]` into the matrices of the gates i, f, g, o. The inverse of [`pack`].
///
/// # Errors
/// [`Error::Shape`] if the number of rows is not a multiple of four; [`Error::TooLarge`] if the result does not fit in
/// memory.
pub fn unpack(packed: ArrayView2<'_, f32>) -> Result<[Array2<f32>; 4]> {
    let rows = packed.nrows();
    if !rows.is_multiple_of(4) {
        return Err(Error::shape("unpack", "a multiple of 4 rows", rows));
    }
    let gate = |k| memory::copy_array("unpack", packed.slice(s![k * rows / 4..(k + 1) * rows / 4, ..]));
    Ok([gate(0)?, gate(1)?, gate(2)?, gate(3)?])
}
