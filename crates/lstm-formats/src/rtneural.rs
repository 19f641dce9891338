//! RTNeural's JSON files, <https://github.com/jatinchowdhury18/RTNeural>: `LSTM` layers and an optional dense layer.
//!
//! The files hold Keras weights as nested lists. An LSTM layer has `[kernel, recurrent_kernel, bias]` of shapes
//! `[input, 4 * hidden]`, `[hidden, 4 * hidden]` and `[4 * hidden]`, with gates i, f, c, o. A dense layer has
//! `[kernel, bias]` of shapes `[input, output]` and `[output]`.

use std::path::Path;

use ndarray::{Array1, Array2};
use serde::Deserialize;

use lstm_core::{Bias, Error, LayerWeights, LstmConfig, Result, Weights};

/// A model from an RTNeural file: LSTM layers and an optional dense layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RtNeural {
    /// Weights of the LSTM layers, for [`Lstm::new`](lstm_core::Lstm::new).
    pub lstm: Weights,
    /// Weight `[output, input]` and bias `[output]` of the dense layer after the LSTM, for
    /// [`Linear::new`](lstm_core::Linear::new).
    pub head: Option<(Array2<f32>, Array1<f32>)>,
}

/// The root object of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Shape of the input, with the number of features last.
    in_shape: Vec<Option<usize>>,
    layers: Vec<Layer>,
}

/// A layer in the file. `shape` is the shape of the layer's output, with the number of features last.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
enum Layer {
    /// An LSTM layer. `weights` are its kernel, recurrent kernel and bias.
    Lstm {
        #[serde(default)]
        activation: String,
        shape: Vec<Option<usize>>,
        weights: (Matrix, Matrix, Vec<f64>),
    },
    /// A dense layer. `weights` are its kernel and bias.
    #[serde(alias = "time-distributed-dense")]
    Dense {
        #[serde(default)]
        activation: String,
        shape: Vec<Option<usize>>,
        weights: (Matrix, Vec<f64>),
    },
}

/// A matrix as a list of rows.
type Matrix = Vec<Vec<f64>>;

impl RtNeural {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be read; the errors of [`from_bytes`](Self::from_bytes), with the name of the
    /// file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Parses the bytes of a file. Numbers are rounded to f32.
    ///
    /// # Errors
    /// [`Error::Format`] for unknown keys, layer types and activations; for a dense layer that is not the last layer;
    /// for LSTM layers of different hidden sizes; for lists of the wrong shape; for a number that does not fit in f32.
    /// [`Error::Config`] for sizes that are not [valid](LstmConfig::validate).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, "rtneural")
    }

    /// Parses a file. `source` is its name for error messages.
    fn parse(bytes: &[u8], source: &str) -> Result<Self> {
        let error = |why: String| Error::format(source, why);
        let file: File = serde_json::from_slice(bytes).map_err(|e| error(e.to_string()))?;
        let features = |shape: &[Option<usize>], layer_label: &str| {
            let size = shape.last().copied().flatten();
            size.ok_or_else(|| error(format!("{layer_label}: expected a shape that ends with a size, got {shape:?}")))
        };
        let input_size = features(&file.in_shape, "in_shape")?;
        let (mut layers, mut head, mut hidden_size) = (Vec::new(), None, None);
        for (k, layer) in file.layers.iter().enumerate() {
            let layer_label = format!("layer {k}");
            let convert_matrix =
                |rows: &[Vec<f64>], shape| to_matrix(rows, shape).map_err(|why| error(format!("{layer_label}: {why}")));
            let convert_vector =
                |row: &[f64], len| Ok::<_, Error>(convert_matrix(&[row.to_vec()], (1, len))?.flatten().to_owned());
            let layer_input_size = hidden_size.unwrap_or(input_size);
            match layer {
                Layer::Lstm { activation, shape, weights: (kernel, recurrent_kernel, bias) } => {
                    let size = features(shape, &layer_label)?;
                    if head.is_some() || hidden_size.is_some_and(|hidden_size| hidden_size != size) {
                        let why = "expected LSTM layers of the same size, then at most one dense layer";
                        return Err(error(format!("{layer_label} (lstm, {size}): {why}")));
                    }
                    // Keras's `activation` is that of the candidate gate and the output.
                    if !["", "tanh"].contains(&&**activation) {
                        return Err(error(format!("{layer_label}: expected the activation tanh, got `{activation}`")));
                    }
                    let gates_size = size.saturating_mul(4);
                    let kernel = convert_matrix(kernel, (layer_input_size, gates_size))?.reversed_axes();
                    let recurrent_kernel = convert_matrix(recurrent_kernel, (size, gates_size))?.reversed_axes();
                    let bias = convert_vector(bias, gates_size)?;
                    layers.push(vec![kernel.into_dyn(), recurrent_kernel.into_dyn(), bias.into_dyn()]);
                    hidden_size = Some(size);
                }
                Layer::Dense { activation, shape, weights: (kernel, bias) } => {
                    if head.is_some() || hidden_size.is_none() || !activation.is_empty() {
                        let why = "expected one dense layer without an activation, after the LSTM layers";
                        return Err(error(format!("{layer_label} (dense, activation `{activation}`): {why}")));
                    }
                    let size = features(shape, &layer_label)?;
                    head = Some((
                        convert_matrix(kernel, (layer_input_size, size))?.reversed_axes(),
                        convert_vector(bias, size)?,
                    ));
                }
            }
        }
        let hidden_size = hidden_size.ok_or_else(|| error("expected an LSTM layer, found none".into()))?;
        let config = LstmConfig::new(input_size, hidden_size).layers(layers.len()).bias(Bias::One);
        config.validate()?;
        let layers = config.layer_specs().into_iter().zip(layers).map(|(spec, params)| LayerWeights::new(spec, params));
        Ok(RtNeural { lstm: Weights::new(config, layers.collect::<Result<_>>()?)?, head })
    }
}

/// Converts a list of rows to a matrix of this shape.
fn to_matrix(rows: &[Vec<f64>], (height, width): (usize, usize)) -> Result<Array2<f32>, String> {
    if rows.len() != height {
        return Err(format!("expected {height} x {width} numbers, got {} rows", rows.len()));
    }
    if let Some(len) = rows.iter().map(Vec::len).find(|len| *len != width) {
        return Err(format!("expected {height} x {width} numbers, got a row of {len}"));
    }
    let values: Vec<f32> = rows.iter().flatten().map(|&v| v as f32).collect();
    match values.iter().all(|v| v.is_finite()) {
        true => Array2::from_shape_vec((height, width), values).map_err(|e| e.to_string()),
        false => Err("expected finite numbers that fit in f32".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::Param;

    const DENSE_LAYER: &str =
        r#"{"type": "dense", "activation": "", "shape": [null, null, 1], "weights": [[[7], [8]], [9]]}"#;

    /// An LSTM layer of hidden size 2. The element at `[row, column]` of its matrices is `10 * row + column`.
    fn lstm_layer(input: usize) -> String {
        let row = |first: usize| {
            let values: Vec<_> = (first..first + 8).map(|v| v.to_string()).collect();
            format!("[{}]", values.join(", "))
        };
        let rows = |n: usize| format!("[{}]", (0..n).map(|k| row(10 * k)).collect::<Vec<_>>().join(", "));
        let weights = format!("[{}, {}, {}]", rows(input), rows(2), row(0));
        format!(r#"{{"type": "lstm", "activation": "tanh", "shape": [null, null, 2], "weights": {weights}}}"#)
    }

    /// Parses a file with one input feature and these layers.
    fn parse_layers(layers: &[&str]) -> Result<RtNeural> {
        let text = format!(r#"{{"in_shape": [null, null, 1], "layers": [{}]}}"#, layers.join(", "));
        RtNeural::from_bytes(text.as_bytes())
    }

    #[test]
    fn keras_kernels_are_transposed() {
        let model = parse_layers(&[&lstm_layer(1), &lstm_layer(2), DENSE_LAYER]).unwrap();
        assert_eq!(model.lstm.config(), &LstmConfig::new(1, 2).layers(2).bias(Bias::One));
        let second_layer_weight = model.lstm.layers()[1].get(Param::WeightIh).unwrap();
        assert_eq!((second_layer_weight.shape(), second_layer_weight[[3, 1]]), (&[8, 2][..], 13.0));
        let (weight, bias) = model.head.unwrap();
        assert_eq!((weight, bias), (ndarray::array![[7.0, 8.0]], ndarray::array![9.0]));
    }

    #[test]
    fn rejects_unsupported_files() {
        let assert_rejected = |layers: &[&str], word: &str| {
            let error = parse_layers(layers).unwrap_err().to_string();
            assert!(error.contains(word), "{error}: expected {word}");
        };
        let (one_input_lstm, two_input_lstm) = (lstm_layer(1), lstm_layer(2));
        assert_rejected(&[&one_input_lstm.replace("lstm", "gru")], "`gru`");
        assert_rejected(&[&one_input_lstm.replace("lstm", "conv1d")], "`conv1d`");
        assert_rejected(&[&one_input_lstm.replace("tanh", "relu")], "`relu`");
        assert_rejected(
            &[&one_input_lstm, &DENSE_LAYER.replace(r#""activation": """#, r#""activation": "tanh""#)],
            "`tanh`",
        );
        assert_rejected(&[&one_input_lstm, DENSE_LAYER, DENSE_LAYER], "layer 2 (dense");
        assert_rejected(&[DENSE_LAYER], "layer 0 (dense");
        assert_rejected(&[&one_input_lstm, DENSE_LAYER, &two_input_lstm], "layer 2 (lstm");
        assert_rejected(&[&one_input_lstm, &two_input_lstm.replace("null, 2]", "null, 3]")], "layer 1 (lstm, 3)");
        assert_rejected(&[&two_input_lstm], "1 x 8");
        assert_rejected(&[&one_input_lstm.replace("[[0, 1,", "[[1e60, 1,")], "fit in f32");
        assert_rejected(&[&one_input_lstm.replace("null, 2]", "2, null]")], "ends with a size");
        assert_rejected(&[&one_input_lstm.replace(r#""shape""#, r#""dropout": 0.5, "shape""#)], "`dropout`");
        assert_rejected(&[], "none");
        let unknown_key = r#"{"in_shape": [1], "layers": [], "in_skip": 1}"#;
        assert!(RtNeural::from_bytes(unknown_key.as_bytes()).unwrap_err().to_string().contains("`in_skip`"));
        assert!(RtNeural::from_bytes(b"[").is_err());
        assert!(RtNeural::from_bytes("[".repeat(100_000).as_bytes()).is_err());
    }
}
