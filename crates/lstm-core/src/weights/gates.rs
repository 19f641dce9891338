//! Packing four separate gate matrices into one and back. Bits are moved, never changed.

use ndarray::{Array2, ArrayView2, Axis, concatenate};

use crate::error::{Error, Result};

/// `[hidden, n]` for each of the gates i, f, g, o, stacked to `[4 * hidden, n]`.
///
/// # Errors
/// [`Error::Shape`] if the four differ in shape.
pub fn pack(gates: [ArrayView2<'_, f32>; 4]) -> Result<Array2<f32>> {
    if let Some(odd) = gates.iter().find(|g| g.shape() != gates[0].shape()) {
        let (want, got) = (format!("{:?}", gates[0].shape()), format!("{:?}", odd.shape()));
        return Err(Error::shape("pack", want, got));
    }
    concatenate(Axis(0), &gates).map_err(|e| Error::shape("pack", "matrices that stack", e))
}

/// The inverse of [`pack`].
///
/// # Errors
/// [`Error::Shape`] if the rows are not a multiple of four.
pub fn unpack(packed: ArrayView2<'_, f32>) -> Result<[Array2<f32>; 4]> {
    let rows = packed.nrows();
    if !rows.is_multiple_of(4) {
        return Err(Error::shape("unpack", "a multiple of 4 rows", rows));
    }
    Ok([0, 1, 2, 3].map(|k| packed.slice(ndarray::s![k * rows / 4..(k + 1) * rows / 4, ..]).to_owned()))
}
