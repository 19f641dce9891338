//! What parameters are called in a file: PyTorch's `state_dict` names and the notebook's own, in both directions.

use crate::{
    config::{Bias, CellKind, Direction, LayerSpec, LstmConfig, Param},
    error::{Error, Result},
};

/// A way of naming and laying out parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TensorNames {
    /// `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, ..., with `_reverse` after those of the reverse direction, in this
    /// crate's own layout `[4 * hidden, n]`. See [`pytorch_name`] for what PyTorch has no name for.
    #[default]
    PyTorch,
    /// The notebook's: `W`, `U`, `bias` of shapes `[input, 4 * hidden]`, `[hidden, 4 * hidden]`, `[4 * hidden]`, or for
    /// the unfused cell `U_x`, `V_x`, `b_x` of shapes `[input, hidden]`, `[hidden, hidden]`, `[hidden]` for each gate x
    /// of i, f, c (the candidate), o. One forward layer with at most one bias.
    Notebook,
}

/// Beginnings of names, what they name, and whether only the dense peephole has it.
const STEMS: [(&str, Param, bool); 10] = [
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
/// Where PyTorch has none, in its manner: an only bias is `bias_l0`, the diagonal peepholes are `weight_pi_l0`,
/// `weight_pf_l0` and `weight_po_l0`, and the dense peephole's recurrent weights, which multiply the cell, are
/// `weight_ch_l0`, so that a file says which cell it holds.
///
/// ```
/// use lstm_core::{CellKind, Param, weights::names::pytorch_name};
/// assert_eq!(pytorch_name(1, true, CellKind::Fused, Param::WeightIh), "weight_ih_l1_reverse");
/// assert_eq!(pytorch_name(0, false, CellKind::PeepholeDense, Param::WeightHh), "weight_ch_l0");
/// ```
pub fn pytorch_name(layer: usize, reverse: bool, cell: CellKind, param: Param) -> String {
    let dense = cell == CellKind::PeepholeDense && param == Param::WeightHh;
    let (stem, ..) = STEMS.iter().find(|stem| (stem.1, stem.2) == (param, dense)).expect("every parameter has a stem");
    format!("{stem}_l{layer}{}", if reverse { "_reverse" } else { "" })
}

/// What a name of PyTorch's says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) layer: usize,
    pub(crate) reverse: bool,
    pub(crate) param: Param,
    /// Whether it is a parameter that only the dense peephole has.
    pub(crate) dense: bool,
}

/// The inverse of [`pytorch_name`]; `None` for any other name.
pub(crate) fn parse(name: &str) -> Option<Parsed> {
    let forward = name.strip_suffix("_reverse");
    let (stem, digits) = forward.unwrap_or(name).rsplit_once("_l")?;
    let (_, param, dense) = *STEMS.iter().find(|(s, ..)| *s == stem)?;
    let layer: usize = digits.parse().ok()?;
    // `parse` also takes `+1` and `01`, which are not names of ours.
    (layer.to_string() == digits).then_some(Parsed { layer, reverse: forward.is_some(), param, dense })
}

/// The names and layout that one model has in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    PyTorch,
    /// The notebook's four gates apart, the candidate being called by this letter.
    Gates(char),
    /// The notebook's packed matrices.
    Packed,
}

/// Where a parameter lies: parts that are stacked along the first axis, each transposed in the file or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Names without prefix, and shapes as in the file.
    pub(crate) parts: Vec<(String, Vec<usize>)>,
    pub(crate) transposed: bool,
}

impl Scheme {
    /// The scheme in which to write.
    pub(crate) fn new(names: TensorNames, config: &LstmConfig) -> Result<Self> {
        if names == TensorNames::PyTorch {
            return Ok(Scheme::PyTorch);
        }
        let refuse = |option, what: String| {
            Err(Error::config(option, format!("the notebook's names can't express {what}; PyTorch's can")))
        };
        match config {
            c if c.num_layers != 1 => refuse("num_layers", format!("{} layers", c.num_layers)),
            c if c.direction != Direction::Forward => refuse("direction", format!("{:?}", c.direction)),
            c if c.bias == Bias::Two => refuse("bias", "two biases".into()),
            c if c.proj_size.is_some() => refuse("proj_size", "a projection".into()),
            c if c.cell == CellKind::PeepholeDiagonal => refuse("cell", format!("{:?}", c.cell)),
            c if c.cell == CellKind::Unfused => Ok(Scheme::Gates('c')),
            _ => Ok(Scheme::Packed),
        }
    }

    /// Where each parameter of a model lies, in the order of [`LstmConfig::layer_specs`] and [`LayerSpec::params`].
    pub(crate) fn layout(self, config: &LstmConfig) -> Vec<(LayerSpec, Vec<Stored>)> {
        let specs = config.layer_specs().into_iter().enumerate();
        let layout = specs.map(|(k, spec)| {
            let layer = k / config.num_directions();
            (spec, spec.params().iter().map(|(param, shape)| self.stored(&spec, layer, *param, shape)).collect())
        });
        layout.collect()
    }

    fn stored(self, spec: &LayerSpec, layer: usize, param: Param, shape: &[usize]) -> Stored {
        let (packed, gate) = match param {
            Param::WeightIh => ("W", "U"),
            Param::WeightHh => ("U", "V"),
            _ => ("bias", "b"),
        };
        let names = match self {
            Scheme::PyTorch => vec![pytorch_name(layer, spec.reverse, spec.cell, param)],
            Scheme::Gates(candidate) => ['i', 'f', candidate, 'o'].map(|x| format!("{gate}_{x}")).to_vec(),
            Scheme::Packed => vec![packed.to_owned()],
        };
        let transposed = self != Scheme::PyTorch;
        let mut part = shape.to_vec();
        part[0] /= names.len();
        if transposed {
            part.reverse();
        }
        Stored { parts: names.into_iter().map(|name| (name, part.clone())).collect(), transposed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for (stem, param, dense) in STEMS {
            let cell = if dense { CellKind::PeepholeDense } else { CellKind::Fused };
            for (layer, reverse) in [(0, false), (10, true)] {
                let name = pytorch_name(layer, reverse, cell, param);
                assert!(name.starts_with(stem), "{name}");
                assert_eq!(parse(&name), Some(Parsed { layer, reverse, param, dense }));
            }
        }
        for other in ["weight_ih_l", "weight_ih_l+1", "weight_ih_l01", "weight_ih_l0_", "weight_ih", "_l0", "W", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert_eq!(parse("weight_ih_l0_reverse_reverse"), None);
        assert_eq!(parse("weight_ih_l99999999999999999999999"), None);
    }

    #[test]
    fn the_notebooks_names_and_shapes() {
        let config = LstmConfig::new(3, 5).bias(Bias::One);
        let parts = |cell: CellKind| {
            let config = LstmConfig { cell, ..config.clone() };
            let layout = Scheme::new(TensorNames::Notebook, &config).unwrap().layout(&config);
            let parts = layout[0].1.iter().flat_map(|stored| stored.parts.clone());
            parts.map(|(name, shape)| format!("{name}{shape:?}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(parts(CellKind::PeepholeDense), "W[3, 20] U[5, 20] bias[20]");
        let gates = "U_i[3, 5] U_f[3, 5] U_c[3, 5] U_o[3, 5] V_i[5, 5] V_f[5, 5] V_c[5, 5] V_o[5, 5]";
        assert_eq!(parts(CellKind::Unfused), format!("{gates} b_i[5] b_f[5] b_c[5] b_o[5]"));
        for (config, named) in [
            (config.clone().layers(2), "num_layers"),
            (config.clone().bidirectional(), "direction"),
            (config.clone().direction(Direction::Reverse), "direction"),
            (config.clone().bias(Bias::Two), "bias"),
            (config.clone().proj_size(2), "proj_size"),
            (config.clone().cell(CellKind::PeepholeDiagonal), "cell"),
        ] {
            let scheme = Scheme::new(TensorNames::Notebook, &config);
            assert!(matches!(scheme, Err(Error::Config { option, .. }) if option == named), "{named}: {scheme:?}");
        }
    }
}
