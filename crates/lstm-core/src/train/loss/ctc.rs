//! Connectionist temporal classification.

use std::hint::black_box;

use ndarray::{Array3, ArrayView2, ArrayView3, ArrayViewMut2, Axis};

use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::check_lengths,
};

/// The mean CTC loss and its gradient with respect to the logits, as `torch.nn.CTCLoss(blank=blank)` of the log-softmax
/// of the logits: for labels whose time steps are not known, such as the characters of a spoken sentence (Graves et al.
/// 2006, "Connectionist Temporal Classification").
///
/// `logits` has the shape `(batch, steps, classes)`. `targets` has the labels of each sequence, classes other than
/// `blank`, and may be empty. A path is one class per time step; it reads as a target if removing repeated classes and
/// then blanks gives the target. With `P`, the sum of the probabilities of all paths that read as the target:
///
/// ```text
/// loss = sum over sequences(-log(P) / max(number of labels, 1)) / batch
/// ```
///
/// `lengths`, if given, has the number of time steps of each sequence; logits beyond it are not read, and their gradient
/// is 0. Everything is computed in f64 by the forward and backward recursions of section 4.1 of the paper, in
/// logarithms; the gradient is rounded to f32 once. The loss is infinite or NaN if a logit is.
///
/// ```
/// use lstm_core::{ndarray::Array3, train::ctc_loss};
/// // Of the 9 paths over 2 time steps, these read as [1]: 11, 01, 10.
/// let (loss, _gradient) = ctc_loss(Array3::zeros((1, 2, 3)).view(), None, &[&[1]], 0)?;
/// assert!((loss - 3.0f64.ln()).abs() < 1e-15);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if there are no logits, or the number of targets or lengths is not the batch size, a length is
/// greater than the number of steps, `blank` or a label is not a class, a label is the blank, or a sequence has too few
/// time steps for its labels: it needs one for each label, and one for each blank between two equal labels. PyTorch
/// returns an infinite loss in the last case.
pub fn ctc_loss(
    logits: ArrayView3<'_, f32>,
    lengths: Option<&[usize]>,
    targets: &[&[usize]],
    blank: usize,
) -> Result<(f64, Array3<f32>)> {
    let (batch, steps, classes) = logits.dim();
    super::check_not_empty(OP, "logits", logits.shape())?;
    if let Some(lengths) = lengths {
        check_lengths(OP, lengths, [batch, steps])?;
    }
    if targets.len() != batch {
        return Err(Error::shape(format!("{OP}: targets"), format!("{batch}, one for each sequence"), targets.len()));
    }
    if blank >= classes {
        return Err(Error::shape(format!("{OP}: blank"), format!("a class below {classes}"), blank));
    }
    let length_of = |b: usize| lengths.map_or(steps, |lengths| lengths[b]);
    for (b, labels) in targets.iter().enumerate() {
        if let Some(label) = labels.iter().find(|&&label| label >= classes || label == blank) {
            let expected = format!("classes below {classes} other than the blank {blank}");
            return Err(Error::shape(format!("{OP}: target of sequence {b}"), expected, label));
        }
        let repeated = labels.windows(2).filter(|pair| pair[0] == pair[1]).count();
        if labels.len() + repeated > length_of(b) {
            let expected = format!(
                "at least {} time steps for {} labels, of which {repeated} repeat the one before; leave the sequence out",
                labels.len() + repeated,
                labels.len()
            );
            return Err(Error::shape(format!("{OP}: length of sequence {b}"), expected, length_of(b)));
        }
    }
    let _environment = FloatEnvironment::set_default();
    let mut gradient = memory::zero_array(OP, logits.raw_dim())?;
    let mut sum = 0.0;
    for (b, labels) in targets.iter().enumerate() {
        let (mut logits, mut gradient) = (logits.index_axis(Axis(0), b), gradient.index_axis_mut(Axis(0), b));
        logits.slice_axis_inplace(Axis(0), (..length_of(b)).into());
        let divisor = labels.len().max(1) as f64;
        sum += sequence_loss(logits, gradient.view_mut(), labels, blank, divisor * batch as f64)? / divisor;
    }
    Ok((black_box(sum / batch as f64), gradient))
}

const OP: &str = "ctc_loss";

/// The loss of one sequence. Writes its gradient, divided by `divisor`.
fn sequence_loss(
    logits: ArrayView2<'_, f32>,
    mut gradient: ArrayViewMut2<'_, f32>,
    labels: &[usize],
    blank: usize,
    divisor: f64,
) -> Result<f64> {
    let (steps, classes) = logits.dim();
    if steps == 0 {
        // Without time steps and labels, the empty path has probability 1.
        return Ok(0.0);
    }
    let mut log_probabilities = memory::with_capacity(OP, &[steps, classes])?;
    for row in logits.rows() {
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
        let exp_sum = row.iter().fold(0.0, |sum, &x| sum + libm::exp(f64::from(x) - max));
        let log_sum = libm::log(exp_sum);
        log_probabilities.extend(row.iter().map(|&x| f64::from(x) - max - log_sum));
    }
    // Positions of a path in the target: the labels with a blank before, between and after them.
    let positions = 2 * labels.len() + 1;
    let class_at = |position: usize| if position.is_multiple_of(2) { blank } else { labels[position / 2] };
    // Whether a path may come to a label from the label before, without a blank between.
    let may_skip =
        |position: usize| !position.is_multiple_of(2) && position >= 3 && class_at(position) != class_at(position - 2);
    let log_probability = |t: usize, position: usize| log_probabilities[t * classes + class_at(position)];

    // Logarithms of the probabilities of all beginnings of paths that are at a position after time step t.
    let mut forward = memory::filled(OP, &[steps, positions], f64::NEG_INFINITY)?;
    for (position, value) in forward.iter_mut().enumerate().take(positions.min(2)) {
        *value = log_probability(0, position);
    }
    for t in 1..steps {
        let (before, now) = forward.split_at_mut(t * positions);
        let before = &before[(t - 1) * positions..];
        for position in 0..positions {
            let mut sum = before[position];
            if position >= 1 {
                sum = log_add(sum, before[position - 1]);
            }
            if may_skip(position) {
                sum = log_add(sum, before[position - 2]);
            }
            now[position] = sum + log_probability(t, position);
        }
    }
    let last = &forward[(steps - 1) * positions..];
    let total = match positions {
        1 => last[0],
        _ => log_add(last[positions - 1], last[positions - 2]),
    };

    // Logarithms of the probabilities of all ends of paths that are at a position after time step t.
    let mut backward = memory::filled(OP, &[positions], f64::NEG_INFINITY)?;
    backward[positions.saturating_sub(2)..].fill(0.0);
    let mut occupancy = memory::filled(OP, &[classes], 0.0)?;
    for t in (0..steps).rev() {
        if t + 1 < steps {
            // From the first position on, so that the later ones are still those of the next time step.
            for position in 0..positions {
                let next = |position: usize| backward[position] + log_probability(t + 1, position);
                let mut sum = next(position);
                if position + 1 < positions {
                    sum = log_add(sum, next(position + 1));
                }
                if position + 2 < positions && may_skip(position + 2) {
                    sum = log_add(sum, next(position + 2));
                }
                backward[position] = sum;
            }
        }
        occupancy.fill(0.0);
        for position in 0..positions {
            occupancy[class_at(position)] += libm::exp(forward[t * positions + position] + backward[position] - total);
        }
        for (class, gradient) in gradient.row_mut(t).iter_mut().enumerate() {
            let probability = libm::exp(log_probabilities[t * classes + class]);
            *gradient = ((probability - occupancy[class]) / divisor) as f32;
        }
    }
    Ok(-total)
}

/// `log(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    if small == f64::NEG_INFINITY { large } else { large + libm::log1p(libm::exp(small - large)) }
}
