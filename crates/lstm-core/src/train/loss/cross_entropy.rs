//! Cross entropy of logits.

use std::hint::black_box;

use ndarray::{Array, ArrayView, Dimension};

use super::check_not_empty;
use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    shape::zeros,
};

/// The target by which a row is marked to be ignored by [`cross_entropy`], for example padding; PyTorch's
/// `ignore_index`.
pub const IGNORE_INDEX: usize = usize::MAX;

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
    mean_cross_entropy("cross_entropy", logits, targets, None)
}

/// [`cross_entropy`] with a weight for each class, for classes that are not equally frequent, as
/// `torch.nn.CrossEntropyLoss(weight=class_weights)`. With `w`, the weight of the class of a row's target:
///
/// ```text
/// loss = sum(w * (log(s) - (x[t] - m))) / sum(w)
/// gradient[k] = w * (exp(x[k] - m) / s - (1 if k = t else 0)) / sum(w),  or 0 in an ignored row
/// ```
///
/// With several shards, pass the result to [`part_of_weighted_mean`](crate::train::part_of_weighted_mean).
///
/// ```
/// use lstm_core::{ndarray::array, train::weighted_cross_entropy};
/// let (loss, gradient) = weighted_cross_entropy(array![[0.0, 0.0], [0.0, 0.0]].view(), &[0, 1], &[1.0, 3.0])?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, array![[-0.125, 0.125], [0.375, -0.375]]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// As for [`cross_entropy`], and [`Error::Shape`] if there is not one weight per class, a weight is negative or not
/// finite, or the weights of all targets are 0.
pub fn weighted_cross_entropy<D: Dimension>(
    logits: ArrayView<'_, f32, D>,
    targets: &[usize],
    class_weights: &[f32],
) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "weighted_cross_entropy";
    let classes = logits.shape().last().copied().unwrap_or_default();
    if class_weights.len() != classes {
        let expected = format!("{classes}, one for each class");
        return Err(Error::shape(format!("{OP}: class_weights"), expected, class_weights.len()));
    }
    if let Some(weight) = class_weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
        return Err(Error::shape(format!("{OP}: class_weights"), "finite numbers of at least 0", weight));
    }
    mean_cross_entropy(OP, logits, targets, Some(class_weights))
}

/// Mean cross entropy with a weight for each class, which is 1 by default.
fn mean_cross_entropy<D: Dimension>(
    op: &'static str,
    logits: ArrayView<'_, f32, D>,
    targets: &[usize],
    class_weights: Option<&[f32]>,
) -> Result<(f64, Array<f32, D>)> {
    let shape = logits.shape();
    let Some(&classes) = shape.last() else {
        return Err(Error::shape(format!("{op}: logits"), "at least one axis", "none"));
    };
    check_not_empty(op, "logits", shape)?;
    let rows = logits.len() / classes;
    if targets.len() != rows {
        return Err(Error::shape(format!("{op}: targets"), format!("{rows}, one per row of {shape:?}"), targets.len()));
    }
    if let Some(row) = targets.iter().position(|&t| t >= classes && t != IGNORE_INDEX) {
        let expected = format!("a class below {classes} or IGNORE_INDEX");
        return Err(Error::shape(format!("{op}: target of row {row}"), expected, targets[row]));
    }
    let num_targets = targets.iter().filter(|&&t| t != IGNORE_INDEX).count();
    if num_targets == 0 {
        return Err(Error::shape(format!("{op}: targets"), "at least one that is not IGNORE_INDEX", "none"));
    }
    let _environment = FloatEnvironment::set_default();
    let weight_of = |target: usize| class_weights.map_or(1.0, |weights| f64::from(weights[target]));
    let n = match class_weights {
        None => num_targets as f64,
        Some(_) => targets.iter().filter(|&&t| t != IGNORE_INDEX).fold(0.0, |sum, &t| sum + weight_of(t)),
    };
    if n == 0.0 {
        return Err(Error::shape(format!("{op}: class_weights"), "a weight above 0 for a class of a target", "only 0"));
    }
    let mut gradient = zeros(op, shape)?;
    let mut sum = 0.0;
    for ((row, gradients), &target) in logits.rows().into_iter().zip(gradient.chunks_exact_mut(classes)).zip(targets) {
        if target == IGNORE_INDEX {
            continue;
        }
        let max_logit = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
        let minus_max = |x: f32| f64::from(x) - max_logit;
        let exp_sum = row.iter().fold(0.0, |exp_sum, &x| exp_sum + libm::exp(minus_max(x)));
        let weight = weight_of(target);
        // A class of weight 0 adds nothing, even if its loss is infinite.
        if weight == 0.0 {
            continue;
        }
        sum += weight * (libm::log(exp_sum) - minus_max(row[target]));
        for (class, (gradient, &x)) in gradients.iter_mut().zip(row).enumerate() {
            let one_hot = if class == target { 1.0 } else { 0.0 };
            *gradient = (weight * (libm::exp(minus_max(x)) / exp_sum - one_hot) / n) as f32;
        }
    }
    Ok((black_box(sum / n), memory::array_from_vec(op, logits.raw_dim(), gradient)?))
}
