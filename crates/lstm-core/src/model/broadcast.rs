//! Views that repeat the elements of a smaller array.

use std::fmt::Display;

use ndarray::{ArrayView, Dimension};

use crate::error::{Error, Result};

/// Maximum number of elements of a view that repeats elements. It takes no memory itself, so that a wrong size could ask
/// for any amount of memory and time.
const MAX_REPEATED: usize = 1 << 28;

/// Checks that a view does not repeat elements more often than an input can have a use for. Nothing is read.
///
/// # Errors
/// [`Error::Shape`] for a view of more than 2^28 elements.
pub(crate) fn check_repeated<T, D: Dimension>(op: impl Display, x: &ArrayView<'_, T, D>) -> Result<()> {
    let repeats = x.shape().iter().zip(x.strides()).any(|(&size, &stride)| size > 1 && stride == 0);
    if repeats && x.len() > MAX_REPEATED {
        let expected = "a broadcast view of at most 2^28 elements; if so many are meant, copy them to an array";
        return Err(Error::shape(op.to_string(), expected, format!("{:?}", x.shape())));
    }
    Ok(())
}
