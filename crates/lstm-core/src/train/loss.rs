//! Losses and their gradients: mean squared error, binary cross entropy, cross entropy.

use ndarray::{Array, Array3, ArrayView, ArrayView3, Dimension, s};

use crate::{
    error::{Error, Result},
    model::check_lengths,
    shape::zeros,
};

/// The target of a row that [`cross_entropy`] leaves out (PyTorch's `ignore_index`), such as padding.
pub const IGNORE: usize = usize::MAX;

/// The mean squared error and its gradient by the prediction: `torch.nn.MSELoss()`.
///
/// Over all n elements, `loss = sum((p - t)^2) / n` and `gradient = 2 (p - t) / n`, all in f64; the gradient is
/// rounded once.
///
/// A prediction or target that is not finite gives a loss that is not finite. Of sequences of different lengths the padding
/// counts as well: see [`mean_squared_within`].
///
/// ```
/// use lstm_core::{ndarray::array, train::mean_squared};
/// let (loss, gradient) = mean_squared(array![1.0, 4.0].view(), array![1.0, 2.0].view())?;
/// assert_eq!((loss, gradient), (2.0, array![0.0, 2.0]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or there are no elements.
pub fn mean_squared<D: Dimension>(
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>)> {
    mean("mean_squared", prediction, target, squared)
}

/// [`mean_squared`] of `(batch, steps, features)` over the n elements that lie within the sequences' lengths. What lies
/// beyond is not looked at, and its gradient is 0.
///
/// ```
/// use lstm_core::{ndarray::array, train::mean_squared_within};
/// let (y, target) = (array![[[1.0], [4.0]], [[3.0], [0.0]]], array![[[1.0], [2.0]], [[5.0], [7.0]]]);
/// let (loss, gradient) = mean_squared_within(y.view(), target.view(), &[2, 1])?;
/// assert_eq!((loss, gradient), (8.0 / 3.0, array![[[0.0], [4.0 / 3.0]], [[-4.0 / 3.0], [0.0]]]));
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, for another number of lengths than sequences, a length of more than all steps (it
/// names the sequence), or if no element counts.
pub fn mean_squared_within(
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
) -> Result<(f64, Array3<f32>)> {
    mean_within("mean_squared_within", prediction, target, lengths, squared)
}

/// The mean binary cross entropy of logits, in nats, and its gradient by them: `torch.nn.BCEWithLogitsLoss()`. Each element
/// is a question of its own, such as whether there is speech, and its target the probability of yes.
///
/// Over all n elements, with `e = exp(-|x|)`,
///
/// ```text
/// loss = sum(|x| (1 - t if x > 0 else t) + log(1 + e)) / n
/// gradient = ((1 if x >= 0 else e) / (1 + e) - t) / n
/// ```
///
/// all in f64; the gradient is rounded once. Logits that are not finite give a loss that is not finite, except infinite ones
/// that are right.
///
/// ```
/// use lstm_core::{ndarray::array, train::binary_cross_entropy};
/// let (loss, gradient) = binary_cross_entropy(array![0.0, 0.0].view(), array![1.0, 0.5].view())?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, array![-0.25, 0.0]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, there are no elements, or a target is not from 0 to 1.
pub fn binary_cross_entropy<D: Dimension>(
    logits: ArrayView<'_, f32, D>,
    targets: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>)> {
    const OP: &str = "binary_cross_entropy";
    check_probabilities(OP, targets.iter())?;
    mean(OP, logits, targets, binary)
}

/// [`binary_cross_entropy`] of `(batch, steps, features)` over the n elements that lie within the sequences' lengths. What
/// lies beyond is not looked at, and its gradient is 0.
///
/// # Errors
/// As for [`mean_squared_within`], and [`Error::Shape`] for a target within the lengths that is not from 0 to 1.
pub fn binary_cross_entropy_within(
    logits: ArrayView3<'_, f32>,
    targets: ArrayView3<'_, f32>,
    lengths: &[usize],
) -> Result<(f64, Array3<f32>)> {
    const OP: &str = "binary_cross_entropy_within";
    let within = targets
        .outer_iter()
        .zip(lengths)
        .map(|(rows, &len)| rows.into_iter().take(len.saturating_mul(targets.dim().2)));
    check_probabilities(OP, within.flatten())?;
    mean_within(OP, logits, targets, lengths, binary)
}

/// A loss of one element and its derivative, from the prediction and the target.
type Each = fn(f64, f64) -> (f64, f64);

fn squared(p: f64, t: f64) -> (f64, f64) {
    let difference = p - t;
    (difference * difference, 2.0 * difference)
}

fn binary(x: f64, t: f64) -> (f64, f64) {
    let e = libm::exp(-x.abs());
    // Infinity times 0 would be what is right, without a doubt.
    let wrong = if x > 0.0 { 1.0 - t } else { t };
    let loss = if wrong == 0.0 { 0.0 } else { x.abs() * wrong } + libm::log1p(e);
    (loss, if x >= 0.0 { 1.0 } else { e } / (1.0 + e) - t)
}

/// The mean over all elements.
fn mean<D: Dimension>(
    op: &'static str,
    prediction: ArrayView<'_, f32, D>,
    target: ArrayView<'_, f32, D>,
    each: Each,
) -> Result<(f64, Array<f32, D>)> {
    let shape = prediction.shape();
    check_same(op, shape, target.shape())?;
    check_not_empty(op, "prediction", shape)?;
    let n = prediction.len() as f64;
    let mut gradient = zeros(op, shape)?;
    let sum = add(0.0, gradient.iter_mut().zip(&prediction).zip(&target), n, each);
    Ok((sum / n, array(op, prediction.raw_dim(), gradient)?))
}

/// The mean over those within lengths.
fn mean_within(
    op: &'static str,
    prediction: ArrayView3<'_, f32>,
    target: ArrayView3<'_, f32>,
    lengths: &[usize],
    each: Each,
) -> Result<(f64, Array3<f32>)> {
    check_same(op, prediction.shape(), target.shape())?;
    let (batch, steps, features) = prediction.dim();
    check_lengths(op, lengths, [batch, steps])?;
    let n = lengths.iter().map(|&len| len as f64 * features as f64).sum::<f64>();
    if n == 0.0 {
        return Err(Error::shape(format!("{op}: lengths"), "at least one element within them", format!("{lengths:?}")));
    }
    let mut gradient = array(op, prediction.raw_dim(), zeros(op, prediction.shape())?)?;
    let mut sum = 0.0;
    for (b, &len) in lengths.iter().enumerate() {
        let (p, t) = (prediction.slice(s![b, ..len, ..]), target.slice(s![b, ..len, ..]));
        sum = add(sum, gradient.slice_mut(s![b, ..len, ..]).iter_mut().zip(p).zip(t), n, each);
    }
    Ok((sum / n, gradient))
}

/// `sum` and the loss of each element, in their order; its derivative, over `n`, goes where it belongs.
fn add<'a>(mut sum: f64, elements: impl Iterator<Item = ((&'a mut f32, &'a f32), &'a f32)>, n: f64, each: Each) -> f64 {
    for ((place, &p), &t) in elements {
        let (loss, derivative) = each(p.into(), t.into());
        sum += loss;
        *place = (derivative / n) as f32;
    }
    sum
}

/// The mean cross entropy of rows of logits, in nats, and its gradient by the logits:
/// `torch.nn.CrossEntropyLoss(ignore_index=IGNORE)` with the classes along the last axis.
///
/// `targets` has the class of each row, rows in row-major order of the other axes; rows whose target is [`IGNORE`] are
/// left out. Over the n rows that count, with `m = max(x)` and `s = sum(exp(x - m))` of a row x and its target t,
///
/// ```text
/// loss = sum(log(s) - (x[t] - m)) / n
/// gradient[k] = (exp(x[k] - m) / s - (1 if k = t else 0)) / n,  or 0 in a row that is left out
/// ```
///
/// all in f64; the gradient is rounded once. Logits that are not finite give a loss that is not finite, except
/// minus infinity, which is probability 0 and so infinite only at a row's target.
///
/// ```
/// use lstm_core::{ndarray::array, train::{IGNORE, cross_entropy}};
/// let (loss, gradient) = cross_entropy(array![[0.0, 0.0], [7.0, 9.0]].view(), &[1, IGNORE])?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, array![[0.5, -0.5], [0.0, 0.0]]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`]: no axis, no elements, another number of targets than rows, a target that is not a class (it
/// names the row), no row that counts.
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
    if let Some(row) = targets.iter().position(|&t| t >= classes && t != IGNORE) {
        let expected = format!("a class below {classes} or IGNORE");
        return Err(Error::shape(format!("{OP}: target of row {row}"), expected, targets[row]));
    }
    let count = targets.iter().filter(|&&t| t != IGNORE).count();
    if count == 0 {
        return Err(Error::shape(format!("{OP}: targets"), "at least one row that counts", "only IGNORE"));
    }
    let n = count as f64;
    let mut gradient = zeros(OP, shape)?;
    let mut sum = 0.0;
    for ((row, places), &target) in logits.rows().into_iter().zip(gradient.chunks_exact_mut(classes)).zip(targets) {
        if target == IGNORE {
            continue;
        }
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
        let shifted = |x: f32| f64::from(x) - max;
        let total = row.iter().fold(0.0, |total, &x| total + libm::exp(shifted(x)));
        sum += libm::log(total) - shifted(row[target]);
        for (k, (place, &x)) in places.iter_mut().zip(row).enumerate() {
            let hot = if k == target { 1.0 } else { 0.0 };
            *place = ((libm::exp(shifted(x)) / total - hot) / n) as f32;
        }
    }
    Ok((sum / n, array(OP, logits.raw_dim(), gradient)?))
}

fn check_same(op: &str, prediction: &[usize], target: &[usize]) -> Result<()> {
    if target == prediction {
        return Ok(());
    }
    Err(Error::shape(format!("{op}: target"), format!("{prediction:?}, as the prediction"), format!("{target:?}")))
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

fn array<D: Dimension>(op: &str, dim: D, values: Vec<f32>) -> Result<Array<f32, D>> {
    Array::from_shape_vec(dim.clone(), values).map_err(|why| Error::shape(op, format!("{:?}", dim.slice()), why))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayD, Axis, IxDyn, arr0, array};

    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn any_layout_gives_the_same() {
        let (p, t) = (array![[1.5f32, -2.0, 0.25], [3.0, 0.0, -7.5]], array![[1.0f32, 2.0, 3.0], [-4.0, 5.0, 6.0]]);
        let (fp, ft) = (p.t().as_standard_layout().into_owned(), t.t().as_standard_layout().into_owned());
        let plain = mean_squared(p.view(), t.view()).unwrap();
        assert_eq!(plain, mean_squared(fp.t(), ft.t()).unwrap());
        assert_eq!(plain, mean_squared(p.view(), ft.t()).unwrap());
        assert!(mean_squared(fp.t(), ft.t()).unwrap().1.is_standard_layout());
        assert_eq!(cross_entropy(p.view(), &[2, 0]).unwrap(), cross_entropy(fp.t(), &[2, 0]).unwrap());
    }

    #[test]
    fn what_lies_beyond_lengths_does_not_count() {
        let p = Array3::from_shape_fn((3, 4, 2), |(b, t, k)| (b + 2 * t) as f32 - 0.5 * k as f32);
        let mut t = p.mapv(|v| 0.25 * v + 1.0);
        let all = mean_squared(p.view(), t.view()).unwrap();
        assert_eq!(mean_squared_within(p.view(), t.view(), &[4, 4, 4]).unwrap(), all);
        t.slice_mut(s![1, 2.., ..]).fill(f32::NAN);
        t.slice_mut(s![2, .., ..]).fill(f32::INFINITY);
        let (loss, gradient) = mean_squared_within(p.view(), t.view(), &[4, 2, 0]).unwrap();
        let rows = |x: &Array3<f32>| {
            let rows = [x.slice(s![0, .., ..]), x.slice(s![1, ..2, ..])];
            ndarray::concatenate(Axis(0), &rows).unwrap()
        };
        let want = mean_squared(rows(&p).view(), rows(&t).view()).unwrap();
        assert_eq!((loss, rows(&gradient)), want);
        let yes = t.mapv(|t| if t.is_finite() { t.clamp(0.0, 1.0) } else { t });
        let (loss, by_logits) = binary_cross_entropy_within(p.view(), yes.view(), &[4, 2, 0]).unwrap();
        let want = binary_cross_entropy(rows(&p).view(), rows(&yes).view()).unwrap();
        assert_eq!((loss, rows(&by_logits)), want);
        let error = message(binary_cross_entropy_within(p.view(), yes.view(), &[4, 3, 0]));
        assert!(error.contains("target: expected probabilities from 0 to 1, got NaN"), "{error}");
        assert!(binary_cross_entropy_within(p.view(), yes.view(), &[usize::MAX, 1, 1]).is_err());
        assert!(gradient.slice(s![1, 2.., ..]).iter().chain(gradient.slice(s![2, .., ..])).all(|v| v.to_bits() == 0));
        for (lengths, parts) in [
            (&[4, 5, 5][..], ["mean_squared_within: lengths[1]", "at most 4 steps", "got 5"]),
            (&[4, 4], ["lengths", "3, one for each sequence", "got 2"]),
            (&[0, 0, 0], ["lengths", "at least one element", "[0, 0, 0]"]),
        ] {
            let error = message(mean_squared_within(p.view(), t.view(), lengths));
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
        let error = message(mean_squared_within(p.view(), t.slice(s![..2, .., ..]), &[1, 1, 1]));
        assert!(error.contains("target: expected [3, 4, 2], as the prediction, got [2, 4, 2]"), "{error}");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let (loss, gradient) = cross_entropy(array![f32::MAX, 0.0, f32::MIN].view(), &[1]).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX), array![1.0, -1.0, 0.0]));
        let (loss, gradient) = cross_entropy(array![0.0, f32::NEG_INFINITY].view(), &[0]).unwrap();
        assert_eq!((loss, gradient), (0.0, array![0.0, 0.0]));
        let (x, t) = (array![f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY], array![0.0, 0.0, 1.0, 0.0]);
        let (loss, gradient) = binary_cross_entropy(x.view(), t.view()).unwrap();
        assert_eq!((loss, gradient), (f64::from(f32::MAX) / 4.0, array![0.25, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn what_is_not_finite_shows_in_the_loss() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!mean_squared(array![bad, 1.0].view(), array![0.0, 0.0].view()).unwrap().0.is_finite());
            assert!(!cross_entropy(array![bad, 1.0].view(), &[0]).unwrap().0.is_finite());
            assert!(!binary_cross_entropy(array![bad, 1.0].view(), array![0.5, 0.0].view()).unwrap().0.is_finite());
        }
        assert!(cross_entropy(array![f32::NAN, 1.0].view(), &[1]).unwrap().0.is_nan());
        let (loss, gradient) = cross_entropy(array![[f32::NAN, 1.0], [0.0, 0.0]].view(), &[IGNORE, 0]).unwrap();
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "a row that is left out");
    }

    #[test]
    fn misfits_are_named() {
        let x = Array2::<f32>::zeros((2, 3));
        for (error, parts) in [
            (
                message(mean_squared(x.view(), Array2::zeros((3, 2)).view())),
                ["mean_squared: target", "[2, 3]", "[3, 2]"],
            ),
            (
                message(mean_squared(x.view().into_dyn(), ArrayD::zeros(IxDyn(&[6])).view())),
                ["target", "[2, 3]", "[6]"],
            ),
            (
                message(mean_squared(x.slice(ndarray::s![0..0, ..]), Array2::zeros((0, 3)).view())),
                ["one", "[0, 3]", ""],
            ),
            (
                message(binary_cross_entropy(x.view(), Array2::from_elem((2, 3), -0.5).view())),
                ["binary_cross_entropy: target", "from 0 to 1", "got -0.5"],
            ),
            (message(cross_entropy(arr0(1.0f32).view(), &[0])), ["cross_entropy: logits", "one axis", "none"]),
            (message(cross_entropy(Array2::zeros((2, 0)).view(), &[0, 0])), ["logits", "one element", "[2, 0]"]),
            (message(cross_entropy(x.view(), &[0])), ["targets", "2, one per row of [2, 3]", "got 1"]),
            (message(cross_entropy(x.view(), &[IGNORE, 3])), ["row 1", "below 3", "got 3"]),
            (message(cross_entropy(x.view(), &[IGNORE, IGNORE])), ["targets", "one row", "IGNORE"]),
        ] {
            assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        }
    }

    #[test]
    fn a_shape_larger_than_memory_is_an_error() {
        let huge = array![1.0f32];
        let huge = huge.broadcast(isize::MAX as usize).unwrap();
        assert!(matches!(mean_squared(huge, huge), Err(Error::TooLarge { op: "mean_squared", .. })));
    }
}
