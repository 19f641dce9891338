//! Views that repeat the elements of a smaller array.

use ndarray::{ArrayView, Dimension};

use crate::error::{Error, Result};

/// Maximum number of elements of a view that repeats elements. It takes no memory itself, so that a wrong size could ask for
/// any amount of memory and time.
const MAX_REPEATED: usize = 1 << 28;

/// Checks that a view does not repeat elements more often than an input can have a use for. Nothing is read.
///
/// # Errors
/// [`Error::TooLarge`].
pub(crate) fn check_repeated<T, D: Dimension>(op: &'static str, x: &ArrayView<'_, T, D>) -> Result<()> {
    let repeats = x.shape().iter().zip(x.strides()).any(|(&size, &stride)| size > 1 && stride == 0);
    if repeats && x.len() > MAX_REPEATED {
        return Err(Error::TooLarge { op, sizes: x.shape().to_vec() });
    }
    Ok(())
}
