//! The negative log-likelihood of a Gaussian distribution.

use std::hint::black_box;

use ndarray::{Array, Array3, ArrayView, ArrayView1, ArrayView3, ArrayViewMut1, Axis, Dimension, RemoveAxis};

use super::check_not_empty;
use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::check_lengths,
};

/// The mean negative log-likelihood of targets under Gaussian distributions whose mean and variance are predicted, and
/// its gradient with respect to the prediction, as `torch.nn.GaussianNLLLoss()` with `var = exp(log_variance)`: a
/// forecast that says how sure it is.
///
/// The last axis of `target` has `k` features, and that of `prediction` has `2 k`: first the means `m`, then the
/// logarithms `s` of the variances. A [`Linear`](crate::Linear) head with `2 k` outputs computes both. Over all `n`
/// elements of the target `t`:
///
/// ```text
/// loss = sum(s + (t - m)^2 exp(-s)) / (2 n)
/// gradient of m = (m - t) exp(-s) / n
/// gradient of s = (1 - (t - m)^2 exp(-s)) / (2 n)
/// ```
///
/// As in PyTorch, the constant `log(2 pi) / 2` is left out. All is computed in f64; the gradient is rounded to f32 once.
/// The loss is infinite or NaN if a prediction or target is.
///
/// ```
/// use lstm_core::{ndarray::array, train::gaussian_nll_loss};
/// // Mean 1 and variance 1, for the target 3.
/// let (loss, gradient) = gaussian_nll_loss(array![[1.0, 0.0]].view(), array![[3.0]].view())?;
/// assert_eq!((loss, gradient), (2.0, array![[-2.0, -1.5]]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the prediction does not have the shape of the target with twice the features, or there are no
/// elements.
pub fn gaussian_nll_loss<D: Dimension + RemoveAxis>(
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "gaussian_nll_loss";
    check_shapes(OP, prediction.shape(), target.shape())?;
    check_not_empty(OP, "target", target.shape())?;
    let _environment = FloatEnvironment::set_default();
    let n = target.len() as f64;
    let mut gradient = memory::zero_array(OP, prediction.raw_dim())?;
    let mut sum = 0.0;
    for ((gradient, p), t) in gradient.rows_mut().into_iter().zip(prediction.rows()).zip(target.rows()) {
        sum = add_row(sum, gradient, p, t, n);
    }
    Ok((black_box(sum / (2.0 * n)), gradient))
}

/// [`gaussian_nll_loss`] over the time steps within each sequence's length. `prediction` has the shape
/// `(batch, steps, 2 * features)` and `target` the shape `(batch, steps, features)`; `lengths` has one element per
/// sequence.
///
/// The mean is over the `n` elements of the target within the lengths. Elements after the end of a sequence are not
/// read; their gradient is 0.
///
/// # Errors
/// As for [`gaussian_nll_loss`], and [`Error::Shape`] if the number of lengths is not the batch size, a length is greater
/// than the number of steps, or no element is within the lengths.
pub fn masked_gaussian_nll_loss(
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
) -> Result<(f64, Array3<f32>)> {
    const OP: &str = "masked_gaussian_nll_loss";
    check_shapes(OP, prediction.shape(), target.shape())?;
    let (batch, steps, features) = target.dim();
    check_lengths(OP, lengths, [batch, steps])?;
    let _environment = FloatEnvironment::set_default();
    let n = lengths.iter().map(|&len| len as f64 * features as f64).sum::<f64>();
    if n == 0.0 {
        let expected = "at least one element within the lengths";
        return Err(Error::shape(format!("{OP}: lengths"), expected, format!("{lengths:?}")));
    }
    let mut gradient = memory::zero_array(OP, prediction.raw_dim())?;
    let mut sum = 0.0;
    for (b, &len) in lengths.iter().enumerate() {
        let mut gradient = gradient.index_axis_mut(Axis(0), b);
        let (p, t) = (prediction.index_axis(Axis(0), b), target.index_axis(Axis(0), b));
        for ((gradient, p), t) in gradient.rows_mut().into_iter().zip(p.rows()).zip(t.rows()).take(len) {
            sum = add_row(sum, gradient, p, t, n);
        }
    }
    Ok((black_box(sum / (2.0 * n)), gradient))
}

/// Adds twice the loss of one row to `sum`, and writes the gradient of the row. `n` is the divisor of the mean.
fn add_row(
    mut sum: f64,
    mut gradient: ArrayViewMut1<'_, f32>,
    prediction: ArrayView1<'_, f32>,
    target: ArrayView1<'_, f32>,
    n: f64,
) -> f64 {
    let features = target.len();
    for (k, &target) in target.iter().enumerate() {
        let (mean, log_variance) = (f64::from(prediction[k]), f64::from(prediction[features + k]));
        let difference = f64::from(target) - mean;
        let precision = libm::exp(-log_variance);
        let scaled_square = difference * difference * precision;
        sum += log_variance + scaled_square;
        gradient[k] = (-difference * precision / n) as f32;
        gradient[features + k] = ((1.0 - scaled_square) / (2.0 * n)) as f32;
    }
    sum
}

fn check_shapes(op: &str, prediction: &[usize], target: &[usize]) -> Result<()> {
    let mut expected = target.to_vec();
    match expected.last_mut() {
        Some(features) => *features = features.saturating_mul(2),
        None => return Err(Error::shape(format!("{op}: target"), "at least one axis", "none")),
    }
    if prediction == expected {
        return Ok(());
    }
    let expected = format!("{expected:?}, a mean and a log variance for each element of the target {target:?}");
    Err(Error::shape(format!("{op}: prediction"), expected, format!("{prediction:?}")))
}
