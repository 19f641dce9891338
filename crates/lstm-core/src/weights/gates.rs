//! Conversion between four gate matrices and one packed matrix. Elements are copied bit for bit.

use ndarray::{Array2, ArrayView2, Axis, concatenate};

use crate::error::{Error, Result};

/// Stacks the matrices of the gates i, f, g, o, each of shape `[hidden, n]`, to one matrix of shape `[4 * hidden, n]`.
///
/// # Errors
/// [`Error::Shape`] if the four shapes differ.
pub fn pack(gates: [ArrayView2<'_, f32>; 4]) -> Result<Array2<f32>> {
    if let Some(mismatched) = gates.iter().find(|g| g.shape() != gates[0].shape()) {
        let (expected, got) = (format!("{:?}", gates[0].shape()), format!("{:?}", mismatched.shape()));
        return Err(Error::shape("pack", expected, got));
    }
    concatenate(Axis(0), &gates).map_err(|e| Error::shape("pack", "matrices of one shape", e))
}

/// Splits a matrix of shape `[4 * hidden, n]` into the matrices of the gates i, f, g, o. The inverse of [`pack`].
///
/// # Errors
/// [`Error::Shape`] if the number of rows is not a multiple of four.
pub fn unpack(packed: ArrayView2<'_, f32>) -> Result<[Array2<f32>; 4]> {
    let rows = packed.nrows();
    if !rows.is_multiple_of(4) {
        return Err(Error::shape("unpack", "a multiple of 4 rows", rows));
    }
    Ok([0, 1, 2, 3].map(|k| packed.slice(ndarray::s![k * rows / 4..(k + 1) * rows / 4, ..]).to_owned()))
}
