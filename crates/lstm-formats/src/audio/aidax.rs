//! AIDA-X files: RTNeural's layers with a skip connection, gains in dB and a self-test.
//!
//! `y = out_gain * (layers(in_gain * x) + in_skip * in_gain * x)`. The file contains an input and the output for it,
//! which the reader checks.

use ndarray::Array2;

use lstm_core::ModelWeights;

use super::rtneural;
use crate::{
    evaluate::{Sequence, evaluate},
    json::{Json, Object},
};

/// Keys that an RTNeural file does not have.
const KEYS: [&str; 5] = ["in_skip", "in_gain", "out_gain", "input_batch", "output_batch"];

/// The self-test's tolerance: an absolute part, AIDA-X's own, and a part relative to the largest output, which the file
/// has in f32 as another library computed it.
const TOLERANCE: (f64, f64) = (1e-5, 1e-4);

/// The most multiplications that the self-test may cost, about a second. It checks fewer time steps in a larger model.
const MAX_COST: usize = 1 << 30;

/// Reads the model. Leaves in `root` what describes it.
///
/// # Errors
/// The errors of [`rtneural::read`]; an `in_skip` other than 0 and 1; a self-test that fails.
pub(super) fn read(root: &mut Object) -> Result<ModelWeights, String> {
    let [skip, in_gain, out_gain, input, output] = KEYS.map(|key| root.take(key));
    let mut model = rtneural::read(root)?;
    if skip.map_or(Ok(false), |skip| skip.flag("`in_skip`"))? {
        model = model.with_skip().map_err(|error| error.to_string())?;
    }
    let gain = |value: Option<Json>, what: &str| {
        let decibels = value.map_or(Ok(0.0), |value| value.number(what))?;
        Ok::<_, String>(10f64.powf(decibels / 20.0) as f32)
    };
    let model = model
        .with_gains(gain(in_gain, "`in_gain`")?, gain(out_gain, "`out_gain`")?)
        .map_err(|error| error.to_string())?;
    match (input, output) {
        (Some(input), Some(output)) => self_test(&model, input, output)?,
        (None, None) => {}
        (Some(_), None) => return Err("the self-test has `input_batch`, but no `output_batch`".into()),
        (None, Some(_)) => return Err("the self-test has `output_batch`, but no `input_batch`".into()),
    }
    Ok(model)
}

/// Runs the model over the input in the file and compares its output with that in the file.
fn self_test(model: &ModelWeights, input: Json, output: Json) -> Result<(), String> {
    let (x, want) = (samples(input, "`input_batch`")?, samples(output, "`output_batch`")?);
    if x.nrows() != want.nrows() {
        let (x, want) = (x.nrows(), want.nrows());
        return Err(format!("expected as many samples in `output_batch` as in `input_batch`, got {want} and {x}"));
    }
    if want.ncols() != model.output_size() || x.ncols() > model.input_size() || x.is_empty() {
        return Err(format!(
            "expected {} inputs and {} outputs for each sample of the self-test, got {} and {}",
            model.input_size(),
            model.output_size(),
            x.ncols(),
            want.ncols()
        ));
    }
    let steps = x.nrows().min((MAX_COST / model.num_params().max(1)).max(1));
    // The self-test of a model with knobs has the signal only, and the knobs at 0.
    let features =
        Array2::from_shape_fn(
            (steps, model.input_size()),
            |(t, k)| {
                if k < x.ncols() { f64::from(x[[t, k]]) } else { 0.0 }
            },
        );
    let y = evaluate(model, Sequence::Features(features))?;
    let largest = want.iter().fold(0.0, |largest: f64, &v| largest.max(f64::from(v.abs())));
    let tolerance = TOLERANCE.0 + TOLERANCE.1 * largest;
    let mut worst = (0.0, 0);
    for ((t, k), &y) in y.indexed_iter() {
        let difference = (y - f64::from(want[[t, k]])).abs();
        // Not a number is a failure as well.
        if difference.is_nan() || difference > worst.0 {
            worst = (difference, t);
        }
    }
    match worst {
        (difference, _) if difference <= tolerance => Ok(()),
        (difference, t) => Err(format!(
            "the self-test failed: the output differs from `output_batch` by up to {difference:.2e}, at sample {t} of \
             {steps}; expected at most {tolerance:.2e}. The file is damaged, or it is not the model that its author \
             tested"
        )),
    }
}

/// Samples, shape `(samples, features)`: a list of numbers, or a list of lists.
fn samples(json: Json, what: &str) -> Result<Array2<f32>, String> {
    match &json {
        Json::List(items) if items.iter().any(|item| matches!(item, Json::List(_))) => json.matrix(what),
        _ => Ok(json.vector(what)?.insert_axis(ndarray::Axis(1))),
    }
}
