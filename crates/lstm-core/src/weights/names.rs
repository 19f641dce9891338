//! Names and layouts of the parameters in a file: those of PyTorch's `state_dict` and those of the original notebook.

use crate::{
    config::{Bias, CellKind, Direction, LayerSpec, LstmConfig, Param},
    error::{Error, Result},
};

/// A convention for the names and layouts of parameters in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorNames {
    /// PyTorch's names `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, ..., with the suffix `_reverse` for the reverse
    /// direction, and PyTorch's layout `[4 * hidden, n]`. [`pytorch_name`] also gives names to parameters that PyTorch
    /// does not have.
    #[default]
    PyTorch,
    /// The names of the original notebook (`docs/history.md`), for one forward layer with at most one bias. The
    /// parameters are `W`, `U`, `bias` with the shapes `[input, 4 * hidden]`, `[hidden, 4 * hidden]`, `[4 * hidden]`.
    /// For the unfused cell they are `U_x`, `V_x`, `b_x` with the shapes `[input, hidden]`, `[hidden, hidden]`,
    /// `[hidden]`, for each gate `x` of `i`, `f`, `c` (the candidate) and `o`.
    Notebook,
}

/// The PyTorch-style names of all parameters. Each entry has the name without the suffix `_l{layer}`, the parameter,
/// and whether only the dense peephole cell uses this name.
const NAME_STEMS: [(&str, Param, bool); 10] = [
    ("weight_ih", Param::WeightIh, false),
    ("weight_hh", Param::WeightHh, false),
    ("weight_ch", Param::WeightHh, true),
    ("bias", Param::Bias, false),
    ("bias_ih", Param::BiasIh, false),
    ("bias_hh", Param::BiasHh, false),
    ("weight_hr", Param::WeightHr, false),
    ("weight_pi", Param::PeepholeI, false),
    ("weight_pf", Param::PeepholeF, false),
    ("weight_po", Param::PeepholeO, false),
];

/// PyTorch's name of a parameter, such as `weight_ih_l0` or `bias_hh_l1_reverse`.
///
/// Parameters that PyTorch does not have get similar names. A single bias is `bias_l0`. The diagonal peepholes are
/// `weight_pi_l0`, `weight_pf_l0` and `weight_po_l0`. The recurrent weights of the dense peephole cell, which multiply
/// the cell state, are `weight_ch_l0`, so that the names identify the cell.
///
/// ```
/// use lstm_core::{CellKind, Param, weights::names::pytorch_name};
/// assert_eq!(pytorch_name(1, true, CellKind::Fused, Param::WeightIh), "weight_ih_l1_reverse");
/// assert_eq!(pytorch_name(0, false, CellKind::PeepholeDense, Param::WeightHh), "weight_ch_l0");
/// ```
pub fn pytorch_name(layer: usize, reverse: bool, cell: CellKind, param: Param) -> String {
    let only_dense_peephole = cell == CellKind::PeepholeDense && param == Param::WeightHh;
    let (stem, ..) = NAME_STEMS
        .iter()
        .find(|stem| (stem.1, stem.2) == (param, only_dense_peephole))
        .expect("every parameter has a stem");
    format!("{stem}_l{layer}{}", if reverse { "_reverse" } else { "" })
}

/// The [name](pytorch_name) and the shape of each parameter of an LSTM, in the order of [`LstmConfig::layer_specs`] and
/// [`LayerSpec::params`].
#[cfg(feature = "train")]
pub(crate) fn parameter_shapes(config: &LstmConfig) -> Vec<(String, Vec<usize>)> {
    let layers = config.layer_specs().into_iter().enumerate();
    let shapes = layers.flat_map(|(k, spec)| {
        let name = move |param| pytorch_name(k / config.num_directions(), spec.reverse, spec.cell, param);
        spec.params().into_iter().map(move |(param, shape)| (name(param), shape))
    });
    shapes.collect()
}

/// The parts of a parameter's PyTorch-style name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParsedName {
    /// Index of the layer.
    pub(crate) layer: usize,
    /// Whether the name has the suffix `_reverse`.
    pub(crate) reverse: bool,
    /// The parameter.
    pub(crate) param: Param,
    /// Whether only the dense peephole cell uses this name.
    pub(crate) only_dense_peephole: bool,
}

/// Parses a name that [`pytorch_name`] returns; `None` for any other name.
pub(crate) fn parse_pytorch_name(name: &str) -> Option<ParsedName> {
    let without_suffix = name.strip_suffix("_reverse");
    let (stem, layer_digits) = without_suffix.unwrap_or(name).rsplit_once("_l")?;
    let (_, param, only_dense_peephole) = *NAME_STEMS.iter().find(|(s, ..)| *s == stem)?;
    let layer: usize = layer_digits.parse().ok()?;
    // `parse` also accepts `+1` and `01`, which `pytorch_name` never writes.
    (layer.to_string() == layer_digits).then_some(ParsedName {
        layer,
        reverse: without_suffix.is_some(),
        param,
        only_dense_peephole,
    })
}

/// Parses a name of `torch.nn.LSTMCell`, which has no layer number: `weight_ih`, `weight_hh`, `bias_ih` or `bias_hh`.
/// `None` for any other name.
pub(crate) fn parse_cell_name(name: &str) -> Option<ParsedName> {
    let (_, param, only_dense_peephole) = *NAME_STEMS.iter().find(|(stem, ..)| *stem == name)?;
    let is_of_cell = matches!(param, Param::WeightIh | Param::BiasIh | Param::BiasHh)
        || (param == Param::WeightHh && !only_dense_peephole);
    is_of_cell.then_some(ParsedName { layer: 0, reverse: false, param, only_dense_peephole })
}

/// The names and layout of the parameters of one model in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileLayout {
    /// The names and layout of [`TensorNames::PyTorch`].
    PyTorch,
    /// The layout of [`TensorNames::PyTorch`] with the names of `torch.nn.LSTMCell`, which have no layer number.
    PyTorchCell,
    /// The names of [`TensorNames::Notebook`] with one matrix per gate. The field is the letter of the candidate gate,
    /// `c` or `g`.
    NotebookPerGate(char),
    /// The names of [`TensorNames::Notebook`] with one matrix for all four gates.
    NotebookPacked,
}

/// The tensors of a file that hold one parameter, in the order in which they are stacked along the first axis of the
/// parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredParam {
    /// Name without prefix, and shape in the file, of each tensor.
    pub(crate) tensors: Vec<(String, Vec<usize>)>,
    /// Whether the tensors are transposed in the file.
    pub(crate) transposed: bool,
}

impl FileLayout {
    /// Chooses the layout in which a model is written to a file.
    ///
    /// # Errors
    /// [`Error::Config`] if the notebook's names do not support an option of the model.
    pub(crate) fn new(names: TensorNames, config: &LstmConfig) -> Result<Self> {
        if names == TensorNames::PyTorch {
            return Ok(FileLayout::PyTorch);
        }
        let unsupported_option = |option, what: String| {
            let reason = format!("the notebook's tensor names do not support {what}; use PyTorch's names");
            Err(Error::config(option, reason))
        };
        match config {
            c if c.num_layers != 1 => unsupported_option("num_layers", format!("{} layers", c.num_layers)),
            c if c.direction != Direction::Forward => {
                unsupported_option("direction", format!("the direction {:?}", c.direction))
            }
            c if c.bias == Bias::Two => unsupported_option("bias", "two biases".into()),
            c if c.proj_size.is_some() => unsupported_option("proj_size", "a projection".into()),
            c if c.cell == CellKind::PeepholeDiagonal => unsupported_option("cell", format!("the cell {}", c.cell)),
            c if c.cell == CellKind::Unfused => Ok(FileLayout::NotebookPerGate('c')),
            _ => Ok(FileLayout::NotebookPacked),
        }
    }

    /// The tensors of every parameter of a model, in the order of [`LstmConfig::layer_specs`] and
    /// [`LayerSpec::params`].
    pub(crate) fn stored_params(self, config: &LstmConfig) -> Vec<(LayerSpec, Vec<StoredParam>)> {
        let specs = config.layer_specs().into_iter().enumerate();
        let layers = specs.map(|(k, spec)| {
            let layer = k / config.num_directions();
            (spec, spec.params().iter().map(|(param, shape)| self.stored_param(&spec, layer, *param, shape)).collect())
        });
        layers.collect()
    }

    /// The tensors of one parameter, which has the given shape in memory.
    fn stored_param(self, spec: &LayerSpec, layer: usize, param: Param, shape: &[usize]) -> StoredParam {
        let (packed_name, gate_letter) = match param {
            Param::WeightIh => ("W", "U"),
            Param::WeightHh => ("U", "V"),
            _ => ("bias", "b"),
        };
        let names = match self {
            FileLayout::PyTorch => vec![pytorch_name(layer, spec.reverse, spec.cell, param)],
            FileLayout::PyTorchCell => {
                let name = pytorch_name(layer, spec.reverse, spec.cell, param);
                vec![name.strip_suffix("_l0").unwrap_or(&name).to_owned()]
            }
            FileLayout::NotebookPerGate(candidate) => {
                ['i', 'f', candidate, 'o'].map(|gate| format!("{gate_letter}_{gate}")).to_vec()
            }
            FileLayout::NotebookPacked => vec![packed_name.to_owned()],
        };
        let transposed = !matches!(self, FileLayout::PyTorch | FileLayout::PyTorchCell);
        let mut part_shape = shape.to_vec();
        part_shape[0] /= names.len();
        if transposed {
            part_shape.reverse();
        }
        StoredParam { tensors: names.into_iter().map(|name| (name, part_shape.clone())).collect(), transposed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pytorch_names_round_trip() {
        for (stem, param, only_dense_peephole) in NAME_STEMS {
            let cell = if only_dense_peephole { CellKind::PeepholeDense } else { CellKind::Fused };
            for (layer, reverse) in [(0, false), (10, true)] {
                let name = pytorch_name(layer, reverse, cell, param);
                assert!(name.starts_with(stem), "{name}");
                assert_eq!(parse_pytorch_name(&name), Some(ParsedName { layer, reverse, param, only_dense_peephole }));
            }
        }
        for other in ["weight_ih_l", "weight_ih_l+1", "weight_ih_l01", "weight_ih_l0_", "weight_ih", "_l0", "W", ""] {
            assert_eq!(parse_pytorch_name(other), None, "{other}");
        }
        assert_eq!(parse_cell_name("weight_hh").map(|parsed| parsed.param), Some(Param::WeightHh));
        for other in ["bias", "weight_ch", "weight_hr", "weight_ih_l0", "weight"] {
            assert!(parse_cell_name(other).is_none(), "{other}");
        }
        assert_eq!(parse_pytorch_name("weight_ih_l0_reverse_reverse"), None);
        assert_eq!(parse_pytorch_name("weight_ih_l99999999999999999999999"), None);
    }

    #[test]
    fn notebook_names_and_shapes() {
        let config = LstmConfig::new(3, 5).bias(Bias::One);
        let describe_parts = |cell: CellKind| {
            let config = LstmConfig { cell, ..config.clone() };
            let layers = FileLayout::new(TensorNames::Notebook, &config).unwrap().stored_params(&config);
            let tensors = layers[0].1.iter().flat_map(|stored| stored.tensors.clone());
            tensors.map(|(name, shape)| format!("{name}{shape:?}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(describe_parts(CellKind::PeepholeDense), "W[3, 20] U[5, 20] bias[20]");
        let gates = "U_i[3, 5] U_f[3, 5] U_c[3, 5] U_o[3, 5] V_i[5, 5] V_f[5, 5] V_c[5, 5] V_o[5, 5]";
        assert_eq!(describe_parts(CellKind::Unfused), format!("{gates} b_i[5] b_f[5] b_c[5] b_o[5]"));
        for (config, named) in [
            (config.clone().layers(2), "num_layers"),
            (config.clone().bidirectional(), "direction"),
            (config.clone().direction(Direction::Reverse), "direction"),
            (config.clone().bias(Bias::Two), "bias"),
            (config.clone().proj_size(2), "proj_size"),
            (config.clone().cell(CellKind::PeepholeDiagonal), "cell"),
        ] {
            let file_layout = FileLayout::new(TensorNames::Notebook, &config);
            assert!(
                matches!(file_layout, Err(Error::Config { option, .. }) if option == named),
                "{named}: {file_layout:?}"
            );
        }
    }
}
