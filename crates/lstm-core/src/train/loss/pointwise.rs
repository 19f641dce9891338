//! Losses that are a mean over elements: a loss of each prediction and its target, such as the squared error.

use std::hint::black_box;

use ndarray::{Array, Array3, ArrayView, ArrayView3, Dimension, s};

use super::{check_not_empty, check_same_shape};
use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::check_lengths,
    shape::zeros,
    train::check::check_positive,
};

/// The mean of a loss of each element, and its gradient with respect to the prediction. `element_loss` maps a prediction
/// and its target to the loss of this element and the derivative of the loss by the prediction: [`squared_error`],
/// [`huber`], [`pinball`], [`binary_cross_entropy`], or a closure.
///
/// Over all `n` elements, in row-major order:
///
/// ```text
/// loss = sum(element_loss(p, t).0) / n
/// gradient = element_loss(p, t).1 / n
/// ```
///
/// Both are computed in f64; the gradient is rounded to f32 once. The gradient has the shape of the prediction. The
/// result is bit-identical on every machine if `element_loss` is, for example with the functions of the `libm` crate.
///
/// ```
/// use lstm_core::{ndarray::array, train::{huber, pointwise_loss}};
/// let (prediction, target) = (array![1.0, 4.0], array![1.5, 2.0]);
/// let (loss, gradient) = pointwise_loss(prediction.view(), target.view(), huber(1.0)?)?;
/// assert_eq!((loss, gradient), ((0.125 + 1.5) / 2.0, array![-0.25, 0.5]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or there are no elements.
pub fn pointwise_loss<D: Dimension>(
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> Result<(f64, Array<f32, D>)> {
    mean_loss("pointwise_loss", prediction, target, element_loss)
}

/// [`pointwise_loss`] over the time steps within each sequence's length. `prediction` and `target` have the shape
/// `(batch, steps, features)`, and `lengths` has one element per sequence.
///
/// The mean is over the `n` elements within the lengths. Elements after the end of a sequence are not read; their
/// gradient is 0.
///
/// # Errors
/// As for [`masked_mean_squared_error`].
pub fn masked_pointwise_loss(
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> Result<(f64, Array3<f32>)> {
    masked_mean_loss("masked_pointwise_loss", prediction, target, lengths, element_loss)
}

/// The weighted mean of a loss of each element, and its gradient with respect to the prediction, for example to give
/// some time steps more influence than others. `element_loss` is that of [`pointwise_loss`].
///
/// `weights` has as many axes as the prediction. Each axis has the size of the prediction's, or size 1 for a weight that
/// is the same along it: `(batch, steps, 1)` for one weight per time step. Over all elements, with weight `w`:
///
/// ```text
/// loss = sum(w * element_loss(p, t).0) / sum(w)
/// gradient = w * element_loss(p, t).1 / sum(w)
/// ```
///
/// Where the weight is 0, the prediction and the target are not read, and the gradient is 0. With several shards, pass
/// the result to [`part_of_weighted_mean`](crate::train::part_of_weighted_mean).
///
/// ```
/// use lstm_core::{ndarray::array, train::{squared_error, weighted_pointwise_loss}};
/// let (prediction, target) = (array![[1.0, 4.0], [3.0, 5.0]], array![[0.0, 2.0], [0.0, f32::NAN]]);
/// let weights = array![[3.0, 1.0], [0.0, 0.0]];
/// let (loss, gradient) = weighted_pointwise_loss(prediction.view(), target.view(), weights.view(), squared_error)?;
/// assert_eq!((loss, gradient), ((3.0 + 4.0) / 4.0, array![[1.5, 1.0], [0.0, 0.0]]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes do not agree, a weight is negative or not finite, or all weights are 0.
pub fn weighted_pointwise_loss<D: Dimension>(
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
    weights: ArrayView<'_, f32, D>,
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "weighted_pointwise_loss";
    let shape = prediction.shape();
    check_same_shape(OP, shape, target.shape())?;
    check_not_empty(OP, "prediction", shape)?;
    let Some(weights) = weights.broadcast(prediction.raw_dim()) else {
        let expected = format!("{shape:?}, the shape of the prediction, or 1 in place of some sizes");
        return Err(Error::shape(format!("{OP}: weights"), expected, format!("{:?}", weights.shape())));
    };
    if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
        return Err(Error::shape(format!("{OP}: weights"), "finite numbers of at least 0", weight));
    }
    let _environment = FloatEnvironment::set_default();
    let n = weights.iter().fold(0.0, |sum, &w| sum + f64::from(w));
    if n == 0.0 {
        return Err(Error::shape(format!("{OP}: weights"), "at least one weight above 0", "only 0"));
    }
    let mut gradient = zeros(OP, shape)?;
    let mut sum = 0.0;
    for (((gradient, &p), &t), &w) in gradient.iter_mut().zip(&prediction).zip(&target).zip(&weights) {
        if w > 0.0 {
            let (loss, derivative) = element_loss(p.into(), t.into());
            sum += f64::from(w) * loss;
            *gradient = (f64::from(w) * derivative / n) as f32;
        }
    }
    Ok((black_box(sum / n), memory::array_from_vec(OP, prediction.raw_dim(), gradient)?))
}

/// The squared error of one element, for [`pointwise_loss`]: `(p - t)^2`, with the derivative `2 (p - t)`.
pub fn squared_error(p: f64, t: f64) -> (f64, f64) {
    let difference = p - t;
    (difference * difference, 2.0 * difference)
}

/// The Huber loss of one element, for [`pointwise_loss`], as `torch.nn.HuberLoss(delta=delta)`: squared near the
/// target, linear far from it, so that outliers count less. With `d = p - t`:
///
/// ```text
/// loss = d^2 / 2                        if |d| <= delta
/// loss = delta * (|d| - delta / 2)      otherwise
/// ```
///
/// The derivative is `d`, clamped to `[-delta, delta]`.
///
/// # Errors
/// [`Error::Config`] if `delta` is not a positive finite number.
pub fn huber(delta: f64) -> Result<impl Fn(f64, f64) -> (f64, f64) + Copy> {
    check_positive("delta", delta)?;
    Ok(move |p: f64, t: f64| {
        let difference = p - t;
        let magnitude = difference.abs();
        // NaN takes the first case.
        if magnitude > delta {
            (delta * (magnitude - 0.5 * delta), delta.copysign(difference))
        } else {
            (0.5 * difference * difference, difference)
        }
    })
}

/// The pinball loss of one element, for [`pointwise_loss`], also called quantile loss: its minimum is the quantile of
/// the target, for example the value that 90 % of the targets stay below.
///
/// ```text
/// loss = quantile * (t - p)              if t >= p
/// loss = (1 - quantile) * (p - t)        otherwise
/// ```
///
/// The derivative is `-quantile` in the first case and `1 - quantile` in the second; at `p = t` it is 0, as that of
/// PyTorch's L1 loss. For several quantiles, take the loss of each output feature with its own quantile, for example of
/// `prediction.slice(s![.., .., 0..1])`, and add the gradients.
///
/// # Errors
/// [`Error::Config`] if `quantile` is not between 0 and 1.
pub fn pinball(quantile: f64) -> Result<impl Fn(f64, f64) -> (f64, f64) + Copy> {
    if !(quantile > 0.0 && quantile < 1.0) {
        return Err(Error::config("quantile", format!("expected 0 < quantile < 1, got {quantile:?}")));
    }
    Ok(move |p: f64, t: f64| {
        let difference = t - p;
        let factor = if difference >= 0.0 { quantile } else { quantile - 1.0 };
        (factor * difference, if difference == 0.0 { 0.0 } else { -factor })
    })
}

/// The binary cross entropy of one logit, for [`pointwise_loss`] and [`weighted_pointwise_loss`], as
/// `torch.nn.BCEWithLogitsLoss(pos_weight=positive_weight)`: a `positive_weight` above 1 makes up for targets that are
/// rarely yes. With `e = exp(-|x|)`, and `v = 1 + (positive_weight - 1) t`:
///
/// ```text
/// loss = |x| (1 - t if x > 0 else positive_weight * t) + v log(1 + e)
/// derivative = v (1 if x >= 0 else e) / (1 + e) - positive_weight * t
/// ```
///
/// The loss is NaN if the target is not in `[0, 1]`. For a weight of 1, [`binary_cross_entropy_with_logits`] reports
/// such a target as an error.
///
/// # Errors
/// [`Error::Config`] if `positive_weight` is not a positive finite number.
pub fn binary_cross_entropy(positive_weight: f64) -> Result<impl Fn(f64, f64) -> (f64, f64) + Copy> {
    check_positive("positive_weight", positive_weight)?;
    Ok(weighted_binary_cross_entropy(positive_weight))
}

/// [`binary_cross_entropy`] with a weight that was checked.
fn weighted_binary_cross_entropy(positive_weight: f64) -> impl Fn(f64, f64) -> (f64, f64) + Copy {
    move |x: f64, t: f64| {
        if !(0.0..=1.0).contains(&t) {
            return (f64::NAN, f64::NAN);
        }
        let e = libm::exp(-x.abs());
        let positive = positive_weight * t;
        let opposite_weight = if x > 0.0 { 1.0 - t } else { positive };
        let total_weight = 1.0 + (positive_weight - 1.0) * t;
        // An infinite logit of the correct sign has a loss of 0; the product would be infinity times 0, which is NaN.
        let distance = if opposite_weight == 0.0 { 0.0 } else { x.abs() * opposite_weight };
        let probability = if x >= 0.0 { 1.0 } else { e } / (1.0 + e);
        (distance + total_weight * libm::log1p(e), total_weight * probability - positive)
    }
}

/// Mean squared error and its gradient with respect to the prediction, as `torch.nn.MSELoss()`.
///
/// Over all `n` elements, `loss = sum((p - t)^2) / n` and `gradient = 2 * (p - t) / n`. Both are computed in f64; the
/// gradient is rounded to f32 once. The gradient has the shape of the prediction.
///
/// The loss is infinite or NaN if a prediction or target is. Padding after the end of a sequence counts like any other
/// element; see [`masked_mean_squared_error`].
///
/// ```
/// use lstm_core::{ndarray::array, train::mean_squared_error};
/// let (loss, gradient) = mean_squared_error(array![1.0, 4.0].view(), array![1.0, 2.0].view())?;
/// assert_eq!((loss, gradient), (2.0, array![0.0, 2.0]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or there are no elements.
pub fn mean_squared_error<D: Dimension>(
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>)> {
    mean_loss("mean_squared_error", prediction, target, squared_error)
}

/// [`mean_squared_error`] over the time steps within each sequence's length. `prediction` and `target` have the shape
/// `(batch, steps, features)`, and `lengths` has one element per sequence.
///
/// The mean is over the `n` elements within the lengths. Elements after the end of a sequence are not read; their
/// gradient is 0.
///
/// ```
/// use lstm_core::{ndarray::array, train::masked_mean_squared_error};
/// let (y, target) = (array![[[1.0], [4.0]], [[3.0], [0.0]]], array![[[1.0], [2.0]], [[5.0], [7.0]]]);
/// let (loss, gradient) = masked_mean_squared_error(y.view(), target.view(), &[2, 1])?;
/// assert_eq!((loss, gradient), (8.0 / 3.0, array![[[0.0], [4.0 / 3.0]], [[-4.0 / 3.0], [0.0]]]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, the number of lengths is not the batch size, a length is greater than the
/// number of steps, or no element is within the lengths.
pub fn masked_mean_squared_error(
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
) -> Result<(f64, Array3<f32>)> {
    masked_mean_loss("masked_mean_squared_error", prediction, target, lengths, squared_error)
}

/// Mean binary cross entropy of logits, in nats, and its gradient with respect to the logits, as
/// `torch.nn.BCEWithLogitsLoss()`. Each element is an independent yes-or-no prediction; its target is the probability
/// of yes.
///
/// Over all `n` elements `x` with targets `t`, with `e = exp(-|x|)`:
///
/// ```text
/// loss = sum(|x| (1 - t if x > 0 else t) + log(1 + e)) / n
/// gradient = ((1 if x >= 0 else e) / (1 + e) - t) / n
/// ```
///
/// Both are computed in f64; the gradient is rounded to f32 once. The loss is infinite or NaN if a logit is, except
/// that an infinite logit of the correct sign, with a target of 0 or 1, adds a loss of 0.
///
/// ```
/// use lstm_core::{ndarray::array, train::binary_cross_entropy_with_logits};
/// let (loss, gradient) = binary_cross_entropy_with_logits(array![0.0, 0.0].view(), array![1.0, 0.5].view())?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, array![-0.25, 0.0]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, there are no elements, or a target is not in `[0, 1]`.
pub fn binary_cross_entropy_with_logits<D: Dimension>(
    logits: ArrayView<'_, f32, D>,
    targets: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "binary_cross_entropy";
    check_probabilities(OP, targets.iter())?;
    mean_loss(OP, logits, targets, weighted_binary_cross_entropy(1.0))
}

/// [`binary_cross_entropy_with_logits`] over the time steps within each sequence's length. `logits` and `targets` have
/// the shape `(batch, steps, features)`, and `lengths` has one element per sequence.
///
/// The mean is over the `n` elements within the lengths. Elements after the end of a sequence are not read; their
/// gradient is 0.
///
/// # Errors
/// As for [`masked_mean_squared_error`], and [`Error::Shape`] if a target within the lengths is not in `[0, 1]`.
pub fn masked_binary_cross_entropy_with_logits(
    logits: ArrayView3<'_, f32>,
    targets: ArrayView3<'_, f32>,
    lengths: &[usize],
) -> Result<(f64, Array3<f32>)> {
    const OP: &str = "masked_binary_cross_entropy_with_logits";
    let unmasked_targets = targets
        .outer_iter()
        .zip(lengths)
        .map(|(rows, &len)| rows.into_iter().take(len.saturating_mul(targets.dim().2)));
    check_probabilities(OP, unmasked_targets.flatten())?;
    masked_mean_loss(OP, logits, targets, lengths, weighted_binary_cross_entropy(1.0))
}

/// Mean of an element-wise loss over all elements, and its gradient. Here and below, [`black_box`] has the mean computed
/// before the floating-point settings are restored.
fn mean_loss<D: Dimension>(
    op: &'static str,
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> Result<(f64, Array<f32, D>)> {
    let shape = prediction.shape();
    check_same_shape(op, shape, target.shape())?;
    check_not_empty(op, "prediction", shape)?;
    let _environment = FloatEnvironment::set_default();
    let n = prediction.len() as f64;
    let mut gradient = zeros(op, shape)?;
    let sum = add_element_losses(0.0, gradient.iter_mut().zip(&prediction).zip(&target), n, &element_loss);
    Ok((black_box(sum / n), memory::array_from_vec(op, prediction.raw_dim(), gradient)?))
}

/// Mean of an element-wise loss over the elements within the sequences' lengths, and its gradient.
fn masked_mean_loss(
    op: &'static str,
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> Result<(f64, Array3<f32>)> {
    check_same_shape(op, prediction.shape(), target.shape())?;
    let (batch, steps, features) = prediction.dim();
    check_lengths(op, lengths, [batch, steps])?;
    let _environment = FloatEnvironment::set_default();
    let n = lengths.iter().map(|&len| len as f64 * features as f64).sum::<f64>();
    if n == 0.0 {
        let expected = "at least one element within the lengths";
        return Err(Error::shape(format!("{op}: lengths"), expected, format!("{lengths:?}")));
    }
    let mut gradient = memory::array_from_vec(op, prediction.raw_dim(), zeros(op, prediction.shape())?)?;
    let mut sum = 0.0;
    for (b, &len) in lengths.iter().enumerate() {
        let (p, t) = (prediction.slice(s![b, ..len, ..]), target.slice(s![b, ..len, ..]));
        sum = add_element_losses(sum, gradient.slice_mut(s![b, ..len, ..]).iter_mut().zip(p).zip(t), n, &element_loss);
    }
    Ok((black_box(sum / n), gradient))
}

/// Adds the loss of each element to `sum`, in order, and returns the result. Each item has a gradient to write, a
/// prediction and a target. The gradient is the derivative of the loss divided by `n`.
fn add_element_losses<'a>(
    mut sum: f64,
    elements: impl Iterator<Item = ((&'a mut f32, &'a f32), &'a f32)>,
    n: f64,
    element_loss: impl Fn(f64, f64) -> (f64, f64),
) -> f64 {
    for ((gradient, &p), &t) in elements {
        let (loss, derivative) = element_loss(p.into(), t.into());
        sum += loss;
        *gradient = (derivative / n) as f32;
    }
    sum
}

fn check_probabilities<'a>(op: &str, mut targets: impl Iterator<Item = &'a f32>) -> Result<()> {
    match targets.find(|t| !(0.0..=1.0).contains(*t)) {
        Some(t) => Err(Error::shape(format!("{op}: target"), "probabilities from 0 to 1", t)),
        None => Ok(()),
    }
}
