//! RTNeural's JSON files, <https://github.com/jatinchowdhury18/RTNeural>: `LSTM` layers and a dense one that may follow.
//!
//! The file is Keras's weights as lists: of an LSTM `[kernel, recurrent_kernel, bias]`, of shapes
//! `[input, 4 * hidden]`, `[hidden, 4 * hidden]` and `[4 * hidden]`, gates i, f, c, o; of a dense layer `[kernel, bias]`.

use std::path::Path;

use ndarray::{Array1, Array2};
use serde::Deserialize;

use lstm_core::{Bias, Error, LayerWeights, LstmConfig, Result, Weights};

/// A model from a file: its LSTM and its head.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RtNeural {
    /// The LSTM layers, ready for [`Lstm::new`](lstm_core::Lstm::new).
    pub lstm: Weights,
    /// The dense layer after them, ready for [`Linear::new`](lstm_core::train::Linear::new): weight `(out, in)` and bias.
    pub head: Option<(Array2<f32>, Array1<f32>)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    in_shape: Vec<Option<usize>>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
enum Layer {
    Lstm {
        #[serde(default)]
        activation: String,
        shape: Vec<Option<usize>>,
        weights: (Matrix, Matrix, Vec<f64>),
    },
    #[serde(alias = "time-distributed-dense")]
    Dense {
        #[serde(default)]
        activation: String,
        shape: Vec<Option<usize>>,
        weights: (Matrix, Vec<f64>),
    },
}

type Matrix = Vec<Vec<f64>>;

impl RtNeural {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; as for [`from_bytes`](Self::from_bytes), naming the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Takes the bytes of a file. Numbers are rounded to f32.
    ///
    /// # Errors
    /// [`Error::Format`] naming what is not understood, a layer of another kind or in another place, an activation, a
    /// key; lists that are not of the shape that they should have; a number that f32 does not hold; LSTM layers of
    /// several hidden sizes. [`Error::Config`] for sizes that are not [valid](LstmConfig::validate).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, "rtneural")
    }

    fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let fail = |why: String| Error::format(what, why);
        let file: File = serde_json::from_slice(bytes).map_err(|e| fail(e.to_string()))?;
        let size = |shape: &[Option<usize>], of: &str| {
            shape.last().copied().flatten().ok_or_else(|| fail(format!("{of}: expected a size last, got {shape:?}")))
        };
        let input = size(&file.in_shape, "in_shape")?;
        let (mut layers, mut head, mut hidden) = (Vec::new(), None, None);
        for (k, layer) in file.layers.iter().enumerate() {
            let of = format!("layer {k}");
            let array = |rows: &[Vec<f64>], shape| array(rows, shape).map_err(|why| fail(format!("{of}: {why}")));
            let vector = |row: &[f64], len| Ok::<_, Error>(array(&[row.to_vec()], (1, len))?.flatten().to_owned());
            let below = hidden.unwrap_or(input);
            match layer {
                Layer::Lstm { activation, shape, weights: (kernel, recurrent, bias) } => {
                    let size = size(shape, &of)?;
                    if head.is_some() || hidden.is_some_and(|hidden| hidden != size) {
                        let why = "expected LSTM layers of one size, then at most one dense layer";
                        return Err(fail(format!("{of} (lstm, {size}): {why}")));
                    }
                    // Keras tells the candidate's activation.
                    if !["", "tanh"].contains(&&**activation) {
                        return Err(fail(format!("{of}: expected the activation tanh, got `{activation}`")));
                    }
                    let wide = size.saturating_mul(4);
                    let (kernel, recurrent) = (array(kernel, (below, wide))?, array(recurrent, (size, wide))?);
                    let bias = vector(bias, wide)?.into_dyn();
                    layers.push(vec![kernel.reversed_axes().into_dyn(), recurrent.reversed_axes().into_dyn(), bias]);
                    hidden = Some(size);
                }
                Layer::Dense { activation, shape, weights: (kernel, bias) } => {
                    if head.is_some() || hidden.is_none() || !activation.is_empty() {
                        let why = "expected one dense layer without an activation, after the LSTM layers";
                        return Err(fail(format!("{of} (dense, activation `{activation}`): {why}")));
                    }
                    let size = size(shape, &of)?;
                    head = Some((array(kernel, (below, size))?.reversed_axes(), vector(bias, size)?));
                }
            }
        }
        let hidden = hidden.ok_or_else(|| fail("expected an LSTM layer, found none".into()))?;
        let config = LstmConfig::new(input, hidden).layers(layers.len()).bias(Bias::One);
        config.validate()?;
        let layers = config.layer_specs().into_iter().zip(layers).map(|(spec, params)| LayerWeights::new(spec, params));
        Ok(RtNeural { lstm: Weights::new(config, layers.collect::<Result<_>>()?)?, head })
    }
}

/// Lists as a matrix of this shape.
fn array(rows: &[Vec<f64>], shape: (usize, usize)) -> Result<Array2<f32>, String> {
    if let Some(odd) = rows.iter().map(Vec::len).find(|len| *len != shape.1).or((rows.len() != shape.0).then_some(0)) {
        return Err(format!("expected {} x {} numbers, got {} lists, one of {odd}", shape.0, shape.1, rows.len()));
    }
    let values: Vec<f32> = rows.iter().flatten().map(|&v| v as f32).collect();
    match values.iter().all(|v| v.is_finite()) {
        true => Array2::from_shape_vec(shape, values).map_err(|e| e.to_string()),
        false => Err("a number is more than f32 holds".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::Param;

    const DENSE: &str =
        r#"{"type": "dense", "activation": "", "shape": [null, null, 1], "weights": [[[7], [8]], [9]]}"#;

    fn lstm(input: usize) -> String {
        let row = |from: usize| format!("[{}]", (from..from + 8).map(|v| v.to_string()).collect::<Vec<_>>().join(", "));
        let rows = |n: usize| format!("[{}]", (0..n).map(|k| row(10 * k)).collect::<Vec<_>>().join(", "));
        let weights = format!("[{}, {}, {}]", rows(input), rows(2), row(0));
        format!(r#"{{"type": "lstm", "activation": "tanh", "shape": [null, null, 2], "weights": {weights}}}"#)
    }

    fn file(layers: &[&str]) -> Result<RtNeural> {
        let text = format!(r#"{{"in_shape": [null, null, 1], "layers": [{}]}}"#, layers.join(", "));
        RtNeural::from_bytes(text.as_bytes())
    }

    #[test]
    fn keras_s_layout_is_turned() {
        let model = file(&[&lstm(1), &lstm(2), DENSE]).unwrap();
        assert_eq!(model.lstm.config(), &LstmConfig::new(1, 2).layers(2).bias(Bias::One));
        let upper = model.lstm.layers()[1].get(Param::WeightIh).unwrap();
        assert_eq!((upper.shape(), upper[[3, 1]]), (&[8, 2][..], 13.0));
        let (weight, bias) = model.head.unwrap();
        assert_eq!((weight, bias), (ndarray::array![[7.0, 8.0]], ndarray::array![9.0]));
    }

    #[test]
    fn what_is_not_read_is_named() {
        let refused = |layers: &[&str], word: &str| {
            let error = file(layers).unwrap_err().to_string();
            assert!(error.contains(word), "{error}: expected {word}");
        };
        let (one, two) = (lstm(1), lstm(2));
        refused(&[&one.replace("lstm", "gru")], "`gru`");
        refused(&[&one.replace("lstm", "conv1d")], "`conv1d`");
        refused(&[&one.replace("tanh", "relu")], "`relu`");
        refused(&[&one, &DENSE.replace(r#""activation": """#, r#""activation": "tanh""#)], "`tanh`");
        refused(&[&one, DENSE, DENSE], "layer 2 (dense");
        refused(&[DENSE], "layer 0 (dense");
        refused(&[&one, DENSE, &two], "layer 2 (lstm");
        refused(&[&one, &two.replace("null, 2]", "null, 3]")], "layer 1 (lstm, 3)");
        refused(&[&two], "1 x 8");
        refused(&[&one.replace("[[0, 1,", "[[1e60, 1,")], "more than f32");
        refused(&[&one.replace("null, 2]", "2, null]")], "a size last");
        refused(&[&one.replace(r#""shape""#, r#""dropout": 0.5, "shape""#)], "`dropout`");
        refused(&[], "none");
        let more = r#"{"in_shape": [1], "layers": [], "in_skip": 1}"#;
        assert!(RtNeural::from_bytes(more.as_bytes()).unwrap_err().to_string().contains("`in_skip`"));
        assert!(RtNeural::from_bytes(b"[").is_err());
        assert!(RtNeural::from_bytes("[".repeat(100_000).as_bytes()).is_err());
    }
}
