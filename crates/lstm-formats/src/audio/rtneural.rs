//! RTNeural's JSON files, <https://github.com/jatinchowdhury18/RTNeural>: LSTM and dense layers with activations.
//!
//! The files hold Keras weights as nested lists. An LSTM layer has `[kernel, recurrent_kernel, bias]` of shapes
//! `(input, 4 * hidden)`, `(hidden, 4 * hidden)` and `(4 * hidden)`, with gates i, f, c, o. A dense layer has
//! `[kernel, bias]` of shapes `(input, output)` and `(output)`. `shape` is the shape of a layer's output, with the
//! number of features last.

use ndarray::{Array1, Array2};

use lstm_core::{ModelLayer, ModelWeights};

use super::{activation, keras_lstm, model};
use crate::json::{Json, Object};

/// Reads the model. Leaves in `root` what describes it.
///
/// # Errors
/// A text, for unknown keys of a layer, layers other than LSTM, dense and activation layers, unknown activations, no
/// LSTM, and lists of the wrong shape.
pub(super) fn read(root: &mut Object) -> Result<ModelWeights, String> {
    let mut size = features(root.require("in_shape")?, "`in_shape`")?;
    let mut layers = Vec::new();
    for (k, layer) in root.require("layers")?.list("`layers`")?.into_iter().enumerate() {
        let place = format!("layer {k}");
        let mut layer = layer.object(&place)?;
        let kind =
            layer.require("type").and_then(|kind| kind.text("`type`")).map_err(|why| format!("{place}: {why}"))?;
        size = push(&mut layers, layer, &kind, k, size).map_err(|why| format!("{place} ({kind}): {why}"))?;
    }
    model(layers)
}

/// Adds a layer with this number of inputs. Returns the number of its outputs.
fn push(
    layers: &mut Vec<ModelLayer>,
    mut layer: Object,
    kind: &str,
    index: usize,
    inputs: usize,
) -> Result<usize, String> {
    if !["lstm", "dense", "time-distributed-dense", "activation"].contains(&kind) {
        let why = "expected an LSTM, dense or activation layer; only models of those can be opened";
        return Err(if kind == "unknown" {
            format!("{why}. The program that wrote the file did not know it")
        } else {
            why.into()
        });
    }
    let size = features(layer.require("shape")?, "`shape`")?;
    let mut weights = layer.take("weights").map_or(Ok(Vec::new()), |weights| weights.list("`weights`"))?.into_iter();
    let function = layer.take("activation").map_or(Ok(String::new()), |name| name.text("`activation`"))?;
    layer.finish("the layer")?;
    let count = weights.len();
    let mut next =
        |what: &str| weights.next().ok_or_else(|| format!("expected a {what} in `weights`, which has {count} lists"));
    let name = format!("layers.{index}");
    match kind {
        "lstm" => {
            // Keras's `activation` is that of the candidate gate and the output.
            if !["", "tanh"].contains(&&*function) {
                return Err(format!("expected the activation tanh, got `{function}`"));
            }
            let gates = size.saturating_mul(4);
            let kernel = matrix(next("kernel")?, "the kernel", (inputs, gates))?;
            let recurrent_kernel = matrix(next("recurrent kernel")?, "the recurrent kernel", (size, gates))?;
            let bias = weights.next().map(|bias| vector(bias, gates)).transpose()?;
            layers.push(keras_lstm(&name, kernel, recurrent_kernel, bias)?);
        }
        "activation" => {
            if size != inputs {
                return Err(format!(
                    "expected {inputs} features in `shape`, as many as the layer before has, got {size}"
                ));
            }
            layers.extend(activation(&function)?.map(ModelLayer::Activation));
        }
        _ => {
            let weight = matrix(next("kernel")?, "the kernel", (inputs, size))?.reversed_axes();
            let bias = weights.next().map(|bias| vector(bias, size)).transpose()?;
            layers.push(ModelLayer::Linear { name, weight: weight.as_standard_layout().into_owned(), bias });
            layers.extend(activation(&function)?.map(ModelLayer::Activation));
        }
    }
    match weights.len() {
        0 => Ok(size),
        left => Err(format!("`weights` has {left} lists too many")),
    }
}

/// The number of features at the end of a shape. Models with one input may have a list of one shape.
fn features(shape: Json, what: &str) -> Result<usize, String> {
    let expected = format!("{what}: expected a shape that ends with a size, got {shape}");
    let mut sizes = shape.list(what)?;
    if let [Json::List(only)] = &mut sizes[..] {
        sizes = std::mem::take(only);
    }
    if sizes.len() > 3 {
        return Err(format!("{what}: expected (batch, steps, features), got {} sizes", sizes.len()));
    }
    sizes.last().and_then(|size| size.size(what).ok()).ok_or(expected)
}

/// A matrix of this shape.
fn matrix(rows: Json, what: &str, shape: (usize, usize)) -> Result<Array2<f32>, String> {
    let matrix = rows.matrix(what)?;
    match matrix.dim() == shape {
        true => Ok(matrix),
        false => Err(format!(
            "{what}: expected {} x {} numbers, got {} x {}",
            shape.0,
            shape.1,
            matrix.nrows(),
            matrix.ncols()
        )),
    }
}

/// A bias of this length.
fn vector(bias: Json, len: usize) -> Result<Array1<f32>, String> {
    let bias = bias.vector("the bias")?;
    match bias.len() == len {
        true => Ok(bias),
        false => Err(format!("the bias: expected {len} numbers, got {}", bias.len())),
    }
}
