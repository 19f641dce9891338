//! Loss functions with their gradients: mean squared error, binary cross entropy, cross entropy.

use std::hint::black_box;

use ndarray::{Array, Array3, ArrayView, ArrayView3, Dimension, s};

use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::check_lengths,
    shape::zeros,
};

/// The target by which a row is marked to be ignored by [`cross_entropy`], for example padding; PyTorch's
/// `ignore_index`.
pub const IGNORE_INDEX: usize = usize::MAX;

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
    mean_loss(OP, logits, targets, binary_cross_entropy)
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
    masked_mean_loss(OP, logits, targets, lengths, binary_cross_entropy)
}

/// Maps the prediction and target of one element to its loss and the derivative of the loss by the prediction.
type ElementLoss = fn(f64, f64) -> (f64, f64);

/// Squared error of one element.
fn squared_error(p: f64, t: f64) -> (f64, f64) {
    let difference = p - t;
    (difference * difference, 2.0 * difference)
}

/// Binary cross entropy of one logit.
fn binary_cross_entropy(x: f64, t: f64) -> (f64, f64) {
    let e = libm::exp(-x.abs());
    let opposite_probability = if x > 0.0 { 1.0 - t } else { t };
    // An infinite logit of the correct sign has a loss of 0; the product would be infinity times 0, which is NaN.
    let loss = if opposite_probability == 0.0 { 0.0 } else { x.abs() * opposite_probability } + libm::log1p(e);
    (loss, if x >= 0.0 { 1.0 } else { e } / (1.0 + e) - t)
}

/// Mean of an element-wise loss over all elements, and its gradient. Here and below, [`black_box`] has the mean computed
/// before the floating-point settings are restored.
fn mean_loss<D: Dimension>(
    op: &'static str,
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
    element_loss: ElementLoss,
) -> Result<(f64, Array<f32, D>)> {
    let shape = prediction.shape();
    check_same_shape(op, shape, target.shape())?;
    check_not_empty(op, "prediction", shape)?;
    let _environment = FloatEnvironment::set_default();
    let n = prediction.len() as f64;
    let mut gradient = zeros(op, shape)?;
    let sum = add_element_losses(0.0, gradient.iter_mut().zip(&prediction).zip(&target), n, element_loss);
    Ok((black_box(sum / n), memory::array_from_vec(op, prediction.raw_dim(), gradient)?))
}

/// Mean of an element-wise loss over the elements within the sequences' lengths, and its gradient.
fn masked_mean_loss(
    op: &'static str,
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
    element_loss: ElementLoss,
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
        sum = add_element_losses(sum, gradient.slice_mut(s![b, ..len, ..]).iter_mut().zip(p).zip(t), n, element_loss);
    }
    Ok((black_box(sum / n), gradient))
}

/// Adds the loss of each element to `sum`, in order, and returns the result. Each item has a gradient to write, a
/// prediction and a target. The gradient is the derivative of the loss divided by `n`.
fn add_element_losses<'a>(
    mut sum: f64,
    elements: impl Iterator<Item = ((&'a mut f32, &'a f32), &'a f32)>,
    n: f64,
    element_loss: ElementLoss,
) -> f64 {
    for ((gradient, &p), &t) in elements {
        let (loss, derivative) = element_loss(p.into(), t.into());
        sum += loss;
        *gradient = (derivative / n) as f32;
    }
    sum
}

/// Mean cross entropy of logits, in nats, and its gradient with respect to the logits, as
/// `torch.nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)`. The classes are along the last axis of `logits`.
///
/// `targets` has the class of each row, with the rows in row-major order of the other axes. Rows with the target
/// [`IGNORE_INDEX`] are ignored. Over the `n` other rows, for a row `x` with target `t`, `m = max(x)` and
/// `s = sum(exp(x - m))`:
///
/// ```text
/// loss = sum(log(s) - (x[t] - m)) / n
/// gradient[k] = (exp(x[k] - m) / s - (1 if k = t else 0)) / n,  or 0 in an ignored row
/// ```
///
/// Both are computed in f64; the gradient is rounded to f32 once. The loss is infinite or NaN if a logit is, except
/// that a logit of minus infinity is a probability of 0: it makes the loss infinite only if its class is the row's
/// target.
///
/// ```
/// use lstm_core::{ndarray::array, train::{IGNORE_INDEX, cross_entropy}};
/// let (loss, gradient) = cross_entropy(array![[0.0, 0.0], [7.0, 9.0]].view(), &[1, IGNORE_INDEX])?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, array![[0.5, -0.5], [0.0, 0.0]]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if `logits` has no axis or no elements, the number of targets is not the number of rows, a target
/// is neither a class nor [`IGNORE_INDEX`] (the error gives the row), or all rows are ignored.
pub fn cross_entropy<D: Dimension>(logits: ArrayView<'_, f32, D>, targets: &[usize]) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "cross_entropy";
    let shape = logits.shape();
    let Some(&classes) = shape.last() else {
        return Err(Error::shape(format!("{OP}: logits"), "at least one axis", "none"));
    };
    check_not_empty(OP, "logits", shape)?;
    let rows = logits.len() / classes;
    if targets.len() != rows {
        return Err(Error::shape(format!("{OP}: targets"), format!("{rows}, one per row of {shape:?}"), targets.len()));
    }
    if let Some(row) = targets.iter().position(|&t| t >= classes && t != IGNORE_INDEX) {
        let expected = format!("a class below {classes} or IGNORE_INDEX");
        return Err(Error::shape(format!("{OP}: target of row {row}"), expected, targets[row]));
    }
    let num_targets = targets.iter().filter(|&&t| t != IGNORE_INDEX).count();
    if num_targets == 0 {
        return Err(Error::shape(format!("{OP}: targets"), "at least one that is not IGNORE_INDEX", "none"));
    }
    let _environment = FloatEnvironment::set_default();
    let n = num_targets as f64;
    let mut gradient = zeros(OP, shape)?;
    let mut sum = 0.0;
    for ((row, gradients), &target) in logits.rows().into_iter().zip(gradient.chunks_exact_mut(classes)).zip(targets) {
        if target == IGNORE_INDEX {
            continue;
        }
        let max_logit = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
        let minus_max = |x: f32| f64::from(x) - max_logit;
        let exp_sum = row.iter().fold(0.0, |exp_sum, &x| exp_sum + libm::exp(minus_max(x)));
        sum += libm::log(exp_sum) - minus_max(row[target]);
        for (class, (gradient, &x)) in gradients.iter_mut().zip(row).enumerate() {
            let one_hot = if class == target { 1.0 } else { 0.0 };
            *gradient = ((libm::exp(minus_max(x)) / exp_sum - one_hot) / n) as f32;
        }
    }
    Ok((black_box(sum / n), memory::array_from_vec(OP, logits.raw_dim(), gradient)?))
}

fn check_same_shape(op: &str, prediction: &[usize], target: &[usize]) -> Result<()> {
    if target == prediction {
        return Ok(());
    }
    Err(Error::shape(
        format!("{op}: target"),
        format!("{prediction:?}, the shape of the prediction"),
        format!("{target:?}"),
    ))
}

fn check_probabilities<'a>(op: &str, mut targets: impl Iterator<Item = &'a f32>) -> Result<()> {
    match targets.find(|t| !(0.0..=1.0).contains(*t)) {
        Some(t) => Err(Error::shape(format!("{op}: target"), "probabilities from 0 to 1", t)),
        None => Ok(()),
    }
}

fn check_not_empty(op: &str, argument: &str, shape: &[usize]) -> Result<()> {
    if shape.contains(&0) {
        return Err(Error::shape(format!("{op}: {argument}"), "at least one element", format!("{shape:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayD, Axis, IxDyn, arr0, array};

    use super::*;

    fn error_message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn results_do_not_depend_on_memory_layout() {
        let (p, t) = (array![[1.5f32, -2.0, 0.25], [3.0, 0.0, -7.5]], array![[1.0f32, 2.0, 3.0], [-4.0, 5.0, 6.0]]);
        let (fp, ft) = (p.t().as_standard_layout().into_owned(), t.t().as_standard_layout().into_owned());
        let contiguous_result = mean_squared_error(p.view(), t.view()).unwrap();
        assert_eq!(contiguous_result, mean_squared_error(fp.t(), ft.t()).unwrap());
        assert_eq!(contiguous_result, mean_squared_error(p.view(), ft.t()).unwrap());
        assert!(mean_squared_error(fp.t(), ft.t()).unwrap().1.is_standard_layout());
        assert_eq!(cross_entropy(p.view(), &[2, 0]).unwrap(), cross_entropy(fp.t(), &[2, 0]).unwrap());
    }

    #[test]
    fn masked_losses_ignore_elements_beyond_the_lengths() {
        let p = Array3::from_shape_fn((3, 4, 2), |(b, t, k)| (b + 2 * t) as f32 - 0.5 * k as f32);
        let mut t = p.mapv(|v| 0.25 * v + 1.0);
        let unmasked_result = mean_squared_error(p.view(), t.view()).unwrap();
        assert_eq!(masked_mean_squared_error(p.view(), t.view(), &[4, 4, 4]).unwrap(), unmasked_result);
        t.slice_mut(s![1, 2.., ..]).fill(f32::NAN);
        t.slice_mut(s![2, .., ..]).fill(f32::INFINITY);
        let (loss, gradient) = masked_mean_squared_error(p.view(), t.view(), &[4, 2, 0]).unwrap();
        let unmasked_rows = |x: &Array3<f32>| {
            let rows = [x.slice(s![0, .., ..]), x.slice(s![1, ..2, ..])];
            ndarray::concatenate(Axis(0), &rows).unwrap()
        };
        let expected = mean_squared_error(unmasked_rows(&p).view(), unmasked_rows(&t).view()).unwrap();
        assert_eq!((loss, unmasked_rows(&gradient)), expected);
        let probabilities = t.mapv(|t| if t.is_finite() { t.clamp(0.0, 1.0) } else { t });
        let (loss, logit_gradient) =
            masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[4, 2, 0]).unwrap();
        let expected =
            binary_cross_entropy_with_logits(unmasked_rows(&p).view(), unmasked_rows(&probabilities).view()).unwrap();
        assert_eq!((loss, unmasked_rows(&logit_gradient)), expected);
        let error = error_message(masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[4, 3, 0]));
        assert!(error.contains("target: expected probabilities from 0 to 1, got NaN"), "{error}");
        assert!(masked_binary_cross_entropy_with_logits(p.view(), probabilities.view(), &[usize::MAX, 1, 1]).is_err());
        assert!(gradient.slice(s![1, 2.., ..]).iter().chain(gradient.slice(s![2, .., ..])).all(|v| v.to_bits() == 0));
        for (lengths, parts) in [
            (&[4, 5, 5][..], ["masked_mean_squared_error: lengths[1]", "at most 4 steps", "got 5"]),
            (&[4, 4], ["lengths", "3, one for each sequence", "got 2"]),
            (&[0, 0, 0], ["lengths", "at least one element", "[0, 0, 0]"]),
        ] {
            let error = error_message(masked_mean_squared_error(p.view(), t.view(), lengths));
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
        let error = error_message(masked_mean_squared_error(p.view(), t.slice(s![..2, .., ..]), &[1, 1, 1]));
        assert!(error.contains("target: expected [3, 4, 2], the shape of the prediction, got [2, 4, 2]"), "{error}");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let (loss, gradient) = cross_entropy(array![f32::MAX, 0.0, f32::MIN].view(), &[1]).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX), array![1.0, -1.0, 0.0]));
        let (loss, gradient) = cross_entropy(array![0.0, f32::NEG_INFINITY].view(), &[0]).unwrap();
        assert_eq!((loss, gradient), (0.0, array![0.0, 0.0]));
        let (x, t) = (array![f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY], array![0.0, 0.0, 1.0, 0.0]);
        let (loss, gradient) = binary_cross_entropy_with_logits(x.view(), t.view()).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX) / 4.0, array![0.25, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn non_finite_inputs_give_a_non_finite_loss() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!mean_squared_error(array![bad, 1.0].view(), array![0.0, 0.0].view()).unwrap().0.is_finite());
            assert!(!cross_entropy(array![bad, 1.0].view(), &[0]).unwrap().0.is_finite());
            assert!(
                !binary_cross_entropy_with_logits(array![bad, 1.0].view(), array![0.5, 0.0].view())
                    .unwrap()
                    .0
                    .is_finite()
            );
        }
        assert!(cross_entropy(array![f32::NAN, 1.0].view(), &[1]).unwrap().0.is_nan());
        let (loss, gradient) = cross_entropy(array![[f32::NAN, 1.0], [0.0, 0.0]].view(), &[IGNORE_INDEX, 0]).unwrap();
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "an ignored row");
    }

    #[test]
    fn errors_name_the_argument() {
        let x = Array2::<f32>::zeros((2, 3));
        for (error, parts) in [
            (
                error_message(mean_squared_error(x.view(), Array2::zeros((3, 2)).view())),
                ["mean_squared_error: target", "[2, 3]", "[3, 2]"],
            ),
            (
                error_message(mean_squared_error(x.view().into_dyn(), ArrayD::zeros(IxDyn(&[6])).view())),
                ["target", "[2, 3]", "[6]"],
            ),
            (
                error_message(mean_squared_error(x.slice(ndarray::s![0..0, ..]), Array2::zeros((0, 3)).view())),
                ["one", "[0, 3]", ""],
            ),
            (
                error_message(binary_cross_entropy_with_logits(x.view(), Array2::from_elem((2, 3), -0.5).view())),
                ["binary_cross_entropy: target", "from 0 to 1", "got -0.5"],
            ),
            (error_message(cross_entropy(arr0(1.0f32).view(), &[0])), ["cross_entropy: logits", "one axis", "none"]),
            (error_message(cross_entropy(Array2::zeros((2, 0)).view(), &[0, 0])), ["logits", "one element", "[2, 0]"]),
            (error_message(cross_entropy(x.view(), &[0])), ["targets", "2, one per row of [2, 3]", "got 1"]),
            (error_message(cross_entropy(x.view(), &[IGNORE_INDEX, 3])), ["row 1", "below 3", "got 3"]),
            (
                error_message(cross_entropy(x.view(), &[IGNORE_INDEX, IGNORE_INDEX])),
                ["targets", "at least one", "IGNORE_INDEX"],
            ),
        ] {
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
    }

    #[test]
    fn rejects_shapes_larger_than_memory() {
        let huge_array = array![1.0f32];
        let huge_array = huge_array.broadcast(isize::MAX as usize).unwrap();
        assert!(matches!(
            mean_squared_error(huge_array, huge_array),
            Err(Error::TooLarge { op: "mean_squared_error", .. })
        ));
    }
}
